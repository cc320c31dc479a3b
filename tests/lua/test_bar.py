"""What holds a call back, and until when: what the script says is what the scheduler then does."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.call import US, Claim
from ratelimit_worker.contracts.lane import SHUT_US
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.stores.live import Live
from tests.builders import entry
from tests.lua.cluster import CALM, LEASE_S, OPEN, T0_US, Cluster

pytestmark = pytest.mark.server

LANE = "gpt"
LIFE_S = 200_000.0  #: of workers: none dies while the test moves the clock
GRAIN_US = 5


def scene(client: redis.Redis, slots: int = 64, queues: tuple[str, ...] = ("q",)) -> Cluster:
    """A server whose worker outlives the test."""
    cluster = Cluster(client)
    cluster.lanes.beat("w", slots, LIFE_S, queues, LEASE_S, [])
    return cluster


def live(cluster: Cluster) -> Live:
    return Live(cluster.client, time_us=cluster.now_us)


def bars(cluster: Cluster, ref: str = "", lane: str = LANE) -> tuple[Bar, ...]:
    found = live(cluster).bars(lane, ref)
    assert found is not None
    return found[1]


def place(cluster: Cluster, ref: str, lane: str = LANE) -> int | None:
    found = live(cluster).bars(lane, ref)
    assert found is not None
    return found[0]


def shape(bar: Bar) -> tuple[Any, ...]:
    """A bar without its time."""
    return (bar.kind.value, bar.detail, bar.number, *([bar.parent.kind.value] if bar.parent is not None else []))


def shapes(cluster: Cluster, ref: str = "") -> list[tuple[Any, ...]]:
    return [shape(bar) for bar in bars(cluster, ref)]


def put(cluster: Cluster, *refs: str, lane: str = LANE, **more: Any) -> None:
    for ref in refs:
        cluster.lanes.enqueue(entry(ref, lane, **{"deadline_in_s": 300_000.0, **more}))


def gap_and_probe(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "mode": "EMERGENCY", "width": 1, "probes": 1, "gap": 2 * US})
    put(cluster, "a", "b")


def a_pin_begins(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "mode": "EMERGENCY", "pin": "x", "gate": cluster.now_us + 6 * US})
    put(cluster, "a")


def refused_at_fixed_rates(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "mode": "EMERGENCY", "gate": cluster.now_us + 9 * US})
    put(cluster, "a")


def probed_under_a_pin(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "mode": "REDUCED", "pin": "x", "width": 2, "probes": 2, "gap": 2 * US})
    put(cluster, "a", "b")


def ramping(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "width": 1, "ramp": 1, "probes": 0, "gap": 0})
    put(cluster, "a", "b")


def an_older_tuner(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "width": 1, "gap": 0})
    put(cluster, "a", "b")


def in_flight(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "width": 2, "flight": 2, "ramp": 9, "probes": 0})
    put(cluster, "a", "b", "c")


def capped(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "cap": 2})
    put(cluster, "a", "b", "c")


def unread(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, CALM)
    put(cluster, "a", "b", "c", "d")


def refused(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, OPEN)
    put(cluster, "a")
    tag, _ = cluster.begin()
    cluster.back(tag, verdict="refused", gate_s=7.0)


def shut(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "mode": "HALT", "gate": SHUT_US})
    put(cluster, "a")


def closed(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {"p1": 0, "d1": 1})
    put(cluster, "a")


def tokens(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "p2": 100, "d2": 1000})
    put(cluster, "a", "b", cost=Cost(input_tokens=900))


def used_up(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {**OPEN, "bounds": json.dumps({"rpd": 1})})
    put(cluster, "a", "b")


def nobody(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, OPEN)
    put(cluster, "a", queue="none")


def no_slot(cluster: Cluster) -> None:
    cluster.lanes.beat("w", 2, LIFE_S, ["q"], LEASE_S, [])
    cluster.lanes.set_points(LANE, CALM)
    put(cluster, "a", "b", "c")
    for _ in range(3):
        if cluster.ready():
            cluster.begin()


def in_a_row_for_slots(cluster: Cluster) -> None:
    """Its parent became so fast that a call may be ahead of a slot; it is woken by the slot all the same."""
    cluster.lanes.beat("w", 1, LIFE_S, ["q"], LEASE_S, [])
    cluster.lanes.set_points("other", CALM)
    put(cluster, "x", lane="other")
    cluster.begin()
    cluster.lanes.set_points("org", {**OPEN, "p1": 2})
    cluster.lanes.set_points(LANE, {**OPEN, "bounds": json.dumps({"parents": ["org"]})})
    put(cluster, "a")
    cluster.lanes.set_points("org", {"p1": 200})


def a_parent_is_full(cluster: Cluster) -> None:
    cluster.lanes.set_points("org", {**OPEN, "cap": 1})
    cluster.lanes.set_points(LANE, {**OPEN, "bounds": json.dumps({"parents": ["org"]})})
    put(cluster, "a", "b")


def a_parent_is_spent(cluster: Cluster) -> None:
    cluster.lanes.set_points("org", {"p1": 1, "d1": 1})
    cluster.lanes.set_points(LANE, {**OPEN, "bounds": json.dumps({"parents": ["org"]})})
    put(cluster, "a", "b")


def later(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, OPEN)
    put(cluster, "a", due_in_s=9.0)


def nothing_waits(cluster: Cluster) -> None:
    cluster.lanes.set_points(LANE, {"p1": 1, "d1": 1})
    put(cluster, "a")


@pytest.mark.parametrize(
    ("before", "told", "until_s"),
    [
        (gap_and_probe, [("probes", "", 1), ("gate", "mode", 0)], None),
        (a_pin_begins, [("gate", "mode", 0)], 6.0),
        (refused_at_fixed_rates, [("gate", "refused", 0)], 9.0),
        (probed_under_a_pin, [("gate", "mode", 0)], 2.0 * (0.8 + 0.4 * 0.6180339887)),
        (ramping, [("ramp", "", 1)], None),
        (an_older_tuner, [("ramp", "", 1)], None),
        (in_flight, [("flight", "", 2)], None),
        (capped, [("concurrency", "", 2)], None),
        (unread, [("begins", "", 2)], None),
        (refused, [("gate", "refused", 0), ("pace", "requests", 0)], 7.0),
        (shut, [("gate", "shut", 0)], None),
        (closed, [("pace", "requests", 0)], None),
        (tokens, [("pace", "tokens", 0)], 8.0),
        (used_up, [("quota", "requests", 1)], 86_400.0 - T0_US / US % 86_400.0),
        (nobody, [("slots", "none", 0)], None),
        (no_slot, [("slots", "q", 2)], None),
        (in_a_row_for_slots, [("slots", "q", 1)], None),
        (a_parent_is_full, [("parent", "org", 1, "concurrency")], None),
        (a_parent_is_spent, [("parent", "org", 1, "pace")], 1.0),
        (later, [("due", "", 0)], 9.0),
        (nothing_waits, [("pace", "requests", 0)], 1.0),
    ],
)
def test_each_kind_has_its_name(
    redis_client: redis.Redis, before: Callable[[Cluster], None], told: list[tuple[Any, ...]], until_s: float | None
) -> None:
    """And says until when, where anybody knows."""
    cluster = scene(redis_client)
    before(cluster)
    found = bars(cluster)
    assert [shape(bar) for bar in found] == told
    ends = [bar.until_s for bar in found if bar.until_s is not None]
    if until_s is not None:
        assert max(ends) - T0_US / US == pytest.approx(until_s)
    else:
        assert len(ends) < len(found)


def test_a_call_is_told_its_own_place(redis_client: redis.Redis) -> None:
    """Calls of other classes are counted as their ages make them; what holds the first holds all."""
    cluster = scene(redis_client)
    cluster.lanes.set_points(LANE, {"p1": 1, "d1": 1})
    put(cluster, "gone", "a", "b")
    put(cluster, "urgent", priority=Priority.HIGH)
    put(cluster, "slow", priority=Priority.LOW)
    assert [place(cluster, ref) for ref in ("urgent", "a", "b", "slow", "gone")] == [0, 1, 2, 3, None]
    assert shapes(cluster, "urgent") == [("pace", "requests", 0)]
    assert shapes(cluster, "b") == [("turn", "", 2), ("pace", "requests", 0)]
    seen = []
    for _ in range(4):
        cluster.advance(1.0)
        cluster.lanes.pump("pump", 500)
        seen += cluster.run_all()
    assert seen == ["gone", "urgent", "a", "b", "slow"]


def test_a_class_that_has_aged_goes_first(redis_client: redis.Redis) -> None:
    """A place is what the scheduler makes of it: after 60 s of service a normal call goes before a new urgent one."""
    cluster = scene(redis_client)
    cluster.lanes.set_points(LANE, {"p1": 1, "d1": 1})
    put(cluster, "gone")
    put(cluster, "old")
    put(cluster, *(f"u{i}" for i in range(70)), priority=Priority.HIGH)
    expected = place(cluster, "old")
    order = []
    for _ in range(75):
        cluster.advance(1.0)
        cluster.lanes.pump("pump", 500)
        order += cluster.run_all()
    assert expected is not None
    assert abs(order.index("old") - 1 - expected) <= 1


def test_a_follower_waits_for_its_leader(redis_client: redis.Redis) -> None:
    """Not for a permit."""
    cluster = scene(redis_client)
    cluster.lanes.set_points(LANE, {"p1": 1, "d1": 1})
    same = Claim(fingerprint="f", ttl_s=60.0, join=True)
    put(cluster, "first")
    put(cluster, "leader", "follower", claim=same)
    assert shapes(cluster, "follower") == [("claim", "leader", 0)]
    assert place(cluster, "follower") is None


def test_a_retry_waits_for_its_budget_alone_where_others_wait(redis_client: redis.Redis) -> None:
    """It is behind all of them, and its budget says why."""
    cluster = scene(redis_client)
    cluster.lanes.set_points(LANE, {"p1": 1, "d1": 1, "rb": 0.0, "rs": 0, "rt": cluster.now_us})
    put(cluster, "again")
    tag, _ = cluster.begin()
    put(cluster, "x", "y")
    cluster.lanes.set_points(LANE, {"rb": 0.0, "rs": 1, "rt": cluster.now_us})
    cluster.back(tag, after_s=0.1, tries=1)
    assert shape(bars(cluster, "again")[0]) == ("due", "", 0)
    cluster.advance(0.2)
    cluster.pump()
    found = bars(cluster, "again")
    assert [bar.kind for bar in found] == [BarKind.RETRIES, BarKind.TURN, BarKind.PACE]
    assert found[1].number == 2


def test_suspects_go_one_at_a_time(redis_client: redis.Redis) -> None:
    """A call whose worker died waits while another such call runs."""
    cluster = scene(redis_client)
    cluster.lanes.set_points(LANE, CALM)
    put(cluster, "a", "b")
    tags = [cluster.begin()[0], cluster.begin()[0]]
    cluster.lanes.set_points(LANE, {"gate": cluster.now_us + US})
    cluster.lanes.restore(tags, lost=True)
    cluster.advance(1.0)
    cluster.pump()
    held = "b" if cluster.ready() == ["a"] else "a"
    kinds = {bar.kind for bar in bars(cluster, held)}
    assert kinds & {BarKind.SUSPECT, BarKind.DUE}


def test_the_script_may_not_write(redis_client: redis.Redis) -> None:
    """The server would refuse it; nothing changes, even where workers have died or the clock was set back."""
    cluster = scene(redis_client)
    cluster.lanes.set_points("org", {"p1": 1, "d1": 1})
    cluster.lanes.set_points(LANE, {**OPEN, "bounds": json.dumps({"parents": ["org"], "rpd": 2})})
    put(cluster, "a", "b", "c")
    put(cluster, "d", queue="none")
    before = {key: redis_client.dump(key) for key in redis_client.keys("*")}
    for at_us in (cluster.now_us, cluster.now_us + 10 * US, cluster.now_us - 100 * US, cluster.now_us + 300_000 * US):
        for ref in ("", "a", "b", "d", "unknown"):
            assert Live(redis_client, time_us=at_us).bars(LANE, ref) is not None
    assert {key: redis_client.dump(key) for key in redis_client.keys("*")} == before


# ── what it says is what happens ───────────────────────────────────────────────────────────────────────────────────

_PACES = st.sampled_from([0.2, 1.0, 3.0, 40.0, 1000.0])
_DEPTHS = st.sampled_from([1.0, 2.0, 20.0])
_BUCKET = st.fixed_dictionaries({"p1": _PACES, "d1": _DEPTHS})
_LANES = st.fixed_dictionaries(
    {"p1": _PACES, "d1": _DEPTHS},
    optional={
        "g1": st.sampled_from([0.0, 0.25]),
        "p2": st.sampled_from([50.0, 1000.0]),
        "d2": st.sampled_from([100.0, 3000.0]),
        "cap": st.sampled_from([1, 3]),
        "told": st.just(1),
    },
)
_MODES = st.sampled_from(
    [
        {},
        {"width": 1, "probes": 1, "gap": US, "mode": "EMERGENCY"},
        {"width": 2, "ramp": 2},
        {"width": 1_000_000, "probes": 1_000_000, "gap": 6 * US, "mode": "EMERGENCY", "pin": "x"},
    ]
)
_CALLS = st.lists(st.tuples(st.sampled_from([10, 400]), st.sampled_from(Priority)), min_size=1, max_size=8)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    fields=_LANES,
    mode=_MODES,
    parent=st.none() | _BUCKET,
    quota=st.sampled_from([None, 3]),
    calls=_CALLS,
    slots=st.sampled_from([1, 3, 64]),
    gate_s=st.sampled_from([0.0, 0.0, 2.5]),
    ended=st.integers(0, 4),
)
@example(  # behind its gate a lane that headers tell earns nothing: 2.5 s, and then 5 s
    fields={"p1": 0.2, "d1": 1.0, "told": 1},
    mode={},
    parent=None,
    quota=None,
    calls=[(10, Priority.NORMAL)] * 3,
    slots=64,
    gate_s=2.5,
    ended=1,
)
def test_what_is_said_is_what_happens(
    redis_client: redis.Redis,
    fields: Mapping[str, float],
    mode: Mapping[str, Any],
    parent: Mapping[str, float] | None,
    quota: int | None,
    calls: list[tuple[int, Priority]],
    slots: int,
    gate_s: float,
    ended: int,
) -> None:
    """Nothing bars: the pump has released it. Until T: nothing leaves before, and something then. An event: nothing."""
    redis_client.flushall()
    cluster = scene(redis_client, slots)
    bounds: dict[str, Any] = {"rpd": quota} if quota else {}
    if parent is not None:
        cluster.lanes.set_points("org", dict(parent))
        bounds["parents"] = ["org"]
    cluster.lanes.set_points(LANE, {**fields, **mode, **({"bounds": json.dumps(bounds)} if bounds else {})})
    for number, (size, priority) in enumerate(calls):
        put(cluster, f"c{number}", cost=Cost(input_tokens=size), priority=priority)
    for _ in range(ended):
        end_one(cluster)
    if gate_s:
        cluster.lanes.set_points(LANE, {"gate": cluster.now_us + round(gate_s * US)})
    cluster.pump()
    for _ in range(6):
        if not waiting(cluster):
            return
        found = bars(cluster)
        assert found, "nothing holds it back, and the pump has left it"
        first = min((f"c{n}" for n in range(len(calls))), key=lambda ref: (at := place(cluster, ref)) is None or at)
        assert bars(cluster, first) == found
        ends = [bar.until_s for bar in found if bar.until_s is not None]
        left = waiting(cluster)
        if len(ends) < len(found):  # an event: time alone changes nothing
            cluster.advance(0.5)
            cluster.pump()
            assert waiting(cluster) == left
            if not cluster.ready():
                return
            end_one(cluster)
            cluster.pump()
            continue
        until_us = round(max(ends) * US)
        at(cluster, until_us - GRAIN_US)
        assert waiting(cluster) == left, "it left before its time"
        at(cluster, until_us + GRAIN_US)  # whoever looks in between rounds up once more
        assert waiting(cluster) < left, "it did not leave at its time"


def waiting(cluster: Cluster) -> int:
    return cluster.lanes.size("q")


def end_one(cluster: Cluster) -> None:
    """A worker takes what lies ready; where the lane has closed since, it goes back."""
    if cluster.ready():
        tag, begun = cluster.begin()
        if begun.state == "go":
            cluster.settle(tag)
            cluster.free(tag)


def at(cluster: Cluster, now_us: int) -> None:
    """It is so late now, and the pump has looked."""
    cluster.now_us = cluster.lanes.run.time_us = now_us
    cluster.pump()
