"""Which calls hang, and whose slots are lent? The decisions as tables."""

from __future__ import annotations

import pytest

from ratelimit_worker.policy.hang import (
    GRACE_S,
    LEAST_OUT_S,
    LEAST_SICK_S,
    Out,
    is_overdue,
    sick,
    sick_after_s,
    silent,
)
from ratelimit_worker.policy.timeout import Latencies, Sample, learn, slower_share

#: A hundred answers: half of them within 1 s, most within 4 s, the last within 10 s.
KNOWN = learn(None, [Sample(latency_s=s, at=n) for n, s in enumerate([1.0] * 50 + [3.9] * 48 + [9.9] * 2)])


def out(lane: str, out_s: float, quiet_s: float | None = None, known: Latencies | None = None, n: int = 0) -> Out:
    return Out(tag=f"{lane}{n}.1", lane=lane, out_s=out_s, quiet_s=out_s if quiet_s is None else quiet_s, known=known)


def many(
    lane: str, how_many: int, out_s: float, quiet_s: float | None = None, known: Latencies | None = None
) -> list[Out]:
    return [out(lane, out_s, quiet_s, known, n) for n in range(how_many)]


def test_the_share_that_took_longer() -> None:
    """By the buckets of what is remembered; of nothing, none did."""
    assert slower_share(None, 1.0) == 0.0
    assert slower_share(KNOWN, 0.5) == pytest.approx(1.0)
    assert slower_share(KNOWN, 2.0) == pytest.approx(0.5, abs=0.02)
    assert slower_share(KNOWN, 20.0) == 0.0


@pytest.mark.parametrize(
    ("calls", "hang"),
    [
        pytest.param(many("a", 8, LEAST_OUT_S / 2), 0, id="nobody knows yet"),
        pytest.param(many("a", 8, LEAST_OUT_S * 2), 8, id="nothing of its kind was ever answered"),
        pytest.param(many("a", 1, 5.0, known=KNOWN), 0, id="one slow call"),
        pytest.param(many("a", 1, 12.0, known=KNOWN), 1, id="slower than any answer"),
        pytest.param(many("a", 8, 2.0, known=KNOWN), 8, id="none of eight is back though half take a second"),
        pytest.param(many("a", 2, 2.0, known=KNOWN), 0, id="neither of two is back: it may be so"),
        pytest.param(many("a", 8, 2.0, 0.2, known=KNOWN), 0, id="one of them was answered a moment ago"),
        pytest.param(
            [*many("a", 1, 5.0, known=KNOWN), *many("b", 7, 0.3, known=KNOWN)], 0, id="others say nothing of it"
        ),
    ],
)
def test_calls_hang_when_their_silence_is_no_chance(calls: list[Out], hang: int) -> None:
    """By what is known of how long their like takes, of each call and of all of a lane together."""
    assert len(silent(calls)) == hang


def test_a_lane_is_sick_when_all_its_calls_are_long_overdue() -> None:
    """Three times the p99, and never before ten seconds; where too little is known, the time-out alone says it."""
    after_s = sick_after_s(KNOWN)
    assert after_s is not None
    assert after_s > 3 * 9.9
    assert sick_after_s(None) is None
    assert sick_after_s(learn(None, [Sample(latency_s=0.1, at=n) for n in range(50)])) == LEAST_SICK_S
    assert len(sick(many("a", 3, after_s + 1, known=KNOWN))) == 3
    assert sick([*many("a", 3, after_s + 1, known=KNOWN), out("a", 1.0, known=KNOWN, n=9)]) == set()
    assert sick(many("a", 3, 500.0)) == set()


def test_a_call_is_overdue_a_grace_after_its_deadline() -> None:
    """Seconds since the epoch."""
    assert not is_overdue(100.0 + GRACE_S, 100.0)
    assert is_overdue(100.1 + GRACE_S, 100.0)
