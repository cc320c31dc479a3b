"""Does a figure get worse? The latest minutes are compared with the two hours before them, by tests that ignore noise.

Two ways lead to "degrading" or "improving", over the last 152 minutes at most:

- **A change.** The values of the last 3 to 32 minutes are ranked among those before them (Mann-Whitney). Even divided
  by 1.25, they must rank higher by more than chance. Chance is not assumed but measured, by how much blocks of earlier
  minutes differ from each other. So bursts, calls that are slow together, and heavy tails, if usual for this lane, do
  not count as a change.
- **A slide.** The medians of groups of minutes rise steadily (Mann-Kendall, corrected for their correlation), and their
  slope (Theil-Sen) amounts to a factor of at least 1.75 over the whole time.

For rates (errors), a change is a share of failures that would be next to impossible with the earlier share (binomial,
with the same measure of chance), and differs by at least 5 percentage points. With too few values it is "not enough
data".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import accumulate, pairwise
from math import exp, inf, lgamma, log, sqrt

from msgspec import Struct

from ratelimit_worker.policy import histogram
from ratelimit_worker.policy.histogram import Histogram

BASELINE_MIN = 120  #: most minutes before the latest ones
TAILS_MIN = (3, 4, 6, 8, 10, 16, 32)  #: lengths of "the latest minutes" that are tried
LOOK_BACK_MIN = BASELINE_MIN + TAILS_MIN[-1]
FEWEST_LATEST, FEWEST_BEFORE = 12, 60  #: least values for finding a change
FEWEST_SHORT = 18  #: the same of the latest ones, if they are those of a short time
FEWEST_BLOCKS = 4
MARGIN = 1.25  #: a change within this factor is none
CHANGE_Z = 2.4  #: standard errors beyond the margin
#: The same for a short time. There are more of them in two hours, so chance has more tries; and a few minutes in which
#: all calls are slow together are a larger part of it.
CHANGE_SHORT_Z = 2.6
SHORT_MIN = 6  #: longest "short time"
GROUP_MIN, GROUP_VALUES = 5, 10  #: for a slide: least minutes and values of a group
FEWEST_GROUPS = 8
SLIDE_Z, SLIDE_RATIO = 4.0, 1.75
RATE_POINTS = 0.05  #: a smaller change of a share is ignored
RATE_RATIO = 1.5  #: ... and so is a change within this factor
RATE_CHANCE = 1e-6  #: probability that an unchanged share is reported as changed, in one test


class Trend(StrEnum):
    """Where a figure goes."""

    IMPROVING = "improving"
    STABLE = "stable"
    DEGRADING = "degrading"
    UNKNOWN = "not enough data"


class Finding(Struct, frozen=True, kw_only=True):
    """A trend, with the figures behind it. Values: seconds, dollars …, or shares from 0 to 1."""

    trend: Trend
    before: float | None = None  #: typical value before; None: unknown
    latest: float | None = None  #: typical value of the latest minutes
    minutes: int = 0  #: number of latest minutes
    values_before: int = 0  #: number of earlier values
    values_latest: int = 0
    z: float = 0.0  #: size of the change: standard errors beyond the margin; of a share: minus log10 of its probability
    per_hour: float | None = None  #: factor by which the figure grows in an hour (Theil-Sen); None: unknown

    @property
    def ratio(self) -> float | None:
        """Latest ÷ before; None: unknown, or 0 before."""
        return self.latest / self.before if self.before and self.latest is not None else None


NOTHING = Finding(trend=Trend.UNKNOWN, minutes=TAILS_MIN[-1])  #: there are no values


def of_values(minutes: Sequence[Mapping[int, int]], *, more_is_worse: bool = True) -> Finding:
    """The trend of values such as latencies.

    Args:
        minutes: Histograms of one minute each, oldest first, up to the last whole one; empty: no values.
    """
    minutes = minutes[-LOOK_BACK_MIN:]
    values = [sum(one.values()) for one in minutes]
    if sum(values) < FEWEST_LATEST + FEWEST_BEFORE:  # too few for a slide, too
        return _too_few(values)
    ranked = _ranked(minutes)
    tried = {tail: z for tail in TAILS_MIN if tail < len(minutes) and (z := _change(ranked, tail)) is not None}
    slide = _slide(minutes)
    if not tried and slide is None:
        return _too_few(values)
    per_hour, slides = slide if slide is not None else (None, 0)
    tail = max(tried, key=lambda one: (abs(tried[one]) / _needed_z(one), one), default=len(minutes) // 2)
    found = _told(minutes, tail, tried.get(tail, 0.0))
    changes = (found.z > 0) - (found.z < 0) if abs(found.z) >= _needed_z(tail) else 0
    way = changes or slides
    if not way:
        return _with(found, Trend.STABLE, per_hour)
    return _with(found, Trend.DEGRADING if (way > 0) is more_is_worse else Trend.IMPROVING, per_hour)


def of_shares(minutes: Sequence[tuple[int, int]]) -> Finding:
    """The trend of a share for which more is worse, such as errors.

    Args:
        minutes: (number of that kind, number of all) of each minute, oldest first, up to the last whole one.
    """
    minutes = minutes[-LOOK_BACK_MIN:]
    found = [one for tail in TAILS_MIN if (one := _share_change(minutes, tail)) is not None]
    if not found:
        return _too_few([of_all for _, of_all in minutes])
    changed = max(found, key=lambda one: one.z)
    if changed.z < -log(RATE_CHANCE) / log(10):
        return changed
    before, latest = changed.before or 0.0, changed.latest or 0.0
    return _with(changed, Trend.DEGRADING if latest > before else Trend.IMPROVING, None)


def inverted(one: Finding) -> Finding:
    """The same trend for 1 ÷ the figure, for which more is better."""
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


def _too_few(values: Sequence[int]) -> Finding:
    """Not enough data, with the number of values that there are in the longest "latest minutes", and before these."""
    latest = values[-TAILS_MIN[-1] :]
    return Finding(
        trend=Trend.UNKNOWN,
        minutes=TAILS_MIN[-1],
        values_before=sum(values) - sum(latest),
        values_latest=sum(latest),
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


class _Ranked(Struct, frozen=True):
    """The values of all minutes up to each: how many, and the sums of their ranks, as they are and moved by the margin.

    Each begins with 0, so the sum over minutes from `a` on and before `b` is the difference of items `b` and `a`.
    """

    values: list[int]
    ranks: list[float]
    lowered: list[float]  #: the same for the values divided by the margin
    raised: list[float]  #: ... and multiplied by it

    @property
    def minutes(self) -> int:
        """How many minutes there are."""
        return len(self.values) - 1


def _ranked(minutes: Sequence[Mapping[int, int]]) -> _Ranked:
    """Each value's rank among the earlier ones: from 0 (below all) to 1 (above all). There must be some values."""
    reference = _merged(minutes[: -TAILS_MIN[-1]])
    if sum(reference.values()) < FEWEST_BEFORE:
        reference = _merged(minutes)
    indexes = sorted(reference)
    up_to = [0, *accumulate(reference[index] for index in indexes)]
    margin, every = histogram.buckets_of_ratio(MARGIN), 2 * up_to[-1]
    known: dict[int, tuple[float, float, float]] = {}

    def rank(index: int) -> float:
        return (up_to[bisect_left(indexes, index)] + up_to[bisect_right(indexes, index)]) / every

    found = _Ranked([0], [0.0], [0.0], [0.0])
    number, ranks, lowered, raised = 0, 0.0, 0.0, 0.0
    for counts in minutes:
        for index, count in counts.items():
            its = known.get(index)
            if its is None:
                its = known[index] = (rank(index), rank(index - margin), rank(index + margin))
            number += count
            ranks += count * its[0]
            lowered += count * its[1]
            raised += count * its[2]
        found.values.append(number)
        found.ranks.append(ranks)
        found.lowered.append(lowered)
        found.raised.append(raised)
    return found


def _needed_z(tail: int) -> float:
    return CHANGE_SHORT_Z if tail <= SHORT_MIN else CHANGE_Z


def _fewest_latest(tail: int) -> int:
    return FEWEST_SHORT if tail <= SHORT_MIN else FEWEST_LATEST


def _change(minutes: _Ranked, tail: int) -> float | None:
    """How far the last `tail` minutes differ, standard errors beyond the margin; None: too few values."""
    end = minutes.minutes - tail
    begin = max(0, end - BASELINE_MIN)
    values, ranks = minutes.values, minutes.ranks
    before, now = values[end] - values[begin], values[-1] - values[end]
    if now < _fewest_latest(tail) or before < FEWEST_BEFORE:
        return None
    usual = (ranks[end] - ranks[begin]) / before
    length = max(TAILS_MIN[0], tail // 2)
    means = []
    for last in range(end, begin + length - 1, -length):
        if many := values[last] - values[last - length]:
            means.append((many, (ranks[last] - ranks[last - length]) / many - usual))
    if len(means) < FEWEST_BLOCKS:
        return None
    error = sqrt((1 / now + 1 / before) / 12 + _shared_variance(means) * length / tail)
    higher = (minutes.lowered[-1] - minutes.lowered[end]) / now - usual
    lower = (minutes.raised[-1] - minutes.raised[end]) / now - usual
    return max(higher, 0.0) / error or min(lower, 0.0) / error


def _shared_variance(blocks: Sequence[tuple[int, float]]) -> float:
    """The variance of a block's mean that all its calls share: what is left without that of independent ranks.

    This is DerSimonian and Laird's estimate. It does not depend on how many calls a block has, so a burst among the
    earlier minutes does not hide a change in minutes with few calls. A few blocks may be close to each other by chance,
    so the spread is first increased by its own standard error.

    Args:
        blocks: (number of values, mean rank - mean rank of all) of each block; at least two.
    """
    every, free = sum(values for values, _ in blocks), len(blocks) - 1
    found = sum(values * mean * mean for values, mean in blocks) * 12 / free
    beyond = max(0.0, found * (1 + 1 / sqrt(len(blocks))) - 1)
    return beyond * free / 12 / (every - sum(values * values for values, _ in blocks) / every)


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
    """Factor by hour, and whether the figure rises (1) or falls (-1) steadily; None: too few values."""
    points = _medians(minutes)
    if len(points) < FEWEST_GROUPS:
        return None
    slopes = sorted(
        (later - earlier) / (at_later - at_earlier)
        for number, (at_earlier, earlier) in enumerate(points)
        for at_later, later in points[number + 1 :]
    )
    middle = len(slopes) // 2
    slope = (slopes[middle] + slopes[~middle]) / 2  # their median
    z = _mann_kendall(points, slope)
    span = points[-1][0] - points[0][0]
    steady = abs(z) >= SLIDE_Z and abs(slope) * span >= log(SLIDE_RATIO)
    return exp(slope * 60), (1 if z > 0 else -1) if steady else 0


def _medians(minutes: Sequence[Mapping[int, int]]) -> list[tuple[float, float]]:
    """(minute, logarithm of the median) of groups of minutes with enough values."""
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
    if all_latest < _fewest_latest(tail) or all_before < FEWEST_BEFORE or len(blocks) < FEWEST_BLOCKS:
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
    """The probability of this number or more in the first period, if its share is `RATE_RATIO` times the second's.

    Given the total of both, the number in the first is binomial. Numbers may be fractions, if events come in bursts.
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
