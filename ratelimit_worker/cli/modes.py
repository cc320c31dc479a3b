"""`ratelimit-worker emergency|reduced|normal|halt`, `auto` and `mode history`: pinning modes, and their history."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ratelimit_worker.cli.duration import MOST_S
from ratelimit_worker.cli.lane_name import LANE
from ratelimit_worker.cli.named import of_app
from ratelimit_worker.cli.terminal import asks, columns, say
from ratelimit_worker.number_options import Whole
from ratelimit_worker.person import this_person
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.plural import many

if TYPE_CHECKING:
    from ratelimit_worker.calls import ModeChange

_MOST_CHANGES = 10_000  #: most mode changes in one command
_LATER = "; idle lanes, which are very many, follow within seconds"
_NOT_KNOWN = "is no lane that is known (yet); is its name misspelt?"
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")


def _seconds(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | None:
    """90s, 15m, 2h, 1d or 1h30m, as seconds; a bare number is seconds."""
    if text is None:
        return None
    parts = list(_DURATION.finditer(text))
    seconds = sum(float(part[1]) * _UNITS_S[part[2] or "s"] for part in parts)
    if "".join(part[0] for part in parts) != text or not 0 < seconds <= MOST_S:
        raise click.BadParameter(f"{text!r}: write 90s, 15m, 2h or 1d")
    return seconds


def _pinning(mode: str, does: str) -> click.Command:
    told = f"Pin the mode {mode.upper()}: {does} It overrides the law until `auto`, or for the time of --for."

    @click.command(name=mode, help=told)
    @of_app
    @click.option("--lane", type=LANE, metavar="L", help="Only this lane. Default: all, also future ones.")
    @click.option(
        "--for", "for_s", callback=_seconds, metavar="TIME", help="Such as 90s, 15m, 2h. Default: until `auto`."
    )
    @click.option("--reason", default="", metavar="TEXT", help="For the history.")
    @click.option("-v", "--verbose", is_flag=True, help="Print a line for each lane that changes, also without --lane.")
    def command(lane: str | None, for_s: float | None, reason: str, verbose: bool) -> None:
        from ratelimit_worker.calls import Mode
        from ratelimit_worker.cli.sources import open_sources
        from ratelimit_worker.flow.lane.pin import left_to_tuner, pin
        from ratelimit_worker.stores.reach import redis_errors

        with open_sources() as opened, redis_errors():
            opened.reach()
            control = opened.services.control
            later = lane is None and left_to_tuner(control)
            known = lane is None or control.lanes.state(lane).there
            changes = pin(control, Mode(mode.upper()), lane=lane, for_s=for_s, reason=reason, who=this_person())
        _show(changes, lane is not None or verbose)
        say(f"{_lanes(lane)} pinned to {mode.upper()}{_until(changes)}{_LATER if later else ''}.", err=True)
        if not known:
            say(f"Note: {lane} {_NOT_KNOWN} The mode holds from its first call on.", err=True)

    return command


emergency = _pinning("emergency", "at most MAISD_EMERGENCY_CALLS_PER_MINUTE calls a minute and lane (10).")
reduced = _pinning("reduced", "half the pace.")
normal = _pinning("normal", "the law's pace, without escalation.")
halt = asks("Stop sending, and let calls wait?")(_pinning("halt", "nothing is sent; calls wait."))


@click.command()
@of_app
@click.option("--lane", type=LANE, metavar="L", help="Only this lane. Default: all.")
@click.option("--reason", default="", metavar="TEXT", help="For the history.")
@click.option("-v", "--verbose", is_flag=True, help="Print a line for each lane that changes, also without --lane.")
def auto(lane: str | None, reason: str, verbose: bool) -> None:
    """End pins, so that the law sets the modes of lanes again."""
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.flow.lane.pin import auto as give_back
    from ratelimit_worker.flow.lane.pin import left_to_tuner
    from ratelimit_worker.stores.reach import redis_errors

    with open_sources() as opened, redis_errors():
        opened.reach()
        control = opened.services.control
        later = lane is None and left_to_tuner(control)
        known = lane is None or control.lanes.state(lane).there
        changes = give_back(control, lane=lane, reason=reason, who=this_person())
    _show(changes, lane is not None or verbose)
    say(f"{_lanes(lane)} given back to the law{_LATER if later else ''}.", err=True)
    if not known:
        say(f"Note: {lane} {_NOT_KNOWN}", err=True)


resume = auto


@click.group()
def mode() -> None:
    """Changes of modes in the past."""


@mode.command()
@of_app
@click.option("--lane", type=LANE, metavar="L", help="Only this lane. Default: all.")
@click.option("--limit", type=Whole(1, _MOST_CHANGES), default=20, show_default=True, help="At most so many changes.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def history(lane: str | None, limit: int, form: str) -> None:
    """Print the newest mode changes, newest first, with the person or cause behind each.

    They come from the tracking database; a note on stderr says how many are still on their way to it, in Redis.
    """
    from ratelimit_worker.cli.sources import open_sources
    from ratelimit_worker.errors import ConfigurationError, StoreUnavailable

    with open_sources() as opened:
        changes = opened.services.tracker.mode_changes(lane=lane, limit=limit)
        say(_FORMS[form](changes))
        try:
            opened.reach()
            if waiting := opened.services.outbox.backlog():
                these_are = many(waiting, "outcome or change is", "outcomes and changes are")
                say(f"Note: {these_are} on the way to the database", err=True)
        except (StoreUnavailable, ConfigurationError) as error:
            say(f"Note: what is not in the database yet is unknown: {error}", err=True)


def _show(changes: Sequence[ModeChange], each: bool) -> None:
    """Print the changes: a line for each, or one with their number."""
    for change in changes if each else ():
        lane = "all lanes" if change.lane == "*" else change.lane
        say(one_line(f"{lane}: {change.from_mode.value} -> {change.to_mode.value}"))
    if not each:
        kinds = Counter(f"{change.from_mode.value} -> {change.to_mode.value}" for change in changes)
        lanes = sum(change.lane != "*" for change in changes)
        told = ", ".join(f"{lanes:,} {kind}" for kind, lanes in sorted(kinds.items()))
        say(f"all lanes: {lanes:,} changed{f' ({told})' if lanes else ''}")


def _lanes(lane: str | None) -> str:
    return "All lanes are" if lane is None else f"Lane {lane} is"


def _until(changes: Sequence[ModeChange]) -> str:
    ends = [change.until for change in changes if change.until is not None]
    return f" until {_time(ends[0])}" if ends else ", until `auto`"


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _table(changes: Sequence[ModeChange]) -> str:
    from ratelimit_worker.reports.words import table

    if not changes:
        return "no change of a mode is recorded yet"
    head = ("at", "lane", "from", "to", "who", "cause", "reason", "until")
    rows = [
        (
            _time(change.at),
            change.lane,
            change.from_mode.value,
            change.to_mode.value,
            change.who,
            change.cause,
            change.reason,
            "" if change.until is None else _time(change.until),
        )
        for change in changes
    ]
    return table(head, rows, columns(), texts=len(head))


def _json(changes: Sequence[ModeChange]) -> str:
    return json.dumps([{**asdict(change), "numbers": dict(change.numbers)} for change in changes], indent=2)


_FORMS: dict[str, Callable[[Sequence[ModeChange]], str]] = {"table": _table, "json": _json}
