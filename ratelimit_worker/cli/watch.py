"""`ratelimit-worker watch`: a live screen of all lanes, or of one lane with what holds its calls back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.plural import many

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from ratelimit_worker.reports.live import ClusterState, LaneState

_STYLES = {"NORMAL": "green", "REDUCED": "yellow", "EMERGENCY": "red", "HALT": "bold white on red"}
_BAR = 24  #: columns of a bar
_HEADS = ("lane", "mode", "allowed", "used", "429s", "wait", "run", "oldest", "held by")
_BETWEEN = 3  #: characters that a column of a table takes in addition to its text
#: (column, characters to which its text may be cut), in this order, so that no column with a figure is left out.
_LEAST = (("held by", 14), ("lane", 24), ("mode", 10), ("lane", 12))
_DISPENSABLE = ("held by", "run", "429s", "oldest", "used", "allowed")  #: columns that may be left out, in this order


@click.command()
@of_app
@click.argument("lane", type=LANE, required=False)
@click.option("--find", default="", metavar="TEXT", help="Only lanes with this in their names.")
def watch(lane: str | None, find: str) -> None:
    """Show how the lanes stand, every two seconds, until Ctrl-C; with LANE all of that one.

    It fits the terminal: of more lanes than it has lines those that matter most. Where stdout is no terminal, the same
    is printed again and again.
    """
    from ratelimit_worker.cli.screen import as_text, keep_showing
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import StoreUnavailable
    from ratelimit_worker.reports.stats import status as look

    with open_sources() as opened:
        opened.sources.server  # noqa: B018 - raises at once if Redis is away, instead of saying so on every screen

        def seen() -> object:
            try:
                state, missing = look(opened.sources, only=[lane] if lane else None, find=find)
            except StoreUnavailable as error:
                said = f"Redis is away: {error}"
                return lambda columns, lines: as_text(said)
            return lambda columns, lines: _one(state, lane, missing) if lane else _all(state, missing, columns, lines)

        keep_showing(seen)  # type: ignore[arg-type]  # a lambda has no types to compare


def _all(state: ClusterState, missing: tuple[str, ...], columns: int | None, lines: int | None) -> RenderableType:
    """A table of the lanes, with as many columns and lines as fit."""
    from rich.text import Text

    from ratelimit_worker.cli.screen import PRINTED, group
    from ratelimit_worker.plain_text import one_line, shown

    room = None if lines is None else max(1, lines - 7 - len(missing))
    rows = [_row(lane, state.at_s) for lane in state.lanes[:room]]
    longest = {head: max(text.cell_len for text in (Text(head), *(row[head] for row in rows))) for head in _HEADS}
    widths = fitting(longest, columns or PRINTED)
    table = _table(*widths)
    for column, width in zip(table.columns, widths.values(), strict=True):
        column.width = width
    for row in rows:
        table.add_row(*(row[head] for head in widths))
    known = sum(state.modes.values()) or len(state.lanes)
    left = known - min(len(state.lanes), room if room is not None else known)
    more = [Text(f"… and {many(left, 'lane')} more", style="dim")] if left > 0 else []
    return group(_head(state), table, *more, *[Text(shown(one_line(says)), style="yellow") for says in missing])


def fitting(longest: Mapping[str, int], columns: int) -> dict[str, int]:
    """Which columns of the table fit, and the width of each, in characters.

    Texts are cut before columns are left out: first what holds calls back, then the lane's name, then the mode.

    Args:
        longest: Column → characters of its longest text.
        columns: Width of the terminal.
    """
    widths = dict(longest)

    def over() -> int:
        return sum(widths.values()) + _BETWEEN * len(widths) - columns

    for head, least in _LEAST:
        widths[head] = max(min(widths[head], least), widths[head] - max(0, over()))
    for head in _DISPENSABLE:
        if over() > 0:
            del widths[head]
    for head in ("lane", "mode", "held by"):  # columns that were left out have freed some width
        if head in widths:
            widths[head] = min(longest[head], widths[head] + max(0, -over()))
    return widths


def _row(lane: LaneState, at_s: float) -> dict[str, Text]:
    from rich.text import Text

    from ratelimit_worker.plain_text import one_line, shown
    from ratelimit_worker.reports.words import count, per_min, seconds

    return {
        "lane": Text(shown(one_line(lane.lane))),
        "mode": _mode(lane),
        "allowed": Text(per_min(lane.allowed_per_min, "none")),
        "used": Text(count(lane.used_per_min)),
        "429s": Text(count(lane.refused_last_min), style="red" if lane.refused_last_min else ""),
        "wait": Text(count(lane.waiting + lane.due_later)),
        "run": Text(count(lane.running)),
        "oldest": Text(seconds(lane.oldest_age_s)),
        "held by": Text(shown(one_line(lane.held_by(at_s))), style="dim"),
    }


def _one(state: ClusterState, name: str, missing: tuple[str, ...]) -> RenderableType:
    """All figures of one lane, what is left of each budget, and what the next call waits for."""
    from rich.table import Table
    from rich.text import Text

    from ratelimit_worker.cli.screen import group
    from ratelimit_worker.plain_text import one_line, shown
    from ratelimit_worker.reports.dashboard import done_in_s, headroom, held_by
    from ratelimit_worker.reports.words import UNKNOWN, about, count, per_min, seconds

    lane = next(iter(state.lanes), None)
    if lane is None:
        return group(_head(state), Text(shown(one_line(f"lane {name} is not known (yet)"))))
    done_s = done_in_s(lane)
    facts: dict[str, RenderableType] = {
        "mode": _mode(lane),
        "allowed": per_min(lane.allowed_per_min),
        "used": f"{per_min(lane.used_per_min, UNKNOWN)}, {count(lane.refused_last_min)} met a 429",
        "waiting": f"{count(lane.waiting)} for a permit, {count(lane.due_later)} for a time"
        + (f"; done in about {about(done_s)}" if done_s is not None else ""),
        "oldest": seconds(lane.oldest_age_s),
        "running": f"{count(lane.running)}, {count(lane.ready)} ready; {many(lane.workers, 'worker')}, "
        f"{many(lane.slots, 'slot')}",
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, says in facts.items():
        table.add_row(what, says)
    for what, share, says in headroom(lane):
        table.add_row(what, Text.assemble(_bar(share), f"  {says}"))
    for says in held_by(lane, state.at_s):
        table.add_row("next waits for", Text(shown(one_line(says))))
    name_of_it = Text(shown(one_line(lane.lane)), overflow="fold")
    notes = [Text(shown(one_line(says)), style="yellow") for says in missing]
    return group(_head(state), Text(), name_of_it, Text(), table, *notes)


def _head(state: ClusterState) -> RenderableType:
    from rich.text import Text

    from ratelimit_worker.reports.words import count, moment

    modes = ", ".join(f"{count(lanes)} {mode}" for mode, lanes in sorted(state.modes.items()))
    said = f"{moment(state.at_s)}  {many(state.workers, 'worker')}, {many(state.slots, 'slot')}"
    return Text(f"{said}{f'  lanes: {modes}' if modes else ''}", style="bold")


def _table(*heads: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False, expand=False)
    for at, head in enumerate(heads):
        left = at < 2 or head == "held by"
        table.add_column(Text(head), justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    return table


def _mode(lane: LaneState) -> Text:
    from rich.text import Text

    asides = f" {', '.join(lane.mode_now.asides)}" if lane.mode_now.asides else ""
    return Text(f"{lane.mode}{asides}", style=_STYLES[lane.mode])


def _bar(share: float) -> Text:
    from rich.text import Text

    full = round(share * _BAR)
    return Text.assemble(("█" * full, "green" if share > 0.2 else "red"), ("░" * (_BAR - full), "dim"))
