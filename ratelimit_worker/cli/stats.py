"""`ratelimit-worker stats`: what happened in the last minutes, hour or day."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.only import only_some
from ratelimit_worker.cli.terminal import columns, say

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ratelimit_worker.contracts.rollup import Only
    from ratelimit_worker.reports.stats import Stats

_EVERY_S = 2.0
_UNREACHABLE = 69


@click.command()
@of_app
@click.option(
    "--window",
    type=DURATION,
    default="15m",
    show_default=True,
    help="Such as 15m, 1h, 24h, 7d; at most two years.",
)
@click.option("--watch", is_flag=True, help=f"Repeat every {_EVERY_S:.0f} s, until Ctrl-C.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
@click.option(
    "--by",
    type=click.Choice(["lane", "function"]),
    default="lane",
    show_default=True,
    help="Rows of the CSV: one for each lane and slice of time, or for each function.",
)
@only_some
@click.pass_context
def stats(ctx: click.Context, window: float, watch: bool, form: str, by: str, only: Only) -> None:
    """Print calls, errors, retries, latency, waiting and tokens, by lane, function and context."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.policy.rollup import FIGURES_KEPT_S
    from ratelimit_worker.reports.stats import stats as figures
    from ratelimit_worker.reports.words import seconds

    if by != "lane" and form != "csv":
        raise click.UsageError("--by: only for --format csv; table and json have both")
    with open_sources() as opened:
        if window > FIGURES_KEPT_S:
            raise click.UsageError(f"--window: figures reach back two years, {seconds(FIGURES_KEPT_S)}")
        if watch and form == "table":
            _keep_showing(lambda: figures(opened.sources, window, time.time(), only))
            return
        found = figures(opened.sources, window, time.time(), only)
        while watch:
            _show(found, form, by)
            _pause(_EVERY_S)
            found = figures(opened.sources, window, time.time(), only)
    _show(found, form, by)
    if found.now is None and opened.sources.live is not None:  # if no Redis is named, there is only the database
        ctx.exit(_UNREACHABLE)


def _keep_showing(look: Callable[[], Stats]) -> None:
    from ratelimit_worker.cli.screen import as_text, keep_showing
    from ratelimit_worker.reports.tables import stats_tables

    def seen() -> Callable[[int | None, int | None], RenderableType]:
        found = look()
        notes = "".join(f"\nNote: {says}" for says in found.missing)
        return lambda columns, lines: as_text(f"{stats_tables(found, columns)}{notes}")

    keep_showing(seen)


def _pause(seconds: float) -> None:
    time.sleep(seconds)


def _show(found: Stats, form: str, by: str) -> None:
    from ratelimit_worker.reports.analytics import as_builtins, to_csv, to_function_csv
    from ratelimit_worker.reports.tables import stats_tables
    from ratelimit_worker.reports.words import as_json

    if form == "table":
        say(stats_tables(found, columns()))
    elif form == "json":
        say(as_json(as_builtins(found)))
    else:
        say(to_function_csv(found) if by == "function" else to_csv(found, found.slice_s), nl=False)
    for says in found.missing:
        say(f"Note: {says}", err=True)
