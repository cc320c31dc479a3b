"""The state of an outage, for logs: each cause is logged once, not at each failure."""

from __future__ import annotations

import re

from ratelimit_worker.plain_text import one_line

MOST_LETTERS = 300
MOST_CAUSES = 20  #: logged in one outage; errors that contain a number may differ without end
_IN_URL = re.compile(r"(://[^\s:/@]*:)\S+(@)")
_IN_QUERY = re.compile(r"(?i)\b([\w-]*(?:password|passwd|pwd|secret|token|api[_-]?key)=)[^\s&;,'\"]+")


def without_passwords(text: str) -> str:
    """The text with *** for passwords in URLs and in anything that looks like a setting."""
    return _IN_QUERY.sub(r"\1***", _IN_URL.sub(r"\1***\2", text))


def cause_of(error: BaseException) -> str:
    """Type and first line of an error, for a log: no passwords, no control characters."""
    said = next(iter(str(error).splitlines()), "")
    kind = type(error).__name__
    return one_line(without_passwords(f"{kind}: {said}" if said else kind))[:MOST_LETTERS]


class Outage:
    """From the first failure to the next success."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._said)

    def news(self, error: BaseException) -> str | None:
        """The cause, if it is new in this outage; None: it was logged already."""
        cause = cause_of(error)
        if cause in self._said or len(self._said) >= MOST_CAUSES:
            return None
        self._said.add(cause)
        return cause

    def over(self) -> bool:
        """End the outage. Returns whether there was one."""
        was = bool(self._said)
        self._said.clear()
        return was
