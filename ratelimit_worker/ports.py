"""What the flow needs from the outside: one Protocol each; `wiring.py` builds the implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Generic, NamedTuple, Protocol, TypeVar

from msgspec import Struct

from ratelimit_worker.calls import Attempt, Failure, Mode, ModeChange
from ratelimit_worker.contracts.call import Placed
from ratelimit_worker.contracts.lane import Fields, LaneState, Write
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.contracts.rollup import NamedSums
from ratelimit_worker.policy.estimate import Learned
from ratelimit_worker.policy.fault import UNKNOWN, Failing, Lately
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.policy.retry import NO_TRACK_RECORD, TrackRecord
from ratelimit_worker.policy.spans import Held
from ratelimit_worker.policy.timeout import Latencies

T = TypeVar("T")


class Outbox(Protocol):
    """Outcomes and mode changes on their way to the tracking database: kept until they are committed."""

    def read(self, max_count: int, block_ms: int) -> list[tuple[str, Attempt | ModeChange]]:
        """The next entries as (id, what is to be recorded); empty when none came within `block_ms`.

        They are this reader's for a while, then anybody's: what is read must be committed, set aside or given back.
        """
        ...

    def holding(self, entry_ids: Sequence[str]) -> AbstractContextManager[None]:
        """Renew the claim on entries that are being recorded, however long that takes."""
        ...

    def commit(self, entry_ids: Sequence[str]) -> None:
        """Remove entries that are safe in the database."""
        ...

    def give_back(self, entry_ids: Sequence[str]) -> None:
        """Give back entries that could not be recorded now; the next reader gets them at once."""
        ...

    def fold(self, most: int) -> int:
        """If it is nearly full, replace its oldest outcomes by their sums. Returns how many; 0: it is not."""
        ...

    def sums(self) -> NamedSums | None:
        """The sums of outcomes that were folded; the same until they are forgotten. None: there are none."""
        ...

    def forget_sums(self, sums: NamedSums) -> None:
        """Remove sums that are safe in the database."""
        ...

    def set_aside(self, entry_id: str, why: str) -> None:
        """Move an entry that can never be recorded to where a person finds it."""
        ...


class Tracker(Protocol):
    """The tracking database, for the recorder."""

    def record(self, rows: Sequence[Attempt | ModeChange]) -> int:
        """Keep the rows, all or none, in one transaction; returns those that were new.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was kept.
            ConfigurationError: The database is not one this version can write to; nothing was kept.
            RowRefused: At least one of the rows can never be kept; nothing was kept.
        """
        ...

    def add_sums(self, sums: NamedSums) -> bool:
        """Add sums of outcomes that have no rows to the roll-ups, once for each name. Returns whether they were new.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only; nothing was added.
        """
        ...

    def roll_up(self, most: int = 2_000) -> int:
        """Add to the roll-ups attempts that an older version has recorded. Returns how many; 0: none is left.

        Raises:
            StoreUnavailable: The database is away, locked, full or read-only.
        """
        ...


class ReuseSums(Protocol):
    """What reused answers have saved, by minute, as far as it is not in the tracking database yet."""

    def over(self) -> Sequence[NamedSums]:
        """Minutes that are over, the oldest first; the same until they are forgotten.

        Raises:
            StoreUnavailable: Redis is away.
        """
        ...

    def forget(self, sums: NamedSums) -> None:
        """Remove sums that are safe in the tracking database.

        Raises:
            StoreUnavailable: Redis is away.
        """
        ...


class UsageMemory(Protocol):
    """The tokens that answers of each task and model have used."""

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
    """Computes what attempts cost, before they are recorded."""

    def priced(self, attempts: Sequence[Attempt]) -> Sequence[Attempt]:
        """The attempts, with their cost if the price is known.

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


class Begun(Struct, frozen=True, kw_only=True):
    """The lane's answer to a worker that is about to run a released call."""

    #: go: run it · settled: it was answered before · closed: it went back to its place ·
    #: expired · poison: its workers died too often · alone: ask again when nothing else runs here ·
    #: superseded: another delivery runs it · gone: its record is lost
    state: str
    body: bytes = b""  #: the payload: args, kwargs, canvas
    answer: bytes = b""
    tries: int = 0  #: attempts so far that cost a try; lost deliveries where the state is poison
    #: of this attempt, from 1, snoozed ones counted; of the last one where the state is poison or expired
    number: int = 0
    deadline_s: float = 0.0  #: seconds since the epoch, Redis clock
    waiting_since_s: float = 0.0
    now_s: float = 0.0  #: Redis clock, when it is sent: after `pause_s`
    failed: Failure | None = None  #: why it last went back to its lane; set only where the state is expired
    ticket: bytes = b""  #: the call's place in the order of sending, to be handed back with the observation
    failing: Failing | None = None  #: its sick answers in a row so far; None: its last attempt was not sick
    lost: int = 0  #: attempts at it whose worker died: they have no rows
    pause_s: float = 0.0  #: to wait before it is sent, so that starts keep the pace too; some ms at most


class Admitted(NamedTuple):
    """The result of adding a call whose caller makes the attempt itself; with the begin, if it may be sent now."""

    placed: Placed
    tag: str = ""  #: tag of its release; "": it waits, or its answer is there
    begun: Begun | None = None  #: the begin of that release


class Came(NamedTuple, Generic[T]):
    """What came of one of several requests: a value, or the error in place of it."""

    value: T | None = None
    error: BaseException | None = None

    def get(self) -> T:
        """The value.

        Raises:
            BaseException: the error.
        """
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # avoids a reference cycle through the traceback
        return self.value  # type: ignore[return-value]  # a T where there is no error


class Health(Struct, frozen=True):
    """What the lane says about its provider, read for an attempt that has failed."""

    lately: Lately = UNKNOWN  #: how the lane's calls have recently done
    mode: Mode = Mode.NORMAL
    escalates: bool = True  #: whether the law may change the mode
    seq: int = 0  #: calls sent in all
    out: int = 0  #: calls that are released and not settled
    track_record: TrackRecord = NO_TRACK_RECORD  #: how often the function, and the others of its lane, failed lately


class LaneSeen(Struct, frozen=True, kw_only=True):
    """A lane, as read when all lanes are looked at."""

    lane: str
    used_s: float  #: last use, to the hour; seconds since the epoch
    working: bool  #: calls of it wait, or are out
    state: LaneState  #: as far as was asked for


class LaneView(Struct, frozen=True, kw_only=True):
    """A lane, as the tuner reads it, with the observations since the last time."""

    lane: str
    state: LaneState
    seen: Sequence[bytes]
    goods: int = 0  #: further good answers, of which only the number is known
    out: int | None = None  #: calls that are released and not settled; None: not asked
    took_s: float = 0.0  #: all of `goods` together, from permit to answer


class Taken(NamedTuple):
    """What the tuner has read at one time."""

    now_s: float  #: Redis clock, since the epoch
    lanes: list[LaneView]
    more: bool = False  #: there are observations of further lanes


class BarKind(StrEnum):
    """The kinds of bars (stores/lua/bar.lua)."""

    DUE = "due"  #: its time has not come: backoff, countdown
    CLAIM = "claim"  #: it gets the answer of another call, `detail`
    TURN = "turn"  #: `number` calls go before it; of a parent: another lane does
    RETRIES = "retries"  #: it was tried, others wait, and the lane's retry budget is spent
    SUSPECT = "suspect"  #: its worker died, and another such call runs
    NEWER = "newer"  #: a newer version's worker has to release it
    GATE = "gate"  #: `detail`: refused (the provider said when), mode, or shut
    PACE = "pace"  #: the budget of a dimension, `detail`, is spent
    QUOTA = "quota"  #: of the lane's day, `number`; `detail`: requests or tokens
    BUDGET = "budget"  #: of money, `detail`, is spent; `number`: 1 of the day, 2 of the month
    BEGINS = "begins"  #: `number` calls are released, and no worker has begun them
    PROBES = "probes"  #: of EMERGENCY or HALT: as many calls are out as may probe
    RAMP = "ramp"  #: the pace is not known yet, and as many are out as may be
    FLIGHT = "flight"  #: as many are out as the provider answers well
    CONCURRENCY = "concurrency"  #: as many are out as a person allows
    LENT = "lent"  #: it has `number` calls out, as many as there are slots, and lends some of these to others
    TASK = "task"  #: no living worker of its queue knows its task, `detail`
    SLOTS = "slots"  #: no free slot on queue `detail`, which has `number` (0: nobody serves it)
    PARENT = "parent"  #: a parent, `detail`, where `number` lanes wait; `parent` says what holds it


class Bar(Struct, frozen=True, kw_only=True):
    """One of the bars that hold a call back. All of them must end; the last one counts."""

    kind: BarKind
    until_s: float | None = None  #: when it ends, seconds since the epoch, Redis clock; None: not known
    event: bool = False  #: an event ends it (a call ends, a worker comes), which also wakes its lane
    detail: str = ""
    number: int = 0
    queue: str = ""  #: the queue on which no worker knows the task `detail`
    parent: Bar | None = None  #: what holds back the parent of that name


class Traced(Protocol):
    """A released call, as far as its trace needs it."""

    @property
    def call_id(self) -> str:
        """Its id."""
        ...

    @property
    def tag(self) -> str:
        """Of this release."""
        ...

    @property
    def task(self) -> str:
        """Its task's name."""
        ...

    @property
    def plan(self) -> Plan:
        """What was decided when it was made."""
        ...


class Sent(NamedTuple):
    """The span of a call that is being put into its lane."""

    trace: str | None  #: its W3C traceparent; None: it has none
    tell: Callable[[Placed], None]  #: to be called with what happened to the call


#: To be called once the outcome of an attempt is safe: with None, or with the kind of the error that prevented it.
Settled = Callable[[str | None], None]


class Tracer(Protocol):
    """The traces of calls; there is none where tracing is off."""

    def sending(self, plan: Plan, call_id: str, task: str, queue: str) -> AbstractContextManager[Sent]:
        """A call is put into its lane within this block."""
        ...

    def looks(self, plan: Plan, begun: Begun) -> bool:
        """Whether the trace of a call that begins is to say what held it. No I/O."""
        ...

    def look(self, lane: str) -> Sequence[Held]:
        """What holds the lane back; may ask Redis."""
        ...

    def attempt(self, traced: Traced, begun: Begun, held: Sequence[Held]) -> AbstractContextManager[None]:
        """An attempt begins, and runs within this block."""
        ...

    def dropped(self, tag: str, why: str) -> None:
        """End the trace of an attempt without an outcome."""
        ...

    def settling(self, traced: Traced, row: Attempt) -> Settled:
        """An attempt has ended, or a call that had none; its outcome is not safe yet."""
        ...

    def shared(self, traced: Traced, answer: bytes) -> None:
        """A call has got an answer that another call has asked for."""
        ...


def not_traced() -> None:
    """Returns the tracer where tracing is off: none."""
    return


def not_settling(error: str | None) -> None:
    """`Settled` of an attempt without a trace: nobody needs to know."""


class AttemptLanes(Protocol):
    """The lanes, as far as an attempt at a released call needs them."""

    def begin(self, tag: str, lease_s: float, alone: bool = False, process: str = "", taken: bool = False) -> Begun:
        """May this released call run now, in this process? `alone`: nothing else runs there; `taken`: another call has
        the process for itself. `lease_s`: seconds."""
        ...

    def settle(self, settlement: Settlement) -> bool:
        """Make the outcome safe; the first answer wins. Returns whether this was the first."""
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
        """Return a released call to its lane, due in `after_s` seconds (0: to its own place). The lesson's failure is
        kept until the call expires; a sick one adds to the call's row (`Begun.failing`), any other ends that row.
        False: the call is no longer this worker's."""
        ...

    def health(self, lane: str, task: str) -> Health:
        """The lane's present view of its provider, and how this function fared in it."""
        ...


class Lanes(AttemptLanes, Protocol):
    """The lanes, as far as the tuner needs them."""

    def take(self, owner: str, lease_s: float, most: int = 50, also: Iterable[str] = ()) -> Taken | None:
        """The observations since the last time, and the lanes of `also`; None: another process tunes."""
        ...

    def set_points(self, lane: str, fields: Fields, read: int | None = None) -> int | None:
        """Write set-points; None: the lane no longer has the revision `read`, and nothing was written."""
        ...

    def tell(self, lane: str, fields: Fields, read: int | None = None) -> bool:
        """Write what a person sets, as a new revision; False: the lane no longer has the revision `read`."""
        ...

    def establish(self, lane: str, fields: Fields) -> bool:
        """Make a lane with these fields. False: it existed, and nothing was written."""
        ...

    def state(self, lane: str) -> LaneState:
        """The lane's hash."""
        ...

    def survey(self, fields: Sequence[str] = (), most: int = 200) -> Iterator[list[LaneSeen]]:
        """All lanes, about so many at a time, with these fields of their hashes (none: all; `contracts.lane`)."""
        ...

    def working(self, most: int = 200) -> Sequence[str]:
        """Lanes with calls that wait or are out."""
        ...

    def set_points_of(self, changes: Mapping[str, Write]) -> Sequence[str]:
        """Write set-points of several lanes, by name, at once. Returns the lanes with a changed revision, which were
        not written."""
        ...

    def states(self, lanes: Sequence[str], fields: Sequence[str] = ()) -> Mapping[str, LaneState]:
        """Several lanes by name, with these fields of their hashes (none: all; `contracts.lane`)."""
        ...

    def count(self) -> int:
        """How many lanes are known."""
        ...

    def tuned(self) -> bool:
        """Whether a tuner is running."""
        ...

    def names(self) -> Sequence[str]:
        """Every known lane."""
        ...


class Pins(Protocol):
    """The pins, for the whole cluster."""

    def now(self) -> float:
        """Seconds, Redis clock."""
        ...

    def read(self) -> Mapping[str, Pin]:
        """Pins by lane, also those that have ended; `policy.modes.ALL`: the pin of all lanes."""
        ...

    def write(self, pins: Mapping[str, Pin]) -> None:
        """Add pins, or replace those that were there."""
        ...

    def drop(self, pins: Mapping[str, Pin]) -> None:
        """Remove these pins, but not pins that have replaced them."""
        ...


class ModeLog(Protocol):
    """Where mode changes go, to be recorded once."""

    def append_mode_change(self, change: ModeChange) -> None:
        """Put it into the outbox.

        Raises:
            StoreUnavailable: Redis is away, full or read-only; nothing was stored.
        """
        ...
