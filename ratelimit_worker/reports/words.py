"""Numbers in words for people: short, with units, and so that columns line up."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ratelimit_worker.plain_text import one_line

if TYPE_CHECKING:  # `classify` uses this module even if no Redis client is installed
    from ratelimit_worker.stores.overdue import OverdueCall

UNKNOWN = "-"
_LEAST_FOLDED = 12  #: characters that a name keeps in a line, however narrow the terminal is


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
    """An uncertain time, with one or two digits: "4.2 s", "85 s", "12 min", "3 h", "4 days"."""
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


def tokens(into: int, out: int, *, cached: int = 0, written: int = 0, reasoning: int = 0) -> str:
    """ "1,000 in (400 cached), 100 out (40 of reasoning)"; the numbers in brackets are parts of the others."""
    of_input = [f"{count(many)} {what}" for many, what in ((cached, "cached"), (written, "written to a cache")) if many]
    kinds = f" ({', '.join(of_input)})" if of_input else ""
    return f"{count(into)} in{kinds}, {count(out)} out{f' ({count(reasoning)} of reasoning)' if reasoning else ''}"


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
        width: Columns of the terminal: if a line would be longer, its names are continued in the next one, and if even
            the figures do not fit, each row takes several lines. None: lines are not folded, for files and pipes.
    """
    lines = [tuple(map(one_line, row)) for row in (heads, *rows)]
    widths = [max(map(_columns, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        least = sum(widths[texts:]) + sum(min(wide, _LEAST_FOLDED) for wide in widths[:texts]) + 2 * (len(widths) - 1)
        return _folded(lines, width, texts) if least <= width else _stacked(lines, width)

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


def folded(text: str, width: int | None, indent: int = 4) -> str:
    """A text whose lines fit a terminal, each broken between words.

    Args:
        width: Columns of the terminal; None: there is none, and lines stay as they are.
        indent: Spaces before what was broken off.
    """
    if width is None:
        return text
    deep = " " * min(indent, max(0, width - _LEAST_FOLDED))
    lines = (textwrap.wrap(line, width, subsequent_indent=deep, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join("\n".join(broken) for broken in lines)


def _stacked(lines: Sequence[Sequence[str]], width: int) -> str:
    """A table that is too wide for its terminal: each row's name has lines of its own, and below it stands the rest."""
    from rich.cells import chop_cells

    heads, *rows = lines
    deep = "  " if width > _LEAST_FOLDED else ""
    said = [heads[0]]
    for name, *cells in rows:
        said += [name, deep]
        for phrase in (f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True) if cell):
            begun = said[-1].strip()
            if begun and _columns(f"{said[-1]}  {phrase}") > width:
                said.append(f"{deep}{phrase}")
            else:
                said[-1] += f"  {phrase}" if begun else phrase
    broken = (piece for line in said for part in folded(line, width).split("\n") for piece in chop_cells(part, width))
    return "\n".join(line.rstrip() for line in broken)


def _folded(lines: Sequence[Sequence[str]], width: int, texts: int) -> str:
    """Like `table`, with folded texts, so that figures keep their columns."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for at in range(len(lines[0])):
        is_text = at < texts
        grid.add_column(justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for row in lines:
        grid.add_row(*map(Text, row))
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as printed:
        console.print(grid)
    return "\n".join(line.rstrip() for line in printed.get().splitlines())


def unknown_task(task: str, queue: str) -> str:
    """Why calls of a task wait for a worker."""
    return f"task {task}: no living worker of queue {queue} knows it"


def overdue_call(call: OverdueCall, at_s: float) -> str:
    """A call that still runs after its deadline, and what that costs its worker."""
    past = seconds(max(0.0, at_s - call.deadline_s))
    costs = "another runs in its place" if call.replaced else "it takes the worker's only slot: restart that worker"
    return f"call {call.call_id} (lane {call.lane}, task {call.task}) still runs {past} after its deadline; {costs}"
