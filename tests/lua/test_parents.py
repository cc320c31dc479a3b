"""Budgets beside a lane's own: parents that several lanes share, and quotas of a UTC day."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from ratelimit_worker.calls import Cost, LaneLimits, Mode, Usage
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.call import US, Place
from ratelimit_worker.contracts.lane import LaneState
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.errors import BadInput, ConfigurationError
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.limit import Change, set_limits
from ratelimit_worker.flow.lane.pin import auto, lane_fields, pin
from ratelimit_worker.flow.lane.tune import ControlPlane
from ratelimit_worker.reports.explain import explain, explanation_text
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.simulate.arrivals import most_in_window
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.wiring import services
from tests.builders import entry
from tests.cluster.test_chaos import settle_all
from tests.conftest import wait_for
from tests.contention import Scene
from tests.fleet import fleet
from tests.lua.cluster import T0_US, Cluster, said
from tests.lua.test_claims import claim

pytestmark = pytest.mark.server

DAY_S = 86_400
FAST: Mapping[str, float | str] = {"p1": 1000, "d1": 1000}


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    """A server with one worker: 64 slots on queue `q`."""
    scene = Cluster(redis_client)
    scene.worker(slots=64)
    return scene


@pytest.fixture
def control(redis_client: redis.Redis) -> ControlPlane:
    """A control plane on the server's own clock."""
    return ControlPlane(lanes=Lanes(redis_client), pins=Pins(redis_client), mode_log=Outbox(redis_client))


def child(
    cluster: Cluster, lane: str, *parents: str, fields: Mapping[str, float | str] = FAST, **bounds: float
) -> None:
    """A lane with parents, quotas, or both."""
    cluster.lanes.set_points(lane, {**fields, "bounds": json.dumps({"parents": parents, **bounds})})


def put(cluster: Cluster, lane: str, *refs: str, tokens: int = 0, **more: Any) -> list[bool]:
    """Calls arrive in a lane → whether each was released at once."""
    call = {"cost": Cost(input_tokens=tokens), "deadline_in_s": 10.0 * DAY_S, **more}
    return [cluster.lanes.enqueue(entry(ref, lane, **call))[0] for ref in refs]


def sent(cluster: Cluster, lane: str, dimension: int = 1) -> float:
    """Units that a lane has sent in all and that were not refused."""
    fields = cluster.lanes.fields(lane)
    return float(fields.get(f"c{dimension}", 0)) - float(fields.get(f"x{dimension}", 0))


def row(cluster: Cluster, parent: str = "org") -> list[str]:
    """Lanes that wait for a parent."""
    found: Any = cluster.client.zrange(keys.turns(parent), 0, -1)
    return [lane.decode() for lane in found]


# ── all or nothing ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_parent_admits_or_nobody_is_charged(cluster: Cluster) -> None:
    """The second call fits the lane and one parent, and not the other: it waits, and none of the three has it."""
    cluster.lanes.set_points("org", {"p2": 100, "d2": 1000})
    cluster.lanes.set_points("team", {"p1": 100, "d1": 100})
    child(cluster, "gpt", "org", "team")
    assert put(cluster, "gpt", "a", tokens=900) == [True]
    assert put(cluster, "gpt", "b", tokens=900) == [False]
    assert [sent(cluster, name) for name in ("gpt", "org", "team")] == [1, 1, 1]
    assert [sent(cluster, name, 2) for name in ("gpt", "org", "team")] == [900, 900, 900]
    assert cluster.pump() == 1.0  # the row is looked at in 8 s
    cluster.live(7.9)
    assert cluster.ready() == ["a"]
    cluster.live(0.1)
    assert cluster.ready() == ["a", "b"]
    assert [sent(cluster, name) for name in ("gpt", "org", "team")] == [2, 2, 2]


def test_the_row_is_looked_at_when_the_parent_admits(cluster: Cluster) -> None:
    """The pump sleeps exactly until then."""
    cluster.lanes.set_points("org", {"p1": 4, "d1": 1})
    child(cluster, "gpt", "org")
    assert put(cluster, "gpt", "a", "b") == [True, False]
    assert cluster.pump() == 0.25
    cluster.advance(0.25)
    cluster.pump()
    assert cluster.ready() == ["a", "b"]
    assert row(cluster) == []


@pytest.mark.parametrize("how", ["unread", "refused", "revoked"])
def test_what_is_given_back_is_given_back_to_all(cluster: Cluster, how: str) -> None:
    """A permit that no start used, and the units of a refusal, return to the lane and to its parents."""
    cluster.lanes.set_points("org", {"p1": 1, "d1": 1})
    child(cluster, "gpt", "org")
    child(cluster, "other", "org")
    put(cluster, "gpt", "a")
    put(cluster, "other", "b")
    tag, _ = cluster.take()
    if how == "unread":
        cluster.lanes.restore([tag])
    elif how == "refused":
        assert cluster.lanes.begin(tag, 30.0).state == "go"
        cluster.back(tag, verdict="refused", gate_s=50.0)
    else:
        cluster.lanes.set_points("gpt", {"gate": cluster.now_us + 50 * US})
        assert cluster.lanes.begin(tag, 30.0).state == "closed"
    assert sent(cluster, "gpt") + sent(cluster, "other") == sent(cluster, "org")
    cluster.pump()
    if how == "unread":
        assert sent(cluster, "org") == 1  # whoever is the first in the row has it
    else:
        assert cluster.ready() == ["b"]  # at once: the parent has its unit again
        assert (sent(cluster, "gpt"), sent(cluster, "other")) == (0, 1)


def test_a_refusal_of_one_lane_closes_no_other(cluster: Cluster) -> None:
    """Its gate is the lane's own; the parent stays open, and keeps its level."""
    cluster.lanes.set_points("org", {"p1": 100, "d1": 50})
    child(cluster, "gpt", "org")
    child(cluster, "other", "org")
    put(cluster, "gpt", "a")
    tag, _ = cluster.begin()
    cluster.back(tag, verdict="refused", gate_s=30.0)
    assert put(cluster, "other", *"bcd") == [True, True, True]
    assert b"gate" not in {name.encode() for name in cluster.lanes.fields("org") if name == "gate"} or (
        int(cluster.lanes.fields("org")["gate"]) <= cluster.now_us
    )


# ── turns ────────────────────────────────────────────────────────────────────────────────────────────────────────


def shared(scene: Scene, org: Mapping[str, float | str], lanes: Mapping[str, int], calls: int) -> None:
    """Lanes of one parent, each with a backlog of calls that cost so many tokens."""
    scene.cluster.lanes.set_points("org", org)
    for lane in lanes:
        child(scene.cluster, lane, "org")
    for _ in range(calls):
        for lane, tokens in lanes.items():
            scene.put(lane, tokens, lane=lane)


@pytest.mark.long
def test_two_lanes_of_one_parent_share_it_equally(redis_client: redis.Redis) -> None:
    """Each gets half in every ten seconds, whatever its name and whoever came first."""
    scene = Scene(redis_client)
    shared(scene, {"p1": 10, "d1": 1, "l1": 0}, {"b": 0, "a": 0}, calls=250)
    scene.run(40.0)
    for window in range(4):
        counted = Counter(start.tenant for start in scene.starts if window * 10 <= start.at_s < window * 10 + 10)
        assert counted["a"] == pytest.approx(50, abs=2)
        assert counted["b"] == pytest.approx(50, abs=2)


@pytest.mark.long
def test_lanes_share_a_parents_tokens_not_its_calls(redis_client: redis.Redis) -> None:
    """One lane's calls are nine times as large: it gets a ninth of the calls, and half of the tokens."""
    scene = Scene(redis_client)
    shared(scene, {"p2": 10_000, "d2": 2000, "l2": 0}, {"large": 900, "small": 100}, calls=700)
    scene.run(10.0)
    tokens = Counter[str]()
    for start in scene.starts:
        tokens[start.tenant] += start.tokens
    assert tokens["large"] / sum(tokens.values()) == pytest.approx(0.5, abs=0.03)
    assert sum(tokens.values()) == pytest.approx(100_000, rel=0.03)


@pytest.mark.long
def test_a_flood_does_not_pass_a_lane_that_waits(redis_client: redis.Redis) -> None:
    """A lane whose calls come and end all the time takes no more than its half from one that waits."""
    scene = Scene(redis_client)
    shared(scene, {"p1": 10, "d1": 1, "l1": 0}, {"quiet": 0, "flood": 0}, calls=1)
    for moment in range(1, 401):
        scene.put("quiet", 0, lane="quiet")
        for _ in range(5):
            scene.put("flood", 0, lane="flood")
        scene.run(moment / 20)
    counted = Counter(start.tenant for start in scene.starts)
    assert counted["quiet"] >= 95
    assert sum(counted.values()) == pytest.approx(200, abs=3)


def test_whoever_frees_a_call_takes_nobodys_turn(cluster: Cluster) -> None:
    """The pump is late; a lane whose call ends finds the parent's next permit, and leaves it to the lane before it."""
    cluster.lanes.set_points("org", {"p1": 1, "d1": 1})
    child(cluster, "busy", "org", fields={**FAST, "cap": 1})
    child(cluster, "quiet", "org")
    put(cluster, "busy", "b0", "b1", "b2")
    put(cluster, "quiet", "q0")
    tag, _ = cluster.begin()
    assert row(cluster) == ["quiet"]  # the other one waits for its own call
    cluster.advance(1.003)
    cluster.free(tag)
    assert cluster.ready() == []
    cluster.pump()
    assert cluster.ready() == ["q0"]
    cluster.advance(1)
    cluster.pump()
    assert cluster.ready() == ["q0", "b1"]


def test_a_lane_that_comes_late_is_not_behind_anothers_backlog(redis_client: redis.Redis) -> None:
    """Its first call is among the next two of the parent."""
    scene = Scene(redis_client)
    shared(scene, {"p1": 10, "d1": 1, "l1": 0}, {"old": 0}, calls=100)
    scene.run(3.0)
    child(scene.cluster, "new", "org")
    before = len(scene.starts)
    late = scene.put("new", 0, lane="new")
    scene.run(3.3)
    assert late in [start.ref for start in scene.starts[before : before + 2]]


def test_a_lane_that_waits_for_itself_holds_up_nobody(redis_client: redis.Redis) -> None:
    """One lane's gate is closed, another's own pace is slow: what they leave of the parent is the third's."""
    scene = Scene(redis_client)
    shared(scene, {"p1": 10, "d1": 1, "l1": 0}, {"shut": 0, "slow": 0, "free": 0}, calls=200)
    scene.cluster.lanes.set_points("shut", {"gate": scene.cluster.now_us + 100 * US})
    scene.cluster.lanes.set_points("slow", {"p1": 1, "d1": 1, "l1": 0})
    scene.run(20.0)
    counted = Counter(start.tenant for start in scene.starts)
    assert counted["shut"] <= 1
    assert counted["slow"] == pytest.approx(20, abs=2)
    assert sum(counted.values()) == pytest.approx(200, abs=3)


@pytest.mark.long
def test_nobody_starves_between_two_parents(redis_client: redis.Redis) -> None:
    """A lane needs both of two parents, each of which another lane wants all of: it gets its half of the scarcer."""
    scene = Scene(redis_client)
    scene.cluster.lanes.set_points("org", {"p1": 7, "d1": 2, "l1": 0})
    scene.cluster.lanes.set_points("team", {"p1": 10, "d1": 2, "l1": 0.5})
    child(scene.cluster, "both", "org", "team")
    child(scene.cluster, "one", "org")
    child(scene.cluster, "two", "team")
    for _ in range(300):
        for lane in ("one", "two", "both"):
            scene.put(lane, 0, lane=lane)
    scene.run(30.0)
    counted = Counter(start.tenant for start in scene.starts)
    assert counted["both"] >= 0.8 * 7 * 30 / 2
    assert counted["one"] + counted["both"] >= 0.9 * 7 * 30  # and little is lost by waiting for two at once
    assert counted["two"] + counted["both"] >= 0.9 * 10 * 30


@pytest.mark.long
def test_a_slow_parent_does_not_hold_up_a_fast_one(redis_client: redis.Redis) -> None:
    """A lane that waits for its team, one call a second, leaves the organisation's hundred to the others."""
    scene = Scene(redis_client)
    scene.cluster.lanes.set_points("org", {"p1": 100, "d1": 2, "l1": 0})
    scene.cluster.lanes.set_points("team", {"p1": 1, "d1": 1, "l1": 0})
    child(scene.cluster, "slow", "org", "team")
    child(scene.cluster, "fast", "org")
    for _ in range(1100):
        scene.put("fast", 0, lane="fast")
    for _ in range(20):
        scene.put("slow", 0, lane="slow")
    scene.run(10.0)
    counted = Counter(start.tenant for start in scene.starts)
    assert counted["slow"] == pytest.approx(10, abs=1)
    assert sum(counted.values()) >= 980


def test_a_parents_cap_holds_over_its_lanes(cluster: Cluster) -> None:
    """Two at once in all; the end of one lets the next go, of the lane whose turn it is."""
    cluster.lanes.set_points("org", {"cap": 2})
    for lane in ("a", "b"):
        child(cluster, lane, "org")
    put(cluster, "a", *[f"a{number}" for number in range(5)])
    put(cluster, "b", *[f"b{number}" for number in range(5)])
    order: list[str] = []
    while len(order) < 10:
        assert cluster.out() == min(2, 10 - len(order))
        tag, begun = cluster.begin()
        assert begun.state == "go"
        cluster.settle(tag, lane=tag[0])
        cluster.free(tag)
        order.append(tag.partition(".")[0])
        cluster.pump()
    assert Counter(ref[0] for ref in order[2:8]) == {"a": 3, "b": 3}
    assert cluster.client.exists("rlw:out:org", keys.turns("org")) == 0


def test_a_dead_workers_calls_count_at_the_parent_until_their_leases_end(cluster: Cluster) -> None:
    """Then they go back, and the parent has room for them again."""
    cluster.lanes.set_points("org", {"cap": 1})
    child(cluster, "a", "org")
    child(cluster, "b", "org")
    put(cluster, "a", "x")
    cluster.begin()
    put(cluster, "b", "y")
    cluster.kill()
    cluster.worker("other", slots=4)
    cluster.live(20)
    assert cluster.ready() == []
    cluster.live(15)
    assert len(cluster.ready()) == 1


# ── set-points, modes ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_parents_new_set_points_wake_its_lanes(cluster: Cluster) -> None:
    """What was closed opens, in all lanes."""
    cluster.lanes.set_points("org", {"p1": 0, "d1": 10, "l1": 10})
    for lane in ("a", "b"):
        child(cluster, lane, "org")
        assert put(cluster, lane, lane) == [False]
    cluster.live(60)
    assert cluster.ready() == []
    cluster.lanes.set_points("org", {"p1": 10})
    cluster.pump()
    assert sorted(cluster.ready()) == ["a", "b"]


def test_a_parents_gate_sends_back_what_has_not_begun(cluster: Cluster) -> None:
    """As the lane's own does; no attempt is used, and the parent is charged for nothing."""
    cluster.lanes.set_points("org", {"p1": 10, "d1": 10})
    child(cluster, "gpt", "org")
    put(cluster, "gpt", "a")
    cluster.lanes.set_points("org", {"gate": cluster.now_us + 5 * US})
    assert cluster.begin()[1].state == "closed"
    assert (sent(cluster, "org"), sent(cluster, "gpt"), cluster.out()) == (0, 0, 0)
    cluster.live(5)
    assert cluster.begin()[1].number == 1


def test_a_lane_leaves_its_parent(cluster: Cluster) -> None:
    """What waits goes on at the lane's own pace; what is out is given back to the parent that was charged."""
    cluster.lanes.set_points("org", {"p1": 1, "d1": 1})
    child(cluster, "gpt", "org")
    put(cluster, "gpt", "a", "b", "c")
    assert cluster.ready() == ["a"]
    cluster.lanes.set_points("gpt", {"bounds": ""})
    cluster.pump()
    assert cluster.ready() == ["a", "b", "c"]
    tag, _ = cluster.take()
    cluster.lanes.restore([tag])
    assert sent(cluster, "org") == 0
    cluster.live(2)
    assert row(cluster) == []
    assert cluster.client.exists("rlw:out:org") == 0


def test_a_parent_may_have_calls_of_its_own(cluster: Cluster) -> None:
    """They are charged to it once, and its lanes get what is left."""
    cluster.lanes.set_points("org", {"p1": 1, "d1": 4})
    child(cluster, "gpt", "org")
    assert put(cluster, "org", "a", "b") == [True, True]
    assert put(cluster, "gpt", *"cde") == [True, True, False]
    assert (sent(cluster, "org"), sent(cluster, "gpt")) == (4, 2)


@pytest.mark.parametrize("mode", [Mode.HALT, Mode.EMERGENCY])
def test_a_mode_of_the_parent_holds_for_its_lanes(redis_client: redis.Redis, control: ControlPlane, mode: Mode) -> None:
    """Pinned HALT: nothing goes; pinned EMERGENCY: nothing more at first. Given back, they go on."""
    lanes = control.lanes
    assert isinstance(lanes, Lanes)
    lanes.beat("w", 64, 600.0, ["q"], 30.0, [])
    lanes.establish("org", limit_fields(LaneLimits(rpm=6000)))
    for lane in ("a", "b"):
        lanes.establish(lane, limit_fields(LaneLimits(rpm=6000, parents=("org",))))
    pin(control, mode, lane="org", who="me")
    for lane in ("a", "b"):
        assert lanes.enqueue(entry(lane, lane))[0] is False
    lanes.pump("pump", 500)
    assert redis_client.llen(keys.ready(keys.ALL, "q")) == 0
    auto(control, lane="org", who="me")
    lanes.set_points("org", {"gate": 0, "l1": 10})
    lanes.pump("pump", 500)
    assert redis_client.llen(keys.ready(keys.ALL, "q")) == 2


def test_a_mode_of_a_shared_parent_leaves_what_was_told_of_it(control: ControlPlane) -> None:
    """REDUCED halves its tokens, EMERGENCY bounds its requests too; given back, it has its tokens and nothing else."""
    lanes = control.lanes
    assert isinstance(lanes, Lanes)
    lanes.establish("org", limit_fields(LaneLimits(tpm=6000, shared=True, adaptive=False)))
    pin(control, Mode.REDUCED, lane="org", who="me")
    assert ("p1" in lanes.fields("org"), float(lanes.fields("org")["p2"])) == (False, 50)
    pin(control, Mode.EMERGENCY, lane="org", who="me")
    assert float(lanes.fields("org")["p1"]) == pytest.approx(10 / 60)
    auto(control, lane="org", who="me")
    assert ("p1" in lanes.fields("org"), float(lanes.fields("org")["p2"])) == (False, 100)


# ── quotas of a day ──────────────────────────────────────────────────────────────────────────────────────────────

INTO_DAY_S = T0_US // US % DAY_S  #: the test begins so far into its UTC day


@pytest.mark.parametrize(("quota", "tokens"), [({"rpd": 3}, 0), ({"tpd": 1000}, 300)])
def test_a_quota_holds_for_a_utc_day(cluster: Cluster, quota: dict[str, Any], tokens: int) -> None:
    """Three calls go; the others wait until midnight UTC without an attempt, and nobody looks in between."""
    child(cluster, "gpt", **quota)
    put(cluster, "gpt", *"abcde", tokens=tokens)
    assert cluster.ready() == ["a", "b", "c"]
    tag, begun = cluster.begin()
    assert begun.state == "go"
    cluster.free(tag)
    (planned,) = cluster.client.zrange("rlw:next", 0, -1, withscores=True)
    assert planned == (b"gpt", T0_US + (DAY_S - INTO_DAY_S) * US)
    assert cluster.pump() == 1.0
    cluster.advance(DAY_S - INTO_DAY_S - 1)
    cluster.worker(slots=64)
    cluster.pump()
    assert cluster.ready() == ["b", "c"]
    cluster.advance(1)
    cluster.pump()
    assert cluster.ready() == ["b", "c", "d", "e"]
    record = cluster.lanes.record("d")
    assert record is not None
    assert (record.tries, record.number) == (0, 0)


def test_a_quota_is_given_back_with_the_permit(cluster: Cluster) -> None:
    """Of a refusal, and of a call that no worker began; not what was used on another day."""
    child(cluster, "gpt", rpd=2)
    put(cluster, "gpt", *"abc")
    day = keys.day("gpt", cluster.now_us / US)
    assert cluster.client.hget(day, "requests") == b"2"
    assert 0 < cluster.client.ttl(day) <= 2 * DAY_S
    tag, _ = cluster.begin()
    cluster.back(tag, verdict="refused", gate_s=10.0)
    assert cluster.client.hget(day, "requests") == b"1"
    other, _ = cluster.take()
    cluster.advance(DAY_S)
    cluster.lanes.restore([other])
    assert cluster.client.hget(day, "requests") == b"1"  # it is over


@pytest.mark.parametrize("used", [200, 1500])
def test_tokens_that_an_answer_did_not_use_go_back_to_parents_and_quotas(cluster: Cluster, used: int) -> None:
    """What a call reserved beyond its usage is the parents' again, too, and the day's; what was missing they pay."""
    cluster.lanes.set_points("org", {"p2": 10.0, "d2": 1000.0, "bounds": json.dumps({"tpd": 5000})})
    child(cluster, "gpt", "org", tpd=9000)
    child(cluster, "other", "org")
    put(cluster, "gpt", "a", tokens=1000)
    assert put(cluster, "other", "b", tokens=700) == [False]
    tag, _ = cluster.begin()
    cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=b"a", lesson=said("plain", usage=Usage(used, 0))))
    today = [cluster.client.hget(keys.day(lane, cluster.now_us / US), "tokens") for lane in ("gpt", "org")]
    assert today == [b"%d" % used, b"%d" % used]
    assert (sent(cluster, "gpt", 2), sent(cluster, "org", 2)) == (used, used)
    cluster.pump()
    assert cluster.ready() == (["b"] if used == 200 else [])
    assert float(cluster.lanes.fields("org")["l2"]) == (100 if used == 200 else -500)


def test_a_call_that_may_be_shed_and_one_that_shares_remember_their_parents(cluster: Cluster) -> None:
    """A record has no holes, whatever of a fingerprint, a way out of an emergency and parents a call has."""
    cluster.lanes.set_points("org", {"p1": 100, "d1": 50})
    child(cluster, "gpt", "org")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "sheds": {"sheds": "result"},
        "shares": {"claim": claim("f")},
        "both": {"claim": claim("g"), "sheds": "result"},
    }
    for ref, more in kinds.items():
        put(cluster, "gpt", ref, **more)
        tag, begun = cluster.begin()
        assert begun.state == "go"
        degrades = 2 if "sheds" in more else False
        assert cluster.packed(ref)[Place.CLAIM - 1 : Place.PARENTS] == [
            more["claim"].fingerprint if "claim" in more else False,
            degrades,
            ["org"],
        ]
        assert cluster.client.zscore(keys.out("org"), tag) == 1
        cluster.back(tag, after_s=1.0)
        assert cluster.packed(ref)[Place.DEGRADES - 1 :] == [degrades]  # it is out no more
    cluster.advance(1.0)
    cluster.lanes.set_points("org", {"gate": cluster.now_us + 50 * US})
    cluster.lanes.set_points("gpt", {"mode": "EMERGENCY"})
    cluster.pump()
    assert sorted(cluster.ready()) == ["both", "sheds"]


def test_a_call_larger_than_the_days_quota_goes_when_it_is_whole(cluster: Cluster) -> None:
    """Like one larger than a bucket; and it is all that goes on that day."""
    child(cluster, "gpt", tpd=1000)
    assert put(cluster, "gpt", "giant", tokens=5000) == [True]
    assert put(cluster, "gpt", "small", tokens=1) == [False]


def test_a_parents_quota_holds_for_its_lanes(cluster: Cluster) -> None:
    """Four a day for both."""
    child(cluster, "org", fields={}, rpd=4)
    for lane in ("a", "b"):
        child(cluster, lane, "org")
        put(cluster, lane, *[f"{lane}{number}" for number in range(3)])
    cluster.live(5)
    assert len(cluster.ready()) == 4
    while cluster.lying():
        tag, _ = cluster.begin()
        cluster.free(tag)
    cluster.advance(DAY_S - INTO_DAY_S - 6)
    cluster.worker(slots=64)
    cluster.pump()
    assert cluster.ready() == []
    cluster.advance(1)
    cluster.pump()
    assert len(cluster.ready()) == 2


# ── what a person says ───────────────────────────────────────────────────────────────────────────────────────────


def settings_of(lanes: Any) -> Any:
    return read_settings({"MAISD_LANES": json.dumps(lanes)})


def test_parents_and_quotas_come_from_the_settings(redis_client: redis.Redis, control: ControlPlane) -> None:
    """A lane's first call makes its parents too; only what was told of these binds."""
    settings = settings_of(
        {"gpt": {"rpm": 600, "rpd": 1000, "parents": ["org"]}, "org": {"tpm": 60_000, "tpd": 1_000_000}}
    )
    fields = lane_fields(control, settings, "gpt")
    lanes = control.lanes
    assert isinstance(lanes, Lanes)
    lanes.enqueue(entry("a", "gpt", lane_fields=fields))
    gpt, org = lanes.fields("gpt"), lanes.fields("org")
    assert LaneState.decode(gpt).told.limits == LaneLimits(rpm=600, rpd=1000, parents=("org",))
    assert LaneState.decode(org).told.limits == LaneLimits(tpm=60_000, tpd=1_000_000, shared=True, adaptive=False)
    assert "p1" not in org
    assert float(org["p2"]) == 1000
    assert 0 < int(redis_client.ttl(keys.lane("org"))) <= 30 * DAY_S
    assert lanes.names() == ["gpt", "org"]


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ({"a": {"parents": ["b"]}}, "lane 'a': unknown parent 'b'"),
        ({"a": {"parents": ["a"]}}, "lane 'a': parents=['a']: a lane is no parent of itself"),
        ({"a": {"parents": ["b"]}, "b": {"rpm": 1, "parents": ["a"]}}, "parent 'b' has parents itself"),
        ({"a": {"parents": ["b"]}, "b": {}}, "parent 'b' has no limit"),
        ({"a": {"parents": "b"}, "b": {"rpm": 1}}, "parents='b': use a list"),
        ({"a": {"parents": list("bcdef")}, **{name: {"rpm": 1} for name in "bcdef"}}, "use at most 4"),
        ({"a": {"rpd": 0}}, "rpd=0"),
        ({"a": {"tpd": -5}}, "tpd=-5"),
    ],
)
def test_bad_parents_are_refused_in_one_line(lanes: Any, words: str) -> None:
    """The message names lane, value and fix."""
    with pytest.raises(ConfigurationError) as refused:
        settings_of(lanes)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_limits_set_gives_and_takes_parents(control: ControlPlane) -> None:
    """The parent is made from the settings where it is not known; what is not named stays."""
    others = {"org": LaneLimits(tpm=6000)}
    set_limits(control, "gpt", Change(rpm=60.0, rpd=9.0), LaneLimits(), others)
    _, after = set_limits(control, "gpt", Change(parents=("org",)), LaneLimits(), others)
    assert after == LaneLimits(rpm=60.0, rpd=9.0, parents=("org",))
    assert control.lanes.state("org").told.limits == LaneLimits(tpm=6000, shared=True, adaptive=False)
    set_limits(control, "gpt", Change(rpm=120.0), LaneLimits())
    assert control.lanes.state("gpt").told.limits == LaneLimits(rpm=120.0, rpd=9.0, parents=("org",))
    set_limits(control, "gpt", Change(parents=(), rpd=0.0), LaneLimits())
    assert control.lanes.state("gpt").told.limits == LaneLimits(rpm=120.0)


def test_a_lane_known_by_its_limits_alone_becomes_shared(control: ControlPlane) -> None:
    """It was set before it was a parent, and has had no call: nothing but its tokens binds."""
    lanes: Any = control.lanes
    set_limits(control, "org", Change(tpm=6000.0), LaneLimits())
    assert "p1" in lanes.fields("org")
    set_limits(control, "gpt", Change(parents=("org",)), LaneLimits())
    assert "p1" not in lanes.fields("org")
    set_limits(control, "org", Change(tpm=12_000.0), LaneLimits())
    assert "p1" not in lanes.fields("org")
    assert float(lanes.fields("org")["p2"]) == 200


@pytest.mark.parametrize("parents", [("nobody",), ("gpt",), ("child",), ("empty",), tuple("abcde"), ("org", "org")])
def test_limits_set_refuses_parents_that_cannot_be(control: ControlPlane, parents: tuple[str, ...]) -> None:
    """Unknown, itself, with parents, without a limit, too many, twice."""
    set_limits(control, "org", Change(tpm=1.0), LaneLimits())
    set_limits(control, "child", Change(parents=("org",)), LaneLimits())
    set_limits(control, "empty", Change(concurrency=0), LaneLimits())
    with pytest.raises(BadInput):
        set_limits(control, "gpt", Change(parents=parents), LaneLimits())
    with pytest.raises(BadInput, match="is a parent of 'child'"):
        set_limits(control, "org", Change(parents=("empty",)), LaneLimits())


def test_explain_names_the_parent_and_the_quota(redis_client: redis.Redis, control: ControlPlane) -> None:
    """What a call waits for is said in words."""
    lanes = control.lanes
    assert isinstance(lanes, Lanes)
    lanes.beat("w", 64, 600.0, ["q"], 30.0, [])
    lanes.establish("org", {"p2": 0.001, "d2": 10, "tpm": 0.06, "shared": 1})
    lanes.establish("gpt", limit_fields(LaneLimits(rpm=6000, parents=("org",))))
    lanes.establish("day", limit_fields(LaneLimits(rpm=6000, rpd=1)))
    for number in range(2):
        lanes.enqueue(entry(f"g{number}", "gpt", cost=Cost(input_tokens=10)))
        lanes.enqueue(entry(f"d{number}", "day"))
    live = Live(redis_client)
    told = {ref: explanation_text(explain(live, [], ref)) for ref in ("g1", "d1")}
    assert "parent org" in told["g1"]
    assert "quota: 1 requests a day are used up until the next UTC day" in told["d1"]
    state = {lane.lane: lane for lane in cluster_state(live.now(), None).lanes}
    assert state["day"].allowed_per_min == 0
    assert state["day"].used_today == {"requests": 1.0, "tokens": 0.0}
    assert state["org"].out == 1


def test_limits_set_on_the_command_line(
    redis_server: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Quotas and parents are said as they are shown, and taken away again."""
    for name in [name for name in os.environ if name.startswith(("MAISD_", "CELERY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAISD_REDIS_URL", f"unix://{redis_server}")
    monkeypatch.setenv("MAISD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("MAISD_LANES", json.dumps({"org": {"tpm": 6000}, "chat": {"rpm": 60}}))

    def limits(*arguments: str, code: int = 0) -> str:
        done = CliRunner().invoke(main, ["limits", "set", *arguments])
        assert done.exit_code == code, (done.output, done.exception)
        return done.output.strip()

    said = limits("chat", "--parent", "org", "--rpd", "500", "--tpd", "20000")
    assert said.endswith("-> 60/min requests, 500 requests a day, 20,000 tokens a day, parents org, adaptive")
    shown = CliRunner().invoke(main, ["lanes"]).stdout
    assert "500 requests a day, 20,000 tokens a day, parents org" in shown
    assert limits("chat", "--no-parents", "--rpd", "0", "--tpd", "0").endswith("-> 60/min requests, adaptive")
    assert "is not known" in limits("chat", "--parent", "nobody", code=2)
    assert "not both" in limits("chat", "--parent", "org", "--no-parents", code=2)


# ── on real workers ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
def test_two_lanes_keep_their_parents_rate_on_real_workers() -> None:
    """40/s for both together over two worker processes, half each; one of them is killed, and nothing is lost."""
    with fleet() as made:
        first = made.worker("first")
        made.worker("second")
        tasks = made.agent()
        lanes = services().lanes
        lanes.set_points("org", limit_fields(LaneLimits(rpm=2400, shared=True, adaptive=False)))
        for lane in ("one", "two"):
            lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True, parents=("org",))))
        names = [f"{lane} {number}" for number in range(120) for lane in ("one", "two")]
        results = [tasks.stamp.apply_async((name, 0.02), lane=name[:3]) for name in names]
        wait_for(lambda: len(made.stamps()) >= 100, what="some have run")
        first.kill()
        settle_all(results)
        stamps = made.stamps()
        assert {what for _, what in stamps} == set(names)
        assert most_in_window([at for at, _ in stamps]) <= 45
        both = Counter(what.partition(" ")[0] for _, what in stamps[20:100])
        assert min(both["one"], both["two"]) >= 30
        # each start was charged to the parent, and nothing else but what the dead worker had begun and not yet noted
        assert len(stamps) <= int(lanes.fields("org")["c1"]) <= len(stamps) + 4
