"""How is a trend said in words? With the numbers behind it. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from ratelimit_worker.policy.findings import PER_TOKEN, of_latency
from ratelimit_worker.policy.trend import FEWEST_BEFORE, FEWEST_LATEST, Finding, Trend
from ratelimit_worker.reports.words import count, seconds


def too_few(found: Finding) -> str:
    """How many answers there are, and how many a trend needs."""
    there = f"{count(found.values_latest)} answers in {found.minutes} minutes and {count(found.values_before)} before"
    if found.values_latest < FEWEST_LATEST or found.values_before < FEWEST_BEFORE:
        return f"{there}, where {FEWEST_LATEST} and {FEWEST_BEFORE} are needed"
    return f"{there}, which came in too few minutes"


def trend_numbers(trends: Mapping[str, Finding]) -> str:
    """The numbers behind the trend of latency: "2.1 s in the latest 8 minutes, 1.1 s before"; "" if it is stable.

    Args:
        trends: Of each figure, by name.
    """
    found = of_latency(trends)
    if found.trend is Trend.UNKNOWN:
        return too_few(found)
    if found.trend is Trend.STABLE:
        return ""
    each = " for a token" if found is trends.get(PER_TOKEN) else ""
    return f"{seconds(found.latest)}{each} in the latest {found.minutes} minutes, {seconds(found.before)} before"
