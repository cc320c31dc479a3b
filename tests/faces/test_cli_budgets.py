"""`budgets set` and `limits set` with dollars: what was spent before counts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ratelimit_worker.cli import main
from ratelimit_worker.contracts.budget import NANO
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import attempt
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.server


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Fleet]:
    """Redis and a tracking database; no worker."""
    with fleet(MAISD_DATABASE_URL=f"sqlite:///{tmp_path}/tracking.sqlite3") as made:
        yield made


def invoke(*arguments: str) -> Result:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def spent(name: str) -> Any:
    """Dollars of a budget's periods, as `budgets` shows them."""
    found = json.loads(invoke("budgets", "--format", "json").stdout)
    (one,) = [budget for budget in found if budget["budget"] == name]
    return [period["spent_usd"] for period in one["periods"]]


def test_a_new_budget_begins_with_what_was_spent(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tenant, a lane and a parent lane; without the database from now on, with a note."""
    tracker = Tracker(engine_for(made.env["MAISD_DATABASE_URL"]))
    tracker.open()
    now_s = time.time()
    rows = [("a", "big", 3), ("b", "small", 1)]
    tracker.record(
        [
            replace(attempt(name, lane=lane, tenant="t", finished_at=now_s, took_s=0.0), cost_nanousd=dollars * NANO)
            for name, lane, dollars in rows
        ]
    )
    invoke("limits", "set", "all-models", "--usd-per-day", "50")
    assert spent("lane:all-models") == [0]
    invoke("limits", "set", "small", "--parent", "all-models")
    invoke("limits", "set", "all-models", "--usd-per-day", "0", "--tpm", "1000")
    for arguments in (
        ("limits", "set", "big", "--usd-per-day", "2", "--usd-per-month", "10"),
        ("limits", "set", "all-models", "--usd-per-day", "50"),
        ("budgets", "set", "tenant:t", "--usd-per-month", "100"),
    ):
        assert invoke(*arguments).stderr == ""
    found = [spent(name) for name in ("lane:big", "lane:all-models", "tenant:t")]
    assert found == [[3, 3], [1], [4]]
    with monkeypatch.context() as away:
        away.setenv("MAISD_DATABASE_URL", "postgresql://nobody@127.0.0.1:1/none")
        assert "counts from now on" in invoke("budgets", "set", "all", "--usd-per-day", "5").stderr
        assert spent("all") == [0]
        assert "no budget counts, is unknown" in invoke("budgets").stderr
    assert invoke("budgets").stderr == ""
    tracker.record([attempt("c", model="mine", finished_at=now_s, took_s=0.0, input_tokens=7)])
    assert "calls of 1 model without a price count as nothing (in the last 24 hours: mine)" in invoke("budgets").stderr
