"""Where do releases of in-process calls arrive? At this process's desk: a small worker with a queue of its own.

It beats like a worker, enters calls into their lanes for that queue, and hands each release to the caller that waits
for it. It never runs anything itself. While no Celery worker lives it does the cluster's duties too: somebody has to.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from redis import RedisError
from redis.exceptions import ResponseError

from ratelimit_worker.contracts.lesson import AnswerKind, Lesson
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow import limit, pin
from ratelimit_worker.flow.admit import Away, News
from ratelimit_worker.flow.tally import Tally
from ratelimit_worker.ports import Begun, Health
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.desks import LOOK_EVERY_S, PREFIX, Desks
from ratelimit_worker.stores.lanes import AnsweredFromCache, Claim, Entry, Lanes
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.stores.reach import first_line, reach
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.duties import Alert, Clean, Duty, Record, Release, Tune

log = logging.getLogger(__name__)

T = TypeVar("T")

BEAT_S, LIFE_S = 1.0, 3.5
PATIENCE_S = 15.0  #: a restart or a pause of Redis is waited for; after that, calls go ahead without it
PROBE_S = 2.0  #: between looks at a Redis that is not waited for
#: Slots beyond the callers that there are. Ready calls of other queues may fill the cluster's slots and a few more
#: (`SUPPLY` in lua/shared/record.lua), and room is what all slots leave: without spare ones our callers, who need
#: nobody's slot, would wait for those.
SPARE_SLOTS = 64
MOST_LATER = 10_000  #: things to tell Redis when it is back
LEAVE_S = 10.0  #: how long the end of the process may wait for the recorder
GONE_S = 0.1  #: the same where Redis does not answer, so that nothing can be recorded

MESSAGE = b'{"delivery_tag": "@"}'  #: the release script puts the tag into it; there is nothing else to say
_tag_of = msgspec.json.Decoder(dict[str, str]).decode


@dataclass(slots=True, eq=False)
class Turn:
    """One caller's wait. `hear` takes news from any thread and never blocks."""

    ref: str
    hear: Callable[[str | News], None]
    fingerprint: str | None = None  #: of the calls that share its answer
    tags: list[str] = field(default_factory=list)  #: releases that are not freed yet; under the desk's lock
    aside: set[str] = field(default_factory=set)  #: those of them that have given up their place in the lane
    tried: bool = False  #: Redis may have its call
    entered: bool = False  #: Redis has its call
    running: bool = False  #: its attempt is being made
    over: bool = False


class Desk:
    """This process among the workers. Made without I/O; the first call opens it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, live: Services, clock: Callable[[], float] = time.monotonic) -> None:
        self.live, self.clock, self.pid = live, clock, os.getpid()
        self.queue = f"{PREFIX}{socket.gethostname()[:60]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.worker = f"{socket.gethostname()}/{os.getpid()}"
        self.lease_s = live.settings.visibility_timeout_seconds
        self.lanes = Lanes(live.redis)
        self.there = threading.Event()  #: Redis was there at the last look
        self.tally = Tally()
        self.why = ""  #: why Redis could not be used the last time
        self._away_since: float | None = None
        self._known = False  #: Redis was there once
        self._turns: dict[str, Turn] = {}
        self._most_turns = 0  #: since the last beat
        self._slots = 0  #: as Redis knows them
        self._later: deque[Callable[[Lanes], object]] = deque(maxlen=MOST_LATER)
        self._dealing = threading.Lock()  #: a release is either handed to a caller who will free it, or freed at once
        self._opening = threading.Lock()
        self._beating = threading.Lock()
        self._threads: list[Duty] = []
        self._duties: list[Duty] = []

    @property
    def up(self) -> bool:
        """Whether Redis was there at the last look."""
        return self.there.is_set()

    @property
    def opened(self) -> bool:
        """Whether it lives, or looks for Redis to live on."""
        return bool(self._threads)

    # ── for callers ──────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, ref: str, hear: Callable[[str | News], None], fingerprint: str | None = None) -> Turn:
        """Take part."""
        turn = self._turns[ref] = Turn(ref, hear, fingerprint)
        self._most_turns = max(self._most_turns, len(self._turns))
        return turn

    def enqueue(self, turn: Turn, task: str, plan: Plan, *, after_s: float, tries: int, number: int) -> bytes | None:
        """Put the call into its lane → an answer that is kept, instead of that.

        Raises:
            Away: Redis cannot be reached, is full or read-only.
            LaneFull, LaneShedding, BadInput: the lane refuses the call.
            StoreUnavailable: Redis refuses for a reason that will not pass.
        """
        self.open()
        entry = Entry(
            lane=plan.lane,
            queue=self.queue,
            ref=turn.ref,
            publication=plan.publication,
            message=MESSAGE,
            body=b"",  # the arguments stay with the caller
            deadline_in_s=max(0.001, plan.deadline_s - time.time()),
            due_in_s=after_s,
            priority=plan.priority,
            tenant=plan.tenant,
            weight=plan.weight,
            cost=plan.cost,
            tries=tries,
            number=number,
            max_waiting=plan.max_waiting,
            claim=_claim(task, plan, again=after_s > 0),
            sheds="raise" if plan.shedding is not None else "",
            lane_fields=lambda: pin.lane_fields(self.live.control, self.live.settings, plan.lane),
        )
        turn.tried = True
        try:
            self._ask(lambda: self._seated().enqueue(entry))
        except AnsweredFromCache as hit:
            turn.tried = False
            return hit.answer
        turn.entered = True
        return None

    def begin(self, tag: str, lease_s: float, alone: bool = True, process: str = "", taken: bool = False) -> Begun:
        """May this released call run now? It dies with its caller, so it is never suspected of having killed it.

        `process` and `taken` are a worker's: they say nothing here.


        Raises:
            Away, StoreUnavailable: as `enqueue`.
        """
        return self._ask(lambda: self.lanes.begin(tag, lease_s, alone))

    def free(self, turn: Turn) -> None:
        """The call's stay in the ledger ends, now or when Redis is back."""
        with self._dealing:
            tags, turn.tags = turn.tags, []
        if tags:
            self._now_or_later(lambda lanes: lanes.free(tags))
        turn.tried = turn.entered = False

    def step_aside(self, turn: Turn) -> None:
        """The call makes a call itself: it gives up its place among the running of its lane, and keeps all else."""
        with self._dealing:
            tags = [tag for tag in turn.tags if tag not in turn.aside]
            turn.aside.update(tags)
        if tags:
            self._now_or_later(lambda lanes: lanes.step_aside(tags))

    def dismiss(self, turn: Turn, tag: str) -> None:
        """This release is over: the call is back in its lane, or out under another."""
        with self._dealing:
            if tag in turn.tags:
                turn.tags.remove(tag)

    def leave(self, turn: Turn) -> None:
        """The caller waits no more; what it left in Redis is cleared up in the background."""
        with self._dealing:
            turn.over = True
            self._turns.pop(turn.ref, None)
            ref, tags = turn.ref, turn.tags
        if turn.tried or tags:  # a second release may have come after the first was freed
            self._later.append(lambda lanes: (lanes.revoke(ref), lanes.free(tags) if tags else 0))
            self._wake()

    def afterwards(self, do: Callable[[], object]) -> None:
        """Do this in the background, before what the next `leave` leaves."""
        self._later.append(lambda lanes: do())
        self._wake()

    def patient(self) -> bool:
        """Whether Redis has been away for so short a time that it is worth waiting for."""
        since = self._away_since
        return self._known and since is not None and self.clock() - since < PATIENCE_S

    # ── for the executor: what has happened is told Redis now or later, and never costs the caller its answer ─────────

    def settle(
        self,
        tag: str,
        lane: str,
        answer: bytes,
        lesson: Lesson,
        *,
        kind: AnswerKind = "value",
        outbox: bytes = b"",
    ) -> bool:
        """Make the outcome safe, now or when Redis is back."""
        self._now_or_later(lambda lanes: lanes.settle(tag, lane, answer, lesson, kind=kind, outbox=outbox))
        return True

    def back(self, tag: str, lane: str, lesson: Lesson, *, after_s: float, tries: int, outbox: bytes = b"") -> bool:
        """Return the call to its lane → False when it is not there under this tag, or Redis is away."""
        try:
            return self._ask(
                lambda: self.lanes.back(tag, lane, lesson, after_s=after_s, tries=tries, outbox=outbox), once=True
            )
        except StoreUnavailable:  # the caller enters it anew; what was learned is told later, by a tag that is over
            self._later.append(lambda lanes: lanes.settle(tag, lane, b"", lesson, outbox=outbox))
            return False

    def health(self, lane: str, task: str) -> Health:
        """How the lane takes its provider to be; well while nobody can say."""
        try:
            return self._ask(lambda: self.lanes.health(lane, task), once=True)
        except StoreUnavailable:
            return Health()

    # ── opening, beating, closing ──────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Begin to live, once.

        Raises:
            Away: Redis was not there when it was last looked at.
        """
        if self.up:
            return
        with self._opening:
            if self._threads:
                if self.there.is_set():
                    return
                raise Away(self.why or "Redis is away")
            self._threads = [Beat(self), Deliveries(self)]
            atexit.register(self.close)
            try:
                self._ask(lambda: self._beat(self.lanes))
                self._ask(lambda: self._take_duties(self.lanes))
                self.came()
            except StoreUnavailable as error:
                raise Away(str(error)) from error
            finally:
                for thread in self._threads:
                    thread.start()

    def close(self) -> None:
        """Stop in good order: what was learned is recorded, and nothing of this process stays in the lanes."""
        if os.getpid() != self.pid:
            return  # a forked child ends; the desk is its parent's
        atexit.unregister(self.close)
        with self._opening:
            threads, self._threads = [*self._threads, *self._duties], []
            self._duties = []
            for thread in threads:
                thread.stop()
            self._wake()
            there = self.up
            if there:
                self.there.clear()
                try:
                    reach(self.lanes.client)
                    self._tell(self.lanes)
                    self.lanes.beat(self.queue, 0, LIFE_S, [self.queue], self.lease_s, [])
                    Desks(self.live.redis).gone(self.queue)
                except (RedisError, OSError, StoreUnavailable) as error:
                    there = False
                    log.info("desk.close", extra={"cause": type(error).__name__})  # it expires with its life
            for thread in threads:
                if thread.is_alive() and thread is not threading.current_thread():
                    thread.join(LEAVE_S if there else GONE_S)
        self.tell_all(News.AWAY)

    def beat(self, client_lanes: Lanes) -> None:
        """One turn of the beat: live, tell, look.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        self._tell(client_lanes)
        self._beat(client_lanes)

    def look(self, client_lanes: Lanes) -> None:
        """Find callers whose calls Redis has lost, and processes that died.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        waiting = [turn for turn in self._all() if turn.entered and not turn.tags]
        if waiting:
            for turn, there in zip(waiting, client_lanes.known([turn.ref for turn in waiting]), strict=True):
                if not there and turn.entered and not turn.tags and not turn.over:
                    turn.entered = False
                    turn.hear(News.LOST)
        Desks(client_lanes.client).forget_absent(self.queue, self.lease_s)
        self._take_duties(client_lanes)

    def deliver(self, tag: str) -> bool:
        """Hand a release to its caller → False when nobody waits for it."""
        with self._dealing:
            turn = self._turns.get(tag.rpartition(".")[0])
            if turn is None or turn.over:
                return False
            turn.tags.append(tag)
        turn.hear(tag)
        return True

    def went(self, error: Exception) -> None:
        """Redis could not be used; once it has been so for long, everybody who waits is told."""
        if not isinstance(error, StoreUnavailable):
            self.why = f"Redis said {type(error).__name__}"
        if self._away_since is None:
            self._away_since = self.clock()
        self.there.clear()
        if not self.patient():
            self.tell_all(News.AWAY)

    def tell_all(self, news: News) -> None:
        """News for everybody who waits."""
        for turn in self._all():
            if not turn.running:
                turn.hear(news)

    def came(self) -> None:
        """Redis is there."""
        self._away_since, self._known = None, True
        self.there.set()

    def _all(self) -> Sequence[Turn]:
        while True:
            try:
                return list(self._turns.values())
            except RuntimeError:  # changed while it was read
                continue

    def _beat(self, lanes: Lanes) -> None:
        with self._beating:
            slots = SPARE_SLOTS + (1 << max(0, self._most_turns - 1).bit_length())
            self._most_turns = len(self._turns)
            held = [tag for turn in self._all() for tag in turn.tags]
            lanes.beat(self.queue, slots, LIFE_S, [self.queue], self.lease_s, held)
            Desks(lanes.client).here(self.queue)
            self._slots = slots

    def _seated(self) -> Lanes:
        """The lanes, once they know of slots enough for all callers."""
        if self._slots < len(self._turns) + SPARE_SLOTS:
            self._beat(self.lanes)
        return self.lanes

    def _take_duties(self, lanes: Lanes) -> None:
        """The cluster's duties are the workers' as long as one lives, for this process has other things to do."""
        if Desks(lanes.client).workers_live():
            for duty in self._duties:
                duty.stop()
            self._duties = []
        elif not self._duties and self._threads:
            pin.at_start(self.live.control, self.live.settings.emergency_mode)
            limit.at_start(self.live.control, self.live.settings, time.sleep)
            self._duties = [
                Release(self.live.server, self.queue, self.lease_s),
                Tune(self.live, self.queue),
                Record(self.live, self.queue),
                Clean(self.live, self.queue),
            ]
            if self.live.settings.alert_webhook_url:
                self._duties.append(Alert(self.live, self.queue))
            for duty in self._duties:
                duty.start()

    def _tell(self, lanes: Lanes) -> None:
        while self._later:
            tell = self._later.popleft()
            try:
                tell(lanes)
            except (RedisError, OSError) as error:
                if passes(error):
                    self._later.appendleft(tell)
                    raise
                log.exception("desk.untold", extra={"cause": type(error).__name__})

    def _now_or_later(self, tell: Callable[[Lanes], object]) -> None:
        try:
            self._ask(lambda: tell(self.lanes), once=True)
        except StoreUnavailable:  # the caller has its answer, whatever becomes of the rest
            self._later.append(tell)
            self._wake()

    def _wake(self) -> None:
        for thread in self._threads:
            if isinstance(thread, Beat):
                thread.woken.set()

    def _ask(self, ask: Callable[[], T], once: bool = False) -> T:
        """Ask Redis, for so long as a caller may be kept.

        Args:
            once: A Redis that was found to be away is not asked until it is found to be back.
        """
        if once and self._away_since is not None and self._threads:
            raise Away(self.why)
        try:
            with deciding():
                return ask()
        except StoreUnavailable as error:
            self.why = str(error)
            self.went(error)
            self._wake()
            raise Away(self.why) from error
        except (RedisError, OSError) as error:
            if not passes(error):
                raise StoreUnavailable(f"Redis said: {first_line(error)}") from error
            self.why = f"Redis said {type(error).__name__}"
            if not isinstance(error, ResponseError):  # it is there, and takes nothing in
                self.went(error)
                self._wake()
            raise Away(self.why) from error


class Beat(Duty):
    """Beats once a second; looks for Redis while it is away."""

    def __init__(self, desk: Desk) -> None:
        super().__init__("desk-beat", desk.live.server, desk.queue)
        self.desk, self.lanes = desk, Lanes(self.client)
        self.woken = threading.Event()
        self.every_s = min(BEAT_S, desk.lease_s / 5)
        self._look_at = 0.0

    def turn(self) -> None:
        self.woken.wait(self.every_s)
        self.woken.clear()
        if self.stopping.is_set():
            return
        try:
            self.desk.beat(self.lanes)
            self.desk.came()
            if (now := self.desk.clock()) >= self._look_at:
                self._look_at = now + min(LOOK_EVERY_S, self.every_s * 2)
                self.desk.look(self.lanes)
        except (RedisError, OSError) as error:
            self.desk.went(error)
            if not self.desk.patient():
                self.stopping.wait(PROBE_S)
            raise

    def stop(self) -> None:
        super().stop()
        self.woken.set()


class Deliveries(Duty):
    """Reads the ready lists of the desk's queue."""

    def __init__(self, desk: Desk) -> None:
        super().__init__("desk-deliveries", desk.live.server, desk.queue)
        self.desk, self.lanes = desk, Lanes(self.client)

    def turn(self) -> None:
        if not self.desk.there.wait(1.0):
            return
        # the plain list: a worker of a version without crews may hold the pump's duty
        popped: Any = self.client.brpop([keys.ready(keys.ALL, self.desk.queue), self.desk.queue], timeout=1)
        if popped is None:
            return
        tag = _tag_of(popped[1])["delivery_tag"]
        if not self.desk.deliver(tag):  # its caller left: the place is free
            self.lanes.free([tag])


def _claim(task: str, plan: Plan, *, again: bool) -> Claim | None:
    """What a call shares with those that are the same; None: nothing.

    A call that goes on after a failure, `again`, asks nobody any more; its answer is kept all the same.
    """
    if plan.sharing is None or plan.fingerprint is None:
        return None
    return Claim.of(plan, plan.sharing, plan.fingerprint, task, at_once=True, again=again)
