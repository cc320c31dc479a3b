"""How do the scripts take a call in, and how do they keep it? Its entry, its claim, and its record.

Each has its encoding here: what `enqueue` gets (stores/lua/enqueue.lua), what it reads of a claim (`Asked`), and the
packed array that every script keeps of a call (`Place`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from math import isfinite
from typing import Any, NamedTuple

import msgspec

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.lane import MOST_LANES, Fields
from ratelimit_worker.contracts.plan import ONE, Plan, Shedding
from ratelimit_worker.errors import BadInput

US = 1_000_000  #: microseconds of a second; the scripts' times are in µs
LEAST_LEFT_S = 0.001  #: of a deadline: one that has passed is told by the lane
REFS = 9  #: messages of one task id that may be in lanes at once
PARKED_STALE_S = 60.0  #: a task that nobody has asked for by then is gone from those that wait for a worker
_SHEDS = {None: 0, Shedding.RESULT: 1, Shedding.RAISE: 2}  #: as enqueue.lua reads it


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """How a call shares answers with those that are the same."""

    fingerprint: str
    ttl_s: float  #: its answer is kept so long, and a kept one is good for it; 0: neither
    join: bool  #: it follows one that is on its way, and others follow it
    at_once: bool = False  #: the caller takes an answer in place of the call (`Placed.answer`)
    again: bool = False  #: a retry of the same call, which keeps what it has claimed
    max_entries: int = 1000
    max_bytes: int = 100 * 1024 * 1024
    context: str = ""
    tags: Sequence[str] = ()
    func: str = ""
    stale_ttl_s: float = 0.0  #: so long beyond `ttl_s`, for a lane in EMERGENCY or HALT
    answer: str = ""  #: the kept one, which the scripts had packed and the caller has unpacked
    refresh: bool = False  #: no kept answer will do
    stores: bool = True  #: its own is kept
    heirs_ask: bool = False  #: where it fails, its first follower asks, and the others follow that one

    @classmethod
    def of(cls, plan: Plan, func: str, *, at_once: bool) -> Claim | None:
        """As the call's plan says; None: it shares nothing.

        Args:
            func: Name of the task, or of the function.
            at_once: As the field; not where the call goes on, which asks for no answer any more.
        """
        sharing = plan.sharing
        if sharing is None or plan.fingerprint is None:
            return None
        return cls(
            fingerprint=plan.fingerprint,
            ttl_s=sharing.ttl_s,
            join=sharing.join,
            at_once=at_once and not plan.goes_on,
            again=plan.goes_on,
            max_entries=sharing.max_entries,
            max_bytes=sharing.max_bytes,
            context=plan.context,
            tags=plan.tags,
            func=func,
            stale_ttl_s=sharing.stale_ttl_s,
            refresh=sharing.refresh,
            stores=sharing.stores,
            heirs_ask=sharing.heirs_ask,
        )

    def packed(self) -> bytes:
        """As the scripts read it (`Asked`)."""
        return msgspec.msgpack.encode(
            [
                self.fingerprint,
                int(self.ttl_s * 1000),
                int(self.join),
                int(self.at_once),
                int(self.again),
                self.max_entries,
                self.max_bytes,
                self.context,
                msgspec.json.encode(list(self.tags)).decode(),
                self.func,
                int(self.stale_ttl_s * 1000),
                self.answer,
                int(self.refresh),
                int(not self.stores),
                int(self.heirs_ask),
            ]
        )


class ResultForm(NamedTuple):
    """How the result of a call is stored, for an answer that is kept: the script writes it, so that nobody else has to.

    What is stored is `before`, the JSON of the value, `after`.
    """

    key: str
    before: str
    after: str
    ttl_s: int  #: 0: for ever

    def packed(self) -> bytes:
        """As enqueue.lua reads it."""
        return msgspec.msgpack.encode(list(self))


class Sent(NamedTuple):
    """A message on its way into a lane."""

    queue: str
    ref: str
    message: bytes  #: whole message, with `"delivery_tag": "@"` before anything else
    body: bytes
    result: ResultForm | None = None  #: None: whoever takes an answer at once stores it


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call on its way into a lane."""

    lane: str
    queue: str
    ref: str  #: wished; a message has a reference of its own where the wished one is taken
    #: The same for every attempt to publish one message, so that a second attempt does nothing; with what it asks, as
    #: enqueue.lua has it, also the same for who makes the call once more
    publication: str
    message: bytes  #: whole message, with `"delivery_tag": "@"` before anything else
    body: bytes
    deadline_in_s: float
    due_in_s: float = 0.0
    priority: Priority = Priority.NORMAL
    tenant: str = ""
    weight: float = 1.0
    cost: Cost = ONE
    tries: int = 0
    number: int = 0
    max_waiting: int = 0
    claim: Claim | None = None
    shedding: Shedding | None = None  #: None: it waits in EMERGENCY and HALT
    result: ResultForm | None = None  #: as of `Sent`
    #: The lane's set-points where it is new, or what makes them: most calls go to a lane that is there.
    lane_fields: Fields | Callable[[], Fields] = {}

    @classmethod
    def of(
        cls,
        plan: Plan,
        sent: Sent,
        *,
        left_s: float,
        due_in_s: float = 0.0,
        publication: str | None = None,
        claim: Claim | None = None,
        lane_fields: Callable[[], Fields] | None = None,
    ) -> Entry:
        """What a plan makes of a call, whether it waits on a queue or in process.

        Args:
            left_s: Until it must be answered, from now; below 0: that has passed.
            publication: None: that of its plan.
        """
        before = plan.continuation
        return cls(
            lane=plan.lane,
            queue=sent.queue,
            ref=sent.ref,
            publication=plan.publication if publication is None else publication,
            message=sent.message,
            body=sent.body,
            deadline_in_s=max(LEAST_LEFT_S, left_s),
            due_in_s=max(0.0, due_in_s),
            priority=plan.priority,
            tenant=plan.tenant,
            weight=plan.weight,
            cost=plan.cost,
            tries=before.tries if before is not None else 0,
            number=before.attempts if before is not None else 0,
            max_waiting=plan.max_waiting,
            claim=claim,
            shedding=plan.shedding,
            result=sent.result,
            lane_fields=lane_fields if lane_fields is not None else {},
        )

    def args(self, new_lane: bool = True) -> list[Any]:
        """The arguments of enqueue.lua after the time; what a new lane needs is as much again as the rest.

        Raises:
            BadInput: a cost, a weight or a time that no bucket can hold.
        """
        cost = self.cost.vector()
        if not all(isfinite(units) and units >= 0 for units in cost):
            raise BadInput(f"cost={cost}: use finite numbers, 0 or more")
        if not (isfinite(self.weight) and self.weight > 0):
            raise BadInput(f"weight={self.weight} of tenant {self.tenant!r}: use a finite number above 0")
        if not (isfinite(self.deadline_in_s) and isfinite(self.due_in_s)):
            raise BadInput(f"deadline_in_s={self.deadline_in_s}, due_in_s={self.due_in_s}: use finite numbers")
        fields: list[Any] = []
        if new_lane:
            told = dict(self.lane_fields() if callable(self.lane_fields) else self.lane_fields) or {"adaptive": 1}
            fields.append(told.pop(MOST_LANES, 0))
            for name, value in told.items():
                fields += (name, value)
        return [
            self.lane,
            self.queue,
            self.ref,
            self.publication,
            self.priority.value,
            self.tenant,
            self.weight,
            *cost,
            max(0, int(self.due_in_s * US)),
            int(self.deadline_in_s * US),
            self.max_waiting,
            self.tries,
            self.number,
            self.message,
            self.body,
            self.claim.packed() if self.claim is not None else b"",
            _SHEDS[self.shedding],
            self.result.packed() if self.result is not None else b"",
            *fields,
        ]


class Place(IntEnum):
    """Where each field of a record stands, from 1 as Lua counts.

    Newer versions only append: a record may end before the last of them, or go on behind it.
    """

    VERSION = 1
    LANE = 2
    QUEUE = 3
    SCORE = 4
    CLASS = 5
    TENANT = 6
    COST = 7
    ACCEPTED = 8
    DEADLINE = 9
    RELEASE = 10
    ATTEMPTS = 11
    LOST = 12
    PERMIT = 13
    RESTORED = 14
    TICKET = 15
    PUB = 16
    SINCE = 17
    NUMBER = 18
    WEIGHT = 19
    BORN = 20
    CLAIM = 21
    DEGRADES = 22
    PARENTS = 23
    CREW = 24


class Asked(IntEnum):
    """Where each part of a packed claim stands, from 1 as Lua counts."""

    FP = 1
    TTL_MS = 2
    JOIN = 3
    AT_ONCE = 4
    AGAIN = 5
    ENTRIES = 6
    BYTES = 7
    CONTEXT = 8
    TAGS = 9
    FUNC = 10
    STALE_MS = 11
    ANSWER = 12
    REFRESH = 13
    UNKEPT = 14
    HEIRS = 15


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One call as the scripts keep it, as far as anybody but them asks. Times are seconds since the epoch."""

    ref: str
    lane: str
    queue: str
    priority: str
    tenant: str
    accepted_s: float
    deadline_s: float
    release: int  #: number of its last release; with `ref` the tag
    tries: int  #: attempts that cost a try
    lost: int  #: deliveries whose worker died
    since_s: float  #: waits since
    number: int  #: attempts begun
    claim: str = ""  #: fingerprint, where it shares its answer
    #: What its permit takes, in the order of `DIMENSIONS`; once it is answered, the tokens that it took
    cost: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)

    @property
    def tag(self) -> str:
        """Its name in the ledger, if it is released."""
        return f"{self.ref}.{self.release}"

    @property
    def tokens(self) -> int:
        """That it reserves; once it is answered, those that it took."""
        return int(self.cost[1])

    @classmethod
    def decode(cls, ref: str, packed: bytes | None) -> Record | None:
        """The record under a reference; None: there is none, or it cannot be read, as the scripts have it."""
        if packed is None:
            return None
        try:
            read = msgspec.msgpack.decode(packed, strict=False)
            # an object: a version that knew fewer fields has left a hole in it
            at = dict(enumerate(read, 1)) if isinstance(read, list) else read
            return cls(
                ref=ref,
                lane=str(at[Place.LANE]),
                queue=str(at[Place.QUEUE]),
                priority=str(at[Place.CLASS]),
                tenant=str(at[Place.TENANT]),
                accepted_s=at[Place.ACCEPTED] / US,
                deadline_s=at[Place.DEADLINE] / US,
                release=int(at[Place.RELEASE]),
                tries=int(at[Place.ATTEMPTS]),
                lost=int(at[Place.LOST]),
                since_s=at[Place.SINCE] / US,
                number=int(at[Place.NUMBER]),
                claim=at.get(Place.CLAIM) or "",
                cost=tuple(float(units) for units in at[Place.COST]),
            )
        except (msgspec.DecodeError, AttributeError, LookupError, TypeError, ValueError, OverflowError):
            return None


class Placed(NamedTuple):
    """Where a call went that was put into its lane."""

    released: bool  #: at once; else it waits, or its answer is there
    ref: str  #: under which it stands there
    answer: bytes | None = None  #: it needs no lane: this one is kept, and the caller takes it; nothing was stored
    stored: bool = False  #: the answer is the call's result by now (`ResultForm`)


class TakenOut(NamedTuple):
    """A call that waited and was taken out of its lane for good."""

    message: bytes
    payload: bytes  #: args, kwargs, canvas, as they are stored


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A call that is out under a tag."""

    record: Record
    message: bytes
    payload: bytes  #: args, kwargs, canvas, as they are stored
