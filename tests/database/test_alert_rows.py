"""Alerts in the tracking database: one row each, as it was last; what comes late or twice changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.tracker import Tracker
from tests.conftest import PostgresServer

T0 = 1_790_000_000.0


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    if request.param == "sqlite":
        return Tracker(engine_for(f"sqlite:///{tmp_path}/t.db"))
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return Tracker(engine_for(server.new_database()))


def alert(number: int = 1, **more: object) -> Alert:
    """One that opened so many minutes after T0."""
    made = Alert(
        id=f"a{number}",
        kind=Kind.NO_WORKER,
        lane="gpt",
        since_s=T0,
        seen_s=T0,
        cause="calls wait",
        numbers={"waiting": 3.0},
        opened_s=T0 + 60 * number,
    )
    return replace(made, **more)


def test_one_row_each_as_it_was_last(tracker: Tracker) -> None:
    """Opened, taken in hand, closed; in whatever order these are told, and however often."""
    opened = alert()
    acked = alert(acked_by="ana", acked_s=T0 + 70)
    closed = alert(acked_by="ana", acked_s=T0 + 70, closed_s=T0 + 90, ended="a worker came")
    tracker.record_alerts([opened])
    (found,) = tracker.alerts()
    assert (found.opened_s, found.closed_s, found.numbers, found.open) == (T0 + 60, None, {"waiting": 3.0}, True)
    for told in (acked, closed, opened, acked, closed):
        tracker.record_alerts([told])
    (found,) = tracker.alerts()
    assert (found.closed_s, found.ended, found.acked_by) == (T0 + 90, "a worker came", "ana")
    assert tracker.alerts(only_open=True) == []


def test_those_that_were_open_at_some_time_since(tracker: Tracker) -> None:
    """The newest first; by kind and lane."""
    tracker.record_alerts(
        [
            alert(1, closed_s=T0 + 100),
            alert(2),
            alert(3, closed_s=T0 + 900, kind=Kind.HALT),
            alert(4, lane="other"),
        ]
    )
    assert [one.id for one in tracker.alerts()] == ["a4", "a3", "a2", "a1"]
    assert [one.id for one in tracker.alerts(since_s=T0 + 200)] == ["a4", "a3", "a2"]
    assert [one.id for one in tracker.alerts(kinds=[Kind.HALT])] == ["a3"]
    assert [one.id for one in tracker.alerts(lane="other")] == ["a4"]
    assert [one.id for one in tracker.alerts(only_open=True, limit=1)] == ["a4"]


def test_past_ones_go_with_their_retention_and_open_ones_stay(tracker: Tracker) -> None:
    """However long they have been open."""
    tracker.record_alerts([alert(1, closed_s=T0 + 100), alert(2)])
    tracker.purge(60.0, T0 + 10_000)
    assert [one.id for one in tracker.alerts()] == ["a2"]


def test_what_no_store_takes_is_bent(tracker: Tracker) -> None:
    """NUL, half characters, no numbers."""
    odd = alert(1, cause="a\x00b", lane="l\ud800", numbers={"x": float("nan"), "y": 1.0})
    tracker.record_alerts([odd])
    (found,) = tracker.alerts()
    assert (found.cause, found.lane, found.numbers) == ("a\ufffdb", "l\ufffd", {"y": 1.0})


def test_one_that_has_not_opened_has_no_row(tracker: Tracker) -> None:
    """It only waits whether it will."""
    tracker.record_alerts([alert(1, opened_s=None, id="")])
    assert tracker.alerts() == []
