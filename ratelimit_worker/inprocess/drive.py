"""Who does the steps of an in-process call? A driver: one blocks the caller's thread, the other awaits in its loop."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from ratelimit_worker.calls import Sighting, Timeouts, sighting, within
from ratelimit_worker.flow.call.admit import Ask, News, Run, Sleep, Step, Steps, Wait, inside
from ratelimit_worker.flow.call.conclude import Ran

Mail = str | News

ASK_THREADS = 4  #: do the short I/O of coroutines


class InThread:
    """Does the steps in the caller's thread.

    Args:
        sleep: Waits so many seconds.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep
        self._mail: SimpleQueue[Mail] = SimpleQueue()

    def mailbox(self) -> Callable[[Mail], None]:
        """A new mailbox for the next wait."""
        self._mail = SimpleQueue()
        return self._mail.put

    def drive(self, steps: Steps, attempt: Callable[[], Any]) -> Any:
        """Do all steps → what `attempt` returned.

        Raises:
            Exception: what `attempt` or a step raised.
        """
        resume: Callable[[], Step] = partial(next, steps)
        while True:
            try:
                step = resume()
            except StopIteration as end:
                return _outcome(end.value)
            try:
                given = self._do(step, attempt)
            except BaseException as error:
                resume = partial(steps.throw, error)
            else:
                resume = partial(steps.send, given)

    def _do(self, step: Step, attempt: Callable[[], Any]) -> Any:
        match step:
            case Ask(do):
                return do()
            case Wait(_, most_s):
                try:
                    return self._mail.get(timeout=min(most_s, threading.TIMEOUT_MAX))
                except Empty:
                    return News.LATE
            case Sleep(for_s):
                return self._sleep(for_s) if for_s > 0 else None
            case Run(turn, timeouts, lane):
                with _inside(turn), within(timeouts), sighting(lane, sent_again=turn is not None) as seen:
                    started_s = time.monotonic()
                    try:
                        value = attempt()
                    except Exception as error:
                        return _ended(started_s, seen, timeouts, error=error)
                    return _ended(started_s, seen, timeouts, value=value)


class InLoop:
    """Does the steps in the caller's event loop: I/O in a few threads, the attempt in the loop itself."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._mail: asyncio.Queue[Mail] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def mailbox(self) -> Callable[[Mail], None]:
        """A new mailbox for the next wait."""
        mail = self._mail = asyncio.Queue()

        def put(news: Mail) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(mail.put_nowait, news)

        return put

    async def drive(self, steps: Steps, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Do all steps → what `attempt` returned.

        Raises:
            Exception: what `attempt` or a step raised.
        """
        resume: Callable[[], Step] = partial(next, steps)
        try:
            while True:
                try:
                    step = resume()
                except StopIteration as end:
                    return _outcome(end.value)
                try:
                    given = await self._do(step, attempt)
                except BaseException as error:
                    resume = partial(steps.throw, error)
                else:
                    resume = partial(steps.send, given)
        finally:
            steps.close()  # a coroutine that is thrown away leaves its turn

    async def _do(self, step: Step, attempt: Callable[[], Awaitable[Any]]) -> Any:
        match step:
            case Ask(do):
                return await self._loop.run_in_executor(_threads(), do)
            case Wait(_, most_s):
                try:
                    return await asyncio.wait_for(self._mail.get(), most_s)
                except TimeoutError:
                    return News.LATE
            case Sleep(for_s):
                return await self._sleep(for_s) if for_s > 0 else None
            case Run(turn, timeouts, lane):
                with _inside(turn), within(timeouts), sighting(lane, sent_again=turn is not None) as seen:
                    started_s = time.monotonic()
                    try:
                        value = await attempt()
                    except Exception as error:
                        return _ended(started_s, seen, timeouts, error=error)
                    return _ended(started_s, seen, timeouts, value=value)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine; looks through partials and the wrappers of SDKs."""
    while isinstance(function, partial):
        function = function.func
    return any(
        inspect.iscoroutinefunction(inspect.unwrap(candidate)) or inspect.iscoroutinefunction(candidate)
        for candidate in (function, getattr(function, "__call__", function))  # noqa: B004 - an object may be async
    )


def _ended(started_s: float, seen: Sighting, timeouts: Timeouts, **came: Any) -> Ran:
    """What came of an attempt that has just ended: its `value` or its `error`."""
    return Ran(started_s=started_s, ended_s=time.monotonic(), seen=seen.so_far(), timeouts=timeouts, **came)


def _outcome(ran: Ran) -> Any:
    if ran.error is not None:
        try:
            raise ran.error
        finally:
            del ran  # no cycle through the traceback
    return ran.value


@contextmanager
def _inside(turn: Any | None) -> Iterator[None]:
    if turn is None:
        yield
        return
    token = inside.set((*inside.get(), turn))
    try:
        yield
    finally:
        inside.reset(token)


_pool: tuple[int, ThreadPoolExecutor] | None = None


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        _pool = (os.getpid(), ThreadPoolExecutor(ASK_THREADS, thread_name_prefix="rlw-ask"))
    return _pool[1]
