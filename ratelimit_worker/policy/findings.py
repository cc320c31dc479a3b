"""How do the figures of a lane or function go? Each figure's trend, from what its minutes have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ratelimit_worker.calls import Outcome
from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.policy import trend
from ratelimit_worker.policy.rollup import outcomes
from ratelimit_worker.policy.trend import NOTHING, Finding

LATENCY, PER_TOKEN, SPEED, ERRORS, COST = "latency", "latency_per_token", "tokens_per_s", "errors", "cost"


def findings(minutes: Sequence[Cell]) -> dict[str, Finding]:
    """How each figure goes, by its name; those of which nothing was seen are left out.

    Args:
        minutes: What each minute has seen, oldest first: `trend.LOOK_BACK_MIN` of them, to the last whole one.
    """
    if not any(cell.outcomes for cell in minutes):
        return {}
    found = {LATENCY: trend.of_values([cell.latency for cell in minutes])}
    if any(cell.per_token for cell in minutes):
        found[PER_TOKEN] = per_token = trend.of_values([cell.per_token for cell in minutes])
        found[SPEED] = trend.inverted(per_token)
    if any(cell.cost for cell in minutes):
        found[COST] = trend.of_values([cell.cost for cell in minutes])
    counted = [outcomes(cell) for cell in minutes]
    found[ERRORS] = trend.of_shares(
        [(by[Outcome.RETRIED] + by[Outcome.FAILED], sum(by.values()) - by[Outcome.SNOOZED]) for by in counted]
    )
    return found


def of_latency(found: Mapping[str, Finding]) -> Finding:
    """How latency goes: for each output token where that is known, since answers may just have become longer."""
    return found.get(PER_TOKEN) or found.get(LATENCY) or NOTHING
