"""`ratelimit-worker lanes`: the limits of each lane, configured and learned."""

from __future__ import annotations

import click

from ratelimit_worker.cli.lane_name import LANE, none_found, unknown
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import columns, say


@click.command()
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--lane", "names", multiple=True, type=LANE, metavar="L", help="Only this lane; repeat for several.")
@click.option("--find", default="", metavar="TEXT", help="Only lanes with this in their names.")
@click.option("-v", "--verbose", is_flag=True, help="All lanes. Default: of very many the 100 that matter most.")
def lanes(form: str, names: tuple[str, ...], find: str, verbose: bool) -> None:
    """Print each lane's limits, as configured and as learned from the provider, and its present pace."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.live import cluster_state
    from ratelimit_worker.reports.tables import lanes_table
    from ratelimit_worker.stores.live import MOST_LANES

    with open_sources() as opened:
        now = opened.sources.server.now(names or None, None if verbose else MOST_LANES, find=find)
    state = cluster_state(now, None)
    if form == "json":
        from ratelimit_worker.reports.analytics import as_builtins  # with what reports need, which a table does not
        from ratelimit_worker.reports.words import as_json

        say(as_json(as_builtins(state)["lanes"]))
    elif state.lanes:
        say(lanes_table(state, columns()))
    else:
        say(none_found(names, find), err=True)
        say("Note: a lane is made by its first call, or by `limits set`", err=True)
    for says in unknown(names, (lane.lane for lane in state.lanes)):
        say(f"Note: {says}", err=True)
