"""Do commands that nobody waits for go with the next exchange, and by themselves if there is none? Without a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ratelimit_worker.inprocess.riding import Flush, Riding
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.stores.together import Together


class Line:
    """Stands in for the exchanges of a process: the test says whether one is under way."""

    def __init__(self) -> None:
        self.busy_for = 0  #: looks for which an exchange is under way
        self.waiting: list[Sequence[Any]] = []
        self.flushed: list[Sequence[Any]] = []

    @property
    def busy(self) -> bool:
        """Somebody looks."""
        self.busy_for -= 1
        return self.busy_for >= 0

    def ride(self, commands: Sequence[Sequence[Any]], heard: Any) -> None:
        """They wait."""
        self.waiting += commands

    def flush(self) -> None:
        """They are sent."""
        self.flushed, self.waiting = [*self.flushed, *self.waiting], []


def riding() -> tuple[Line, Riding, Flush]:
    """Commands on their way, and what sends them if nobody else does."""
    line = Line()
    made = Riding(cast(Together, line))
    return line, made, Flush(RedisServer("redis://nowhere.invalid"), "queue", made)


def test_without_an_exchange_they_are_sent_by_themselves() -> None:
    """A moment later, all that wait by then."""
    line, made, flush = riding()
    made.send([("SET", "a", 1)], lambda error: None)
    made.send([("SET", "b", 1)], lambda error: None)
    flush.turn()
    assert (line.flushed, made.any.is_set()) == ([("SET", "a", 1), ("SET", "b", 1)], False)


def test_while_exchanges_are_under_way_they_wait_for_the_next() -> None:
    """What has gone along by then is not sent again; what has not, is sent by itself."""
    line, made, flush = riding()
    made.send([("SET", "a", 1)], lambda error: None)
    line.busy_for = 3
    flush.turn()
    assert (line.flushed, line.busy_for) == ([("SET", "a", 1)], -1)
    made.send([("SET", "b", 1)], lambda error: None)
    line.busy_for, line.waiting = 3, []
    flush.turn()
    assert line.flushed == [("SET", "a", 1)]


def test_when_the_process_ends_they_wait_for_nobody() -> None:
    """They are sent, whoever asks meanwhile."""
    line, made, flush = riding()
    made.send([("SET", "a", 1)], lambda error: None)
    line.busy_for = 1_000_000
    flush.stop()
    flush.turn()
    assert line.flushed == [("SET", "a", 1)]
