"""`ratelimit-worker limits set`: change a lane's limits, from the next permit on."""

from __future__ import annotations

from typing import Any

import click

from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.number_options import Amount, Whole


@click.group()
def limits() -> None:
    """Limits of lanes."""


@limits.command("set")
@of_app
@click.argument("lane", type=LANE)
@click.option("--rpm", type=Amount(min=0), help="Requests a minute, never exceeded. 0: no such limit.")
@click.option("--tpm", type=Amount(min=0), help="Tokens a minute, never exceeded. 0: no such limit.")
@click.option("--concurrency", type=Whole(min=0), help="Calls at once over the whole cluster. 0: no such limit.")
@click.option("--rpd", type=Amount(min=0), help="Requests a day, never exceeded. 0: no such quota.")
@click.option("--tpd", type=Amount(min=0), help="Tokens a day, never exceeded. 0: no such quota.")
@click.option("--usd-per-day", type=Amount(min=0), help="Dollars a day; then calls wait. 0: no such budget.")
@click.option("--usd-per-month", type=Amount(min=0), help="Dollars a month of the calendar. 0: no such budget.")
@click.option(
    "--day-zone", metavar="ZONE", help="Where the day ends at midnight, such as America/Los_Angeles. Default: UTC."
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="LANE",
    help="Share the budget of this lane with others; repeat for several. Replaces the present parents.",
)
@click.option("--no-parents", is_flag=True, help="Remove all parents.")
@click.option("--unlimited/--limited", default=None, help="No pace at all, or with a pace again.")
@click.option("--adaptive/--fixed", default=None, help="Learn the provider's rate, or keep to fixed rates.")
def set_(lane: str, day_zone: str | None, parents: tuple[str, ...], no_parents: bool, **named: Any) -> None:
    """Change limits of LANE; what is not named stays as it is.

    They hold until they are changed again, also after restarts of workers; MAISD_LANES is only used for new lanes.
    """
    from ratelimit_worker.calls import LaneLimits
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.contracts.budget import LANE as LANE_MONEY
    from ratelimit_worker.errors import BadInput
    from ratelimit_worker.flow.lane.limit import Change, begun_budget, check, set_limits
    from ratelimit_worker.reports.tables import limits_line
    from ratelimit_worker.stores.reach import redis_errors

    if parents and no_parents:
        raise click.UsageError("--parent or --no-parents, not both")
    change = Change(
        day_zone="" if day_zone == "UTC" else day_zone,
        parents=parents if parents or no_parents else None,
        **named,
    )
    if change == Change():
        raise click.UsageError("name at least one limit, such as --rpm 60")
    try:
        check(lane, change)
        with open_sources() as opened, redis_errors():
            opened.reach()
            known = opened.settings.lanes
            configured = known.get(lane) or LaneLimits()
            control, money = opened.services.control, f"{LANE_MONEY}{lane}"
            begun = begun_budget(control, lane, change, configured)
            spent = {} if begun is None else {money: opened.spent_before(money, begun)}
            before, after = set_limits(control, lane, change, configured, known)
            opened.services.budgets.backfill(spent)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    say(f"{lane}: {limits_line(before)} -> {limits_line(after)}")
