"""`ratelimit-worker analytics`: a report as a file: JSON, CSV or HTML."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.only import MOMENT, only_some
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.errors import BadInput
from ratelimit_worker.plural import many

if TYPE_CHECKING:
    from ratelimit_worker.contracts.rollup import Only


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
    "--since",
    type=MOMENT,
    metavar="TIME",
    help="Such as 90m, 24h, 7d (ago), or 2026-11-30. Default: MAISD_STATS_RETENTION_HOURS.",
)
@click.option("--until", type=MOMENT, metavar="TIME", help="The same. Default: now.")
@only_some
def analytics(output: Path | None, since: float | None, until: float | None, only: Only) -> None:
    """Write a report of the last hours or days; an existing file is replaced.

    It begins with the first attempt of that time.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.policy.rollup import FIGURES_KEPT_S
    from ratelimit_worker.reports.analytics import check_name, to_json, write_report
    from ratelimit_worker.reports.stats import fitted, stats

    try:
        if output is not None:
            check_name(output)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    end_s = min(time.time(), until) if until is not None else time.time()
    with open_sources() as opened:
        window_s = end_s - since if since is not None else opened.settings.figures_reach_s
        if window_s <= 0:
            raise click.UsageError("--since: lies after the end of the window")
        window_s = min(window_s, FIGURES_KEPT_S)  # there are no older figures
        found = stats(opened.sources, fitted(opened.sources, window_s, end_s, only), end_s, only)
    for says in found.missing:
        say(f"Note: {says}", err=True)
    if output is None:
        say(to_json(found), nl=False)
        return
    write_report(found, output)
    say(f"{output}: {many(found.total.calls, 'call')}, {many(found.total.attempts, 'attempt')}", err=True)
