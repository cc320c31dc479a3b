"""What the pages read (lanes, calls, figures, alerts) and do (pins, …), in threads beside the event loop."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from celery import Celery
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.alert import Alert, Book, Kind, Silence
from ratelimit_worker.contracts.rollup import Cell, CellKey
from ratelimit_worker.contracts.search import Wanted
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.lane.decide import rules_of
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.flower.money import Ledger, Row, rows
from ratelimit_worker.reports.alerts import whole
from ratelimit_worker.reports.calls import Calls, search
from ratelimit_worker.reports.dashboard import Dashboard, Period, Slice, dashboard, with_now
from ratelimit_worker.reports.doctor import LATENCY_OVER_S, mean_latency_s
from ratelimit_worker.reports.explain import Explanation, explain
from ratelimit_worker.reports.exporter import Exporter, asks_of
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.reach import reach, redis_errors
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.again import Done, cancel, run_again

T = TypeVar("T")

_MOST_CHANGES = 20  #: mode changes that are listed; the newest
_MOST_ALERTS = 100  #: past alerts that are listed
#: Redis and the database are read once in this many seconds for each view, however many people have it open.
_FRESH_S = 1.0
_ORDER_S = 5.0  #: how old the order of lanes by importance may be, which is slow to read if there are very many
STANDS_S = 0.5  #: how old the state of a single lane may be, which is fast to read
_LOOK_S = 2.0  #: least time between two kept states of a lane
_MOST_LOOKS = 450  #: kept states of a lane: a quarter of an hour
_MOST_VIEWS = 20  #: views, periods and lanes of which a result is kept
PAGE = 50  #: lanes on a page


class View(Struct, frozen=True, kw_only=True):
    """The lanes that a person wants to see."""

    find: str = ""  #: part of their names; "": all
    page: int = 1  #: from 1; a number beyond the last page means the last page

    def at(self, page: int) -> View:
        """Another page of the same lanes."""
        return View(find=self.find, page=page)


EVERYTHING = View()


class Sight(Struct, frozen=True, kw_only=True):
    """Everything that the page of lanes shows, at one moment."""

    state: ClusterState | None  #: None: Redis is away
    changes: tuple[ModeChange, ...]  #: newest first
    missing: tuple[str, ...]  #: what could not be read, one sentence each
    money: tuple[Row, ...] = ()


class Alerts(Struct, frozen=True, kw_only=True):
    """Everything that the page of alerts shows, at one moment."""

    at_s: float  #: seconds since the epoch
    open: tuple[Alert, ...]  #: newest first
    past: tuple[Alert, ...]  #: newest first
    silences: tuple[Silence, ...]
    missing: tuple[str, ...]  #: what could not be read, one sentence each


class Order(Struct, frozen=True, kw_only=True):
    """A mode that a person wants for a lane."""

    mode: Mode | None  #: None: give the lane back to the law
    lane: str | None  #: None: all lanes
    for_s: float | None = None  #: seconds after which the pin ends by itself; None: it does not
    reason: str = ""
    who: str


class Explained(Struct, frozen=True, kw_only=True):
    """A call, for the page about it."""

    found: Explanation
    can_run_again: bool
    missing: str  #: what could not be read, a sentence; "": all was


def keep(looks: deque[Slice], look: Slice) -> None:
    """Add the newest state; it replaces the previous one if that is less than `_LOOK_S` after the one before it."""
    if len(looks) > 1 and looks[-1].at_s - looks[-2].at_s < _LOOK_S:
        looks.pop()
    looks.append(look)


class Board:
    """Reads state and sets pins in threads of its own, since Flower's are blocked while workers do not answer it."""

    def __init__(self, services: Services, app: Celery) -> None:
        self._services, self._app = services, app
        self._engine = engine_for(services.settings.database_url)
        self._live = Live(services.redis, order_for_s=_ORDER_S)
        self._sources = Sources.of(
            Queries(self._engine), self._live, lambda: services.tracker, lambda: reach(services.redis)
        )
        self._threads = ThreadPoolExecutor(2, "rate-limit-page")
        self._one_at_a_time = asyncio.Lock()
        self._ledger = Ledger(self._cells)
        self._seen: dict[View, tuple[float, Sight]] = {}
        self._figures: dict[Period, tuple[float, Dashboard]] = {}
        self._standing: dict[Period, tuple[float, Dashboard]] = {}
        self._looks: dict[str, deque[Slice]] = {}
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(Exporter(asks_of(self._sources, services.outbox, lambda: services.redis)))

    async def sight(self, view: View = EVERYTHING) -> Sight:
        """The state, at most a second old."""
        async with self._one_at_a_time:
            found = self._seen.get(view)
            if found is None or time.monotonic() - found[0] > _FRESH_S:
                if len(self._seen) >= _MOST_VIEWS:
                    self._seen.clear()
                found = self._seen[view] = (time.monotonic(), await self._aside(lambda: self._look(view)))
            return found[1]

    async def state(self, view: View = EVERYTHING) -> ClusterState:
        """The state of lanes.

        Raises:
            StoreUnavailable: Redis is away.
        """
        sight = await self.sight(view)
        if sight.state is None:
            raise StoreUnavailable("; ".join(sight.missing))
        return sight.state

    async def give(self, order: Order) -> list[ModeChange]:
        """Pin a mode, or give lanes back to the law; returns the changes.

        Raises:
            BadInput: the reason or another text is too long.
            StoreUnavailable: Redis is away.
        """
        try:
            return await self._aside(lambda: self._give(order))
        finally:
            self._live.forget_order()
            self._seen.clear()
            self._standing.clear()

    async def calls(self, wanted: Wanted) -> Calls:
        """The calls that meet the conditions, at this moment."""
        services = self._services
        return await self._aside(lambda: search(services.redis, self._sources.queries, services.shelf, wanted))

    async def explain(self, call_id: str) -> Explained:
        """All that is known of a call.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return await self._aside(lambda: self._explain(call_id))

    async def cancel(self, call_ids: Sequence[str]) -> list[Done]:
        """Cancel waiting calls.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return await self._aside(lambda: cancel(self._app, call_ids))

    async def run_again(self, call_ids: Sequence[str]) -> list[Done]:
        """Run failed calls again.

        Raises:
            StoreUnavailable: Redis is away.
        """
        return await self._aside(lambda: run_again(self._app, call_ids))

    async def figures(self, period: Period) -> Dashboard:
        """What happened in a lane (or all) in a period, at most `period.fresh_s` old, and its state, within `STANDS_S`.

        Raises:
            StoreUnavailable: Redis or the database is away.
        """
        async with self._one_at_a_time:
            found = self._figures.get(period)
            if found is None or time.monotonic() - found[0] > period.fresh_s:
                if len(self._figures) >= _MOST_VIEWS:
                    self._figures.clear()
                    self._standing.clear()
                made = await self._aside(lambda: dashboard(self._sources, period, time.time()))
                found = self._figures[period] = (time.monotonic(), made)
            past = found[1]
            if period.lane is None:
                return past
            stands = self._standing.get(period)
            if stands is None or time.monotonic() - stands[0] > STANDS_S:
                now = await self._aside(lambda: with_now(past, self._sources))
                stands = self._standing[period] = (time.monotonic(), self._remembered(now, period.lane))
            return stands[1]

    async def alerts(self) -> Alerts:
        """Open and past alerts."""
        return await self._aside(self._look_at_alerts)

    async def acknowledge(self, alert: str, who: str) -> Alert:
        """Note that a person looks after an alert.

        Raises:
            BadInput: it is not open.
            StoreUnavailable: Redis is away.
        """
        return await self._aside(lambda: AlertStates(self._services.redis).acknowledge(alert, who))

    async def silence(self, kind: Kind, lane: str, for_s: float, who: str) -> Silence:
        """Send no notices of a kind of alerts for a while; 0: send them again.

        Raises:
            BadInput: there are too many silences.
            StoreUnavailable: Redis is away.
        """

        def begin() -> Silence:
            states = AlertStates(self._services.redis)
            until_s = states.read().now_s + for_s if for_s else 0.0
            made = Silence(kind=kind, lane=lane, until_s=until_s, who=who)
            states.silence(made)
            return made

        return await self._aside(begin)

    def _remembered(self, found: Dashboard, lane: str) -> Dashboard:
        """A lane's dashboard with the states that were read while its page was open, of the last quarter of an hour."""
        if len(self._looks) > _MOST_VIEWS:
            self._looks.clear()
        looks = self._looks.setdefault(lane, deque(maxlen=_MOST_LOOKS))
        if found.now is not None and (not looks or looks[-1].at_s < found.at_s):
            keep(looks, found.chart[-1])
        return replace(found, looks=tuple(looks))

    async def metrics(self) -> bytes:
        """The metrics of the lanes, in Prometheus' text format."""
        return await self._aside(lambda: generate_latest(self._registry))

    def close(self) -> None:
        """Wait for reads in progress, and close the connections."""
        self._threads.shutdown(cancel_futures=True)
        self._engine.dispose()

    async def _aside(self, ask: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, ask)

    def _look(self, view: View) -> Sight:
        missing: list[str] = []
        changes: list[ModeChange] = []
        state = None
        try:  # first, since it makes the tables if there are none yet
            changes = self._services.tracker.mode_changes(limit=_MOST_CHANGES)
        except StoreUnavailable as error:
            missing.append(f"The mode history is unknown: {error}")
        try:
            state, unknown = status(self._sources, PAGE, find=view.find, page=view.page - 1)
            missing += [f"{words[0].upper()}{words[1:]}" for words in unknown]
        except StoreUnavailable as error:
            missing.append(f"How the lanes stand is unknown: {error}")
        return Sight(state=state, changes=tuple(changes), missing=tuple(missing), money=self._money(state))

    def _cells(self, since_s: float, until_s: float, finest_s: float) -> Iterator[tuple[CellKey, Cell]]:
        """Sums of a window, with those that Redis still has."""
        try:
            sums = self._sources.server.reuse(since_s)
        except StoreUnavailable:  # `_look` reports it already, for the state of the lanes
            sums = []
        return self._sources.queries.cells(since_s, until_s, finest_s, sums=sums)

    def _money(self, state: ClusterState | None) -> tuple[Row, ...]:
        try:
            spent = self._ledger.by_lane()
        except StoreUnavailable:  # `_look` reports it already, for the mode history
            spent = {}
        return rows(spent, state.budgets if state is not None else ())

    def _explain(self, call_id: str) -> Explained:
        services = self._services
        try:
            attempts = services.tracker.attempts_of(call_id)
            latency_s = mean_latency_s(self._sources.queries.cells(time.time() - LATENCY_OVER_S, time.time(), 60.0))
            missing = ""
        except StoreUnavailable as error:
            attempts, latency_s, missing = [], {}, f"Its attempts are unknown: {error}"
        live = self._sources.server
        found = explain(live, attempts, call_id, latency_s=latency_s, rules=rules_of(services.settings))
        return Explained(found=found, can_run_again=bool(services.shelf.holds([call_id])), missing=missing)

    def _look_at_alerts(self) -> Alerts:
        missing, now_s, book, silences = list[str](), time.time(), Book(), list[Silence]()
        past: list[Alert] = []
        try:
            reach(self._services.redis)
            states = AlertStates(self._services.redis)
            book, silences = states.read(), states.silences()
            now_s = book.now_s
        except StoreUnavailable as error:
            missing.append(f"What is open now is unknown: {error}")
        try:
            past = self._services.tracker.alerts(limit=_MOST_ALERTS)
        except StoreUnavailable as error:
            missing.append(f"Past alerts are unknown: {error}")
        return Alerts(
            at_s=now_s,
            open=tuple(book.open),
            past=tuple(one for one in whole(book.open, past) if one.id not in {found.id for found in book.open}),
            silences=tuple(silences),
            missing=tuple(missing),
        )

    def _give(self, order: Order) -> list[ModeChange]:
        control = self._services.control
        reach(self._services.redis)
        with redis_errors():
            if order.mode is None:
                return auto(control, lane=order.lane, reason=order.reason, who=order.who)
            return pin(control, order.mode, lane=order.lane, for_s=order.for_s, reason=order.reason, who=order.who)
