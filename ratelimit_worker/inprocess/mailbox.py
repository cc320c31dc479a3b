"""Which caller waits for which release? Turns by reference, and the thread that reads what arrives for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ratelimit_worker.flow.call.admit import News
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.duties import Duty

_tag_of = msgspec.json.Decoder(dict[str, str]).decode


@dataclass(slots=True, eq=False)
class Turn:
    """One caller's wait. `hear` takes news from any thread and never blocks."""

    ref: str
    hear: Callable[[str | News], None]
    fingerprint: str | None = None  #: of the calls that share its answer
    tags: list[str] = field(default_factory=list)  #: releases that are not freed yet; under the mailbox's lock
    aside: set[str] = field(default_factory=set)  #: those of them that have given up their place in the lane
    tried: bool = False  #: Redis may have its call
    entered: bool = False  #: Redis has its call
    running: bool = False  #: its attempt is being made
    over: bool = False


class Mailbox:
    """The turns of one process. No I/O; any thread may call."""

    def __init__(self) -> None:
        self._turns: dict[str, Turn] = {}
        self._most = 0  #: turns at once, since this was last asked
        self._dealing = threading.Lock()  #: a release is either handed to a caller who will free it, or freed at once

    def __len__(self) -> int:
        return len(self._turns)

    def wait(self, ref: str, hear: Callable[[str | News], None], fingerprint: str | None = None) -> Turn:
        """A caller begins to wait."""
        turn = self._turns[ref] = Turn(ref, hear, fingerprint)
        self._most = max(self._most, len(self._turns))
        return turn

    def deliver(self, tag: str) -> bool:
        """Hand a release to its caller → False when nobody waits for it."""
        with self._dealing:
            turn = self._turns.get(tag.rpartition(".")[0])
            if turn is None or turn.over:
                return False
            turn.tags.append(tag)
        turn.hear(tag)
        return True

    def dismiss(self, turn: Turn, tag: str) -> None:
        """This release is over, without an end of the call."""
        with self._dealing:
            if tag in turn.tags:
                turn.tags.remove(tag)

    def take_releases(self, turn: Turn) -> list[str]:
        """The caller's releases, to be freed: from here on it has none."""
        with self._dealing:
            tags, turn.tags = turn.tags, []
        return tags

    def take_releases_by(self, tag: str) -> list[str]:
        """As `take_releases`, of the caller to whom this release went; none where it waits no more."""
        turn = self._turns.get(tag.rpartition(".")[0])
        return [] if turn is None else self.take_releases(turn)

    def set_aside(self, turn: Turn) -> list[str]:
        """Those of the caller's releases that give up their place in the lane now, and had not before."""
        with self._dealing:
            tags = [tag for tag in turn.tags if tag not in turn.aside]
            turn.aside.update(tags)
        return tags

    def leave(self, turn: Turn) -> list[str]:
        """The caller waits no more → the releases that it leaves behind."""
        with self._dealing:
            turn.over = True
            self._turns.pop(turn.ref, None)
            return turn.tags

    def turns(self) -> list[Turn]:
        """Everybody who waits."""
        while True:
            try:
                return list(self._turns.values())
            except RuntimeError:  # changed while it was read
                continue

    def held(self) -> list[str]:
        """The releases of everybody who waits."""
        return [tag for turn in self.turns() for tag in turn.tags]

    def most_turns(self) -> int:
        """How many waited at once since this was last asked."""
        most, self._most = self._most, len(self._turns)
        return most

    def tell_all(self, news: News) -> None:
        """News for everybody who waits and is not in the middle of an attempt."""
        for turn in self.turns():
            if not turn.running:
                turn.hear(news)


class Deliveries(Duty):
    """Reads the ready lists of the process's queue.

    Args:
        there: Set while Redis is there; without it nothing is read.
    """

    def __init__(self, server: RedisServer, queue: str, mailbox: Mailbox, there: threading.Event) -> None:
        super().__init__("desk-deliveries", server, queue)
        self.mailbox, self.there, self.lanes = mailbox, there, Lanes(self.client)

    def turn(self) -> None:
        if not self.there.wait(1.0):
            return
        # the plain list: a worker of a version without crews may hold the pump's duty
        popped: Any = self.client.brpop([keys.ready(keys.ALL, self.owner), self.owner], timeout=1)
        if popped is None:
            return
        tag = _tag_of(popped[1])["delivery_tag"]
        if not self.mailbox.deliver(tag):  # its caller left: the place is free
            self.lanes.free([tag])
