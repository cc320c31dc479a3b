"""The life of one in-process call, from its lane to its answer.

The caller waits for the release of its own call and makes the attempt itself, in its own thread or event loop. All else
is as for a call on a queue: the same lane, the same `Executor`. The flow is written once, as a generator of steps; a
driver (`inprocess.drive`) performs each step, blocking or awaiting.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from msgspec import structs

from ratelimit_worker.calls import Arguments, Timeouts
from ratelimit_worker.contracts.plan import Continuation, Plan
from ratelimit_worker.errors import CallFailed, CallLost, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.flow.call.conclude import (
    Answered,
    Back,
    Conclusion,
    Facts,
    GaveUp,
    Ran,
    Settle,
    cut_off,
    failed_by,
)
from ratelimit_worker.flow.call.execute import Executor, NotOurs, Result
from ratelimit_worker.policy.spans import Held
from ratelimit_worker.ports import Admitted, AttemptLanes, Begun, Came

QUEUE = "in-process"  #: name of the queue in recorded attempts; the real queue belongs to one process only
GRACE_S = 5.0  #: how long after its deadline a call waits for its lane to say so
LOOK_AGAIN_S = 0.2  #: pause between two looks while Redis restarts
ENTER_S = 1.75  #: longest wait until a call has its place in the lane
ALONE = b'{"passed": true}'  #: settled in place of an outcome that only the caller can have


class Away(StoreUnavailable):
    """Redis cannot be reached, or accepts no calls; the call goes on without its lane."""


class News(Enum):
    """What may come in place of a release."""

    LOST = auto()  #: Redis no longer knows the call
    AWAY = auto()  #: Redis has been away for long
    LATE = auto()  #: nothing came in time


class Turn(Protocol):
    """One message that waits for its release, and then is released."""

    running: bool  #: the caller is making its attempt
    fingerprint: str | None  #: calls with the same share its answer; None: it shares nothing


T = TypeVar("T", bound=Turn)


class Entering(NamedTuple, Generic[T]):
    """A call on its way into its lane.

    Args:
        after_s: Seconds until its next attempt may be made.
    """

    turn: T
    task: str
    plan: Plan
    after_s: float


class Desk(AttemptLanes, Protocol[T]):
    """This process's place among the workers, and an attempt's lanes.

    `settle` does not wait for Redis. While that is away `begin` raises `Away`, `settle` is kept for later, `back` is
    False, `health` is as if all were well.
    """

    def enter(self, calls: Sequence[Entering[T]]) -> Sequence[Came[Admitted]]:
        """Put calls into their lanes, in one exchange; repeated, each is still there once. What is released at once has
        begun, too.

        Returns:
            What came of each, in their order. Errors are

            - Away: Redis cannot be reached, or accepts no calls;
            - LaneFull, LanesFull, LaneShedding, BudgetSpent, BadInput: the lane refuses the call.
        """
        ...

    def free(self, turn: T) -> None:
        """Free the call; while Redis is away this is done later."""
        ...

    def step_aside(self, turn: T) -> None:
        """The call makes another call: it stops counting as running in its lane, and keeps all else."""
        ...

    def dismiss(self, turn: T, tag: str) -> None:
        """This release is over, though the call has not ended. No I/O."""
        ...

    def leave(self, turn: T) -> None:
        """The caller does not wait any more; what is left of its call in Redis is removed later. No I/O."""
        ...

    def afterwards(self, do: Callable[[], object]) -> None:
        """Do this in the background, before anything that a later `leave` does. No I/O."""
        ...

    @property
    def up(self) -> bool:
        """Whether Redis was there at the last look."""
        ...

    def patient(self) -> bool:
        """Whether Redis went away so recently that it is worth waiting for."""
        ...


NOT_TRACED: AbstractContextManager[None] = nullcontext()


@dataclass(frozen=True, slots=True)
class Ask:
    """Do this short I/O and send back its result."""

    do: Callable[[], Any]
    waits: bool = True  #: for an answer of Redis; False: it may be done in an event loop


@dataclass(frozen=True, slots=True)
class Enter:
    """Put the call into its lane, together with those of others at the same time, and send back the `Admitted`."""

    desk: Desk[Any]
    call: Entering[Any]


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for news of a turn, and send it back: the tag of its release, or a `News`."""

    turn: Any
    most_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for some seconds."""

    for_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """Make the attempt: call the user's function, and send back a `Ran`."""

    turn: Any | None  #: None: outside any lane
    timeouts: Timeouts = field(default_factory=Timeouts)
    lane: str = ""
    traced: AbstractContextManager[None] = NOT_TRACED


Step = Ask | Enter | Wait | Sleep | Run
Steps = Generator[Step, Any, Ran]  #: returns the attempt that counts: its value, or the error to raise

#: Turns of the calls within which this code runs. A call that makes another call stops counting as running: else a lane
#: that lets one call run at a time would wait for itself for ever.
inside: ContextVar[tuple[Any, ...]] = ContextVar("ratelimit_worker_inside", default=())


@dataclass(slots=True, kw_only=True)
class Admission(Generic[T]):
    """One in-process call.

    Args:
        plan: From `flow.call.enqueue`.
        take_part: Makes a turn under a reference.
        unpaced: Reserves the next start outside of lanes → seconds to wait for it; logs why.
        arguments: As in `Facts`.
        renew: Has an answer renewed that is past its time, without waiting for that.
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
    renew: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.time
    _tries: int = field(default=0, init=False)
    _number: int = field(default=0, init=False)
    _after_s: float = field(default=0.0, init=False)  #: seconds until the next attempt may be made
    _entered: int = field(default=0, init=False)

    def steps(self) -> Steps:
        """All steps of the call; returns the last attempt, with what the function returned or raised.

        Raises:
            LaneFull, LanesFull, LaneShedding, BudgetSpent, BadInput: the lane refuses the call.
            DeadlineExceeded, WorkerLostRepeatedly: it has failed without an attempt that could be returned.
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
        """Go through the lane under one reference → the last attempt; None: the call must be entered anew."""
        admitted: Admitted = yield from self._entered_lane(turn)
        kept, news, begun = admitted.placed.answer, admitted.tag, admitted.begun
        if kept is not None:
            if admitted.placed.renews:
                self.renew()
            return Ran(value=self.executor.rules.answers.decode(kept)[1])
        self._after_s = 0.0
        while True:
            if begun is None:
                news = yield from self._hear(turn)
                if news is News.LOST:
                    return None
                begun = yield from self._patiently(Ask(partial(self._begin, news)))
            ran: Ran | None = None
            if begun.state == "go":
                turn.running = True
                started_s = self.executor.clock()
                try:
                    if begun.pause_s > 0:
                        yield Sleep(begun.pause_s)
                        started_s = self.executor.clock()
                    traced = yield from self._traced(news, begun)
                    timeouts = self.executor.timeouts(self.plan, self.task, begun)
                    ran = yield Run(turn, timeouts, self.plan.lane, traced)
                except BaseException as cut:
                    self._cut_off(news, begun, Ran(started_s=started_s, ended_s=self.executor.clock(), error=cut))
                    raise
                turn.running = False
            end = partial(self._end, turn, self._facts(news), begun, ran)
            result, back = yield Ask(end, waits=not self._ends_at_once(ran))
            self._number = max(self._number, begun.number)
            self._tries += back.tries if back is not None else 0
            match result:
                case Answered(value):
                    return ran or Ran(value=value)
                case GaveUp(CallLost()) if ran is None:  # Redis has forgotten the call, but its arguments are here
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
                    begun = None

    def _entered_lane(self, turn: T) -> Generator[Step, Any, Admitted]:
        """Put the call into its lane, and let its trace begin there."""
        admitted: Admitted
        tracer = self.executor.tracer()
        if tracer is None:
            admitted = yield from self._patiently(self._enter(turn), ENTER_S)
            return admitted
        with tracer.sending(self.plan, self.call_id, self.task, QUEUE) as (trace, tell):
            if trace is not None and self.plan.trace is None:  # a call that is entered anew stays in its trace
                self.plan = structs.replace(self.plan, trace=trace)
            admitted = yield from self._patiently(self._enter(turn), ENTER_S)
            tell(admitted.placed)
        return admitted

    def _traced(self, tag: str, begun: Begun) -> Generator[Step, Any, AbstractContextManager[None]]:
        """The context of the attempt's span in its trace."""
        tracer = self.executor.tracer()
        if tracer is None:
            return NOT_TRACED
        held: Sequence[Held] = ()
        if tracer.looks(self.plan, begun):
            held = yield Ask(partial(tracer.look, self.plan.lane))
        return tracer.attempt(self._facts(tag), begun, held)

    def _hear(self, turn: T) -> Generator[Step, Any, Any]:
        """The tag of its next release, or `News.LOST`: Redis no longer knows the call.

        Raises:
            Away: Redis has been away for long.
            DeadlineExceeded: the lane had no turn for it.
        """
        while True:
            news = yield Wait(turn, max(0.0, self.plan.deadline_s - self.clock()) + GRACE_S)
            if news is News.LATE:
                raise DeadlineExceeded(self.call_id, self.plan.lane, self._number)
            if news is not News.AWAY:
                return news
            if not self.desk.up:  # else it is old news
                raise Away("Redis is away")

    def _end(self, turn: T, facts: Facts, begun: Begun, ran: Ran | None) -> tuple[Result, Back | None]:
        """Make what follows safe in Redis → the caller's result, and how the call goes back, if it does.

        Args:
            ran: None: nothing was run, since the lane did not say "go".
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

    def _ends_at_once(self, ran: Ran | None) -> bool:
        """Whether an attempt is concluded without I/O, and without encoding its answer, which may be long."""
        answered = ran is not None and failed_by(ran, self.executor.rules) is None and ran.error is None
        return answered and self.plan.fingerprint is None and self.arguments is None

    def _cut_off(self, tag: str, begun: Begun, ran: Ran) -> None:
        """The attempt was cancelled or interrupted: it is recorded in the background.

        It says nothing about the provider, whichever exception was being handled. Of the calls that follow it, the next
        one asks.
        """
        executor, facts = self.executor, self._facts(tag)
        self.desk.afterwards(lambda: executor.finish(facts, cut_off(facts, begun, ran, executor.rules)))

    def _enter(self, turn: T) -> Enter:
        before = Continuation(attempts=self._number, tries=self._tries, goes_on=self._after_s > 0)
        plan = structs.replace(self.plan, continuation=before)
        return Enter(self.desk, Entering(turn, self.task, plan, self._after_s))

    def _begin(self, tag: str) -> Begun:
        return self.desk.begin(tag, self.executor.lease_s)

    def _patiently(self, step: Ask | Enter, most_s: float = math.inf) -> Generator[Step, Any, Any]:
        """Do short I/O, and wait if Redis is restarting.

        Raises:
            Away: Redis has been away for long, or for `most_s`.
        """
        began = self.clock()
        while True:
            try:
                return (yield step)
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
    """One attempt outside of lanes, after its wait; what the function raises is passed on unchanged."""
    yield Sleep(max(at_least_s, unpaced()))
    ran: Ran = yield Run(None, timeouts or Timeouts())
    return ran


def with_note(ran: Ran, raised: BaseException, final: BaseException) -> Ran:
    """The attempt as its caller sees it: the exception that the function raised, with our judgement added as a note.

    It is not translated, since it stays in this process, and the code around an SDK catches the SDK's exceptions.
    """
    if isinstance(final, CallFailed) and final is not raised:
        raised.add_note(str(final))
    return ran


def let_go(conclusion: Conclusion, ran: Ran) -> Conclusion:
    """If the outcome cannot be given to followers, each of them makes its own attempt.

    That is so if the answer is not JSON, or the function raised its own or its SDK's exception: callers expect that
    type, which cannot be rebuilt from JSON.
    """
    end, raised = conclusion.end, ran.error
    foreign = raised is not None and type(raised).__module__ != CallFailed.__module__
    if isinstance(end, Settle) and (not end.answer or foreign):
        return structs.replace(conclusion, end=Settle(ALONE, "alone"))
    return conclusion
