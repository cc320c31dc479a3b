"""`explain` says when a call starts: what it says is held against what then happens, on the test's clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Cost, LaneLimits, Mode
from ratelimit_worker.contracts.call import US, Place
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.pin import pin
from ratelimit_worker.reports.explain import Standing, explain, explanation_text
from ratelimit_worker.stores.live import Live
from tests.builders import entry
from tests.lua.cluster import LEASE_S, OPEN
from tests.lua.test_pin import Stage

pytestmark = pytest.mark.server

STEP_S = 0.1
LIFE_S = 1e6


class Theatre(Stage):
    """Workers take `latency_s` for each call; every call's start is noted."""

    latency_s = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.started: dict[str, float] = {}
        self.running: list[tuple[float, str]] = []
        self.slots(64)

    def slots(self, number: int) -> None:
        self.lanes.beat("w", number, LIFE_S, ["q"], LEASE_S, [])

    def put(self, *refs: str, lane: str = "gpt", **more: Any) -> None:  # type: ignore[override]
        for ref in refs:
            self.lanes.enqueue(entry(ref, lane, **{"deadline_in_s": 400_000.0, **more}))

    def play(self, seconds: float) -> None:
        """Time passes: tuner, pump and workers do their work."""
        end_us = self.now_us + round(seconds * US)
        while self.now_us < end_us:
            self.advance(STEP_S)
            self.tuner.turn("tuner")
            self.work()

    def work(self) -> None:  # type: ignore[override]
        for _ in range(3):
            self.pump()
            while self.ready():
                tag, begun = self.begin()
                if begun.state == "go":
                    self.started.setdefault(tag.rpartition(".")[0], self.now)
                    self.running.append((self.now + self.latency_s, tag))
            for end_s, tag in [one for one in self.running if one[0] <= self.now + 1e-6]:
                self.running.remove((end_s, tag))
                self.settle(tag, lane=self.packed(tag.rpartition(".")[0])[Place.LANE - 1])
                self.free(tag)

    def told(self, ref: str) -> Standing:  # type: ignore[override]
        found = explain(
            Live(self.client, time_us=self.now_us),
            [],
            ref,
            latency_s=dict.fromkeys(("gpt", "other", "third"), self.latency_s) if self.latency_s else {},
            rules=self.rules,
        )
        assert explanation_text(found)
        return found.standings[0]


REFS = [f"c{number}" for number in range(60)]


def paced(stage: Theatre, rpm: float = 600.0, **more: Any) -> None:
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=rpm, **more)))
    stage.put("warm")
    stage.play(3.0)


def emergency(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.EMERGENCY, who="me")
    stage.put(*REFS)
    stage.play(1.0)
    return "c7"


def an_emergency_that_has_lasted(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.EMERGENCY, who="me")
    stage.play(20.0)
    stage.put(*REFS)
    return "c5"


def an_emergency_that_ends(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.EMERGENCY, who="me", for_s=15.0)
    stage.put(*REFS)
    stage.play(1.0)
    return "c13"


def one_of_a_fixed_lane(stage: Theatre) -> str:
    paced(stage, rpm=120.0, adaptive=False)
    pin(stage.control, Mode.EMERGENCY, who="me", for_s=20.0)
    stage.put(*REFS)
    stage.play(1.0)
    return "c30"


def one_of_a_lane_without_pace(stage: Theatre) -> str:
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(unlimited=True)))
    stage.put("warm")
    stage.play(3.0)
    pin(stage.control, Mode.EMERGENCY, who="me", for_s=20.0)
    stage.put(*REFS)
    stage.play(1.0)
    return "c30"


def reduced(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.REDUCED, who="me")
    stage.play(1.0)
    stage.put(*REFS)
    return "c55"


def a_halt_that_ends(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.HALT, who="me", for_s=30.0)
    stage.put(*REFS)
    stage.play(2.0)
    return "c40"


def pins_one_over_the_other(stage: Theatre) -> str:
    paced(stage)
    pin(stage.control, Mode.REDUCED, who="me")
    stage.advance(0.5)
    pin(stage.control, Mode.HALT, lane="gpt", who="me", for_s=10.0)
    stage.put(*REFS)
    stage.play(1.0)
    return "c50"


def a_refusal(stage: Theatre) -> str:
    paced(stage, rpm=60.0)
    stage.lanes.set_points("gpt", {"gate": stage.now_us + 7 * US})
    stage.put(*REFS)
    return "c9"


def tokens(stage: Theatre) -> str:
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(tpm=60_000)))
    stage.put("warm")
    stage.play(3.0)
    stage.put(*REFS, cost=Cost(input_tokens=2_000))
    return "c8"


def a_parent_of_three(stage: Theatre) -> str:
    stage.lanes.set_points("org", limit_fields(LaneLimits(rpm=120, shared=True)))
    for lane in ("gpt", "other", "third"):
        stage.lanes.set_points(lane, limit_fields(LaneLimits(rpm=6000, parents=("org",))))
    for number in range(20):
        for lane in ("gpt", "other", "third"):
            stage.put(f"{lane}{number}", lane=lane)
    stage.play(2.0)
    return "gpt12"


def a_parent_that_is_pinned(stage: Theatre) -> str:
    stage.lanes.set_points("org", limit_fields(LaneLimits(rpm=120, shared=True)))
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=6000, parents=("org",))))
    stage.put(*REFS)
    stage.play(2.0)
    pin(stage.control, Mode.HALT, lane="org", who="me", for_s=12.0)
    stage.play(0.5)
    return "c30"


def a_cap(stage: Theatre) -> str:
    stage.latency_s = 3.0
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=6000, concurrency=4)))
    stage.put(*REFS)
    stage.play(1.0)
    return "c30"


def few_slots(stage: Theatre) -> str:
    stage.latency_s = 2.0
    stage.slots(5)
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=2400)))
    stage.put(*REFS)
    stage.play(1.0)
    return "c40"


def a_retry_beside_others(stage: Theatre) -> str:
    paced(stage, rpm=60.0)
    stage.put("again")
    stage.advance(1.0)
    stage.pump()
    tag, _ = stage.begin()
    stage.put(*REFS)
    stage.lanes.set_points("gpt", {"rb": 0.0, "rs": float(stage.lanes.fields("gpt")["seq"]), "rt": stage.now_us})
    stage.back(tag, after_s=0.1, tries=1)
    stage.play(0.5)
    return "again"


def a_quota(stage: Theatre) -> str:
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=6000, rpd=10)))
    stage.put(*REFS[:25])
    stage.play(1.0)
    return "c12"


@pytest.mark.long
@pytest.mark.parametrize(
    ("scene", "grain_s"),
    [
        (emergency, 6.0),
        (an_emergency_that_has_lasted, 6.0),
        (an_emergency_that_ends, 0.5),
        (one_of_a_fixed_lane, 0.5),
        (one_of_a_lane_without_pace, 0.5),
        (reduced, 0.3),
        (a_halt_that_ends, 0.5),
        (pins_one_over_the_other, 0.5),
        (a_refusal, 1.0),
        (tokens, 2.0),
        (a_parent_of_three, 1.5),
        (a_parent_that_is_pinned, 0.6),
        (a_cap, 3.0),
        (few_slots, 2.0),
        (a_retry_beside_others, 1.0),
    ],
)
def test_a_start_that_is_told_is_the_start(
    redis_client: redis.Redis, scene: Callable[[Theatre], str], grain_s: float
) -> None:
    """Within a tenth of it, or one gap between two calls."""
    stage = Theatre(redis_client)
    ref = scene(stage)
    told, at_s = stage.told(ref).starts_in_s, stage.now
    assert told is not None
    for _ in range(2000):
        if ref in stage.started:
            break
        stage.play(STEP_S)
    really_s = stage.started[ref] - at_s
    assert told == pytest.approx(really_s, rel=0.1, abs=grain_s + STEP_S)


def test_a_quota_is_waited_for_over_midnight(redis_client: redis.Redis) -> None:
    """The third ten start at the end of the next day, not of this one."""
    stage = Theatre(redis_client)
    a_quota(stage)
    left_s = 86_400.0 - stage.now % 86_400.0
    assert stage.told("c12").starts_in_s == pytest.approx(left_s, abs=1.0)
    assert stage.told("c22").starts_in_s == pytest.approx(left_s + 86_400.0, abs=1.0)


def test_the_calls_of_a_day_have_a_pace_too(redis_client: redis.Redis) -> None:
    """At 6/min and 20 a day, the eleventh of tomorrow's starts 100 s after midnight."""
    stage = Theatre(redis_client)
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=6, rpd=20)))
    stage.put(*REFS[:40])
    left_s = 86_400.0 - stage.now % 86_400.0
    assert stage.told("c30").starts_in_s == pytest.approx(left_s + 100.0, abs=10.0)


def away(stage: Theatre) -> None:
    stage.lanes.set_points("gpt", {**OPEN, "mode": "EMERGENCY", "width": 1, "probes": 1, "gap": US})


def ramping(stage: Theatre) -> None:
    stage.lanes.set_points("gpt", {**OPEN, "width": 1, "ramp": 1})


def capped_and_new(stage: Theatre) -> None:
    stage.lanes.set_points("gpt", {**OPEN, "cap": 1})


def probed_under_a_pin(stage: Theatre) -> None:
    stage.lanes.set_points("gpt", {**OPEN, "mode": "REDUCED", "pin": "x", "width": 2, "probes": 2, "gap": US})


def halted(stage: Theatre) -> None:
    stage.lanes.set_points("gpt", {**OPEN, "mode": "HALT", "width": 1, "probes": 1, "gap": 300 * US})


@pytest.mark.parametrize("scene", [away, ramping, capped_and_new, probed_under_a_pin, halted])
def test_what_nobody_knows_is_not_told(redis_client: redis.Redis, scene: Callable[[Theatre], None]) -> None:
    """An outage, a new lane, a cap of which no call has ended yet, a lane without quota."""
    stage = Theatre(redis_client)
    scene(stage)
    stage.put("a", "b", "c")
    assert stage.told("c").starts_in_s is None


def test_the_last_of_very_many_hears_that_it_will_expire(redis_client: redis.Redis) -> None:
    """At 60/min with an hour to live, the 3,700th does not start; the 100th does, and so does one that has a day."""
    stage = Theatre(redis_client)
    paced(stage, rpm=60.0)
    stage.put(*(f"c{number}" for number in range(3_700)), deadline_in_s=3_600.0)
    stage.put("patient", deadline_in_s=86_400.0)
    last = stage.told("c3699")
    assert last.expires_first
    assert last.starts_in_s == pytest.approx(3_700.0, abs=10.0)
    found = explain(Live(stage.client, time_us=stage.now_us), [], "c3699", rules=stage.rules)
    text = explanation_text(found)
    assert "it will expire before its turn: its deadline is in 60 min, its turn in about 62 min" in text
    assert "starts in about" not in text
    assert not stage.told("c100").expires_first
    assert not stage.told("patient").expires_first
