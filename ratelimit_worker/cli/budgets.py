"""`ratelimit-worker budgets`: what may be spent in dollars, and what was."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import columns, say
from ratelimit_worker.number_options import Amount

if TYPE_CHECKING:
    from ratelimit_worker.stores.queries import Queries


@click.group(invoke_without_command=True)
@of_app
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def budgets(ctx: click.Context, form: str) -> None:
    """Print each budget of money: spent, left, and who waits for it.

    Lanes have theirs by `limits set LANE --usd-per-day N`; `budgets set` is for tenants, contexts and all calls.
    """
    if ctx.invoked_subcommand is not None:
        return
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.reports.budgets import as_plain, budgets_table
    from ratelimit_worker.reports.words import as_json
    from ratelimit_worker.stores.reach import redis_errors

    with open_sources() as opened:
        with redis_errors():
            standing = opened.services.spending()
        if form == "json":
            say(as_json(as_plain(standing)))
        elif standing:
            say(budgets_table(standing, columns()))
        else:
            say("no budget is set: `budgets set all --usd-per-day 50`, or `limits set LANE --usd-per-day 5`", err=True)
        if standing:
            _say_what_they_leave_out(opened.sources.queries)


def _say_what_they_leave_out(queries: Queries) -> None:
    """Print a note about models without a price: no budget counts their calls."""
    from ratelimit_worker.errors import StoreUnavailable
    from ratelimit_worker.reports.budgets import LEFT_OUT_OVER_S, left_out

    now_s = time.time()
    try:
        note = left_out(queries.cells(now_s - LEFT_OUT_OVER_S, now_s, LEFT_OUT_OVER_S))
    except StoreUnavailable as error:
        note = f"whether there are models without a price, which no budget counts, is unknown: {error}"
    if note:
        say(f"Note: {note}", err=True)


@budgets.command("set")
@of_app
@click.argument("name", metavar="all|tenant:NAME|context:NAME")
@click.option("--usd-per-day", type=Amount(min=0), help="Dollars a day. 0: no such budget.")
@click.option("--usd-per-month", type=Amount(min=0), help="Dollars a month of the calendar. 0: no such budget.")
@click.option("--zone", metavar="ZONE", help="Where day and month end, such as Europe/Berlin. Default: UTC.")
def set_(name: str, usd_per_day: float | None, usd_per_month: float | None, zone: str | None) -> None:
    """Change a budget; what is not named stays as it is.

    Holds for the next call on, until it is changed again; what waits for money is asked anew. MAISD_BUDGETS says only
    what holds where nobody has said it by this command.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import BadInput
    from ratelimit_worker.flow.lane.budget import Change, check_name, set_budget
    from ratelimit_worker.reports.budgets import budget_line
    from ratelimit_worker.stores.reach import redis_errors

    change = Change(usd_per_day=usd_per_day, usd_per_month=usd_per_month, zone="" if zone == "UTC" else zone)
    if change == Change():
        raise click.UsageError("name at least one, such as --usd-per-day 50")
    try:
        check_name(name)  # a wrong name is wrong whether Redis is there or not
        with open_sources() as opened, redis_errors():
            opened.reach()
            before, after = set_budget(opened.services.budgets, name, change, opened.spent_before)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    say(f"{name}: {budget_line(before)} -> {budget_line(after)}")
