"""Does the script keep what is worth most, within its bounds? Held to the model in policy/worth.py, step by step."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec import structs

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.call import US, Claim
from ratelimit_worker.contracts.kept import ENTRY_BYTES, PACKED_FROM_BYTES, USUAL_NANOUSD, Keep, packed
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.policy.worth import Bounds, Entry, Kept, of_one_use
from ratelimit_worker.stores import answers, keys
from tests.builders import entry
from tests.lua.cluster import Cluster, said
from tests.lua.test_claims import answers_of
from tests.properties import share

NAMES = tuple("abcdefgh")
TAGS = len("[]")  #: bytes of an answer without tags
UNPACED = {"unlimited": 1}
#: Few enough to be full, by entries, by bytes, by both.
BOUNDS = (
    Bounds(entries=3, bytes=10**6),
    Bounds(entries=1000, bytes=4 * ENTRY_BYTES + 3000),
    Bounds(entries=4, bytes=4 * ENTRY_BYTES + 2000),
    Bounds(entries=1, bytes=2 * ENTRY_BYTES),
)


def answer_once(cluster: Cluster, claim: Claim, answer: bytes, keep: Keep | None) -> None:
    """A call is made, whatever is kept, and answered."""
    ref = f"call{cluster.now_us}"
    claim = structs.replace(claim, again=True, join=False)
    cluster.advance(0.000001)
    cluster.lanes.enqueue(entry(ref, claim=claim, lane_fields=UNPACED))
    tag, begun = cluster.begin()
    assert begun.state == "go"
    cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=answer, lesson=said("good"), keep=keep))
    cluster.free(tag)


def kept_answer(cluster: Cluster, claim: Claim) -> bytes | None:
    """What a caller gets who takes a kept answer at once; None: its call would be made."""
    asks = structs.replace(claim, at_once=True, join=False)
    ref = f"call{cluster.now_us}"
    cluster.advance(0.000001)
    placed = cluster.lanes.enqueue(entry(ref, claim=asks, lane_fields=UNPACED))
    if placed.answer is not None:
        return placed.answer
    tag, _ = cluster.begin()
    cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=b"", lesson=said("other"), kind="error"))
    cluster.free(tag)
    return None


def scores(client: redis.Redis) -> dict[str, float]:
    found: Any = client.zrange(keys.CACHE_USED, 0, -1, withscores=True)
    return {name.decode(): score for name, score in found}


class Keeping(RuleBasedStateMachine):
    """Answers are kept, used, refreshed and forgotten, and end; some were kept by an older version."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.cluster = Cluster(self.client)
        self.cluster.worker()
        self.model = Kept()
        self.ends_us: dict[str, int] = {}
        self.evicted = [0, 0]  #: entries, bytes

    @initialize(bounds=st.sampled_from(BOUNDS))
    def start(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def claim(self, name: str, ttl_s: float = 100.0) -> Claim:
        return Claim(
            fingerprint=name, ttl_s=ttl_s, join=False, max_entries=self.bounds.entries, max_bytes=self.bounds.bytes
        )

    @rule(
        name=st.sampled_from(NAMES),
        size=st.sampled_from([1, 10, 500, 1500, 3000, 20_000]),
        cost=st.integers(1, 10**9),
        ttl_s=st.sampled_from([2.0, 100.0, 100.0]),
    )
    def keep(self, name: str, size: int, cost: int, ttl_s: float) -> None:
        keep = Keep(again_nanousd=cost, packs=False)
        answer_once(self.cluster, self.claim(name, ttl_s), b"x" * size, keep)
        its_bytes = ENTRY_BYTES + size + TAGS
        if self._fits(its_bytes):
            self._floor()
        for ended in [one for one, at_us in self.ends_us.items() if at_us <= self.cluster.now_us and one != name]:
            if self._fits(its_bytes):
                self._forget(ended)
        sizes = {one: its.size for one, its in self.model.entries.items()}
        for gone in self.model.keep(name, its_bytes, cost, self.bounds):
            self.evicted[0] += 1
            self.evicted[1] += sizes[gone]
            del self.ends_us[gone]
        self.ends_us.pop(name, None)
        if name in self.model.entries:
            self.ends_us[name] = self.cluster.now_us + round(ttl_s * US)

    @rule(name=st.sampled_from(NAMES))
    def use(self, name: str) -> None:
        found = kept_answer(self.cluster, self.claim(name))
        good = self.cluster.now_us < self.ends_us.get(name, 0)
        assert (found is not None) == good
        if good:
            self._floor()
            self.model.use(name)

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from([10, 1000]))
    def keep_by_an_older_version(self, name: str, size: int) -> None:
        if name in self.model.entries or len(self.model.entries) >= self.bounds.entries:
            return
        its_bytes, ends_us = size + 500, self.cluster.now_us + 60 * US
        fields = {"answer": b"x" * size, "context": "", "tags": "[]", "func": "", "size": its_bytes, "ends": ends_us}
        self.client.hset(keys.cache(name), mapping=fields)  # type: ignore[arg-type]  # bytes beside numbers
        self.client.pexpire(keys.cache(name), 60_000)
        self.client.zadd(keys.CACHE_USED, {name: self.cluster.now_us})
        self.client.zadd(keys.CACHE_ENDS, {name: ends_us})
        self.client.hset(keys.CACHE_SIZES, name, str(its_bytes))
        self.client.hincrby(keys.CACHE_SIZES, "all", its_bytes)
        worth = of_one_use(USUAL_NANOUSD, its_bytes, self.bounds)
        self.model.entries[name] = Entry(its_bytes, worth, 0, float(self.cluster.now_us))
        self.model.bytes += its_bytes
        self.ends_us[name] = ends_us

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: str) -> None:
        there = name in self.model.entries
        assert int(self.cluster.lanes.run("uncache", [name])) == int(there)
        self._forget(name)

    @rule(seconds=st.sampled_from([0.5, 3.0]))
    def wait(self, seconds: float) -> None:
        self.cluster.advance(seconds)
        self.cluster.worker()

    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        model = self.model
        assert scores(self.client) == {name: one.score for name, one in model.entries.items()}
        raw: Any = self.client.hgetall(keys.CACHE_SIZES)
        sizes = {name.decode(): float(value) for name, value in raw.items()}
        assert sizes.pop("all", 0) == model.bytes == sum(one.size for one in model.entries.values())
        assert sizes.pop("floor", 0) == model.floor
        assert sizes == {name: one.size for name, one in model.entries.items()}
        ends: Any = self.client.zrange(keys.CACHE_ENDS, 0, -1, withscores=True)
        assert {name.decode(): round(at) for name, at in ends} == self.ends_us
        hashes = {name for name in NAMES if self.client.exists(keys.cache(name))}
        assert hashes == set(model.entries)
        counters = self.cluster.lanes.counters()
        assert [counters.get("cache_evicted", 0), counters.get("cache_evicted_bytes", 0)] == self.evicted
        assert counters.get("uncached", 0) == 0, "the script has failed"

    def _fits(self, its_bytes: int) -> bool:
        return its_bytes <= self.bounds.bytes

    def _floor(self) -> None:
        """It begins a week ahead of the clock, when it is first asked for."""
        if not self.model.floor:
            self.model.floor = self.cluster.now_us + 7 * 86_400 * US

    def _forget(self, name: str) -> None:
        self.model.forget(name)
        self.ends_us.pop(name, None)


@pytest.mark.long
@pytest.mark.server
def test_the_script_does_what_the_model_does(redis_client: redis.Redis) -> None:
    """Scores, floor, sizes, their sum, and what was evicted, after each step; the bounds hold, for the model's do."""
    Keeping.client = redis_client
    run_state_machine_as_test(Keeping, settings=settings(max_examples=share(0.4), stateful_step_count=40))


def claim(name: str, **more: Any) -> Claim:
    return Claim(fingerprint=name, **{"ttl_s": 3600.0, "join": False, "max_entries": 3, **more})


@pytest.mark.server
def test_what_an_older_version_kept_goes_first(cluster: Cluster) -> None:
    """It is readable and counted, and is evicted by its last use, before what is worth a millionth of a cent."""
    for number in range(2):
        name = f"old{number}"
        fields = {"answer": "kept", "context": "", "tags": "[]", "func": "", "size": 504, "ends": 2 * 10**15}
        cluster.client.hset(keys.cache(name), mapping=fields)  # type: ignore[arg-type]  # text beside numbers
        cluster.client.expire(keys.cache(name), 3600)
        cluster.client.zadd(keys.CACHE_USED, {name: cluster.now_us + number})
        cluster.client.zadd(keys.CACHE_ENDS, {name: 2 * 10**15})
        cluster.client.hset(keys.CACHE_SIZES, name, "504")
        cluster.client.hincrby(keys.CACHE_SIZES, "all", 504)
    assert answers.size(cluster.client) == (2, 1008)
    cheap = Keep(again_nanousd=10)
    for name, left in (("a", ["a", "old0", "old1"]), ("b", ["a", "b", "old1"]), ("c", ["a", "b", "c"])):
        answer_once(cluster, claim(name, ttl_s=86_400.0), b"answer", cheap)
        assert sorted(scores(cluster.client)) == left
        cluster.advance(3600.0 if name == "b" else 1.0)  # whatever an older one used meanwhile
        cluster.worker()
        if name == "a":
            assert kept_answer(cluster, claim("old1")) == b"kept"
            cluster.client.zadd(keys.CACHE_USED, {"old1": cluster.now_us}, xx=True)  # an older version uses it


TEXT = json.dumps({"value": "Naïve café, and so on: " * 400}, ensure_ascii=False).encode()


@pytest.mark.server
def test_a_large_answer_takes_less_room(cluster: Cluster) -> None:
    """It is counted as it is kept; whoever takes it, at once or by way of a worker, gets it as it was."""
    assert len(TEXT) > PACKED_FROM_BYTES
    answer_once(cluster, claim("f"), TEXT, Keep(again_nanousd=1))
    frame = packed(TEXT)
    assert len(frame) < len(TEXT) / 10
    assert answers.size(cluster.client).bytes == ENTRY_BYTES + len(frame) + TAGS
    assert cluster.client.hget(keys.cache("f"), "packed") == frame
    assert cluster.client.hget(keys.cache("f"), "answer") is None, "an older version would take it for JSON"
    assert kept_answer(cluster, claim("f")) == TEXT
    cluster.lanes.enqueue(entry("with links", claim=claim("f"), lane_fields=UNPACED))
    assert answers_of(cluster) == {"with links": TEXT}, "a worker of any version can read that"
    assert cluster.lanes.counters()["cache_hits"] == 2, "which is one use"


@pytest.mark.server
def test_an_answer_for_emergencies_is_not_packed(cluster: Cluster) -> None:
    """Calls that wait get it from a script, which cannot unpack."""
    kept = claim("f", ttl_s=1.0, stale_ttl_s=600.0)
    answer_once(cluster, kept, TEXT, Keep(again_nanousd=1, packs=False))
    cluster.advance(2)
    cluster.worker()
    cluster.lanes.set_points("gpt", {"mode": Mode.EMERGENCY.value})
    assert kept_answer(cluster, kept) == TEXT
