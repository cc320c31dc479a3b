"""What a dashboard draws: slices, modes over time, rows with their costs, and the paths of its chart."""

from __future__ import annotations

import math
import re
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.lane_sample import LaneMinute, LaneSample
from ratelimit_worker.flower import board, figures
from ratelimit_worker.flower.chart import ceiling, drawn, steps
from ratelimit_worker.reports.dashboard import (
    Dashboard,
    Period,
    Slice,
    Stretch,
    done_in_s,
    finer,
    of_minutes,
    stretches,
)
from ratelimit_worker.reports.money import NOTHING

T0 = 1_700_000_040  #: a whole minute


def change(at_s: float, before: Mode, after: Mode) -> ModeChange:
    """A change of a lane's mode."""
    return ModeChange(
        id=str(at_s), lane="l", from_mode=before, to_mode=after, at=at_s, cause="c", numbers={}, who="law", reason=""
    )


def minute(number: int, attempts: int, refused: int = 0, allowed: float | None = 60.0, waiting: int = 0) -> LaneMinute:
    """A minute that somebody looked at."""
    at_s = T0 + 60 * number
    sample = LaneSample(lane="l", at_s=at_s, allowed_per_min=allowed, waiting=waiting, running=0, mode=Mode.NORMAL)
    return LaneMinute(lane="l", at_s=at_s, attempts=attempts, refused=refused, sample=sample)


def test_minutes_become_slices_a_minute_each_or_several_together() -> None:
    """Rates are a minute's, the most that waited counts, and a minute that has hardly begun is left to now."""
    minutes = [minute(0, 30, 3, waiting=4), minute(1, 60, allowed=120.0, waiting=9), minute(4, 10)]
    each = of_minutes(minutes, T0, 60.0, T0 + 270)
    assert [(one.used, one.refused, one.allowed, one.waiting) for one in each] == [
        (30, 3, 60.0, 4),
        (60, 0, 120.0, 9),
        (0, 0, None, None),
        (0, 0, None, None),
    ]
    together = of_minutes(minutes, T0 - T0 % 120, 120.0, T0 - T0 % 120 + 240)
    assert sum(one.used * one.for_s / 60 for one in together) == pytest.approx(90, abs=60)
    assert max(one.waiting or 0 for one in together) == 9


def test_modes_over_time_follow_the_changes_and_end_with_now() -> None:
    """Oldest first, without a gap; before the first change it was in what that came from."""
    changes = [change(80.0, Mode.HALT, Mode.NORMAL), change(40.0, Mode.NORMAL, Mode.HALT)]
    assert stretches(changes, 0.0, 100.0, Mode.NORMAL) == (
        Stretch(mode=Mode.NORMAL, from_s=0.0, until_s=40.0),
        Stretch(mode=Mode.HALT, from_s=40.0, until_s=80.0),
        Stretch(mode=Mode.NORMAL, from_s=80.0, until_s=100.0),
    )
    assert stretches([], 0.0, 100.0, Mode.REDUCED) == (Stretch(mode=Mode.REDUCED, from_s=0.0, until_s=100.0),)


def test_a_change_that_is_not_on_record_yet_is_seen_at_the_end() -> None:
    """Behind the changes that are known, or behind the mode that was seen last."""
    known = stretches([change(40.0, Mode.NORMAL, Mode.REDUCED)], 0.0, 100.0, Mode.HALT)
    assert [(one.mode, one.from_s) for one in known] == [(Mode.NORMAL, 0.0), (Mode.REDUCED, 40.0), (Mode.HALT, 99.0)]
    seen = stretches([], 0.0, 100.0, Mode.HALT, Mode.NORMAL)
    assert [(one.mode, one.from_s) for one in seen] == [(Mode.NORMAL, 0.0), (Mode.HALT, 99.0)]


def test_looks_of_late_are_finer_than_minutes() -> None:
    """Those that came without a pause take the place of the minutes since the first of them; each holds to the next."""

    def at(at_s: float, for_s: float, allowed: float) -> Slice:
        return Slice(at_s=at_s, for_s=for_s, used=0.0, refused=0.0, allowed=allowed)

    minutes = (at(0.0, 60.0, 10.0), at(60.0, 60.0, 20.0), at(124.0, 0.0, 30.0))
    assert finer(minutes, ()) == minutes
    looks = [at(5.0, 0.0, 1.0), at(100.0, 0.0, 2.0), at(102.0, 0.0, 3.0), at(110.0, 0.0, 4.0)]
    assert [(one.at_s, one.for_s, one.allowed) for one in finer(minutes, looks)] == [
        (0.0, 60.0, 10.0),
        (60.0, 40.0, 20.0),
        (100.0, 2.0, 2.0),
        (102.0, 8.0, 3.0),
        (110.0, 0.0, 4.0),
    ]


@pytest.mark.parametrize(
    ("waiting", "allowed", "gate_s", "wanted"),
    [
        (120, 60.0, 0.0, 120.0),
        (120, 60.0, 5.0, 125.0),
        (0, 60.0, 0.0, None),
        (5, None, 0.0, None),
        (5, 0.0, math.inf, None),
    ],
)
def test_when_all_that_waits_is_done(waiting: int, allowed: float | None, gate_s: float, wanted: float | None) -> None:
    """By the pace of now, after the gate; nobody knows where nothing bounds the lane, or nothing goes."""
    lane: Any = SimpleNamespace(waiting=waiting, due_later=0, allowed_per_min=allowed, gate_s=gate_s)
    assert done_in_s(lane) == wanted


@pytest.mark.parametrize(("value", "top"), [(0, 4), (4, 4), (4.1, 8), (13, 20), (81, 120), (400, 400), (7_777, 8_000)])
def test_the_scale_ends_at_a_number_that_four_lines_divide(value: float, top: float) -> None:
    """And never below what is drawn."""
    assert ceiling(value) == pytest.approx(top)


def test_a_line_is_broken_where_nothing_is_known() -> None:
    """It keeps its height over each slice."""
    assert steps([(0, 10, 5), (10, 20, 7), (20, 30, None), (30, 40, 1)]) == (
        "M0.0 5.0 H10.0 L10.0 7.0 H20.0 M30.0 1.0 H40.0"
    )
    assert steps([]) == ""


def test_a_chart_is_drawn_within_its_frame() -> None:
    """Whatever the numbers; NORMAL is not shaded, and the sentence counts what is drawn."""
    found = Dashboard(
        period=Period("l", "15m"),
        since_s=T0,
        until_s=T0 + 120,
        chart=(
            Slice(at_s=T0, for_s=60.0, used=90.0, refused=9.0, allowed=60.0, waiting=7),
            Slice(at_s=T0 + 60, for_s=60.0, used=30.0, refused=0.0, allowed=None, waiting=None),
        ),
        stretches=(
            Stretch(mode=Mode.NORMAL, from_s=T0, until_s=T0 + 60),
            Stretch(mode=Mode.HALT, from_s=T0 + 60, until_s=T0 + 120),
        ),
        total=None,  # type: ignore[arg-type]  # a chart does not look at it
        spend=NOTHING,
        tables={},
        changes=(),
    )
    drawing = drawn(found)
    for path in (drawing.used, drawing.refused, drawing.allowed, drawing.waiting):
        assert all(0 <= float(number) <= 1000 for number in re.findall(r"[\d.]+", path))
    assert [(shade.mode, shade.left, shade.wide) for shade in drawing.shades] == [(Mode.HALT, "500.0", "500.0")]
    assert drawing.modes == (Mode.HALT,)
    assert drawing.says == "120 requests in the last 15m, 9 of them met a 429."
    empty = drawn(replace(found, chart=(), stretches=()))
    assert (empty.used, empty.shades) == ("", ())


def test_a_chart_follows_a_mode_within_two_seconds() -> None:
    """The pause between two refreshes and the age of what they bring leave half a second for the way."""
    assert figures.EVERY_MS / 1000 + board.STANDS_S <= 1.5


def test_looks_that_follow_soon_take_the_place_of_the_last() -> None:
    """Half a second apart for a minute: one in two seconds is kept, the first and the newest among them."""
    looks: deque[Slice] = deque(maxlen=100)
    for number in range(121):
        board.keep(looks, Slice(at_s=1_000.0 + number / 2, for_s=0.0, used=float(number), refused=0.0))
    assert [look.at_s for look in looks][:3] == [1_000.0, 1_002.0, 1_004.0]
    assert looks[-1].at_s == 1_060.0
    assert all(2.0 <= later.at_s - look.at_s < 4.0 for look, later in zip(looks, list(looks)[1:-1], strict=False))
