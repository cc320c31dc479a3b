"""The law of pace, a rule at a time: headers, refusals, probes, the start; and what must hold whatever comes."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ratelimit_worker.calls import DIMENSIONS, LaneLimits, Snapshot
from ratelimit_worker.contracts.lesson import Ticket
from ratelimit_worker.policy import pace
from ratelimit_worker.policy.pace import Observation, PaceState, initial, observe, set_points, step
from tests.laboratory import numbers

FREE = LaneLimits()
ZERO = (0.0, 0.0, 0.0, 0.0)


def requests(number: float) -> tuple[float, float, float, float]:
    """So many units of requests."""
    return (float(number), 0.0, 0.0, 0.0)


def seen(
    number: int, at: float, *, remaining: float | None = None, limit: float = 600, refused: bool = False, **more: object
) -> Observation:
    """Answer to the request of that number, which left 50 ms before."""
    told = {} if remaining is None else {"requests": Snapshot(limit=limit, window_s=60, remaining=remaining)}
    ticket = Ticket(seq=number, sent_at=at - 0.05, sent=requests(number))
    return Observation(at=at, ticket=ticket, good=not refused, refused=refused, snapshots=told, **more)  # type: ignore[arg-type]


# ── headers ────────────────────────────────────────────────────────────────────────────────────────────────────────


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
        state, paces = set_points(state, now)
        fields = numbers(paces)
    assert fields["p1"] == pytest.approx(10.0, rel=0.1)
    sent_by_now = number + 10 * latency_s
    assert fields["a1"] - sent_by_now == pytest.approx(5 - 0.1 * 10 * latency_s, abs=1.5)


def test_the_first_header_ends_the_start() -> None:
    """From one answer: pace, depth, guard, and a level that counts what left meanwhile."""
    state = observe(initial(FREE), seen(1, 100.0, remaining=9), FREE)
    state, paces = set_points(state, 100.0)
    fields = numbers(paces)
    assert (fields["p1"], fields["d1"], fields["told"]) == (10.0, 9.0, 1.0)
    assert fields["g1"] == pytest.approx(1.2)
    assert fields["a1"] == pytest.approx(9 + 1 + 0.9 * 10 * 0.05)
    assert pace.ramp(state) == 0
    assert "a1" not in numbers(set_points(state, 100.1)[1])  # a level is written once


def test_a_ceiling_is_held_against_generous_headers() -> None:
    """A person said 60 a minute, and headers tell of 6,000: no answer fills the level anew."""
    limits = LaneLimits(rpm=60)
    state = observe(initial(limits), seen(1, 100.0, remaining=99, limit=6000), limits)
    fields = numbers(set_points(state, 100.0)[1])
    assert "a1" not in fields
    assert (fields["p1"], fields["d1"], fields["g1"]) == (1.0, 1.02, 0.0)
    assert fields["m1"] > 90


def test_a_changed_limit_is_believed_at_once() -> None:
    """1200 a minute, then 200."""
    state = observe(initial(FREE), seen(1, 100.0, remaining=19, limit=1200), FREE)
    state = observe(state, seen(2, 100.1, remaining=3, limit=200), FREE)
    fields = numbers(set_points(state, 100.1)[1])
    assert fields["p1"] == pytest.approx(200 / 60)
    assert fields["d1"] == 3.0


def test_a_neighbour_is_seen_without_a_refusal() -> None:
    """Five a second of ours, and what is left falls by as many more: the refill that we get is measured."""
    state, level, measured = initial(FREE), 100.0, []
    for number in range(1, 60):
        level = max(0.0, level + 1.0 - 1.0 - 1.0)  # a fifth of a second: 2 flow in, we take 1, a neighbour 2
        state = observe(state, seen(number, 100 + number / 5, remaining=level), FREE)
        measured.append(state.dimensions["requests"].refill)
    assert min(refill for refill in measured if refill is not None) < 4  # what is left of a few units is not told apart
    assert measured[0] == 10.0


def test_refused_calls_are_not_in_the_level() -> None:
    """Of ten sent after the header's call three were refused: the level counts seven, whoever saw it first."""
    state = observe(initial(FREE), seen(10, 100.0, remaining=20), FREE)
    for number in (12, 13, 14):
        state = observe(state, seen(number, 100.1, refused=True), FREE)
    fields = numbers(set_points(state, 100.0, requests(3))[1])
    sent, turned_back = 20.0, 3.0
    assert fields["a1"] - sent + turned_back == pytest.approx(20 - 7 + 0.45)


def test_a_header_that_was_wrong_raises_no_level() -> None:
    """Refused though 30 were left: for half a minute headers only lower the level, and a second's refill is kept."""
    state = observe(initial(FREE), seen(1, 100.0, remaining=90), FREE)
    assert numbers(set_points(state, 100.0)[1])["d1"] == 90.0
    state = observe(state, seen(2, 100.1, remaining=30, refused=True), FREE)
    state = observe(state, seen(3, 100.2, remaining=30), FREE)
    fields = numbers(set_points(state, 100.2)[1])
    assert "a1" not in fields
    assert fields["m1"] > 0
    assert (fields["p1"], fields["d1"], fields["told"]) == (10.0, 10.0, 0.0)  # what flows in behind a gate is earned
    state = observe(state, seen(4, 131.0, remaining=90), FREE)
    assert "a1" in numbers(set_points(state, 131.0)[1])
    again = observe(state, seen(5, 131.1, remaining=30, refused=True), FREE)
    assert again.dimensions["requests"].doubt_until == pytest.approx(131.1 + 60)


# ── without headers ────────────────────────────────────────────────────────────────────────────────────────────────


class Bucket:
    """A provider that says nothing but yes and no."""

    def __init__(self, rate: float, depth: float) -> None:
        self.rate, self.depth, self.level, self.at = rate, depth, depth, 0.0

    def takes(self, at: float) -> bool:
        self.level = min(self.depth, self.level + self.rate * (at - self.at))
        self.at = at
        if self.level < 1:
            return False
        self.level -= 1
        return True


def drive(
    bucket: Bucket, seconds: float, limits: LaneLimits = FREE, stated: dict[str, float] | None = None
) -> tuple[PaceState, list[tuple[float, bool]]]:
    """Send at the pace, a turn of the law every tenth of a second → the state, and (time, refused) of each request."""
    state, sent, credit, gate = initial(limits), 0, 0.0, 0.0
    log: list[tuple[float, bool]] = []
    for turn in range(int(seconds * 10)):
        now = turn / 10
        state = step(state, now, requests(sent), limits, gate)
        state, paces = set_points(state, now)
        fields = numbers(paces)
        credit = min(credit + fields["p1"] / 10, fields["d1"] + fields["p1"] / 10)
        while credit >= 1 and now >= gate:
            credit, sent = credit - 1, sent + 1
            refused = not bucket.takes(now)
            log.append((now, refused))
            told = seen(sent, now + 0.05, refused=refused, stated=stated if stated and refused else {})
            state = observe(state, structs.replace(told, ticket=structs.replace(told.ticket, sent_at=now)), limits)
            if refused:
                gate, credit = now + 0.1, 0.0
    return state, log


@pytest.mark.parametrize("rate", [2.0, 10.0, 50.0])
def test_from_empty_to_empty(rate: float) -> None:
    """Told nothing, the lane finds the refill within a tenth, and wastes few requests."""
    state, log = drive(Bucket(rate, rate), 60.0)
    assert state.dimensions["requests"].refill == pytest.approx(rate, rel=0.1)
    late = [refused for at, refused in log if at > 20]
    assert sum(late) / len(late) < 0.05
    assert len(late) - sum(late) >= 0.9 * rate * 40


def test_a_limit_in_words_is_believed_at_once_and_then_measured() -> None:
    """ "Limit 600" in a refusal is 10/s; another limit later is news, the same one is none."""
    state = step(initial(FREE), 100.0, ZERO, FREE)
    state = observe(state, seen(20, 101.0, refused=True, stated={"requests": 10.0}), FREE)
    assert state.dimensions["requests"].refill == 10.0
    measured, _ = drive(Bucket(4.0, 4.0), 20.0, stated={"requests": 10.0})  # a neighbour takes the rest
    assert measured.dimensions["requests"].refill == pytest.approx(4.0, rel=0.1)
    state = observe(state, seen(80, 112.0, refused=True, stated={"requests": 4.0}), FREE)
    assert state.dimensions["requests"].refill == 4.0
    capped = observe(
        initial(LaneLimits(rpm=60)), seen(5, 101.0, refused=True, stated={"requests": 10.0}), LaneLimits(rpm=60)
    )
    assert capped.dimensions["requests"].refill == 1.0


def test_a_configured_rate_is_never_exceeded_and_probes_return_to_it() -> None:
    """A person said 10/s and the provider gives 20: nobody goes faster than 10."""
    limits = LaneLimits(rpm=600)
    state, log = drive(Bucket(20.0, 20.0), 30.0, limits)
    assert not any(refused for _, refused in log)
    assert len(log) <= 10 * 30 + 2
    assert state.dimensions["requests"].pace == 10.0


def test_the_start_doubles_while_it_is_used() -> None:
    """4/s, twice as much every 0.7 s; a lane that asks for less stays where it is."""
    state = step(initial(FREE), 100.0, ZERO, FREE)
    paces = []
    sent = 0.0
    for turn in range(1, 31):
        sent += state.dimensions["requests"].pace / 10
        state = step(state, 100 + turn / 10, requests(sent), FREE)
        paces.append(state.dimensions["requests"].pace)
    assert paces[-1] == 64.0
    idle = step(initial(FREE), 100.0, ZERO, FREE)
    for turn in range(1, 29):
        idle = step(idle, 100 + turn / 10, requests(turn // 10), FREE)
    assert idle.dimensions["requests"].pace == 4.0


def test_the_start_is_wider_with_each_answer() -> None:
    """Eight calls out, one more for each answer, and no bound once something is known."""
    state = initial(FREE)
    assert pace.ramp(state) == 8
    state = observe(pace.count_answers(state, 3), seen(1, 1.0), FREE)
    assert pace.ramp(state) == 12
    assert pace.ramp(observe(state, seen(2, 1.1, refused=True), FREE)) == 0
    assert pace.ramp(initial(LaneLimits(rpm=60))) == 0
    assert pace.ramp(initial(LaneLimits(tpm=60, adaptive=False, shared=True))) == 0  # a budget that lanes share


def test_what_a_pause_saved_is_spent_at_once_and_a_shallow_bucket_learned() -> None:
    """Retry-After of 2 s over a bucket that fills in 0.2 s: the credit is not there, so it is trusted half as much."""
    deep = structs.replace(initial(FREE), ramping=False)
    known = pace.Dimension(pace=10.0, refill=10.0, depth=2.5, empty=pace.Mark(0, 0.0, 90.0))
    deep = structs.replace(deep, dimensions={"requests": known})
    state = observe(deep, seen(100, 100.05, refused=True), FREE)
    state = step(state, 100.1, requests(100), FREE, gate=102.0)
    state = step(state, 102.0, requests(100), FREE, gate=102.0)
    assert state.pause is not None
    assert state.dimensions["requests"].pace == pytest.approx(1.6 * (state.dimensions["requests"].refill or 0))
    shallow = observe(state, seen(103, 102.25, refused=True), FREE)
    assert shallow.dimensions["requests"].saved == 0.5
    held = step(step(state, 103.0, requests(116), FREE), 106.0, requests(160), FREE)
    assert held.dimensions["requests"].saved == 1.0
    assert held.pause is None


def test_a_dimension_that_turns_out_to_be_bound() -> None:
    """A refusal that names tokens bounds tokens, by what went in the second before; requests stay as they are."""
    state = initial(FREE)
    for turn in range(12):
        state = step(state, 100 + turn / 10, (turn * 1.0, turn * 100.0, 0.0, 0.0), FREE)
    before = state.dimensions["requests"]
    ticket = Ticket(seq=11, sent_at=101.1, sent=(11.0, 1100.0, 0.0, 0.0))
    refused = Observation(
        at=101.15, ticket=ticket, refused=True, refused_dimension="tokens", cost=(1.0, 100.0, 0.0, 0.0)
    )
    state = observe(state, refused, FREE)
    assert state.dimensions["requests"] == before
    assert state.dimensions["tokens"].refill == pytest.approx(0.8 * 900, rel=0.15)


# ── whatever comes ─────────────────────────────────────────────────────────────────────────────────────────────────

_observations = st.lists(
    st.fixed_dictionaries(
        {
            "pause": st.floats(0, 20),
            "sent": st.integers(0, 30),
            "late": st.integers(0, 5),
            "latency": st.floats(0, 30),
            "refused": st.booleans(),
            "dimension": st.sampled_from([None, *DIMENSIONS]),
            "told": st.none()
            | st.tuples(st.sampled_from(DIMENSIONS), st.floats(-1, 1e6), st.floats(0.1, 3600), st.floats(0, 1e6)),
            "gate": st.floats(0, 5),
        }
    ),
    max_size=40,
)
_limits = st.builds(LaneLimits, rpm=st.none() | st.floats(0.1, 1e5), tpm=st.none() | st.floats(1, 1e7))


def play(steps: list[dict[str, Any]], limits: LaneLimits) -> list[tuple[PaceState, dict[str, float]]]:
    """A lane's life → each state, with its set-points."""
    state, now, seq, lived = initial(limits), 1e6, 0, []
    sent, turned_back = [0.0] * 4, [0.0] * 4
    for one in steps:
        now += one["pause"]
        seq += one["sent"]
        sent = [seq, seq * 100.0, seq * 60.0, seq * 40.0]
        number = max(0, seq - one["late"])
        ticket = Ticket(
            seq=number,
            sent_at=now - one["latency"],
            sent=(number, number * 100.0, number * 60.0, number * 40.0),
        )
        told = {}
        if one["told"] is not None:
            name, limit, window_s, remaining = one["told"]
            told = {name: Snapshot(limit=limit, window_s=window_s, remaining=remaining)}
        refused = bool(one["refused"])
        answer = Observation(
            at=now,
            ticket=ticket,
            refused=refused,
            good=not refused,
            snapshots=told,
            refused_dimension=one["dimension"],
            cost=(1.0, 100.0, 60.0, 40.0),
        )
        if refused:
            turned_back = [units + cost for units, cost in zip(turned_back, answer.cost, strict=True)]
        state = observe(state, answer, limits)
        state = step(state, now, tuple(sent), limits, now + one["gate"] if refused else 0.0)  # type: ignore[arg-type]
        state, paces = set_points(state, now, tuple(turned_back))  # type: ignore[arg-type]
        fields = numbers(paces)
        lived.append((state, fields))
    return lived


@given(_observations, _limits)
def test_whatever_comes_the_pace_is_sane(steps: list[dict[str, object]], limits: LaneLimits) -> None:
    """Above zero, finite, never above what a person said; depths hold a request; memory is bounded."""
    for state, fields in play(steps, limits):
        for name, value in fields.items():
            assert -inf < value < inf
            index = int(name[1]) - 1 if name[1:].isdigit() else 0
            if name[0] == "p":
                assert 0 < value <= pace.ceiling(DIMENSIONS[index], limits) * (1 + 1e-9)
            if name[0] == "d":
                assert value >= 1.0
            if name[0] == "g":
                assert 0 <= value <= fields[f"d{index + 1}"] / 4
        assert len(state.refused) <= 256
        assert len(state.samples) <= 2 + 15 * 10
        assert set(state.dimensions) <= set(DIMENSIONS)


@given(_observations, _limits)
def test_equal_observations_give_equal_states(steps: list[dict[str, object]], limits: LaneLimits) -> None:
    """No clock and no chance of its own."""
    assert play(steps, limits) == play(steps, limits)


@given(_observations, _limits, st.sampled_from(DIMENSIONS), st.floats(0, 1e6))
def test_an_old_header_changes_nothing(
    steps: list[dict[str, object]], limits: LaneLimits, name: str, remaining: float
) -> None:
    """An answer to a request that left before the newest header's says nothing of that dimension."""
    lived = play(steps, limits)
    if not lived or lived[-1][0].dimensions.get(name) is None:
        return
    state = lived[-1][0]
    newest = state.dimensions[name].newest
    if newest is None:
        return
    old = Observation(
        at=2e6,
        ticket=Ticket(seq=newest.seq, sent_at=newest.at, sent=ZERO),
        snapshots={name: Snapshot(limit=7.0, window_s=60.0, remaining=remaining)},
    )
    assert observe(state, old, limits).dimensions[name] == state.dimensions[name]


@given(_observations, _limits)
def test_a_limit_of_nothing_is_no_limit(steps: list[dict[str, object]], limits: LaneLimits) -> None:
    """Gateways send -1 and 0 for what they do not know; less than a unit an hour would close the lane for good."""
    lived = play(steps, limits)
    state = lived[-1][0] if lived else initial(limits)
    for limit in (0.0, -1.0, 5e-324, 0.01):
        told = {"requests": Snapshot(limit=limit, window_s=60.0, remaining=0.0)}
        nothing = Observation(at=3e6, ticket=Ticket(seq=10**9, sent_at=3e6, sent=ZERO), snapshots=told)
        assert observe(state, nothing, limits) == state
