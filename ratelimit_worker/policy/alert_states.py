"""When does an alert open, and when does it close? Neither at once: a symptom has to last for a while, and so has its
absence, so that a symptom that comes and goes is one alert.

Pure: the state of an alert, what a rule sees, and the time in, the new state out.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from enum import StrEnum

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.contracts.alert import Alert, Kind, Severity, id_of, key_of

#: If two looks are further apart than this, seconds, the time between them is not known: the waiting begins anew.
GAP_S = 300.0
MOST = 1_000  #: most alerts that are open or about to be; further symptoms are ignored


class Sight(StrEnum):
    """What a rule sees."""

    BAD = "bad"  #: beyond the bound at which an alert opens
    BETWEEN = "between"  #: it would not open an alert, and keeps one open
    GOOD = "good"  #: all is well


class Symptom(Struct, frozen=True, kw_only=True):
    """What a rule sees of one topic (kind, lane, about). Of a topic without a symptom, all is well."""

    kind: Kind
    lane: str = ""
    about: str = ""
    sight: Sight = Sight.BAD
    cause: str  #: one sentence
    numbers: Mapping[str, float] = field(default_factory=dict)
    after_s: float | None = None  #: seconds after which it opens or closes an alert; None: as in the `Rule` of its kind
    ends_s: float | None = None  #: when the alert closes in any case, seconds since the epoch

    @property
    def key(self) -> str:
        """The key of its alert."""
        return key_of(self.kind, self.lane, self.about)


class Rule(Struct, frozen=True, kw_only=True):
    """How alerts of a kind behave."""

    severity: Severity
    opens: str  #: event of the notice when one opens; "": no notice, since a mode change has its own
    closes: str = ""  #: event of the notice when it closes; "": no notice
    open_after_s: float  #: how long a symptom has to last before an alert opens
    close_after_s: float  #: how long it has to be absent before the alert closes


RULES: Mapping[Kind, Rule] = {
    Kind.LATENCY: Rule(
        severity=Severity.WARNING,
        opens="latency_degrading",
        closes="latency_recovered",
        open_after_s=60.0,  # two looks: a trend that is false once is rarely false twice
        close_after_s=300.0,
    ),
    Kind.ERRORS: Rule(
        severity=Severity.WARNING,
        opens="errors_high",
        closes="errors_normal",
        open_after_s=120.0,
        close_after_s=300.0,
    ),
    # The law that sets modes has a hysteresis of its own, and each change has its notice, `mode_changed`.
    Kind.EMERGENCY: Rule(severity=Severity.CRITICAL, opens="", open_after_s=30.0, close_after_s=0.0),
    Kind.HALT: Rule(severity=Severity.CRITICAL, opens="", open_after_s=30.0, close_after_s=0.0),
    Kind.QUOTA: Rule(
        severity=Severity.CRITICAL,
        opens="quota_used_up",
        closes="quota_back",
        open_after_s=0.0,
        close_after_s=30.0,
    ),
    Kind.BUDGET: Rule(severity=Severity.WARNING, opens="budget_spent", open_after_s=0.0, close_after_s=0.0),
    Kind.OUTBOX: Rule(
        severity=Severity.WARNING,
        opens="outbox_behind",
        closes="outbox_caught_up",
        open_after_s=120.0,
        close_after_s=60.0,
    ),
    Kind.NO_WORKER: Rule(
        severity=Severity.CRITICAL,
        opens="no_worker",
        closes="worker_back",
        open_after_s=60.0,
        close_after_s=30.0,
    ),
    Kind.POISON: Rule(
        severity=Severity.WARNING,
        opens="always_fails",
        closes="fails_no_more",
        open_after_s=0.0,
        close_after_s=300.0,
    ),
    Kind.SET_ASIDE: Rule(severity=Severity.WARNING, opens="set_aside", open_after_s=0.0, close_after_s=900.0),
}


class Change(Struct, frozen=True):
    """What a look changes: an alert as it is now, and whether it has just opened or closed."""

    alert: Alert
    opened: bool = False
    closed: bool = False
    gone: bool = False  #: it had not opened, and nothing is wrong any more
    told_of: bool = False  #: a person has acknowledged it


def looked(
    known: Mapping[str, Alert], symptoms: Iterable[Symptom], kinds: Container[Kind], now_s: float
) -> list[Change]:
    """What a look of some rules changes.

    Args:
        known: Alerts that are open or about to be, by key.
        symptoms: What the rules see; at most one for each topic.
        kinds: Kinds that these rules look at; alerts of other kinds stay as they are.
        now_s: Seconds since the epoch.
    """
    seen = {one.key: one for one in symptoms}
    changes = []
    for key, alert in known.items():
        if alert.kind in kinds or key in seen:
            changes.append(_next(alert, seen.pop(key, None), now_s))
    room = MOST - len(known)
    new = [one for one in seen.values() if one.sight is Sight.BAD][: max(0, room)]
    return changes + [_begun(one, now_s) for one in new]


def over(known: Mapping[str, Alert], now_s: float) -> list[Change]:
    """Close alerts that end at a time (such as the end of a budget's day) which has come."""
    ended = [alert for alert in known.values() if alert.ends_s is not None and now_s >= alert.ends_s]
    return [Change(replace(one, closed_s=now_s, ended="its time is over"), closed=True) for one in ended]


def _begun(symptom: Symptom, now_s: float) -> Change:
    alert = Alert(
        kind=symptom.kind,
        lane=symptom.lane,
        about=symptom.about,
        since_s=now_s,
        seen_s=now_s,
        cause=symptom.cause,
        numbers=symptom.numbers,
        ends_s=symptom.ends_s,
    )
    return _opened(alert, symptom, now_s) if _wait_s(symptom) <= 0 else Change(alert)


def _wait_s(symptom: Symptom) -> float:
    return RULES[symptom.kind].open_after_s if symptom.after_s is None else symptom.after_s


def _opened(alert: Alert, symptom: Symptom, now_s: float) -> Change:
    found = replace(
        alert,
        id=id_of(alert.key, now_s),
        opened_s=now_s,
        seen_s=now_s,
        cause=symptom.cause,
        numbers=symptom.numbers,
        ends_s=symptom.ends_s,
    )
    return Change(found, opened=True)


def _next(alert: Alert, symptom: Symptom | None, now_s: float) -> Change:
    blind = now_s - alert.seen_s > GAP_S
    sight = Sight.GOOD if symptom is None else symptom.sight
    if alert.opened_s is None:
        if symptom is None or sight is not Sight.BAD:
            return Change(alert, gone=True)
        since_s = now_s if blind else alert.since_s
        if now_s - since_s >= _wait_s(symptom):
            return _opened(replace(alert, since_s=since_s), symptom, now_s)
        return Change(replace(alert, since_s=since_s, seen_s=now_s))
    if sight is not Sight.GOOD:
        return Change(replace(alert, seen_s=now_s, clear_since_s=None))
    clear_since_s = now_s if blind or alert.clear_since_s is None else alert.clear_since_s
    cleared = replace(alert, seen_s=now_s, clear_since_s=clear_since_s)
    known = None if symptom is None else symptom.after_s
    if now_s - clear_since_s < (RULES[alert.kind].close_after_s if known is None else known):
        return Change(cleared)
    return Change(replace(cleared, closed_s=now_s, ended="" if symptom is None else symptom.cause), closed=True)
