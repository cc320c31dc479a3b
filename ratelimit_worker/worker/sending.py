"""Event loops send calls by a few threads of the process, since Celery's own sending blocks.

The loop's own thread pool is not used, since long work may keep it busy. While Redis does not answer, each send takes
its 2 s. Sends that had to wait behind those fail at once, so a thousand of them end as soon as one.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from kombu.exceptions import OperationalError
from redis import RedisError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.decide import DECIDE_S, unanswered

T = TypeVar("T")

THREADS = 4
AWAY = (RedisError, OperationalError, OSError)  #: what Celery raises if Redis is away


class _Room:
    """A semaphore for a loop's coroutines that are in a thread, and how many use it."""

    def __init__(self) -> None:
        self.semaphore = asyncio.Semaphore(THREADS)
        self.users = 0


class Sending:
    """The threads of one process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="ratelimit-worker-send")
        self._failures, self._failed_at = 0, 0.0  #: failures in a row, and when the last one was
        self._rooms: dict[asyncio.AbstractEventLoop, _Room] = {}  #: of loops that are sending

    async def in_thread(self, send: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `send(*args, **kwargs)` in one of them, in the context of the awaiting code.

        Raises:
            StoreUnavailable: Also without an attempt, if meanwhile every thread has found Redis away and no time is
                left to try again.
        """
        asked_at, context = self._clock(), contextvars.copy_context()
        call = partial(context.run, self._send, asked_at, partial(send, *args, **kwargs))
        loop = asyncio.get_running_loop()
        # Thousands may be sent at once: while the loop starts them, threads hardly run, and their 2 s must not begin.
        await asyncio.sleep(0)
        room = self._rooms.setdefault(loop, _Room())
        room.users += 1
        try:
            async with room.semaphore:
                return await loop.run_in_executor(self._pool, call)
        finally:
            room.users -= 1
            if not room.users:  # the semaphore refers to the loop, which would be kept for ever
                del self._rooms[loop]

    def _send(self, asked_at: float, send: Callable[[], T]) -> T:
        late = self._clock() - asked_at >= DECIDE_S
        # a single failure may only mean a busy machine
        if late and self._failures >= THREADS and self._failed_at > asked_at:
            raise unanswered()
        try:
            done = send()
        except StoreUnavailable:
            self._failures, self._failed_at = self._failures + 1, self._clock()
            raise
        self._failures = 0
        return done


_sending: Sending | None = None
_lock = threading.Lock()


async def in_thread(send: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """`Sending.in_thread` of this process."""
    global _sending
    with _lock:
        if _sending is None:
            _sending = Sending()
    return await _sending.in_thread(send, *args, **kwargs)


def _after_fork() -> None:
    global _sending, _lock
    _sending, _lock = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
