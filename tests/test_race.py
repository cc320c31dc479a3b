"""The race against other clients: the measure itself, and what is counted. The clients run in benchmarks/."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_worker.simulate.answers import Endpoint, read
from ratelimit_worker.simulate.arrivals import Arrival
from ratelimit_worker.simulate.http1 import Request
from ratelimit_worker.simulate.oracle import Best, delivered, oracle, oracle_time_s
from ratelimit_worker.simulate.provider import Provider
from ratelimit_worker.simulate.scenario import Entry, Fault, Limiter, Scenario
from ratelimit_worker.simulate.scenarios import CASES, POISON, Case

CHAT = "/v1/chat/completions"


def flood(case: Case, seconds: float, every_s: float = 0.01) -> list[Arrival]:
    """Put the case's calls to the pure provider in virtual time, one request every 10 ms, each until it is taken."""
    provider = Provider(case.provider, 0.0, "flood")
    provider.begin(0.0)
    bodies = [json.dumps(call.body(), separators=(",", ":")).encode() for call in case.calls(seconds)]
    arrivals: list[Arrival] = []
    done = 0
    for tick in range(math.floor(seconds / every_s) + 1):
        if done == len(bodies):
            break
        now_s = tick * every_s
        arrival = provider.decide(Request("POST", CHAT, {}, bodies[done], True), now_s, 1e9 + now_s).arrival
        arrivals.append(arrival)
        done += arrival.status in {200, 400}
    return arrivals


# --- the oracle -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flooding_never_beats_the_oracle(name: str, seed: int) -> None:
    """Nobody gets more than the oracle, and who takes all there is, whatever the refusals, gets nearly as much."""
    case = CASES[name].seeded(seed)
    mean = case.mean()
    best = oracle(case.provider, case.horizon_s, mean)
    arrivals = flood(case, case.horizon_s)
    got = best.worth(delivered(arrivals, case.horizon_s), mean)
    failed = sum(arrival.admitted and not arrival.good for arrival in arrivals)
    luck = 3 * math.sqrt(failed) if failed else 0.0  # of the share that fails by chance; its mean is what counts
    if case.finite is not None:
        assert got == case.finite
        last_s = max(arrival.t + arrival.latency_s for arrival in arrivals)
        assert oracle_time_s(case.provider, case.finite) <= last_s <= oracle_time_s(case.provider, case.finite) + 0.5
    else:
        assert len(case.calls()) > best.calls + 100
        assert 0.985 * best.calls - luck <= got <= best.calls + luck


limits = st.sampled_from([30.0, 120.0, 600.0, 1200.0])
entries = st.one_of(
    st.builds(Entry, at_s=st.integers(0, 15), for_s=st.integers(1, 10), rpm=limits),
    st.builds(Entry, at_s=st.integers(0, 15), for_s=st.integers(1, 10), fault=st.just(Fault.OUTAGE)),
)


@settings(max_examples=60, deadline=None)
@given(
    rpm=limits,
    burst_s=st.sampled_from([0.0, 1.0, 5.0, 60.0]),
    limiter=st.sampled_from(list(Limiter)),
    window_s=st.sampled_from([1.0, 7.0, 60.0]),
    timeline=st.lists(entries, max_size=4),
)
def test_flooding_never_beats_the_oracle_of_any_timeline(
    rpm: float, burst_s: float, limiter: Limiter, window_s: float, timeline: list[Entry]
) -> None:
    """Limits that change and outages, over each other, for buckets and windows of any depth."""
    scenario = Scenario(
        rpm=rpm, burst_s=burst_s, limiter=limiter, window_s=window_s, latency="0", timeline=tuple(timeline)
    )
    case = Case(name="any", what="any", provider=scenario, horizon_s=20.0, nominal_rpm=1200)
    got = len(delivered(flood(case, 20.0), 20.0))
    assert got <= oracle(scenario, 20.0).calls + 1e-6


@pytest.mark.parametrize(
    ("scenario", "calls"),
    [
        (Scenario(rpm=600, latency="0"), 10 + 600),
        (Scenario(rpm=600, latency="0.5"), 10 + 595),
        (Scenario(rpm=600, burst_s=60, latency="0"), 600 + 600),
        # An outage gives nothing, and a full bucket when it is over.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=30, fault=Fault.OUTAGE),)), 10 + 200 + 10 + 100),
        # ... which is empty where it lasts to the end, and not full where it is short.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, fault=Fault.OUTAGE),)), 10 + 200),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=50, for_s=10, fault=Fault.OUTAGE),)), 10 + 500 + 10),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=0.5, fault=Fault.OUTAGE),)), 610),
        # What is charged and fails is gone, but for a bucket that was kept full for better times.
        (
            Scenario(rpm=600, latency="0", timeline=(Entry(at_s=10, for_s=10, fault=Fault.SERVER_ERROR, share=0.5),)),
            10 + 100 + 45 + 10 + 400,
        ),
        # What is refused for free costs nothing, nor does slowness.
        (Scenario(rpm=600, latency="0", timeline=(Entry(fault=Fault.BAD_REQUEST, share=0.5),)), 610),
        (Scenario(rpm=600, latency="0", timeline=(Entry(fault=Fault.SLOW),)), 610),
        # A lower limit empties a bucket down to its depth.
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=30, rpm=60),)), 10 + 300 + 30),
        (Scenario(rpm=600, latency="0", timeline=(Entry(at_s=20, for_s=20, neighbour_rpm=300),)), 610 - 100),
        (Scenario(rpm=600, latency="0", limiter=Limiter.SLIDING, window_s=10), 700),
        (Scenario(rpm=600, latency="0.1", limiter=Limiter.SLIDING, window_s=10), 600),
        (
            Scenario(
                rpm=600,
                latency="0",
                limiter=Limiter.SLIDING,
                window_s=10,
                timeline=(Entry(at_s=15, for_s=20, fault=Fault.OUTAGE),),
            ),
            100 * len([0, 10, 35, 45, 55]),
        ),
        (Scenario(latency="0"), math.inf),
        (Scenario(latency="0", timeline=(Entry(fault=Fault.OUTAGE),)), 0),
        (Scenario(rpm=600, latency="61"), 0),
    ],
)
def test_what_the_oracle_gets_in_a_minute(scenario: Scenario, calls: float) -> None:
    """By hand: what the bucket holds, what flows in, and what becomes of it."""
    assert oracle(scenario, 60.0).calls == pytest.approx(calls)


def test_the_dimension_that_gives_fewest_binds() -> None:
    """At 500 tokens a call, 300,000 tokens a minute are 600 calls."""
    scenario = Scenario(rpm=6000, tpm=300_000, latency="0")
    assert oracle(scenario, 60.0, {"requests": 1.0, "tokens": 500.0}) == Best(610.0, "tokens")
    assert oracle(scenario, 60.0, {"requests": 1.0, "tokens": 5.0}) == Best(6100.0, "requests")


def test_how_long_the_oracle_takes() -> None:
    """1,000 calls at 20 a second, of which 20 go at once; a limit of none is no answer."""
    assert oracle_time_s(Scenario(rpm=1200, latency="0.2"), 1000) == pytest.approx(49.2, abs=0.002)
    with pytest.raises(ValueError, match="more than a day"):
        oracle_time_s(Scenario(rpm=1, timeline=(Entry(at_s=1, fault=Fault.OUTAGE),)), 10)


def test_a_long_timeline_is_no_trouble() -> None:
    """Sixty changes are done in no time, though at each the bucket may be kept or spent."""
    steps = tuple(Entry(at_s=at, for_s=0.5, rpm=300 + at, fault=Fault.SERVER_ERROR, share=0.1) for at in range(60))
    assert 400 < oracle(Scenario(rpm=600, latency="0", timeline=steps), 60.0).calls < 610


# --- what clients are given, and what counts ------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_case_is_the_same_for_the_same_seed(name: str) -> None:
    """Another seed asks other questions, of the same provider; ids are unique; costs are what the provider charges."""
    case = CASES[name]
    calls = case.seeded(3).calls(10.0)
    assert calls == case.seeded(3).calls(10.0)
    assert {call.prompt for call in calls}.isdisjoint(call.prompt for call in case.seeded(4).calls(10.0))
    assert len({call.custom_id for call in calls}) == len({call.prompt for call in calls}) == len(calls)
    assert case.seeded(3).provider.limits() == case.provider.limits()
    for call in calls[:50]:
        asked = read(Endpoint.CHAT, json.dumps(call.body(), separators=(",", ":")).encode())
        assert not isinstance(asked, str)
        assert asked.cost(Endpoint.CHAT) == call.cost()


def test_one_call_in_twenty_is_poisoned() -> None:
    """And their cost is not in the mean, since the provider does not take them."""
    calls = CASES["poison"].calls()
    assert sum(POISON in call.prompt for call in calls) == pytest.approx(len(calls) / 20, rel=0.3)


def test_lengths_vary_where_tokens_bind() -> None:
    """Lognormal around 400, and their mean makes 300,000 a minute about ten calls a second."""
    case = CASES["tokens_bound"]
    lengths = sorted(call.max_tokens for call in case.calls())
    assert lengths[len(lengths) // 2] == pytest.approx(400, rel=0.1)
    assert lengths[-1] > 4 * lengths[len(lengths) // 10]
    assert 300_000 / case.mean()["tokens"] == pytest.approx(600, rel=0.05)


def arrival(n: int, t: float, status: int | None = 200, **more: object) -> Arrival:
    """A line of a log."""
    return Arrival(n=n, t=t, unix=1e9 + t, path=CHAT, status=status, **more)  # type: ignore[arg-type]


def test_only_good_answers_in_time_are_delivered() -> None:
    """Counted from the first request, by when the answer left."""
    seen = [
        arrival(1, 5.0, 429),
        arrival(2, 6.0, latency_s=1.0),
        arrival(3, 14.0, latency_s=1.0),
        arrival(4, 14.5, latency_s=1.0),
        arrival(5, 7.0, fault="malformed"),
        arrival(6, 8.0, None),
    ]
    assert [one.n for one in delivered(seen, 10.0)] == [2, 3]
    assert delivered([], 10.0) == []


def test_a_call_counts_by_its_tokens_where_they_bind() -> None:
    """Short calls that were picked out are worth less than the mean."""
    seen = [arrival(1, 0.0, cost_tokens=100), arrival(2, 0.0, cost_tokens=300)]
    mean = {"requests": 1.0, "tokens": 400.0}
    assert Best(9.0, "tokens").worth(seen, mean) == 1.0
    assert Best(9.0, "requests").worth(seen, mean) == 2.0
