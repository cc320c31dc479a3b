"""Whose midnight is it? Days of a provider's zone, as Python writes them down and as the scripts count them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import redis
from click.testing import CliRunner

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.lane import LaneState
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.policy import day
from ratelimit_worker.stores import keys
from tests.builders import entry
from tests.lua.cluster import T0_US, Cluster

PACIFIC = "America/Los_Angeles"


def at(text: str) -> float:
    """Seconds since the epoch of a UTC time."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


STEPS = day.steps(PACIFIC, int(at("2026-09-01") // day.DAY_S))


@pytest.mark.parametrize(
    ("now", "ends"),
    [
        ("2026-09-10T06:59:59", "2026-09-10T07:00"),  # summer: 7 hours behind
        ("2026-09-10T07:00:00", "2026-09-11T07:00"),
        ("2026-12-10T07:30:00", "2026-12-10T08:00"),  # winter: 8
        ("2026-11-01T07:30:00", "2026-11-02T08:00"),  # the day of 25 hours, before and after its clocks change
        ("2026-11-01T12:00:00", "2026-11-02T08:00"),
        ("2027-03-14T08:30:00", "2027-03-15T07:00"),  # and that of 23
        ("2027-03-14T20:00:00", "2027-03-15T07:00"),
        ("2036-08-01T12:00:00", "2036-08-02T07:00"),  # ten years on
    ],
)
def test_a_day_ends_at_midnight_of_its_zone(now: str, ends: str) -> None:
    """Also on the two days in the year that are longer or shorter."""
    number = day.number(STEPS, at(now))
    assert day.end_s(STEPS, number) == at(ends)
    assert day.number(STEPS, at(ends) - 1) == number
    assert day.number(STEPS, at(ends)) == number + 1
    local = datetime.fromtimestamp(at(now), ZoneInfo(PACIFIC))
    assert number == (local.date() - datetime(1970, 1, 1).date()).days


@pytest.mark.parametrize(
    ("name", "hours"),
    [("UTC", 0), ("Etc/UTC", 0), ("-08:00", -8), ("+05:30", 5.5), ("UTC+8", 8), ("GMT-3", -3), ("Asia/Shanghai", 8)],
)
def test_zones_by_name_and_by_distance(name: str, hours: float) -> None:
    """UTC has no steps: it costs nothing."""
    steps = day.steps(name, 20_000)
    assert day.offset_s(steps, 20_100 * day.DAY_S) == hours * 3600
    assert (steps == ()) == (hours == 0)


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "America", "+99:00", "PSTX"])
def test_no_such_zone(name: str) -> None:
    """One line that says what would be one; in the settings with lane and value."""
    with pytest.raises(ValueError, match="America/Los_Angeles"):
        day.zone_of(name)
    with pytest.raises(ConfigurationError, match="lane 'a': day_zone="):
        read_settings({"MAISD_LANES": json.dumps({"a": {"rpd": 5, "day_zone": name}})})


def test_a_zone_is_told_in_the_settings() -> None:
    """It goes into the lane's hash beside the quotas, and comes back out of it."""
    settings = read_settings({"MAISD_LANES": json.dumps({"a": {"rpd": 5, "day_zone": PACIFIC}})})
    limits = settings.lanes["a"]
    assert limits == LaneLimits(rpd=5, day_zone=PACIFIC)
    told = LaneState.of(limit_fields(limits)).told
    assert told.limits == limits
    for days in (1, 200, 1_000):
        in_days = datetime.now(UTC) + timedelta(days=days)
        offset = in_days.astimezone(ZoneInfo(PACIFIC)).utcoffset()
        assert timedelta(seconds=day.offset_s(told.day_steps, in_days.timestamp())) == offset


@pytest.mark.server
@pytest.mark.parametrize("hours", [-8, 9])
def test_a_quota_holds_for_the_day_of_its_zone(redis_client: redis.Redis, hours: int) -> None:
    """What is over it waits until midnight there, and what was used is counted under that day."""
    cluster, now_s, offset_s = Cluster(redis_client), T0_US // US, hours * 3600
    bounds: dict[str, Any] = {"rpd": 2, "zone": "x", "steps": [0, 0, now_s - 50 * 86_400, offset_s]}
    cluster.lanes.set_points("gpt", {"p1": 1000, "d1": 1000, "bounds": json.dumps(bounds)})
    cluster.worker(slots=64)
    for ref in "abc":
        cluster.lanes.enqueue(entry(ref, "gpt", deadline_in_s=10 * day.DAY_S))
    assert cluster.ready() == ["a", "b"]
    midnight_s = day.end_s(bounds["steps"], day.number(bounds["steps"], now_s))
    (planned,) = cluster.client.zrange("rlw:next", 0, -1, withscores=True)
    assert planned == (b"gpt", midnight_s * US)
    assert cluster.client.hget(keys.day("gpt", now_s, offset_s), "requests") == b"2"
    cluster.advance(midnight_s - now_s - 1)
    cluster.worker(slots=64)
    cluster.pump()
    assert cluster.ready() == ["a", "b"]
    cluster.advance(1)
    cluster.pump()
    assert cluster.ready() == ["a", "b", "c"]


def test_the_command_names_a_zone_that_is_none() -> None:
    """Exit code 2, before anything is asked of Redis."""
    done = CliRunner().invoke(
        main,
        ["limits", "set", "a", "--rpd", "5", "--day-zone", "Mars/Olympus"],
        env={"MAISD_REDIS_URL": "redis://127.0.0.1:1"},
    )
    assert done.exit_code == 2
    assert "Mars/Olympus" in done.stderr
