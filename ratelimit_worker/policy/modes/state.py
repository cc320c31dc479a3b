"""What does the law look at, what does it remember of a lane, and what comes of it? Values alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.policy import fault
from ratelimit_worker.policy.modes.counts import Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When the law moves a lane, as a person has set it."""

    reduced_rate: float = 15.0  #: % of the answers since the last change, or of the last 30 s
    reduced_count: int = 5  #: sick answers in 15 minutes
    emergency_rate: float = 30.0
    emergency_count: int = 10
    literal: bool = False  #: the written rule at any volume
    refusals_count: bool = False  #: 429s are sick too
    escalates: bool = True  #: False: nothing moves by itself, and no provider counts as away


class ModeState(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"probes": "width"}):
    """What the law remembers of one lane's health. Bounded: windows of an hour in minutes and of a minute in spans.

    What is renamed is kept under its old name, which earlier versions read.
    """

    mode: Mode = Mode.NORMAL
    since: float = 0.0  #: last change, seconds; requests sent before it prove nothing
    first_at: float | None = None  #: the first answer ever
    window: Counts = ()  #: minutes since the last step down: what the written counts look at
    fresh: Counts = ()  #: minutes since the last change: what the written rates look at
    minute: Counts = ()  #: spans of the last minute: how much is going on
    evidence: Counts = ()  #: spans since the last change: the sick share of the last 30 s
    calls: Counts = ()  #: spans of 120 s, whatever the mode: good answers, and calls whose first attempt was sick
    tasks: fault.Parties = ()
    processes: fault.Parties = ()
    row: fault.Row = fault.NO_ROW  #: sick answers in a row that are believed
    sick_row: int = 0  #: what `row` is worth
    sick_at: float = 0.0  #: when the last of these came, seconds
    good_row: int = 0  #: good answers in a row to probes
    barred_row: int = 0  #: answers in a row that did not accept the key
    barred: bool = False  #: in HALT: because of the key; else the quota is used up
    away_since: float | None = None  #: of the outage, seconds; None: the provider is there
    outages: tuple[float, ...] = ()  #: when the late ones began, seconds; at most six
    probes: int = 0  #: so many at once; 0: no bound
    share: float = 1.0  #: of the pace, in REDUCED
    trial: tuple[float, float, int, int] | None = None  #: (begun at, sick share before, answers, sick ones) in REDUCED
    rate: float = 0.0  #: calls/s that a lane without pace sent at last, in NORMAL
    rate_at: float = 0.0
    rate_sent: float = 0.0


class Answer(Struct, frozen=True, kw_only=True):
    """What the law looks at in one answer. Neither sick nor good nor one of the last two: it changes nothing."""

    at: float  #: when it came, seconds
    sent_at: float  #: when its request left
    sick: bool = False
    good: bool = False
    quota: bool = False  #: nothing is left until somebody pays, or a day has passed
    barred: bool = False  #: the key was not accepted
    older: int = 0  #: calls still out that were sent before it
    witness: Witness | None = None  #: who asked; None: not told


class Move(Struct, frozen=True, kw_only=True):
    """One step on the ladder, and why."""

    from_mode: Mode
    to_mode: Mode
    at: float
    cause: str
    numbers: Mapping[str, float] = {}
    who: str = "law"
