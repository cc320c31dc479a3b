"""Which calls were freed by this worker or its children already? Their messages need no ack.

The process that runs a call frees it in Redis. The process that holds its message acknowledges it: in a prefork pool,
the parent. So this is noted in a page of shared memory, in which each release has a place by its number. If a note is
overwritten before its ack, the call is acknowledged once more, which does nothing in Redis.
"""

from __future__ import annotations

import mmap
import struct
from zlib import crc32

PLACES = 4096  #: releases that are remembered; a worker rarely has more out
_ENTRY = struct.Struct("QQ")  #: number of the release, digest of its reference


class Freed:
    """Calls of this process and its forked children that were freed before their messages were acknowledged."""

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, PLACES * _ENTRY.size)

    def add(self, tag: str) -> None:
        """Note that the call with this tag is freed."""
        at, entry = _place(tag)
        _ENTRY.pack_into(self._page, at, *entry)

    def take(self, tag: str) -> bool:
        """Whether it was freed, as far as is remembered; the note is removed."""
        at, entry = _place(tag)
        if entry[0] == 0 or _ENTRY.unpack_from(self._page, at) != entry:  # an empty place
            return False
        _ENTRY.pack_into(self._page, at, 0, 0)
        return True


def _place(tag: str) -> tuple[int, tuple[int, int]]:
    ref, _, number = tag.rpartition(".")
    n = int(number) if number.isdecimal() else 0
    return n % PLACES * _ENTRY.size, (n, crc32(ref.encode("utf-8", "surrogatepass")))


FREED = Freed()
