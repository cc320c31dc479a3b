"""The figures of `status` without SQLAlchemy: the same as the queries', or none where these must look."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis
from sqlalchemy import text

from ratelimit_worker.calls import Category, Outcome
from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.last_minute import last_minute
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.revision import HEAD, VERSION_TABLE
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import clean_environment
from tests.database.test_queries import NOW, STORY, attempt

ROWS = [*STORY, attempt("quota", Outcome.FAILED, category=Category.QUOTA_EXHAUSTED, lane="日本", ago_s=30.5)]


@pytest.mark.parametrize(
    ("since_s", "until_s"), [(NOW - 61.0, NOW), (NOW - 60.0, NOW), (NOW - 61.0, NOW - 60.0), (NOW - 30.5, NOW + 2.0)]
)
def test_it_says_what_the_queries_say(database_url: str, since_s: float, until_s: float) -> None:
    """Also at the ends of the window: what ended at its first moment counts, what ended at its last does not."""
    engine = engine_for(database_url)
    Tracker(engine).record(ROWS)
    told = last_minute(database_url, since_s, until_s)
    assert told == Queries(engine).recent(since_s, until_s)
    if (since_s, until_s) == (NOW - 61.0, NOW):
        assert told == {"a": Recent(6, 0), "b": Recent(4, 2), "日本": Recent(1, 0)}
    engine.dispose()


def test_another_revision_is_left_to_the_queries(database_url: str) -> None:
    """Which bring an old one to this version, and refuse a newer one."""
    engine = engine_for(database_url)
    assert last_minute(database_url, 0.0, NOW) is None, "there are no tables yet"
    Tracker(engine).record(ROWS)
    assert last_minute(database_url, NOW - 61.0, NOW) is not None
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999' WHERE version_num = '{HEAD}'"))
    assert last_minute(database_url, NOW - 61.0, NOW) is None
    engine.dispose()


def test_what_is_no_database_is_left_to_the_queries(tmp_path: Path) -> None:
    """Nothing is made, and a lock is not waited for."""
    missing, other, locked = (tmp_path / name for name in ("missing.sqlite3", "text", "locked.sqlite3"))
    assert last_minute(f"sqlite:///{missing}", 0.0, NOW) is None
    assert not missing.exists()
    other.write_text("no database, and longer than its first page would have to be")
    assert last_minute(f"sqlite:///{other}", 0.0, NOW) is None
    engine = engine_for(f"sqlite:///{locked}")
    Tracker(engine).record(ROWS)
    engine.dispose()
    with sqlite3.connect(locked, isolation_level=None) as alone:
        alone.execute("PRAGMA locking_mode=EXCLUSIVE")
        alone.execute("BEGIN EXCLUSIVE")
        assert last_minute(f"sqlite:///{locked}", 0.0, NOW) is None
    alone.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:x.sqlite3?mode=ro&uri=true",
        "sqlite:////tmp/a%20b.sqlite3",
        "mysql://me:hunter2@localhost/db",
        "postgresql://me:hunter2@127.0.0.1:1/none",
        "postgresql://me:hunter2@127.0.0.1:1/none?no_such_option=1",
        "nonsense",
    ],
)
def test_an_unusual_address_is_left_to_the_queries(url: str) -> None:
    """Which know all forms, and say what is wrong with one, without its password."""
    assert last_minute(url, 0.0, NOW) is None


def test_a_server_that_takes_no_connection_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queries would wait as long again; it is named without the password."""
    monkeypatch.setattr("ratelimit_worker.stores.last_minute.CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(StoreUnavailable) as away:
            last_minute(f"postgresql://me:hunter2@127.0.0.1:{port}/none", 0.0, NOW)
    assert str(away.value) == f"database none on 127.0.0.1:{port}: no connection within 2 s"


@pytest.mark.server
def test_status_loads_no_more_than_it_needs(database_url: str, redis_server: str, redis_client: Redis) -> None:
    """Neither SQLAlchemy nor the law of paces, Celery or rich: together they take longer than all else it does."""
    engine = engine_for(database_url)
    Tracker(engine).record(ROWS)
    engine.dispose()
    environment = clean_environment(MAISD_REDIS_URL=f"unix://{redis_server}", MAISD_DATABASE_URL=database_url)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ratelimit_worker", "status"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "no lane is known yet" in done.stdout
    assert {"redis", "ratelimit_worker.reports.tables"} <= loaded
    assert loaded & {"sqlalchemy", "alembic", "celery", "kombu", "rich", "ratelimit_worker.policy.pace"} == set()
    assert [line for line in done.stderr.splitlines() if not line.startswith("import time:")] == [], "no note"
