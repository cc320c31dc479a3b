"""What is worth an alert, and what does it say? A mode that changes, and a provider that gets slower.

Nothing of a call goes into one: numbers of the law, names of lanes, and what a person wrote as a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.policy.modes import ALL
from ratelimit_worker.policy.trend import Finding, Trend

SCHEMA = 1  #: of the JSON; grows with every change that is no addition
KEEP_S = 86_400.0  #: an alert that waits so long is told no more
MODE_CHANGED, SLOWER = "mode_changed", "latency_degrading"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One event, as it is told."""

    id: str  #: the same however often the event is told
    event: str
    lane: str  #: "*": all lanes, where none was known
    before: str
    after: str
    at: float  #: seconds since the epoch
    cause: str  #: one sentence
    numbers: Mapping[str, float] = field(default_factory=dict)  #: the figures behind the cause
    who: str = "law"
    reason: str = ""
    until: float | None = None  #: when a pin ends by itself

    def as_json(self) -> dict[str, Any]:
        """What is posted."""
        lane = "all lanes" if self.lane == ALL else self.lane
        return {
            "schema": SCHEMA,
            "event": self.event,
            "id": self.id,
            "lane": self.lane,
            "from": self.before,
            "to": self.after,
            "at": self.at,
            "cause": self.cause,
            "numbers": dict(self.numbers),
            "who": self.who,
            "reason": self.reason,
            "until": self.until,
            "text": f"{lane}: {self.before} -> {self.after} by {self.who}: {self.reason or self.cause}",
        }


@dataclass(frozen=True, slots=True)
class Waiting:
    """An alert on its way."""

    entry: str  #: its place in the row
    id: str  #: of the event
    body: bytes  #: JSON, as it is posted
    since_s: float  #: seconds since the epoch, Redis clock


def of_change(change: ModeChange) -> Alert | None:
    """The alert of a mode change; None where the mode stays, as when a person pins what holds anyway."""
    if change.from_mode is change.to_mode:
        return None
    return Alert(
        id=change.id,
        event=MODE_CHANGED,
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


def of_latency(lane: str, found: Finding, at: float) -> Alert | None:
    """The alert of a provider that gets slower; None where it does not.

    Args:
        found: Of the minutes up to `at`.
    """
    if found.trend is not Trend.DEGRADING or found.before is None or found.latest is None:
        return None
    return Alert(
        id=f"{SLOWER}:{at:.0f}:{lane}",
        event=SLOWER,
        lane=lane,
        before=Trend.STABLE.value,
        after=Trend.DEGRADING.value,
        at=at,
        cause=f"answers take {found.latest:.3g} s, and took {found.before:.3g} s before",
        numbers={
            "earlier_s": round(found.before, 6),
            "later_s": round(found.latest, 6),
            "minutes": found.minutes,
            "answers": found.values_latest,
            "answers_before": found.values_before,
        },
    )
