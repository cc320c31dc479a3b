"""Which messages were set aside, since no worker could take them? As they came, and why."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors

MOST = 1_000  #: most messages that are kept
TTL_S = 7 * 86_400
MOST_BYTES = 65_536  #: most bytes kept of each; a longer message is cut, and can only be looked at


class _Stored(msgspec.Struct, frozen=True):
    why: str = ""
    raw: str = ""
    queue: str = ""  #: "": an older version did not store it
    at_s: float = 0.0


class _Headers(msgspec.Struct, frozen=True):
    id: str = ""
    task: str = ""


class _Message(msgspec.Struct, frozen=True):
    headers: _Headers = _Headers()


class SetAside(msgspec.Struct, frozen=True, kw_only=True):
    """One message that was set aside."""

    stored: bytes  #: its entry in the list
    raw: bytes  #: the message
    why: str
    queue: str
    at_s: float  #: seconds since the epoch; 0: not known
    call_id: str  #: "": it cannot be read
    task: str

    @property
    def whole(self) -> bool:
        """Whether nothing of it was cut."""
        return len(self.raw) < MOST_BYTES


def encode(raw: bytes, why: str, queue: str) -> bytes:
    """A message as the list keeps it."""
    return msgspec.json.encode(_Stored(why, raw[:MOST_BYTES].decode("utf-8", "replace"), queue, time.time()))


def decode(stored: bytes) -> SetAside | None:
    """An entry of the list, of this version or an older one; None: it cannot be read."""
    try:
        kept = msgspec.json.decode(stored, type=_Stored)
    except msgspec.MsgspecError:
        return None
    try:
        headers = msgspec.json.decode(kept.raw, type=_Message).headers
    except msgspec.MsgspecError:
        headers = _Headers()
    return SetAside(
        stored=stored,
        raw=kept.raw.encode(),
        why=kept.why,
        queue=kept.queue,
        at_s=kept.at_s,
        call_id=headers.id,
        task=headers.task,
    )


def read(client: Redis, most: int = MOST) -> list[SetAside]:
    """The newest messages that were set aside.

    Raises:
        StoreUnavailable: Redis is away.
    """
    with redis_errors():
        raw: Any = client.lrange(keys.MALFORMED, 0, most - 1)
    return [one for one in map(decode, raw) if one is not None]


def drop(client: Redis, one: SetAside) -> bool:
    """Take one out of the list → whether it was there.

    Raises:
        StoreUnavailable: Redis is away.
    """
    with redis_errors():
        return bool(client.lrem(keys.MALFORMED, 1, one.stored))  # type: ignore[arg-type]  # bytes are a value too
