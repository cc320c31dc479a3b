"""Does a call end in one step with its result, and only where it may? On the real server and the test's time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from tests.builders import entry
from tests.lua.cluster import Cluster, said

RESULT = "test:result:a"
#: One after the other: what waits, waits for the end of the one before it.
ONE = {"unlimited": 1, "cap": 1}


@pytest.fixture
def lanes(cluster: Cluster) -> Cluster:
    """A worker with four slots, and a call of a lane in which one may be out."""
    cluster.worker()
    cluster.lanes.enqueue(entry("a", lane_fields=ONE))
    return cluster


def test_nothing_is_left_of_a_call_but_its_result_and_its_row(lanes: Cluster) -> None:
    """The result is there and kept for a while, the outcome is in the outbox, and the next call has gone."""
    lanes.lanes.enqueue(entry("b"))
    tag, _ = lanes.begin()
    assert lanes.ready() == []
    assert lanes.end(tag)
    assert lanes.client.get(RESULT) == b"result"
    assert 0 < lanes.client.ttl(RESULT) <= 60
    assert lanes.client.xlen(keys.OUTBOX) == 1
    left = {name for name in lanes.client.keys("rlw:*") if b":a" in name}
    assert left == {b"rlw:done:a"}
    assert lanes.ready() == ["b"]
    assert lanes.lanes.free([tag]) == 0  # a late ack finds nothing


def test_whoever_waits_is_told_of_the_result(lanes: Cluster) -> None:
    """It is published under its own name."""
    with lanes.client.pubsub() as heard:
        heard.subscribe(RESULT)
        assert heard.get_message(timeout=10)["type"] == "subscribe"
        lanes.end(lanes.begin()[0])
        assert heard.get_message(timeout=10)["data"] == b"result"


def test_a_call_that_needs_its_ack_keeps_its_answer_for_a_second_delivery(lanes: Cluster) -> None:
    """Its worker dies after the result: the next delivery gets the answer and sends nothing."""
    tag, _ = lanes.begin()
    assert not lanes.end(tag, frees=False)
    assert lanes.client.get(RESULT) == b"result"
    assert lanes.out() == 1
    lanes.lanes.restore([tag])
    lanes.pump()
    again, begun = lanes.begin()
    assert (begun.state, begun.answer) == ("settled", b"answer")
    assert lanes.free(again) == 1


def test_who_was_taken_for_dead_does_not_end_the_call_of_another(lanes: Cluster) -> None:
    """Its answer counts, since it is the first; the call is the other's to free, who gets that answer."""
    tag, _ = lanes.begin()
    lanes.lanes.restore([tag])
    assert not lanes.end(tag)
    lanes.pump()
    again, begun = lanes.begin()
    assert (begun.state, begun.answer) == ("settled", b"answer")
    assert not lanes.end(tag)
    assert lanes.free(again) == 1


def test_one_that_runs_beside_it_ends_it(lanes: Cluster) -> None:
    """Both run: the late one leaves its answer, the one that holds the call frees it, and nothing leaks."""
    tag, _ = lanes.begin()
    lanes.lanes.restore([tag])
    again, begun = lanes.begin()
    assert begun.state == "go"
    assert not lanes.end(tag)
    assert lanes.end(again)
    assert lanes.out() == 0
    assert not lanes.client.exists(keys.settled("a"))


@pytest.mark.parametrize("frees", [True, False])
def test_those_that_ask_the_same_get_the_answer(cluster: Cluster, frees: bool) -> None:
    """The followers are answered in the same step, and the answer is kept."""
    cluster.worker()
    claim = Claim(fingerprint="f", ttl_s=60.0, join=True)
    for ref in ("a", "b"):
        cluster.lanes.enqueue(entry(ref, claim=claim, lane_fields=ONE))
    tag, _ = cluster.begin()
    assert cluster.end(tag, frees=frees) is frees
    if not frees:
        cluster.free(tag)
    cluster.pump()
    assert cluster.begin()[1].answer == b"answer"
    assert cluster.client.exists(keys.cache("f"))
    assert not cluster.client.exists(keys.claim("f"))


# ── a call in process, which has neither a result of Celery's nor an ack ─────────────────────────────────────────────


def answered(tag: str) -> Settlement:
    """As an attempt in process ends."""
    return Settlement(tag=tag, lane="gpt", answer=b"answer", lesson=said("good"), outbox=b"row")


def at_once(lanes: Lanes, tag: str) -> None:
    """In one step."""
    (command,) = lanes.to_settle_and_free(answered(tag), [tag])
    lanes.client.execute_command(*command)


def one_by_one(lanes: Lanes, tag: str) -> None:
    """In two steps, as for a call that was released twice."""
    lanes.settle(answered(tag))
    lanes.free([tag])


ENDS = pytest.mark.parametrize("end", [at_once, one_by_one])


@ENDS
def test_a_call_in_process_leaves_its_row(lanes: Cluster, end: Callable[[Lanes, str], None]) -> None:
    """Nothing is stored or published for Celery, and the next call has gone."""
    lanes.lanes.enqueue(entry("b"))
    tag, _ = lanes.begin()
    lanes.drop(tag)
    end(lanes.lanes, tag)
    assert lanes.client.xlen(keys.OUTBOX) == 1
    assert {name for name in lanes.client.keys("*") if b":a" in name} == {b"rlw:done:a"}
    assert not lanes.client.exists("")
    assert lanes.ready() == ["b"]


@ENDS
def test_a_caller_that_was_taken_for_dead_frees_nothing_of_another(
    lanes: Cluster, end: Callable[[Lanes, str], None]
) -> None:
    """Its answer counts, since it is the first; whoever holds the call gets that, and frees it."""
    tag, _ = lanes.begin()
    lanes.lanes.restore([tag])
    lanes.drop(tag)
    end(lanes.lanes, tag)
    lanes.pump()
    again, begun = lanes.begin()
    assert (begun.state, begun.answer) == ("settled", b"answer")
    assert lanes.out() == 1
    assert lanes.free(again) == 1


@ENDS
def test_a_release_whose_call_is_gone_leaves_the_ledger(lanes: Cluster, end: Callable[[Lanes, str], None]) -> None:
    """Redis has lost the record, and the release is not left behind."""
    tag, _ = lanes.begin()
    lanes.client.delete(keys.call("a"))
    lanes.drop(tag)
    end(lanes.lanes, tag)
    assert lanes.out() == 0
