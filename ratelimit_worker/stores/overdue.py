"""Overdue calls: given up, although they still hold a thread of a worker. Each worker lists its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from redis import Redis

from ratelimit_worker.stores import keys

TTL_S = 60  #: TTL of the whole list, after a worker last wrote to it
SILENT_S = 30.0  #: entries of a worker that was silent for this long are ignored; clocks may differ


class OverdueCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was given up while its function still runs."""

    call_id: str
    lane: str
    task: str
    deadline_s: float  #: seconds since the epoch
    replaced: bool  #: whether its worker runs another in its place
    told_s: float  #: when its worker last listed it, seconds since the epoch


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[OverdueCall]).decode


class Overdues:
    """As Redis holds them."""

    def __init__(self, client: Redis) -> None:
        self._client, self._key = client, keys.OVERDUE

    def tell(self, worker: str, calls: Sequence[OverdueCall]) -> None:
        """Replace the list of a worker.

        Raises:
            redis.RedisError: Redis is away.
        """
        if not calls:
            self._client.hdel(self._key, worker)
            return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hset(self._key, worker, _encode(list(calls)))
            pipe.expire(self._key, TTL_S)
            pipe.execute()

    def read(self, at_s: float) -> tuple[OverdueCall, ...]:
        """Overdue calls of all workers that have listed them recently.

        Args:
            at_s: Now, seconds since the epoch.
        Raises:
            redis.RedisError: Redis is away.
        """
        raw: Any = self._client.hgetall(self._key)
        found: list[OverdueCall] = []
        for packed in raw.values():
            with suppress(msgspec.MsgspecError):  # a newer version's
                found += [call for call in _decode(packed) if at_s - call.told_s < SILENT_S]
        return tuple(sorted(found, key=lambda call: (call.deadline_s, call.call_id)))
