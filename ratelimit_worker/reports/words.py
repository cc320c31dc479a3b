"""How are numbers written for people? With units, short, and so that columns line up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ratelimit_worker.plain_text import one_line

if TYPE_CHECKING:  # `classify` writes words where no Redis client is installed
    from ratelimit_worker.stores.overdue import OverdueCall

UNKNOWN = "-"
_LEAST_FOLDED = 12  #: columns that a name has, however narrow the terminal


def seconds(value_s: float | None) -> str:
    """ "350 ms", "1.2 s", "4.5 min", "3.1 h", "2.0 d"."""
    if value_s is None:
        return UNKNOWN
    if math.isinf(value_s):
        return "for ever"
    for unit, length_s, below in (("ms", 0.001, 1.0), ("s", 1.0, 100.0), ("min", 60.0, 6_000.0), ("h", 3_600.0, 2e5)):
        if value_s < below:
            return f"{value_s / length_s:.0f} {unit}" if unit == "ms" else f"{value_s / length_s:.1f} {unit}"
    return f"{value_s / 86_400.0:.1f} d"


def about(value_s: float) -> str:
    """A time that nobody knows exactly, in two digits or one: "4.2 s", "85 s", "12 min", "3 h", "4 days"."""
    if value_s < 10.0:
        return f"{value_s:.1f} s"
    for unit, length_s, below in (("s", 1.0, 100.0), ("min", 60.0, 6_000.0), ("h", 3_600.0, 2e5)):
        if value_s < below:
            return f"{value_s / length_s:.0f} {unit}"
    return f"{value_s / 86_400.0:.0f} days"


def count(value: float | None) -> str:
    """ "12,345"; from ten million on "12.3 M"."""
    if value is None:
        return UNKNOWN
    if value >= 10_000_000:
        return f"{value / 1e6:,.1f} M"
    return f"{value:,.0f}"


def percent(share: float | None) -> str:
    """ "12.5 %" of a share from 0 to 1."""
    return UNKNOWN if share is None else f"{share * 100:.1f} %"


def per_min(value: float | None, unbound: str = "no bound") -> str:
    """ "60/min", "7.5/min"."""
    if value is None:
        return unbound
    return f"{value:,.0f}/min" if value >= 10 or value == int(value) else f"{value:.2g}/min"


def moment(at_s: float) -> str:
    """ "2026-11-24 08:12:22 UTC"."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(at_s: float) -> str:
    """ "11-24 08:12" (UTC)."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%m-%d %H:%M")


def as_json(value: Any) -> str:
    """JSON of plain values, for people and programs; unknown and infinite are null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, texts: int = 1) -> str:
    """Columns two spaces apart: the first `texts` to the left, the others to the right. Nothing is ever cut.

    Args:
        width: Columns of the terminal: where a line is longer, names go on in the next. None: lines are as long as they
            are, for files and pipes.
    """
    lines = [tuple(map(one_line, row)) for row in (heads, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        return _folded(lines, widths, width, texts)

    def cell(text: str, at: int) -> str:
        room = " " * (widths[at] - _columns(text))
        return text + room if at < texts else room + text

    return "\n".join("  ".join(cell(text, at) for at, text in enumerate(row)).rstrip() for row in lines)


def _columns(text: str) -> int:
    """Columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _folded(lines: Sequence[Sequence[str]], widths: Sequence[int], width: int, texts: int) -> str:
    """As `table`: texts are folded so that figures keep their columns, unless these alone do not fit."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    figures = sum(widths[texts:]) + 2 * (len(widths) - 1)
    least = figures + sum(min(wide, _LEAST_FOLDED) for wide in widths[:texts])
    grid = Table.grid(padding=(0, 2))
    for at in range(len(widths)):
        is_text = at < texts
        grid.add_column(justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in lines:
        grid.add_row(*map(Text, row))
    console = Console(width=max(width, least), color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as printed:
        console.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def unknown_task(task: str, queue: str) -> str:
    """Why calls of a task wait for a worker."""
    return f"task {task}: no living worker of queue {queue} knows it"


def overdue_call(call: OverdueCall, at_s: float) -> str:
    """Which call holds a thread of a worker though its time is over, and what that costs."""
    past = seconds(max(0.0, at_s - call.deadline_s))
    costs = "another runs in its place" if call.replaced else "it takes the worker's only slot: restart that worker"
    return f"call {call.call_id} (lane {call.lane}, task {call.task}) still runs {past} after its deadline; {costs}"
