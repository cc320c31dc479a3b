"""Figures of lanes and attempts, for the progress of a run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec import Struct, field
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError

from ratelimit_worker.reports.live import LaneState, cluster_state
from ratelimit_worker.reports.mode import ModeNow, severity
from ratelimit_worker.reports.money import NOTHING, Spend, money
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import refusals, spent_by, spent_of
from ratelimit_worker.stores.tables import AttemptRow

#: Counting takes at most this share of the time.
_COUNTING_SHARE = 0.05


class LaneFigures(Struct, frozen=True):
    """What lanes do now."""

    pace_per_min: float | None  #: sum over the lanes; None: one of them has no pace, or none is known
    mode_now: ModeNow = field(default_factory=ModeNow)  #: of the lane that may send least
    lane: str | None = None  #: that lane, if there are several
    held_by: str = ""  #: what holds its next call back

    @property
    def mode(self) -> str:
        """Such as "normal", "emergency (provider away)", "halt (pinned by hand) on openai:gpt-4o"."""
        words = str(self.mode_now)
        first, space, rest = words.partition(" ")
        where = f" on {self.lane}" if self.lane is not None and words != "NORMAL" else ""
        return f"{first.lower()}{space}{rest}{where}"


def lane_figures(live: Live, names: Iterable[str]) -> LaneFigures:
    """Figures of these lanes.

    Raises:
        StoreUnavailable: Redis is away.
    """
    now = live.now(sorted(names))
    return figures_of(cluster_state(now, None).lanes, now.at_s)


def figures_of(lanes: Iterable[LaneState], at_s: float) -> LaneFigures:
    """The lanes together, and the lane that may send least."""
    known = list(lanes)
    if not known:
        return LaneFigures(None)
    paces = [lane.allowed_per_min for lane in known]
    worst = max(known, key=lambda lane: (severity(lane.mode), bool(lane.mode_now.asides), bool(lane.bars)))
    return LaneFigures(
        pace_per_min=None if None in paces else sum(pace or 0.0 for pace in paces),
        mode_now=worst.mode_now,
        lane=worst.lane if len(known) > 1 else None,
        held_by=worst.held_by(at_s),
    )


class AttemptFigures(Struct, frozen=True):
    """Figures of the attempts since a moment."""

    requests: int = 0  #: attempts made
    refused: int = 0  #: of these, 429s
    retries: int = 0  #: of these, not the first of their call
    spend: Spend = NOTHING  #: what they cost; only at the end


class Attempts:
    """The attempts of one context, counted in the tracking database, which is a fraction of a second behind.

    Args:
        context: The calls' context.
        since_s: Only attempts that started at this time or later are counted; seconds since the epoch.
    """

    def __init__(self, database_url: str, context: str, since_s: float) -> None:
        self._engine = engine_for(database_url)
        self._context, self._since = context, datetime.fromtimestamp(since_s, UTC)
        self._last: AttemptFigures | None = AttemptFigures()
        self._next_s = 0.0

    def now(self, *, exactly: bool = False) -> AttemptFigures | None:
        """The figures; without `exactly` they may be a little old. None: the database is away."""
        if not exactly and time.monotonic() < self._next_s:
            return self._last
        began_s = time.monotonic()
        # finished_at has an index, and no attempt finishes before it starts
        since = (AttemptRow.finished_at >= self._since, AttemptRow.started_at >= self._since)
        mine = (*since, AttemptRow.context == self._context)
        wanted = select(func.count(), refusals(), func.sum(case((AttemptRow.number > 1, 1), else_=0))).where(*mine)
        try:
            with self._engine.connect() as connection:
                requests, refused, retries = connection.execute(wanted).one()
                spent = money(map(spent_of, connection.execute(spent_by(*mine)))).total if exactly else NOTHING
        except SQLAlchemyError:
            self._last = None  # no tables yet, or no database: the run goes on, and shows "?"
        else:
            self._last = AttemptFigures(int(requests), int(refused or 0), int(retries or 0), spent)
        took_s = time.monotonic() - began_s
        self._next_s = time.monotonic() + max(0.5, took_s / _COUNTING_SHARE)
        return self._last

    def made(self, call_id: str) -> int:
        """The number of a call's last attempt; 0: none is recorded, or the database is away."""
        try:
            with self._engine.connect() as connection:
                last = select(func.max(AttemptRow.number)).where(AttemptRow.call_id == call_id)
                return int(connection.execute(last).scalar() or 0)
        except SQLAlchemyError:
            return 0

    def close(self) -> None:
        """Close the connections to the database."""
        self._engine.dispose()
