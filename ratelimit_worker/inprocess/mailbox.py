"""The mailbox: callers' turns by reference, and the thread that reads the releases that arrive for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct, field

from ratelimit_worker.flow.call.admit import News
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.duties import Duty

_tag_of = msgspec.json.Decoder(dict[str, str]).decode


class Turn(Struct, eq=False):
    """One caller's wait. `hear` can be called by any thread, and never blocks."""

    ref: str
    hear: Callable[[str | News], None]
    fingerprint: str | None = None  #: of the calls that share its answer
    tags: list[str] = field(default_factory=list)  #: releases that are not freed yet; under the mailbox's lock
    aside: set[str] = field(default_factory=set)  #: those of them that do not count as running any more
    tried: bool = False  #: Redis may have its call
    entered: bool = False  #: Redis has its call
    running: bool = False  #: its attempt is being made
    over: bool = False


class Mailbox:
    """The turns of one process. No I/O; any thread may call."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}
        self._most = 0  #: most turns at once, since this was last asked
        #: so that a release is either given to a caller, who frees it, or freed at once
        self._dealing = threading.Lock()

    def __len__(self) -> int:
        return len(self._turns)

    def wait(self, ref: str, hear: Callable[[str | News], None], fingerprint: str | None = None) -> Turn:
        """Make the turn of a caller that begins to wait."""
        turn = self._turns[ref] = Turn(ref, hear, fingerprint)
        self._most = max(self._most, len(self._turns))
        return turn

    def deliver(self, tag: str) -> bool:
        """Give a release to its caller → False: no caller waits for it."""
        with self._dealing:
            turn = self._turns.get(tag.rpartition(".")[0])
            if turn is None or turn.over:
                return False
            turn.tags.append(tag)
        turn.hear(tag)
        return True

    def take(self, turn: Turn, tag: str) -> bool:
        """Take a release that came with the reply to enqueue → False: the caller does not wait any more."""
        with self._dealing:
            if turn.over:
                return False
            turn.tags.append(tag)
        return True

    def dismiss(self, turn: Turn, tag: str) -> None:
        """This release is over, though the call has not ended."""
        with self._dealing:
            if tag in turn.tags:
                turn.tags.remove(tag)

    def take_releases(self, turn: Turn) -> list[str]:
        """Take the caller's releases, to be freed."""
        with self._dealing:
            tags, turn.tags = turn.tags, []
        return tags

    def take_releases_by(self, tag: str) -> list[str]:
        """As `take_releases`, of the caller that got this release; none if it does not wait any more."""
        turn = self._turns.get(tag.rpartition(".")[0])
        return [] if turn is None else self.take_releases(turn)

    def set_aside(self, turn: Turn) -> list[str]:
        """The caller's releases that stop counting as running now."""
        with self._dealing:
            tags = [tag for tag in turn.tags if tag not in turn.aside]
            turn.aside.update(tags)
        return tags

    def leave(self, turn: Turn) -> list[str]:
        """The caller does not wait any more → the releases that it leaves behind."""
        with self._dealing:
            turn.over = True
            self._turns.pop(turn.ref, None)
            return turn.tags

    def turns(self) -> list[Turn]:
        """The turns of all waiting callers."""
        while True:
            try:
                return list(self._turns.values())
            except RuntimeError:  # changed while it was read
                continue

    def held(self) -> list[str]:
        """The releases of all waiting callers."""
        return [tag for turn in self.turns() for tag in turn.tags]

    def most_turns(self) -> int:
        """Most callers that waited at once since this was last asked."""
        most, self._most = self._most, len(self._turns)
        return most

    def tell_all(self, news: News) -> None:
        """Tell all waiting callers that are not in the middle of an attempt."""
        for turn in self.turns():
            if not turn.running:
                turn.hear(news)


class Deliveries(Duty):
    """Reads the ready lists of the process's queue.

    Args:
        there: Set while Redis is there; otherwise nothing is read.
    """

    def __init__(self, server: RedisServer, queue: str, mailbox: Mailbox, there: threading.Event) -> None:
        super().__init__("desk-deliveries", server, queue)
        self.mailbox, self.there, self.lanes = mailbox, there, Lanes(self.client)

    def turn(self) -> None:
        if not self.there.wait(1.0):
            return
        # the second is the plain list: a worker of a version without crews may hold the pump's duty
        popped: Any = self.client.brpop([keys.ready(keys.ALL, self.owner), self.owner], timeout=1)
        if popped is None:
            return
        tag = _tag_of(popped[1])["delivery_tag"]
        if not self.mailbox.deliver(tag):  # its caller has left, so the release is freed
            self.lanes.free([tag])
