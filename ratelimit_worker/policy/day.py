"""When does a day end, and a month? Daily quotas are reset at midnight in the provider's time zone, not in ours.

Scripts in Redis know no time zones, so a zone is given to them as a list of its changes, [from, offset, from, offset,
…] in seconds, in rising order. Before the first change, and if there are none, it is UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ratelimit_worker.policy.pattern import lazy

DAY_S = 86_400.0
#: How many days ahead the changes are listed, from the day on which a lane gets them.
AHEAD_DAYS = 3_653

EPOCH = date(1970, 1, 1)

Steps = Sequence[int]

_OFFSET = lazy(r"(?:UTC|GMT)?([+-])([0-9]{1,2})(?::?([0-5][0-9]))?")


def zone_of(name: str) -> tzinfo:
    """A time zone by its IANA name ("America/Los_Angeles"), or by its distance from UTC ("-08:00").

    Raises:
        ValueError: there is no such zone; says what to use.
    """
    fixed = _OFFSET.fullmatch(name.strip())
    if fixed is not None and int(fixed[2]) <= 14:
        minutes = int(fixed[2]) * 60 + int(fixed[3] or 0)
        return timezone(timedelta(minutes=-minutes if fixed[1] == "-" else minutes))
    try:
        return ZoneInfo(name.strip())
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: it names a folder, for one
        raise ValueError("use a time zone such as America/Los_Angeles, or a distance from UTC such as -08:00") from None


@lru_cache(maxsize=64)
def steps(name: str, from_day: int) -> tuple[int, ...]:
    """The changes of a zone from a day on (days since the epoch); empty for UTC.

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
    near = midnight - offset_s(of, midnight)
    around = (offset_s(of, near - 7_200), offset_s(of, near + 7_200))
    end = midnight - max(around)
    if end + offset_s(of, end) >= midnight:
        return end
    return midnight - min(around)  # where the clock is changed at midnight, there may be none, or the hour before twice


def month(day: int) -> int:
    """The month of a day (days since the epoch), counted from January of the year 0."""
    on = EPOCH + timedelta(days=day)
    return on.year * 12 + on.month - 1


def first_of_month(day: int) -> int:
    """The first day of a day's month, both in days since the epoch."""
    return day - (EPOCH + timedelta(days=day)).day + 1


def month_end_s(of: Steps, day: int) -> float:
    """When the month of a zone's day ends: the midnight before the next one's first day, seconds since the epoch."""
    year, index = divmod(month(day) + 1, 12)
    return end_s(of, (date(year, index + 1, 1) - EPOCH).days - 1)


def _offset(zone: tzinfo, at_s: int) -> int:
    return int((datetime.fromtimestamp(at_s, UTC).astimezone(zone).utcoffset() or timedelta()).total_seconds())
