"""What do the recorded attempts add up to? Read-only questions to the tracking database, for every face.

Sums of a window come from the roll-ups, so their cost goes by its length and by how many lanes, functions and contexts
there are, not by how many calls they made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    ScalarSelect,
    Select,
    String,
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
from ratelimit_worker.contracts.rollup import Cell, CellKey, Cells
from ratelimit_worker.policy import rollup
from ratelimit_worker.stores import rollups
from ratelimit_worker.stores.database import ours
from ratelimit_worker.stores.migrations import VERSION_TABLE, upgrade
from ratelimit_worker.stores.rollups import COUNTED, counted
from ratelimit_worker.stores.sqlite_file import Identity, file_of, identity, is_protected
from ratelimit_worker.stores.tables import NOT_ROLLED_UP, AttemptRow


class Spent(NamedTuple):
    """Attempts of a window that agree in lane, task, context, tenant, model and outcome; amounts in 10⁻⁹ dollars."""

    lane: str
    task: str
    context: str
    tenant: str
    model: str | None
    outcome: Outcome
    attempts: int
    cost_nanousd: int
    estimated_nanousd: int  #: of the cost, what nobody told
    cached_saving_nanousd: int
    lost_attempts: int
    lost_nanousd: int
    unpriced: int  #: of the attempts, those that used tokens and have no price


@dataclass(frozen=True, slots=True)
class Recent:
    """What a lane did in a short time."""

    attempts: int
    refused: int  #: of these, 429s


def refusals() -> ColumnElement[int]:
    """How many of the attempts are 429s, for every figure of that name: by their status (a used-up quota may have it),
    or by their category, where a provider or SDK says the same without it."""
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

    Moments are seconds since the epoch; a window holds what finished from `since_s` on and before `until_s`. Every
    method raises `StoreUnavailable` where the database is away or locked, and `ConfigurationError` where it is newer
    than this version. Missing tables are made.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._prepared = False
        self._path = file_of(engine)
        self._seen: Identity | None = None

    def count(self, since_s: float, until_s: float) -> int:
        """Attempts in a window that are kept; reads the index alone."""
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(AttemptRow).where(_within(since_s, until_s))) or 0

    def cells(self, since_s: float, until_s: float, finest_s: float) -> Iterator[tuple[CellKey, Cell]]:
        """What the attempts of a window add up to, by minute or hour and series; a key may come more than once.

        It is read from the roll-ups. The ends of the window, where it begins and ends within a minute, and what the
        roll-ups do not hold yet come from the attempts themselves, as long as these are kept.

        Args:
            finest_s: Length of the slices that are wanted: from an hour on, hours are read instead of minutes.
        """
        with self._reading(whole=True) as connection:
            first = connection.scalar(select(func.min(AttemptRow.finished_at)))
            attempts_from_s = math.inf if first is None else first.timestamp()
            for span_s, from_s, before_s in rollup.pieces(
                since_s, until_s, finest_s=finest_s, attempts_from_s=attempts_from_s, now_s=time.time()
            ):
                if span_s:
                    yield from rollups.read_cells(connection, span_s, int(from_s), int(before_s))
                yield from _from_attempts(connection, from_s, before_s, new_only=span_s > 0).items()

    def recent(self, since_s: float, until_s: float) -> dict[str, Recent]:
        """Lane → what it did in a short window."""
        wanted = (
            select(AttemptRow.lane, func.count(), refusals()).where(_within(since_s, until_s)).group_by(AttemptRow.lane)
        )
        with self._reading() as connection:
            return {lane: Recent(attempts, int(refused or 0)) for lane, attempts, refused in connection.execute(wanted)}

    def protected_file(self) -> str | None:
        """The SQLite file, where nobody may write it; None: somebody may, or the database is no file."""
        path = file_of(self._engine)
        return str(path) if path is not None and is_protected(path) else None

    def revision(self) -> str | None:
        """The schema's revision as it is; None: no tables yet. Changes nothing."""
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
            self._prepared = False  # deleted or replaced: what is there now may have no tables yet
        if not self._prepared:
            upgrade(self._engine)
            self._prepared = True
            self._seen = None if self._path is None else identity(self._path)
        try:
            with self._engine.connect() as connection:
                if whole:  # all statements see the database as it was at the first
                    if self._engine.dialect.name == "sqlite":
                        connection.exec_driver_sql("BEGIN")
                    else:
                        connection.execution_options(isolation_level="REPEATABLE READ")
                yield connection
        except DBAPIError as error:
            self._prepared = False  # whatever comes back may be another database
            raise ours(error, self._engine) from error


def _within(since_s: float, until_s: float) -> ColumnElement[bool]:
    return and_(
        AttemptRow.finished_at >= datetime.fromtimestamp(since_s, UTC),
        AttemptRow.finished_at < datetime.fromtimestamp(until_s, UTC),
    )


def _from_attempts(connection: Connection, since_s: float, until_s: float, *, new_only: bool) -> Cells:
    """What attempts add up to, by minute; `new_only`: those that the roll-ups do not hold."""
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
    """An attempt of the same call had failed before this one.

    Not EXISTS: PostgreSQL may answer that by reading the whole table into a hash, once a slice.
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
    """What came of the attempt before this one of the same call."""
    before = aliased(AttemptRow)
    return (
        select(before.outcome)
        .where(before.call_id == AttemptRow.call_id, before.number == AttemptRow.number - 1)
        .correlate(AttemptRow)
        .scalar_subquery()
    )
