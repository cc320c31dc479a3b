"""How is a file of lines read fast? Many lines in one piece, which ends where a line does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ratelimit_worker.batchfile import Cut

BLOCK = 1 << 17  #: bytes: what is looked at several times stays in a processor's cache


def blocks(fd: int, start: int, end: int, long_line: Callable[[int], bytes]) -> Iterator[bytes]:
    """The lines of a part of a file. Each block ends where a line does, but for the last one, which may end anywhere.

    Args:
        fd: Of a regular file; it is read by position.
        start: Of the first line, bytes.
        end: Of the last line, bytes.
        long_line: Takes where a line begins that is longer than a block, and returns it, or the beginning of it as a
            `Cut`; it is a block of its own.
    Raises:
        OSError: it cannot be read.
    """
    while start < end and (block := os.pread(fd, min(BLOCK, end - start), start)):
        length = block.rfind(b"\n") + 1
        block = block[:length] if length else long_line(start)
        start += block.size if isinstance(block, Cut) else len(block)
        if not block:
            return
        yield block
