"""`ratelimit-worker analytics`: a report to keep, as JSON, CSV or a page."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import BadInput


@click.command()
@of_app
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Ends in .json, .csv or .html. Default: JSON to stdout.",
)
@click.option(
    "--since", type=DURATION, metavar="TIME", help="Such as 90m, 24h, 7d. Default: MAISD_STATS_RETENTION_HOURS."
)
def analytics(output: Path | None, since: float | None) -> None:
    """Write a report of the last hours or days; an older file of that name is replaced whole."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.analytics import check_name, to_json, write_report
    from ratelimit_worker.reports.stats import stats
    from ratelimit_worker.reports.words import count

    try:
        if output is not None:
            check_name(output)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    with open_sources() as opened:
        found = stats(opened.sources, since or opened.settings.figures_reach_s, time.time())
    for says in found.missing:
        say(f"Note: {says}", err=True)
    if output is None:
        say(to_json(found), nl=False)
        return
    write_report(found, output)
    say(f"{output}: {count(found.total.calls)} calls, {count(found.total.attempts)} attempts", err=True)
