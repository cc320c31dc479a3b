"""Figures for Prometheus: the lanes now, and totals that only grow. Each process that is scraped has one exporter.

Totals begin with the minute in which the exporter started. Minutes that ended 15 minutes ago are added up once, if
nothing is on its way to the database; newer ones are read again at each scrape, so that late rows are counted too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from msgspec import Struct
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis import Redis

from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey
from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.outage import cause_of
from ratelimit_worker.policy.rollup import merge
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.metrics import Labels, Seen, Totals, families
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores import answers
from ratelimit_worker.stores.answers import CacheSize
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.reach import redis_errors

log = logging.getLogger(__name__)

LATELY_S = 900.0  #: window of the mean latency; also how late a row may still come when the outbox is empty, seconds
#: Only so many lanes are read, the most important ones: this takes 0.25 s if there are 10,000; all would take 1.5 s.
MOST_LOOKED_AT = 1_000


class CellSource(Protocol):
    """A function that reads sums by minute and hour, such as `Queries.cells`."""

    def __call__(self, since_s: float, until_s: float, finest_s: float) -> Iterable[tuple[CellKey, Cell]]: ...


class Running:
    """Totals from the minute of `now_s` on."""

    def __init__(self, cells: CellSource, now_s: float) -> None:
        self._cells = cells
        self._from_s = now_s // MINUTE_S * MINUTE_S
        self._lanes: dict[str, Cell] = {}
        self._tasks: dict[str, Cell] = {}

    def at(self, now_s: float, nothing_on_its_way: bool) -> tuple[Totals, dict[str, float]]:
        """The totals, and each lane's mean latency in the last `LATELY_S`, seconds.

        Raises:
            StoreUnavailable: the database is away.
        """
        over = (now_s - LATELY_S) // MINUTE_S * MINUTE_S
        if nothing_on_its_way and over > self._from_s:
            old = list(self._cells(self._from_s, over, MINUTE_S))
            for key, cell in old:
                _add(self._lanes, key.series.lane, cell)
                _add(self._tasks, key.series.task, cell)
            self._from_s = over
        lanes = {name: _copy(cell) for name, cell in self._lanes.items()}
        tasks = {name: _copy(cell) for name, cell in self._tasks.items()}
        lately: dict[str, Cell] = {}
        for key, cell in self._cells(min(self._from_s, now_s - LATELY_S), now_s + 1.0, MINUTE_S):
            if key.at_s >= self._from_s:
                _add(lanes, key.series.lane, cell)
                _add(tasks, key.series.task, cell)
            if key.at_s >= now_s - LATELY_S:
                _add(lately, key.series.lane, cell)
        return Totals(lanes=lanes, tasks=tasks), dict(_latencies(lately))


def _latencies(cells: dict[str, Cell]) -> Iterator[tuple[str, float]]:
    for lane, cell in cells.items():
        if answered := sum(cell.latency.values()):
            yield lane, cell.latency_s / answered


def _add(into: dict[str, Cell], name: str, cell: Cell) -> None:
    if name not in into:
        into[name] = _copy(cell)
    else:
        merge(into[name], cell)


def _copy(cell: Cell) -> Cell:
    made = Cell(outcomes={}, latency={}, waited={}, per_token={}, cost={})
    merge(made, cell)
    return made


class Asks(Struct, frozen=True, kw_only=True):
    """The functions by which a scrape reads. Each raises one of this package's errors if its server is away."""

    state: Callable[[], ClusterState]
    cells: CellSource
    outbox_lag: Callable[[], int]
    cache: Callable[[], CacheSize]
    clock_s: Callable[[], float] = time.time


def asks_of(sources: Sources, outbox: Outbox, redis: Callable[[], Redis]) -> Asks:
    """The functions for a deployment. `redis` is first called by a scrape; it may raise if none is configured."""

    def cache() -> CacheSize:
        with redis_errors():
            return answers.size(redis())

    return Asks(
        state=lambda: status(sources, MOST_LOOKED_AT)[0],
        cells=sources.queries.cells,
        outbox_lag=outbox.backlog,
        cache=cache,
    )


class Exporter(Collector):
    """A collector for a registry of `prometheus_client`."""

    def __init__(self, asks: Asks) -> None:
        self._asks = asks
        self._running = Running(asks.cells, asks.clock_s())
        self._labels = Labels()
        self._alone = threading.Lock()  #: two scrapes at once would both add the minutes that have ended

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering this collector reads nothing."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metric families; those that could not be read are missing, and `ratelimit_worker_up` is 0."""
        with self._alone:
            return list(families(self._look(), self._labels))

    def _look(self) -> Seen:
        state, lag, cache, totals, latencies_s = None, None, None, None, dict[str, float]()
        try:
            state, lag, cache = self._asks.state(), self._asks.outbox_lag(), self._asks.cache()
        except RateLimitWorkerError as error:
            log.warning("metrics.redis_away cause=%s", cause_of(error))
        try:
            totals, latencies_s = self._running.at(self._asks.clock_s(), lag == 0)
        except RateLimitWorkerError as error:
            log.warning("metrics.database_away cause=%s", cause_of(error))
        return Seen(
            state=state,
            totals=totals,
            latencies_s=latencies_s,
            outbox_lag=lag,
            cache=cache,
        )
