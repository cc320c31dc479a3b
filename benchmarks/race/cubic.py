"""The rate limiter of an AWS SDK in "adaptive" retry mode, written after AWS's documentation of that mode.

Until the first throttling answer nothing is limited. From then on each request takes a token from a bucket, whose rate
falls to 0.7 of the measured one at each throttling answer and then grows along a cubic curve (Ha, Rhee, Xu: CUBIC,
2008), at most to twice the measured rate. Pure: the time is an argument, in seconds.
"""

from __future__ import annotations

import math
import random

BETA, SCALE, SMOOTH = 0.7, 0.4, 0.8
LEAST_RATE, LEAST_CAPACITY = 0.5, 1.0
_MEASURE_S = 0.5


class AdaptiveRate:
    """The client's rate limiter: `wait_s` before each request, `learn` after each answer."""

    def __init__(self, now_s: float) -> None:
        self.rate: float | None = None  #: requests a second; None: not limited yet
        self.measured = 0.0  #: requests sent a second, smoothed
        self._capacity, self._level, self._filled_s = LEAST_CAPACITY, 0.0, now_s
        self._last_max, self._throttled_s, self._window_s = 0.0, now_s, 0.0
        self._sent, self._slot_s = 0, self._slot(now_s)

    def wait_s(self, now_s: float) -> float:
        """Take a token; returns how many seconds to wait before the request is sent. Later callers wait longer."""
        if self.rate is None:
            return 0.0
        self._fill(now_s)
        self._level -= 1.0
        return max(0.0, -self._level / self.rate)

    def learn(self, now_s: float, throttled: bool) -> None:
        """Take note of an answer, and whether it was a throttling error."""
        self._measure(now_s)
        if throttled:
            before = self.measured if self.rate is None else min(self.measured, self.rate)
            self._last_max, self._throttled_s = before, now_s
            self._window_s = (before * (1 - BETA) / SCALE) ** (1 / 3)
            wanted = before * BETA
            if self.rate is None:
                self.rate, self._filled_s = LEAST_RATE, now_s
        else:
            self._window_s = (self._last_max * (1 - BETA) / SCALE) ** (1 / 3)
            wanted = SCALE * (now_s - self._throttled_s - self._window_s) ** 3 + self._last_max
        if self.rate is not None:
            self._fill(now_s)
            rate = min(wanted, 2 * self.measured)
            self.rate, self._capacity = max(rate, LEAST_RATE), max(rate, LEAST_CAPACITY)
            self._level = min(self._level, self._capacity)

    def _fill(self, now_s: float) -> None:
        if self.rate is not None and now_s > self._filled_s:
            self._level = min(self._capacity, self._level + (now_s - self._filled_s) * self.rate)
            self._filled_s = now_s

    def _measure(self, now_s: float) -> None:
        slot_s = self._slot(now_s)
        self._sent += 1
        if slot_s > self._slot_s:
            seen = self._sent / (slot_s - self._slot_s)
            self.measured = seen * SMOOTH + self.measured * (1 - SMOOTH)
            self._sent, self._slot_s = 0, slot_s

    @staticmethod
    def _slot(now_s: float) -> float:
        return math.floor(now_s / _MEASURE_S) * _MEASURE_S


class RetryQuota:
    """The retry quota of the standard mode: a retry costs 5 of 500 units, and a success gives units back."""

    def __init__(self) -> None:
        self.left = 500

    def take(self) -> bool:
        """Whether one more retry may be made."""
        if self.left < 5:
            return False
        self.left -= 5
        return True

    def succeeded(self, retried: bool) -> None:
        """Take note that a call was answered: give back the cost of its last retry, or 1 if it had none."""
        self.left = min(500, self.left + (5 if retried else 1))


def backoff_s(retry: int) -> float:
    """Wait before retry `retry`, from 0, in seconds: uniform under 2**retry, at most 20."""
    return min(20.0, random.random() * 2.0**retry)
