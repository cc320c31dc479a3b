"""Can this server hold lanes? Each connection of ours asks it, of what the server says of itself when it is greeted.

So the answer is the same wherever a server is met first: at a worker's start, by a caller, by `doctor`. It costs
nothing: redis-py greets each server (HELLO) anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from ratelimit_worker.errors import ConfigurationError

OLDEST_MAJOR = 7  #: version; Valkey counts on from Redis 7.2
TOO_OLD = "use Redis 7, Valkey 7.2 or newer"


class Unfit(ConfigurationError):
    """A server that cannot hold lanes. `str()` says why, and what to do."""


def said(greeting: Mapping[Any, Any]) -> dict[str, str]:
    """What a server says of itself: `server`, `version`, `mode`."""
    texts = {_text(name): _text(value) for name, value in greeting.items()}
    return {name: texts.get(name, "") for name in ("server", "version", "mode")}


def why_unfit(greeting: Mapping[Any, Any]) -> str | None:
    """Why a server cannot hold lanes; None: it can, or does not say enough to tell."""
    told = said(greeting)
    if told["mode"] == "cluster":
        return (
            "Redis Cluster cannot hold lanes, whose scripts use keys of any slot: use one server, with a replica and "
            "sentinels if it has to stand in"
        )
    if told["mode"] == "sentinel":
        return "this is a sentinel, not a server: use sentinel://…, with the name of its master as ?master_name=…"
    major = told["version"].partition(".")[0]
    if major.isdigit() and int(major) < OLDEST_MAJOR:
        return f"{product(told['server'])} {told['version']} is too old: {TOO_OLD}"
    return None


def product(server: str) -> str:
    """How a server is called, from what it calls itself."""
    return "Valkey" if server == "valkey" else "Redis"


class _Fit:
    """What a connection does once it has greeted its server."""

    handshake_metadata: Any
    db: Any

    def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            super().on_connect_check_health(check_health)  # type: ignore[misc]
        except ResponseError as error:
            words = str(error)
            if "unknown command" in words and "HELLO" in words:
                raise self._refused(f"this server does not know HELLO, so it is too old: {TOO_OLD}") from None
            if "DB index is out of range" in words:
                raise self._refused(f"this server has no database {self.db}: use a lower number") from None
            raise
        why = why_unfit(getattr(self, "handshake_metadata", None) or {})
        if why is not None:
            raise self._refused(why)

    def _refused(self, why: str) -> Unfit:
        self.disconnect()  # type: ignore[attr-defined]  # else it would be taken for one that works
        return Unfit(why)


_fit: dict[type, type] = {}


def fit(kind: type) -> type:
    """The same kind of connection, which refuses servers that cannot hold lanes."""
    if kind not in _fit:
        _fit[kind] = type(kind.__name__, (_Fit, kind), {})
    return _fit[kind]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
