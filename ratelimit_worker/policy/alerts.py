"""What does a notice say? One event as a web hook is told of it: a mode that changes, an alert that opens or closes.

It has nothing from prompts or answers: only figures, names of lanes and functions, and the reason that a person gave.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.alert import Alert, Kind, Severity
from ratelimit_worker.policy.alert_rules import MODES, OF_THE_DAY, is_for_quota, kind_of_mode
from ratelimit_worker.policy.alert_states import RULES
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.policy.trend import Trend

SCHEMA = 1  #: version of the JSON; raised with every change that is not an addition
KEEP_S = 86_400.0  #: a notice that has waited for so many seconds is not sent any more
MODE_CHANGED = "mode_changed"
OF_A_MODE = "mode"  #: kind of a mode change that opens or closes no alert
_WORDS: Mapping[Kind, tuple[str, str]] = {Kind.LATENCY: (Trend.STABLE.value, Trend.DEGRADING.value)}


class Notice(Struct, frozen=True, kw_only=True):
    """One event, as it is sent."""

    id: str  #: the same however often the event is sent
    event: str
    kind: str = OF_A_MODE  #: of the alert that it is about
    severity: str = Severity.WARNING.value
    lane: str  #: "*": all lanes, where none was known; "": the deployment as a whole
    about: str = ""  #: which function, quota or budget
    alert: str = ""  #: id of the alert that has opened or closed
    before: str
    after: str
    at: float  #: seconds since the epoch
    cause: str  #: one sentence
    numbers: Mapping[str, float] = field(default_factory=dict)  #: the figures behind the cause
    who: str = "law"
    reason: str = ""
    until: float | None = None  #: when a pin ends by itself

    @property
    def text(self) -> str:
        """One sentence, for chat rooms."""
        lane = "all lanes" if self.lane == ALL else self.lane or "deployment"
        if self.event == MODE_CHANGED:
            return f"{lane}: {self.before} -> {self.after} by {self.who}: {self.reason or self.cause}"
        return f"{lane}: {self.event.replace('_', ' ')}: {self.cause}"

    def as_json(self) -> dict[str, Any]:
        """What is posted, as plain values for JSON."""
        return {
            "schema": SCHEMA,
            "event": self.event,
            "id": self.id,
            "kind": self.kind,
            "severity": self.severity,
            "lane": self.lane,
            "about": self.about,
            "alert": self.alert,
            "from": self.before,
            "to": self.after,
            "at": self.at,
            "cause": self.cause,
            "numbers": dict(self.numbers),
            "who": self.who,
            "reason": self.reason,
            "until": self.until,
            "text": self.text,
        }


class Waiting(Struct, frozen=True):
    """A notice on its way."""

    entry: str  #: its id in the stream
    id: str  #: of the event
    body: bytes  #: JSON, as it is posted
    since_s: float  #: seconds since the epoch, Redis clock


def of_change(change: ModeChange) -> Notice | None:
    """The notice of a mode change; None: the mode stays the same, as when a person pins the present one."""
    if change.from_mode is change.to_mode:
        return None
    kind = kind_of_mode(change.to_mode, is_for_quota(change)) or kind_of_mode(change.from_mode, False)
    stricter = kind is not None and change.to_mode in {Mode.EMERGENCY, Mode.HALT}
    return Notice(
        id=change.id,
        event=MODE_CHANGED,
        kind=kind.value if kind is not None else OF_A_MODE,
        severity=(RULES[kind].severity if kind is not None and stricter else Severity.WARNING).value,
        lane=change.lane,
        before=change.from_mode.value,
        after=change.to_mode.value,
        at=change.at,
        cause=change.cause,
        numbers=change.numbers,
        who=change.who,
        reason=change.reason,
        until=change.until,
    )


def of_alert(alert: Alert) -> Notice | None:
    """The notice of an alert that has just opened or closed; None: it has none, or the mode change has its own."""
    if alert.kind in MODES and alert.about != OF_THE_DAY:
        return None
    rule, closed = RULES[alert.kind], alert.closed_s is not None
    event = rule.closes if closed else rule.opens
    if not event:
        return None
    good, bad = _WORDS.get(alert.kind, ("ok", "wrong"))
    return Notice(
        id=f"{alert.id}:{'closed' if closed else 'opened'}",
        event=event,
        kind=alert.kind.value,
        severity=rule.severity.value,
        lane=alert.lane,
        about=alert.about,
        alert=alert.id,
        before=bad if closed else good,
        after=good if closed else bad,
        at=(alert.closed_s if closed else alert.opened_s) or 0.0,
        cause=(alert.ended or f"no longer: {alert.cause}") if closed else alert.cause,
        numbers={} if closed else alert.numbers,
        who="rules",
    )
