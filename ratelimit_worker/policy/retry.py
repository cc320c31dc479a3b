"""What follows a failed attempt: another one, a wait that costs nothing, or the end?

Design section 5, as a value. The caller acts on it: due times wait in the lane, never in a worker's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf, ldexp, sqrt
from types import MappingProxyType

from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.policy.fault import OTHERS_FARE_WELL, Compared, alone_bound_s, tries_allowed

#: Returns a float in [0, 1): `random.random` in production, a constant in tests.
Jitter = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How waits grow from attempt to attempt."""

    base_s: float  #: the widest first wait, seconds
    cap_s: float  #: no wait is longer, seconds

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"need 0 < base_s <= cap_s, got {self}")


@dataclass(frozen=True, slots=True)
class Rule:
    """How one category is retried."""

    backoff: Backoff
    tries: int  #: attempts in all that may cost a try, the first included

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"need tries >= 1, got {self}")


#: The table of the design. A category without a rule is not retried: 429 is snoozed, a used-up quota halts the lane,
#: and the rest is the caller's to mend.
RULES: Mapping[Category, Rule] = MappingProxyType(
    {
        Category.OVERLOADED: Rule(Backoff(2.0, 60.0), tries=8),
        Category.SERVER_ERROR: Rule(Backoff(1.0, 30.0), tries=6),
        Category.TIMEOUT: Rule(Backoff(2.0, 60.0), tries=4),
        Category.CONNECTION: Rule(Backoff(1.0, 30.0), tries=6),
        Category.MALFORMED_RESPONSE: Rule(Backoff(1.0, 30.0), tries=3),
        Category.CONFLICT: Rule(Backoff(1.0, 10.0), tries=3),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Which failures are retried, how often and how far apart.

    A rule for `RATE_LIMITED` makes refusals cost tries and wait by backoff: that is for lanes without adaptive pace
    (`by_backoff`).
    """

    rules: Mapping[Category, Rule] = field(default_factory=lambda: RULES)
    patient: bool = True  #: a provider that answers nobody is waited for, at no try

    def retries(self, category: Category) -> bool:
        """Whether a failure of this category may be followed by another try."""
        rule = self.rules.get(category)
        return rule is not None and rule.tries > 1


#: `MAISD_ENABLE_SMART_RETRIES=false`: whatever fails is raised, refusals too, and nobody waits for a sick provider.
NO_RETRIES = RetryPolicy(rules={category: Rule(Backoff(1.0, 1.0), tries=1) for category in Category}, patient=False)


#: Attempts of a refused call where refusals cost tries.
REFUSALS_TRIES = 8


def by_backoff(base_s: float, cap_s: float) -> RetryPolicy:
    """The policy of a lane without adaptive pace: one backoff for all, doubled for refusals, which cost tries there.

    Args:
        base_s, cap_s: As of `Backoff`, seconds.
    """
    rules = {category: Rule(Backoff(base_s, cap_s), rule.tries) for category, rule in RULES.items()}
    return RetryPolicy(rules=rules | {Category.RATE_LIMITED: Rule(Backoff(2 * base_s, 2 * cap_s), REFUSALS_TRIES)})


#: The bad-record rule: a function that failed more than BAD_FAILURES times in RECORD_S seconds, and is at fault for it
#: itself, gets BAD_TRIES tries.
RECORD_S, BAD_FAILURES, BAD_TRIES = 300.0, 5, 2
#: Others fare well while at most this share of their attempts fails: what a lane in REDUCED may have to be NORMAL.
OTHERS_WELL = 0.10
#: A function is at fault when it fails so many times as often as the others, and by so many standard deviations more.
#: Looked at after every failure, chance reaches four of them once in some ten thousand looks, and three every day.
TIMES_AS_OFTEN, DEVIATIONS = 3.0, 4.0


@dataclass(frozen=True, slots=True)
class Record:
    """How a function, and all others of its lane, fared in the last RECORD_S seconds. Attempts, over the cluster.

    What failed is what cost a try; an answer may be missing as long as its process has had no failure.
    """

    failed: int = 0
    answered: int = 0
    others_failed: int = 0
    others_answered: int = 0


NO_RECORD = Record()


def at_fault(record: Record) -> bool:
    """Whether the function has a bad record of its own: it fails, and the others in its lane do not.

    Without others nobody can tell the function from its provider, and it is the provider's failure. Two shares are
    compared by the pooled z-test, so that two functions on a provider that fails one in twenty are not told apart.
    """
    if record.failed <= BAD_FAILURES:
        return False
    own, others = record.failed + record.answered, record.others_failed + record.others_answered
    if not others:
        return False
    share, usual = record.failed / own, record.others_failed / others
    if usual > OTHERS_WELL or share < TIMES_AS_OFTEN * usual:
        return False
    pooled = (record.failed + record.others_failed) / (own + others)
    return share - usual >= DEVIATIONS * sqrt(pooled * (1 - pooled) * (1 / own + 1 / others))


class Why(StrEnum):
    """Why a call is given up."""

    CATEGORY = "category"  #: this kind of failure is never retried
    TRIES = "tries"  #: it has had its tries
    DEADLINE = "deadline"  #: the next attempt would come after the call's deadline


@dataclass(frozen=True, slots=True)
class Retry:
    """Another attempt in `after_s` seconds; the attempt that failed cost a try."""

    after_s: float


@dataclass(frozen=True, slots=True)
class Snooze:
    """Back into the lane, not before `after_s` seconds; the attempt cost no try."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The call has failed for good."""

    failure: Failure
    why: Why = Why.CATEGORY


@dataclass(frozen=True, slots=True)
class Halt:
    """Nothing more can be sent on this lane until somebody pays: stop the lane and park the call, at no try."""

    failure: Failure


Step = Retry | Snooze | GiveUp | Halt


def backoff_s(attempt: int, backoff: Backoff, jitter: Jitter) -> float:
    """Wait before the next attempt, in seconds: full jitter under base_s * 2**(attempt - 1), at most cap_s.

    Args:
        attempt: Attempts made so far that cost a try, from 1.
    Raises:
        ValueError: `attempt` is below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    doublings = min(attempt - 1, 64)  # far beyond any cap, and no float overflows on the way
    return jitter() * min(backoff.cap_s, ldexp(backoff.base_s, doublings))


def next_step(
    failure: Failure,
    attempt: int,
    policy: RetryPolicy,
    jitter: Jitter,
    *,
    now_s: float,
    deadline_s: float,
    beside: Compared = OTHERS_FARE_WELL,
    record: Record = NO_RECORD,
) -> Step:
    """Decide what follows `failure`.

    Retry-After is a floor of every wait that we choose, and no wait outlives the deadline. A sick answer costs a try
    where the lane answered others meanwhile. Where it did not, nobody can tell the call from its provider: it waits, at
    no try, by a backoff of its own that grows with the time since its first failure (`fault.alone_bound_s`). But a 2xx
    that was no answer always costs one, and a brown-out gives it no more: its provider is there, and is paid for each.
    A function that is at fault itself has fewer tries; the caller asks for that only while the lane's mode is NORMAL.

    Args:
        attempt: Attempts made that cost a try, this one included, from 1.
        now_s: The clock that `deadline_s` is on, seconds.
        deadline_s: No attempt starts after this instant; `math.inf` for none.
        beside: A sick answer beside those of others; of no other failure it is looked at.
        record: Of the call's function up to this failure, which it does not count; empty where the lane is not NORMAL.
    Raises:
        ValueError: `attempt` is below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    if failure.category is Category.QUOTA_EXHAUSTED:
        return Halt(failure)
    asked_s = max(0.0, failure.retry_after_s or 0.0)
    rule = policy.rules.get(failure.category)
    step: Retry | Snooze
    paid = failure.category is Category.MALFORMED_RESPONSE and failure.status is not None and failure.status < 300
    if failure.sick and beside.alone_s is not None and policy.patient and not paid:
        cap_s = rule.backoff.cap_s if rule is not None else inf
        step = Snooze(max(asked_s, jitter() * alone_bound_s(beside.alone_s, cap_s)))
    elif rule is not None:
        tries: float = min(rule.tries, BAD_TRIES) if at_fault(record) else rule.tries
        if failure.sick and policy.patient and not at_fault(record) and not paid:
            tries = tries_allowed(rule.tries, attempt, beside)
        if attempt >= tries:
            return GiveUp(failure, Why.TRIES)
        step = Retry(max(asked_s, backoff_s(attempt, rule.backoff, jitter)))
    elif failure.category is Category.RATE_LIMITED:
        step = Snooze(asked_s)
    else:
        return GiveUp(failure, Why.CATEGORY)
    return GiveUp(failure, Why.DEADLINE) if now_s + step.after_s > deadline_s else step
