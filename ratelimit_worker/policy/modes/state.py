"""The values of the law: its policy, what it remembers of a lane, the answers it looks at, and its moves."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.policy import fault
from ratelimit_worker.policy.modes.counts import Counts


class Thresholds(Struct, frozen=True, kw_only=True):
    """When the law changes a lane's mode, by the settings."""

    reduced_rate: float = 15.0  #: sick answers in % of those since the last change, or of the last 30 s
    reduced_count: int = 5  #: sick answers in 15 minutes
    emergency_rate: float = 30.0
    emergency_count: int = 10
    literal: bool = False  #: the written rule holds at any volume
    refusals_count: bool = False  #: 429s count as sick too
    escalates: bool = True  #: False: the law changes no mode, and no provider counts as away


class ModeState(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"probes": "width"}):
    """What the law remembers of one lane's health. Its size is bounded: an hour in minutes, and a minute in spans.

    Renamed fields are stored under their old names, for older versions.
    """

    mode: Mode = Mode.NORMAL
    since: float = 0.0  #: last change of mode, seconds; answers to requests sent before it are not counted
    first_at: float | None = None  #: the first answer ever, seconds
    window: Counts = ()  #: minutes since the last step down, for the written rule's counts
    fresh: Counts = ()  #: minutes since the last change, for the written rule's rates
    minute: Counts = ()  #: spans of the last minute, for the volume
    evidence: Counts = ()  #: spans since the last change, for the sick share of the last 30 s
    calls: Counts = ()  #: spans of the last 120 s, in any mode: good answers, and calls whose first attempt was sick
    tasks: fault.Parties = ()
    processes: fault.Parties = ()
    row: fault.Row = fault.NO_ROW  #: sick answers in a row that count against the provider
    sick_row: int = 0  #: how many `row` counts for
    sick_at: float = 0.0  #: when the last of these came, seconds
    good_row: int = 0  #: good answers in a row to probes
    barred_row: int = 0  #: answers in a row that did not accept the key
    barred: bool = False  #: in HALT: True: because of the key; False: the quota is used up
    unpaid: fault.Closed | None = None  #: answers in a row that the quota is used up
    locked: fault.Closed | None = None  #: answers in a row that did not accept the key
    #: Spans of the last 120 s: such answers (as sick ones) that were single calls' own.
    own: Counts = ()
    away_since: float | None = None  #: since when the provider is away, seconds; None: it is not away
    outages: tuple[float, ...] = ()  #: when recent outages began, seconds; at most six
    probes: int = 0  #: how many may be out at once; 0: no bound
    share: float = 1.0  #: share of the pace in REDUCED
    trial: tuple[float, float, int, int] | None = None  #: (begun at, sick share before, answers, sick ones) in REDUCED
    rate: float = 0.0  #: calls/s that a lane without a pace last sent in NORMAL
    rate_at: float = 0.0
    rate_sent: float = 0.0


class Answer(Struct, frozen=True, kw_only=True):
    """What the law looks at in one answer. If none of `good`, `sick`, `quota`, `barred` holds, it changes nothing."""

    at: float  #: when it came, seconds
    sent_at: float  #: when its request left
    seq: int = 0  #: its number in the order of sending
    sick: bool = False
    good: bool = False
    quota: bool = False  #: the quota is used up, until somebody pays or a day has passed
    barred: bool = False  #: the key was not accepted
    older: int = 0  #: calls still out that were sent before it
    witness: Witness | None = None  #: who asked; None: unknown


class Move(Struct, frozen=True, kw_only=True):
    """One step on the ladder, and why."""

    from_mode: Mode
    to_mode: Mode
    at: float
    cause: str
    numbers: Mapping[str, float] = {}
    who: str = "law"
