"""What do calls get while their lane is in EMERGENCY or HALT? A stale answer, an error, or they wait, as they said."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import redis
from celery import chain, group
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from ratelimit_worker import optimize_api_call
from ratelimit_worker.app import llm_task
from ratelimit_worker.calls import LaneLimits, Mode, Priority
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.call import Place as Field
from ratelimit_worker.contracts.plan import Shedding
from ratelimit_worker.errors import BadInput, LaneShedding
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.enqueue import Kind, Said, limit_fields, plan
from ratelimit_worker.simulate import Scenario, Simulator
from ratelimit_worker.stores import answers, keys
from ratelimit_worker.wiring import services
from tests import shared_functions
from tests.builders import entry
from tests.cluster.test_alerts import Hook, hook_at
from tests.cluster.test_modes_worker import command
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.inprocess.test_inprocess import LANES, Place
from tests.lua.cluster import LEASE_S, OPEN, Cluster
from tests.lua.test_claims import CLOSED, answers_of, claim, nothing_is_left, places
from tests.lua.test_lanes_machine import LANES as MACHINE_LANES
from tests.lua.test_lanes_machine import QUEUES, Anything
from tests.properties import share
from tests.shared_functions import said

WAIT_S = 120
TTL_S, STALE_S = 60.0, 600.0  #: `claim` is kept for a minute
DEGRADED = (Mode.EMERGENCY, Mode.HALT)
ANSWERS = Answers(dumps=json.dumps, loads=json.loads)


Put = Callable[..., bytes | None]


@pytest.fixture
def put(cluster: Cluster) -> Put:
    """Enqueue calls by name; `same`: those that share, with a stale answer if need be; `sheds`: as in `entry`.

    → the answer that the last took at once.
    """

    def do(*refs: str, same: str = "", stale_s: float = STALE_S, at_once: bool = False, **more: Any) -> bytes | None:
        shares = claim(same, stale_ttl_s=stale_s, at_once=at_once) if same else None
        asks = {"claim": shares, "lane_fields": OPEN, **more}
        return [cluster.lanes.enqueue(entry(ref, **asks)) for ref in refs][-1].answer

    return do


def turn(cluster: Cluster, mode: Mode, **fields: float) -> None:
    """The lane goes into a mode."""
    cluster.lanes.set_points("gpt", {"mode": mode.value, **fields})


def a_stale_answer(cluster: Cluster, put: Put, answer: bytes = b"old") -> None:
    """One of `f` is kept, and its time is over."""
    put("first", same="f")
    tag, _ = cluster.begin()
    cluster.settle(tag, answer)
    cluster.free(tag)
    cluster.advance(TTL_S)
    cluster.worker()


def counted(cluster: Cluster, *names: str) -> tuple[int, ...]:
    counters = cluster.lanes.counters()
    return tuple(counters.get(name, 0) for name in names)


def shed(cluster: Cluster) -> dict[str, BaseException]:
    """Deliver what is ready: each call must have its answer → the errors among them."""
    decoded = {ref: ANSWERS.decode(raw) for ref, raw in answers_of(cluster).items()}
    return {ref: value for ref, (kind, value) in decoded.items() if kind == "error"}


# ── stale answers ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
@pytest.mark.parametrize("mode", DEGRADED)
def test_an_answer_past_its_time_is_given_in_an_emergency(cluster: Cluster, put: Put, mode: Mode) -> None:
    """At once, without a permit, as long as it is kept; not a millisecond longer."""
    a_stale_answer(cluster, put)
    turn(cluster, mode)
    sent = cluster.lanes.fields("gpt")["c1"]
    assert put("b", same="f", at_once=True) == b"old"
    put("c", same="f")
    assert answers_of(cluster) == {"c": b"old"}, "one with a canvas is delivered with it"
    assert cluster.lanes.fields("gpt")["c1"] == sent
    assert counted(cluster, "cache_stale", "cache_hits") == (2, 0)
    cluster.advance(STALE_S - 0.001)
    assert put("d", same="f", at_once=True) is not None
    cluster.advance(0.001)
    put("e", same="f", at_once=True, lane_fields=CLOSED)
    assert counted(cluster, "cache_stale") == (3,)


@pytest.mark.server
@pytest.mark.parametrize("mode", [Mode.NORMAL, Mode.REDUCED])
def test_else_it_is_replaced_by_the_next_fresh_one(cluster: Cluster, put: Put, mode: Mode) -> None:
    """The call is made; its answer is the only one from then on, fresh and then stale."""
    a_stale_answer(cluster, put)
    turn(cluster, mode)
    put("b", same="f", at_once=True)
    assert places(cluster.client)["out"] == ["b"]
    tag, _ = cluster.begin()
    cluster.settle(tag, b"new")
    cluster.free(tag)
    assert answers.size(cluster.client).entries == 1
    turn(cluster, Mode.EMERGENCY)
    for _ in range(2):
        assert put("c", same="f", at_once=True) == b"new"
        cluster.advance(TTL_S)
    assert counted(cluster, "cache_hits", "cache_stale") == (1, 1)


@pytest.mark.server
def test_who_did_not_ask_for_a_stale_answer_gets_none(cluster: Cluster, put: Put) -> None:
    """Though one is kept for another; and what is kept without `stale_ttl` is gone when its time is over."""
    a_stale_answer(cluster, put)
    assert TTL_S * 1000 < int(cluster.client.pttl(keys.cache("f"))) <= (TTL_S + STALE_S) * 1000
    turn(cluster, Mode.EMERGENCY)
    put("b", same="f", stale_s=0.0, at_once=True)
    assert places(cluster.client)["out"] == ["b"]
    cluster.run_all()
    assert 0 < int(cluster.client.pttl(keys.cache("f"))) <= TTL_S * 1000


@pytest.mark.server
def test_an_answer_may_be_for_emergencies_alone(cluster: Cluster, put: Put) -> None:
    """`cache_ttl=0`: each call is made while all is well."""
    only = claim("f", ttl_s=0.0, stale_ttl_s=STALE_S, at_once=True)
    put("a", claim=only)
    cluster.run_one()
    put("b", claim=only)
    assert cluster.run_one() == "b"
    turn(cluster, Mode.HALT)
    assert put("c", claim=only) is not None
    assert counted(cluster, "cache_hits", "cache_stale") == (0, 1)


@pytest.mark.server
def test_stale_answers_count_within_the_bounds(cluster: Cluster, put: Put) -> None:
    """They are counted, evicted and cleared as any other, and go by themselves when even that time is over."""
    few = {"stale_ttl_s": STALE_S, "max_entries": 3}
    for name in "abc":
        put(name, claim=claim(name, **few))
        cluster.run_one()
        cluster.advance(1.0)
    cluster.advance(TTL_S)
    cluster.worker()
    assert answers.size(cluster.client).entries == 3
    put("d", claim=claim("d", **few))
    cluster.run_one()
    assert answers.size(cluster.client).entries == 3
    assert counted(cluster, "cache_evicted") == (1,)
    assert not cluster.client.exists(keys.cache("a"))
    assert answers.forget(cluster.client) == 3
    put("e", claim=claim("e", **few))
    cluster.run_one()
    cluster.advance(TTL_S + STALE_S)
    cluster.worker()
    put("f", claim=claim("f", **few))
    cluster.run_one()
    assert answers.size(cluster.client).entries == 1
    assert counted(cluster, "cache_evicted") == (1,), "what has ended is not evicted"


class OldClaim(Claim, frozen=True):
    """As the version before packed it."""

    def packed(self) -> bytes:
        return msgspec.msgpack.encode(msgspec.msgpack.decode(super().packed())[:10])


@pytest.mark.server
def test_claims_and_records_of_an_older_version_can_be_read(cluster: Cluster, put: Put) -> None:
    """A call that waited before the deploy is never shed or given a stale answer, and its own is kept for its time."""
    old = OldClaim(fingerprint="f", ttl_s=TTL_S, join=True)
    put("a", "b", claim=old, lane_fields=CLOSED)
    for ref in "ab":
        cluster.client.hset(keys.call(ref), "i", msgspec.msgpack.encode(cluster.packed(ref)[: Field.CLAIM]))
    put("plain", lane_fields=CLOSED)
    cluster.client.hset(keys.call("plain"), "i", msgspec.msgpack.encode(cluster.packed("plain")[: Field.BORN]))
    turn(cluster, Mode.EMERGENCY)
    cluster.pump()
    assert places(cluster.client) == {"wait": ["a", "plain"], "followers": ["b"]}
    turn(cluster, Mode.EMERGENCY, p1=1000, d1=1000)
    cluster.advance(0.1)
    cluster.pump()
    tags = {tag.rpartition(".")[0]: tag for tag in (cluster.begin()[0] for _ in range(2))}
    assert sorted(tags) == ["a", "plain"]
    cluster.settle(tags["a"], b"answer")
    cluster.lanes.free(list(tags.values()))
    assert answers_of(cluster) == {"b": b"answer"}
    assert nothing_is_left(cluster.client)
    assert put("c", same="f", at_once=True) is not None


@pytest.mark.server
@pytest.mark.parametrize("mode", DEGRADED)
def test_calls_that_wait_get_the_stale_answer_too(cluster: Cluster, put: Put, mode: Mode) -> None:
    """A leader and its followers, when the lane's mode changes, without a permit; what has no answer waits on."""
    a_stale_answer(cluster, put)
    turn(cluster, Mode.NORMAL, p1=0)
    put("b", "c", "d", same="f")
    put("e", same="g")
    put("plain")
    turn(cluster, Mode.REDUCED)
    cluster.pump()
    assert places(cluster.client) == {"wait": ["b", "e", "plain"], "followers": ["c", "d"]}
    sent = cluster.lanes.fields("gpt")["c1"]
    turn(cluster, mode)
    assert answers_of(cluster) == dict.fromkeys("bcd", b"old")
    assert cluster.lanes.fields("gpt")["c1"] == sent
    assert places(cluster.client) == {"wait": ["e", "plain"]}
    assert counted(cluster, "cache_stale", "shed") == (3, 0)
    assert not cluster.client.exists(keys.claim("f"))
    turn(cluster, Mode.NORMAL, p1=1000, d1=1000)
    assert sorted(cluster.run_all()) == ["e", "plain"]


# ── shedding ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
@pytest.mark.parametrize("mode", list(Mode))
def test_who_asks_to_be_shed_is_refused_in_an_emergency_alone(cluster: Cluster, put: Put, mode: Mode) -> None:
    """At once, and nothing is stored; who did not ask is taken in."""
    put("first")
    cluster.run_one()
    turn(cluster, mode)
    before = set(cluster.client.keys("*"))
    if mode in DEGRADED:
        with pytest.raises(LaneShedding) as refused:
            put("a", sheds="raise")
        assert (refused.value.lane, refused.value.mode) == ("gpt", mode.value)
        assert set(cluster.client.keys("*")) == before
        assert counted(cluster, "shed") == (1,)
    else:
        put("a", sheds="raise")
        assert cluster.run_one() == "a"
    put("b")
    assert cluster.run_one() == "b"


@pytest.mark.server
def test_an_answer_is_better_than_an_error(cluster: Cluster, put: Put) -> None:
    """A call that would be shed gets a kept answer, fresh or (if it may) stale; only without one the error."""
    a_stale_answer(cluster, put)
    put("fresh", same="g")
    cluster.run_one()
    turn(cluster, Mode.EMERGENCY)
    for same in "fg":
        assert put("a", same=same, at_once=True, sheds="raise") is not None
    for asks in ({"same": "f", "stale_s": 0.0}, {"same": "h"}):
        with pytest.raises(LaneShedding):
            put("b", at_once=True, sheds="raise", **asks)
    assert counted(cluster, "cache_hits", "cache_stale", "shed") == (1, 1, 2)
    put("c", same="f", sheds="result")
    assert answers_of(cluster) == {"c": b"old"}
    assert list(cluster.client.scan_iter("rlw:claim:*")) == []


@pytest.mark.server
def test_a_call_that_nobody_could_catch_an_error_of_gets_it_as_its_result(cluster: Cluster, put: Put) -> None:
    """One of a canvas, or a retry: it is taken in, and delivered with the error; a permit that there is is not used."""
    put("first", lane_fields=CLOSED)
    turn(cluster, Mode.EMERGENCY, p1=1000, d1=1000, width=1)
    sent = cluster.run_one() and cluster.lanes.fields("gpt")["c1"]
    put("a", "b", sheds="result")
    put("c", same="f", sheds="result")
    put("again", claim=claim("f", again=True), sheds="result", number=1)
    errors = shed(cluster)
    assert sorted(errors) == ["a", "again", "b", "c"]
    assert {type(error) for error in errors.values()} == {LaneShedding}
    assert cluster.lanes.fields("gpt")["c1"] == sent
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_calls_that_wait_are_shed_some_at_a_time(cluster: Cluster, put: Put) -> None:
    """Of 250 in a lane that goes into EMERGENCY none needs a permit, and none that did not ask is touched."""
    cheap = [f"c{number}" for number in range(250)]
    put(*cheap, sheds="result", priority=Priority.LOW, lane_fields=CLOSED)
    put("a", "b", "c", priority=Priority.LOW)
    ttl_s: Any = cluster.client.ttl("rlw:degradable:gpt")
    assert 3600 < ttl_s <= 3600 + 86_400
    for mode in (Mode.REDUCED, Mode.NORMAL):
        turn(cluster, mode)
        cluster.pump()
    assert len(places(cluster.client)["wait"]) == 253
    turn(cluster, Mode.EMERGENCY)
    assert len(places(cluster.client)["answered"]) == 100, "bounded work in one step"
    assert cluster.client.zscore("rlw:next", "gpt") == cluster.now_us, "the pump goes on"
    cluster.pump()
    errors = shed(cluster)
    for _ in range(100):
        cluster.advance(0.5)
        cluster.beat("w")
        errors |= shed(cluster)
    assert sorted(errors) == sorted(cheap)
    assert {str(error) for error in errors.values()} == {str(LaneShedding("gpt", "EMERGENCY"))}
    assert counted(cluster, "shed", "expired") == (250, 0)
    assert places(cluster.client) == {"wait": ["a", "b", "c"]}
    assert float(cluster.lanes.fields("gpt").get("c1", 0)) == 0
    assert not cluster.client.exists("rlw:degradable:gpt")


@pytest.mark.server
@pytest.mark.parametrize("mode", [Mode.NORMAL, Mode.EMERGENCY])
def test_a_call_for_later_is_shed_when_its_time_has_come(cluster: Cluster, put: Put, mode: Mode) -> None:
    """It is taken in during an EMERGENCY, and depends on the mode that holds then."""
    put("first", lane_fields=CLOSED)
    turn(cluster, Mode.EMERGENCY)
    put("later", sheds="raise", due_in_s=5.0)
    cluster.live(4.9)
    assert places(cluster.client) == {"wait": ["first"], "due": ["later"]}
    turn(cluster, mode)
    cluster.live(0.2)
    assert sorted(shed(cluster)) == (["later"] if mode in DEGRADED else [])
    assert places(cluster.client) == {"wait": ["first"] if mode in DEGRADED else ["first", "later"]}


@pytest.mark.server
def test_a_call_that_runs_goes_on_and_one_that_comes_back_is_shed(cluster: Cluster, put: Put) -> None:
    """Whose answer comes has it; who is refused, or meets a shut gate before it has begun, waits no more."""
    put("answered", "refused", "unbegun", sheds="result")
    (first, _), (second, _) = cluster.begin(), cluster.begin()
    turn(cluster, Mode.EMERGENCY, p1=0)
    cluster.pump()
    assert places(cluster.client) == {"out": ["answered", "refused", "unbegun"]}
    assert cluster.settle(first, b"answer")
    cluster.free(first)
    assert cluster.back(second, verdict="refused", gate_s=60.0)
    assert cluster.begin()[1].state == "closed"
    assert sorted(shed(cluster)) == ["refused", "unbegun"]
    assert nothing_is_left(cluster.client)
    assert not cluster.client.exists("rlw:degradable:gpt")


@pytest.mark.server
def test_an_answer_that_came_late_is_not_lost_to_an_error(cluster: Cluster, put: Put) -> None:
    """A call whose worker was taken for dead waits again when the answer comes; an EMERGENCY then is too late."""
    put("a", sheds="result")
    tag, _ = cluster.begin()
    turn(cluster, Mode.NORMAL, p1=0)
    cluster.kill()
    cluster.live(LEASE_S * 2)
    assert places(cluster.client) == {"wait": ["a"]}
    assert cluster.settle(tag, b"late")
    turn(cluster, Mode.EMERGENCY)
    cluster.worker()
    assert answers_of(cluster) == {"a": b"late"}
    assert counted(cluster, "shed") == (0,)


@pytest.mark.server
def test_who_has_left_is_remembered_nowhere(cluster: Cluster, put: Put) -> None:
    """Answered, or revoked: in a lane that never was in an emergency."""
    put("a", "b", sheds="result", lane_fields=CLOSED)
    cluster.lanes.revoke("b")
    turn(cluster, Mode.NORMAL, p1=1000, d1=1000)
    cluster.advance(0.1)
    cluster.pump()
    assert cluster.client.exists("rlw:degradable:gpt")
    assert cluster.run_all() == ["a"]
    assert not cluster.client.exists("rlw:degradable:gpt")


@pytest.mark.server
def test_who_followed_a_call_that_is_shed_takes_its_place(cluster: Cluster, put: Put) -> None:
    """Followers are shed each for itself; one that did not ask for it leads from then on, on its own queue."""
    cluster.worker("w2", queues=("two",))
    put("low", same="f", sheds="result", lane_fields=CLOSED)
    put("low2", same="f", sheds="result")
    put("high", same="f", queue="two", priority=Priority.HIGH)
    assert places(cluster.client) == {"wait": ["low"], "followers": ["high", "low2"]}
    turn(cluster, Mode.EMERGENCY)
    assert places(cluster.client) == {"wait": ["high"], "answered": ["low", "low2"]}
    assert cluster.client.get(keys.claim("f")) == b"high"
    assert sorted(shed(cluster)) == ["low", "low2"]
    assert places(cluster.client) == {"wait": ["high"]}
    turn(cluster, Mode.NORMAL, p1=1000, d1=1000)
    assert cluster.run_all("two") == ["high"]


# ── what a call says ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("priority", list(Priority))
@pytest.mark.parametrize("below", [None, *Priority])
def test_which_classes_are_shed(priority: Priority, below: Priority | None) -> None:
    """Those below the one that is named, and none where none is."""
    ladder = [Priority.HIGH, Priority.NORMAL, Priority.LOW]
    expected = below is not None and ladder.index(priority) > ladder.index(below)
    told = below.value if below is not None else None
    of_kind = plan(Kind(priority=priority, shed_below=told), (), {}, Settings(), now=0.0)
    of_call = plan(
        Kind(shed_below="high"), (), {}, Settings(), Said(priority=priority, shed_below=told or "low"), now=0.0
    )
    assert [made.shedding for made in (of_kind, of_call)] == [Shedding.RESULT if expected else None] * 2


@pytest.mark.parametrize(
    ("settings", "kind", "option", "kept"),
    [
        pytest.param({}, {}, None, None, id="not asked for"),
        pytest.param({}, {"stale_ttl_s": 60.0}, None, 60.0, id="of the task"),
        pytest.param({}, {"stale_ttl_s": 60.0}, 0.0, None, id="not for this call"),
        pytest.param({}, {}, 86_400, 86_400, id="of the call"),
        pytest.param({}, {"cache_ttl_s": 0.0}, 60.0, 60.0, id="for emergencies alone"),
        pytest.param({"enable_intelligent_caching": False}, {}, 60.0, None, id="caching is off"),
        pytest.param({}, {"cache": False}, 60.0, None, id="it shares nothing"),
    ],
)
def test_how_long_an_answer_is_kept_beyond_its_time(
    settings: dict[str, Any], kind: dict[str, Any], option: float | None, kept: float | None
) -> None:
    """As the call says, else its task."""
    made = plan(Kind(**kind), (), {}, Settings(**settings), Said(stale_ttl=option), now=0.0)
    assert (made.sharing.stale_ttl_s if made.sharing is not None else 0.0) == (kept or 0.0)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"stale_ttl": -1}, r"stale_ttl=-1: use seconds from 0, to 31536000"),
        ({"stale_ttl": float("nan")}, "stale_ttl=nan: use seconds"),
        ({"stale_ttl": float("inf")}, "stale_ttl=inf: use seconds"),
        ({"shed_below": "urgent"}, "shed_below='urgent': use high, normal or low"),
        ({"shed_below": 3}, "shed_below=3: use high, normal or low"),
    ],
)
def test_what_cannot_be_is_refused(option: dict[str, Any], says: str) -> None:
    """With the value and the fix."""
    with pytest.raises(BadInput, match=says):
        plan(Kind(), (), {}, Settings(), Said(**option), now=0.0)


def test_the_error_crosses_processes_whole() -> None:
    """Through pickle and as the answer that the script writes; one line, with what to do."""
    error = LaneShedding("openai:gpt-4o", "EMERGENCY")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args) == (LaneShedding, error.args)
    kind, read = ANSWERS.decode(ANSWERS.error(error))
    assert (kind, type(read), str(read)) == ("error", LaneShedding, str(error))
    assert str(error) == (
        "lane 'openai:gpt-4o' is in EMERGENCY and sheds calls of this priority; try later or with a higher one"
    )


# ── whatever happens ───────────────────────────────────────────────────────────────────────────────────────────────


class Degrading(Anything):
    """The same, with lanes that go in and out of EMERGENCY, and calls that it answers."""

    def __init__(self) -> None:
        super().__init__()
        hashed = self.cluster.lanes.fields
        self.cluster.lanes.fields = lambda lane: {  # type: ignore[method-assign]
            name: value for name, value in hashed(lane).items() if name != "mode"
        }

    @rule(
        lane=st.sampled_from(MACHINE_LANES),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(Priority),
        due_s=st.sampled_from([0.0, 0.0, 0.5]),
        deadline_s=st.sampled_from([3600.0, 4.0]),
        many=st.integers(1, 6),
        same=st.sampled_from(["", "f", "g"]),
        stale_s=st.sampled_from([0.0, 100.0]),
        sheds=st.sampled_from(["", "result", "raise"]),
    )
    def enqueue_degradable(
        self,
        lane: str,
        queue: str,
        priority: Priority,
        due_s: float,
        deadline_s: float,
        many: int,
        same: str,
        stale_s: float,
        sheds: Any,
    ) -> None:
        for _ in range(many):
            ref = f"c{len(self.accepted)}"
            shares = Claim(fingerprint=f"{same}{lane}", ttl_s=0.5, join=True, stale_ttl_s=stale_s, max_entries=2)
            call = entry(
                ref,
                lane,
                queue,
                priority=priority,
                due_in_s=due_s,
                deadline_in_s=deadline_s,
                claim=shares if same and not due_s else None,
                sheds=sheds,
            )
            try:
                self.cluster.lanes.enqueue(call)
            except LaneShedding:
                assert sheds == "raise"
                continue
            self.accepted.add(ref)
            self.sharing.add(ref)
            self.delayed.add(ref)

    @rule(lane=st.sampled_from(MACHINE_LANES), mode=st.sampled_from([Mode.NORMAL, Mode.EMERGENCY, Mode.HALT]))
    def set_mode(self, lane: str, mode: Mode) -> None:
        self.cluster.lanes.set_points(lane, {"mode": mode.value})


@pytest.mark.long
@pytest.mark.server
def test_whatever_happens_no_call_is_lost_in_an_emergency(redis_client: redis.Redis) -> None:
    """Random histories, as in test_lanes_machine: each call is in one place and comes to an end, no key is left."""
    Degrading.client = redis_client
    run_state_machine_as_test(
        Degrading,
        settings=settings(max_examples=share(0.3), stateful_step_count=40),
    )


# ── with workers ───────────────────────────────────────────────────────────────────────────────────────────────────


def close_lane(lane: str) -> None:
    """Nothing more is released from it, and the law lets it be."""
    fields = limit_fields(LaneLimits(rpm=60))
    services().lanes.set_points(lane, {"schema": 1, **fields, "p1": 0.0, "adaptive": 0})


def is_past_its_time(made: Fleet) -> bool:
    """Whether the one answer that is kept has come, and its time is over."""
    kept = [
        key
        for key in made.valkey.client.scan_iter("rlw:cache:*")
        if made.valkey.client.type(key) == b"hash" and key != keys.CACHE_SIZES.encode()
    ]
    if not kept:
        return False
    (key,) = kept
    seconds, us = made.valkey.client.time()
    ends: Any = made.valkey.client.hget(key, "ends")
    return int(ends) <= seconds * 1_000_000 + us


@pytest.mark.worker
def test_an_emergency_by_hand_answers_by_itself() -> None:
    """What waits and what comes gets a stale answer, or an error (errbacks too), as each said; the rest waits."""
    with fleet(MAISD_CACHE_TTL_SECONDS="1") as made:
        made.worker("first")
        tasks = made.agent()
        cheap = {"priority": "low", "shed_below": "normal", "lane": "free"}
        assert tasks.shared.apply_async(("x",), stale_ttl=600).get(timeout=WAIT_S) == ["x", 1]
        wait_for(lambda: is_past_its_time(made), what="its time is over")
        close_lane("free")
        waiting = [tasks.stamp.apply_async((f"shed {number}",), **cheap) for number in range(5)]
        waiting.append(tasks.stamp.apply_async(("shed with link",), link_error=tasks.note.s(), **cheap))
        plain = tasks.stamp.apply_async(("kept",), lane="free", priority="low")
        stale = tasks.shared.apply_async(("x",), stale_ttl=600)
        assert command("emergency", "--lane", "free", "--reason", "the bill") == "free: NORMAL -> EMERGENCY\n"
        for result in waiting:
            with pytest.raises(LaneShedding, match="lane 'free' is in EMERGENCY and sheds"):
                result.get(timeout=WAIT_S)
        assert stale.get(timeout=WAIT_S) == ["x", 1]
        with pytest.raises(LaneShedding):
            tasks.stamp.apply_async(("shed at once",), **cheap)
        assert tasks.shared.apply_async(("x",), stale_ttl=600).get(timeout=WAIT_S) == ["x", 1]
        wait_for(lambda: len(made.stamps("notes")) == 1, what="the errback ran")
        command("auto")
        services().lanes.set_points("free", {"unlimited": 1})
        assert plain.get(timeout=WAIT_S) == "kept"
        assert [what for _, what in made.stamps()] == ["kept"]
        assert tasks.shared.apply_async(("x",), stale_ttl=600).get(timeout=WAIT_S) == ["x", 2], "NORMAL: asked anew"
        counted = json.loads(command("stats", "--format", "json"))
        assert (counted["cache_stale"], counted["shed"]) == (2, 7)
        assert counted["now"]["counters"]["shed"] == 7
        kept = json.loads(command("cache", "stats", "--format", "json"))
        assert (kept["entries"], kept["stale"]) == (1, 2)
        assert "7 calls while their lane was in EMERGENCY or HALT" in command("stats")
        assert command("cache", "clear") == "1 answer forgotten\n"


@pytest.mark.worker
def test_canvas_hears_of_a_call_that_is_shed() -> None:
    """A step of a chain and a member of a group fail with the error as their result; what went before keeps its own."""
    with fleet(MAISD_LANES='{"free": {"unlimited": true}, "sick": {"unlimited": true}}') as made:
        made.worker("first")
        tasks = made.agent()
        command("halt", "--lane", "sick")
        low = {"priority": "low", "shed_below": "normal", "lane": "sick"}
        last = chain(tasks.double.s(2), tasks.echo.s().set(**low))()
        with pytest.raises(LaneShedding, match="'sick' is in HALT"):
            last.get(timeout=WAIT_S)
        assert last.parent.get(timeout=WAIT_S) == 4
        both = group(tasks.double.s(3), tasks.double.s(4).set(**low))()
        assert both.results[0].get(timeout=WAIT_S) == 6
        with pytest.raises(LaneShedding):
            both.results[1].get(timeout=WAIT_S)


@pytest.mark.worker
def test_a_call_that_retries_itself_stays_what_it_was() -> None:
    """`self.retry` keeps lane, class, tenant and context, so an EMERGENCY sheds it while it waits for its next try."""
    with fleet() as made:
        made.worker("first")
        tasks = made.agent()
        paced = limit_fields(LaneLimits(rpm=1, adaptive=False))
        services().lanes.set_points("other", {"schema": 1, **paced, "d1": 1})
        chosen = {"lane": "other", "tenant": "t", "context": "c", "priority": "low", "shed_below": "normal"}
        result = tasks.flaky.apply_async((1,), **chosen)
        wait_for(lambda: made.valkey.client.zcard(keys.waiting("other", "fleet")), what="it waits for its second try")
        record = services().lanes.record(f"{result.id}~1") or services().lanes.record(result.id)
        assert record is not None
        assert (record.lane, record.priority, record.tenant) == ("other", "low", "t")
        command("emergency", "--lane", "other")
        with pytest.raises(LaneShedding):
            result.get(timeout=WAIT_S)
        assert len(made.stamps("flaky")) == 1


@pytest.mark.server
def test_a_task_says_it_once_for_all_its_calls() -> None:
    """`@llm_task(stale_ttl=…, shed_below=…)`; a call may say otherwise."""
    with fleet() as made:
        tasks = made.agent()

        @llm_task(app=tasks.app, shared=False, lane="free", stale_ttl=60.0, shed_below="high")
        def summary(text: str) -> str:
            return text

        services().lanes.set_points("free", {"schema": 1, "unlimited": 1, "mode": Mode.HALT.value})
        with pytest.raises(LaneShedding):
            summary.delay("all of it")
        summary.apply_async(("all of it",), priority="high")
        summary.apply_async(("some",), shed_below="low")
        (first, second) = sorted(made.valkey.client.scan_iter("rlw:call:*"))
        client: Any = made.valkey.client
        claims = [msgspec.msgpack.decode(client.hget(key, "c")) for key in (first, second)]
        assert [packed[10] for packed in claims] == [60_000, 60_000]


# ── in process ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """A broker of its own, no Celery worker; the process's own limiter is on it too."""
    with fleet(MAISD_LANES=LANES, MAISD_CACHE_TTL_SECONDS="1") as made:
        here = Place(made)
        monkeypatch.setattr("ratelimit_worker.inprocess.limiter._limiter", here.limiter)
        yield here
        here.limiter.close()


@pytest.mark.long
@pytest.mark.server
def test_in_process_calls_are_answered_and_shed_alike(place: Place) -> None:
    """At once where the lane is in EMERGENCY; and who waits when it begins hears of it then."""
    asked: dict[str, Any] = {"cache_enabled": True, "stale_ttl": 600.0}
    assert place.call(shared_functions.ask, "stale", **asked) == ["stale", 1]
    wait_for(lambda: is_past_its_time(place.fleet), what="its time is over")
    place.close_lane("free")
    cheap: dict[str, Any] = {"priority": "low", "shed_below": "normal"}
    with ThreadPoolExecutor(3) as pool:
        stale = pool.submit(place.call, shared_functions.ask, "stale", **asked)
        shed = pool.submit(place.call, shared_functions.ask, "shed", **cheap)
        plain = pool.submit(place.call, shared_functions.ask, "plain", priority="low")
        wait_for(lambda: len(list(place.live.redis.scan_iter("rlw:call:*"))) == 3, what="all three wait")
        place.limiter.set_mode("emergency", lane="free")
        assert stale.result(timeout=WAIT_S) == ["stale", 1]
        with pytest.raises(LaneShedding, match="'free' is in EMERGENCY"):
            shed.result(timeout=WAIT_S)
        assert place.call(shared_functions.ask, "stale", **asked) == ["stale", 1]

        @optimize_api_call(lane="free", **cheap)
        def decorated() -> list[Any]:
            return shared_functions.ask("shed")

        with pytest.raises(LaneShedding):
            decorated()
        assert said("shed") == []
        place.limiter.set_mode("auto")
        place.open_lane("free")
        assert plain.result(timeout=WAIT_S) == ["plain", 1]
    counters = place.live.lanes.counters()
    assert (counters["cache_stale"], counters["shed"]) == (2, 2)
    assert place.call(shared_functions.ask, "stale", **asked) == ["stale", 2]


# ── the alert ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
def test_the_laws_emergency_is_told_with_its_cause_and_numbers() -> None:
    """A provider that fails brings the lane to EMERGENCY: the web hook hears why, cheap calls are shed."""
    with (
        hook_at() as hook,
        Simulator(Scenario(latency="0.02")) as provider,
        fleet(OPENAI_BASE_URL=provider.base_url, MAISD_ALERT_WEBHOOK_URL=hook.url) as made,
    ):
        made.worker("first")
        tasks = made.agent()
        provider.control(fault="500")
        results = [tasks.chat.delay(number) for number in range(20)]
        cheap = [tasks.chat.apply_async((number,), priority="low", shed_below="normal") for number in range(20, 25)]
        wait_for(lambda: services().lanes.state("chat").mode is Mode.EMERGENCY, what="EMERGENCY")
        for result in cheap:
            with pytest.raises(LaneShedding, match="'chat' is in EMERGENCY"):
                result.get(timeout=WAIT_S)
        wait_for(lambda: told(hook, Mode.EMERGENCY), what="the alert came")
        (alert,) = told(hook, Mode.EMERGENCY)
        assert (alert["event"], alert["lane"], alert["from"], alert["who"]) == (
            "mode_changed",
            "chat",
            "REDUCED",
            "law",
        )
        assert alert["cause"].endswith("sick answers in a row")
        assert alert["numbers"]["sick"] >= 10
        assert alert["text"] == f"chat: REDUCED -> EMERGENCY by law: {alert['cause']}"
        provider.control(clear=True)
        assert len([result.get(timeout=WAIT_S * 2) for result in results]) == 20


@pytest.mark.worker
def test_the_laws_halt_is_told() -> None:
    """A quota that is used up: the web hook hears it, and again when a person gives the lane back."""
    with (
        hook_at() as hook,
        Simulator(Scenario(latency="0.02")) as provider,
        fleet(OPENAI_BASE_URL=provider.base_url, MAISD_ALERT_WEBHOOK_URL=hook.url) as made,
    ):
        made.worker("first")
        tasks = made.agent()
        provider.control(fault="quota")
        result = tasks.chat.delay(1)
        wait_for(lambda: told(hook, Mode.HALT), what="the alert came")
        (alert,) = told(hook, Mode.HALT)
        assert (alert["lane"], alert["from"], alert["who"]) == ("chat", "NORMAL", "law")
        assert alert["cause"] == "the provider says that the quota is used up"
        provider.control(clear=True)
        command("auto", "--lane", "chat")
        assert result.get(timeout=WAIT_S)


@pytest.mark.worker
def test_a_halt_by_hand_is_told_with_its_cause() -> None:
    """The web hook hears who, why, and until when."""
    with hook_at() as hook, fleet(MAISD_ALERT_WEBHOOK_URL=hook.url, MAISD_LANES='{"free": {"rpm": 600}}') as made:
        made.worker("first")
        assert made.agent().echo.delay("well").get(timeout=WAIT_S) == "well"
        command("halt", "--lane", "free", "--for", "15m", "--reason", "the bill")
        wait_for(lambda: told(hook, Mode.HALT), what="the alert came")
        (alert,) = told(hook, Mode.HALT)
        assert (alert["event"], alert["lane"], alert["from"]) == ("mode_changed", "free", "NORMAL")
        assert (alert["cause"], alert["reason"], alert["numbers"]) == ("the lane was pinned", "the bill", {})
        assert alert["until"] == pytest.approx(alert["at"] + 900, abs=1.0)


def told(hook: Hook, to: Mode) -> list[dict[str, Any]]:
    """Alerts of a lane that has gone into a mode."""
    return [alert for alert in list(hook.told) if alert["to"] == to.value]
