"""When the outbox is nearly full, only sums of its oldest outcomes are kept in Redis, until the database is back.

While the database is away for days, rows would fill Redis. So the oldest are added up by minute and series, as in the
roll-ups, and only the sums are kept: figures stay complete, but these rows are missing. The sums have an id, so that
the database adds them once, even if they are sent several times.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import redis
from redis.client import Pipeline

from ratelimit_worker.calls import Attempt
from ratelimit_worker.contracts.rollup import HOUR_S, CellKey, Cells, NamedSums, Series, decode, encode
from ratelimit_worker.policy import rollup
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.storable import storable

#: Most sums by minute and series; beyond that, sums are kept by hour and lane only.
MOST_MINUTES = 50_000
_NAME = b"name"
_encode_key = msgspec.msgpack.Encoder().encode
_decode_key = msgspec.msgpack.Decoder(tuple[int, str, str, str, str, str]).decode


class Overflow:
    """The sums of an outbox. All methods raise `StoreUnavailable` if Redis is away, full or read-only."""

    def __init__(self, client: redis.Redis, outbox: str, group: str) -> None:
        self._client, self._outbox, self._group = client, outbox, group
        self._key, self._taken = keys.sums(outbox), keys.sums_taken(outbox)

    def add(self, entries: Mapping[str, Attempt]) -> None:
        """Add these outcomes to the sums and remove them, all or none.

        Args:
            entries: By their ids in the outbox.
        """
        calls: dict[str, list[Attempt]] = {}
        for attempt in map(storable, entries.values()):
            calls.setdefault(attempt.call_id, []).append(attempt)
        cells: Cells = {}
        for attempts in calls.values():
            rollup.add_call(cells, sorted(attempts, key=lambda one: one.number))
        with redis_errors("outbox"):
            self._client.transaction(lambda pipe: self._join(pipe, cells, list(entries)), self._key)

    def _join(self, pipe: Pipeline, cells: Cells, entry_ids: Sequence[str]) -> None:
        room = pipe.hlen(self._key) < MOST_MINUTES
        wanted = {_field(key): cell for key, cell in (cells if room else _coarse(cells)).items()}
        known = cast("list[bytes | None]", pipe.hmget(self._key, list(wanted)))
        for cell, before in zip(wanted.values(), known, strict=True):
            if before is not None:
                rollup.merge(cell, decode(before))
        values: dict[Any, Any] = {field: encode(cell) for field, cell in wanted.items()}
        pipe.multi()
        pipe.hsetnx(self._key, _NAME.decode(), uuid.uuid4().hex)
        pipe.hset(self._key, mapping=values)
        pipe.xack(self._outbox, self._group, *entry_ids)
        pipe.xdel(self._outbox, *entry_ids)

    def take(self) -> NamedSums | None:
        """The sums for the database; they are the same until they are removed, and new ones are kept apart. None:
        none."""
        with redis_errors("outbox"):
            if not self._client.exists(self._taken):
                if not self._client.exists(self._key):
                    return None
                self._client.renamenx(self._key, self._taken)
            found = cast("dict[bytes, bytes]", self._client.hgetall(self._taken))
        name = found.pop(_NAME, b"").decode()
        cells = {_key(field): decode(cell) for field, cell in found.items()}
        return NamedSums(name, cells) if name else None

    def forget(self, sums: NamedSums) -> None:
        """Remove sums that are in the tracking database."""
        with redis_errors("outbox"):
            self._client.transaction(lambda pipe: self._drop(pipe, sums.name.encode()), self._taken)

    def _drop(self, pipe: Pipeline, name: bytes) -> None:
        same = pipe.hget(self._taken, _NAME.decode()) == name
        pipe.multi()
        if same:
            pipe.delete(self._taken)


def _field(key: CellKey) -> bytes:
    return _encode_key((key.at_s, *key.series))


def _key(field: bytes) -> CellKey:
    at_s, *names = _decode_key(field)
    return CellKey(at_s, Series(*names))


def _coarse(cells: Cells) -> Cells:
    found: Cells = {}
    for (at_s, series), cell in rollup.longer(cells, HOUR_S).items():
        others = Series(series.lane, rollup.OTHERS, rollup.OTHERS, rollup.OTHERS, rollup.OTHERS)
        known = found.get(key := CellKey(at_s, others))
        found[key] = cell if known is None else rollup.merge(known, cell)
    return found
