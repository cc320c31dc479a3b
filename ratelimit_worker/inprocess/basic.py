"""The basic pace without lanes: one call per `RATE_LIMIT_DELAY` in this process, and a log line once a minute."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

SAY_EVERY_S = 60.0


class BasicPace:
    """Starts `delay_s` apart, and each call waits at least that long.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last = float("-inf")
        self._said = float("-inf")
        self._lock = threading.Lock()

    def reserve(self, delay_s: float, why: str) -> float:
        """Reserve the next start → seconds to wait for it.

        Args:
            why: Why lanes are not used, for the log.
        """
        with self._lock:
            now = self._clock()
            self._last = max(now, self._last) + delay_s
            wait_s = self._last - now
            say = now - self._said >= SAY_EVERY_S
            if say:
                self._said = now
        if say:
            log.warning(
                "calls go ahead without lanes, one per %g s in this process: %s",
                delay_s,
                why,
                extra={"delay_s": delay_s, "why": why},
            )
        return wait_s
