"""What have the answers of each task and model used, and how long did they take?

Each of the two is a hash in Redis, and a copy in each process that wants to know.
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
MOST_KEPT = 2_000  #: tasks and models; when there are more, a tenth goes, those that were quiet for longest
REFRESH_S = 10.0  #: a process looks so often at most
#: A lane that is new learns how long its answers take in a few seconds, and a provider may hang in the next.
LATENCIES_REFRESH_S = 2.0
MOST_ASKED = 1_000  #: tasks and models that one process looks for

_encode = msgspec.msgpack.Encoder().encode


class _Dated(Protocol):
    """What is learned has a time."""

    @property
    def at(self) -> float:
        """Of the last that taught something, seconds since the epoch."""
        ...


T = TypeVar("T", bound=_Dated)


class Memory(Generic[T]):
    """One hash, by task and model. All methods raise `StoreUnavailable` where Redis is away, full or read-only.

    Two that learn at the same time may lose some of each other's answers; a mean over a hundred of them bears that.
    """

    def __init__(self, client: Redis, key: str, kind: type[T]) -> None:
        self._client, self._key, self._decode = client, key, msgspec.msgpack.Decoder(kind).decode

    def read(self, names: Iterable[str]) -> dict[str, T]:
        """What is known, by name (`estimate.key`); one that is not known, or another version's, is left out."""
        wanted = list(names)
        if not wanted:
            return {}
        with redis_errors():
            raw: Any = self._client.hmget(self._key, wanted)
        found = ((name, self._read(value)) for name, value in zip(wanted, raw, strict=True))
        return {name: learned for name, learned in found if learned is not None}

    def everything(self) -> dict[str, T]:
        """All that is known, by name."""
        with redis_errors():
            raw: Any = self._client.hgetall(self._key)
        found = ((name.decode(), self._read(value)) for name, value in raw.items())
        return {name: learned for name, learned in found if learned is not None}

    def write(self, learned: Mapping[str, T]) -> None:
        """Keep what was learned, for 30 days after the last answer of any task."""
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
    """What this process knows of it: `learned(name)` never waits. What is asked for the first time is not known yet; a
    thread of its own looks for it, and again for all that was asked for every `every_s` while somebody asks.

    Args:
        memory: Gives the hash; called in that thread.
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
