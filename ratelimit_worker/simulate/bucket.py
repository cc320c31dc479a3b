"""A provider's limits: the token bucket, and the budget of a key. They decide whether a request passes now, or when.

Pure: the time is an argument, in seconds on any clock that does not run backwards, so the same buckets serve the
HTTP server in real time and simulations in virtual time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

from msgspec import Struct

from ratelimit_worker.calls import DIMENSIONS, Cost
from ratelimit_worker.simulate.window import SlidingWindow

#: Tolerance: without it a client that waits exactly `retry_after_s` could be refused because of rounding.
_TICK_S = 1e-9
#: How many calls of a neighbour (another client on the same budget) wait for units at most; further ones are refused.
_NEIGHBOURS_LINE = 10


class Admitted(Struct, frozen=True):
    """The request passes; its cost is taken."""


class Refused(Struct, frozen=True):
    """The request does not pass; nothing is taken."""

    retry_after_s: float  #: seconds until it would fit if nobody else came; inf: it never fits
    dimension: str  #: the one of `DIMENSIONS` with the longest wait


ADMITTED = Admitted()


class TokenBucket:
    """One dimension: `rate` units a second flow in, at most `depth` are kept; it starts full.

    A cost above the depth is taken from a full bucket and leaves a debt, so in every window of T seconds
    at most max(depth, largest cost) + rate * T units are admitted.
    """

    __slots__ = ("_at_s", "_level", "depth", "owed", "rate")

    def __init__(self, rate: float, depth: float, now_s: float) -> None:
        if not (0 < rate < math.inf and 0 < depth < math.inf):
            raise ValueError(f"need 0 < rate and 0 < depth, both finite; got {rate=} {depth=}")
        self.rate, self.depth = rate, depth
        self._level, self._at_s = depth, now_s
        self.owed = 0.0  #: units that a neighbour waits for, as of the last operation

    @property
    def capacity(self) -> float:
        """The most units that can be in the bucket: the depth."""
        return self.depth

    def level(self, now_s: float) -> float:
        """Units in the bucket; below zero while a debt is paid off."""
        if now_s > self._at_s:
            inflow = self.rate * (now_s - self._at_s)
            if self.owed > 0:
                paid = min(self.owed, max(0.0, self._level + inflow))
                self.owed -= paid
                inflow -= paid
            self._level = min(self.depth, self._level + inflow)
            self._at_s = now_s
        return self._level

    def wait_s(self, now_s: float, cost: float) -> float:
        """Seconds until `cost` fits if nobody else comes; 0.0 if it fits now."""
        missing = min(cost, self.depth) - self.level(now_s)
        return 0.0 if missing <= self.rate * _TICK_S + self.depth * 1e-12 else (missing + self.owed) / self.rate

    def take(self, now_s: float, cost: float) -> None:
        """Take `cost` out, whether it fits or not."""
        self._level = self.level(now_s) - cost

    def owe(self, now_s: float, units: float, most: float) -> None:
        """A neighbour wants units: it takes what is there, and gets the rest from the inflow before anybody else.

        Args:
            most: Units that the neighbour waits for at most; it gives up the rest.
        """
        there = max(0.0, self.level(now_s))
        wanted = self.owed + units
        paid = min(wanted, there)
        self._level -= paid
        self.owed = min(wanted - paid, most)

    def give_back(self, now_s: float, units: float, taken_s: float = 0.0) -> None:
        """Put units back that were charged and not used; what exceeds the depth is lost. `taken_s` is not used.

        A neighbour that waits gets them before anybody else.
        """
        del taken_s
        self._level = min(self.depth, self.level(now_s) + units)
        self.owe(now_s, 0.0, self.owed)

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the bucket is full again if nobody comes."""
        return (self.depth - self.level(now_s)) / self.rate

    def change(self, now_s: float, rate: float, depth: float) -> None:
        """Set another rate and depth; what is in the bucket stays, as far as it fits."""
        self._level = min(self.level(now_s), depth)
        self.rate, self.depth = rate, depth


class Budget:
    """The limits of one key, each a bucket or a window: a request is taken by all of them or by none.

    Args:
        per_minute: Limit per dimension of `DIMENSIONS`, in units a minute; a dimension that is missing is unlimited.
        burst_s: Depth of each bucket in seconds of its rate; a bucket holds at least one unit.
        window_s: Sliding windows of this length instead of buckets, each of its share of the minute's limit; a
            window that would hold less than one unit is as long as one unit takes.
        lag_s: `as_it_was` returns the state of so many seconds ago.
    """

    __slots__ = ("_burst_s", "_journal", "_lag_s", "_past", "_window_s", "buckets", "per_minute")

    def __init__(
        self,
        per_minute: Mapping[str, float],
        burst_s: float,
        now_s: float,
        *,
        window_s: float | None = None,
        lag_s: float = 0.0,
    ) -> None:
        self._burst_s, self._window_s, self._lag_s = burst_s, window_s, lag_s
        self.per_minute: dict[str, float] = {}
        self.buckets: dict[str, TokenBucket | SlidingWindow] = {}
        # The past is a second budget that gets every change `lag_s` later, with the time of the change.
        self._past = Budget(per_minute, burst_s, now_s, window_s=window_s) if lag_s > 0 else None
        self._journal: deque[tuple[float, Callable[[Budget], None]]] = deque()
        self._change(now_s, per_minute)

    def change(self, now_s: float, per_minute: Mapping[str, float]) -> None:
        """Replace the limits from now on."""
        self._change(now_s, per_minute)
        self._note(now_s, lambda past: past._change(now_s, per_minute))

    def admit(self, now_s: float, cost: Cost) -> Admitted | Refused:
        """Take `cost` from every bucket, or refuse and take nothing.

        A request with more tokens than a minute's limit (or than fit into a window) can never pass (`inf`), as at real
        providers. The wait in a refusal does not consider neighbours that come later.
        """
        units = _units(cost)
        longest_s, slowest = 0.0, ""
        for dimension, bucket in self.buckets.items():
            cost_here = units[dimension]
            most = self.per_minute[dimension] if isinstance(bucket, TokenBucket) else bucket.limit
            never = dimension != "requests" and cost_here > most
            wait_s = math.inf if never else bucket.wait_s(now_s, cost_here)
            if wait_s > longest_s:
                longest_s, slowest = wait_s, dimension
        if slowest:
            return Refused(longest_s, slowest)
        self._take(now_s, units)
        self._note(now_s, lambda past: past._take(now_s, units))
        return ADMITTED

    def give_back(self, now_s: float, unused: Cost, taken_s: float) -> None:
        """Put back what was charged on admission at `taken_s` and not used."""
        units = _units(unused)
        self._give_back(now_s, units, taken_s)
        self._note(now_s, lambda past: past._give_back(now_s, units, taken_s))

    def neighbour(self, now_s: float, cost: Cost) -> None:
        """A neighbour's request: it takes what is there, and gets the rest from the inflow before anybody else.

        A dimension never gives more than it has; at most ten such requests wait, further ones are given up.
        """
        units = _units(cost)
        self._neighbour(now_s, units)
        self._note(now_s, lambda past: past._neighbour(now_s, units))

    def as_it_was(self, now_s: float) -> tuple[Budget, float]:
        """The budget that headers show, and the time at which to read it: `lag_s` ago."""
        if self._past is None:
            return self, now_s
        self._catch_up(self._past, now_s)
        return self._past, now_s - self._lag_s

    def _take(self, now_s: float, units: Mapping[str, float]) -> None:
        for dimension, bucket in self.buckets.items():
            bucket.take(now_s, units[dimension])

    def _neighbour(self, now_s: float, units: Mapping[str, float]) -> None:
        for dimension, bucket in self.buckets.items():
            if units[dimension] > 0:
                bucket.owe(now_s, units[dimension], _NEIGHBOURS_LINE * units[dimension])

    def _give_back(self, now_s: float, units: Mapping[str, float], taken_s: float) -> None:
        for dimension, bucket in self.buckets.items():
            bucket.give_back(now_s, units[dimension], taken_s)

    def _change(self, now_s: float, per_minute: Mapping[str, float]) -> None:
        for dimension, limit in per_minute.items():
            if (bucket := self.buckets.get(dimension)) is None:
                self.buckets[dimension] = self._new(limit, now_s)
            elif isinstance(bucket, TokenBucket):
                bucket.change(now_s, *self._rate_and_depth(limit))
            else:
                bucket.change(now_s, *self._limit_and_window(limit))
        for dimension in self.buckets.keys() - per_minute.keys():
            del self.buckets[dimension]
        self.per_minute = dict(per_minute)

    def _new(self, limit: float, now_s: float) -> TokenBucket | SlidingWindow:
        if self._window_s is None:
            return TokenBucket(*self._rate_and_depth(limit), now_s)
        return SlidingWindow(*self._limit_and_window(limit), now_s)

    def _rate_and_depth(self, limit: float) -> tuple[float, float]:
        return limit / 60.0, max(1.0, limit / 60.0 * self._burst_s)

    def _limit_and_window(self, limit: float) -> tuple[float, float]:
        assert self._window_s is not None
        window_s = max(self._window_s, 60.0 / limit)
        return max(1.0, limit / 60.0 * window_s), window_s

    def _note(self, now_s: float, change: Callable[[Budget], None]) -> None:
        if self._past is not None:
            self._journal.append((now_s, change))
            self._catch_up(self._past, now_s)  # here too, or the journal would grow while nobody reads headers

    def _catch_up(self, past: Budget, now_s: float) -> None:
        while self._journal and self._journal[0][0] <= now_s - self._lag_s:
            self._journal.popleft()[1](past)


def _units(cost: Cost) -> dict[str, float]:
    return dict(zip(DIMENSIONS, cost.vector(), strict=True))
