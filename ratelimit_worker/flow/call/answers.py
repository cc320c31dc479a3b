"""How is an answer kept between SETTLE and the ack? As JSON, so that a second delivery returns it and sends nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ratelimit_worker import errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers to bytes and back, in the framework's own JSON."""

    dumps: Callable[[Any], str]
    loads: Callable[[str], Any]

    def value(self, value: Any) -> bytes:
        """A result; empty where it is no JSON: then Celery says so when it stores the result."""
        try:
            return self.dumps({"value": value}).encode()
        except (TypeError, ValueError, RecursionError):
            return b""

    def error(self, error: BaseException) -> bytes:
        """A final failure of ours."""
        return self.dumps({"error": [type(error).__name__, list(error.args)]}).encode()

    def passed(self) -> bytes:
        """The framework took over (a retry was sent, the call was ignored): nothing is left to do."""
        return b'{"passed": true}'

    def decode(self, raw: bytes) -> tuple[str, Any]:
        """("value", result) | ("error", exception) | ("passed", None)."""
        kept = self.loads(raw.decode())
        if "value" in kept:
            return "value", kept["value"]
        if "error" in kept:
            name, args = kept["error"]
            return "error", getattr(errors, name)(*args)
        return "passed", None
