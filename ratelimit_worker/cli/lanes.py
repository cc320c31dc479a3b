"""`ratelimit-worker lanes`: what each lane was told, and what it has learned."""

from __future__ import annotations

import click

from ratelimit_worker.cli.terminal import say


@click.command()
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def lanes(form: str) -> None:
    """Print each lane's limits, as told by a person and as learned from the provider, and the pace that holds now."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.analytics import as_builtins
    from ratelimit_worker.reports.live import cluster_state
    from ratelimit_worker.reports.tables import lanes_table
    from ratelimit_worker.reports.words import as_json

    with open_sources() as opened:
        state = cluster_state(opened.sources.live.now(), None)
    if form == "json":
        say(as_json(as_builtins(state)["lanes"]))
    elif state.lanes:
        say(lanes_table(state))
    else:
        say("no lane is known yet: a lane is made by its first call, or by `limits set`", err=True)
