"""What the law makes of a provider that tells nothing but refusals: its own silence is never the provider's rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from math import inf
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from ratelimit_worker.calls import LaneLimits, Snapshot
from ratelimit_worker.contracts.lesson import Ticket
from ratelimit_worker.policy import pace
from ratelimit_worker.policy.pace import Dimension, Observation, PaceState, initial, observe, set_points, step
from ratelimit_worker.simulate import Entry, Fault, Scenario
from ratelimit_worker.simulate.scenario import HeaderStyle
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import Laboratory, jobs_of, numbers

FREE = LaneLimits()
LEAST_PER_S = 1 / 30  #: a probe in half a minute


# ── refusals whose Retry-After is shorter than the real wait ───────────────────────────────────────────────────────


def refuses(from_s: float, until_s: float, retry_after_s: float) -> Scenario:
    """A provider without limits that refuses all for a while and tells a wait that is too short."""
    entry = Entry(at_s=from_s, for_s=until_s - from_s, fault=Fault.RATE_LIMITED, retry_after_s=retry_after_s)
    return Scenario(latency="0.2", refusal_latency="0.02", headers=HeaderStyle.NONE, timeline=(entry,))


@pytest.mark.parametrize(
    ("calls", "provider", "done_s"),
    [
        pytest.param(12, refuses(0.0, 5.0, 3.0), 9.0, id="refused from the start, twice"),
        pytest.param(60, refuses(0.0, 5.0, 3.0), 15.0, id="sixty calls"),
        pytest.param(60, refuses(0.2, 5.0, 3.0), 15.0, id="one good answer before"),
        pytest.param(60, refuses(0.0, 3.5, 1.0), 12.0, id="Retry-After of a second"),
        pytest.param(60, refuses(0.0, 45.0, 20.0), 69.0, id="Retry-After of 20 s: the third ends at 60"),
        pytest.param(60, refuses(1.5, 10.0, 3.0), 20.0, id="nine answers before, two refusals"),
        pytest.param(60, refuses(1.5, 6.0, 1.0), 16.0, id="nine answers before, Retry-After of a second"),
    ],
)
def test_a_wait_that_was_too_short_is_no_rate(calls: int, provider: Scenario, done_s: float) -> None:
    """All calls are done within seconds of the end of the last wait that was told."""
    case = replace(CASES["steady"], provider=provider, finite=calls)
    laboratory = Laboratory(provider, jobs_of(case))
    result = laboratory.run(300.0)
    assert (laboratory.left, result.failed) == (0, 0)
    assert result.ended_s <= done_s


class Untold:
    """One lane against a provider that gives `rate` units a second, a second's worth at once; a turn is 0.1 s."""

    def __init__(self, rate: float, depth_s: float = 1.0) -> None:
        self.rate, self.depth = rate, max(1.0, rate * depth_s)
        self.level, self.now, self.sent, self.turned_back = self.depth, 1000.0, 0, 0
        self.state: PaceState = initial(FREE)
        self.gate = self.credit = 0.0
        self.answers: list[tuple[float, int, Observation]] = []
        self.goods: list[float] = []
        self.paces: list[tuple[float, float]] = []

    def know(self, rate: float) -> None:
        """It has learned a rate before."""
        known = Dimension(pace=0.98 * rate, refill=rate, depth=max(1.0, 0.25 * rate), high=rate, high_at=self.now)
        self.state = structs.replace(self.state, ramping=False, dimensions={"requests": known})

    def run(self, seconds: float, refused_s: float | None = None, latency_s: float = 0.05, asked: float = 1e9) -> None:
        """So many seconds; refused_s: all is refused, with this Retry-After; asked: calls a second that come."""
        waiting = 0.0
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            self.level = min(self.depth, self.level + self.rate / 10)
            while self.answers and self.answers[0][0] <= self.now:
                _, _, seen = heappop(self.answers)
                if seen.refused:
                    self.gate, self.credit = max(self.gate, seen.at + (seen.retry_after_s or 0.1)), 0.0
                    self.turned_back += 1
                else:
                    self.goods.append(seen.at)
                self.state = observe(self.state, seen, FREE)
            sent = (float(self.sent), 0.0, 0.0, 0.0)
            self.state = step(self.state, self.now, sent, FREE, self.gate)
            self.state, paces = set_points(self.state, self.now, (float(self.turned_back), 0.0, 0.0, 0.0))
            fields = numbers(paces)
            self.paces.append((self.now, fields["p1"]))
            self.credit = min(self.credit + fields["p1"] / 10, fields["d1"] + fields["p1"] / 10)
            width, waiting = pace.ramp(self.state), min(waiting + asked / 10, max(1.0, asked / 10))
            while self.credit >= 1 and waiting >= 1 and self.now >= self.gate and not 0 < width <= len(self.answers):
                self.credit, waiting = self.credit - 1, waiting - 1
                self.send(refused_s, latency_s)

    def send(self, refused_s: float | None, latency_s: float) -> None:
        """One request, and its answer to come."""
        self.sent += 1
        refused = refused_s is not None or self.level < 1
        wait_s = refused_s
        if not refused:
            self.level -= 1
        elif refused_s is None:
            wait_s = round(max(0.001, (1 - self.level) / self.rate), 3)
        ticket = Ticket(seq=self.sent, sent_at=self.now, sent=(float(self.sent), 0.0, 0.0, 0.0))
        seen = Observation(
            at=self.now + latency_s, ticket=ticket, refused=refused, good=not refused, retry_after_s=wait_s or None
        )
        heappush(self.answers, (seen.at, self.sent, seen))


@pytest.mark.long
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rate=st.floats(0.5, 150.0),
    warm_s=st.sampled_from([0.0, 2.0, 15.0]),
    history=st.lists(
        st.tuples(st.sampled_from([0.0, 0.2, 1.0, 2.5, 3.0, 20.0]), st.floats(0.5, 40.0)), min_size=1, max_size=4
    ),
    latency_s=st.sampled_from([0.02, 0.3, 1.0]),
)
@example(rate=10.0, warm_s=0.0, history=[(3.0, 5.0)], latency_s=0.02)
@example(rate=10.0, warm_s=15.0, history=[(20.0, 40.0)], latency_s=0.02)
def test_refusals_alone_do_not_stop_a_lane(
    rate: float, warm_s: float, history: Sequence[tuple[float, float]], latency_s: float
) -> None:
    """Never slower than a probe in 30 s; ten seconds after the first good answer it was at 80 % of what it knew."""
    lane = Untold(rate)
    lane.know(rate)
    lane.run(warm_s)
    began = lane.now
    for retry_after_s, for_s in history:
        lane.run(for_s, refused_s=retry_after_s, latency_s=latency_s)
    returned = lane.now
    lane.run(max(0.0, lane.gate - lane.now) + 40.0)
    assert min(now_pace for at, now_pace in lane.paces if at > began) >= LEAST_PER_S
    first = next(at for at in lane.goods if at > returned)
    assert max(now_pace for at, now_pace in lane.paces if first <= at <= first + 10) >= 0.8 * rate


def test_after_refusals_alone_calls_go_one_by_one() -> None:
    """A lane that knew 50/s and is refused for 12 s with Retry-After 1: once two waits were in vain, one at a time."""
    lane = Untold(50.0)
    lane.know(50.0)
    lane.run(2.0)
    before = lane.sent
    lane.run(12.0, refused_s=1.0, latency_s=0.3)
    assert lane.sent - before <= 60
    lane.run(3.0)
    assert pace.ramp(lane.state) == 0


# ── time in which nothing was sent ─────────────────────────────────────────────────────────────────────────────────


def test_little_that_was_asked_for_is_no_limit() -> None:
    """At 10/s, ten minutes of a call in five seconds, and then all it may: it goes on at ten a second."""
    lane = Untold(10.0)
    lane.run(40.0)
    assert lane.state.dimensions["requests"].refill == pytest.approx(10.0, rel=0.1)
    lane.run(600.0, asked=0.2)
    lane.run(20.0)
    assert min(now_pace for at, now_pace in lane.paces if at > lane.now - 20) >= 8.0


def test_a_hold_has_a_cap() -> None:
    """Even a lane of a call a minute asks for more within two minutes."""
    slow = structs.replace(Dimension(pace=1 / 60, refill=1 / 60), failed=50, allowed=0.0)
    state = structs.replace(initial(FREE), ramping=False, dimensions={"requests": slow}, stepped_at=1000.0)
    sent = 0.0
    for turn in range(1, 1300):
        sent += state.dimensions["requests"].pace / 10
        state = step(state, 1000 + turn / 10, (sent, 0.0, 0.0, 0.0), FREE)
        if state.dimensions["requests"].probing_from is not None:
            return
    pytest.fail("no probe within 130 s")


def test_a_probe_that_slots_could_not_fill_has_taught_what_went() -> None:
    """The limit rose from 5 to 100/s, slots give 40/s: the lane stays at what was let through."""
    lane = Untold(5.0)
    lane.know(5.0)
    lane.run(20.0)
    lane.rate, lane.depth = 100.0, 100.0
    lane.run(30.0, asked=40.0)
    refused = lane.turned_back
    lane.run(10.0, asked=40.0)
    assert lane.state.dimensions["requests"].refill == pytest.approx(40.0, rel=0.25)
    assert lane.turned_back == refused


def test_headers_after_a_silence_say_nothing_of_the_refill() -> None:
    """A minute of nothing, and then a burst whose first answer to come is its last call's: the refill stays."""
    state = initial(FREE)

    def told(state: PaceState, number: int, at: float, remaining: float) -> PaceState:
        ticket = Ticket(seq=number, sent_at=at, sent=(float(number), 0.0, 0.0, 0.0))
        snapshot = Snapshot(limit=600, window_s=60, remaining=remaining)
        seen = Observation(at=at + 0.05, ticket=ticket, good=True, snapshots={"requests": snapshot})
        return observe(state, seen, FREE)

    state = told(state, 1, 100.0, 99)
    state = told(state, 40, 101.0, 70)
    state = told(state, 75, 161.0, 65)
    assert state.dimensions["requests"].refill == 10.0


# ── windows ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("travel_s", [0.0, 0.003, 0.03])
@pytest.mark.parametrize("name", ["sliding_no_headers", "sliding_minute_no_headers", "sliding", "sliding_minute"])
def test_a_window_is_spent_when_it_opens(name: str, travel_s: float) -> None:
    """Told by refusals alone, or with headers too; each later opening is used in its first half. In between the tuner
    hears nothing of the lane, and does not look at it; messages travel."""
    case = CASES[name].seeded(0)
    result = Laboratory(case.provider, jobs_of(case), travel_s=travel_s).run(case.horizon_s)
    good = [arrival.t for arrival in result.arrivals if arrival.good]
    budget, every_s = case.provider.rpm * case.provider.window_s / 60, case.provider.window_s  # type: ignore[operator]
    for opening in range(1, int(case.horizon_s // every_s)):
        in_first_third = sum(opening * every_s <= at < opening * every_s + every_s / 2 for at in good)
        assert in_first_third >= 0.85 * budget


def test_what_is_spent_of_a_day_long_window_has_a_pace() -> None:
    """Its ramp stands still at some time: two to the power of its seconds is no number."""
    state = initial(FREE)
    known = Dimension(pace=1.0, refill=0.1, window=pace.Window(units=8_640.0, every_s=86_400.0))
    state = structs.replace(state, ramping=False, dimensions={"requests": known})
    for at in range(0, 86_000, 1_000):
        state = step(state, 1_000.0 + at, (10.0 + at / 100, 0.0, 0.0, 0.0), FREE)
    assert 0 < state.dimensions["requests"].pace < inf


@pytest.mark.parametrize("rate", [3.0, 30.0])
def test_a_lane_far_below_what_it_knew_asks_with_calls(rate: float) -> None:
    """A probe is over when some calls have gone, not after a moment in which none could."""
    lane = Untold(rate)
    lane.know(rate)
    lane.run(5.0)
    known = structs.replace(lane.state.dimensions["requests"], pace=0.25, refill=0.25, depth=1.0, allowed=0.0)
    lane.state, fell_at = structs.replace(lane.state, dimensions={"requests": known}), lane.now
    lane.run(20.0)
    assert max(now_pace for at, now_pace in lane.paces if at > fell_at) >= 0.8 * rate


@pytest.mark.long
def test_a_wait_that_looks_like_a_windows_and_is_none() -> None:
    """A bucket of 10/s whose edge refuses once with Retry-After 20: the lane is back at its rate within seconds."""
    entry = Entry(at_s=8.0, for_s=0.2, fault=Fault.RATE_LIMITED, retry_after_s=20.0)
    provider = Scenario(
        rpm=600, latency="0.2", refusal_latency="0.02", headers=HeaderStyle.NONE, words=False, timeline=(entry,)
    )
    case = replace(CASES["steady"], provider=provider, horizon_s=60.0)
    result = Laboratory(provider, jobs_of(case)).run(60.0)
    late = [arrival for arrival in result.arrivals if arrival.t > 35]
    assert sum(arrival.good for arrival in late) >= 0.85 * 10 * 24
    assert sum(arrival.status == 429 for arrival in late) <= 0.05 * len(late)


@pytest.mark.long
@pytest.mark.parametrize("travel_s", [0.003, 0.03, 0.06])
@pytest.mark.parametrize("seed", [1, 2])
def test_messages_that_travel_are_no_slower_provider(travel_s: float, seed: int) -> None:
    """Between release and provider lie tens of milliseconds on a busy machine: nobody takes them for a lower limit."""
    case = CASES["sawtooth_no_headers"].seeded(seed)
    lowest = inf
    laboratory = Laboratory(case.provider, jobs_of(case), seed=seed, slots=64, travel_s=travel_s)

    def looked(fields: Mapping[str, Any]) -> None:
        nonlocal lowest
        if laboratory.now - laboratory.start > 4:
            lowest = min(lowest, float(fields.get("p1", inf)))
        obey(fields)

    obey, laboratory.obey = laboratory.obey, looked  # type: ignore[method-assign]
    laboratory.run(case.horizon_s)
    assert lowest > 0.6 * 300 / 60
