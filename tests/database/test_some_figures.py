"""`analytics` and `stats` of some calls alone, and of a time that is named."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from ratelimit_worker.calls import Outcome
from ratelimit_worker.cli.analytics import analytics
from ratelimit_worker.cli.only import MOMENT
from ratelimit_worker.cli.stats import stats
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt


@pytest.fixture
def now_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """A database with calls of two lanes, functions and tenants, an hour apart; Redis is away → when it was made."""
    now_s = time.time()
    url = f"sqlite:///{tmp_path}/tracking.db"
    monkeypatch.setenv("MAISD_DATABASE_URL", url)
    monkeypatch.setenv("MAISD_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("MAISD_STATE_DIR", str(tmp_path))
    Tracker(engine_for(url)).record(
        [
            attempt("1", lane="a", task="f", tenant="x", context="", finished_at=now_s - 10_800.0),
            attempt("2", lane="a", task="g", tenant="y", context="c", finished_at=now_s - 7_200.0),
            attempt("3", lane="b", task="f", tenant="x", context="c", finished_at=now_s - 3_600.0),
            attempt("4", 1, Outcome.FAILED, lane="b", task="f", tenant="y", context="", finished_at=now_s - 60.0),
        ]
    )
    return now_s


def ran(command: click.Command, *words: str, code: int = 0) -> Any:
    done = CliRunner().invoke(command, words)
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if done.stdout.startswith("{") else done.output


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        ((), 4),
        (("--lane", "a"), 2),
        (("--function", "f"), 3),
        (("--tenant", "x", "--lane", "b"), 1),
        (("--context", ""), 2),
        (("--lane", "nobody"), 0),
        (("--since", "2h30m"), 3),
        (("--since", "2h30m", "--until", "90m"), 1),
        (("--since", "2020-01-01", "--until", "90m", "--lane", "a"), 2),
    ],
)
def test_a_report_of_some(now_s: float, words: tuple[str, ...], calls: int) -> None:
    report = ran(analytics, *words)
    assert report["total"]["calls"] == calls
    assert report["until_s"] <= time.time()
    if words in ((), ("--context", "")):  # it begins with the first attempt, not a day ago
        assert report["since_s"] == pytest.approx((now_s - 10_800.0) // 60 * 60, abs=60)


def test_figures_of_some(now_s: float) -> None:
    """69: Redis is away, and what the database has is told."""
    found = ran(stats, "--window", "24h", "--format", "json", "--tenant", "y", code=69)
    assert (found["total"]["calls"], found["total"]["failed"]) == (2, 1)
    assert found["only"] == {"lane": None, "task": None, "context": None, "tenant": "y"}


@pytest.mark.parametrize("words", [("--since", "1h", "--until", "2h"), ("--since", "soon"), ("--until", "2026-13-01")])
def test_a_time_that_is_none(words: tuple[str, ...]) -> None:
    assert "Error: " in ran(analytics, *words, code=2)


def test_moments() -> None:
    """So long ago, or a date: in UTC where no zone is named."""
    assert MOMENT.convert("1h30m", None, None) == pytest.approx(time.time() - 5_400.0, abs=30.0)
    assert MOMENT.convert("1970-01-02", None, None) == 86_400.0
    assert MOMENT.convert("1970-01-01T01:00+01:00", None, None) == 0.0
