"""Writes attempts and mode changes into the tracking database, each once, even if it is delivered several times."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, bindparam, delete, select, text, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import InstrumentedAttribute

from ratelimit_worker.calls import ENDS, Attempt, Content, ModeChange, Outcome
from ratelimit_worker.contracts import reuse
from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.contracts.rollup import Cells, NamedSums
from ratelimit_worker.errors import RowRefused, StoreUnavailable
from ratelimit_worker.policy import lane_sample, rollup
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.stores import alert_rows, rollups
from ratelimit_worker.stores.database import engine_for, ours
from ratelimit_worker.stores.migrations import upgrade
from ratelimit_worker.stores.reuse import NAMED
from ratelimit_worker.stores.rollups import COUNTED, Counted, counted
from ratelimit_worker.stores.sqlite_file import SqliteFile, file_of, is_damaged, read_only
from ratelimit_worker.stores.sqlite_log import FIRST_CHUNK, HOLD_S, bound_log, next_chunk
from ratelimit_worker.stores.storable import call_key, lane_key, storable, storable_change
from ratelimit_worker.stores.tables import (
    NOT_ROLLED_UP,
    AlertRow,
    AttemptRow,
    Base,
    BatchRow,
    ContentRow,
    LaneSampleRow,
    ModeChangeRow,
)

log = logging.getLogger(__name__)

__all__ = ["Tracker", "engine_for"]

#: Rows that one transaction of a purge deletes in PostgreSQL; in SQLite the number is adapted (`next_chunk`).
_PURGE_CHUNK = 5_000
_PURGED_UNSUMMED = 500  #: attempts that a purge adds to the roll-ups in one transaction, before it deletes them
_IDS = 5_000  #: calls that one statement names
_KEY = (AttemptRow.call_id, AttemptRow.number)
_CONTENT_KEY = (ContentRow.call_id, ContentRow.number)
Moment = TypeVar("Moment", datetime, datetime | None, int)
_CONTENT = (ContentRow.asked, ContentRow.answer, ContentRow.traceback)


class Tracker:
    """Attempts and mode changes of an engine from `engine_for`. Threads may share one; a forked child needs its own.

    The tables are made or upgraded before the first use and again after the database was away, so that neither a
    database that comes up late nor one that comes back empty needs a restart. The same is done if the SQLite file was
    deleted, replaced or truncated; rows that were being written at that time are refused, and written again later.

    Args:
        tell: Called with a sentence when a file with rows was lost.
    """

    def __init__(self, engine: Engine, tell: Callable[[str], None] = lambda _: None) -> None:
        self._engine, self._tell = engine, tell
        self._prepared = False
        self._series: set[int] = set()  #: series that are known to be in the database
        path = file_of(engine)
        self._file = None if path is None else SqliteFile(path)

    def open(self) -> None:
        """Bring the database to the newest schema, which is otherwise done with the first rows.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only.
            ConfigurationError: It is newer than this version, or its tables are not ours.
        """
        upgrade(self._engine)

    def record(self, rows: Sequence[Attempt | ModeChange]) -> int:
        """Insert the rows in one transaction and return how many were new, without contents.

        Rows whose key (call_id and number, or the change's id) exists already are skipped, and so is a second end of a
        call. Values are changed by `storable`.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was stored.
            ConfigurationError: The database is newer than this version; nothing was stored.
            RowRefused: At least one row can never be stored; nothing was stored.
        """
        if not rows:
            return 0
        try:
            clean = [storable(row) for row in rows if isinstance(row, Attempt)]
            clean.sort(key=lambda one: (one.call_id, one.number))
            contents = [_content_row(attempt, attempt.content) for attempt in clean if attempt.content is not None]
            changes = [_change_row(storable_change(row)) for row in rows if isinstance(row, ModeChange)]
        except (ValueError, TypeError, OverflowError) as error:
            raise RowRefused(f"a row has a {type(error).__name__} among its values") from error
        # Always in the same order, so that two recorders with the same rows wait for each other and never deadlock.
        changes.sort(key=lambda row: str(row["id"]))
        with self._transaction(writes=True) as connection:
            rollups.alone(connection)
            cells: Cells = {}
            new = _insert_new(connection, AttemptRow, _KEY, _joined(connection, clean, cells))
            self._add(connection, cells)
            _insert_new(connection, ContentRow, _CONTENT_KEY, contents)
            return new + _insert_new(connection, ModeChangeRow, (ModeChangeRow.id,), changes)

    def roll_up(self, most: int = 2_000) -> int:
        """Add attempts to the roll-ups that are not in them yet, newest first, whole calls at a time → how many.

        Such attempts are from before there were roll-ups, or were written by an older version.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; these attempts are added another time.
        """
        newest = (
            select(AttemptRow.call_id).where(text(NOT_ROLLED_UP)).order_by(AttemptRow.finished_at.desc()).limit(most)
        )
        with self._transaction(writes=True) as connection:
            rollups.alone(connection)
            known, cells = _known(connection, set(connection.scalars(newest))), Cells()
            for attempts in known.values():
                rollup.add_call(cells, [one for one in attempts if one.rolled_up], -1)
                rollup.add_call(cells, attempts)
            self._add(connection, cells)
            return _now_rolled_up(connection, [one for attempts in known.values() for one in attempts])

    def add_sums(self, sums: NamedSums) -> bool:
        """Add sums of outcomes that have no rows to the roll-ups, once for each name → whether they were new.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was added.
        """
        with self._transaction(writes=True) as connection:
            rollups.alone(connection)
            named = [{"name": sums.name, "at": datetime.now(UTC)}]
            new = _insert_new(connection, BatchRow, (BatchRow.name,), named) == 1
            if new:
                self._add(connection, sums.cells)
            return new

    def keep_samples(self, samples: Sequence[LaneSample]) -> None:
        """Keep how lanes stood, one row a lane and minute; where there is one, it stays.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was kept.
            ConfigurationError: The database is newer than this version; nothing was kept.
        """
        rows = [{**msgspec.structs.asdict(one), "lane": lane_key(one.lane)} for one in samples]
        with self._transaction(writes=True) as connection:
            _insert_new(connection, LaneSampleRow, (LaneSampleRow.lane, LaneSampleRow.at_s), rows)

    def _add(self, connection: Connection, cells: Cells) -> None:
        if not self._series:
            self._series.update(rollups.all_series(connection))
        rollups.add_cells(connection, cells, self._series)

    def attempts_of(self, call_id: str) -> list[Attempt]:
        """The recorded attempts of a call, first to last; empty where none is known.

        Raises:
            StoreUnavailable: The database is away or locked.
        """
        same = (ContentRow.call_id == AttemptRow.call_id) & (ContentRow.number == AttemptRow.number)
        wanted = (
            select(AttemptRow.__table__, *_CONTENT)
            .outerjoin(ContentRow, same)
            .where(AttemptRow.call_id == call_key(call_id))
            .order_by(AttemptRow.number)
        )
        with self._transaction() as connection:
            return [_attempt(row._asdict()) for row in connection.execute(wanted)]

    def mode_changes(self, lane: str | None = None, since: float | None = None, limit: int = 100) -> list[ModeChange]:
        """The newest mode changes, newest first.

        Args:
            lane: Only changes of this lane and of all lanes together; None: of every lane.
            since: Only changes from this time on, seconds since the epoch.
            limit: Most changes.
        Raises:
            StoreUnavailable: The database is away or locked.
        """
        wanted = select(ModeChangeRow.__table__).order_by(ModeChangeRow.at.desc(), ModeChangeRow.id).limit(limit)
        if lane is not None:
            wanted = wanted.where(ModeChangeRow.lane.in_((lane_key(lane), ALL)))
        if since is not None:
            wanted = wanted.where(ModeChangeRow.at >= datetime.fromtimestamp(since, UTC))
        with self._transaction() as connection:
            return [_change(row._asdict()) for row in connection.execute(wanted)]

    def record_alerts(self, alerts: Sequence[Alert]) -> None:
        """Keep alerts as they are now, one row each; one that has closed stays so.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was kept.
            RowRefused: One of them can never be kept; nothing was.
        """
        with self._transaction(writes=True) as connection:
            alert_rows.put(connection, alerts)

    def alerts(
        self,
        *,
        since_s: float | None = None,
        kinds: Sequence[Kind] = (),
        lane: str | None = None,
        only_open: bool = False,
        limit: int = 100,
    ) -> list[Alert]:
        """The newest alerts, newest first.

        Args:
            since_s: Only those that were open at some time from then on, seconds since the epoch.
            kinds: Only of these; none: of all.
            lane: Only this lane's; None: of every lane, and of the deployment.
            limit: At most so many.
        Raises:
            StoreUnavailable: The database is away or locked.
        """
        wanted = alert_rows.wanted(since_s=since_s, kinds=kinds, lane=lane, only_open=only_open, limit=limit)
        with self._transaction() as connection:
            found = [alert_rows.alert_of(row) for row in connection.execute(wanted)]
        return [one for one in found if one is not None]

    def purge(self, older_than_s: float, now_s: float | None = None) -> int:
        """Delete attempts, contents, mode changes and past alerts of more than `older_than_s` seconds before `now_s`.

        Returns how many attempts and mode changes these were.

        Their sums stay in the roll-ups: minutes for 32 days, hours for two years.

        Args:
            now_s: Seconds since the epoch; None: this machine's clock.
        Raises:
            ValueError: `older_than_s` is negative.
            StoreUnavailable: The database is away or locked; what was deleted until then stays deleted.
        """
        if older_than_s < 0:
            raise ValueError(f"older_than_s must not be negative, got {older_than_s}")
        now_s = time.time() if now_s is None else now_s
        while self.roll_up(_PURGED_UNSUMMED):
            time.sleep(HOLD_S)
        before = datetime.fromtimestamp(now_s, UTC) - timedelta(seconds=older_than_s)
        for span_s, kept_s in rollup.KEPT_S.items():
            self._in_chunks(partial(rollups.purge_some, span_s=span_s, before_s=now_s - kept_s))
        long_ago = datetime.fromtimestamp(now_s - max(rollup.KEPT_S.values()), UTC)
        self._purge(BatchRow, (BatchRow.name,), BatchRow.at, long_ago)
        told_no_more = datetime.fromtimestamp(now_s - 2 * reuse.KEPT_S, UTC)
        self._purge(BatchRow, (BatchRow.name,), BatchRow.at, told_no_more, BatchRow.name.startswith(NAMED))
        sample_key = (LaneSampleRow.lane, LaneSampleRow.at_s)
        self._purge(LaneSampleRow, sample_key, LaneSampleRow.at_s, int(now_s - lane_sample.KEPT_S))
        self._purge(AlertRow, (AlertRow.id,), AlertRow.closed_at, before)
        self._purge(ContentRow, _CONTENT_KEY, ContentRow.finished_at, before)
        attempts = self._purge(AttemptRow, _KEY, AttemptRow.finished_at, before)
        return attempts + self._purge(ModeChangeRow, (ModeChangeRow.id,), ModeChangeRow.at, before)

    def _purge(
        self,
        table: type[Base],
        key: Sequence[InstrumentedAttribute[Any]],
        at: InstrumentedAttribute[Moment],
        before: Moment,
        which: ColumnElement[bool] | None = None,
    ) -> int:
        """Delete rows of before then, all of them or `which` → how many."""
        rows = at < before if which is None else (at < before) & which

        def oldest(connection: Connection, most: int) -> int:
            wanted = select(*key).where(rows).order_by(at).limit(most)
            return connection.execute(delete(table).where(tuple_(*key).in_(wanted))).rowcount

        return self._in_chunks(oldest)

    def _in_chunks(self, delete_some: Callable[[Connection, int], int]) -> int:
        """Delete in transactions that are short enough for other writers → how many."""
        purged, chunk = 0, _PURGE_CHUNK if self._file is None else FIRST_CHUNK
        while True:
            with self._transaction() as connection:
                if self._file is not None:
                    connection.exec_driver_sql("BEGIN IMMEDIATE")  # first, so that waiting for others is not measured
                begun_s = time.monotonic()
                deleted = delete_some(connection, chunk)
            took_s = time.monotonic() - begun_s
            purged += deleted
            if self._file is not None:
                self._bound_log(self._file)
            if deleted < chunk:
                return purged
            if self._file is not None:
                chunk = next_chunk(chunk, took_s)
                # SQLite has no queue of writers: without a pause this one would be the first again
                time.sleep(max(HOLD_S, took_s))

    def _bound_log(self, file: SqliteFile) -> None:
        try:
            bound_log(self._engine, file.path)
        except SQLAlchemyError as error:
            raise ours(error, self._engine) from error

    @contextmanager
    def _transaction(self, writes: bool = False) -> Iterator[Connection]:
        if self._file is not None:
            self._look(self._file, writes)
        if not self._prepared:
            self._prepare()
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            self._series.clear()  # series added in this transaction were rolled back
            known = ours(error, self._engine)
            if self._file is not None and is_damaged(error):
                self._begin_anew(self._file, "damaged")
            elif isinstance(known, StoreUnavailable):
                # It may be another file or server when it is back: reconnect, and check its tables again.
                self._close()
            raise known from error
        if writes and self._file is not None and (why := self._file.change()):
            raise StoreUnavailable(f"database {self._file.path} was {why} while rows were written; they are kept")

    def _look(self, file: SqliteFile, writes: bool) -> None:
        """Check whether the file is still the one that was prepared, and writable.

        Raises:
            StoreUnavailable: It is read-only.
        """
        try:
            why, closed = file.change(), writes and read_only(file.path)
        except OSError as error:
            raise StoreUnavailable(f"database {file.path}: {error.strerror}") from error
        if why:
            self._begin_anew(file, why)
        elif closed:  # an open handle could still write, but the next start could not
            raise StoreUnavailable(f"database {file.path} is read-only: make it writable (chmod u+w)")

    def _prepare(self) -> None:
        try:
            upgrade(self._engine)
        except StoreUnavailable as error:
            if self._file is not None and error.__cause__ is not None and is_damaged(error.__cause__):
                self._begin_anew(self._file, "damaged")
            raise
        self._prepared = True
        if self._file is not None:
            self._file.remember()

    def _begin_anew(self, file: SqliteFile, why: str) -> None:
        """The rows of this file are lost, or were moved elsewhere: go on with a new file, and report it."""
        if not file.known:  # damaged when it was opened first: it may be anybody's
            return
        try:
            done = file.clear_away(why)
            self._close()
            file.make()
        except OSError as error:
            self._close()
            raise StoreUnavailable(
                f"database {file.path} was {why} and cannot be made anew: {error.strerror}"
            ) from error
        file.forget()
        said = f"database {file.path} was {why}: {done}; outcomes from now on are in the file that is there now"
        log.error("database.lost what=%s", said)
        self._tell(said)

    def _close(self) -> None:
        self._prepared = False
        self._series.clear()
        self._engine.dispose()
        if self._file is not None:
            self._file.closed()


#: Attempts at the calls `ids`, ready to be executed: composing a statement costs processor time for each id.
_OF_CALLS = (
    select(*COUNTED)
    .where(AttemptRow.call_id.in_(bindparam("ids", expanding=True)))
    .order_by(AttemptRow.call_id, AttemptRow.number)
)


def _known(connection: Connection, call_ids: Iterable[str]) -> dict[str, list[Counted]]:
    """The stored attempts at these calls, by call and in the order of their numbers."""
    ids = sorted(call_ids)
    known: dict[str, list[Counted]] = {call_id: [] for call_id in ids}
    for start in range(0, len(ids), _IDS):
        for row in connection.execute(_OF_CALLS, {"ids": ids[start : start + _IDS]}):
            known[row.call_id].append(counted(row))
    return known


def _joined(connection: Connection, attempts: Sequence[Attempt], cells: Cells) -> list[dict[str, Any]]:
    """Rows of the attempts that are new and not a second end of their call; changes of sums are added to `cells`.

    If a call was made anew, its former end becomes a retried attempt, here and in the database.

    Args:
        attempts: Sorted by call and number.
    """
    calls: dict[str, list[Attempt]] = {}
    for one in attempts:
        calls.setdefault(one.call_id, []).append(one)
    known = _known(connection, calls)
    rows = []
    for call_id, told in calls.items():
        there = known[call_id]
        anew = max((one.number for one in told if one.anew), default=0)
        held = [_repeated(one, anew) for one in there]
        for before, after in zip(there, held, strict=True):
            if before is not after:
                here = (AttemptRow.call_id == call_id) & (AttemptRow.number == after.number)
                connection.execute(update(AttemptRow).where(here).values(outcome=after.outcome))
        fresh = _fresh([one if one.number >= anew else _ended_before(one) for one in told], held)
        if there and (fresh or held != there):
            rollup.add_call(cells, [one for one in there if one.rolled_up], -1)
            _now_rolled_up(connection, there)
        together: list[rollup.Recorded] = [*held, *fresh] if fresh or held != there else []
        rollup.add_call(cells, sorted(together, key=lambda one: one.number))
        rows += [_row(one) for one in fresh]
    return rows


def _now_rolled_up(connection: Connection, attempts: Iterable[Counted]) -> int:
    """Mark attempts as being in the roll-ups → how many were not marked before."""
    new = [{"of_call": one.call_id, "of_number": one.number} for one in attempts if not one.rolled_up]
    if new:
        here = (AttemptRow.call_id == bindparam("of_call")) & (AttemptRow.number == bindparam("of_number"))
        connection.execute(update(AttemptRow).where(here).values(rolled_up=1), new)
    return len(new)


def _repeated(one: Counted, anew: int) -> Counted:
    """Make the former end of a call that was made anew, as attempt `anew`, a retried attempt."""
    return one._replace(outcome=Outcome.RETRIED) if one.number < anew and one.outcome in ENDS else one


def _ended_before(one: Attempt) -> Attempt:
    return replace(one, outcome=Outcome.RETRIED) if one.outcome in ENDS else one


def _fresh(told: Iterable[Attempt], held: Iterable[Counted]) -> list[Attempt]:
    """Without stored attempts, repetitions, and further ends of a call that has an end."""
    numbers, over, fresh = set[int](), False, []
    for known in held:
        numbers.add(known.number)
        over = over or known.outcome in ENDS
    for one in told:
        ends = one.outcome in ENDS
        if one.number not in numbers and not (ends and over):
            fresh.append(one)
            numbers.add(one.number)
            over = over or ends
    return fresh


def _insert_new(
    connection: Connection, table: type[Base], key: Sequence[InstrumentedAttribute[Any]], rows: Sequence[dict[str, Any]]
) -> int:
    """Insert rows whose key does not exist yet → how many.

    Columns that are NULL in all of them are left out: each value of a row costs processor time.
    """
    if not rows:
        return 0
    used = {name for row in rows for name, value in row.items() if value is not None}
    rows = [{name: row[name] for name in row if name in used} for row in rows]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).on_conflict_do_nothing(index_elements=[column.key for column in key])
    return connection.execution_options(preserve_rowcount=True).execute(statement, rows).rowcount


def _row(attempt: Attempt) -> dict[str, Any]:
    return {
        "call_id": attempt.call_id,
        "number": attempt.number,
        "lane": attempt.lane,
        "task": attempt.task,
        "outcome": attempt.outcome,
        "started_at": datetime.fromtimestamp(attempt.started_at, UTC),
        "finished_at": datetime.fromtimestamp(attempt.finished_at, UTC),
        "latency_s": attempt.latency_s,
        "waited_s": attempt.waited_s,
        "queue": attempt.queue,
        "context": attempt.context,
        "tags": list(attempt.tags),
        "tenant": attempt.tenant,
        "priority": attempt.priority,
        "provider": attempt.provider,
        "model": attempt.model,
        "category": attempt.category,
        "status": attempt.status,
        "request_id": attempt.request_id,
        "retry_after_s": attempt.retry_after_s,
        "input_tokens": attempt.input_tokens,
        "output_tokens": attempt.output_tokens,
        "cause": attempt.cause,
        "worker": attempt.worker,
        "cached_input_tokens": attempt.cached_input_tokens,
        "cache_write_tokens": attempt.cache_write_tokens,
        "reasoning_tokens": attempt.reasoning_tokens,
        "audio_input_tokens": attempt.audio_input_tokens,
        "audio_output_tokens": attempt.audio_output_tokens,
        "image_input_tokens": attempt.image_input_tokens,
        "image_output_tokens": attempt.image_output_tokens,
        "service_tier": attempt.service_tier,
        "first_byte_s": attempt.first_byte_s,
        "finish_reason": attempt.finish_reason,
        "cost_nanousd": attempt.cost_nanousd,
        "cached_saving_nanousd": attempt.cached_saving_nanousd,
        "price_source": attempt.price_source,
        "lost_attempts": attempt.lost_attempts or None,
        "lost_nanousd": attempt.lost_nanousd,
        "rolled_up": 1,
    }


def _content_row(attempt: Attempt, content: Content) -> dict[str, Any]:
    return {
        "call_id": attempt.call_id,
        "number": attempt.number,
        "finished_at": datetime.fromtimestamp(attempt.finished_at, UTC),
        "asked": content.asked,
        "answer": content.answer,
        "traceback": content.traceback,
    }


def _attempt(row: dict[str, Any]) -> Attempt:
    del row["rolled_up"], row["latency_s"]  # the second follows from the two times
    content = {column.key: row.pop(column.key) for column in _CONTENT}
    row["content"] = None if content["asked"] is None else Content(**content)
    row["started_at"] = row["started_at"].timestamp()
    row["finished_at"] = row["finished_at"].timestamp()
    row["tags"] = tuple(row["tags"])
    row["lost_attempts"] = row["lost_attempts"] or 0
    return Attempt(**row)


def _change_row(change: ModeChange) -> dict[str, Any]:
    return {
        "id": change.id,
        "lane": change.lane,
        "from_mode": change.from_mode,
        "to_mode": change.to_mode,
        "at": datetime.fromtimestamp(change.at, UTC),
        "cause": change.cause,
        "numbers": dict(change.numbers),
        "who": change.who,
        "reason": change.reason,
        "until": None if change.until is None else datetime.fromtimestamp(change.until, UTC),
    }


def _change(row: dict[str, Any]) -> ModeChange:
    row["at"] = row["at"].timestamp()
    row["until"] = None if row["until"] is None else row["until"].timestamp()
    return ModeChange(**row)
