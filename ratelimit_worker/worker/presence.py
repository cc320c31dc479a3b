"""The presence of a worker: a bootstep that reports its slots while it consumes, and renews the leases of its calls."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Iterable
from queue import Empty
from time import monotonic, sleep, time
from typing import Any, NoReturn

from celery import bootsteps, current_app, signals
from celery.exceptions import WorkerShutdown
from celery.platforms import EX_FAILURE
from celery.worker import state
from celery.worker.consumer.tasks import Tasks
from kombu.serialization import prepare_accept_content
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from ratelimit_worker.contracts.plan import HEADER
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.flow.lane import budget, limit, pin
from ratelimit_worker.outage import cause_of
from ratelimit_worker.providers import network
from ratelimit_worker.stores.lanes import Crew, Lanes
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker import jobs, own_rules
from ratelimit_worker.worker.duties import Alert, Clean, Duty, Recording, Release, Rules, Sample, Tune
from ratelimit_worker.worker.grace import Grace, begin
from ratelimit_worker.worker.installed import in_memory, services_of
from ratelimit_worker.worker.log_lines import leave_out_calls
from ratelimit_worker.worker.prerun import before_others
from ratelimit_worker.worker.quarantine import QUARANTINE
from ratelimit_worker.worker.spare import give_size, kind_of
from ratelimit_worker.worker.task import CallTask, warm_up
from ratelimit_worker.worker.transport import HELD, INTAKE, Transport
from ratelimit_worker.worker.watch import LOOK_EVERY_S, Watch

log = logging.getLogger(__name__)

BEAT_S, LIFE_S = 1.0, 3.5
SETTLING_S = 3.0  #: a request may take this long from its start to task_prerun
MOST_ACKS = 100  #: most acks in one script
MOST_STARTS = 3  #: starts in a row that may fail for another cause than Redis
FIRST_PAUSE_S, MOST_PAUSE_S = 0.25, 2.0  #: between starts
ENDS_WITHIN_S = 5.0  #: how long the duties' threads may take to end
EX_CONFIG = 78
UNCLAIMED_S = 5.0  #: how long a message without a request is renewed, since it may become one

#: Task ids between task_prerun and task_postrun in this process. Celery's active_requests are not enough: in a threads
#: pool, a request whose result could not be stored stays in them for ever.
_RUNNING: set[str] = set()


@signals.task_prerun.connect(weak=False)
def _started(task_id: str = "", **_: Any) -> None:
    _RUNNING.add(task_id)


@signals.task_postrun.connect(weak=False)
def _ended(task_id: str = "", **_: Any) -> None:
    _RUNNING.discard(task_id)


@signals.worker_process_init.connect(weak=False)
def _forked(**_: Any) -> None:
    if in_memory(current_app):
        return
    try:
        live = services_of(current_app)
        _quieten(live, current_app)
        warm_up(live)
    except (RedisError, OSError, StoreUnavailable, ConfigurationError) as error:
        # its first call will connect; for a wrong setting the parent ends
        log.info("child.cold cause=%s", cause_of(error))


def _quieten(live: Services, app: Any) -> None:
    if not live.settings.log_calls:
        leave_out_calls(lambda name: isinstance(app.tasks.get(name), CallTask))


class Presence(Duty):
    """Beats once a second, and renews the leases of this worker's calls."""

    def __init__(self, live: Services, consumer: Any, lease_s: float) -> None:
        # Its node's name, for people and health checks; the rest, as a node that starts again is another worker.
        super().__init__("presence", live.server, f"{consumer.hostname}/{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self.lanes = Lanes(self.client)
        self.consumer = consumer
        self.watch = Watch(live, consumer, self.lanes, self.owner)
        self.lease_s = lease_s
        self.closing = False
        self.every_s = min(BEAT_S, lease_s / 5)
        self.prefork = kind_of(consumer.pool) == "prefork"
        self._unclaimed: dict[str, float] = {}
        self._asked = threading.Event()
        self._counts = False  #: whether Redis may count this worker's slots
        #: One beat at a time. A beat that was prepared before the worker began to leave, and arrived after its last
        #: one, would count its slots again, and calls that it has given back would be released to it.
        self._beating = threading.RLock()
        self._left = False

    def turn(self) -> None:
        self._asked.clear()
        self.beat()
        end = monotonic() + self.every_s
        while (left := end - monotonic()) > 0 and not self._asked.wait(min(left, LOOK_EVERY_S)):
            if late := self.watch.look(self.queues()):
                self.beat(late=late)
                self.watch.lend(late)

    def ask(self) -> None:
        """Beat now, since this worker's slots have changed."""
        self._asked.set()

    def stop(self) -> None:
        super().stop()
        self._asked.set()

    def beat(self, slots: int | None = None, late: frozenset[str] | set[str] = frozenset()) -> None:
        """Report this worker's slots and calls.

        Args:
            late: Further tags that are lent from now on.

        Raises:
            redis.RedisError: the broker is away; the next beat reports it.
        """
        with self._beating:
            if self._left:
                return
            mine = self.slots() if slots is None else slots
            HELD.crew = crew = self.crew()  # the lists of this crew are read from now on
            self._counts = True
            self.lanes.beat(self.owner, mine, LIFE_S, self.queues(), self.lease_s, self.held(), crew, HELD.lent | late)
        self.watch.tell()

    def crew(self) -> Crew:
        """The crew of this worker, by the tasks that it knows now; tasks may be registered at any time."""
        names = frozenset(name for name, task in tuple(self.consumer.app.tasks.items()) if isinstance(task, CallTask))
        return HELD.crew if HELD.crew.name and names == HELD.crew.tasks else Crew.of(names)

    def slots(self) -> int:
        """Calls that this worker can run at once; 0 while it does not consume, so that none are released to it."""
        c = self.consumer
        if self.closing or c.connection is None or c.task_consumer is None or c.task_consumer.channel.closed:
            return 0
        if QUARANTINE.taken:  # calls released to it could not begin, and would keep their lanes full
            return 0
        return self.watch.slots()

    def queues(self) -> list[str]:
        """Queues that this worker consumes now."""
        consumer = self.consumer.task_consumer
        return [queue.name for queue in consumer.queues] if consumer is not None else []

    def held(self) -> list[str]:
        """Tags to renew: messages whose request lives in this process. Others are left to their leases."""
        for _ in range(5):
            try:
                return self._held()
            except RuntimeError:  # the set changed while it was read
                continue
        return []

    def _held(self) -> list[str]:
        alive = {
            request.message.delivery_tag
            for requests in (state.reserved_requests, state.active_requests, state.scheduled_requests)
            for request in tuple(requests)
            if self._lives(request)
        }
        c = self.consumer
        qos = c.task_consumer.channel.qos if c.task_consumer is not None and c.task_consumer.channel else None
        held = (
            [
                tag
                for tag, message in list(qos._delivered.items())
                if tag not in qos._dirty and HEADER in (message.headers or {})
            ]
            if qos
            else []
        )
        HELD.orphans.intersection_update(alive)
        now = monotonic()
        self._unclaimed = {tag: self._unclaimed.get(tag, now) for tag in held}
        return [tag for tag in held if tag in alive or now - self._unclaimed[tag] < UNCLAIMED_S] + list(HELD.orphans)

    def _lives(self, request: Any) -> bool:
        if self.prefork or not request.time_start:
            return True
        return request.id in _RUNNING or time() - request.time_start < SETTLING_S

    def stops(self) -> bool:
        """Whether this worker ends in good order, so that calls that it gives back are no suspects."""
        return self.closing or state.should_stop is not None or state.should_terminate is not None

    def running(self) -> Iterable[str]:
        """Tags that this worker keeps when a channel closes; none when it stops."""
        if self.stops():
            return ()
        return [request.message.delivery_tag for request in tuple(state.active_requests)]

    def leave(self) -> None:
        """Report that the worker leaves: its slots do not count any more."""
        self.stop()
        if not self._counts:
            return
        with self._beating:
            try:
                self.beat(0)
            except (RedisError, OSError) as error:
                log.info("presence.leave", extra={"cause": type(error).__name__})  # its entry expires
            self._left = True


class Acknowledge(Duty):
    """Sends acks: frees every call whose message Celery has acknowledged."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__("acknowledge", server, "")
        self.lanes = Lanes(self.client)

    def turn(self) -> None:
        try:
            tags = [HELD.acks.get(timeout=0.5)]
        except Empty:
            return
        while len(tags) < MOST_ACKS and not HELD.acks.empty():
            tags.append(HELD.acks.get())
        try:
            self.lanes.free(tags)
        except (RedisError, OSError):
            for tag in tags:
                HELD.acks.put(tag)
            raise

    def stop(self) -> None:
        """Send the acks that are left, and end; later ones are sent directly."""
        HELD.has_messenger = False
        super().stop()
        if self.is_alive():
            self.join(ENDS_WITHIN_S)
        if not HELD.acks.empty():
            self.turn()


class Consumed:
    """Queues that a worker consumes or did before; they can change at run time (`control.add_consumer`)."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._seen: set[str] = set()

    def __contains__(self, name: object) -> bool:
        if name in self._seen:  # messages that were on their way when a queue was given up are still tasks
            return True
        consumes = self._consumer.task_consumer
        if consumes is None or not consumes.consuming_from(name):
            return False
        self._seen.add(str(name))
        return True


class LanesStep(bootsteps.StartStopStep):
    """Presence and duties of a worker; made once with the consumer, and kept when the broker reconnects."""

    requires = (Tasks,)

    def include_if(self, c: Any) -> bool:
        """Not if messages stay in this process (`memory://`, in tests), where calls are made as they are sent."""
        return not in_memory(c.app)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        before_others()  # at this moment the app's modules are imported, and no child is forked yet
        self.presence: Presence | None = None  #: None: not everything that a worker needs has started
        self.duties: list[Duty] = []
        self.grace: Grace | None = None
        self.outages = self.faults = 0  #: starts that failed because of Redis, or of something else
        self.closing = False

    def start(self, c: Any) -> None:
        INTAKE.queues = Consumed(c)
        INTAKE.tasks = c.app.tasks
        INTAKE.accepts = frozenset(prepare_accept_content(c.app.conf.accept_content))
        if self.presence is not None:  # the broker has reconnected: slots count again
            self.presence.beat()
            return
        while True:
            try:
                self._open(c)
            except Exception as error:
                self._again(error)
            else:
                return

    def _again(self, error: Exception) -> None:
        """After a failed start: return when it can be tried again over this connection.

        Raises:
            redis.RedisError, OSError: Redis is away: Celery reconnects and starts its steps again.
            SystemExit: trying again cannot help, or the worker was told to end.
        """
        if isinstance(error, ConfigurationError):
            _end(str(error), EX_CONFIG)
        if _is_away(error):
            self.outages += 1
            if self.outages > 1:  # after the first, try again at once
                _pause(self.outages)
            if isinstance(error, (RedisError, OSError)):
                raise error
            raise RedisConnectionError(cause_of(error)) from error
        self.faults += 1
        if self.faults >= MOST_STARTS:
            _end(f"{cause_of(error)} ({self.faults} times)", EX_FAILURE)
        log.warning("worker.starts_again cause=%s", cause_of(error))
        _pause(self.faults)

    def _open(self, c: Any) -> None:
        """Start everything that a worker needs; if part of it fails, nothing is left running."""
        _check(c)
        network.check()
        live = services_of(c.app)
        _quieten(live, c.app)
        if self.grace is None:
            self.grace = begin(live.server, self._ends, c.app.conf, lambda: _last_words(c.controller))
        lease_s = live.settings.visibility_timeout_seconds
        presence = Presence(live, c, lease_s)
        owner = presence.owner
        duties: list[Duty] = []
        HELD.running, HELD.stopping = presence.running, presence.stops
        jobs.guard(c.pool)
        give_size(c.pool)
        QUARANTINE.tell = presence.ask
        try:
            record = Recording(live, owner)
            duties += [
                Release(live.server, owner, lease_s),
                Tune(live, owner),
                record,
                Clean(live, owner, lambda: record.has_had),
                Sample(live, owner, lambda: record.has_had),
                Rules(live, owner, lambda: record.has_had),
                Acknowledge(live.server),
            ]
            if live.settings.alert_webhook_url:
                duties.append(Alert(live, owner))
            if not presence.prefork:  # children of a prefork pool do it themselves
                warm_up(live, presence.slots())
            if record.ask():
                _open_history(live)
            _tell_own_rules(live, c.app)
            pin.at_start(live.control, live.settings.emergency_mode)  # before the first slot counts
            limit.at_start(live.control, live.settings)
            budget.at_start(live.budgets, live.settings.budgets, live.spent_before)
            presence.beat()  # before the first message, so that calls left ready by dead workers go back first
            for thread in (presence, *duties):
                thread.start()
        except BaseException:
            _leave(presence, duties)
            raise
        self.presence, self.duties = presence, duties
        HELD.has_messenger = True

    def _ends(self) -> bool:
        flags = (state.should_stop, state.should_terminate)  # exit codes, of which 0 is one
        return self.closing or any(flag is not None and flag is not False for flag in flags)

    def stop(self, c: Any) -> None:
        # a reconnect calls stop too, but then the blueprint is still running
        if c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE):
            self.closing = True
            if self.presence is not None:
                self.presence.closing = True  # no more slots, but leases of running calls are still renewed
                try:
                    self.presence.beat()
                except (RedisError, OSError) as error:
                    log.info("presence.stop", extra={"cause": type(error).__name__})

    def shutdown(self, c: Any) -> None:
        self._leave()

    def terminate(self, c: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        self.closing = True
        if self.presence is not None:
            _leave(self.presence, self.duties)


def _leave(presence: Presence, duties: list[Duty]) -> None:
    """End the threads that have started; the worker's slots do not count any more."""
    for duty in duties:
        try:
            duty.stop()
        except (RedisError, OSError) as error:
            log.info("duty.stop %s %s", duty.name, type(error).__name__)
    presence.leave()
    end = monotonic() + ENDS_WITHIN_S
    for thread in (presence, *duties):
        if thread.is_alive() and thread is not threading.current_thread():
            thread.join(max(0.0, end - monotonic()))


def _pause(failed: int) -> None:
    """Pause between starts.

    Raises:
        SystemExit: the worker was told to end.
    """
    end = monotonic() + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**failed)
    while monotonic() < end:
        state.maybe_shutdown()
        sleep(LOOK_EVERY_S)


def _is_away(error: Exception) -> bool:
    """Whether the cause is an outage of Redis, so that the start is repeated for as long as it takes."""
    if isinstance(error, (StoreUnavailable, ConnectionError, TimeoutError)):
        return True
    return isinstance(error, RedisError) and passes(error)


def _end(why: str, code: int) -> NoReturn:
    """End this worker, with a log line for each thing that is wrong."""
    for line in why.splitlines():
        log.critical("this worker cannot start: %s", line)
    raise WorkerShutdown(code)


def _last_words(controller: Any) -> None:
    """Do what Celery does at the end of the process; the pool's children end with it."""
    beat = getattr(controller, "beat", None)
    if beat is not None and hasattr(beat, "terminate"):
        beat.terminate()
    if getattr(controller, "pidlock", None) is not None:
        controller.pidlock.release()


def _open_history(live: Services) -> None:
    """Load and open the tracking database now: later it would slow down the first calls."""
    try:
        live.tracker.open()
    except (StoreUnavailable, ConfigurationError) as error:  # calls go on; the recorder reports it and tries again
        log.info("history.away %s", error)


def _tell_own_rules(live: Services, app: Any) -> None:
    """Report the tasks that retry by themselves, to the log and to `doctor`."""
    rules = own_rules.own_rules(app.tasks.values())
    own_rules.say(rules)
    names = [name for name, task in app.tasks.items() if isinstance(task, CallTask)]
    try:
        live.own_rules.tell(names, {rule.task: str(rule) for rule in rules})
    except StoreUnavailable as error:  # `doctor` does without
        log.info("own_rules.untold %s", error)


def _check(consumer: Any) -> None:
    """Check what the promises depend on: a worker without it would break them silently."""
    transport = consumer.connection.transport
    if not isinstance(transport, Transport):
        raise ConfigurationError(
            f"the broker connection of this worker has no lanes ({type(transport).__module__}); call "
            "ratelimit_worker.install(app) on the app that it runs, and name one Redis as its broker"
        )
    if consumer.controller.prefetch_multiplier != 1:
        raise ConfigurationError(
            f"--prefetch-multiplier {consumer.controller.prefetch_multiplier}: lanes count slots; leave it out"
        )
    calls = {name: task for name, task in consumer.app.tasks.items() if isinstance(task, CallTask)}
    early = [name for name, task in calls.items() if not task.acks_late]
    if early:
        raise ConfigurationError(f"tasks with acks_late=False cannot make calls: {', '.join(sorted(early))}")
    limited = [name for name, task in calls.items() if task.rate_limit]
    if limited:  # by task_annotations; Celery would keep their calls in the worker, while their lane waits for them
        raise ConfigurationError(f"tasks with a rate_limit cannot make calls, give their lane an rpm: {limited[0]}")
