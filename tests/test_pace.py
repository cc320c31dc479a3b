"""The pace in small: what a header says of the moment in which its request was admitted."""

from __future__ import annotations

import pytest

from ratelimit_worker.calls import LaneLimits, Snapshot
from ratelimit_worker.policy.pace import Observation, PaceState, Ticket, initial, observe, set_points


@pytest.mark.parametrize("latency_s", [0.05, 1.0, 4.0])
def test_slow_answers_do_not_slow_the_lane(latency_s: float) -> None:
    """At 10/s, what flowed in while an answer was under way counts, and the refill is not measured from answers."""
    limits = LaneLimits()
    state: PaceState = initial(limits)
    # Ten a second leave and empty a bucket of ten; answers come in pairs that take unlike times.
    for number in range(1, 100):
        sent_at = number / 10
        state = observe(
            state,
            Observation(
                at=sent_at + latency_s * (1.0 if number % 2 else 1.3),
                ticket=Ticket(seq=number, sent_at=sent_at, sent=(float(number), 0.0, 0.0, 0.0)),
                good=True,
                snapshots={"requests": Snapshot(limit=600, window_s=60, remaining=5)},
            ),
            limits,
        )
        now = sent_at + latency_s
        state, fields = set_points(state, now)
    assert fields["p1"] == pytest.approx(10.0, rel=0.1)
    sent_by_now = number + 10 * latency_s
    assert fields["a1"] - sent_by_now == pytest.approx(5 - 0.1 * 10 * latency_s, abs=1.5)
