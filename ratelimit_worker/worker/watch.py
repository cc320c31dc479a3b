"""Which calls hang in this worker, and what of it? Their slots go to other lanes, and their lane hears of it. What
should have ended long ago is given up.

Looks at the worker's own running calls a few times a second, without I/O while none hangs.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from time import time
from typing import Any

from celery.worker import state
from celery.worker.state import task_ready
from msgspec.structs import replace

from ratelimit_worker.flow.execute import hangs
from ratelimit_worker.policy import timeout
from ratelimit_worker.policy.hang import is_overdue, lent_after_s, sick_after_s
from ratelimit_worker.policy.timeout import Latencies
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.overdue import OverdueCall, Overdues
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.refusal import give_up
from ratelimit_worker.worker.spare import Spare
from ratelimit_worker.worker.transport import HEADER, HELD

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Running:
    """A call that runs in this worker."""

    request: Any
    plan: Mapping[str, Any]

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
        """Under which its latencies are learned."""
        size = self.plan.get("size") or ()
        return timeout.key(self.request.name, size[0] if size else None, str(self.plan["lane"]))


class Watch:
    """Of one worker."""

    def __init__(self, live: Services, consumer: Any, lanes: Lanes, owner: str) -> None:
        self.live, self.consumer, self.lanes, self.owner = live, consumer, lanes, owner
        self.spare = Spare(consumer.pool)
        self.overdues = Overdues(lanes.client, lanes.prefix)
        self._told: set[str] = set()  #: tags of which the lane has heard
        self._was_told = False  #: whether Redis names overdue calls of this worker

    def slots(self) -> int:
        """What the pool runs at once, without what it has grown by; 0: a call that never ends has its only thread."""
        slots = int(self.spare.slots() or self.consumer.controller.concurrency or 1)
        return slots if self.spare.replaces else max(0, slots - len(HELD.overdue))

    def look(self) -> set[str]:
        """Look at all that runs → tags that hang from now on: to be told Redis, and then `lend`.

        Raises:
            redis.RedisError: the broker is away.
        """
        now_s, running = time(), list(self._running())
        known: dict[str, Latencies | None] = {}
        for one in running:
            if one.latency_key not in known:
                known[one.latency_key] = self.live.learned_latencies(one.latency_key)
        here = {one.tag for one in running}
        HELD.hung &= here
        self._told &= here
        self._tell_sick(running, known, now_s)
        for one in running:
            if is_overdue(now_s, float(one.plan["deadline"])):
                self._give_up(one)
        return self._late(running, known, now_s)

    def tell(self) -> None:
        """Name in Redis what is overdue here, as long as it is; with each beat."""
        if HELD.overdue or self._was_told:
            now_s = time()
            self.overdues.tell(self.owner, [replace(call, told_s=now_s) for call in tuple(HELD.overdue.values())])
            self._was_told = bool(HELD.overdue)

    def _running(self) -> Iterator[Running]:
        for request in tuple(state.active_requests):
            plan = request.request_dict.get(HEADER)
            if isinstance(plan, Mapping) and request.time_start and not request.acknowledged:
                yield Running(request, plan)

    def _late(self, running: list[Running], known: Mapping[str, Latencies | None], now_s: float) -> set[str]:
        """While all slots are taken, what is out for longer than usual is run beside them: as many more at most."""
        slots = self.slots()
        if not self.spare.can_grow or slots < 2 or len(running) - len(HELD.hung) < slots:
            return set()  # one slot may be somebody's way to let one run at a time
        late = (
            one.tag
            for one in sorted(running, key=lambda one: one.started_s)
            if one.tag not in HELD.hung and now_s - one.started_s > lent_after_s(known[one.latency_key])
        )
        return set(islice(late, slots - len(HELD.hung)))

    def lend(self, late: set[str]) -> None:
        """Redis knows that these hang, so what is released now is for others: read on."""
        self.spare.ensure(len(HELD.hung) + len(late) + len(HELD.overdue))
        HELD.hung |= late
        self._wake()

    def _tell_sick(self, running: list[Running], known: Mapping[str, Latencies | None], now_s: float) -> None:
        """Of a lane all of whose calls here are long overdue by what is known of them; once a call."""
        late: dict[str, list[str]] = {}
        well: set[str] = set()
        for one in running:
            after_s, lane = sick_after_s(known[one.latency_key]), str(one.plan["lane"])
            if after_s is not None and now_s - one.started_s > after_s:
                late.setdefault(lane, []).append(one.tag)
            else:
                well.add(lane)
        for lane, tags in late.items():
            for tag in tags if lane not in well else ():
                if tag not in self._told:
                    self._told.add(tag)
                    hangs(tag)

    def _give_up(self, one: Running) -> None:
        """Its caller hears that its deadline has passed; its slot is replaced, and it is named until it ends."""
        request, tag = one.request, one.tag
        call = OverdueCall(
            call_id=request.id,
            lane=str(one.plan["lane"]),
            task=request.name,
            deadline_s=float(one.plan["deadline"]),
            replaced=self.spare.replaces,
            told_s=time(),
        )
        HELD.overdue[tag] = call
        if not give_up(self.consumer.app, self.live.encode_outcome, self.lanes, tag, one.started_s):
            if HELD.overdue.pop(tag, None) is None:  # it has ended meanwhile, and left the rest to us
                request.acknowledge()
            return
        fields = {"call_id": call.call_id, "lane": call.lane, "task": call.task}
        log.error("slot.overdue call_id=%(call_id)s lane=%(lane)s task=%(task)s", fields, extra=fields)
        self.spare.ensure(len(HELD.hung - {tag}) + len(HELD.overdue))
        request.acknowledged = True
        channel = request.message.channel
        channel.qos.let_go(tag)
        task_ready(request)
        self._wake()
        if self.spare.can_kill:
            self.consumer.pool.terminate_job(request.worker_pid, signal.SIGKILL)

    def _wake(self) -> None:
        """The consumer's loop, which sleeps while all slots are taken, reads on."""
        hub = getattr(self.consumer, "hub", None)
        if hub is not None:
            hub.call_soon(_nothing)


def _nothing() -> None:
    """What the loop is woken for."""
