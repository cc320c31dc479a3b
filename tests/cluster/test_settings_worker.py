"""Settings that a real worker has to obey: what it does is what they say."""

from __future__ import annotations

import pytest

from ratelimit_worker.calls import Outcome
from ratelimit_worker.errors import CallFailed
from ratelimit_worker.simulate import Entry, HeaderStyle, Scenario, Simulator
from ratelimit_worker.simulate.scenario import Fault
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]


def recorded(made: Fleet, call_id: str, count: int) -> list[tuple[Outcome, float]]:
    """(outcome, seconds waited before it) of each attempt, once so many are recorded."""
    tracker = Tracker(engine_for(f"sqlite:///{made.folder}/state/tracking.sqlite3"))
    wait_for(lambda: len(tracker.attempts_of(call_id)) >= count, what="the attempts are recorded")
    return [(attempt.outcome, attempt.waited_s) for attempt in tracker.attempts_of(call_id)]


def test_base_and_max_delay_of_a_lane_with_fixed_rates() -> None:
    """Backoff is theirs, not the table's; a refusal costs a try there, and the eighth is the last."""
    scenario = Scenario(
        latency="0.01",
        headers=HeaderStyle.NONE,
        timeline=(
            Entry(fault=Fault.SERVER_ERROR, match="question broken"),
            Entry(fault=Fault.RATE_LIMITED, match="question refused", retry_after_s=0.01),
        ),
    )
    with (
        Simulator(scenario) as provider,
        fleet(
            OPENAI_BASE_URL=provider.base_url,
            MAISD_LANES='{"chat": {"rpm": 60000, "adaptive": false}}',
            MAISD_BASE_DELAY="0.05",
            MAISD_MAX_DELAY="0.1",
            MAISD_ENABLE_AUTO_ESCALATION="false",
        ) as made,
    ):
        made.worker("w1")
        app = made.agent()
        for what, tries, cap_s in (("broken", 6, 0.1), ("refused", 8, 0.2)):
            result = app.chat.delay(what)
            with pytest.raises(CallFailed):
                result.get(timeout=120)
            seen = recorded(made, result.id, tries)
            assert [outcome for outcome, _ in seen] == [Outcome.RETRIED] * (tries - 1) + [Outcome.FAILED]
            # The table's waits grow to 16 s; what comes on top of ours is the way through a busy lane.
            assert max(waited_s for _, waited_s in seen) < cap_s + 5.0
        assert app.chat.delay("good").get(timeout=120)
