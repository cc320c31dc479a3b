"""How do many threads of a process ask Redis at once? Together: one exchange for all requests that have come meanwhile.

While one thread sends for all, the requests of others are queued; then one of these threads sends the next batch.
Commands whose replies nobody waits for (`ride`) go with the next batch, in their order: later requests find them done.
One thread may also ask for many (`talk`), as that of an event loop's coroutines does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import islice
from typing import Any, TypeVar

from redis import Redis, RedisError
from redis.exceptions import ResponseError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.ports import Came
from ratelimit_worker.stores.decide import current, unanswered
from ratelimit_worker.stores.exchange import Line

AT_ONCE = 64  #: most requests in one exchange, so that none waits long for the replies to others

T = TypeVar("T")

Command = Sequence[Any]
Heard = Callable[[Exception | None], None]
#: Yields the commands of one exchange after the other, gets their replies (or the error of the exchange or of the first
#: refused command, raised at its `yield`), and returns what came of it.
Dialogue = Generator[Sequence[Command], list[Any], T]


class _Asked:
    """The commands of one request, and their replies."""

    __slots__ = ("commands", "error", "heard", "leads", "over", "replies", "told")

    def __init__(self, commands: Sequence[Command], heard: Heard | None = None) -> None:
        self.commands, self.heard = commands, heard
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.over = False  #: there are replies, or an error
        self.leads = False  #: its thread has to send for all
        self.told = threading.Lock()  #: locked until it is over, or leads
        if heard is None:
            self.told.acquire()

    def failure(self) -> Exception | None:
        """What went wrong: the exchange, or the first of its commands."""
        return self.error or _refusal(self.replies)


class Together:
    """The exchanges of one process with one server. Any thread may ask; requests are carried out in their order."""

    def __init__(self, client: Redis) -> None:
        self._line = Line(client)
        self._lock = threading.Lock()
        self._waiting: deque[_Asked] = deque()
        self._led = False  #: a thread sends for all

    def ask(self, *commands: Command) -> list[Any]:
        """As `stores.exchange.exchange`, but a thread whose time is over (`stores.decide`) stops waiting.

        Raises:
            redis.RedisError: as redis-py does; of several refused commands the first.
            StoreUnavailable: the time of this thread's decision is over; the commands may have been carried out.
        """
        mine = self._asked(commands)
        if (refusal := _refusal(mine.replies)) is not None:
            raise refusal
        return mine.replies

    def _asked(self, commands: Sequence[Command]) -> _Asked:
        """The request once it has its replies, among which refusals are.

        Raises:
            redis.RedisError, StoreUnavailable: as `ask`, but for refusals.
        """
        mine = _Asked(commands)
        with self._lock:
            self._waiting.append(mine)
            leads, self._led = not self._led, True
        if leads or self._my_turn(mine):
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        return mine

    def talk(self, dialogues: Sequence[Dialogue[T]]) -> list[Came[T]]:
        """Carry out several dialogues in as many exchanges as the longest of them has → what came of each."""
        came: list[Came[T]] = [Came()] * len(dialogues)
        talking: list[tuple[int, list[Any] | Exception | None]] = [(at, None) for at in range(len(dialogues))]
        try:
            while talking:
                asked: list[tuple[int, Sequence[Command]]] = []
                for at, told in talking:
                    try:
                        asked.append((at, _go_on(dialogues[at], told)))
                    except StopIteration as end:
                        came[at] = Came(end.value)
                    except Exception as error:
                        came[at] = Came(error=error)
                replies = self._replies([commands for _, commands in asked]) if asked else []
                talking = [(at, told) for (at, _), told in zip(asked, replies, strict=True)]
            return came
        finally:
            del came  # avoids a reference cycle through the traceback of an error

    def _replies(self, requests: Sequence[Sequence[Command]]) -> list[list[Any] | Exception]:
        """The replies to each of these requests, all of which go in one exchange; or its error."""
        try:
            mine = self._asked([command for one in requests for command in one])
        except (RedisError, OSError, StoreUnavailable) as error:
            return [error] * len(requests)
        told, first = list[list[Any] | Exception](), 0
        for one in requests:
            replies = mine.replies[first : first + len(one)]
            first += len(one)
            told.append(_refusal(replies) or replies)
        return told

    def ride(self, commands: Sequence[Command], heard: Heard) -> None:
        """Send these commands with the next request or `flush`, without waiting for their replies.

        Args:
            heard: Called with the error, or None, in any thread; it must not block.
        """
        with self._lock:
            self._waiting.append(_Asked(commands, heard))

    def flush(self) -> None:
        """Return when all commands of `ride` have had their replies.

        Raises:
            redis.RedisError, StoreUnavailable: as `ask`; each `heard` was called too.
        """
        with self._lock:
            if not self._waiting:
                return
        self.ask()

    @property
    def busy(self) -> bool:
        """Whether a thread sends for all, or is about to."""
        return self._led

    def close(self) -> None:
        """Give the connection back, unless a thread still asks."""
        with self._lock:
            if not self._led:
                self._line.close()

    def _my_turn(self, mine: _Asked) -> bool:
        """Wait for the replies (then False), or for the turn to send for all (then True)."""
        decision = current()
        if not mine.told.acquire(timeout=-1 if decision is None else max(0.0, decision.until - decision.now_s())):
            with self._lock:
                if not mine.over and not mine.leads:
                    if mine in self._waiting:
                        self._waiting.remove(mine)
                    mine.error = unanswered()
        return mine.leads and not mine.over

    def _lead(self, mine: _Asked) -> None:
        """Send for all that wait until this one has its replies, then give the turn to the next."""
        try:
            while not mine.over:
                with self._lock:
                    batch = list(islice(self._waiting, AT_ONCE))
                    for _ in batch:
                        self._waiting.popleft()
                self._send(batch, mine)
        finally:
            with self._lock:
                heir = next((one for one in self._waiting if one.heard is None), None)
                self._led = heir is not None
                if heir is not None:
                    heir.leads = True
                    heir.told.release()

    def _send(self, batch: Sequence[_Asked], mine: _Asked) -> None:
        commands = [command for one in batch for command in one.commands]
        error: Exception | None = None
        replies: list[Any] = []
        try:
            replies = self._line.answers(commands) if commands else []
        except (RedisError, OSError, StoreUnavailable) as failed:
            error = failed
        except BaseException:  # this thread was interrupted in the middle: the others decide whether to ask again
            self._tell(batch, [], ConnectionError("who asked for all was interrupted"), mine)
            raise
        self._tell(batch, replies, error, mine)

    def _tell(self, batch: Sequence[_Asked], replies: list[Any], error: Exception | None, mine: _Asked) -> None:
        at = 0
        for one in batch:
            one.replies, one.error = replies[at : at + len(one.commands)], error
            at += len(one.commands)
            one.over = True
            if one.heard is not None:
                one.heard(one.failure())
            elif one is not mine:
                one.told.release()


def _refusal(replies: Sequence[Any]) -> ResponseError | None:
    """The first refused command."""
    return next((reply for reply in replies if isinstance(reply, ResponseError)), None)


def _go_on(dialogue: Dialogue[Any], told: list[Any] | Exception | None) -> Sequence[Command]:
    """The commands of its next exchange; `told`: what came of the last one, None: it begins."""
    if isinstance(told, Exception):
        return dialogue.throw(told)
    return next(dialogue) if told is None else dialogue.send(told)
