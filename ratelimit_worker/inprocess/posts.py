"""How do answers of threads reach an event loop? It is woken once for all that have come, and gets some each turn."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from ratelimit_worker.ports import Came

#: Most answers in one turn of a loop: the calls that wait for them go on in the next turn, all of them.
AT_ONCE = 16

Answer = tuple[asyncio.Future[Any], Came[Any]]  #: what came of a question, for the future that waits for it


class Post:
    """The answers on their way to one loop. It keeps no reference to the loop (see `Posts`)."""

    def __init__(self) -> None:
        self._answers: deque[Answer] = deque()
        self._lock = threading.Lock()

    def put(self, loop: asyncio.AbstractEventLoop, answers: Sequence[Answer]) -> None:
        """Send some answers to the loop. Any thread may call."""
        with self._lock:
            self._answers.extend(answers)
            if len(self._answers) > len(answers):
                return  # it was woken, and finds these too
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._tell, loop)

    def _tell(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            answers = [self._answers.popleft() for _ in range(min(AT_ONCE, len(self._answers)))]
            more = bool(self._answers)
        if more:
            loop.call_soon(self._tell, loop)
        for waiting, came in answers:
            if waiting.done():  # it was cancelled
                continue
            if came.error is not None:
                waiting.set_exception(came.error)
            else:
                waiting.set_result(came.value)


class Posts:
    """One for each loop; a loop that is over is forgotten."""

    def __init__(self) -> None:
        self._of: WeakKeyDictionary[asyncio.AbstractEventLoop, Post] = WeakKeyDictionary()

    def of(self, loop: asyncio.AbstractEventLoop) -> Post:
        """The post of a running loop; to be called in it."""
        post = self._of.get(loop)
        if post is None:
            post = self._of[loop] = Post()
        return post
