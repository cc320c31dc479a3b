"""A clean-up keeps the write-ahead log of SQLite small, whoever reads and writes beside it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores import sqlite_log, tracker
from ratelimit_worker.stores.sqlite_log import (
    FIRST_CHUNK,
    HOLD_S,
    LEAST_CHUNK,
    MOST_CHUNK,
    begin_anew,
    bound_log,
    log_size,
    next_chunk,
)
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt

KB = 1 << 10
KEPT, MOST = 64 * KB, 256 * KB
CHUNK = 20  #: rows, which change a page of the table and of each index at most
ONE_CHUNK = 400 * KB  #: what such a transaction may write, with a database as small as these
ROWS = 1_500


@pytest.fixture
def old_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Tracker, Path]]:
    """A database of rows that are all past their retention, and small bounds for its log."""
    path = tmp_path / "tracking.db"
    monkeypatch.setattr(sqlite_log, "KEPT", KEPT)
    monkeypatch.setattr(sqlite_log, "MOST", MOST)
    monkeypatch.setattr(tracker, "FIRST_CHUNK", CHUNK)
    monkeypatch.setattr(tracker, "next_chunk", lambda rows, took_s: CHUNK)
    engine = engine_for(f"sqlite:///{path}")
    made = Tracker(engine)
    made.record([attempt(f"old-{number * 7919 % ROWS}", finished_at=100.0) for number in range(ROWS)])
    assert begin_anew(engine)
    assert log_size(path) == 0
    yield made, path
    engine.dispose()


def test_the_log_begins_anew_beside_who_writes_and_reads_all_the_time(
    old_rows: tuple[Tracker, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither ever waits for the other, so without help no checkpoint ends and the log only grows."""
    made, path = old_rows
    sizes = list[int]()
    ends = threading.Event()

    def look(engine: Engine, file: Path) -> None:
        bound_log(engine, file)
        sizes.append(log_size(file))

    def write() -> None:
        other, number = Tracker(engine_for(f"sqlite:///{path}")), 0
        while not ends.wait(0.002):
            other.record([attempt(f"young-{number}", finished_at=1e9)])
            number += 1

    def read() -> None:
        with sqlite3.connect(path, timeout=10.0, isolation_level=None) as connection:
            while not ends.wait(0.001):
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM attempts").fetchone()
                ends.wait(0.005)
                connection.execute("COMMIT")

    monkeypatch.setattr(tracker, "bound_log", look)
    others = [threading.Thread(target=write), threading.Thread(target=read)]
    for other in others:
        other.start()
    try:
        assert made.purge(1_000.0, now_s=10_000.0) == ROWS
    finally:
        ends.set()
        for other in others:
            other.join()
    assert len(sizes) > ROWS // CHUNK
    assert max(sizes) <= MOST + ONE_CHUNK


def test_nothing_more_is_deleted_while_somebody_reads_on_and_on(
    old_rows: tuple[Tracker, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log stops growing, the command says why, and what is left goes the next time."""
    made, path = old_rows
    monkeypatch.setattr(sqlite_log, "PATIENCE_S", 0.0)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM attempts").fetchone() == (ROWS,)
    with pytest.raises(StoreUnavailable, match=r"write-ahead log has \d+ MB .* reading in it"):
        made.purge(1_000.0, now_s=10_000.0)
    assert MOST < log_size(path) <= MOST + ONE_CHUNK
    reader.execute("COMMIT")
    reader.close()
    left = made.purge(1_000.0, now_s=10_000.0)
    assert 0 < left < ROWS
    assert log_size(path) <= MOST


def test_a_chunk_is_as_large_as_others_can_wait_for() -> None:
    """It follows from how long the last one took."""
    assert next_chunk(100, HOLD_S * 2) == 50
    assert next_chunk(100, HOLD_S / 2) == 100
    assert next_chunk(100, HOLD_S / 10) == 200
    assert next_chunk(LEAST_CHUNK, 10.0) == LEAST_CHUNK
    assert next_chunk(MOST_CHUNK, 0.0) == MOST_CHUNK
    assert LEAST_CHUNK <= FIRST_CHUNK <= MOST_CHUNK
