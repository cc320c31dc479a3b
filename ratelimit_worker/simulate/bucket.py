"""Does a provider's token bucket take this request now, and if not, when?

Pure: time is passed in, in seconds on any clock that does not run backwards, so the same buckets serve the
HTTP server in real time and the laboratory in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ratelimit_worker.calls import DIMENSIONS, Cost

#: Nobody measures time better than this; without it a client that waits exactly `retry_after_s` loses to rounding.
_TICK_S = 1e-9


@dataclass(frozen=True, slots=True)
class Admitted:
    """The request goes; its cost is taken."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The request does not go; nothing is taken."""

    retry_after_s: float  #: seconds until it would fit if nobody else came; inf: it never fits
    dimension: str  #: of `DIMENSIONS`: the one that has to be waited for longest


ADMITTED = Admitted()


class TokenBucket:
    """One dimension: `rate` units a second flow in, at most `depth` are kept; it starts full.

    A cost above the depth is taken from a full bucket and leaves a debt, so in every window of T seconds
    at most max(depth, largest cost) + rate * T units are admitted.
    """

    __slots__ = ("_at_s", "_level", "depth", "rate")

    def __init__(self, rate: float, depth: float, now_s: float) -> None:
        if not (0 < rate < math.inf and 0 < depth < math.inf):
            raise ValueError(f"need 0 < rate and 0 < depth, both finite; got {rate=} {depth=}")
        self.rate, self.depth = rate, depth
        self._level, self._at_s = depth, now_s

    def level(self, now_s: float) -> float:
        """Units in the bucket; below zero while a debt is paid off."""
        if now_s > self._at_s:
            self._level = min(self.depth, self._level + self.rate * (now_s - self._at_s))
            self._at_s = now_s
        return self._level

    def wait_s(self, now_s: float, cost: float) -> float:
        """Seconds until `cost` fits; 0.0 when it fits now."""
        missing = min(cost, self.depth) - self.level(now_s)
        return 0.0 if missing <= self.rate * _TICK_S + self.depth * 1e-12 else missing / self.rate

    def take(self, now_s: float, cost: float) -> None:
        """Take `cost` out, whether it fits or not."""
        self._level = self.level(now_s) - cost

    def give_back(self, now_s: float, units: float) -> None:
        """Put units back that were charged and not used; what exceeds the depth is lost."""
        self._level = min(self.depth, self.level(now_s) + units)

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the bucket is full again if nobody comes."""
        return (self.depth - self.level(now_s)) / self.rate

    def change(self, now_s: float, rate: float, depth: float) -> None:
        """Another rate and depth from now on; what is in the bucket stays, as far as it fits."""
        self._level = min(self.level(now_s), depth)
        self.rate, self.depth = rate, depth


class Budget:
    """The buckets of one key: a request is taken by all of them or by none.

    Args:
        per_minute: Limit per dimension of `DIMENSIONS`, in units a minute; a dimension that is missing is unlimited.
        burst_s: Depth of each bucket in seconds of its rate; a bucket holds at least one unit.
    """

    __slots__ = ("_burst_s", "buckets", "per_minute")

    def __init__(self, per_minute: Mapping[str, float], burst_s: float, now_s: float) -> None:
        self._burst_s = burst_s
        self.per_minute: dict[str, float] = {}
        self.buckets: dict[str, TokenBucket] = {}
        self.change(now_s, per_minute)

    def change(self, now_s: float, per_minute: Mapping[str, float]) -> None:
        """Replace the limits from now on."""
        for dimension, limit in per_minute.items():
            rate, depth = limit / 60.0, max(1.0, limit / 60.0 * self._burst_s)
            if (bucket := self.buckets.get(dimension)) is None:
                self.buckets[dimension] = TokenBucket(rate, depth, now_s)
            else:
                bucket.change(now_s, rate, depth)
        for dimension in self.buckets.keys() - per_minute.keys():
            del self.buckets[dimension]
        self.per_minute = dict(per_minute)

    def admit(self, now_s: float, cost: Cost) -> Admitted | Refused:
        """Take `cost` from every bucket, or refuse and take nothing.

        A request with more tokens than flow in in a minute is refused for good, as the real providers do.
        """
        units = _units(cost)
        longest_s, slowest = 0.0, ""
        for dimension, bucket in self.buckets.items():
            cost_here = units[dimension]
            never = dimension != "requests" and cost_here > self.per_minute[dimension]
            wait_s = math.inf if never else bucket.wait_s(now_s, cost_here)
            if wait_s > longest_s:
                longest_s, slowest = wait_s, dimension
        if slowest:
            return Refused(longest_s, slowest)
        for dimension, bucket in self.buckets.items():
            bucket.take(now_s, units[dimension])
        return ADMITTED

    def give_back(self, now_s: float, unused: Cost) -> None:
        """Reconcile: put back what was charged on admission and not used."""
        units = _units(unused)
        for dimension, bucket in self.buckets.items():
            bucket.give_back(now_s, units[dimension])


def _units(cost: Cost) -> dict[str, float]:
    return dict(zip(DIMENSIONS, cost.vector(), strict=True))
