"""Lanes that draw on one budget of their provider: how that is found out, and what each gets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit_worker.policy.siblings import LATE_S, LEAST, Counted, Siblings, Standing
from ratelimit_worker.simulate.scenario import Entry, Fault, HeaderStyle, Scenario
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import Laboratory, jobs_of
from tests.lanes_together import Together

TOLD = 10.0  #: units/s of the limit of all lanes here


def standing(lane: str, at: float, sent: float, measured: float, pace: float, limit: float = 600) -> Standing:
    counted = Counted(limit=limit, window_s=60, measured=measured, pace=pace, sent=sent)
    return Standing(lane=lane, at=at, dimensions={"requests": counted})


def seen(*lanes: tuple[str, float, float, float], seconds: int = 6, limit: float = 600) -> Siblings:
    """Each lane as (name, requests/s that it sends, refill that it measures, its pace), for some seconds."""
    siblings = Siblings.none()
    for second in range(seconds + 1):
        standings = [standing(lane, second, rate * second, flow, pace, limit) for lane, rate, flow, pace in lanes]
        siblings = siblings.note(standings, second)
    return siblings


@pytest.mark.parametrize(
    ("lanes", "shares"),
    [
        # one took nearly all, the other measures the rest: each gets a half
        ([("openai:a", 9.5, 9.8, 9.8), ("openai:b", 0.2, 0.3, 0.2)], [0.5, 0.5]),
        ([("openai:a", 5.0, 5.0, 5.0), ("openai:b", 5.0, 5.0, 5.0)], [0.5, 0.5]),
        # of three, one asks for little: that and some room, the others share the rest
        (
            [("openai:a", 4.0, 5.2, 4.0), ("openai:b", 4.0, 5.2, 4.0), ("openai:c", 0.8, 2.0, 3.3)],
            [0.45, 0.45, 0.1],
        ),
        # who asks for nothing keeps enough to begin with
        ([("openai:a", 9.4, 10.0, 9.5), ("openai:b", 0.0, 0.6, 5.0)], [1 - LEAST, LEAST]),
        # the same limit, and nothing is missing: two budgets
        ([("openai:a", 9.5, 10.0, 10.0), ("openai:b", 9.5, 10.0, 10.0)], [None, None]),
        # what is missing from one only is a stranger's
        ([("openai:a", 9.5, 10.0, 10.0), ("openai:b", 4.0, 4.0, 4.0)], [None, None]),
        # another provider, whatever the figures
        ([("openai:a", 9.5, 9.8, 9.8), ("azure:b", 0.2, 0.3, 0.2)], [None, None]),
    ],
)
def test_shares_are_max_min_fair_among_lanes_of_one_budget(
    lanes: list[tuple[str, float, float, float]], shares: list[float | None]
) -> None:
    siblings = seen(*lanes)
    got = [siblings.shares(lane).get("requests") for lane, *_ in lanes]
    assert got == [None if share is None else pytest.approx(share, abs=0.01) for share in shares]


def test_another_limit_is_another_budget() -> None:
    """Two models of one provider with limits of their own never touch each other."""
    siblings = Siblings.none()
    for second in range(7):
        one = standing("openai:a", second, 9.5 * second, 9.8, 9.8)
        other = standing("openai:b", second, 0.2 * second, 0.3, 0.2, limit=1200)
        siblings = siblings.note([one, other], second)
    assert siblings.shares("openai:a") == siblings.shares("openai:b") == {}


def test_a_lane_that_was_silent_for_long_is_nobodys_sibling() -> None:
    siblings = seen(("openai:a", 9.5, 9.8, 9.8), ("openai:b", 0.2, 0.3, 0.2))
    assert siblings.shares("openai:a")
    later = 6 + LATE_S + 1
    siblings = siblings.note([standing("openai:a", later, 200.0, 10.0, 10.0)], later)
    assert siblings.shares("openai:a") == siblings.shares("openai:b") == {}
    assert set(siblings.known) == {"openai:a"}  # and what is remembered stays bounded


def lab(
    seed: int,
    part: int,
    parts: int,
    timeline: tuple[Entry, ...] = (),
    most: int | None = None,
    headers: HeaderStyle = HeaderStyle.OPENAI,
) -> Laboratory:
    scenario = Scenario(
        rpm=TOLD * 60,
        latency="lognormal(0.2, 0.3)",
        refusal_latency="0.02",
        headers=headers,
        seed=seed,
        timeline=timeline,
    )
    jobs = jobs_of(replace(CASES["steady"], provider=scenario, seed=seed, horizon_s=150.0), most=4000)
    return Laboratory(scenario, jobs[part::parts][:most], seed=10 * seed + part)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_lane_that_comes_later_gets_its_half_within_a_minute(seed: int) -> None:
    """Before: 12/min beside 510/min, for as long as one looked."""
    both = Together({f"openai:m{i}": lab(seed, i, 2) for i in range(2)})
    both.begin_later("openai:m1", 20.0)
    both.run(140.0)
    rates = [both.per_min(lane, 80.0, 140.0) for lane in both.labs]
    assert rates == [pytest.approx(300, rel=0.2)] * 2
    assert sum(rates) > 580
    assert both.refused(80.0) < 0.05


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_after_an_outage_no_lane_starves(seed: int) -> None:
    """Before: 8/min with 266 calls waiting beside 580/min."""
    outage = (Entry(at_s=30, for_s=15, fault=Fault.OUTAGE),)
    both = Together({f"openai:m{i}": lab(seed, i, 2, outage) for i in range(2)})
    both.run(150.0)
    assert [both.per_min(lane, 105.0, 150.0) for lane in both.labs] == [pytest.approx(300, rel=0.2)] * 2


@pytest.mark.long
@pytest.mark.parametrize("outage", [(), (Entry(at_s=30, for_s=15, fault=Fault.OUTAGE),)])
def test_without_headers_neither_of_two_lanes_starves(outage: tuple[Entry, ...]) -> None:
    """Nothing tells them that they share; their probes keep both going."""
    both = Together({f"openai:m{i}": lab(1, i, 2, outage, headers=HeaderStyle.NONE) for i in range(2)})
    both.begin_later("openai:m1", 20.0)
    both.run(150.0)
    rates = [both.per_min(lane, 90.0, 150.0) for lane in both.labs]
    assert min(rates) > 100
    assert sum(rates) > 500


@pytest.mark.long
def test_who_has_nothing_more_to_send_leaves_all_of_it_to_the_other() -> None:
    both = Together({"openai:m0": lab(1, 0, 2, most=150), "openai:m1": lab(1, 1, 2)})
    both.run(120.0)
    assert both.per_min("openai:m1", 80.0, 120.0) == pytest.approx(600, rel=0.03)


@pytest.mark.long
def test_lanes_with_budgets_of_their_own_do_not_touch_each_other() -> None:
    """Even where strangers take the same half of each."""
    strangers = (Entry(at_s=20, for_s=60, neighbour_rpm=300),)
    apart = Together({f"openai:m{i}": lab(2, i, 2, strangers) for i in range(2)}, one_provider=False)
    apart.run(120.0)
    for lane in apart.labs:
        assert apart.per_min(lane, 40.0, 80.0) == pytest.approx(300, rel=0.05)
        assert apart.per_min(lane, 90.0, 120.0) == pytest.approx(600, rel=0.03)
