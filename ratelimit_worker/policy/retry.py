"""What follows a failed attempt: another one, a wait that costs nothing, or the end?

The decision is a value, which the caller carries out: calls wait in the lane, and never in a worker's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from math import inf, ldexp, sqrt
from types import MappingProxyType

from msgspec import Struct, field

from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.policy.fault import LOST_S, OTHERS_FARE_WELL, Compared, alone_bound_s, tries_allowed

#: Returns a float in [0, 1): `random.random` in production, a constant in tests.
Jitter = Callable[[], float]


class Backoff(Struct, frozen=True):
    """How waits grow from attempt to attempt."""

    base_s: float  #: longest first wait, seconds
    cap_s: float  #: longest wait of all, seconds

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s:
            raise ValueError(f"need 0 < base_s <= cap_s, got {self}")


class Rule(Struct, frozen=True):
    """How one category is retried."""

    backoff: Backoff
    tries: int  #: attempts in all that may cost a try, the first included

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"need tries >= 1, got {self}")


#: The table in docs/failures.md. A category without a rule is not retried: a 429 is snoozed, a used-up quota halts the
#: lane, and the others are the caller's mistakes.
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


#: Of a call that is told that its quota is used up while others of its lane are answered: it may be that of a key or
#: project of its own.
OWN_QUOTA = Rule(Backoff(2.0, 60.0), tries=6)


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Which failures are retried, how often and how far apart.

    With a rule for `RATE_LIMITED`, refusals cost tries and wait by backoff: for lanes without adaptive pace
    (`by_backoff`).
    """

    rules: Mapping[Category, Rule] = field(default_factory=lambda: RULES)
    patient: bool = True  #: while no call is answered, failures cost no try

    def retries(self, category: Category) -> bool:
        """Whether a failure of this category may be followed by another try."""
        rule = self.rules.get(category)
        return rule is not None and rule.tries > 1


#: With `MAISD_ENABLE_SMART_RETRIES=false`: every failure is raised, also refusals and those of a sick provider.
NO_RETRIES = RetryPolicy(rules={category: Rule(Backoff(1.0, 1.0), tries=1) for category in Category}, patient=False)


#: Tries of a refused call, if refusals cost tries.
REFUSALS_TRIES = 8


def by_backoff(base_s: float, cap_s: float) -> RetryPolicy:
    """The policy of a lane without adaptive pace: one backoff for all, doubled for refusals, which cost tries there.

    Args:
        base_s, cap_s: As in `Backoff`, seconds.
    """
    rules = {category: Rule(Backoff(base_s, cap_s), rule.tries) for category, rule in RULES.items()}
    return RetryPolicy(rules=rules | {Category.RATE_LIMITED: Rule(Backoff(2 * base_s, 2 * cap_s), REFUSALS_TRIES)})


#: The bad-record rule: a function that failed more than BAD_FAILURES times in RECORD_S seconds, by its own fault, gets
#: BAD_TRIES tries.
RECORD_S, BAD_FAILURES, BAD_TRIES = 300.0, 5, 2
#: Others do well if at most this share of their attempts fails: the same share with which a lane leaves REDUCED.
OTHERS_WELL = 0.10
#: A function is at fault if it fails so many times as often as the others, and by so many standard deviations more. The
#: test is made after every failure, so chance reaches three of them every day, and four once in some ten thousand
#: tests.
TIMES_AS_OFTEN, DEVIATIONS = 3.0, 4.0


class TrackRecord(Struct, frozen=True):
    """Attempts of a function, and of its lane's other functions, in the last RECORD_S seconds, over the cluster.

    Failures are those that cost a try. Answers of a process are missing until it has a failure.
    """

    failed: int = 0
    answered: int = 0
    others_failed: int = 0
    others_answered: int = 0


NO_TRACK_RECORD = TrackRecord()


def at_fault(track: TrackRecord) -> bool:
    """Whether the function itself has a bad record: it fails, and the others in its lane do not.

    Without others it cannot be decided, and counts as the provider's failure. The two shares are compared by a pooled
    z-test, so that with a provider that fails one in twenty, no function is found at fault by chance.
    """
    if track.failed <= BAD_FAILURES:
        return False
    own, others = track.failed + track.answered, track.others_failed + track.others_answered
    if not others:
        return False
    share, usual = track.failed / own, track.others_failed / others
    if usual > OTHERS_WELL or share < TIMES_AS_OFTEN * usual:
        return False
    pooled = (track.failed + track.others_failed) / (own + others)
    return share - usual >= DEVIATIONS * sqrt(pooled * (1 - pooled) * (1 / own + 1 / others))


class Why(StrEnum):
    """Why a call is given up."""

    CATEGORY = "category"  #: this kind of failure is never retried
    TRIES = "tries"  #: its tries are used up
    DEADLINE = "deadline"  #: the next attempt would come after the call's deadline


class Retry(Struct, frozen=True):
    """Another attempt in `after_s` seconds; the attempt that failed cost a try."""

    after_s: float


class Snooze(Struct, frozen=True):
    """Back into the lane for at least `after_s` seconds; the attempt cost no try."""

    after_s: float


class GiveUp(Struct, frozen=True):
    """The call has failed for good."""

    failure: Failure
    why: Why = Why.CATEGORY


class Halt(Struct, frozen=True):
    """The quota is used up: halt the lane, and let the call wait, which costs no try."""

    failure: Failure


Step = Retry | Snooze | GiveUp | Halt

#: A refused call waits in its own place, and so goes first when the gate opens. If it alone is refused each time,
#: nobody else of its lane would ever go. So from this attempt on it lets others go first, twice as long each time.
ASIDE_FROM = 5
ASIDE_S = 0.25
#: Longest time: shorter than the longest gap between probes; longer if others are answered, as it is its own fault.
ASIDE_MOST_S, ASIDE_ALONE_S = 10.0, 60.0
#: An answer to another call is recent for so long, seconds.
ASIDE_LATE_S = 60.0


def backoff_s(attempt: int, backoff: Backoff, jitter: Jitter) -> float:
    """Wait before the next attempt, in seconds: full jitter under base_s * 2**(attempt - 1), at most cap_s.

    Args:
        attempt: Attempts made so far that cost a try, from 1.
    Raises:
        ValueError: `attempt` is below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    doublings = min(attempt - 1, 64)  # far beyond any cap, but no overflow
    return jitter() * min(backoff.cap_s, ldexp(backoff.base_s, doublings))


def aside_s(asked_s: float | None, number: int, answered_s: float, jitter: Jitter) -> float:
    """How long a refused call lets others go first, in seconds from its refusal; 0: it keeps its place.

    Args:
        asked_s: Its Retry-After; None: there is none.
        number: Attempts at it so far, this one included.
        answered_s: Time since another call of its lane was answered, seconds.
    """
    if number < ASIDE_FROM:
        return 0.0
    most_s = ASIDE_ALONE_S if answered_s <= ASIDE_LATE_S else ASIDE_MOST_S
    return max(0.0, asked_s or 0.0) + (0.5 + jitter() / 2) * min(most_s, ldexp(ASIDE_S, min(number - ASIDE_FROM, 64)))


def next_step(
    failure: Failure,
    attempt: int,
    policy: RetryPolicy,
    jitter: Jitter,
    *,
    now_s: float,
    deadline_s: float,
    beside: Compared = OTHERS_FARE_WELL,
    track_record: TrackRecord = NO_TRACK_RECORD,
) -> Step:
    """Decide what follows `failure`.

    Retry-After is a lower bound of every wait, and no wait ends after the deadline. A sick answer costs a try if the
    lane answered others meanwhile. If it did not, nobody can say whose fault it is: the call waits, which costs no try,
    by its own backoff, which grows with the time since its first failure (`fault.alone_bound_s`), unless it has failed
    so often among others before that the fault is its own. But a 2xx that was not an answer always costs a try, and its
    tries are not raised when many other calls fail (`fault.tries_allowed`), since each is paid for. A function that is
    at fault itself has fewer tries; the caller passes its record only while the lane is in NORMAL.

    Args:
        attempt: Attempts that have cost a try, this one included, from 1.
        now_s: The present, on the clock of `deadline_s`, seconds.
        deadline_s: No attempt starts after this time; `math.inf`: no deadline.
        beside: For a sick answer, or a quota that is used up: the comparison with other calls.
        record: The record of the call's function, without this failure; empty if the lane is not in NORMAL.
    Raises:
        ValueError: `attempt` is below 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, got {attempt}")
    if failure.category is Category.QUOTA_EXHAUSTED and not beside.own_quota:
        return Halt(failure)
    asked_s = max(0.0, failure.retry_after_s or 0.0)
    rule = policy.rules.get(failure.category, OWN_QUOTA if beside.own_quota else None)
    step: Retry | Snooze
    paid = failure.category is Category.MALFORMED_RESPONSE and failure.status is not None and failure.status < 300
    if failure.sick and beside.lost and policy.patient and not paid:
        step = Snooze(max(asked_s, jitter() * LOST_S))
    elif failure.sick and beside.alone_s is not None and beside.unknown(attempt) and policy.patient and not paid:
        cap_s = rule.backoff.cap_s if rule is not None else inf
        step = Snooze(max(asked_s, jitter() * alone_bound_s(beside.alone_s, cap_s)))
    elif rule is not None:
        tries: float = min(rule.tries, BAD_TRIES) if at_fault(track_record) else rule.tries
        if failure.sick and policy.patient and not at_fault(track_record) and not paid:
            tries = tries_allowed(rule.tries, attempt, beside)
        if attempt >= tries:
            return GiveUp(failure, Why.TRIES)
        step = Retry(max(asked_s, backoff_s(attempt, rule.backoff, jitter)))
    elif failure.category is Category.RATE_LIMITED:
        step = Snooze(asked_s)
    else:
        return GiveUp(failure, Why.CATEGORY)
    return GiveUp(failure, Why.DEADLINE) if now_s + step.after_s > deadline_s else step
