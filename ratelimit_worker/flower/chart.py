"""How is a chart drawn? As paths of an SVG, with its words outside of it: it fits every width, and needs no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.plural import many
from ratelimit_worker.reports.dashboard import Dashboard, Slice
from ratelimit_worker.reports.words import clock, count

WIDE, HIGH = 1000.0, 200.0  #: units of the drawing
_LINES = 4  #: horizontal lines above the axis
_MARKS = 5  #: times below the axis


class Shade(Struct, frozen=True, kw_only=True):
    """A time in one mode."""

    mode: Mode
    left: str  #: units of the drawing, from the left
    wide: str  #: width in units of the drawing
    title: str


class Drawing(Struct, frozen=True, kw_only=True):
    """A chart."""

    used: str  #: path of the area
    refused: str  #: path of bars
    allowed: str  #: path of the line; "": nothing bounds the lane, or it was not recorded
    waiting: str  #: path of its line, on a scale of its own; "": not recorded
    shades: tuple[Shade, ...]
    modes: tuple[Mode, ...]  #: modes of the shades, each once
    across: tuple[tuple[str, str, str], ...]  #: lines: place from the top, requests a minute there, waiting calls there
    below: tuple[tuple[str, str], ...]  #: times: place from the left, and the time
    says: str  #: the chart in a sentence, for readers who cannot see it


def drawn(found: Dashboard) -> Drawing:
    """The chart of a dashboard."""
    since_s, length_s = found.since_s, max(1.0, found.until_s - found.since_s)
    drawn_of = (*found.chart, *found.standing)
    top = ceiling(max((max(one.used, one.allowed or 0.0) for one in drawn_of), default=0.0))
    most = ceiling(max((one.waiting or 0 for one in drawn_of), default=0))

    def across(at_s: float) -> float:
        return WIDE * min(1.0, max(0.0, (at_s - since_s) / length_s))

    def up(value: float, scale: float) -> float:
        return HIGH * (1 - min(1.0, value / scale))

    def line(slices: Iterable[Slice], of: Callable[[Slice], float | None], scale: float) -> str:
        return steps(
            (across(one.at_s), across(one.at_s + one.for_s), None if (value := of(one)) is None else up(value, scale))
            for one in slices
        )

    used = line(found.chart, lambda one: one.used, top)
    right = across(found.until_s)
    return Drawing(
        used=f"{used} V{HIGH:g} H{across(found.chart[0].at_s):.1f} Z" if used else "",
        refused=" ".join(
            f"M{across(one.at_s):.1f} {HIGH:g} V{up(one.refused, top):.1f} "
            f"H{across(one.at_s + one.for_s):.1f} V{HIGH:g} Z"
            for one in found.chart
            if one.refused > 0 and one.for_s > 0
        ),
        allowed=line(found.standing, lambda one: one.allowed, top),
        waiting=line(found.standing, lambda one: one.waiting, most),
        shades=tuple(
            Shade(
                mode=one.mode,
                left=f"{across(one.from_s):.1f}",
                wide=f"{max(1.0, min(right, across(one.until_s)) - across(one.from_s)):.1f}",
                title=f"{one.mode} from {clock(one.from_s)} to {clock(one.until_s)}",
            )
            for one in found.stretches
            if one.mode is not Mode.NORMAL
        ),
        modes=tuple(sorted({one.mode for one in found.stretches} - {Mode.NORMAL})),
        across=tuple(
            (f"{100 * number / _LINES:g}%", count(top * share), count(most * share))
            for number in range(_LINES + 1)
            for share in [1 - number / _LINES]
        ),
        below=tuple(
            (f"{100 * number / (_MARKS - 1):g}%", _time(since_s + length_s * number / (_MARKS - 1), length_s))
            for number in range(_MARKS)
        ),
        says=_sentence(found),
    )


def ceiling(value: float) -> float:
    """The next of 4, 8, 12, 20, 40, …, so that the four horizontal lines are at whole numbers."""
    if value <= 4.0:
        return 4.0
    step: float = 10.0 ** math.floor(math.log10(value / 4.0))
    return 4.0 * step * next(times for times in (1, 2, 3, 5, 10) if 4.0 * step * times >= value)


def steps(points: Iterable[tuple[float, float, float | None]]) -> str:
    """Path of horizontal pieces (from, to, height), joined where they follow each other; None: a gap."""
    path, broken = [], True
    for left, right, height in points:
        if height is None:
            broken = True
            continue
        path.append(f"M{left:.1f} {height:.1f} H{right:.1f}" if broken else f"L{left:.1f} {height:.1f} H{right:.1f}")
        broken = False
    return " ".join(path)


def _time(at_s: float, length_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%H:%M" if length_s < 90_000 else "%m-%d %H:%M")


def _sentence(found: Dashboard) -> str:
    used = sum(one.used * one.for_s / 60.0 for one in found.chart)
    refused = sum(one.refused * one.for_s / 60.0 for one in found.chart)
    now = found.now
    stands = f" Now {now.mode}, {count(now.waiting + now.due_later)} waiting." if now is not None else ""
    return (
        f"{many(round(used), 'request')} in the last {found.period.name}, {count(refused)} of them met a 429.{stands}"
    )
