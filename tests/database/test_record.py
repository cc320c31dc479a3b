"""From the outbox into the database, with real ones of both, through every way in which they go away."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from alembic import command
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import Engine, insert, inspect, text
from sqlalchemy.exc import IntegrityError

from ratelimit_worker.calls import Mode, ModeChange, Outcome
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.flow.duty.record import Recorder, pause_s, record_once
from ratelimit_worker.stores import migrations
from ratelimit_worker.stores.outbox import CLAIM_IDLE_MS, Outbox
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tables import AttemptRow
from ratelimit_worker.stores.tracker import Tracker, _row, engine_for
from tests.builders import attempt, attempts
from tests.conftest import PostgresServer, wait_for

pytestmark = pytest.mark.server

LANES = ("lane-0", "lane-1")


def rows(engine: Engine) -> int:
    """Rows in the database."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM attempts")) or 0


@pytest.fixture
def outbox(redis_client: redis.Redis) -> Outbox:
    return Outbox(redis_client)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url, busy_timeout_s=5.0)
    yield engine
    engine.dispose()


@pytest.fixture
def tracker(engine: Engine) -> Tracker:
    return Tracker(engine)


def test_a_batch_moves_from_the_outbox_into_the_database(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """Each call returns how many entries it is done with; 0 when none waits."""
    outbox.append(attempts(5))
    assert [record_once(outbox, tracker, max_count=3) for _ in range(3)] == [3, 2, 0]
    assert (rows(engine), outbox.backlog()) == (5, 0)


def test_the_same_outcome_twice_is_one_row(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """A redelivered call puts its outcome into the outbox again; the database has it once."""
    outbox.append([*attempts(3), *attempts(3), attempt("c-0", number=2, outcome=Outcome.RETRIED)])
    assert record_once(outbox, tracker) == 7
    assert (rows(engine), outbox.backlog()) == (4, 0)


def test_a_call_ends_once(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """A Redis with an old state runs again what had its answer, as the next attempt: the first end stands."""
    again = [attempt("c-0", number=2), attempt("c-1", number=2, outcome=Outcome.FAILED)]
    outbox.append([*attempts(2), again[0]])
    assert record_once(outbox, tracker) == 3
    outbox.append([*again, attempt("c-1", number=3, outcome=Outcome.RETRIED)])
    assert record_once(outbox, tracker) == 3
    assert (rows(engine), outbox.backlog(), outbox.bad_count()) == (3, 0, 0)
    assert [row.outcome for row in tracker.attempts_of("c-1")] == [Outcome.ANSWERED, Outcome.RETRIED]
    with engine.begin() as connection, pytest.raises(IntegrityError):  # whoever else writes there
        connection.execute(text("UPDATE attempts SET outcome = 'failed' WHERE call_id = 'c-1'"))


def test_a_call_that_is_made_anew_ends_anew(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """`run` sends a line again whose account had failed it: what it had ended with was an attempt."""
    outbox.append([attempt("c-0", outcome=Outcome.FAILED)])
    assert record_once(outbox, tracker) == 1
    anew = [attempt("c-0", number=2, outcome=Outcome.FAILED, anew=True), attempt("c-0", number=3, anew=True)]
    for rows_now in (anew[:1], anew, anew):
        outbox.append(rows_now)
        record_once(outbox, tracker)
    ended = [(row.number, row.outcome) for row in tracker.attempts_of("c-0")]
    assert ended == [(1, Outcome.RETRIED), (2, Outcome.RETRIED), (3, Outcome.ANSWERED)]


def test_ends_that_are_there_twice_are_one_after_the_upgrade(tracker: Tracker, engine: Engine) -> None:
    """What an older version has recorded stays: the later is an attempt that was repeated."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        command.downgrade(migrations.alembic_config(connection), "0003")
        kept = {column["name"] for column in inspect(connection).get_columns("attempts")}
        for number in (1, 2):
            row = {name: value for name, value in _row(attempt("c-0", number=number)).items() if name in kept}
            connection.execute(insert(AttemptRow), [row])
    migrations.upgrade(engine)
    assert [row.outcome for row in tracker.attempts_of("c-0")] == [Outcome.ANSWERED, Outcome.RETRIED]


def test_one_poison_row_holds_up_nobody(
    outbox: Outbox, tracker: Tracker, engine: Engine, redis_client: redis.Redis
) -> None:
    """The row that the database will never take goes aside; its whole batch besides it is recorded."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE UNIQUE INDEX refuses_the_second ON attempts (request_id)"))
    batch = attempts(100)
    batch[20] = replace(batch[20], request_id="same")
    batch[70] = replace(batch[70], request_id="same")
    outbox.append(batch)
    assert record_once(outbox, tracker) == 100
    assert (rows(engine), outbox.backlog(), outbox.bad_count()) == (99, 0, 1)


def test_garbage_in_the_outbox_holds_up_nobody(
    outbox: Outbox, tracker: Tracker, engine: Engine, redis_client: redis.Redis
) -> None:
    """Entries that are no attempts are set aside on the way."""
    redis_client.xadd("rlw:outbox", {"a": b"\xff"})
    outbox.append(attempts(2))
    assert record_once(outbox, tracker) == 2
    assert (rows(engine), outbox.backlog(), outbox.bad_count()) == (2, 0, 1)


def test_outcomes_beyond_the_bound_are_summed_up_and_never_dropped(
    tracker: Tracker, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away and the outbox nearly full: the oldest become sums, which it gets once when it is back."""
    monkeypatch.setattr("ratelimit_worker.stores.overflow.MOST_MINUTES", 3)
    outbox = Outbox(redis_client, max_len=40)
    away = Recorder(outbox, Tracker(engine_for("postgresql://me@127.0.0.1:1/none")), block_ms=0, max_count=5)
    told = [attempt(f"c-{n}", finished_at=6_000.0 + 60 * n, lane=f"lane-{n % 2}", context="x\ud800") for n in range(60)]
    for start in range(0, len(told), 20):
        outbox.append(told[start : start + 20])
        away.step()
        assert outbox.backlog() < 36
    outbox.append_mode_change(ModeChange(id="m", lane="a", from_mode=Mode.NORMAL, to_mode=Mode.HALT, at=1.0, cause="c"))
    kept = outbox.backlog() - 1
    sums = outbox.sums()
    assert sums is not None
    assert outbox.sums() == sums
    assert (tracker.add_sums(sums), tracker.add_sums(sums)) == (True, False)
    recorder = Recorder(outbox, tracker, block_ms=0)
    while outbox.backlog():
        recorder.step()
    assert outbox.sums() is None
    cells = list(Queries(tracker._engine).cells(0.0, 20_000.0, 60.0))
    assert sum(cell.outcomes["answered"] for _, cell in cells) == 60
    by_lane = {lane: sum(c.outcomes["answered"] for key, c in cells if key.series.lane == lane) for lane in LANES}
    assert by_lane == dict.fromkeys(LANES, 30)
    assert kept == sum(len(tracker.attempts_of(one.call_id)) for one in told) < 36
    assert not redis_client.exists("rlw:outbox:sums", "rlw:outbox:sums:taken")


KILLED_BEFORE_COMMIT = """
import os, signal, sys, redis
from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.tracker import Tracker, engine_for

class Dies(Outbox):
    def commit(self, entry_ids):
        os.kill(os.getpid(), signal.SIGKILL)

record_once(Dies(redis.Redis(unix_socket_path=sys.argv[1])), Tracker(engine_for(sys.argv[2])))
"""


def test_a_recorder_killed_between_record_and_commit(
    redis_server: str, redis_client: redis.Redis, outbox: Outbox, engine: Engine, database_url: str
) -> None:
    """The next one takes its entries over, and no row is there twice."""
    outbox.append(attempts(50))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_COMMIT, redis_server, database_url], check=False, timeout=120
    )
    assert killed.returncode == -9
    assert (rows(engine), outbox.backlog()) == (50, 50)
    outbox.append([attempt("after")])
    successor = Outbox(redis_client, claim_idle_ms=0)
    while record_once(successor, Tracker(engine)):
        pass
    assert (rows(engine), outbox.backlog()) == (51, 0)


KILLED_WHILE_RECORDING = """
import sys, time, redis
from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.stores.outbox import Outbox

class Slow:
    def record(self, rows):
        print("recording", flush=True)
        time.sleep(1000)

record_once(Outbox(redis.Redis(unix_socket_path=sys.argv[1])), Slow())
"""


def test_rows_of_a_killed_recorder_come_within_seconds(
    redis_server: str, redis_client: redis.Redis, outbox: Outbox, engine: Engine
) -> None:
    """While it lives nobody takes them, however long its database takes; 3 s after its death its successor does."""
    outbox.append(attempts(50))
    slow = subprocess.Popen([sys.executable, "-c", KILLED_WHILE_RECORDING, redis_server], stdout=subprocess.PIPE)
    try:
        assert slow.stdout is not None
        assert slow.stdout.readline() == b"recording\n"
        idle_ms = [0]

        def renewed() -> bool:
            (held,) = redis_client.xpending_range("rlw:outbox", "recorder", "-", "+", 1)
            idle_ms.append(int(held["time_since_delivered"]))
            return idle_ms[-1] < idle_ms[-2]

        wait_for(renewed, what="it renews what it holds")
        wait_for(renewed, what="it renews it again")
    finally:
        slow.kill()
        slow.wait(timeout=120)
    successor = Recorder(outbox, Tracker(engine), block_ms=100)

    def taken_over() -> bool:
        successor.step()
        return outbox.backlog() == 0

    wait_for(taken_over, what="its successor records them")
    assert rows(engine) == 50
    assert CLAIM_IDLE_MS == 3_000


def test_two_recorders_at_once(redis_server: str, outbox: Outbox, database_url: str, engine: Engine) -> None:
    """Nothing elects a single one: each row is there once, whoever records it, with outcomes doubled as well."""
    stop = threading.Event()
    clients = [redis.Redis(unix_socket_path=redis_server) for _ in range(2)]
    recorders = [
        Recorder(Outbox(client), Tracker(engine_for(database_url)), max_count=37, block_ms=20, linger_s=0.0)
        for client in clients
    ]
    threads = [threading.Thread(target=recorder.run, args=(stop,)) for recorder in recorders]
    for thread in threads:
        thread.start()
    batch = attempts(2_000)
    for start in range(0, 2_000, 100):
        outbox.append(batch[start : start + 100])
        outbox.append(batch[start : start + 100][::-1])  # the other order, in which transactions might deadlock
    wait_for(lambda: outbox.backlog() == 0, timeout_s=120.0)
    stop.set()
    for thread in threads:
        thread.join(timeout=120)
    assert rows(engine) == 2_000
    for client in clients:
        client.close()


def test_a_locked_sqlite_and_back(outbox: Outbox, tmp_path: Path) -> None:
    """While another program holds the file nothing is lost; afterwards every row arrives once."""
    engine = engine_for(f"sqlite:///{tmp_path}/t.db", busy_timeout_s=0.05)
    recorder = Recorder(outbox, Tracker(engine), block_ms=0)
    outbox.append(attempts(10))
    recorder.step()
    with sqlite3.connect(tmp_path / "t.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        outbox.append(attempts(20))
        assert [recorder.step() >= 0.5 for _ in range(3)] == [True] * 3
        assert outbox.backlog() == 20
        other.execute("ROLLBACK")
    recorder.step()
    assert (rows(engine), outbox.backlog()) == (20, 0)


@pytest.mark.postgres
def test_postgresql_stopped_and_back(outbox: Outbox, redis_server: str, postgres_server: PostgresServer) -> None:
    """A running recorder outlives the outage by itself; every row arrives once."""
    engine = engine_for(postgres_server.new_database())
    stop = threading.Event()
    with redis.Redis(unix_socket_path=redis_server) as client:
        recorder = Recorder(Outbox(client), Tracker(engine), max_count=10, block_ms=20, linger_s=0.0)
        thread = threading.Thread(target=recorder.run, args=(stop,))
        thread.start()
        outbox.append(attempts(50))
        wait_for(lambda: outbox.backlog() == 0)
        postgres_server.stop()
        try:
            outbox.append(attempts(100))
            wait_for(lambda: recorder.failures > 0)
            assert outbox.backlog() == 100
        finally:
            postgres_server.start()
        wait_for(lambda: outbox.backlog() == 0, timeout_s=120.0)
        stop.set()
        thread.join(timeout=120)
    assert rows(engine) == 100


def test_a_database_that_comes_up_late(outbox: Outbox, tmp_path: Path) -> None:
    """Its tables are made when it is there, without a restart."""
    place = tmp_path / "place"
    engine = engine_for(f"sqlite:///{place}/t.db")
    place.rmdir()
    tracker = Tracker(engine)
    outbox.append(attempts(3))
    with pytest.raises(StoreUnavailable):
        record_once(outbox, tracker)
    place.mkdir()
    assert record_once(outbox, tracker) == 3
    assert rows(engine) == 3


def test_a_newer_database_keeps_the_outcomes_waiting(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """An old worker during a deploy leaves the entries to a new one."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '9999'"))
    outbox.append(attempts(3))
    with pytest.raises(ConfigurationError):
        record_once(outbox, tracker)
    assert len(outbox.read(10)) == 3


def test_each_cause_of_an_outage_is_logged_once(
    outbox: Outbox, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Hours of outage fill no log; what is wrong stands in the line, and the end of it is logged too."""
    engine = engine_for(f"sqlite:///{tmp_path}/place/t.db")
    (tmp_path / "place").rmdir()
    recorder = Recorder(outbox, Tracker(engine), block_ms=0)
    outbox.append(attempts(1))
    caplog.set_level("INFO", logger="ratelimit_worker")
    for _ in range(10):
        recorder.step()
    (tmp_path / "place").write_text("no folder")
    for _ in range(10):
        recorder.step()
    first, second = caplog.messages
    assert first.startswith("recorder.away cause=StoreUnavailable: database ")
    assert second.startswith("recorder.away cause=StoreUnavailable: database ")
    assert first != second
    (tmp_path / "place").unlink()
    (tmp_path / "place").mkdir()
    recorder.step()
    assert caplog.messages[2:] == ["recorder.back"]
    (tmp_path / "place").rename(tmp_path / "elsewhere")
    (tmp_path / "place").write_text("no folder")
    outbox.append(attempts(2))
    recorder.step()
    assert caplog.messages[-1].startswith("recorder.away cause=")  # another outage


def test_an_absent_redis_is_outlived_too(tmp_path: Path) -> None:
    """The recorder waits for it as for the database, and stops when told."""
    recorder = Recorder(
        Outbox(redis.Redis(unix_socket_path="/nonexistent", retry=Retry(NoBackoff(), 0))),
        Tracker(engine_for(f"sqlite:///{tmp_path}/t.db")),
    )
    assert recorder.step() >= 0.5
    stop = threading.Event()
    stop.set()
    recorder.run(stop)


def test_stopping_records_what_waits(outbox: Outbox, tracker: Tracker, engine: Engine) -> None:
    """A clean end leaves an empty outbox."""
    outbox.append(attempts(25))
    stop = threading.Event()
    stop.set()
    Recorder(outbox, tracker, max_count=10).run(stop)
    assert (rows(engine), outbox.backlog()) == (25, 0)


def test_small_batches_linger_and_full_ones_do_not(outbox: Outbox, tracker: Tracker) -> None:
    """A busy system writes few large transactions; a backlog is worked off without a pause."""
    recorder = Recorder(outbox, tracker, max_count=10, block_ms=0, linger_s=0.2)
    outbox.append(attempts(15))
    assert [recorder.step(), recorder.step()] == [0.0, 0.2]


@pytest.mark.parametrize(
    ("failures", "jitter", "expected_s"),
    [(1, 0.0, 0.5), (1, 0.99, 0.5), (2, 0.0, 0.5), (4, 0.5, 3.0), (7, 0.0, 15.0), (10_000, 1.0, 30.0)],
)
def test_the_pause_grows_within_its_bounds(failures: int, jitter: float, expected_s: float) -> None:
    """From 0.5 to 30 seconds, however long the outage lasts."""
    assert pause_s(failures, lambda: jitter) == pytest.approx(expected_s, rel=0.01)


def test_failures_count_from_one() -> None:
    """No pause belongs to no failure."""
    with pytest.raises(ValueError, match="from 1"):
        pause_s(0, lambda: 0.0)
