"""Where are the sums by minute and hour kept, and how do new ones join them? Two tables beside that of the attempts.

Cells are read, added to and written back, so whoever writes them does it alone (`alone`): two recorders wait for each
other, and none overwrites what the other has added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, select, text, tuple_
from sqlalchemy.dialects import postgresql, sqlite

from ratelimit_worker.calls import Category, Outcome, PriceSource
from ratelimit_worker.contracts.rollup import HOUR_S, MINUTE_S, AnyCells, Cell, CellKey, Series, decode, encode
from ratelimit_worker.policy.rollup import longer, merge, tidy
from ratelimit_worker.stores.tables import AttemptRow, Base, CellRow, SeriesRow

#: Any constant, the same in all versions: PostgreSQL's lock around what writes cells ("rlw" in ASCII and a 2).
_ADVISORY_LOCK = 0x726C7702
_CHUNK = 2_000  #: cells that one statement names


class Counted(NamedTuple):
    """An attempt that the database holds, as roll-ups need it."""

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


#: Its columns.
COUNTED = tuple(getattr(AttemptRow, name) for name in Counted._fields)


def counted(row: Any) -> Counted:
    """The attempt in a row of these columns."""
    one = Counted(*row)
    return one._replace(finished_at=one.finished_at.timestamp())  # type: ignore[attr-defined]


def alone(connection: Connection) -> None:
    """Hold off all others that write cells, until this transaction ends. Before its first statement."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver alone would begin at the first INSERT
    else:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def series_id(series: Series) -> int:
    """The number under which a series is kept: 64 bits of a digest, so that nobody has to look it up."""
    digest = blake2b("\0".join(series).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def add_cells(connection: Connection, minutes: AnyCells, known: set[int]) -> None:
    """Add these cells of a minute to those that are kept, and to those of their hours. The caller is `alone`.

    Args:
        known: Series that are in the database; those that this adds join them.
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


def read_cells(connection: Connection, span_s: int, since_s: int, until_s: int) -> Iterator[tuple[CellKey, Cell]]:
    """The cells of a length that begin from `since_s` on and before `until_s`, oldest first."""
    names = {
        row[0]: Series(*row[1:])
        for row in connection.execute(
            select(SeriesRow.id, SeriesRow.lane, SeriesRow.task, SeriesRow.context, SeriesRow.tenant, SeriesRow.model)
        )
    }
    wanted = (
        select(CellRow.at_s, CellRow.series, CellRow.cell)
        .where(CellRow.span_s == span_s, CellRow.at_s >= since_s, CellRow.at_s < until_s)
        .order_by(CellRow.at_s)
    )
    for at_s, series, cell in connection.execution_options(yield_per=2_000).execute(wanted):
        if series in names:  # else one that came after these were read
            yield CellKey(at_s, names[series]), decode(cell)


def purge_some(connection: Connection, most: int, *, span_s: int, before_s: float) -> int:
    """Delete some of the cells of a length that begin before then, the oldest → how many."""
    key = (CellRow.span_s, CellRow.at_s, CellRow.series)
    oldest = select(*key).where(CellRow.span_s == span_s, CellRow.at_s < before_s).order_by(CellRow.at_s).limit(most)
    return connection.execute(delete(CellRow).where(tuple_(*key).in_(oldest))).rowcount


def all_series(connection: Connection) -> Iterable[int]:
    """The numbers of the series that are kept."""
    return connection.scalars(select(SeriesRow.id))
