"""Do calls that are the same share one request? On the real server and the test's time; then with real workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from click.testing import CliRunner
from msgspec import structs

from ratelimit_worker.calls import LaneLimits, Priority
from ratelimit_worker.cli import main
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.kept import ENTRY_BYTES
from ratelimit_worker.errors import CallFailed
from ratelimit_worker.flow.call.enqueue import Kind, Said, limit_fields, plan
from ratelimit_worker.reports.explain import Where, explain, explanation_text
from ratelimit_worker.stores import answers, keys
from ratelimit_worker.stores.live import Live
from ratelimit_worker.wiring import services
from tests.builders import entry
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.lua.cluster import LEASE_S, OPEN, Cluster

WAIT_S = 120
#: One slot and a pace at which nothing goes ahead of it: what waits, waits.
CLOSED = {"p1": 0, "d1": 1}


def claim(fingerprint: str = "f", **more: Any) -> Claim:
    """A claim that joins and is kept for a minute."""
    return Claim(fingerprint=fingerprint, **{"ttl_s": 60.0, "join": True, **more})


Put = Callable[..., bytes | None]


@pytest.fixture
def put(cluster: Cluster) -> Put:
    """Enqueue calls with the same fingerprint, by name → the answer that the last took at once."""

    def do(
        *refs: str, lane_fields: Any = OPEN, queue: str = "q", deadline_in_s: float = 3600.0, **claims: Any
    ) -> bytes | None:
        asks = {"queue": queue, "claim": claim(**claims), "lane_fields": lane_fields, "deadline_in_s": deadline_in_s}
        return [cluster.lanes.enqueue(entry(ref, **asks)) for ref in refs][-1].answer

    return do


def places(client: redis.Redis) -> dict[str, list[str]]:
    """Where calls are, by kind of place."""
    found: dict[str, list[str]] = {}
    for kind in ("wait", "due", "followers"):
        for key in client.scan_iter(f"rlw:{kind}:*"):
            members: Any = client.zrange(key, 0, -1)
            found.setdefault(kind, []).extend(member.decode() for member in members)
    answered: Any = client.zrange(keys.ANSWERED, 0, -1)
    ledger: Any = client.zrange(keys.LEDGER, 0, -1)
    found["answered"] = [ref.decode() for ref in answered]
    found["out"] = [tag.decode().rpartition(".")[0] for tag in ledger]
    return {kind: sorted(refs) for kind, refs in found.items() if refs}


def answers_of(cluster: Cluster, queue: str = "q") -> dict[str, bytes]:
    """Deliver what is ready: each call must have its answer already → by reference."""
    got = {}
    cluster.pump()
    while cluster.lying(queue):
        tag, begun = cluster.begin(queue)
        assert begun.state == "settled", begun
        assert begun.body == b"jbody of " + tag.rpartition(".")[0].encode(), "its canvas goes its own way"
        cluster.free(tag)
        got[tag.rpartition(".")[0]] = begun.answer
        cluster.pump()
    return got


def nothing_is_left(client: redis.Redis) -> bool:
    """No claim, no follower, no place."""
    left = [*client.scan_iter("rlw:claim:*"), *client.scan_iter("rlw:followers:*"), *client.scan_iter("rlw:call:*")]
    return left == [] and places(client) == {}


# ── one request for all ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
def test_the_same_call_on_its_way_is_followed(cluster: Cluster, put: Put) -> None:
    """One is released; the others wait outside the lane and get its answer, each under its own reference, unpaced."""
    put("a", "b", "c", lane_fields={"p1": 1, "d1": 1})
    assert places(cluster.client) == {"out": ["a"], "followers": ["b", "c"]}
    tag, begun = cluster.begin()
    assert begun.state == "go"
    cluster.settle(tag, b"the answer")
    assert places(cluster.client) == {"out": ["a"], "answered": ["b", "c"]}
    cluster.free(tag)
    assert answers_of(cluster) == {"b": b"the answer", "c": b"the answer"}
    assert float(cluster.lanes.fields("gpt")["c1"]) == 1, "one permit for three calls"
    assert cluster.lanes.counters()["joined"] == 2
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_many_followers_have_the_answer_soon(cluster: Cluster, put: Put) -> None:
    """More than a worker has room for at once: those left over are looked at 20 times a second, and not once."""
    put("a", *(f"b{number}" for number in range(120)))
    cluster.run_one()
    waited_s, got = 0.0, answers_of(cluster)
    while len(got) < 120:
        assert waited_s < 1.0, f"{len(got)} of 120 have it"
        assert 0 < cluster.pump() <= 0.05, "the pump sleeps until it looks again"
        cluster.advance(0.05)
        waited_s += 0.05
        got |= answers_of(cluster)
    assert set(got.values()) == {b"answer"}
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_who_has_an_answer_and_no_worker_is_looked_at_once_a_second(cluster: Cluster, put: Put) -> None:
    """Nothing comes free within milliseconds there."""
    put("a", "b")
    cluster.run_one()
    cluster.workers.clear()
    cluster.lanes.beat("w", 0, 3.5, ["q"], LEASE_S, [])
    cluster.pump()
    assert places(cluster.client) == {"answered": ["b"]}
    assert cluster.pump() == pytest.approx(1.0)


@pytest.mark.server
def test_an_answer_is_kept_for_its_time(cluster: Cluster, put: Put) -> None:
    """The caller gets a kept answer at once, and nothing is stored; after its time the call is made again."""
    put("a")
    cluster.run_one()
    assert put("b", at_once=True) == b"answer"
    assert nothing_is_left(cluster.client)
    cluster.advance(59.9)
    assert put("c", at_once=True) == b"answer"
    assert cluster.lanes.counters()["cache_hits"] == 2
    cluster.advance(0.1)
    cluster.worker()
    put("d", at_once=True)
    assert places(cluster.client) == {"out": ["d"]}


@pytest.mark.server
def test_a_call_with_a_canvas_is_delivered_with_the_kept_answer(cluster: Cluster, put: Put) -> None:
    """It goes to a worker without a permit, so that its links and its chord go on; a shut lane does not hold it up."""
    put("a")
    cluster.run_one()
    cluster.lanes.set_points("gpt", {"p1": 0})
    put("b")
    assert places(cluster.client) == {"answered": ["b"]}
    assert answers_of(cluster) == {"b": b"answer"}
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_an_answer_survives_the_worker_that_was_to_pass_it_on(cluster: Cluster, put: Put) -> None:
    """A delivered follower whose worker dies is delivered again, with the answer and without a request."""
    put("a", "b")
    cluster.run_one()
    cluster.pump()
    cluster.take()
    cluster.kill()
    cluster.advance(31)
    cluster.worker()
    cluster.live(32)
    assert answers_of(cluster) == {"b": b"answer"}


@pytest.mark.server
def test_a_final_error_is_everybodys(cluster: Cluster, put: Put) -> None:
    """Followers get the leader's error; it is not kept, so the next call is made."""
    put("a", "b")
    tag, _ = cluster.begin()
    cluster.settle(tag, b"error", kind="error")
    cluster.free(tag)
    assert answers_of(cluster) == {"b": b"error"}
    put("c")
    assert places(cluster.client) == {"out": ["c"]}


@pytest.mark.server
def test_an_answer_that_is_not_whole_is_not_kept(cluster: Cluster, put: Put) -> None:
    """Those that wait for it now get it; the next call is made."""
    put("a", "b")
    tag, _ = cluster.begin()
    cluster.settle(tag, b"cut sh", kind="short")
    cluster.free(tag)
    assert answers_of(cluster) == {"b": b"cut sh"}
    put("c")
    assert places(cluster.client) == {"out": ["c"]}


@pytest.mark.server
def test_an_outcome_that_nobody_else_can_have_sets_followers_free(cluster: Cluster, put: Put) -> None:
    """They go all at once, at the lane's pace, each to its own attempt, and share nothing any more."""
    cluster.worker("w2", queues=("two",))
    put("a", "b", "c")
    put("d", queue="two")
    tag, _ = cluster.begin()
    assert cluster.settle(tag, b"nobody else's", kind="alone")
    assert places(cluster.client) == {"out": ["a"], "wait": ["b", "c", "d"]}
    put("e")
    assert cluster.client.get(keys.claim("f")) == b"e", "who comes later leads again"
    cluster.free(tag)
    cluster.pump()
    assert places(cluster.client)["out"] == ["b", "c", "d", "e"]
    for queue, worker in (("q", "w"), ("q", "w"), ("two", "w2")):
        tag, begun = cluster.begin(queue, worker)
        assert begun.state == "go"
        cluster.settle(tag, b"own")
        cluster.free(tag)
    assert answers.size(cluster.client).entries == 0
    cluster.run_one()
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_a_call_that_steps_aside_keeps_its_claim(cluster: Cluster, put: Put) -> None:
    """It makes a call itself, in a lane that lets one run at a time: that one goes, the claim stays."""
    put("outer", "follower", lane_fields={**OPEN, "cap": 1})
    tag, _ = cluster.begin()
    put("inner", fingerprint="g")
    assert places(cluster.client)["wait"] == ["inner"]
    assert cluster.lanes.step_aside([tag, tag]) == 1
    cluster.pump()
    assert places(cluster.client) == {"out": ["inner", "outer"], "followers": ["follower"]}
    assert cluster.run_one() == "inner"
    assert cluster.settle(tag, b"answer")
    cluster.free(tag)
    assert answers_of(cluster) == {"follower": b"answer"}
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_publishing_twice_is_once(cluster: Cluster, put: Put) -> None:
    """A follower whose reply was lost is sent again and stays one follower; so does a leader."""
    put("a", "a", "b", "b")
    assert places(cluster.client) == {"out": ["a"], "followers": ["b"]}


@pytest.mark.server
def test_different_calls_share_nothing(cluster: Cluster, put: Put) -> None:
    """Another fingerprint is another call."""
    put("a", fingerprint="f")
    put("b", fingerprint="g")
    assert places(cluster.client) == {"out": ["a", "b"]}


# ── a leader that leaves ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.server
@pytest.mark.parametrize("how", ["revoked", "purged", "expired", "poison", "passed", "without an answer"])
def test_a_leader_that_leaves_is_replaced(cluster: Cluster, put: Put, how: str) -> None:
    """The first follower takes its place in the lane, the other follows that one; both are answered by one request."""
    cluster.worker("w2", queues=("two",))
    waits = how in ("revoked", "purged", "expired")
    put("a", lane_fields=CLOSED if waits else OPEN, deadline_in_s=5.0 if how == "expired" else 3600.0)
    put("b", "c", queue="two")
    if how == "revoked":
        assert cluster.lanes.revoke("a")
    elif how == "purged":
        assert cluster.lanes.purge("q") == 1
    elif how == "expired":
        cluster.live(5)
        tag, begun = cluster.begin()
        assert begun.state == "expired"
        cluster.free(tag)
    elif how == "poison":
        for alone in (False, False, True):
            assert cluster.begin(alone=alone)[1].state == "go"
            cluster.kill()
            cluster.live(LEASE_S + 3)
            cluster.worker()
            cluster.live(2)
        tag, begun = cluster.begin()
        assert begun.state == "poison"
        cluster.free(tag)
    else:
        tag, _ = cluster.begin()
        if how == "passed":
            cluster.settle(tag, b"passed", kind="passed")
        else:
            cluster.settle(tag, b"")
        cluster.free(tag)
    assert cluster.client.get(keys.claim("f")) == b"b"
    assert places(cluster.client)["followers"] == ["c"]
    cluster.lanes.set_points("gpt", {**OPEN})
    cluster.pump()
    assert cluster.run_one("two", "w2") == "b"
    assert answers_of(cluster, "two") == {"c": b"answer"}
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_a_new_leader_has_the_place_of_the_old(cluster: Cluster, put: Put) -> None:
    """Its follower waited as long: it is not put behind what came after."""
    put("a", lane_fields=CLOSED)
    put("b")
    put("later", fingerprint="g")
    cluster.lanes.revoke("a")
    cluster.lanes.set_points("gpt", {**OPEN})
    cluster.pump()
    assert cluster.ready() == ["b"]
    cluster.live(1)
    assert cluster.ready() == ["b", "later"]


@pytest.mark.server
def test_a_purge_takes_the_followers_on_its_queue(cluster: Cluster, put: Put) -> None:
    """What would only follow a call that is purged is purged with it, where it is of the same queue."""
    put("a", "b", lane_fields=CLOSED)
    assert cluster.lanes.purge("q") == 2
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_a_follower_leaves_alone(cluster: Cluster, put: Put) -> None:
    """Revoked, it is gone and the others go on; past its own deadline, it says so and nobody waits longer for that."""
    put("a", lane_fields=CLOSED)
    put("b", "c")
    put("late", deadline_in_s=2.0)
    ((_, body),) = cluster.lanes.revoke("b")
    assert body == b"jbody of b"
    cluster.live(2)
    tag, begun = cluster.begin()
    assert (tag.rpartition(".")[0], begun.state) == ("late", "expired")
    cluster.free(tag)
    assert places(cluster.client) == {"wait": ["a"], "followers": ["c"]}


@pytest.mark.server
def test_a_leader_whose_memory_is_gone_is_replaced(cluster: Cluster, put: Put) -> None:
    """A claim that names a call which is not there stops nobody, and its followers get the answer of the next."""
    put("a", "b", lane_fields=CLOSED)
    cluster.client.delete(keys.call("a"))
    put("c")
    assert cluster.client.get(keys.claim("f")) == b"c"
    cluster.lanes.set_points("gpt", {**OPEN})
    cluster.pump()
    assert cluster.run_one() == "c"
    assert set(answers_of(cluster)) == {"b"}


@pytest.mark.server
def test_only_the_leader_settles(cluster: Cluster, put: Put) -> None:
    """A worker that was taken for dead and comes late, after its call was replaced, changes nothing for the others."""
    put("a")
    tag, _ = cluster.begin()
    put("b")
    cluster.free(tag)  # given up elsewhere: b leads now
    assert cluster.client.get(keys.claim("f")) == b"b"
    assert cluster.settle(tag, b"too late") is False
    assert cluster.client.get(keys.claim("f")) == b"b"
    cluster.pump()
    tag, begun = cluster.begin()
    assert begun.state == "go"


@pytest.mark.server
def test_a_retry_keeps_its_claim(cluster: Cluster, put: Put) -> None:
    """self.retry sends the same task id again while it runs: the claim goes to that message, and followers with it."""
    put("a", "b")
    tag, _ = cluster.begin()
    cluster.lanes.enqueue(structs.replace(entry("a", claim=claim(again=True)), publication="another"))
    assert cluster.client.get(keys.claim("f")) == b"a~1"
    cluster.settle(tag, b"passed", kind="passed")
    cluster.free(tag)
    assert places(cluster.client) == {"out": ["a~1"], "followers": ["b"]}
    cluster.run_one()
    assert answers_of(cluster) == {"b": b"answer"}
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_the_most_urgent_decides_the_place(cluster: Cluster, put: Put) -> None:
    """A high call that follows a low one brings it forward; what it leaves behind is a low call again."""
    shut: dict[str, Any] = {"lane_fields": CLOSED, "deadline_in_s": 3600.0}
    cluster.lanes.enqueue(entry("low", claim=claim(), priority=Priority.LOW, **shut))
    cluster.lanes.enqueue(entry("normal", **shut))
    cluster.lanes.enqueue(entry("high", claim=claim(), priority=Priority.HIGH, **shut))
    cluster.lanes.enqueue(entry("low too", claim=claim(), priority=Priority.LOW, **shut))
    order: Any = cluster.client.zrange(keys.waiting("gpt", "q"), 0, -1)
    assert order == [b"low", b"normal"]
    cluster.lanes.revoke("high")
    cluster.lanes.revoke("low")
    order = cluster.client.zrange(keys.waiting("gpt", "q"), 0, -1)
    assert order == [b"normal", b"low too"]


@pytest.mark.server
def test_nobody_follows_a_call_that_no_worker_serves(cluster: Cluster, put: Put) -> None:
    """The claim goes to the call that a worker can run; whoever waited for the other gets the answer of this one."""
    put("a", queue="nobody")
    put("b", queue="nobody")
    put("c")
    assert places(cluster.client) == {"wait": ["a"], "followers": ["b"], "out": ["c"]}
    cluster.run_one()
    assert places(cluster.client) == {"wait": ["a"], "answered": ["b"]}


# ── bounds and switches ──────────────────────────────────────────────────────────────────────────────────────────


def keep(cluster: Cluster, put: Put, name: str, **claims: Any) -> None:
    """Have one call answered."""
    put(name, fingerprint=name, **claims)
    cluster.run_one()
    cluster.advance(0.001)


@pytest.mark.server
def test_at_most_so_many_answers_are_kept(cluster: Cluster, put: Put) -> None:
    """What was used least goes first; tests/lua/test_kept.py has the whole rule."""
    for name in ("a", "b", "c"):
        keep(cluster, put, name, max_entries=3)
    assert put("x", fingerprint="a", at_once=True) is not None
    keep(cluster, put, "d", max_entries=3)
    assert answers.size(cluster.client).entries == 3
    assert {name for name in "abcd" if cluster.client.exists(keys.cache(name))} == {"a", "c", "d"}


@pytest.mark.server
def test_at_most_so_many_bytes_are_kept(cluster: Cluster, put: Put) -> None:
    """An answer that is larger than all that may be kept is not kept, and drives none out."""
    entry_bytes = ENTRY_BYTES + len("answer" + "[]")  # beside it, its tags
    room = 2 * entry_bytes
    for name in ("a", "b", "c"):
        keep(cluster, put, name, max_bytes=room)
    assert answers.size(cluster.client) == (2, room)
    put("big", fingerprint="big", max_bytes=room)
    tag, _ = cluster.begin()
    cluster.settle(tag, b"x" * room)
    cluster.free(tag)
    assert answers.size(cluster.client) == (2, room)


@pytest.mark.server
def test_what_has_ended_leaves_room(cluster: Cluster, put: Put) -> None:
    """An answer past its time is not counted for long, nor does it drive out one that is good."""
    keep(cluster, put, "short", max_entries=2, ttl_s=1.0)
    keep(cluster, put, "long", max_entries=2, ttl_s=100.0)
    cluster.advance(2)
    cluster.worker()
    keep(cluster, put, "new", max_entries=2)
    assert answers.size(cluster.client).entries == 2
    assert cluster.client.exists(keys.cache("long"))


@pytest.mark.server
def test_nothing_is_kept_without_room_or_time(cluster: Cluster, put: Put) -> None:
    """No entries, no bytes, no seconds: each means no cache."""
    nothing: list[dict[str, Any]] = [{"max_entries": 0}, {"max_bytes": 0}, {"ttl_s": 0.0}]
    for number, none in enumerate(nothing):
        keep(cluster, put, f"c{number}", **none)
    assert answers.size(cluster.client) == (0, 0)


@pytest.mark.server
def test_without_joining_each_call_is_made(cluster: Cluster, put: Put) -> None:
    """Two at once, two requests; the answer is kept all the same."""
    put("a", "b", join=False)
    assert places(cluster.client) == {"out": ["a", "b"]}
    assert cluster.run_all() == ["a", "b"]
    assert put("c", join=False, at_once=True) is not None


@pytest.mark.server
def test_a_refresh_asks_though_an_answer_is_kept_and_its_own_takes_its_place(cluster: Cluster, put: Put) -> None:
    """Of two at once one asks; whoever comes later gets the new answer."""
    put("a")
    cluster.run_one()
    assert put("b", "c", refresh=True, at_once=True) is None
    assert places(cluster.client) == {"out": ["b"], "followers": ["c"]}
    assert put("d", at_once=True) == b"answer", "the old one, meanwhile"
    tag, _ = cluster.begin()
    cluster.settle(tag, b"new")
    cluster.free(tag)
    assert put("e", at_once=True) == b"new"
    assert answers_of(cluster) == {"c": b"new"}


@pytest.mark.server
def test_what_is_not_to_be_stored_is_given_to_those_that_wait_and_kept_for_nobody(cluster: Cluster, put: Put) -> None:
    """An answer that is kept will do, but its own is not kept."""
    put("a", "b", stores=False)
    cluster.run_one()
    assert answers_of(cluster) == {"b": b"answer"}
    assert put("c", at_once=True) is None
    cluster.run_one()
    assert put("d", stores=False, at_once=True) == b"answer"


@pytest.mark.server
def test_those_that_follow_a_failure_ask_for_themselves_where_they_may(cluster: Cluster, put: Put) -> None:
    """The first follower asks, the others follow it; each that fails is followed by the next."""
    put("a", "b", "c", heirs_ask=True)
    tag, _ = cluster.begin()
    cluster.settle(tag, b"error", kind="error")
    cluster.free(tag)
    cluster.pump()
    assert places(cluster.client) == {"out": ["b"], "followers": ["c"]}
    tag, begun = cluster.begin()
    assert begun.state == "go"
    cluster.settle(tag, b"at last")
    cluster.free(tag)
    assert answers_of(cluster) == {"c": b"at last"}
    assert nothing_is_left(cluster.client)
    put("x", "y", "z", fingerprint="g", heirs_ask=True)
    for name in "xyz":
        tag, _ = cluster.begin()
        assert tag.rpartition(".")[0] == name
        cluster.settle(tag, b"error", kind="error")
        cluster.free(tag)
        cluster.pump()
    assert nothing_is_left(cluster.client)


@pytest.mark.server
def test_a_claim_has_so_many_followers_at_most(cluster: Cluster, put: Put) -> None:
    """The one after them is made on its own: nobody's settle holds up the server for long."""
    put(*(f"c{number}" for number in range(1003)))
    assert cluster.client.zcard(keys.followers("f")) == 1000
    assert len(places(cluster.client)["out"]) == 3


@pytest.mark.server
def test_answers_are_forgotten_by_context_tag_and_task(cluster: Cluster, put: Put) -> None:
    """All that is told must hold; what is kept of sizes goes with them."""
    for number in range(4):
        keep(
            cluster,
            put,
            f"c{number}",
            context="x" if number < 2 else "y",
            tags=("even",) if number % 2 == 0 else (),
            func="tasks.ask",
        )
    assert answers.forget(cluster.client, context="x", tag="even") == 1
    assert answers.forget(cluster.client, func="other") == 0
    assert answers.forget(cluster.client, tag="even", func="ask") == 1
    assert answers.size(cluster.client) == (2, 2 * (ENTRY_BYTES + len("answer" + "y" + "[]" + "tasks.ask")))
    assert answers.forget(cluster.client) == 2
    assert cluster.client.keys("rlw:cache:*") == []


@pytest.mark.parametrize(
    ("settings", "kind", "wanted", "found"),
    [
        pytest.param({}, {}, None, (3600.0, True), id="as it comes"),
        pytest.param({}, {"cache_ttl_s": 5.0}, None, (5.0, True), id="a task's own time"),
        pytest.param({}, {"cache_ttl_s": 0.0}, None, (0.0, True), id="only joined"),
        pytest.param({}, {"cache": False}, None, None, id="a task without"),
        pytest.param({}, {"cache": False}, True, (3600.0, True), id="a call with"),
        pytest.param({}, {}, False, None, id="a call without"),
        pytest.param({"enable_intelligent_caching": False}, {}, None, (1.0, True), id="no cache: a duplicate's window"),
        pytest.param({"enable_request_deduplication": False}, {}, None, (3600.0, False), id="no joining"),
        pytest.param(
            {"enable_intelligent_caching": False, "enable_request_deduplication": False}, {}, None, None, id="neither"
        ),
    ],
)
def test_switches_and_options_say_what_is_shared(
    settings: dict[str, Any], kind: dict[str, Any], wanted: bool | None, found: tuple[float, bool] | None
) -> None:
    """(seconds kept, joined), or nothing."""
    sharing = plan(Kind(**kind), (), {}, Settings(**settings), Said(cache=wanted), now=0.0).sharing
    assert (None if sharing is None else (sharing.ttl_s, sharing.join)) == found


# ── with a worker ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with fleet() as made:
        made.worker("claims")
        yield made


@pytest.fixture
def tasks(running: Fleet) -> ModuleType:
    return running.agent()


def runs(running: Fleet, what: str, name: str = "shared") -> int:
    """How often `shared` ran with this."""
    return [said for _, said in running.stamps(name)].count(repr(what))


def block(lane: str) -> None:
    """Close a lane: nothing leaves it."""
    services().lanes.set_points(lane, {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})


def unblock(lane: str) -> None:
    """Let everything out of a lane."""
    services().lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True)))


@pytest.mark.worker
def test_two_at_once_are_one_request(tasks: ModuleType, running: Fleet) -> None:
    """One run, two ids, two results; the same again after the answer: no run, and the result is there at once."""
    block("twins")
    first, second = (tasks.shared.apply_async(("twins",), lane="twins") for _ in range(2))
    assert first.id != second.id
    unblock("twins")
    assert first.get(timeout=WAIT_S) == second.get(timeout=WAIT_S)
    third = tasks.shared.apply_async(("twins",), lane="twins")
    assert third.state == "SUCCESS"
    assert third.get(timeout=WAIT_S) == first.get()
    assert tasks.shared.AsyncResult(third.id).get(timeout=WAIT_S) == first.get(), "another process finds it too"
    assert runs(running, "twins") == 1
    assert tasks.shared.apply_async(("twins",), lane="twins", cache=False).get(timeout=WAIT_S) != first.get()
    assert runs(running, "twins") == 2


@pytest.mark.worker
def test_a_large_answer_is_kept_packed_and_comes_back_whole(tasks: ModuleType, running: Fleet) -> None:
    """At once, and by way of a worker to what follows in a chain; with what it cost in its place among those kept."""
    text = "A long answer, in the end. " * 1000
    first = tasks.shared.apply_async((text,), lane="large").get(timeout=WAIT_S)
    (kept,) = [
        name
        for name in running.valkey.client.scan_iter(keys.cache("*"))
        if running.valkey.client.type(name) == b"hash" and running.valkey.client.hexists(name, "packed")
    ]
    stored: Any = running.valkey.client.hgetall(kept)
    assert len(stored[b"packed"]) < len(text) / 10
    assert float(stored[b"worth"]) > 0
    again = tasks.shared.apply_async((text,), lane="large")
    assert again.state == "SUCCESS"
    assert again.get(timeout=WAIT_S) == first
    linked = chain(tasks.shared.s(text).set(lane="large"), tasks.echo.s()).apply_async()
    assert linked.get(timeout=WAIT_S) == first
    assert tasks.shared.AsyncResult(linked.parent.id).get(timeout=WAIT_S) == first
    assert runs(running, text) == 1


@pytest.mark.worker
def test_a_truncated_answer_is_its_callers_alone(tasks: ModuleType, running: Fleet) -> None:
    """Asked again, it is made again; a whole one is not, nor where the task or the call wants it so."""
    for reason, options, made in (
        ("length", {}, 2),
        ("content_filter", {}, 2),
        ("stop", {}, 1),
        ("max_tokens", {"cache_incomplete": True}, 1),
    ):
        for _ in range(2):
            answer = tasks.finished.apply_async((reason,), **options).get(timeout=WAIT_S)
            assert answer["choices"][0]["finish_reason"] == reason
        assert runs(running, reason, "finished") == made, reason


@pytest.mark.worker
@pytest.mark.parametrize("which", [0, 1], ids=["leader", "follower"])
def test_revoking_one_leaves_the_other(tasks: ModuleType, running: Fleet, which: int) -> None:
    """Whether it is the one that asks or the one that follows."""
    what = f"revoke {which}"
    block(what)
    both = [tasks.shared.apply_async((what,), lane=what) for _ in range(2)]
    both[which].revoke()
    with pytest.raises(TaskRevokedError):
        both[which].get(timeout=WAIT_S)
    unblock(what)
    assert both[1 - which].get(timeout=WAIT_S)[0] == what
    assert runs(running, what) == 1


@pytest.mark.worker
def test_canvas_goes_on_with_shared_answers(tasks: ModuleType, running: Fleet) -> None:
    """Chain, group and chord get answers that are kept, or on their way, as if each had been asked for."""
    block("canvas")
    ask = tasks.shared.s("canvas").set(lane="canvas")
    waiting = chord([ask, ask, ask], tasks.echo.s()).delay()
    unblock("canvas")
    (answer, *others) = waiting.get(timeout=WAIT_S)
    assert others == [answer, answer]
    assert chord([ask, ask], tasks.echo.s()).delay().get(timeout=WAIT_S) == [answer, answer]
    assert group([ask, ask]).delay().get(timeout=WAIT_S) == [answer, answer]
    assert chain(ask, tasks.echo.s()).delay().get(timeout=WAIT_S) == answer
    assert chain(tasks.echo.si(1), ask.clone().set(immutable=True)).delay().get(timeout=WAIT_S) == answer
    before = len(running.stamps("notes"))
    ask.apply_async(link=tasks.note.s())
    wait_for(lambda: len(running.stamps("notes")) == before + 1, what="the link ran")
    assert runs(running, "canvas") == 1


@pytest.mark.worker
def test_a_call_by_name_shares_too(tasks: ModuleType, running: Fleet) -> None:
    """`send_task` knows no answer that comes in place of a message: a worker passes it on."""
    answer = tasks.shared.delay("by name").get(timeout=WAIT_S)
    assert tasks.app.send_task("tests.fleet_app.shared", ("by name",)).get(timeout=WAIT_S) == answer
    assert runs(running, "by name") == 1


@pytest.mark.worker
def test_a_refusal_is_everybodys(tasks: ModuleType, running: Fleet) -> None:
    """Two calls that the provider refuses for good: one request, two errors; an error is not kept."""
    block("refusal")
    both = [tasks.shared.apply_async(("refusal", "no"), lane="refusal") for _ in range(2)]
    unblock("refusal")
    for result in both:
        with pytest.raises(CallFailed):
            result.get(timeout=WAIT_S)
    assert runs(running, "refusal") == 1
    with pytest.raises(CallFailed):
        tasks.shared.apply_async(("refusal", "no"), lane="refusal").get(timeout=WAIT_S)
    assert runs(running, "refusal") == 2


@pytest.mark.worker
def test_a_retry_of_its_own_keeps_its_followers(tasks: ModuleType, running: Fleet) -> None:
    """self.retry is the same call going on: whoever follows it gets what it comes to."""
    block("flaky")
    both = [tasks.shared_flaky.apply_async((2,), lane="flaky") for _ in range(2)]
    unblock("flaky")
    assert [result.get(timeout=WAIT_S) for result in both] == [2, 2]
    assert [what for _, what in running.stamps("shared_flaky")] == ["0", "1", "2"]


@pytest.mark.worker
def test_a_call_for_later_shares_nothing(tasks: ModuleType, running: Fleet) -> None:
    """With a countdown it is neither answered before its time nor waited for."""
    later = tasks.shared.apply_async(("later",), countdown=3600)
    assert tasks.shared.delay("later").get(timeout=WAIT_S)[0] == "later"
    later.revoke()


@pytest.mark.worker
def test_explain_says_whose_answer_a_call_waits_for(tasks: ModuleType) -> None:
    """A follower is in one place of its own: behind its leader."""
    block("explained")
    leader, follower = (tasks.shared.apply_async(("explained",), lane="explained") for _ in range(2))
    live = Live(services().redis)
    assert explain(live, [], leader.id).where is Where.WAITING
    found = explain(live, [], follower.id)
    assert found.where is Where.FOLLOWING
    assert leader.id in explanation_text(found)
    leader.revoke()
    assert explain(live, [], follower.id).where is Where.WAITING
    follower.revoke()


@pytest.mark.worker
def test_cache_commands(tasks: ModuleType, running: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache stats` counts what is kept; `cache clear` forgets it, and the call is made again."""
    tasks.shared.delay("cleared").get(timeout=WAIT_S)
    run = partial(CliRunner().invoke, main, env=running.env)
    figures = json.loads(run(["cache", "stats", "--format", "json"]).stdout)
    assert figures["entries"] >= 1
    assert figures["bytes"] > 0
    assert f"{figures['entries']:,} of at most 1,000" in run(["cache", "stats"]).stdout
    assert run(["cache", "clear", "--func", "nobody"]).stdout == "0 answers forgotten\n"
    assert run(["cache", "clear", "--func", "shared"]).exit_code == 0
    tasks.shared.delay("cleared").get(timeout=WAIT_S)
    assert runs(running, "cleared") == 2
    assert run(["cache", "clear"]).exit_code == 0
    assert answers.size(services().redis) == (0, 0)
