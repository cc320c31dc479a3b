"""Does the provider get slower? The trend of its latency over a window.

The rule: the window is cut in two halves. Each half is worth the median of its slices' mean latencies, so that one bad
slice, or one hung call in it, says nothing. Later half ÷ earlier half: 1.25 and more is degrading, 0.8 and less is
improving. With fewer than 10 answers in either half nothing is known to have changed: stable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

DEGRADING, IMPROVING = 1.25, 0.8  #: later latency ÷ earlier latency
FEWEST_ANSWERS = 10  #: in each half


class Trend(StrEnum):
    """Where latency goes."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"


@dataclass(frozen=True, slots=True)
class Slice:
    """What one slice of time has seen."""

    answers: int
    latency_s: float  #: of all answers together, seconds


def latency_trend(slices: Sequence[Slice]) -> Trend:
    """The trend over slices of equal length, oldest first; of an odd number the middle one belongs to neither half."""
    half = len(slices) // 2
    if min(_answers(slices[:half]), _answers(slices[len(slices) - half :])) < FEWEST_ANSWERS:
        return Trend.STABLE
    before_s, after_s = halves(slices)
    if before_s <= 0:
        return Trend.STABLE  # a provider that takes no time at all: a share of it means nothing
    if after_s >= DEGRADING * before_s:
        return Trend.DEGRADING
    return Trend.IMPROVING if after_s <= IMPROVING * before_s else Trend.STABLE


def halves(slices: Sequence[Slice]) -> tuple[float, float]:
    """What the earlier and the later half are worth, seconds; both must have answers."""
    half = len(slices) // 2
    return _typical_s(slices[:half]), _typical_s(slices[len(slices) - half :])


def _answers(slices: Sequence[Slice]) -> int:
    return sum(one.answers for one in slices)


def _typical_s(slices: Sequence[Slice]) -> float:
    return median(one.latency_s / one.answers for one in slices if one.answers)
