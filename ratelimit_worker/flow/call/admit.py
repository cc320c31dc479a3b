"""How does a caller without a queue get its turn? The life of one in-process call, from its lane to its answer.

The caller waits for its own release and makes the attempt itself, in its own thread or event loop; all else is as for a
call on a queue: the same lane, the same `Executor`. The flow stands here once, as a generator of steps; a driver does
what each says, blocking or awaiting (`inprocess.drive`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from msgspec import structs

from ratelimit_worker.calls import Arguments, Timeouts
from ratelimit_worker.contracts.plan import Continuation, Plan
from ratelimit_worker.errors import CallFailed, CallLost, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.flow.call.conclude import Answered, Back, Conclusion, Facts, GaveUp, Ran, Settle, cut_off
from ratelimit_worker.flow.call.execute import Executor, NotOurs, Result
from ratelimit_worker.ports import AttemptLanes, Begun

QUEUE = "in-process"  #: what outcomes say of their queue: the real one is the process's own and tells nobody anything
GRACE_S = 5.0  #: the lane itself says when a deadline has passed; after so long more it is taken for silent
LOOK_AGAIN_S = 0.2  #: while Redis restarts
ENTER_S = 1.75  #: a call that has no place yet waits no longer for that
ALONE = b'{"passed": true}'  #: what is settled where nobody but the caller can have the outcome


class Away(StoreUnavailable):
    """Redis cannot be reached or takes nothing in; the call goes ahead without its lane."""


class News(Enum):
    """What a caller may hear instead of its release."""

    LOST = auto()  #: Redis no longer knows the call
    AWAY = auto()  #: Redis has been away for long
    LATE = auto()  #: nothing came in time


class Turn(Protocol):
    """The wait of one message for its release, and what was released of it."""

    running: bool  #: the caller makes its attempt, and hears nothing meanwhile
    fingerprint: str | None  #: of the calls that share its answer; None: it is its caller's alone


T_contra = TypeVar("T_contra", bound=Turn, contravariant=True)
T = TypeVar("T", bound=Turn)


class Desk(AttemptLanes, Protocol[T_contra]):
    """This process's place among the workers, and an attempt's lanes.

    While Redis is away `begin` raises `Away`, `settle` is kept for later, `back` is False, `health` is as if all were
    well.
    """

    def enqueue(self, turn: T_contra, task: str, plan: Plan, after_s: float) -> bytes | None:
        """Put the call into its lane, once however often it is asked → an answer that is kept, instead of that.

        Args:
            after_s: From now, until its next attempt may be made.
        Raises:
            Away, LaneFull, LaneShedding, BadInput
        """
        ...

    def free(self, turn: T_contra) -> None:
        """The call's stay in the ledger ends; while Redis is away this is kept for later."""
        ...

    def step_aside(self, turn: T_contra) -> None:
        """The call makes a call itself: it gives up its place among the running of its lane, and keeps all else."""
        ...

    def dismiss(self, turn: T_contra, tag: str) -> None:
        """This release is over, without an end of the call. No I/O."""
        ...

    def leave(self, turn: T_contra) -> None:
        """The caller waits no more; what is left of its call in Redis is cleared up later. No I/O."""
        ...

    def afterwards(self, do: Callable[[], object]) -> None:
        """Do this in the background, before what the next `leave` leaves. No I/O."""
        ...

    @property
    def up(self) -> bool:
        """Whether Redis was there at the last look."""
        ...

    def patient(self) -> bool:
        """Whether Redis, which was there, has been away for so short a time that it is worth waiting for."""
        ...


@dataclass(frozen=True, slots=True)
class Ask:
    """Do this short I/O and send back what it returns."""

    do: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for news of a turn: the tag of its release, or `News`."""

    turn: Any
    most_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait so long, seconds."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Make the attempt: call the user's function, and send back what came of it."""

    turn: Any | None  #: None: outside any lane
    timeouts: Timeouts = field(default_factory=Timeouts)
    lane: str = ""


Step = Ask | Wait | Sleep | Run
Steps = Generator[Step, Any, Ran]  #: returns the attempt that counts: its value, or the error to raise

#: Turns of the calls inside which this code runs. A call that makes another call steps aside: it has had its permit,
#: and if it kept its place among those that are out, a lane that lets one run at a time would wait for itself for ever.
inside: ContextVar[tuple[Any, ...]] = ContextVar("ratelimit_worker_inside", default=())


@dataclass(slots=True, kw_only=True)
class Admission(Generic[T]):
    """One in-process call.

    Args:
        plan: As `flow.call.enqueue` makes it.
        take_part: A new turn under a reference.
        unpaced: Reserves the next start outside the lanes → seconds to wait for it; logs why.
        arguments: As in `Facts`.
        clock: Seconds since the epoch.
    """

    call_id: str
    task: str
    plan: Plan
    worker: str
    desk: Desk[T]
    take_part: Callable[[str], T]
    executor: Executor
    unpaced: Callable[[], float]
    arguments: Arguments | None = None
    clock: Callable[[], float] = time.time
    _tries: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)
    _after_s: float = field(default=0.0, init=False)  #: from now, until the next attempt may be made
    _entered: int = field(default=0, init=False)

    def steps(self) -> Steps:
        """All that is to be done; returns the last attempt, with what the function returned or raised.

        Raises:
            DeadlineExceeded, LaneFull, LaneShedding, BadInput, WorkerLostRepeatedly: the lane's own refusals.
        """
        for outer in inside.get():
            yield Ask(partial(self.desk.step_aside, outer))
        while True:
            turn = self.take_part(self._next_ref())
            try:
                ran = yield from self._wait_in_lane(turn)
            except Away:
                break
            finally:
                self.desk.leave(turn)
            if ran is not None:
                return ran
        now_s = self.clock()
        outside = Begun(state="go", now_s=now_s, deadline_s=self.plan.deadline_s, tries=self._tries)
        timeouts = self.executor.timeouts(self.plan, self.task, outside)
        return (yield from run_unpaced(self.unpaced, self._after_s, timeouts))

    def _next_ref(self) -> str:
        self._entered += 1
        return self.call_id if self._entered == 1 else f"{self.call_id}-{self._entered}"

    def _wait_in_lane(self, turn: T) -> Generator[Step, Any, Ran | None]:
        """Through the lane under one reference → the last attempt, or None: the call has to be entered anew."""
        kept = yield from self._patiently(self._enqueue, turn, ENTER_S)
        if kept is not None:
            return Ran(value=self.executor.rules.answers.decode(kept)[1])
        self._after_s = 0.0
        while True:
            news = yield Wait(turn, max(0.0, self.plan.deadline_s - self.clock()) + GRACE_S)
            if news is News.LOST:
                return None
            if news is News.AWAY:
                if self.desk.up:  # old news
                    continue
                raise Away("Redis is away")
            if news is News.LATE:
                raise DeadlineExceeded(self.call_id, self.plan.lane, self._number)
            begun = yield from self._patiently(self._begin, news)
            ran: Ran | None = None
            if begun.state == "go":
                turn.running = True
                started_s = self.executor.clock()
                try:
                    if begun.pause_s > 0:
                        yield Sleep(begun.pause_s)
                        started_s = self.executor.clock()
                    ran = yield Run(turn, self.executor.timeouts(self.plan, self.task, begun), self.plan.lane)
                except BaseException as cut:
                    self._cut_off(news, begun, Ran(started_s=started_s, ended_s=self.executor.clock(), error=cut))
                    raise
                turn.running = False
            result, back = yield Ask(partial(self._end, turn, self._facts(news), begun, ran))
            self._number = max(self._number, begun.number)
            self._tries += back.tries if back is not None else 0
            match result:
                case Answered(value):
                    return ran or Ran(value=value)
                case GaveUp(CallLost()) if ran is None:  # Redis lost its memory, and the arguments are here
                    return None
                case GaveUp(error):
                    if ran is None or ran.error is None:
                        raise error
                    return with_note(ran, ran.error, error)
                case NotOurs() if back is not None:  # it was taken for dead
                    self._after_s = back.after_s
                    return None
                case _:
                    self.desk.dismiss(turn, news)

    def _end(self, turn: T, facts: Facts, begun: Begun, ran: Ran | None) -> tuple[Result, Back | None]:
        """What follows, made safe in Redis → what the caller hears, and how the call was to go back, if so.

        Args:
            ran: None: nothing was run, the lane did not say "go".
        """
        back: Back | None = None
        if ran is None:
            result = self.executor.turned_back(facts, begun)
        else:
            conclusion = self.executor.conclude(facts, begun, ran)
            if self.plan.fingerprint is not None:
                conclusion = let_go(conclusion, ran)
            result = self.executor.finish(facts, conclusion)
            back = conclusion.end if isinstance(conclusion.end, Back) else None
        match result:
            case GaveUp(CallLost()) if ran is None:  # it is entered anew
                pass
            case Answered() | GaveUp():
                self.desk.free(turn)
        return result, back

    def _cut_off(self, tag: str, begun: Begun, ran: Ran) -> None:
        """The attempt was cancelled, interrupted or thrown away: it has a row, and its caller does not wait for that.

        It says nothing of the provider, whatever was being handled, nor to those that follow: the next of them asks.
        """
        executor, facts = self.executor, self._facts(tag)
        self.desk.afterwards(lambda: executor.finish(facts, cut_off(facts, begun, ran, executor.rules)))

    def _enqueue(self, turn: T) -> bytes | None:
        before = Continuation(attempts=self._number, tries=self._tries, goes_on=self._after_s > 0)
        return self.desk.enqueue(turn, self.task, structs.replace(self.plan, continuation=before), self._after_s)

    def _begin(self, tag: str) -> Begun:
        return self.desk.begin(tag, self.executor.lease_s)

    def _patiently(self, ask: Callable[[Any], Any], about: Any, most_s: float = math.inf) -> Generator[Step, Any, Any]:
        """Short I/O that waits for a Redis which restarts.

        Raises:
            Away: it has been away for long, or for `most_s`.
        """
        began = self.clock()
        while True:
            try:
                return (yield Ask(partial(ask, about)))
            except Away:
                if not self.desk.patient() or self.clock() - began >= most_s - LOOK_AGAIN_S:
                    raise
            yield Sleep(LOOK_AGAIN_S)

    def _facts(self, tag: str) -> Facts:
        return Facts(
            call_id=self.call_id,
            tag=tag,
            task=self.task,
            plan=self.plan,
            queue=QUEUE,
            worker=self.worker,
            arguments=self.arguments,
        )


def run_unpaced(unpaced: Callable[[], float], at_least_s: float = 0.0, timeouts: Timeouts | None = None) -> Steps:
    """One attempt outside the lanes, after its wait; what the function raises goes on as it is."""
    yield Sleep(max(at_least_s, unpaced()))
    ran: Ran = yield Run(None, timeouts or Timeouts())
    return ran


def with_note(ran: Ran, raised: BaseException, final: BaseException) -> Ran:
    """The attempt as its caller sees it: what the function raised, as it was, with the verdict as a note.

    Nothing here crosses a process, and code around an SDK catches the SDK's own exceptions.
    """
    if isinstance(final, CallFailed) and final is not raised:
        raised.add_note(str(final))
    return ran


def let_go(conclusion: Conclusion, ran: Ran) -> Conclusion:
    """Those that wait for the same answer are let go, each to its own attempt, when they cannot have the outcome.

    That is so where the answer is no JSON, and where the function raised an exception of its own or its SDK's: who
    calls expects that very type, which no JSON gives back.
    """
    end, raised = conclusion.end, ran.error
    foreign = raised is not None and type(raised).__module__ != CallFailed.__module__
    if isinstance(end, Settle) and (not end.answer or foreign):
        return structs.replace(conclusion, end=Settle(ALONE, "alone"))
    return conclusion
