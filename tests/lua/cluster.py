"""Lanes on a real server with the test's time, and workers that do by hand what a worker does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis

from ratelimit_worker.contracts.call import US
from ratelimit_worker.contracts.lesson import AnswerKind, Lesson, Settlement, Stored
from ratelimit_worker.ports import Begun
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import EVERY_TASK, Crew, Lanes

T0_US = 1_700_000_000 * US
LEASE_S = 30.0
#: Permits enough, and 20 calls may travel; and so few a second that none is released before a slot is free.
OPEN: Mapping[str, float | str] = {"p1": 1000, "d1": 1000}
CALM: Mapping[str, float | str] = {"p1": 40, "d1": 1000}


class Said(Lesson, frozen=True, kw_only=True):
    """A lesson of which the test writes the parts that the scripts get, whatever an attempt would make of them."""

    told: str  #: as of `word`
    gate: float = 0.0
    seen: bytes = b""  #: as of `observation`

    @property
    def gate_s(self) -> float:
        return self.gate

    def word(self) -> str:
        return self.told

    def observation(self) -> bytes:
        return self.seen


def said(word: str, gate_s: float = 0.0, seen: bytes = b"", **more: Any) -> Said:
    """A lesson that says this to the scripts, and nothing to the tuner but `seen`."""
    return Said(told=word, gate=gate_s, seen=seen, **more)


@dataclass
class Cluster:
    """Lanes, a clock that the test moves, and workers that do what a worker does."""

    client: redis.Redis
    now_us: int = T0_US
    held: dict[str, list[str]] = field(default_factory=dict)  #: worker → tags that it has taken
    workers: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    crews: dict[str, Crew] = field(default_factory=dict)  #: worker → what it knows

    def __post_init__(self) -> None:
        self.lanes = Lanes(self.client, time_us=self.now_us)

    def packed(self, ref: str) -> list[Any]:
        """The record of a call, as the scripts keep it: its fields in the order of `Place`."""
        raw: Any = self.client.hget(keys.call(ref), "i")
        assert raw is not None, "it has no record"
        return list(msgspec.msgpack.decode(raw))

    def advance(self, seconds: float) -> None:
        """Time passes; nobody does anything."""
        self.now_us += round(seconds * US)
        self.lanes.run.time_us = self.now_us

    def worker(
        self, name: str = "w", slots: int = 4, queues: tuple[str, ...] = ("q",), crew: Crew = EVERY_TASK
    ) -> None:
        """A worker lives (or beats again)."""
        self.workers[name] = (slots, queues)
        self.crews[name] = crew
        self.held.setdefault(name, [])
        self.beat(name)

    def beat(self, name: str) -> None:
        slots, queues = self.workers[name]
        self.lanes.beat(name, slots, 3.5, queues, LEASE_S, self.held[name], self.crews.get(name, EVERY_TASK))

    def live(self, seconds: float) -> None:
        """Time passes; workers beat once a second, the pump and the sweep do their work."""
        end_us = self.now_us + round(seconds * US)
        while self.now_us < end_us:
            self.advance(min(1.0, (end_us - self.now_us) / US))
            for name in self.workers:
                self.beat(name)
            self.pump()
            self.lanes.sweep(LEASE_S)

    def pump(self) -> float:
        """The pump's work until nothing more is due → seconds that it would sleep."""
        for _ in range(100):
            moved, sleep_s = self.lanes.pump("pump", 500)
            if moved == 0:
                return sleep_s
        raise AssertionError("the pump spins")

    def lying(self, queue: str = "q", crew: str = keys.ALL) -> int:
        """How many messages lie ready."""
        return int(self.client.llen(keys.ready(crew, queue)))

    def ready(self, queue: str = "q", crew: str = keys.ALL) -> list[str]:
        """References in the ready list, the next first."""
        raw: Any = self.client.lrange(keys.ready(crew, queue), 0, -1)
        return [json.loads(one)["body"] for one in reversed(raw)]

    def take(self, queue: str = "q", worker: str = "w") -> tuple[str, dict[str, Any]]:
        """A worker reads the next message → tag, message."""
        crew = self.crews.get(worker, EVERY_TASK).name
        raw: Any = self.client.rpop(keys.ready(crew, queue))
        assert raw is not None, "nothing is ready"
        parsed = json.loads(raw)
        tag: str = parsed["properties"]["delivery_tag"]
        self.held.setdefault(worker, []).append(tag)
        return tag, parsed

    def begin(self, queue: str = "q", worker: str = "w", alone: bool = False) -> tuple[str, Begun]:
        tag, _ = self.take(queue, worker)
        return tag, self.lanes.begin(tag, LEASE_S, alone, process=worker)

    def settle(
        self,
        tag: str,
        answer: bytes = b"answer",
        lane: str = "gpt",
        verdict: str = "good",
        gate_s: float = 0,
        kind: AnswerKind = "value",
        seen: bytes = b"",
    ) -> bool:
        return self.lanes.settle(
            Settlement(tag=tag, lane=lane, answer=answer, lesson=said(verdict, gate_s, seen), kind=kind, outbox=b"row")
        )

    def end(self, tag: str, lane: str = "gpt", frees: bool = True, kind: AnswerKind = "value") -> bool:
        """Settle and store the result in one step → whether the call is freed too."""
        told = Settlement(tag=tag, lane=lane, answer=b"answer", lesson=said("good"), kind=kind, outbox=b"row")
        freed = self.lanes.finish(told, Stored(f"test:result:{tag.rpartition('.')[0]}", b"result", 60), frees)
        if freed:
            self.drop(tag)
        return freed

    def back(
        self, tag: str, after_s: float = 0, tries: int = 0, lane: str = "gpt", verdict: str = "other", gate_s: float = 0
    ) -> bool:
        self.drop(tag)
        return self.lanes.back(tag, lane, said(verdict, gate_s), after_s=after_s, tries=tries, outbox=b"row")

    def free(self, tag: str) -> int:
        self.drop(tag)
        return self.lanes.free([tag])

    def run_one(self, queue: str = "q", worker: str = "w") -> str:
        """One call from the ready list to its end → its reference."""
        tag, begun = self.begin(queue, worker)
        assert begun.state == "go"
        self.settle(tag)
        self.free(tag)
        return tag.rpartition(".")[0]

    def run_all(self, queue: str = "q") -> list[str]:
        done = []
        while self.lying(queue):
            done.append(self.run_one(queue))
        return done

    def kill(self, worker: str = "w") -> list[str]:
        """A worker dies with what it holds, which nobody renews any more."""
        del self.workers[worker]
        return self.held.pop(worker)

    def level(self, lane: str = "gpt", dimension: int = 1) -> float:
        return float(self.lanes.fields(lane)[f"l{dimension}"])

    def out(self) -> int:
        return int(self.client.zcard(keys.LEDGER))

    def drop(self, tag: str) -> None:
        """A worker has nothing more to do with a tag."""
        for tags in self.held.values():
            if tag in tags:
                tags.remove(tag)
