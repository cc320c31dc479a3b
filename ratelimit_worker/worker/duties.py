"""Which work must somebody do for the whole cluster? Release, sweep, tune, record, sample, clean, apply the rules of
alerts and send their notices: threads of every worker, under leases, so that one does it and any other takes over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from time import monotonic, time
from typing import Any

from redis import Redis, RedisError

from ratelimit_worker.config import environment, signing_secret
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.flow.duty import alert, evaluate, sample
from ratelimit_worker.flow.duty.clean import LOOK_EVERY_S, clean_once
from ratelimit_worker.flow.duty.record import Beside, Recorder
from ratelimit_worker.flow.lane.decide import rules_of
from ratelimit_worker.flow.lane.tune import TUNE_EVERY_S, ControlPlane, Tuner
from ratelimit_worker.outage import Outage
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.alerts import Alerts
from ratelimit_worker.stores.desks import Desks
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.leases import Leases
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.reuse import ReuseMinutes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services, connect

log = logging.getLogger(__name__)

PUMP_LEASE_MS = 500
TAKE_OVER_S = 0.5  #: how often others try to get the tuner's duty; with its lease, it is taken over within 2.5 s
LEAST_SLEEP_S = 0.002


def always() -> bool:
    """Every worker asks."""
    return True


class Duty(ABC, threading.Thread):
    """A loop that goes on after restarts of the broker.

    Args:
        server: The Redis server; each duty has its own client, since it blocks.
    """

    def __init__(self, name: str, server: RedisServer, owner: str) -> None:
        super().__init__(name=f"rlw-{name}", daemon=True)
        self.owner = owner
        self.client: Redis = connect(server)
        self.stopping = threading.Event()
        self.outage = Outage()

    @abstractmethod
    def turn(self) -> None:
        """One round; blocks while there is nothing to do."""

    def run(self) -> None:
        """Rounds until `stop`."""
        while not self.stopping.is_set():
            try:
                self.turn()
                if self.outage.over():
                    log.info("duty.back duty=%s", self.name)
            except (RedisError, OSError, RateLimitWorkerError) as error:
                self.say("duty.waits", error)
                with contextlib.suppress(RedisError, OSError):  # the connection is broken, and this thread must go on
                    self.forget_connections()
                self.stopping.wait(0.5)
            except Exception as error:
                if cause := self.outage.news(error):
                    log.exception("duty.failed duty=%s cause=%s", self.name, cause)
                self.stopping.wait(0.5)

    def say(self, event: str, error: BaseException) -> None:
        """Log a cause that was not logged yet in this outage."""
        if cause := self.outage.news(error):
            log.warning("%s duty=%s cause=%s", event, self.name, cause)

    def forget_connections(self) -> None:
        """Start anew after a broken connection."""
        self.client.connection_pool.disconnect()

    def stop(self) -> None:
        """Ask the loop to end."""
        self.stopping.set()


class Listening(Duty):
    """A duty that is woken by a pub/sub channel."""

    channel: str

    def __init__(self, name: str, server: RedisServer, owner: str) -> None:
        super().__init__(name, server, owner)
        self._pubsub: Any = None

    def listen(self, wait_s: float) -> bool:
        """Wait for a wake-up, at most `wait_s` → whether one came."""
        if self._pubsub is None:
            self._pubsub = self.client.pubsub(ignore_subscribe_messages=True)
            self._pubsub.subscribe(self.channel)
        end = monotonic() + wait_s
        while not self.stopping.is_set():
            left = end - monotonic()
            if left <= 0:
                return False
            if self._pubsub.get_message(timeout=min(left, 1.0)) is not None:
                return True
        return False

    def forget_connections(self) -> None:
        if self._pubsub is not None:
            self._pubsub.close()
            self._pubsub = None
        super().forget_connections()


class Release(Listening):
    """The pump: sleeps until the next permit, due time or deadline, and sweeps what died."""

    channel = keys.WAKE

    def __init__(self, server: RedisServer, owner: str, lease_s: float) -> None:
        super().__init__("release", server, owner)
        self.lanes = Lanes(self.client)
        self.desks = Desks(self.client)
        self.lease_s = lease_s
        self._sweep_at = 0.0

    def turn(self) -> None:
        self.listen(0.0)  # subscribe before planning, so that no wake-up is missed in between
        moved, sleep_s = self.lanes.pump(self.owner, PUMP_LEASE_MS)
        if moved < 0:  # another holds the duty: look again when its lease could have ended
            self.stopping.wait(max(sleep_s, 0.0) + 0.005)
            return
        now = monotonic()
        if now >= self._sweep_at:
            self.lanes.sweep(self.lease_s)
            self.desks.forget_absent(self.owner, self.lease_s)
            self._sweep_at = now + max(0.25, min(self.lease_s / 8, 5.0))
        self.listen(max(LEAST_SLEEP_S, min(sleep_s, PUMP_LEASE_MS / 3000)))


class Tune(Listening):
    """The tuner of all lanes."""

    channel = keys.TUNE

    def __init__(self, services: Services, owner: str) -> None:
        super().__init__("tune", services.server, owner)
        self.tuner = Tuner(
            ControlPlane(
                lanes=Lanes(self.client),
                pins=Pins(self.client),
                mode_log=Outbox(self.client),
                rules=rules_of(services.settings),
            )
        )

    def turn(self) -> None:
        self.listen(0.0)
        if self.tuner.turn(self.owner) is None:
            self.stopping.wait(TAKE_OVER_S)
        else:
            self.listen(0.0 if self.tuner.behind else TUNE_EVERY_S)


class Clean(Duty):
    """Deletes old records: workers ask every minute, and one of them cleans in each interval.

    Args:
        wanted: Whether this worker asks.
    """

    def __init__(self, services: Services, owner: str, wanted: Callable[[], bool] = always) -> None:
        super().__init__("clean", services.server, owner)
        self.services, self.lease, self.wanted = services, Leases(self.client), wanted
        self.waits = Outage()  #: for a store, within its turns

    def turn(self) -> None:
        if not self.wanted():
            self.stopping.wait(LOOK_EVERY_S)
            return
        try:
            clean_once(self.lease, self.services.tracker, self.services.settings, self.owner, time())
            self.waits.over()
        except StoreUnavailable as error:
            if cause := self.waits.news(error):
                log.info("clean.waits cause=%s", cause)
        self.stopping.wait(LOOK_EVERY_S)


class Leased(Duty):
    """What one worker at a time does, step by step.

    Args:
        wanted: Whether this worker asks for the lease.
    """

    lease_name: str
    lease_s: float
    hold_every_s: float  #: how often the lease is asked for, or extended
    away_pause_s: float = alert.PAUSE_CAP_S  #: after a store was away

    def __init__(self, name: str, server: RedisServer, owner: str, wanted: Callable[[], bool] = always) -> None:
        super().__init__(name, server, owner)
        self.lease, self.wanted = Leases(self.client), wanted
        self.waits = Outage()  #: for a store, within its turns
        self._held = False
        self._hold_at = 0.0  #: of the monotonic clock

    @abstractmethod
    def step(self) -> float:
        """One step → seconds until the next."""

    def rest(self) -> None:
        """Called when the lease was lost: another worker has the duty."""

    def turn(self) -> None:
        try:
            if monotonic() >= self._hold_at:
                held = self._held
                if not self.ask() and held:
                    self.rest()
            pause_s = self.step() if self._held else self.hold_every_s
            self.waits.over()
        except StoreUnavailable as error:
            if cause := self.waits.news(error):
                log.info("%s.waits cause=%s", self.lease_name, cause)
            pause_s = self.away_pause_s
        self.stopping.wait(pause_s)

    def ask(self) -> bool:
        """Take or extend the lease → whether this worker has it.

        Raises:
            StoreUnavailable: Redis is away.
        """
        self._held = self.wanted() and self.lease.hold(self.lease_name, self.owner, self.lease_s)
        self._hold_at = monotonic() + self.hold_every_s
        return self._held

    def run(self) -> None:
        """Rounds until `stop`; then the lease is given up, so that another worker can go on at once."""
        super().run()
        self.close()
        with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
            self.lease.drop(self.lease_name, self.owner)

    def close(self) -> None:
        """Called at the end of `run`, before the lease is given up."""


class Recording(Leased):
    """The recorder of outcomes: one worker at a time, so that the others need not load the tracking database.

    Two may record for a while, if a batch outlasts the lease or a worker of an older version asks for no lease. That is
    harmless, since a consumer group divides the rows between them.
    """

    lease_name, lease_s, hold_every_s, away_pause_s = "record", 10.0, 2.5, 2.5

    def __init__(self, services: Services, owner: str) -> None:
        super().__init__("record", services.server, owner)
        self.services = services
        self._recorder: Recorder | None = None
        self.has_had = False  #: whether this worker ever had the duty, and so has loaded the tracking database

    def ask(self) -> bool:
        self.has_had = super().ask() or self.has_had
        return self._held

    def step(self) -> float:
        try:
            recorder = self.recorder()
            pause_s = recorder.step()
        except Exception:
            self.pass_on(self.hold_every_s)
            raise
        if recorder.failures:  # perhaps only this worker cannot reach the database
            self.pass_on(pause_s)
        return pause_s

    def recorder(self) -> Recorder:
        """The recorder; it is made when it is first needed.

        Raises:
            StoreUnavailable, ConfigurationError: The tracking database cannot be opened.
        """
        live = self.services
        if self._recorder is None:
            beside = Beside(
                usage=live.usage,
                latencies=live.latencies,
                pricer=live.pricer,
                charge=live.budgets.charge,
                reuse=ReuseMinutes(live.redis),
            )
            self._recorder = Recorder(live.outbox, live.tracker, beside=beside)
        return self._recorder

    def pass_on(self, pause_s: float) -> None:
        """Leave the duty to any other worker, and ask for it again after this pause."""
        self._held, self._hold_at = False, monotonic() + pause_s
        with contextlib.suppress(StoreUnavailable):  # then the lease ends by itself
            self.lease.drop(self.lease_name, self.owner)

    def close(self) -> None:
        """Record what waits, unless another worker has the duty.

        The lease is given up first. A worker that ends at this time and still finds it held leaves its rows to this
        one, which has yet to read them.
        """
        try:
            if not self._held and not (self.services.outbox.backlog() and self.ask()):
                return
            self.pass_on(0.0)
            self.recorder().finish()
        except (StoreUnavailable, ConfigurationError) as error:
            self.say("duty.waits", error)

    def stop(self) -> None:
        super().stop()
        if self._held and self.ident is None:  # the worker's start has failed before this thread began
            self.pass_on(0.0)


class Sample(Leased):
    """What lanes are allowed, and what waits in them, for charts: one worker at a time looks."""

    lease_name, lease_s, hold_every_s = sample.NAME, sample.LEASE_S, sample.LOOK_EVERY_S

    def __init__(self, services: Services, owner: str, wanted: Callable[[], bool] = always) -> None:
        super().__init__("sample", services.server, owner, wanted)
        self.services = services
        self.live, self.lanes = Live(self.client), Lanes(self.client)
        self.sampler = sample.Sampler(self.working, self.look, self.used, self.keep)

    def working(self) -> Iterable[str]:
        """Lanes with calls that wait or are out."""
        return self.lanes.working(sample.MOST_LANES)

    def used(self, since_s: float) -> frozenset[str]:
        """Lanes with attempts that ended since then."""
        return self.services.queries.lanes_used(since_s)

    def keep(self, samples: Sequence[LaneSample]) -> None:
        """Write samples to the tracking database."""
        self.services.tracker.keep_samples(samples)

    def look(self, names: Sequence[str]) -> Iterable[LaneSample]:
        """The present state of these lanes."""
        from ratelimit_worker.reports.live import cluster_state  # imports SQLAlchemy, not for senders

        now = self.live.now(names)
        for lane in cluster_state(now, None).lanes:
            yield LaneSample(
                lane=lane.lane,
                at_s=int(now.at_s),
                allowed_per_min=lane.allowed_per_min,
                waiting=lane.waiting + lane.due_later,
                running=lane.out,
                mode=lane.mode,
            )

    def step(self) -> float:
        self.sampler.step(time())
        return sample.LOOK_EVERY_S

    def rest(self) -> None:
        self.sampler.forget()


class Alert(Leased):
    """Posts notices to the web hook: one worker at a time, so that they arrive once and in order."""

    lease_name, lease_s, hold_every_s = alert.NAME, alert.LEASE_S, alert.IDLE_S

    def __init__(self, services: Services, owner: str) -> None:
        # imports an HTTP client, which few workers need
        from ratelimit_worker.providers.webhook import NotTaken, Webhook

        super().__init__("alert", services.server, owner)
        settings = services.settings
        self.webhook = Webhook(
            settings.alert_webhook_url,
            settings.alert_webhook_form,
            lambda: signing_secret(environment(), settings.alert_webhook_secret),
        )
        states = AlertStates(self.client)
        self.alerter = alert.Alerter(
            Alerts(self.client), self.webhook.post, NotTaken, self.webhook.digest, states.silences
        )

    def step(self) -> float:
        return self.alerter.step()

    def rest(self) -> None:
        self.alerter.rest()

    def close(self) -> None:
        self.webhook.close()


class Rules(Leased):
    """Applies the rules of alerts: one worker at a time."""

    lease_name, lease_s, hold_every_s = evaluate.NAME, evaluate.LEASE_S, evaluate.HOLD_EVERY_S

    def __init__(self, services: Services, owner: str, wanted: Callable[[], bool] = always) -> None:
        super().__init__("rules", services.server, owner, wanted)
        self.services = services

    @cached_property
    def evaluator(self) -> evaluate.Evaluator:
        """The evaluator; it is made when it is first needed."""
        from ratelimit_worker.worker.facts import RedisFacts, recorded  # imports SQLAlchemy, as in `Sample.look`

        services = self.services
        facts = RedisFacts(Live(self.client), Lanes(self.client), Outbox(self.client))
        return evaluate.Evaluator(
            AlertStates(self.client),
            facts.standing,
            lambda now_s: recorded(services.queries, now_s),
            lambda: services.tracker,
        )

    def step(self) -> float:
        return self.evaluator.step()
