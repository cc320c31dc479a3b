"""What does `.delay()` return? An AsyncResult that can also be awaited, and whose revoke empties the lane."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import suppress
from typing import Any

from celery.result import AsyncResult, EagerResult
from redis import RedisError

from ratelimit_worker.worker.backend import ResultConsumer
from ratelimit_worker.worker.installed import services_of
from ratelimit_worker.worker.lost import ended

FIRST_POLL_S, MOST_POLL_S = 0.01, 0.5


class CallResult(AsyncResult):
    """Celery's AsyncResult, for a call."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        pause_s = FIRST_POLL_S
        while not await asyncio.to_thread(self._look):
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_POLL_S, pause_s * 1.5)
        return self.get(disable_sync_subtasks=False)

    def _look(self) -> bool:
        """Whether the answer is there; a Redis that is away is waited for."""
        try:
            if self.ready():
                ended(self.id)
                return True
        except (RedisError, OSError):
            return False
        consumer = self.backend.result_consumer
        if isinstance(consumer, ResultConsumer):
            consumer.search.turn((self,))
        return False

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        """As Celery's; a call that waits leaves its lane then and there, with or without a worker."""
        taken = bool(services_of(self.app).lanes.revoke(self.id))
        super().revoke(*args, **kwargs)
        if taken:
            self.backend.mark_as_revoked(self.id, "revoked", store_result=True)

    def __del__(self) -> None:
        # Celery's own prints a page of traceback for each result that outlives its connection, or the interpreter.
        with suppress(Exception):
            super().__del__()


class EagerCall(EagerResult):
    """Celery's EagerResult, which can also be awaited."""

    @classmethod
    def of(cls, found: EagerResult) -> EagerCall:
        """The same result, as one of a call."""
        return cls(*found.__reduce_args__())

    def __await__(self) -> Generator[Any, None, Any]:
        return self._got().__await__()

    async def _got(self) -> Any:
        return self.get(disable_sync_subtasks=False)
