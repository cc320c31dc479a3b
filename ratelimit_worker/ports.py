"""What does the flow need from the outside world? One Protocol each; `wiring.py` says who fulfils it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from ratelimit_worker.calls import Attempt, Failure, Mode, ModeChange
from ratelimit_worker.contracts.lane import Fields, LaneState, Write
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.contracts.rollup import NamedSums
from ratelimit_worker.policy.estimate import Learned
from ratelimit_worker.policy.fault import UNKNOWN, Failing, Lately
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.policy.retry import NO_RECORD, Record
from ratelimit_worker.policy.timeout import Latencies


class Outbox(Protocol):
    """Outcomes and mode changes on their way to the tracking database: kept until they are committed."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Attempt | ModeChange]]:
        """The next entries as (id, what is to be recorded); empty when none came within `block_ms`.

        They are this reader's for a while, then anybody's: what is read must be committed, set aside or given back.
        """
        ...

    def holding(self, entry_ids: Sequence[str]) -> AbstractContextManager[None]:
        """While these are being recorded they stay this reader's, however long it takes."""
        ...

    def commit(self, entry_ids: Sequence[str]) -> None:
        """These are safe in the database; forget them."""
        ...

    def give_back(self, entry_ids: Sequence[str]) -> None:
        """These could not be recorded now; the next reader gets them at once."""
        ...

    def fold(self, most: int) -> int:
        """Where it is nearly full: keep but the sums of its oldest outcomes → how many; 0: there is room."""
        ...

    def sums(self) -> NamedSums | None:
        """The sums of outcomes that were folded; the same until they are forgotten. None: there are none."""
        ...

    def forget_sums(self, sums: NamedSums) -> None:
        """These are safe in the database."""
        ...

    def set_aside(self, entry_id: str, why: str) -> None:
        """This one can never be recorded; keep it where a person finds it, out of the way of the others."""
        ...


class Tracker(Protocol):
    """The tracking database, as the recorder sees it."""

    def record(self, rows: Sequence[Attempt | ModeChange]) -> int:
        """Keep the rows, all or none, in one transaction; returns those that were new.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was kept.
            ConfigurationError: The database is not one this version can write to; nothing was kept.
            RowRefused: At least one of the rows can never be kept; nothing was kept.
        """
        ...

    def add_sums(self, sums: NamedSums) -> bool:
        """Add sums of outcomes that have no rows to the roll-ups, once for each name → whether they were new.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was added.
        """
        ...

    def roll_up(self, most: int = 2_000) -> int:
        """Add attempts to the roll-ups that an older version has written → how many were; 0: none is left.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only.
        """
        ...


class UsageMemory(Protocol):
    """What the answers of each task and model have used."""

    def read(self, names: Iterable[str]) -> Mapping[str, Learned]:
        """What is known, by name (`estimate.key`)."""
        ...

    def write(self, learned: Mapping[str, Learned]) -> None:
        """Keep what was learned.

        Raises:
            StoreUnavailable: Redis is away, full or read-only; nothing was kept.
        """
        ...


class PriceListAway(Exception):
    """The published price list could not be read; `str()` says why, in one line."""


class PriceMemory(Protocol):
    """Price cards of the published list, for all processes."""

    def read(self, names: Iterable[str]) -> Mapping[str, PriceCard]:
        """What is known, by name (`price.name_of`)."""
        ...

    def write(self, learned: Mapping[str, PriceCard]) -> None:
        """Keep cards.

        Raises:
            StoreUnavailable: Redis is away, full or read-only; nothing was kept.
        """
        ...


class Pricer(Protocol):
    """Says what attempts cost, before they are recorded."""

    def priced(self, attempts: Sequence[Attempt]) -> Sequence[Attempt]:
        """The attempts, with what they cost where a price is known.

        Raises:
            StoreUnavailable: Redis is away.
        """
        ...


class LatencyMemory(Protocol):
    """How long the answers of each task and model took."""

    def read(self, names: Iterable[str]) -> Mapping[str, Latencies]:
        """What is known, by name (`timeout.key`)."""
        ...

    def write(self, learned: Mapping[str, Latencies]) -> None:
        """Keep what was learned.

        Raises:
            StoreUnavailable: Redis is away, full or read-only; nothing was kept.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """What the lane says to a worker that is about to run a released call."""

    #: go: run it · settled: it was answered before · closed: it went back to its place ·
    #: expired · poison: its workers died too often · alone: ask again when nothing else runs here ·
    #: stale: another delivery runs it · gone: its record is lost
    state: str
    body: bytes = b""  #: the payload: args, kwargs, canvas
    answer: bytes = b""
    tries: int = 0  #: attempts so far that cost a try; lost deliveries where the state is poison
    #: of this attempt, from 1, snoozed ones counted; of the last one where the state is poison or expired
    number: int = 0
    deadline_s: float = 0.0  #: seconds since the epoch, Redis clock
    waiting_since_s: float = 0.0
    now_s: float = 0.0  #: Redis clock, when it is sent: after `pause_s`
    failed: Failure | None = None  #: what sent it back to its lane last; told where the state is expired
    ticket: bytes = b""  #: the call's place in the order of sending, to be handed back with the observation
    failing: Failing | None = None  #: its sick answers in a row so far; None: its last attempt was none
    lost: int = 0  #: attempts at it that ended with their worker: no row tells of them
    pause_s: float = 0.0  #: to wait before it is sent, so that starts keep the pace too; some ms at most


@dataclass(frozen=True, slots=True)
class Health:
    """What an attempt that failed asks of its lane."""

    lately: Lately = UNKNOWN  #: how the lane's calls fared
    mode: Mode = Mode.NORMAL
    escalates: bool = True  #: whether the law may change the mode
    seq: int = 0  #: calls sent in all
    out: int = 0  #: calls that are released and not settled
    record: Record = NO_RECORD  #: how the call's function fared of late, and the others of its lane


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSeen:
    """A lane as a look over all of them meets it."""

    lane: str
    used_s: float  #: last use, to the hour; seconds since the epoch
    working: bool  #: calls of it wait, or are out
    state: LaneState  #: as far as was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneView:
    """A lane as the tuner sees it, and what was seen since the last look."""

    lane: str
    state: LaneState
    seen: Sequence[bytes]
    goods: int = 0  #: good answers beside those of `seen`, which told nothing else
    out: int | None = None  #: calls that are released and not settled; None: not asked
    took_s: float = 0.0  #: all of `goods` together, from permit to answer


class Taken(NamedTuple):
    """What a look of the tuner found."""

    now_s: float  #: Redis clock, since the epoch
    lanes: list[LaneView]
    more: bool = False  #: something was seen of others, too


class BarKind(StrEnum):
    """What may hold a call back (stores/lua/bar.lua)."""

    DUE = "due"  #: its time has not come: backoff, countdown
    CLAIM = "claim"  #: it gets the answer of another call, `detail`
    TURN = "turn"  #: `number` calls go before it; of a parent: another lane does
    RETRIES = "retries"  #: it was tried, others wait, and the lane's retry budget is spent
    SUSPECT = "suspect"  #: its worker died, and another such call runs
    NEWER = "newer"  #: a newer version's worker has to release it
    GATE = "gate"  #: `detail`: refused (the provider said when), mode, or shut
    PACE = "pace"  #: the budget of a dimension, `detail`, is spent
    QUOTA = "quota"  #: of the lane's day, `number`; `detail`: requests or tokens
    BEGINS = "begins"  #: `number` calls are released, and no worker has begun them
    PROBES = "probes"  #: of EMERGENCY or HALT: as many calls are out as may probe
    RAMP = "ramp"  #: the pace is not known yet, and as many are out as may be
    FLIGHT = "flight"  #: as many are out as the provider answers well
    CONCURRENCY = "concurrency"  #: as many are out as a person allows
    LENT = "lent"  #: it has `number` calls out, as many as there are slots, and lends some of these to others
    TASK = "task"  #: no living worker of its queue knows its task, `detail`
    SLOTS = "slots"  #: no free slot on queue `detail`, which has `number` (0: nobody serves it)
    PARENT = "parent"  #: a parent, `detail`, where `number` lanes wait; `parent` says what holds it


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One of the things that hold a call back. All of them must end; the last one counts."""

    kind: BarKind
    until_s: float | None = None  #: it ends then, seconds since the epoch, Redis clock; None: nobody knows when
    event: bool = False  #: something that happens ends it (a call ends, a worker comes), and its lane is woken by that
    detail: str = ""
    number: int = 0
    queue: str = ""  #: of which no worker knows the task `detail`
    parent: Bar | None = None  #: what holds the parent of that name


class AttemptLanes(Protocol):
    """The lanes, as one attempt at a released call sees them."""

    def begin(self, tag: str, lease_s: float, alone: bool = False, process: str = "", taken: bool = False) -> Begun:
        """May this released call run now, in this process? `alone`: nothing else runs there; `taken`: another call has
        it for itself."""
        ...

    def settle(self, settlement: Settlement) -> bool:
        """Make the outcome safe; the first answer wins → whether this was the first."""
        ...

    def back(
        self,
        tag: str,
        lane: str,
        lesson: Lesson,
        *,
        after_s: float,
        tries: int,
        outbox: bytes = b"",
    ) -> bool:
        """Return a released call to its lane. The lesson's failure is kept until the call expires, and a sick one joins
        its row (`Begun.failing`), which all else ends."""
        ...

    def health(self, lane: str, task: str) -> Health:
        """How the lane takes its provider to be, now, and how this function fared in it."""
        ...


class Lanes(AttemptLanes, Protocol):
    """The lanes, as the tuner sees them too."""

    def take(self, owner: str, lease_s: float, most: int = 50, also: Iterable[str] = ()) -> Taken | None:
        """What was seen since the last take, and the lanes of `also`; None when another tunes."""
        ...

    def set_points(self, lane: str, fields: Fields, read: int | None = None) -> int | None:
        """Write set-points; None: the lane has another revision than `read` by now, and nothing was written."""
        ...

    def tell(self, lane: str, fields: Fields, read: int | None = None) -> bool:
        """Write what a person sets, as a new revision; False: the lane has another than `read` by now."""
        ...

    def establish(self, lane: str, fields: Fields) -> bool:
        """Make a lane that is not there yet, with these fields."""
        ...

    def state(self, lane: str) -> LaneState:
        """The lane's hash as it is."""
        ...

    def survey(self, fields: Sequence[str] = (), most: int = 200) -> Iterator[list[LaneSeen]]:
        """All lanes, about so many at a time, with these fields of their hashes (none: all; `contracts.lane`)."""
        ...

    def working(self, most: int = 200) -> Sequence[str]:
        """Lanes of which calls wait or are out."""
        ...

    def set_points_of(self, changes: Mapping[str, Write]) -> Sequence[str]:
        """Write set-points of several lanes, by name, at once → those that have another revision by now, left alone."""
        ...

    def states(self, lanes: Sequence[str], fields: Sequence[str] = ()) -> Mapping[str, LaneState]:
        """Several lanes by name, with these fields of their hashes (none: all; `contracts.lane`)."""
        ...

    def count(self) -> int:
        """How many lanes are known."""
        ...

    def tuned(self) -> bool:
        """Whether a tuner is at work."""
        ...

    def names(self) -> Sequence[str]:
        """Every known lane."""
        ...


class Pins(Protocol):
    """Modes by hand, in force for the whole cluster."""

    def now(self) -> float:
        """Seconds, Redis clock."""
        ...

    def read(self) -> Mapping[str, Pin]:
        """By lane, also those that have ended; `policy.modes.ALL`: of all lanes."""
        ...

    def write(self, pins: Mapping[str, Pin]) -> None:
        """Add them, or put them in the place of what was there."""
        ...

    def drop(self, pins: Mapping[str, Pin]) -> None:
        """Forget these, but not what has taken their place."""
        ...


class ModeLog(Protocol):
    """Where mode changes go, to be recorded once."""

    def append_mode_change(self, change: ModeChange) -> None:
        """Put it into the outbox.

        Raises:
            StoreUnavailable: Redis is away, full or read-only; nothing was stored.
        """
        ...
