"""What have reused answers saved? Sums by minute in Redis, until the roll-ups hold them.

The scripts write them (lua/shared/reuse.lua). A minute that is over is added to the tracking database under a name of
its own, and removed here: added twice, or by two recorders, it counts once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import redis
from redis.client import Pipeline

from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey, Cells, NamedSums, Series
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.storable import storable_series

log = logging.getLogger(__name__)

#: Prefix of the names of these sums in the tracking database.
NAMED = "reuse:"
_NAME, _SUMS = b"name", b"sums"
_NAMES = frozenset(Reuse)
_series = msgspec.msgpack.Decoder(tuple[str, str, str, str]).decode
_sums = msgspec.msgpack.Decoder(dict[str, float]).decode


class ReuseMinutes:
    """The minutes that are not in the tracking database yet.

    All methods raise `StoreUnavailable` where Redis is away.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def over(self, most: int = 60) -> list[NamedSums]:
        """Minutes that are over, the oldest first: nothing is added to them any more."""
        with redis_errors():
            now: Any = self._client.time()
            return self._read(0, now[0] // MINUTE_S, most)

    def since(self, since_s: float) -> list[NamedSums]:
        """All minutes that begin from `since_s` on, seconds since the epoch."""
        with redis_errors():
            return self._read(int(-(-since_s // MINUTE_S)), None, None)

    def forget(self, sums: NamedSums) -> None:
        """Remove sums that are in the tracking database."""
        minute = min(key.at_s for key in sums.cells) // MINUTE_S
        name = sums.name.removeprefix(NAMED).encode()
        with redis_errors():
            self._client.transaction(lambda pipe: self._drop(pipe, minute, name), keys.reuse(minute))

    def _drop(self, pipe: Pipeline, minute: int, name: bytes) -> None:
        same = pipe.hget(keys.reuse(minute), _NAME.decode()) == name
        pipe.multi()
        if same:
            pipe.delete(keys.reuse(minute))
            pipe.zrem(keys.REUSE_MINUTES, str(minute))

    def _read(self, first: int, before: int | None, most: int | None) -> list[NamedSums]:
        """Minutes from `first` on and before `before` (None: all)."""
        last = "+inf" if before is None else f"({before}"
        found: Any = self._client.zrangebyscore(keys.REUSE_MINUTES, first, last, 0, -1 if most is None else most)
        minutes = [int(name) for name in found]
        with self._client.pipeline(transaction=False) as pipe:
            for minute in minutes:
                pipe.hgetall(keys.reuse(minute))
            told = cast("Sequence[dict[bytes, bytes]]", pipe.execute()) if minutes else ()
        read = [_named(minute, fields) for minute, fields in zip(minutes, told, strict=True)]
        ended = [minute for minute, sums in zip(minutes, read, strict=True) if sums is None]
        if ended:
            self._client.zrem(keys.REUSE_MINUTES, *ended)
        return [sums for sums in read if sums is not None]


def _named(minute: int, fields: Mapping[bytes, bytes]) -> NamedSums | None:
    """The sums of one minute; None: its hash has expired, or nothing in it can be read."""
    cells: Cells = {}
    unread = 0
    for field, value in fields.items():
        if field == _NAME:
            continue
        try:
            name, series, sums = _field(field, value)
        except (msgspec.MsgspecError, ValueError):
            unread += 1
            continue
        key = CellKey(minute * MINUTE_S, storable_series(series))
        cell = cells.get(key)
        if cell is None:
            cell = cells[key] = Cell(reuse={})
        for name, number in sums.items():
            if name in _NAMES:
                cell.reuse[name] = cell.reuse.get(name, 0) + round(number)
    if unread:
        log.error("reuse.unreadable", extra={"minute": minute, "fields": unread})
    name = fields.get(_NAME, b"").decode("ascii", "replace")
    return NamedSums(NAMED + name, cells) if name and cells else None


def _field(field: bytes, value: bytes) -> tuple[str, Series, Mapping[str, float]]:
    kind, _, packed = field.partition(b":")
    name = kind.decode()
    series = Series(*_series(packed), model="")
    return name, series, _sums(value) if kind == _SUMS else {name: float(value)}
