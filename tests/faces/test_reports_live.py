"""How lanes and calls stand, on a real server: where a call is, what it waits for, and limits that a person changes."""

from __future__ import annotations

import math
import time
from typing import Any

import msgspec
import pytest
import redis

from ratelimit_worker.calls import Attempt, Category, LaneLimits, Mode, Outcome
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.lane import Write
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.duty.clean import NAME, clean_once
from ratelimit_worker.flow.lane.limit import Change, changed, set_limits
from ratelimit_worker.flow.lane.pin import pin
from ratelimit_worker.flow.lane.tune import ControlPlane, Tuner
from ratelimit_worker.reports.explain import Explanation, Where, explain, explanation_text
from ratelimit_worker.reports.live import ClusterState, LaneState, cluster_state
from ratelimit_worker.reports.tables import lanes_table, status_table
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.leases import Leases
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import entry
from tests.conftest import wait_for
from tests.lua.cluster import said

pytestmark = pytest.mark.server


@pytest.fixture
def lanes(redis_client: redis.Redis) -> Lanes:
    """A lane at 60/min with one permit, and a worker of two slots."""
    made = Lanes(redis_client)
    made.set_points("gpt", {"rpm": 60.0, "p1": 1.0, "d1": 1.0})
    made.beat("w1", 2, 600.0, ["q"], 30.0, [])
    return made


@pytest.fixture
def control(redis_client: redis.Redis) -> ControlPlane:
    return ControlPlane(lanes=Lanes(redis_client), pins=Pins(redis_client), mode_log=Outbox(redis_client))


def state_of(client: redis.Redis, recent: dict[str, Recent] | None = None) -> ClusterState:
    return cluster_state(Live(client).now(), recent)


def the_lane(client: redis.Redis) -> LaneState:
    return state_of(client).lanes[0]


def find(client: redis.Redis, call_id: str, *attempts: Attempt) -> Explanation:
    return explain(Live(client), attempts, call_id)


def test_a_lane_as_it_stands(lanes: Lanes, redis_client: redis.Redis) -> None:
    """Mode, rate, queue, age, workers and slots."""
    for ref in ("one", "two", "three"):
        lanes.enqueue(entry(ref))
    lanes.enqueue(entry("later", due_in_s=60.0))
    state = state_of(redis_client, {"gpt": Recent(7, 2)})
    lane = state.lanes[0]
    assert (lane.lane, lane.mode, lane.pinned, lane.away) == ("gpt", Mode.NORMAL, False, False)
    assert (lane.allowed_per_min, lane.limits.rpm, lane.used_per_min, lane.refused_last_min) == (60.0, 60.0, 7, 2)
    assert (lane.waiting, lane.due_later, lane.ready, lane.running) == (2, 1, 1, 0)
    assert lane.oldest_age_s is not None
    assert 0 <= lane.oldest_age_s < 60, "seconds, not µs, and since it came"
    assert (lane.workers, lane.slots, state.workers, state.slots) == (1, 2, 1, 2)
    assert lane.sent == 1
    table = status_table(state, 80)
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "gpt" in lanes_table(state)


def test_a_lane_without_a_pace_is_not_bound(lanes: Lanes, redis_client: redis.Redis) -> None:
    """Neither a rate nor levels."""
    lanes.set_points("gpt", limit_fields(LaneLimits(unlimited=True)))
    lane = the_lane(redis_client)
    assert (lane.allowed_per_min, dict(lane.levels), lane.limits.unlimited) == (None, {}, True)


def test_a_pinned_lane_says_so(lanes: Lanes, redis_client: redis.Redis, control: ControlPlane) -> None:
    """HALT shuts the gate; EMERGENCY allows ten a minute."""
    pin(control, Mode.HALT, who="me")
    lane = the_lane(redis_client)
    assert (lane.mode, lane.pinned, lane.gate_s, lane.allowed_per_min) == (Mode.HALT, True, math.inf, 0.0)
    pin(control, Mode.EMERGENCY, who="me")
    lane = the_lane(redis_client)
    assert (lane.mode, lane.pinned, lane.away, lane.allowed_per_min) == (Mode.EMERGENCY, True, False, pytest.approx(10))


def test_where_a_call_is_from_its_beginning_to_its_end(lanes: Lanes, redis_client: redis.Redis) -> None:
    """Ready, running, settled, and then only its attempts know."""
    lanes.enqueue(entry("one"))
    assert find(redis_client, "one").where is Where.READY
    tag = Live(redis_client).call("one")[0].record.tag
    lanes.begin(tag, 30.0)
    lanes.beat("w1", 2, 600.0, ["q"], 30.0, [tag])
    running = find(redis_client, "one")
    assert (running.where, running.standings[0].worker, running.standings[0].number) == (Where.RUNNING, "w1", 1)
    lanes.settle(Settlement(tag=tag, lane="gpt", answer=b"answer", lesson=said("good")))
    assert find(redis_client, "one").where is Where.SETTLED
    lanes.free([tag])
    assert find(redis_client, "one").where is Where.UNKNOWN
    done = Attempt(
        call_id="one",
        number=1,
        lane="gpt",
        task="t",
        outcome=Outcome.FAILED,
        started_at=1.0,
        finished_at=2.5,
        waited_s=0.25,
        category=Category.SERVER_ERROR,
        status=500,
        cause="HTTP 500",
    )
    ended = find(redis_client, "one", done)
    assert ended.where is Where.FAILED
    assert "waited 250 ms, took 1.5 s: failed, server_error, HTTP 500" in explanation_text(ended)


def test_a_waiting_call_has_a_place_and_a_time(lanes: Lanes, redis_client: redis.Redis) -> None:
    """The fourth call at 60/min has two before it, of which the first starts in a second: it does in three."""
    began_s = time.monotonic()
    for ref in ("one", "two", "three", "four"):
        lanes.enqueue(entry(ref))
    found = find(redis_client, "four").standings[0]
    passed_s = time.monotonic() - began_s
    assert (found.where, found.place) == (Where.WAITING, 2)
    assert found.starts_in_s is not None
    assert 2.9 - passed_s <= found.starts_in_s <= 3.1
    assert found.waits_for == ("pace: 2 calls go before it, at 60/min",)


def test_a_call_in_backoff_waits_for_its_time(lanes: Lanes, redis_client: redis.Redis) -> None:
    """Due later, after a failed attempt; the record counts it."""
    lanes.enqueue(entry("one"))
    tag = Live(redis_client).call("one")[0].record.tag
    lanes.begin(tag, 30.0)
    lanes.back(tag, "gpt", said("other"), after_s=30.0, tries=1)
    found = find(redis_client, "one").standings[0]
    assert (found.where, found.tries, found.number) == (Where.DUE_LATER, 1, 1)
    assert found.waits_for[0].startswith("time: due in ")
    assert "after a failed attempt" in found.waits_for[0]
    assert found.starts_in_s == pytest.approx(30.0, abs=2.0)


def test_what_else_holds_a_call_up(lanes: Lanes, redis_client: redis.Redis, control: ControlPlane) -> None:
    """A gate, a mode, no worker on the queue, a full lane."""
    pin(control, Mode.HALT, who="me")
    lanes.enqueue(entry("one", queue="nobody"))
    found = find(redis_client, "one").standings[0]
    assert found.starts_in_s is None
    assert found.waits_for == (
        "room: no worker takes calls from queue 'nobody'",
        "gate: the lane's gate does not open by itself",
        "mode: the lane is in HALT (pinned by hand)",
    )
    lanes.set_points("cap", {"p1": 10.0, "d1": 10.0, "cap": 1})
    for ref in ("c1", "c2"):
        lanes.enqueue(entry(ref, lane="cap"))
    capped = find(redis_client, "c2").standings[0]
    assert "room: 1 call of the lane is out, and its concurrency is reached" in capped.waits_for


def test_every_message_of_a_call_is_found(lanes: Lanes, redis_client: redis.Redis) -> None:
    """A task id that was sent again while it still waits."""
    lanes.enqueue(entry("one"))
    again = entry("one")
    lanes.enqueue(msgspec.structs.replace(again, publication="another"))
    assert [call.record.ref for call in Live(redis_client).call("one")] == ["one", "one~1"]


def test_redis_away_is_our_error() -> None:
    """For looks and leases alike."""
    away = redis.Redis(port=1, socket_connect_timeout=0.2)
    with pytest.raises(StoreUnavailable):
        Live(away).now()
    with pytest.raises(StoreUnavailable):
        Leases(away).take("x", "me", 1.0)


# ── limits ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        (LaneLimits(rpm=60.0, concurrency=4), Change(tpm=1000.0), LaneLimits(rpm=60.0, tpm=1000.0, concurrency=4)),
        (LaneLimits(rpm=60.0, tpm=10.0), Change(rpm=0), LaneLimits(tpm=10.0)),
        (LaneLimits(unlimited=True), Change(rpm=5.0), LaneLimits(rpm=5.0)),
        (LaneLimits(unlimited=True), Change(concurrency=5), LaneLimits(unlimited=True, concurrency=5)),
        (LaneLimits(rpm=5.0), Change(unlimited=True), LaneLimits(rpm=5.0, unlimited=True)),
        (LaneLimits(rpm=5.0), Change(adaptive=False), LaneLimits(rpm=5.0, adaptive=False)),
    ],
)
def test_what_is_not_named_stays(before: LaneLimits, change: Change, after: LaneLimits) -> None:
    """And a pace ends `unlimited`, or it would have no effect."""
    assert changed(before, change) == after


def test_new_limits_hold_for_the_next_permit(lanes: Lanes, redis_client: redis.Redis, control: ControlPlane) -> None:
    """Nine calls would wait for nine seconds; at 60,000/min the pump sends them on at once."""
    lanes.beat("w1", 20, 600.0, ["q"], 30.0, [])
    for number in range(10):
        lanes.enqueue(entry(f"c{number}"))
    assert lanes.size("q") == 9
    before, after = set_limits(control, "gpt", Change(rpm=60_000.0), LaneLimits())
    assert (before.rpm, after.rpm) == (60.0, 60_000.0)
    wait_for(lambda: lanes.pump("pump", 500) and lanes.size("q") == 0, timeout_s=120.0)
    assert lanes.state("gpt").told.limits == after


def test_a_new_lane_begins_with_what_was_configured(redis_client: redis.Redis, control: ControlPlane) -> None:
    """And what a person said stays when its first call comes."""
    configured = LaneLimits(rpm=30.0, concurrency=2)
    before, after = set_limits(control, "new", Change(tpm=500.0), configured)
    assert (before, after) == (configured, LaneLimits(rpm=30.0, tpm=500.0, concurrency=2))
    lanes = Lanes(redis_client)
    lanes.enqueue(entry("one", lane="new", lane_fields=limit_fields(LaneLimits(rpm=1.0, concurrency=9))))
    assert lanes.state("new").told.limits == after


def test_concurrency_alone_leaves_what_was_learned(
    lanes: Lanes, redis_client: redis.Redis, control: ControlPlane
) -> None:
    """The pace is no matter of it."""
    lanes.set_points("gpt", {"p1": 0.7, "law": "learned"})
    set_limits(control, "gpt", Change(concurrency=3), LaneLimits())
    fields = lanes.fields("gpt")
    assert (fields["cap"], fields["p1"], fields["law"]) == (b"3", b"0.7", b"learned")


def test_limits_leave_a_pinned_mode(lanes: Lanes, redis_client: redis.Redis, control: ControlPlane) -> None:
    """REDUCED is half of the new pace, and HALT stays shut."""
    pin(control, Mode.REDUCED, who="me")
    set_limits(control, "gpt", Change(rpm=600.0), LaneLimits())
    assert the_lane(redis_client).allowed_per_min == pytest.approx(300.0)
    pin(control, Mode.HALT, who="me")
    set_limits(control, "gpt", Change(rpm=1200.0), LaneLimits())
    lane = the_lane(redis_client)
    assert (lane.mode, lane.gate_s) == (Mode.HALT, math.inf)


def test_a_tuner_that_was_at_it_does_not_win(lanes: Lanes, control: ControlPlane) -> None:
    """It read the lane before, and would write the old pace after: it decides anew, from what the person has set."""
    tuner, taken = Tuner(control), lanes.take

    def set_meanwhile(*asked: Any, **more: Any) -> Any:
        found = taken(*asked, **more)
        set_limits(control, "gpt", Change(rpm=6.0), LaneLimits())
        return found

    lanes.tell("gpt", limit_fields(LaneLimits(rpm=600.0, adaptive=False)) | {"p1": 3.0, "goods": 1})
    lanes.client.sadd("rlw:seen", "gpt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control.lanes, "take", set_meanwhile)
        assert tuner.turn("tuner") == 1
    state = lanes.state("gpt")
    assert (state.told.limits.rpm, state.revision) == (6.0, 2)
    assert state.points.paces["requests"].pace == pytest.approx(0.1)


def test_what_follows_from_an_older_revision_is_not_written(lanes: Lanes) -> None:
    """Neither set-points nor limits, one lane or several; what follows from none always is."""
    lanes.tell("gpt", {"rpm": 60.0, "p1": 1.0})
    read = lanes.state("gpt").revision
    assert lanes.tell("gpt", {"p1": 2.0}, read)
    assert lanes.set_points("gpt", {"p1": 9.0}, read) is None
    assert not lanes.tell("gpt", {"p1": 9.0}, read)
    lanes.set_points_of({"gpt": Write(read, {"p1": 9.0}), "other": Write(0, {"p1": 5.0})})
    assert (lanes.fields("gpt")["p1"], lanes.fields("other")["p1"]) == (b"2.0", b"5.0")
    assert lanes.set_points("gpt", {"p1": 3.0}) == 0
    assert lanes.state("gpt").revision == read + 1


@pytest.mark.parametrize("lane", ["", "x" * 201, "a\nb"])
def test_a_lane_that_cannot_be(lane: str, control: ControlPlane) -> None:
    """Refused, nothing written."""
    with pytest.raises(BadInput):
        set_limits(control, lane, Change(rpm=1.0), LaneLimits())


# ── cleaning ───────────────────────────────────────────────────────────────────────────────────────────────────────

DAY_S = 86_400.0


def test_one_worker_cleans_in_each_interval(redis_client: redis.Redis, database_url: str) -> None:
    """The first deletes what is past retention; until the interval is over nobody else does."""
    tracker = Tracker(engine_for(database_url))
    settings = read_settings({"MAISD_RETENTION_DAYS": "2", "MAISD_CLEANUP_INTERVAL_HOURS": "6"})
    now_s = 100 * DAY_S
    for days in (1.0, 3.0, 4.0):
        at_s = now_s - days * DAY_S
        tracker.record(
            [
                Attempt(
                    call_id=f"c{days}",
                    number=1,
                    lane="a",
                    task="t",
                    outcome=Outcome.ANSWERED,
                    started_at=at_s,
                    finished_at=at_s,
                    waited_s=0.0,
                )
            ]
        )
    lease = Leases(redis_client)
    assert clean_once(lease, tracker, settings, "w1", now_s) == 2
    assert clean_once(lease, tracker, settings, "w2", now_s) is None
    assert clean_once(lease, tracker, settings, "w1", now_s) is None
    assert 5.9 * 3600 * 1000 < int(redis_client.pttl(keys.duty(NAME))) <= 6 * 3600 * 1000
    redis_client.delete(keys.duty(NAME))
    assert clean_once(lease, tracker, settings, "w2", now_s) == 0


def test_a_clean_up_that_failed_is_tried_again_soon(redis_client: redis.Redis) -> None:
    """The database was away: ten minutes, not six hours."""
    away = Tracker(engine_for("postgresql://me@127.0.0.1:1/none"))
    with pytest.raises(StoreUnavailable):
        clean_once(Leases(redis_client), away, read_settings({}), "w1", 0.0)
    assert 0 < int(redis_client.pttl(keys.duty(NAME))) <= 600_000
