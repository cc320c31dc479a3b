"""`ratelimit-worker calls`: search calls; cancel waiting ones, run failed ones again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.cli.explain import explain
from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import app_name, of_app
from ratelimit_worker.cli.terminal import asks, columns, say
from ratelimit_worker.contracts.search import CANCELLABLE, REPEATABLE, CallState
from ratelimit_worker.number_options import Whole

if TYPE_CHECKING:
    from ratelimit_worker.contracts.search import Wanted
    from ratelimit_worker.reports.calls import Calls
    from ratelimit_worker.worker.again import Done

_DAY = "24h"
_MOST = 1_000  #: most calls in one command


@click.group()
def calls() -> None:
    """Search calls; cancel waiting ones, run failed ones again."""


def _search_options(states: Sequence[CallState]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that select calls."""

    def give(command: Callable[..., Any]) -> Callable[..., Any]:
        named = [state.value.replace(" ", "-") for state in states]
        for option in reversed(
            (
                click.option("--lane", type=LANE, default="", metavar="L", help="Only calls of this lane."),
                click.option("--tenant", default="", metavar="T", help="Only calls of this tenant."),
                click.option("--task", default="", metavar="TEXT", help="Only tasks with this in their names."),
                click.option("--error", default="", metavar="TEXT", help="A category, or part of what went wrong."),
                click.option("--state", type=click.Choice(named), help="Only calls in this state."),
                click.option("--since", type=DURATION, default=_DAY, show_default=True, help="Of what has ended."),
                click.option("--limit", type=Whole(1, _MOST), default=50, show_default=True),
            )
        ):
            command = option(command)
        return command

    return give


def _wanted(call_id: str = "", *, since: float, limit: int, state: str | None, **conditions: str) -> Wanted:
    from ratelimit_worker.contracts.search import Wanted

    return Wanted(
        call_id=call_id,
        state=None if state is None else CallState(state.replace("-", " ")),
        since_s=time.time() - since,
        most=limit,
        **conditions,
    )


@calls.command(name="list")
@of_app
@click.argument("call_id", default="", required=False, metavar="[CALL_ID]")
@_search_options(list(CallState))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_(call_id: str, form: str, **conditions: Any) -> None:
    """Print waiting and running calls, and those that have ended, newest first.

    Column again: whether `calls retry` can run the call again, for which its arguments must still be kept.
    """
    import msgspec

    from ratelimit_worker.reports.calls import calls_table
    from ratelimit_worker.reports.words import as_json

    found = _search(_wanted(call_id, **conditions))
    say(as_json(msgspec.to_builtins(found)) if form == "json" else calls_table(found, time.time(), columns()))
    for note in found.notes:
        say(f"Note: {note}", err=True)


@calls.command()
@of_app
@click.argument("call_id")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def show(ctx: click.Context, call_id: str, form: str) -> None:
    """Print where the call CALL_ID is, what it waits for, and each attempt: the same as `explain`."""
    ctx.invoke(explain, call_id=call_id, form=form)


@calls.command()
@of_app
@click.argument("call_ids", nargs=-1, metavar="[CALL_ID]...")
@_search_options(sorted(CANCELLABLE))
@asks("Cancel these calls? Their callers will get an error that they were revoked.")
@click.pass_context
def cancel(ctx: click.Context, /, call_ids: tuple[str, ...], **conditions: Any) -> None:
    """Take waiting calls out of their lanes: those named, or those that a search finds.

    Their callers get Celery's TaskRevokedError. Running calls go on. Exit code 1: some were not cancelled.
    """
    from ratelimit_worker.app import find_app
    from ratelimit_worker.worker.again import cancel as take_out

    wanted = _those(call_ids, CANCELLABLE, conditions)
    _tell(ctx, take_out(find_app(app_name()), wanted) if wanted else [], "cancelled")


@calls.command()
@of_app
@click.argument("call_ids", nargs=-1, metavar="[CALL_ID]...")
@_search_options(sorted(REPEATABLE))
@asks("Run these calls again? They will be paid for again.")
@click.pass_context
def retry(ctx: click.Context, /, call_ids: tuple[str, ...], **conditions: Any) -> None:
    """Run failed calls again: those named, or those that a search finds.

    Each keeps its id, and its result becomes the new one. It gets the same time until its deadline as at first. If it
    was part of a chord, that has failed and is not run again. Exit code 1: some could not be run again; the reasons are
    printed.
    """
    from ratelimit_worker.app import find_app
    from ratelimit_worker.worker.again import run_again

    wanted = _those(call_ids, REPEATABLE, conditions)
    _tell(ctx, run_again(find_app(app_name()), wanted) if wanted else [], "on their way again")


def _search(wanted: Wanted) -> Calls:
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import StoreUnavailable
    from ratelimit_worker.reports.calls import search

    with open_sources() as opened:
        services = opened.services
        redis = services.redis if services.redis_url else None
        try:
            opened.reach()
        except StoreUnavailable as error:
            say(f"Note: what waits and runs is unknown: {error}", err=True)
            redis = None
        return search(redis, opened.sources.queries, services.shelf if redis is not None else None, wanted)


def _those(call_ids: Sequence[str], states: frozenset[CallState], conditions: dict[str, Any]) -> list[str]:
    """The calls that are named, or those that match the conditions and are in one of these states."""
    given = [name for name in ("lane", "tenant", "task", "error", "state") if conditions[name]]
    if bool(call_ids) == bool(given):
        raise click.UsageError("name calls by their ids, or by --lane, --tenant, --task, --error or --state")
    if call_ids:
        return list(call_ids)
    found = _search(_wanted(**conditions))
    for note in found.notes:
        say(f"Note: {note}", err=True)
    wanted = (call for call in found.calls if call.state in states and call.call_id)
    return [call.call_id for call in wanted if call.can_cancel or call.state not in CANCELLABLE]


def _tell(ctx: click.Context, done: Sequence[Done], what: str) -> None:
    for one in done:
        if one.why_not:
            say(f"{one.call_id}: {one.why_not}", err=True)
    well = sum(not one.why_not for one in done)
    say(f"{well:,} of {len(done):,} calls {what}.")
    if well < len(done):
        ctx.exit(1)
