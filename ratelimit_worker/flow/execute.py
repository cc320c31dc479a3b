"""What happens when a worker takes a released call? One attempt, and what follows from it.

Pure orchestration: the lane, the clock and the jitter are passed in; the worker translates the result into Celery's
words.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from ratelimit_worker.calls import (
    Arguments,
    Attempt,
    Category,
    Content,
    Failure,
    Mode,
    Outcome,
    Response,
    Sighting,
    Timeouts,
    Usage,
    sighting,
    within,
)
from ratelimit_worker.contracts.lesson import AnswerKind, Lesson, Verdict, Witness
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import (
    CallFailedLater,
    CallLost,
    DeadlineExceeded,
    RateLimitWorkerError,
    WorkerLostRepeatedly,
    call_failed,
    deadline_exceeded,
)
from ratelimit_worker.flow import observe
from ratelimit_worker.flow.content import content_of
from ratelimit_worker.flow.settle import Answers
from ratelimit_worker.flow.tally import Tally
from ratelimit_worker.policy import timeout
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.completion import cut_short
from ratelimit_worker.policy.estimate import usage_of
from ratelimit_worker.policy.fault import OTHERS_FARE_WELL, compared, digest
from ratelimit_worker.policy.own_retry import Goes, Stays, Wish, whose
from ratelimit_worker.policy.retry import NO_RECORD, GiveUp, Halt, Retry, RetryPolicy, Snooze, Step, Why, next_step
from ratelimit_worker.policy.timeout import Latencies
from ratelimit_worker.ports import AttemptLanes, Begun, Health

log = logging.getLogger("ratelimit_worker.attempt")


#: What an attempt's answer is to those that wait for the same; all else is an error.
KINDS: Mapping[Outcome, AnswerKind] = {Outcome.ANSWERED: "value", Outcome.RETRIED: "passed"}
SHORT: AnswerKind = "short"  #: an answer that is not whole: for those that wait for it now, and kept for nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a call before its payload is read.

    Args:
        arguments: Asked once the attempt was made, for what is captured of it; None: nothing is.
    """

    call_id: str
    tag: str
    task: str
    plan: Plan
    queue: str = ""
    worker: str = ""
    alone: bool = False  #: nothing else runs in this process
    taken: bool = False  #: another call has this process for itself
    arguments: Arguments | None = None

    @property
    def lane(self) -> str:
        """The lane that the call was released from."""
        return self.plan.lane

    @property
    def cost(self) -> Sequence[float]:
        """What the call took from the lane's budget, by dimension."""
        return self.plan.cost.vector()


@dataclass(frozen=True, slots=True)
class Answered:
    """The call has its answer."""

    value: Any


@dataclass(frozen=True, slots=True)
class Again:
    """The call is back in its lane, due in `after_s` seconds (0: at its own place)."""

    after_s: float
    error: RateLimitWorkerError


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The call has failed for good."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt ended because its process does: nothing is known of the call, which is delivered again."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Another delivery of this call runs, or what it had to do is done; this one does nothing."""


@dataclass(frozen=True, slots=True)
class MustBeAlone:
    """The call may kill its worker: it is to be executed when nothing else runs in this process (`Facts.alone`)."""


class Swallowed(Exception):
    """A provider's failure for which nothing was raised. Neither `str()` nor `repr()` shows its body."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"HTTP {self.response.status}"

    def __repr__(self) -> str:
        return f"Swallowed(HTTP {self.response.status})"


@dataclass(frozen=True, slots=True)
class _Judged:
    """What a failure means to the lane.

    Args:
        costs: Whether its category costs a try.
        free: Whether what follows costs none, now.
        escalates: Whether the law may change the lane's mode.
        older: As `observe.older`.
    """

    error: BaseException
    failure: Failure
    step: Step
    costs: bool
    free: bool
    escalates: bool
    older: int


@dataclass(slots=True)
class _Trial:
    """One attempt on its way: at what, since when (the executor's clock, seconds), and what was seen of it.

    Args:
        caught: The provider's failure for which the task has retried by itself.
        stays: Seconds after which the lane sends the call again in place of that retry; None: it does not.
        timeouts: Within which it has to end.
    """

    facts: Facts
    begun: Begun
    started: float
    seen: Sighting = field(default_factory=Sighting)
    content: Content | None = None
    caught: _Judged | None = None
    stays: float | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    suspect: bool = False  #: it failed again, and others were answered since
    resent: bool = False  #: its task has sent it again, and goes on: this attempt is not its end


Result = Answered | Again | GaveUp | Interrupted | NotOurs | MustBeAlone


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """The attempt, with all that it needs from the outside.

    Args:
        encode_outcome: An attempt as the outbox holds it.
        timeout_told_s: By lane, how long a person lets an attempt take; None: nobody has said.
        latencies: By `timeout.key`, how long answers took; never waits.
        reconcile: By lane, whether its provider gives back tokens that were reserved and not used; None: not told.
        tally: Answers that the lanes' records of their functions do not know yet; one a process.
        pass_through: Exceptions that are not failures but words of the framework (Celery's Retry, Ignore, Reject).
        means: What such a word makes of the call: RETRIED (it was sent again), SNOOZED (it goes back to its place), or
            FAILED (nobody runs it again).
        behind: The exceptions for which such a word may have been raised, the likeliest first.
        given_up: Whether a call has been given up while its attempt ran; what comes of that is of no use any more.
        interrupted: Whether what an attempt raised says that its process is being ended, and nothing of the call.
    """

    lanes: AttemptLanes
    answers: Answers
    encode_outcome: Callable[[Attempt], bytes]
    lease_s: float
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    tally: Tally = field(default_factory=Tally)
    pass_through: tuple[type[BaseException], ...] = ()
    means: Callable[[BaseException], Outcome] = lambda word: Outcome.RETRIED
    behind: Callable[[BaseException], Sequence[BaseException | None]] = lambda word: (word.__cause__,)
    given_up: Callable[[str], bool] = lambda tag: False
    interrupted: Callable[[BaseException], bool] = lambda error: False
    reconcile: Callable[[str], bool | None] = lambda lane: None
    timeout_told_s: Callable[[str], float | None] = lambda lane: None
    latencies: Callable[[str], Latencies | None] = lambda name: None
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    classify: Callable[[BaseException], Failure | None] = classify_exception

    def execute(self, facts: Facts, run: Callable[[Begun], Any], restore: Callable[[bytes], None]) -> Result:
        """Make one attempt at a released call.

        Args:
            run: Makes the request; given what the lane said.
            restore: Puts the canvas of a payload back where the framework looks for it, when nothing is run.
        """
        begun = self.lanes.begin(facts.tag, self.lease_s, facts.alone, facts.worker, facts.taken)
        match begun.state:
            case "go":
                return self._attempt(facts, begun, run)
            case "settled":
                restore(begun.body)
                return self._settled(begun)
            case "closed":
                return Again(0.0, CallFailedLater(facts.lane))
            case "expired":
                restore(begun.body)
                return self._expired(facts, begun)
            case "poison":
                restore(begun.body)
                return self._poison(facts, begun)
            case "alone":
                return MustBeAlone()
            case "gone":
                return GaveUp(CallLost(facts.call_id))
            case _:
                return NotOurs()

    def _settled(self, begun: Begun) -> Result:
        kind, value = self.answers.decode(begun.answer)
        if kind == "value":
            return Answered(value)
        return GaveUp(value) if kind == "error" else NotOurs()

    def _poison(self, facts: Facts, begun: Begun) -> Result:
        """Those that follow it are the same call: they get its error, or each would kill its workers in turn."""
        error, trial = WorkerLostRepeatedly(facts.call_id, begun.tries), _Trial(facts, begun, self.clock())
        trial.content = content_of(facts.arguments)
        self._settle(trial, None, Outcome.FAILED, self.answers.error(error), "other", cause=type(error).__name__)
        return GaveUp(error)

    def _expired(self, facts: Facts, begun: Begun) -> Result:
        """Recorded as one row more, though nothing was sent. Those that follow it have deadlines of their own."""
        trial = _Trial(
            facts, replace(begun, number=begun.number + 1), self.clock(), content=content_of(facts.arguments)
        )
        row = self._row(trial, begun.now_s, None, Outcome.FAILED, DeadlineExceeded.__name__)
        self.lanes.settle(facts.tag, facts.lane, b"", Lesson(), outbox=self.encode_outcome(row))
        return GaveUp(deadline_exceeded(facts.call_id, facts.lane, begun.number, begun.failed))

    def timeouts(self, plan: Plan, task: str, begun: Begun) -> Timeouts:
        """How long an attempt at a call that has just begun may take."""
        return timeout.timeouts(
            told_s=self.timeout_told_s(plan.lane) if plan.timeout_s is None else plan.timeout_s,
            known=self.latencies(timeout.key(task, plan.model, plan.lane)),
            now_s=begun.now_s,
            left_s=begun.deadline_s - begun.now_s,
            tries=begun.tries,
            most_tokens=plan.estimated.most_output_tokens if plan.estimated is not None else None,
        )

    def _attempt(self, facts: Facts, begun: Begun, run: Callable[[Begun], Any]) -> Result:
        trial = _Trial(facts, begun, self.clock(), timeouts=self.timeouts(facts.plan, facts.task, begun))
        with _running_now(self, trial), within(trial.timeouts), sighting(facts.lane) as trial.seen:
            try:
                value = run(begun)
            except BaseException as error:  # whatever a task raises, its attempt ends here, or its slot never would
                if self.given_up(facts.tag):
                    return NotOurs()
                if self.interrupted(error):
                    return Interrupted(error)
                return self._raised(trial, error)
        if self.given_up(facts.tag):
            return NotOurs()
        if trial.stays is not None:  # the task went on, as if it had not retried
            return self._stayed(trial)
        trial.content = content_of(facts.arguments, value=value)
        if trial.caught is not None:  # an answer of the task's own, to a request that failed
            self._heard(trial, trial.caught, Outcome.ANSWERED, self.answers.value(value))
            return Answered(value)
        swallowed = self._swallowed(trial)
        if swallowed is not None:
            self._heard(trial, swallowed, Outcome.ANSWERED, self.answers.value(value))
            return Answered(value)
        verdict: Verdict = "plain" if trial.seen.response is None else "good"
        if trial.seen.usage is None:  # an SDK's answer, given back by the function
            trial.seen.usage = usage_of(value)
        self.tally.add(facts.lane, facts.task, trial.started, begun.now_s)
        answer, kind = self.answers.value(value), SHORT if _is_short(facts.plan, trial.seen, value) else None
        self._settle(trial, None, Outcome.ANSWERED, answer, verdict, kind=kind)
        return Answered(value)

    def _raised(self, trial: _Trial, error: BaseException) -> Result:
        """What follows from what an attempt has raised; words of the framework go on to it."""
        if trial.stays is not None:
            return self._stayed(trial)
        if isinstance(error, self.pass_through):
            self._passed(trial, error)
            raise error
        return self._failed(trial, error)

    def _hangs(self, trial: _Trial) -> None:
        """The lane hears that a call has no answer yet, as of a time-out; the attempt goes on, and ends by itself."""
        facts = trial.facts
        failure = Failure(category=Category.TIMEOUT, cause="no answer yet")
        older = observe.older(trial.begun.ticket, self.lanes.health(facts.lane, facts.task))
        self.lanes.settle(facts.tag, facts.lane, b"", self._lesson(trial, self._at(trial), "sick", failure, older))

    def _passed(self, trial: _Trial, word: BaseException) -> None:
        trial.content = content_of(trial.facts.arguments, error=word)
        outcome = self.means(word)
        cause = None if outcome is Outcome.RETRIED else type(word).__name__
        judged = trial.caught or self._judged_first(trial, self.behind(word))
        if outcome is not Outcome.SNOOZED:
            if judged is None:
                self._settle(trial, None, outcome, self.answers.passed(), "other", cause=cause, kind="passed")
            else:
                self._heard(trial, judged, outcome, self.answers.passed(), cause=cause, kind="passed")
            return
        failure, at = judged.failure if judged else None, self._at(trial)
        verdict = self._verdict(trial, failure) if failure else "other"
        older = judged.older if judged else 0
        self.lanes.back(
            trial.facts.tag,
            trial.facts.lane,
            self._lesson(trial, at, verdict, failure, older),
            after_s=0.0,
            tries=0,
            outbox=self.encode_outcome(self._row(trial, at, failure, outcome, cause)),
        )

    def _judge(self, trial: _Trial, error: BaseException) -> _Judged | None:
        """What an error means to the lane; None: it is not one that we know."""
        failure = self.classify(error)
        if failure is None:
            return None
        facts, begun = trial.facts, trial.begun
        health, counts = Health(), self.policy.retries(failure.category)
        refused = failure.category is Category.RATE_LIMITED
        if counts or failure.sick or refused or failure.category is Category.QUOTA_EXHAUSTED:
            health = self.lanes.health(facts.lane, facts.task)
        beside = OTHERS_FARE_WELL
        if failure.sick:
            sent_s = observe.sent_s(begun.ticket)
            beside = compared(self._at(trial), sent_s, begun.failing, health.lately, guarded=health.escalates)
        trial.suspect = begun.failing is not None and beside.alone_s is None
        step = next_step(
            failure,
            begun.tries + 1,
            self.policy,
            self.jitter,
            now_s=self._at(trial),
            deadline_s=begun.deadline_s,
            beside=beside,
            record=health.record if health.mode is Mode.NORMAL else NO_RECORD,
        )
        return _Judged(
            error,
            failure,
            step,
            costs=counts,
            free=isinstance(step, Snooze) or (isinstance(step, Halt) and health.escalates),
            escalates=health.escalates,
            older=observe.older(begun.ticket, health) if failure.sick or refused else 0,
        )

    def _judged_first(self, trial: _Trial, errors: Sequence[BaseException | None]) -> _Judged | None:
        """The first of some errors behind a retry that is a provider's failure; a mistake of the task's own is none."""
        for error in errors:
            judged = self._judge(trial, error) if error is not None else None
            if judged is not None and judged.failure.category is not Category.PROGRAMMING:
                return judged
        return None

    def _swallowed(self, trial: _Trial) -> _Judged | None:
        """The provider's last word was a failure, which the function has kept to itself (HTTP clients do not raise)."""
        response = trial.seen.response
        if not trial.seen.watched or response is None or response.status < 400:
            return None
        return self._judge(trial, Swallowed(response))

    def _own_retry(self, trial: _Trial, errors: Sequence[BaseException | None], wish: Wish) -> Stays | Goes | None:
        judged = self._judged_first(trial, errors)
        if judged is None:
            return None
        trial.caught = judged
        verdict = whose(judged.failure, judged.step, judged.free, wish)
        trial.stays = verdict.after_s if isinstance(verdict, Stays) else None
        return verdict

    def _stayed(self, trial: _Trial) -> Result:
        """The lane sends the call again, and none of the task's retries is used."""
        judged = trial.caught
        assert judged is not None
        assert trial.stays is not None
        trial.content = content_of(trial.facts.arguments, error=judged.error)
        return self._again(trial, judged.failure, trial.stays, 0, judged.older)

    def _heard(
        self,
        trial: _Trial,
        judged: _Judged,
        outcome: Outcome,
        answer: bytes,
        *,
        cause: str | None = None,
        kind: AnswerKind | None = None,
    ) -> None:
        """The lane hears of a failure that the task itself has dealt with."""
        self._settle(
            trial,
            judged.failure,
            outcome,
            answer,
            self._verdict(trial, judged.failure),
            cause=cause,
            older=judged.older,
            kind=kind,
            tried=judged.costs and not judged.free,
        )

    def _failed(self, trial: _Trial, error: BaseException) -> Result:
        facts, begun = trial.facts, trial.begun
        trial.content = content_of(facts.arguments, error=error)
        if trial.caught is not None:  # the task's own rule has given up: so do we
            known = self.classify(error)
            own = call_failed(known, begun.tries + 1) if known is not None else None
            self._heard(trial, trial.caught, Outcome.FAILED, self.answers.error(own) if own is not None else b"")
            return GaveUp(error if own is None else own)
        judged = self._judge(trial, error)
        if judged is None:  # not one that we know: Celery's own rules hold
            self._settle(trial, None, Outcome.FAILED, b"", "other", cause=type(error).__name__)
            return GaveUp(error)
        failure, step, older = judged.failure, judged.step, judged.older
        tries = begun.tries + 1
        match step:
            case Retry(after_s):
                return self._again(trial, failure, after_s, 1, older, tried=True)
            case Snooze(after_s):
                # The lane's gate keeps a refused call waiting; at its own place it is the first to go after it. What
                # met a sick provider waits by a backoff of its own, and then behind those that were not tried.
                wait_s = 0.0 if observe.verdict_of(failure) == "refused" else after_s
                return self._again(trial, failure, wait_s, 0, older)
            case Halt() if judged.escalates:
                return self._again(trial, failure, 0.0, 0)  # parked: its lane is halted
            case GiveUp() | Halt():
                final = call_failed(failure, tries)
                self._settle(
                    trial,
                    failure,
                    Outcome.FAILED,
                    self.answers.error(final),
                    self._verdict(trial, failure),
                    older=older,
                    tried=judged.costs and step == GiveUp(failure, Why.TRIES),
                )
                return GaveUp(final)

    def _verdict(self, trial: _Trial, failure: Failure) -> Verdict:
        """A call that had less time than its provider needs says nothing of the provider."""
        if failure.category is Category.TIMEOUT and trial.timeouts.by_deadline:
            return "other"
        return observe.verdict_of(failure)

    def _witness(self, trial: _Trial, verdict: Verdict) -> Witness | None:
        if verdict not in {"good", "plain", "sick", "refused"}:
            return None
        facts, sick = trial.facts, verdict == "sick"
        return Witness(
            call=digest(facts.call_id),
            task=digest(facts.task),
            process=digest(facts.worker),
            again=trial.begun.failing is not None,
            suspect=sick and trial.suspect,
            task_sent=self.tally.last_sent_s(facts.lane, facts.task) if sick else 0.0,
            process_sent=self.tally.last_sent_s(facts.lane) if sick else 0.0,
        )

    def _at(self, trial: _Trial) -> float:
        """Now, on Redis' clock: seconds since the epoch."""
        return trial.begun.now_s + self.clock() - trial.started

    def _lesson(
        self,
        trial: _Trial,
        at: float,
        verdict: Verdict,
        failure: Failure | None,
        older: int = 0,
        usage: Usage | None = None,
        tried: bool = False,
    ) -> Lesson:
        facts = trial.facts
        requests, tokens, input_tokens, output_tokens = facts.cost
        return Lesson(
            verdict=verdict,
            at_s=at,
            ticket=trial.begun.ticket,
            failure=failure,
            reading=observe.read(trial.seen.response, verdict, at),
            cost=(requests, tokens, input_tokens, output_tokens),
            older=older,
            witness=self._witness(trial, verdict),
            usage=usage,
            reconcile=self.reconcile(facts.lane) if usage is not None else None,
            failed_task=facts.task if tried else "",
            answered=self.tally.take(facts.lane, trial.started) if tried else {},
        )

    def _again(
        self, trial: _Trial, failure: Failure, after_s: float, tries: int, older: int = 0, tried: bool = False
    ) -> Result:
        facts, begun = trial.facts, trial.begun
        verdict, at = self._verdict(trial, failure), self._at(trial)
        outcome = Outcome.RETRIED if tries else Outcome.SNOOZED
        ours = self.lanes.back(
            facts.tag,
            facts.lane,
            self._lesson(trial, at, verdict, failure, older, tried=tried),
            after_s=after_s,
            tries=tries,
            outbox=self.encode_outcome(self._row(trial, at, failure, outcome, failure.cause)),
        )
        return Again(after_s, call_failed(failure, begun.tries + tries)) if ours else NotOurs()

    def _settle(
        self,
        trial: _Trial,
        failure: Failure | None,
        outcome: Outcome,
        answer: bytes,
        verdict: Verdict,
        *,
        cause: str | None = None,
        older: int = 0,
        kind: AnswerKind | None = None,
        tried: bool = False,
    ) -> None:
        facts, at = trial.facts, self._at(trial)
        row = self._row(trial, at, failure, Outcome.RETRIED if trial.resent else outcome, cause)
        self.lanes.settle(
            facts.tag,
            facts.lane,
            answer,
            self._lesson(
                trial,
                at,
                verdict,
                failure,
                older,
                trial.seen.usage if outcome is Outcome.ANSWERED else None,
                tried,
            ),
            kind=kind or KINDS.get(outcome, "error"),
            outbox=self.encode_outcome(row),
        )

    def _row(self, trial: _Trial, at: float, failure: Failure | None, outcome: Outcome, cause: str | None) -> Attempt:
        facts, begun, seen = trial.facts, trial.begun, trial.seen
        plan, usage, response = facts.plan, seen.usage, seen.response
        level = logging.DEBUG if outcome is Outcome.ANSWERED else logging.INFO  # the framework says that it succeeded
        if log.isEnabledFor(level):
            fields = {
                "call_id": facts.call_id,
                "lane": facts.lane,
                "number": begun.number,
                "outcome": outcome.value,
                "cause": cause or (failure.cause if failure else ""),
                "latency_s": round(at - begun.now_s, 3),
            }
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            log.log(level, "attempt.finished %s", text, extra=fields)
        return Attempt(
            call_id=facts.call_id,
            number=begun.number,
            lane=facts.lane,
            task=facts.task,
            outcome=outcome,
            started_at=begun.now_s,
            finished_at=at,
            waited_s=max(0.0, begun.now_s - begun.waiting_since_s),
            queue=facts.queue,
            context=plan.context,
            tags=plan.tags,
            tenant=plan.tenant,
            priority=plan.priority,
            provider=seen.provider,
            model=seen.model,
            category=failure.category if failure else None,
            status=failure.status if failure and failure.status else response.status if response else None,
            request_id=response.request_id if response else failure.request_id if failure else None,
            retry_after_s=failure.retry_after_s if failure else None,
            input_tokens=usage.input_tokens if usage else None,
            output_tokens=usage.output_tokens if usage else None,
            cause=cause or (failure.cause if failure else None),
            worker=facts.worker,
            content=trial.content,
            asked_model=plan.model,
            estimated_tokens=plan.estimated.input_tokens if plan.estimated is not None else 0,
            anew=plan.continuation is not None and plan.continuation.ended,
        )


def _is_short(plan: Plan, seen: Sighting, value: Any) -> bool:
    """Whether an answer that would be kept should not be: it was truncated, refused or filtered."""
    if plan.sharing is None or plan.sharing.keeps_incomplete:
        return False
    return cut_short(value) or (seen.response is not None and cut_short(seen.response.body))


#: The attempt that runs in this thread (or greenlet), with the executor that makes it.
_running: ContextVar[tuple[Executor, _Trial] | None] = ContextVar("ratelimit_worker_attempt", default=None)


#: All that run in this process, by tag.
_out: dict[str, tuple[Executor, _Trial]] = {}


@contextmanager
def _running_now(executor: Executor, trial: _Trial) -> Iterator[None]:
    token = _running.set((executor, trial))
    _out[trial.facts.tag] = (executor, trial)
    try:
        yield
    finally:
        _running.reset(token)
        _out.pop(trial.facts.tag, None)


def hangs(tag: str) -> None:
    """An attempt of this process has had no answer for much longer than answers take: its lane hears of it."""
    found = _out.get(tag)
    if found is not None:
        found[0]._hangs(found[1])


def own_retry(call_id: str, errors: Sequence[BaseException | None], wish: Wish) -> Stays | Goes | None:
    """A task retries by itself, in the middle of an attempt: whose is the retry? Its lane hears of what failed.

    Args:
        errors: For which it may retry, the likeliest first.
    Returns:
        None: none of them is a provider's failure that we know, or no attempt at this call is running here.
    """
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id:
        return None
    return now[0]._own_retry(now[1], errors, wish)


def resent(call_id: str) -> None:
    """A task has sent its call again and goes on (`throw=False`): what comes of this attempt is not the call's end."""
    now = _running.get()
    if now is not None and now[1].facts.call_id == call_id:
        now[1].resent = True


def tries_used(call_id: str) -> int:
    """Tries that a call has used when its task sends it again for a provider's failure; 0 for any other reason."""
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id or now[1].caught is None:
        return 0
    return now[1].begun.tries + (0 if now[1].caught.free else 1)
