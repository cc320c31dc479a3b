"""The pins: one small hash for the whole cluster: lane, or "*" for all, → pin.

It is one hash, and not a field in each lane, so that the tuner reads all pins at once, and a lane that does not exist
yet can be pinned. An entry stays after its end until the lanes have been given back, so readers must compare times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any, NamedTuple

import msgspec
from redis import Redis, WatchError

from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s

log = logging.getLogger(__name__)

_MANY = 100  #: pins
_READ_AGAIN_S = 1.0
_SAID_TTL_S = 86_400


class _Read(NamedTuple):
    """What was read last."""

    pins: Mapping[str, Pin] = {}
    changes: bytes | None = None  #: number of changes made until then
    at_s: float = float("-inf")  #: monotonic


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


class Pins:
    """The pins of one Redis server. Methods raise redis-py's errors, like those of `Lanes`."""

    def __init__(self, client: Redis) -> None:
        self.client = client
        self._read = _Read()

    def now(self) -> float:
        """Seconds since the epoch, Redis clock."""
        return redis_now_s(self.client)

    def read(self) -> Mapping[str, Pin]:
        """Pins by lane, also those that have ended; pins that cannot be read (a newer version's) are left out.

        If there are many, all are read only after a change. Older versions do not count their changes, so those are
        seen within `_READ_AGAIN_S`.
        """
        before, at_s = self._read, monotonic()
        if len(before.pins) > _MANY and at_s - before.at_s < _READ_AGAIN_S and self._changes() == before.changes:
            return before.pins
        with self.client.pipeline(transaction=True) as pipe:
            pipe.get(keys.PINS_CHANGES)
            pipe.hgetall(keys.PINS)
            changes, raw = pipe.execute()
        found: dict[str, Pin] = {}
        for lane, packed in raw.items():
            try:
                found[lane.decode()] = _decode(packed)
            except msgspec.MsgspecError:
                log.warning("pin.unreadable", extra={"lane": lane.decode()})
        self._read = _Read(found, changes, at_s)
        return found

    def write(self, pins: Mapping[str, Pin]) -> None:
        """Set them, all at once."""
        if pins:
            with self.client.pipeline(transaction=True) as pipe:
                pipe.hset(keys.PINS, mapping={lane: _encode(pin) for lane, pin in pins.items()})
                self._say(pipe)
                pipe.execute()

    def drop(self, pins: Mapping[str, Pin]) -> None:
        """Delete these entries, except those that were pinned anew meanwhile."""
        if not pins:
            return
        with self.client.pipeline(transaction=True) as pipe:
            pipe.watch(keys.PINS)  # type: ignore[no-untyped-call]
            held: Any = pipe.hmget(keys.PINS, list(pins))
            ended = [
                lane
                for (lane, pin), packed in zip(pins.items(), held, strict=True)
                if packed is not None and _id(packed) == pin.id
            ]
            if not ended:
                return
            pipe.multi()
            pipe.hdel(keys.PINS, *ended)
            self._say(pipe)
            try:
                pipe.execute()
            except WatchError:  # another pin came in between; it is done at the next look
                log.info("pin.not_dropped", extra={"lanes": len(ended)})

    def _changes(self) -> Any:
        return self.client.get(keys.PINS_CHANGES)

    def _say(self, pipe: Any) -> None:
        """Count a change, in the same transaction."""
        pipe.incr(keys.PINS_CHANGES)
        pipe.expire(keys.PINS_CHANGES, _SAID_TTL_S)


def _id(packed: bytes) -> str:
    try:
        return _decode(packed).id
    except msgspec.MsgspecError:
        return ""  # a newer version's, to be dropped by it
