"""Can this server hold lanes? Each of our connections checks it, by the server's reply to HELLO.

So the result is the same wherever a server is first met: when a worker starts, in a caller, in `doctor`. It costs
nothing, since redis-py sends HELLO anyway.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.exceptions import ResponseError

from ratelimit_worker.errors import ConfigurationError

OLDEST_MAJOR = 7  #: version; Valkey counts on from Redis 7.2
TOO_OLD = "use Redis 7, Valkey 7.2 or newer"


class Unfit(ConfigurationError):
    """The server cannot hold lanes. `str()` says why, and what to do."""


def said(greeting: Mapping[Any, Any]) -> dict[str, str]:
    """The server's reply to HELLO: `server`, `version`, `mode`."""
    texts = {_text(name): _text(value) for name, value in greeting.items()}
    return {name: texts.get(name, "") for name in ("server", "version", "mode")}


def why_unfit(greeting: Mapping[Any, Any]) -> str | None:
    """Why a server cannot hold lanes; None: it can, or its reply does not say."""
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
    """The product's name, from the server's own name."""
    return "Valkey" if server == "valkey" else "Redis"


class _Fit:
    """Makes a connection check its server after HELLO."""

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
        self.disconnect()  # type: ignore[attr-defined]  # otherwise it would be used
        return Unfit(why)


_fit: dict[type, type] = {}


def fit(kind: type) -> type:
    """The same connection class, which refuses servers that cannot hold lanes."""
    if kind not in _fit:
        _fit[kind] = type(kind.__name__, (_Fit, kind), {})
    return _fit[kind]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
