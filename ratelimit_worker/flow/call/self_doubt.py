"""Has this process lost its way to a lane's provider, while other processes still reach it?

Then its calls fail faster than those of others are answered, so it would take more and more of them. It leaves the
lane's calls to other processes, and tries one of them once in a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from threading import Lock

from msgspec import Struct

from ratelimit_worker.policy.fault import (
    LEAVES_MOST_S,
    LEAVES_S,
    NO_ROW,
    Lately,
    Streak,
    digest,
    is_lost,
    lengthened,
)

MOST_LANES = 10_000  #: that are remembered; beyond that, it begins anew
_NOTHING = Streak(NO_ROW, inf)


class _Lane(Struct):
    streak: Streak = _NOTHING
    good_sent: float = 0.0  #: when the newest of its answered requests left, seconds, Redis clock
    leaves_s: float = 0.0  #: for how long it leaves calls to others; 0: it does not
    until_s: float = 0.0  #: until when, by `clock`
    tries: bool = False  #: one call was let through to see whether it is answered


class SelfDoubt:
    """What this process knows of its own way to the providers, by lane. Any thread.

    Args:
        clock: Seconds; does not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._lanes: dict[str, _Lane] = {}

    def leaves(self, lane: str) -> bool:
        """Whether a call of this lane is to be left to another process. If not, it may be the one that is tried."""
        known = self._lanes.get(lane)
        if known is None or not known.leaves_s:
            return False
        with self._lock:
            now_s = self._clock()
            if now_s < known.until_s:
                return True
            known.tries, known.until_s = True, now_s + known.leaves_s
            return False

    def reached(self, lane: str, sent_s: float) -> None:
        """Note that the provider has answered this process, whatever it said.

        Args:
            sent_s: When the request left, seconds, Redis clock.
        """
        with self._lock:
            known = self._of(lane)
            known.good_sent = max(known.good_sent, sent_s)
            if sent_s > known.streak.first_sent:
                known.streak, known.leaves_s = _NOTHING, 0.0

    def failed(self, lane: str, call_id: str, sent_s: float, at_s: float, lately: Lately) -> bool:
        """Note an attempt that found no connection → whether this process has lost its way to the provider.

        Args:
            sent_s, at_s: When it began and when it failed, seconds, Redis clock.
            lately: How the lane's calls have done.
        """
        with self._lock:
            known = self._of(lane)
            if sent_s > known.good_sent:
                streak = known.streak
                known.streak = Streak(lengthened(streak.row, digest(call_id)), min(streak.first_sent, sent_s))
            lost, now_s = is_lost(known.streak, lately, at_s), self._clock()
            if not lost:
                known.leaves_s = 0.0
            elif not known.leaves_s:
                known.leaves_s, known.until_s = LEAVES_S, now_s + LEAVES_S
            elif known.tries:  # not for each of the calls that had begun before
                known.leaves_s = min(LEAVES_MOST_S, 2 * known.leaves_s)
                known.tries, known.until_s = False, now_s + known.leaves_s
            return lost

    def _of(self, lane: str) -> _Lane:
        known = self._lanes.get(lane)
        if known is None:
            if len(self._lanes) >= MOST_LANES:
                self._lanes.clear()
            known = self._lanes[lane] = _Lane()
        return known
