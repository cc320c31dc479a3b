"""Does latency rise while answers are sick? The written rule's question about a lane's last 15 minutes.

The window is cut in two halves. The value of a half is the median of its minutes' mean latencies, so that a single bad
minute, or one hanging call in it, changes nothing. Latency rises if the later half's value is at least 1.25 times the
earlier one's, and both have 10 answers. This is only a second sign beside the share of sick answers; trends that people
are shown come from `policy.trend`.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

RISING = 1.25  #: later latency ÷ earlier latency
FEWEST_ANSWERS = 10  #: in each half


class Slice(Struct, frozen=True):
    """The answers of one slice of time."""

    answers: int
    latency_s: float  #: summed over all answers, seconds


def rises(slices: Sequence[Slice]) -> bool:
    """Whether latency rises over slices of equal length, oldest first; the middle one of an odd number is left out."""
    half = len(slices) // 2
    earlier, later = slices[:half], slices[len(slices) - half :]
    if min(sum(one.answers for one in earlier), sum(one.answers for one in later)) < FEWEST_ANSWERS:
        return False
    before_s = _typical_s(earlier)
    return before_s > 0 and _typical_s(later) >= RISING * before_s


def _typical_s(slices: Sequence[Slice]) -> float:
    from statistics import median  # with what that imports, for the few lanes that are asked this

    return median(one.latency_s / one.answers for one in slices if one.answers)
