"""A budget of money at its edge, with workers and a provider that bills."""

from __future__ import annotations

import pytest

from benchmarks.budget import is_met, play

pytestmark = pytest.mark.server


def test_callers_at_the_edge_overspend_a_call_each_at_most() -> None:
    """Eight at once on ten cents: all is spent before one waits, the count is the bill; more money wakes the rest."""
    callers, usd = 8, 0.10
    edge = play(callers, usd, seed=3)
    assert edge.waiting > 0
    assert is_met(edge, callers, usd), edge
