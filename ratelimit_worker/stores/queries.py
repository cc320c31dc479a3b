"""What do the recorded attempts add up to? Read-only questions to the tracking database, for every face.

All sums of a window are asked for slice by slice, over the index on `finished_at`: no date function is needed, which
the two databases would not share, and each slice is sorted while it fits the processor's cache. (SQLite groups by
sorting; a million attempts at once took twice as long as the same in 96 slices.)
"""

from __future__ import annotations

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
    literal_column,
    or_,
    select,
    table,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import aliased

from ratelimit_worker.calls import Category, Outcome, PriceSource
from ratelimit_worker.stores.database import ours
from ratelimit_worker.stores.migrations import VERSION_TABLE, upgrade
from ratelimit_worker.stores.sqlite_file import Identity, file_of, identity, is_protected
from ratelimit_worker.stores.tables import AttemptRow

#: Rows that a sample of a window has, about, at most; and those that its rare groups add, each group whole.
SAMPLE, RARE_SAMPLE = 20_000, 20_000


@dataclass(frozen=True, slots=True)
class Sums:
    """Attempts of one slice that agree in lane, task, context, outcome and category."""

    lane: str
    task: str
    context: str
    outcome: Outcome
    category: Category | None
    attempts: int
    latency_s: float  #: of all of them together, seconds
    input_tokens: int
    output_tokens: int
    refused: int = 0  #: of the attempts, those that met a 429


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
class Retried:
    """What came of the retries of one slice that agree in lane, task and context."""

    lane: str
    task: str
    context: str
    recovered: int  #: calls that were answered after an attempt of theirs had failed
    backoff_s: float  #: from a failed attempt to the start of the next one, all of them together, seconds


class Drawn(NamedTuple):  # there are thousands: a tuple is made four times as fast as a frozen dataclass
    """One attempt of a sample."""

    lane: str
    task: str
    context: str
    answered: bool
    latency_s: float
    waited_s: float
    weight: int  #: attempts that it stands for


@dataclass(frozen=True, slots=True)
class Rare:
    """Groups that are taken whole, since a share of them would say nothing."""

    lanes: frozenset[str] = frozenset()
    tasks: frozenset[str] = frozenset()
    contexts: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.lanes or self.tasks or self.contexts)

    def holds(self, row: Drawn) -> bool:
        """Whether the row belongs to one of them."""
        return row.lane in self.lanes or row.task in self.tasks or row.context in self.contexts


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
        """Attempts in a window; reads the index alone."""
        with self._reading() as connection:
            return connection.scalar(select(func.count()).select_from(AttemptRow).where(_within(since_s, until_s))) or 0

    def sums(self, since_s: float, until_s: float) -> Iterator[Sums]:
        """The attempts of a window, added up by lane, task, context, outcome and category, in no order."""
        key = (AttemptRow.lane, AttemptRow.task, AttemptRow.context, AttemptRow.outcome, AttemptRow.category)
        wanted = (
            select(
                *key,
                func.count(),
                func.sum(AttemptRow.latency_s),
                func.sum(AttemptRow.input_tokens),
                func.sum(AttemptRow.output_tokens),
                refusals(),
            )
            .where(_within(since_s, until_s))
            .group_by(*key)
        )
        with self._reading() as connection:
            for (
                lane,
                task,
                context,
                outcome,
                category,
                attempts,
                latency_s,
                tokens_in,
                tokens_out,
                refused,
            ) in connection.execute(wanted):
                yield Sums(
                    lane,
                    task,
                    context,
                    outcome,
                    category,
                    attempts,
                    float(latency_s),
                    int(tokens_in or 0),  # PostgreSQL adds bigints up to a numeric
                    int(tokens_out or 0),
                    int(refused or 0),
                )

    def spent(self, since_s: float, until_s: float) -> Iterator[Spent]:
        """What the attempts of a window cost, by lane, task, context, tenant, model and outcome, in no order."""
        with self._reading() as connection:
            yield from map(spent_of, connection.execute(spent_by(_within(since_s, until_s))))

    def retried(self, since_s: float, until_s: float) -> Iterator[Retried]:
        """What came of retries in a window, by lane, task and context; first attempts are not looked at."""
        key = (AttemptRow.lane, AttemptRow.task, AttemptRow.context)
        answered = and_(AttemptRow.outcome == Outcome.ANSWERED, _failed_before())
        wanted = (
            select(
                *key,
                func.sum(case((answered, 1), else_=0)),
                func.sum(case((_outcome_before() == Outcome.RETRIED, AttemptRow.waited_s), else_=0.0)),
            )
            .where(_within(since_s, until_s), AttemptRow.number > 1)
            .group_by(*key)
        )
        with self._reading() as connection:
            for lane, task, context, recovered, backoff_s in connection.execute(wanted):
                yield Retried(lane, task, context, int(recovered), float(backoff_s))

    def sample(self, since_s: float, until_s: float, one_in: int) -> Iterator[Drawn]:
        """One attempt in `one_in`, the same ones each time."""
        wanted = _drawn_rows().where(_within(since_s, until_s))
        yield from self._draw(wanted.where(self._drawn(one_in)) if one_in > 1 else wanted, one_in)

    def whole(self, since_s: float, until_s: float, rare: Rare) -> Iterator[Drawn]:
        """Every attempt that belongs to a rare group."""
        belongs = or_(
            AttemptRow.lane.in_(sorted(rare.lanes)),
            AttemptRow.task.in_(sorted(rare.tasks)),
            AttemptRow.context.in_(sorted(rare.contexts)),
        )
        yield from self._draw(_drawn_rows().where(_within(since_s, until_s), belongs), 1)

    def _draw(self, wanted: Select[Any], weight: int) -> Iterator[Drawn]:
        with self._reading() as connection:
            rows = connection.execution_options(yield_per=2_000).execute(wanted)
            for lane, task, context, answered, latency_s, waited_s in rows:
                yield Drawn(lane, task, context, bool(answered), latency_s, waited_s, weight)

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

    def _drawn(self, one_in: int) -> ColumnElement[bool]:
        """Whether a row is in the sample: a number that says nothing of what the row holds."""
        if self._engine.dialect.name == "sqlite":
            return literal_column("attempts.rowid") % one_in == 0
        return func.abs(func.hashtext(AttemptRow.call_id).op("%")(one_in)) == 0

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        if self._path is not None and identity(self._path) != self._seen:
            self._prepared = False  # deleted or replaced: what is there now may have no tables yet
        if not self._prepared:
            upgrade(self._engine)
            self._prepared = True
            self._seen = None if self._path is None else identity(self._path)
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            self._prepared = False  # whatever comes back may be another database
            raise ours(error, self._engine) from error


def _within(since_s: float, until_s: float) -> ColumnElement[bool]:
    return and_(
        AttemptRow.finished_at >= datetime.fromtimestamp(since_s, UTC),
        AttemptRow.finished_at < datetime.fromtimestamp(until_s, UTC),
    )


def _drawn_rows() -> Select[Any]:
    return select(
        AttemptRow.lane,
        AttemptRow.task,
        AttemptRow.context,
        case((AttemptRow.outcome == Outcome.ANSWERED, 1), else_=0),
        AttemptRow.latency_s,
        AttemptRow.waited_s,
    )


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
