"""The roll-ups: sums by minute and hour, in two tables beside that of the attempts.

Cells are read, added to and written back, so only one recorder at a time may write them (`alone`): otherwise one could
overwrite what another has added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from ratelimit_worker.calls import Category, Outcome, PriceSource
from ratelimit_worker.contracts.rollup import (
    ALL,
    HOUR_S,
    MINUTE_S,
    AnyCells,
    Cell,
    CellKey,
    Only,
    Series,
    decode,
    encode,
)
from ratelimit_worker.policy.rollup import longer, merge, tidy
from ratelimit_worker.stores.tables import AttemptRow, Base, BatchRow, CellRow, SeriesRow

#: Any constant, the same in all versions: PostgreSQL's lock around what writes cells ("rlw" in ASCII and a 2).
_ADVISORY_LOCK = 0x726C7702
_MOST_NAMED = 500  #: series that a statement names
_CHUNK = 2_000  #: cells that one statement names


class Counted(NamedTuple):
    """The parts of a stored attempt that the roll-ups need."""

    call_id: str
    number: int
    lane: str
    task: str
    context: str
    tenant: str
    model: str | None
    outcome: Outcome
    category: Category | None
    status: int | None
    finished_at: float
    latency_s: float
    waited_s: float
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_nanousd: int | None
    cached_saving_nanousd: int | None
    price_source: PriceSource | None
    lost_attempts: int | None
    lost_nanousd: int | None
    rolled_up: int


#: The columns of a `Counted`.
COUNTED = tuple(getattr(AttemptRow, name) for name in Counted._fields)


def counted(row: Any) -> Counted:
    """The attempt in a row of these columns."""
    one = Counted(*row)
    return one._replace(finished_at=one.finished_at.timestamp())  # type: ignore[attr-defined]


def alone(connection: Connection) -> None:
    """Lock the cells until this transaction ends; must be its first statement."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver alone would begin at the first INSERT
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def series_id(series: Series) -> int:
    """The id of a series: 64 bits of a digest, so that it need not be looked up."""
    digest = blake2b("\0".join(series).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def told(connection: Connection, names: Sequence[str]) -> set[str]:
    """Those of these names whose sums the roll-ups hold already."""
    return set(connection.scalars(select(BatchRow.name).where(BatchRow.name.in_(names)))) if names else set()


def add_cells(connection: Connection, minutes: AnyCells, known: set[int]) -> None:
    """Add cells of minutes to the stored ones, and to those of their hours. The caller holds the lock (`alone`).

    Args:
        known: Series that are in the database; new ones are added to it.
    """
    if not minutes:
        return
    numbers = {key.series: series_id(key.series) for key in minutes}
    new = [{"id": number, **series._asdict()} for series, number in numbers.items() if number not in known]
    if new:
        _insert(connection, SeriesRow, new, replace=False)
        known.update(numbers.values())
    for span_s, cells in ((MINUTE_S, minutes), (HOUR_S, longer(minutes, HOUR_S))):
        rows = {(key.at_s, numbers[key.series]): cell for key, cell in cells.items()}
        keys = sorted(rows)
        for start in range(0, len(keys), _CHUNK):
            _add(connection, span_s, {key: rows[key] for key in keys[start : start + _CHUNK]})


def _add(connection: Connection, span_s: int, cells: Mapping[tuple[int, int], Cell]) -> None:
    there = select(CellRow.at_s, CellRow.series, CellRow.cell).where(
        CellRow.span_s == span_s, tuple_(CellRow.at_s, CellRow.series).in_(list(cells))
    )
    for at_s, series, cell in connection.execute(there):
        merge(cells[at_s, series], decode(cell))
    rows = [
        {"span_s": span_s, "at_s": at_s, "series": series, "cell": encode(tidy(cell))}
        for (at_s, series), cell in cells.items()
    ]
    _insert(connection, CellRow, rows, replace=True)


def _insert(connection: Connection, table: type[Base], rows: Sequence[Mapping[str, Any]], *, replace: bool) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table)
    key = [column.name for column in table.__table__.primary_key]
    if replace:
        statement = insert.on_conflict_do_update(index_elements=key, set_={"cell": insert.excluded.cell})
    else:
        statement = insert.on_conflict_do_nothing(index_elements=key)
    connection.execute(statement, rows)


def series_by_id(connection: Connection, only: Only = ALL) -> dict[int, Series]:
    """The stored series that are wanted, by their ids."""
    row = SeriesRow
    every = connection.execute(select(row.id, row.lane, row.task, row.context, row.tenant, row.model))
    return {row_id: series for row_id, *parts in every if only.takes(series := Series(*parts))}


def read_cells(
    connection: Connection, span_s: int, since_s: int, until_s: int, names: Mapping[int, Series], *, every: bool = False
) -> Iterator[tuple[CellKey, Cell]]:
    """The cells of a length that begin from `since_s` on and before `until_s`, oldest first.

    Args:
        names: The wanted series, by id (`series_by_id`).
        every: Whether these are all that are stored.
    """
    wanted = (
        select(CellRow.at_s, CellRow.series, CellRow.cell)
        .where(CellRow.span_s == span_s, CellRow.at_s >= since_s, CellRow.at_s < until_s)
        .order_by(CellRow.at_s)
    )
    if not every and len(names) <= _MOST_NAMED:  # if there are more, all cells are read, and some skipped
        wanted = wanted.where(CellRow.series.in_(list(names)))
    for at_s, number, cell in connection.execution_options(yield_per=2_000).execute(wanted):
        if number in names:  # else it is not wanted, or came after these were read
            yield CellKey(at_s, names[number]), decode(cell)


def purge_some(connection: Connection, most: int, *, span_s: int, before_s: float) -> int:
    """Delete some of the oldest cells of a length that begin before this time → how many."""
    key = (CellRow.span_s, CellRow.at_s, CellRow.series)
    oldest = select(*key).where(CellRow.span_s == span_s, CellRow.at_s < before_s).order_by(CellRow.at_s).limit(most)
    return connection.execute(delete(CellRow).where(tuple_(*key).in_(oldest))).rowcount


def all_series(connection: Connection) -> Iterable[int]:
    """The ids of the stored series."""
    return connection.scalars(select(SeriesRow.id))
