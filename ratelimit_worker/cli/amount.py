"""How is a number written on the command line? With an end: click's own range lets `nan` and `inf` through."""

from __future__ import annotations

import math
from typing import Any

import click


class Amount(click.FloatRange):
    """A range of numbers that have an end."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number of a text."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r}: write a number such as 600", param, ctx)
        return number
