"""How many bytes of an answer may come into memory? It is decoded piece by piece, and counted as it is decoded.

httpx decodes whatever came in one read at once: 1.7 kB of `Content-Encoding: gzip, gzip` become 2 GB before anybody
could count them. Here no step makes more than `PIECE_BYTES` at a time, and none makes more than the bound in all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import httpx2 as httpx

from ratelimit_worker.errors import InvalidRequest

PIECE_BYTES = 64 * 1024
MOST_ENCODINGS = 2  #: that one answer may have, one inside the other; honest servers use one
#: Of the body of a refusal as much is kept: what it says of its cause stands at its beginning.
MOST_REFUSAL_BYTES = 1024 * 1024
MB = 1024 * 1024

#: `Content-Encoding` -> window bits of zlib, in the order in which they are tried.
_WINDOWS = {
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),  # with zlib's header, as the standard says, or bare
}

#: What is asked for: what is read here.
ENCODINGS = "gzip, deflate"


def read_answer(answer: httpx.Response, most_bytes: int) -> bytearray:
    """The decoded body of a streamed answer. One buffer that grows: the pieces are never kept beside the whole.

    What is encoded in a way that nobody asked for stays as it came.

    Args:
        most_bytes: Bound of a good answer (2xx), decoded or not. Of any other at most `MOST_REFUSAL_BYTES` are read.
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
    """More came than may."""


def _decoded(answer: httpx.Response, most: int) -> Iterator[bytes]:
    names = [name.strip().lower() for name in answer.headers.get("content-encoding", "").split(",")]
    encodings = [name for name in names if name not in {"", "identity"}]
    if not all(name in _WINDOWS for name in encodings):
        return answer.iter_raw()
    if len(encodings) > MOST_ENCODINGS:
        if not 200 <= answer.status_code < 300:
            return iter(())  # its status says what it is about
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
                    break  # what stands behind the end is nobody's
                inflater = zlib.decompressobj(windows[0])  # gzip's files may stand one behind the other
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
