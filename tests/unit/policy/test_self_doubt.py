"""A process that has lost its way to the provider, while another still reaches it: rules, and lanes in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from ratelimit_worker.flow.call.self_doubt import SelfDoubt
from ratelimit_worker.policy import fault
from ratelimit_worker.policy.fault import LEAVES_MOST_S, LEAVES_S, NO_ROW, Lately, Streak
from ratelimit_worker.simulate import Scenario
from ratelimit_worker.simulate.scenario import HeaderStyle
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import LANE, Laboratory, jobs_of

RPM, CALLS = 600, 300
WELL = Lately(good_at=104.0, good_sent=103.0)


def lane_with(
    lost: tuple[str, ...], workers: tuple[str, ...] = ("w0", "w1"), headers: HeaderStyle = HeaderStyle.OPENAI
) -> Laboratory:
    scenario = Scenario(rpm=RPM, latency="lognormal(0.2, 0.3)", headers=headers)
    return Laboratory(scenario, jobs_of(replace(CASES["steady"], finite=CALLS)), slots=16, workers=workers, lost=lost)


@pytest.mark.parametrize("headers", [HeaderStyle.OPENAI, HeaderStyle.NONE])
def test_one_of_two_workers_does_not_reach_the_provider(headers: HeaderStyle) -> None:
    """300 calls of 30 s took 117 s: half of all attempts failed, and calls that had failed most often waited longest.
    Now the lost worker leaves them to the other one."""
    laboratory = lane_with(("w1",), headers=headers)
    result = laboratory.run(200.0)
    assert (laboratory.left, result.failed) == (0, 0)
    assert result.ended_s <= 30.0 * 1.1 + 5.0
    assert result.unreachable <= 50
    assert [move for _, move in result.moves if "EMERGENCY" in move] == []


def test_three_of_four_workers_are_lost_in_the_middle_and_come_back() -> None:
    """From the tenth second to the twentieth."""
    laboratory = lane_with((), ("w0", "w1", "w2", "w3"))

    def lose(*names: str) -> None:
        laboratory.lost = names

    laboratory.after(10.0, lambda: lose("w1", "w2", "w3"))
    laboratory.after(20.0, lose)
    result = laboratory.run(200.0)
    assert (laboratory.left, result.failed) == (0, 0)
    assert result.ended_s <= 30.0 * 1.1 + 5.0
    assert result.unreachable <= 60
    assert not any(doubt.leaves(LANE) for doubt in laboratory.doubts.values())


def test_when_all_are_lost_it_is_an_outage() -> None:
    """Then nobody doubts himself, and calls cost no try."""
    laboratory = lane_with((), ("w0", "w1"))

    def lose(*names: str) -> None:
        laboratory.lost = names

    laboratory.after(10.0, lambda: lose("w0", "w1"))
    laboratory.after(40.0, lose)
    result = laboratory.run(200.0)
    assert (laboratory.left, result.failed) == (0, 0)
    assert result.unreachable <= 60
    assert result.ended_s <= 60.0 + 10.0


def streak(calls: int, first_sent: float = 101.0) -> Streak:
    row = NO_ROW
    for call in range(calls):
        row = fault.lengthened(row, call)
    return Streak(row, first_sent)


@pytest.mark.parametrize(
    ("own", "lately", "lost"),
    [
        (streak(3), WELL, True),
        (streak(2), WELL, False),  # two may be chance
        (Streak(fault.Row(9, ((1, 9),)), 101.0), WELL, False),  # one call, again and again: it may be the call
        (
            streak(3, 102.8),
            WELL,
            False,
        ),  # at the beginning of an outage requests that left together may have met it or not
        (streak(3), structs.replace(WELL, good_at=98.0), False),  # nobody is answered any more
        (streak(3), structs.replace(WELL, good_sent=100.0), False),  # that one left before
        (streak(3), structs.replace(WELL, share=0.3), False),  # where others fail as well, three in a row are chance
        (streak(8), structs.replace(WELL, share=0.3), True),
    ],
)
def test_when_a_process_is_lost(own: Streak, lately: Lately, lost: bool) -> None:
    """Several of its calls fail in a row, and others are answered."""
    assert fault.is_lost(own, lately, 105.0) is lost


def test_a_lost_process_tries_one_call_ever_more_rarely() -> None:
    """After 1, 2, 4 and 8 s, and every 8 s; one answer, and it takes all calls again."""
    now = [0.0]
    doubt = SelfDoubt(lambda: now[0])

    def fail(call: int) -> bool:
        at = 200.0 + now[0]
        return doubt.failed("gpt", str(call), at - 0.1, at, Lately(good_at=at, good_sent=at))

    doubt.reached("gpt", 199.0)
    assert [fail(0), fail(1)] == [False, False]
    assert not doubt.leaves("gpt")
    now[0] = 1.0
    assert fail(2)
    assert fail(3), "it had begun before, and makes nothing longer"
    tried: list[float] = []
    while len(tried) < 6:
        now[0] += 0.25
        if not doubt.leaves("gpt"):
            assert doubt.leaves("gpt"), "one at a time"
            tried.append(now[0])
            assert fail(4 + len(tried))
    gaps = [after - before for before, after in zip([1.0, *tried], tried, strict=False)]
    assert gaps == [LEAVES_S, 2.0, 4.0, LEAVES_MOST_S, LEAVES_MOST_S, LEAVES_MOST_S]
    assert not doubt.leaves("other"), "the other lane's provider answers"
    doubt.reached("gpt", 200.0 + now[0])
    assert not doubt.leaves("gpt")
    assert not fail(99)


def test_an_answer_to_an_earlier_request_is_no_way_back() -> None:
    """It left before the process was lost."""
    doubt = SelfDoubt(lambda: 0.0)
    for call in range(3):
        assert doubt.failed("gpt", str(call), 101.0, 104.5, WELL) is (call == 2)
    doubt.reached("gpt", 100.0)
    assert doubt.leaves("gpt")
    doubt.reached("gpt", 102.0)
    assert not doubt.leaves("gpt")


def test_a_lane_that_is_remembered_is_not_forgotten_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the bound only a new lane makes room, also one in which nothing was answered yet."""
    monkeypatch.setattr("ratelimit_worker.flow.call.self_doubt.MOST_LANES", 2)
    doubt = SelfDoubt(lambda: 0.0)
    doubt.reached("other", 100.0)
    for call in range(3):
        doubt.failed("gpt", str(call), 101.0, 104.5, WELL)
    doubt.reached("other", 101.0)
    assert doubt.leaves("gpt")
    doubt.failed("third", "1", 101.0, 104.5, WELL)
    assert not doubt.leaves("gpt"), "it began anew"
