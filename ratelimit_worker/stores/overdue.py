"""Which calls still hold a thread of a worker though their time is over? Each worker names its own."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from redis import Redis

from ratelimit_worker.stores import keys

TTL_S = 60  #: of all, after the last worker named one


class OverdueCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that was given up while its function still runs."""

    call_id: str
    lane: str
    task: str
    deadline_s: float  #: seconds since the epoch
    replaced: bool  #: whether its worker runs another in its place
    worker: str = ""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[OverdueCall]).decode


class Overdues:
    """As Redis holds them."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def tell(self, worker: str, calls: Sequence[OverdueCall]) -> None:
        """All of a worker; none: it has none any more.

        Raises:
            redis.RedisError: it is away.
        """
        if not calls:
            self._client.hdel(keys.OVERDUE, worker)
            return
        with self._client.pipeline(transaction=False) as pipe:
            pipe.hset(keys.OVERDUE, worker, _encode(list(calls)))
            pipe.expire(keys.OVERDUE, TTL_S)
            pipe.execute()


def read(raw: dict[bytes, bytes], living: frozenset[str]) -> tuple[OverdueCall, ...]:
    """Those of the workers that live; a newer version's entry that cannot be read is left out."""
    found: list[OverdueCall] = []
    for worker, packed in sorted(raw.items()):
        name = worker.decode("utf-8", "replace")
        if name not in living:
            continue
        try:
            found += [msgspec.structs.replace(call, worker=name) for call in _decode(packed)]
        except msgspec.MsgspecError:
            continue
    return tuple(found)
