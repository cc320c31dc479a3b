"""Who makes a renewal after an answer past its time was given in process? A thread, or a task in the caller's loop.

Redis chooses one caller in the whole cluster for it (`Placed.renews`). The new call waits for its lane like any other,
and nobody waits for its answer. If it fails, or its process ends, another caller is chosen after half a minute.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from ratelimit_worker.flow.call.admit import inside

log = logging.getLogger(__name__)

MOST = 16  #: renewals at once in one process; an answer beyond them is renewed later


class Renewals:
    """The renewals that a process is making."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._tasks: set[asyncio.Task[None]] = set()  #: a loop has only weak references to its tasks

    def in_thread(self, lane: str, call: Callable[[], Any]) -> None:
        """Make the call in a daemon thread; do nothing if there are `MOST` renewals already."""
        if not self._begin():
            return

        def renew() -> None:
            try:
                call()
            except Exception as error:
                _say(lane, error)
            finally:
                self._end()

        try:
            threading.Thread(target=renew, name="rlw-renew", daemon=True).start()
        except RuntimeError as error:  # the process is ending, or can start no thread: the caller has its answer
            self._end()
            _say(lane, error)

    def in_loop(self, lane: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Make the call in a task of the running loop; do nothing if there are `MOST` renewals already."""
        if not self._begin():
            return

        async def renew() -> None:
            try:
                await call()
            except Exception as error:
                _say(lane, error)

        apart = contextvars.copy_context()
        apart.run(inside.set, ())  # the renewal is not part of the call that its caller may be in
        task = asyncio.get_running_loop().create_task(renew(), context=apart)
        self._tasks.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._end()

    def _begin(self) -> bool:
        with self._lock:
            if self._under_way >= MOST:
                return False
            self._under_way += 1
            return True

    def _end(self) -> None:
        with self._lock:
            self._under_way -= 1


def _say(lane: str, error: Exception) -> None:
    log.warning("answer.not_renewed lane=%s cause=%s", lane, type(error).__name__)
