"""Who starts when many want one lane: tenants by weight, classes that age, caps that hold. `benchmarks/fairness.py`
runs the same scenes whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import redis

from ratelimit_worker.calls import Priority
from ratelimit_worker.contracts.call import US, Place
from ratelimit_worker.contracts.lane import MANY
from tests.builders import entry
from tests.contention import TOKENS_PER_S, Scene, capped, low_under_high, two_tenants
from tests.lua.cluster import Cluster

pytestmark = pytest.mark.server

BAND = 1_400_000_000_000_000  #: of shared/record.lua
TAGS = 10_000  #: the same: what one call counts for
#: A call a tenth of a second, none saved up.
TEN_PER_S: Mapping[str, float | str] = {"p1": 10, "d1": 1, "l1": 0}


@pytest.mark.long
@pytest.mark.parametrize("slower", [1.0, 20.0], ids="sent at 1/{:g} of the pace".format)
def test_tenants_share_tokens_by_weight(redis_client: redis.Redis, slower: float) -> None:
    """Weights 1:3, lognormal costs that differ: within 5 % of 1:3 in every 10 s, whatever the pace was on arrival. A
    third tenant's single call starts within what its fair share promises.
    """
    got = two_tenants(redis_client, 1500, seed=5, slower=slower)
    assert len(got.windows) >= 5
    assert got.worst <= 0.05
    assert len(got.waits_s) >= 20
    assert [wait for wait in got.waits_s if wait[0] > wait[1]] == []


def test_the_dearest_dimension_is_what_is_shared(redis_client: redis.Redis) -> None:
    """Calls of one tenant are dear in requests, of the other in tokens: each gets half of the lane's time."""
    scene = Scene(redis_client)
    fields: Mapping[str, float | str] = {"p1": 20, "d1": 2, "l1": 0, "p2": 10_000, "d2": 2000, "l2": 0}
    for _ in range(300):
        scene.put("small", 1, fields=fields)  # 1/20 s of the lane's requests
        scene.put("large", 2000, fields=fields)  # 1/5 s of its tokens
    scene.run(15.0)
    counted = [sum(start.tenant == tenant for start in scene.starts) for tenant in ("small", "large")]
    assert counted[0] / counted[1] == pytest.approx(4.0, rel=0.05)


def test_a_tenants_place_begins_anew_where_the_band_of_its_class_ends(cluster: Cluster) -> None:
    """A tag beyond it would be one of the next class. Before that, a tenant's next call follows the one before it."""
    tags: list[float] = []
    for ref, finish in (("first", 0), ("second", None), ("last", BAND - 1), ("anew", None)):
        if finish:
            cluster.client.zadd("rlw:tenants:gpt", {"normal:": finish})
        cluster.lanes.enqueue(entry(ref, lane_fields=TEN_PER_S))
        tags.append(cluster.packed(ref)[Place.SCORE - 1] - BAND)  # normal calls have the second band
    assert tags[:2] == [0, TAGS]
    assert tags[2] == BAND - 1
    assert tags[3] == TAGS - 1
    assert 0 < cluster.client.ttl("rlw:tenants:gpt") <= 3600


@pytest.mark.long
def test_low_calls_finish_under_a_steady_stream_of_high_ones(redis_client: redis.Redis) -> None:
    """The high ones alone are more than the lane takes: low ones wait for 300 s of service, then take turns."""
    got = low_under_high(redis_client, lows=100, per_s=5, load=1.2, for_s=345)
    assert got.finished == 100
    assert 1490 <= got.highs_before <= 1510
    assert got.last_s <= 300 + 2 * 100 / 5 + 2


def test_classes_age_at_the_pace_of_an_emergency(redis_client: redis.Redis) -> None:
    """A lane that has become 60 times slower: a low call waits for 300 s of the slow service, not for 3,000 calls."""
    scene = Scene(redis_client)
    for _ in range(500):
        scene.put("", 0, priority=Priority.HIGH, fields=TEN_PER_S)
    low = scene.put("", 0, priority=Priority.LOW)
    emergency: dict[str, float | str] = {"p1": 1 / 6, "d1": 1, "l1": 0, "width": MANY, "gap": 6 * US}
    scene.cluster.lanes.set_points("gpt", emergency)
    scene.run(330.0)
    order = [start.ref for start in scene.starts]
    assert 45 <= order.index(low) <= 55


def test_probes_age_classes_too(redis_client: redis.Redis) -> None:
    """While the provider is away the pace says nothing: the gap between two probes does."""
    scene = Scene(redis_client)
    for _ in range(200):
        scene.put("", 0, priority=Priority.HIGH, fields={"p1": 100, "d1": 1})
    low = scene.put("", 0, priority=Priority.LOW)
    scene.cluster.lanes.set_points("gpt", {"width": 1, "gap": 10 * US})
    scene.run(330.0)
    assert 25 <= [start.ref for start in scene.starts].index(low) <= 35


def test_an_urgent_call_is_not_behind_its_own_tenants_backlog(redis_client: redis.Redis) -> None:
    """A tenant has 200 s of normal calls waiting; its high call is the next."""
    scene = Scene(redis_client)
    for _ in range(2000):
        scene.put("a", 0, fields=TEN_PER_S)
    scene.run(5.0)
    before = len(scene.starts)
    urgent = scene.put("a", 0, priority=Priority.HIGH)
    scene.run(5.5)
    assert [start.ref for start in scene.starts[before:]].index(urgent) <= 1


@pytest.mark.long
def test_a_lane_without_pace_ages_too(redis_client: redis.Redis) -> None:
    """Where only slots bind, 300 s are as many calls a slot: a low call is not forgotten for hours."""
    scene = Scene(redis_client)
    scene.cluster.worker(slots=2)
    fields: Mapping[str, float | str] = {"unlimited": 1, "cap": 1}
    held = scene.put("", 0, priority=Priority.HIGH, fields=fields)
    low = scene.put("", 0, priority=Priority.LOW)
    for _ in range(700):
        scene.put("", 0, priority=Priority.HIGH)
    scene.run(1.0)
    order = [start.ref for start in scene.starts]
    assert order[0] == held
    assert 590 <= order.index(low) <= 605


@pytest.mark.long
def test_a_cap_holds_over_workers_and_over_a_killed_one(redis_client: redis.Redis) -> None:
    """Never more than 5 run at once on 3 workers of 4 slots, those of a killed worker included until their lease ends;
    afterwards 5 may run again, and all calls end.
    """
    got = capped(redis_client, cap=5, calls=90, seed=3)
    assert got.most == 5
    assert got.finished == 90
    assert got.killed_with >= 1
    assert got.full_s >= 20  # with 90 calls of 1.75 s: about 31 s of work for 5


def test_a_call_larger_than_the_bucket_leaves_a_debt_to_its_tenant_alone(redis_client: redis.Redis) -> None:
    """One tenant's call costs 4 s of the lane; the other tenant gets its half back afterwards."""
    scene = Scene(redis_client)
    for _ in range(5):
        scene.put("giant", int(4 * TOKENS_PER_S))
    for _ in range(400):
        scene.put("small", int(TOKENS_PER_S / 10))
    scene.run(36.0)
    tokens = {tenant: sum(s.tokens for s in scene.starts if s.tenant == tenant) for tenant in ("giant", "small")}
    assert tokens["small"] >= 0.4 * sum(tokens.values())
    assert tokens["giant"] >= 0.4 * sum(tokens.values())
