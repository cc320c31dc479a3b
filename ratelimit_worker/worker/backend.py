"""How is the result of a call stored, and waited for? As Celery's Redis backend does it, but for three things.

It takes one round trip where Celery's takes two; what asks Redis is bounded by `stores.decide`; and who waits for a
result waits on while Redis is away, and hears of calls that it has forgotten (`worker.lost`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from celery import states
from celery.backends import redis as stock
from celery.exceptions import BackendStoreError
from redis import Connection, RedisError, WatchError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.decide import bounded, current, deciding
from ratelimit_worker.stores.exchange import exchange
from ratelimit_worker.worker.lost import Search, ended
from ratelimit_worker.worker.transport import HEADER

log = logging.getLogger(__name__)

#: `override_backends`: what Celery takes in place of its own for these result backends.
BACKENDS = dict.fromkeys(("redis", "rediss", "redis+socket"), f"{__name__}:Backend")
LOCKED_S = 1.0  #: so long one thread's look for Redis may hold up the others

T = TypeVar("T")


#: Of a request whose task sent itself again and went on (`retry(throw=False)`): what it returns is nobody's answer.
GOES_ON = "rlw_goes_on"


class ResultConsumer(stock.ResultConsumer):
    """Celery's own, which outlives an outage of Redis, and looks for calls that Redis has forgotten."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.search = Search(self.backend)

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:  # nothing came: it polls
            raise
        except self._connection_errors:
            try:
                with deciding(LOCKED_S):
                    self._reconnect_pubsub()
            except self._connection_errors as error:
                raise StoreUnavailable(f"Redis said: {first_line(error)}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        decision = current()
        if decision is None:
            with super()._locked():
                yield
            return
        if not self._pubsub_lock.acquire(timeout=decision.left_s()):  # another thread asks a Redis that says nothing
            raise decision.over()
        try:
            with super()._locked():
                yield
        finally:
            self._pubsub_lock.release()

    def on_state_change(self, meta: Any, message: Any) -> Any:
        if meta.get("status") in states.READY_STATES:
            ended(meta["task_id"])
        return super().on_state_change(meta, message)

    def _consume_from(self, task_id: str) -> None:
        try:
            super()._consume_from(task_id)
        except (StoreUnavailable, TimeoutError, *self._connection_errors):
            if current() is not None:  # else somebody waits for it, and it is subscribed to when Redis is back
                self.subscribed_to.discard(self._get_key_for_task(task_id))
                raise

    def on_wait_for_pending(self, result: Any, **kwargs: Any) -> None:
        try:
            super().on_wait_for_pending(result, **kwargs)
        except self._connection_errors:
            self._pubsub = None  # asked again when it reconnects

    def drain_events(self, timeout: float | None = None) -> None:
        try:
            if self._pubsub is None and self.subscribed_to:  # Redis went away
                with deciding(LOCKED_S):
                    self._reconnect_pubsub()
            super().drain_events(timeout)
        except (StoreUnavailable, *self._connection_errors):
            time.sleep(min(1.0, timeout or 1.0))
        self.search.turn()


class Backend(stock.RedisBackend):
    """Celery's own, but for what it does when a call has its answer, and when Redis is away."""

    ResultConsumer = ResultConsumer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kind = self.connparams.get("connection_class", Connection)
        self.connparams["connection_class"] = bounded(kind)

    def iter_native(self, result: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any]]:
        told = set()
        for call_id, meta in super().iter_native(result, *args, **kwargs):
            told.add(call_id)
            yield call_id, meta
        for one in result.results:  # another thread has heard of it, and Celery tells only its own
            if one.id not in told and getattr(one, "_cache", None):
                yield one.id, one._cache

    def set_chord_size(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().set_chord_size, *args, **kwargs)

    def apply_chord(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().apply_chord, *args, **kwargs)

    def save_group(self, *args: Any, **kwargs: Any) -> Any:
        return self._decided(super().save_group, *args, **kwargs)

    def _decided(self, ask: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What makes a canvas, before any of its calls is sent.

        Raises:
            StoreUnavailable: Redis is away, full or read-only.
        """
        try:
            with deciding():
                return ask(*args, **kwargs)
        except (RedisError, *self.connection_errors) as error:
            raise StoreUnavailable(f"the canvas was not made, Redis said: {first_line(error)}") from error

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        # Celery reads what is stored first, lest a task that was lost and ran again overwrites its earlier success. Of
        # a call SETTLE lets one answer through, which each of its deliveries returns.
        call = request is not None and request.get(HEADER) is not None
        if call and state not in states.READY_STATES:
            return self._store_unless_over(task_id, result, state, traceback, request)
        if not call or state != states.SUCCESS:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        if request.get(GOES_ON):
            return result  # the next attempt has the call's answer, and may have stored it by now
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        try:
            # Bytes, made once: SET and PUBLISH would each make their own of a text, and the text would stay.
            encoded = self.encode(meta)
            stored = encoded.encode() if isinstance(encoded, str) else encoded  # pickle, say, gives bytes
            self._set_with_state(self.get_key_for_task(task_id), stored, state)
        except BackendStoreError as error:
            raise BackendStoreError(str(error), state=state, task_id=task_id) from error
        return result

    def _store_unless_over(self, task_id: str, result: Any, state: str, traceback: Any, request: Any) -> Any:
        """That an attempt is not the last, unless the call has ended meanwhile.

        The lane may send it again before the thread of the attempt comes to say so: written over the call's end, its
        caller would wait for ever.
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
            except WatchError:  # a later attempt has said something by now
                log.debug("result.outrun call_id=%s state=%s", task_id, state)
        return result

    def _set(self, key: Any, value: Any, expires: int | None = None) -> None:
        lifetime = self.expires if expires is None else expires
        exchange(self.client, ("SET", key, value, *(("EX", lifetime) if lifetime else ())), ("PUBLISH", key, value))


def first_line(error: BaseException) -> str:
    """What an error says, short enough for one line."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
