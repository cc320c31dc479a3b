"""Durations on the command line: 90s, 15m, 24h, 7d, and 1h30m."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
MOST_S = 100 * 365 * 86_400.0
_PART = re.compile(r"(\d+(?:\.\d+)?)([smhd])")


class Duration(click.ParamType):  # type: ignore[type-arg]  # not generic before click 8.5
    """A length of time, as seconds above 0."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a text such as 1h30m to seconds; click's error if it is none, or is above `MOST_S`."""
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        parts = _PART.findall(text)
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        if "".join(number + unit for number, unit in parts) != text or not 0 < seconds <= MOST_S:
            self.fail(f"{value!r}: write 90s, 15m, 24h or 7d", param, ctx)
        return seconds


DURATION = Duration()
