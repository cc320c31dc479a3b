"""When Prometheus asks: the lanes now, and totals that only grow. One for each process that is scraped.

Totals begin with the minute in which the exporter began. Minutes that are over for a while, with nothing on its way to
the database, are added up once and kept; what is newer is read anew, so that rows that come late are counted too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis import Redis

from ratelimit_worker.contracts.rollup import MINUTE_S, Cell, CellKey
from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.outage import cause_of
from ratelimit_worker.policy.rollup import merge
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.metrics import Names, Seen, Totals, families
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores import answers
from ratelimit_worker.stores.answers import Size
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.reach import redis_errors

log = logging.getLogger(__name__)

LATELY_S = 900.0  #: for the mean latency; and rows are taken to come no later than this, where none is on its way
MOST_LOOKED_AT = 1_000  #: lanes, those that matter most: a quarter of a second of 10,000, where all take 1.5 s


class CellSource(Protocol):
    """Where sums by minute and hour are read, as `Queries.cells`."""

    def __call__(self, since_s: float, until_s: float, finest_s: float) -> Iterable[tuple[CellKey, Cell]]: ...


class Running:
    """Totals since a minute."""

    def __init__(self, cells: CellSource, now_s: float) -> None:
        self._cells = cells
        self._from_s = now_s // MINUTE_S * MINUTE_S
        self._lanes: dict[str, Cell] = {}
        self._tasks: dict[str, Cell] = {}

    def at(self, now_s: float, nothing_on_its_way: bool) -> tuple[Totals, dict[str, float]]:
        """The totals, and each lane's mean latency of late, seconds.

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Asks:
    """What a scrape asks. Each raises an error of ours where what knows it is away."""

    state: Callable[[], ClusterState]
    cells: CellSource
    outbox_lag: Callable[[], int]
    cache: Callable[[], Size]
    clock_s: Callable[[], float] = time.time


def asks_of(sources: Sources, outbox: Outbox, redis: Callable[[], Redis]) -> Asks:
    """What a scrape asks of a deployment. `redis` is called when it is first asked, and may say that there is none."""

    def cache() -> Size:
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
        self._lanes, self._tasks = Names(), Names()
        self._alone = threading.Lock()  #: two scrapes at once would both add what is over

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that a registry asks nobody when this joins it."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All families; what could not be asked is missing, and `ratelimit_worker_up` says so."""
        with self._alone:
            return list(families(self._look(), self._lanes, self._tasks))

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
