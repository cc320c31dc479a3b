"""A provider that says what a test tells it to, over real HTTP on loopback, and counts who asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

#: Longer than any client's time limit in these tests, seconds.
HANG_S = 20.0


@dataclass(frozen=True)
class Reply:
    """One answer, or what comes in its place."""

    status: int = 200
    body: Any = b""  #: bytes and text as they are, all else as JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Literal["", "hang", "reset", "cut"] = ""  #: no answer; a reset connection; half of what was promised


class Provider:
    """Answers the replies in order, the last one again and again."""

    def __init__(self) -> None:
        self.replies: tuple[Reply, ...] = (Reply(),)
        self.requests = 0
        self._lock, self._over = threading.Lock(), threading.Event()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                provider._answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that hangs up is what some tests are about."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def says(self, *replies: Reply) -> None:
        """What it answers from now on; the count begins anew."""
        self._over.set()  # those that hang let go
        with self._lock:
            self.replies, self.requests, self._over = replies, 0, threading.Event()

    def close(self) -> None:
        """Stop listening."""
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            reply = self.replies[min(self.requests, len(self.replies) - 1)]
            self.requests += 1
            over = self._over
        if reply.fault == "hang":
            over.wait(HANG_S)
            handler.close_connection = True
            return
        if reply.fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            handler.close_connection = True
            return
        body = reply.body if isinstance(reply.body, bytes | str) else json.dumps(reply.body)
        raw = body.encode() if isinstance(body, str) else body
        handler.send_response(reply.status)
        for name, value in {"content-type": "application/json", **reply.headers}.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(raw) * (2 if reply.fault == "cut" else 1)))
        handler.end_headers()
        handler.wfile.write(raw)
        if reply.fault == "cut":
            handler.close_connection = True


@contextmanager
def nobody_listens() -> Iterator[str]:
    """The address of a port that refuses connections."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        yield f"http://127.0.0.1:{held.getsockname()[1]}"
