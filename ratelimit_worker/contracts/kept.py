"""What is told of an answer that is to be kept, and how is a large one packed?

Small answers are kept as they are, large ones as one zstd frame. A frame never begins as JSON does, so whoever has
either can tell which it is.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ratelimit_worker.errors import StoreUnavailable

PACKED_FROM_BYTES = 2048  #: a smaller answer would save less than an entry takes beside it
#: What a token is taken to cost where no price is known, billionths of a dollar: a dollar a million, about what the
#: cheaper models take. It ranks answers with a price and answers without one in one order.
NANOUSD_PER_TOKEN = 1000
#: What an answer cost of which nothing is known: the tokens of a short chat.
USUAL_NANOUSD = 1000 * NANOUSD_PER_TOKEN
#: Lifts scores above the resolution of the floor, which begins at the clock's microseconds: a double there tells 0.25
#: apart, and a cent that is saved by 100 kB is 100,000.
WORTH_SCALE = 1000
#: Bytes that an entry takes in Redis beside what it holds: keys, fields, and its places in three indexes. Measured with
#: Valkey 9: 1,028 to 1,084 a kept answer of 100 B to 10 kB, less below.
ENTRY_BYTES = 1100
_FRAME = b"\x28\xb5\x2f\xfd"  #: how each zstd frame begins


class Keep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an answer is to be kept that others may get."""

    again_nanousd: int  #: what asking again would cost, billionths of a dollar: the more, the later it is evicted
    #: Whether it may be packed. One that an emergency may give to calls that wait is not: a script does that, which
    #: cannot unpack.
    packs: bool = True


def packed(answer: bytes) -> bytes:
    """A large answer in less room; empty: it is kept as it is."""
    if len(answer) < PACKED_FROM_BYTES:
        return b""
    frame = _zstd().compress(answer)
    return frame if len(frame) < len(answer) else b""


def unpacked(stored: bytes) -> bytes:
    """An answer as it was, from what is kept of it.

    Raises:
        StoreUnavailable: what is kept is damaged.
    """
    if not stored.startswith(_FRAME):
        return stored
    zstd = _zstd()
    try:
        return bytes(zstd.decompress(stored))
    except zstd.ZstdError as error:
        raise StoreUnavailable(f"a kept answer cannot be unpacked: {error}") from error


def _zstd() -> Any:
    """Loaded with the first large answer: most processes never see one."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
