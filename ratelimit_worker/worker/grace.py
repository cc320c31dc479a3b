"""When does a worker that was told to end really end? When its calls have ended; without Redis, after a grace.

SIGTERM lets running calls finish. A call with its answer waits for Redis, which may be away for hours. So that wait
ends `worker_soft_shutdown_timeout` seconds (10 if that is 0) after the order to end; the calls are left to their
leases, and run elsewhere. If something still hangs, with Redis away all that time, the process ends itself. For Redis
that is a worker that was killed, and nothing is lost.
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
MORE_S = 10.0  #: seconds after the grace, for the shutdown's own exchanges with Redis; then the process ends itself
LOOK_EVERY_S = 0.5
PING_S = 1.0
EX_UNAVAILABLE = 69


class Grace(threading.Thread):
    """Watches, all its life, whether the worker was told to end.

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
        self._look = threading.Event()  #: never set; used to wait

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
    """Begin to watch, for a worker that starts."""
    PATIENCE.holds()
    made = Grace(server, told, float(conf.worker_soft_shutdown_timeout or 0.0), last_words)
    made.start()
    return made
