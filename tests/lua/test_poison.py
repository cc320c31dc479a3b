"""Who is given up when workers die? The call that kills them, after three; those beside it are answered.

The turns of suspects on the real scripts, then real workers as processes, which the test starts again as a supervisor
would. Runs are counted from what the tasks wrote.
"""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.errors import WorkerLostRepeatedly
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.wiring import services
from ratelimit_worker.worker.quarantine import Quarantine
from tests.builders import entry
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, known_to_run
from tests.lua.cluster import LEASE_S, OPEN, Cluster

SUSPECTS = "rlw:suspects"


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    """A server with one worker: 8 slots on queue `q`."""
    scene = Cluster(redis_client)
    scene.worker(slots=8)
    return scene


def put(cluster: Cluster, *refs: str, **more: Any) -> None:
    for ref in refs:
        cluster.lanes.enqueue(entry(ref, lane_fields=OPEN, **more))


def lose_all(cluster: Cluster, n: int) -> None:
    """A worker begins `n` calls and dies; another takes its place."""
    for _ in range(n):
        assert cluster.begin()[1].state == "go"
    cluster.kill()
    cluster.worker("w2", slots=8)
    cluster.live(LEASE_S + 20)


def suspects(cluster: Cluster) -> dict[str, int]:
    found: Any = cluster.client.zrange(SUSPECTS, 0, -1, withscores=True)
    return {ref.decode(): int(out) for ref, out in found}


@pytest.mark.server
def test_suspects_take_turns_and_others_pass_them(cluster: Cluster) -> None:
    """In one process the first suspects go one or two at a time; calls that nobody suspects go past them."""
    put(cluster, *"abcd")
    lose_all(cluster, 4)
    out = cluster.ready()
    assert 1 <= len(out) <= 2
    put(cluster, "new", "newer")
    assert cluster.ready()[len(out) :] == ["new", "newer"]
    assert sum(suspects(cluster).values()) == len(out)
    order = []
    for _ in range(6):
        order.append(cluster.run_one(worker="w2"))
        assert sum(suspects(cluster).values()) <= 2
        cluster.pump()
    assert sorted(order) == ["a", "b", "c", "d", "new", "newer"]
    assert suspects(cluster) == {}
    assert cluster.lanes.counters().get("leaks", 0) == 0


@pytest.mark.server
def test_many_suspects_take_larger_turns(cluster: Cluster) -> None:
    """After the loss of 48 calls a process runs one, then 2, 4 … at most a third of them; of four, a twelfth each."""
    cluster.worker(slots=64)
    put(cluster, *[f"c{n}" for n in range(48)])
    for _ in range(48):
        assert cluster.begin()[1].state == "go"
    cluster.kill()
    for name in ("w2", "w3", "w4", "w5"):
        cluster.worker(name, slots=64)
    seen = []
    for _ in range(200):
        cluster.live(0.25)
        seen.append(cluster.lying())
    assert seen == sorted(seen), "none was run"
    assert next(n for n in seen if n) <= 4, "one for each process"
    assert seen[-1] == 4 * 4, "a twelfth of 48 for each"


@pytest.mark.server
def test_a_process_takes_its_share_of_suspects_and_no_more(cluster: Cluster) -> None:
    """What it fetches beyond that goes back, uncounted, and another process has it."""
    put(cluster, *"abcdef")
    lose_all(cluster, 6)
    cluster.worker("w3", slots=8)
    for _ in range(4):
        cluster.live(0.5)
    fetched = [cluster.begin(worker="w2") for _ in range(cluster.lying())]
    states = [begun.state for _, begun in fetched]
    assert states.count("go") == 1
    assert states.count("closed") == len(states) - 1 > 0
    for tag, begun in fetched:
        if begun.state == "closed":
            cluster.drop(tag)
    cluster.live(1.0)
    assert cluster.begin(worker="w3")[1].state == "go"


@pytest.mark.server
def test_where_another_is_alone_nothing_begins(cluster: Cluster) -> None:
    """It goes back and has used no attempt."""
    put(cluster, "a")
    tag, _ = cluster.take()
    assert cluster.lanes.begin(tag, LEASE_S, process="w", taken=True).state == "closed"
    cluster.drop(tag)
    cluster.live(1.0)
    tag, begun = cluster.begin()
    assert (begun.state, begun.number) == ("go", 1)


@pytest.mark.server
def test_a_suspect_that_ends_well_is_none(cluster: Cluster) -> None:
    """A retry is a good end, too: its worker lives."""
    put(cluster, "a", "b")
    lose_all(cluster, 2)
    tag, begun = cluster.begin(worker="w2")
    assert begun.state == "go"
    cluster.back(tag, after_s=5.0, tries=1)
    cluster.pump()
    assert len(suspects(cluster)) == 1
    assert cluster.run_one(worker="w2") != tag.rpartition(".")[0]
    assert suspects(cluster) == {}
    cluster.live(6)
    assert cluster.run_one(worker="w2") == tag.rpartition(".")[0]


@pytest.mark.server
@pytest.mark.parametrize("how", ["revoked", "purged", "expired"])
def test_a_suspect_that_waits_can_leave(cluster: Cluster, how: str) -> None:
    """It waits for its turn as others wait for a time, and nothing is left of it."""
    put(cluster, "a", "b", deadline_in_s=LEASE_S + 40)
    lose_all(cluster, 2)
    tag, begun = cluster.begin(worker="w2")
    assert begun.state == "go"
    first = tag.rpartition(".")[0]
    other = {"a": "b", "b": "a"}[first]
    assert suspects(cluster) == {first: 1, other: 0}
    if how == "revoked":
        assert cluster.lanes.revoke(other)
    elif how == "purged":
        assert cluster.lanes.purge("q") == 1
    else:
        cluster.live(30)
        late, begun = cluster.begin(worker="w2")
        assert (late.rpartition(".")[0], begun.state) == (other, "expired")
        cluster.free(late)
    assert suspects(cluster) == {first: 1}
    cluster.free(tag)
    assert suspects(cluster) == {}


@pytest.mark.server
def test_a_worker_that_stops_in_good_order_is_no_loss(cluster: Cluster) -> None:
    """Deploys give running calls back as often as they like."""
    put(cluster, "a")
    for _ in range(5):
        tag, begun = cluster.begin()
        assert begun.state == "go"
        cluster.drop(tag)
        cluster.lanes.restore([tag], lost=False)
        cluster.pump()
    assert suspects(cluster) == {}


@pytest.mark.server
def test_the_last_delivery_begins_alone(cluster: Cluster) -> None:
    """A call that was lost twice begins only where nothing else runs, and has not begun while it waits for that."""
    put(cluster, "a")
    lose_all(cluster, 1)
    tag, begun = cluster.begin(worker="w2")
    assert begun.state == "go"
    cluster.kill("w2")
    cluster.worker("w3")
    cluster.live(LEASE_S + 5)
    tag, begun = cluster.begin(worker="w3")
    assert begun.state == "alone"
    cluster.kill("w3")  # while it waits: another's doing
    cluster.worker("w4")
    cluster.live(LEASE_S + 5)
    tag, begun = cluster.begin(worker="w4")
    assert begun.state == "alone"
    assert cluster.lanes.begin(tag, LEASE_S, alone=True).state == "go"


def test_a_quarantined_call_is_alone() -> None:
    """It waits for those that run, and those that come are told to go elsewhere."""
    quarantine, order = Quarantine(), []
    told: list[bool] = []
    quarantine.tell = lambda: told.append(quarantine.taken)
    begun, may_end, alone = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with quarantine.shared():
            begun.set()
            may_end.wait(10)
            order.append("first ends")

    def suspect() -> None:
        with quarantine.alone():
            order.append("suspect")
            alone.set()

    threads = [threading.Thread(target=first)]
    threads[0].start()
    assert begun.wait(10)
    threads.append(threading.Thread(target=suspect))
    threads[1].start()
    wait_for(lambda: quarantine.taken, what="the suspect wants it")
    with quarantine.shared() as may_run:
        assert not may_run
    assert not alone.wait(0.05)
    may_end.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first ends", "suspect"]
    assert told == [True, False], "the slots of the process go, and come back"
    with quarantine.shared() as may_run:
        assert may_run


def test_quarantine_does_not_wait_for_ever() -> None:
    """Beside one that never ends it runs in company."""
    quarantine = Quarantine(most_wait_s=0.05)
    with quarantine.shared():  # which never ends
        thread = threading.Thread(target=lambda: quarantine.alone().__enter__())
        thread.start()
        thread.join(10)
        assert not thread.is_alive()


# ── real workers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken() -> Iterator[Fleet]:
    """A fleet of its own for each test."""
    with fleet() as made:
        yield made


def unlimited(*lanes: str) -> None:
    for lane in lanes:
        services().lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True)))


def supervise(made: Fleet, done: Callable[[], bool], *arguments: str, timeout_s: float = 120.0) -> int:
    """Start a worker, and again whenever it has died, until `done` → how often it was started."""
    lives = 1
    made.worker("life1", *arguments, wait=False)

    def look() -> bool:
        nonlocal lives
        if made.workers[-1].process.poll() is not None:
            lives += 1
            made.worker(f"life{lives}", *arguments, wait=False)
        return done()

    wait_for(look, timeout_s, "all calls have ended")
    return lives


def ended(results: list[AsyncResult]) -> Callable[[], bool]:
    left = list(results)

    def done() -> bool:
        left[:] = [result for result in left if not result.ready()]
        return not left

    return done


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_poison_is_given_up_and_its_company_is_not(broken: Fleet, pool: str) -> None:
    """Given up after three deaths; each other call is answered, and lost twice at most."""
    tasks = broken.agent()
    unlimited("poison", "stamp")
    results = [tasks.stamp.delay(str(n), 0.5) for n in range(4)]
    poison = tasks.suicide.delay("poison", 0.3)
    results += [tasks.stamp.delay(str(n), 0.5) for n in range(4, 40)]
    supervise(broken, ended([poison, *results]), "-P", pool, "-c", "8")
    with pytest.raises(WorkerLostRepeatedly, match="3 times"):
        poison.get(timeout=120)
    assert len(broken.stamps("suicide")) == 3
    assert [result.state for result in results] == ["SUCCESS"] * 40
    runs = Counter(what for _, what in broken.stamps())
    assert len(runs) == 40
    assert max(runs.values()) <= (3 if pool == "threads" else 1), runs
    wait_for(lambda: not broken.valkey.client.exists(SUSPECTS), what="nobody is suspected any more")
    row = wait_for_rows(poison.id)[-1]
    assert (row.number, row.outcome.value, row.cause) == (3, "failed", "WorkerLostRepeatedly")


def wait_for_rows(call_id: str) -> list[Any]:
    rows = services().tracker.attempts_of
    wait_for(lambda: rows(call_id), what="it is tracked")
    return list(rows(call_id))


@pytest.mark.worker
def test_several_poisons_convict_no_other(broken: Fleet) -> None:
    """Four calls kill a worker with eight threads again and again: nobody else is given up."""
    tasks = broken.agent()
    unlimited("poison", "stamp")
    results, poisons = [], []
    for n in range(24):
        if n % 6 == 2:
            poisons.append(tasks.suicide.delay(f"poison {n}", 0.1))
        results.append(tasks.stamp.delay(str(n), 0.4))
    supervise(broken, ended([*poisons, *results]), "-P", "threads", "-c", "8", timeout_s=240.0)
    assert [result.state for result in results] == ["SUCCESS"] * 24
    assert all(isinstance(poison.result, WorkerLostRepeatedly) for poison in poisons)
    deaths = Counter(what for _, what in broken.stamps("suicide"))
    assert len(deaths) == 4
    assert max(deaths.values()) == 3, deaths  # one that began and died of another's death has no stamp of it
    runs = Counter(what for _, what in broken.stamps())
    assert max(runs.values()) <= 3, runs


@pytest.mark.worker
def test_followers_of_a_poison_get_its_error(broken: Fleet) -> None:
    """They are the same call: three deaths in all, not three for each."""
    tasks = broken.agent()
    unlimited("poison")
    results = [tasks.shared_suicide.delay() for _ in range(4)]
    supervise(broken, ended(results), "-P", "threads", "-c", "4")
    for result in results:
        with pytest.raises(WorkerLostRepeatedly):
            result.get(timeout=120)
    assert len(broken.stamps("suicide")) == 3


@pytest.mark.worker
def test_a_deploy_is_no_loss(broken: Fleet) -> None:
    """A prefork worker that is told to leave at once (SIGQUIT) gives its running calls back, and nobody is suspected.

    (Each lasts far longer than the time that a worker gives its calls to end. A threads pool cannot drop what runs.)
    """
    tasks = broken.agent()
    unlimited("stamp")
    results = [tasks.stamp.delay(str(n), 600.0) for n in range(2)]
    first = broken.worker("first", "-P", "prefork", "-c", "2")
    wait_for(lambda: len(broken.stamps()) == 2, what="both run")
    wait_for(lambda: known_to_run(tasks.app) == 2, what="the parent knows that its children run them")
    first.process.send_signal(signal.SIGQUIT)
    wait_for(lambda: first.process.poll() is not None, 120.0, "it has left")
    assert services().lanes.size("fleet") == 2, "both wait in their lane"
    records = [services().lanes.record(result.id) for result in results]
    assert [record.lost for record in records if record] == [0, 0]
    assert broken.valkey.client.exists(SUSPECTS) == 0
