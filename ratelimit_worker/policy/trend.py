"""Does it get worse? The latest minutes against the two hours before them, by tests that quiet noise does not pass.

Two ways lead to "degrading" or "improving", over the last 152 minutes at most:

- **A change.** The values of the last 3 to 32 minutes are ranked among those before them (Mann-Whitney). They have to
  rank higher even when they are divided by 1.25, by more than chance allows; and chance is measured, not assumed: by
  how far blocks of minutes before them lie apart. So bursts, calls that are slow together, and heavy tails are what
  that lane is used to, and no news.
- **A slide.** The medians of groups of minutes rise steadily (Mann-Kendall, corrected for their correlation), and their
  slope (Theil-Sen) makes at least 1.75 times as much over the time that is looked at.

For rates (errors) a change is a share of failures that the share before makes next to impossible (binomial, with the
same measure of chance), and at least 5 percentage points away. What has too little to tell is "not enough data".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from math import exp, inf, lgamma, log, sqrt
from statistics import median

from ratelimit_worker.policy import histogram
from ratelimit_worker.policy.histogram import Histogram

BASELINE_MIN = 120  #: minutes before the latest ones, at most
TAILS_MIN = (3, 4, 6, 8, 10, 16, 32)  #: lengths of "the latest minutes" that are tried
LOOK_BACK_MIN = BASELINE_MIN + TAILS_MIN[-1]
FEWEST_LATEST, FEWEST_BEFORE = 18, 60  #: values that a change is told from
FEWEST_BLOCKS = 4
MARGIN = 1.25  #: a change within this factor is none
CHANGE_Z = 2.6  #: standard errors beyond the margin
GROUP_MIN, GROUP_VALUES = 5, 10  #: of a slide: a group has so many minutes and values, at least
FEWEST_GROUPS = 8
SLIDE_Z, SLIDE_RATIO = 4.0, 1.75
RATE_POINTS = 0.05  #: a change of a share below this is none
RATE_RATIO = 1.5  #: ... and so is one within this factor
RATE_CHANCE = 1e-6  #: of a share that has not changed to be told as changed, at one look


class Trend(StrEnum):
    """Where a figure goes."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"
    UNKNOWN = "not enough data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A trend, with the figures that it rests on. Values: seconds, dollars …, or shares from 0 to 1."""

    trend: Trend
    before: float | None = None  #: what was typical before; None: unknown
    latest: float | None = None  #: what is typical of the latest minutes
    minutes: int = 0  #: how many these are
    values_before: int = 0  #: calls that these figures are told from
    values_latest: int = 0
    z: float = 0.0  #: of the change, standard errors beyond the margin; of a share: minus log10 of its chance
    per_hour: float | None = None  #: factor by which the figure grows in an hour (Theil-Sen); None: unknown

    @property
    def ratio(self) -> float | None:
        """Latest ÷ before; None: unknown, or nothing before."""
        return self.latest / self.before if self.before and self.latest is not None else None


NOTHING = Finding(trend=Trend.UNKNOWN)


def of_values(minutes: Sequence[Mapping[int, int]], *, more_is_worse: bool = True) -> Finding:
    """The trend of values such as latencies.

    Args:
        minutes: Histograms of one minute each, oldest first, to the last whole one; empty where nothing was seen.
    """
    minutes = minutes[-LOOK_BACK_MIN:]
    ranked = _ranked(minutes)
    tried = {tail: z for tail in TAILS_MIN if tail < len(ranked) and (z := _change(ranked, tail)) is not None}
    slide = _slide(minutes)
    if not tried and slide is None:
        return NOTHING
    per_hour, slides = slide if slide is not None else (None, 0)
    tail = max(tried, key=lambda one: (abs(tried[one]), one), default=len(minutes) // 2)
    found = _told(minutes, tail, tried.get(tail, 0.0))
    changes = (found.z > 0) - (found.z < 0) if abs(found.z) >= CHANGE_Z else 0
    way = changes or slides
    if not way:
        return _with(found, Trend.STABLE, per_hour)
    return _with(found, Trend.DEGRADING if (way > 0) is more_is_worse else Trend.IMPROVING, per_hour)


def of_shares(minutes: Sequence[tuple[int, int]]) -> Finding:
    """The trend of a share such as that of errors: the more, the worse.

    Args:
        minutes: (of that kind, all) of each minute, oldest first, to the last whole one.
    """
    minutes = minutes[-LOOK_BACK_MIN:]
    found = [one for tail in TAILS_MIN if (one := _share_change(minutes, tail)) is not None]
    if not found:
        return NOTHING
    changed = max(found, key=lambda one: one.z)
    if changed.z < -log(RATE_CHANCE) / log(10):
        return changed
    before, latest = changed.before or 0.0, changed.latest or 0.0
    return _with(changed, Trend.DEGRADING if latest > before else Trend.IMPROVING, None)


def inverted(one: Finding) -> Finding:
    """The same of 1 ÷ the figure, of which more is better."""
    return Finding(
        trend=one.trend,
        before=1 / one.before if one.before else None,
        latest=1 / one.latest if one.latest else None,
        minutes=one.minutes,
        values_before=one.values_before,
        values_latest=one.values_latest,
        z=-one.z,
        per_hour=1 / one.per_hour if one.per_hour else None,
    )


def _with(one: Finding, trend: Trend, per_hour: float | None) -> Finding:
    return Finding(
        trend=trend,
        before=one.before,
        latest=one.latest,
        minutes=one.minutes,
        values_before=one.values_before,
        values_latest=one.values_latest,
        z=one.z,
        per_hour=per_hour,
    )


def _merged(minutes: Sequence[Mapping[int, int]]) -> Histogram:
    found: Histogram = {}
    for one in minutes:
        _add(found, one)
    return found


def _add(into: Histogram, counts: Mapping[int, int]) -> None:
    for index, count in counts.items():
        into[index] = into.get(index, 0) + count


# ── a change ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Ranked:
    """The values of a minute: how many, and their ranks together, as they are and moved by the margin."""

    values: int
    ranks: float
    lowered: float  #: ranks of the values divided by the margin
    raised: float  #: ... and multiplied by it


def _ranked(minutes: Sequence[Mapping[int, int]]) -> list[_Ranked]:
    """Each value's rank among those of long ago: from 0, below all of them, to 1, above all; empty: there are none."""
    reference = _merged(minutes[: -TAILS_MIN[-1]])
    if sum(reference.values()) < FEWEST_BEFORE:
        reference = _merged(minutes)
    if not reference:
        return []
    indexes = sorted(reference)
    up_to = [0, *accumulate(reference[index] for index in indexes)]
    known: dict[int, float] = {}

    def rank(index: int) -> float:
        found = known.get(index)
        if found is None:
            lies = up_to[bisect_left(indexes, index)] + up_to[bisect_right(indexes, index)]
            found = known[index] = lies / 2 / up_to[-1]
        return found

    margin = histogram.buckets_of_ratio(MARGIN)
    return [
        _Ranked(
            values=sum(counts.values()),
            ranks=sum(count * rank(index) for index, count in counts.items()),
            lowered=sum(count * rank(index - margin) for index, count in counts.items()),
            raised=sum(count * rank(index + margin) for index, count in counts.items()),
        )
        for counts in minutes
    ]


def _change(minutes: Sequence[_Ranked], tail: int) -> float | None:
    """How far the last `tail` minutes stand out, standard errors beyond the margin; None: too little to tell."""
    earlier, latest = minutes[:-tail][-BASELINE_MIN:], minutes[-tail:]
    before, now = sum(one.values for one in earlier), sum(one.values for one in latest)
    if now < FEWEST_LATEST or before < FEWEST_BEFORE:
        return None
    usual = sum(one.ranks for one in earlier) / before
    length = max(TAILS_MIN[0], tail // 2)
    blocks = [
        (sum(one.values for one in block), sum(one.ranks for one in block))
        for block in (earlier[end - length : end] for end in range(len(earlier), length - 1, -length))
    ]
    means = [(values, ranks / values - usual) for values, ranks in blocks if values]
    if len(means) < FEWEST_BLOCKS:
        return None
    error = sqrt(_overdispersion(means) / 12 * (1 / now + 1 / before))
    higher = sum(one.lowered for one in latest) / now - usual
    lower = sum(one.raised for one in latest) / now - usual
    return max(higher, 0.0) / error or min(lower, 0.0) / error


def _overdispersion(blocks: Sequence[tuple[int, float]]) -> float:
    """How much wider the means of blocks lie apart than those of independent ranks would; at least 1.

    Few blocks may lie close by chance: their spread is widened by what its own error may hide.
    """
    found = sum(values * mean * mean for values, mean in blocks) * 12 / (len(blocks) - 1)
    return max(1.0, found * (1 + 1 / sqrt(len(blocks))))


def _told(minutes: Sequence[Mapping[int, int]], tail: int, z: float) -> Finding:
    before, latest = _merged(minutes[:-tail][-BASELINE_MIN:]), _merged(minutes[-tail:])
    return Finding(
        trend=Trend.STABLE,
        before=histogram.quantile(before, 0.5),
        latest=histogram.quantile(latest, 0.5),
        minutes=tail,
        values_before=sum(before.values()),
        values_latest=sum(latest.values()),
        z=z,
    )


# ── a slide ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _slide(minutes: Sequence[Mapping[int, int]]) -> tuple[float, int] | None:
    """Factor an hour, and whether the figure rises (1) or falls (-1) steadily; None: too little to tell."""
    points = _medians(minutes)
    if len(points) < FEWEST_GROUPS:
        return None
    slopes = sorted(
        (later - earlier) / (at_later - at_earlier)
        for number, (at_earlier, earlier) in enumerate(points)
        for at_later, later in points[number + 1 :]
    )
    slope = median(slopes)
    z = _mann_kendall(points, slope)
    span = points[-1][0] - points[0][0]
    steady = abs(z) >= SLIDE_Z and abs(slope) * span >= log(SLIDE_RATIO)
    return exp(slope * 60), (1 if z > 0 else -1) if steady else 0


def _medians(minutes: Sequence[Mapping[int, int]]) -> list[tuple[float, float]]:
    """(minute, logarithm of the median) of groups of minutes that have enough values."""
    points, group, first = [], Histogram(), 0
    for number, counts in enumerate(minutes):
        _add(group, counts)
        if number - first + 1 >= GROUP_MIN and sum(group.values()) >= GROUP_VALUES:
            typical = histogram.quantile(group, 0.5) or histogram.LEAST
            points.append(((first + number) / 2, log(typical)))
            group, first = Histogram(), number + 1
    return points


def _mann_kendall(points: Sequence[tuple[float, float]], slope: float) -> float:
    """The statistic in standard deviations, corrected for the correlation of neighbours (Hamed and Rao, first lag)."""
    count = len(points)
    signs = sum(
        (later > earlier) - (later < earlier)
        for number, (_, earlier) in enumerate(points)
        for _, later in points[number + 1 :]
    )
    left = [value - slope * at for at, value in points]
    mean = sum(left) / count
    spread = sum((one - mean) ** 2 for one in left)
    lag = sum((a - mean) * (b - mean) for a, b in pairwise(left)) / spread if spread > 0 else 0.0
    lag = min(0.9, max(0.0, lag))
    variance = count * (count - 1) * (2 * count + 5) / 18 * (1 + lag) / (1 - lag)
    return signs / sqrt(variance)


# ── a share ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _share_change(minutes: Sequence[tuple[int, int]], tail: int) -> Finding | None:
    if len(minutes) <= tail:
        return None
    earlier = minutes[:-tail][-BASELINE_MIN:]
    of_before, all_before = _both(earlier)
    of_latest, all_latest = _both(minutes[-tail:])
    blocks = [block for block in map(_both, _pair_blocks(earlier, tail)) if block[1]]
    if all_latest < FEWEST_LATEST or all_before < FEWEST_BEFORE or len(blocks) < FEWEST_BLOCKS:
        return None
    share_before, share_latest = of_before / all_before, of_latest / all_latest
    spread = _share_overdispersion(blocks, share_before)
    chance = 1.0
    if share_latest - share_before >= RATE_POINTS:
        chance = _at_least(of_latest / spread, all_latest, of_before / spread, all_before)
    elif share_before - share_latest >= RATE_POINTS:
        chance = _at_least(of_before / spread, all_before, of_latest / spread, all_latest)
    return Finding(
        trend=Trend.STABLE,
        before=share_before,
        latest=share_latest,
        minutes=tail,
        values_before=all_before,
        values_latest=all_latest,
        z=-log(max(chance, 1e-300)) / log(10),
    )


def _both(minutes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return sum(of for of, _ in minutes), sum(all_ for _, all_ in minutes)


def _pair_blocks(minutes: Sequence[tuple[int, int]], length: int) -> list[Sequence[tuple[int, int]]]:
    return [minutes[end - length : end] for end in range(len(minutes), length - 1, -length)]


def _share_overdispersion(blocks: Sequence[tuple[int, int]], share: float) -> float:
    variance = share * (1 - share)
    if variance <= 0:
        return 1.0
    found = sum((of - all_ * share) ** 2 / all_ for of, all_ in blocks) / variance / (len(blocks) - 1)
    return max(1.0, found * (1 + 1.5 / sqrt(len(blocks))))


def _at_least(of_one: float, all_one: int, of_other: float, all_other: int) -> float:
    """The chance of so many of the one or more, where its share is `RATE_RATIO` times the other's.

    Given how many there are of both together, that of the one is binomial. The numbers of events may be fractions,
    where they come in bursts.
    """
    weight = RATE_RATIO * all_one
    p = weight / (weight + all_other)
    total, least = int(of_one + of_other), int(of_one)
    if least <= 0:
        return 1.0
    logs = [
        lgamma(total + 1) - lgamma(k + 1) - lgamma(total - k + 1) + k * log(p) + (total - k) * log(1 - p)
        for k in range(least, total + 1)
    ]
    most = max(logs, default=-inf)
    return min(1.0, exp(most) * sum(exp(one - most) for one in logs)) if logs else 1.0
