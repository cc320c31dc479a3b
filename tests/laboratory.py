"""The law in virtual time: the real control plane, the pure simulated provider, a model of the scripts between them.

Nothing sleeps, so 60 s of a lane take less than a second. What is real here: `flow.lane.decide.decide` with pace and
modes, the observations as the lane's list holds them, classification, the retry decision, and every byte that the
provider answers. What is a model: the bucket, gate and width of `stores/lua` (`Plane`;
tests/unit/simulate/test_laboratory.py holds it against the scripts), a pool of slots, and the time that messages take.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from typing import Any

import msgspec
from msgspec.structs import replace

from ratelimit_worker.calls import Category, Failure, LaneLimits, Mode, Response
from ratelimit_worker.contracts.lane import LaneState
from ratelimit_worker.contracts.lesson import Lesson, Witness
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.call.self_doubt import SelfDoubt
from ratelimit_worker.flow.lane.attention import BUSY_S
from ratelimit_worker.flow.lane.decide import Rules, decide
from ratelimit_worker.flow.lane.tune import TUNE_EVERY_S, VISIT_EVERY_S
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.fault import LOST_PASSES, OTHERS_FARE_WELL, UNKNOWN, Failing, Lately, compared, digest
from ratelimit_worker.policy.pace import Paces
from ratelimit_worker.policy.retry import GiveUp, Halt, Retry, RetryPolicy, Snooze, aside_s, next_step
from ratelimit_worker.ports import LaneView
from ratelimit_worker.simulate.arrivals import Arrival
from ratelimit_worker.simulate.http1 import Request
from ratelimit_worker.simulate.provider import Ending, Provider, Verdict
from ratelimit_worker.simulate.scenario import Fault, Scenario
from ratelimit_worker.simulate.scenarios import Case

US = 1e6
LANE = "lab"
PATH = "/v1/chat/completions"
SICK_ROW = 5
LOOK_S = 0.02
PAUSE_S = 0.25  #: until a call that was left to another process is released again
HALT_S = 2.0
ENDLESS = frozenset({Ending.HANG, Ending.DRIP})  #: until the client's time is over
MOST_RETRIES = 10.0
Units = tuple[float, float, float, float]
_pack, _unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[float]).decode


class Plane:
    """One lane as the scripts of stores/lua keep it: levels, counters, gate, width. Times are µs, as there."""

    def __init__(self, fields: dict[str, float | str]) -> None:
        self.at: int | None = None
        self.level: dict[int, float] = {}
        self.sent, self.turned_back = [0.0] * 4, [0.0] * 4
        self.seq, self.gate = 0, 0
        self.sick = self.refusals = self.goods = self.took_us = 0
        self.good_at = self.good_sent = 0.0  #: seconds
        self.witnesses: set[str] = set()  #: calls that had sick answers since the last good one
        self.fields: dict[str, str] = {}
        self.memory: dict[str, bytes] = {}  #: what only the tuner reads
        self.write(fields, 0)

    # what a script reads of a lane
    def number(self, name: str, otherwise: float = 0.0) -> float:
        text = self.fields.get(name, "")
        return float(text) if text else otherwise

    def bound(self) -> list[int]:
        if self.fields.get("unlimited") in {"1", "1.0"}:
            return []
        return [i for i in range(1, 5) if self.fields.get(f"p{i}", "") != ""]

    @property
    def told(self) -> bool:
        return self.number("told") == 1

    def earn(self, now: int) -> None:
        """`load`: levels as of now."""
        start = now if self.at is None else self.at
        if self.told:
            start = max(start, self.gate)
        since = max(0, now - start) / US
        for i in self.bound():
            depth = self.number(f"d{i}", 1.0)
            self.level[i] = min(depth, self.level.get(i, depth) + self.number(f"p{i}") * since)
        self.at = max(now, self.at or 0)

    def admits_in(self, cost: Units, now: int) -> float | None:
        """µs until the cost is admitted; None: closed."""
        self.earn(now)
        wait = float(max(0, self.gate - now))
        for i in self.bound():
            pace = self.number(f"p{i}")
            if pace <= 0:
                return None
            guard = self.number(f"g{i}")
            need = min(cost[i - 1], self.number(f"d{i}", 1.0) - guard) + guard
            if self.level[i] + 1e-9 < need:
                wait = max(wait, ceil((need - self.level[i]) / pace * US))
        return wait

    def spend(self, cost: Units, now: int) -> bytes:
        """A permit → the ticket."""
        self.earn(now)
        self.seq += 1
        for i in range(1, 5):
            if i in self.bound():
                self.level[i] -= cost[i - 1]
            self.sent[i - 1] += cost[i - 1]
        gap = self.number("gap")
        if self.number("width") > 0 and gap > 0:
            self.gate = max(self.gate, now + gap_with_jitter(gap, self.seq))
        return _pack([self.seq, now, *self.sent])

    def give_back(self, cost: Units, now: int) -> None:
        """A permit that no start has used."""
        self.earn(now)
        for i in range(1, 5):
            if i in self.bound():
                self.level[i] = min(self.number(f"d{i}", 1.0), self.level[i] + cost[i - 1])
            self.sent[i - 1] -= cost[i - 1]

    def write(self, fields: dict[str, float | str], now: int) -> None:
        """`setpoints`: fields, and anchors of levels."""
        self.earn(now)
        before = {i: self.number(f"p{i}") for i in self.bound()}
        anchors = {}
        for name, value in fields.items():
            if name[0] in "am" and name[1:].isdigit():
                anchors[int(name[1:])] = (float(value), name[0] == "m")
            elif name == "gate":
                self.gate = int(value)
            elif value == "":
                self.fields.pop(name, None)
            else:
                self.fields[name] = value if isinstance(value, str) else repr(float(value))
        self.earn(now)
        for i in self.bound():
            if before.get(i, 0.0) > 0 and self.number(f"p{i}") > 0 and self.level[i] < 0:
                self.level[i] *= self.number(f"p{i}") / before[i]
        for i, (anchor, lowers) in anchors.items():
            if i in self.bound():
                most = self.level[i] if lowers else self.number(f"d{i}", 1.0)
                self.level[i] = min(most, anchor - self.sent[i - 1] + self.turned_back[i - 1])

    def heed(self, word: str, cost: Units, gate_us: float, now: int, ticket: bytes = b"") -> bool:
        """What an answer does at once → whether the tuner need not hear more of it."""
        verdict, _, number = word.partition(".")
        if verdict in {"good", "plain"}:
            row, self.sick, self.refusals, self.good_at = self.sick, 0, 0, now / US
            self.witnesses.clear()
            well = not row and self.fields.get("mode", "NORMAL") == "NORMAL" and self.number("probes") == 0
            if verdict == "plain" and well:
                self.goods += 1
                self.took_us += max(0, now - int(_unpack(ticket)[1])) if ticket else 0
            return verdict == "plain" and well
        if verdict == "sick":
            self.sick += 1
        elif verdict == "quota" and not number:
            self.earn(now)  # what was earned before the gate closed stays
            self.gate = max(self.gate, now + int(HALT_S * US))
        elif verdict == "refused":
            self.earn(now)
            named = int(number) if number else None
            for i in range(1, 5):
                self.turned_back[i - 1] += cost[i - 1]
                if i in self.bound():
                    self.level[i] = min(self.number(f"d{i}", 1.0), self.level[i] + cost[i - 1])
                    guard = self.number(f"g{i}")
                    depth = self.number(f"d{i}", 1.0)
                    least = min(cost[i - 1], depth - guard) + guard
                    if not self.told:
                        earned = self.number(f"p{i}") * gate_us / US
                        least = max(0.0, min(cost[i - 1], depth) - earned) if gate_us > 0 else 0.0
                    if named in {None, i}:
                        self.level[i] = min(self.level[i], least)
            adaptive = self.fields.get("adaptive", "1") not in {"0", "0.0"}
            if named == 0 and adaptive and self.fields.get("unlimited") not in {"1", "1.0"}:
                gate_us = 50_000 * (0.5 + (now % 1000) / 2000)
            else:
                if self.gate <= now:
                    self.refusals += 1
                backoff_us = 50_000 * 2.0 ** max(0, self.refusals - 1) * (0.5 + (now % 1000) / 2000)
                gate_us = max(gate_us, min(1e6, backoff_us / 8)) if gate_us > 0 else min(15e6, backoff_us)
            self.gate = max(self.gate, now + int(gate_us))
        return False

    @property
    def probed(self) -> bool:
        """Only probes go out."""
        emergency = self.fields.get("mode") == "EMERGENCY"
        return 0 < self.number("width") < 1e6 and (self.number("gap") > 0 or emergency)

    def view(self, seen: Sequence[bytes], out: int = 0) -> LaneView:
        """As `take` hands it out."""
        fields = {name: text.encode() for name, text in self.fields.items()} | self.memory
        for i in range(4):
            fields[f"c{i + 1}"], fields[f"x{i + 1}"] = repr(self.sent[i]).encode(), repr(self.turned_back[i]).encode()
        fields["gate"] = str(self.gate).encode()
        goods, self.goods = self.goods, 0
        took_us, self.took_us = self.took_us, 0
        return LaneView(
            lane=LANE, state=LaneState.decode(fields), seen=list(seen), goods=goods, out=out, took_s=took_us / US
        )


def numbers(paces: Paces) -> dict[str, float]:
    """What the law writes into a lane, by the stored names."""
    return {name: float(value) for name, value in paces.encode().items() if value != ""}


def gap_with_jitter(gap: float, seq: int) -> int:
    """A gap ± 20 %, as the scripts draw it."""
    return int(gap * (0.8 + 0.4 * ((seq * 0.6180339887) % 1.0)))


@dataclass(eq=False)
class Job:
    """One call of the workload."""

    name: str
    body: bytes
    cost: Units
    tries: int = 0
    deadline_s: float = inf
    at_s: float = 0.0  #: when it is made
    task: str = "task"
    process: str | None = None  #: that makes it itself; None: any worker
    failing: Failing | None = None
    sent: int = 0  #: attempts begun
    ended_s: float | None = None  #: since the start
    answered: bool = False


def jobs_of(case: Case, most: int | None = None) -> list[Job]:
    """The calls of a named case, or the first `most` of them."""
    calls = case.calls() if most is None else (case.workload.call(case.seed, number) for number in range(most))
    return [Job(call.custom_id, msgspec.json.encode(call.body()), call.cost().vector()) for call in calls]


@dataclass
class Result:
    """What a run came to."""

    arrivals: list[Arrival] = field(default_factory=list)  #: as the provider saw them
    failed: int = 0  #: calls given up
    moves: list[tuple[float, str]] = field(default_factory=list)
    paces: list[tuple[float, float]] = field(default_factory=list)
    ended_s: float = 0.0
    unreachable: int = 0  #: attempts of processes that do not find the provider


class Laboratory:
    """One lane, one provider, one clock.

    Args:
        slots: Calls that can run at once over all workers.
        travel_s: From release to the provider, and from its answer to settle, each; ± a half of it.
        tune_every_s: 0: the law runs on each answer.
        workers: Processes that make the calls without one of their own.
        lost: Processes that do not find the provider: each of their attempts fails at once.
    """

    def __init__(
        self,
        scenario: Scenario,
        jobs: Sequence[Job],
        *,
        limits: LaneLimits = LaneLimits(),  # noqa: B008 - frozen
        rules: Rules = Rules(),  # noqa: B008 - frozen
        slots: int = 64,
        travel_s: float = 0.003,
        seed: int = 0,
        tune_every_s: float = TUNE_EVERY_S,
        policy: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        workers: Sequence[str] = ("worker",),
        lost: Sequence[str] = (),
    ) -> None:
        self.random = random.Random(seed)
        self.start = 1_800_000_000.0
        self.now = self.start
        self.provider = Provider(scenario, self.start, "lab")
        fields: dict[str, Any] = limit_fields(limits) | {"schema": 1}
        self.plane = Plane(fields)
        self.rules, self.policy, self.slots, self.travel_s, self.every = rules, policy, slots, travel_s, tune_every_s
        self.workers, self.lost = workers, lost
        self.doubts = {worker: SelfDoubt(lambda: self.now) for worker in workers}
        self.waiting: deque[Job] = deque(job for job in jobs if not job.at_s)
        self.later = sorted((job for job in jobs if job.at_s), key=lambda job: job.at_s)
        self.answers_of: dict[tuple[str, str], float] = {}  #: process, task ("": any) → when its last good one left
        self.retries: deque[Job] = deque()  #: whose backoff is over; behind those that wait
        self.probed: dict[tuple[str | None, str], int] = {}  #: process and task → their last call
        self.budget = (MOST_RETRIES, 0, self.start)  #: of retries: what it was, at which permit, when
        self.left = len(jobs)
        self.out: dict[int, bool] = {}  #: seq → begun
        self.seen: list[bytes] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = 0
        self.result = Result()
        self.woken = False
        self.heard = self.visited = 0.0  #: when something was last heard of the lane, and when the tuner looked at it
        self.planned = inf

    # --- time ------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, what: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + delay_s, self.count, what))

    def run(self, horizon_s: float = inf) -> Result:
        """Until all calls have ended, or the horizon."""
        self.after(0.0, self.release)
        for job in self.later:
            self.after(job.at_s, partial(self.arrives, job))
        if self.every:
            self.after(self.every, self.tune_again)
        end = self.start + horizon_s
        while self.events and self.left:
            at, _, what = heapq.heappop(self.events)
            if at >= end:
                break
            self.now = at
            what()
        self.result.ended_s = self.now - self.start
        return self.result

    @property
    def us(self) -> int:
        return round(self.now * US)

    # --- the lane --------------------------------------------------------------------------------------------------

    def own_room(self) -> int:
        ready = sum(not begun for begun in self.out.values())
        most = min(self.slots - len(self.out), 1 + max(1, int(self.plane.number("p1") * LOOK_S)) - ready)
        width = int(self.plane.number("width"))
        return min(most, width - len(self.out)) if width else most

    def retry_budget(self) -> float:
        level, seq, at = self.budget
        return min(MOST_RETRIES, level + 0.1 * (self.plane.seq - seq) + (self.now - at) / 6)

    def arrives(self, job: Job) -> None:
        self.waiting.append(job)
        self.release()

    def line(self) -> deque[Job]:
        """Whose turn it is: retries go before the others while their budget has room, and else after them."""
        if self.retries and (
            not self.waiting or (not self.plane.probed and not self.plane.sick and self.retry_budget() >= 1)
        ):
            return self.retries
        return self.waiting

    def probe(self) -> Job:
        """The first, unless its task or process had a probe later than that of another call."""
        line = [*self.waiting, *self.retries]
        looks = [line[0], *(line[i * (len(line) - 1) // 31] for i in range(32))]
        return min(looks, key=lambda job: self.probed.get((job.process, job.task), 0))

    def release(self) -> None:
        while (line := self.line()) and self.own_room() > 0:
            probed = self.plane.probed
            job = self.probe() if probed else line[0]
            wait = self.plane.admits_in(job.cost, self.us)
            if wait is None:
                return
            if wait > 0:
                at = self.now + wait / US
                if at < self.planned or self.planned <= self.now:
                    self.planned = at
                    self.after(wait / US, self.pump)
                return
            if probed:
                line = self.waiting if job in self.waiting else self.retries
            line.remove(job)
            self.probed[job.process, job.task] = self.plane.seq + 1
            level = self.retry_budget()
            ticket = self.plane.spend(job.cost, self.us)
            if line is self.retries and self.waiting and not probed:
                self.budget = (level - 1, self.plane.seq, self.now)
            seq = self.plane.seq
            self.out[seq] = False
            self.after(self.travel(), partial(self.begin, job, ticket, seq))

    def travel(self) -> float:
        return self.travel_s * self.random.uniform(0.5, 1.5)

    def pump(self) -> None:
        if self.planned <= self.now + 1e-9:
            self.planned = inf
        self.release()

    def begin(self, job: Job, ticket: bytes, seq: int) -> None:
        width, gap = int(self.plane.number("width")), self.plane.number("gap")
        closed = 0 < width <= sum(self.out.values())
        if closed or ((width == 0 or gap == 0) and self.plane.gate > self.us):
            del self.out[seq]
            self.plane.give_back(job.cost, self.us)
            (self.waiting if job.failing is None else self.retries).appendleft(job)
            self.release()
            return
        process = job.process or self.random.choice(self.workers)
        if process in self.doubts and self.doubts[process].leaves(LANE):
            del self.out[seq]
            self.plane.give_back(job.cost, self.us)
            self.after(PAUSE_S, partial(self.comes_back, job))
            self.release()
            return
        self.out[seq] = True
        job.sent += 1
        if process in self.lost:
            self.result.unreachable += 1
            failure = Failure(category=Category.CONNECTION, cause="nobody listens there")
            self.after(self.travel(), partial(self.settled, job, ticket, seq, process, None, failure))
            self.release()
            return
        request = Request("POST", PATH, {"authorization": "Bearer lab"}, job.body, True)
        self.provider.begin(self.now)
        verdict = self.provider.decide(request, self.now, self.now)
        self.result.arrivals.append(verdict.arrival)
        leaves = 60.0 if verdict.ending in ENDLESS else verdict.arrival.latency_s
        self.after(leaves, partial(self.leaves, verdict))
        self.after(leaves + self.travel(), partial(self.answered, job, ticket, seq, process, verdict))
        self.release()

    def leaves(self, verdict: Verdict) -> None:
        self.provider.ended(verdict)
        self.provider.give_back(verdict, self.now)

    def answered(self, job: Job, ticket: bytes, seq: int, process: str, verdict: Verdict) -> None:
        self.settled(job, ticket, seq, process, *read(verdict))

    def settled(
        self, job: Job, ticket: bytes, seq: int, process: str, response: Response | None, failure: Failure | None
    ) -> None:
        sent_s = observe.sent_s(ticket)
        kind = observe.verdict_of(failure)
        older = 0
        if kind in {"sick", "refused"}:
            older = max(0, len(self.out) - 1 - (self.plane.seq - seq))
        beside, lately, guarded = OTHERS_FARE_WELL, UNKNOWN, False
        if kind in {"sick", "quota"}:
            plane = self.plane
            lately = Lately(plane.good_at, plane.good_sent, plane.number("sick_share"), len(plane.witnesses) > 1)
            guarded = plane.fields.get("escalates") != "0"
            beside = compared(self.now, sent_s, job.failing, lately, guarded=guarded)
        doubt = self.doubts.get(process)
        never_left = guarded and response is None and process in self.lost
        lost = never_left and doubt is not None and doubt.failed(LANE, job.name, sent_s, self.now, lately)
        own_quota = kind == "quota" and beside.alone_s is None
        passes = job.failing is None or job.failing.row < LOST_PASSES
        beside = replace(beside, lost=lost and passes, own_quota=own_quota)
        if doubt is not None and response is not None:
            doubt.reached(LANE, sent_s)
        witness = Witness(
            call=digest(job.name),
            task=digest(job.task),
            process=digest(process),
            again=job.failing is not None,
            discounted=lost or own_quota or (kind == "sick" and job.failing is not None and beside.alone_s is None),
            task_sent=self.answers_of.get((process, job.task), 0.0),
            process_sent=self.answers_of.get((process, ""), 0.0),
        )
        lesson = Lesson(
            verdict=kind,
            at_s=self.now,
            ticket=ticket,
            failure=failure,
            reading=observe.read(response, kind, self.now),
            cost=job.cost,
            older=older,
            witness=witness,
        )
        seen = lesson.observation()
        if kind == "good":
            self.plane.good_sent = sent_s
            self.answers_of[process, job.task] = self.answers_of[process, ""] = sent_s
        gate_us = lesson.gate_s * US
        word = lesson.word()
        step: Any = None
        if failure is not None:
            step = next_step(
                failure, job.tries + 1, self.policy, self.random.random,
                now_s=self.now, deadline_s=job.deadline_s, beside=beside,
            )  # fmt: skip
        if not self.plane.heed(word, job.cost, gate_us, self.us, ticket) and seen:
            self.seen.append(seen)
        del self.out[seq]
        if kind == "sick" and not witness.discounted:
            self.plane.witnesses.add(job.name)
        if kind in {"sick", "quota"}:
            before = job.failing or Failing(self.now, sent_s, 0, sent_s)
            job.failing = replace(before, sent_at=sent_s, row=before.row + 1)
        else:
            job.failing = None
        match step:
            case None:
                self.left -= 1
                job.ended_s, job.answered = self.now - self.start, True
            case Retry(after_s):
                job.tries += 1
                self.after(after_s, lambda: self.comes_back(job))
            case Snooze(after_s):
                if kind == "refused":
                    asked_s = failure.retry_after_s if failure is not None else None
                    after_s = aside_s(asked_s, job.sent, self.now - self.plane.good_at, self.random.random)
                if after_s <= 0:
                    self.waiting.appendleft(job)
                else:
                    self.after(after_s, lambda: self.comes_back(job))
            case Halt():
                self.retries.append(job)
            case GiveUp():
                self.left -= 1
                job.ended_s = self.now - self.start
                self.result.failed += 1
        if not self.every or kind in {"refused", "quota"} or (kind == "sick" and self.plane.sick >= SICK_ROW):
            self.wake()
        self.release()

    def comes_back(self, job: Job) -> None:
        (self.retries.append if job.tries or job.failing else self.waiting.appendleft)(job)
        self.release()

    # --- the tuner -------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        if not self.woken:
            self.woken = True
            self.after(0.002 if self.every else 0.0, self.tune)

    def tune_again(self) -> None:
        self.tune()
        self.after(self.every, self.tune_again)

    def tune(self) -> None:
        self.woken = False
        view = self.look()
        if view.seen or view.goods:
            self.heard = self.now
        every_s = 0.0 if self.now - self.heard <= BUSY_S else inf if view.state.mode is Mode.NORMAL else VISIT_EVERY_S
        if self.now - self.visited < every_s:
            return  # nothing was heard of it for so long: the tuner looks at other lanes
        self.visited = self.now
        decision = decide(view, self.now, self.rules, {})
        for change in decision.changes:
            self.result.moves.append((self.now - self.start, f"{change.from_mode} {change.to_mode} {change.cause}"))
        self.obey({**decision.set_points, **decision.memory})

    def look(self) -> LaneView:
        """What `take` would hand out now."""
        seen, self.seen = self.seen, []
        return self.plane.view(seen, len(self.out))

    def obey(self, fields: Mapping[str, Any]) -> None:
        """Write set-points and what the tuner remembers."""
        written = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
        self.plane.memory |= {name: value for name, value in fields.items() if isinstance(value, bytes)}
        self.plane.write(written, self.us)
        self.result.paces.append((self.now - self.start, self.plane.number("p1")))
        self.release()


def read(verdict: Verdict) -> tuple[Response | None, Failure | None]:
    """The answer as a client would have read it."""
    if verdict.ending is not Ending.ANSWER:
        broken = Category.TIMEOUT if verdict.ending in ENDLESS else Category.CONNECTION
        if verdict.ending is Ending.TRUNCATE:
            broken = Category.MALFORMED_RESPONSE
        return None, Failure(category=broken, cause="the connection ended")
    head, _, body = verdict.answer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    try:
        parsed = msgspec.json.decode(body)
    except msgspec.DecodeError:
        parsed = body.decode("utf-8", "replace")
    response = Response(status=int(lines[0].split()[1]), headers=headers, body=parsed)
    if verdict.arrival.fault == Fault.MALFORMED:
        return response, Failure(category=Category.MALFORMED_RESPONSE, cause="broken JSON")
    return response, classify_response(response)
