"""Which modes are pinned by hand? One small hash for the whole cluster: lane, or "*" for all, → pin.

One hash and not a field in each lane, so that the tuner sees all pins in one look, and a lane that is not yet known
can be pinned. An entry stays past its end until the lanes have been given back; whoever reads compares the times.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec
from redis import Redis, WatchError

from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pin).decode


class Pins:
    """The pins of one Redis server. Errors of redis-py go on as they are, like those of `Lanes`."""

    def __init__(self, client: Redis) -> None:
        self.client = client

    def now(self) -> float:
        """Seconds since the epoch, Redis clock."""
        return redis_now_s(self.client)

    def read(self) -> dict[str, Pin]:
        """Pins by lane, those that have ended too; one that cannot be read (a newer version's) is left out."""
        raw: Any = self.client.hgetall(keys.PINS)
        found: dict[str, Pin] = {}
        for lane, packed in raw.items():
            try:
                found[lane.decode()] = _decode(packed)
            except msgspec.MsgspecError:
                log.warning("pin.unreadable", extra={"lane": lane.decode()})
        return found

    def write(self, pins: Mapping[str, Pin]) -> None:
        """Set them, all at once."""
        if pins:
            self.client.hset(keys.PINS, mapping={lane: _encode(pin) for lane, pin in pins.items()})

    def drop(self, pins: Mapping[str, Pin]) -> None:
        """Delete these entries, but those that somebody has pinned anew meanwhile."""
        for lane, pin in pins.items():
            with self.client.pipeline(transaction=True) as pipe:
                pipe.watch(keys.PINS)  # type: ignore[no-untyped-call]
                held: Any = pipe.hget(keys.PINS, lane)
                if held is None or _id(held) != pin.id:
                    continue
                pipe.multi()
                pipe.hdel(keys.PINS, lane)
                try:
                    pipe.execute()
                except WatchError:
                    log.info(
                        "pin.not_dropped", extra={"lane": lane}
                    )  # another pin came in between: the next look does it


def _id(packed: bytes) -> str:
    try:
        return _decode(packed).id
    except msgspec.MsgspecError:
        return ""  # a newer version's, to be dropped by it
