"""A worker is lost: for how long do others wait for what it held? On the real scripts, with the test's time.

A worker reports what it holds once a second, so what it began since its last beat is in no report of it. A message that
it had read, or that was on its way to it, was never begun by anybody.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from tests.builders import entry
from tests.lua.cluster import CALM, LEASE_S, Cluster

pytestmark = pytest.mark.server

TICK_S = 0.05
DEAD_S = 4.0  #: after its last beat a worker counts as dead


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    """Two workers with 4 slots each."""
    scene = Cluster(redis_client)
    scene.worker("lost")
    scene.worker("other")
    scene.live(LEASE_S)  # sweeps have begun: the first one leaves all that it finds half a lease
    return scene


def put(cluster: Cluster, count: int, **more: float) -> None:
    for i in range(count):
        cluster.lanes.enqueue(entry(f"c{i}", lane_fields={**CALM, **more}, deadline_in_s=3600.0))


def test_what_a_dead_worker_began_since_its_last_beat_takes_no_slot(cluster: Cluster) -> None:
    """It began four calls and reported none of them: all slots of the other worker are free, and not in 30 s."""
    put(cluster, 20)
    for _ in range(4):
        assert cluster.begin(worker="lost")[1].state == "go"
    cluster.kill("lost")
    cluster.live(DEAD_S)
    for _ in range(4):
        assert cluster.begin(worker="other")[1].state == "go"
    assert (cluster.ready(), cluster.out()) == ([], 8)


def test_a_worker_that_comes_after_the_only_one_has_died_has_all_its_slots(cluster: Cluster) -> None:
    """While nobody lived, nobody could tell the dead worker's calls from others."""
    put(cluster, 20)
    for _ in range(4):
        cluster.begin(worker="lost")
    cluster.kill("lost")
    cluster.kill("other")
    cluster.advance(10.0)
    cluster.pump()
    cluster.worker("next")
    cluster.live(1.0)
    for _ in range(4):
        assert cluster.begin(worker="next")[1].state == "go"


def test_what_a_dead_worker_has_read_goes_back_and_is_no_suspect(cluster: Cluster) -> None:
    """A lane has few calls out that have not begun. Two that will never begin would keep all others waiting."""
    put(cluster, 20)
    tags = [cluster.take(worker="lost")[0] for _ in range(2)]
    assert cluster.ready() == []
    cluster.kill("lost")
    cluster.live(2 * DEAD_S)
    assert cluster.ready() == ["c0", "c1"]
    assert cluster.lanes.counters()["reclaimed"] == 2
    assert not cluster.client.exists("rlw:suspects")
    assert cluster.begin(worker="other")[1].number == 1
    assert [cluster.lanes.begin(tag, LEASE_S).state for tag in tags] == ["superseded", "superseded"]


def test_what_lies_unread_while_all_slots_are_taken_stays(cluster: Cluster) -> None:
    """Nobody holds a message that lies in its list, however long; and what living workers hold is theirs."""
    put(cluster, 20)
    for _ in range(4):
        cluster.begin(worker="other")
    cluster.take(worker="lost")
    lies = cluster.ready()
    assert lies
    cluster.live(20.0)
    assert cluster.ready() == lies
    assert "reclaimed" not in cluster.lanes.counters()
    assert cluster.client.exists("rlw:aside") == 0


@pytest.mark.parametrize(("bound", "more"), [("width", 4), ("cap", 0)])
def test_bounds_of_the_law_leave_out_calls_of_a_dead_worker(cluster: Cluster, bound: str, more: int) -> None:
    """Four at once, and the dead worker has all four: the law lets four others go. A person's bound holds, as those
    calls may still be at the provider."""
    put(cluster, 20, **{bound: 4})
    for _ in range(4):
        cluster.begin(worker="lost")
    cluster.kill("lost")
    cluster.live(DEAD_S)
    begun = 0
    while cluster.lying():
        assert cluster.begin(worker="other")[1].state == "go"
        begun += 1
    assert begun == more


def test_a_worker_that_was_silent_for_a_while_has_its_calls_and_slots_again(cluster: Cluster) -> None:
    """Its calls count again, as running and for its slots."""
    put(cluster, 20, width=4)
    for _ in range(4):
        cluster.begin(worker="lost")
    slots, queues = cluster.workers.pop("lost")
    cluster.live(DEAD_S)
    assert cluster.lying() > 0
    cluster.workers["lost"] = (slots, queues)
    cluster.live(1.0)
    assert cluster.client.exists("rlw:aside") == 0
    out: Any = cluster.client.zrange("rlw:out:gpt", 0, -1, withscores=True)
    assert sorted(state for _, state in out) == [0, 0, 1, 1, 1, 1]


@dataclass
class Shift:
    """Two workers run a lane's calls, in steps of TICK_S; one of them is lost."""

    cluster: Cluster
    takes_s: float
    now_s: float = 0.0
    running: dict[str, dict[str, float]] = field(default_factory=lambda: {"lost": {}, "other": {}})
    answered: dict[str, float] = field(default_factory=dict)

    def tick(self) -> None:
        cluster, before_s = self.cluster, self.now_s
        cluster.advance(TICK_S)
        self.now_s += TICK_S
        for worker in self.running:
            if int(before_s) != int(self.now_s):
                cluster.beat(worker)
            self.end(worker)
        if int(before_s / 3.75) != int(self.now_s / 3.75):
            cluster.lanes.sweep(LEASE_S)
        cluster.pump()
        while cluster.lying() and (worker := min(self.running, key=lambda name: len(self.running[name]))):
            if len(self.running[worker]) >= 4:
                break
            tag, begun = cluster.begin(worker=worker)
            if begun.state == "go":
                self.running[worker][tag] = self.now_s + self.takes_s
            else:
                cluster.drop(tag)

    def end(self, worker: str) -> None:
        for tag in [tag for tag, until_s in self.running[worker].items() if until_s <= self.now_s]:
            del self.running[worker][tag]
            self.cluster.settle(tag)
            self.cluster.free(tag)
            self.answered[tag.rpartition(".")[0]] = self.now_s

    def lose(self) -> set[str]:
        """It is gone, with a message that was on its way to it → the calls that it had begun."""
        lost = {tag.rpartition(".")[0] for tag in self.running.pop("lost")}
        if self.cluster.lying():
            self.cluster.take(worker="lost")
        self.cluster.kill("lost")
        return lost


def test_one_of_two_workers_is_lost_and_its_lane_goes_on_at_its_rate(cluster: Cluster) -> None:
    """200 calls at 10/s, which need three slots: the other's four suffice. Only what the lost one had begun waits for
    the end of its lease."""
    put(cluster, 200, p1=10, d1=1)
    shift = Shift(cluster, takes_s=0.3)
    while shift.now_s < 3.9:
        shift.tick()
    lost = shift.lose()
    assert lost
    while len(shift.answered) < 200:
        shift.tick()
        assert shift.now_s < 3.9 + LEASE_S + 10
    others = [at_s for ref, at_s in shift.answered.items() if ref not in lost]
    assert sum(8.0 <= at_s < 18.0 for at_s in others) >= 98
    assert max(others) <= 20.0 + 2.5
    assert max(shift.answered.values()) <= 3.9 + LEASE_S + 5.0
