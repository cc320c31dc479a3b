"""A call as the scripts see it: its entry (what they are given), its claim, and its record (what they keep).

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
LEAST_LEFT_S = 0.001  #: time left that a call is entered with when its deadline has passed; the lane then expires it
REFS = 9  #: most messages with the same task id that may be in lanes at once
PARKED_LISTED_S = 60.0  #: a parked call that is overdue by this is no longer listed as waiting for a worker
_SHEDS = {None: 0, Shedding.RESULT: 1, Shedding.RAISE: 2}  #: as enqueue.lua reads it


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """How a call shares answers with calls that are the same."""

    fingerprint: str
    ttl_s: float  #: how long its answer is kept; a kept answer of this age or less will do for it; 0: neither
    join: bool  #: it may follow a call that is on its way, and others may follow it
    at_once: bool = False  #: its caller wants a kept answer returned now, instead of a queued call (`Placed.answer`)
    again: bool = False  #: it is the same call once more (a retry), and keeps the claim that it has
    max_entries: int = 1000
    max_bytes: int = 100 * 1024 * 1024
    context: str = ""
    tags: Sequence[str] = ()
    func: str = ""
    stale_ttl_s: float = 0.0  #: how long beyond `ttl_s` it is kept, for use while its lane is in EMERGENCY or HALT
    revalidate_s: float = 0.0  #: how long beyond `ttl_s`, in any mode, it is given while one call renews it
    answer: str = ""  #: the kept answer, which the scripts returned compressed and the caller has unpacked
    refresh: bool = False  #: a kept answer will not do: it asks anew
    stores: bool = True  #: its own answer is kept
    heirs_ask: bool = False  #: if it fails, its first follower asks the provider, and the other followers wait for that

    @classmethod
    def of(cls, plan: Plan, func: str, *, at_once: bool) -> Claim | None:
        """The claim that a call's plan asks for; None: it shares nothing.

        Args:
            func: Name of the task, or of the function.
            at_once: As the field. Ignored for a call that goes on (a retry), which looks for no kept answer.
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
            revalidate_s=sharing.revalidate_s,
            refresh=sharing.refresh,
            stores=sharing.stores,
            heirs_ask=sharing.heirs_ask,
        )

    def packed(self) -> bytes:
        """Packed as an array for the scripts; `Asked` has the positions."""
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
                int(self.revalidate_s * 1000),
            ]
        )


class ResultForm(NamedTuple):
    """How Celery stores the result of a call, so that a script can do it when it finds a kept answer.

    The stored text is `before` + the value as JSON + `after`.
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
    message: bytes  #: whole message; begins with `"delivery_tag": "@"`, where the scripts put the tag
    body: bytes
    result: ResultForm | None = None  #: None: a caller that is given a kept answer stores the result itself


class Money(NamedTuple):
    """What budgets of money need to know of a call."""

    usual_nanousd: int = 0  #: what such a call usually costs, billionths of a dollar; 0: not known
    over_budget: Shedding | None = None  #: how it fails while a budget is spent; None: it waits for the next period
    context: str = ""

    @classmethod
    def of(cls, plan: Plan) -> Money:
        """As the call's plan says."""
        return cls(plan.usual_nanousd, plan.over_budget, plan.context)

    def packed(self) -> bytes:
        """As the scripts read it (`Place.MONEY`); empty: nothing differs from the default."""
        if self == NO_MONEY:
            return b""
        return msgspec.msgpack.encode([self.usual_nanousd, _SHEDS[self.over_budget], self.context])


NO_MONEY = Money()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A call on its way into a lane."""

    lane: str
    queue: str
    ref: str  #: the reference wanted; the scripts choose another where it is taken
    #: The same for every attempt to publish one message, so that a second attempt does nothing. It also has a digest of
    #: what the call asks, by which a call that is made twice under one id is recognised (see enqueue.lua).
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
    money: Money = NO_MONEY
    result: ResultForm | None = None  #: as in `Sent`
    #: First set-points for the case that the lane is new, or a function that makes them: most lanes exist already.
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
        """The entry of a call by its plan, for calls on a queue and in process alike.

        Args:
            left_s: Seconds from now to its deadline; below 0: the deadline has passed.
            publication: None: the plan's.
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
            money=Money.of(plan),
            result=sent.result,
            lane_fields=lane_fields if lane_fields is not None else {},
        )

    def args(self, new_lane: bool = True) -> list[Any]:
        """The arguments of enqueue.lua after the time.

        Those for a new lane are left out unless asked for: they are as long as all others together.

        Raises:
            BadInput: a cost, weight or time is not a usable number.
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
            self.money.packed(),
            *fields,
        ]


class Place(IntEnum):
    """Where each part of a call's record stands: a position in the packed array, counted from 1 as Lua does.

    Times are µs since the epoch. Newer versions only append, so a record may be shorter or longer than this list.
    """

    VERSION = 1  #: of the schema in which the record was written
    LANE = 2
    QUEUE = 3
    SCORE = 4  #: its tag in the waiting list (start-time fair queueing); -1: it has had no place there yet
    CLASS = 5  #: high, normal or low
    TENANT = 6
    COST = 7  #: units by dimension: estimated, and from its answer on what it really took
    ACCEPTED = 8  #: when it was put into its lane
    DEADLINE = 9
    RELEASE = 10  #: number of its last release; with the reference it makes the tag of the released call
    ATTEMPTS = 11  #: attempts that cost a try
    LOST = 12  #: workers that died while they ran it, in a row
    PERMIT = 13  #: a `Permit`
    RESTORED = 14  #: 1: it may have been delivered before, so its message says "redelivered"
    TICKET = 15  #: of its last release: {number among the lane's calls, when, units sent in all, by dimension}
    PUB = 16  #: its publication: the same for every attempt to publish one message
    SINCE = 17  #: since when it waits
    NUMBER = 18  #: attempts that have begun
    WEIGHT = 19  #: of its tenant
    BORN = 20  #: releases of all calls before its own first: answers to those are not its own; until then out of reach
    CLAIM = 21  #: fingerprint; absent or false: it shares nothing
    DEGRADES = 22  #: a sum of `Degrades`; absent or false: it waits, whatever the lane's mode
    PARENTS = 23  #: names of the parents whose budgets it was charged to; absent or false: none, or it is not released
    CREW = 24  #: to which it was released; absent: it is not released, or by a version that had no crews
    #: {what it is expected to cost, billionths of a dollar (0: unknown), what it does over budget (0 waits, 1 fails,
    #: 2 fails where it is sent), context}; absent or false: {0, 0, ""}
    MONEY = 25
    RESERVED = 26  #: {what it took of budgets of money, their names …} while it is released; absent or false: nothing


class Permit(IntEnum):
    """Whether a call has a permit."""

    NONE = 0
    TAKEN = 1  #: its cost was taken from the buckets when it was released; it has not begun
    USED = 2  #: it has begun


class Degrades(IntEnum):
    """What a waiting call may get in place of its turn while its lane is in EMERGENCY or HALT; they add up."""

    STALE = 1  #: a kept answer that is past its time
    SHED = 2  #: an error


class Asked(IntEnum):
    """Where each part of a packed claim stands, counted from 1; `Claim.packed` writes it, and says what they mean."""

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
    REVALIDATE_MS = 16


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a call's record that Python uses. Times are seconds since the epoch."""

    ref: str
    lane: str
    queue: str
    priority: str
    tenant: str
    accepted_s: float
    deadline_s: float
    release: int  #: number of its last release; with `ref` the tag
    tries: int  #: attempts that cost a try
    lost: int  #: workers that died while they ran it, in a row
    since_s: float  #: since when it waits
    number: int  #: attempts begun
    claim: str = ""  #: fingerprint, where it shares its answer
    #: Units in the order of `DIMENSIONS`: reserved when it was released, and from its answer on really used.
    cost: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0)

    @property
    def tag(self) -> str:
        """Its name in the ledger, if it is released."""
        return f"{self.ref}.{self.release}"

    @property
    def tokens(self) -> int:
        """Tokens: reserved, and from its answer on really used."""
        return int(self.cost[1])

    @classmethod
    def decode(cls, ref: str, packed: bytes | None) -> Record | None:
        """Decode a record; None: there is none, or the scripts could not read it either."""
        if packed is None:
            return None
        try:
            read = msgspec.msgpack.decode(packed, strict=False)
            # msgpack in Lua writes a map where the array has a hole, which a version with fewer fields may have left
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
    """What happened to a call that was put into its lane."""

    released: bool  #: True: it has its permit already; False: it waits, or has its answer
    ref: str  #: the reference that it got
    answer: bytes | None = None  #: a kept answer, which the caller takes; the call itself was not stored
    stored: bool = False  #: the script has stored that answer as the call's result (`ResultForm`)
    renews: bool = False  #: its answer is past its time, and its sender is the one to have it renewed


class TakenOut(NamedTuple):
    """A waiting call that was taken out of its lane for good."""

    message: bytes
    payload: bytes  #: args, kwargs, canvas, as they are stored


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """A released call, found by its tag."""

    record: Record
    message: bytes
    payload: bytes  #: args, kwargs, canvas, as they are stored
