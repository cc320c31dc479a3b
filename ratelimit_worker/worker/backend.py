"""The result backend: Celery's Redis backend with three changes.

Storing a result takes one round trip instead of two. Exchanges with Redis are bounded in time by `stores.decide`. And
all waiting callers of a process are served by one thread (`worker.listener`), which goes on when Redis is back, and
tells them about calls that Redis has forgotten (`worker.lost`).
"""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

from celery import states
from celery.backends import redis as stock
from celery.backends.asynchronous import BaseResultConsumer, Drainer, _waiting_on
from celery.exceptions import BackendStoreError, Reject, TimeoutError
from celery.result import AsyncResult
from msgspec.structs import replace
from redis import RedisError, WatchError

from ratelimit_worker.config import canonical_redis_url
from ratelimit_worker.contracts.call import ResultForm
from ratelimit_worker.contracts.lesson import Settlement, Stored
from ratelimit_worker.contracts.plan import HEADER
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.outage import cause_of
from ratelimit_worker.ports import Settled
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.exchange import exchange
from ratelimit_worker.stores.patient import PATIENCE, PatientLanes
from ratelimit_worker.stores.reach import unavailable
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.freed import FREED
from ratelimit_worker.worker.installed import installation_of, over_tls, services_of
from ratelimit_worker.worker.listener import MOST_LOOKED_UP, Listener, text
from ratelimit_worker.worker.lost import Search
from ratelimit_worker.worker.waiter import Waiter, results_before, results_of

log = logging.getLogger(__name__)

#: For `override_backends`: the classes that Celery uses in place of its own for these result backends.
BACKENDS = dict.fromkeys(("redis", "rediss", "redis+socket", "sentinel"), f"{__name__}:Backend")
INTERVAL_S = 1.0  #: between two calls of `on_interval`, as in Celery
LOOK_FIRST_S = 1.0  #: a caller with less time than this first looks whether the answer is there, and then listens
LEAST_S = 0.5  #: such a look may take this long, even if the caller's time-out is 0

T = TypeVar("T")


#: Mark of a request whose task sent itself again and went on (`retry(throw=False)`): its return value is not the
#: answer.
GOES_ON = "rlw_goes_on"
#: Name under which a request holds its `Unsettled`, if its answer is settled together with its result
#: (`worker.ending`).
UNSETTLED = "rlw_unsettled"


class Unsettled(NamedTuple):
    """An answer that is still to be settled."""

    settlement: Settlement
    frees: bool  #: nothing but the ack is left to do for its call
    settled: Settled  #: for its trace


class ResultConsumer(BaseResultConsumer):
    """Gives the callers that wait in this process what its listener receives; looks for calls that Redis has
    forgotten."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drainer = Drainer(self)  # it is never used, since a thread or greenlet listens
        self.search = Search(self.backend, self._waited_for)
        self.listener = Listener(lambda: self.backend.client, self._is_wanted, self._heard)
        self._prefix = text(self.backend.get_key_for_task("-"))[:-1]
        self._forget_waiters()

    def _forget_waiters(self) -> None:
        self._lock = threading.Lock()  #: held for changes, but not for reading, since destructors read
        self._waiters: dict[str, tuple[Waiter, ...]] = {}

    def on_after_fork(self) -> None:
        """In a forked child: callers that wait are in the parent process."""
        self._forget_waiters()

    def key_of(self, call_id: str) -> str:
        """The key under which a result is stored, and the channel on which it is published."""
        return f"{self._prefix}{call_id}"

    @contextmanager
    def waiting(
        self, result: Any, wake: Callable[[], object], *, parents: bool = True, messages: bool = False
    ) -> Iterator[Waiter]:
        """Listen for a result or a set of results while the block runs.

        Args:
            wake: Called in another thread whenever something has come.
            parents: Listen for the earlier steps of its canvas too, whose failure ends the wait.
            messages: Keep every message, whatever its state (`Waiter.messages`).
        """
        waiter = Waiter(results_of(result), results_before(result) if parents else (), wake, messages)
        keys = [self.key_of(one) for one in waiter.by_id]
        with self._lock:
            for key in keys:
                self._waiters[key] = (*self._waiters.get(key, ()), waiter)
        try:
            if keys:
                self.search.keep_looking()
                self.listener.begin(keys)
            yield waiter
        finally:
            with self._lock:
                for key in keys:
                    rest = tuple(one for one in self._waiters.get(key, ()) if one is not waiter)
                    if rest:
                        self._waiters[key] = rest
                    else:
                        self._waiters.pop(key, None)
            self.listener.end(keys)

    # ── Celery's words ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, initial_task_id: str, **kwargs: Any) -> None:
        """As Celery's."""
        self.consume_from(initial_task_id)

    def consume_from(self, task_id: str) -> None:
        """As Celery's: somebody waits with `then`, or in a set."""
        self.search.keep_looking()
        self.listener.begin((self.key_of(task_id),))

    def cancel_for(self, task_id: str) -> None:
        """As Celery's; never blocks, for destructors call it."""
        self.listener.end((self.key_of(task_id),))

    def _wait_for_pending(
        self, result: Any, timeout: float | None = None, on_interval: Any = None, on_message: Any = None, **kwargs: Any
    ) -> Iterator[None]:
        until = None if timeout is None else time.monotonic() + timeout
        woken = threading.Event()
        with self.waiting(result, woken.set, messages=on_message is not None) as waiter:
            # it may be there already, and there is no time to subscribe first
            if timeout is not None and timeout < LOOK_FIRST_S:
                self._look_now(waiter, timeout)
            while not waiter.is_over():
                left = INTERVAL_S if until is None else min(INTERVAL_S, until - time.monotonic())
                if left <= 0:
                    raise TimeoutError("The operation timed out.")
                if self.listener.is_mine:  # a callback that waits for another result
                    self.listener.turn(left)
                elif not woken.wait(left):
                    waiter.look()
                woken.clear()
                while waiter.messages:
                    on_message(waiter.messages.popleft())
                yield
                if on_interval is not None:
                    on_interval()

    def _look_now(self, waiter: Waiter, most_s: float) -> None:
        keys = [self.key_of(one) for one in waiter.by_id]
        try:
            with deciding(max(most_s, LEAST_S)):
                for start in range(0, len(keys), MOST_LOOKED_UP):
                    some = keys[start : start + MOST_LOOKED_UP]
                    for key, data in zip(some, self.backend.client.mget(some), strict=True):
                        if data is not None:
                            self._heard(key, data)
        except (RedisError, OSError, StoreUnavailable) as error:  # the listener goes on looking
            log.info("results.away cause=%s", cause_of(error), extra={"cause": cause_of(error)})

    def on_state_change(self, meta: Any, message: Any = None) -> None:
        """As Celery's, but results that no caller waits for are not kept: a later caller looks in Redis first."""
        call_id = meta["task_id"]
        if meta["status"] in states.READY_STATES:
            self.search.ended(call_id)
            for result in _waiting_on(self._pending_results, call_id):
                try:
                    result._maybe_set_cache(dict(meta))
                except Exception:  # a callback's
                    log.exception("results.callback_failed")
                bucket = self.buckets.pop(result, None)
                if bucket is not None:
                    bucket.append(result)
        for waiter in self._waiters.get(self.key_of(call_id), ()):
            waiter.hear(meta)

    # ── for the listener ─────────────────────────────────────────────────────────────────────────────────────────────

    def _is_wanted(self, key: str) -> bool:
        return key in self._waiters or bool(_waiting_on(self._pending_results, key.removeprefix(self._prefix)))

    def _heard(self, key: str, data: bytes) -> None:
        try:
            meta = self.backend.decode_result(data)
        except Exception as error:  # of a kind that the app does not accept, say
            for waiter in self._waiters.get(key, ()):
                waiter.fail(error)
            raise
        self.on_state_change(meta)

    def _waited_for(self) -> list[AsyncResult]:
        with self._lock:
            waiters = {id(one): one for some in self._waiters.values() for one in some}
        mine = [one for waiter in waiters.values() for some in waiter.by_id.values() for one in some]
        while True:
            try:
                return mine + [
                    one for by_id in self._pending_results for each in list(by_id.values()) for one in each.values()
                ]
            except RuntimeError:  # another thread waits for one more
                continue


class Backend(stock.RedisBackend):
    """Celery's own, except for storing the answer of a call, and for outages of Redis."""

    ResultConsumer = ResultConsumer

    def __init__(self, *args: Any, url: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # without the address, since Celery accepts only some forms of it
        self.url = url
        self._form: tuple[str, ...] | None = None  #: None: not yet made
        whole = f"redis+{url}" if url and url.startswith("socket://") else url  # Celery has cut off the scheme
        self._server = _where_results_are(self.app, whole or "")
        told: dict[str, Any] = self.connparams  # type: ignore[has-type]
        self.connparams = self._server.parameters(**told)
        self.thread_safe = True  # otherwise each thread would have its own backend, connection and listener

    def on_task_call(self, producer: Any, task_id: str) -> None:
        """Does nothing. Celery subscribes for each call that is sent; here, a caller subscribes when it begins to
        wait."""

    def _get_pool(self, **params: Any) -> Any:
        return self._server.pool(params)

    def as_uri(self, include_password: bool = False) -> str:
        """Where results are; without `include_password` it can be shown."""
        return str(self.url) if include_password else f"{str(self.url).partition('://')[0]}://{self._server.shown}"

    def exception_safe_to_retry(self, exc: Exception) -> bool:
        """As Celery's, but it ends when the worker's time to end is over: the answer is safe, and the call comes
        again."""
        return bool(super().exception_safe_to_retry(exc)) and not PATIENCE.is_over()

    def form_of(self, call_id: str) -> ResultForm | None:
        """How a script can store a successful result of this call; None: it cannot.

        It can if results are in the lanes' Redis, and are JSON that contains nothing else about the call.
        """
        if self._form is None:
            self._form = self._form_of_all()
        if not self._form:
            return None
        before, to_date, to_id, end = self._form
        after = f"{to_date}{datetime.now(UTC).isoformat()}{to_id}{json.dumps(call_id)[1:-1]}{end}"
        return ResultForm(self.get_key_for_task(call_id).decode(), before, after, int(self.expires or 0))

    def _form_of_all(self) -> tuple[str, ...]:
        """The text before the value, between value and date, between date and id, and after it; (): not possible."""
        installation = installation_of(self.app)
        server = installation.server if installation is not None else RedisServer()
        here = bool(server) and replace(server, namespace="").place == self._server.place
        if type(self) is not Backend or not here or self.app.conf.find_value_for_key("extended", "result"):
            return ()
        value, date, call_id = (uuid4().hex for _ in range(3))
        meta = self._get_result_meta(result=value, state=states.SUCCESS, traceback=None, request=None)
        encoded = self.encode(meta | {"date_done": date, "task_id": call_id})
        found = re.fullmatch(f'(.*)"{value}"(.*){date}(.*){call_id}(.*)', encoded) if isinstance(encoded, str) else None
        return found.groups() if found is not None else ()

    def store_result(self, task_id: str, result: Any, state: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().store_result(task_id, result, state, *args, **kwargs)
        except (RedisError, OSError, BackendStoreError) as error:
            if kwargs.get("request") is None or not PATIENCE.is_over():
                raise
            raise left_by(error) from error

    def iter_native(self, result: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        told = set()
        for call_id, meta in super().iter_native(result, *args, **kwargs):
            told.add(call_id)
            yield call_id, meta
        for one in result.results:  # if two of them have the same id, Celery yields only one
            if one.id not in told and getattr(one, "_cache", None):
                yield one.id, one._cache

    def set_chord_size(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().set_chord_size, *args, **kwargs)

    def apply_chord(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().apply_chord, *args, **kwargs)

    def save_group(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().save_group, *args, **kwargs)

    def _decided(self, ask: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Prepare a canvas (as Celery's), before any of its calls is sent.

        Raises:
            StoreUnavailable: Redis is away, full or read-only.
        """
        try:
            with deciding():
                return ask(*args, **kwargs)
        except (RedisError, *self.connection_errors) as error:
            raise unavailable(error, "the canvas was not made, Redis said") from error

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        # Celery first reads what is stored, so that a task that was lost and ran again does not overwrite its earlier
        # success. A call has one settled answer, which each of its deliveries returns.
        call = request is not None and request.get(HEADER) is not None
        unsettled: Unsettled | None = request.get(UNSETTLED) if call else None
        if unsettled is not None and state != states.SUCCESS:  # the answer could not be stored
            self._settle(unsettled, request)
        if call and state not in states.READY_STATES:
            return self._store_unless_over(task_id, result, state, traceback, request)
        if not call or state != states.SUCCESS:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        if request.get(GOES_ON):
            return result  # the next delivery gets the call's answer, and may have stored it by now
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        try:
            # Encoded once: SET and PUBLISH would each encode a text, and the text would stay in memory too.
            encoded = self.encode(meta)
            stored = encoded.encode() if isinstance(encoded, str) else encoded  # pickle, say, gives bytes
            if unsettled is not None:
                kept = Stored(self.get_key_for_task(task_id), stored, int(self.expires or 0))
                if self._finish(unsettled, kept, request):
                    return result
            self._set_with_state(self.get_key_for_task(task_id), stored, state)
        except BackendStoreError as error:
            raise BackendStoreError(str(error), state=state, task_id=task_id) from error
        return result

    def is_on(self, server: RedisServer) -> bool:
        """Whether results are on that server, under the same user."""
        if not server or replace(server, namespace="").place != replace(self._server, namespace="").place:
            return False
        mine, theirs = self._server.parameters(), server.parameters()
        return all(mine.get(name) == theirs.get(name) for name in ("username", "password", "credential_provider"))

    @property
    def _lanes(self) -> PatientLanes:
        live = services_of(self.app)
        lanes: PatientLanes = live.once("finishing", lambda: PatientLanes(live.redis))
        return lanes

    def _finish(self, unsettled: Unsettled, result: Stored, request: Any) -> bool:
        """Settle an answer together with its result → False: data in Redis prevents it, and always will.

        Raises:
            redis.RedisError: Redis is away, and the worker's time to end is over.
        """
        try:
            if self._lanes.finish(unsettled.settlement, result, unsettled.frees):
                FREED.add(unsettled.settlement.tag)
            unsettled.settled(None)
        except StoreUnavailable as error:  # the answer is paid for, so its caller gets it all the same
            log.exception("call.unsettled")
            unsettled.settled(type(error).__name__)
            return False
        finally:
            setattr(request, UNSETTLED, None)
        return True

    def _settle(self, unsettled: Unsettled, request: Any) -> None:
        self._lanes.settle(unsettled.settlement)
        unsettled.settled(None)
        setattr(request, UNSETTLED, None)

    def _store_unless_over(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> Any:
        """Store that the call is retried, unless it has ended meanwhile.

        The lane may send it again, and it may end, before this thread stores the retry. Written over the end, that
        would make its caller wait for ever.
        """
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        key, encoded = self.get_key_for_task(task_id), self.encode(meta)
        with self.client.pipeline() as pipe:
            pipe.watch(key)
            stored = pipe.get(key)
            if stored and self.decode(stored)["status"] in states.READY_STATES:
                return result
            pipe.multi()
            pipe.set(key, encoded, ex=self.expires or None)
            pipe.publish(key, encoded)
            try:
                pipe.execute()
            except WatchError:  # a later attempt has stored something by now
                log.debug("result.outrun call_id=%s state=%s", task_id, state)
        return result

    def _set(self, key: Any, value: Any, expires: int | None = None) -> None:
        lifetime = self.expires if expires is None else expires
        exchange(self.client, ("SET", key, value, *(("EX", lifetime) if lifetime else ())), ("PUBLISH", key, value))


def backend_url(server: RedisServer) -> str:
    """The URL of the result backend on a Redis server, as Celery spells it."""
    canonical = canonical_redis_url(server.url)
    scheme, _, rest = canonical.partition("://")
    return f"redis+socket://{rest}" if scheme == "unix" else canonical


def _where_results_are(app: Any, url: str) -> RedisServer:
    """The server of a result backend, with what the app's configuration says of connections to it.

    If that is the broker's server, the broker's options hold, unless there are options for results.
    """
    conf = app.conf
    told = dict(conf.result_backend_transport_options or {})
    own = over_tls(conf.redis_backend_use_ssl)
    if provider := conf.get("redis_backend_credential_provider"):
        own["credential_provider"] = provider
    for name in ("username", "password"):
        if value := conf.get(f"redis_{name}"):
            own.setdefault(name, value)
    installation = installation_of(app)
    broker = installation.server if installation is not None else RedisServer()
    found = RedisServer(url, master=str(told.get("master_name") or broker.master))
    shared = dict(broker.options) if broker and found.place == replace(broker, namespace="").place else {}
    return replace(
        found, options={**shared, **own}, sentinel_options=told.get("sentinel_kwargs") or broker.sentinel_options
    )


def left_by(error: BaseException) -> Reject:
    """The exception that a worker raises if it ends while Redis is away: its message goes back if Redis is there again;
    else it stays where it is."""
    log.warning("call.left cause=%s", cause_of(error))
    return Reject(f"the worker ends, and Redis is away: {cause_of(error)}", requeue=True)
