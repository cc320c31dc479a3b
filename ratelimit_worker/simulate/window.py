"""A provider's sliding window, which decides whether a request passes now, or when.

Pure, with the interface of `TokenBucket`: the time is an argument, and never runs backwards.
"""

from __future__ import annotations

import math
from collections import OrderedDict

#: Tolerance: without it a client that waits exactly `wait_s` could be refused because of rounding.
_TICK_S = 1e-9
_CRUMB = 1e-9  # units by which sums of fractions may be wrong


class SlidingWindow:
    """One dimension: at most `limit` units in any trailing `window_s` seconds, by an exact log of what was taken.

    What was taken at t counts until before t + window_s. Every operation is O(1) amortised, except `wait_s` if it is
    not 0: it iterates over the oldest units that have to leave.
    """

    __slots__ = ("_at_s", "_taken", "_used", "limit", "owed", "window_s")

    def __init__(self, limit: float, window_s: float, now_s: float) -> None:
        if not (0 < limit < math.inf and 0 < window_s < math.inf):
            raise ValueError(f"need 0 < limit and 0 < window_s, both finite; got {limit=} {window_s=}")
        self.limit, self.window_s = limit, window_s
        self._taken: OrderedDict[float, float] = OrderedDict()  # when -> units, oldest first
        self._used, self._at_s = 0.0, now_s
        self.owed = 0.0  #: units that a neighbour waits for, as of the last operation

    @property
    def capacity(self) -> float:
        """The most units that can be left: the limit."""
        return self.limit

    def level(self, now_s: float) -> float:
        """Units that are left; below zero after the limit was lowered, until enough has left."""
        self._at_s = max(self._at_s, now_s)
        gone_s = self._at_s - self.window_s + _TICK_S
        while self._taken and (oldest_s := next(iter(self._taken))) <= gone_s:
            self._used -= self._taken.pop(oldest_s)
            if self.owed > 0:  # a neighbour takes them at the time when they come free, not at `now_s`
                self._pay(oldest_s + self.window_s)
        if not self._taken:
            self._used = 0.0  # removes rounding errors
        return self.limit - self._used

    def wait_s(self, now_s: float, cost: float) -> float:
        """Seconds until `cost` fits if nobody else comes; 0.0 if it fits now, inf if it is above the limit."""
        missing = cost - self.level(now_s)
        if missing <= _CRUMB:
            return 0.0
        if cost > self.limit:
            return math.inf
        missing += self.owed
        for taken_s, units in self._taken.items():
            missing -= units
            if missing <= _CRUMB:
                return taken_s + self.window_s - self._at_s
        return self.full_in_s(now_s)

    def take(self, now_s: float, cost: float) -> None:
        """Take `cost` out, whether it fits or not."""
        self.level(now_s)
        self._taken[self._at_s] = self._taken.get(self._at_s, 0.0) + cost
        self._used += cost

    def owe(self, now_s: float, units: float, most: float) -> None:
        """A neighbour wants units: it takes what is left, and gets the rest as units come free, before anybody else.

        Args:
            most: Units that the neighbour waits for at most; it gives up the rest.
        """
        self.level(now_s)
        self.owed += units
        self._pay(self._at_s)
        self.owed = min(self.owed, most)

    def give_back(self, now_s: float, units: float, taken_s: float) -> None:
        """Put units back that were charged at `taken_s` and not used, if they are still in the window."""
        self.level(now_s)
        back = min(units, self._taken.get(taken_s, 0.0))
        if back > 0:
            self._taken[taken_s] -= back
            self._used -= back
            self._pay(self._at_s)

    def full_in_s(self, now_s: float) -> float:
        """Seconds until the window is empty if nobody comes."""
        self.level(now_s)
        return max(0.0, next(reversed(self._taken)) + self.window_s - self._at_s) if self._taken else 0.0

    def change(self, now_s: float, limit: float, window_s: float) -> None:
        """Set another limit and window; what is in the window stays in it."""
        self.level(now_s)
        self.limit, self.window_s = limit, window_s
        self._pay(self._at_s)

    def _pay(self, at_s: float) -> None:
        paid = min(self.owed, max(0.0, self.limit - self._used))
        if paid > 0:
            self.owed -= paid
            self._taken[at_s] = self._taken.get(at_s, 0.0) + paid
            self._used += paid
