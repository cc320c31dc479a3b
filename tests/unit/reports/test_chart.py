"""Axes begin at 0, hold all that is drawn, and have few ticks at round places; lines break where nothing is known."""

from __future__ import annotations

import pytest

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.reports.chart import Frame, amounts, times
from ratelimit_worker.reports.spells import Spell, lengths_s, spells

DAY_S = 86_400.0
MIDNIGHT = 20_000 * DAY_S  # 4 October 2024


@pytest.mark.parametrize(
    ("most", "top", "labels"),
    [
        (0.0, 1.0, ["0"]),
        (1.0, 1.0, ["0", "0.25", "0.5", "0.75", "1"]),
        (7.0, 8.0, ["0", "2", "4", "6", "8"]),
        (97.0, 100.0, ["0", "25", "50", "75", "100"]),
        (101.0, 150.0, ["0", "50", "100", "150"]),
        (0.003, 0.003, ["0", "0.001", "0.002", "0.003"]),
    ],
)
def test_ticks_of_an_amount(most: float, top: float, labels: list[str]) -> None:
    found, ticks = amounts(most, lambda value: f"{value:g}")
    assert found == pytest.approx(top)
    assert [tick.label for tick in ticks] == labels
    assert ticks[0].at == 0.0
    assert most == 0 or ticks[-1].at == 100.0


@pytest.mark.parametrize("exponent", range(-6, 9))
def test_an_axis_holds_what_is_drawn(exponent: int) -> None:
    for digit in range(1, 100):
        most = digit * 10.0**exponent
        top, ticks = amounts(most, str)
        assert most <= top * (1 + 1e-9)
        assert top <= 2.0 * most
        assert 3 <= len(ticks) <= 6


@pytest.mark.parametrize(
    ("since_s", "length_s", "labels"),
    [
        (MIDNIGHT, DAY_S, ["4 Oct", "03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00", "5 Oct"]),
        (MIDNIGHT + 65, 600.0, ["00:02", "00:04", "00:06", "00:08", "00:10"]),
        (MIDNIGHT - 100, 3_600.0, ["4 Oct", "00:10", "00:20", "00:30", "00:40", "00:50"]),
        (MIDNIGHT, 7 * DAY_S, [f"{day} Oct" for day in range(4, 12)]),
    ],
)
def test_ticks_of_time(since_s: float, length_s: float, labels: list[str]) -> None:
    """At round times; where a day begins it is named."""
    assert [tick.label for tick in times(since_s, since_s + length_s)] == labels


@pytest.mark.parametrize("days", [0.01, 0.3, 1, 6, 30, 100, 365, 730])
def test_no_window_has_too_many_ticks(days: float) -> None:
    found = times(MIDNIGHT + 1_234, MIDNIGHT + 1_234 + days * DAY_S)
    assert 2 <= len(found) <= 9
    assert all(0 <= tick.at <= 100 for tick in found)


def test_bars_stand_on_each_other() -> None:
    frame = Frame(0.0, 100.0, 10.0)
    below, above = frame.stack(50.0, 60.0, (("good", 4.0), ("none", 0.0), ("bad", 1.0)), "says")
    assert (below.kind, below.x, below.y, below.height) == ("good", 50.0, 60.0, 40.0)
    assert (above.kind, above.x, above.y, above.height) == ("bad", 50.0, 50.0, 10.0)
    assert below.width < 10.0  # a gap to the next


def test_lines_break_and_levels_join() -> None:
    frame = Frame(0.0, 100.0, 10.0)
    line = frame.line("p95", [(0, 5.0), (10, 10.0), (20, None), (30, 20.0), (40, None)])
    assert line.path == "M0 50 L10 0 M30 0 L30 0"  # a point alone is a dot; what is too large ends at the edge
    assert frame.line("p95", [(0, None)]).path == ""
    assert frame.steps("allowed", [(0, 10, 5.0), (10, 20, 10.0), (50, 60, 0.0)]).path == (
        "M0 50 L10 50 L10 0 L20 0 M50 100 L60 100"
    )


def change(at: float, before: Mode, after: Mode, lane: str = "a") -> ModeChange:
    return ModeChange(id=str(at), lane=lane, from_mode=before, to_mode=after, at=at, cause=f"at {at:.0f}", who="law")


def test_spells_between_changes() -> None:
    """From before the window, over changes of all lanes, to its end; other lanes' are not taken."""
    changes = [
        change(10, Mode.REDUCED, Mode.EMERGENCY),
        change(15, Mode.NORMAL, Mode.HALT, "b"),
        change(20, Mode.EMERGENCY, Mode.NORMAL),
        change(70, Mode.NORMAL, Mode.REDUCED, "*"),
    ]
    found = spells("a", changes, 0.0, 100.0)
    assert found == [
        Spell("a", Mode.REDUCED, 0.0, 10.0, ""),
        Spell("a", Mode.EMERGENCY, 10.0, 20.0, "at 10"),
        Spell("a", Mode.REDUCED, 70.0, 100.0, "at 70"),
    ]
    assert lengths_s(found) == {Mode.REDUCED: 40.0, Mode.EMERGENCY: 10.0}
    assert spells("c", changes[:3], 0.0, 100.0) == []
