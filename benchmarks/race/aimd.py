"""A client's rate limiter by additive increase and multiplicative decrease (Chiu and Jain 1989).

The rate grows by a fixed amount each second and is halved at a refusal, once for all refusals of one second. Pure: the
time is an argument, in seconds.
"""

from __future__ import annotations

START, STEP_PER_S, BETA, LEAST = 1.0, 0.5, 0.5, 0.1  #: requests/s; requests/s each second; of the rate; requests/s
_ONCE_S = 1.0


class AimdRate:
    """`wait_s` before each request, `learn` after each answer."""

    def __init__(self, now_s: float) -> None:
        self.rate = START  #: requests a second
        self._next_s, self._grown_s, self._halved_s = now_s, now_s, float("-inf")

    def wait_s(self, now_s: float) -> float:
        """Take the next turn; returns how many seconds to wait for it. Only one caller may ask at a time."""
        self._grow(now_s)
        turn_s = max(self._next_s, now_s)
        self._next_s = turn_s + 1.0 / self.rate
        return turn_s - now_s

    def learn(self, now_s: float, refused: bool) -> None:
        """Take note of an answer, and whether it was a 429."""
        self._grow(now_s)
        if refused and now_s - self._halved_s >= _ONCE_S:
            self.rate, self._halved_s = max(LEAST, BETA * self.rate), now_s

    def _grow(self, now_s: float) -> None:
        self.rate += STEP_PER_S * max(0.0, now_s - self._grown_s)
        self._grown_s = max(self._grown_s, now_s)
