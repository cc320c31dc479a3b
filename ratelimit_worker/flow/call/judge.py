"""What does a failure mean for its lane? Whether it costs a try, what follows, and whose fault it is.

Pure, and in two steps: `needs_health` says whether the judgement depends on the lane's health, which costs an exchange
with Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.calls import Category, FailedAnswer, Failure, Mode, Outcome, Usage
from ratelimit_worker.contracts.price import Money
from ratelimit_worker.flow.call import observe
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.fault import LOST_PASSES, OTHERS_FARE_WELL, compared
from ratelimit_worker.policy.price import told_by
from ratelimit_worker.policy.retry import NO_TRACK_RECORD, Halt, Jitter, RetryPolicy, Snooze, Step, aside_s, next_step
from ratelimit_worker.ports import Begun, Health


class Rules(Struct, frozen=True, kw_only=True):
    """How a process judges attempts.

    Args:
        answers: Encodes answers for followers.
        classify: The provider's failure behind an exception; None: it is not a provider's.
        reconcile: By lane, whether its provider gives back tokens that were reserved and not used; None: unknown.
        price: What a request cost, by its usage, provider, model and time; None: unknown.
        usual_nanousd: What an answer of this task and model usually costs; None: unknown.
        pass_through: Control exceptions of the framework, which are not failures (Celery's Retry, Ignore, Reject).
        means: What such an exception means for the call: RETRIED (it was sent again), SNOOZED (it goes back to its
            place), or FAILED (it will not run again).
        behind: The errors for which such an exception may have been raised, the most likely first.
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
    """What a failure means for the lane.

    Args:
        costs: Whether its category costs a try.
        free: Whether, at present, what follows costs no try.
        escalates: Whether the law may change the lane's mode.
        older: From `observe.older`.
        aside_s: How long a refused call lets others go first; 0: it goes back to its own place.
        discounted: It does not count against the provider: the call failed again while others were answered, or in a
            process that has lost its way to the provider. Or the quota is used up, and others are answered.
    """

    error: BaseException
    failure: Failure
    step: Step
    costs: bool
    free: bool
    escalates: bool
    older: int
    discounted: bool
    aside_s: float = 0.0


class Swallowed(FailedAnswer):
    """A provider's failure for which no exception was raised."""


def first_failed(errors: Sequence[BaseException | None], rules: Rules) -> Failed | None:
    """The first of the errors behind a retry that is a provider's failure, and not the task's own mistake."""
    for error in errors:
        failure = rules.classify(error) if error is not None else None
        if error is not None and failure is not None and failure.category is not Category.PROGRAMMING:
            return Failed(error, failure)
    return None


def needs_health(failed: Failed | None, policy: RetryPolicy) -> bool:
    """Whether the judgement of a failure depends on the lane's health."""
    if failed is None:
        return False
    failure = failed.failure
    asked = failure.category in {Category.RATE_LIMITED, Category.QUOTA_EXHAUSTED}
    return asked or failure.sick or policy.retries(failure.category)


def judge(failed: Failed, begun: Begun, at_s: float, health: Health, rules: Rules, lost: bool = False) -> Judged:
    """Judge a failure.

    Args:
        at_s: When it came, seconds, Redis clock.
        health: The lane's; not looked at if `needs_health` is False.
        lost: This process has lost its way to the provider (`fault.is_lost`), and another may run the call.
    """
    failure = failed.failure
    beside = OTHERS_FARE_WELL
    unpaid = failure.category is Category.QUOTA_EXHAUSTED and health.escalates
    if failure.sick or unpaid:
        sent_s = observe.sent_s(begun.ticket)
        beside = compared(at_s, sent_s, begun.failing, health.lately, guarded=health.escalates)
    own_quota = unpaid and beside.alone_s is None
    passes = begun.failing is None or begun.failing.row < LOST_PASSES
    beside = replace(beside, lost=lost and passes, own_quota=own_quota)
    step = next_step(
        failure,
        begun.tries + 1,
        rules.policy,
        rules.jitter,
        now_s=at_s,
        deadline_s=begun.deadline_s,
        beside=beside,
        track_record=health.track_record if health.mode is Mode.NORMAL else NO_TRACK_RECORD,
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
        discounted=lost or own_quota or (begun.failing is not None and beside.alone_s is None),
        aside_s=aside_s(failure.retry_after_s, begun.number, at_s - health.lately.good_at, rules.jitter)
        if failure.category is Category.RATE_LIMITED
        else 0.0,
    )
