"""Answers of this process that the record of functions in Redis does not contain yet.

Failures are written when they happen, together with the answers that this process had since the last failure. So a lane
without failures costs no writes, and where there are failures, both counts are from the same time.
"""

from __future__ import annotations

from collections import defaultdict
from threading import Lock

from ratelimit_worker.policy.retry import RECORD_S

MOST_NAMES = 10_000  #: lanes, and functions in lanes, of which the last answer is remembered


class Tally:
    """Answers of this process by lane and function, until they are taken; none is older than RECORD_S. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._since_s = float("-inf")
        self._fresh: dict[str, dict[str, int]] = {}
        self._older: dict[str, dict[str, int]] = {}
        self._sent: dict[tuple[str, str], float] = {}

    def add(self, lane: str, task: str, at_s: float, sent_s: float = 0.0) -> None:
        """Note one more answer.

        Args:
            at_s: On a clock that does not go back.
            sent_s: When its request left, seconds, Redis clock.
        """
        with self._lock:
            self._turn(at_s)
            if len(self._sent) >= MOST_NAMES:
                self._sent.clear()
            for name in (task, ""):
                self._sent[lane, name] = max(sent_s, self._sent.get((lane, name), 0.0))
            tasks = self._fresh.setdefault(lane, {})
            tasks[task] = tasks.get(task, 0) + 1

    def last_sent_s(self, lane: str, task: str = "") -> float:
        """When the last answered request left this process: of this task, and of any; 0: none yet."""
        return self._sent.get((lane, task), 0.0)

    def take(self, lane: str, at_s: float) -> dict[str, int]:
        """Function → answers since the last take; they are not remembered here any more."""
        with self._lock:
            self._turn(at_s)
            sums: dict[str, int] = defaultdict(int)
            for tasks in (self._fresh.pop(lane, {}), self._older.pop(lane, {})):
                for task, answers in tasks.items():
                    sums[task] += answers
            return dict(sums)

    def _turn(self, at_s: float) -> None:
        age_s = at_s - self._since_s
        if age_s >= RECORD_S / 2:
            self._older = self._fresh if age_s < RECORD_S else {}
            self._fresh, self._since_s = {}, at_s
