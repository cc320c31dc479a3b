"""A minimal parser of HTTP/1.1: requests with a content-length, one after the other.

Written by hand because h11 takes more time than all the rest of the simulator.
"""

from __future__ import annotations

from http import HTTPStatus

from msgspec import Struct

_MOST_HEAD_BYTES = 64 * 1024
_MOST_BODY_BYTES = 64 * 1024 * 1024
_REASONS = {status.value: status.phrase for status in HTTPStatus} | {529: "Site is overloaded"}


class BadRequest(Exception):
    """The bytes are no request that this server understands; the connection has to be closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message


class Request(Struct, frozen=True):
    """One request, read to its end."""

    method: str
    path: str  #: without the query
    headers: dict[str, str]  #: names in lower case
    body: bytes
    keep_alive: bool


class Reader:
    """Parses the requests of one connection from its bytes."""

    __slots__ = ("_buffer", "_head", "_length", "expects_continue")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None
        self._length = 0
        self.expects_continue = False  #: the client waits for "100 Continue"; the caller resets it

    def feed(self, data: bytes) -> None:
        """Add bytes from the connection."""
        self._buffer += data

    def next(self) -> Request | None:
        """The next complete request; None: more bytes are needed.

        Raises:
            BadRequest: The bytes are not HTTP, too large, or chunked.
        """
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MOST_HEAD_BYTES:
                    raise BadRequest(431, f"the head is longer than {_MOST_HEAD_BYTES} bytes")
                return None
            self._head, self._length = _parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self.expects_continue = self._head[2].get("expect", "").lower() == "100-continue"
        if len(self._buffer) < self._length:
            return None
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        method, path, headers, keep_alive = self._head
        self._head = None
        self.expects_continue = False
        return Request(method, path, headers, body, keep_alive)


def _parse_head(head: bytes) -> tuple[tuple[str, str, dict[str, str], bool], int]:
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest(400, "the first line is not: METHOD PATH HTTP/1.1")
    method, target, version = words
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(400, "a header line has no colon")
        headers[name.lower()] = value.strip()
    if "transfer-encoding" in headers:
        raise BadRequest(411, "send a content-length: chunked bodies are not simulated")
    digits = headers.get("content-length", "0")
    if not (digits.isascii() and digits.isdecimal()):
        raise BadRequest(400, "content-length is not a number")
    length = int(digits)
    if length > _MOST_BODY_BYTES:
        raise BadRequest(413, f"the body is longer than {_MOST_BODY_BYTES} bytes")
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
    return (method, target.partition("?")[0], headers, keep_alive), length


def render(
    status: int, lines: str, body: bytes, *, content_type: str = "application/json", promised: int | None = None
) -> bytes:
    """The bytes of an answer.

    Args:
        lines: Further header lines, each ended by CRLF.
        promised: The content-length; None: the length of the body.
    """
    length = len(body) if promised is None else promised
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {length}\r\n{lines}\r\n"
    )
    return head.encode("latin-1") + body
