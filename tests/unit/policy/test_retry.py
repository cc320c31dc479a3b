"""What follows a failure: the table of the design, row by row, and the rules that cut across it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import SICK, Category, Failure
from ratelimit_worker.policy.fault import Compared
from ratelimit_worker.policy.retry import (
    BAD_FAILURES,
    BAD_TRIES,
    NO_RETRIES,
    NO_TRACK_RECORD,
    RULES,
    Backoff,
    GiveUp,
    Halt,
    Retry,
    RetryPolicy,
    Rule,
    Snooze,
    Step,
    TrackRecord,
    Why,
    at_fault,
    backoff_s,
    by_backoff,
    next_step,
)

TABLE = {
    Category.OVERLOADED: (2.0, 60.0, 8),
    Category.SERVER_ERROR: (1.0, 30.0, 6),
    Category.TIMEOUT: (2.0, 60.0, 4),
    Category.CONNECTION: (1.0, 30.0, 6),
    Category.MALFORMED_RESPONSE: (1.0, 30.0, 3),
    Category.CONFLICT: (1.0, 10.0, 3),
}


def failure(category: Category, retry_after_s: float | None = None) -> Failure:
    return Failure(category=category, cause="HTTP", retry_after_s=retry_after_s)


def step(
    category: Category,
    attempt: int = 1,
    *,
    retry_after_s: float | None = None,
    alone_s: float | None = None,
    jitter: float = 0.5,
    deadline_s: float = math.inf,
    policy: RetryPolicy | None = None,
    track_record: TrackRecord = NO_TRACK_RECORD,
) -> Step:
    return next_step(
        failure(category, retry_after_s),
        attempt,
        policy or RetryPolicy(),
        lambda: jitter,
        beside=Compared(alone_s=alone_s),
        now_s=1_000.0,
        deadline_s=deadline_s,
        track_record=track_record,
    )


def test_the_table_is_the_designs() -> None:
    """Base, cap and tries of each category that is retried; no other has a rule."""
    assert {c: (r.backoff.base_s, r.backoff.cap_s, r.tries) for c, r in RULES.items()} == TABLE


@pytest.mark.parametrize(("category", "row"), TABLE.items())
def test_each_category_is_retried_as_often_as_its_row_says(category: Category, row: tuple[float, float, int]) -> None:
    """The waits double under full jitter up to the cap; the last try is followed by the end."""
    base_s, cap_s, tries = row
    for attempt in range(1, tries):
        assert step(category, attempt) == Retry(0.5 * min(cap_s, base_s * 2 ** (attempt - 1)))
    assert step(category, tries) == GiveUp(failure(category), Why.TRIES)
    assert step(category, tries + 1) == GiveUp(failure(category), Why.TRIES)


@pytest.mark.parametrize(
    "category", [Category.AUTH, Category.INVALID_REQUEST, Category.CONTENT_FILTERED, Category.PROGRAMMING]
)
@pytest.mark.parametrize("alone_s", [None, 9.0])
def test_what_the_caller_must_mend_is_given_up_at_once(category: Category, alone_s: float | None) -> None:
    """Also with Retry-After, and also while nobody is answered."""
    assert step(category, retry_after_s=1.0, alone_s=alone_s) == GiveUp(failure(category, 1.0), Why.CATEGORY)


@pytest.mark.parametrize(("retry_after_s", "after_s"), [(None, 0.0), (7.5, 7.5), (-3.0, 0.0)])
def test_a_refusal_is_a_snooze_at_any_attempt(retry_after_s: float | None, after_s: float) -> None:
    """429 costs no try: it waits for Retry-After, or leaves the time to the lane."""
    for attempt in (1, 8, 1_000):
        assert step(Category.RATE_LIMITED, attempt, retry_after_s=retry_after_s) == Snooze(after_s)


def test_a_lane_without_adaptive_pace_may_retry_refusals_by_backoff() -> None:
    """Its own base and cap for all, both doubled for 429s, with eight tries; Retry-After is still a floor."""
    policy = by_backoff(1.0, 6.0)
    assert step(Category.RATE_LIMITED, 3, policy=policy) == Retry(4.0)
    assert step(Category.RATE_LIMITED, 7, policy=policy) == Retry(6.0)
    assert step(Category.RATE_LIMITED, 3, policy=policy, retry_after_s=9.0) == Retry(9.0)
    assert isinstance(step(Category.RATE_LIMITED, 8, policy=policy), GiveUp)
    assert step(Category.OVERLOADED, 5, policy=policy) == Retry(3.0)
    assert {category: policy.rules[category].tries for category in RULES} == {c: row[2] for c, row in TABLE.items()}


@pytest.mark.parametrize("category", sorted(SICK))
def test_sick_answers_use_no_tries_where_nobody_else_is_answered(category: Category) -> None:
    """The call waits by full jitter under 5 % of the time since its first failure, at least 1.5 s, at most its cap."""
    cap_s = TABLE[category][1]
    for attempt in (1, 50):
        waits = [step(category, attempt, alone_s=alone_s) for alone_s in (0.0, 30.0, 100.0, 1e6)]
        assert waits == [Snooze(0.75), Snooze(0.75), Snooze(2.5), Snooze(cap_s / 2)]
        assert step(category, attempt, alone_s=0.0, retry_after_s=30.0) == Snooze(30.0)


@pytest.mark.parametrize("alone_s", [None, 9.0])
@pytest.mark.parametrize("category", list(Category))
def test_without_retries_the_first_failure_is_the_last(category: Category, alone_s: float | None) -> None:
    """Refusals too, and nobody waits for a provider that answers nobody."""
    assert isinstance(step(category, alone_s=alone_s, policy=NO_RETRIES), GiveUp | Halt)


def test_a_2xx_that_is_no_answer_costs_a_try_however_others_fare() -> None:
    """Its provider is there, and each of them is paid for: three, and no more."""
    empty = replace(failure(Category.MALFORMED_RESPONSE), status=200)

    def follows(attempt: int, alone_s: float | None) -> Step:
        beside = Compared(alone_s=alone_s, row=attempt, share=0.5)
        return next_step(empty, attempt, RetryPolicy(), lambda: 0.5, beside=beside, now_s=0.0, deadline_s=math.inf)

    for alone_s in (9.0, None):
        steps = [follows(attempt, alone_s) for attempt in (1, 2, 3)]
        assert steps == [Retry(0.5), Retry(1.0), GiveUp(empty, Why.TRIES)]


def test_a_conflict_is_not_sickness() -> None:
    """A 409 is the request's own affair, also during an outage."""
    assert step(Category.CONFLICT, alone_s=9.0) == Retry(0.5)


def test_a_used_up_quota_halts() -> None:
    """At any attempt, and whatever Retry-After and deadline say."""
    for attempt in (1, 99):
        halted = step(Category.QUOTA_EXHAUSTED, attempt, retry_after_s=5.0, deadline_s=0.0)
        assert halted == Halt(failure(Category.QUOTA_EXHAUSTED, 5.0))


def test_retry_after_is_a_floor_and_no_ceiling() -> None:
    """The longer of the two waits holds."""
    assert step(Category.OVERLOADED, retry_after_s=10.0) == Retry(10.0)
    assert step(Category.OVERLOADED, 5, retry_after_s=10.0) == Retry(16.0)


@pytest.mark.parametrize(
    ("category", "alone_s"),
    [(Category.SERVER_ERROR, None), (Category.RATE_LIMITED, None), (Category.TIMEOUT, 9.0)],
)
def test_nothing_outlives_the_deadline(category: Category, alone_s: float | None) -> None:
    """An attempt may start at the deadline and not after it."""
    assert not isinstance(step(category, retry_after_s=5.0, alone_s=alone_s, deadline_s=1_005.0), GiveUp)
    late = step(category, retry_after_s=5.0, alone_s=alone_s, deadline_s=1_005.0 - 0.001)
    assert late == GiveUp(failure(category, 5.0), Why.DEADLINE)


@given(
    st.sampled_from(list(Category)),
    st.integers(min_value=1, max_value=10_000),
    st.none() | st.floats(min_value=0, max_value=86_400),
    st.none() | st.floats(min_value=0, max_value=1e9),
    st.floats(min_value=0, max_value=1, exclude_max=True),
    st.floats(min_value=1_000, max_value=100_000),
)
def test_every_step_keeps_the_rules(
    category: Category,
    attempt: int,
    retry_after_s: float | None,
    alone_s: float | None,
    jitter: float,
    deadline_s: float,
) -> None:
    """No wait is negative, ends after the deadline, or undercuts Retry-After where the choice is ours."""
    match step(category, attempt, retry_after_s=retry_after_s, alone_s=alone_s, jitter=jitter, deadline_s=deadline_s):
        case Retry(after_s):
            assert (retry_after_s or 0.0) <= after_s <= max(retry_after_s or 0.0, 60.0)
            assert 1_000.0 + after_s <= deadline_s
            assert attempt < RULES[category].tries
        case Snooze(after_s):
            assert (retry_after_s or 0.0) <= after_s <= max(retry_after_s or 0.0, 60.0)
            assert 1_000.0 + after_s <= deadline_s
        case GiveUp(failed) | Halt(failed):
            assert failed.category is category


@given(
    st.integers(min_value=1, max_value=100_000),
    st.floats(min_value=1e-3, max_value=100),
    st.floats(min_value=1, max_value=1_000),
    st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_backoff_is_full_jitter_under_a_doubling_cap(attempt: int, base_s: float, factor: float, jitter: float) -> None:
    """U(0, min(cap, base * 2**(attempt - 1))), at attempts of any number."""
    backoff = Backoff(base_s, base_s * factor)
    widest_s = min(backoff.cap_s, base_s * 2.0 ** min(attempt - 1, 500))
    assert backoff_s(attempt, backoff, lambda: jitter) == pytest.approx(jitter * widest_s)


BAD = TrackRecord(failed=8, answered=0, others_failed=1, others_answered=40)


@pytest.mark.parametrize(
    ("track_record", "bad"),
    [
        (BAD, True),
        (TrackRecord(6, 0, 0, 10), True),
        (TrackRecord(6, 24, 0, 200), True),  # one in five is much where the others have none
        (TrackRecord(400, 0, 15, 185), True),  # it may well be most of the lane's traffic
        (NO_TRACK_RECORD, False),
        (TrackRecord(BAD_FAILURES, 0, 0, 1_000), False),  # "more than 5"
        (TrackRecord(50, 0, 0, 0), False),  # nobody to compare it with: the provider is at fault
        (TrackRecord(6, 0, 0, 3), False),  # ... or next to nobody
        (TrackRecord(6, 0, 6, 0), False),  # nobody fares well
        (TrackRecord(60, 0, 30, 170), False),  # the others fail a seventh: that is the provider
        (TrackRecord(50, 950, 50, 950), False),  # one in twenty, for all
        (TrackRecord(100, 1_900, 4, 96), False),
        (TrackRecord(3_000, 97_000, 2_000, 98_000), False),  # no chance, but no fault either
    ],
)
def test_who_is_at_fault(track_record: TrackRecord, bad: bool) -> None:
    """A function that fails far more often than the others, which fare well."""
    assert at_fault(track_record) is bad


@pytest.mark.parametrize("category", sorted(RULES))
def test_a_function_at_fault_gets_two_tries(category: Category) -> None:
    """Its first failure is followed by another try, its second by the end; nobody has more tries for it."""
    assert isinstance(step(category, BAD_TRIES - 1, track_record=BAD), Retry)
    assert step(category, BAD_TRIES, track_record=BAD) == GiveUp(failure(category), Why.TRIES)
    assert isinstance(step(category, BAD_TRIES, track_record=TrackRecord(8, 0, 8, 0)), Retry)


@pytest.mark.parametrize("category", sorted(SICK))
def test_a_bad_record_costs_nothing_where_nobody_else_is_answered(category: Category) -> None:
    """Nobody can tell the call from its provider: it waits and uses no try."""
    assert step(category, 50, alone_s=0.0, track_record=BAD) == Snooze(0.75)


def test_a_bad_record_changes_neither_refusals_nor_what_is_never_retried() -> None:
    """429 is snoozed, a 400 given up, a used-up quota halts; and without retries there is one try as before."""
    assert step(Category.RATE_LIMITED, 9, track_record=BAD) == Snooze(0.0)
    assert step(Category.INVALID_REQUEST, track_record=BAD) == GiveUp(failure(Category.INVALID_REQUEST), Why.CATEGORY)
    assert isinstance(step(Category.QUOTA_EXHAUSTED, track_record=BAD), Halt)
    assert isinstance(step(Category.SERVER_ERROR, policy=NO_RETRIES, track_record=BAD), GiveUp)


def test_chance_finds_nobody_at_fault() -> None:
    """Two functions on a provider that fails one in twenty, looked at after each failure of five minutes: nobody."""
    for seed in range(20):
        drawn = random.Random(seed)
        counts = [[0, 0], [0, 0]]
        for _ in range(2_000):
            who, fails = drawn.random() < 0.7, drawn.random() < 0.05
            counts[who][fails] += 1
            if fails:
                (others_ok, others_failed), (ok, failed) = counts[not who], counts[who]
                assert not at_fault(TrackRecord(failed, ok, others_failed, others_ok)), seed


def test_attempts_count_from_one() -> None:
    """Zero attempts cannot have failed."""
    with pytest.raises(ValueError, match="from 1"):
        backoff_s(0, Backoff(1.0, 2.0), lambda: 0.0)
    with pytest.raises(ValueError, match="from 1"):
        step(Category.TIMEOUT, 0)


@pytest.mark.parametrize("wrong", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_a_backoff_that_cannot_be_is_refused(wrong: tuple[float, float]) -> None:
    """Base above zero, cap not below it."""
    with pytest.raises(ValueError, match="base_s"):
        Backoff(*wrong)
    with pytest.raises(ValueError, match="tries"):
        Rule(Backoff(1.0, 1.0), tries=0)
