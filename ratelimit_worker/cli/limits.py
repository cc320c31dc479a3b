"""`ratelimit-worker limits set`: what a lane may do at most, for the next permit on."""

from __future__ import annotations

import click

from ratelimit_worker.cli.amount import Amount
from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import say


@click.group()
def limits() -> None:
    """What a lane may do at most."""


@limits.command("set")
@of_app
@click.argument("lane", type=LANE)
@click.option("--rpm", type=Amount(min=0), help="Requests a minute, never exceeded. 0: no such limit.")
@click.option("--tpm", type=Amount(min=0), help="Tokens a minute, never exceeded. 0: no such limit.")
@click.option(
    "--concurrency", type=click.IntRange(min=0), help="Calls at once over the whole cluster. 0: no such limit."
)
@click.option("--rpd", type=Amount(min=0), help="Requests a day, never exceeded. 0: no such quota.")
@click.option("--tpd", type=Amount(min=0), help="Tokens a day, never exceeded. 0: no such quota.")
@click.option(
    "--day-zone", metavar="ZONE", help="Where the day ends at midnight, such as America/Los_Angeles. Default: UTC."
)
@click.option(
    "--parent",
    "parents",
    multiple=True,
    metavar="LANE",
    help="Share the budget of this lane with others; repeat for several. What is named replaces what was.",
)
@click.option("--no-parents", is_flag=True, help="Share no budget any more.")
@click.option("--unlimited/--limited", default=None, help="No pace at all; or a pace again.")
@click.option("--adaptive/--fixed", default=None, help="Learn what the provider takes; or keep to fixed rates.")
def set_(
    lane: str,
    rpm: float | None,
    tpm: float | None,
    concurrency: int | None,
    rpd: float | None,
    tpd: float | None,
    day_zone: str | None,
    parents: tuple[str, ...],
    no_parents: bool,
    unlimited: bool | None,
    adaptive: bool | None,
) -> None:
    """Change limits of LANE; what is not named stays as it is.

    Holds until it is changed again, also over restarts of workers; MAISD_LANES says only where a new lane begins.
    """
    from ratelimit_worker.calls import LaneLimits
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import BadInput
    from ratelimit_worker.flow.lane.limit import Change, check, set_limits
    from ratelimit_worker.reports.tables import limits_line
    from ratelimit_worker.stores.reach import redis_errors

    if parents and no_parents:
        raise click.UsageError("--parent or --no-parents, not both")
    change = Change(
        rpm=rpm,
        tpm=tpm,
        concurrency=concurrency,
        rpd=rpd,
        tpd=tpd,
        day_zone="" if day_zone == "UTC" else day_zone,
        unlimited=unlimited,
        adaptive=adaptive,
        parents=parents if parents or no_parents else None,
    )
    if change == Change():
        raise click.UsageError("name at least one limit, such as --rpm 60")
    try:
        check(lane, change)
        with open_sources() as opened, redis_errors():
            opened.reach()
            known = opened.settings.lanes
            configured = known.get(lane) or LaneLimits()
            before, after = set_limits(opened.services.control, lane, change, configured, known)
    except BadInput as error:
        raise click.UsageError(str(error)) from error
    say(f"{lane}: {limits_line(before)} -> {limits_line(after)}")
