"""How an answer is kept between its settlement and the ack: as JSON. A second delivery of the call returns it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from ratelimit_worker import errors


class Answers(Struct, frozen=True, kw_only=True):
    """Answers to bytes and back, in the framework's own JSON."""

    dumps: Callable[[Any], str]
    loads: Callable[[str], Any]

    def value(self, value: Any, by: str | None = None) -> bytes:
        """Encode a result; empty: it is not JSON, and Celery will say so when it stores the result.

        Args:
            by: W3C traceparent of the call that asked, for the traces of calls that get its answer; it stands first,
                where enqueue.lua looks for it.
        """
        try:
            return self.dumps({"value": value} if by is None else {"by": by, "value": value}).encode()
        except (TypeError, ValueError, RecursionError):
            return b""

    def error(self, error: BaseException, by: str | None = None) -> bytes:
        """Encode a final failure, one of our errors; `by` as of `value`."""
        told = {"error": [type(error).__name__, list(error.args)]}
        return self.dumps(told if by is None else {"by": by, **told}).encode()

    def passed(self) -> bytes:
        """Encode that there is no answer: the framework took over (a retry was sent, the call was ignored)."""
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
