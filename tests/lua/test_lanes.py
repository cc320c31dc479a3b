"""The lanes on the real server, on the test's time: what is released when, to whom, and what comes back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import redis
from msgspec import structs

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.call import US, Place, Placed
from ratelimit_worker.contracts.plan import HEADER
from ratelimit_worker.errors import BadInput, LaneFull
from ratelimit_worker.stores import keys
from ratelimit_worker.worker.transport import HELD, QoS
from tests.builders import entry, message
from tests.lua.cluster import CALM, LEASE_S, OPEN, T0_US, Cluster


@pytest.fixture
def put(cluster: Cluster) -> Callable[..., list[bool]]:
    """Enqueue calls by name into lane `gpt` (open unless told otherwise) → whether each was released at once."""

    def do(*refs: str, **more: Any) -> list[bool]:
        more.setdefault("lane_fields", OPEN)
        return [cluster.lanes.enqueue(entry(ref, **more))[0] for ref in refs]

    return do


READY = keys.ready(keys.ALL, "q")
Put = Callable[..., list[bool]]

# ── pace ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("late_ms", [0, 1, 3.9, 15], ids="pump {} ms late".format)
def test_calls_start_at_the_pace_of_their_lane(cluster: Cluster, put: Put, late_ms: float) -> None:
    """At 50/s, 300 calls take 6 s, with at most 53 starts in any second, however late the pump."""
    put(*[f"c{i}" for i in range(300)], lane_fields={"p1": 50, "d1": 2})
    starts: list[int] = []
    while len(starts) < 300:
        while cluster.lying():
            tag, begun = cluster.begin()
            assert begun.state == "go"
            starts.append(cluster.now_us)
            cluster.settle(tag)
            cluster.free(tag)
        cluster.advance(cluster.pump() + late_ms / 1000)
        if len(starts) % 50 == 0:
            cluster.beat("w")
        cluster.pump()
    window = max(sum(1 for other in starts if at <= other < at + US) for at in starts)
    assert window <= 53
    rate = (len(starts) - 1) / ((starts[-1] - starts[0]) / US)
    assert 49.5 <= rate <= 50.5


def test_a_lane_opens_again_after_one_interval(cluster: Cluster, put: Put) -> None:
    """At 60 calls/min with burst 1, the second call goes exactly one second after the first; then the pump may rest."""
    assert put("a", "b", lane_fields={"p1": 1, "d1": 1}) == [True, False]
    assert cluster.pump() == 1.0
    cluster.advance(0.999_999)
    assert cluster.pump() == pytest.approx(1e-6)
    cluster.advance(0.000_001)
    cluster.pump()
    assert cluster.ready() == ["a", "b"]
    assert cluster.client.zcard("rlw:next") == 0


@pytest.mark.parametrize(
    ("fields", "costs", "waits_s"),
    [
        pytest.param({"p1": 1000, "d1": 1000, "p2": 100, "d2": 1000}, [600, 600], [0, 2.0], id="tokens bind"),
        pytest.param({"p1": 0.5, "d1": 1, "p2": 100, "d2": 1000}, [1, 1], [0, 2.0], id="requests bind"),
        pytest.param({"p1": 1000, "d1": 1000, "p2": 100, "d2": 100}, [500, 1], [0, 4.01], id="a debt is paid first"),
        pytest.param({"p1": 1000, "d1": 1000, "p2": 100, "d2": 100, "g2": 20}, [80, 10], [0, 0.1], id="guard is kept"),
    ],
)
def test_every_dimension_admits_or_none_is_charged(
    cluster: Cluster, put: Put, fields: dict[str, float], costs: list[int], waits_s: list[float]
) -> None:
    """A call goes when all dimensions have its cost; a call beyond the depth waits for a full one, owes the rest."""
    for number, (tokens, wait_s) in enumerate(zip(costs, waits_s, strict=True)):
        before = cluster.lanes.fields("gpt").get("c1", b"0")
        (at_once,) = put(f"c{number}", cost=Cost(input_tokens=tokens), lane_fields=fields)
        assert at_once is (wait_s == 0)
        if at_once:
            cluster.begin()
        if wait_s:
            assert cluster.lanes.fields("gpt").get("c1", b"0") == before
            assert cluster.pump() == pytest.approx(min(wait_s, 1.0), abs=1e-5)
            cluster.advance(wait_s - 0.001)
            cluster.worker()
            cluster.pump()
            assert f"c{number}" not in cluster.ready()
            cluster.advance(0.001)
            cluster.pump()
            assert f"c{number}" in cluster.ready()


def test_an_unlimited_lane_keeps_its_workers_supplied(cluster: Cluster, put: Put) -> None:
    """Without pace, only slots bound what is released: those that run, and as many that lie ready behind them."""
    put(*[f"c{i}" for i in range(20)], lane_fields={"unlimited": 1})
    assert len(cluster.ready()) == 8
    assert len(cluster.run_all()) == 20


def test_pace_zero_closes_a_lane_at_once(cluster: Cluster, put: Put) -> None:
    """Nothing goes at pace 0, not even what the bucket still holds; a released call goes back unused."""
    put("a", "b", "c", lane_fields={"p1": 0.5, "d1": 1})
    cluster.lanes.set_points("gpt", {"p1": 0})
    cluster.advance(3)
    cluster.pump()
    assert cluster.ready() == ["a"]
    assert cluster.begin()[1].state == "closed"
    assert cluster.out() == 0
    cluster.lanes.set_points("gpt", {"p1": 0.5})
    assert cluster.ready() == ["a"]  # at its own place, the first


def test_new_set_points_hold_for_the_next_permit(cluster: Cluster, put: Put) -> None:
    """What was earned at the old pace stays earned; the new pace is counted from now on."""
    put("a", "b", lane_fields={"p1": 0.1, "d1": 1})
    cluster.advance(5)
    cluster.lanes.set_points("gpt", {"p1": 1})
    assert cluster.pump() == pytest.approx(0.5)


def test_a_debt_is_time(cluster: Cluster, put: Put) -> None:
    """What a lane owes at the old pace takes as long at the new one: a tenth of the pace is no ten times the wait."""
    put("a", "b", lane_fields={"p1": 10.0, "d1": 1})
    cluster.lanes.set_points("gpt", {"m1": -19})
    assert cluster.level() == -20  # 2 s
    cluster.lanes.set_points("gpt", {"p1": 1.0})
    assert cluster.level() == -2
    cluster.lanes.set_points("gpt", {"p1": 10.0})
    assert cluster.level() == -20


def test_an_anchor_sets_the_level_less_what_was_sent(cluster: Cluster, put: Put) -> None:
    """Anchor 10 with 3 units sent in all is a level of 7."""
    put("a", "b", lane_fields=OPEN)
    cluster.lanes.set_points("gpt", {"a1": 10})
    assert cluster.level() == 8


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_set_point_is_a_finite_number(cluster: Cluster, value: float) -> None:
    """NaN in a level would stay there for ever."""
    with pytest.raises(ValueError, match="finite"):
        cluster.lanes.set_points("gpt", {"p1": value})


def test_a_slow_lane_earns_through_frequent_writes(cluster: Cluster, put: Put) -> None:
    """At one call a week, a lane whose levels are written every millisecond still earns: nothing is rounded away."""
    put("a", lane_fields={"p1": 1 / 604_800, "d1": 1})
    for _ in range(50):
        cluster.advance(0.001)
        cluster.lanes.set_points("gpt", {"cap": 5})
    assert cluster.level() == pytest.approx(0.05 / 604_800)


@pytest.mark.parametrize("step_s", [-0.5, -3600, 3600])
def test_a_clock_that_steps_stops_no_lane(cluster: Cluster, put: Put, step_s: float) -> None:
    """After the server's clock was set, a lane goes on at its pace, without a burst beyond its depth."""
    put(*"abcdefgh", lane_fields={"p1": 1, "d1": 1}, deadline_in_s=86_400.0)
    cluster.live(2)
    assert cluster.run_all() == ["a", "b", "c"]
    cluster.client.delete("rlw:duty:release")
    cluster.advance(step_s)
    cluster.worker()
    cluster.lanes.sweep(LEASE_S)
    cluster.pump()
    assert len(cluster.ready()) <= 1
    for _ in range(4):
        cluster.live(1)
        if cluster.lying():
            cluster.run_all()
    assert cluster.lanes.size("q") <= 2


# ── gate and probes ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_refusal_closes_the_gate_and_costs_nothing(cluster: Cluster, put: Put) -> None:
    """After a 429 with Retry-After the call goes first again, after exactly that; its units are given back."""
    put("a", "b", lane_fields={"p1": 1, "d1": 1})
    tag, _ = cluster.begin()
    assert cluster.back(tag, verdict="refused", gate_s=7.0)
    fields = cluster.lanes.fields("gpt")
    assert (float(fields["c1"]), float(fields["x1"])) == (1, 1)  # sent, and turned back
    cluster.worker()
    assert cluster.pump() == 1.0  # at most a second, then it looks again
    cluster.live(6.9)
    assert cluster.ready() == []
    cluster.live(0.1)
    assert cluster.ready() == ["a"]
    assert json.loads(cluster.client.lindex(READY, 0) or b"")["properties"]["delivery_info"]["redelivered"] is False


@pytest.mark.parametrize(("told", "after_the_gate"), [(1, ["a"]), (1.0, ["a"]), (0, ["a", "b", "c", "d"])])
def test_with_headers_one_call_goes_first_after_a_refusal(
    cluster: Cluster, put: Put, told: float, after_the_gate: list[str]
) -> None:
    """What the pause may have earned, the header of that call says; without headers the level has earned it."""
    cluster.worker(slots=20)
    put("a", lane_fields={"p1": 2, "d1": 10, "told": told})
    tag, _ = cluster.begin()
    cluster.back(tag, verdict="refused", gate_s=2.0)
    put(*"bcdefgh")
    assert cluster.ready() == []
    cluster.live(2.0)
    started = []
    while cluster.ready():
        started.append(cluster.begin()[0][0])
    assert started == after_the_gate
    cluster.live(0.5)
    assert len(cluster.ready()) == 1  # and then at the pace, until a header says more


def test_a_refusal_empties_the_dimension_that_it_names(cluster: Cluster, put: Put) -> None:
    """Refused in tokens: the level of requests stays; a quota that is used up shuts the gate until the law
    has looked at it, and not if others are answered."""
    fields = {"p1": 1, "d1": 10, "p2": 100, "d2": 1000}
    put("a", lane_fields=fields, cost=Cost(input_tokens=100))
    tag, _ = cluster.begin()
    cluster.settle(tag, verdict="refused.2", gate_s=1)
    assert (cluster.level(dimension=1), cluster.level(dimension=2)) == (10, 0)
    found = cluster.lanes.fields("gpt")
    assert (float(found["x1"]), float(found["x2"])) == (1, 100)
    put("b", cost=Cost(input_tokens=100))
    cluster.live(2)
    tag, _ = cluster.begin()
    before = cluster.lanes.fields("gpt")["gate"]
    cluster.settle(tag, verdict="quota.1")
    assert cluster.lanes.fields("gpt")["gate"] == before
    cluster.settle(tag, verdict="quota")
    assert int(cluster.lanes.fields("gpt")["gate"]) == cluster.now_us + 2 * US
    put("c", lane_fields={})
    assert cluster.ready() == []


def test_refusals_in_a_row_wait_twice_as_long_each(cluster: Cluster, put: Put) -> None:
    """Without Retry-After: 0.05 s, 0.1 s, 0.2 s … × 0.5 to 1; a good answer ends the row."""
    put("a", lane_fields=OPEN)
    gates = []
    for _ in range(4):
        tag, begun = cluster.begin()
        assert begun.state == "go"
        cluster.back(tag, verdict="refused")
        gates.append((int(cluster.lanes.fields("gpt")["gate"]) - cluster.now_us) / US)
        cluster.advance(gates[-1])
        cluster.pump()
    assert [0.025 * 2**k <= gate <= 0.05 * 2**k for k, gate in enumerate(gates)] == [True] * 4
    tag, _ = cluster.begin()
    cluster.settle(tag)
    assert cluster.lanes.fields("gpt")["refusals"] == b"0"


def test_a_released_call_that_meets_a_closed_gate_goes_back(cluster: Cluster, put: Put) -> None:
    """It has used no attempt and no permit, and is the first to go when the gate opens."""
    put("a", "b", "c")
    level = cluster.level()
    first, _ = cluster.begin()
    cluster.back(first, verdict="refused", gate_s=5.0)
    assert cluster.begin()[1].state == "closed"
    assert cluster.begin()[1].state == "closed"
    assert (cluster.out(), cluster.ready()) == (0, [])
    assert level > 0
    cluster.live(5)
    assert cluster.ready() == ["a", "b", "c"]
    assert cluster.begin()[1].number == 2  # a's second; b's and c's first are still to come
    assert cluster.begin()[1].number == 1


@pytest.mark.parametrize(("width", "gap_s", "released"), [(1, 2, 1), (2, 0, 2), (2, 2, 1)])
def test_probes_go_one_by_one(cluster: Cluster, put: Put, width: int, gap_s: float, released: int) -> None:
    """A lane with a width has at most that many calls out, at least a gap apart."""
    cluster.lanes.set_points("gpt", {**OPEN, "width": width, "gap": int(gap_s * US)})
    put(*"abcd")
    assert len(cluster.ready()) == released
    cluster.live(1.2 * gap_s)  # ± 20 %
    assert len(cluster.ready()) == width
    assert cluster.begin()[1].state == "go"  # its own release has set the gate
    cluster.live(10)
    assert cluster.out() == width


def test_a_probe_is_no_call_of_a_queue_without_room(cluster: Cluster) -> None:
    """Another task's turn would have come, but its queue's only slot is taken: the probe goes where one is free."""
    cluster.worker("busy", slots=1, queues=("full",))
    cluster.lanes.set_points("other", CALM)
    cluster.lanes.enqueue(entry("x", "other", queue="full"))
    assert cluster.begin(queue="full", worker="busy")[1].state == "go"
    cluster.lanes.set_points("gpt", {**CALM, "mode": "EMERGENCY", "width": 1, "probes": 1})
    for ref, task, queue in (("a", "t", "q"), ("b", "t", "q"), ("c", "u", "full")):
        cluster.lanes.enqueue(entry(ref, queue=queue, message=message(ref, f'{{"task": "{task}"}}')))
    assert cluster.run_one() == "a"
    assert (cluster.ready(), cluster.lying("full")) == (["b"], 0)
    cluster.run_one()
    assert (cluster.ready(), cluster.lying("full")) == ([], 0)


def test_what_is_ready_when_probing_begins_is_probed_too(cluster: Cluster, put: Put) -> None:
    """Of four released calls only as many start as the width says; the others go back."""
    put(*"abcd")
    cluster.lanes.set_points("gpt", {"width": 1, "gap": 0})
    states = [cluster.begin()[1].state for _ in range(4)]
    assert states == ["go", "closed", "closed", "closed"]


def test_a_cap_bounds_what_is_out(cluster: Cluster, put: Put) -> None:
    """A lane with concurrency 2 has two calls out; the end of one lets the next go."""
    put(*"abcd", lane_fields={**OPEN, "cap": 2})
    assert cluster.ready() == ["a", "b"]
    assert cluster.client.exists("rlw:hungry") == 0  # it wants no slot: it stands in nobody's way
    cluster.run_one()
    assert cluster.ready() == ["b", "c"]


# ── who is next ──────────────────────────────────────────────────────────────────────────────────────────────────


def released_in_order(cluster: Cluster, count: int) -> list[str]:
    """Run calls one after the other, each at its time → references in the order of their starts."""
    done: list[str] = []
    for _ in range(10_000):
        if len(done) >= count:
            return done
        if cluster.lying():
            done.append(cluster.run_one())
        else:
            cluster.advance(max(cluster.pump(), 0.001))
            cluster.worker()
    raise AssertionError(done)


@pytest.mark.long
def test_classes_age(cluster: Cluster, put: Put) -> None:
    """A low call waits for 300 s of service longer than a high one at most: a flood of high calls cannot starve it."""
    put("first", lane_fields={"p1": 1, "d1": 1})
    put("low", priority=Priority.LOW)
    put("normal", priority=Priority.NORMAL)
    put(*[f"high{i}" for i in range(310)], priority=Priority.HIGH)
    order = released_in_order(cluster, 313)
    assert 55 <= order.index("normal") <= 65
    assert 295 <= order.index("low") <= 305


def test_tenants_share_by_weight(cluster: Cluster, put: Put) -> None:
    """Two tenants with a backlog and weights 1:3 get their share, each in the order of its calls."""
    put(*[f"a{i}" for i in range(40)], tenant="a", weight=1.0, lane_fields={"p1": 10, "d1": 1})
    put(*[f"b{i}" for i in range(40)], tenant="b", weight=3.0)
    order = released_in_order(cluster, 80)
    counted = Counter(ref[0] for ref in order[:40])
    assert 9 <= counted["a"] <= 12
    for tenant in "ab":
        mine = [ref for ref in order if ref[0] == tenant]
        assert mine == sorted(mine, key=lambda ref: int(ref[1:]))


def test_a_newcomer_is_not_behind_anothers_backlog(cluster: Cluster, put: Put) -> None:
    """A tenant's first call is among the next two, whatever the other one has waiting."""
    put(*[f"a{i}" for i in range(100)], tenant="a", lane_fields={"p1": 10, "d1": 1})
    released_in_order(cluster, 20)
    put("new", tenant="b")
    assert "new" in released_in_order(cluster, 3)


def test_calls_for_later_do_not_delay_those_of_now(cluster: Cluster, put: Put) -> None:
    """A thousand calls for next hour do not put their tenant's calls of today behind another's."""
    put("first", lane_fields={"p1": 10, "d1": 1})
    put(*[f"later{i}" for i in range(200)], tenant="a", due_in_s=3000)
    put(*[f"b{i}" for i in range(20)], tenant="b")
    put("now", tenant="a")
    assert "now" in released_in_order(cluster, 4)


# ── due times, deadlines, bounds ─────────────────────────────────────────────────────────────────────────────────


def test_a_delayed_call_waits_in_its_lane(cluster: Cluster, put: Put) -> None:
    """It is released at its time, counted until then, and the pump sleeps for it."""
    put("later", due_in_s=0.75)
    assert (cluster.ready(), cluster.lanes.size("q")) == ([], 1)
    assert cluster.pump() == 0.75
    cluster.advance(0.75)
    cluster.pump()
    assert (cluster.ready(), cluster.lanes.size("q")) == (["later"], 0)


def test_delayed_calls_that_ripen_together_are_paced(cluster: Cluster, put: Put) -> None:
    """500 calls for the same instant leave at the lane's pace."""
    put(*[f"c{i}" for i in range(500)], due_in_s=2.0, lane_fields={"p1": 10, "d1": 1})
    cluster.live(2)
    done = []
    for _ in range(20):
        done += cluster.run_all()
        cluster.live(0.1)
    assert 19 <= len(done) <= 22


def test_a_call_past_its_deadline_takes_no_permit(cluster: Cluster, put: Put) -> None:
    """It goes to a worker to be told so, without a permit; the call behind it keeps its time."""
    put("first", "dead", lane_fields={"p1": 0.1, "d1": 1}, deadline_in_s=3.0)
    cluster.run_one()
    level = cluster.level()
    cluster.live(3.5)
    tag, begun = cluster.begin()
    assert (begun.state, tag.rpartition(".")[0], begun.body) == ("expired", "dead", b"jbody of dead")
    cluster.free(tag)
    assert cluster.level() == pytest.approx(level)
    assert (cluster.out(), cluster.lanes.record("dead")) == (0, None)
    assert cluster.lanes.counters()["expired"] == 1


def test_a_mass_of_expired_calls_does_not_bury_the_ready_list(cluster: Cluster, put: Put) -> None:
    """Expired calls are handed out as workers take them, while another lane goes on."""
    put(*[f"c{i}" for i in range(150)], deadline_in_s=1.0, lane_fields={"p1": 0})
    cluster.live(2)
    assert len(cluster.ready()) <= 16
    put("alive", lane="other", lane_fields=OPEN)
    told = 0
    for _ in range(400):
        if cluster.lying():
            tag, begun = cluster.begin()
            told += begun.state == "expired"
            cluster.free(tag)
        else:
            cluster.advance(0.5)
            cluster.worker()
            cluster.pump()
    assert told == 150
    assert cluster.lanes.record("alive") is None


def test_a_lane_is_bounded(cluster: Cluster, put: Put) -> None:
    """Beyond max_waiting a call is refused at once, delayed ones counted; nothing of it is kept."""
    put("a", "b", lane_fields={"p1": 0}, max_waiting=3)
    put("c", due_in_s=60, max_waiting=3)
    with pytest.raises(LaneFull):
        put("d", max_waiting=3)
    assert cluster.lanes.record("d") is None
    assert cluster.client.exists(keys.payload("d")) == 0
    assert cluster.lanes.counters()["refused_full"] == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"cost": Cost(requests=float("nan"))},
        {"cost": Cost(requests=-1.0)},
        {"cost": Cost(requests=float("inf"))},
        {"weight": 0.0},
        {"weight": float("nan")},
        {"deadline_in_s": float("inf")},
        {"due_in_s": float("nan")},
    ],
    ids=str,
)
def test_what_no_bucket_can_hold_is_refused(put: Put, bad: dict[str, Any]) -> None:
    """A negative cost would fill the bucket, and NaN would stay in it."""
    with pytest.raises(BadInput):
        put("a", **bad)


def test_a_message_without_a_place_for_its_tag_is_refused(cluster: Cluster, put: Put) -> None:
    """It could never be released, and would stop its lane."""
    before = cluster.client.dbsize()
    with pytest.raises(redis.ResponseError, match="delivery tag"):
        put("a", message=b"{}")
    assert cluster.client.dbsize() == before


# ── messages ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "headers",
    [
        "{}",
        '{"a": {}, "b": [], "c": null, "d": 1.0, "e": "ü \\u00fc \\ud83d\\ude00 \\/"}',
        '{"delivery_tag": "@", "redelivered": false}',
    ],
)
def test_a_message_arrives_byte_for_byte(cluster: Cluster, put: Put, headers: str) -> None:
    """Only the tag is put in, and after a restore the redelivered flag."""
    put("a", message=message("a", headers))
    raw: Any = cluster.client.rpop(READY)
    tag = json.loads(raw)["properties"]["delivery_tag"]
    assert raw == message("a", headers).replace(b'"@"', f'"{tag}"'.encode(), 1)
    cluster.lanes.begin(tag, LEASE_S)
    cluster.lanes.restore([tag])
    raw = cluster.client.rpop(READY)
    again = json.loads(raw)["properties"]["delivery_tag"]
    assert again != tag
    expected = message("a", headers).replace(b'"@"', f'"{again}"'.encode(), 1)
    assert raw == expected.replace(b'"redelivered": false', b'"redelivered": true', 1)


@pytest.mark.parametrize("ref", ['with "quotes"', "back\\slash", "a.b.1", "ünïcode", "a/b\ttab", ""])
def test_any_task_id_is_a_reference(cluster: Cluster, put: Put, ref: str) -> None:
    """Celery takes any text as a task id; it comes back as it was."""
    put(ref, message=message("x"))
    tag, _ = cluster.take()
    assert tag.rpartition(".")[0] == ref
    assert cluster.lanes.begin(tag, LEASE_S).state == "go"
    assert cluster.free(tag) == 1


def test_a_publication_enters_once(cluster: Cluster, put: Put) -> None:
    """A publisher that lost the reply sends again: nothing happens, though the call may have ended meanwhile."""
    once = entry("a", lane_fields=OPEN)
    assert cluster.lanes.enqueue(once) == Placed(True, "a")
    assert cluster.lanes.enqueue(once) == Placed(False, "a")
    assert cluster.run_all() == ["a"]
    assert cluster.lanes.enqueue(once) == Placed(False, "a")
    assert cluster.ready() == []


def test_a_task_id_may_be_sent_again_while_it_runs(cluster: Cluster, put: Put) -> None:
    """A second message under one id (retry, replace) has a reference of its own, and a third; there is an end to it."""
    refs = [
        cluster.lanes.enqueue(structs.replace(entry("a", lane_fields={"p1": 0}), publication=f"p{i}"))[1]
        for i in range(9)
    ]
    assert refs[:3] == ["a", "a~1", "a~2"]
    with pytest.raises(redis.ResponseError, match="too many"):
        cluster.lanes.enqueue(structs.replace(entry("a"), publication="p9"))
    assert len(cluster.lanes.revoke("a")) == 9
    assert cluster.lanes.size("q") == 0


def test_a_revoked_call_leaves_its_lane(cluster: Cluster, put: Put) -> None:
    """Whether it waits for its turn or for its time; what it held is forgotten, and it can say what it was."""
    put("a", "b", "c", lane_fields={"p1": 1, "d1": 1})
    put("later", due_in_s=60)
    assert cluster.lanes.revoke("b") == [(message("b"), b"jbody of b")]
    assert len(cluster.lanes.revoke("later")) == 1
    assert cluster.lanes.revoke("a") == []  # it is out: Celery's own revoke finds it at its worker
    assert cluster.lanes.size("q") == 1
    assert cluster.client.exists(keys.payload("b"), keys.call("b")) == 0
    cluster.advance(1)
    cluster.pump()
    assert cluster.ready() == ["a", "c"]


def test_a_permit_that_a_purge_gives_back_is_the_next_ones(cluster: Cluster, put: Put) -> None:
    """At a call a minute the next need not wait for a minute: its lane is looked at now."""
    cluster.worker(queues=("q", "two"))
    put("unread", queue="two", lane_fields={"p1": 1 / 60, "d1": 1})
    put("next")
    cluster.pump()
    assert cluster.ready() == []
    cluster.lanes.purge("two")
    cluster.pump()
    assert cluster.ready() == ["next"]


def test_a_purge_forgets_what_waits_and_what_is_unread(cluster: Cluster, put: Put) -> None:
    """Waiting, delayed and ready calls of one queue go, with their permits; another queue and running calls stay."""
    put("runs", "ready", "waits", lane_fields={"p1": 0.001, "d1": 2})
    put("later", due_in_s=60)
    put("other", queue="other")
    cluster.begin()
    level = cluster.level()
    assert cluster.lanes.purge("q") == 3
    assert (cluster.ready(), cluster.lanes.size("q"), cluster.lanes.size("other")) == ([], 0, 1)
    assert cluster.level() == level + 1
    assert cluster.out() == 1


# ── room ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_released_without_a_worker(redis_client: redis.Redis) -> None:
    """Calls wait in their lane until a worker is there, and then leave at its pace."""
    cluster = Cluster(redis_client)
    for ref in "abc":
        cluster.lanes.enqueue(entry(ref, lane_fields={"p1": 1, "d1": 1}))
    cluster.advance(100)
    cluster.pump()
    assert cluster.ready() == []
    cluster.worker()
    cluster.pump()
    assert cluster.ready() == ["a"]


def test_a_stalled_worker_gets_no_burst(cluster: Cluster, put: Put) -> None:
    """While what was released has not begun, no more than a message's travel is released; it must not start at once."""
    cluster.worker(slots=100)
    put(*[f"c{i}" for i in range(200)], lane_fields={"p1": 50, "d1": 12})
    cluster.live(10)
    assert len(cluster.ready()) == 2


def test_a_queue_without_workers_holds_up_nobody(cluster: Cluster, put: Put) -> None:
    """Calls of one lane on a queue that nobody serves wait; those on another go, also when they come later."""
    put(*[f"dead{i}" for i in range(3)], queue="nobody", lane_fields={"p1": 10, "d1": 1})
    for index in range(10):
        put(f"c{index}")
        cluster.live(0.1)
        assert cluster.run_all() == [f"c{index}"]
    cluster.worker("late", slots=2, queues=("nobody",))
    assert cluster.ready("nobody") == ["dead0"]


def test_queues_that_lost_their_worker_give_back_what_lies_ready(cluster: Cluster, put: Put) -> None:
    """A worker that leaves one of two queues leaves nothing there that would bind its lane."""
    cluster.worker("other", slots=2, queues=("two",))
    put("a", "b", queue="two", lane_fields=CALM)
    put("c", "d")
    assert (cluster.ready("two"), cluster.ready()) == (["a", "b"], [])
    del cluster.workers["other"]
    cluster.lanes.beat("other", 0, 3.5, ["two"], LEASE_S, [])
    cluster.pump()
    assert (cluster.ready("two"), cluster.ready()) == ([], ["c", "d"])


def test_two_queues_share_one_pace(cluster: Cluster, put: Put) -> None:
    """A lane at 20/s over two queues with a worker each: 20/s together, the order kept between them."""
    cluster.worker("other", queues=("two",))
    for index in range(40):
        put(f"c{index}", queue=("q", "two")[index % 2], lane_fields={"p1": 20, "d1": 1})
    order: list[str] = []
    while True:
        for queue in ("q", "two"):
            order += cluster.run_all(queue)
        if len(order) == 40:
            break
        cluster.advance(cluster.pump() or 0.001)
        cluster.worker()
        cluster.worker("other", queues=("two",))
        cluster.pump()
    assert cluster.now_us - T0_US == pytest.approx(39 / 20 * US, abs=0.02 * US)
    assert order == [f"c{index}" for index in range(40)]


def test_a_free_lane_does_not_starve_a_paced_one(cluster: Cluster, put: Put) -> None:
    """While a lane without pace keeps all slots busy, a lane at 1/s gets its call each second."""
    put(*[f"slow{i}" for i in range(20)], lane="slow", lane_fields={"p1": 1, "d1": 1})
    put(*[f"free{i}" for i in range(400)], lane="free", lane_fields={"unlimited": 1})
    done: Counter[str] = Counter()
    running: list[tuple[int, str]] = []  # each call takes 0.2 s of a slot
    for _ in range(400):
        for _, tag in [pair for pair in running if pair[0] <= cluster.now_us]:
            cluster.settle(tag)
            cluster.free(tag)
            done[tag[:4]] += 1
        running = [pair for pair in running if pair[0] > cluster.now_us]
        while len(running) < 4 and cluster.lying():
            tag, begun = cluster.begin()
            assert begun.state == "go"
            running.append((cluster.now_us + US // 5, tag))
        cluster.advance(0.025)
        cluster.worker()
        cluster.pump()
    assert done["slow"] >= 9
    assert done["free"] + done["slow"] >= 190  # of 200 that 4 slots can run in 10 s


def test_lanes_that_want_slots_share_them(cluster: Cluster, put: Put) -> None:
    """A bulkhead: of 8 slots each of two lanes with a backlog has 4, though one came first with long calls."""
    cluster.worker(slots=8)
    put(*[f"long{i}" for i in range(100)], lane="long", lane_fields={"unlimited": 1})
    put(*[f"short{i}" for i in range(300)], lane="short", lane_fields={"unlimited": 1})
    ends: dict[str, float] = {}
    for step in range(200):  # a long call takes 4 s, a short one 0.2 s
        while len(ends) < 8 and cluster.lying():
            tag, _ = cluster.begin()
            ends[tag] = step + (40 if tag.startswith("long") else 2)
        for tag in [tag for tag, end in ends.items() if end <= step]:
            del ends[tag]
            cluster.free(tag)
        cluster.advance(0.1)
        cluster.worker(slots=8)
        cluster.pump()
    counted = {lane: cluster.client.zcard(f"rlw:out:{lane}") for lane in ("long", "short")}
    assert counted == {"long": 4, "short": 4}


def test_lanes_in_a_row_that_cannot_go_block_nobody(cluster: Cluster, put: Put) -> None:
    """Twenty lanes for a queue without workers, and twenty in the row, do not keep a free slot from the next."""
    for index in range(20):
        put(f"dead{index}", lane=f"dead{index}", queue="nobody", lane_fields=OPEN)
    cluster.worker(slots=4)
    put(*[f"c{i}" for i in range(4)], lane="first", lane_fields=OPEN)
    for index in range(20):
        put(f"n{index}", lane=f"n{index}", lane_fields=OPEN)
    done = []
    for _ in range(24):
        done.append(cluster.run_one())
    assert len(done) == 24


def test_a_cap_does_not_cost_others_their_slots(cluster: Cluster, put: Put) -> None:
    """A lane that may have one call out wants no slot, so another lane may have all the rest."""
    put("a0", "a1", "a2", lane="capped", lane_fields={**OPEN, "cap": 1})
    put(*[f"b{i}" for i in range(10)], lane="free", lane_fields={**OPEN, "p1": 1, "d1": 100})
    for _ in range(3):
        while cluster.lying():
            cluster.begin()
    assert cluster.out() == 4


def test_a_share_leaves_no_slot_idle(cluster: Cluster, put: Put) -> None:
    """A lane that has its share on another queue gets the slots that nobody under his share can use."""
    cluster.worker("other", slots=4, queues=("two",))
    for lane, queue in (("a", "two"), ("b", "q")):
        for index in range(4):
            put(f"{lane}{index}", lane=lane, queue=queue, lane_fields=CALM)
            cluster.begin(queue)
    put("b4", "b5", "b6", lane="b")
    put("a4", "a5", "a6", lane="a")
    for tag in [tag for tag in cluster.held["w"] if tag.startswith("b")][:3]:
        cluster.free(tag)
        assert len(cluster.ready()) == 1
        assert cluster.begin()[1].state == "go"
    assert cluster.client.scard(keys.oncrew(keys.ALL, "q")) == 4


@pytest.mark.parametrize("end", ["free", "back", "restore", "closed", "purge"])
def test_whoever_ends_a_calls_stay_gives_its_slot_away(cluster: Cluster, put: Put, end: str) -> None:
    """Another lane that waits for a slot has it in the same step, without the pump."""
    cluster.worker(slots=1)
    put("a", lane="first", lane_fields=CALM)
    put("b", lane="second", queue="two", lane_fields=CALM)
    assert cluster.ready("two") == []
    cluster.worker(slots=1, queues=("q", "two"))
    assert cluster.ready("two") == []
    if end == "purge":
        cluster.lanes.purge("q")
    else:
        tag, _ = cluster.take()
        if end == "closed":
            cluster.lanes.set_points("first", {"p1": 0})
        assert cluster.lanes.begin(tag, LEASE_S).state == ("closed" if end == "closed" else "go")
        cluster.lanes.set_points("first", {"p1": 0})
        if end == "free":
            cluster.free(tag)
        elif end == "back":
            cluster.back(tag, after_s=5, lane="first")
        elif end == "restore":
            cluster.lanes.restore([tag])
    assert cluster.ready("two") == ["b"]


# ── what comes back ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dead_workers_call_goes_back_to_its_own_place(cluster: Cluster, put: Put) -> None:
    """When nobody renews it, it is released again before those that came after it, flagged as redelivered."""
    put(*"abcdef", lane_fields={"p1": 0.02, "d1": 1})
    tag, _ = cluster.begin()
    cluster.kill()
    cluster.worker("next")
    cluster.live(29)
    assert cluster.out() == 1
    cluster.live(16)
    assert cluster.lanes.record("a") is not None
    cluster.live(40)
    again, parsed = cluster.take(worker="next")
    assert (again.rpartition(".")[0], parsed["properties"]["delivery_info"]["redelivered"]) == ("a", True)
    # the frozen worker wakes up: it is not its call any more
    assert cluster.lanes.begin(tag, LEASE_S).state == "superseded"
    assert cluster.free(tag) == 0
    assert cluster.lanes.begin(again, LEASE_S).state == "go"


def test_a_call_that_left_at_once_comes_back_before_a_later_one(cluster: Cluster, put: Put) -> None:
    """Though the later one's name sorts first: the lane may have one out now, and the first comes back unread.

    Found by a random history (`test_emergency`, seed 54674319687958555458145319871192433660).
    """
    put("c9", "c10", lane_fields={"p1": 50, "d1": 1, "cap": 3})
    assert cluster.ready() == ["c9"]
    cluster.lanes.set_points("gpt", {"cap": 1})
    cluster.live(LEASE_S)
    assert cluster.ready() == ["c9"]


@pytest.mark.parametrize("early", [0, 1, 3, 6], ids="{} of them left at once".format)
def test_calls_come_back_in_the_order_in_which_they_came(cluster: Cluster, put: Put, early: int) -> None:
    """Of one tenant, whether they left past the lane or had waited: as they came, not as their names sort."""
    names = list("fedcba")
    put(*names, lane_fields={"p1": 1000, "d1": 1000, "l1": early})
    cluster.live(1.0)
    assert cluster.ready() == names
    cluster.lanes.set_points("gpt", {"cap": 1})
    cluster.live(LEASE_S + 2)
    assert cluster.ready() == names[:1]
    assert [cluster.run_one() for _ in names] == names


def test_a_dead_workers_slots_are_anothers(cluster: Cluster, put: Put) -> None:
    """Calls that a dead worker held keep their lease, but nobody's slot: the next worker has work at once."""
    put(*[f"c{i}" for i in range(20)], lane_fields=CALM)
    for _ in range(4):
        cluster.begin()
    cluster.beat("w")
    cluster.kill()
    cluster.live(4)
    cluster.worker("next")
    cluster.pump()
    for _ in range(4):
        assert cluster.begin(worker="next")[1].state == "go"
    assert cluster.ready() == []
    assert cluster.out() == 8


def test_a_worker_that_takes_no_more_calls_keeps_what_it_runs(cluster: Cluster, put: Put) -> None:
    """A worker that closes (slots 0) renews its calls, while their slots are not counted against the others."""
    cluster.worker("other")
    put(*[f"c{i}" for i in range(30)], lane_fields=CALM)
    for _ in range(8):
        cluster.begin()
    assert cluster.ready() == []
    cluster.worker(slots=0)
    cluster.live(60)
    assert cluster.begin(worker="other")[1].state == "go"
    tag = cluster.held["w"][0]
    assert cluster.settle(tag)
    assert cluster.free(tag) == 1
    cluster.worker(slots=4)
    assert cluster.client.exists("rlw:aside") == 0


def test_a_call_that_kills_its_worker_is_given_up(cluster: Cluster, put: Put) -> None:
    """After three deliveries whose worker died it is handed out once more, to be told so."""
    put("poison")
    for alone in (False, False, True):
        tag, begun = cluster.begin(alone=alone)
        assert begun.state == "go"
        cluster.lanes.restore([tag])
    tag, begun = cluster.begin()
    assert (begun.state, begun.tries, begun.number, begun.body) == ("poison", 3, 3, b"jbody of poison")


def test_a_worker_that_gives_a_call_back_is_no_loss(cluster: Cluster, put: Put) -> None:
    """Deaths count in a row: an attempt that ends in good order begins a new one."""
    put("a")
    for _ in range(3):
        tag, _ = cluster.begin()
        cluster.lanes.restore([tag])
        tag, begun = cluster.begin()
        assert begun.state == "go"
        cluster.back(tag)
    assert cluster.begin()[1].state == "go"


def test_an_unread_call_costs_nothing_to_take_back(cluster: Cluster, put: Put) -> None:
    """Its permit is given back, it is not called redelivered, and the ready list holds no second message of it."""
    put("a", lane_fields={"p1": 1, "d1": 1})
    tag = json.loads(cluster.client.lindex(READY, 0) or b"")["properties"]["delivery_tag"]
    assert cluster.lanes.restore([tag]) == 1
    assert cluster.ready() == ["a"]
    _, parsed = cluster.take()
    assert parsed["properties"]["delivery_info"]["redelivered"] is False


def test_a_settled_answer_is_returned_without_a_permit(cluster: Cluster, put: Put) -> None:
    """A call whose worker died between SETTLE and ack is delivered again though its lane is closed, with the answer."""
    put("a", lane_fields={"p1": 0.001, "d1": 1})
    tag, _ = cluster.begin()
    assert cluster.settle(tag, b"the answer")
    assert not cluster.settle(tag, b"another")
    cluster.lanes.set_points("gpt", {"p1": 0})
    cluster.lanes.restore([tag])
    cluster.live(1)
    tag, begun = cluster.begin()
    assert (begun.state, begun.answer) == ("settled", b"the answer")
    assert cluster.free(tag) == 1
    assert cluster.client.exists(keys.settled("a"), keys.payload("a"), keys.call("a")) == 0


def test_the_answer_of_a_worker_taken_for_dead_counts(cluster: Cluster, put: Put) -> None:
    """It was paid for: the call that waits again is delivered with it."""
    put("a", lane_fields={"p1": 0.001, "d1": 1})
    tag, _ = cluster.begin()
    cluster.lanes.restore([tag])
    assert cluster.settle(tag, b"late")
    cluster.live(1)
    assert cluster.begin()[1].answer == b"late"


def test_nobody_acts_for_a_later_life_of_a_task_id(cluster: Cluster, put: Put) -> None:
    """A task id that ended and was sent again is another call: late acks and answers of the first do not touch it."""
    put("a")
    old, _ = cluster.begin()
    cluster.lanes.restore([old])
    cluster.run_all()
    cluster.lanes.enqueue(structs.replace(entry("a"), publication="second life"))
    tag, _ = cluster.begin()
    assert cluster.free(old) == 0
    assert not cluster.settle(old, b"wrong")
    assert not cluster.back(old)
    assert cluster.lanes.begin(old, LEASE_S).state == "superseded"
    assert cluster.settle(tag, b"right")


def test_a_repeated_begin_is_one_attempt(cluster: Cluster, put: Put) -> None:
    """A worker that lost the reply asks again: it gets the same, and the attempt counts once."""
    put("a")
    tag, first = cluster.begin()
    assert cluster.lanes.begin(tag, LEASE_S) == first


def test_a_lost_memory_is_told_from_a_late_delivery(cluster: Cluster, put: Put) -> None:
    """After a restart without persistence a call that a worker still holds is gone, and its caller must hear of it."""
    put("a")
    tag, _ = cluster.take()
    cluster.client.flushall()
    assert cluster.lanes.begin(tag, LEASE_S).state == "gone"


def test_a_retry_waits_for_its_time_and_counts_its_tries(cluster: Cluster, put: Put) -> None:
    """A call given back with a delay is released then, before those that came after it; its tries travel along."""
    put("a", "b", "c", lane_fields={"p1": 1, "d1": 1})
    tag, _ = cluster.begin()
    assert cluster.back(tag, after_s=1.5, tries=1)
    assert cluster.free(tag) == 0  # the ack that follows finds nothing
    cluster.live(1)
    assert cluster.run_all() == ["b"]
    cluster.live(1)
    _, begun = cluster.begin()
    assert (begun.tries, begun.number) == (1, 2)


def test_after_an_outage_the_living_renew_first(cluster: Cluster, put: Put) -> None:
    """When nobody swept for longer than half a lease, nothing is taken back before the workers had time to renew."""
    put("a")
    tag, _ = cluster.begin()
    cluster.live(20)
    cluster.advance(300)  # Redis was away
    assert cluster.lanes.sweep(LEASE_S) == 0
    cluster.worker()
    cluster.live(40)
    assert cluster.settle(tag)
    assert cluster.free(tag) == 1


def test_when_the_last_worker_leaves_what_lies_ready_goes_back(cluster: Cluster, put: Put) -> None:
    """The next worker gets it at the lane's pace, not as a burst."""
    put(*"abcd", lane_fields={"unlimited": 1})
    cluster.lanes.beat("w", 0, 3.5, ["q"], LEASE_S, [])
    assert (cluster.ready(), cluster.out()) == ([], 0)
    cluster.pump()
    cluster.lanes.set_points("gpt", {"unlimited": 0, "p1": 1, "d1": 1})
    cluster.advance(60)
    cluster.worker()
    cluster.pump()
    assert cluster.ready() == ["a"]


def test_a_record_that_ended_before_its_call_blocks_nothing(cluster: Cluster, put: Put) -> None:
    """Waiting, delayed or out: what has lost its record is dropped, and no slot is lost with it."""
    put("out", "waits", "next", lane_fields={"p1": 1, "d1": 1})
    put("later", due_in_s=1.0)
    for ref in ("out", "waits", "later"):
        cluster.client.delete(keys.call(ref))
    tag, _ = cluster.take()
    assert cluster.free(tag) == 1
    cluster.live(40)
    assert cluster.ready() == ["next"]
    assert (cluster.out(), cluster.client.scard(keys.oncrew(keys.ALL, "q")), cluster.client.zcard("rlw:out:gpt")) == (
        1,
        1,
        1,
    )


def test_a_record_with_a_part_of_another_type_counts_as_missing(cluster: Cluster, put: Put) -> None:
    """Whichever part it is, of those that every version writes: no script fails by it, and each read is counted."""
    put("call")
    whole = cluster.packed("call")
    damaged: list[Any] = [[], "call", {}, whole[: Place.BORN - 1]]
    for place in range(Place.BORN):
        for other in ("5", 5, None, ["5"] * 4):
            if type(other) is not type(whole[place]) and not (isinstance(whole[place], int | float) and other == 5):
                damaged.append([*whole[:place], other, *whole[place + 1 :]])
    damaged += [[*whole[: Place.COST - 1], ["5"] * 4, *whole[Place.COST :]]]
    damaged += [[*whole[: Place.TICKET - 1], [1, "5", 0, 0, 0, 0], *whole[Place.TICKET :]]]
    for number, one in enumerate(damaged, 1):
        cluster.client.hset(keys.call("call"), "i", msgspec.msgpack.encode(one))
        assert cluster.lanes.begin("call.99", LEASE_S).state == "gone"
        assert cluster.lanes.counters()["unreadable"] == number, one
    cluster.client.hset(keys.call("call"), "i", msgspec.msgpack.encode(whole))
    assert cluster.begin()[1].state == "go"


def test_a_newer_workers_calls_are_left_alone(cluster: Cluster, put: Put) -> None:
    """An older worker neither runs, frees, restores nor releases what a newer one wrote; nothing else waits for it."""

    def make_newer(ref: str) -> None:
        version, *rest = cluster.packed(ref)
        cluster.client.hset(keys.call(ref), "i", msgspec.msgpack.encode([version + 1, *rest]))

    put("new", "waits", "other", lane_fields={"p1": 1, "d1": 1})
    make_newer("new")
    make_newer("waits")
    tag, begun = cluster.begin()
    assert begun.state == "superseded"
    assert cluster.free(tag) == 0
    assert cluster.lanes.restore([tag]) == 0
    cluster.held["w"].clear()
    cluster.live(60)
    assert cluster.out() == 1
    assert cluster.ready() == []
    put("free", lane="free", lane_fields=OPEN)
    assert cluster.ready() == ["free"]


def test_a_worker_that_reconnects_gives_back_what_it_has_not_begun_and_nothing_else(cluster: Cluster, put: Put) -> None:
    """A thread may begin a call while the channel that brought it closes: whoever asks Redis first is right."""
    put("runs", "lies", lane_fields=OPEN)
    runs, begun = cluster.begin()
    lies, _ = cluster.take()
    assert begun.state == "go"
    qos = QoS(SimpleNamespace(lanes=cluster.lanes))
    qos._on_collect.cancel()  # kombu's, for the end of a process
    for tag in (runs, lies):
        qos.append(SimpleNamespace(headers={HEADER: {}}), tag)
    try:
        qos.restore_unacked()
        assert HELD.orphans == {runs, lies}  # renewed while their requests live
    finally:
        HELD.orphans.clear()
    assert cluster.ready() == ["lies"]
    assert cluster.lanes.begin(lies, LEASE_S, False, process="w").state == "superseded"
    assert cluster.settle(runs) is not None


def test_a_giant_ready_list_is_not_searched_through(cluster: Cluster, put: Put) -> None:
    """100 unread calls amid 200,000 messages of others go back in a second; what is not found is superseded later."""
    cluster.worker(slots=100)
    put(*[f"c{i}" for i in range(100)], lane_fields={"unlimited": 1})
    raw: Any = cluster.client.lrange(READY, 0, -1)
    tags = [json.loads(one)["properties"]["delivery_tag"] for one in raw]
    for _ in range(20):
        cluster.client.lpush(READY, *[b"x" * 100] * 10_000)
        cluster.client.rpush(READY, *[b"x" * 100] * 1_000)
    cluster.client.config_resetstat()
    assert cluster.lanes.restore(tags) == 100
    stats: Any = cluster.client.info("commandstats")
    spent_us = sum(stat["usec"] for name, stat in stats.items() if name.startswith("cmdstat_eval"))
    assert spent_us < 1_000_000


# ── settings of the server ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def full_server(cluster: Cluster) -> Iterator[Callable[[], None]]:
    """Fill the server up; it takes nothing new until the test is over."""

    def fill() -> None:
        cluster.client.config_set("maxmemory-policy", "noeviction")
        cluster.client.config_set("maxmemory", "1kb")

    yield fill
    cluster.client.config_set("maxmemory", "0")


def test_a_full_server_refuses_new_calls_whole_and_lets_old_ones_end(
    cluster: Cluster, put: Put, full_server: Callable[[], None]
) -> None:
    """Enqueue leaves no trace; begin, settle, back, free, beat, pump and sweep go on."""
    put(*"abcd", lane_fields={"p1": 10, "d1": 2})
    full_server()
    before = cluster.client.dbsize()
    with pytest.raises(redis.ResponseError, match="maxmemory"):
        put("refused")
    assert cluster.client.dbsize() == before
    tag, begun = cluster.begin()
    assert begun.state == "go"
    assert cluster.back(tag, after_s=0.1, tries=1)
    tag, begun = cluster.begin()
    assert cluster.settle(tag)
    assert cluster.free(tag) == 1
    cluster.live(1)
    done = []
    for _ in range(5):
        done += cluster.run_all()
        cluster.live(0.2)
    assert sorted(done) == ["a", "c", "d"]


def test_idle_lanes_cost_the_pump_nothing(cluster: Cluster, put: Put) -> None:
    """Of 300 known lanes only those with something to wait for are in its plan, others cost it nothing."""
    for index in range(300):
        put(f"c{index}", lane=f"lane{index}", lane_fields={"unlimited": 1})
    while cluster.out():
        cluster.run_all()
    cluster.live(1)
    put("a", "b", lane_fields={"p1": 1, "d1": 1})
    cluster.pump()
    assert cluster.client.zrange("rlw:next", 0, -1) == [b"gpt"]


def test_calls_keep_the_pace_of_a_lane_that_a_person_set_first(cluster: Cluster, put: Put) -> None:
    """What was set before the first call stays, and what was configured besides is added."""
    cluster.lanes.set_points("gpt", {"p1": 5})
    put("a", lane_fields={"p1": 1, "d1": 3, "cap": 7})
    fields = cluster.lanes.fields("gpt")
    assert (fields["p1"], fields["d1"], fields["cap"]) == (b"5", b"3", b"7")


def test_what_is_learned_does_not_hang_on_what_can_fail(cluster: Cluster, put: Put) -> None:
    """The answer is kept though the outbox is broken; the failure is counted."""
    put("a")
    tag, _ = cluster.begin()
    cluster.client.set(keys.OUTBOX, "not a stream")
    cluster.client.hset(keys.lane("gpt"), "sick", "nonsense")
    assert cluster.settle(tag, verdict="sick")
    assert cluster.lanes.counters()["unrecorded"] == 1
    assert cluster.lanes.fields("gpt")["sick"] == b"1"
    cluster.client.delete(keys.OUTBOX)


def test_plain_answers_of_a_lane_that_is_well_are_counted(cluster: Cluster, put: Put) -> None:
    """They tell nothing but that they came. After a sick one, or outside NORMAL, each is told: when it left matters."""

    def answer(verdict: str) -> None:
        put(ref := f"call-{cluster.now_us}", lane_fields={"unlimited": 1})
        cluster.live(1)
        tag, _ = cluster.begin()
        assert cluster.settle(tag, verdict=verdict, seen=verdict.encode())
        assert cluster.free(tag), ref

    def taken() -> tuple[int, list[bytes]]:
        got = cluster.lanes.take("tuner", 2.0)
        assert got is not None
        (view,) = got.lanes
        return view.goods, list(view.seen)

    for verdict in ("plain", "good", "plain"):
        answer(verdict)
    assert taken() == (2, [b"good"])
    for verdict in ("plain", "sick", "plain", "plain"):
        answer(verdict)
    assert taken() == (2, [b"sick", b"plain"])
    cluster.lanes.set_points("gpt", {"mode": "REDUCED"})
    answer("plain")
    assert taken() == (0, [b"plain"])
    cluster.lanes.set_points("gpt", {"mode": "NORMAL", "width": 1, "probes": 1})
    answer("plain")
    assert taken() == (0, [b"plain"])
    cluster.lanes.set_points("gpt", {"width": 20, "probes": 0, "flight": 20})  # a learned bound is no probe
    answer("plain")
    assert taken() == (1, [])


def test_plain_answers_tell_how_long_they_took_in_sum(cluster: Cluster, put: Put) -> None:
    """Two of a second and of three: two good ones, four seconds, and one call that is still out."""
    put("a", "b", "c", lane_fields={"unlimited": 1})
    begun = [cluster.begin()[0] for _ in range(3)]
    for tag, seconds in zip(begun, (1.0, 2.0), strict=False):
        cluster.advance(seconds)
        assert cluster.settle(tag, verdict="plain", seen=b"")
        cluster.free(tag)
    got = cluster.lanes.take("tuner", 2.0)
    assert got is not None
    (view,) = got.lanes
    assert (view.goods, view.took_s, view.out) == (2, pytest.approx(4.0, abs=0.01), 1)


def test_a_refusal_for_calls_at_once_shuts_the_gate_for_a_moment(cluster: Cluster, put: Put) -> None:
    """50 ms whatever the Retry-After, and no level is lowered; where a person has set the pace, as long as told."""
    gates = []
    for adaptive in (1, 0):
        put(f"call-{adaptive}", lane_fields={"p1": 10, "d1": 10})
        cluster.lanes.set_points("gpt", {"adaptive": adaptive, "gate": 0})
        tag, _ = cluster.begin()
        assert cluster.settle(tag, verdict="refused.0", seen=b"", gate_s=7.0)
        cluster.free(tag)
        fields = cluster.lanes.fields("gpt")
        gates.append((int(fields["gate"]) - cluster.now_us) / 1e6)
        assert float(fields["l1"]) >= 9.0
    assert 0.02 <= gates[0] <= 0.05
    assert gates[1] == pytest.approx(7.0)


def test_the_late_pumps_work_is_done_by_whoever_comes_by(cluster: Cluster, put: Put) -> None:
    """More than 4 ms late, the next enqueue of another lane releases for it."""
    put("a", "b", lane_fields={"p1": 10, "d1": 1})
    cluster.advance(0.1 + 0.003)
    put("x", "y", lane="other", lane_fields={"p1": 1, "d1": 1})
    assert "b" not in cluster.ready()
    cluster.advance(0.002)
    put("z", lane="other")
    assert "b" in cluster.ready()


def test_one_pump_at_a_time(cluster: Cluster) -> None:
    """Another owner is told how long the lease lasts."""
    assert cluster.lanes.pump("one", 500)[0] == 0
    moved, sleep_s = cluster.lanes.pump("two", 500)
    assert moved == -1
    assert 0 < sleep_s <= 0.5
