"""Builds the objects of a process from its settings: the only module that creates adapters for the ports."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis import Redis

from ratelimit_worker import telemetry
from ratelimit_worker.config import Settings, canonical_redis_url, read_settings
from ratelimit_worker.contracts.budget import LANE, Budget, Spent
from ratelimit_worker.contracts.lane import PARENT_FIELDS
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.outage import cause_of
from ratelimit_worker.policy import estimate
from ratelimit_worker.policy.budget import Standing
from ratelimit_worker.policy.price import PriceTable
from ratelimit_worker.policy.retry import NO_RETRIES, RetryPolicy, by_backoff
from ratelimit_worker.policy.spans import Held
from ratelimit_worker.ports import Tracer
from ratelimit_worker.providers.bounds import bound_answers
from ratelimit_worker.providers.tokenizer import Tokenizer
from ratelimit_worker.stores import outbox as outbox_store
from ratelimit_worker.stores.budgets import Budgets
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.own_rules import OwnRules
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.prices import ListedPrices, PriceMemory, Prices
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.stores.shelf import Bounds, Shelf
from ratelimit_worker.stores.usage import LatencyMemory, LearnedLatencies, LearnedUsage, UsageMemory

if TYPE_CHECKING:
    from ratelimit_worker.flow.duty.price import Pricer
    from ratelimit_worker.flow.lane.tune import ControlPlane
    from ratelimit_worker.stores.queries import Queries
    from ratelimit_worker.stores.tracker import Tracker

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S = 2.0, 5.0


class Services:
    """The live objects of one process, each built on first use.

    Args:
        server: Where Redis is; the settings' when None.
    """

    def __init__(self, settings: Settings, server: RedisServer | str | None = None) -> None:
        self.settings = settings
        self.server = server if isinstance(server, RedisServer) else server_of(settings, server or "")
        self._lock = threading.RLock()
        self._made: dict[str, Any] = {}
        if settings.otel == "on":
            telemetry.check()
        self._traces = settings.otel == "on" or (settings.otel == "auto" and telemetry.named())

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The object of this name; `make` builds it at the first use."""
        found = self._made.get(name)
        if found is None:
            with self._lock:
                found = self._made.get(name)
                if found is None:
                    found = self._made[name] = make()
        return found

    @property
    def redis_url(self) -> str:
        """Address of Redis, in redis-py's spelling; "": no server is configured."""
        return canonical_redis_url(self.server.url)

    @property
    def redis(self) -> Redis:
        """A client of the one Redis server.

        Raises:
            ConfigurationError: no server is configured.
        """
        client: Redis = self.once("redis", lambda: connect(self.server))
        return client

    @property
    def lanes(self) -> Lanes:
        """The lanes."""
        lanes: Lanes = self.once("lanes", lambda: Lanes(self.redis))
        return lanes

    @property
    def budgets(self) -> Budgets:
        """Budgets of money."""
        budgets: Budgets = self.once("budgets", lambda: Budgets(self.redis))
        return budgets

    def spent_before(self, name: str, budget: Budget) -> Spent:
        """What was spent of a budget in the present day and month, by the tracking database.

        Raises:
            StoreUnavailable: The database is away.
        """
        from ratelimit_worker.flow.lane.budget import spent_before

        children = (
            [
                one.lane
                for some in self.lanes.survey(PARENT_FIELDS)
                for one in some
                if name.removeprefix(LANE) in one.state.told.limits.parents
            ]
            if name.startswith(LANE)
            else []
        )
        return spent_before(self.queries, name, budget.zone, redis_now_s(self.redis), children)

    def spending(self) -> tuple[Standing, ...]:
        """How all budgets of money stand, including those of lanes."""
        seen = (one for some in self.lanes.survey(PARENT_FIELDS) for one in some)
        return self.budgets.standing({one.lane: one.state.told for one in seen}, redis_now_s(self.redis))

    @property
    def outbox(self) -> Outbox:
        """Outcomes on their way to the tracking database."""
        box: Outbox = self.once("outbox", lambda: Outbox(self.redis))
        return box

    @property
    def tracker(self) -> Tracker:
        """The tracking database, at the newest schema."""
        tracker: Tracker = self.once("tracker", self._open_tracker)
        return tracker

    @property
    def queries(self) -> Queries:
        """Queries of the tracking database."""
        queries: Queries = self.once("queries", self._open_queries)
        return queries

    def _open_queries(self) -> Queries:
        from ratelimit_worker.stores.database import engine_for
        from ratelimit_worker.stores.queries import Queries

        return Queries(engine_for(self.settings.database_url))

    def _open_tracker(self) -> Tracker:
        # SQLAlchemy and Alembic take half a second to import, which an agent that only sends calls need not pay
        from ratelimit_worker.stores.database import engine_for
        from ratelimit_worker.stores.tracker import Tracker

        return Tracker(engine_for(self.settings.database_url), self._tell_lost)

    def _tell_lost(self, what: str) -> None:
        try:
            self.outbox.tell_lost(what)
        except (StoreUnavailable, ConfigurationError) as error:  # what was lost is in the log
            log.info("database.lost_untold cause=%s", cause_of(error))

    @property
    def shelf(self) -> Shelf:
        """Calls that have failed and can be run again."""
        settings = self.settings
        bounds = Bounds(
            settings.max_failed_calls, int(settings.failed_calls_mb * 1e6), int(settings.failed_calls_hours * 3600)
        )
        shelf: Shelf = self.once("shelf", lambda: Shelf(self.redis, bounds))
        return shelf

    @property
    def usage(self) -> UsageMemory:
        """Tokens that answers have used, in Redis."""
        memory: UsageMemory = self.once("usage", lambda: UsageMemory(self.redis))
        return memory

    @property
    def learned_usage(self) -> LearnedUsage:
        """Tokens that answers have used, as far as this process knows; a look-up never waits for Redis."""
        learned: LearnedUsage = self.once("learned_usage", lambda: LearnedUsage(lambda: self.usage))
        return learned

    @property
    def latencies(self) -> LatencyMemory:
        """How long answers took, in Redis."""
        memory: LatencyMemory = self.once("latencies", lambda: LatencyMemory(self.redis))
        return memory

    @property
    def learned_latencies(self) -> LearnedLatencies:
        """How long answers took, as far as this process knows; a look-up never waits for Redis."""
        learned: LearnedLatencies = self.once("learned_latencies", lambda: LearnedLatencies(lambda: self.latencies))
        return learned

    @property
    def own_prices(self) -> PriceTable:
        """The table of MAISD_PRICES."""
        table: PriceTable = self.once("own_prices", lambda: PriceTable(self.settings.prices))
        return table

    @property
    def prices(self) -> Prices:
        """What requests cost, as far as this process knows; a look-up never waits for Redis."""
        listed = self.once("listed_prices", lambda: ListedPrices(lambda: PriceMemory(self.redis)))
        prices: Prices = self.once("prices", lambda: Prices(self.own_prices, listed))
        return prices

    @property
    def pricer(self) -> Pricer:
        """Computes costs for the recorder, which also reads the published price list."""
        pricer: Pricer = self.once("pricer", self._open_pricer)
        return pricer

    def _open_pricer(self) -> Pricer:
        from ratelimit_worker.flow.duty.price import Pricer
        from ratelimit_worker.providers import price_list

        return Pricer(self.own_prices, PriceMemory(self.redis), price_list.look_up, price_list.release())

    def usual_nanousd(self, task: str, model: str | None) -> int | None:
        """What an answer of a task and model usually costs, billionths of a dollar; None: not known in this process."""
        learned = None if model is None else self.learned_usage(estimate.key(task, model))
        return round(learned.nanousd) if learned is not None and learned.nanousd_of else None

    @property
    def own_rules(self) -> OwnRules:
        """Which tasks retry by themselves."""
        rules: OwnRules = self.once("own_rules", lambda: OwnRules(self.redis))
        return rules

    @property
    def tokenizer(self) -> Tokenizer:
        """Counts tokens, where a tokenizer is installed."""
        tokenizer: Tokenizer = self.once("tokenizer", Tokenizer)
        return tokenizer

    @property
    def control(self) -> ControlPlane:
        """Everything that is needed to change lanes, by the law or by hand."""
        from ratelimit_worker.flow.lane.decide import rules_of  # the law: a process that only sends does not need it
        from ratelimit_worker.flow.lane.tune import ControlPlane

        return ControlPlane(
            lanes=self.lanes, pins=Pins(self.redis), mode_log=self.outbox, rules=rules_of(self.settings)
        )

    @property
    def tracer(self) -> Tracer | None:
        """The traces of this process's calls; None: tracing is off, or (by MAISD_OTEL=auto) no provider is set yet."""
        if self.settings.otel == "off":
            return None
        found: Tracer | None = self._made.get("tracer")
        if found is None and (self._traces or telemetry.configured()):
            found = self.once("tracer", lambda: telemetry.Tracer(self._holding))
        return found

    def _holding(self, lane: str) -> tuple[Held, ...]:
        """What holds the lane's next call back, for traces."""
        from ratelimit_worker.stores.live import Live

        told = Live(self.redis).bars(lane)
        return () if told is None else tuple(Held(one.kind.value, one.detail, one.until_s) for one in told[1])

    def encode_outcome(self, attempt: Any) -> bytes:
        """An attempt, encoded for the outbox."""
        return outbox_store.encode(attempt)


def policy_of(settings: Settings) -> Callable[[str], RetryPolicy]:
    """How calls are retried, by lane: those without adaptive pace by MAISD_BASE_DELAY and MAISD_MAX_DELAY.

    It depends on MAISD_LANES of this process; `limits set --fixed` changes the pace, not the backoff.
    """
    from ratelimit_worker.flow.call import enqueue  # and with it the law of paces, which commands do not need

    if not settings.enable_smart_retries:
        return lambda lane: NO_RETRIES
    adaptive, fixed = RetryPolicy(), by_backoff(settings.base_delay, settings.max_delay)
    if not settings.enable_advanced_rate_limiting:
        return lambda lane: fixed
    return lambda lane: adaptive if enqueue.told(settings, lane).adaptive else fixed


def server_of(settings: Settings, url: str = "") -> RedisServer:
    """The Redis server of these settings, or the one at another address in their namespace."""
    return RedisServer(url or settings.redis_url, namespace=settings.namespace)


def connect(server: RedisServer, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> Redis:
    """A client with timeouts, so that a frozen server is an error and not a hang.

    Raises:
        ConfigurationError: the address is empty, or wrong.
    """
    return server.client(
        socket_timeout=answer_timeout_s,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_keepalive=True,
        health_check_interval=10,
    )


_services: tuple[int, Services] | None = None
_lock = threading.Lock()


def services() -> Services:
    """The services of this process, from the environment; rebuilt in a forked child."""
    global _services
    current = _services
    if current is None or current[0] != os.getpid():
        with _lock:
            current = _services
            if current is None or current[0] != os.getpid():
                settings = current[1].settings if current else read_settings()
                server = current[1].server if current else None
                current = _services = (os.getpid(), Services(settings, server))
                bound_answers(settings.max_answer_mb)
    return current[1]


def use(settings: Settings, server: RedisServer | str | None = None) -> Services:
    """Make these the services of this process (an app that has its own broker, a test)."""
    global _services
    with _lock:
        _services = (os.getpid(), Services(settings, server))
        bound_answers(settings.max_answer_mb)
        return _services[1]
