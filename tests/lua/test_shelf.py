"""Are the messages of failed calls kept, bounded by number, bytes and time? On the real server and the test's time."""

from __future__ import annotations

import pytest

from ratelimit_worker.contracts.call import US
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.shelf import Bounds, Shelf
from tests.builders import entry
from tests.lua.cluster import Cluster

TEN = Bounds(most=10, most_bytes=1_000_000, kept_s=3600)


@pytest.fixture
def lanes(cluster: Cluster) -> Cluster:
    """A worker with slots enough."""
    cluster.worker(slots=50)
    return cluster


def shelf_of(lanes: Cluster, bounds: Bounds = TEN) -> Shelf:
    """The shelf at the test's time."""
    return Shelf(lanes.client, bounds, time_us=lanes.now_us)


def fail(lanes: Cluster, name: str, bounds: Bounds = TEN, body: bytes = b"0[]") -> bool:
    """A call runs and fails for good → whether it was kept."""
    lanes.worker(slots=50)  # it beats
    lanes.lanes.enqueue(entry(name, body=body, lane_fields={"unlimited": 1}))
    tag, _ = lanes.begin()
    kept = shelf_of(lanes, bounds).keep(tag, name, 3)
    lanes.settle(tag, kind="error")
    lanes.free(tag)
    return kept


def size_of_all(lanes: Cluster) -> int:
    """Bytes that the shelf says it holds."""
    return int(lanes.client.hget(keys.NAMESPACE + "shelf:sizes", "") or 0)


def test_what_has_failed_is_there_after_its_end(lanes: Cluster) -> None:
    """Message, arguments, queue, attempts and the time that it had; until it is forgotten."""
    assert fail(lanes, "a", body=b"0[1]")
    shelf = shelf_of(lanes)
    kept = shelf.take("a")
    assert kept is not None
    assert (kept.payload, kept.queue, kept.attempts) == (b"0[1]", "q", 3)
    assert kept.deadline_s > 0
    assert b'"delivery_tag": "@"' in kept.message
    assert shelf.holds(["a", "b"]) == {"a"}
    assert not lanes.client.exists(keys.payload("a"))
    assert 0 < lanes.client.ttl(keys.shelved("a")) <= 3600
    shelf.forget("a")
    assert shelf.take("a") is None
    assert size_of_all(lanes) == 0


def test_the_oldest_go_when_there_are_too_many(lanes: Cluster) -> None:
    """By number, and by bytes; one that is larger than all room is not kept."""
    for number in range(12):
        lanes.advance(1)
        fail(lanes, f"c{number}")
    assert shelf_of(lanes).holds([f"c{number}" for number in range(12)]) == {f"c{number}" for number in range(2, 12)}
    room = Bounds(most=10, most_bytes=size_of_all(lanes), kept_s=3600)
    lanes.advance(1)
    assert fail(lanes, "large", room, body=b"0" + b"x" * (room.most_bytes // 2))
    assert size_of_all(lanes) <= room.most_bytes
    assert shelf_of(lanes).holds(["c2", "c11", "large"]) == {"c11", "large"}
    assert not fail(lanes, "larger", room, body=b"0" + b"x" * room.most_bytes)
    assert shelf_of(lanes).take("larger") is None


def test_what_is_too_old_goes_with_the_next(lanes: Cluster) -> None:
    """The index and the sum forget what Redis has let go by its time."""
    fail(lanes, "a")
    lanes.now_us += 3601 * US
    lanes.lanes.run.time_us = lanes.now_us
    fail(lanes, "b")
    assert lanes.client.zrange(keys.NAMESPACE + "shelf", 0, -1) == [b"b"]
    kept = shelf_of(lanes).take("b")
    assert kept is not None
    assert size_of_all(lanes) == len(kept.message) + len(kept.payload)


def test_what_has_an_answer_or_is_out_no_more_is_not_kept(lanes: Cluster) -> None:
    """Another delivery was answered, or the tag is of a life before."""
    lanes.lanes.enqueue(entry("a", lane_fields={"unlimited": 1}))
    tag, _ = lanes.begin()
    lanes.settle(tag)
    assert not shelf_of(lanes).keep(tag, "a", 1)
    lanes.free(tag)
    assert not shelf_of(lanes).keep(tag, "a", 1)
    assert not shelf_of(lanes, Bounds(0, 1000, 3600)).keep(tag, "a", 1)


def test_the_same_call_that_fails_again_is_kept_once(lanes: Cluster) -> None:
    """Its newest message; the sum counts it once."""
    fail(lanes, "a")
    lanes.client.delete(keys.done("a"))
    fail(lanes, "a", body=b"0[2]")
    kept = shelf_of(lanes).take("a")
    assert kept is not None
    assert kept.payload == b"0[2]"
    assert size_of_all(lanes) == len(kept.message) + len(kept.payload)
