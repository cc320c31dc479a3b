"""`ratelimit-worker alerts`: lists open and past alerts, acknowledges one, and silences a kind for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import columns, say
from ratelimit_worker.contracts.alert import Alert, Kind, Silence
from ratelimit_worker.number_options import Whole
from ratelimit_worker.person import this_person

if TYPE_CHECKING:
    from ratelimit_worker.cli.sources import Opened
    from ratelimit_worker.stores.alert_states import AlertStates

_KINDS = click.Choice([kind.value for kind in Kind])
_MOST = 1_000


def _form(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--format json`, and `--json` for short."""
    short = click.option("--json", "form", flag_value="json", help="The same as --format json.")(command)
    return click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)(
        short
    )


@click.group(invoke_without_command=True)
@of_app
@_form
@click.pass_context
def alerts(ctx: click.Context, form: str) -> None:
    """What is wrong now: the open alerts. `list --all` has the past ones too."""
    if ctx.invoked_subcommand is None:
        _show(form, everything=False, since_s=None, kinds=(), lane=None, limit=_MOST)


@alerts.command("list")
@of_app
@_form
@click.option("--all", "everything", is_flag=True, help="Past ones too.")
@click.option("--since", type=DURATION, default="7d", show_default=True, help="Of past ones: open at some time since.")
@click.option("--kind", "kinds", type=_KINDS, multiple=True, help="Only of this kind; repeat for several.")
@click.option("--lane", type=LANE, metavar="L", help="Only of this lane.")
@click.option("--limit", type=Whole(1, _MOST), default=100, show_default=True, help="At most so many.")
def list_(form: str, everything: bool, since: float, kinds: tuple[str, ...], lane: str | None, limit: int) -> None:
    """Print alerts, newest first: each with its id, what it is about, since when and why."""
    found = tuple(Kind(kind) for kind in kinds)
    _show(form, everything=everything, since_s=time.time() - since, kinds=found, lane=lane, limit=limit)


@alerts.command()
@of_app
@click.argument("name", metavar="ID")
def ack(name: str) -> None:
    """Note that you look after an open alert. ID may be cut short."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import BadInput
    from ratelimit_worker.reports.alerts import topic

    with open_sources() as opened:
        opened.reach()
        try:
            alert = _states(opened).acknowledge(name, this_person())
        except BadInput as error:
            raise click.UsageError(str(error)) from error
    say(f"{alert.id} ({alert.kind.value}, {topic(alert)}) is in hand: {alert.acked_by}")


@alerts.command()
@of_app
@click.argument("kind", type=_KINDS, metavar="KIND")
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="Such as 2h; then they are told again.")
@click.option("--end", is_flag=True, help="Tell them again from now on.")
@click.option("--lane", type=LANE, default="", metavar="L", help="Only of this lane. Default: of all.")
@click.option("--reason", default="", metavar="TEXT", help="For others that look.")
def silence(kind: str, for_s: float | None, end: bool, lane: str, reason: str) -> None:
    """Tell nobody of alerts of a KIND for a while. They open and close as ever."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import BadInput
    from ratelimit_worker.reports.words import moment

    if end == (for_s is not None):
        raise click.UsageError("say how long: --for TIME, or --end")
    with open_sources() as opened:
        opened.reach()
        states = _states(opened)
        until_s = 0.0 if for_s is None else states.read().now_s + for_s
        try:
            states.silence(Silence(kind=Kind(kind), lane=lane, until_s=until_s, who=this_person(), reason=reason))
        except BadInput as error:
            raise click.UsageError(str(error)) from error
    which = f"{kind}{f' of {lane}' if lane else ''}"
    say(f"{which}: told again" if end else f"{which}: nobody is told until {moment(until_s)}")


def _states(opened: Opened) -> AlertStates:
    from ratelimit_worker.stores.alert_states import AlertStates

    return AlertStates(opened.services.redis)


def _show(
    form: str, *, everything: bool, since_s: float | None, kinds: tuple[Kind, ...], lane: str | None, limit: int
) -> None:
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
    from ratelimit_worker.reports.alerts import alerts_table, as_json, silences_lines, whole
    from ratelimit_worker.reports.words import as_json as written

    now_s, silences, open_now, missing = time.time(), list[Silence](), list[Alert](), list[str]()
    past = list[Alert]()
    with open_sources() as opened:
        try:
            opened.reach()
            states = _states(opened)
            book = states.read()
            now_s, open_now, silences = book.now_s, book.open, states.silences()
            if book.looked_s is None:
                missing.append("no worker has looked yet whether something is wrong")
        except (StoreUnavailable, ConfigurationError) as error:
            if not everything:
                raise
            missing.append(f"what is open now is unknown: {error}")
        if everything:
            past = opened.services.tracker.alerts(since_s=since_s, kinds=kinds, lane=lane, limit=limit)
    chosen = [one for one in open_now if (not kinds or one.kind in kinds) and lane in (None, one.lane)]
    found = whole(chosen, past)[:limit]
    if form == "json":
        say(written(as_json(found, silences)))
    else:
        say("\n".join([alerts_table(found, now_s, columns()), *silences_lines(silences)]))
    for says in missing:
        say(f"Note: {says}", err=True)
