"""When is a regular expression compiled? At its first use: all of them took a quarter of the time of our imports."""

from __future__ import annotations

import re
from typing import Any, cast


class _Uncompiled:
    """A pattern that is compiled when one of its methods is first used."""

    __slots__ = ("__dict__", "flags", "pattern")

    def __init__(self, pattern: str, flags: int) -> None:
        self.pattern, self.flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        found = getattr(re.compile(self.pattern, self.flags), name)  # `re` keeps what it has compiled
        self.__dict__[name] = found
        return found


def lazy(text: str, flags: int = 0) -> re.Pattern[str]:
    """As `re.compile`, but an invalid text raises `re.error` only at the first use."""
    return cast("re.Pattern[str]", _Uncompiled(text, flags))
