"""How is a file of lines read fast? In blocks of many lines, each of which ends at the end of a line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from ratelimit_worker.batchfile import Cut

BLOCK = 1 << 17  #: bytes; small enough to stay in a processor's cache while it is scanned several times


def blocks(fd: int, start: int, end: int, long_line: Callable[[int], bytes]) -> Iterator[bytes]:
    """The lines of a part of a file, in blocks. Each block ends at the end of a line; only the last may end anywhere.

    Args:
        fd: Descriptor of a regular file; its position is not used or moved.
        start: Offset of the first line, in bytes.
        end: Offset after the last line, in bytes.
        long_line: Called with the offset of a line that is longer than a block; returns that line, or its beginning as
            a `Cut`, which becomes a block of its own.
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
