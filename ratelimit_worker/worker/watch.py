"""Calls that hang in this worker: their slots are lent to other lanes, their lane is told, and overdue ones are given
up.

Looks at the worker's own running calls a few times a second. While all its slots are taken, it asks Redis which lanes
wait.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from time import time
from typing import Any

from celery.worker import state
from celery.worker.state import task_ready
from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.flow.call.execute import hangs
from ratelimit_worker.policy import hang, timeout
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.overdue import OverdueCall, Overdues
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.refusal import give_up
from ratelimit_worker.worker.request import plan_of
from ratelimit_worker.worker.spare import Spare
from ratelimit_worker.worker.transport import HELD

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1


class Running(Struct, frozen=True):
    """A call that runs in this worker."""

    request: Any
    plan: Plan

    @property
    def tag(self) -> str:
        """Its release."""
        return str(self.request.message.delivery_tag)

    @property
    def started_s(self) -> float:
        """Seconds since the epoch."""
        return float(self.request.time_start)

    @property
    def latency_key(self) -> str:
        """The name under which its latencies are learned."""
        return timeout.key(self.request.name, self.plan.model, self.plan.lane)


class Watch:
    """Watches the running calls of one worker."""

    def __init__(self, live: Services, consumer: Any, lanes: Lanes, owner: str) -> None:
        self.live, self.consumer, self.lanes, self.owner = live, consumer, lanes, owner
        self.spare = Spare(consumer.pool)
        self.overdues = Overdues(lanes.client)
        self._told: set[str] = set()  #: tags of calls that were reported to their lane
        self._were: dict[str, set[str]] = {}  #: calls that ran at the last look, by lane
        self._ended_s: dict[str, float] = {}  #: when a call of a lane was seen to end, seconds since the epoch
        self._was_told = False  #: whether overdue calls of this worker are listed in Redis

    def slots(self) -> int:
        """The pool's slots, without what it has grown by; 0: a call that never ends has taken its only thread."""
        slots = self.spare.slots(getattr(self.consumer.controller, "autoscaler", None))
        return slots if self.spare.replaces else max(0, slots - len(HELD.overdue))

    def look(self, queues: Sequence[str]) -> set[str]:
        """Look at all running calls → tags that are lent from now on: first report these to Redis, and then call
        `lend`.

        Args:
            queues: The queues that this worker reads.
        Raises:
            redis.RedisError: the broker is away.
        """
        now_s, running = time(), list(self._running())
        calls = self._calls(running, now_s)
        here = {call.tag for call in calls}
        HELD.lent &= here
        self._told &= here
        for tag in hang.sick(calls) - self._told:
            self._told.add(tag)
            hangs(tag)
        for one in running:
            if hang.is_overdue(now_s, one.plan.deadline_s):
                self._give_up(one)
        return self._late(calls, queues)

    def _calls(self, running: Sequence[Running], now_s: float) -> list[hang.Out]:
        lanes: dict[str, set[str]] = {}
        for one in running:
            lanes.setdefault(one.plan.lane, set()).add(one.tag)
        for lane, tags in self._were.items():
            if tags - lanes.get(lane, set()):
                self._ended_s[lane] = now_s
        self._were = lanes
        self._ended_s = {lane: at for lane, at in self._ended_s.items() if lane in lanes}
        return [
            hang.Out(
                tag=one.tag,
                lane=(lane := one.plan.lane),
                out_s=now_s - one.started_s,
                quiet_s=now_s - max(one.started_s, self._ended_s.get(lane, 0.0)),
                known=self.live.learned_latencies(one.latency_key),
            )
            for one in running
        ]

    def tell(self) -> None:
        """List the overdue calls of this worker in Redis, with each beat."""
        if HELD.overdue or self._was_told:
            now_s = time()
            self.overdues.tell(self.owner, [replace(call, told_s=now_s) for call in tuple(HELD.overdue.values())])
            self._was_told = bool(HELD.overdue)

    def _running(self) -> Iterator[Running]:
        for request in tuple(state.active_requests):
            plan = plan_of(request)
            if plan is not None and request.time_start and not request.acknowledged:
                yield Running(request, plan)

    def _late(self, calls: Sequence[hang.Out], queues: Sequence[str]) -> set[str]:
        """Calls to lend while all slots are taken and other lanes wait; at most as many as there are slots."""
        slots = self.slots()
        if not self.spare.can_grow or slots < 2 or len(calls) - len(HELD.lent) < slots:
            return set()  # a worker with one slot may be meant to run one call at a time
        waiting = self.lanes.waiting_for_slots(queues)
        silent = hang.silent(calls)
        late = {call.tag for call in calls if call.tag in silent and any(lane != call.lane for lane in waiting)}
        oldest = sorted((call for call in calls if call.tag in late - HELD.lent), key=lambda call: -call.out_s)
        return {call.tag for call in oldest[: max(0, slots - len(HELD.lent))]}

    def lend(self, late: set[str]) -> None:
        """Redis knows that these are lent, so calls of other lanes are released now: read on."""
        self.spare.ensure(len(HELD.lent) + len(late) + len(HELD.overdue))
        HELD.lent |= late
        self._wake()

    def _give_up(self, one: Running) -> None:
        """Give a call up: its caller gets an error, its slot is replaced, and it is listed until its function ends."""
        request, tag = one.request, one.tag
        call = OverdueCall(
            call_id=request.id,
            lane=one.plan.lane,
            task=request.name,
            deadline_s=one.plan.deadline_s,
            replaced=self.spare.replaces,
            told_s=time(),
        )
        HELD.overdue[tag] = call
        if not give_up(self.consumer.app, self.live, self.lanes, tag, one.started_s):
            if HELD.overdue.pop(tag, None) is None:  # it has ended meanwhile
                request.acknowledge()
            return
        fields = {"call_id": call.call_id, "lane": call.lane, "task": call.task}
        log.error("slot.overdue call_id=%(call_id)s lane=%(lane)s task=%(task)s", fields, extra=fields)
        self.spare.ensure(len(HELD.lent - {tag}) + len(HELD.overdue))
        request.acknowledged = True
        channel = request.message.channel
        channel.qos.let_go(tag)
        task_ready(request)
        self._wake()
        if self.spare.can_kill:
            self.consumer.pool.terminate_job(request.worker_pid, signal.SIGKILL)

    def _wake(self) -> None:
        """Wake the consumer's loop, which sleeps while all slots are taken."""
        hub = getattr(self.consumer, "hub", None)
        if hub is not None:
            hub.call_soon(_nothing)
        elif self.consumer.task_consumer is not None:
            self.consumer.task_consumer.channel.wake()


def _nothing() -> None:
    """Does nothing; the loop is only to be woken."""
