"""Each piece of advice comes when the record carries it, with its figures, and not just below."""

from __future__ import annotations

import pytest

from ratelimit_worker.policy.advice import (
    Facts,
    FunctionFacts,
    Kind,
    LaneFacts,
    LaneMinutes,
    SpenderFacts,
    advice,
)


def minutes(
    many: float, used: float, allowed: float | None, *, waited: bool = True, normal: bool = True
) -> LaneMinutes:
    return LaneMinutes(minutes=many, used_per_min=used, allowed_per_min=allowed, waited=waited, normal=normal)


def lane(*slices: LaneMinutes, attempts: int = 1_000, refused: int = 0) -> Facts:
    return Facts(lanes=[LaneFacts(name="gpt", attempts=attempts, refused=refused, slices=slices)])


def function(calls: int = 100, answered: int = 100, hits: int = 0, misses: int = 0, evicted: int = 0) -> Facts:
    one = FunctionFacts(
        name="f",
        calls=calls,
        answered=answered,
        categories=(("invalid_request", calls - answered),),
        hits=hits,
        misses=misses,
        evicted=evicted,
    )
    return Facts(functions=[one])


def tenants(*shares: float) -> Facts:
    return Facts(tenants=[SpenderFacts(name=f"t{n}", share=share, spent="$1") for n, share in enumerate(shares)])


@pytest.mark.parametrize(
    ("facts", "kinds"),
    [
        pytest.param(Facts(), [], id="nothing is known"),
        pytest.param(function(calls=20, answered=1), [Kind.FIX_FUNCTION], id="a function fails in 95 %"),
        pytest.param(function(calls=20, answered=2), [], id="... in 90 %"),
        pytest.param(function(calls=9, answered=0), [], id="... in all of a few calls"),
        pytest.param(lane(minutes(20, 10, 60), minutes(80, 5, 60, waited=False)), [Kind.RAISE_WORKERS], id="starved"),
        pytest.param(lane(minutes(9, 10, 60)), [], id="... for some minutes"),
        pytest.param(lane(minutes(20, 10, 60), minutes(500, 5, 60, waited=False)), [], id="... for 4 % of the time"),
        pytest.param(lane(minutes(20, 10, 60, normal=False)), [], id="... while its provider was away"),
        pytest.param(lane(minutes(20, 10, None)), [], id="... by nothing that is known"),
        pytest.param(lane(minutes(20, 10, 0.0)), [], id="... since it was shut"),
        pytest.param(lane(minutes(20, 55, 60)), [Kind.HIGHER_TIER], id="its budget was used up"),
        pytest.param(lane(minutes(20, 48, 60)), [], id="in between nobody knows"),
        pytest.param(lane(minutes(20, 55, 60, waited=False)), [], id="used up, and nobody waited"),
        pytest.param(lane(refused=100), [Kind.LOWER_RATE], id="a tenth was refused"),
        pytest.param(lane(refused=99), [], id="... a little less"),
        pytest.param(lane(attempts=30, refused=19), [], id="... of few"),
        pytest.param(tenants(0.8, 0.2), [Kind.LIMIT_TENANT], id="one of two takes most"),
        pytest.param(tenants(0.7, 0.3), [], id="... not so much"),
        pytest.param(tenants(0.5, 0.3, 0.2), [Kind.LIMIT_TENANT], id="one of three takes half"),
        pytest.param(tenants(1.0), [], id="there is one tenant"),
        pytest.param(Facts(wasted_share=0.05, wasted="$5"), [Kind.FEWER_FAILURES], id="charged for nothing"),
        pytest.param(Facts(wasted_share=0.049, wasted="$5"), [], id="... a little"),
        pytest.param(function(hits=10, misses=90), [Kind.RAISE_TTL], id="answers go before they are asked for again"),
        pytest.param(function(hits=10, misses=91), [], id="... hardly ever"),
        pytest.param(function(hits=9, misses=10), [], id="... of few calls"),
        pytest.param(function(hits=10, misses=90, evicted=18), [Kind.MORE_CACHE], id="... for want of room"),
    ],
)
def test_rules(facts: Facts, kinds: list[Kind]) -> None:
    assert [one.kind for one in advice(facts)] == kinds


def test_advice_names_its_figures_and_stands_in_order() -> None:
    """What fails always comes first; a lane may be short of workers at one time and of budget at another."""
    short = lane(minutes(20, 10.4, 60), minutes(30, 58, 60), minutes(50, 1, 60, waited=False))
    told = advice(Facts(lanes=short.lanes, functions=function(calls=12, answered=0).functions))
    assert [one.kind for one in told] == [Kind.FIX_FUNCTION, Kind.RAISE_WORKERS, Kind.HIGHER_TIER]
    assert told[0].why == "12 of its 12 calls failed, mostly invalid_request."
    assert "in 20 of 100 minutes calls waited while 10 of 60 allowed requests a minute were sent" in told[1].why
    assert "in 30 of 100 minutes calls waited while 58 of 60 allowed requests a minute were sent" in told[2].why
