"""`ratelimit-worker status`: how every lane stands now."""

from __future__ import annotations

import click

from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import columns, say

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
@click.option("-v", "--verbose", is_flag=True, help="All lanes. Default: of very many the 100 that matter most.")
@click.pass_context
def status(
    ctx: click.Context, form: str, fail_on: str | None, lanes: tuple[str, ...], find: str, verbose: bool
) -> None:
    """Print each lane's mode, rate, waiting and running calls, and who works for them.

    A ! after the mode: it is pinned by hand.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.analytics import as_builtins
    from ratelimit_worker.reports.stats import status as look
    from ratelimit_worker.reports.tables import status_table
    from ratelimit_worker.reports.words import as_json
    from ratelimit_worker.stores.live import MOST_LANES

    with open_sources() as opened:
        state, missing = look(opened.sources, None if verbose else MOST_LANES, lanes or None, find=find)
    say(as_json(as_builtins(state)) if form == "json" else status_table(state, columns()))
    for says in missing:
        say(f"Note: {says}", err=True)
    if fail_on is not None:
        sick = [lane for lane in state.lanes if _LADDER.index(lane.mode.value.lower()) >= _LADDER.index(fail_on)]
        for lane in sick:
            say(f"{lane.lane} is in {lane.mode_now}", err=True)
        stricter = _LADDER[_LADDER.index(fail_on) :]
        unseen = sum(state.modes.get(mode.upper(), 0) for mode in stricter) - len(sick)
        if state.left_out and unseen > 0:
            say(f"{unseen:,} lanes more are in such a mode", err=True)
        ctx.exit(_EXIT_SICK if sick or (state.left_out and unseen > 0) else 0)
