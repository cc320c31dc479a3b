"""How long did most take? Counts by bucket, whose bounds grow by a fixed factor: percentiles within 1 %, and mergeable.

Bucket `i` counts what lies above G**(i-1) and up to G**i; every value in it is told as the one in its middle, which is
at most 1 % off. (The scheme of DDSketch, Masson et al. 2019, without its limit on buckets: from a nanosecond to 3,000
years there are 2,200 of them, and only those in use are kept.) The counts of two periods, lanes or processes add up to
those of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log

Histogram = dict[int, int]  #: bucket → how many values

RELATIVE_ERROR = 0.01  #: of a value that is told, at most
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_BUCKETS_PER_E = 1 / log(_GROWTH)
#: What is smaller counts as 0, in a bucket of its own below all others.
LEAST = 1e-9
ZERO = -1_100


def bucket(value: float) -> int:
    """The bucket that counts `value`; `ZERO` for 0, less, and what is no number."""
    return ceil(log(value) * _BUCKETS_PER_E) if value >= LEAST else ZERO


def value_of(index: int) -> float:
    """What a value in this bucket is told as."""
    return 0.0 if index == ZERO else 2 * _GROWTH**index / (_GROWTH + 1)


def buckets_of_ratio(ratio: float) -> int:
    """How many buckets lie between a value and `ratio` times it, rounded."""
    return round(log(ratio) * _BUCKETS_PER_E)


def quantile(counts: Mapping[int, int], share: float) -> float | None:
    """The smallest value at or below which lies that share of all, within 1 %; None: there are none."""
    return quantiles(counts, share)[0]


def quantiles(counts: Mapping[int, int], *shares: float) -> list[float | None]:
    """The same of several shares, in rising order."""
    total = sum(counts.values())
    if total <= 0:
        return [None] * len(shares)
    found: list[float | None] = []
    up_to, last = 0, ZERO
    for index in sorted(counts):
        up_to, last = up_to + counts[index], index
        while len(found) < len(shares) and up_to >= shares[len(found)] * total:
            found.append(value_of(index))
        if len(found) == len(shares):
            break
    return found + [value_of(last)] * (len(shares) - len(found))
