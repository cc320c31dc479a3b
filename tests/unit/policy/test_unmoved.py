"""Headers that do not move with what is sent: a gateway's own, or always the same line."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratelimit_worker.calls import Snapshot
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.unmoved import MOVES, Unmoved, heard
from ratelimit_worker.simulate.provider import Verdict
from ratelimit_worker.simulate.scenarios import CASES
from tests.laboratory import Job, Laboratory, jobs_of, read


def after(answers: int, every_s: float, snapshot: Snapshot, before: Unmoved | None = None) -> Unmoved:
    """What is seen after so many good answers with the same headers."""
    start = before.at + every_s if before is not None else 0.0
    for number in range(answers):
        before = heard(before, snapshot, start + number * every_s, good=True)
    assert before is not None
    return before


def snapshot(limit: float, remaining: float, window_s: float = 60.0) -> Snapshot:
    """Of requests."""
    return Snapshot(limit=limit, remaining=remaining, window_s=window_s, reset_s=None)


@pytest.mark.parametrize("every_s", [1.0, 0.9, 10.0])
def test_a_lane_at_its_limit_or_below_is_not_contradicted(every_s: float) -> None:
    """A bucket that is full again before each call says the same for an hour, and is believed."""
    assert not after(400, every_s, snapshot(60 / 0.9, 60)).foreign


def test_more_answers_than_the_limit_lets_through_contradict_it() -> None:
    """60/min, and ten answers a second while nothing is used up."""
    assert after(60, 0.1, snapshot(60, 60)).foreign


def test_headers_that_are_late_or_rounded_are_believed() -> None:
    """A burst out of a full bucket, whose headers show it two seconds later, or only in steps of a tenth."""
    assert not after(200, 0.01, snapshot(600, 600)).foreign
    assert not after(60, 0.1, snapshot(600, 540)).foreign


def test_refusals_again_and_again_contradict_them() -> None:
    """Four within a few answers; those that were on their way together count as one."""
    seen = after(5, 0.3, snapshot(6000, 5999))
    for _ in range(50):
        seen = heard(seen, snapshot(6000, 5999), 1.3, good=False, refused_at=1.5)
    assert not seen.foreign
    for sent_at in (1.6, 1.9, 2.2):
        assert not seen.foreign
        seen = heard(seen, snapshot(6000, 5999), sent_at, good=False, refused_at=sent_at + 0.2)
    assert seen.foreign


def test_refusals_now_and_then_do_not() -> None:
    """One in fifty, for no reason, in a lane whose bucket is always full."""
    seen = after(1, 1.0, snapshot(600, 599))
    for _ in range(20):
        seen = after(49, 0.2, snapshot(600, 599), seen)
        seen = heard(seen, snapshot(600, 599), seen.at + 0.2, good=False, refused_at=seen.at + 0.3)
    assert not seen.foreign


def test_they_are_followed_again_when_they_move() -> None:
    """With each header another remainder, some times in a row."""
    seen = after(60, 0.1, snapshot(60, 60))
    seen = heard(seen, snapshot(60, 59), 7.0, good=True)
    seen = after(3, 0.1, snapshot(60, 59), seen)
    for remaining in range(58, 58 - MOVES, -1):
        assert seen.foreign
        seen = heard(seen, snapshot(60, remaining), 8.0, good=True)
    assert not seen.foreign


class _Gateway(Laboratory):
    """Whose answers say the same whatever is sent."""

    said = (60, 60)

    def answered(self, job: Job, ticket: bytes, seq: int, process: str, verdict: Verdict) -> None:
        """Its own headers instead of the provider's."""
        response, failure = read(verdict)
        assert response is not None
        kept = {name: text for name, text in response.headers.items() if not name.startswith("x-ratelimit")}
        limit, remaining = map(str, self.said)
        told = {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": remaining}
        response = replace(response, headers=kept | told)
        if failure is not None:
            failure = classify_response(response)
        self.settled(job, ticket, seq, process, response, failure)


@pytest.mark.parametrize(("said", "least", "most_refused"), [((60, 60), 8.0, 0.06), ((6000, 5999), 9.0, 0.12)])
def test_a_gateways_own_limit_neither_slows_a_lane_nor_makes_it_storm(
    said: tuple[int, int], least: float, most_refused: float
) -> None:
    """600/min behind a gateway that always says 60 of 60, or 5999 of 6000 (they got 1.3/s, and 67 % refused)."""
    case = CASES["steady"]
    laboratory = _Gateway(case.provider, jobs_of(case, 700))
    laboratory.said = said
    result = laboratory.run(40.0)
    good = [arrival for arrival in result.arrivals if arrival.good]
    assert len(good) / 40 >= least
    assert sum(arrival.status == 429 for arrival in result.arrivals) / len(result.arrivals) <= most_refused
