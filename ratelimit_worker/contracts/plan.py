"""The plan of a call: all that was decided when it was made. It travels in the header of the call's message.

The header is a flat JSON object with short names, which only this module knows. During a deploy older and newer
versions read each other's headers: a missing (or null) field means its default, and a field that this version does not
know is kept, and written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import msgspec

from ratelimit_worker.calls import SCHEMA_VERSION, Cost, Priority
from ratelimit_worker.errors import BadInput

HEADER = "rlw"  #: name of the header
ONE = Cost()
MOST_BODY_BYTES = 64 * 1024 * 1024  #: default bound on a call's arguments and canvas


class Sender(StrEnum):
    """Who sends a call, which decides what can be returned at once."""

    CALLER = "caller"  #: `.delay()`: gets refusals as exceptions, and may be given a kept answer directly
    BY_NAME = "by name"  #: `send_task`: gets refusals as exceptions; an answer always goes the way of a result
    NOBODY = "nobody"  #: a stock producer pushed it into the queue: there is nobody left to answer


class Shedding(StrEnum):
    """How a caller learns that its call is shed: its lane is in EMERGENCY or HALT, or a budget of money is spent."""

    RESULT = "result"  #: as its result
    RAISE = "raise"  #: as an exception where it is sent


class Estimated(msgspec.Struct, frozen=True, gc=False):
    """The estimate of a call's tokens, which its answer is compared with."""

    model: str  #: tokens are learned by task and model
    input_tokens: int = 0  #: before correction by what was learned; 0: they were counted, or there was no text
    most_output_tokens: int | None = None  #: the maximum that the call asks for; None: it names none


class Sharing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a call shares answers with calls that are the same."""

    ttl_s: float  #: how long its answer is kept; a kept answer of this age or less will do for it; 0: neither
    join: bool  #: it may follow a call that is on its way, and others may follow it
    max_entries: int  #: most answers in the cache
    max_bytes: int  #: most bytes of the whole cache
    stale_ttl_s: float = 0.0  #: how long beyond `ttl_s` it is kept, for use while its lane is in EMERGENCY or HALT
    revalidate_s: float = 0.0  #: how long beyond `ttl_s`, in any mode, it is given while one call renews it
    keeps_incomplete: bool = False  #: an answer that was truncated, refused or filtered is kept too
    refresh: bool = False  #: it asks anew even if an answer is kept, and its own answer replaces that
    stores: bool = True  #: its answer is kept
    heirs_ask: bool = False  #: if it fails, its followers do not fail with it: the first of them asks
    namespace: str | None = None  #: answers are shared only within it; None: within the tenant


class Continuation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What happened before to a call that is sent once more under its id."""

    attempts: int = 0  #: made before
    tries: int = 0  #: of these, attempts that cost a try
    goes_on: bool = False  #: its own task sends it again (`self.retry`, `self.replace`): it keeps its claim
    ended: bool = False  #: it had ended, and is made anew


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that was decided when a call was made."""

    lane: str
    deadline_s: float  #: it must be answered by then; seconds since the epoch
    publication: str  #: id that is the same for every attempt to publish one message
    tenant: str = ""
    weight: float = 1.0  #: of the tenant in its lane
    priority: Priority = Priority.NORMAL
    cost: Cost = ONE  #: taken from the lane's budget when it is released
    context: str = ""
    tags: tuple[str, ...] = ()
    max_waiting: int = 0  #: calls that may wait in its lane, itself included; 0: no bound
    max_body_bytes: int = MOST_BODY_BYTES  #: bound on its arguments and canvas
    estimated: Estimated | None = None  #: None: its task says itself what it costs
    timeout_s: float | None = None  #: of one attempt; None: from the lane, the settings, or what was learned
    sharing: Sharing | None = None  #: None: it is sent in any case, and its answer is its own
    shedding: Shedding | None = None  #: None: it waits in EMERGENCY and HALT
    usual_nanousd: int = 0  #: what such a call usually costs, billionths of a dollar; 0: not known
    over_budget: Shedding | None = None  #: how it fails while a budget is spent; None: it waits for the next period
    sender: Sender = Sender.BY_NAME
    continuation: Continuation | None = None  #: None: it is sent for the first time
    fingerprint: str | None = None  #: calls with the same share answers; None: not calculated yet, or it shares nothing
    trace: str | None = None  #: W3C traceparent of the span that sent it; None: it is not traced
    version: int = SCHEMA_VERSION  #: of the schema in which it was written
    newer: Mapping[str, Any] | None = None  #: header fields that this version does not know

    @property
    def model(self) -> str | None:
        """The model by which its tokens and latencies are learned; None: its task says itself what it costs."""
        return self.estimated.model if self.estimated is not None else None

    @property
    def goes_on(self) -> bool:
        """Whether its own task sends it again (`self.retry`, `self.replace`)."""
        return self.continuation is not None and self.continuation.goes_on

    @property
    def is_anew(self) -> bool:
        """Whether it had ended and is made anew under its id."""
        return self.continuation is not None and self.continuation.ended

    def encode(self) -> dict[str, Any]:
        """The header, in plain values for JSON."""
        header: dict[str, Any] = {
            "v": self.version,
            "lane": self.lane,
            "tenant": self.tenant,
            "weight": self.weight,
            "class": self.priority.value,
            "cost": self.cost.vector(),
            "deadline": self.deadline_s,
            "context": self.context,
            "tags": self.tags,
            "pub": self.publication,
            "max_waiting": self.max_waiting,
            "max_bytes": self.max_body_bytes,
        }
        if (estimated := self.estimated) is not None:
            header["size"] = [estimated.model, estimated.input_tokens]
            if estimated.most_output_tokens is not None:
                header["size"].append(estimated.most_output_tokens)
        if self.timeout_s is not None:
            header["timeout"] = self.timeout_s
        if (sharing := self.sharing) is not None:
            header["ttl"] = sharing.ttl_s
            if sharing.stale_ttl_s > 0:
                header["stale"] = sharing.stale_ttl_s
            header["join"] = sharing.join
            header["cache_entries"] = sharing.max_entries
            header["cache_bytes"] = sharing.max_bytes
            _put_choices(header, sharing)
        if self.shedding is not None:
            header["sheds"] = self.shedding.value
        if self.usual_nanousd:
            header["nanousd"] = self.usual_nanousd
        if self.over_budget is not None:
            header["over"] = self.over_budget.value
        if self.sender is not Sender.BY_NAME:
            header["at_once"] = self.sender is Sender.CALLER
        if self.continuation is not None:
            _put_continuation(header, self.continuation)
        if self.fingerprint is not None:
            header["fp"] = self.fingerprint
        if self.trace is not None:
            header["trace"] = self.trace
        if self.newer is not None:
            header.update(self.newer)
        return header

    @classmethod
    def decode(cls, header: Mapping[str, Any]) -> Plan:
        """Decode a header written by this version or another.

        Headers out of a queue have been checked field by field before (`worker.fields`).

        Raises:
            BadInput: it is not a plan.
        """
        try:
            return cls._decoded(header)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"the header {HEADER} of this message is not a plan ({type(error).__name__})") from error

    @classmethod
    def _decoded(cls, header: Mapping[str, Any]) -> Plan:
        get = header.get
        requests, _, input_tokens, output_tokens = get("cost") or ONE.vector()
        at_once, size, number, again, anew = get("at_once"), get("size"), get("number"), get("again"), get("anew")
        sheds, max_waiting, max_bytes, fields = get("sheds"), get("max_waiting"), get("max_bytes"), NAMES
        return cls(
            lane=header["lane"],
            deadline_s=header["deadline"],
            publication=header["pub"],
            tenant=get("tenant") or "",
            weight=get("weight") or 1.0,
            priority=_PRIORITIES[get("class")],
            cost=Cost(requests=requests, input_tokens=int(input_tokens), output_tokens=int(output_tokens)),
            context=get("context") or "",
            tags=tuple(get("tags") or ()),
            max_waiting=max_waiting or 0,
            max_body_bytes=MOST_BODY_BYTES if max_bytes is None else max_bytes,
            estimated=Estimated(*size) if size else None,
            timeout_s=get("timeout"),
            sharing=_sharing(header) if get("ttl") is not None else None,
            shedding=Shedding(sheds) if sheds else None,
            usual_nanousd=int(get("nanousd") or 0),
            over_budget=Shedding(over) if (over := get("over")) else None,
            sender=Sender.BY_NAME if at_once is None else Sender.CALLER if at_once else Sender.NOBODY,
            continuation=Continuation(
                attempts=number or 0, tries=get("tries") or 0, goes_on=bool(again), ended=bool(anew)
            )
            if again or anew or number or get("tries")
            else None,
            fingerprint=get("fp"),
            trace=get("trace"),
            version=get("v") or SCHEMA_VERSION,
            newer=None
            if fields.issuperset(header)
            else {name: value for name, value in header.items() if name not in fields},
        )


#: By value: a look-up takes a tenth of the time of calling the Enum.
_PRIORITIES: dict[str | None, Priority] = {priority.value: priority for priority in Priority}
_PRIORITIES[None] = Priority.NORMAL
#: All names in the header.
NAMES = frozenset(
    {
        *("v", "lane", "tenant", "weight", "class", "cost", "deadline", "context", "tags", "pub"),
        *("max_waiting", "max_bytes", "size", "timeout", "ttl", "stale", "join", "cache_entries", "cache_bytes"),
        *("short", "sheds", "at_once", "number", "anew", "again", "tries", "fp", "fresh", "unkept", "heirs", "ns"),
        *("nanousd", "over", "swr", "trace"),
    }
)


class Described(NamedTuple):
    """What the caller says of a call for its rows in the tracking database."""

    context: str
    tags: tuple[str, ...]


def described(header: Any) -> Described:
    """What the header of a refused message says of its call; whatever in it is not text is left out."""
    found = header if isinstance(header, Mapping) else {}
    context, tags = found.get("context"), found.get("tags")
    return Described(
        context if isinstance(context, str) else "",
        tuple(tag for tag in tags if isinstance(tag, str)) if isinstance(tags, list | tuple) else (),
    )


def _put_continuation(header: dict[str, Any], continuation: Continuation) -> None:
    header["number"] = continuation.attempts
    if continuation.ended:
        header["anew"] = True
    if continuation.goes_on:
        header["again"] = True
        header["fp"] = None  # older versions expect the field; it is filled in where there is a fingerprint
        header["tries"] = continuation.tries


def _put_choices(header: dict[str, Any], sharing: Sharing) -> None:
    """Rarely used fields of `Sharing`."""
    if sharing.keeps_incomplete:
        header["short"] = True
    if sharing.refresh:
        header["fresh"] = True
    if not sharing.stores:
        header["unkept"] = True
    if sharing.heirs_ask:
        header["heirs"] = True
    if sharing.namespace is not None:
        header["ns"] = sharing.namespace
    if sharing.revalidate_s > 0:
        header["swr"] = sharing.revalidate_s


def _sharing(header: Mapping[str, Any]) -> Sharing:
    return Sharing(
        ttl_s=header["ttl"],
        join=bool(header["join"]),
        max_entries=header["cache_entries"],
        max_bytes=header["cache_bytes"],
        stale_ttl_s=header.get("stale") or 0.0,
        keeps_incomplete=bool(header.get("short")),
        refresh=bool(header.get("fresh")),
        stores=not header.get("unkept"),
        heirs_ask=bool(header.get("heirs")),
        namespace=header.get("ns"),
        revalidate_s=header.get("swr") or 0.0,
    )
