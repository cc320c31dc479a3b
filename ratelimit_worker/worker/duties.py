"""Which work must somebody do for the whole cluster? Release, sweep, tune, record, clean and alert: threads of every
worker, under leases, so that one of them does it and any other takes over.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from abc import ABC, abstractmethod
from time import monotonic, time
from typing import Any

from redis import Redis, RedisError

from ratelimit_worker.errors import RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.flow.duty import alert
from ratelimit_worker.flow.duty.clean import LOOK_EVERY_S, clean_once
from ratelimit_worker.flow.duty.record import Beside, Recorder
from ratelimit_worker.flow.lane.decide import rules_of
from ratelimit_worker.flow.lane.tune import TUNE_EVERY_S, ControlPlane, Tuner
from ratelimit_worker.outage import Outage
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.alerts import Alerts
from ratelimit_worker.stores.desks import Desks
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.leases import Leases
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services, connect

log = logging.getLogger(__name__)

PUMP_LEASE_MS = 500
TAKE_OVER_S = 0.5  #: whoever waits for the tuner's duty looks so often; with its lease it is taken over within 2.5 s
LEAST_SLEEP_S = 0.002


class Duty(ABC, threading.Thread):
    """A loop that outlives broker restarts.

    Args:
        server: The Redis server; each duty has a client of its own, since it blocks on it.
    """

    def __init__(self, name: str, server: RedisServer, owner: str) -> None:
        super().__init__(name=f"rlw-{name}", daemon=True)
        self.owner = owner
        self.client: Redis = connect(server)
        self.stopping = threading.Event()
        self.outage = Outage()

    @abstractmethod
    def turn(self) -> None:
        """One round; blocks as long as there is nothing to do."""

    def run(self) -> None:
        """Rounds until `stop`."""
        while not self.stopping.is_set():
            try:
                self.turn()
                if self.outage.over():
                    log.info("duty.back duty=%s", self.name)
            except (RedisError, OSError, RateLimitWorkerError) as error:
                self.say("duty.waits", error)
                with contextlib.suppress(RedisError, OSError):  # they are broken, and this thread has to go on
                    self.forget_connections()
                self.stopping.wait(0.5)
            except Exception as error:
                if cause := self.outage.news(error):
                    log.exception("duty.failed duty=%s cause=%s", self.name, cause)
                self.stopping.wait(0.5)

    def say(self, event: str, error: BaseException) -> None:
        """Log a cause that this outage has not had yet."""
        if cause := self.outage.news(error):
            log.warning("%s duty=%s cause=%s", event, self.name, cause)

    def forget_connections(self) -> None:
        """After a broken connection: start anew."""
        self.client.connection_pool.disconnect()

    def stop(self) -> None:
        """Ask the loop to end."""
        self.stopping.set()


class Listening(Duty):
    """A duty that is woken through a pub/sub channel."""

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
        self.listen(0.0)  # subscribe before the plan is made, or a wake-up could fall between
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


class Record(Duty):
    """The recorder of outcomes; a consumer group shares the work, so it needs no lease."""

    def __init__(self, services: Services, owner: str) -> None:
        super().__init__("record", services.server, owner)
        self.services = services

    def turn(self) -> None:
        live = self.services
        beside = Beside(usage=live.usage, latencies=live.latencies, pricer=live.pricer)
        Recorder(live.outbox, live.tracker, beside=beside).run(self.stopping)


class Clean(Duty):
    """Old outcomes go: one worker looks every few minutes, one cleans in each interval."""

    def __init__(self, services: Services, owner: str) -> None:
        super().__init__("clean", services.server, owner)
        self.services, self.lease = services, Leases(self.client)
        self.waits = Outage()  #: for a store, within its turns

    def turn(self) -> None:
        try:
            clean_once(self.lease, self.services.tracker, self.services.settings, self.owner, time())
            self.waits.over()
        except StoreUnavailable as error:
            if cause := self.waits.news(error):
                log.info("clean.waits cause=%s", cause)
        self.stopping.wait(LOOK_EVERY_S)


class Alert(Duty):
    """Tells the web hook what happened: one worker at a time, so that it hears things once and in order."""

    def __init__(self, services: Services, owner: str) -> None:
        from ratelimit_worker.providers.webhook import NotTaken, Webhook  # an HTTP client, which few need

        super().__init__("alert", services.server, owner)
        self.lease = Leases(self.client)
        self.waits = Outage()  #: for a store, within its turns
        self.webhook = Webhook(services.settings.alert_webhook_url)
        self.alerter = alert.Alerter(Alerts(self.client), self.webhook.post, NotTaken, lambda: services.queries)

    def turn(self) -> None:
        try:
            mine = self.lease.hold(alert.NAME, self.owner, alert.LEASE_S)
            pause_s = self.alerter.step() if mine else alert.IDLE_S
            self.waits.over()
        except StoreUnavailable as error:
            if cause := self.waits.news(error):
                log.info("alert.waits cause=%s", cause)
            pause_s = alert.PAUSE_CAP_S
        self.stopping.wait(pause_s)

    def run(self) -> None:
        """Rounds until `stop`; then another worker may go on at once."""
        super().run()
        self.webhook.close()
        with contextlib.suppress(StoreUnavailable):  # else it ends by itself
            self.lease.drop(alert.NAME, self.owner)
