"""What does a failure mean to its lane? Whether it costs a try, what would follow, and who is to blame.

Pure, and in two steps, since how the lane is costs an exchange with Redis: `needs_health` says whether the judgement of
a failure depends on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from ratelimit_worker.calls import Category, FailedAnswer, Failure, Mode, Outcome, Usage
from ratelimit_worker.contracts.price import Money
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.fault import OTHERS_FARE_WELL, compared
from ratelimit_worker.policy.price import told_by
from ratelimit_worker.policy.retry import NO_RECORD, Halt, Jitter, RetryPolicy, Snooze, Step, next_step
from ratelimit_worker.ports import Begun, Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How a process judges attempts.

    Args:
        answers: Answers to bytes, for those that wait for the same.
        classify: An exception's failure; None: it is none of a provider.
        reconcile: By lane, whether its provider gives back tokens that were reserved and not used; None: not told.
        price: What a request cost, by its usage, provider, model and time; None: no price is known.
        usual_nanousd: What an answer of this task and model usually costs; None: nobody knows.
        pass_through: Exceptions that are not failures but words of the framework (Celery's Retry, Ignore, Reject).
        means: What such a word makes of the call: RETRIED (it was sent again), SNOOZED (it goes back to its place), or
            FAILED (nobody runs it again).
        behind: The exceptions for which such a word may have been raised, the likeliest first.
    """

    answers: Answers
    jitter: Jitter
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    classify: Callable[[BaseException], Failure | None] = classify_exception
    reconcile: Callable[[str], bool | None] = lambda lane: None
    price: Callable[[Usage, str | None, str | None, float], Money | None] = lambda usage, *_: told_by(usage)
    usual_nanousd: Callable[[str, str | None], int | None] = lambda task, model: None
    pass_through: tuple[type[BaseException], ...] = ()
    means: Callable[[BaseException], Outcome] = lambda word: Outcome.RETRIED
    behind: Callable[[BaseException], Sequence[BaseException | None]] = lambda word: (word.__cause__,)


class Failed(Struct, frozen=True):
    """A failure, and what was raised for it."""

    error: BaseException
    failure: Failure


class Judged(Struct, frozen=True):
    """What a failure means to the lane.

    Args:
        costs: Whether its category costs a try.
        free: Whether what follows costs none, now.
        escalates: Whether the law may change the lane's mode.
        older: As `observe.older`.
        discounted: The call failed again, and others were answered since: it is no witness of how its provider is.
    """

    error: BaseException
    failure: Failure
    step: Step
    costs: bool
    free: bool
    escalates: bool
    older: int
    discounted: bool


class Swallowed(FailedAnswer):
    """A provider's failure for which nothing was raised."""


def first_failed(errors: Sequence[BaseException | None], rules: Rules) -> Failed | None:
    """The first of some errors behind a retry that is a provider's failure; a mistake of the task's own is none."""
    for error in errors:
        failure = rules.classify(error) if error is not None else None
        if error is not None and failure is not None and failure.category is not Category.PROGRAMMING:
            return Failed(error, failure)
    return None


def needs_health(failed: Failed | None, policy: RetryPolicy) -> bool:
    """Whether what a failure means depends on how its lane is."""
    if failed is None:
        return False
    failure = failed.failure
    asked = failure.category in {Category.RATE_LIMITED, Category.QUOTA_EXHAUSTED}
    return asked or failure.sick or policy.retries(failure.category)


def judge(failed: Failed, begun: Begun, at_s: float, health: Health, rules: Rules) -> Judged:
    """What a failure means to its lane.

    Args:
        at_s: When it came, seconds, Redis clock.
        health: Of the lane; what nobody knows, where `needs_health` is False.
    """
    failure = failed.failure
    beside = OTHERS_FARE_WELL
    if failure.sick:
        sent_s = observe.sent_s(begun.ticket)
        beside = compared(at_s, sent_s, begun.failing, health.lately, guarded=health.escalates)
    step = next_step(
        failure,
        begun.tries + 1,
        rules.policy,
        rules.jitter,
        now_s=at_s,
        deadline_s=begun.deadline_s,
        beside=beside,
        record=health.record if health.mode is Mode.NORMAL else NO_RECORD,
    )
    told = failure.sick or failure.category is Category.RATE_LIMITED
    return Judged(
        failed.error,
        failure,
        step,
        costs=rules.policy.retries(failure.category),
        free=isinstance(step, Snooze) or (isinstance(step, Halt) and health.escalates),
        escalates=health.escalates,
        older=observe.older(begun.ticket, health) if told else 0,
        discounted=begun.failing is not None and beside.alone_s is None,
    )
