"""What was decided when a call was made? Its plan, which travels in the header of its message.

The header is a flat JSON object of short names, and this is the only place that knows them. Older and newer versions
read and write the same header while a deploy lasts: a field that is missing (or null) means its default, and one that
this version does not know is kept, and written again.
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
MOST_BODY_BYTES = 64 * 1024 * 1024  #: of arguments and canvas, where nothing else is said


class Sender(StrEnum):
    """Who puts a call into its lane, and so what can be said back to them at once."""

    CALLER = "caller"  #: hears that it is refused, and takes an answer that is kept in place of a result
    BY_NAME = "by name"  #: `send_task`: hears that it is refused, and always gets a result
    NOBODY = "nobody"  #: it was pushed past its lane by a stock producer; whoever did that is gone


class Shedding(StrEnum):
    """Who hears that a call is shed while its lane is in EMERGENCY or HALT."""

    RESULT = "result"  #: whoever waits for its result
    RAISE = "raise"  #: whoever sends it, as an exception


class Estimated(msgspec.Struct, frozen=True, gc=False):
    """What was estimated of a call's tokens, so that its answer can teach something."""

    model: str  #: under which its tokens are learned
    input_tokens: int = 0  #: before any correction; 0: they were counted, or there was no text
    most_output_tokens: int | None = None  #: None: the call names no bound


class Sharing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How a call shares its answer with calls that ask the same."""

    ttl_s: float  #: its answer is kept so long, and a kept one is good for it; 0: neither
    join: bool  #: it follows a call that is on its way, and others follow it
    max_entries: int  #: answers that are kept
    max_bytes: int  #: of all kept answers together
    stale_ttl_s: float = 0.0  #: so long beyond `ttl_s`, for a lane in EMERGENCY or HALT
    keeps_incomplete: bool = False  #: an answer that was truncated, refused or filtered is kept too
    refresh: bool = False  #: it asks anew though an answer is kept, which its own takes the place of
    stores: bool = True  #: its answer is kept
    heirs_ask: bool = False  #: where it fails, those that follow it ask for themselves, and do not fail with it
    namespace: str | None = None  #: only calls of the same share answers; None: of its tenant


class Continuation(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a call has behind it that was made before under the same id."""

    attempts: int = 0  #: made at it before
    tries: int = 0  #: those of them that cost a try
    goes_on: bool = False  #: its task sends it again (`self.retry`, `self.replace`): it keeps what it has claimed
    ended: bool = False  #: it had ended, and is made anew


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All that was decided when a call was made."""

    lane: str
    deadline_s: float  #: it must be answered by then; seconds since the epoch
    publication: str  #: the same for every attempt to publish one message
    tenant: str = ""
    weight: float = 1.0  #: of the tenant in its lane
    priority: Priority = Priority.NORMAL
    cost: Cost = ONE  #: taken from the lane's budget when it is released
    context: str = ""
    tags: tuple[str, ...] = ()
    max_waiting: int = 0  #: calls that may wait in its lane, itself included; 0: no bound
    max_body_bytes: int = MOST_BODY_BYTES  #: of its arguments and canvas
    estimated: Estimated | None = None  #: None: its task says what it costs
    timeout_s: float | None = None  #: of one attempt; None: as lane and settings say, or by what is learned
    sharing: Sharing | None = None  #: None: it is made, whatever was answered or is on its way
    shedding: Shedding | None = None  #: None: it waits in EMERGENCY and HALT
    sender: Sender = Sender.BY_NAME
    continuation: Continuation | None = None  #: None: it is made for the first time
    fingerprint: str | None = None  #: of the calls that share its answer; None: not decided yet, or it shares nothing
    version: int = SCHEMA_VERSION  #: of the schema in which it was written
    newer: Mapping[str, Any] | None = None  #: fields of its header that this version does not know

    @property
    def model(self) -> str | None:
        """The model under which its tokens and latencies are learned; None: its task says what it costs."""
        return self.estimated.model if self.estimated is not None else None

    @property
    def goes_on(self) -> bool:
        """Whether its task sends it again (`self.retry`, `self.replace`)."""
        return self.continuation is not None and self.continuation.goes_on

    @property
    def is_anew(self) -> bool:
        """Whether it had ended, and is made anew under its id."""
        return self.continuation is not None and self.continuation.ended

    def encode(self) -> dict[str, Any]:
        """The header: plain values that JSON takes."""
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
        if self.sender is not Sender.BY_NAME:
            header["at_once"] = self.sender is Sender.CALLER
        if self.continuation is not None:
            _put_continuation(header, self.continuation)
        if self.fingerprint is not None:
            header["fp"] = self.fingerprint
        if self.newer is not None:
            header.update(self.newer)
        return header

    @classmethod
    def decode(cls, header: Mapping[str, Any]) -> Plan:
        """The plan of a header, written by this version or another one.

        What comes out of a queue is checked field by field before that (`worker.fields`).

        Raises:
            BadInput: it is no plan.
        """
        try:
            return cls._decoded(header)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"the header {HEADER} of this message is no plan ({type(error).__name__})") from error

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
            sender=Sender.BY_NAME if at_once is None else Sender.CALLER if at_once else Sender.NOBODY,
            continuation=Continuation(
                attempts=number or 0, tries=get("tries") or 0, goes_on=bool(again), ended=bool(anew)
            )
            if again or anew or number or get("tries")
            else None,
            fingerprint=get("fp"),
            version=get("v") or SCHEMA_VERSION,
            newer=None
            if fields.issuperset(header)
            else {name: value for name, value in header.items() if name not in fields},
        )


#: A look-up, which takes a tenth of the time that an Enum's call does.
_PRIORITIES: dict[str | None, Priority] = {priority.value: priority for priority in Priority}
_PRIORITIES[None] = Priority.NORMAL
#: All names in the header.
NAMES = frozenset(
    {
        *("v", "lane", "tenant", "weight", "class", "cost", "deadline", "context", "tags", "pub"),
        *("max_waiting", "max_bytes", "size", "timeout", "ttl", "stale", "join", "cache_entries", "cache_bytes"),
        *("short", "sheds", "at_once", "number", "anew", "again", "tries", "fp", "fresh", "unkept", "heirs", "ns"),
    }
)


class Described(NamedTuple):
    """What is said of a call in the history, by whoever made it."""

    context: str
    tags: tuple[str, ...]


def described(header: Any) -> Described:
    """What a header of any shape says of its call, whose message is refused; nothing where that is no text."""
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
        header["fp"] = None  # versions before read it so; it is filled in where there is one
        header["tries"] = continuation.tries


def _put_choices(header: dict[str, Any], sharing: Sharing) -> None:
    """What few calls say of how they share."""
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
    )
