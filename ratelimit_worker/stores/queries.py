"""Read-only queries of the tracking database, for commands, reports and pages: sums over the recorded attempts.

Sums of a window come from the roll-ups, so their cost depends on its length and on the number of lanes, functions and
contexts, and not on the number of calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    ScalarSelect,
    Select,
    String,
    TextClause,
    and_,
    case,
    column,
    func,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import aliased

from ratelimit_worker.calls import Category, Outcome, PriceSource
from ratelimit_worker.contracts.lane_sample import LaneMinute, LaneSample, LaneSpan
from ratelimit_worker.contracts.rollup import ALL, HOUR_S, MINUTE_S, Cell, CellKey, Cells, NamedSums, Only
from ratelimit_worker.contracts.search import CallState, Found, Wanted
from ratelimit_worker.contracts.sums import Recent, Spent
from ratelimit_worker.policy import rollup
from ratelimit_worker.policy.lane_sample import STRICTNESS
from ratelimit_worker.stores import rollups
from ratelimit_worker.stores.database import ours
from ratelimit_worker.stores.migrations import upgrade
from ratelimit_worker.stores.revision import VERSION_TABLE
from ratelimit_worker.stores.rollups import COUNTED, counted
from ratelimit_worker.stores.sqlite_file import Identity, file_of, identity, is_protected
from ratelimit_worker.stores.storable import call_key, lane_key
from ratelimit_worker.stores.tables import END, FAILED, NOT_ROLLED_UP, AttemptRow, CellRow, LaneSampleRow, SeriesRow

MOST_LOOKED_THROUGH = 20_000  #: ends of calls that one search looks through


def refusals() -> ColumnElement[int]:
    """How many attempts are 429s, for every figure of that name: by status (a used-up quota may have it too), or by
    category, if a provider or SDK reports a refusal without the status."""
    return func.sum(case((or_(AttemptRow.status == 429, AttemptRow.category == Category.RATE_LIMITED), 1), else_=0))


def spent_by(*where: ColumnElement[bool]) -> Select[Any]:
    """What the attempts that agree with all conditions cost, as `spent_of` reads it."""
    row = AttemptRow
    key = (row.lane, row.task, row.context, row.tenant, row.model, row.outcome)
    no_price = and_(row.cost_nanousd.is_(None), or_(row.input_tokens > 0, row.output_tokens > 0))
    sums = (
        func.count(),
        func.sum(row.cost_nanousd),
        func.sum(case((row.price_source == PriceSource.ESTIMATED, row.cost_nanousd), else_=0)),
        func.sum(row.cached_saving_nanousd),
        func.sum(row.lost_attempts),
        func.sum(row.lost_nanousd),
        func.sum(case((no_price, 1), else_=0)),
    )
    columns: list[Any] = [*key, *sums]
    return select(*columns).where(*where).group_by(*key)


def spent_of(row: Any) -> Spent:
    """A row of `spent_by`."""
    lane, task, context, tenant, model, outcome, *sums = row
    # PostgreSQL adds bigints up to a numeric
    return Spent(lane, task, context, tenant, model, outcome, *(int(one or 0) for one in sums))


class Queries:
    """Questions to the database behind an engine of `engine_for`.

    Times are seconds since the epoch; a window holds attempts that finished from `since_s` on and before `until_s`.
    Every method raises `StoreUnavailable` if the database is away or locked, and `ConfigurationError` if it is newer
    than this version. Missing tables are made.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._prepared = False
        self._path = file_of(engine)
        self._seen: Identity | None = None

    def count(self, since_s: float, until_s: float) -> int:
        """Number of attempts in a window that are still stored; only reads the index."""
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(AttemptRow).where(_within(since_s, until_s))) or 0

    def cells(
        self, since_s: float, until_s: float, finest_s: float, *, only: Only = ALL, sums: Sequence[NamedSums] = ()
    ) -> Iterator[tuple[CellKey, Cell]]:
        """Sums over the attempts of a window, by minute or hour and series; a key may come more than once.

        They are read from the roll-ups. Partial minutes at the window's ends, and attempts that are not in the roll-ups
        yet, are read from the attempts themselves, as long as these are stored.

        Args:
            finest_s: Length of the slices that are needed: from an hour on, hours are read instead of minutes.
            only: Whose attempts.
            sums: More sums, which count if the database does not hold them yet. What shared answers saved is known by
                the minute: a minute counts in the window in which it begins.
        """
        with self._reading(whole=True) as connection:
            first = connection.scalar(select(func.min(AttemptRow.finished_at)))
            attempts_from_s = math.inf if first is None else first.timestamp()
            names, every = rollups.series_by_id(connection, only), only == ALL
            for span_s, from_s, before_s in rollup.pieces(
                since_s, until_s, finest_s=finest_s, attempts_from_s=attempts_from_s, now_s=self._clock()
            ):
                if span_s:
                    bounds = (int(from_s), int(before_s))
                    for key, cell in rollups.read_cells(connection, span_s, *bounds, names, every=every):
                        if span_s == MINUTE_S and key.at_s < since_s:  # the first minute is read as a whole
                            cell.reuse = {}
                        yield key, cell
                elif (minute := rollup.whole_minute(from_s)) < before_s:
                    yield from _reuse(
                        rollups.read_cells(connection, MINUTE_S, minute, math.ceil(before_s), names, every=every)
                    )
                for key, cell in _from_attempts(connection, from_s, before_s, new_only=span_s > 0).items():
                    if only.takes(key.series):
                        yield key, cell
            told = rollups.told(connection, [one.name for one in sums])
        for one in sums:
            for key, cell in one.cells.items() if one.name not in told else ():
                if since_s <= key.at_s < until_s and only.takes(key.series):
                    yield key, cell

    def lanes_used(self, since_s: float) -> frozenset[str]:
        """Lanes of which attempts ended in a minute that began at or after `since_s`."""
        wanted = (
            select(SeriesRow.lane)
            .join(CellRow, CellRow.series == SeriesRow.id)
            .where(CellRow.span_s == MINUTE_S, CellRow.at_s >= int(since_s))
            .distinct()
        )
        with self._reading() as connection:
            return frozenset(connection.scalars(wanted))

    def lane_samples(self, since_s: float, until_s: float, lane: str | None = None) -> list[LaneSample]:
        """How lanes stood in each minute of a window, by lane and oldest first; samples are kept for 32 days.

        Args:
            lane: Of this lane alone; None: of all.
        """
        row = LaneSampleRow
        wanted = (
            select(row.lane, row.at_s, row.allowed_per_min, row.waiting, row.running, row.mode)
            .where(row.at_s >= since_s // MINUTE_S * MINUTE_S, row.at_s < until_s)
            .order_by(row.lane, row.at_s)
        )
        if lane is not None:
            wanted = wanted.where(row.lane == lane_key(lane))
        with self._reading() as connection:
            return [LaneSample(**found._asdict()) for found in connection.execute(wanted)]

    def lane_spans(self, since_s: float, until_s: float, slice_s: float, lane: str | None = None) -> list[LaneSpan]:
        """How lanes stood in each slice of a window, by lane and oldest first; the database combines the minutes.

        Args:
            slice_s: A whole number of minutes, in seconds.
            lane: Of this lane alone; None: of all.
        """
        row, length = LaneSampleRow, int(slice_s)
        begin = (row.at_s // length * length).label("begin")
        strictness = case({mode.value: place for place, mode in enumerate(STRICTNESS)}, value=row.mode, else_=0)
        wanted = (
            select(
                row.lane,
                begin,
                func.count(),
                func.count(row.allowed_per_min),
                func.avg(row.allowed_per_min),
                func.max(row.waiting),
                func.min(row.waiting),
                func.max(row.running),
                func.max(strictness),
            )
            .where(row.at_s >= since_s // MINUTE_S * MINUTE_S, row.at_s < until_s)
            .group_by(row.lane, begin)
            .order_by(row.lane, begin)
        )
        if lane is not None:
            wanted = wanted.where(row.lane == lane_key(lane))
        with self._reading() as connection:
            return [
                LaneSpan(
                    lane=name,
                    at_s=int(at_s),
                    minutes=minutes,
                    allowed_per_min=allowed if bound == minutes else None,
                    waiting=most,
                    waiting_least=least,
                    running=running,
                    mode=STRICTNESS[strictest],
                )
                for name, at_s, minutes, bound, allowed, most, least, running, strictest in connection.execute(wanted)
            ]

    def first_s(self, since_s: float, until_s: float, only: Only = ALL) -> float | None:
        """A moment at or shortly before the end of the first attempt of a window; None: none ended in it.

        It is that attempt's minute, or its hour where minutes are no longer kept.
        """
        with self._reading() as connection:
            begun = [_unsummed_since(connection, since_s, until_s)]
            hour = _first_cell(connection, HOUR_S, since_s, until_s, only)
            if hour is not None:
                minute = _first_cell(connection, MINUTE_S, max(since_s, hour), min(until_s, hour + HOUR_S), only)
                begun.append(hour if minute is None else minute)
        known = [max(since_s, at_s) for at_s in begun if at_s is not None]
        return min(known) if known else None

    def lane_minutes(self, lane: str, since_s: float, until_s: float) -> list[LaneMinute]:
        """What a lane was allowed and what it used, each minute of a window in which either is known, oldest first.

        Minutes are kept for 32 days. The window is taken in whole minutes: its first begins at or before `since_s`.
        """
        since_s = since_s // MINUTE_S * MINUTE_S
        used: dict[int, Cell] = {}
        for (at_s, _), cell in self.cells(since_s, until_s, MINUTE_S, only=Only(lane=lane)):
            rollup.merge(used.setdefault(at_s, Cell()), cell)
        samples = {one.at_s: one for one in self.lane_samples(since_s, until_s, lane)}
        return [
            LaneMinute(
                lane=lane,
                at_s=at_s,
                attempts=sum(used[at_s].outcomes.values()) if at_s in used else 0,
                refused=used[at_s].refused if at_s in used else 0,
                sample=samples.get(at_s),
            )
            for at_s in sorted({*used, *samples})
        ]

    def recent(self, since_s: float, until_s: float) -> dict[str, Recent]:
        """Lane → its figures in a short window."""
        wanted = (
            select(AttemptRow.lane, func.count(), refusals()).where(_within(since_s, until_s)).group_by(AttemptRow.lane)
        )
        with self._reading() as connection:
            return {lane: Recent(attempts, int(refused or 0)) for lane, attempts, refused in connection.execute(wanted)}

    def ended(self, wanted: Wanted) -> tuple[list[Found], bool]:
        """Calls that have ended and are wanted, the newest first; and whether there are no more.

        Of the calls that agree with the wanted id, lane, state and time, only the newest `MOST_LOOKED_THROUGH` are
        looked through, since the other conditions have no index.
        """
        row = AttemptRow
        within: list[ColumnElement[bool] | TextClause] = (
            [row.call_id == call_key(wanted.call_id)]
            if wanted.call_id
            else [row.finished_at >= datetime.fromtimestamp(wanted.since_s, UTC)]
        )
        if wanted.lane:
            within.append(row.lane == lane_key(wanted.lane))
        if wanted.state in {CallState.FAILED, CallState.ANSWERED}:
            within.append(text(FAILED if wanted.state is CallState.FAILED else "outcome = 'answered'"))
        newest = select(row.__table__).where(text(END), *within).order_by(row.finished_at.desc())
        looked = aliased(row, newest.limit(MOST_LOOKED_THROUGH).subquery())
        asked: list[ColumnElement[bool]] = []
        if wanted.tenant:
            asked.append(looked.tenant == wanted.tenant)
        if wanted.task:
            asked.append(looked.task.icontains(wanted.task, autoescape=True))
        if wanted.error in set(Category):
            asked.append(looked.category == Category(wanted.error))
        elif wanted.error:
            asked.append(looked.cause.icontains(wanted.error, autoescape=True))
        found = select(looked).where(*asked).order_by(looked.finished_at.desc()).limit(wanted.most + 1)
        with self._reading() as connection:
            calls = [_ended(one) for one in connection.execute(found)]
            through = newest.limit(MOST_LOOKED_THROUGH).subquery()
            whole = len(calls) <= wanted.most and (
                not asked or (connection.scalar(select(func.count()).select_from(through)) or 0) < MOST_LOOKED_THROUGH
            )
        return calls[: wanted.most], whole

    def ended_by(self, cause: str, since_s: float, until_s: float) -> dict[tuple[str, str], int]:
        """(Lane, task) → calls of a short window that failed for good for this cause."""
        row = AttemptRow
        wanted = (
            select(row.lane, row.task, func.count())
            .where(_within(since_s, until_s), row.outcome == Outcome.FAILED, row.cause == cause)
            .group_by(row.lane, row.task)
        )
        with self._reading() as connection:
            return {(lane, task): calls for lane, task, calls in connection.execute(wanted)}

    def protected_file(self) -> str | None:
        """The SQLite file, if it is read-only; None: it is writable, or the database is not a file."""
        path = file_of(self._engine)
        return str(path) if path is not None and is_protected(path) else None

    def revision(self) -> str | None:
        """The schema's present revision; None: there are no tables yet. Changes nothing."""
        try:
            with self._engine.connect() as connection:
                if not self._engine.dialect.has_table(connection, VERSION_TABLE):
                    return None
                found = connection.scalar(select(column("version_num", String)).select_from(table(VERSION_TABLE)))
                return None if found is None else str(found)
        except SQLAlchemyError as error:
            raise ours(error, self._engine) from error

    @contextmanager
    def _reading(self, *, whole: bool = False) -> Iterator[Connection]:
        if self._path is not None and identity(self._path) != self._seen:
            self._prepared = False  # the file was deleted or replaced, so there may be no tables yet
        if not self._prepared:
            upgrade(self._engine)
            self._prepared = True
            self._seen = None if self._path is None else identity(self._path)
        try:
            with self._engine.connect() as connection:
                if whole:  # all statements see the same state of the database
                    if self._engine.dialect.name == "sqlite":
                        connection.exec_driver_sql("BEGIN")
                    else:
                        connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except DBAPIError as error:
            self._prepared = False  # it may be another database when it is back
            raise ours(error, self._engine) from error


def _ended(row: Any) -> Found:
    return Found(
        call_id=row.call_id,
        state=CallState.ANSWERED if row.outcome is Outcome.ANSWERED else CallState.FAILED,
        lane=row.lane,
        task=row.task,
        queue=row.queue,
        tenant=row.tenant,
        priority=row.priority.value,
        context=row.context,
        at_s=row.finished_at.timestamp(),
        attempts=row.number,
        category=row.category,
        cause=row.cause or "",
    )


def _reuse(cells: Iterable[tuple[CellKey, Cell]]) -> Iterator[tuple[CellKey, Cell]]:
    """The part of these cells that cannot be read from attempts: reuse."""
    return ((key, Cell(reuse=cell.reuse)) for key, cell in cells if cell.reuse)


def _within(since_s: float, until_s: float) -> ColumnElement[bool]:
    return and_(
        AttemptRow.finished_at >= datetime.fromtimestamp(since_s, UTC),
        AttemptRow.finished_at < datetime.fromtimestamp(until_s, UTC),
    )


def _unsummed_since(connection: Connection, since_s: float, until_s: float) -> float | None:
    """When the first attempt ended that the roll-ups do not hold yet."""
    first = select(func.min(AttemptRow.finished_at)).where(_within(since_s, until_s), text(NOT_ROLLED_UP))
    at = connection.scalar(first)
    return None if at is None else at.timestamp()


def _first_cell(connection: Connection, span_s: int, since_s: float, until_s: float, only: Only) -> float | None:
    """Beginning of the first cell of a length in a window."""
    wanted = (
        select(func.min(CellRow.at_s))
        .join(SeriesRow, CellRow.series == SeriesRow.id)
        .where(CellRow.span_s == span_s, CellRow.at_s >= since_s // span_s * span_s, CellRow.at_s < until_s)
        .where(*(getattr(SeriesRow, name) == told for name, told in only.named() if told is not None))
    )
    return connection.scalar(wanted)


def _from_attempts(connection: Connection, since_s: float, until_s: float, *, new_only: bool) -> Cells:
    """Sums over attempts by minute; `new_only`: only those that are not in the roll-ups."""
    again = AttemptRow.number > 1
    wanted = select(
        *COUNTED,
        case((again, _failed_before()), else_=None).label("after_failure"),
        case((again, _outcome_before()), else_=None).label("before"),
    ).where(_within(since_s, until_s))
    if new_only:
        wanted = wanted.where(text(NOT_ROLLED_UP))
    cells: Cells = {}
    for row in connection.execution_options(yield_per=2_000).execute(wanted):
        *values, after_failure, before = row
        backed_off = before == Outcome.RETRIED
        rollup.add_attempt(cells, counted(values), after_failure=bool(after_failure), backed_off=backed_off)
    return cells


def _failed_before() -> ColumnElement[bool]:
    """Whether an earlier attempt of the same call had failed.

    Not by EXISTS, for which PostgreSQL may read the whole table into a hash for each slice.
    """
    before = aliased(AttemptRow)
    first = (
        select(func.min(before.number))
        .where(before.call_id == AttemptRow.call_id, before.outcome == Outcome.RETRIED)
        .correlate(AttemptRow)
        .scalar_subquery()
    )
    return first < AttemptRow.number


def _outcome_before() -> ScalarSelect[Outcome]:
    """The outcome of the previous attempt of the same call."""
    before = aliased(AttemptRow)
    return (
        select(before.outcome)
        .where(before.call_id == AttemptRow.call_id, before.number == AttemptRow.number - 1)
        .correlate(AttemptRow)
        .scalar_subquery()
    )
