"""When does a day end, also where there is no midnight, or two?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ratelimit_worker.policy import day

FROM_S = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
#: Some put their clock forward or back at midnight, by half an hour, or in the other half of the year.
ZONES = (
    *("America/New_York", "America/Santiago", "America/Havana", "America/Asuncion", "America/Sao_Paulo", "Asia/Beirut"),
    *("Asia/Gaza", "Atlantic/Azores", "Africa/Cairo", "Africa/Casablanca", "Australia/Lord_Howe", "Europe/London"),
    *("Pacific/Chatham", "Pacific/Apia", "Asia/Kolkata", "+05:45", "-08:00", ""),
)


@pytest.mark.parametrize("name", ZONES)
def test_a_day_and_a_month_end_when_the_calendar_of_the_zone_goes_on(name: str) -> None:
    """Every day of four years, from that on which the zone is told: a moment before its end is that day, and its end
    is the next one."""
    zone, first = day.zone_of(name or "+00:00"), int(FROM_S // day.DAY_S)
    steps = day.steps(name, first) if name else ()
    for number in range(first, first + 1_461):
        end_s = day.end_s(steps, number)
        before, after = (datetime.fromtimestamp(at_s, zone).date() for at_s in (end_s - 0.001, end_s))
        assert ((before - day.EPOCH).days, (after - day.EPOCH).days) == (number, number + 1)
        assert (day.number(steps, end_s - 0.001), day.number(steps, end_s)) == (number, number + 1)
        of_month = datetime.fromtimestamp(day.month_end_s(steps, number) - 0.001, zone).date()
        assert (of_month.year, of_month.month) == (before.year, before.month)
        if before.month != after.month:
            assert (day.month_end_s(steps, number), day.first_of_month(number + 1)) == (end_s, number + 1)
