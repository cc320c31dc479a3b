"""Providers that no header describes well: long answers, waits that are told too short, a narrow knee."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit_worker.calls import Category, Failure, Response
from ratelimit_worker.policy.retry import ASIDE_ALONE_S, ASIDE_FROM, ASIDE_MOST_S, aside_s
from ratelimit_worker.simulate import Entry, Fault, Scenario
from ratelimit_worker.simulate.arrivals import Arrival
from ratelimit_worker.simulate.scenario import HeaderStyle, Limiter
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import Job, Laboratory, jobs_of


def arrivals(provider: Scenario, horizon_s: float, calls: int, slots: int = 64) -> list[Arrival]:
    """What the provider saw of a lane with more calls than it answers."""
    jobs = jobs_of(replace(CASES["steady"], provider=provider), calls)
    return Laboratory(provider, jobs, slots=slots).run(horizon_s).arrivals


def refused(seen: list[Arrival]) -> float:
    """Share of 429s."""
    return sum(arrival.status == 429 for arrival in seen) / len(seen)


def test_answers_of_twenty_seconds_at_one_a_second() -> None:
    """Each header that explains a refusal is from a refusal: 37 % were refused, and a crowd was suspected, for which
    the lane went down to three calls at once."""
    seen = arrivals(Scenario(rpm=60, latency="lognormal(20, 0.3)"), 200.0, 400)
    assert sum(arrival.good for arrival in seen) >= 0.9 * 200
    assert refused(seen) <= 0.08


@pytest.mark.long
def test_a_knee_beside_headers_that_promise_more() -> None:
    """All slots are taken at once, so no window of answers is uncrowded but the first: 48 % of 140/s before."""
    provider = Scenario(rpm=60_000, knee=30, knee_power=1.5, latency="lognormal(0.2, 0.3)")
    seen = [arrival for arrival in arrivals(provider, 30.0, 5_000, slots=128) if arrival.good]
    assert sum(arrival.t >= 15.0 for arrival in seen) / 15 >= 0.75 * 140


@pytest.mark.parametrize(("knee", "share"), [(2, 0.62), (5, 0.7)])
def test_a_knee_below_ten(knee: int, share: float) -> None:
    """64 slots are taken before eight answers have come, and then so few are answered that a window of answers takes a
    minute: 46 % of 10/s and 68 % of 25/s before. Calls out that no answers account for begin a trial after a second."""
    provider = replace(CASES["knee"].provider, knee=knee)
    seen = arrivals(provider, 60.0, 2_000)
    assert sum(arrival.good for arrival in seen) >= share * 60 * knee / 0.209


class _Hasty(Laboratory):
    """A provider whose refusals say to come back in a millisecond."""

    def settled(
        self, job: Job, ticket: bytes, seq: int, process: str, response: Response | None, failure: Failure | None
    ) -> None:
        """Its own Retry-After."""
        if failure is not None and failure.category is Category.RATE_LIMITED:
            failure = replace(failure, retry_after_s=0.001)
        super().settled(job, ticket, seq, process, response, failure)


def test_a_wait_told_far_too_short_makes_no_storm() -> None:
    """A window of 10 s without headers that says to come back in 1 ms: 48 % of all requests were refused."""
    provider = replace(CASES["sliding_no_headers"].provider, limiter=Limiter.SLIDING, words=False)
    assert provider.headers is HeaderStyle.NONE
    result = _Hasty(provider, jobs_of(CASES["sliding_no_headers"], 700)).run(60.0)
    assert refused(result.arrivals) <= 0.25
    assert sum(arrival.good for arrival in result.arrivals) >= 0.85 * 600


def test_a_call_that_is_refused_each_time_lets_others_go() -> None:
    """One that always gets a 429 with a Retry-After of 5 s went first at each opening: none of the others was answered.
    Its own wait grows, so 300 of 30 s are answered within 2 minutes."""
    refusing = Entry(match="[[poison]]", fault=Fault.RATE_LIMITED, retry_after_s=5)
    good = jobs_of(replace(CASES["steady"], finite=300))
    bad = replace(good[0], name="bad", body=good[0].body.replace(b'"content":"', b'"content":"[[poison]] '))
    provider = Scenario(rpm=600, latency="lognormal(0.2, 0.3)", timeline=(refusing,))
    laboratory = Laboratory(provider, [bad, *good], slots=16)
    laboratory.run(120.0)
    assert all(job.answered for job in good)
    assert not bad.answered
    assert bad.sent <= 16


def test_a_refused_call_keeps_its_place_at_first_and_then_waits_behind_the_gate() -> None:
    """Never longer than a probe may be away, unless others are answered."""
    assert [aside_s(3.0, number, 1.0, lambda: 1.0) for number in range(1, ASIDE_FROM)] == [0.0] * (ASIDE_FROM - 1)
    assert [aside_s(3.0, ASIDE_FROM + more, 1.0, lambda: 1.0) for more in range(3)] == [3.25, 3.5, 4.0]
    assert aside_s(None, 10_000, 1.0, lambda: 1.0) == ASIDE_ALONE_S
    assert aside_s(None, 10_000, 1e9, lambda: 1.0) == ASIDE_MOST_S
