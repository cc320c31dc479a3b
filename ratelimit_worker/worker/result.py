"""`.delay()` returns an AsyncResult that can also be awaited; one connection of the process serves all.

Every result of an app with lanes is of these classes, however it was found. A result of Celery's own class can be
awaited too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from celery import Celery, states
from celery.backends.base import DisabledBackend
from celery.exceptions import TimeoutError
from celery.result import AsyncResult, EagerResult, GroupResult, ResultSet

from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.outage import cause_of
from ratelimit_worker.worker import sending
from ratelimit_worker.worker.backend import ResultConsumer
from ratelimit_worker.worker.waiter import raise_for_failed, results_before

log = logging.getLogger(__name__)

FIRST_POLL_S, MOST_POLL_S = 0.01, 0.5


async def answer_of(result: Any, timeout: float | None = None, propagate: bool = True) -> Any:
    """What a result's `.get()` would return or raise, without a thread that waits.

    Args:
        timeout: Seconds; None: until it comes.
        propagate: Raise what the task, or one before it in its canvas, has failed with; else return it.
    Raises:
        celery.exceptions.TimeoutError: It did not come in time.
    """
    if isinstance(result, ResultSet):
        each = [asyncio.ensure_future(answer_of(one, None, propagate)) for one in result.results]
        try:
            async with _in_time(timeout):
                return await asyncio.gather(*each)
        finally:
            for one in each:  # after a failure, the others are not waited for any more
                one.cancel()
    if isinstance(result, EagerResult):
        return result.get(propagate=propagate, disable_sync_subtasks=False)
    if result.ignored:
        return None
    if isinstance(result.backend, DisabledBackend):
        return result.get(propagate=propagate)  # raises at once
    if not result._cache:
        async with _in_time(timeout):
            await _settled(result, propagate)
    return result.maybe_throw(propagate=propagate)


@asynccontextmanager
async def _in_time(timeout: float | None) -> AsyncIterator[None]:
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except asyncio.TimeoutError as error:  # noqa: UP041 - and not the task's own, nor Celery's
        if not limit.expired():
            raise
        raise TimeoutError("The operation timed out.") from error


async def _settled(result: AsyncResult, propagate: bool) -> None:
    consumer = getattr(result.backend, "result_consumer", None)
    if not isinstance(consumer, ResultConsumer):
        await _polled(result, propagate)
        return
    before = list(results_before(result)) if propagate else []
    loop, woken = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(woken.set)

    with consumer.waiting(result, wake, parents=propagate) as waiter:
        while not waiter.is_over():
            raise_for_failed(before)
            await woken.wait()
            woken.clear()


async def _polled(result: AsyncResult, propagate: bool) -> None:
    """Polls a result backend other than Redis, which cannot notify."""

    def is_over() -> bool:
        if propagate:
            AsyncResult._maybe_reraise_parent_error(result)
        return bool(result.ready())

    pause_s = FIRST_POLL_S
    while not await asyncio.to_thread(is_over):
        await asyncio.sleep(pause_s)
        pause_s = min(MOST_POLL_S, pause_s * 1.5)


async def revoke_unawaited(result: AsyncResult) -> None:
    """Revoke a call that is not awaited any more; if Redis is away, this is logged, and the call stays."""
    try:
        await sending.in_thread(result.revoke)
    except (RateLimitWorkerError, *sending.AWAY) as error:  # the cancellation must go on, and not become this error
        log.warning("revoke.away cause=%s", cause_of(error), extra={"call_id": result.id, "cause": cause_of(error)})


class _Awaitable:
    """Adds awaiting to Celery's classes."""

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """`.get()` for an event loop; `await result` is the same without a time-out.

        Args:
            timeout: Seconds; None: until it comes.
            propagate: Raise what the task, or one before it in its canvas, has failed with; else return it.
        Raises:
            celery.exceptions.TimeoutError: It did not come in time.
        """
        return await self._wait(timeout, propagate)

    async def _wait(self, timeout: float | None = None, propagate: bool = True) -> Any:
        return await answer_of(self, timeout, propagate)


class CallResult(_Awaitable, AsyncResult):
    """Celery's AsyncResult, of an app with lanes."""

    #: Whether to revoke the call if awaiting it is cancelled (`adelay(..., cancel="revoke")`).
    revoked_with_await = False

    async def _wait(self, timeout: float | None = None, propagate: bool = True) -> Any:
        try:
            return await answer_of(self, timeout, propagate)
        except asyncio.CancelledError:
            if self.revoked_with_await and not self._cache:
                await revoke_unawaited(self)
            raise

    def is_known(self, value: Any) -> None:
        """Set a result that is stored already, so that `.get()` need not ask Redis."""
        done = datetime.now(UTC).isoformat()
        more: dict[str, Any] = {"date_done": done, "traceback": None, "children": []}
        self._maybe_set_cache({"task_id": self.id, "status": states.SUCCESS, "result": value, **more})

    def _maybe_reraise_parent_error(self) -> None:
        # Celery's own asks Redis for each step, each second; here waiting callers are notified of them
        if isinstance(getattr(self.backend, "result_consumer", None), ResultConsumer):
            raise_for_failed(results_before(self))
        else:
            super()._maybe_reraise_parent_error()

    def __del__(self) -> None:
        # Celery's own prints a long traceback for each result that outlives its connection or the interpreter.
        with suppress(Exception):
            super().__del__()


class CallSet(_Awaitable, ResultSet):
    """Celery's ResultSet; awaited, it gives the list of answers."""


class CallGroup(_Awaitable, GroupResult):
    """Celery's GroupResult; awaited, it gives the list of answers."""


class EagerCall(EagerResult):
    """Celery's EagerResult, which can also be awaited."""

    @classmethod
    def of(cls, found: EagerResult) -> EagerCall:
        """The same result, in our class."""
        return cls(*found.__reduce_args__())

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """As `aget` of a call that was sent; the value is there already."""
        return await answer_of(self, timeout, propagate)


def give_results(app: Celery) -> None:
    """Make every result of an app one that can be awaited."""
    for name, kind in (("AsyncResult", CallResult), ("ResultSet", CallSet), ("GroupResult", CallGroup)):
        setattr(app, name, app.subclass_with_self(kind, name=name, reverse=name))


def _awaited(self: Any) -> Generator[Any, None, Any]:
    return answer_of(self).__await__()


# `AsyncResult(id, app=app)`, as in status endpoints; for apps without lanes too, since often no app is named
for _kind in (AsyncResult, ResultSet):
    if not hasattr(_kind, "__await__"):
        _kind.__await__ = _awaited
