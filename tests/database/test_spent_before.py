"""What was spent before a budget is set, by the record of attempts, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from ratelimit_worker.calls import Attempt
from ratelimit_worker.contracts.budget import Budget
from ratelimit_worker.flow.lane.budget import begins, spent_before
from ratelimit_worker.policy import day
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests import builders

NOW = datetime.fromisoformat("2026-11-29T14:37:21+00:00").timestamp()
HOUR_S = 3_600.0
ZONES = ("", "Asia/Kolkata", "-08:00", "America/New_York", "+14:00")  # of which one changed its clock this month


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    made = engine_for(database_url)
    yield made
    made.dispose()


def record() -> list[Attempt]:
    """One every 37 minutes of six weeks, each with another cost; two lanes, two tenants, two contexts."""
    found = []
    for number in range(1_640):
        made = builders.attempt(
            f"c{number}",
            finished_at=NOW - 1 - number * 2_220,
            lane=f"lane-{number % 2}",
            tenant=f"team-{number // 2 % 2}",
            context=f"kind-{number // 4 % 2}",
        )
        one = replace(made, cost_nanousd=None if number % 9 == 0 else 1_000 + number)
        found.append(replace(one, lost_attempts=1, lost_nanousd=5) if number % 50 == 0 else one)
    return found


def by_calendar(attempts: list[Attempt], zone: str, now_s: float = NOW) -> tuple[int, int]:
    """The sums of the day and month in which an instant lies, by Python's calendar."""
    of = day.zone_of(zone or "+00:00")
    now, sums = datetime.fromtimestamp(now_s, of), [0, 0]
    for one in attempts:
        at = datetime.fromtimestamp(one.finished_at, of)
        cost = (one.cost_nanousd or 0) + (one.lost_nanousd or 0)
        sums[0] += cost * (at.date() == now.date())
        sums[1] += cost * ((at.year, at.month) == (now.year, now.month))
    return sums[0], sums[1]


def test_what_was_spent_in_this_day_and_month_is_known_to_the_minute(engine: Engine) -> None:
    """Of all, a lane, a lane and those whose parent it is, a tenant, a context; wherever the day ends."""
    attempts, tracker, queries = record(), Tracker(engine), Queries(engine, lambda: NOW)
    for first in range(0, len(attempts), 500):
        tracker.record(attempts[first : first + 500])
    wanted = {
        ("all", ()): attempts,
        ("lane:lane-1", ()): [one for one in attempts if one.lane == "lane-1"],
        ("lane:lane-1", ("lane-0",)): attempts,
        ("lane:none", ()): [],
        ("tenant:team-0", ()): [one for one in attempts if one.tenant == "team-0"],
        ("context:kind-1", ()): [one for one in attempts if one.context == "kind-1"],
    }
    for zone in ZONES:
        for (name, children), those in wanted.items() if zone == "" else [(("all", ()), attempts)]:
            found = spent_before(queries, name, zone, NOW, children)
            assert (found.day_nanousd, found.month_nanousd) == by_calendar(those, zone), (zone, name)
            assert found.month == 2026 * 12 + 10
    assert by_calendar(attempts, "")[1] > by_calendar(attempts, "")[0] > 0


@pytest.mark.parametrize("zone", ZONES)
def test_the_longest_month_is_known_to_the_minute_until_its_last(engine: Engine, zone: str) -> None:
    """Its first minutes are 31 days old then, and zones such as India's begin their days between two hours."""
    last_s = (datetime(2027, 1, 1, tzinfo=day.zone_of(zone or "+00:00")) - timedelta(minutes=1)).timestamp()
    begin_s = (datetime(2026, 12, 1, tzinfo=day.zone_of(zone or "+00:00"))).timestamp()
    ends = [begin_s - 3_599, begin_s - 1_801, begin_s - 1, begin_s, begin_s + 1_799, begin_s + 3_599, last_s - 1]
    attempts = [
        replace(builders.attempt(f"c{number}", finished_at=at), cost_nanousd=10**number)
        for number, at in enumerate(ends)
    ]
    tracker = Tracker(engine)
    tracker.record(attempts)
    tracker.purge(7 * 86_400.0, now_s=last_s)
    found = spent_before(Queries(engine, lambda: last_s), "all", zone, last_s)
    assert (found.day_nanousd, found.month_nanousd) == by_calendar(attempts, zone, last_s) == (10**6, 1_111_000)


@pytest.mark.parametrize(
    ("before", "after", "does"),
    [
        (Budget(), Budget(usd_per_day=1), True),
        (Budget(usd_per_day=1), Budget(usd_per_day=2), False),
        (Budget(usd_per_day=1), Budget(usd_per_day=1, usd_per_month=9), False),  # both are counted from the first on
        (Budget(usd_per_day=1), Budget(usd_per_day=1, zone="-08:00"), True),
        (Budget(usd_per_day=1), Budget(), False),
        (Budget(), Budget(zone="-08:00"), False),
    ],
)
def test_a_budget_begins_where_none_was_or_with_another_zone(before: Budget, after: Budget, does: bool) -> None:
    """What counts already goes on counting."""
    assert begins(before, after) is does
