"""What is an answer worth that is kept? By table; the model as a whole against real recency in the benchmark."""

from __future__ import annotations

import pytest

from ratelimit_worker.calls import Usage
from ratelimit_worker.policy.worth import Bounds, Kept, again_nanousd, of_one_use

ROOMY = Bounds(entries=1000, bytes=10**6)


@pytest.mark.parametrize(
    ("usage", "reserved", "paid", "nanousd"),
    [
        (Usage(100, 20), 500, None, 120_000),
        (Usage(100, None), 500, None, 100_000),
        (Usage(None, None), 500, None, 500_000),
        (None, 500, None, 500_000),
        (None, 0, None, 1_000_000),
        (Usage(0, 0), 0, None, 1_000_000),
        (Usage(100, 20), 500, 7, 7),
        (Usage(100, 20), 500, 0, 1),
    ],
)
def test_what_asking_again_costs(usage: Usage | None, reserved: int, paid: int | None, nanousd: int) -> None:
    """Money where it is known, else the tokens that were counted, else those that were estimated."""
    assert again_nanousd(usage, reserved, paid) == nanousd


def test_an_entry_takes_its_even_share_at_least() -> None:
    """While entries are short, size does not matter; above an even share it does."""
    assert of_one_use(1000, 10, ROOMY) == of_one_use(1000, 1000, ROOMY) == 1000.0
    assert of_one_use(1000, 2000, ROOMY) == 500.0


def test_what_saves_least_goes_first() -> None:
    """By cost, by size, by use; equal ones in the order of their names."""
    bounds = Bounds(entries=3, bytes=30_000)
    kept = Kept()
    assert kept.keep("cheap", 100, 10, bounds) == []
    assert kept.keep("large", 20_000, 100, bounds) == []
    assert kept.keep("used", 100, 10, bounds) == []
    for _ in range(9):
        assert kept.use("used")
    assert kept.keep("a", 100, 1000, bounds) == ["cheap"]
    assert kept.keep("b", 100, 1000, bounds) == ["large"]
    assert kept.keep("c", 100, 1000, bounds) == ["used"]
    assert kept.keep("d", 100, 1000, bounds) == ["a"]
    assert not kept.use("a")


def test_what_was_used_much_but_long_ago_goes_too() -> None:
    """Each eviction lifts the floor under what comes after."""
    bounds = Bounds(entries=2, bytes=10**6)
    kept = Kept()
    kept.keep("old", 100, 1000, bounds)
    for _ in range(9):
        kept.use("old")
    gone = [kept.keep(f"new{number}", 100, 1000, bounds) for number in range(12)]
    assert gone[:9] == [[]] + [[f"new{number}"] for number in range(8)]
    assert gone[11] == ["old"], "ten evictions, as many as it had uses"


def test_bounds_hold_whatever_is_kept() -> None:
    """Several small ones go for a large one; one larger than all room goes nowhere, and drives nothing out."""
    bounds = Bounds(entries=10, bytes=1000)
    kept = Kept()
    for name in "abcde":
        kept.keep(name, 200, 1000, bounds)
    assert kept.keep("large", 500, 1000, bounds) == ["a", "b", "c"]
    assert (kept.bytes, sorted(kept.entries)) == (900, ["d", "e", "large"])
    assert kept.keep("too large", 1001, 10**9, bounds) == []
    assert kept.keep("d", 600, 1000, bounds) == ["e", "large"], "an answer is counted once"
    assert kept.bytes == 600
    assert kept.keep("none", 1, 1, Bounds(entries=0, bytes=1000)) == []


def test_an_answer_that_is_asked_anew_keeps_its_uses() -> None:
    """It is as much in use as it was."""
    kept = Kept()
    kept.keep("a", 100, 1000, ROOMY)
    kept.use("a")
    kept.keep("a", 100, 1000, ROOMY)
    assert kept.entries["a"].uses == 3
