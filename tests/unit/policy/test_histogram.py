"""Percentiles of a histogram, and of what a cell adds up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.policy import rollup
from ratelimit_worker.policy.histogram import ZERO, quantiles, value_of

COUNTS = st.dictionaries(st.integers(ZERO, 900), st.integers(1, 5), max_size=40)
SHARES = (0.0, 0.05, 0.5, 0.95, 1.0)


@given(COUNTS)
def test_a_quantile_is_the_first_value_up_to_which_that_share_lies(counts: dict[int, int]) -> None:
    """As if all values stood in a row."""
    row = [value_of(index) for index in sorted(counts) for _ in range(counts[index])]
    for share, found in zip(SHARES, quantiles(counts, *SHARES), strict=True):
        if not row:
            assert found is None
            continue
        assert found in row
        assert sum(value <= found for value in row) >= share * len(row)
        assert not any(sum(value <= lower for value in row) >= share * len(row) for lower in set(row) if lower < found)


@given(st.lists(COUNTS, max_size=6))
def test_a_window_and_a_slice_hold_the_same_sums_without_what_they_do_not_show(parts: list[dict[int, int]]) -> None:
    """Only histograms that nobody reads there are left out."""
    cells = [
        Cell(outcomes={"answered": n}, latency=dict(c), waited=dict(c), per_token=dict(c), cost=dict(c), cost_nanousd=n)
        for n, c in enumerate(parts)
    ]
    whole, window, part = rollup.total(cells), Cell(), Cell()
    for cell in cells:
        rollup.merge_window(window, cell)
        rollup.merge_slice(part, cell)
    assert (window.per_token, window.cost, part.waited) == ({}, {}, {})
    window.per_token, window.cost = whole.per_token, whole.cost
    assert window == whole
    part.waited, part.per_token, part.cost = whole.waited, whole.per_token, whole.cost
    assert part == whole
