"""Trends: what is called so, what is not, and what is told with it. `benchmarks/trends.py` counts errors."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from benchmarks.trends import KINDS, series
from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.policy.findings import findings, of_latency
from ratelimit_worker.policy.histogram import RELATIVE_ERROR, ZERO, Histogram, bucket, quantile, quantiles, value_of
from ratelimit_worker.policy.modes.rising import Slice, rises
from ratelimit_worker.policy.trend import LOOK_BACK_MIN, NOTHING, Finding, Trend, of_shares, of_values
from ratelimit_worker.reports.trends import too_few, trend_numbers


def minutes(per_min: int, factor: Callable[[int], float], seed: int = 1, sigma: float = 0.5) -> list[Histogram]:
    """Latencies around `factor(minute)` seconds."""
    drawn, found = random.Random(seed), []
    for minute in range(LOOK_BACK_MIN):
        counts = Histogram()
        for _ in range(per_min):
            index = bucket(factor(minute) * drawn.lognormvariate(0.0, sigma))
            counts[index] = counts.get(index, 0) + 1
        found.append(counts)
    return found


@pytest.mark.parametrize("value", [1e-6, 0.003, 0.999, 1.0, 1.01, 17.3, 600.0, 1e9])
def test_a_value_is_told_within_one_percent(value: float) -> None:
    """Whatever its size."""
    assert value_of(bucket(value)) == pytest.approx(value, rel=RELATIVE_ERROR + 1e-9)


def test_no_time_at_all_has_a_bucket_of_its_own() -> None:
    """0, less than nothing and what is no number."""
    assert {bucket(0.0), bucket(-1.0), bucket(float("nan"))} == {ZERO}
    assert value_of(ZERO) == 0.0


def test_percentiles_of_a_histogram() -> None:
    """The smallest value at or below which lies that share."""
    counts = {bucket(float(value)): 1 for value in (1, 2, 4, 8)}
    assert quantiles(counts, 0.25, 0.5, 1.0) == [pytest.approx(value, rel=0.01) for value in (1, 2, 8)]
    assert quantile({}, 0.5) is None
    assert quantile({bucket(1.0): 98, bucket(9.0): 2}, 0.95) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("per_min", "after"), [(5, 10), (20, 4)])
def test_a_doubling_is_a_change(per_min: int, after: int, seed: int) -> None:
    """At 5 calls a minute within 10 minutes, at 20 within 4; and half as long is better."""
    found = of_values(minutes(per_min, lambda minute: 2.0 if minute >= LOOK_BACK_MIN - after else 1.0, seed))
    assert found.trend is Trend.DEGRADING
    assert found.ratio == pytest.approx(2.0, rel=0.5)
    assert found.values_latest == found.minutes * per_min
    better = of_values(minutes(per_min, lambda minute: 0.5 if minute >= LOOK_BACK_MIN - after else 1.0, seed))
    assert better.trend is Trend.IMPROVING


def test_more_may_be_better() -> None:
    """Tokens a second, say."""
    found = of_values(minutes(20, lambda minute: 2.0 if minute >= 140 else 1.0), more_is_worse=False)
    assert found.trend is Trend.IMPROVING


def test_a_slow_slide_is_found_by_its_slope() -> None:
    """Two and a half times as slow over two and a half hours, no minute of which stands out."""
    found = of_values(minutes(20, lambda minute: 2.5 ** (minute / LOOK_BACK_MIN)))
    assert found.trend is Trend.DEGRADING
    assert found.per_hour == pytest.approx(2.5 ** (60 / LOOK_BACK_MIN), rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_stable(seed: int) -> None:
    """Heavy tails, and a fifth more than usual."""
    assert of_values(minutes(20, lambda _: 1.0, seed, sigma=1.2)).trend is Trend.STABLE
    assert of_values(minutes(20, lambda minute: 1.2 if minute >= 140 else 1.0, seed)).trend is Trend.STABLE


def test_too_little_is_said_to_be_too_little() -> None:
    """Nothing at all, some answers, and many of late with nothing before; each with how many there are."""
    late = [Histogram()] * (LOOK_BACK_MIN - 5) + minutes(20, lambda _: 1.0)[-5:]
    for few, before, latest in (([], 0, 0), (minutes(1, lambda _: 1.0)[-40:], 8, 32), (late, 0, 100)):
        found = of_values(few)
        assert (found.trend, found.values_before, found.values_latest) == (Trend.UNKNOWN, before, latest)
        shares = of_shares([(0, sum(counts.values())) for counts in few])
        assert (shares.trend, shares.values_before, shares.values_latest) == (Trend.UNKNOWN, before, latest)
        assert too_few(found).endswith("where 12 and 60 are needed")
    assert of_latency({}) == NOTHING
    together = Finding(trend=Trend.UNKNOWN, minutes=32, values_before=90, values_latest=20)
    assert too_few(together) == "20 answers in 32 minutes and 90 before, which came in too few minutes"


def test_bursts_before_do_not_hide_a_change_in_minutes_with_few_calls() -> None:
    """A tenth of the minutes has four times the calls, and all calls of a minute are slow together: a doubling at 20 a
    minute is found within 4 minutes in 95 % of series, and in none of them before it."""
    (bursty,) = [kind for kind in KINDS if kind.name == "bursty"]
    found, false, many = 0, 0, 60
    for seed in range(many):
        drawn = series(bursty, 20, seed, LOOK_BACK_MIN + 4, LOOK_BACK_MIN)
        told = [of_values(drawn[after : after + LOOK_BACK_MIN]).trend for after in range(5)]
        false += told[0] not in (Trend.STABLE, Trend.UNKNOWN)
        found += Trend.DEGRADING in told[1:]
    assert found >= 0.95 * many
    assert false == 0


def test_a_doubling_is_found_in_the_quiet_hours_of_a_day_too() -> None:
    """At 5 calls a minute on the average of a day there are 2 to 3 a minute in its quiet hours: a doubling is found
    within 10 minutes in 95 % of series all the same."""
    (daily,) = [kind for kind in KINDS if kind.name == "daily shape"]
    found = 0
    for seed in range(200):
        seen = series(daily, 5, seed, LOOK_BACK_MIN + 10, LOOK_BACK_MIN)
        found += any(of_values(seen[:end]).trend is Trend.DEGRADING for end in range(len(seen) - 9, len(seen) + 1))
    assert found >= 190


def test_the_latency_of_a_token_counts_only_if_enough_of_them_are_known() -> None:
    """Few answers with tokens among many without: the trend is that of all."""
    latency = minutes(20, lambda minute: 3.0 if minute >= LOOK_BACK_MIN - 16 else 1.0, sigma=0.01)
    cells = [Cell(outcomes={"answered": 20}, latency=one) for one in latency]
    cells[-1].per_token = {bucket(0.01): 3}
    found = findings(cells)
    assert found["latency_per_token"].trend is Trend.UNKNOWN
    assert of_latency(found).trend is Trend.DEGRADING
    assert trend_numbers(found) == "3.0 s in the latest 16 minutes, 1.0 s before"


@pytest.mark.parametrize(
    ("before", "latest", "trend"),
    [
        ((0, 20), (6, 20), Trend.DEGRADING),
        ((6, 20), (0, 20), Trend.IMPROVING),
        ((1, 20), (2, 20), Trend.STABLE),
        ((0, 0), (9, 20), Trend.UNKNOWN),
    ],
)
def test_a_share_that_changes(before: tuple[int, int], latest: tuple[int, int], trend: Trend) -> None:
    """Eight minutes of it, after two hours and more."""
    assert of_shares([before] * 144 + [latest] * 8).trend is trend


def test_longer_answers_are_not_slower_ones() -> None:
    """Where tokens are known latency is judged for each of them."""
    cells = [
        Cell(outcomes={"answered": 20}, latency=latency, per_token=per_token)
        for latency, per_token in zip(
            minutes(20, lambda minute: 3.0 if minute >= 140 else 1.0), minutes(20, lambda _: 0.01), strict=True
        )
    ]
    found = findings(cells)
    assert found["latency"].trend is Trend.DEGRADING
    assert of_latency(found).trend is found["tokens_per_s"].trend is Trend.STABLE
    assert found["tokens_per_s"].latest == pytest.approx(100.0, rel=0.2)
    assert found["errors"].latest == 0.0
    assert findings([Cell()] * 9) == {}


@pytest.mark.parametrize(
    ("means", "answers", "expected"),
    [
        ([], 10, False),
        ([1.0, 1.0, 1.24, 1.24], 10, False),
        ([1.0, 1.0, 1.25, 1.25], 10, True),
        ([1.0, 1.0, 9.0, 9.0], 4, False),  # too few answers to say
        ([1.0, 1.0, 1.0, 1.0, 1.0, 60.0], 10, False),  # one bad minute
        ([0.0, 0.0, 1.0, 1.0], 10, False),
        ([1.0, 50.0, 1.0], 10, False),  # the middle belongs to neither half
    ],
)
def test_rising_latency_beside_sick_answers(means: list[float], answers: int, expected: bool) -> None:
    """The written rule: halves by the median of their minutes; idle minutes say nothing."""
    slices = [Slice(answers, mean_s * answers) for mean_s in means]
    assert rises(slices) is expected
