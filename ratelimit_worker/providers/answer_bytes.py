"""Reads an answer within a bound of bytes: it is decoded piece by piece, and counted while it is decoded.

httpx decodes everything that one read brought at once: 1.7 kB of `Content-Encoding: gzip, gzip` become 2 GB before
anybody can count them. Here no step produces more than `PIECE_BYTES` at a time, and none more than the bound in all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import httpx2 as httpx

from ratelimit_worker.errors import InvalidRequest

PIECE_BYTES = 64 * 1024
MOST_ENCODINGS = 2  #: most encodings of one answer, one inside the other; honest servers use one
#: Most bytes that are kept of the body of a refusal: its cause is at the beginning.
MOST_REFUSAL_BYTES = 1024 * 1024
MB = 1024 * 1024

#: `Content-Encoding` -> window bits of zlib, in the order in which they are tried.
_WINDOWS = {
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),  # with zlib's header, as the standard says, or bare
}

#: Sent as `Accept-Encoding`: the encodings that can be read here.
ENCODINGS = "gzip, deflate"


def read_answer(answer: httpx.Response, most_bytes: int) -> bytearray:
    """The decoded body of a streamed answer. One buffer that grows: the pieces are never kept beside the whole.

    A body with an encoding that was not asked for is left as it came.

    Args:
        most_bytes: Bound of a good answer (2xx), decoded or not. Of other answers at most `MOST_REFUSAL_BYTES` are
            read.
    Raises:
        InvalidRequest: A good answer is larger than that, or encoded more than `MOST_ENCODINGS` times. Final: the same
            question would bring the same answer.
        httpx.DecodingError: It is not encoded as it says.
        httpx.TransportError: As reading does.
    """
    good = 200 <= answer.status_code < 300
    most = most_bytes if good else min(most_bytes, MOST_REFUSAL_BYTES)
    whole = bytearray()
    try:
        for piece in _decoded(answer, most):
            whole += piece
            if len(whole) > most:
                raise _TooLarge
    except _TooLarge:
        if good:
            whole.clear()
            raise too_large(most, answer.status_code) from None
        del whole[most:]
    return whole


def too_large(most_bytes: int, status: int) -> InvalidRequest:
    """The error for an answer of more bytes than may be kept."""
    return InvalidRequest(
        f"the answer is larger than {most_bytes / MB:.3g} MB; ask for less, or raise MAISD_MAX_ANSWER_MB", status
    )


class _TooLarge(Exception):
    """More bytes came than are allowed."""


def _decoded(answer: httpx.Response, most: int) -> Iterator[bytes]:
    names = [name.strip().lower() for name in answer.headers.get("content-encoding", "").split(",")]
    encodings = [name for name in names if name not in {"", "identity"}]
    if not all(name in _WINDOWS for name in encodings):
        return answer.iter_raw()
    if len(encodings) > MOST_ENCODINGS:
        if not 200 <= answer.status_code < 300:
            return iter(())  # its status says enough
        raise InvalidRequest(f"the answer is encoded {len(encodings)} times", answer.status_code)
    pieces: Iterator[bytes] = answer.iter_raw()
    for name in reversed(encodings):  # the last was applied last
        pieces = _inflated(pieces, _WINDOWS[name], most)
    return pieces


def _inflated(pieces: Iterable[bytes], windows: tuple[int, ...], most: int) -> Iterator[bytes]:
    """One step of decoding.

    Raises:
        _TooLarge: it makes more than `most`, whatever the next one makes of that.
    """
    made, any_came, inflater = 0, False, zlib.decompressobj(windows[0])
    for piece in pieces:
        rest = piece
        while rest:
            if inflater.eof:
                if len(windows) > 1 or rest[:1] != b"\x1f":
                    break  # anything after the end is ignored
                inflater = zlib.decompressobj(windows[0])  # several gzip files may follow each other
            try:
                out = inflater.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                if any_came or len(windows) == 1:
                    raise httpx.DecodingError(f"the answer is not encoded as it says ({error})") from None
                windows = windows[1:]
                inflater = zlib.decompressobj(windows[0])
                continue
            any_came, rest = True, inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            made += len(out)
            if made > most:
                raise _TooLarge
            if out:
                yield out
    if any_came and not inflater.eof:
        tail = inflater.flush(PIECE_BYTES)
        if tail:
            yield tail
        if not inflater.eof:
            raise httpx.DecodingError("the answer ends in the middle of its encoding")
