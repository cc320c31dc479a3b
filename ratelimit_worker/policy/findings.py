"""Do the figures of a lane or function get better or worse? The trend of each, from its minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ratelimit_worker.calls import Outcome
from ratelimit_worker.contracts.rollup import Cell
from ratelimit_worker.policy import trend
from ratelimit_worker.policy.rollup import outcomes
from ratelimit_worker.policy.trend import NOTHING, Finding, Trend

LATENCY, PER_TOKEN, SPEED, ERRORS, COST = "latency", "latency_per_token", "tokens_per_s", "errors", "cost"


def findings(minutes: Sequence[Cell]) -> dict[str, Finding]:
    """The trend of each figure, by name; figures without data are left out.

    Args:
        minutes: The data of each minute, oldest first: `trend.LOOK_BACK_MIN` of them, up to the last whole one.
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
    """The trend of latency: per output token if that is known of enough answers, since these may only have become
    longer."""
    per_token = found.get(PER_TOKEN, NOTHING)
    return per_token if per_token.trend is not Trend.UNKNOWN else found.get(LATENCY, NOTHING)
