"""When does a worker that was told to end really end? When its calls have ended; without Redis, after its grace.

SIGTERM lets what runs finish. A call that has its answer waits for Redis so long, which may be away for hours. So the
wait ends `worker_soft_shutdown_timeout` seconds (10 where that is 0) after the order: what is in hand is left to its
lease, and runs elsewhere. Where something hangs all the same, with Redis away all that time, the process ends itself:
for Redis this is a worker that was killed, which loses nothing.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

from redis import RedisError

from ratelimit_worker.stores.patient import PATIENCE
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import connect

log = logging.getLogger(__name__)

USUAL_S = 10.0
MORE_S = 10.0  #: after the grace, for what the end itself asks Redis; then the process ends itself
LOOK_EVERY_S = 0.5
PING_S = 1.0
EX_UNAVAILABLE = 69


class Grace(threading.Thread):
    """Looks whether the worker was told to end, from its start to the end of its process.

    Args:
        server: The Redis server.
        told: Whether the worker was told to end.
        grace_s: Seconds from then on; 0: `USUAL_S`.
        last_words: Called before the process ends itself.
    """

    def __init__(
        self, server: RedisServer, told: Callable[[], bool], grace_s: float, last_words: Callable[[], object]
    ) -> None:
        super().__init__(name="rlw-grace", daemon=True)
        self.client = connect(server, answer_timeout_s=PING_S)
        self.told, self.last_words = told, last_words
        self.grace_s = grace_s or USUAL_S
        self._look = threading.Event()  #: nobody sets it

    def run(self) -> None:
        """Until the process ends."""
        while not self.told():
            self._look.wait(LOOK_EVERY_S)
        PATIENCE.ends_in(self.grace_s)
        away_since = monotonic()
        while monotonic() - away_since < self.grace_s + MORE_S:
            self._look.wait(LOOK_EVERY_S)
            if self._answers():
                away_since = monotonic()
        log.critical("worker.ends_without_redis: what it had in hand is left to its lease")
        self.last_words()
        os._exit(EX_UNAVAILABLE)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (RedisError, OSError):
            return False


def begin(server: RedisServer, told: Callable[[], bool], conf: Any, last_words: Callable[[], object]) -> Grace:
    """Start to look, for a worker that starts."""
    PATIENCE.holds()
    made = Grace(server, told, float(conf.worker_soft_shutdown_timeout or 0.0), last_words)
    made.start()
    return made
