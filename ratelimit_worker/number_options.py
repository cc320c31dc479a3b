"""Numbers on the command line: what cannot be used is refused, with its value and what to write instead.

Click's own ranges accept `nan`, `inf` and whole numbers that no database can hold, and do not say how to write one.
"""

from __future__ import annotations

import math
from typing import Any

import click

MOST = 10**12  #: more of anything is a slip of the hand


class Whole(click.IntRange):
    """A whole number, in decimal digits."""

    def __init__(self, min: int | None = None, max: int | None = None) -> None:
        """
        Args:
            max: None: `MOST`.
        """
        super().__init__(min=min, max=max)
        if min is None and max is None:
            self.name = "integer"  # in `--help`

    def _describe_range(self) -> str:  # click writes x<=None if there is no bound
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a number."""
        least, most = -MOST if self.min is None else self.min, MOST if self.max is None else self.max
        try:
            number = int(value)
        except ValueError:
            number = most + 1
        if not least <= number <= most:
            self.fail(f"{value!r}: write a whole number{_range(self.min, self.max)}", param, ctx)
        return number


class Amount(click.FloatRange):
    """A finite number, at most `MOST`."""

    def __init__(self, min: float | None = None, *, above: float | None = None) -> None:
        """
        Args:
            min: The least that is accepted.
            above: The number must be greater than this.
        """
        super().__init__(min=min if above is None else above, min_open=above is not None)
        if self.min is None:
            self.name = "float"

    def _describe_range(self) -> str:
        return "" if self.min is None else super()._describe_range()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a number."""
        least = -MOST if self.min is None else self.min
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not least <= number <= MOST or (self.min_open and number == least):
            told = f" above {self.min:g}" if self.min_open else _range(self.min, None)
            self.fail(f"{value!r}: write a number{told}, such as 600", param, ctx)
        return number


def _range(least: float | None, most: float | None) -> str:
    if least is None:
        return "" if most is None else f" up to {most}"
    return f" from {least} up" if most is None else f" from {least} to {most}"
