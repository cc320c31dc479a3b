"""How many suspects run beside each other, and where? The scripts' own decision, and what follows for all calls.

A small world on the real scripts: worker processes with slots, calls that take their time, some that kill their
process, kills from outside, and a supervisor that starts another process. Its time is the test's.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import entry
from tests.lua.cluster import LEASE_S, OPEN, Cluster
from tests.properties import share

TICK_S = 0.5
RESTART_S = 3.0  #: until the supervisor's next process takes calls
SWEEP_S = 2.0  #: from the end of a lease until the call has gone back and is looked at


@dataclass
class Process:
    """A worker process: what runs there, until when; and the call that has it for itself, or waits for that."""

    slots: int
    running: dict[str, float] = field(default_factory=dict)
    alone: str = ""


@dataclass
class World:
    """Calls 0 … n - 1 on `processes` of `slots` each; `poisons` kill their process when their time is over."""

    client: redis.Redis
    processes: int
    slots: int
    takes_s: float
    poisons: dict[int, float]
    now_s: float = 0.0
    born: int = 0
    answered: dict[int, float] = field(default_factory=dict)
    convicted: set[int] = field(default_factory=set)
    losses: Counter[int] = field(default_factory=Counter)
    deaths: int = 0  #: by poison
    struck: set[int] = field(default_factory=set)  #: a kill from outside met them when they were alone
    due: list[float] = field(default_factory=list)  #: when the supervisor's next processes come

    def __post_init__(self) -> None:
        self.client.flushall()
        self.cluster = Cluster(self.client)
        self.live: dict[str, Process] = {}
        for _ in range(self.processes):
            self.start()

    def start(self) -> None:
        self.born += 1
        name = f"p{self.born}"
        self.live[name] = Process(self.slots)
        self.cluster.worker(name, slots=self.slots)

    def put(self, calls: int) -> None:
        for n in range(calls):
            self.cluster.lanes.enqueue(entry(str(n), lane_fields=OPEN, deadline_in_s=86_400.0))

    def tick(self) -> None:
        for name in list(self.live):
            process = self.live[name]
            for tag, until_s in sorted(process.running.items(), key=lambda one: one[1]):
                if until_s > self.now_s:
                    break
                if self.number(tag) in self.poisons:
                    self.deaths += 1
                    self.kill(name)
                    break
                del process.running[tag]
                process.alone = "" if tag == process.alone else process.alone
                self.cluster.settle(tag)
                self.cluster.free(tag)
                self.answered[self.number(tag)] = self.now_s
        while self.due and self.due[0] <= self.now_s:
            self.due.pop(0)
            self.start()
        for name, process in self.live.items():
            if process.alone and not process.running:
                self.begin(name, process.alone, alone=True)
        while self.cluster.lying():
            free = [name for name, one in self.live.items() if not one.alone and len(one.running) < one.slots]
            if not free:
                break
            name = min(free, key=lambda one: len(self.live[one].running))
            tag, _ = self.cluster.take(worker=name)
            self.begin(name, tag)
        for name, process in self.live.items():
            self.cluster.workers[name] = (0 if process.alone else process.slots, ("q",))
        self.cluster.live(TICK_S)
        self.now_s += TICK_S

    def begin(self, name: str, tag: str, alone: bool = False) -> None:
        process, n = self.live[name], self.number(tag)
        state = self.cluster.lanes.begin(tag, LEASE_S, alone, process=name).state
        if state == "go":
            process.running[tag] = self.now_s + self.poisons.get(n, self.takes_s)
        elif state == "alone":
            process.alone = tag
        elif state == "poison":
            self.cluster.free(tag)
            self.convicted.add(n)
        else:
            assert state == "closed"
            process.alone = ""
            self.cluster.drop(tag)

    def kill(self, name: str, outside: bool = False) -> None:
        process = self.live.pop(name)
        self.cluster.kill(name)
        for tag in process.running:
            self.losses[self.number(tag)] += 1
            if outside and process.alone == tag:
                self.struck.add(self.number(tag))
        self.due.append(self.now_s + RESTART_S)

    def run(self, calls: int, kills: dict[float, int] | None = None, most_s: float = 3600.0) -> None:
        """Until every call is answered or given up."""
        self.put(calls)
        left = sorted((kills or {}).items())
        while len(self.answered) + len(self.convicted) < calls:
            assert self.now_s < most_s, (self.answered.keys(), self.convicted, self.losses)
            if left and left[0][0] <= self.now_s:
                names = sorted(self.live)
                if names:
                    self.kill(names[left[0][1] % len(names)], outside=True)
                left.pop(0)
            self.tick()

    @staticmethod
    def number(tag: str) -> int:
        return int(tag.rpartition(".")[0])


@pytest.mark.parametrize(("processes", "slots"), [(1, 64), (2, 32), (8, 8)])
def test_a_killed_worker_costs_a_lease_and_two_calls(redis_client: redis.Redis, processes: int, slots: int) -> None:
    """64 calls of 4 s on a worker of 64 threads, as many idle slots beside: done within 1.5 leases and 3 calls."""
    world = World(redis_client, 1, 64, 4.0, {})
    world.put(64)
    world.tick()
    assert len(world.live["p1"].running) == 64
    world.slots = slots
    for _ in range(processes):
        world.start()
    world.kill("p1")
    world.due.clear()
    while len(world.answered) < 64:
        world.tick()
    assert world.now_s <= 1.5 * LEASE_S + 3 * 4.0
    assert world.losses.total() == 64


@pytest.mark.long
@settings(max_examples=share(0.2))
@given(
    processes=st.integers(1, 5),
    slots=st.sampled_from([1, 4, 16, 40]),
    calls=st.integers(1, 60),
    takes_s=st.sampled_from([0.5, 2.0, 8.0]),
    poisons=st.dictionaries(st.integers(0, 59), st.sampled_from([0.5, 2.0, 8.0]), max_size=5),
    kills=st.dictionaries(st.integers(0, 200).map(float), st.integers(0, 4), max_size=3),
)
def test_whoever_kills_is_given_up_and_nobody_else(
    redis_server: str,
    processes: int,
    slots: int,
    calls: int,
    takes_s: float,
    poisons: dict[int, float],
    kills: dict[float, int],
) -> None:
    """Any number of poisons, and kills from outside at any time: every other call is answered, and a poison kills three
    times at most. Only a call that a kill from outside meets while it is alone may be taken for its cause."""
    poisons = {n: after_s for n, after_s in poisons.items() if n < calls}
    with redis.Redis(unix_socket_path=redis_server) as client:
        world = World(client, processes, slots, takes_s, poisons)
        world.run(calls, kills)
        assert world.convicted - world.struck <= poisons.keys()
        assert poisons.keys() <= world.convicted
        assert world.deaths <= 3 * len(poisons)
        assert max(world.losses.values(), default=0) <= 3
        others = [lost for n, lost in world.losses.items() if n not in poisons]
        assert max(others, default=0) <= 2 + len(kills), "who kills takes nobody along for the third time"
        assert client.exists("rlw:suspects", "rlw:suspects:at") == 0
        assert client.hexists("rlw:pump", "party") is False
        client.flushall()


@pytest.mark.long
@settings(max_examples=share(0.1))
@given(
    processes=st.integers(1, 5),
    calls=st.integers(1, 60),
    takes_s=st.sampled_from([0.5, 2.0, 8.0]),
    poisons=st.dictionaries(st.integers(0, 59), st.sampled_from([0.5, 2.0, 8.0]), min_size=1, max_size=4),
)
def test_the_worst_case_is_the_one_that_is_told(
    redis_server: str, processes: int, calls: int, takes_s: float, poisons: dict[int, float]
) -> None:
    """With a slot for each call: the last of the others is answered within the formula of docs/failures.md."""
    poisons = {n: after_s for n, after_s in poisons.items() if n < calls}
    with redis.Redis(unix_socket_path=redis_server) as client:
        world = World(client, processes, calls, takes_s, poisons)
        world.run(calls)
        longest_s = max(takes_s, *poisons.values()) if poisons else takes_s
        twice = sum(lost >= 2 for lost in world.losses.values())
        alone = max(1, processes - 1)
        turns = min(3 * 2 ** max(0, world.deaths - 1), math.ceil(calls / processes))
        worst_s = (
            2 * (LEASE_S + SWEEP_S)
            + LEASE_S / 4
            + (turns + math.ceil(twice / alone)) * longest_s
            + math.ceil(len(poisons) / alone) * (4.0 + SWEEP_S)
            + world.deaths * RESTART_S
        )
        assert max(world.answered.values(), default=0.0) <= worst_s
        client.flushall()
