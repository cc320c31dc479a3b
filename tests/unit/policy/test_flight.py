"""How many calls may be out: refusals that are about calls at once, a knee, and what must not be taken for either."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import Response, Snapshot
from ratelimit_worker.contracts.lesson import Lesson, Ticket
from ratelimit_worker.flow.call import observe as observations
from ratelimit_worker.policy import flight
from ratelimit_worker.policy.flight import FlightState, answered, bound, observe, step
from ratelimit_worker.policy.headers import about_concurrency
from ratelimit_worker.policy.pace import Observation

NOTHING = (0.0, 0.0, 0.0, 0.0)


def refusal(at: float, older: int, *, sent_at: float | None = None, **more: object) -> Observation:
    """A 429 that came with so many calls out beside it."""
    ticket = Ticket(seq=1, sent_at=at - 0.02 if sent_at is None else sent_at, sent=NOTHING)
    return Observation(at=at, ticket=ticket, refused=True, older=older, **more)  # type: ignore[arg-type]


def crowded(at: float, older: int) -> Observation:
    """The same, and it says in words that it is about calls at once."""
    return refusal(at, older, crowded=True)


class Provider:
    """Calls out go in, answers come out by Little's law, a tenth of a second at a time."""

    def __init__(self, knee: int | None = None, latency_s: float = 0.5, power: float = 1.5) -> None:
        self.knee, self.latency_s, self.power = knee, latency_s, power
        self.now, self.kept = 100.0, 0.0

    def run(self, state: FlightState, seconds: float, slots: int, pace: float = 1e9) -> FlightState:
        """What is learned in that time from a lane that has so many slots, and calls for all of them."""
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            out = min(slots, bound(state) or slots)
            slowed = max(1.0, out / self.knee) ** self.power if self.knee is not None else 1.0
            latency_s = self.latency_s * slowed
            self.kept += min(out / latency_s, pace) * 0.1
            answers, self.kept = int(self.kept), self.kept % 1
            state = answered(state, self.now, answers, answers * latency_s) if answers else state
            state = step(state, self.now, out, pace, True)
        return state


def test_a_crowd_that_is_named_is_believed_at_once() -> None:
    """Refused beside 20: 20 may be out. The pace has nothing to learn from it."""
    state, about_calls = observe(FlightState(), crowded(100.0, 20))
    assert (bound(state), about_calls) == (20, True)
    # those that were sent before say nothing more, whatever was out beside them
    state, about_calls = observe(state, refusal(100.01, 12, sent_at=99.9, crowded=True))
    assert (bound(state), about_calls) == (20, True)


def test_a_crowd_grows_by_one_and_goes_back_to_what_was_good() -> None:
    """One call more each 100 answers; refused, it is what it was. Not refused, it grows faster and faster."""
    provider = Provider()
    state, _ = observe(FlightState(), crowded(100.0, 20))
    while bound(state) == 20:
        state = provider.run(state, 0.1, slots=64)
    assert bound(state) == 21
    assert 2.4 <= provider.now - 100.0 <= 4.0
    state = provider.run(state, 0.1, slots=64)
    state, _ = observe(state, crowded(provider.now, 20))
    assert bound(state) == 20
    state = provider.run(state, 30.0, slots=64)
    assert bound(state) >= 40  # a provider that has grown


def test_a_crowd_that_shrinks_is_followed() -> None:
    """Refused beside far fewer than may be out: so many it is."""
    state, _ = observe(FlightState(), crowded(100.0, 20))
    state, _ = observe(state, crowded(101.0, 7))
    assert bound(state) == 7


def test_without_demand_a_crowd_does_not_grow() -> None:
    """Two out of twenty answer for nothing."""
    provider = Provider()
    state, _ = observe(FlightState(), crowded(100.0, 20))
    assert bound(provider.run(state, 60.0, slots=2)) == 20


def suspicious(state: FlightState, provider: Provider, older: int, **more: Any) -> tuple[FlightState, bool]:
    """A refusal without words, and what the tuner does next."""
    state, about_calls = observe(state, refusal(provider.now, older, **more))
    return step(state, provider.now, older, 1e9, True), about_calls


def test_refusals_at_the_same_number_out_are_tried_as_a_crowd() -> None:
    """Nobody says why, but each came beside 20: a trial without refusals makes it a bound."""
    provider, state = Provider(), FlightState()
    for _ in range(3):
        state = provider.run(state, 2.0, slots=20)
        state, about_calls = suspicious(state, provider, 20)
        assert not about_calls  # until then the pace learns from them
    assert flight.guessed(state)
    assert bound(state) == 19
    state = provider.run(state, 10.0, slots=64)
    assert state.crowd.inferred
    assert bound(state) >= 19


def test_headers_that_say_enough_is_left_are_stronger_evidence() -> None:
    """Two are enough where the rate cannot be the reason."""
    provider, state = Provider(), FlightState()
    enough = {"requests": Snapshot(limit=6000, window_s=60, remaining=90)}
    for _ in range(2):
        state = provider.run(state, 2.0, slots=20)
        state, _ = suspicious(state, provider, 20, snapshots=enough, cost=(1.0, 0.0, 0.0, 0.0))
    assert flight.guessed(state)


@pytest.mark.parametrize("older", [(0, 1, 2, 1, 0, 2), (5, 40, 11, 23, 60, 8)])
def test_refusals_of_a_rate_are_no_crowd(older: tuple[int, ...]) -> None:
    """Few out, or any number of them: nothing is tried."""
    provider, state = Provider(), FlightState()
    for number in older:
        state = provider.run(state, 2.0, slots=20)
        state, about_calls = suspicious(state, provider, number)
        assert not about_calls
    assert bound(state) == 0


def test_a_guess_that_is_refused_under_its_bound_is_given_up() -> None:
    """So many were out before without a refusal: it was about something else."""
    provider, state = Provider(), FlightState()
    for _ in range(3):
        state = provider.run(state, 2.0, slots=20)
        state, _ = suspicious(state, provider, 20)
    state = provider.run(state, 8.0, slots=64)
    assert state.crowd.inferred
    for _ in range(2 * flight.STRAY):  # those of calls that left before the bound last grew do not count
        state = provider.run(state, 1.0, slots=64)
        state, about_calls = suspicious(state, provider, 5)
        if not bound(state):
            break
    assert (bound(state), about_calls) == (0, False)
    for _ in range(3):
        state, _ = suspicious(state, provider, 20)
    assert bound(state) == 0  # and it is not tried again at once


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_a_knee_is_found_and_kept(power: float) -> None:
    """Beyond 30 in flight each takes longer: not many more than 30 are out, once 128 have shown it."""
    provider, state = Provider(knee=30, latency_s=0.2, power=power), FlightState()
    state = provider.run(state, 10.0, slots=20)
    assert bound(state) == 0
    state = provider.run(state, 40.0, slots=128)
    assert state.knee
    assert 24 <= bound(state) <= 45


def test_a_knee_that_moves_up_is_followed() -> None:
    """The provider takes twice as many by now."""
    provider, state = Provider(knee=30, latency_s=0.2), FlightState()
    state = provider.run(provider.run(state, 10.0, slots=20), 30.0, slots=128)
    provider.knee = 80
    assert bound(provider.run(state, 90.0, slots=128)) >= 60


def test_answers_that_get_longer_are_no_knee() -> None:
    """Latency × 3 with as many out: fewer out would be fewer answers, so the trial ends and no bound stays."""
    provider = Provider(latency_s=0.5)
    state = provider.run(FlightState(), 20.0, slots=64)
    provider.latency_s = 1.5
    state = provider.run(state, 25.0, slots=64)
    assert (state.knee, bound(state)) == (0, 0)
    assert state.knee_again_at > provider.now - 25.0


def test_a_lane_that_its_pace_holds_back_has_no_knee() -> None:
    """At 10/s latency × 10 puts ten times as many out, and not because of us."""
    provider = Provider(latency_s=0.2)
    state = provider.run(FlightState(), 20.0, slots=64, pace=10.0)
    provider.latency_s = 2.0
    for _ in range(40):
        state = provider.run(state, 1.0, slots=64, pace=10.0)
        assert bound(state) == 0


def test_a_provider_that_is_ill_has_no_knee() -> None:
    """One answer in ten is sick: it is slow for that."""
    provider = Provider(knee=30, latency_s=0.2)
    state = provider.run(FlightState(), 10.0, slots=20)
    for _ in range(200):
        state = provider.run(state, 0.1, slots=128)
        for _ in range(2):
            ticket = Ticket(seq=1, sent_at=provider.now, sent=NOTHING)
            state, _ = observe(state, Observation(at=provider.now, ticket=ticket, sick=True))
    assert bound(state) == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(["crowded", "refused", "good", "shut"]), st.integers(0, 200), st.floats(0.0, 30.0)),
        max_size=60,
    )
)
def test_whatever_comes_a_bound_leaves_room_for_one(steps: list[tuple[str, int, float]]) -> None:
    """No history brings a bound below one call, and a state is the same for the same history."""
    states = []
    for _ in range(2):
        state, now = FlightState(), 100.0
        for what, number, seconds in steps:
            now += seconds
            if what in {"crowded", "refused"}:
                state, _ = observe(state, refusal(now, number, crowded=what == "crowded"))
            elif what == "good":
                state = answered(state, now, number, number * seconds)
            state = step(state, now, number, 10.0, what != "shut")
            assert bound(state) >= 0
            assert state.crowd.bound >= 0
            assert state.crowd_trial is None or state.crowd_trial.width >= 1
        states.append(state)
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("Too many concurrent requests for gpt-4o in organization org-1: Limit 20.", True),
        ("Number of concurrent connections has exceeded your rate limit. Please try again later.", True),
        ("You have reached the limit of 5 simultaneous requests.", True),
        ("Parallel request limit reached", True),
        ("Maximum number of in-flight requests exceeded", True),
        ("Concurrency limit exceeded", True),
        ("Rate limit reached for gpt-4o on requests per min (RPM): Limit 600, Used 600, Requested 1.", False),
        ("This request would exceed your organization's rate limit of 40,000 input tokens per minute.", False),
        ("Too many requests", False),
    ],
)
def test_words_that_are_about_calls_at_once(message: str, about: bool) -> None:
    """What providers say of it; the observation carries it, and the script hears that no dimension was refused."""
    body = {"error": {"message": message, "type": "x", "code": None}}
    assert about_concurrency(body) is about
    response = Response(status=429, headers={}, body=body)
    ticket = msgspec.msgpack.encode([7, 1_000_000, 7.0, 0.0, 0.0, 0.0])
    reading = observations.read(response, "refused", 2.0)
    lesson = Lesson(verdict="refused", at_s=2.0, ticket=ticket, reading=reading, older=3)
    seen = observations.decode(lesson.observation())
    assert (seen.crowded, seen.older) == (about, 3)
    assert (lesson.word() == "refused.0") is about
