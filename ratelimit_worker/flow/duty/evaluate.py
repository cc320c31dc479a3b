"""Who finds out that something is wrong? One worker, under a lease, applies the rules; with a web hook or without.

Mode changes are looked at every 2 s, the state of lanes and workers in Redis every 15 s, the tracking database about
every minute; while one of the two stores is away, alerts that depend on it stay as they are.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.contracts.alert import Alert, Book, Kind
from ratelimit_worker.errors import ConfigurationError, RowRefused, StoreUnavailable
from ratelimit_worker.policy import alert_rules
from ratelimit_worker.policy.alert_rules import LIVE, MODES, OF_THE_DAY, RECORDED, Recorded, Standing
from ratelimit_worker.policy.alert_states import MOST, Change, Symptom, looked, over

log = logging.getLogger(__name__)

NAME = "rules"
LEASE_S = 30.0
HOLD_EVERY_S = 8.0  #: how often the lease is extended, or asked for
LOOK_S = 2.0  #: between two looks at mode changes
STANDING_S = 15.0  #: ... at the present state in Redis
RECORDED_S = 60.0  #: ... at the tracking database, at least,
REST = 50.0  #: and at least this many times the processor time that the last look at it took,
RECORDED_MOST_S = 240.0  #: but at most this: looks further apart prove nothing about the time between them
RETRY_S = 15.0  #: until the next try to record alerts, if the database accepts none


class AlertBook(Protocol):
    """The alerts in Redis. All methods raise `StoreUnavailable` if it is away."""

    def read(self) -> Book:
        """Open alerts, and mode changes that were not looked at yet."""
        ...

    def write(
        self,
        book: Book,
        changes: Iterable[Change],
        looked_s: float | None = None,
        *,
        news: int = 0,
        set_aside: int | None = None,
    ) -> bool:
        """Write changes in one transaction → False, nothing was written: another has changed alerts since `book`.

        Args:
            looked_s: When the rules were applied, seconds since the epoch.
            news: How many mode changes of `book` were looked at, and are removed.
            set_aside: How many messages were set aside; None: not counted in this step.
        """
        ...

    def records(self) -> Sequence[Alert]:
        """Alerts that are to be written to the tracking database."""
        ...

    def recorded(self, alerts: Sequence[Alert]) -> None:
        """Note that these have been written there."""
        ...


class Records(Protocol):
    """The tracking database, as this needs it."""

    def record_alerts(self, alerts: Sequence[Alert]) -> None:
        """Keep alerts as they are now, by id.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was kept.
        """
        ...

    def alerts(self, *, only_open: bool = False, limit: int = 100) -> Sequence[Alert]:
        """The newest alerts, newest first.

        Raises:
            StoreUnavailable: The database is away or locked.
        """
        ...


class Evaluator:
    """Applies the rules.

    Args:
        standing: Returns the present state in Redis, of these lanes and all lanes with calls.
        recorded: Returns figures from the tracking database up to a time, seconds since the epoch.
        records: The tracking database.
        clock: Seconds since the epoch; None: Redis' clock. Tests set it.
    """

    def __init__(
        self,
        book: AlertBook,
        standing: Callable[[Iterable[str]], Standing],
        recorded: Callable[[float], Recorded],
        records: Callable[[], Records],
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._book, self._standing, self._recorded, self._records = book, standing, recorded, records
        self._clock = clock
        self._standing_at = self._recorded_at = self._retry_at = 0.0  #: when each is due next

    def step(self) -> float:
        """One look → seconds until the next.

        Raises:
            StoreUnavailable: Redis is away.
        """
        book = self._book.read()
        now = book.now_s if self._clock is None else self._clock()
        alerts, found = dict(book.alerts), list[Change]()

        def apply(changes: Iterable[Change]) -> None:
            """Each look sees what the one before it has changed."""
            for change in changes:
                found.append(change)
                if change.closed or change.gone:
                    alerts.pop(change.alert.key, None)
                else:
                    alerts[change.alert.key] = change.alert

        if book.looked_s is None:
            apply(self._adopted(alerts))
        for news in book.news:
            apply(_of_news(alerts, news))
        set_aside = None
        if now >= self._standing_at:
            self._standing_at = now + STANDING_S
            standing = self._standing({one.lane for one in alerts.values() if one.kind in LIVE and one.lane})
            set_aside = standing.set_aside
            before = set_aside if book.set_aside is None else book.set_aside
            apply(looked(alerts, alert_rules.of_standing(standing, before), LIVE, now))
            spent = [one for one in alert_rules.of_purses(standing.budgets) if one.key not in alerts]
            apply(looked({}, spent, (), now))  # each opens an alert once, which ends with the budget's day or month
        if now >= self._recorded_at:
            symptoms, kinds = self._look_at_records(alerts, now)
            apply(looked(alerts, symptoms, kinds, now))
        apply(over(alerts, now))
        if found or book.unread or set_aside is not None:
            if not self._book.write(book, found, now, news=book.unread, set_aside=set_aside):
                self._standing_at = self._recorded_at = 0.0  # what was found was not written: look again at once
                return 0.0
            for change in found:
                _say(change)
        if (book.records or found) and now >= self._retry_at:
            self._keep(now)
        return LOOK_S

    def _adopted(self, alerts: Mapping[str, Alert]) -> list[Change]:
        """Open alerts of the tracking database that Redis has lost; taken over without another notice."""
        try:
            rows = self._records().alerts(only_open=True, limit=MOST)
        except (StoreUnavailable, ConfigurationError) as error:
            log.info("alert.blind", extra={"error": str(error)})
            return []
        return [Change(one) for one in rows if one.key not in alerts]

    def _look_at_records(self, alerts: Mapping[str, Alert], now: float) -> tuple[list[Symptom], frozenset[Kind]]:
        try:
            begun = time.thread_time()
            found = self._recorded(now)
            symptoms = list(alert_rules.of_recorded(found, alerts))
            took_s = time.thread_time() - begun
            self._recorded_at = now + min(RECORDED_MOST_S, max(RECORDED_S, REST * took_s))
        except (StoreUnavailable, ConfigurationError) as error:
            self._recorded_at = now + RECORDED_S
            log.info("alert.blind", extra={"error": str(error)})
            return [], frozenset()
        return symptoms, RECORDED

    def _keep(self, now: float) -> None:
        """Write alerts to the tracking database."""
        rows = self._book.records()
        if not rows:
            return
        try:
            self._records().record_alerts(rows)
        except (StoreUnavailable, ConfigurationError, RowRefused) as error:
            self._retry_at = now + RETRY_S
            log.info("alert.unrecorded", extra={"alerts": len(rows), "error": str(error)})
            return
        self._book.recorded(rows)


def _of_news(alerts: Mapping[str, Alert], change: ModeChange) -> list[Change]:
    """How a mode change changes the alerts of its lane."""
    of_lane = {
        key: one
        for key, one in alerts.items()
        if one.lane == change.lane and one.kind in MODES and one.about != OF_THE_DAY
    }
    return looked(of_lane, alert_rules.of_change(change), MODES, change.at)


def _say(change: Change) -> None:
    alert = change.alert
    fields = {"alert": alert.id, "kind": alert.kind.value, "lane": alert.lane, "about": alert.about}
    if change.opened:
        log.warning("alert.opened", extra={**fields, "cause": alert.cause})
    if change.closed:
        log.info("alert.closed", extra={**fields, "cause": alert.ended})
