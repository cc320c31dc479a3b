"""Which calls has this worker, or a child of it, freed already? Their messages need no ack.

The process that runs a call ends it in Redis; the one that holds its message acknowledges it, and in a prefork pool
that is the parent. So the word goes through a page of memory that children share, in which each release has a place by
its number. What is overwritten there before its ack is acknowledged once more, which Redis finds done.
"""

from __future__ import annotations

import mmap
import struct
from zlib import crc32

PLACES = 4096  #: releases that are remembered, and more than that are seldom out of one worker
_ENTRY = struct.Struct("QQ")  #: number of the release, and a digest of its reference


class Freed:
    """Calls that were freed before their messages were acknowledged, of this process and the children it forks."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, PLACES * _ENTRY.size)

    def add(self, tag: str) -> None:
        """The call with this tag is freed."""
        at, entry = _place(tag)
        _ENTRY.pack_into(self._page, at, *entry)

    def take(self, tag: str) -> bool:
        """Whether it was, as far as is remembered; asked again, it is not."""
        at, entry = _place(tag)
        if entry[0] == 0 or _ENTRY.unpack_from(self._page, at) != entry:  # an empty place is nobody's
            return False
        _ENTRY.pack_into(self._page, at, 0, 0)
        return True


def _place(tag: str) -> tuple[int, tuple[int, int]]:
    ref, _, number = tag.rpartition(".")
    n = int(number) if number.isdecimal() else 0
    return n % PLACES * _ENTRY.size, (n, crc32(ref.encode("utf-8", "surrogatepass")))


FREED = Freed()
