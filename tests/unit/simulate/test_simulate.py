"""The simulated provider: decisions in virtual time, and the same over real HTTP against a real process."""

from __future__ import annotations

import http.client
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit_worker.calls import Cost
from ratelimit_worker.cli.simulate import simulate
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.policy.headers import refused_dimension, stated_limit
from ratelimit_worker.simulate import (
    Arrival,
    Entry,
    Fault,
    HeaderStyle,
    Limiter,
    Outage,
    Scenario,
    Simulator,
    SimulatorFailed,
    duplicates,
    goodput,
    lost,
    most_in_window,
    rate,
    read_log,
    read_scenario,
)
from ratelimit_worker.simulate.arrivals import parse_log
from ratelimit_worker.simulate.bucket import Admitted, Budget, Refused, TokenBucket
from ratelimit_worker.simulate.draws import Latency, uniform
from ratelimit_worker.simulate.headers import go_duration, limit_lines, retry_lines, rfc3339
from ratelimit_worker.simulate.http1 import Request
from ratelimit_worker.simulate.oracle import oracle
from ratelimit_worker.simulate.provider import Ending, Provider, Verdict
from ratelimit_worker.simulate.scenario import TimelineStart, scenario_of
from ratelimit_worker.simulate.timeline import Timeline
from ratelimit_worker.simulate.window import SlidingWindow
from tests.builders import ROOT

CHAT, MESSAGES, EMBEDDINGS, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/responses"
PATIENCE_S = 120.0  # nobody waits so long unless something is broken


def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    pause, deadline_s = threading.Event(), time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        pause.wait(0.01)


# --- the bucket, in virtual time ------------------------------------------------------------------------------------

costs = st.floats(0.1, 50)
steps = st.lists(st.tuples(st.floats(0, 3), costs), max_size=60)


@given(rate_=st.floats(0.01, 1000), depth=st.floats(1, 100), start_s=st.floats(0, 1e6), steps=steps)
def test_no_window_admits_more_than_depth_and_inflow(
    rate_: float, depth: float, start_s: float, steps: list[tuple[float, float]]
) -> None:
    """Between any two admissions, both included, at most max(depth, largest cost) + rate * T units went."""
    budget_s, admitted = start_s, []
    bucket = TokenBucket(rate_, depth, start_s)
    for pause_s, cost in steps:
        budget_s += pause_s
        if bucket.wait_s(budget_s, cost) == 0:
            bucket.take(budget_s, cost)
            admitted.append((budget_s, cost))
    for first, (from_s, _) in enumerate(admitted):
        units = 0.0
        largest = depth
        for to_s, cost in admitted[first:]:
            units, largest = units + cost, max(largest, cost)
            assert units <= largest + rate_ * (to_s - from_s) + 1e-6 * max(1.0, units)


@given(rpm=st.floats(1, 60_000), tpm=st.floats(6_000, 1e7), burst_s=st.floats(0, 10), steps=steps)
def test_waiting_as_long_as_told_is_enough(
    rpm: float, tpm: float, burst_s: float, steps: list[tuple[float, float]]
) -> None:
    """A client that comes back after exactly retry_after_s is admitted when nobody else came."""
    budget, now_s = Budget({"requests": rpm, "tokens": tpm}, burst_s, 1e5), 1e5
    for pause_s, tokens in steps:
        now_s += pause_s
        cost = Cost(input_tokens=int(tokens * 10), output_tokens=100)
        admission = budget.admit(now_s, cost)
        if isinstance(admission, Refused):
            now_s += admission.retry_after_s
            assert budget.admit(now_s, cost) == Admitted()


def test_a_refusal_takes_nothing_from_any_bucket() -> None:
    """Tokens run out: the requests that were refused for them cost no request."""
    budget = Budget({"requests": 60, "tokens": 6000}, 10.0, 0.0)
    assert budget.admit(0.0, Cost(output_tokens=1000)) == Admitted()
    for _ in range(50):
        assert budget.admit(0.0, Cost(output_tokens=10)) == Refused(0.1, "tokens")
    assert budget.buckets["requests"].level(0.0) == 9


def test_the_slower_dimension_is_the_one_that_is_named() -> None:
    """Both ran out; what has to be waited for longer is told."""
    budget = Budget({"requests": 60, "tokens": 600}, 1.0, 0.0)
    assert budget.admit(0.0, Cost(output_tokens=10)) == Admitted()
    assert budget.admit(0.5, Cost(output_tokens=9)) == Refused(0.5, "requests")
    budget = Budget({"requests": 600, "tokens": 600}, 1.0, 0.0)
    assert budget.admit(0.0, Cost(output_tokens=10)) == Admitted()
    assert budget.admit(0.0, Cost(output_tokens=5)) == Refused(0.5, "tokens")


def test_a_call_deeper_than_the_bucket_leaves_a_debt() -> None:
    """A bucket of 10 tokens takes 50 when it is full, and is paid off at its rate before the next."""
    budget = Budget({"tokens": 600}, 1.0, 0.0)
    assert budget.admit(0.0, Cost(output_tokens=50)) == Admitted()
    refused = budget.admit(0.0, Cost(output_tokens=1))
    assert isinstance(refused, Refused)
    assert refused.retry_after_s == pytest.approx(4.1)


def test_more_tokens_than_a_minute_brings_never_fit() -> None:
    """As the real ones say: too large, and no time to come back."""
    refused = Budget({"tokens": 600}, 1.0, 0.0).admit(0.0, Cost(output_tokens=601))
    assert refused == Refused(math.inf, "tokens")


def test_a_lower_limit_holds_at_once_and_a_higher_one_gives_no_present() -> None:
    """What is in the bucket stays, as far as it fits."""
    bucket = TokenBucket(10, 10, 0.0)
    bucket.change(0.0, 2, 2)
    assert bucket.level(0.0) == 2
    bucket.change(0.0, 100, 100)
    assert bucket.level(0.0) == 2
    assert bucket.level(0.5) == 52


def test_a_limit_may_come_and_go() -> None:
    """A dimension without a limit is not counted."""
    budget = Budget({"requests": 60}, 1.0, 0.0)
    budget.change(0.0, {"tokens": 60})
    assert budget.admit(0.0, Cost(output_tokens=1)) == budget.admit(1.0, Cost(output_tokens=1)) == Admitted()
    assert list(budget.buckets) == ["tokens"]


@pytest.mark.parametrize(("rate_", "depth"), [(0, 1), (1, 0), (math.inf, 1), (1, math.nan)])
def test_a_bucket_without_sense_is_refused(rate_: float, depth: float) -> None:
    """Neither nothing nor infinity is a limit."""
    with pytest.raises(ValueError, match="finite"):
        TokenBucket(rate_, depth, 0.0)


@pytest.mark.parametrize(("limit", "window_s"), [(0, 1), (1, 0), (math.inf, 1), (1, math.nan)])
def test_a_window_without_sense_is_refused(limit: float, window_s: float) -> None:
    """Neither nothing nor infinity is a limit."""
    with pytest.raises(ValueError, match="finite"):
        SlidingWindow(limit, window_s, 0.0)


# --- the sliding window, in virtual time ----------------------------------------------------------------------------


@given(
    limit=st.integers(1, 30),
    window_s=st.sampled_from([0.5, 1.0, 60.0]),
    steps=st.lists(st.tuples(st.integers(0, 400), st.integers(1, 8), st.integers(0, 3)), max_size=80),
)
def test_a_sliding_window_is_an_exact_log(limit: int, window_s: float, steps: list[tuple[int, int, int]]) -> None:
    """What fits, what is left, the wait and the time until it is empty are those of counting every unit taken."""
    window = SlidingWindow(limit, window_s, 0.0)
    log: list[list[float]] = []  # when, units
    now_s = 0.0
    for pause, cost, unused in steps:
        now_s += pause * window_s / 256  # sums that floats hold exactly
        inside = [units for taken_s, units in log if now_s - taken_s < window_s]
        assert window.level(now_s) == limit - sum(inside)
        leaves_s = [taken_s + window_s - now_s for taken_s, _ in log if now_s - taken_s < window_s]
        assert window.full_in_s(now_s) == max(leaves_s, default=0.0)
        fits_in_s = [
            wait_s
            for wait_s in [0.0, *leaves_s]
            if sum(units for taken_s, units in log if now_s + wait_s - taken_s < window_s) + cost <= limit
        ]
        assert window.wait_s(now_s, cost) == (min(fits_in_s) if cost <= limit else math.inf)
        if window.wait_s(now_s, cost) == 0:
            window.take(now_s, cost)
            log.append([now_s, cost])
        elif log and unused <= log[0][1]:
            window.give_back(now_s, unused, log[0][0])  # if it has left the window, it is of no use any more
            log[0][1] -= unused


@given(
    kind=st.sampled_from(list(Limiter)),
    rpm=st.floats(1, 6000),
    burst_s=st.sampled_from([0.0, 1.0, 60.0]),
    window_s=st.sampled_from([1.0, 10.0, 60.0]),
    steps=st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=100),
)
def test_no_window_admits_more_with_a_neighbour(
    kind: Limiter, rpm: float, burst_s: float, window_s: float, steps: list[tuple[float, bool]]
) -> None:
    """Client and neighbour together: at most depth + rate * T in T seconds, or the limit in any sliding window."""
    budget = Budget({"requests": rpm}, burst_s, 0.0, window_s=window_s if kind is Limiter.SLIDING else None)
    limit = budget.buckets["requests"]
    now_s = taken = 0.0
    seen: list[tuple[float, float, float]] = []  # when, units taken by both before the step and after it

    def level() -> float:
        value = limit.level(now_s)
        assert value >= -1e-6
        return value

    for pause_s, neighbour in steps:
        then_s, then_owed = now_s, limit.owed
        now_s = then_s + pause_s
        left = level()
        before = taken = taken + then_owed - limit.owed  # the neighbour was given what came in
        if neighbour:
            budget.neighbour(now_s, Cost())
        else:
            assert isinstance(budget.admit(now_s, Cost()), Admitted) == (left >= 1 - 1e-6)
        taken += left - level()
        seen.append((now_s, before, taken))
    for first, (from_s, before, _) in enumerate(seen):
        for to_s, _, after in seen[first:]:
            if isinstance(limit, TokenBucket):
                assert after - before <= limit.depth + limit.rate * (to_s - from_s) + 1e-6
            elif to_s - from_s < limit.window_s - 1e-9:
                assert after - before <= limit.limit + 1e-6


@given(
    kind=st.sampled_from(list(Limiter)),
    steps=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 3),
            st.sampled_from(["take", "owe", "back", "change", "look"]),
            st.sampled_from([1.0, 3.0, 8.0]),
        ),
        max_size=12,
    ),
)
def test_looking_at_a_limit_changes_nothing(kind: Limiter, steps: list[tuple[float, str, float]]) -> None:
    """What is left depends on what was taken and given, never on who asked in between; while a neighbour waits,
    nothing is left for others.
    """

    def fresh() -> TokenBucket | SlidingWindow:
        return SlidingWindow(10.0, 1.0, 0.0) if kind is Limiter.SLIDING else TokenBucket(2.0, 10.0, 0.0)

    seen, alone, now_s = fresh(), fresh(), 0.0
    for pause_s, what, units in steps:
        then_s, now_s = now_s, now_s + pause_s
        for limit in (seen, alone):
            if what == "take":
                limit.take(now_s, units)
            elif what == "owe":
                limit.owe(now_s, units, 20.0)
            elif what == "back":
                limit.give_back(now_s, units, then_s)
            elif what == "change":
                limit.change(now_s, 2.5 * units, 0.5 + units / 4 if kind is Limiter.SLIDING else 5.0 * units)
        left = seen.level(now_s)
        assert deepcopy(alone).level(now_s) == pytest.approx(left, abs=1e-6)
        assert seen.owed == 0 or left <= 1e-6


@given(
    rpm=st.floats(1, 6000),
    tpm=st.floats(6_000, 1e6),
    window_s=st.sampled_from([1.0, 60.0]),
    steps=steps,
)
def test_waiting_as_long_as_a_window_says_is_enough(
    rpm: float, tpm: float, window_s: float, steps: list[tuple[float, float]]
) -> None:
    """A client that comes back after exactly retry_after_s is admitted when nobody else came."""
    budget, now_s = Budget({"requests": rpm, "tokens": tpm}, 0.0, 1e5, window_s=window_s), 1e5
    for pause_s, tokens in steps:
        now_s += pause_s
        cost = Cost(input_tokens=int(tokens), output_tokens=1)
        admission = budget.admit(now_s, cost)
        if isinstance(admission, Refused):
            now_s += admission.retry_after_s
            assert budget.admit(now_s, cost) == Admitted()


def test_a_window_below_one_unit_is_as_long_as_one_takes() -> None:
    """6 a minute in windows of one second: one in ten seconds, not sixty a minute."""
    budget = Budget({"requests": 6}, 1.0, 0.0, window_s=1.0)
    assert budget.admit(0.0, Cost()) == Admitted()
    assert budget.admit(1.0, Cost()) == Refused(9.0, "requests")
    assert budget.admit(10.0, Cost()) == Admitted()


def test_more_tokens_than_a_window_holds_never_fit() -> None:
    """And a lower limit holds at once: nothing goes until enough has left."""
    budget = Budget({"tokens": 600}, 1.0, 0.0, window_s=10.0)
    assert budget.admit(0.0, Cost(output_tokens=101)) == Refused(math.inf, "tokens")
    assert budget.admit(0.0, Cost(output_tokens=60)) == budget.admit(2.0, Cost(output_tokens=30)) == Admitted()
    budget.change(3.0, {"tokens": 240})
    assert budget.buckets["tokens"].level(3.0) == 40 - 90
    assert budget.admit(4.0, Cost(output_tokens=10)) == Refused(6.0, "tokens")
    assert budget.admit(4.0, Cost(output_tokens=11)) == Refused(8.0, "tokens")


def test_a_window_takes_back_what_was_not_used_while_it_counts() -> None:
    """Where it was charged, so that it leaves when the rest of that request does."""
    budget = Budget({"tokens": 600}, 1.0, 0.0, window_s=60.0)
    budget.admit(0.0, Cost(output_tokens=400))
    budget.admit(1.0, Cost(output_tokens=200))
    budget.give_back(2.0, Cost(requests=0.0, output_tokens=300), 0.0)
    assert budget.buckets["tokens"].level(2.0) == 300
    assert budget.buckets["tokens"].level(60.0) == 400
    budget.give_back(60.0, Cost(requests=0.0, output_tokens=50), 0.0)
    assert budget.buckets["tokens"].level(60.0) == 400


# --- a neighbour on the same budget ---------------------------------------------------------------------------------


def test_a_neighbour_takes_first_and_never_more_than_there_is() -> None:
    """What it cannot have at once it gets before anybody else; beyond ten it gives up."""
    budget = Budget({"requests": 60}, 1.0, 0.0)
    for _ in range(3):
        budget.neighbour(0.0, Cost())
    assert budget.buckets["requests"].level(0.0) == 0
    assert [isinstance(budget.admit(at / 2, Cost()), Admitted) for at in range(1, 7)] == [False] * 5 + [True]
    for _ in range(1000):
        budget.neighbour(3.0, Cost(input_tokens=5))
    assert isinstance(budget.admit(13.5, Cost()), Refused)
    assert budget.admit(14.0, Cost()) == Admitted()


def test_a_neighbour_comes_once_in_each_interval() -> None:
    """At moments drawn from the seed; asked for piece by piece they are the same."""
    entry = Entry(at_s=2, for_s=10, neighbour_rpm=120, neighbour_tokens=7)
    timeline = Timeline(3)
    timeline.plan([entry], 100.0)
    coming = timeline.neighbours(0.0, 1000.0)
    assert [math.floor((time_s - 102.0) / 0.5) for time_s, _ in coming] == list(range(20))
    assert {cost for _, cost in coming} == {Cost(input_tokens=7)}
    pieces = [request for at in range(2000) for request in timeline.neighbours(100 + at / 100, 100 + (at + 1) / 100)]
    assert pieces == coming
    other = Timeline(4)
    other.plan([entry], 100.0)
    assert other.neighbours(0.0, 1000.0) != coming
    timeline.clear()
    assert timeline.neighbours(0.0, 1000.0) == []


@pytest.mark.parametrize("limiter", list(Limiter))
def test_a_neighbour_leaves_a_client_what_it_does_not_take(limiter: Limiter) -> None:
    """Half of 600/min for 20 s: an eager client gets the other half, and all of it before and after."""
    entries = (Entry(at_s=20, for_s=20, neighbour_rpm=300),)
    provider = Provider(Scenario(rpm=600, limiter=limiter, window_s=1.0, timeline=entries), 0.0, "run")
    admitted = [at / 100 for at in range(6000) if ask(provider, at / 100).arrival.admitted]
    before, during, after = (sum(from_s <= at_s < from_s + 20 for at_s in admitted) for from_s in (0, 20, 40))
    assert before == pytest.approx(205, abs=6)
    assert during == pytest.approx(100, abs=6)
    assert after == pytest.approx(200, abs=6)


def test_what_happens_between_two_requests_happens_at_its_own_time() -> None:
    """Limits and neighbours: a provider that nobody asks for a while has the level of one that is looked at often."""
    entries = (
        Entry(at_s=1, for_s=4, rpm=60),
        Entry(at_s=2, for_s=7, neighbour_rpm=90),
        Entry(at_s=6, rpm=120),
    )
    scenario = Scenario(rpm=600, burst_s=10.0, timeline=entries)
    seldom, often = (Provider(scenario, 0.0, "run") for _ in range(2))
    for provider in (seldom, often):
        for _ in range(100):
            ask(provider, 0.0)
    for at in range(1, 800):
        often.limits(at / 100)
    levels = [provider.budget(None, 8.0).buckets["requests"].level(8.0) for provider in (seldom, often)]
    assert levels[0] == pytest.approx(levels[1])
    # Full at 60/min by 2 s; then 3 s of 60, 1 s of 600 and 2 s of 120 a minute flow in, and 6 s of 90 go.
    assert levels[0] == pytest.approx(10 + 3 + 10 + 4 - 9, abs=2.0)


def test_a_bucket_is_full_from_the_start() -> None:
    """Of the limits of then: an outage before the first request that is counted makes it no deeper."""
    entries = (Entry(for_s=1, fault=Fault.OUTAGE), Entry(at_s=1, rpm=600))
    provider = Provider(Scenario(rpm=60, timeline=entries), 0.0, "run")
    assert [ask(provider, at_s).arrival.status for at_s in (0.0, 1.0, 1.0)] == [503, 200, 429]


# --- headers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.12, "120ms"),
        (0.0001, "1ms"),
        (1, "1s"),
        (1.5, "1.5s"),
        (8.64, "8.64s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (61.25, "1m1.25s"),
        (3600, "1h0m0s"),
        (86400, "24h0m0s"),
    ],
)
def test_durations_have_the_form_of_go(seconds: float, text: str) -> None:
    """As OpenAI writes x-ratelimit-reset-*."""
    assert go_duration(seconds) == text


def test_limits_are_told_as_each_provider_tells_them() -> None:
    """Names, units and formats of both."""
    budget = Budget({"requests": 600, "input_tokens": 6000, "output_tokens": 1200}, 1.0, 0.0)
    budget.admit(0.0, Cost(input_tokens=50, output_tokens=4))
    assert limit_lines(HeaderStyle.OPENAI, budget, 0.0, 0.0).splitlines() == [
        "x-ratelimit-limit-requests: 600",
        "x-ratelimit-remaining-requests: 9",
        "x-ratelimit-reset-requests: 100ms",
    ]
    assert limit_lines(HeaderStyle.ANTHROPIC, budget, 0.0, 1_700_000_000.0).splitlines() == [
        "anthropic-ratelimit-requests-limit: 600",
        "anthropic-ratelimit-requests-remaining: 9",
        "anthropic-ratelimit-requests-reset: 2023-11-14T22:13:21Z",
        "anthropic-ratelimit-tokens-limit: 7200",
        "anthropic-ratelimit-tokens-remaining: 66",
        "anthropic-ratelimit-tokens-reset: 2023-11-14T22:13:21Z",
        "anthropic-ratelimit-input-tokens-limit: 6000",
        "anthropic-ratelimit-input-tokens-remaining: 50",
        "anthropic-ratelimit-input-tokens-reset: 2023-11-14T22:13:21Z",
        "anthropic-ratelimit-output-tokens-limit: 1200",
        "anthropic-ratelimit-output-tokens-remaining: 16",
        "anthropic-ratelimit-output-tokens-reset: 2023-11-14T22:13:21Z",
    ]
    assert limit_lines(HeaderStyle.NONE, budget, 0.0, 0.0) == ""
    assert rfc3339(0.2) == "1970-01-01T00:00:01Z"


def remaining(budget: Budget, now_s: float, round_to: float = 0.0) -> int:
    """What OpenAI's headers say is left of the requests."""
    lines = limit_lines(HeaderStyle.OPENAI, *budget.as_it_was(now_s), 0.0, round_to).splitlines()
    return int(lines[1].removeprefix("x-ratelimit-remaining-requests: "))


def test_a_minute_bucket_tells_the_minute() -> None:
    """Limit and what is left are of one size; the reset is when the bucket is full again."""
    budget = Budget({"requests": 600}, 60.0, 0.0)
    for _ in range(150):
        assert budget.admit(0.0, Cost()) == Admitted()
    assert limit_lines(HeaderStyle.OPENAI, budget, 0.0, 0.0).splitlines() == [
        "x-ratelimit-limit-requests: 600",
        "x-ratelimit-remaining-requests: 450",
        "x-ratelimit-reset-requests: 15s",
    ]
    assert remaining(budget, 10.0) == 550
    assert sum(isinstance(budget.admit(15.0, Cost()), Admitted) for _ in range(1000)) == 600


def test_a_sliding_window_tells_what_is_in_it() -> None:
    """What is left is the limit less what the window holds; the reset is when the last has left."""
    budget = Budget({"requests": 600}, 1.0, 0.0, window_s=60.0)
    for at in range(150):
        budget.admit(at / 10, Cost())
    assert limit_lines(HeaderStyle.OPENAI, budget, 30.0, 0.0).splitlines() == [
        "x-ratelimit-limit-requests: 600",
        "x-ratelimit-remaining-requests: 450",
        "x-ratelimit-reset-requests: 44.9s",
    ]
    assert remaining(budget, 65.0) == 501
    assert remaining(budget, 75.0) == 600


def test_what_is_left_is_never_negative() -> None:
    """Not in debt, and not after the limit of a window was lowered below what it holds."""
    bucket, window = Budget({"requests": 60}, 10.0, 0.0), Budget({"requests": 60}, 1.0, 0.0, window_s=60.0)
    bucket.buckets["requests"].take(0.0, 50.0)
    for _ in range(60):
        window.admit(0.0, Cost())
    window.change(1.0, {"requests": 30})
    assert [remaining(budget, 1.0, round_to) for budget in (bucket, window) for round_to in (0.0, 0.05)] == [0] * 4


@pytest.mark.parametrize(("taken", "told"), [(0, 600), (1, 570), (29, 570), (30, 570), (31, 540), (599, 0)])
def test_what_is_left_is_rounded_down(taken: int, told: int) -> None:
    """To a multiple of the share: 5 % of 600 is 30."""
    budget = Budget({"requests": 600}, 60.0, 0.0)
    for _ in range(taken):
        budget.admit(0.0, Cost())
    assert remaining(budget, 0.0, 0.05) == told


@given(
    window_s=st.sampled_from([None, 1.0, 60.0]),
    lag_s=st.sampled_from([0.25, 0.5, 3.0]),
    steps=st.lists(st.tuples(st.integers(0, 50), st.sampled_from("aaangc")), max_size=60),
)
# units come back while a neighbour waits, and a request comes at the window's edge
@example(window_s=1.0, lag_s=0.25, steps=[(0, "n"), (1, "n"), (0, "g"), (32, "a"), (48, "a"), (16, "c"), (16, "a")])
@example(window_s=1.0, lag_s=0.5, steps=[(0, "n"), (1, "n"), (0, "g"), (32, "a"), (64, "c")])
def test_late_headers_tell_the_state_of_then(
    window_s: float | None, lag_s: float, steps: list[tuple[int, str]]
) -> None:
    """Whatever happened since: requests, a neighbour, units given back, other limits."""

    def do(budget: Budget, now_s: float, what: str) -> None:
        if what == "a":
            budget.admit(now_s, Cost(output_tokens=10))
        elif what == "n":
            budget.neighbour(now_s, Cost(input_tokens=20))
        elif what == "g":
            budget.give_back(now_s, Cost(requests=0.0, output_tokens=3), now_s)
        else:
            budget.change(now_s, {"requests": 60 + now_s, "tokens": 4000})

    def fresh(lag_s: float) -> Budget:
        return Budget({"requests": 120, "tokens": 2000}, 5.0, 0.0, window_s=window_s, lag_s=lag_s)

    late, now_s = fresh(lag_s), 0.0
    done: list[tuple[float, str]] = []
    for pause, what in steps:
        now_s += pause / 64
        do(late, now_s, what)
        done.append((now_s, what))
        past, then_s = late.as_it_was(now_s)
        twin = fresh(0.0)
        for time_s, did in done:
            if time_s <= now_s - lag_s:
                do(twin, time_s, did)
        assert then_s == now_s - lag_s
        assert past.per_minute == twin.per_minute
        for dimension, bucket in twin.buckets.items():
            assert past.buckets[dimension].level(then_s) == pytest.approx(bucket.level(then_s), abs=1e-6)


def test_late_headers_of_a_provider() -> None:
    """Half a second late: the first answers tell a full bucket; Anthropic's reset is counted from then."""
    provider = Provider(Scenario(rpm=600, header_lag_s=0.5), 0.0, "run")

    def left(now_s: float) -> int:
        head = ask(provider, now_s).answer.partition(b"\r\n\r\n")[0].decode()
        return int(re.findall(r"x-ratelimit-remaining-requests: (\d+)", head)[0])

    assert [left(at_s) for at_s in (0.0, 0.0, 0.0, 0.4, 0.55, 0.65)] == [10, 10, 10, 10, 7, 8]
    lines = provider.limit_lines(HeaderStyle.ANTHROPIC, None, 0.8, 1_700_000_000.0).splitlines()
    assert lines[2] == "anthropic-ratelimit-requests-reset: 2023-11-14T22:13:20Z"


def test_retry_after_is_whole_seconds_and_openai_adds_milliseconds() -> None:
    """Never less than the wait; nothing where no wait helps."""
    assert retry_lines(HeaderStyle.OPENAI, 0.1204) == "retry-after: 1\r\nretry-after-ms: 121\r\n"
    assert retry_lines(HeaderStyle.ANTHROPIC, 1.2) == "retry-after: 2\r\n"
    assert retry_lines(HeaderStyle.OPENAI, math.inf) == ""


# --- chance ---------------------------------------------------------------------------------------------------------


def test_chance_depends_on_seed_number_and_purpose_only() -> None:
    """The same in every run and on every machine, and evenly spread."""
    assert uniform(1, 2, "x") == pytest.approx(0.5253373387801381)
    drawn = [uniform(0, number, "x") for number in range(4000)]
    assert all(0 <= value < 1 for value in drawn)
    assert sum(drawn) / 4000 == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("text", ["0.05±0.02", "0.05+-0.02", " 0.05 +/- 0.02 "])
def test_a_normal_latency(text: str) -> None:
    """Mean and spread are those that were asked for; never below zero."""
    drawn = [Latency.parse(text).draw_s(0, number) for number in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.05, abs=0.002)
    assert min(drawn) >= 0
    assert len(set(drawn)) > 1900


def test_a_lognormal_latency() -> None:
    """Half of the draws are below the median."""
    drawn = [Latency.parse("lognormal(0.2, 0.5)").draw_s(3, number) for number in range(2000)]
    assert sum(value < 0.2 for value in drawn) == pytest.approx(1000, abs=80)


@pytest.mark.parametrize("text", ["", "fast", "-1", "0.05±", "lognormal(1)", "nan", "1e3"])
def test_a_latency_that_is_not_understood(text: str) -> None:
    """The message names the value and the forms."""
    with pytest.raises(ConfigurationError, match=re.escape(repr(text))):
        Scenario(latency=text)


# --- the timeline ---------------------------------------------------------------------------------------------------


def test_limits_change_and_come_back() -> None:
    """The entry that began last wins while it lasts."""
    timeline = Timeline(0)
    timeline.plan([Entry(at_s=3, rpm=400), Entry(at_s=5, for_s=2, rpm=100, tpm=9)], 100.0)
    seen = [timeline.limits(100.0 + second) for second in (0, 3, 5, 6.99, 7)]
    assert seen == [
        {},
        {"requests": 400},
        {"requests": 100, "tokens": 9},
        {"requests": 100, "tokens": 9},
        {"requests": 400},
    ]


def test_a_share_of_requests_is_hit_the_same_way_each_time() -> None:
    """A share of 5 % hits about that, and with the same seed the same requests."""

    def hits(seed: int) -> list[int]:
        timeline = Timeline(seed)
        timeline.plan([Entry(fault=Fault.SERVER_ERROR, share=0.05)], 0.0)
        return [number for number in range(4000) if timeline.hit(number, b"", 1.0)[0] is not None]

    assert hits(1) == hits(1) != hits(2)
    assert len(hits(1)) == pytest.approx(200, abs=50)


def test_the_first_fault_wins_and_slowness_adds_up() -> None:
    """Slow is no fault of its own: another may meet the same request."""
    timeline = Timeline(0)
    slow, outage, match = (
        Entry(fault=Fault.SLOW, factor=3),
        Entry(fault=Fault.OUTAGE),
        Entry(fault=Fault.BAD_REQUEST, match="poison"),
    )
    timeline.plan([slow, slow, match, outage], 0.0)
    assert timeline.hit(1, b"a poisoned body", 0.0) == (match, 9.0)
    assert timeline.hit(1, b"a good body", 0.0) == (outage, 9.0)


# --- the provider, in virtual time ----------------------------------------------------------------------------------


def body_of(text: str = "hello", **more: object) -> bytes:
    """A chat request's body."""
    content = {"model": "gpt-4o-mini", "max_tokens": 40, "messages": [{"role": "user", "content": text}]}
    return json.dumps(content | more).encode()


def ask(provider: Provider, now_s: float, body: bytes | None = None, **headers: str) -> Verdict:
    """Put one chat request to a provider."""
    provider.begin(now_s)
    return provider.decide(Request("POST", CHAT, headers, body or body_of(), True), now_s, 1e9 + now_s)


def test_the_limit_follows_the_timeline_in_virtual_time() -> None:
    """600/min, from 10 s on 60/min: an eager client gets both exactly."""
    provider = Provider(Scenario(rpm=600, timeline=(Entry(at_s=10, rpm=60),)), 0.0, "run")
    admitted = [at / 100 for at in range(2000) if ask(provider, at / 100).arrival.admitted]
    assert sum(at_s < 10 for at_s in admitted) == 10 + 99  # depth, and what flowed in until 9.99 s
    assert most_in_window([at_s for at_s in admitted if at_s < 10]) <= 20
    assert 10 <= sum(at_s >= 10 for at_s in admitted) <= 11


def test_a_budget_for_each_key() -> None:
    """One key's requests leave the other's alone; the log knows neither."""
    provider = Provider(Scenario(rpm=60, per_key=True), 0.0, "run")
    keys = ["a", "a", "b", "b"]
    arrivals = [ask(provider, 0.0, authorization=f"Bearer sk-{key}").arrival for key in keys]
    assert [arrival.status for arrival in arrivals] == [200, 429, 200, 429]
    assert arrivals[0].key == arrivals[1].key != arrivals[2].key
    assert "sk-a" not in str(arrivals)


def test_one_too_many_in_hand_is_refused() -> None:
    """Two may be in flight; the third gets a 429 that says why; when one has ended the next may come."""
    provider = Provider(Scenario(in_flight=2, per_key=True), 0.0, "run")
    first, second, third = (ask(provider, 0.0, authorization="a") for _ in range(3))
    assert [verdict.arrival.status for verdict in (first, second, third)] == [200, 200, 429]
    assert b"concurrent" in third.answer
    assert b"retry-after: 1" in third.answer
    assert ask(provider, 0.0, authorization="b").arrival.admitted  # another key's are its own
    provider.ended(third)  # it was never in flight
    assert ask(provider, 0.1, authorization="a").arrival.status == 429
    provider.ended(first)
    assert ask(provider, 0.2, authorization="a").arrival.admitted


def test_a_bound_in_hand_may_be_untold_and_may_move() -> None:
    """Such a 429 reads as any other; from a second on four may be in flight."""
    scenario = Scenario(in_flight=1, in_flight_told=False, retry_after=False, timeline=(Entry(at_s=1, in_flight=4),))
    provider = Provider(scenario, 0.0, "run")
    assert ask(provider, 0.0).arrival.admitted
    refused = ask(provider, 0.5)
    assert refused.arrival.status == 429
    assert b"concurren" not in refused.answer
    assert b"retry-after" not in refused.answer
    assert [ask(provider, 1.0).arrival.admitted for _ in range(4)] == [True, True, True, False]


def test_beyond_its_knee_a_provider_is_slower() -> None:
    """Up to two in flight as ever; four take 2² times as long."""
    provider = Provider(Scenario(knee=2, knee_power=2.0, latency="0.1"), 0.0, "run")
    assert [ask(provider, 0.0).arrival.latency_s for _ in range(4)] == pytest.approx([0.1, 0.1, 0.225, 0.4])


def test_a_client_that_leaves_is_in_hand_no_more() -> None:
    """Its place is free at once, though its answer was to come later."""
    with Simulator(Scenario(in_flight=1, latency="30")) as provider:
        host, port = provider.url.removeprefix("http://").split(":")
        leaving = http.client.HTTPConnection(host, int(port), timeout=10)
        leaving.request("POST", CHAT, body_of())
        while not provider.arrivals():
            time.sleep(0.01)
        leaving.close()
        statuses: set[int | None] = set()
        deadline = time.monotonic() + 10
        while None not in statuses and time.monotonic() < deadline:
            asking = http.client.HTTPConnection(host, int(port), timeout=0.3)
            asking.request("POST", CHAT, body_of())
            try:
                statuses.add(asking.getresponse().status)
            except TimeoutError:
                statuses.add(None)  # it is in flight, and is being answered
            finally:
                asking.close()
        assert None in statuses


@pytest.mark.parametrize("wrong", [{"in_flight": 0}, {"knee": 0}, {"knee": 3, "knee_power": 0.0}])
def test_bounds_in_hand_are_checked(wrong: dict[str, Any]) -> None:
    """One line that names the field."""
    with pytest.raises(ConfigurationError, match=r"in_flight|knee"):
        Scenario(**wrong)


def test_the_oracle_of_a_bound_in_hand_is_littles_law() -> None:
    """Twenty in flight at half a second are 40/s; with a limit below that, the limit; a knee counts as a bound."""
    crowd = Scenario(in_flight=20, latency="0.5")
    assert oracle(crowd, 60.0).calls == pytest.approx(20 * 60 / 0.5)
    assert oracle(replace(crowd, rpm=600, burst_s=1), 60.0).calls == pytest.approx(600, rel=0.02)
    assert oracle(Scenario(knee=30, latency="0.2"), 10.0).calls == pytest.approx(1500)
    growing = replace(crowd, timeline=(Entry(at_s=30, in_flight=40),))
    assert oracle(growing, 60.0).calls == pytest.approx(40 * 30 + 80 * 30)
    assert oracle(Scenario(latency="lognormal(0.5, 0.5)", in_flight=20), 60.0).calls == pytest.approx(2118, rel=0.01)


def test_reconciling_gives_back_what_was_not_used() -> None:
    """With it, unused output tokens are back with the answer; without it they are gone."""
    for reconcile in (False, True):
        provider = Provider(Scenario(tpm=6000, burst_s=60, reconcile=reconcile), 0.0, "run")
        verdict = ask(provider, 0.0)
        provider.give_back(verdict, 0.0)
        arrival, level = verdict.arrival, provider.budget(None, 0.0).buckets["tokens"].level(0.0)
        assert arrival.output_tokens < 40
        used = arrival.input_tokens + arrival.output_tokens if reconcile else arrival.cost_tokens
        assert 6000 - level == used


def test_the_same_body_and_seed_give_the_same_answer() -> None:
    """Text and usage repeat, ids do not; another seed or another body says something else."""

    def told(seed: int, text: str) -> list[dict[str, Any]]:
        provider = Provider(Scenario(seed=seed), 0.0, "run")
        answers = [ask(provider, 0.0, body_of(text)).answer for _ in range(2)]
        return [json.loads(answer.partition(b"\r\n\r\n")[2]) for answer in answers]

    def said(answer: dict[str, Any]) -> object:
        return answer["choices"][0]["message"]["content"], answer["usage"]

    first, again = told(1, "a question")
    assert said(first) == said(again) == said(told(1, "a question")[0])
    assert first["id"] != again["id"]
    assert said(first) != said(told(2, "a question")[0])
    assert said(first) != said(told(1, "another")[0])


@pytest.mark.parametrize("max_tokens", [1, 2, 40, 2000, 1_000_000])
def test_an_answer_is_as_long_as_its_usage_says(max_tokens: int) -> None:
    """A word a token, at most max_tokens; the prompt is a token per 4 bytes and never echoed."""
    verdict = ask(Provider(Scenario(), 0.0, "run"), 0.0, body_of("xylophone " * 10, max_tokens=max_tokens))
    answer = json.loads(verdict.answer.partition(b"\r\n\r\n")[2])
    choice, usage = answer["choices"][0], answer["usage"]
    words = choice["message"]["content"].split()
    assert 1 <= len(words) == usage["completion_tokens"] == verdict.arrival.output_tokens <= max_tokens
    assert (choice["finish_reason"] == "length") == (len(words) == max_tokens)
    assert "xylophone" not in words
    messages = json.dumps([{"role": "user", "content": "xylophone " * 10}])
    assert usage["prompt_tokens"] == math.ceil(len(messages) / 4)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.SLOW])
def test_what_the_edge_refuses_costs_nothing_and_what_the_engine_fails_does(fault: Fault) -> None:
    """4xx, auth, quota and outages leave the budget alone; every other fault met an admitted request."""
    provider = Provider(Scenario(rpm=60, timeline=(Entry(fault=fault),)), 0.0, "run")
    arrival = ask(provider, 0.0).arrival
    assert arrival.admitted == fault.charged
    assert provider.budget(None, 0.0).buckets["requests"].level(0.0) == (0 if fault.charged else 1)
    assert not arrival.good


def test_faults_of_the_engine_do_not_hide_the_limit() -> None:
    """A request that the limit refuses never reaches the engine that would have failed it."""
    provider = Provider(Scenario(rpm=60, timeline=(Entry(fault=Fault.SERVER_ERROR),)), 0.0, "run")
    assert [ask(provider, 0.0).arrival.status for _ in range(2)] == [500, 429]


def test_slow_multiplies_the_latency_only() -> None:
    """The answer is good all the same."""
    provider = Provider(Scenario(latency="0.2", timeline=(Entry(fault=Fault.SLOW, factor=5),)), 0.0, "run")
    verdict = ask(provider, 0.0)
    assert verdict.arrival.latency_s == pytest.approx(1.0)
    assert verdict.arrival.good
    assert verdict.ending is Ending.ANSWER


# --- scenario files -------------------------------------------------------------------------------------------------


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    """And a scenario survives the way through a file."""
    toml, as_json = tmp_path / "s.toml", tmp_path / "s.json"
    toml.write_text(
        'rpm = 600\nlatency = "0.05±0.02"\nheaders = "none"\n'
        '[[timeline]]\nat_s = 5\nfor_s = 10\nfault = "outage"\nhow = "refused"\n'
        "[[timeline]]\nfault = 500\nshare = 0.05\n"
        '[[timeline]]\nmatch = "poison"\nstatus = 400\n'
    )
    scenario = read_scenario(toml)
    assert scenario == Scenario(
        rpm=600,
        latency="0.05±0.02",
        headers=HeaderStyle.NONE,
        timeline=(
            Entry(at_s=5, for_s=10, fault=Fault.OUTAGE, how=Outage.REFUSED),
            Entry(fault=Fault.SERVER_ERROR, share=0.05),
            Entry(match="poison", fault=Fault.BAD_REQUEST),
        ),
    )
    as_json.write_bytes(scenario.as_json())
    assert read_scenario(as_json) == scenario


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rpm = ", "not TOML"),
        ("rmp = 600", "rmp is not known: did you mean rpm?"),
        ("rpm = 'many'", "rpm = 'many': expected"),
        ("rpm = -5", "rpm = -5.0: use a number above 0"),
        ("rpm = nan", "rpm = nan: use a number above 0"),
        ("headers = 'azure'", "use one of auto, openai, anthropic, none"),
        ("burst_s = -1", "burst_s = -1.0: use"),
        ("limiter = 'leaky'", "use one of bucket, sliding"),
        ("window_s = 0", "window_s = 0.0: use seconds above 0"),
        ("header_lag_s = -1", "header_lag_s = -1.0: use seconds from 0 up"),
        ("header_round = 2", "header_round = 2.0: use a share from 0 to 1"),
        ("[[timeline]]\nneighbour_rpm = 0", "neighbour_rpm = 0.0: use requests a minute above 0"),
        ("[[timeline]]\nneighbour_rpm = 1\nneighbour_tokens = -1", "neighbour_tokens = -1: use tokens from 0 up"),
        ("[[timeline]]\nrpm = 1\nneighbour_tokens = 1", "neighbour_tokens = 1: needs neighbour_rpm"),
        ("timeline = 3", "timeline = 3: use a list"),
        ("[[timeline]]\nat_s = 1", "timeline[0]: the entry at 1.0 s changes nothing"),
        ("[[timeline]]\nfault = 'boom'", "timeline[0]: fault = 'boom'"),
        (
            "[[timeline]]\nfault = '500'\n[[timeline]]\nfault = 'reset'\nshare = 5",
            "timeline[1]: share = 5.0: use a share",
        ),
        ("[[timeline]]\nfault = '500'\nstatus = 500", "two names of one thing"),
        ("[[timeline]]\nfault = 'outage'\nhow = 'refused'", "needs for_s"),
        ("[[timeline]]\nfault = 'outage'\nfor_s = 0", "for_s = 0.0: use seconds above 0"),
        ("[[timeline]]\nfault = 'hang'\nmatch = ''", "match is empty"),
        ("[[timeline]]\nfault = 'hang'\nat_s = -1", "at_s = -1.0: use seconds from 0 up"),
    ],
)
def test_a_scenario_file_that_is_wrong(tmp_path: Path, text: str, problem: str) -> None:
    """One line that names the file, the place and the fix; from the command line with exit code 2."""
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(problem)) as caught:
        read_scenario(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    result = CliRunner().invoke(simulate, ["--scenario", str(path)])
    assert (result.exit_code, result.output.count("\n")) == (2, 1)


@pytest.mark.parametrize("raw", [[], 3, None, {"timeline": [7]}])
def test_a_scenario_of_the_wrong_shape(raw: object) -> None:
    """A table is wanted."""
    with pytest.raises(ConfigurationError, match="is a table"):
        scenario_of(raw)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--scenario", "/nowhere"],
        ["--rpm", "0"],
        ["--latency", "fast"],
        ["--log", "/nowhere/log"],
        ["--port", "x"],
        ["--limiter", "leaky"],
        ["--window-s", "0.0"],
        ["--header-lag-s", "-1.0"],
        ["--header-round", "1.5"],
    ],
)
def test_bad_options_end_with_2(arguments: list[str]) -> None:
    """The message names the value."""
    result = CliRunner().invoke(simulate, arguments)
    assert result.exit_code == 2
    assert arguments[1] in result.output


# --- the figures of the log -----------------------------------------------------------------------------------------


def arrival(n: int, t: float, status: int = 200, **more: Any) -> Arrival:
    """A line of a log."""
    return Arrival(n=n, t=t, unix=1e9 + t, path=CHAT, status=status, **more)


@given(st.lists(st.integers(0, 5000).map(lambda ms: ms / 1000), max_size=40), st.sampled_from([0.25, 1.0, 2.0]))
def test_most_in_window_looks_at_every_window(times: list[float], window_s: float) -> None:
    """The fullest window begins with an event, so counting from each is the truth."""
    truth = max((sum(0 <= time_s - first < window_s for time_s in times) for first in times), default=0)
    assert most_in_window(times, window_s) == truth


def test_rate_and_goodput() -> None:
    """Events over the span; good answers over the time asked for."""
    assert rate([0.0, 0.5, 1.0]) == 2.0
    assert rate([]) == rate([1.0]) == rate([1.0, 1.0]) == 0.0
    arrivals = [
        arrival(1, 0.0),
        arrival(2, 1.0, 429),
        arrival(3, 2.0),
        arrival(4, 3.0, fault="malformed"),
        arrival(5, 4.0),
    ]
    assert goodput(arrivals) == 3 / 4
    assert goodput(arrivals, after_s=2.0) == 2 / 2
    assert goodput(arrivals, after_s=0.0, until_s=2.0) == 1 / 2
    assert goodput([]) == goodput(arrivals, after_s=9.0) == 0.0


def test_duplicates_and_lost() -> None:
    """Calls are told apart by their id, else by their body, or as the caller says."""
    arrivals = [
        arrival(1, 0, call_id="a"),
        arrival(2, 0, call_id="a", status=429),
        arrival(3, 0, body="b"),
        arrival(4, 0, call_id="c", status=500, body="b"),
    ]
    assert duplicates(arrivals) == {"a": 2}
    assert duplicates(arrivals, by=lambda one: one.body or None) == {"b": 2}
    assert lost(["a", "b", "c", "d"], arrivals) == {"c", "d"}


def test_a_line_that_a_kill_cut_short_is_left_out() -> None:
    """But a broken line in the middle is an error."""
    line = b'{"event":"request","n":1,"t":0.5,"unix":1.0,"path":"/x","status":200}\n'
    assert len(parse_log(line + line[:20]).arrivals) == 1
    with pytest.raises(ValueError, match="malformed"):
        parse_log(line[:20] + b"\n" + line)


# --- over HTTP, against a real process ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: dict[str, str]
    text: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def connect(provider: Simulator) -> http.client.HTTPConnection:
    """A connection to the provider."""
    return http.client.HTTPConnection(provider.url.removeprefix("http://"), timeout=PATIENCE_S)


def post(
    provider: Simulator,
    path: str = CHAT,
    body: bytes | None = None,
    *,
    connection: http.client.HTTPConnection | None = None,
    **headers: str,
) -> Answer:
    """One request, on a connection of its own unless one is given."""
    through = connection or connect(provider)
    try:
        through.request("POST", path, body or body_of(), {name.replace("_", "-"): at for name, at in headers.items()})
        answer = through.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        if connection is None:
            through.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    """A provider without limits, whose faults each test sets by /_control."""
    with Simulator(Scenario(latency="0")) as provider:
        yield provider


@pytest.fixture
def calm(shared: Simulator) -> Iterator[Simulator]:
    """The shared provider with nothing on its timeline, before and after."""
    shared.control(clear=True)
    yield shared
    shared.control(clear=True)


def test_openai_and_anthropic_shapes(calm: Simulator) -> None:
    """Every path answers in its provider's form, on one connection that is kept."""
    connection = connect(calm)
    chat = post(calm, CHAT, connection=connection)
    message = post(calm, MESSAGES, connection=connection, x_api_key="k")
    response = post(calm, RESPONSES, b'{"input": "hello", "max_output_tokens": 9}', connection=connection)
    vectors = post(calm, EMBEDDINGS, b'{"input": ["a", "b", "a"], "dimensions": 3}', connection=connection)
    connection.close()
    assert chat.json["object"] == "chat.completion"
    assert chat.json["choices"][0]["message"]["role"] == "assistant"
    assert chat.headers["x-request-id"].startswith("req_")
    assert chat.headers["openai-processing-ms"] == "0"
    assert message.json["type"] == "message"
    assert message.json["content"][0]["type"] == "text"
    assert set(message.json["usage"]) == {"input_tokens", "output_tokens"}
    assert message.headers["request-id"].startswith("req_")
    assert response.json["output"][0]["content"][0]["type"] == "output_text"
    first, second, third = (item["embedding"] for item in vectors.json["data"])
    assert first == third != second
    assert math.hypot(*first) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        (CHAT, b"{", 400, "JSON"),
        (CHAT, b'{"messages": []}', 400, "messages"),
        (CHAT, b'{"messages": [1], "max_tokens": 0}', 400, "max_tokens"),
        (CHAT, b'{"messages": [1], "stream": true}', 400, "stream"),
        (CHAT, b'{"messages": "\xff"}', 400, "JSON"),
        (CHAT, b'{"messages": ' + b"[" * 100_000, 400, "JSON"),
        (CHAT, b'{"messages": [1], "max_tokens": 1' + b"0" * 400 + b"}", 400, "max_tokens"),
        (EMBEDDINGS, rb'{"input": "\ud800"}', 400, "JSON"),
        (MESSAGES, b'{"messages": [1]}', 400, "max_tokens"),
        (EMBEDDINGS, b'{"model": "m"}', 400, "input"),
        (EMBEDDINGS, b'{"input": "x", "dimensions": 100000}', 400, "dimensions"),
        ("/v1/nothing", b"{}", 404, "/v1/nothing"),
    ],
)
def test_a_request_that_is_wrong(calm: Simulator, path: str, body: bytes, status: int, word: str) -> None:
    """Refused with the provider's error body, and logged."""
    before = len(calm.arrivals())
    answer = post(calm, path, body)
    assert answer.status == status
    assert word in answer.json["error"]["message"]
    (seen,) = calm.arrivals()[before:]
    assert (seen.status, seen.admitted, seen.path) == (status, False, path)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize(
    ("fault", "status", "openai", "anthropic"),
    [
        ("400", 400, "invalid_request_error", "invalid_request_error"),
        ("401", 401, "invalid_request_error", "authentication_error"),
        ("402", 402, "insufficient_quota", "billing_error"),
        ("403", 403, "invalid_request_error", "permission_error"),
        ("404", 404, "invalid_request_error", "not_found_error"),
        ("408", 408, "timeout", "timeout_error"),
        ("409", 409, "conflict_error", "conflict_error"),
        ("413", 413, "invalid_request_error", "request_too_large"),
        ("422", 422, "invalid_request_error", "invalid_request_error"),
        ("429", 429, "requests", "rate_limit_error"),
        ("500", 500, "server_error", "api_error"),
        ("502", 502, None, None),
        ("503", 503, "server_error", "api_error"),
        ("504", 504, None, None),
        ("529", 529, "server_error", "overloaded_error"),
        ("auth", 401, "invalid_request_error", "authentication_error"),
        ("outage", 503, "server_error", "api_error"),
    ],
)
def test_faults_that_are_a_status(
    calm: Simulator, path: str, fault: str, status: int, openai: str | None, anthropic: str | None
) -> None:
    """Status and error type are those of the provider whose path it is; the proxies' speak HTML."""
    calm.control(fault=fault, retry_after_s=7)
    answer = post(calm, path)
    assert answer.status == status
    assert answer.headers["retry-after"] == "7"
    kind = openai if path == CHAT else anthropic
    if kind is None:
        assert answer.headers["content-type"] == "text/html"
    else:
        assert answer.json["error"]["type"] == kind
        assert (answer.json.get("type") == "error") == (path == MESSAGES)
    assert calm.arrivals()[-1].fault == fault


def test_quota_is_told_as_each_provider_tells_it(calm: Simulator) -> None:
    """OpenAI by a 429 with insufficient_quota, Anthropic by a 400 about the balance."""
    calm.control(fault="quota")
    assert (post(calm).status, post(calm).json["error"]["code"]) == (429, "insufficient_quota")
    answer = post(calm, MESSAGES)
    assert answer.status == 400
    assert "credit balance" in answer.json["error"]["message"]


@pytest.mark.parametrize("entry", [{"fault": "reset"}, {"fault": "outage", "how": "reset"}])
def test_a_reset_comes_after_the_request_was_read(calm: Simulator, entry: dict[str, str]) -> None:
    """The client sees ECONNRESET, the log the request and the reset."""
    calm.control(**entry)
    with pytest.raises(ConnectionResetError):
        post(calm, x_call_id="r")
    until(lambda: calm.log().incidents)
    arrival_, incident = calm.arrivals()[-1], calm.log().incidents[-1]
    assert (arrival_.call_id, arrival_.status, arrival_.fault) == ("r", None, entry["fault"])
    assert (incident.what, incident.n) == ("reset", arrival_.n)


def test_a_malformed_answer(calm: Simulator) -> None:
    """A whole HTTP answer with half a JSON text."""
    calm.control(fault="malformed")
    answer = post(calm)
    assert answer.status == 200
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.text)
    assert not calm.arrivals()[-1].good


def test_a_truncated_answer(calm: Simulator) -> None:
    """Less comes than content-length promised."""
    calm.control(fault="truncated")
    with pytest.raises(http.client.IncompleteRead):
        post(calm)
    assert calm.arrivals()[-1].fault == "truncated"


def test_a_hang_lasts_until_the_client_leaves(calm: Simulator) -> None:
    """The log has the request at once and the client's leaving when it leaves."""
    calm.control(fault="hang")
    before, connection = calm.stats(), connect(calm)
    connection.request("POST", CHAT, body_of())
    until(lambda: calm.stats().in_flight == before.in_flight + 1)
    connection.close()
    until(lambda: calm.stats().in_flight == before.in_flight)
    incident = calm.log().incidents[-1]
    assert (incident.what, incident.n) == ("gone", calm.arrivals()[-1].n)
    assert calm.arrivals()[-1] not in calm.log().delivered()


def test_a_drip_lasts_until_the_client_leaves(calm: Simulator) -> None:
    """Its head and first byte come at once, others after them, and never the last."""
    calm.control(fault="drip")
    before, connection = calm.stats(), connect(calm)
    connection.request("POST", CHAT, body_of())
    response = connection.getresponse()
    assert response.status == 200
    assert [response.read(1) for _ in range(3)] == [b"{", b" ", b" "]
    connection.close()
    response.close()
    until(lambda: calm.stats().in_flight == before.in_flight)
    incident = calm.log().incidents[-1]
    assert (incident.what, incident.n) == ("gone", calm.arrivals()[-1].n)
    assert not calm.arrivals()[-1].good


def test_only_bodies_that_match_are_hit(calm: Simulator) -> None:
    """`match` picks requests by their text."""
    calm.control(match="poison", status=400)
    assert post(calm, body=body_of("a poison pill")).status == 400
    assert post(calm, body=body_of("a good pill")).status == 200


@pytest.mark.long
def test_an_outage_in_which_nobody_listens(calm: Simulator) -> None:
    """Open connections are reset, new ones refused, and then it is back on the same port."""
    idle = connect(calm)
    assert post(calm, connection=idle).status == 200
    calm.control(fault="outage", how="refused", for_s=1.0)

    def refused() -> bool:
        try:
            post(calm)
        except ConnectionRefusedError:
            return True
        except ConnectionResetError:  # the door shuts just now
            return False
        return False

    def back() -> bool:
        try:
            return post(calm).status == 200
        except ConnectionRefusedError:
            return False

    until(refused)
    with pytest.raises((ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected)):
        post(calm, connection=idle)
    idle.close()
    until(back)


@pytest.mark.parametrize("bad", [{"fault": "boom"}, {"at_s": 1}, {"rpm": -1}, {"fault": "500", "shar": 1}])
def test_control_refuses_what_it_does_not_understand(calm: Simulator, bad: dict[str, Any]) -> None:
    """With the same messages as a scenario file; nothing changes."""
    with pytest.raises(ConfigurationError):
        calm.control(**bad)
    assert post(calm).status == 200


def test_limits_can_be_changed_while_it_runs(calm: Simulator) -> None:
    """A new limit holds for the next request, and its headers tell it."""
    calm.control(rpm=1, tpm=100_000)
    first, second = post(calm), post(calm)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    assert re.fullmatch(r"\d+(ms|\.\d+s|s)", first.headers["x-ratelimit-reset-tokens"])
    assert calm.stats().limits == {"requests": 1, "tokens": 100_000}
    assert (first.status, second.status) == (200, 429)
    assert second.json["error"] | {"message": ""} == {
        "message": "",
        "type": "requests",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert 0 < int(second.headers["retry-after"]) <= 60
    assert int(second.headers["retry-after-ms"]) <= 60_000
    assert "requests per min (RPM): Limit 1," in second.json["error"]["message"]
    message = post(calm, MESSAGES)
    assert message.json["error"]["type"] == "rate_limit_error"
    assert message.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert message.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", message.headers["anthropic-ratelimit-requests-reset"])
    assert "retry-after-ms" not in message.headers


def test_tokens_are_charged_by_prompt_and_max_tokens(calm: Simulator) -> None:
    """More than the minute brings is too large for good: no Retry-After."""
    calm.control(tpm=1000)
    answer = post(calm, body=body_of(max_tokens=5000))
    assert (answer.status, answer.json["error"]["type"]) == (429, "tokens")
    assert answer.json["error"]["message"].startswith("Request too large")
    assert "retry-after" not in answer.headers


def test_headers_and_retry_after_can_be_left_out() -> None:
    """A gateway that tells nothing."""
    with Simulator(Scenario(rpm=1, latency="0", headers=HeaderStyle.NONE, retry_after=False)) as provider:
        answers = [post(provider) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 429]
    assert not [name for answer in answers for name in answer.headers if "ratelimit" in name or "retry" in name]


@pytest.mark.parametrize("path", [CHAT, "/v1/messages"])
def test_refusals_can_say_no_more_than_when_to_come_back(path: str) -> None:
    """Whole seconds, and a body that names neither limit nor dimension."""
    scenario = Scenario(rpm=1, latency="0", headers=HeaderStyle.NONE, words=False, retry_after_ms=False)
    provider = Provider(scenario, 0.0, "terse")
    body = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}).encode()
    answers = [provider.decide(Request("POST", path, {}, body, True), 0.5, 1e9).answer for _ in range(2)]
    head, _, text = answers[1].partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429")
    assert b"retry-after: 60\r\n" in head + b"\r\n"
    assert b"retry-after-ms" not in head
    assert stated_limit(json.loads(text)) == {}
    assert refused_dimension({}, json.loads(text)) is None


def test_a_sliding_window_over_http() -> None:
    """The fourth of three a minute has to wait for the first to leave; the headers count down."""
    with Simulator(Scenario(rpm=3, latency="0", limiter=Limiter.SLIDING)) as provider:
        answers = [post(provider) for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert 0 < int(answers[3].headers["retry-after"]) <= 60


def test_a_neighbour_over_http(calm: Simulator) -> None:
    """Ordered while the provider runs: it takes all there is, and the client's requests are refused."""
    calm.control(rpm=60, tpm=1e6)
    assert post(calm).status == 200
    calm.control(neighbour_rpm=6000, neighbour_tokens=10)
    until(lambda: post(calm).status == 429)
    assert post(calm).headers["x-ratelimit-remaining-requests"] == "0"


def test_the_log_has_every_request_once(calm: Simulator) -> None:
    """Whatever a client was answered is in the log under the same request id, with what tells calls apart."""
    before = len(calm.arrivals())
    calm.control(fault="500", share=0.3)

    def call(number: int) -> tuple[str, int, str]:
        body = body_of(f"question {number}", metadata={"custom_id": f"q-{number}"}, user="u")
        answer = post(
            calm, body=body, x_call_id=f"call-{number}", idempotency_key=f"i-{number}", authorization="Bearer k"
        )
        return f"call-{number}", answer.status, answer.headers["x-request-id"]

    with ThreadPoolExecutor(16) as pool:
        answered = sorted(pool.map(call, range(200)))
    seen = calm.arrivals()[before:]
    assert sorted((one.call_id or "", one.status or 0, one.request_id) for one in seen) == answered
    assert {status for _, status, _ in answered} == {200, 500}
    assert duplicates(seen) == {}
    assert lost((name for name, _, _ in answered), seen) == {name for name, status, _ in answered if status == 500}
    assert [one.t for one in seen] == sorted(one.t for one in seen)
    one = seen[0]
    assert one.custom_id == f"q-{(one.call_id or '').removeprefix('call-')}"
    assert (one.user, len(one.body), len(one.key or "")) == ("u", 64, 12)
    assert abs(one.unix - time.time()) < PATIENCE_S


def test_stats_and_log_over_http(calm: Simulator) -> None:
    """GET /_log is the file; GET /_stats counts the same; neither is a request to the provider."""
    post(calm)
    connection = connect(calm)
    connection.request("GET", "/_log")
    over_http = parse_log(connection.getresponse().read()).arrivals
    connection.request("GET", "/_nothing")
    assert connection.getresponse().status == 404
    connection.close()
    stats = calm.stats()
    assert over_http == calm.arrivals()
    assert stats.requests == len(over_http) == sum(stats.by_status.values())
    assert stats.admitted == sum(one.admitted for one in over_http)
    assert stats.most_in_1s == most_in_window([one.t for one in over_http])
    assert stats.output_tokens == sum(one.output_tokens for one in over_http)


def raw(provider: Simulator, *pieces: bytes) -> bytes:
    """Send the pieces in packets of their own, then read until the server closes."""
    host, port = provider.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_requests_in_pieces_and_back_to_back(calm: Simulator) -> None:
    """A request byte by byte, and two in one packet."""
    body = body_of()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n%s\r\n"
    last = head % (len(body), b"Connection: close\r\n") + body
    assert raw(calm, *(last[at : at + 1] for at in range(len(last)))).count(b"HTTP/1.1 200 OK") == 1
    assert raw(calm, head % (len(body), b"") + body + last).count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_waits_for_100_continue(calm: Simulator) -> None:
    """curl does so for long bodies."""
    body = body_of()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    host, port = calm.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(head % len(body))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b"hello\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"x" * 70_000, b"431"),
    ],
)
def test_what_is_not_http_is_turned_away(calm: Simulator, text: bytes, status: bytes) -> None:
    """With an answer, a line in the log, and no harm to others."""
    assert raw(calm, text).startswith(b"HTTP/1.1 " + status)
    assert calm.log().incidents[-1].what == "bad_request"
    assert post(calm).status == 200


# --- the process ----------------------------------------------------------------------------------------------------


def test_a_scripted_timeline_over_http() -> None:
    """From the first request on, or from the server's start."""
    entries = (Entry(fault=Fault.UNAVAILABLE), Entry(at_s=3600, fault=Fault.OUTAGE, how=Outage.REFUSED, for_s=1))
    for start in TimelineStart:
        with Simulator(Scenario(timeline=entries, timeline_from=start, latency="0")) as provider:
            assert post(provider).status == 503


def test_a_kill_loses_no_line(tmp_path: Path) -> None:
    """What a client sent is in the log though its answer never came; a second run appends."""
    log = tmp_path / "arrivals.jsonl"
    provider = Simulator(Scenario(latency="3600"), log_path=log)
    with provider:
        connections = [connect(provider) for _ in range(5)]
        for number, connection in enumerate(connections):
            connection.request("POST", CHAT, body_of(), {"x-call-id": str(number)})
        until(lambda: provider.stats().in_flight == 5)
        provider.kill()
        for connection in connections:
            connection.close()
    assert sorted(one.call_id or "" for one in read_log(log).arrivals) == ["0", "1", "2", "3", "4"]
    assert provider.arrivals() == read_log(log).arrivals
    with Simulator(Scenario(latency="0"), log_path=log) as again:
        post(again, x_call_id="5")
    assert [one.call_id for one in read_log(log).arrivals][5:] == ["5"]
    assert len(read_log(log).runs) == 2


def test_ids_are_unique_over_restarts(tmp_path: Path) -> None:
    """A second process on the same log gives no id twice."""
    log = tmp_path / "arrivals.jsonl"
    for _ in range(2):
        with Simulator(Scenario(latency="0"), log_path=log) as provider:
            post(provider)
    assert duplicates(read_log(log).arrivals, by=lambda one: one.request_id) == {}


def test_the_end_of_a_simulator() -> None:
    """Its process is gone, its temporary files too, and its arrivals are still known."""
    with Simulator(Scenario(latency="0")) as provider:
        post(provider)
        pid, log = provider.pid, provider.log_path
    assert provider.pid is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not log.exists()
    assert len(provider.arrivals()) == 1


def test_a_port_that_is_taken(calm: Simulator) -> None:
    """Said in one line."""
    port = int(calm.url.rpartition(":")[2])
    with pytest.raises(SimulatorFailed, match="in use"), Simulator(port=port):
        pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_cannot_be_written_ends_the_server() -> None:
    """A provider whose log has holes proves nothing."""
    with pytest.raises(SimulatorFailed, match="No space left"), Simulator(log_path=Path("/dev/full")):
        pass


_PARENT = """
import os, sys
from ratelimit_worker.simulate import Simulator
provider = Simulator()
provider.start()
if sys.argv[1] == "fork" and os.fork() == 0:
    os.close(1)
    sys.stdin.read()  # holds the pipe to the simulator open while the test lives
    os._exit(0)
print(provider.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
@pytest.mark.parametrize("how", ["alone", "fork"])
def test_it_dies_with_its_parent(how: str, tmp_path: Path) -> None:
    """Though the parent is killed, and though a fork of the parent lives on and holds the pipe."""
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # nobody tidies up after a parent that was killed
    ) as parent:
        assert parent.stdout is not None
        descriptor = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            end = select.poll()
            end.register(descriptor, select.POLLIN)
            assert end.poll(PATIENCE_S * 1000), "the simulator outlived its parent"
        finally:
            os.close(descriptor)


def test_ctrl_c_ends_the_command_with_a_summary() -> None:
    """The base URL on stdout and nothing else; notes and figures on stderr; exit code 0."""
    command = [sys.executable, "-m", "ratelimit_worker.simulate", "--rpm", "600", "--seed", "7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url)
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=PATIENCE_S)
        connection.request("POST", CHAT, body_of())
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (0, "")
    assert "1 requests in" in err
    assert "1 x 200" in err
    assert "Traceback" not in err


def test_every_option_reaches_the_provider() -> None:
    """Each has a field of its name, which the log's first line tells."""
    options = {"rpm": 60.0, "burst_s": 2.0, "limiter": "sliding", "window_s": 30.0, "latency": "0"}
    options |= {"header_lag_s": 0.5, "header_round": 0.05, "headers": "openai", "seed": 7}
    command = [sys.executable, "-m", "ratelimit_worker.simulate"]
    command += [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        connection = http.client.HTTPConnection(process.stdout.readline().split("/")[2], timeout=PATIENCE_S)
        connection.request("GET", "/_log")
        started = parse_log(connection.getresponse().read()).runs[0]
        connection.close()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    told = json.loads(bytes(started.scenario))
    assert {name: told[name] for name in options} == options


def test_the_process_imports_neither_broker_nor_database() -> None:
    """It has to start quickly."""
    code = (
        "import sys, ratelimit_worker.simulate, ratelimit_worker.simulate.command;"
        "print([name for name in ('celery', 'kombu', 'redis', 'sqlalchemy', 'httpx') if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert seen.stdout.strip() == "[]"


def test_the_questions_are_a_batch_file() -> None:
    """200 different questions in OpenAI's Batch format."""
    lines = [json.loads(line) for line in (ROOT / "examples" / "questions.jsonl").read_text("utf-8").splitlines()]
    assert [line["custom_id"] for line in lines] == [f"q-{number:03d}" for number in range(1, 201)]
    assert {(line["method"], line["url"]) for line in lines} == {("POST", CHAT)}
    assert len({line["body"]["messages"][0]["content"] for line in lines}) == 200
    assert all(set(line["body"]) == {"model", "max_tokens", "messages"} for line in lines)
