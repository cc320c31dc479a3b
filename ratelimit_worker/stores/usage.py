"""Learned usage and latencies of each task and model.

Each of the two is a hash in Redis, with a copy in each process that needs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from redis import Redis

from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.estimate import Learned
from ratelimit_worker.policy.timeout import Latencies
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors

log = logging.getLogger(__name__)

TTL_S = 30 * 86_400
MOST_KEPT = 2_000  #: tasks and models; beyond that, the tenth that was not used for longest is deleted
REFRESH_S = 10.0  #: how often a process reads them at most
#: The same for latencies: a new lane learns them within seconds, and they may be needed soon after.
LATENCIES_REFRESH_S = 2.0
MOST_ASKED = 1_000  #: most tasks and models that one process reads

_encode = msgspec.msgpack.Encoder().encode


class _Dated(Protocol):
    """Something learned, with its time."""

    @property
    def at(self) -> float:
        """Time of the last answer that it is learned from, seconds since the epoch."""
        ...


T = TypeVar("T", bound=_Dated)


class Memory(Generic[T]):
    """One hash, by task and model. All methods raise `StoreUnavailable` where Redis is away, full or read-only.

    Two processes that learn at the same time may lose some answers, which a mean over a hundred can bear.
    """

    def __init__(self, client: Redis, key: str, kind: type[T]) -> None:
        self._client, self._key, self._decode = client, key, msgspec.msgpack.Decoder(kind).decode

    def read(self, names: Iterable[str]) -> dict[str, T]:
        """Learned values by name (`estimate.key`); unknown ones, and those of other versions, are left out."""
        wanted = list(names)
        if not wanted:
            return {}
        with redis_errors():
            raw: Any = self._client.hmget(self._key, wanted)
        found = ((name, self._read(value)) for name, value in zip(wanted, raw, strict=True))
        return {name: learned for name, learned in found if learned is not None}

    def everything(self) -> dict[str, T]:
        """All learned values, by name."""
        with redis_errors():
            raw: Any = self._client.hgetall(self._key)
        found = ((name.decode(), self._read(value)) for name, value in raw.items())
        return {name: learned for name, learned in found if learned is not None}

    def write(self, learned: Mapping[str, T]) -> None:
        """Store learned values, for 30 days after the last answer of any task."""
        if not learned:
            return
        with redis_errors():
            with self._client.pipeline(transaction=False) as pipe:
                pipe.hset(self._key, mapping={name: _encode(value) for name, value in learned.items()})
                pipe.expire(self._key, TTL_S)
                pipe.hlen(self._key)
                kept = int(pipe.execute()[2])
            if kept > MOST_KEPT:
                self._forget_quiet(kept - MOST_KEPT + MOST_KEPT // 10)

    def _forget_quiet(self, many: int) -> None:
        raw: Any = self._client.hgetall(self._key)
        known = ((name, self._read(value)) for name, value in raw.items())
        by_age = sorted((0.0 if learned is None else learned.at, name) for name, learned in known)
        self._client.hdel(self._key, *(name for _, name in by_age[:many]))

    def _read(self, raw: bytes | None) -> T | None:
        if raw is None:
            return None
        try:
            return self._decode(raw)
        except msgspec.MsgspecError:  # another version's: learned anew
            return None


class UsageMemory(Memory[Learned]):
    """The hash `rlw:usage`: tokens."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client, keys.USAGE, Learned)


class LatencyMemory(Memory[Latencies]):
    """The hash `rlw:latencies`: how long answers took."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client, keys.LATENCIES, Latencies)


class Copy(Generic[T]):
    """This process's copy: `learned(name)` never blocks. A name that is asked for the first time is unknown at first; a
    thread reads it, and again all names that were asked for, every `every_s` while they are asked for.

    Args:
        memory: Returns the hash; called in that thread.
        clock: Monotonic seconds.
        spawn: Runs a function beside the caller.
    """

    def __init__(
        self,
        memory: Callable[[], Memory[T]],
        clock: Callable[[], float] = time.monotonic,
        spawn: Callable[[Callable[[], None]], None] | None = None,
        every_s: float = REFRESH_S,
    ) -> None:
        self._memory, self._clock, self._spawn = memory, clock, spawn or _in_thread
        self._asked: set[str] = set()
        self._known: Mapping[str, T] = {}
        self._look_at, self._every_s = float("-inf"), every_s

    def __call__(self, name: str) -> T | None:
        """What is known of a task and model (`estimate.key`); None: nothing, or nothing yet."""
        if len(self._asked) < MOST_ASKED:
            self._asked.add(name)
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + self._every_s
            self._spawn(self._look)
        return self._known.get(name)

    def _look(self) -> None:
        try:
            self._known = self._memory().read(tuple(self._asked))
        except (StoreUnavailable, ConfigurationError) as error:
            # Estimates do without; `.delay()` itself says what is wrong.
            log.info("usage.unread", extra={"cause": type(error).__name__})


class LearnedUsage(Copy[Learned]):
    """What this process knows of tokens."""


class LearnedLatencies(Copy[Latencies]):
    """What this process knows of latencies."""

    def __init__(self, memory: Callable[[], LatencyMemory], every_s: float = LATENCIES_REFRESH_S) -> None:
        super().__init__(memory, every_s=every_s)


def _in_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name="rlw-usage", daemon=True).start()
