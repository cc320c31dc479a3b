"""Do the scripts count what answers that are used again save, in the minute and for the calls that they saved it?"""

from __future__ import annotations

from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts import reuse
from ratelimit_worker.contracts.call import US, Claim
from ratelimit_worker.contracts.kept import ENTRY_BYTES, Keep
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.contracts.rollup import MINUTE_S, NamedSums, Series
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reuse import ReuseMinutes
from tests.builders import entry
from tests.lua.cluster import T0_US, Cluster, said
from tests.lua.test_kept import UNPACED, answer_once

pytestmark = pytest.mark.server
ANSWER = b'{"value": 1}'
PRICED = Keep(again_nanousd=1, paid_nanousd=3_000_000_000_000, input_tokens=70, output_tokens=7, packs=False)
FIRST_S = T0_US // US // MINUTE_S * MINUTE_S


def claim(name: str = "f", **more: Any) -> Claim:
    return Claim(fingerprint=name, **{"ttl_s": 3600.0, "join": True, "context": "docs", "func": "tasks.ask", **more})


def minutes(client: redis.Redis) -> dict[int, dict[Series, dict[str, int]]]:
    """Minute since the first → series → sums."""
    return {
        (key.at_s - FIRST_S) // MINUTE_S: {
            other.series: cell.reuse for other, cell in sums.cells.items() if other.at_s == key.at_s
        }
        for sums in ReuseMinutes(client).since(0)
        for key in sums.cells
    }


def ask(cluster: Cluster, ref: str, its: Claim, tenant: str = "acme") -> None:
    cluster.advance(0.000001)
    cluster.lanes.enqueue(entry(ref, claim=its, tenant=tenant, lane_fields=UNPACED))


def test_each_way_to_an_answer_is_counted(cluster: Cluster) -> None:
    """Asked, joined, kept, past its time; bytes, tokens and money, each in its minute and for its tenant."""
    cluster.worker()
    its = claim(ttl_s=100.0, stale_ttl_s=600.0)
    for ref, tenant in (("leader", "acme"), ("one", "acme"), ("two", "other"), ("three", "other")):
        ask(cluster, ref, its, tenant)
    tag, _ = cluster.begin()
    cluster.advance(60)
    cluster.worker()
    cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=ANSWER, lesson=said("good"), keep=PRICED))
    cluster.free(tag)
    for number in range(2):
        ask(cluster, f"kept{number}", claim(ttl_s=100.0, stale_ttl_s=600.0, at_once=number == 0))
    cluster.advance(120)
    cluster.worker()
    cluster.lanes.set_points("gpt", {"mode": Mode.EMERGENCY.value})
    ask(cluster, "past", its, "other")
    mine, theirs = (Series("gpt", "tasks.ask", "docs", tenant, "") for tenant in ("acme", "other"))
    size, paid = len(ANSWER), PRICED.paid_nanousd
    assert minutes(cluster.client) == {
        0: {mine: {"misses": 1, "joined": 1}, theirs: {"joined": 2}},
        1: {
            mine: {
                "bytes": 3 * size,
                "input_tokens": 210,
                "output_tokens": 21,
                "joined_nanousd": paid,
                "hits_nanousd": 2 * paid,
                "hits": 2,
            },
            theirs: {"bytes": 2 * size, "input_tokens": 140, "output_tokens": 14, "joined_nanousd": 2 * paid},
        },
        3: {theirs: {"stale": 1, "bytes": size, "input_tokens": 70, "output_tokens": 7, "stale_nanousd": paid}},
    }
    assert cluster.lanes.counters().get("unsummed") is None


def test_without_a_price_no_money_is_saved(cluster: Cluster) -> None:
    """And none is told; tokens are, where the provider counted them."""
    cluster.worker()
    answer_once(cluster, claim(), ANSWER, Keep(again_nanousd=1, output_tokens=7))
    ask(cluster, "hit", claim(at_once=True), "other")
    series = Series("gpt", "tasks.ask", "docs", "other", "")
    assert minutes(cluster.client)[0][series] == {"hits": 1, "bytes": len(ANSWER), "output_tokens": 7}


def test_who_asks_anyway_has_missed_nothing(cluster: Cluster) -> None:
    """`refresh`, a retry of the same call, one that shares nothing, and one that is refused."""
    cluster.worker(slots=1)
    ask(cluster, "anew", claim(refresh=True))
    ask(cluster, "again", claim("g", again=True))
    ask(cluster, "alone", claim("h", join=False, ttl_s=0.0))
    cluster.lanes.enqueue(entry("free", lane_fields=UNPACED))
    assert minutes(cluster.client) == {0: {Series("gpt", "tasks.ask", "docs", "acme", ""): {"misses": 1}}}


def test_what_is_evicted_is_counted_for_whom_it_was_kept(cluster: Cluster) -> None:
    """With its bytes; that of an older version, of which nobody knows whose it was, is in the counters alone."""
    cluster.worker()
    for name, tenant in (("a", "acme"), ("b", "other"), ("c", "acme")):
        ask(cluster, name, claim(name, max_entries=1), tenant)
        tag, _ = cluster.begin()
        cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=ANSWER, lesson=said("good"), keep=PRICED))
        cluster.free(tag)
    told = minutes(cluster.client)[0]
    size = ENTRY_BYTES + len(ANSWER) + len("[]") + len("docs") + len("tasks.ask")
    for tenant, asked in (("acme", 2), ("other", 1)):
        series = Series("gpt", "tasks.ask", "docs", tenant, "")
        assert told[series] == {"misses": asked, "evicted": 1, "evicted_bytes": size}
    cluster.client.hdel(keys.cache("c"), "of")
    answer_once(cluster, claim("d", max_entries=1), ANSWER, PRICED)
    assert cluster.lanes.counters()["cache_evicted"] == 3
    assert sum(one.get("evicted", 0) for one in minutes(cluster.client)[0].values()) == 2
    assert cluster.lanes.counters().get("unsummed") is None


def test_a_minute_holds_so_many_series(cluster: Cluster) -> None:
    """What comes beyond is added up by lane; nothing is lost."""
    cluster.worker(slots=1)
    for number in range(reuse.MOST_SERIES + 20):
        cluster.lanes.enqueue(
            entry(f"r{number}", claim=claim(f"f{number}", context=f"c{number}"), lane="gpt", lane_fields=UNPACED)
        )
    told = minutes(cluster.client)[0]
    others = Series("gpt", "(others)", "(others)", "(others)", "")
    assert len(told) == reuse.MOST_SERIES + 1 - 1
    assert told[others]["misses"] == 21
    assert sum(one["misses"] for one in told.values()) == reuse.MOST_SERIES + 20


def test_a_minute_is_told_when_it_is_over_and_forgotten_by_its_name(redis_client: redis.Redis) -> None:
    """That of now is not over by the server's clock; what came into its place meanwhile stays."""
    source = ReuseMinutes(redis_client)
    seconds: Any = redis_client.time()[0]
    now = Cluster(redis_client, now_us=(seconds + 3600) * US)
    now.worker()
    ask(now, "now", claim("now"))
    assert source.over() == []
    assert len(source.since(0)) == 1
    then = Cluster(redis_client)
    then.lanes.enqueue(entry("then", claim=claim("then"), lane_fields=UNPACED))
    (told,) = source.over()
    assert told == source.over()[0], "the same, however often it is told"
    assert told.name.startswith("reuse:")
    then.advance(1)
    redis_client.delete(keys.reuse(FIRST_S // MINUTE_S))
    then.lanes.enqueue(entry("later", claim=claim("later"), lane_fields=UNPACED))
    source.forget(told)
    (left,) = source.over()
    assert left.name != told.name
    source.forget(left)
    assert source.over() == []
    assert [key.at_s == FIRST_S for sums in source.since(0) for key in sums.cells] == [False]
    assert redis_client.ttl(keys.REUSE_MINUTES) > 0


def test_what_cannot_be_read_is_passed_over(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Another version's sums, and fields that are none; a minute without any that can be read is let go of."""
    cluster.worker()
    ask(cluster, "a", claim())
    minute = FIRST_S // MINUTE_S
    cluster.client.hset(keys.reuse(minute), mapping={"misses:\xff": "1", "odd": "x", "sums:": b"\xc1"})
    assert minutes(cluster.client)[0] == {Series("gpt", "tasks.ask", "docs", "acme", ""): {"misses": 1}}
    assert any(record.message == "reuse.unreadable" for record in caplog.records)
    cluster.client.delete(keys.reuse(minute))
    assert ReuseMinutes(cluster.client).over() == []
    assert cluster.client.zcard(keys.REUSE_MINUTES) == 0


def test_names_are_stored_as_those_of_attempts(cluster: Cluster) -> None:
    """So that both fall into one series: without NUL, and no longer than columns take."""
    cluster.worker()
    ask(cluster, "a", claim(context="a\0b"), tenant="t" * 3000)
    (sums,) = ReuseMinutes(cluster.client).since(0)
    assert isinstance(sums, NamedSums)
    (key,) = sums.cells
    assert key.series.context == "a\ufffdb"
    assert len(key.series.tenant) == 2000
