"""Who does the steps of an in-process call? A driver: one blocks the caller's thread, the other awaits in its loop.

The order of the steps and the context of an attempt are the same for both; they differ in how they wait.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from queue import Empty, SimpleQueue
from types import FunctionType, MethodType
from typing import Any

from ratelimit_worker.calls import sighting, within
from ratelimit_worker.flow.call.admit import Ask, Enter, News, Run, Sleep, Step, Steps, Wait, inside
from ratelimit_worker.flow.call.conclude import Ran
from ratelimit_worker.inprocess.asks import ask, ask_jointly

Mail = str | News


class Course:
    """The steps of one call, one after the other: what both drivers do between two waits."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._ran: Ran | None = None
        self.step: Step | None = None  #: the one to be done; None: there is none left
        self._go(partial(next, steps))

    def give(self, done: Any) -> None:
        """The step is done, with this result."""
        self._go(partial(self._steps.send, done))

    def fail(self, error: BaseException) -> None:
        """The step has failed: what is left of the call deals with that, or raises it."""
        self._go(partial(self._steps.throw, error))

    def outcome(self) -> Any:
        """What the attempt that counts has returned.

        Raises:
            Exception: what it raised.
        """
        ran, self._ran = self._ran, None
        assert ran is not None, "there are steps left"
        if ran.error is not None:
            try:
                raise ran.error
            finally:
                del ran  # avoids a reference cycle through the traceback
        return ran.value

    def close(self) -> None:
        """Drop the steps that are left, if any: the call gives up its turn."""
        self._steps.close()

    def _go(self, resume: Callable[[], Step]) -> None:
        try:
            self.step = resume()
        except StopIteration as end:
            self.step, self._ran = None, end.value


class Trial:
    """One attempt: time-outs, tracing and watching around the call of the user's function, and what came of it."""

    def __init__(self, step: Run) -> None:
        self._step = step
        self.value: Any = None
        self.ran: Ran | None = None  #: None: it is not over

    def __enter__(self) -> Trial:
        step = self._step
        step.traced.__enter__()  # before the others, which cannot fail
        self._outer = inside.set((*inside.get(), step.turn)) if step.turn is not None else None
        self._within = within(step.timeouts)
        self._within.__enter__()
        self._sighting = sighting(step.lane, sent_again=step.turn is not None)
        self._seen = self._sighting.__enter__()
        self._started_s = time.monotonic()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        ended_s = time.monotonic()
        self._sighting.__exit__(None, None, None)
        self._within.__exit__(None, None, None)
        if self._outer is not None:
            inside.reset(self._outer)
        self._step.traced.__exit__(None, None, None)  # what the function has raised is told when it is concluded
        if error is not None and not isinstance(error, Exception):
            return False  # it was cancelled, or its process is ending
        self.ran = Ran(
            started_s=self._started_s,
            ended_s=ended_s,
            seen=self._seen.so_far(),
            timeouts=self._step.timeouts,
            **({"error": error} if error is not None else {"value": self.value}),
        )
        return True


class InThread:
    """Does the steps in the caller's thread.

    Args:
        sleep: Waits for some seconds.
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
        course = Course(steps)
        while course.step is not None:
            try:
                done = self._do(course.step, attempt)
            except BaseException as error:
                course.fail(error)
            else:
                course.give(done)
        return course.outcome()

    def _do(self, step: Step, attempt: Callable[[], Any]) -> Any:
        match step:
            case Ask(do, _):
                return do()
            case Enter(desk, call):
                return desk.enter([call])[0].get()
            case Wait(_, most_s):
                try:
                    return self._mail.get(timeout=min(most_s, threading.TIMEOUT_MAX))
                except Empty:
                    return News.LATE
            case Sleep(for_s):
                return self._sleep(for_s) if for_s > 0 else None
            case Run():
                with Trial(step) as trial:
                    trial.value = attempt()
                return trial.ran


class InLoop:
    """Does the steps in the caller's event loop: I/O in a few threads, the attempt in the loop itself."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._mail: asyncio.Queue[Mail]  #: of the last `mailbox`
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
        course = Course(steps)
        try:
            while course.step is not None:
                try:
                    done = await self._do(course.step, attempt)
                except BaseException as error:
                    course.fail(error)
                else:
                    course.give(done)
            return course.outcome()
        finally:
            course.close()

    async def _do(self, step: Step, attempt: Callable[[], Awaitable[Any]]) -> Any:
        match step:
            case Ask(do, waits):
                return await ask(self._loop, do) if waits else do()
            case Enter(desk, call):
                return await ask_jointly(self._loop, desk.enter, call)
            case Wait(_, most_s):
                try:
                    return await asyncio.wait_for(self._mail.get(), most_s)
                except TimeoutError:
                    return News.LATE
            case Sleep(for_s):
                return await self._sleep(for_s) if for_s > 0 else None
            case Run():
                with Trial(step) as trial:
                    trial.value = await attempt()
                return trial.ran


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it returns a coroutine; looks through partials and the wrappers of SDKs."""
    while isinstance(function, partial):
        function = function.func
    plain = function.__func__ if isinstance(function, MethodType) else function
    if isinstance(plain, FunctionType) and not plain.__dict__:  # neither wraps another nor is marked
        return bool(plain.__code__.co_flags & inspect.CO_COROUTINE)
    return any(
        inspect.iscoroutinefunction(inspect.unwrap(candidate)) or inspect.iscoroutinefunction(candidate)
        for candidate in (function, getattr(function, "__call__", function))  # noqa: B004 - an object may be async
    )
