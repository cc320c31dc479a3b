"""Who hears of it when a mode changes or a provider gets slower? One worker, under a lease, tells the web hook.

In order, each until it was taken: what cannot be told now stays where it is, and holds up neither calls nor records.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.policy import rollup
from ratelimit_worker.policy.alerts import KEEP_S, Alert, Waiting, of_latency
from ratelimit_worker.policy.trend import LOOK_BACK_MIN
from ratelimit_worker.policy.trend import of_values as trend_of

log = logging.getLogger(__name__)

NAME = "alert"
LEASE_S = 30.0  #: longer than one request and the longest pause
IDLE_S = 1.0  #: between two looks where nothing waits
PAUSE_BASE_S, PAUSE_CAP_S = 1.0, 10.0
REFUSED_MOST = 5  #: times that a web hook may refuse an alert before it is given up
SAY_EVERY_S = 60.0
QUIET_S = 3_600.0  #: a lane that gets slower is told of once in that time


class Alerts(Protocol):
    """Alerts on their way."""

    def add_once(self, alert: Alert, quiet_s: float) -> bool:
        """Put it at the end, unless one of its event and lane was within `quiet_s`."""
        ...

    def first(self) -> Waiting | None:
        """The oldest."""
        ...

    def done(self, waiting: Waiting) -> None:
        """Forget it."""
        ...


class History(Protocol):
    """The tracking database, as this needs it."""

    def cells(self, since_s: float, until_s: float, finest_s: float) -> Iterable[tuple[CellKey, Cell]]:
        """What ended in a window, by minute and series."""
        ...


class Alerter:
    """Tells one alert a step, and looks once a minute whether a provider gets slower.

    Args:
        post: Sends a body; raises `not_taken` where it was not taken.
        not_taken: That error; its `refused` says that this alert is wrong, rather than that none can be taken now.
        history: Where latencies are read; away, nobody is told of them.
        jitter: Returns a float in [0, 1).
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        alerts: Alerts,
        post: Callable[[bytes], None],
        not_taken: type[Exception],
        history: Callable[[], History],
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._alerts, self._post, self._not_taken, self._history = alerts, post, not_taken, history
        self._jitter, self._clock = jitter, clock
        self.failures = 0  #: tries that failed in a row
        self._refusals: tuple[str, int] = ("", 0)  #: the alert that was refused last, and how often in a row
        self._looked_at = 0.0
        self._said_at = 0.0

    def step(self) -> float:
        """Tell the oldest alert → seconds until the next step (0: there may be more).

        Raises:
            StoreUnavailable: Redis is away.
        """
        now = self._clock()
        if now - self._looked_at >= MINUTE_S:
            self._looked_at = now
            self._look(now)
        waiting = self._alerts.first()
        if waiting is None:
            return IDLE_S
        if now - waiting.since_s > KEEP_S:
            return self._give_up(waiting, "it is older than a day")
        try:
            self._post(waiting.body)
        except self._not_taken as error:
            return self._failed(waiting, error, now)
        self.failures, self._said_at = 0, 0.0
        self._alerts.done(waiting)
        log.info("alert.sent", extra={"alert": waiting.id, "waited_s": round(now - waiting.since_s, 3)})
        return 0.0

    def _failed(self, waiting: Waiting, error: Exception, now: float) -> float:
        self.failures += 1
        if getattr(error, "refused", False):
            last, times = self._refusals
            self._refusals = (waiting.id, times + 1 if last == waiting.id else 1)
            if self._refusals[1] >= REFUSED_MOST:
                return self._give_up(waiting, str(error))
        pause_s = min(PAUSE_CAP_S, PAUSE_BASE_S * 2.0 ** min(self.failures - 1, 16)) * (0.5 + 0.5 * self._jitter())
        if now - self._said_at >= SAY_EVERY_S:  # an outage of hours must not fill the log
            self._said_at = now
            fields = {"alert": waiting.id, "cause": str(error), "failures": self.failures, "gave_up": False}
            log.warning("alert.failed", extra=fields)
        return pause_s

    def _give_up(self, waiting: Waiting, why: str) -> float:
        self._alerts.done(waiting)
        log.error("alert.failed", extra={"alert": waiting.id, "cause": why, "gave_up": True})
        return 0.0

    def _look(self, now: float) -> None:
        """Whether a provider gets slower, over the last whole minutes."""
        until_s = now // MINUTE_S * MINUTE_S
        try:
            for lane, minutes in by_lane(self._history(), until_s).items():
                alert = of_latency(lane, trend_of([cell.latency for cell in minutes]), until_s)
                if alert is not None:
                    self._alerts.add_once(alert, QUIET_S)
        except (StoreUnavailable, ConfigurationError) as error:
            _note(error)


def by_lane(history: History, until_s: float) -> Mapping[str, Sequence[Cell]]:
    """Lane → what each of the last `LOOK_BACK_MIN` minutes has seen, oldest first."""
    found: dict[str, list[Cell]] = {}
    since_s = until_s - LOOK_BACK_MIN * MINUTE_S
    for (at_s, series), cell in history.cells(since_s, until_s, MINUTE_S):
        minutes = found.get(series.lane)
        if minutes is None:
            minutes = found[series.lane] = [Cell() for _ in range(LOOK_BACK_MIN)]
        rollup.merge(minutes[int((at_s - since_s) // MINUTE_S)], cell)
    return found


def _note(error: RateLimitWorkerError) -> None:
    log.info("alert.blind", extra={"error": str(error)})
