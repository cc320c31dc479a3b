"""How an answer is kept: what the cache knows about it, and how a large one is compressed.

Small answers are kept as they are, large ones as one zstd frame. JSON never begins with the bytes of such a frame, so
the two can be told apart.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from ratelimit_worker.errors import StoreUnavailable

PACKED_FROM_BYTES = 2048  #: below this, compression saves less than an entry's fixed overhead
#: Assumed price of a token where none is known, billionths of a dollar: a dollar per million tokens, about what the
#: cheaper models charge. With it, answers with and without a price can be ranked in one order.
NANOUSD_PER_TOKEN = 1000
#: Assumed cost of an answer of which not even the tokens are known: those of a short chat.
USUAL_NANOUSD = 1000 * NANOUSD_PER_TOKEN
#: Scores are multiplied by this, since they are added to the floor, which begins at the clock's microseconds: a double
#: of that size resolves 0.25. A cent saved by an answer of 100 kB then counts 100,000.
WORTH_SCALE = 1000
#: Bytes that an entry takes in Redis beside the answer itself: keys, fields, and its places in three indexes. Measured
#: with Valkey 9: 1,028 to 1,084 for answers of 100 B to 10 kB, less for smaller ones.
ENTRY_BYTES = 1100
#: If the renewal of an answer past its time has brought nothing after so many seconds, another one is sent.
RENEW_AGAIN_S = 30.0
_FRAME = b"\x28\xb5\x2f\xfd"  #: how each zstd frame begins


class Keep(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How an answer is kept for other calls."""

    again_nanousd: int  #: what asking again would cost, billionths of a dollar; expensive answers are evicted last
    paid_nanousd: int = 0  #: what it cost, which each further use saves; 0: no price is known
    input_tokens: int = 0  #: what it took, which each further use saves; 0: not known
    output_tokens: int = 0
    #: Whether it may be compressed. Not where waiting calls may get it in an emergency: a script gives it to them, and
    #: scripts cannot unpack.
    packs: bool = True


def packed(answer: bytes) -> bytes:
    """The compressed answer; empty: it is small, or did not get smaller, and is kept as it is."""
    if len(answer) < PACKED_FROM_BYTES:
        return b""
    frame = _zstd().compress(answer)
    return frame if len(frame) < len(answer) else b""


def unpacked(stored: bytes) -> bytes:
    """The answer as it was, from its kept form.

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
    """The zstd module, imported with the first large answer: most processes never see one."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
