"""Does a call in process begin with its entry, and only where its lane lets it? A real server, and the test's time."""

from __future__ import annotations

import json

import pytest
from msgspec import structs

from ratelimit_worker.contracts.call import Claim, Entry
from ratelimit_worker.errors import LaneFull
from ratelimit_worker.ports import Admitted
from ratelimit_worker.stores import keys
from tests.builders import entry
from tests.lua.cluster import LEASE_S, Cluster

ONE = {"unlimited": 1, "cap": 1}  #: one at a time


def admit(cluster: Cluster, call: Entry) -> Admitted:
    """As a caller in process enters its call; the queue of these tests is its own."""
    admitted = cluster.lanes.admit(call, LEASE_S)
    if admitted.tag:
        cluster.held["w"].append(admitted.tag)
    return admitted


def test_a_call_that_its_lane_lets_go_has_begun(cluster: Cluster) -> None:
    """It is out under its tag, and no message of it lies ready for anybody else."""
    admitted = admit(cluster, entry("a", lane_fields=ONE))
    assert admitted.placed.released
    assert admitted.begun is not None
    assert (admitted.begun.state, admitted.begun.number, admitted.begun.body) == ("go", 1, b"jbody of a")
    assert cluster.lying() == 0
    assert cluster.client.zscore(keys.LEDGER, admitted.tag) is not None
    assert cluster.client.zscore("rlw:out:gpt", admitted.tag) == 1  # begun


def test_it_says_what_enqueue_and_begin_say(cluster: Cluster) -> None:
    """Two lanes, the same call: one admitted, the other entered, read and begun; their records are the same."""
    admitted = admit(cluster, entry("a", lane="one", lane_fields={"p1": 10, "d1": 3}))
    cluster.lanes.enqueue(entry("b", lane="two", lane_fields={"p1": 10, "d1": 3}))
    tag, begun = cluster.begin()
    assert admitted.begun is not None
    assert structs_of(admitted.begun) == structs_of(begun)
    first, second = cluster.packed("a"), cluster.packed("b")
    differ = {at for at, (one, two) in enumerate(zip(first, second, strict=True), 1) if one != two}
    assert differ == {2, 10, 16, 20}  # lane, number of the release, publication, what was released before
    assert cluster.level("one") == cluster.level("two")
    for one, lane in ((admitted.tag, "one"), (tag, "two")):
        cluster.settle(one, lane=lane)
        cluster.free(one)
    assert cluster.out() == 0


def structs_of(begun: object) -> dict[str, object]:
    """What begin says, but for the body, which names its call."""
    return {name: getattr(begun, name) for name in begun.__slots__ if name != "body"}  # type: ignore[attr-defined]


def test_one_that_has_to_wait_is_delivered_later(cluster: Cluster) -> None:
    """It stands in its lane as any other, and its message comes when its turn has come."""
    first = admit(cluster, entry("a", lane_fields=ONE))
    waits = admit(cluster, entry("b"))
    assert (waits.placed.released, waits.tag, waits.begun) == (False, "", None)
    cluster.settle(first.tag)
    cluster.free(first.tag)
    tag, begun = cluster.begin()
    assert (tag.rpartition(".")[0], begun.state) == ("b", "go")


def test_another_ones_turn_stays_another_ones(cluster: Cluster) -> None:
    """A newcomer waits behind the one that was there before, whose message comes as ever."""
    cluster.lanes.enqueue(entry("a", lane_fields={"p1": 1, "d1": 1}))
    cluster.lanes.enqueue(entry("b"))
    cluster.run_one()
    cluster.advance(1.0)
    waits = admit(cluster, entry("c"))
    assert (waits.tag, waits.begun) == ("", None)
    cluster.pump()
    assert cluster.ready() == ["b"]


def test_who_lost_the_answer_gets_it_again(cluster: Cluster) -> None:
    """Asked once more under the same publication: the same tag, the same attempt, one call in the ledger."""
    first = admit(cluster, entry("a", lane_fields=ONE))
    again = cluster.lanes.admit(entry("a"), LEASE_S)
    assert again.tag == first.tag
    assert again.begun is not None
    assert first.begun is not None
    assert (again.begun.state, again.begun.number) == ("go", first.begun.number)
    assert cluster.out() == 1


def test_one_that_lies_ready_is_taken_by_its_caller(cluster: Cluster) -> None:
    """It waited when it was entered, was let go since, and the answer to the entry was lost: its message goes."""
    first = admit(cluster, entry("a", lane_fields=ONE))
    admit(cluster, entry("b"))
    cluster.settle(first.tag)
    cluster.free(first.tag)
    assert cluster.ready() == ["b"]
    again = admit(cluster, entry("b"))
    assert again.begun is not None
    assert again.begun.state == "go"
    assert cluster.lying() == 0


def test_messages_of_others_are_left_where_they_lie(cluster: Cluster) -> None:
    """Only its own is taken out of a ready list in which many lie."""
    for ref in "xyz":
        cluster.lanes.enqueue(entry(ref, lane_fields={"unlimited": 1}))
    admitted = admit(cluster, entry("a"))
    assert admitted.begun is not None
    assert cluster.ready() == ["x", "y", "z"]
    raw = cluster.client.lrange(keys.ready(keys.ALL, "q"), 0, -1)
    assert admitted.tag not in {json.loads(one)["properties"]["delivery_tag"] for one in raw}


def test_an_answer_that_is_kept_and_one_that_is_on_its_way(cluster: Cluster) -> None:
    """The first is given back at once; who follows another waits for that one's answer."""
    claim = Claim(fingerprint="fp", ttl_s=60.0, join=True, at_once=True)
    leads = admit(cluster, entry("a", claim=claim, lane_fields={"unlimited": 1}))
    assert leads.begun is not None
    follows = admit(cluster, entry("b", claim=claim))
    assert (follows.tag, follows.begun, follows.placed.answer) == ("", None, None)
    cluster.settle(leads.tag, answer=b'{"value": 1}')
    cluster.free(leads.tag)
    kept = admit(cluster, structs.replace(entry("c", claim=claim)))
    assert (kept.placed.answer, kept.begun) == (b'{"value": 1}', None)
    cluster.pump()
    _, begun = cluster.begin()
    assert (begun.state, begun.answer) == ("settled", b'{"value": 1}')


def test_a_lane_that_refuses_refuses(cluster: Cluster) -> None:
    """As at `.delay()`."""
    admit(cluster, entry("a", lane_fields=ONE))
    admit(cluster, entry("b", max_waiting=1))
    with pytest.raises(LaneFull):
        admit(cluster, entry("c", max_waiting=1))
    assert cluster.out() == 1
