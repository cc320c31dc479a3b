"""A server that accepts connections and never answers as it should."""

from __future__ import annotations

import socket
import threading


class Dead:
    """Accepts, and then does what it is told: nothing, or a byte now and then until it is stopped.

    Args:
        drip: Says the next bytes; None: it says nothing.
    """

    def __init__(self, head: bytes = b"", drip: bytes | None = None) -> None:
        self.head, self.drip, self.accepted = head, drip, 0
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(self.head)
                while not self._stopped.wait(0.02):
                    if self.drip is not None:
                        connection.sendall(self.drip)
            except OSError:  # whom it would have answered has hung up
                pass

    def close(self) -> None:
        self._stopped.set()
        self._listener.close()
