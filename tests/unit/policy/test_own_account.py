"""A quota that is used up, or a key that is not accepted: the lane's, or that of single calls beside others?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.policy import fault, modes
from ratelimit_worker.policy.fault import Closed, Row
from ratelimit_worker.policy.modes import Answer, ModeState, Thresholds
from ratelimit_worker.simulate import Entry, Fault, Scenario
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import Job, Laboratory, Result, jobs_of

BAD = "[[bad]]"
RPM = 600


def calls(count: int, bad: tuple[int, ...] = (), at_s: float = 0.0) -> list[Job]:
    """Calls that wait from a time on; those with these numbers have an account of their own, which is closed."""
    rows = [replace(job, at_s=at_s) for job in jobs_of(replace(CASES["steady"], finite=count))]
    for i in bad:
        body = rows[i].body.replace(b'"content":"', f'"content":"{BAD} '.encode())
        rows[i] = replace(rows[i], name=f"bad{i}", body=body, task="other" if i % 2 else "task")
    return rows


def run(jobs: list[Job], *entries: Entry, until_s: float = 400.0) -> tuple[Laboratory, Result]:
    provider = Scenario(rpm=RPM, latency="lognormal(0.5, 0.3)", timeline=entries)
    laboratory = Laboratory(provider, jobs, slots=32, workers=("w0", "w1"))
    return laboratory, laboratory.run(until_s)


def modes_of(result: Result) -> list[str]:
    return [move.split()[1] for _, move in result.moves]


@pytest.mark.parametrize("status", [Fault.PAYMENT_REQUIRED, Fault.UNAUTHORIZED])
@pytest.mark.parametrize(
    "bad",
    [(60,), (60, 90, 91), tuple(range(20, 300, 10)), tuple(range(21, 300, 2))],
    ids=["one", "three", "a tenth", "half"],
)
def test_an_account_of_a_call_beside_others_does_not_stop_its_lane(status: Fault, bad: tuple[int, ...]) -> None:
    """300 calls in 30 s: the others take as long as without it, in NORMAL throughout; and it ends with an error."""
    jobs = calls(300, bad)
    laboratory, result = run(jobs, Entry(fault=status, match=BAD))
    good = [job for job in jobs if not job.name.startswith("bad")]
    assert all(job.answered for job in good)
    ended_s = max(job.ended_s or 0.0 for job in good)
    assert ended_s <= 30.0 * 1.05 + 3
    assert not any(at_s < ended_s for at_s, _ in result.moves)
    assert not any(job.answered for job in jobs if job.name.startswith("bad"))
    if len(bad) < 100:  # of half a batch, those that are left when nobody is answered any more wait for their account
        assert (laboratory.left, modes_of(result)) == (0, [])
        assert max(job.sent for job in jobs) <= 6


def test_the_first_call_of_a_lane_without_quota_stops_it_for_seconds() -> None:
    """Nobody was answered yet, so the lane is halted at once; a probe with another call, after 2 s, ends that."""
    jobs = calls(300, (0,))
    _, result = run(jobs, Entry(fault=Fault.PAYMENT_REQUIRED, match=BAD))
    assert modes_of(result) == ["HALT", "NORMAL"]
    assert max(job.ended_s or 0.0 for job in jobs if job.answered) <= 30.0 * 1.05 + 6


def test_a_call_without_quota_alone_in_its_lane_keeps_others_waiting_for_a_probe_at_most() -> None:
    """It was alone for 40 s, and the lane is halted. The next probe, after half a minute at most, is another call."""
    jobs = [*calls(1, (0,)), *(replace(job, name=f"g{job.name}") for job in calls(100, at_s=40.0))]
    _, result = run(jobs, Entry(fault=Fault.PAYMENT_REQUIRED, match=BAD))
    assert modes_of(result) == ["HALT", "NORMAL"]
    assert max(job.ended_s or 0.0 for job in jobs if job.answered) <= 40.0 + 36.0 + 10.0 + 5.0
    assert jobs[0].sent <= 6 + 6


@pytest.mark.parametrize("calm_s", [0.0, 10.0])
@pytest.mark.parametrize(("status", "most"), [(Fault.QUOTA, 6), (Fault.UNAUTHORIZED, 16)])
def test_a_lane_whose_account_is_closed_is_halted_at_once(status: Fault, most: int, calm_s: float) -> None:
    """On all calls from the beginning, or after 100 good ones: a handful of requests, and nobody is answered."""
    jobs = calls(400)
    _, result = run(jobs, Entry(at_s=calm_s, fault=status), until_s=calm_s + 25.0)
    assert modes_of(result)[:1] == ["HALT"]
    turned_away = [one for one in result.arrivals if one.fault is not None]
    assert len(turned_away) <= most
    if status is Fault.QUOTA:
        assert result.failed == 0


# ── the pure rules ─────────────────────────────────────────────────────────────────────────────────────────────────


def told(*seqs: int) -> Closed:
    """Such answers to these calls, in this order."""
    row: Closed | None = None
    for seq in seqs:
        row = fault.closed(row, seq, float(seq), seq)
    assert row is not None
    return row


@pytest.mark.parametrize(
    ("seqs", "total", "undecided"),
    [
        ((7,), 1, 0),
        ((7, 8, 9), 3, 0),
        ((8, 7, 9), 3, 0),  # they came back in another order
        ((7, 9), 2, 1),  # one in between is not answered yet
        ((7, 10), 1, 0),  # two are not: the row begins anew
        ((7, 8, 10, 12), 1, 0),
        ((*range(20), 21, 23, 24), 23, 2),  # of many, one in eight
    ],
)
def test_a_row_is_counted_in_the_order_of_sending(seqs: tuple[int, ...], total: int, undecided: int) -> None:
    """Good answers take longer, so what came first says little."""
    row = told(*seqs)
    assert (row.row.total, row.undecided) == (total, undecided)


@pytest.mark.parametrize(
    ("count", "share", "shut"),
    [(2, 0.0, False), (3, 0.001, True), (3, 0.1, False), (7, 0.1, True), (12, 0.5, False), (20, 0.5, True)],
)
def test_more_are_needed_the_more_calls_have_an_account_of_their_own(count: int, share: float, shut: bool) -> None:
    """Chance must be one in a million."""
    assert fault.is_closed(told(*range(count)), share) is shut


def test_one_call_is_never_several() -> None:
    """However often it is told so."""
    row = Closed(Row(50, ((1, 50),)), 1, 1.0, 50)
    assert not fault.is_closed(row, 0.0)


def quota(at: float, call: int, **more: Any) -> Answer:
    witness = Witness(call=call, task=1, process=1, **more)
    return Answer(at=at, sent_at=at - 0.05, seq=round(at * 10), quota=True, witness=witness)


def test_further_attempts_of_the_same_calls_are_no_further_evidence() -> None:
    """Three calls that are told so again and again, while others are answered, do not halt their lane."""
    state = ModeState()
    for second in range(20):
        state = modes.count_good(state, 1e6 + second, 10)
    for again in range(10):
        for call in range(2):
            at = 1e6 + 20 + again + call / 10
            state, move = modes.observe(state, quota(at, call, discounted=True, again=again > 0), Thresholds())
            assert (state.mode, move) == (Mode.NORMAL, None)


def test_what_the_law_remembers_can_be_stored() -> None:
    """It goes into the lane's hash, and comes back."""
    state, _ = modes.observe(ModeState(), quota(1e6, 1), Thresholds())
    assert state.mode is Mode.HALT
    packed = msgspec.msgpack.encode(state)
    assert msgspec.msgpack.Decoder(ModeState).decode(packed) == state
