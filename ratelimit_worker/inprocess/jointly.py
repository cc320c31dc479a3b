"""How do thousands of coroutines ask the same of Redis at once? One thread takes all questions that wait, and asks them
together: so none of them costs an exchange or a switch of threads of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ratelimit_worker.inprocess.posts import Answer, Post, Posts
from ratelimit_worker.ports import Came

AT_ONCE = 32  #: most questions that are asked together, so that none waits long for the answers to others
IDLE_S = 10.0  #: after which the thread ends if there is nothing to ask

#: Answers several questions, each by itself, in their order.
AnswerAll = Callable[[Sequence[Any]], Sequence[Came[Any]]]


class _Question(NamedTuple):
    loop: asyncio.AbstractEventLoop
    post: Post
    waiting: asyncio.Future[Any]
    answer_all: AnswerAll
    question: Any


class Jointly:
    """The questions of all loops of a process that may be asked together, in their order."""

    def __init__(self, posts: Posts) -> None:
        self._posts = posts
        self._questions: deque[_Question] = deque()
        self._some = threading.Condition()
        self._works = False  #: there is a thread

    def ask(self, loop: asyncio.AbstractEventLoop, answer_all: AnswerAll, question: Any) -> asyncio.Future[Any]:
        """Have a question answered, in a thread → a future of `loop` with what came of it.

        Args:
            answer_all: Questions with the same are answered by one call of it.
        """
        waiting: asyncio.Future[Any] = loop.create_future()
        asked = _Question(loop, self._posts.of(loop), waiting, answer_all, question)
        with self._some:
            self._questions.append(asked)
            if self._works:
                self._some.notify()
                return waiting
            self._works = True
        try:
            threading.Thread(target=self._work, name="rlw-ask-jointly", daemon=True).start()
        except RuntimeError:  # no thread can be started: the next question tries it again
            with self._some:
                self._works = False
                self._questions.remove(asked)
            raise
        return waiting

    def _work(self) -> None:
        while questions := self._next():
            try:
                came = questions[0].answer_all([one.question for one in questions])
            except BaseException as error:
                came = [Came(error=error)] * len(questions)
            by_loop: dict[asyncio.AbstractEventLoop, tuple[Post, list[Answer]]] = {}
            for asked, one in zip(questions, came, strict=True):
                by_loop.setdefault(asked.loop, (asked.post, []))[1].append((asked.waiting, one))
            for loop, (post, answers) in by_loop.items():
                post.put(loop, answers)
            del questions, came, by_loop, asked, one, loop, post, answers  # an idle thread must not keep them alive

    def _next(self) -> list[_Question]:
        """The next questions of one kind; none: there were none for IDLE_S, and the thread is to end."""
        with self._some:
            if not self._questions:
                self._some.wait(IDLE_S)
            if not self._questions:
                self._works = False
                return []
            taken = [self._questions.popleft()]
            kind = taken[0].answer_all
            while self._questions and len(taken) < AT_ONCE and self._questions[0].answer_all == kind:
                taken.append(self._questions.popleft())
            return taken
