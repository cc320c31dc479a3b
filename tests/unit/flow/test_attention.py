"""Which lanes the tuner looks at though there is no news of them, and in what order."""

from __future__ import annotations

import pytest

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import LaneState, Levels, Pacing, SetPoints
from ratelimit_worker.flow.lane.attention import BUSY_S, Attention, Need, need_of

NOW = 1_000.0


def lane(sent: float = 0.0, pace: float = 4.0, **points: object) -> LaneState:
    """A lane that may send `pace` requests a second, and has sent so many in all."""
    made = SetPoints(**{"paces": {"requests": Pacing(pace)}, "mode": Mode.NORMAL, **points})  # type: ignore[arg-type]
    return LaneState(there=True, points=made, levels=Levels(sent=(sent, 0.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("state", "used_from", "need"),
    [
        (lane(gate_us=int((NOW + 1) * 1e6)), (NOW - 10, 0.0), Need.HELD),
        (lane(mode=Mode.REDUCED), (NOW - 10, 0.0), Need.HELD),
        (lane(probes=1), (NOW - 10, 0.0), Need.HELD),
        (lane(sent=36.0), (NOW - 10, 0.0), Need.GOING),
        (lane(sent=1.0), (NOW - 10, 0.0), Need.RESTING),
        (lane(sent=0.0), (NOW - 0.1, 0.0), Need.RESTING),
        (lane(sent=7.0, paces={}), (NOW - 10, 0.0), Need.GOING),
    ],
)
def test_a_lane_needs_a_look_for_what_holds_it_or_what_it_sends(
    state: LaneState, used_from: tuple[float, float], need: Need
) -> None:
    """Behind a gate or a mode, time alone frees it; one that sends all it may is given more; one that rests is not."""
    assert need_of(state, NOW, used_from) is need


def test_those_that_need_it_most_go_first_and_of_these_the_longest_not_looked_at() -> None:
    """A held one before those that go, those before those that rest; each is at the end of its row when looked at."""
    attention = Attention()
    attention.note("rests", lane(), NOW, news=True)
    attention.note("goes", lane(sent=5.0), NOW, news=True)
    attention.note("goes too", lane(sent=5.0), NOW + 0.01, news=True)
    attention.note("held", lane(mode=Mode.EMERGENCY), NOW, news=True)
    attention.note("rests", lane(), NOW + 2.0, news=False)
    assert attention.next(9, NOW + 2.0) == ["held", "goes", "goes too", "rests"]
    attention.note("goes", lane(sent=15.0), NOW + 2.0, news=False)
    assert attention.next(2, NOW + 2.0) == ["held", "goes too"]


def test_a_lane_is_looked_at_for_some_seconds_after_its_last_news() -> None:
    """And no more; nor is one of which nobody took a look for so long, or that time does not change."""
    attention = Attention()
    attention.note("answered", lane(), NOW, news=True)
    attention.note("answered", lane(), NOW + BUSY_S, news=False)
    assert attention.next(9, NOW + BUSY_S) == ["answered"]
    attention.note("answered", lane(), NOW + BUSY_S + 0.1, news=False)
    assert attention.next(9, NOW + BUSY_S + 0.1) == []
    attention.note("passed over", lane(), NOW, news=True)
    assert attention.next(9, NOW + BUSY_S + 0.1) == []
    attention.note("fixed by a person", lane(), NOW, news=True)
    attention.forget("fixed by a person")
    assert attention.next(9, NOW) == []


def test_a_lane_that_is_looked_at_for_its_mode_alone_is_idle() -> None:
    """It was not answered of late."""
    attention = Attention()
    attention.note("ailing", lane(mode=Mode.REDUCED), NOW, news=False, idle=True)
    assert attention.next(9, NOW) == []
