"""When are commands sent that no caller waits for? With the next that somebody waits for, or else a few ms later."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from redis import RedisError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.stores.together import Together
from ratelimit_worker.worker.duties import Duty

RIDE_S = 0.002  #: how long a command waits for another to travel with
LOOK_S = 0.016  #: longest time between two looks whether exchanges are still under way, with which commands go along


class Riding:
    """Commands that travel with the next exchange of this process with Redis."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self.any = threading.Event()  #: commands may be waiting

    def send(self, commands: Sequence[Sequence[Any]], heard: Callable[[Exception | None], None]) -> None:
        """Have the commands sent. The arguments are those of `Together.ride`."""
        self._together.ride(commands, heard)
        if not self.any.is_set():
            self.any.set()

    @property
    def go_along(self) -> bool:
        """Whether an exchange is under way, so that all that waits goes with the next one, most likely."""
        return self._together.busy

    def flush(self) -> None:
        """Send all that wait; returns when each was sent or has failed (its `heard` gets the error)."""
        with contextlib.suppress(RedisError, OSError, StoreUnavailable), deciding():
            self._together.flush()


class Flush(Duty):
    """Sends the commands that found no other exchange to travel with."""

    def __init__(self, server: RedisServer, queue: str, riding: Riding) -> None:
        super().__init__("desk-flush", server, queue)
        self.riding = riding

    def turn(self) -> None:
        self.riding.any.wait()
        self.riding.any.clear()
        wait_s = RIDE_S
        self.stopping.wait(wait_s)
        while self.riding.go_along and not self.stopping.is_set():
            self.stopping.wait(wait_s)
            wait_s = min(2 * wait_s, LOOK_S)
        self.riding.flush()

    def stop(self) -> None:
        super().stop()
        self.riding.any.set()
