"""Where do releases of in-process calls arrive? At this process's desk: a small worker with a queue of its own.

It beats like a worker (`presence`), enters calls into their lanes for that queue, and hands each release to the caller
that waits for it (`mailbox`). It never runs anything itself. While no Celery worker lives it does the cluster's duties
too (`duties`).
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
from collections.abc import Callable
from typing import TypeVar

from redis import RedisError
from redis.exceptions import ResponseError

from ratelimit_worker.contracts.call import Claim, Entry, Placed, Sent
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.call.admit import Away, News
from ratelimit_worker.flow.call.tally import Tally
from ratelimit_worker.flow.lane import pin
from ratelimit_worker.inprocess.duties import StandIn
from ratelimit_worker.inprocess.mailbox import Deliveries, Mailbox, Turn
from ratelimit_worker.inprocess.presence import Beat, Presence
from ratelimit_worker.ports import Begun, Health
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.desks import PREFIX, Desks
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.stores.reach import reach, unavailable
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.duties import Duty

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_LATER = 10_000  #: things to tell Redis when it is back
LEAVE_S = 10.0  #: how long the end of the process may wait for the recorder
GONE_S = 0.1  #: the same where Redis does not answer, so that nothing can be recorded

MESSAGE = b'{"delivery_tag": "@"}'  #: the release script puts the tag into it; there is nothing else to say


class Desk:
    """This process among the workers. Made without I/O; the first call opens it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, live: Services, clock: Callable[[], float] = time.monotonic) -> None:
        self.live, self.pid = live, os.getpid()
        self.queue = f"{PREFIX}{socket.gethostname()[:60]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.worker = f"{socket.gethostname()}/{os.getpid()}"
        self.lease_s = live.settings.visibility_timeout_seconds
        self.lanes = Lanes(live.redis)
        self.tally = Tally()
        self.mailbox = Mailbox()  #: who waits here
        self._presence = Presence(self.queue, self.lease_s, self.mailbox, clock)
        self._duties = StandIn(live, self.queue, self.lease_s)
        self._later: deque[Callable[[Lanes], object]] = deque(maxlen=MOST_LATER)
        self._opening = threading.Lock()
        self._threads: list[Duty] = []

    @property
    def up(self) -> bool:
        """Whether Redis was there at the last look."""
        return self._presence.there.is_set()

    @property
    def why(self) -> str:
        """Why Redis could not be used the last time; "": it could."""
        return self._presence.why

    @property
    def opened(self) -> bool:
        """Whether it lives, or looks for Redis to live on."""
        return bool(self._threads)

    # ── for callers ──────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, ref: str, hear: Callable[[str | News], None], fingerprint: str | None = None) -> Turn:
        """Take part."""
        return self.mailbox.wait(ref, hear, fingerprint)

    def enqueue(self, turn: Turn, task: str, plan: Plan, after_s: float) -> bytes | None:
        """Put the call into its lane → an answer that is kept, instead of that.

        Raises:
            Away: Redis cannot be reached, is full or read-only.
            LaneFull, LaneShedding, BadInput: the lane refuses the call.
            StoreUnavailable: Redis refuses for a reason that will not pass.
        """
        self.open()
        entry = Entry.of(
            plan,
            Sent(self.queue, turn.ref, MESSAGE, b""),  # the arguments stay with the caller
            left_s=plan.deadline_s - time.time(),
            due_in_s=after_s,
            claim=Claim.of(plan, task, at_once=True),
            lane_fields=lambda: pin.lane_fields(self.live.control, self.live.settings, plan.lane),
        )
        turn.tried = True
        answer = self._ask(lambda: self._enter(entry)).answer
        turn.tried = turn.entered = answer is None
        return answer

    def begin(self, tag: str, lease_s: float, alone: bool = True, process: str = "", taken: bool = False) -> Begun:
        """May this released call run now? It dies with its caller, so it is never suspected of having killed it.

        `process` and `taken` are a worker's: they say nothing here.


        Raises:
            Away, StoreUnavailable: as `enqueue`.
        """
        return self._ask(lambda: self.lanes.begin(tag, lease_s, alone))

    def free(self, turn: Turn) -> None:
        """The call's stay in the ledger ends, now or when Redis is back."""
        tags = self.mailbox.take_releases(turn)
        if tags:
            self._now_or_later(lambda lanes: lanes.free(tags))
        turn.tried = turn.entered = False

    def step_aside(self, turn: Turn) -> None:
        """The call makes a call itself: it gives up its place among the running of its lane, and keeps all else."""
        tags = self.mailbox.set_aside(turn)
        if tags:
            self._now_or_later(lambda lanes: lanes.step_aside(tags))

    def dismiss(self, turn: Turn, tag: str) -> None:
        """This release is over: the call is back in its lane, or out under another."""
        self.mailbox.dismiss(turn, tag)

    def leave(self, turn: Turn) -> None:
        """The caller waits no more; what it left in Redis is cleared up in the background."""
        ref, tags = turn.ref, self.mailbox.leave(turn)
        if turn.tried or tags:  # a second release may have come after the first was freed
            self._later.append(lambda lanes: (lanes.revoke(ref), lanes.free(tags) if tags else 0))
            self._wake()

    def afterwards(self, do: Callable[[], object]) -> None:
        """Do this in the background, before what the next `leave` leaves."""
        self._later.append(lambda lanes: do())
        self._wake()

    def patient(self) -> bool:
        """Whether Redis has been away for so short a time that it is worth waiting for."""
        return self._presence.patient()

    # ── for the executor: what has happened is told Redis now or later, and never costs the caller its answer ─────────

    def settle(self, settlement: Settlement) -> bool:
        """Make the outcome safe, now or when Redis is back; a caller who has an outcome needs its releases no more."""
        frees = self.mailbox.take_releases_by(settlement.tag) or (settlement.tag,)
        self._now_or_later(lambda lanes: lanes.settle_and_free(settlement, frees))
        return True

    def back(self, tag: str, lane: str, lesson: Lesson, *, after_s: float, tries: int, outbox: bytes = b"") -> bool:
        """Return the call to its lane → False when it is not there under this tag, or Redis is away."""
        try:
            return self._ask(
                lambda: self.lanes.back(tag, lane, lesson, after_s=after_s, tries=tries, outbox=outbox), once=True
            )
        except StoreUnavailable:  # the caller enters it anew; what was learned is told later, by a tag that is over
            told = Settlement(tag=tag, lane=lane, answer=b"", lesson=lesson, outbox=outbox)
            self._later.append(lambda lanes: lanes.settle(told))
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
                if self._presence.there.is_set():
                    return
                raise Away(self.why or "Redis is away")
            self._threads = [
                Beat(self.live.server, self._presence, self.beat, self.look),
                Deliveries(self.live.server, self.queue, self.mailbox, self._presence.there),
            ]
            atexit.register(self.close)
            try:
                self._ask(lambda: self._presence.beat(self.lanes))
                self._ask(lambda: self._take_duties(self.lanes))
                self._presence.came()
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
            threads, self._threads = self._threads, []
            for thread in threads:
                thread.stop()
            threads += self._duties.give_up()
            self._wake()
            there = self.up
            if there:
                self._presence.there.clear()
                try:
                    reach(self.lanes.client)
                    self._tell(self.lanes)
                    self._presence.leave(self.lanes)
                except (RedisError, OSError, StoreUnavailable) as error:
                    there = False
                    log.info("desk.close", extra={"cause": type(error).__name__})  # it expires with its life
            for thread in threads:
                if thread.is_alive() and thread is not threading.current_thread():
                    thread.join(LEAVE_S if there else GONE_S)
        self.mailbox.tell_all(News.AWAY)

    def beat(self, client_lanes: Lanes) -> None:
        """One beat: tell Redis what it has not been told, and live on.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        self._tell(client_lanes)
        self._presence.beat(client_lanes)

    def look(self, client_lanes: Lanes) -> None:
        """Find callers whose calls Redis has lost, and processes that died.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        waiting = [turn for turn in self.mailbox.turns() if turn.entered and not turn.tags]
        if waiting:
            for turn, there in zip(waiting, client_lanes.known([turn.ref for turn in waiting]), strict=True):
                if not there and turn.entered and not turn.tags and not turn.over:
                    turn.entered = False
                    turn.hear(News.LOST)
        Desks(client_lanes.client).forget_absent(self.queue, self.lease_s)
        self._take_duties(client_lanes)

    def _enter(self, entry: Entry) -> Placed:
        self._presence.take_seats(self.lanes)
        return self.lanes.enqueue(entry)

    def _take_duties(self, lanes: Lanes) -> None:
        """The cluster's duties are the workers' as long as one lives, for this process has other things to do."""
        if Desks(lanes.client).workers_live():
            self._duties.give_up()
        elif self.opened:
            self._duties.take_on()

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
        if once and self._presence.away and self.opened:
            raise Away(self.why)
        try:
            with deciding():
                return ask()
        except StoreUnavailable as error:
            self._presence.why = str(error)
            self._presence.went(error)
            self._wake()
            raise Away(self.why) from error
        except (RedisError, OSError) as error:
            if not passes(error):
                raise unavailable(error, "Redis said") from error
            self._presence.why = f"Redis said {type(error).__name__}"
            if not isinstance(error, ResponseError):  # it is there, and takes nothing in
                self._presence.went(error)
                self._wake()
            raise Away(self.why) from error
