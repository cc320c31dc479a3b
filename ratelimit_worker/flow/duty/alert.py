"""Who sends notices to the web hook? One worker, under a lease: in their order, each until it was accepted.

A notice that cannot be sent now stays in Redis, and holds up neither calls nor records. Notices of events before this
web hook was configured, and of alerts that are silenced, are dropped.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ratelimit_worker.contracts.alert import Silence
from ratelimit_worker.policy.alerts import KEEP_S, Waiting

log = logging.getLogger(__name__)

NAME = "alert"
LEASE_S = 30.0  #: longer than one request and the longest pause
IDLE_S = 1.0  #: between two looks when nothing waits
PAUSE_BASE_S, PAUSE_CAP_S = 1.0, 10.0
REFUSED_MOST = 5  #: times that a web hook may refuse a notice before it is given up
SAY_EVERY_S = 60.0


class Notices(Protocol):
    """The notices in Redis that are to be sent."""

    def first(self) -> Waiting | None:
        """The oldest; None: there is none."""
        ...

    def done(self, waiting: Waiting) -> None:
        """Delete it."""
        ...

    def hook_since(self, digest: str, used_s: float) -> float:
        """Since when this web hook is in use, seconds since the epoch: if it is new, since `used_s` seconds ago."""
        ...


class Alerter:
    """Sends one notice in each step.

    Args:
        post: Sends a body, under the id of its event; raises `not_taken` if the web hook does not accept it.
        not_taken: That error; its `refused` is true if this notice is at fault, false if none can be sent now.
        digest: Of the web hook's address, for `hook_since`.
        silences: Those that hold now.
        jitter: Returns a float in [0, 1).
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        notices: Notices,
        post: Callable[[bytes, str], None],
        not_taken: type[Exception],
        digest: str,
        silences: Callable[[], Sequence[Silence]],
        *,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._notices, self._post, self._not_taken, self._silences = notices, post, not_taken, silences
        self._digest, self._jitter, self._clock = digest, jitter, clock
        self.failures = 0  #: tries that failed in a row
        self._refusals: tuple[str, int] = ("", 0)  #: the notice that was refused last, and how often in a row
        self._since_s: float | None = None  #: since when this web hook is in use; None: not yet asked
        self._made_s = clock()  #: a worker has its web hook from its start on, also before it gets the duty
        self._said_at = 0.0

    def step(self) -> float:
        """Send the oldest notice → seconds until the next step (0: there may be more).

        Raises:
            StoreUnavailable: Redis is away.
        """
        now = self._clock()
        if self._since_s is None:
            self._since_s = self._notices.hook_since(self._digest, max(0.0, now - self._made_s))
        waiting = self._notices.first()
        if waiting is None:
            return IDLE_S
        if waiting.since_s < self._since_s:
            return self._drop(waiting, "it is from before there was this web hook")
        if now - waiting.since_s > KEEP_S:
            return self._give_up(waiting, "it is older than a day")
        if self._silenced(waiting, now):
            return self._drop(waiting, "it is silenced")
        try:
            self._post(waiting.body, waiting.id)
        except self._not_taken as error:
            return self._failed(waiting, error, now)
        self.failures, self._said_at = 0, 0.0
        self._notices.done(waiting)
        log.info("alert.sent", extra={"alert": waiting.id, "waited_s": round(now - waiting.since_s, 3)})
        return 0.0

    def rest(self) -> None:
        """Another worker has the duty: if this one gets it again, it asks anew since when the web hook is in use."""
        self._since_s, self._made_s = None, self._clock()

    def _silenced(self, waiting: Waiting, now: float) -> bool:
        held = self._silences()
        if not held:
            return False
        try:
            said = json.loads(waiting.body)
        except ValueError:  # sent as it is, for the web hook to refuse
            return False
        kind, lane = str(said.get("kind", "")), str(said.get("lane", ""))
        return any(one.covers(kind, lane, now) for one in held)

    def _drop(self, waiting: Waiting, why: str) -> float:
        self._notices.done(waiting)
        log.info("alert.untold", extra={"alert": waiting.id, "cause": why})
        return 0.0

    def _failed(self, waiting: Waiting, error: Exception, now: float) -> float:
        self.failures += 1
        if getattr(error, "refused", False):
            last, times = self._refusals
            self._refusals = (waiting.id, times + 1 if last == waiting.id else 1)
            if self._refusals[1] >= REFUSED_MOST:
                return self._give_up(waiting, str(error))
        pause_s = min(PAUSE_CAP_S, PAUSE_BASE_S * 2.0 ** min(self.failures - 1, 16)) * (0.5 + 0.5 * self._jitter())
        if now - self._said_at >= SAY_EVERY_S:  # a long outage must not fill the log
            self._said_at = now
            fields = {"alert": waiting.id, "cause": str(error), "failures": self.failures, "gave_up": False}
            log.warning("alert.failed", extra=fields)
        return pause_s

    def _give_up(self, waiting: Waiting, why: str) -> float:
        self._notices.done(waiting)
        log.error("alert.failed", extra={"alert": waiting.id, "cause": why, "gave_up": True})
        return 0.0
