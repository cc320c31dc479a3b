"""What happens when a worker takes a released call? One attempt, and what follows from it.

Pure orchestration: the lane, the clock and the jitter are passed in; the worker translates the result into Celery's
words.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ratelimit_worker.calls import (
    Arguments,
    Attempt,
    Category,
    Content,
    Cost,
    Failure,
    Mode,
    Outcome,
    Priority,
    Sighting,
    sighting,
)
from ratelimit_worker.errors import (
    CallFailedLater,
    DeadlineExceeded,
    PayloadLost,
    RateLimitWorkerError,
    WorkerLostRepeatedly,
    call_failed,
    deadline_exceeded,
)
from ratelimit_worker.flow import observe
from ratelimit_worker.flow.content import content_of
from ratelimit_worker.flow.settle import Answers
from ratelimit_worker.flow.tally import Tally, tried
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.estimate import usage_of
from ratelimit_worker.policy.modes import provider_away
from ratelimit_worker.policy.retry import NO_RECORD, GiveUp, Halt, Retry, RetryPolicy, Snooze, Why, next_step
from ratelimit_worker.ports import AttemptLanes, Begun, Health

log = logging.getLogger("ratelimit_worker.attempt")


#: What an attempt's answer is to those that wait for the same; all else is an error.
KINDS = {Outcome.ANSWERED: "value", Outcome.RETRIED: "passed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a call before its payload is read.

    Args:
        arguments: Asked once the attempt was made, for what is captured of it; None: nothing is.
    """

    call_id: str
    tag: str
    task: str
    plan: Mapping[str, Any]
    queue: str = ""
    worker: str = ""
    alone: bool = False  #: nothing else runs in this process
    arguments: Arguments | None = None

    @property
    def lane(self) -> str:
        """The lane that the call was released from."""
        return str(self.plan["lane"])

    @property
    def cost(self) -> Sequence[float]:
        """What the call took from the lane's budget, by dimension."""
        return tuple(self.plan.get("cost") or Cost().vector())


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
class NotOurs:
    """Another delivery of this call runs, or what it had to do is done; this one does nothing."""


@dataclass(frozen=True, slots=True)
class MustBeAlone:
    """The call may kill its worker: it is to be executed when nothing else runs in this process (`Facts.alone`)."""


@dataclass(slots=True)
class _Trial:
    """One attempt on its way: at what, since when (the executor's clock, seconds), and what was seen of it."""

    facts: Facts
    begun: Begun
    started: float
    seen: Sighting = field(default_factory=Sighting)
    content: Content | None = None


Result = Answered | Again | GaveUp | NotOurs | MustBeAlone


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """The attempt, with all that it needs from the outside.

    Args:
        encode_outcome: An attempt as the outbox holds it.
        reconcile: By lane, whether its provider gives back tokens that were reserved and not used; None: not told.
        tally: Answers that the lanes' records of their functions do not know yet; one a process.
        pass_through: Exceptions that are not failures but words of the framework (Celery's Retry, Ignore, Reject).
        means: What such a word makes of the call: RETRIED (it was sent again), SNOOZED (it goes back to its place), or
            FAILED (nobody runs it again).
    """

    lanes: AttemptLanes
    answers: Answers
    encode_outcome: Callable[[Attempt], bytes]
    lease_s: float
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    tally: Tally = field(default_factory=Tally)
    pass_through: tuple[type[BaseException], ...] = ()
    means: Callable[[BaseException], Outcome] = lambda word: Outcome.RETRIED
    reconcile: Callable[[str], bool | None] = lambda lane: None
    jitter: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    classify: Callable[[BaseException], Failure | None] = classify_exception

    def execute(self, facts: Facts, run: Callable[[Begun], Any], restore: Callable[[bytes], None]) -> Result:
        """Make one attempt at a released call.

        Args:
            run: Makes the request; given what the lane said.
            restore: Puts the canvas of a payload back where the framework looks for it, when nothing is run.
        """
        begun = self.lanes.begin(facts.tag, self.lease_s, facts.alone)
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
                return GaveUp(PayloadLost(facts.call_id))
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
        self.lanes.settle(facts.tag, facts.lane, b"", outbox=self.encode_outcome(row), verdict="other", seen=b"")
        return GaveUp(deadline_exceeded(facts.call_id, facts.lane, begun.number, begun.failed))

    def _attempt(self, facts: Facts, begun: Begun, run: Callable[[Begun], Any]) -> Result:
        trial = _Trial(facts, begun, self.clock())
        with sighting() as trial.seen:
            try:
                value = run(begun)
            except self.pass_through as word:
                self._passed(trial, word)
                raise
            except Exception as error:
                return self._failed(trial, error)
        verdict: observe.Verdict = "plain" if trial.seen.response is None else "good"
        if trial.seen.usage is None:  # an SDK's answer, given back by the function
            trial.seen.usage = usage_of(value)
        trial.content = content_of(facts.arguments, value=value)
        self.tally.add(facts.lane, facts.task, trial.started)
        self._settle(trial, None, Outcome.ANSWERED, self.answers.value(value), verdict)
        return Answered(value)

    def _passed(self, trial: _Trial, word: BaseException) -> None:
        trial.content = content_of(trial.facts.arguments, error=word)
        outcome = self.means(word)
        cause = None if outcome is Outcome.RETRIED else type(word).__name__
        if outcome is not Outcome.SNOOZED:
            self._settle(trial, None, outcome, self.answers.passed(), "other", cause=cause, kind="passed")
            return
        row = self.encode_outcome(self._row(trial, self._at(trial), None, outcome, cause))
        tag, lane = trial.facts.tag, trial.facts.lane
        self.lanes.back(tag, lane, after_s=0.0, tries=0, outbox=row, verdict="other", seen=b"")

    def _failed(self, trial: _Trial, error: Exception) -> Result:
        facts, begun = trial.facts, trial.begun
        trial.content = content_of(facts.arguments, error=error)
        failure = self.classify(error)
        if failure is None:  # not one that we know: Celery's own rules hold
            self._settle(trial, None, Outcome.FAILED, b"", "other", cause=type(error).__name__)
            return GaveUp(error)
        tries = begun.tries + 1
        health, counts = Health(), self.policy.retries(failure.category)
        refused = failure.category is Category.RATE_LIMITED
        if counts or failure.sick or refused or failure.category is Category.QUOTA_EXHAUSTED:
            health = self.lanes.health(facts.lane, facts.task)
        away = failure.sick and provider_away(health.sick_row + 1, health.mode, health.escalates)
        older = observe.older(begun.ticket, health) if failure.sick or refused else 0
        step = next_step(
            failure,
            tries,
            self.policy,
            self.jitter,
            provider_away=away,
            now_s=self._at(trial),
            deadline_s=begun.deadline_s,
            record=health.record if health.mode is Mode.NORMAL else NO_RECORD,
        )
        match step:
            case Retry(after_s):
                return self._again(trial, failure, after_s, 1, older, self._tried(trial))
            case Snooze(after_s):
                # The lane's gate keeps a refused call waiting; at its own place it is the first to go after it.
                wait_s = 0.0 if observe.verdict_of(failure) == "refused" else after_s
                return self._again(trial, failure, wait_s, 0, older)
            case Halt() if health.escalates:
                return self._again(trial, failure, 0.0, 0)  # parked: its lane is halted
            case GiveUp() | Halt():
                final = call_failed(failure, tries)
                self._settle(
                    trial,
                    failure,
                    Outcome.FAILED,
                    self.answers.error(final),
                    observe.verdict_of(failure),
                    older=older,
                    tried=self._tried(trial) if counts and step == GiveUp(failure, Why.TRIES) else b"",
                )
                return GaveUp(final)

    def _at(self, trial: _Trial) -> float:
        """Now, on Redis' clock: seconds since the epoch."""
        return trial.begun.now_s + self.clock() - trial.started

    def _tried(self, trial: _Trial) -> bytes:
        return tried(trial.facts.task, self.tally.take(trial.facts.lane, trial.started))

    def _again(
        self, trial: _Trial, failure: Failure, after_s: float, tries: int, older: int = 0, tried: bytes = b""
    ) -> Result:
        facts, begun, response = trial.facts, trial.begun, trial.seen.response
        verdict, at = observe.verdict_of(failure), self._at(trial)
        outcome = Outcome.RETRIED if tries else Outcome.SNOOZED
        ours = self.lanes.back(
            facts.tag,
            facts.lane,
            after_s=after_s,
            tries=tries,
            outbox=self.encode_outcome(self._row(trial, at, failure, outcome, failure.cause)),
            verdict=observe.word(verdict, response),
            seen=observe.encode(at, begun.ticket, verdict, response, failure, facts.cost, older),
            gate_s=failure.retry_after_s or 0.0,
            tried=tried,
            failed=failure,
        )
        return Again(after_s, call_failed(failure, begun.tries + tries)) if ours else NotOurs()

    def _settle(
        self,
        trial: _Trial,
        failure: Failure | None,
        outcome: Outcome,
        answer: bytes,
        verdict: observe.Verdict,
        *,
        cause: str | None = None,
        older: int = 0,
        kind: str | None = None,
        tried: bytes = b"",
    ) -> None:
        facts, response, at = trial.facts, trial.seen.response, self._at(trial)
        self.lanes.settle(
            facts.tag,
            facts.lane,
            answer,
            outbox=self.encode_outcome(self._row(trial, at, failure, outcome, cause)),
            verdict=observe.word(verdict, response),
            seen=observe.encode(at, trial.begun.ticket, verdict, response, failure, facts.cost, older),
            gate_s=(failure.retry_after_s or 0.0) if failure is not None else 0.0,
            kind=kind or KINDS.get(outcome, "error"),
            used=self._used(facts, trial.seen) if outcome is Outcome.ANSWERED else b"",
            tried=tried,
        )

    def _used(self, facts: Facts, seen: Sighting) -> bytes:
        return observe.used(seen.response, seen.usage, self.reconcile(facts.lane))

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
            context=str(plan.get("context") or ""),
            tags=tuple(plan.get("tags") or ()),
            tenant=str(plan.get("tenant") or ""),
            priority=Priority(plan.get("class") or Priority.NORMAL),
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
            asked_model=size[0] if (size := plan.get("size")) else None,
            estimated_tokens=size[1] if size else 0,
        )
