"""How many recent answers were sick? Counts by minute and by span of seconds, and how certain a share of them is."""

from __future__ import annotations

from math import sqrt
from typing import NamedTuple

WINDOW_MIN, HOUR_MIN = 15, 60  #: windows of the written rule in minutes, the current one included
SPAN_S, SPANS = 5, 12  #: length of a span in seconds; spans in a minute
EVIDENCE_S = 30  #: window of the sick share, seconds
CALLS_S = 120  #: window in which each call counts once, by its first attempt, seconds
Z = 1.64  #: standard errors of the Wilson lower bound: 95 % one-sided (Wilson 1927)


class Count(NamedTuple):
    """Answers of one minute, or of one span."""

    number: int  #: of minutes or spans since the epoch
    good: int = 0
    sick: int = 0
    timed: int = 0  #: good ones whose latency is known
    latency_s: float = 0.0  #: summed over these, seconds


Counts = tuple[Count, ...]


def added(counts: Counts, number: int, most: int, more: Count) -> Counts:
    """Add to the counts, and drop those that are too old. Answers come nearly in order; a late one counts as of now."""
    newest = max(number, counts[-1].number) if counts else number
    kept = counts
    if counts and counts[0].number <= newest - most:  # they are in order, and usually none is too old
        kept = tuple(count for count in counts if count.number > newest - most)
    last = kept[-1] if kept and kept[-1].number == newest else Count(newest)
    rest = kept[:-1] if kept and kept[-1].number == newest else kept
    summed = Count(
        newest, last.good + more.good, last.sick + more.sick, last.timed + more.timed, last.latency_s + more.latency_s
    )
    return (*rest, summed)


def last_minutes(counts: Counts, at: float, minutes: int) -> Counts:
    """The counts of the last minutes."""
    return tuple(count for count in counts if count.number > at // 60 - minutes)


def last_evidence(counts: Counts, at: float) -> Counts:
    """The counts of the last `EVIDENCE_S` seconds."""
    return tuple(count for count in counts if count.number > at // SPAN_S - EVIDENCE_S // SPAN_S)


def sick_part(counts: Counts, at: float) -> float:
    """The share of sick answers in the last `EVIDENCE_S` seconds, 0 to 1; 0 without answers."""
    good, sick = totals(last_evidence(counts, at))
    return sick / (good + sick) if good + sick else 0.0


def totals(counts: Counts) -> tuple[int, int]:
    """Good and sick answers, summed."""
    return sum(count.good for count in counts), sum(count.sick for count in counts)


def in_percent(part: int, whole: int) -> float:
    """`part` of `whole` in percent; 0 if `whole` is 0."""
    return 100.0 * part / whole if whole else 0.0


def wilson(part: int, whole: int) -> float:
    """Lower bound of a share, 0 to 1, with 95 % confidence (score interval; Wilson 1927)."""
    if whole <= 0:
        return 0.0
    share, z2 = part / whole, Z * Z
    middle = share + z2 / (2 * whole)
    spread = Z * sqrt(share * (1 - share) / whole + z2 / (4 * whole * whole))
    return max(0.0, (middle - spread) / (1 + z2 / whole))
