"""How fast does a lane go, and what came of the attempts? Figures for those who watch a run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from ratelimit_worker.cli.cluster import talking_to_redis
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.tables import AttemptRow

#: A count takes at most this share of the time.
_COUNTING_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """What lanes do now."""

    pace_per_min: float | None  #: of all the lanes together; None: one of them is bound by nothing, or none is known
    away: bool  #: the provider of at least one of them is

    @property
    def mode(self) -> str:
        """In the words of the design."""
        return "emergency (provider away)" if self.away else "normal"


def lane_figures(lanes: Lanes, names: Iterable[str]) -> LaneFigures:
    """Figures of these lanes, from their hashes.

    Raises:
        StoreUnavailable: Redis is away.
    """
    pace_per_s: float | None = None
    bound, away = True, False
    for name in names:
        with talking_to_redis():
            fields = lanes.fields(name)
        pace = fields.get("p1")
        bound = bound and bool(pace)
        pace_per_s = (pace_per_s or 0.0) + float(pace or 0)
        away = away or int(float(fields.get("probes") or 0)) > 0
    return LaneFigures(pace_per_s * 60 if bound and pace_per_s is not None else None, away)


@dataclass(frozen=True, slots=True)
class AttemptFigures:
    """What came of the attempts since a moment."""

    requests: int = 0  #: attempts made
    refused: int = 0  #: of these, 429
    cached: int = 0  #: answers without an attempt; there is no cache yet, so none


class Attempts:
    """The attempts of one context, counted in the tracking database, which is a fraction of a second behind.

    Args:
        context: As the calls were sent with.
        since_s: Count what started from then on; seconds since the epoch.
    """

    def __init__(self, database_url: str, context: str, since_s: float) -> None:
        self._engine = engine_for(database_url)
        self._context, self._since = context, datetime.fromtimestamp(since_s, UTC)
        self._last: AttemptFigures | None = AttemptFigures()
        self._next_s = 0.0

    def now(self, *, exactly: bool = False) -> AttemptFigures | None:
        """The figures, a little old unless `exactly`; None: the database is away."""
        if not exactly and time.monotonic() < self._next_s:
            return self._last
        began_s = time.monotonic()
        wanted = (
            select(AttemptRow.status, func.count())
            # finished_at has an index, and no attempt finishes before it starts
            .where(AttemptRow.finished_at >= self._since, AttemptRow.started_at >= self._since)
            .where(AttemptRow.context == self._context)
            .group_by(AttemptRow.status)
        )
        try:
            with self._engine.connect() as connection:
                counts = {status: int(count) for status, count in connection.execute(wanted)}
        except SQLAlchemyError:
            self._last = None  # no tables yet, or away: the run goes on, and its figures say "?"
        else:
            self._last = AttemptFigures(requests=sum(counts.values()), refused=counts.get(429, 0))
        took_s = time.monotonic() - began_s
        self._next_s = time.monotonic() + max(0.5, took_s / _COUNTING_SHARE)
        return self._last

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()
