"""Is this worker there, and what does it hold? A bootstep: its slots count while it consumes, and what it runs stays
invisible to others.
"""

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
from ratelimit_worker.flow.lane import limit, pin
from ratelimit_worker.outage import cause_of
from ratelimit_worker.providers import network
from ratelimit_worker.stores.lanes import Crew, Lanes
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker import jobs, own_rules
from ratelimit_worker.worker.duties import Alert, Clean, Duty, Record, Release, Tune
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
SETTLING_S = 3.0  #: a request that started so recently may not have reached task_prerun yet
MOST_ACKS = 100  #: in one script
MOST_STARTS = 3  #: in a row that fail for a cause that is not Redis
FIRST_PAUSE_S, MOST_PAUSE_S = 0.25, 2.0  #: between starts
ENDS_WITHIN_S = 5.0  #: threads of duties, once they were told to
EX_CONFIG = 78
UNCLAIMED_S = 5.0  #: a message that is no request's is renewed so long: it may be on its way to one

#: Task ids between task_prerun and task_postrun in this process. A threads pool never finishes a request whose result
#: could not be stored: it stays in active_requests for ever, so that set alone says nothing.
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
        log.info("child.cold cause=%s", cause_of(error))  # its first call connects; of a setting its parent ends


def _quieten(live: Services, app: Any) -> None:
    if not live.settings.log_calls:
        leave_out_calls(lambda name: isinstance(app.tasks.get(name), CallTask))


class Presence(Duty):
    """Beats once a second and renews what lives."""

    def __init__(self, live: Services, consumer: Any, lease_s: float) -> None:
        super().__init__("presence", live.server, f"{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self.lanes = Lanes(self.client)
        self.consumer = consumer
        self.watch = Watch(live, consumer, self.lanes, self.owner)
        self.lease_s = lease_s
        self.closing = False
        self.every_s = min(BEAT_S, lease_s / 5)
        self.prefork = kind_of(consumer.pool) == "prefork"
        self._unclaimed: dict[str, float] = {}
        self._asked = threading.Event()
        self._counts = False  #: whether Redis may know of this worker
        #: One beat at a time: one that was decided before the worker began to leave, and came after its last, would
        #: count its slots until that beat's life is over, and calls that it gives back would be released to it again.
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
        """Beat now: what this worker has to offer is another."""
        self._asked.set()

    def stop(self) -> None:
        super().stop()
        self._asked.set()

    def beat(self, slots: int | None = None, late: frozenset[str] | set[str] = frozenset()) -> None:
        """Say what this worker has and holds.

        Args:
            late: Tags that are lent beside those of which Redis knows.

        Raises:
            redis.RedisError: the broker is away; the next beat tells it.
        """
        with self._beating:
            if self._left:
                return
            mine = self.slots() if slots is None else slots
            HELD.crew = crew = self.crew()  # its ready lists are read from now on
            self._counts = True
            self.lanes.beat(self.owner, mine, LIFE_S, self.queues(), self.lease_s, self.held(), crew, HELD.lent | late)
        self.watch.tell()

    def crew(self) -> Crew:
        """The tasks for which this worker can take calls; a task may be registered at any time."""
        names = frozenset(name for name, task in tuple(self.consumer.app.tasks.items()) if isinstance(task, CallTask))
        return HELD.crew if HELD.crew.name and names == HELD.crew.tasks else Crew.of(names)

    def slots(self) -> int:
        """Calls that this worker can run at once; 0 while it does not consume, or released calls would pile up."""
        c = self.consumer
        if self.closing or c.connection is None or c.task_consumer is None or c.task_consumer.channel.closed:
            return 0
        if QUARANTINE.taken:  # else those that cannot begin here would keep their lanes full for all workers
            return 0
        return self.watch.slots()

    def queues(self) -> list[str]:
        """Queues that this worker consumes now."""
        consumer = self.consumer.task_consumer
        return [queue.name for queue in consumer.queues] if consumer is not None else []

    def held(self) -> list[str]:
        """Tags to renew: messages whose request lives in this process. The rest is left to its lease."""
        for _ in range(5):
            try:
                return self._held()
            except RuntimeError:  # a set changed while it was read
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
        """Whether this worker ends in good order: a call that it gives back then has not killed it."""
        return self.closing or state.should_stop is not None or state.should_terminate is not None

    def running(self) -> Iterable[str]:
        """Tags that stay ours when a channel closes; none when the worker stops."""
        if self.stops():
            return ()
        return [request.message.delivery_tag for request in tuple(state.active_requests)]

    def leave(self) -> None:
        """The worker is gone: its slots no longer count."""
        self.stop()
        if not self._counts:
            return
        with self._beating:
            try:
                self.beat(0)
            except (RedisError, OSError) as error:
                log.info("presence.leave", extra={"cause": type(error).__name__})  # it expires with its life
            self._left = True


class Acknowledge(Duty):
    """Sends acks: FREE of every call that Celery has done with."""

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
        """Send what is left, then end; later acks go the direct way."""
        HELD.has_messenger = False
        super().stop()
        if self.is_alive():
            self.join(ENDS_WITHIN_S)
        if not HELD.acks.empty():
            self.turn()


class Consumed:
    """Names of the queues that a worker consumes, now or before: they change at run time (`control.add_consumer`)."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._seen: set[str] = set()

    def __contains__(self, name: object) -> bool:
        if name in self._seen:  # what was on its way when a queue was given up is still a task's
            return True
        consumes = self._consumer.task_consumer
        if consumes is None or not consumes.consuming_from(name):
            return False
        self._seen.add(str(name))
        return True


class LanesStep(bootsteps.StartStopStep):
    """Presence and duties of a worker; made once with the consumer, it outlives broker reconnects."""

    requires = (Tasks,)

    def include_if(self, c: Any) -> bool:
        """Not where messages stay in this process (`memory://`, in tests): calls are made where they are sent."""
        return not in_memory(c.app)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        before_others()  # the app's modules are imported, and no child is forked yet
        self.presence: Presence | None = None  #: once all has been started that a worker needs
        self.duties: list[Duty] = []
        self.grace: Grace | None = None
        self.outages = self.faults = 0  #: starts that Redis, or something else, has not let come to their end
        self.closing = False

    def start(self, c: Any) -> None:
        INTAKE.queues = Consumed(c)
        INTAKE.tasks = c.app.tasks
        INTAKE.accepts = frozenset(prepare_accept_content(c.app.conf.accept_content))
        if self.presence is not None:  # reconnected: slots count again
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
        """After a start in vain: returns when it is to be tried again over this connection.

        Raises:
            redis.RedisError, OSError: Redis is away: Celery connects again, and then starts its steps again.
            SystemExit: trying again does not mend it, or the worker was told to end.
        """
        if isinstance(error, ConfigurationError):
            _end(str(error), EX_CONFIG)
        if _is_away(error):
            self.outages += 1
            if self.outages > 1:  # the first is tried again at once
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
        """All that a worker needs: either the whole of it is there afterwards, or nothing."""
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
            duties += [
                Release(live.server, owner, lease_s),
                Tune(live, owner),
                Record(live, owner),
                Clean(live, owner),
                Acknowledge(live.server),
            ]
            if live.settings.alert_webhook_url:
                duties.append(Alert(live, owner))
            if not presence.prefork:  # each child of a prefork pool does it for itself
                warm_up(live, presence.slots())
            _open_history(live)
            _tell_own_rules(live, c.app)
            pin.at_start(live.control, live.settings.emergency_mode)  # before the first slot counts
            limit.at_start(live.control, live.settings)
            presence.beat()  # before the first message: recall what dead workers left ready
            for thread in (presence, *duties):
                thread.start()
        except BaseException:
            _leave(presence, duties)
            raise
        self.presence, self.duties = presence, duties
        HELD.has_messenger = True

    def _ends(self) -> bool:
        flags = (state.should_stop, state.should_terminate)  # exit codes, and 0 is one
        return self.closing or any(flag is not None and flag is not False for flag in flags)

    def stop(self, c: Any) -> None:
        # a reconnect calls stop too, with the blueprint still running
        if c.blueprint.state in (bootsteps.CLOSE, bootsteps.TERMINATE):
            self.closing = True
            if self.presence is not None:
                self.presence.closing = True  # no more slots; what the pool still runs stays renewed
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
    """The threads end, those that have begun; the worker's slots no longer count."""
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
    """Between starts.

    Raises:
        SystemExit: the worker was told to end.
    """
    end = monotonic() + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2**failed)
    while monotonic() < end:
        state.maybe_shutdown()
        sleep(LOOK_EVERY_S)


def _is_away(error: Exception) -> bool:
    """Whether Redis is, for a while: starting again is worth it for as long as it takes."""
    if isinstance(error, (StoreUnavailable, ConnectionError, TimeoutError)):
        return True
    return isinstance(error, RedisError) and passes(error)


def _end(why: str, code: int) -> NoReturn:
    """This worker ends, and says why: a line for each thing that is wrong."""
    for line in why.splitlines():
        log.critical("this worker cannot start: %s", line)
    raise WorkerShutdown(code)


def _last_words(controller: Any) -> None:
    """What Celery would have done at the end of the process; its pool's children end with it."""
    beat = getattr(controller, "beat", None)
    if beat is not None and hasattr(beat, "terminate"):
        beat.terminate()
    if getattr(controller, "pidlock", None) is not None:
        controller.pidlock.release()


def _open_history(live: Services) -> None:
    """Load and open the tracking database now: beside the first calls it would take their processor away."""
    try:
        live.tracker.open()
    except (StoreUnavailable, ConfigurationError) as error:  # calls go on; the recorder says it, and tries again
        log.info("history.away %s", error)


def _tell_own_rules(live: Services, app: Any) -> None:
    """The log and `doctor` name the tasks that retry by themselves."""
    rules = own_rules.own_rules(app.tasks.values())
    own_rules.say(rules)
    names = [name for name, task in app.tasks.items() if isinstance(task, CallTask)]
    try:
        live.own_rules.tell(names, {rule.task: str(rule) for rule in rules})
    except StoreUnavailable as error:  # `doctor` does without
        log.info("own_rules.untold %s", error)


def _check(consumer: Any) -> None:
    """The promises rest on these; a worker without them would break them silently."""
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
    if limited:  # by task_annotations; Celery would keep their calls in the worker, and their lane waits for those
        raise ConfigurationError(f"tasks with a rate_limit cannot make calls, give their lane an rpm: {limited[0]}")
