"""To whom is a call released? To workers that know its task and have a slot; stock workers never read it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import redis

from ratelimit_worker.contracts.call import US, Place
from ratelimit_worker.errors import MessageRefused
from ratelimit_worker.reports.explain import Where, explain
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Crew
from ratelimit_worker.stores.live import Live
from ratelimit_worker.worker.transport import Channel
from tests.builders import entry, message
from tests.lua.cluster import CALM, LEASE_S, OPEN, Cluster

A, B, BOTH = Crew.of(["a"]), Crew.of(["b"]), Crew.of(["a", "b"])


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    """Lanes without workers."""
    return Cluster(redis_client)


def put(cluster: Cluster, task: str, *refs: str, lane: str = "gpt", **more: Any) -> None:
    """Calls of a task."""
    for ref in refs:
        text = message(ref, json.dumps({"lang": "py", "task": task, "id": ref}))
        cluster.lanes.enqueue(entry(ref, lane, message=text, **more))


def as_older(cluster: Cluster, crew: str) -> list[str]:
    """What is ready for a crew becomes as a version without crews would have released it → tags."""
    client, tags = cluster.client, []
    while (raw := client.rpop(keys.ready(crew, "q"))) is not None:
        tag = json.loads(raw)["properties"]["delivery_tag"]  # type: ignore[arg-type]
        ref = tag.rpartition(".")[0]
        client.hset(keys.call(ref), "i", msgspec.msgpack.encode(cluster.packed(ref)[: Place.PARENTS]))
        client.lpush("q", raw)  # type: ignore[arg-type]
        client.smove(keys.oncrew(crew, "q"), "rlw:onqueue:q", tag)
        client.sadd("rlw:onqueues", "q")
        tags.append(tag)
    return tags


def older_worker(cluster: Cluster, slots: int = 4) -> None:
    """A worker of a version without crews beats."""
    cluster.client.zadd("rlw:workers", {"older": cluster.now_us + 3_500_000})
    cluster.client.hset("rlw:slots", "older", msgspec.msgpack.encode([slots, "q"]))
    cluster.client.hdel(keys.CREWS, "sums")


def test_a_stock_worker_of_the_queue_reads_none_of_it(cluster: Cluster) -> None:
    """What is released lies in a list of its crew; the list of the queue, which kombu reads, stays empty."""
    cluster.worker(crew=A)
    put(cluster, "a", "one", lane_fields=OPEN)
    assert cluster.ready(crew=A.name) == ["one"]
    assert not cluster.client.exists("q")


def test_calls_that_nobody_knows_hold_up_nobody(cluster: Cluster) -> None:
    """40 of an unknown task stand before 50 of a known one, which all run; they wait until somebody knows them."""
    cluster.worker(slots=10, crew=B)
    put(cluster, "a", *[f"a{n}" for n in range(40)], lane_fields=CALM)
    put(cluster, "b", *[f"b{n}" for n in range(50)])
    done: list[str] = []
    for _ in range(30):
        while cluster.lying(crew=B.name):
            done.append(cluster.run_one())
        cluster.advance(0.1)
        cluster.pump()
    assert done == [f"b{n}" for n in range(50)]
    assert cluster.lanes.size("q") == 40
    now = Live(cluster.client)
    unknown = list(now._unknown(now._workers(cluster.now_us / US), cluster.now_us / US))
    assert [(one.queue, one.task, one.calls) for one in unknown] == [("q", "a", 40)]
    cluster.worker("knows", slots=10, crew=A)
    done = []
    for _ in range(30):
        cluster.beat("w")
        cluster.beat("knows")
        while cluster.lying(crew=A.name):
            done.append(cluster.run_one(worker="knows"))
        cluster.advance(0.1)
        cluster.pump()
    assert sorted(done) == sorted(f"a{n}" for n in range(40))
    assert not cluster.client.keys("rlw:parked*")


def test_a_crew_that_is_full_holds_up_no_other(cluster: Cluster) -> None:
    """The only slot of those that know `a` is taken: calls of `b` go on; the next `a` goes when it is free."""
    cluster.worker("one", slots=1, crew=A)
    cluster.worker("two", slots=4, crew=B)
    put(cluster, "a", "a0", "a1", "a2", lane_fields=CALM)
    put(cluster, "b", "b0", "b1", "b2")
    cluster.pump()
    tag, _ = cluster.begin(worker="one")
    for _ in range(10):
        cluster.advance(0.05)
        cluster.pump()
        while cluster.lying(crew=B.name):
            cluster.begin(worker="two")
    assert sorted(ref.rpartition(".")[0] for ref in cluster.held["two"]) == ["b0", "b1", "b2"]
    assert cluster.ready(crew=A.name) == []
    cluster.settle(tag)
    cluster.free(tag)
    cluster.pump()
    assert cluster.ready(crew=A.name) == ["a1"]


def test_a_call_goes_to_the_crew_with_most_slots(cluster: Cluster) -> None:
    """Two releases of an app know the task; the calls spread over both as their slots are free."""
    cluster.worker("old", slots=2, crew=A)
    cluster.worker("new", slots=4, crew=BOTH)
    put(cluster, "a", *"abcdef", lane="free", lane_fields={"unlimited": 1})
    assert (cluster.lying(crew=A.name), cluster.lying(crew=BOTH.name)) == (2, 4)


def test_what_a_crew_has_not_read_goes_back_when_it_leaves(cluster: Cluster) -> None:
    """A worker registers a task more, or leaves: its former list is emptied, and nothing is left of the crew."""
    cluster.worker(slots=2, crew=A)
    cluster.worker("other", slots=2, crew=B)
    put(cluster, "a", "a0", "a1", lane_fields=OPEN)
    assert cluster.lying(crew=A.name) == 2
    cluster.worker(slots=2, crew=BOTH)
    cluster.pump()
    assert (cluster.lying(crew=A.name), cluster.lying(crew=BOTH.name)) == (0, 2)
    cluster.lanes.sweep(LEASE_S)
    cluster.live(31)
    assert cluster.client.smembers("rlw:oncrews") == {f"{BOTH.name}:q".encode()}


def test_names_of_tasks_travel_once(cluster: Cluster) -> None:
    """A beat carries a digest; the names are told again only when Redis has lost them."""
    cluster.worker(crew=A)
    cluster.client.config_resetstat()
    cluster.beat("w")
    stats: Any = cluster.client.info("commandstats")
    assert "cmdstat_sadd" not in stats
    cluster.client.delete(keys.tasks(A.name))
    cluster.beat("w")
    assert cluster.client.smembers(keys.tasks(A.name)) == {b"", b"a"}
    assert 0 < int(cluster.client.ttl(keys.tasks(A.name))) <= 3600


@pytest.mark.parametrize("name", ["ünï.task", 'with "quotes"', "back\\slash", "emoji.😀"])
def test_any_name_of_a_task_is_known(cluster: Cluster, name: str) -> None:
    """Names are compared as JSON escapes them."""
    cluster.worker(crew=Crew.of([name]))
    put(cluster, name, "one", lane_fields=OPEN)
    assert cluster.lying(crew=Crew.of([name]).name) == 1


def test_a_parked_call_can_be_revoked_and_expires(cluster: Cluster) -> None:
    """It waits as for a time: whatever looks for it finds it."""
    cluster.worker(crew=B)
    put(cluster, "a", "gone", "late", lane_fields=OPEN)
    assert [keys.call("gone").encode() in cluster.client.keys("rlw:call:*")] == [True]
    assert len(cluster.lanes.revoke("gone")) == 1
    cluster.live(5)
    assert cluster.lanes.size("q") == 1
    assert cluster.lanes.purge("q") == 1
    cluster.live(95)
    assert not cluster.client.keys("rlw:parked*")


def test_a_worker_that_is_handed_a_task_it_does_not_know_gives_it_back(cluster: Cluster) -> None:
    """It costs neither a permit nor a try, and another crew has it at once when it was nobody's."""
    cluster.worker("one", crew=A)
    put(cluster, "a", "call", lane_fields={"p1": 1, "d1": 1})
    (tag,) = as_older(cluster, A.name)
    assert cluster.level() == pytest.approx(0)
    assert cluster.lanes.decline(tag) == "back"
    assert cluster.ready(crew=A.name) == ["call"]
    record = cluster.lanes.record("call")
    assert record is not None
    assert (record.tries, record.lost, record.number) == (0, 0, 0)
    assert cluster.lanes.decline(tag) == "none", "that release is over"
    again, _ = cluster.take(worker="one")
    assert cluster.lanes.decline(again) == "back"
    assert cluster.ready(crew=A.name) == [], "its own crew should know it: not at once again"
    cluster.live(2)
    assert cluster.ready(crew=A.name) == ["call"]


def test_a_call_that_nobody_knows_does_not_outlive_its_deadline_unheard(cluster: Cluster) -> None:
    """Any worker of its queue is handed it then, to tell its caller; one that knows it is asked first."""
    cluster.worker(crew=B)
    put(cluster, "a", "call", lane_fields=OPEN, deadline_in_s=10.0)
    cluster.live(9)
    assert cluster.lying(crew=B.name) == 0
    cluster.live(2)
    tag, _ = cluster.take()
    assert cluster.lanes.decline(tag) == "over"
    cluster.worker("knows", crew=A)
    assert cluster.lanes.decline(tag) == "back"
    cluster.pump()
    again, begun = cluster.begin(worker="knows")
    assert begun.state == "expired"
    assert cluster.free(again) == 1


# ── beside workers of a version without crews ────────────────────────────────────────────────────────────────────


def test_slots_of_an_older_worker_are_no_room(cluster: Cluster) -> None:
    """Its lists are not ours; the lane is left to its pump, which is woken at once."""
    older_worker(cluster)
    put(cluster, "a", "call", lane_fields=OPEN)
    assert cluster.client.llen("q") == cluster.lying(crew=keys.ALL) == 0
    at = cluster.client.zscore("rlw:next", "gpt")
    assert at is not None
    assert at <= cluster.now_us
    cluster.advance(0.5)
    cluster.lanes.pump("pump", 500)
    assert cluster.client.zscore("rlw:next", "gpt") == at, "until that has looked"
    cluster.worker(crew=A)
    cluster.pump()
    assert cluster.ready(crew=A.name) == ["call"]


def test_an_older_pump_sleeps_while_crews_suffice(cluster: Cluster) -> None:
    """It holds no duty then; where it is needed, for want of our slots or of our workers on a queue, it works."""
    cluster.worker(slots=1, crew=A)
    older_worker(cluster)
    cluster.pump()
    assert cluster.client.get("rlw:duty:pump") == b"pump"
    cluster.client.delete("rlw:duty:pump")
    put(cluster, "a", *"abcdefgh", lane_fields=CALM)
    cluster.advance(1)
    older_worker(cluster)
    cluster.lanes.pump("pump", 500)
    assert cluster.client.get("rlw:duty:pump") is None


def test_what_an_older_version_released_takes_a_slot_of_who_runs_it(cluster: Cluster) -> None:
    """A new worker reads the stock list too: from its next beat on, the call counts with its crew."""
    cluster.worker(slots=2, crew=A)
    put(cluster, "a", "one", "two", lane="free", lane_fields={"unlimited": 1})
    tags = as_older(cluster, A.name)
    older_worker(cluster)
    cluster.held["w"] = tags
    for tag in tags:
        assert cluster.lanes.begin(tag, LEASE_S).state == "go"
    cluster.beat("w")
    assert cluster.client.scard(keys.oncrew(A.name, "q")) == 2
    put(cluster, "a", "three", lane="paced", lane_fields=CALM)
    assert cluster.lying(crew=A.name) == 0, "both slots are taken"
    assert cluster.lanes.free(tags) == 2
    cluster.pump()
    assert cluster.ready(crew=A.name) == ["three"]
    assert not cluster.client.exists("rlw:onqueue:q")


def test_what_an_older_version_released_to_a_stock_worker_comes_back(cluster: Cluster) -> None:
    """It was read and has not begun for a second: its lane need not wait for the lease. What lies unread stays."""
    cluster.worker(crew=A)
    put(cluster, "a", "swallowed", "unread", lane_fields=OPEN)
    swallowed, unread = as_older(cluster, A.name)
    cluster.client.rpop("q")
    cluster.advance(0.9)
    cluster.pump()
    assert cluster.lying(crew=A.name) == 0
    cluster.advance(0.4)
    cluster.pump()
    assert cluster.ready(crew=A.name) == ["swallowed"]
    assert cluster.client.smembers("rlw:onqueue:q") == {unread.encode()}
    assert cluster.lanes.begin(swallowed, LEASE_S).state == "superseded"


def test_an_older_in_process_caller_is_released_to(cluster: Cluster) -> None:
    """It has a queue of its own and no pump where workers live: its calls go into the plain list that it reads."""
    cluster.worker(crew=A)
    cluster.client.zadd("rlw:workers", {"inproc:h-1": cluster.now_us + 3_500_000})
    cluster.client.hset("rlw:slots", "inproc:h-1", msgspec.msgpack.encode([64, "inproc:h-1"]))
    cluster.beat("w")
    text = b'{"delivery_tag": "@"}'
    cluster.lanes.enqueue(entry("mine", queue="inproc:h-1", message=text, lane_fields={"p1": 1, "d1": 1}))
    cluster.lanes.enqueue(entry("next", queue="inproc:h-1", message=text))
    assert cluster.client.llen("inproc:h-1") == 1
    cluster.advance(1)
    cluster.beat("w")
    cluster.pump()
    assert cluster.client.llen("inproc:h-1") == 2
    assert not cluster.client.hexists("rlw:slots", "w"), "it is no reason to count ours for its version"


def test_a_record_with_a_hole_is_read(cluster: Cluster) -> None:
    """An older version that gives a call back leaves the field of the parents out: an array becomes a map."""
    cluster.worker(crew=A)
    put(cluster, "a", "call", lane_fields=OPEN)
    whole, record = cluster.packed("call"), cluster.lanes.record("call")
    assert whole[Place.CREW - 1] == A.name
    holed = {place: value for place, value in enumerate(whole, 1) if place != Place.PARENTS}
    cluster.client.hset(keys.call("call"), "i", msgspec.msgpack.encode(holed))
    assert cluster.lanes.record("call") == record is not None
    found = explain(Live(cluster.client), [], "call")
    assert found.where is Where.READY
    tag, begun = cluster.begin()
    assert begun.state == "go"
    assert cluster.free(tag) == 1
    assert cluster.client.scard(keys.oncrew(A.name, "q")) == 0


# ── the transport ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("queue", ["celery", "a:b", "a:b:c", ""])
def test_a_ready_list_names_its_crew_and_queue(queue: str) -> None:
    """The transport learns the queue of a message from the list that it came out of."""
    assert keys.crew_and_queue(keys.ready(A.name, queue)) == (A.name, queue)
    assert keys.crew_and_queue(keys.ready(keys.ALL, queue)) == (keys.ALL, queue)
    assert keys.crew_and_queue(queue) is None
    assert Channel._calls_first


def test_the_error_of_a_message_that_was_set_aside_crosses_the_backend() -> None:
    """Its arguments rebuild it."""
    error = MessageRefused("id", "no body")
    assert str(MessageRefused(*error.args)) == str(error)
