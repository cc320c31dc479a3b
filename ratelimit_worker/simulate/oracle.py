"""How many answers could a client get that knows everything in advance? All clients are measured by that.

The oracle knows all limits, faults and neighbours to come, and spends every unit at the best moment. Pure: functions of
the scenario. It counts in units, not in whole requests, so it is a bound that real requests reach up to a request or
two. If a share of requests fails at random, it is the mean, which a client may exceed a little by luck.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise

from msgspec import Struct

from ratelimit_worker.calls import DIMENSIONS
from ratelimit_worker.simulate.arrivals import Arrival
from ratelimit_worker.simulate.bucket import Budget, TokenBucket
from ratelimit_worker.simulate.draws import Latency
from ratelimit_worker.simulate.scenario import Entry, Fault, Limiter, Scenario
from ratelimit_worker.simulate.timeline import Timeline

_ONE_REQUEST = {"requests": 1.0}
_LONGEST_S = 24 * 3600.0


class Best(Struct, frozen=True):
    """The result of the oracle."""

    calls: float  #: calls of mean cost with a good answer; inf: nothing limits them
    dimension: str  #: the one of `DIMENSIONS` that limits them

    def worth(self, arrivals: Iterable[Arrival], mean: Mapping[str, float]) -> float:
        """These answers expressed in calls of mean cost, in the dimension that limits.

        If tokens limit, a client is measured by the tokens of its answers: one that sends only short calls has more
        answers, but has not used the budget better.
        """
        if self.dimension != "tokens":
            return float(sum(1 for _ in arrivals))
        return sum(arrival.cost_tokens for arrival in arrivals) / mean["tokens"]


def delivered(arrivals: Iterable[Arrival], seconds: float) -> list[Arrival]:
    """The arrivals that got a good answer at most `seconds` after the first arrival of all."""
    seen = list(arrivals)
    end_s = min((arrival.t for arrival in seen), default=0.0) + seconds
    return [arrival for arrival in seen if arrival.good and arrival.t + arrival.latency_s <= end_s]


def oracle(scenario: Scenario, seconds: float, mean: Mapping[str, float] = _ONE_REQUEST) -> Best:
    """The most calls that can be sent and get a good answer within `seconds` of the first request.

    In each dimension: the content of a full bucket and its inflow during the timeline, less what neighbours take, times
    the share of charged requests that does not fail. In an outage nothing is sent, and the bucket fills to its depth. A
    sliding window is filled whenever it has space. A provider with a limit on requests in flight, or a knee, answers at
    most so many in each mean latency. The smallest number of calls is the result.

    Args:
        seconds: The horizon; a call that is sent less than a median latency before its end is not answered in time.
        mean: Mean cost of a call, by dimension.
    """
    until_s = seconds - Latency.parse(scenario.latency).middle_s
    if until_s < 0:
        return Best(0.0, "requests")
    best = Best(math.inf, "requests")
    for dimension in DIMENSIONS:
        if mean.get(dimension, 0.0) <= 0:
            continue
        units = _units(scenario, dimension, until_s)
        if units / mean[dimension] < best.calls:
            best = Best(units / mean[dimension], dimension)
    if (calls := _through_engine(scenario, seconds)) < best.calls:
        best = Best(calls, "requests")
    return best


def oracle_time_s(scenario: Scenario, calls: float, mean: Mapping[str, float] = _ONE_REQUEST) -> float:
    """The least seconds in which that many calls can be sent and get a good answer, to a millisecond.

    Raises:
        ValueError: They take more than a day.
    """
    if oracle(scenario, _LONGEST_S, mean).calls < calls:
        raise ValueError(f"{calls} calls take more than a day of this scenario; give it more, or fewer calls")
    low_s, high_s = 0.0, _LONGEST_S
    while high_s - low_s > 0.001:
        middle_s = (low_s + high_s) / 2
        if oracle(scenario, middle_s, mean).calls < calls:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s


class _Span(Struct, frozen=True):
    """A time without changes, in seconds: the limit a minute of one dimension, and how many requests fail."""

    start_s: float
    end_s: float
    per_minute: float | None  #: None: no limit
    good: float  #: share of the charged requests that gets a good answer; 0: none passes
    neighbours: tuple[tuple[float, float], ...]  #: their requests: time, units

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s


def _units(scenario: Scenario, dimension: str, until_s: float) -> float:
    spans = _spans(scenario, dimension, until_s)
    if any(span.per_minute is None and span.good > 0 for span in spans):
        return math.inf
    if scenario.limiter is Limiter.SLIDING:
        return _through_window(scenario, dimension, spans)
    return _through_bucket(scenario, dimension, spans)


def _spans(scenario: Scenario, dimension: str, until_s: float) -> list[_Span]:
    timeline = Timeline(scenario.seed)
    planned = timeline.plan(scenario.timeline, 0.0)
    # An edge at the very end makes a span of length 0, in which what was saved until then can be spent.
    edges = {edge_s for one in planned for edge_s in (one.start_s, one.end_s) if 0 < edge_s <= until_s}
    place = DIMENSIONS.index(dimension)
    spans = []
    for start_s, end_s in pairwise([0.0, *sorted(edges), until_s]):
        entries = [one.entry for one in planned if one.holds(start_s)]
        limits = scenario.limits() | timeline.limits(start_s)
        taken = tuple((at_s, cost.vector()[place]) for at_s, cost in timeline.neighbours(start_s, end_s))
        spans.append(_Span(start_s, end_s, limits.get(dimension), math.prod(map(_good, entries)), taken))
    return spans


def _good(entry: Entry) -> float:
    """Share of units that an entry leaves usable. Faults that cost nothing leave all, unless they hit all requests."""
    if entry.fault is None or entry.fault is Fault.SLOW or entry.match is not None:
        return 1.0
    if entry.fault.charged:
        return 1.0 - entry.share
    return 0.0 if entry.share >= 1 else 1.0


def _through_engine(scenario: Scenario, until_s: float) -> float:
    """Good answers of an engine that always has as many requests in flight as is allowed without getting slower.

    Little's law: requests in flight divided by the mean latency. inf: any number may be in flight.
    """
    timeline = Timeline(scenario.seed)
    planned = timeline.plan(scenario.timeline, 0.0)
    edges = {edge_s for one in planned for edge_s in (one.start_s, one.end_s) if 0 < edge_s <= until_s}
    mean_s = Latency.parse(scenario.latency).mean_s
    calls = 0.0
    for start_s, end_s in pairwise([0.0, *sorted(edges), until_s]):
        entries = [one.entry for one in planned if one.holds(start_s)]
        bounds = (timeline.in_flight(start_s) or scenario.in_flight, scenario.knee)
        bound = min((bound for bound in bounds if bound is not None), default=math.inf)
        longer = math.prod(1 + entry.share * (entry.factor - 1) for entry in entries if entry.fault is Fault.SLOW)
        if bound == math.inf or mean_s * longer <= 0:
            return math.inf
        calls += bound * (end_s - start_s) / (mean_s * longer) * math.prod(map(_good, entries))
    return calls


def _through_bucket(scenario: Scenario, dimension: str, spans: Sequence[_Span]) -> float:
    """Units with a good answer: in each span the oracle spends all, or saves what the bucket can hold at its end."""

    @cache  # there are few different levels: 0, or what the bucket can hold
    def most(place: int, level: float) -> float:
        if place == len(spans):
            return 0.0
        span = spans[place]
        if span.per_minute is None:  # nothing passes here; a new limit begins with a full bucket
            return most(place + 1, math.inf)
        here = Budget({dimension: span.per_minute}, scenario.burst_s, span.start_s).buckets[dimension]
        assert isinstance(here, TokenBucket)
        taken = sum(units for _, units in span.neighbours)
        there = max(0.0, min(level, here.depth) + here.rate * span.length_s - taken)
        kept = min(there, here.depth)
        return max(
            there * span.good + most(place + 1, 0.0),
            (there - kept) * span.good + most(place + 1, kept),
        )

    return most(0, math.inf)  # full at first


def _through_window(scenario: Scenario, dimension: str, spans: Sequence[_Span]) -> float:
    """Units with a good answer: the window is filled as soon as it has space, since early units leave it early."""
    budget: Budget | None = None
    units = 0.0
    for span in spans:
        if span.per_minute is None:
            continue
        if budget is None:
            budget = Budget({dimension: span.per_minute}, 0.0, span.start_s, window_s=scenario.window_s)
        budget.change(span.start_s, {dimension: span.per_minute})
        window = budget.buckets[dimension]
        coming = list(span.neighbours)
        now_s = span.start_s
        while now_s < span.end_s or (now_s == span.end_s and span is spans[-1]):
            while coming and coming[0][0] <= now_s:
                _, wanted = coming.pop(0)
                window.owe(now_s, wanted, 10 * wanted)
            if span.good > 0 and (left := window.level(now_s)) > 0:
                window.take(now_s, left)
                units += left * span.good
            wait_s = window.wait_s(now_s, min(1e-6, window.capacity))
            # wait_s is 0 if there is space and nothing is sent
            later_s = now_s + wait_s if wait_s > 0 else math.inf
            now_s = min(later_s, coming[0][0] if coming else math.inf)
            if now_s > span.end_s:
                break
    return units
