"""`ratelimit-worker status`: the state of every lane now."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.lane_name import LANE, none_found, unknown
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import columns, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ratelimit_worker.reports.live import ClusterState

_EXIT_SICK = 3
_LADDER = ("normal", "reduced", "emergency", "halt")


@click.command()
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--fail-on",
    type=click.Choice(_LADDER[1:]),
    help=f"Exit with {_EXIT_SICK} when a lane is in this mode or a stricter one.",
)
@click.option("--lane", "lanes", multiple=True, type=LANE, metavar="L", help="Only this lane; repeat for several.")
@click.option("--find", default="", metavar="TEXT", help="Only lanes with this in their names.")
@click.option("--watch", is_flag=True, help="Again every 2 s, until Ctrl-C, as a screen that fits the terminal.")
@click.option("-v", "--verbose", is_flag=True, help="All lanes. Default: of very many the 100 that matter most.")
@click.pass_context
def status(
    ctx: click.Context, form: str, fail_on: str | None, lanes: tuple[str, ...], find: str, watch: bool, verbose: bool
) -> None:
    """Print each lane's mode, rate, waiting and running calls, and workers.

    A ! after the mode means that it is pinned by hand.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.stats import status as look
    from ratelimit_worker.reports.tables import status_table
    from ratelimit_worker.stores.live import MOST_LANES

    most = None if verbose else MOST_LANES
    if watch and (form == "json" or fail_on is not None):
        raise click.UsageError("--watch: goes with a table, and without --fail-on")
    nothing = none_found(lanes, find)
    with open_sources() as opened:
        if watch:
            _keep_showing(lambda: look(opened.sources, most, lanes or None, find=find), nothing)
            return
        state, missing = look(opened.sources, most, lanes or None, find=find)
    say(_as_json(state) if form == "json" else status_table(state, columns(), nothing))
    for says in (*missing, *unknown(lanes, (lane.lane for lane in state.lanes))):
        say(f"Note: {says}", err=True)
    if fail_on is not None:
        sick = [lane for lane in state.lanes if _LADDER.index(lane.mode.value.lower()) >= _LADDER.index(fail_on)]
        for lane in sick:
            say(f"{lane.lane} is in {lane.mode_now}", err=True)
        stricter = _LADDER[_LADDER.index(fail_on) :]
        unseen = sum(state.modes.get(mode.upper(), 0) for mode in stricter) - len(sick)
        if state.left_out and unseen > 0:
            say(f"{unseen:,} more lanes are in such a mode", err=True)
        ctx.exit(_EXIT_SICK if sick or (state.left_out and unseen > 0) else 0)


def _as_json(state: ClusterState) -> str:
    from ratelimit_worker.reports.analytics import as_builtins  # with what reports need, which a table does not
    from ratelimit_worker.reports.words import as_json

    return as_json(as_builtins(state))


def _keep_showing(look: Callable[[], tuple[ClusterState, tuple[str, ...]]], nothing: str) -> None:
    from ratelimit_worker.cli.screen import as_text, keep_showing
    from ratelimit_worker.reports.tables import status_table

    def seen() -> Callable[[int | None, int | None], RenderableType]:
        state, missing = look()
        notes = "".join(f"\nNote: {says}" for says in missing)
        return lambda columns, lines: as_text(f"{status_table(state, columns, nothing)}{notes}")

    keep_showing(seen)
