"""Whatever happens, in whatever order: no call is lost or run ahead of its pace, and every lane that waits is woken.

Two of the lanes share a parent, and one of these has a quota of a day, which ends while it goes on.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.call import US, Claim, Place, Placed
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.live import Live
from tests.builders import entry
from tests.lua.cluster import LEASE_S, T0_US, Cluster
from tests.properties import share

LANES = ("a", "b", "free")
QUEUES = ("q", "two")
PARENT = "org"  #: of the first two
QUOTA = 12  #: requests a day of lane b
FIELDS: dict[str, dict[str, float | str]] = {
    PARENT: {"p1": 8, "d1": 3, "cap": 4},
    "a": {"p1": 5, "d1": 3, "bounds": json.dumps({"parents": [PARENT]})},
    "b": {
        "p1": 50, "d1": 1, "p2": 1000, "d2": 500, "cap": 3,
        "bounds": json.dumps({"parents": [PARENT], "rpd": QUOTA}),
    },
    "free": {"unlimited": 1},
}  # fmt: skip
MIDNIGHT_US = (T0_US // US // 86_400 + 1) * 86_400 * US
BAND, AGES_S, TAGS = 1.4e15, (0, 60, 300), 1e4  #: as in lua/shared/record.lua
BEHIND = len(AGES_S) * BAND


class Anything(RuleBasedStateMachine):
    """Callers, workers that die and come to life again, a pump and a sweep, on one server and the test's time."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.cluster = Cluster(self.client, now_us=MIDNIGHT_US - 60 * US)
        self.accepted: set[str] = set()
        self.gone: set[str] = set()
        self.scores: dict[str, float] = {}  #: a call's first place in its lane
        self.order: dict[tuple[str, ...], list[str]] = defaultdict(
            list
        )  #: calls of one tenant that wait for nothing else
        self.delayed: set[str] = set()
        self.sharing: set[str] = set()
        self.released_once: set[str] = set()
        self.ghosts: list[str] = []  #: tags that a dead worker held, which may yet wake up
        self.seen: dict[str, dict[str, float]] = {}  #: the lanes' hashes after the step before
        self.seen_at_us = self.cluster.now_us
        self.anchored = False
        self.changed = False  #: a cap of the parent may have been made smaller

    @initialize()
    def start(self) -> None:
        for lane, fields in FIELDS.items():
            self.cluster.lanes.set_points(lane, fields)
        self.cluster.worker("w1", slots=3, queues=QUEUES)
        self.cluster.worker("w2", slots=2, queues=("q",))

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────

    @rule(
        lane=st.sampled_from(LANES),
        queue=st.sampled_from(QUEUES),
        priority=st.sampled_from(Priority),
        tenant=st.sampled_from(["", "t"]),
        tokens=st.sampled_from([0, 10, 400, 2000]),
        due_s=st.sampled_from([0.0, 0.0, 0.0, 0.5, 5.0]),
        deadline_s=st.sampled_from([3600.0, 3600.0, 3600.0, 4.0]),
        many=st.integers(1, 6),
        same=st.sampled_from(["", "", "f", "g"]),
    )
    def enqueue(
        self,
        lane: str,
        queue: str,
        priority: Priority,
        tenant: str,
        tokens: int,
        due_s: float,
        deadline_s: float,
        many: int,
        same: str,
    ) -> None:
        for _ in range(many):
            ref = f"c{len(self.accepted)}"
            shares = same and not due_s
            call = entry(
                ref,
                lane,
                queue,
                priority=priority,
                tenant=tenant,
                cost=Cost(input_tokens=tokens),
                due_in_s=due_s,
                deadline_in_s=deadline_s,
                claim=Claim(fingerprint=f"{same}{lane}", ttl_s=2.0, join=True, max_entries=1) if shares else None,
            )
            self.cluster.lanes.enqueue(call)
            assert self.cluster.lanes.enqueue(call) == Placed(False, ref)
            self.accepted.add(ref)
            if shares:
                self.sharing.add(ref)
            if due_s or shares or deadline_s < 3600:
                self.delayed.add(ref)
            else:
                self.order[lane, queue, priority.value, tenant].append(ref)

    @rule(worker=st.sampled_from(["w1", "w2"]), many=st.integers(1, 4), begin=st.sampled_from([True, True, False]))
    def take_and_begin(self, worker: str, many: int, begin: bool) -> None:
        if worker not in self.cluster.workers:
            return
        slots, queues = self.cluster.workers[worker]
        for queue in queues * many:
            if len(self.cluster.held[worker]) < slots and self.cluster.lying(queue):
                tag, _ = self.cluster.take(queue, worker)
                if begin:
                    self._begin(tag)

    @rule(data=st.data(), many=st.integers(1, 4), at_once=st.booleans())
    def finish(self, data: st.DataObject, many: int, at_once: bool) -> None:
        for _ in range(many):
            tag = self._some_tag(data)
            if tag is None:
                continue
            if not at_once:
                self.cluster.settle(tag, lane=self._lane(tag))
                self._free(tag)
            elif self.cluster.end(tag, lane=self._lane(tag)):
                self.gone.add(tag.rpartition(".")[0])
            else:  # it has not begun, or is another's by now: its message is acknowledged
                self._free(tag)

    @rule(
        data=st.data(), after_s=st.sampled_from([0.0, 0.3, 3.0]), verdict=st.sampled_from(["other", "sick", "refused"])
    )
    def give_back(self, data: st.DataObject, after_s: float, verdict: str) -> None:
        tag = self._some_tag(data)
        if tag is not None:
            self.delayed.add(tag.rpartition(".")[0])
            self.cluster.back(tag, after_s=after_s, tries=1, lane=self._lane(tag), verdict=verdict, gate_s=0.2)

    @rule(data=st.data(), settle_first=st.booleans())
    def requeue(self, data: st.DataObject, settle_first: bool) -> None:
        tag = self._some_tag(data)
        if tag is not None:
            if settle_first:
                self.cluster.settle(tag, lane=self._lane(tag))
                self.delayed.add(tag.rpartition(".")[0])
            self.cluster.drop(tag)
            self.cluster.lanes.restore([tag])

    @rule(data=st.data(), what=st.sampled_from(["begin", "settle", "finish", "free"]))
    def a_ghost_wakes_up(self, data: st.DataObject, what: str) -> None:
        if not self.ghosts:
            return
        tag = data.draw(st.sampled_from(self.ghosts))
        if what == "begin":
            self._begin(tag)
        elif what == "free":
            self._free(tag)
        elif what == "finish":
            if self.cluster.end(tag, lane=self._lane(tag)):
                self.gone.add(tag.rpartition(".")[0])
            self.delayed.add(tag.rpartition(".")[0])
        else:
            self.cluster.settle(tag, lane=self._lane(tag))
            self.delayed.add(tag.rpartition(".")[0])  # its answer needs no permit, so it may overtake

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def die(self, worker: str) -> None:
        if worker in self.cluster.workers:
            self.ghosts += self.cluster.kill(worker)

    @rule(worker=st.sampled_from(["w1", "w2"]), slots=st.sampled_from([1, 3]), both=st.booleans())
    def come(self, worker: str, slots: int, both: bool) -> None:
        self.cluster.worker(worker, slots, QUEUES if both else QUEUES[:1])

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def close(self, worker: str) -> None:
        if worker in self.cluster.workers:
            self.cluster.worker(worker, 0, self.cluster.workers[worker][1])

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.3, 1.0]), beats=st.booleans())
    def time_passes(self, seconds: float, beats: bool) -> None:
        self.cluster.advance(seconds)
        if beats:
            for worker in self.cluster.workers:
                self.cluster.beat(worker)

    @rule(seconds=st.sampled_from([3.0, 20.0, 50.0]))
    def life_goes_on(self, seconds: float) -> None:
        self.cluster.live(seconds)
        self.seen.clear()  # many releases at many times: the step's bound would say nothing

    @rule()
    def pump(self) -> None:
        self.cluster.pump()
        self.check_nobody_is_left_behind()

    @rule()
    def sweep(self) -> None:
        self.cluster.lanes.sweep(LEASE_S)

    @rule(
        lane=st.sampled_from((*LANES[:2], PARENT)),
        fields=st.sampled_from(
            [
                {"p1": 0},
                {"p1": 2},
                {"p1": 50, "d1": 4},
                {"d1": 1},
                {"width": 1, "gap": 500_000},
                {"width": 2, "gap": 0},
                {"width": 0, "gap": 0},
                {"cap": 1},
                {"cap": 0},
                {"a1": 5.0},
            ]
        ),
    )
    def set_points(self, lane: str, fields: dict[str, float | str]) -> None:
        self.cluster.lanes.set_points(lane, fields)
        self.anchored = "a1" in fields or "d1" in fields
        self.changed = self.changed or lane == PARENT

    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        alive = sorted(self.accepted - self.gone)
        if alive:
            ref = data.draw(st.sampled_from(alive))
            if self.cluster.lanes.revoke(ref):
                self.gone.add(ref)

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        self.cluster.lanes.purge(queue)
        self.gone |= {ref for ref in self.accepted - self.gone if self.cluster.lanes.record(ref) is None}

    # ── what always holds ───────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def every_call_is_in_exactly_one_place(self) -> None:
        state = self._state()
        out = [tag.rpartition(".")[0] for tag in state["ledger"]]
        places = [*state["waiting"], *state["due"], *state["shared"], *out]
        assert sorted(places) == sorted(self.accepted - self.gone)

    @invariant()
    def all_counts_agree(self) -> None:
        state = self._state()
        assert sorted(state["ledger"]) == sorted(tag for tags in state["out"].values() for tag in tags)
        assert sorted(state["ledger"]) == sorted(state["oncrew"] + state["aside"])
        assert state["busy"] >= {lane for lane, tags in state["out"].items() if tags}
        assert len(state["ready"]) == len(set(state["ready"]))
        assert set(state["ready"]) <= set(state["ledger"])
        assert set(state["ready"]).isdisjoint(tag for tags in self.cluster.held.values() for tag in tags)

    @invariant()
    def how_many_wait_on_a_queue_is_known(self) -> None:
        there = dict.fromkeys(QUEUES, 0)
        for lane in LANES:
            for queue in QUEUES:
                there[queue] += self.client.zcard(keys.waiting(lane, queue)) + self.client.zcard(keys.due(lane, queue))
        assert {queue: self.cluster.lanes.size(queue) for queue in QUEUES} == there

    @invariant()
    def places_are_kept_and_tenants_served_in_order(self) -> None:
        for ref, at in self._state()["scores"].items():
            score = at % BEHIND  # a retry waits behind the others, and keeps its place among its like
            first = self.scores.setdefault(ref, score)
            assert score == first or (ref in self.sharing and score < first)  # one that is more urgent follows it
            self.scores[ref] = score
        waiting = set(self._state()["waiting"])
        for refs in self.order.values():
            mine = [ref for ref in refs if ref not in self.delayed and ref not in self.gone]
            first = next((index for index, ref in enumerate(mine) if ref in waiting), len(mine))
            later = [ref for ref in mine[first:] if ref not in waiting]
            # one that was released before may be out still, while an earlier one came back to its place
            assert [ref for ref in later if ref not in self.released_once] == []
            self.released_once.update(ref for ref in mine if ref not in waiting)

    @invariant()
    def no_more_is_sent_than_was_earned(self) -> None:
        dt = (self.cluster.now_us - self.seen_at_us) / US
        for lane in (*LANES[:2], PARENT):
            hashed = self._numbers(lane)
            age = max(0.0, (self.cluster.now_us - hashed["ts"]) / US)
            before = self.seen.get(lane)
            fields: dict[str, float] = {}
            for number in ("1", "2"):
                pace, depth = hashed.get("p" + number), hashed.get("d" + number, math.inf)
                if pace is None:
                    continue
                assert hashed["l" + number] <= depth + 1e-6
                level = min(depth, hashed["l" + number] + pace * age)
                sent = hashed.get("c" + number, 0.0)
                fields |= {"p" + number: pace, "l" + number: level, "c" + number: sent}
                if before is not None and not self.anchored:
                    earned = max(pace, before["p" + number]) * dt
                    assert sent - before["c" + number] <= before["l" + number] + earned - level + 1e-3
            self.seen[lane] = fields
        self.seen_at_us, self.anchored = self.cluster.now_us, False

    @invariant()
    def a_parent_is_charged_for_what_its_lanes_are_and_for_nothing_else(self) -> None:
        parent, *lanes = (self._numbers(lane) for lane in (PARENT, *LANES[:2]))
        for number in range(1, 5):
            charged = [hashed.get(f"c{number}", 0.0) - hashed.get(f"x{number}", 0.0) for hashed in lanes]
            assert parent.get(f"c{number}", 0.0) == pytest.approx(sum(charged), abs=1e-6)
        out: Any = self.client.zrange(f"rlw:out:{PARENT}", 0, -1, withscores=True)
        mine = {}
        for lane in LANES[:2]:
            theirs: Any = self.client.zrange(f"rlw:out:{lane}", 0, -1, withscores=True)
            for tag, begun in theirs:
                record = self.cluster.packed(tag.decode().rpartition(".")[0])
                if record[Place.PERMIT - 1] > 0:  # it has a permit; the answered and the expired go without
                    mine[tag] = begun
        assert dict(out) == mine
        if not self.changed:  # a cap that was made smaller lets what is out end
            assert len(out) <= parent["cap"]

    @invariant()
    def a_quota_is_kept_and_what_is_given_back_is_given_back(self) -> None:
        at_s = self.cluster.now_us / US
        used = float(self.client.hget(keys.day("b", at_s), "requests") or 0)
        assert 0 <= used <= QUOTA
        if self.cluster.now_us < MIDNIGHT_US:
            hashed = self._numbers("b")
            assert used == hashed.get("c1", 0.0) - hashed.get("x1", 0.0)

    @invariant()
    def whoever_follows_has_a_leader(self) -> None:
        for fingerprint in (same + lane for same in "fg" for lane in LANES):
            leader: Any = self.client.get(keys.claim(fingerprint))
            followers = [ref.decode() for ref in self._members(keys.followers(fingerprint))]
            if leader is None:
                assert followers == []
            else:
                assert leader.decode() in self.accepted - self.gone - set(followers)
        for ref in self._members(keys.ANSWERED):
            assert self.client.exists(keys.settled(ref.decode()))
            assert self.client.zscore("rlw:expiry", ref) is not None

    @invariant()
    def whoever_waits_is_woken(self) -> None:
        state = self._state()
        for lane, queues in state["waits"].items():
            by_itself = lane in state["full"] and state["out"][lane]
            by_others = lane in state["next"] or any(lane in state["rows"][queue] for queue in queues)
            hashed = self.cluster.lanes.fields(lane)
            closed = any(float(hashed.get(f"p{number}") or 1) <= 0 for number in range(1, 5))
            assert by_itself or by_others or closed or self._stands(lane)

    def check_nobody_is_left_behind(self) -> None:
        """After the pump: no call waits that has a permit, a slot and leave of its lane."""
        state = self._state()
        total, slots = self._slots()
        free_at_all = total - len(state["oncrew"])
        for lane in state["waits"]:
            told = Live(self.client, time_us=self.cluster.now_us).bars(lane)
            assert told is not None
            assert told[1], f"nothing holds {lane} back"  # and what is shown says so too
            fields = self._numbers(lane)
            if fields.get("gate", 0) > self.cluster.now_us or self._own_room(lane, fields) <= 0:
                continue
            heads, retries = [], []
            for queue in QUEUES:
                free = min(slots[queue] - self.client.scard(keys.oncrew(keys.ALL, queue)), free_at_all)
                if free > 0:
                    heads += self._heads(lane, queue, fields)
                    retries += self._heads(lane, queue, fields, behind=len(AGES_S))
            if heads or retries:
                first = retries and (not heads or self._retry_budget(fields) >= 1)
                next_one = min(retries if first else heads)
                record = self.cluster.lanes.record(next_one[1])
                assert record is not None
                admitted = self._admits(fields, record.cost) and (lane != "b" or self._quota_left() >= 1)
                if lane in LANES[:2]:
                    row: Any = self.client.zrange(keys.turns(PARENT), 0, 0)
                    admitted = admitted and self._parent_admits(record.cost) and row in ([], [lane.encode()])
                assert not admitted, (lane, heads, retries)

    def teardown(self) -> None:
        """Nothing is lost: with open lanes and workers for all queues, every call comes to its end."""
        for lane in LANES[:2]:
            self.cluster.lanes.set_points(lane, {"p1": 1000, "d1": 100, "width": 0, "gap": 0, "cap": 0, "gate": 0})
        self.cluster.lanes.set_points("b", {"p2": 1e6, "bounds": json.dumps({"parents": [PARENT]})})
        self.cluster.lanes.set_points(PARENT, {"p1": 1000, "d1": 100, "width": 0, "gap": 0, "cap": 0, "gate": 0})
        for worker in list(self.cluster.workers):
            self.ghosts += self.cluster.kill(worker)
        self.cluster.worker("last", slots=50, queues=QUEUES)
        for _ in range(200):
            if self.gone == self.accepted:
                break
            for queue in QUEUES:
                while self.cluster.lying(queue):
                    tag, _ = self.cluster.take(queue, "last")
                    if self._begin(tag) == "go":
                        self._free(tag)
            self.cluster.live(1)
        assert self.gone == self.accepted
        self.cluster.pump()  # what was purged at last may have asked it to look, and it finds nothing
        keys_left: Any = self.client.keys("rlw:*")
        left = {key.decode() for key in keys_left}
        known = {f"rlw:{kind}:{lane}" for kind in ("lane", "tenants", "seen") for lane in LANES}
        known |= {f"rlw:lane:{PARENT}", f"rlw:shares:{PARENT}"}
        known |= {
            f"rlw:{name}"
            for name in (
                "counters",
                "busy",
                "oncrews",
                "pump",
                "duty:pump",
                "duty:release",
                "lanes",
                "outbox",
                "seen",
                "urgent",
            )
        }
        known |= {f"rlw:{name}" for name in ("workers", "held", "heard", "crew", "crews", "waiting")}
        assert {
            key for key in left - known if not key.startswith(("rlw:done:", "rlw:cache:", "rlw:day:", "rlw:reuse:"))
        } == set()

    # ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, tag: str) -> str:
        state = self.cluster.lanes.begin(tag, LEASE_S).state
        if state == "alone":  # what a worker does when nothing else runs in its process
            state = self.cluster.lanes.begin(tag, LEASE_S, alone=True).state
        if state in ("settled", "expired", "poison", "gone"):
            self._free(tag)
        elif state in ("closed", "superseded"):
            self.cluster.drop(tag)
        return state

    def _free(self, tag: str) -> None:
        if self.cluster.free(tag):
            self.gone.add(tag.rpartition(".")[0])

    def _some_tag(self, data: st.DataObject) -> str | None:
        tags = sorted(tag for tags in self.cluster.held.values() for tag in tags)
        return data.draw(st.sampled_from(tags)) if tags else None

    def _lane(self, tag: str) -> str:
        record = self.cluster.lanes.record(tag.rpartition(".")[0])
        return record.lane if record else "a"

    def _slots(self) -> tuple[int, dict[str, int]]:
        by: dict[str, int] = dict.fromkeys(QUEUES, 0)
        total = 0
        alive: Any = self.client.zrangebyscore("rlw:workers", self.cluster.now_us, math.inf)
        for name in alive:
            slots, queues = self._slots_of(name.decode())
            total += slots
            for queue in queues:
                by[queue] += slots
        return total, by

    def _slots_of(self, name: str) -> tuple[int, list[str]]:
        packed: Any = self.client.hget(keys.CREW, name)
        _, slots, *queues = msgspec.msgpack.decode(packed)
        return slots, queues

    def _own_room(self, lane: str, fields: dict[str, float]) -> float:
        out: Any = self.client.zrange(f"rlw:out:{lane}", 0, -1, withscores=True)
        most = math.inf
        if not fields.get("unlimited"):
            most = 1 + max(1, int(fields["p1"] * 0.02)) - sum(1 for _, begun in out if begun == 0)
        for name in ("width", "cap"):
            if fields.get(name):
                most = min(most, fields[name] - len(out))
        return most

    def _numbers(self, lane: str) -> dict[str, float]:
        fields = self.cluster.lanes.fields(lane).items()
        return {name: float(value) for name, value in fields if value and name not in ("bounds", "law")}

    def _heads(self, lane: str, queue: str, fields: dict[str, float], behind: int = 0) -> list[tuple[float, str]]:
        """The first of each class in the bands from `behind` on, with the tag that a release compares."""
        speed = next((fields[p] / worth for p, worth in (("p2", 1000), ("p1", 1)) if fields.get(p, 0) > 0), None)
        if fields.get("unlimited") or speed is None:
            speed = max(1, self._slots()[0])
        if fields.get("width") and fields.get("gap"):
            speed = min(speed, US / fields["gap"])
        heads = []
        for band, age_s in enumerate(AGES_S, behind):
            found: Any = self.client.zrange(
                keys.waiting(lane, queue), int(band * BAND), f"({(band + 1) * BAND:.0f}", byscore=True, offset=0, num=1,
                withscores=True,
            )  # fmt: skip
            heads += [(score - band * BAND + age_s * speed * TAGS, ref.decode()) for ref, score in found]
        return heads

    def _quota_left(self) -> float:
        return QUOTA - float(self.client.hget(keys.day("b", self.cluster.now_us / US), "requests") or 0)

    def _parent_admits(self, cost: Sequence[float]) -> bool:
        fields, out = self._numbers(PARENT), self.client.zcard(f"rlw:out:{PARENT}")
        if fields.get("gate", 0) > self.cluster.now_us or not self._admits(fields, cost):
            return False
        return all(out < fields[name] for name in ("cap", "width") if fields.get(name))

    def _stands(self, lane: str) -> bool:
        """Whether a lane stands in its parent's row, and something wakes that."""
        if self.client.zscore(keys.turns(PARENT), lane) is None:
            return False
        if self.client.zscore("rlw:next", f"\n{PARENT}") is not None:
            return True
        fields = self._numbers(PARENT)
        full = any(
            self.client.zcard(f"rlw:out:{PARENT}") >= fields[name] for name in ("cap", "width") if fields.get(name)
        )
        return full or fields["p1"] <= 0

    def _retry_budget(self, fields: dict[str, float]) -> float:
        if "rb" not in fields:
            return 10.0
        minutes = (self.cluster.now_us - fields["rt"]) / US / 60
        return min(10.0, fields["rb"] + 0.1 * (fields["seq"] - fields["rs"]) + 10 * minutes)

    def _admits(self, fields: dict[str, float], cost: Sequence[float]) -> bool:
        if fields.get("unlimited"):
            return True
        dt = (self.cluster.now_us - fields["ts"]) / US
        for number in range(1, 5):
            if f"p{number}" in fields:
                pace, depth = fields[f"p{number}"], fields[f"d{number}"]
                level = min(depth, fields.get(f"l{number}", depth) + pace * dt)
                if pace <= 0 or level < min(cost[number - 1], depth):
                    return False
        return True

    def _members(self, key: str) -> list[bytes]:
        found: Any = self.client.zrange(key, 0, -1)
        return list(found)

    def _state(self) -> dict[str, Any]:
        with self.client.pipeline(transaction=False) as pipe:
            pipe.zrange(keys.LEDGER, 0, -1)
            pipe.smembers("rlw:aside")
            pipe.smembers("rlw:busy")
            pipe.zrange("rlw:next", 0, -1)
            pipe.hkeys("rlw:full")
            for lane in LANES:
                pipe.zrange(f"rlw:out:{lane}", 0, -1)
            for queue in QUEUES:
                pipe.smembers(keys.oncrew(keys.ALL, queue))
                pipe.lrange(keys.ready(keys.ALL, queue), 0, -1)
                pipe.zrange(f"rlw:hungry:{queue}", 0, -1)
            for lane in LANES:
                for queue in QUEUES:
                    pipe.zrange(keys.waiting(lane, queue), 0, -1, withscores=True)
                    pipe.zrange(keys.due(lane, queue), 0, -1)
            got: list[Any] = pipe.execute()
        text = [[one.decode() if isinstance(one, bytes) else one for one in part] for part in got]
        ledger, aside, busy, upcoming, full = text[:5]
        out = dict(zip(LANES, text[5:8], strict=True))
        shared = [keys.ANSWERED, *(keys.followers(same + lane) for same in "fg" for lane in LANES)]
        state: dict[str, Any] = {
            "ledger": ledger,
            "aside": aside,
            "busy": set(busy),
            "next": set(upcoming),
            "full": set(full),
            "out": out,
            "oncrew": [tag for part in (8, 11) for tag in text[part]],
            "ready": [json.loads(raw)["properties"]["delivery_tag"] for part in (9, 12) for raw in text[part]],
            "rows": dict(zip(QUEUES, (text[10], text[13]), strict=True)),
            "shared": [ref.decode() for key in shared for ref in self._members(key)],
            "waiting": [],
            "due": [],
            "scores": {},
            "waits": defaultdict(list),
        }
        at = 14
        for lane in LANES:
            for queue in QUEUES:
                for ref, score in got[at]:
                    state["waiting"].append(ref.decode())
                    state["scores"][ref.decode()] = score
                state["due"] += text[at + 1]
                if got[at]:
                    state["waits"][lane].append(queue)
                at += 2
        return state


@pytest.mark.long
@pytest.mark.server
def test_whatever_happens_no_call_is_lost_and_no_lane_forgotten(redis_client: redis.Redis) -> None:
    """Random histories of callers, deaths, outages, refusals and set-points keep every invariant of the lanes."""
    Anything.client = redis_client
    run_state_machine_as_test(
        Anything,
        settings=settings(max_examples=share(0.3), stateful_step_count=40),
    )
