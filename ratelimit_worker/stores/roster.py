"""Which calls are in lanes, or out at workers? Read from the lanes' own keys, as many at a time as a page needs.

A lane may hold a million calls: a search looks at the first few thousand, in the order in which they go, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
from redis import Redis

from ratelimit_worker.calls import Failure
from ratelimit_worker.contracts.call import Record
from ratelimit_worker.contracts.plan import HEADER
from ratelimit_worker.contracts.search import CANCELLABLE, CallState, Found, Wanted
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.desks import PREFIX
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.live import CallNow, Live
from ratelimit_worker.stores.reach import redis_errors

MOST_LOOKED_AT = 5_000  #: calls that one search looks at
_AT_ONCE = 500  #: calls that are read in one round trip
_LANES = 200  #: most lanes with calls that are searched if no lane is named


class _Plan(msgspec.Struct, frozen=True):
    context: str | None = None


class _Headers(msgspec.Struct, frozen=True):
    id: str = ""
    task: str = ""
    plan: _Plan = msgspec.field(default_factory=_Plan, name=HEADER)


class _Message(msgspec.Struct, frozen=True):
    headers: _Headers = msgspec.field(default_factory=_Headers)


#: A call's state and record, with its message and its last failure as they are stored.
_Kept = tuple[CallState, Record, list[bytes | None]]

_message = msgspec.json.Decoder(_Message)
_failure = msgspec.msgpack.Decoder(Failure)


class Roster(NamedTuple):
    """What a search of the lanes has found."""

    calls: tuple[Found, ...]
    looked_at: int  #: calls
    whole: bool  #: nothing was left out


def look(client: Redis, wanted: Wanted) -> Roster:
    """The calls in lanes that are wanted: first those that are out, then those that wait, in their order.

    Raises:
        StoreUnavailable: Redis is away.
    """
    with redis_errors():
        found: list[Found] = []
        looked_at, whole = 0, True
        if wanted.call_id:
            places = iter([(_state(call), call.record.ref) for call in Live(client).call(wanted.call_id)])
        else:
            lanes = [wanted.lane] if wanted.lane else sorted(Lanes(client).working(_LANES))
            places = _places(client, lanes, wanted.state)
        some: list[tuple[CallState, str]] = []
        for place in places:
            if looked_at + len(some) >= MOST_LOOKED_AT or len(found) > wanted.most:
                whole = False
                break
            some.append(place)
            if len(some) == _AT_ONCE:
                found += _those(client, some, wanted)
                looked_at, some = looked_at + len(some), []
        found += _those(client, some, wanted)
        return Roster(tuple(found[: wanted.most]), looked_at + len(some), whole and len(found) <= wanted.most)


def _state(call: CallNow) -> CallState:
    if call.lease_end_s is not None:
        return CallState.RUNNING if call.begun else CallState.READY
    if call.leader is not None:
        return CallState.FOLLOWING
    return CallState.LATER if call.due_s is not None else CallState.WAITING


def in_lanes(client: Redis, call_ids: Sequence[str]) -> set[str]:
    """Which of these calls are in a lane or out.

    Raises:
        StoreUnavailable: Redis is away.
    """
    if not call_ids:
        return set()
    with redis_errors(), client.pipeline(transaction=False) as pipe:
        for call_id in call_ids:
            pipe.exists(keys.call(call_id))
        return {call_id for call_id, there in zip(call_ids, pipe.execute(), strict=True) if there}


def _those(client: Redis, places: Sequence[tuple[CallState, str]], wanted: Wanted) -> list[Found]:
    """Those that are wanted, of these calls and of their followers."""
    records = _read(client, places)
    claims = {record.claim for _, record, _ in records if record.claim}
    if claims and wanted.state in {None, CallState.FOLLOWING}:
        with client.pipeline(transaction=False) as pipe:
            for claim in sorted(claims):
                pipe.zrange(keys.followers(claim), 0, _AT_ONCE - 1)
            follow = [(CallState.FOLLOWING, ref.decode()) for refs in pipe.execute() for ref in refs]
        records += _read(client, follow)
    calls = (_found(state, record, *kept) for state, record, kept in records)
    return [call for call in calls if wanted.takes(call)]


def _read(client: Redis, places: Sequence[tuple[CallState, str]]) -> list[_Kept]:
    if not places:
        return []
    with client.pipeline(transaction=False) as pipe:
        for _, ref in places:
            pipe.hmget(keys.call(ref), ("i", "m", "w"))
        raw = pipe.execute()
    read = (
        (state, Record.decode(ref, packed), kept) for (state, ref), (packed, *kept) in zip(places, raw, strict=True)
    )
    return [(state, record, kept) for state, record, kept in read if record is not None]


def _found(state: CallState, record: Record, message: bytes | None, failed: bytes | None) -> Found:
    try:
        headers = _message.decode(message or b"{}").headers
    except msgspec.MsgspecError:
        headers = _Headers()
    try:
        failure = _failure.decode(failed) if failed else None
    except msgspec.MsgspecError:
        failure = None
    return Found(
        call_id=headers.id or record.ref,
        state=state,
        lane=record.lane,
        task=headers.task,
        queue=record.queue,
        tenant=record.tenant,
        priority=record.priority,
        context=headers.plan.context or "",
        at_s=record.accepted_s,
        attempts=record.number,
        category=failure.category if failure is not None else None,
        cause=failure.cause if failure is not None else "",
        can_cancel=state in CANCELLABLE and not record.queue.startswith(PREFIX),
    )


def _places(client: Redis, lanes: Sequence[str], wanted: CallState | None) -> Iterator[tuple[CallState, str]]:
    """The calls of these lanes in this state, those that are out first; followers are found through their leaders."""
    every = wanted in {None, CallState.FOLLOWING}
    for lane in lanes if every or wanted in {CallState.RUNNING, CallState.READY} else ():
        tags: Any = client.zrange(keys.out(lane), 0, MOST_LOOKED_AT - 1, withscores=True)
        for tag, begun in sorted(tags, key=lambda pair: -pair[1]):
            state = CallState.RUNNING if begun else CallState.READY
            if every or state is wanted:
                yield state, tag.decode().rpartition(".")[0]
    for lane in lanes:
        queues: Any = client.smembers(keys.queues(lane))
        for queue in sorted(name.decode() for name in queues):
            for state, name in (
                (CallState.WAITING, keys.waiting(lane, queue)),
                (CallState.LATER, keys.due(lane, queue)),
            ):
                if every or state is wanted:
                    yield from ((state, ref) for ref in _members(client, name))


def _members(client: Redis, name: str) -> Iterator[str]:
    start = 0
    while True:
        refs: Any = client.zrange(name, start, start + _AT_ONCE - 1)
        yield from (ref.decode() for ref in refs)
        if len(refs) < _AT_ONCE:
            return
        start += _AT_ONCE
