"""The tracking database, on real SQLite and real PostgreSQL."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, text

from ratelimit_worker.calls import MOST_CONTENT, Attempt, Category, Content, Outcome, PriceSource, Priority
from ratelimit_worker.errors import ConfigurationError, RowRefused, StoreUnavailable
from ratelimit_worker.stores import migrations
from ratelimit_worker.stores.tables import Base
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt
from tests.conftest import PostgresServer

FULL = Attempt(
    call_id="c-1",
    number=2,
    lane="openai:gpt-4o",
    task="tasks.llm.generate",
    outcome=Outcome.RETRIED,
    started_at=1_790_000_000.123456,
    finished_at=1_790_000_001.5,
    waited_s=0.25,
    queue="celery",
    context="código",
    tags=("a", "b"),
    tenant="team",
    priority=Priority.HIGH,
    provider="openai",
    model="gpt-4o",
    category=Category.RATE_LIMITED,
    status=429,
    request_id="req-1",
    retry_after_s=1.5,
    input_tokens=10,
    output_tokens=0,
    cached_input_tokens=7,
    cache_write_tokens=2,
    reasoning_tokens=0,
    audio_input_tokens=1,
    audio_output_tokens=0,
    image_input_tokens=1,
    image_output_tokens=0,
    service_tier="flex",
    first_byte_s=0.25,
    finish_reason="length",
    cost_nanousd=12_500,
    cached_saving_nanousd=17_500,
    price_source=PriceSource.OWN,
    lost_attempts=1,
    lost_nanousd=12_500,
    cause="too many requests",
    worker="w@host",
    content=Content(asked='{"args": ["é"]}', traceback="Traceback …"),
)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url, busy_timeout_s=0.1)
    yield engine
    engine.dispose()


@pytest.fixture
def tracker(engine: Engine) -> Tracker:
    return Tracker(engine)


def test_an_attempt_comes_back_as_it_went_in(tracker: Tracker) -> None:
    """Every field survives the database, times to the microsecond; attempts come in their order."""
    first = replace(FULL, number=1, category=None, status=None, cause=None, tags=(), outcome=Outcome.ANSWERED)
    assert tracker.record([FULL, first]) == 2
    assert tracker.attempts_of("c-1") == [first, FULL]
    assert tracker.attempts_of("unknown") == []


def test_attempts_with_and_without_a_value_in_one_batch(tracker: Tracker) -> None:
    """Each keeps its own, also the empty ones."""
    told = [attempt("a", tags=("x",), model="m"), attempt("b", status=503), attempt("c")]
    assert tracker.record(told) == 3
    assert [one for name in "abc" for one in tracker.attempts_of(name)] == told


def test_contents_are_bent_like_the_rest_and_go_with_their_attempt(tracker: Tracker) -> None:
    """NUL and half surrogate pairs become U+FFFD, texts are cut; told twice the first stays; a purge takes them."""
    odd = Content(asked="a\0b", answer="\ud800" + "x" * MOST_CONTENT)
    assert tracker.record([replace(attempt("a"), content=odd), attempt("b", finished_at=900.0)]) == 2
    assert tracker.record([replace(attempt("a"), content=Content(asked="again"))]) == 0
    (row,) = tracker.attempts_of("a")
    assert row.content == Content(asked="a\ufffdb", answer="\ufffd" + "x" * (MOST_CONTENT - 2) + "…")
    assert tracker.purge(500.0, now_s=1_000.0) == 1
    with tracker._transaction() as connection:
        assert connection.execute(text("SELECT count(*) FROM contents")).scalar_one() == 0
    assert len(tracker.attempts_of("b")) == 1


def test_the_same_outcome_twice_is_one_row(tracker: Tracker) -> None:
    """A redelivered outcome counts once: across batches, within one, and the first one stays."""
    assert tracker.record([attempt("a"), attempt("b")]) == 2
    assert tracker.record([replace(attempt("a"), lane="other"), attempt("c"), attempt("c")]) == 1
    assert [row.lane for row in tracker.attempts_of("a")] == ["lane"]


def test_an_empty_batch_needs_no_database(tmp_path: Path) -> None:
    """Nothing to record opens no connection."""
    assert Tracker(engine_for(f"sqlite:///{tmp_path}/x.db")).record([]) == 0
    assert not (tmp_path / "x.db").exists()


def test_odd_values_are_bent_and_arrive(tracker: Tracker) -> None:
    """NUL, half surrogate pairs, nan, numbers beyond 64 bits and long texts: every outcome gets its row."""
    odd = replace(
        FULL,
        lane="l" * 10_000,
        cause="a\0b\ud800c",
        tags=("\0", "\udfff", "ok"),
        waited_s=math.nan,
        finished_at=math.inf,
        started_at=-math.inf,
        retry_after_s=math.nan,
        input_tokens=10**30,
        status=-(10**12),
    )
    assert tracker.record([odd]) == 1
    (row,) = tracker.attempts_of("c-1")
    assert row.cause == "a\ufffdb\ufffdc"
    assert row.tags == ("\ufffd", "\ufffd", "ok")
    assert (row.waited_s, row.retry_after_s, row.started_at) == (0.0, None, 0.0)
    assert len(row.lane) < 1_000
    assert row.input_tokens == 2**63 - 1


def test_long_call_ids_stay_apart(tracker: Tracker) -> None:
    """Task ids are the user's: two long ones with a common beginning are two calls, found by their whole id."""
    one, two = "x" * 5_000 + "1", "x" * 5_000 + "2"
    assert tracker.record([attempt(one), attempt(two)]) == 2
    assert len(tracker.attempts_of(one)) == 1


def test_a_value_of_the_wrong_type_refuses_its_batch(tracker: Tracker) -> None:
    """Nothing of the batch is kept, and the error names no value."""
    bad = replace(attempt("bad"), started_at="secret")  # type: ignore[arg-type]
    with pytest.raises(RowRefused) as refused:
        tracker.record([attempt("good"), bad])
    assert "secret" not in str(refused.value)
    assert tracker.attempts_of("good") == []


def test_a_row_that_breaks_a_constraint_is_refused(tracker: Tracker, engine: Engine) -> None:
    """The database's own refusal is told apart from its being away."""
    tracker.record([attempt("a")])
    with engine.begin() as connection:
        connection.execute(text("CREATE UNIQUE INDEX just_one ON attempts (worker)"))
    with pytest.raises(RowRefused):
        tracker.record([attempt("b")])


def test_purge_deletes_what_is_old(tracker: Tracker) -> None:
    """Rows that finished before the bound go, in chunks; the others stay."""
    tracker.record([attempt(f"old-{i}", finished_at=100.0 + i / 1e5) for i in range(6_000)])
    tracker.record([attempt("young", finished_at=200.0)])
    assert tracker.purge(50.0, now_s=200.0) == 6_000
    assert tracker.purge(50.0, now_s=200.0) == 0
    assert len(tracker.attempts_of("young")) == 1
    assert tracker.purge(0.0) == 1
    with pytest.raises(ValueError, match="negative"):
        tracker.purge(-1.0)


def test_models_and_migrations_agree(engine: Engine) -> None:
    """A database at head is what tables.py says, and HEAD is the newest revision."""
    migrations.upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": migrations.VERSION_TABLE})
        assert compare_metadata(context, Base.metadata) == []
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [migrations.HEAD]


def test_an_upgrade_at_head_is_one_query(engine: Engine) -> None:
    """Every start of every worker asks, so it must cost next to nothing."""
    migrations.upgrade(engine)
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_: statements.append(statement))
    migrations.upgrade(engine)
    assert len(statements) == 1


def test_many_processes_upgrade_at_once(database_url: str) -> None:
    """Workers that start together on an empty database all come up."""
    code = (
        "import sys; from ratelimit_worker.stores.tracker import engine_for;"
        "from ratelimit_worker.stores.migrations import upgrade;"
        "engine = engine_for(sys.argv[1]); print('ready', flush=True); sys.stdin.readline(); upgrade(engine)"
    )
    starts = [
        subprocess.Popen(
            [sys.executable, "-c", code, database_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for start in starts:
        assert start.stdout is not None
        assert start.stdout.readline() == "ready\n"
    for start in starts:
        assert start.stdin is not None
        start.stdin.write("go\n")
        start.stdin.flush()
    assert [start.communicate(timeout=120) and start.returncode for start in starts] == [0, 0, 0, 0]
    assert Tracker(engine_for(database_url)).record([attempt()]) == 1


def test_a_newer_database_is_left_alone(engine: Engine, tracker: Tracker) -> None:
    """A worker of the version before says so in one line and writes nothing."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(ConfigurationError, match="revision '9999', newer than this version") as newer:
        tracker.record([attempt()])
    assert "\n" not in str(newer.value)
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM attempts")) == 0


def test_tables_of_another_program_are_left_alone(engine: Engine) -> None:
    """DATABASE_URL may name a team's own database."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE attempts (id INTEGER)"))
    with pytest.raises(ConfigurationError, match="tables of another program: attempts"):
        migrations.upgrade(engine)


def test_a_locked_sqlite_is_unavailable_until_it_is_free(tmp_path: Path) -> None:
    """Another writer holds the file: one clear error, nothing kept; afterwards it works again."""
    tracker = Tracker(engine_for(f"sqlite:///{tmp_path}/t.db", busy_timeout_s=0.05))
    tracker.record([attempt("a")])
    with sqlite3.connect(tmp_path / "t.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked"):
            tracker.record([attempt("b")])
        other.execute("ROLLBACK")
    assert tracker.record([attempt("a"), attempt("b")]) == 1


def test_a_full_disk_is_unavailable_until_there_is_room(tmp_path: Path) -> None:
    """SQLite's own "database or disk is full", by its page limit; a batch is kept whole or not at all."""
    engine = engine_for(f"sqlite:///{tmp_path}/t.db")
    tracker = Tracker(engine)
    tracker.record([attempt("a")])
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite makes of it the pages there are
    many = [attempt(f"m-{i}") for i in range(2_000)]
    with pytest.raises(StoreUnavailable, match="full"):
        tracker.record(many)
    assert tracker.record(many) == 2_000  # the limit went with its connection


def test_a_sqlite_file_that_was_replaced_is_taken_up(tmp_path: Path) -> None:
    """Somebody deletes the file while a worker runs: the tables are made anew."""
    path = tmp_path / "t.db"
    tracker = Tracker(engine_for(f"sqlite:///{path}"))
    tracker.record([attempt("a")])
    for part in tmp_path.glob("t.db*"):
        part.unlink()
    assert tracker.record([attempt("b")]) == 1
    assert path.exists()


@pytest.mark.postgres
def test_a_stopped_postgresql_is_unavailable_until_it_is_back(postgres_server: PostgresServer) -> None:
    """Stopped under a live connection, away for a while, started again: the same tracker goes on."""
    tracker = Tracker(engine_for(postgres_server.new_database()))
    tracker.record([attempt("a")])
    postgres_server.stop()
    try:
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as away:
                tracker.record([attempt("b")])
            assert "\n" not in str(away.value)
    finally:
        postgres_server.start()
    assert tracker.record([attempt("a"), attempt("b")]) == 1


def test_an_unreachable_database_names_no_credentials() -> None:
    """Neither user nor password of the URL is in the error."""
    tracker = Tracker(engine_for("postgres://alice:s3cret@127.0.0.1:1/tracking"))
    with pytest.raises(StoreUnavailable, match=r"tracking on 127\.0\.0\.1:1") as away:
        tracker.record([attempt()])
    assert "s3cret" not in str(away.value)
    assert "alice" not in str(away.value)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("mysql://alice:s3cret@host/db", "SQLite or PostgreSQL, not 'mysql'"),
        ("sqlite://", "SQLite in memory"),
        ("s3cret", "cannot be read"),
        ("postgresql://alice:s3cret@host:port/db", "cannot be read"),
        ("postgresql+nodriver://alice:s3cret@host/db", "driver 'nodriver': leave it out"),
    ],
)
def test_urls_that_cannot_be_used(url: str, says: str) -> None:
    """Each is refused in one line without its password."""
    with pytest.raises(ConfigurationError, match=says) as refused:
        engine_for(url)
    assert "s3cret" not in str(refused.value)


def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    """WAL, no fsync a commit, five seconds of patience, and its folder is made."""
    engine = engine_for(f"sqlite:///{tmp_path}/deep/er/t.db")
    with engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in PRAGMAS]
    assert pragmas == ["wal", 1, 5_000]


PRAGMAS = ("journal_mode", "synchronous", "busy_timeout")


@pytest.mark.postgres
def test_postgresql_keeps_times_with_their_zone(postgres_server: PostgresServer) -> None:
    """Whatever the session's zone, what is stored is the moment."""
    url = postgres_server.new_database()
    Tracker(engine_for(url)).record([FULL])
    with psycopg.connect(url, options="-c timezone=Asia/Tokyo") as connection:
        row = connection.execute("SELECT extract(epoch FROM started_at)::float8 FROM attempts").fetchone()
    assert row == (FULL.started_at,)
