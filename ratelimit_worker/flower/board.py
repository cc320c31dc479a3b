"""What does the page ask and do? How lanes stand and stood, and pins, away from the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reach import reach, redis_errors
from ratelimit_worker.wiring import Services

T = TypeVar("T")

_MOST_CHANGES = 20
#: However many people look, Redis and the database are asked so often (seconds).
_FRESH_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """All that the page shows, at one moment."""

    state: ClusterState | None  #: None: Redis is away
    changes: tuple[ModeChange, ...]  #: newest first
    missing: tuple[str, ...]  #: what could not be read, one sentence each


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a person wants of a lane."""

    mode: Mode | None  #: None: given back to the law
    lane: str | None  #: None: all lanes
    for_s: float | None = None  #: a pin ends by itself after so long; None: it stays
    reason: str = ""
    who: str


class Board:
    """Asks and pins in threads of its own: Flower's are busy when workers do not answer it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._engine = engine_for(services.settings.database_url)
        self._sources = Sources(
            queries=Queries(self._engine), live=Live(services.redis), reach=lambda: reach(services.redis)
        )
        self._threads = ThreadPoolExecutor(2, "rate-limit-page")
        self._one_at_a_time = asyncio.Lock()
        self._seen: tuple[float, Sight] | None = None

    async def sight(self) -> Sight:
        """How things stand, at most a second old."""
        async with self._one_at_a_time:
            if self._seen is None or time.monotonic() - self._seen[0] > _FRESH_S:
                self._seen = (time.monotonic(), await self._aside(self._look))
            return self._seen[1]

    async def state(self) -> ClusterState:
        """How lanes stand.

        Raises:
            StoreUnavailable: Redis is away.
        """
        sight = await self.sight()
        if sight.state is None:
            raise StoreUnavailable("; ".join(sight.missing))
        return sight.state

    async def give(self, order: Order) -> list[ModeChange]:
        """Pin a mode, or give lanes back to the law; what has changed.

        Raises:
            BadInput: a word is too long.
            StoreUnavailable: Redis is away.
        """
        try:
            return await self._aside(lambda: self._give(order))
        finally:
            self._seen = None

    def close(self) -> None:
        """Wait for what is being asked, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._engine.dispose()

    async def _aside(self, ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def _look(self) -> Sight:
        missing: list[str] = []
        changes: list[ModeChange] = []
        state = None
        try:  # first: it makes the tables where none are yet
            changes = self._services.tracker.mode_changes(limit=_MOST_CHANGES)
        except StoreUnavailable as error:
            missing.append(f"The mode history is unknown: {error}")
        try:
            state, unknown = status(self._sources)
            missing += [f"{words[0].upper()}{words[1:]}" for words in unknown]
        except StoreUnavailable as error:
            missing.append(f"How the lanes stand is unknown: {error}")
        return Sight(state=state, changes=tuple(changes), missing=tuple(missing))

    def _give(self, order: Order) -> list[ModeChange]:
        control = self._services.control
        reach(self._services.redis)
        with redis_errors():
            if order.mode is None:
                return auto(control, lane=order.lane, reason=order.reason, who=order.who)
            return pin(control, order.mode, lane=order.lane, for_s=order.for_s, reason=order.reason, who=order.who)
