"""What does the page ask and do? How lanes stand and stood, and pins, away from the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.reports.exporter import Exporter, asks_of
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reach import reach, redis_errors
from ratelimit_worker.wiring import Services

T = TypeVar("T")

_MOST_CHANGES = 20
#: However many people look, Redis and the database are asked so often (seconds) for each view.
_FRESH_S = 1.0
_MOST_VIEWS = 20  #: of which a sight is kept
PAGE = 50  #: lanes on a page


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Which lanes somebody wants to see."""

    find: str = ""  #: part of their names; "": all
    page: int = 1  #: from 1; beyond the last it is the last

    def at(self, page: int) -> View:
        """Another page of the same lanes."""
        return View(find=self.find, page=page)


EVERYTHING = View()


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
        self._seen: dict[View, tuple[float, Sight]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Exporter(asks_of(self._sources, services.outbox, lambda: services.redis)))

    async def sight(self, view: View = EVERYTHING) -> Sight:
        """How things stand, at most a second old."""
        async with self._one_at_a_time:
            found = self._seen.get(view)
            if found is None or time.monotonic() - found[0] > _FRESH_S:
                if len(self._seen) >= _MOST_VIEWS:
                    self._seen.clear()
                found = self._seen[view] = (time.monotonic(), await self._aside(lambda: self._look(view)))
            return found[1]

    async def state(self, view: View = EVERYTHING) -> ClusterState:
        """How lanes stand.

        Raises:
            StoreUnavailable: Redis is away.
        """
        sight = await self.sight(view)
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
            self._seen.clear()

    async def metrics(self) -> bytes:
        """What Prometheus gets of the lanes, in its text form."""
        return await self._aside(lambda: generate_latest(self._registry))

    def close(self) -> None:
        """Wait for what is being asked, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._engine.dispose()

    async def _aside(self, ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def _look(self, view: View) -> Sight:
        missing: list[str] = []
        changes: list[ModeChange] = []
        state = None
        try:  # first: it makes the tables where none are yet
            changes = self._services.tracker.mode_changes(limit=_MOST_CHANGES)
        except StoreUnavailable as error:
            missing.append(f"The mode history is unknown: {error}")
        try:
            state, unknown = status(self._sources, PAGE, find=view.find, page=view.page - 1)
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
