"""Who asks Redis for coroutines? A few threads of the process, which hand a loop many answers at once."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ratelimit_worker.inprocess.jointly import AnswerAll, Jointly
from ratelimit_worker.inprocess.posts import Post, Posts
from ratelimit_worker.ports import Came

THREADS = 4  #: most threads that ask; what they ask at once travels together
IDLE_S = 10.0  #: after which a thread with nothing to do ends

_Question = tuple[asyncio.AbstractEventLoop, Post, asyncio.Future[Any], contextvars.Context, Callable[[], Any]]


class Asks:
    """The questions of all loops of a process, in their order."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._questions: deque[_Question] = deque()
        self._some = threading.Condition()
        self._idle = self._threads = 0
        self._posts = Posts()
        self.jointly = Jointly(self._posts)  #: questions that are answered together with others of their kind

    def ask(self, loop: asyncio.AbstractEventLoop, do: Callable[[], Any]) -> asyncio.Future[Any]:
        """Call `do` in a thread → a future of `loop` with what it returns or raises."""
        waiting: asyncio.Future[Any] = loop.create_future()
        post = self._posts.of(loop)
        begins = False
        with self._some:
            self._questions.append((loop, post, waiting, contextvars.copy_context(), do))
            if self._idle:
                self._some.notify()
            elif self._threads < THREADS:
                self._threads += 1
                begins = True
        if begins:
            threading.Thread(target=self._work, name="rlw-ask", daemon=True).start()
        return waiting

    def _work(self) -> None:
        while (question := self._next()) is not None:
            loop, post, waiting, context, do = question
            try:
                came: Came[Any] = Came(context.run(do))
            except BaseException as error:
                came = Came(error=error)
            post.put(loop, [(waiting, came)])
            del question, loop, post, waiting, came, context, do  # an idle thread must not keep them alive

    def _next(self) -> _Question | None:
        """The next question; None: there was none for IDLE_S, and the thread is to end."""
        with self._some:
            if not self._questions:
                self._idle += 1
                self._some.wait(IDLE_S)
                self._idle -= 1
            if not self._questions:
                self._threads -= 1
                return None
            return self._questions.popleft()


_asks: Asks | None = None


def ask(loop: asyncio.AbstractEventLoop, do: Callable[[], Any]) -> asyncio.Future[Any]:
    """As `Asks.ask`, with the threads of this process."""
    return _of_process().ask(loop, do)


def ask_jointly(loop: asyncio.AbstractEventLoop, answer_all: AnswerAll, question: Any) -> asyncio.Future[Any]:
    """As `Jointly.ask`, with the thread of this process."""
    return _of_process().jointly.ask(loop, answer_all, question)


def _of_process() -> Asks:
    global _asks
    if _asks is None or _asks.pid != os.getpid():
        _asks = Asks()
    return _asks
