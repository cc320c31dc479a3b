"""The desk of a process that makes calls in process: a small worker with its own queue, where releases arrive.

It beats like a worker (`presence`), enters calls into their lanes for that queue, and gives each release to the caller
that waits for it (`mailbox`). It never runs calls itself. While there is no Celery worker, it also does the cluster's
duties (`duties`).
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
from typing import TypeVar

from redis import RedisError
from redis.exceptions import ResponseError

from ratelimit_worker.contracts.call import Claim, Entry, Sent
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.call.admit import Away, Entering, News
from ratelimit_worker.flow.call.tally import Tally
from ratelimit_worker.flow.lane import pin
from ratelimit_worker.inprocess.alike import InLanes
from ratelimit_worker.inprocess.duties import StandIn
from ratelimit_worker.inprocess.mailbox import Deliveries, Mailbox, Turn
from ratelimit_worker.inprocess.presence import Beat, Presence
from ratelimit_worker.inprocess.riding import Flush, Riding
from ratelimit_worker.ports import Admitted, Begun, Came, Health
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.desks import PREFIX, Desks
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.stores.reach import reach, unavailable
from ratelimit_worker.stores.together import Dialogue, Together
from ratelimit_worker.wiring import Services, policy_of
from ratelimit_worker.worker.duties import Duty

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_LATER = 10_000  #: most writes that are kept for when Redis is back
LEAVE_S = 10.0  #: how long the end of the process may wait for the recorder
GONE_S = 0.1  #: the same if Redis does not answer, so that nothing can be recorded

MESSAGE = b'{"delivery_tag": "@"}'  #: the whole message of a call; the release script puts the tag into it


class Desk:
    """This process's place among the workers. Made without I/O; the first call opens it.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, live: Services, clock: Callable[[], float] = time.monotonic) -> None:
        self.live, self.pid = live, os.getpid()
        self.queue = f"{PREFIX}{socket.gethostname()[:60]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.worker = f"{socket.gethostname()}/{os.getpid()}"
        self.lease_s = live.settings.visibility_timeout_seconds
        self._together = Together(live.redis)
        self.lanes = Lanes(live.redis, send=self._together.ask)
        self._riding = Riding(self._together)
        self.tally = Tally()
        self.policy_of = policy_of(live.settings)  #: how calls are retried, by lane
        self.in_lanes = InLanes(live.settings)  #: what calls with equal options have in common
        self.mailbox = Mailbox()  #: the callers that wait here
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
        """Why Redis could not be used last time; "": it could."""
        return self._presence.why

    @property
    def opened(self) -> bool:
        """Whether it has begun: it beats, or looks for Redis."""
        return bool(self._threads)

    # ── for callers ──────────────────────────────────────────────────────────────────────────────────────────────

    def wait(self, ref: str, hear: Callable[[str | News], None], fingerprint: str | None = None) -> Turn:
        """Make the turn of a caller; `hear` gets the tags of its releases, and news (see `Mailbox`)."""
        return self.mailbox.wait(ref, hear, fingerprint)

    def enter(self, calls: Sequence[Entering[Turn]]) -> Sequence[Came[Admitted]]:
        """Put calls into their lanes; each may be released at once.

        Returns:
            What came of each, in their order. Errors are

            - Away: Redis cannot be reached, is full or read-only;
            - LaneFull, LanesFull, LaneShedding, BudgetSpent, BadInput: the lane refuses the call;
            - StoreUnavailable: Redis refuses for a reason that will not pass.
        """
        try:
            self.open()
        except Exception as error:
            return [Came(error=error)] * len(calls)
        with deciding():
            return self._together.talk([self._entering(call) for call in calls])

    def _entering(self, call: Entering[Turn]) -> Dialogue[Admitted]:
        turn, plan = call.turn, call.plan
        entry = Entry.of(
            plan,
            Sent(self.queue, turn.ref, MESSAGE, b""),  # the arguments stay in this process
            left_s=plan.deadline_s - time.time(),
            due_in_s=call.after_s,
            claim=Claim.of(plan, call.task, at_once=True),
            lane_fields=lambda: pin.lane_fields(self.live.control, self.live.settings, plan.lane),
        )
        turn.tried = True
        try:
            self._presence.take_seats(self.lanes)
            admitted = yield from self.lanes.admitting(entry, self.lease_s)
        except (RedisError, OSError, StoreUnavailable) as error:
            raise self._heard(error) from error
        turn.tried = turn.entered = admitted.placed.answer is None
        if admitted.tag and not self.mailbox.take(turn, admitted.tag):  # its caller was cancelled meanwhile
            self._tell_later(lambda lanes: lanes.free([admitted.tag]))
        return admitted

    def begin(self, tag: str, lease_s: float, alone: bool = True, process: str = "", taken: bool = False) -> Begun:
        """May this released call run now? It ends with its caller's process, so it is never a suspect.

        `process` and `taken` are only for workers, and ignored here.

        Raises:
            Away: Redis cannot be reached, is full or read-only.
            StoreUnavailable: Redis refuses for a reason that will not pass.
        """
        return self._ask(lambda: self.lanes.begin(tag, lease_s, alone))

    def free(self, turn: Turn) -> None:
        """Free the call, now or when Redis is back."""
        tags = self.mailbox.take_releases(turn)
        if tags:
            self._now_or_later(lambda lanes: lanes.free(tags))
        turn.tried = turn.entered = False

    def step_aside(self, turn: Turn) -> None:
        """The call makes another call: it stops counting as running in its lane, and keeps all else."""
        tags = self.mailbox.set_aside(turn)
        if tags:
            self._now_or_later(lambda lanes: lanes.step_aside(tags))

    def dismiss(self, turn: Turn, tag: str) -> None:
        """This release is over: the call is back in its lane, or released again."""
        self.mailbox.dismiss(turn, tag)

    def leave(self, turn: Turn) -> None:
        """The caller does not wait any more; what it left in Redis is removed in the background."""
        ref, tags = turn.ref, self.mailbox.leave(turn)
        unanswered = turn.tried and not turn.entered  # it may have been released, and its tag is not known here

        def clear(lanes: Lanes) -> None:
            lanes.revoke(ref)
            left = tags
            if unanswered and not tags and (record := lanes.record(ref)) is not None:
                left = [record.tag]
            if left:
                lanes.free(left)

        if turn.tried or tags:  # a second release may have come after the first was freed
            self._tell_later(clear)

    def afterwards(self, do: Callable[[], object]) -> None:
        """Do this in the background, before anything that a later `leave` does."""
        self._tell_later(lambda lanes: do())

    def patient(self) -> bool:
        """Whether Redis went away so recently that it is worth waiting for."""
        return self._presence.patient()

    # ── for the executor: outcomes are sent to Redis now or later, which never costs the caller its answer ────────────

    def settle(self, settlement: Settlement) -> bool:
        """Make the outcome safe: with the next exchange, or some ms later; if Redis is away, when it is back → True.

        The caller does not wait for this, and its releases are freed with it. What it asks afterwards finds it done.
        """
        frees = self.mailbox.take_releases_by(settlement.tag) or (settlement.tag,)

        def tell(lanes: Lanes) -> None:
            lanes.settle_and_free(settlement, frees)

        def heard(error: Exception | None) -> None:
            if error is not None:  # the next beat tries again; errors that will not pass are logged then
                self._tell_later(tell)

        if self._presence.away and self.opened:
            self._tell_later(tell)
        else:
            self._riding.send(self.lanes.to_settle_and_free(settlement, frees), heard)
            if not self.opened:  # it was closed meanwhile, so no thread flushes any more
                self._riding.flush()
        return True

    def back(self, tag: str, lane: str, lesson: Lesson, *, after_s: float, tries: int, outbox: bytes = b"") -> bool:
        """Return the call to its lane → False when it is not there under this tag, or Redis is away."""
        try:
            return self._ask(
                lambda: self.lanes.back(tag, lane, lesson, after_s=after_s, tries=tries, outbox=outbox), once=True
            )
        except StoreUnavailable:  # the caller enters the call anew; the lesson is written later, under the old tag
            told = Settlement(tag=tag, lane=lane, answer=b"", lesson=lesson, outbox=outbox)
            self._later.append(lambda lanes: lanes.settle(told))
            return False

    def health(self, lane: str, task: str) -> Health:
        """The lane's health; all is well if it is unknown."""
        try:
            return self._ask(lambda: self.lanes.health(lane, task), once=True)
        except StoreUnavailable:
            return Health()

    # ── opening, beating, closing ──────────────────────────────────────────────────────────────────────────────────

    def open(self) -> None:
        """Begin, once.

        Raises:
            Away: Redis was not there at the last look.
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
                Flush(self.live.server, self.queue, self._riding),
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
        """Stop in good order: outcomes are recorded, and nothing of this process stays in the lanes."""
        if os.getpid() != self.pid:
            return  # in a forked child: the desk belongs to its parent
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
                    self._riding.flush()
                    self._tell(self.lanes)
                    self._presence.leave(self.lanes)
                    self._together.close()
                except (RedisError, OSError, StoreUnavailable) as error:
                    there = False
                    log.info("desk.close", extra={"cause": type(error).__name__})  # its entry expires by itself
            for thread in threads:
                if thread.is_alive() and thread is not threading.current_thread():
                    thread.join(LEAVE_S if there else GONE_S)
        self.mailbox.tell_all(News.AWAY)

    def beat(self, client_lanes: Lanes) -> None:
        """One beat: write what was kept for later, and renew this process's entry.

        Raises:
            redis.RedisError, OSError: Redis is away.
        """
        self._tell(client_lanes)
        self._presence.beat(client_lanes)

    def look(self, client_lanes: Lanes) -> None:
        """Look for callers whose calls Redis has lost, and for processes that died.

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

    def _take_duties(self, lanes: Lanes) -> None:
        """Do the cluster's duties only while there is no worker, since this process has other things to do."""
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
            self._tell_later(tell)

    def _tell_later(self, tell: Callable[[Lanes], object]) -> None:
        self._later.append(tell)
        self._wake()

    def _wake(self) -> None:
        for thread in self._threads:
            if isinstance(thread, Beat):
                thread.woken.set()

    def _ask(self, ask: Callable[[], T], once: bool = False) -> T:
        """Ask Redis, with a time-out that a caller can accept.

        Args:
            once: If Redis was found to be away, do not ask until it was found to be back.
        """
        if once and self._presence.away and self.opened:
            raise Away(self.why)
        try:
            with deciding():
                return ask()
        except (RedisError, OSError, StoreUnavailable) as error:
            raise self._heard(error) from error

    def _heard(self, error: Exception) -> StoreUnavailable:
        """What a caller hears of an error of Redis. Notes whether it is away."""
        if isinstance(error, StoreUnavailable):
            self._presence.why = str(error)
        elif not passes(error):
            return unavailable(error, "Redis said")
        else:
            self._presence.why = f"Redis said {type(error).__name__}"
        if not isinstance(error, ResponseError):  # otherwise it is there, and refuses writes
            self._presence.went(error)
            self._wake()
        return Away(self.why)
