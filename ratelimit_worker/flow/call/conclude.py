"""What follows from an attempt? One `Conclusion`, from values alone.

There is no I/O, clock or state here, and randomness is passed in. `flow.call.execute` (in a worker's thread) and
`flow.call.admit` (in a caller's thread or event loop) run the function, pass in a `Ran`, and act on the `Conclusion`.
The lane's health costs an exchange with Redis, so it is asked for between two steps, and only if a failure needs it:

    failed = failed_by(ran, rules)                the failure to be judged
    judge.needs_health(failed, rules.policy)      whether its judgement depends on the lane's health
    conclude(facts, begun, ran, failed, beside, rules)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct, structs

from ratelimit_worker.calls import (
    ENDS,
    Arguments,
    Attempt,
    Category,
    Content,
    Failure,
    Outcome,
    PriceSource,
    Response,
    Sighting,
    Timeouts,
    Usage,
)
from ratelimit_worker.contracts.kept import Keep
from ratelimit_worker.contracts.lesson import AnswerKind, Lesson, Settlement, Verdict, Witness
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.contracts.price import Money
from ratelimit_worker.errors import (
    DeadlineExceeded,
    RateLimitWorkerError,
    WorkerLostRepeatedly,
    call_failed,
    deadline_exceeded,
)
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.call.content import NOTHING, content_of
from ratelimit_worker.flow.call.judge import Failed, Judged, Rules, Swallowed, first_failed, judge
from ratelimit_worker.policy import worth
from ratelimit_worker.policy.classification import was_sent
from ratelimit_worker.policy.completion import cut_short
from ratelimit_worker.policy.fault import digest
from ratelimit_worker.policy.retry import (
    GiveUp,
    Halt,
    Retry,
    Snooze,
    Why,
)
from ratelimit_worker.policy.usage import finish_reason_of, usage_of
from ratelimit_worker.ports import Begun, Health, Settled

# ── what goes in ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Facts(Struct, frozen=True, kw_only=True):
    """What is known of a call before its payload is read.

    Args:
        arguments: Returns the call's arguments after the attempt, to be captured; None: nothing is captured.
        settles_later: Takes over the settlement of an answer, to send it together with the result, and calls `Settled`
            then → False: it does not.
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
    settles_later: Callable[[Settlement, Settled], bool] = lambda settlement, settled: False

    @property
    def lane(self) -> str:
        """The lane from which the call was released."""
        return self.plan.lane


class Ran(Struct, frozen=True, kw_only=True):
    """The result of running the function once.

    Args:
        started_s, ended_s: On a clock that does not go back.
        caught: The provider's failure for which the task retries by itself.
        stays_s: Seconds after which the lane sends the call again in place of the task's retry; None: it does not.
        resent: The task has sent the call again and went on, so this attempt is not the call's end.
    """

    started_s: float = 0.0
    ended_s: float = 0.0
    seen: Sighting = msgspec.field(default_factory=Sighting)  #: what was seen of the provider
    value: Any = None
    error: BaseException | None = None
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)  #: bounds on the attempt's duration
    caught: Judged | None = None
    stays_s: float | None = None
    resent: bool = False


NOT_ASKED = Health()


class Beside(Struct, frozen=True, kw_only=True):
    """What lane and process know in addition to the attempt. Times are seconds, Redis clock."""

    health: Health = NOT_ASKED  #: asked for only if `needs_health` says so
    task_sent_s: float = 0.0  #: when the last answered request of this task left this process; 0: none yet
    process_sent_s: float = 0.0  #: the same, of any task
    lost: bool = False  #: this process has lost its way to the provider, and another may run the call


NOTHING_BESIDE = Beside()  #: for an attempt that did not fail


# ── what comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


class Answered(Struct, frozen=True):
    """The call has its answer."""

    value: Any


class Again(Struct, frozen=True):
    """The call is back in its lane, due in `after_s` seconds (0: at its own place)."""

    after_s: float
    error: RateLimitWorkerError


class GaveUp(Struct, frozen=True):
    """The call has failed for good."""

    error: BaseException


class PassedOn(Struct, frozen=True):
    """The function has raised a control exception of the framework, which must get it."""

    word: BaseException


class Settle(Struct, frozen=True):
    """The call ends, or goes on in another way than through its lane."""

    answer: bytes  #: for its followers, and for a second delivery; empty: there is none
    kind: AnswerKind


class Back(Struct, frozen=True):
    """The call goes back to its lane, due in `after_s` seconds (0: to its own place)."""

    after_s: float
    tries: int  #: tries that the attempt costs


class Conclusion(Struct, frozen=True, kw_only=True):
    """All that follows from an attempt.

    Args:
        started_s: As in `Ran`.
        result: What the caller gets; for a call that goes back, provided that it still belonged to this worker.
    """

    end: Settle | Back
    lesson: Lesson
    row: Attempt
    result: Answered | Again | GaveUp | PassedOn
    started_s: float = 0.0
    keep: Keep | None = None  #: how its answer is kept for other calls; None: it is not kept

    @property
    def counts_as_answer(self) -> bool:
        """Whether the provider has answered, as far as is known."""
        return self.lesson.verdict in {"good", "plain"}


# ── the steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def failed_by(ran: Ran, rules: Rules) -> Failed | None:
    """The failure that decides what follows, if it was not judged before; None: none is known.

    It is an exception that the function raised, the failure behind a control exception of the framework, or the
    provider's last answer, if the function did not raise for it (HTTP clients do not).
    """
    if ran.stays_s is not None:
        return None
    error, response = ran.error, ran.seen.response
    if error is None:
        if ran.caught is not None or not ran.seen.watched or response is None or response.status < 400:
            return None
        error = Swallowed(response)
    elif isinstance(error, rules.pass_through):
        return None if ran.caught is not None else first_failed(rules.behind(error), rules)
    failure = rules.classify(error)
    return Failed(error, failure) if failure is not None else None


def conclude(facts: Facts, begun: Begun, ran: Ran, failed: Failed | None, beside: Beside, rules: Rules) -> Conclusion:
    """What follows from an attempt.

    Args:
        failed: From `failed_by`.
        beside: With the lane's health if `needs_health` says so and the failure was not judged before.
    """
    case = _Case(facts, begun, ran, beside, rules)
    if ran.caught is not None:
        return _dealt_with(case, ran.caught, failed)
    judged = judge(failed, begun, case.at_s, beside.health, rules, beside.lost) if failed is not None else None
    if ran.error is None:
        return _answered(case, judged)
    if isinstance(ran.error, rules.pass_through):
        return _passed_on(case, ran.error, judged)
    if judged is None:  # unknown: the framework's own rules hold
        return cut_off(facts, begun, ran, rules)
    return _failed(case, judged)


def cut_off(facts: Facts, begun: Begun, ran: Ran, rules: Rules) -> Conclusion:
    """The attempt ended by an exception that says nothing about the provider, and that its followers do not get."""
    error = ran.error
    assert error is not None
    case = _Case(facts, begun, ran, NOTHING_BESIDE, rules)
    return case.conclusion(Settle(b"", "error"), Outcome.FAILED, GaveUp(error), cause=type(error).__name__)


def poisoned(facts: Facts, begun: Begun, rules: Rules) -> Conclusion:
    """Too many of its workers died. Its followers are the same call, and get the same error: else each of them would
    kill workers in turn."""
    error = WorkerLostRepeatedly(facts.call_id, begun.tries)
    end = Settle(rules.answers.error(error, facts.plan.trace), "error")
    case = _Case(facts, begun, Ran(value=NOTHING), NOTHING_BESIDE, rules)
    return case.conclusion(end, Outcome.FAILED, GaveUp(error), cause=type(error).__name__)


def expired(facts: Facts, begun: Begun, rules: Rules) -> Conclusion:
    """Its deadline passed while it waited. It gets one more row although nothing was sent. Its followers have their own
    deadlines."""
    error = deadline_exceeded(facts.call_id, facts.lane, begun.number, begun.failed)
    case = _Case(facts, structs.replace(begun, number=begun.number + 1), Ran(value=NOTHING), NOTHING_BESIDE, rules)
    return case.conclusion(Settle(b"", "error"), Outcome.FAILED, GaveUp(error), cause=DeadlineExceeded.__name__)


def still_out(facts: Facts, begun: Begun, ran: Ran, beside: Beside, rules: Rules) -> Lesson:
    """The lesson of a call that has no answer yet, as if it had timed out; its attempt goes on.

    Args:
        ran: The attempt so far.
    """
    failure = Failure(category=Category.TIMEOUT, cause="no answer yet")
    older = observe.older(begun.ticket, beside.health)
    discounted = ran.caught is not None and ran.caught.discounted
    return _Case(facts, begun, ran, beside, rules).lesson("sick", failure, older=older, discounted=discounted)


# ── each way in which an attempt ends ────────────────────────────────────────────────────────────────────────────────


def _answered(case: _Case, judged: Judged | None) -> Conclusion:
    value = case.ran.value
    answer, result = case.rules.answers.value(value, case.facts.plan.trace), Answered(value)
    if judged is not None:  # the function returned something although its request failed
        tried = judged.costs and not judged.free
        return case.conclusion(Settle(answer, "value"), Outcome.ANSWERED, result, judged, tried=tried)
    seen = case.ran.seen
    if seen.usage is None and (usage := usage_of(value)) is not None:  # the function returned the SDK's answer
        seen = replace(seen, usage=usage, finish_reason=seen.finish_reason or finish_reason_of(value))
        case = structs.replace(case, ran=structs.replace(case.ran, seen=seen))
    verdict: Verdict = "plain" if seen.response is None else "good"
    end = Settle(answer, "short" if _is_short(case.facts.plan, seen.response, value) else "value")
    return case.conclusion(end, Outcome.ANSWERED, result, verdict=verdict)


def _dealt_with(case: _Case, caught: Judged, failed: Failed | None) -> Conclusion:
    """The task retries by itself for a failure, which was judged at that moment."""
    ran, tried = case.ran, caught.costs and not caught.free
    if ran.stays_s is not None:  # the lane sends the call again, and none of the task's retries is used
        return _again(case, caught, Back(ran.stays_s, 0))
    if ran.error is None:
        return _answered(case, caught)
    if isinstance(ran.error, case.rules.pass_through):
        return _passed_on(case, ran.error, caught)
    # The task's own rule has given up, so the call has failed.
    own = call_failed(failed.failure, case.begun.tries + 1) if failed is not None else None
    end = Settle(case.rules.answers.error(own, case.facts.plan.trace) if own is not None else b"", "error")
    return case.conclusion(end, Outcome.FAILED, GaveUp(ran.error if own is None else own), caught, tried=tried)


def _passed_on(case: _Case, word: BaseException, judged: Judged | None) -> Conclusion:
    outcome, result = case.rules.means(word), PassedOn(word)
    cause = None if outcome is Outcome.RETRIED else type(word).__name__
    if outcome is Outcome.SNOOZED:
        return case.conclusion(Back(0.0, 0), outcome, result, judged, cause=cause)
    tried = judged is not None and judged.costs and not judged.free
    end = Settle(case.rules.answers.passed(), "passed")
    return case.conclusion(end, outcome, result, judged, cause=cause, tried=tried)


def _failed(case: _Case, judged: Judged) -> Conclusion:
    failure, step = judged.failure, judged.step
    match step:
        case Retry(after_s):
            return _again(case, judged, Back(after_s, 1))
        case Snooze(after_s):
            # A refused call waits for the lane's gate, and in its own place is the first to go then, unless it is
            # refused each time. After a sick answer it waits by its own backoff, and then behind calls not yet tried.
            refused = observe.verdict_of(failure) == "refused"
            return _again(case, judged, Back(judged.aside_s if refused else after_s, 0))
        case Halt() if judged.escalates:
            return _again(case, judged, Back(0.0, 0))  # it waits, since its lane is halted
        case GiveUp() | Halt():
            final = call_failed(failure, case.begun.tries + 1)
            end = Settle(case.rules.answers.error(final, case.facts.plan.trace), "error")
            tried = judged.costs and step == GiveUp(failure, Why.TRIES)
            return case.conclusion(end, Outcome.FAILED, GaveUp(final), judged, tried=tried)


def _again(case: _Case, judged: Judged, end: Back) -> Conclusion:
    result = Again(end.after_s, call_failed(judged.failure, case.begun.tries + end.tries))
    outcome = Outcome.RETRIED if end.tries else Outcome.SNOOZED
    return case.conclusion(end, outcome, result, judged, tried=end.tries > 0)


def _is_short(plan: Plan, response: Response | None, value: Any) -> bool:
    """Whether an answer that would be kept is incomplete (truncated, refused or filtered), so that it must not be."""
    if plan.sharing is None or plan.sharing.keeps_incomplete:
        return False
    return cut_short(value) or (response is not None and cut_short(response.body))


class _Case(Struct, frozen=True):
    """One attempt, with all that is known about it."""

    facts: Facts
    begun: Begun
    ran: Ran
    beside: Beside
    rules: Rules

    @property
    def at_s(self) -> float:
        """When it ended, seconds, Redis clock."""
        return self.begun.now_s + self.ran.ended_s - self.ran.started_s

    def conclusion(
        self,
        end: Settle | Back,
        outcome: Outcome,
        result: Answered | Again | GaveUp | PassedOn,
        judged: Judged | None = None,
        *,
        verdict: Verdict = "other",
        cause: str | None = None,
        tried: bool = False,
    ) -> Conclusion:
        """The conclusion, with lesson and row.

        Args:
            judged: The failure; None: `verdict` is what the lane learns.
            cause: Replaces the failure's own.
            tried: The failure counts in the record of its function.
        """
        failure, older, discounted = None, 0, False
        if judged is not None:
            failure, older, discounted = judged.failure, judged.older, judged.discounted
            verdict = self._verdict_of(failure)
        usage = self.ran.seen.usage if outcome is Outcome.ANSWERED else None
        resent = self.ran.resent and isinstance(end, Settle)
        row = self._row(failure, Outcome.RETRIED if resent else outcome, cause)
        lesson = self.lesson(verdict, failure, older=older, discounted=discounted, usage=usage, tried=tried)
        if row.cost_nanousd:
            lesson = structs.replace(lesson, cost_nanousd=row.cost_nanousd)
        return Conclusion(
            end=end,
            lesson=lesson,
            row=row,
            result=result,
            started_s=self.ran.started_s,
            keep=self._keep(end, row.cost_nanousd),
        )

    def _keep(self, end: Settle | Back, paid_nanousd: int | None) -> Keep | None:
        """How the answer is kept for other calls; None: there is none.

        Args:
            paid_nanousd: What it cost; None: unknown.
        """
        plan, usage = self.facts.plan, self.ran.seen.usage
        if plan.sharing is None or not isinstance(end, Settle) or end.kind != "value":
            return None
        return Keep(
            again_nanousd=worth.again_nanousd(usage, plan.cost.tokens, paid_nanousd),
            paid_nanousd=paid_nanousd or 0,
            input_tokens=(usage.input_tokens or 0) if usage is not None else 0,
            output_tokens=(usage.output_tokens or 0) if usage is not None else 0,
            packs=plan.sharing.stale_ttl_s <= 0,
        )

    def lesson(
        self,
        verdict: Verdict,
        failure: Failure | None,
        *,
        older: int = 0,
        discounted: bool = False,
        usage: Usage | None = None,
        tried: bool = False,
    ) -> Lesson:
        """What the attempt teaches."""
        facts, at_s = self.facts, self.at_s
        return Lesson(
            verdict=verdict,
            at_s=at_s,
            ticket=self.begun.ticket,
            failure=failure,
            reading=observe.read(self.ran.seen.response, verdict, at_s),
            cost=facts.plan.cost.vector(),
            older=older,
            witness=self._witness(verdict, discounted),
            usage=usage,
            reconcile=self.rules.reconcile(facts.lane) if usage is not None else None,
            failed_task=facts.task if tried else "",
        )

    def _verdict_of(self, failure: Failure) -> Verdict:
        """A call that had less time than its provider usually needs says nothing about the provider."""
        if failure.category is Category.TIMEOUT and self.ran.timeouts.by_deadline:
            return "other"
        return observe.verdict_of(failure)

    def _witness(self, verdict: Verdict, discounted: bool) -> Witness | None:
        if verdict == "other":
            return None
        facts, beside, sick = self.facts, self.beside, verdict == "sick"
        return Witness(
            call=digest(facts.call_id),
            task=digest(facts.task),
            process=digest(facts.worker),
            again=self.begun.failing is not None,
            discounted=discounted and verdict in {"sick", "quota"},
            task_sent=beside.task_sent_s if sick else 0.0,
            process_sent=beside.process_sent_s if sick else 0.0,
        )

    def _content(self) -> Content | None:
        ran = self.ran
        error = ran.caught.error if ran.stays_s is not None and ran.caught is not None else ran.error
        if error is not None:
            return content_of(self.facts.arguments, error=error)
        return content_of(self.facts.arguments, value=ran.value)

    def _money(self, failure: Failure | None) -> Money | None:
        """What the attempt cost; for an answer that was lost on its way, what such answers usually cost."""
        seen, rules, model = self.ran.seen, self.rules, self.facts.plan.model
        if seen.usage is not None:
            return rules.price(seen.usage, seen.provider, seen.model or model, self.begun.now_s)
        if not self._lost_its_answer(failure):
            return None
        usual = rules.usual_nanousd(self.facts.task, model)
        return None if usual is None else Money(usual, PriceSource.ESTIMATED)

    def _lost_its_answer(self, failure: Failure | None) -> bool:
        """Whether the provider may charge although the answer did not arrive, or not completely."""
        response = self.ran.seen.response
        if failure is None or (response is not None and not 200 <= response.status < 300):
            return False
        return failure.category is Category.MALFORMED_RESPONSE or was_sent(self.ran.error, failure)

    def _row(self, failure: Failure | None, outcome: Outcome, cause: str | None) -> Attempt:
        facts, begun, seen, plan = self.facts, self.begun, self.ran.seen, self.facts.plan
        usage, response = seen.usage or Usage(), seen.response
        money = self._money(failure)
        return Attempt(
            call_id=facts.call_id,
            number=begun.number,
            lane=facts.lane,
            task=facts.task,
            outcome=outcome,
            started_at=begun.now_s,
            finished_at=self.at_s,
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
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_input_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            audio_input_tokens=usage.audio_input_tokens,
            audio_output_tokens=usage.audio_output_tokens,
            image_input_tokens=usage.image_input_tokens,
            image_output_tokens=usage.image_output_tokens,
            service_tier=usage.service_tier,
            first_byte_s=response.first_byte_s if response else None,
            finish_reason=seen.finish_reason,
            uncounted_input_tokens=usage.uncounted_input_tokens or 0,
            cost_nanousd=money.nanousd if money else None,
            cached_saving_nanousd=money.cached_saving_nanousd if money else None,
            price_source=money.source if money else None,
            unpriced=seen.usage if money is None else None,
            answer_lost=money is None and seen.usage is None and self._lost_its_answer(failure),
            lost_attempts=begun.lost if outcome in ENDS else 0,
            lost_nanousd=money.nanousd * begun.lost if money and begun.lost and outcome in ENDS else None,
            cause=cause or (failure.cause if failure else None),
            worker=facts.worker,
            content=self._content(),
            asked_model=plan.model,
            estimated_tokens=plan.estimated.input_tokens if plan.estimated is not None else 0,
            anew=plan.is_anew,
        )
