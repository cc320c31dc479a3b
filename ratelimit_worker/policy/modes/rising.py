"""Does latency rise while answers are sick? The written rule's question about a lane's last 15 minutes.

The window is cut in two halves. Each half is worth the median of its minutes' mean latencies, so that one bad minute,
or one hung call in it, says nothing. It rises where the later half is worth 1.25 of the earlier and more, and both
halves have 10 answers. It is one sign beside a share of sick answers; what people are told of is
`policy.trend`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

RISING = 1.25  #: later latency ÷ earlier latency
FEWEST_ANSWERS = 10  #: in each half


@dataclass(frozen=True, slots=True)
class Slice:
    """What one slice of time has seen."""

    answers: int
    latency_s: float  #: of all answers together, seconds


def rises(slices: Sequence[Slice]) -> bool:
    """Whether it does, over slices of equal length, oldest first; of an odd number the middle one is in no half."""
    half = len(slices) // 2
    earlier, later = slices[:half], slices[len(slices) - half :]
    if min(sum(one.answers for one in earlier), sum(one.answers for one in later)) < FEWEST_ANSWERS:
        return False
    before_s = _typical_s(earlier)
    return before_s > 0 and _typical_s(later) >= RISING * before_s


def _typical_s(slices: Sequence[Slice]) -> float:
    return median(one.latency_s / one.answers for one in slices if one.answers)
