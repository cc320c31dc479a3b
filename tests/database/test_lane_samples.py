"""What lanes were allowed stands beside what they used, minute by minute, and goes after 32 days."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from ratelimit_worker.calls import Category, Mode, Outcome
from ratelimit_worker.contracts.lane_sample import LaneMinute, LaneSample
from ratelimit_worker.policy.lane_sample import KEPT_S
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests import builders

NOW = 1_800_000_000


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = engine_for(database_url)
    yield engine
    engine.dispose()


def sample(lane: str, minute: int, allowed_per_min: float | None = 60.0, mode: Mode = Mode.NORMAL) -> LaneSample:
    """A lane as it stood in some minute from `NOW` on."""
    return LaneSample(
        lane=lane, at_s=NOW + 60 * minute, allowed_per_min=allowed_per_min, waiting=7, running=2, mode=mode
    )


def test_minutes_hold_what_was_allowed_and_what_was_used(engine: Engine) -> None:
    tracker, queries = Tracker(engine), Queries(engine, lambda: float(NOW))
    emergency, unbound = sample("a", -3, 6.0, Mode.EMERGENCY), sample("a", -1, None)
    tracker.keep_samples([emergency, unbound, sample("b", -3)])
    tracker.record(
        [
            builders.attempt("1", lane="a", finished_at=NOW - 175.0),
            builders.attempt(
                "2", lane="a", finished_at=NOW - 170.0, outcome=Outcome.SNOOZED, category=Category.RATE_LIMITED
            ),
            builders.attempt("3", lane="a", finished_at=NOW - 90.0),
            builders.attempt("4", lane="b", finished_at=NOW - 90.0),
        ]
    )
    assert queries.lane_minutes("a", NOW - 170, NOW) == [
        LaneMinute(lane="a", at_s=NOW - 180, attempts=2, refused=1, sample=emergency),
        LaneMinute(lane="a", at_s=NOW - 120, attempts=1),
        LaneMinute(lane="a", at_s=NOW - 60, sample=unbound),
    ]
    assert queries.lane_samples(NOW - 600, NOW) == [emergency, unbound, sample("b", -3)]
    assert queries.lanes_used(NOW - 120) == {"a", "b"}
    assert queries.lanes_used(NOW - 60) == frozenset()


def test_the_first_row_of_a_lane_and_minute_stays(engine: Engine) -> None:
    tracker = Tracker(engine)
    tracker.keep_samples([sample("a", -1)])
    tracker.keep_samples([sample("a", -1, 1.0), sample("a\x00", -1)])
    assert [one.lane for one in Queries(engine, lambda: float(NOW)).lane_samples(0, NOW)] == ["a", "a�"]
    assert Queries(engine, lambda: float(NOW)).lane_samples(0, NOW, "a") == [sample("a", -1)]


def test_samples_go_after_thirty_days(engine: Engine) -> None:
    tracker = Tracker(engine)
    old = sample("a", -int(KEPT_S // 60) - 1)
    tracker.keep_samples([old, sample("a", -int(KEPT_S // 60)), sample("a", -1)])
    tracker.purge(7 * 86_400.0, float(NOW))
    assert [one.at_s for one in Queries(engine, lambda: float(NOW)).lane_samples(0, NOW)] == [
        NOW - int(KEPT_S),
        NOW - 60,
    ]
