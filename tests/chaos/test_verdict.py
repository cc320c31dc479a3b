"""The judge: each promise can be broken, and is then named; and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.verdict import Allowed, Asked, Evidence, Heard, Row, judge, most_allowed, repeated

GOOD = Evidence(
    accepted={"1": "a", "2": "b"},
    heard={"1": Heard("a", "answered"), "2": Heard("b", "answered")},
    refused={},
    asked=[Asked("a", 100.0, 0.5, True), Asked("b", 101.0, 0.5, True)],
    rows=[Row("1", 1, "answered"), Row("2", 1, "answered")],
    slots=8,
    slots_used=8,
    recovered_s=1.0,
)


def test_all_is_well() -> None:
    """Nothing broken, and the figures."""
    verdict = judge(GOOD, Allowed())
    assert verdict.broken == ()
    assert (verdict.accepted, verdict.answered, verdict.lost, verdict.stuck, verdict.slots_lost) == (2, 2, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"heard": {"1": Heard("a", "answered")}}, "1 stuck"),
        ({"heard": {**GOOD.heard, "2": Heard("b", "StoreUnavailable")}}, "1 lost: StoreUnavailable"),
        ({"heard": {**GOOD.heard, "2": Heard("b", "wrong answer")}}, "1 lost: wrong answer"),
        ({"refused": {"OperationalError": 3}}, "`.delay()` raised OperationalError"),
        ({"asked": [*GOOD.asked, Asked("a", 105.0, 0.5, True)]}, "1 answered twice"),
        ({"asked": [*GOOD.asked, Asked("a", 105.0, 0.5, False)]}, "1 answered twice"),
        ({"rows": GOOD.rows[:1]}, "1 rows missing"),
        ({"rows": [GOOD.rows[0], Row("2", 1, "snoozed")]}, "1 rows missing"),
        ({"rows": [*GOOD.rows, Row("2", 2, "failed")]}, "1 rows doubled"),
        ({"slots_used": 6}, "2 slots lost"),
        ({"died": ["w1"]}, "1 workers ended by themselves: w1"),
        ({"slowest_delay_s": 11.0}, "`.delay()` took 11.0 s"),
        ({"recovered_s": None}, "no recovery"),
        ({"recovered_s": 61.0}, "recovered after 61.0 s"),
        ({"rate": 10.0, "asked": [Asked(str(n), 100 + n / 100, 0.1, True) for n in range(63)]}, "63 requests in 5 s"),
        ({"accepted": {}, "heard": {}, "rows": []}, "no call was accepted"),
        ({"notes": ["the flood held others up"]}, "the flood held others up"),
    ],
)
def test_each_promise_can_be_broken(change: dict[str, Any], words: str) -> None:
    """One breach, named."""
    verdict = judge(replace(GOOD, **change), Allowed())
    assert not verdict.kept
    assert len(verdict.broken) == 1
    assert words in verdict.broken[0]


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"heard": {**GOOD.heard, "2": Heard("b", "CallLost")}}, Allowed(errors=frozenset({"CallLost"}))),
        ({"refused": {"StoreUnavailable": 1}}, Allowed(refusals=frozenset({"StoreUnavailable"}))),
        ({"rows": []}, Allowed(unrecorded=True)),
        ({"died": ["w1"]}, Allowed(deaths=1)),
        ({"asked": [*GOOD.asked, Asked("a", 105.0, 0.5, True)]}, Allowed(twice=1)),
        ({"rate": 10.0, "asked": [Asked(str(n), 100 + n / 100, 0.1, True) for n in range(61)]}, Allowed()),
    ],
)
def test_what_a_fault_allows_breaks_nothing(change: dict[str, Any], allowed: Allowed) -> None:
    """No more than that."""
    assert judge(replace(GOOD, **change), allowed).kept


@pytest.mark.parametrize(
    ("asked", "excused", "again", "twice"),
    [
        ([("a", 10, True), ("a", 20, True)], [], 0, 1),
        ([("a", 10, True), ("a", 20, True)], [(10.2, 10.2)], 1, 0),  # in flight at the kill
        ([("a", 10, True), ("a", 20, True)], [(9.9, 9.9)], 0, 1),  # begun after it
        ([("a", 10, True), ("a", 20, True)], [(13.0, 13.0)], 0, 1),  # answered and settled long before it
        ([("a", 10, True), ("a", 20, True)], [(5, 30)], 1, 0),  # what Redis did not know any more
        ([("a", 10, True), ("a", 20, True), ("a", 30, True)], [(10.2, 10.2)], 0, 1),  # once would have been enough
        ([("a", 10, False), ("a", 20, True)], [], 0, 0),  # refused, then answered
        ([("a", 10, False), ("a", 20, False)], [], 0, 0),
        ([("a", 10, True), ("b", 20, True)], [], 0, 0),
    ],
)
def test_only_what_was_in_flight_at_a_kill_may_be_answered_twice(
    asked: list[tuple[str, float, bool]], excused: list[tuple[float, float]], again: int, twice: int
) -> None:
    """Each answer of a call that was asked again needs a kill of its own."""
    seen = [Asked(text, at_s, 0.5, good) for text, at_s, good in asked]
    assert repeated(seen, excused) == (again, twice)


def test_what_may_be_sent_in_a_window() -> None:
    """Its rate, a little for the burst, and what the slots had been held up with."""
    assert most_allowed(50.0, 16) == pytest.approx(282.0)
