"""When does a provider's day end? Quotas of a day are there again at midnight where the provider counts, not at ours.

A zone is written down as its steps, since the scripts in Redis know no time zones: [from, offset, from, offset, …] in
seconds, in ascending order; before the first of them, and where there are none, it is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

DAY_S = 86_400.0
#: For so many days ahead a zone's steps are written down, from the day on which a lane is told of it.
AHEAD_DAYS = 3_653

Steps = Sequence[int]

_OFFSET = re.compile(r"(?:UTC|GMT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?")


def zone_of(name: str) -> tzinfo:
    """A time zone by its IANA name ("America/Los_Angeles"), or by its distance from UTC ("-08:00").

    Raises:
        ValueError: there is none of that name; says what helps.
    """
    fixed = _OFFSET.fullmatch(name.strip())
    if fixed is not None and int(fixed[2]) <= 14:
        minutes = int(fixed[2]) * 60 + int(fixed[3] or 0)
        return timezone(timedelta(minutes=-minutes if fixed[1] == "-" else minutes))
    try:
        return ZoneInfo(name.strip())
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a folder of the database, a path out of it, an empty name
        raise ValueError("use a time zone such as America/Los_Angeles, or a distance from UTC such as -08:00") from None


@lru_cache(maxsize=64)
def steps(name: str, from_day: int) -> tuple[int, ...]:
    """The steps of a zone from a day on (days since the epoch); empty for UTC.

    Raises:
        ValueError: as `zone_of`.
    """
    zone = zone_of(name)
    found: list[int] = []
    first, last = int(from_day * DAY_S), int((from_day + AHEAD_DAYS) * DAY_S)
    known = _offset(zone, first)
    found += [first, known]
    for at in range(first, last, int(DAY_S)):
        if _offset(zone, at + int(DAY_S)) != known:
            low, high = at, at + int(DAY_S)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == known else (low, middle)
            known = _offset(zone, high)
            found += [high, known]
    return () if len(found) == 2 and known == 0 else tuple(found)


def offset_s(of: Steps, at_s: float) -> int:
    """How far a zone's clock is ahead of UTC at an instant, seconds."""
    known = 0
    for begins, offset in zip(of[::2], of[1::2], strict=True):
        if at_s >= begins:
            known = offset
    return known


def number(of: Steps, at_s: float) -> int:
    """The zone's day at an instant, in days since the epoch."""
    return int((at_s + offset_s(of, at_s)) // DAY_S)


def end_s(of: Steps, day: int) -> float:
    """When a zone's day ends: its next midnight, seconds since the epoch."""
    midnight = (day + 1) * DAY_S
    return midnight - offset_s(of, midnight - offset_s(of, midnight))


def _offset(zone: tzinfo, at_s: int) -> int:
    return int((datetime.fromtimestamp(at_s, UTC).astimezone(zone).utcoffset() or timedelta()).total_seconds())
