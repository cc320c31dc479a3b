"""How are alerts shown? In one line, as a table, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ratelimit_worker.contracts.alert import Alert, Silence
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.policy.alert_states import RULES
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.reports.words import moment, seconds, table

SCHEMA = 1  #: version of the JSON; grows with every change that is no addition
_NAMED = 5  #: most alerts that are named in one line


def whole(open_now: Iterable[Alert], on_record: Iterable[Alert]) -> list[Alert]:
    """The open alerts (from Redis) and the past ones (from the database) together, newest first.

    An alert that is open in the database and missing in Redis has just closed, or Redis has lost it: it is shown as in
    the database.
    """
    found = {one.id: one for one in on_record}
    found.update({one.id: one for one in open_now})
    return sorted(found.values(), key=lambda one: (-(one.opened_s or 0.0), one.key))


def topic(alert: Alert) -> str:
    """What an alert is about, in words: a lane, a function, or the deployment as a whole."""
    lane = "all lanes" if alert.lane == ALL else alert.lane
    return ", ".join(part for part in (lane, alert.about) if part) or "deployment"


def line(alerts: Sequence[Alert], at_s: float) -> str:
    """These open alerts in one line; "" if there are none."""
    if not alerts:
        return ""
    told = [f"{one.kind.value} {topic(one)} ({_age(one, at_s)}{', in hand' if one.acked_by else ''})" for one in alerts]
    more = [f"{len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return one_line(f"alerts: {'; '.join([*told[:_NAMED], *more])}")


def _age(alert: Alert, at_s: float) -> str:
    return f"for {seconds(max(0.0, at_s - (alert.opened_s or at_s)))}"


def alerts_table(alerts: Sequence[Alert], at_s: float, width: int | None = None) -> str:
    """A table with a row for each alert; `width`: columns of the terminal, None for files and pipes."""
    if not alerts:
        return "no alert"
    heads = ("id", "kind", "severity", "about", "opened", "state", "cause")
    rows = [
        (
            one.id,
            one.kind.value,
            RULES[one.kind].severity.value,
            topic(one),
            moment(one.opened_s or 0.0),
            state(one, at_s),
            one.cause if one.open or not one.ended else f"{one.cause}; ended: {one.ended}",
        )
        for one in alerts
    ]
    return table(heads, rows, width, texts=len(heads))


def state(alert: Alert, at_s: float) -> str:
    """Whether it is open, since when, and who looks after it."""
    if alert.closed_s is not None:
        return f"closed after {seconds(alert.closed_s - (alert.opened_s or alert.closed_s))}"
    return f"open {_age(alert, at_s)}{f', in hand: {alert.acked_by}' if alert.acked_by else ''}"


def silences_lines(silences: Sequence[Silence]) -> list[str]:
    """A line for each silence."""
    return [
        f"silenced until {moment(one.until_s)}: {one.kind.value}{f' of {one.lane}' if one.lane else ''}"
        f"{f', by {one.who}' if one.who else ''}{f': {one.reason}' if one.reason else ''}"
        for one in silences
    ]


def as_json(alerts: Sequence[Alert], silences: Sequence[Silence]) -> dict[str, Any]:
    """For programs; times are seconds since the epoch."""
    return {
        "schema": SCHEMA,
        "alerts": [
            {
                "id": one.id,
                "kind": one.kind.value,
                "severity": RULES[one.kind].severity.value,
                "lane": one.lane,
                "about": one.about,
                "open": one.open,
                "since": one.since_s,
                "opened": one.opened_s,
                "closed": one.closed_s,
                "cause": one.cause,
                "numbers": dict(one.numbers),
                "ended": one.ended,
                "acked_by": one.acked_by,
                "acked": one.acked_s,
            }
            for one in alerts
        ],
        "silences": [
            {"kind": one.kind.value, "lane": one.lane, "until": one.until_s, "who": one.who, "reason": one.reason}
            for one in silences
        ],
    }
