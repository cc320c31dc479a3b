"""Where are the marks of a chart? Pure geometry: figures in, positions out, in per cent of the drawing's size.

The template draws them: shapes in an SVG that is stretched to the available space, and words beside it as text of the
page, so that the words keep their size on a telephone and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3_600, 86_400
_TIME_STEPS_S = (
    *(n * _MINUTE_S for n in (1, 2, 5, 10, 15, 30)),
    *(n * _HOUR_S for n in (1, 2, 3, 6, 12)),
    *(n * _DAY_S for n in (1, 2, 7, 14, 30, 60, 90, 180, 365)),
)
MOST_TIME_TICKS = 8


class Tick(NamedTuple):
    """A mark of an axis."""

    at: float  #: per cent of the axis, from the left or from below
    label: str


class Bar(NamedTuple):
    """A rectangle; per cent, from the top left."""

    kind: str
    x: float
    y: float
    width: float
    height: float
    says: str


class Line(NamedTuple):
    """A line, or several pieces of one."""

    kind: str
    path: str  #: the `d` attribute of an SVG path


class Key(NamedTuple):
    """A line of the legend."""

    kind: str
    label: str


class Chart(Struct, frozen=True, kw_only=True):
    """All parts of a chart."""

    says: str  #: what it shows, for readers who cannot see it
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    bands: tuple[Bar, ...] = ()  #: shaded times, behind everything else
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    keys: tuple[Key, ...] = ()


class Frame(Struct, frozen=True):
    """The axes of a chart: time from left to right, an amount from 0 upwards."""

    since_s: float
    until_s: float
    top: float  #: the amount at the upper edge

    def x(self, at_s: float) -> float:
        """Per cent from the left; times beyond the axis are drawn at its end."""
        share = (at_s - self.since_s) / (self.until_s - self.since_s)
        return round(100.0 * min(1.0, max(0.0, share)), 3)

    def height(self, amount: float) -> float:
        """Per cent of the height; amounts beyond the axis reach its end."""
        return round(100.0 * min(1.0, max(0.0, amount / self.top)), 3) if self.top else 0.0

    def stack(self, since_s: float, until_s: float, parts: Iterable[tuple[str, float]], says: str) -> list[Bar]:
        """Bars on top of each other, from below: (kind, amount)."""
        left, below, made = self.x(since_s), 0.0, list[Bar]()
        width = self.x(until_s) - left
        for kind, amount in parts:
            if amount > 0:
                low, high = self.height(below), self.height(below + amount)
                made.append(Bar(kind, left, round(100.0 - high, 3), round(width * 0.86, 3), round(high - low, 3), says))
                below += amount
        return made

    def band(self, kind: str, since_s: float, until_s: float, says: str) -> Bar:
        """A shaded time, over the whole height."""
        left = self.x(since_s)
        return Bar(kind, left, 0.0, round(max(0.15, self.x(until_s) - left), 3), 100.0, says)

    def line(self, kind: str, points: Sequence[tuple[float, float | None]]) -> Line:
        """A line through points (seconds, amount), interrupted where an amount is None."""
        pieces = []
        for known, some in groupby(points, key=lambda point: point[1] is not None):
            if known:
                places = [f"{self.x(at_s):g} {100.0 - self.height(amount or 0.0):g}" for at_s, amount in some]
                pieces.append(f"M{places[0]} L{' L'.join(places[1:] or places)}")  # a single point is drawn as a dot
        return Line(kind, " ".join(pieces))

    def steps(self, kind: str, spans: Sequence[tuple[float, float, float]]) -> Line:
        """Horizontal pieces (from, until, amount), joined where one ends as the next begins."""
        path, end = [], math.nan
        for since_s, until_s, amount in spans:
            y = f"{100.0 - self.height(amount):g}"
            path.append(f"{'L' if since_s == end else 'M'}{self.x(since_s):g} {y} L{self.x(until_s):g} {y}")
            end = until_s
        return Line(kind, " ".join(path))


def amounts(most: float, word: Callable[[float], str], ticks: int = 4) -> tuple[float, tuple[Tick, ...]]:
    """The upper end of an axis from 0 to at least `most`, and its ticks at round amounts."""
    if most <= 0:
        return 1.0, (Tick(0.0, word(0.0)),)
    rough = most / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in _STEPS if factor * power >= rough * (1 - 1e-9))
    many = math.ceil(most / step - 1e-9)
    top = step * many
    return top, tuple(Tick(round(100.0 * n / many, 3), word(n * step)) for n in range(many + 1))


def times(since_s: float, until_s: float) -> tuple[Tick, ...]:
    """Ticks of a time axis at round times (UTC), nine at most; days and midnights are labelled with the date."""
    span_s = until_s - since_s
    step_s = next((step for step in _TIME_STEPS_S if span_s / step <= MOST_TIME_TICKS), _TIME_STEPS_S[-1])
    first = math.ceil(since_s / step_s) * step_s
    frame = Frame(since_s, until_s, 1.0)
    found = [first + n * step_s for n in range(MOST_TIME_TICKS + 1) if first + n * step_s <= until_s]
    return tuple(Tick(frame.x(at_s), _time_word(at_s, step_s)) for at_s in found)


def _time_word(at_s: float, step_s: float) -> str:
    at = datetime.fromtimestamp(at_s, UTC)
    if step_s >= _DAY_S or (at.hour, at.minute) == (0, 0):
        return f"{at.day} {at:%b}"
    return f"{at:%H:%M}"
