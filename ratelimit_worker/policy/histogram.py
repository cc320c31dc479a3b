"""Histograms with buckets whose bounds grow by a fixed factor: percentiles are exact to 1 %, and histograms add up.

Bucket `i` counts values above G**(i-1) and up to G**i; each is reported as the value in the bucket's middle, which is
at most 1 % off. (The scheme of DDSketch, Masson et al. 2019, without its limit on buckets: from a nanosecond to 3,000
years there are 2,200 of them, and only those in use are kept.) The sum of two periods, lanes or processes is the
histogram of both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from math import ceil, log

Histogram = dict[int, int]  #: bucket → how many values

RELATIVE_ERROR = 0.01  #: of a reported value, at most
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_BUCKETS_PER_E = 1 / log(_GROWTH)
#: Smaller values count as 0, in a bucket below all others.
LEAST = 1e-9
ZERO = -1_100


def bucket(value: float) -> int:
    """The bucket of `value`; `ZERO` for 0, negative values and NaN."""
    return ceil(log(value) * _BUCKETS_PER_E) if value >= LEAST else ZERO


def value_of(index: int) -> float:
    """The value that is reported for this bucket."""
    return 0.0 if index == ZERO else 2 * _GROWTH**index / (_GROWTH + 1)


def buckets_of_ratio(ratio: float) -> int:
    """How many buckets lie between a value and `ratio` times it, rounded."""
    return round(log(ratio) * _BUCKETS_PER_E)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """The smallest value at or below which this share of all values lies, to 1 %; None: there are no values."""
    return quantiles(counts, share)[0]


def quantiles(counts: Mapping[int, int], *shares: float) -> list[float | None]:
    """The same for several shares, in rising order."""
    indexes = sorted(counts)
    up_to = list(accumulate(map(counts.__getitem__, indexes)))
    if not up_to or up_to[-1] <= 0:
        return [None] * len(shares)
    total, last = up_to[-1], len(indexes) - 1
    return [value_of(indexes[min(last, bisect_left(up_to, share * total))]) for share in shares]
