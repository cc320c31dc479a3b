"""Callers are told when Redis has forgotten their calls, by any process that waits for them, or the one that made them.

A process looks every few seconds for the calls that it waits for. It stores `CallLost` as the result of one that is
gone, so that all others that wait for it, now or later, get it too. While it waits for none, it looks for one of the
calls that it made: if that is gone, all may be. A worker that runs a call whose record is gone reports it with each
beat: such a call is known, and its answer will come.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from celery import Celery, states
from celery.result import AsyncResult, ResultSet
from msgspec import Struct
from redis import RedisError

from ratelimit_worker.calls import Attempt, Outcome, Priority
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import CallLost, ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.forgotten import Seen, lost_with
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.worker.installed import services_of

log = logging.getLogger(__name__)

LOOK_S = 3.0
UNAWAITED_LOOK_S = 10.0  #: the same while no caller waits
ASK_S = 1.0  #: time-out of a look
MOST_AT_ONCE = 1000  #: most calls in one script
REMEMBERED_S = 3_000.0  #: how long a call is looked for after it was made; Redis knows it for an hour after its end


class Made(Struct, frozen=True):
    """What the process that made a call knows about it."""

    task: str
    lane: str
    context: str
    tags: tuple[str, ...]
    tenant: str
    priority: Priority
    begun: int  #: earlier attempts, if it is a retry
    at_s: float  #: seconds since the epoch


def made(app: Celery, call_id: str, task: str, plan: Plan) -> None:
    """Note that a call was accepted. If results are not in Redis, callers cannot be told of its loss."""
    search = getattr(getattr(app.backend, "result_consumer", None), "search", None)
    if isinstance(search, Search):
        search.made(call_id, task, plan)


class Search:
    """Looks for the calls of one result backend, in its own thread while callers wait.

    Args:
        backend: Where results are stored.
        waited_for: The results that callers wait for now.
    """

    def __init__(self, backend: Any, waited_for: Callable[[], Sequence[AsyncResult]]) -> None:
        self._backend, self._waited_for = backend, waited_for
        self._seen = Seen()  #: calls of this process and server; with a `Made` for each call that was made here
        self._looked_at = 0.0
        self._turn = 0  #: where the next look begins, among calls that are waited for
        self.begin_anew()
        _SEARCHES.add(self)

    def begin_anew(self) -> None:
        """In a forked child: it has no such thread yet, and locks may be held by threads that are not here."""
        self._start = threading.Lock()
        self._lock = threading.Lock()  #: held for each use of `_seen`, and no longer
        self._thread: threading.Thread | None = None

    def made(self, call_id: str, task: str, plan: Plan) -> None:
        """A call was accepted."""
        # not the whole plan, since thousands of these are kept
        kept = Made(
            task=task,
            lane=plan.lane,
            context=plan.context,
            tags=plan.tags,
            tenant=plan.tenant,
            priority=plan.priority,
            begun=plan.continuation.attempts if plan.continuation is not None else 0,
            at_s=time.time(),
        )
        with self._lock:
            self._seen.there(call_id, kept)
        self.keep_looking()

    def ended(self, call_id: str) -> None:
        """Note that a call's answer has come: it need not be looked for."""
        with self._lock:
            self._seen.forget((call_id,))

    def keep_looking(self) -> None:
        """Begin to look, if that is not done yet."""
        if self._thread is not None:
            return
        with self._start:
            if self._thread is None:
                thread = threading.Thread(
                    target=_keep_looking, args=(weakref.ref(self),), name="ratelimit-worker-lost", daemon=True
                )
                self._thread = thread
                thread.start()

    def turn(self) -> bool:
        """Look, if it is time → whether the thread should go on."""
        now = time.monotonic()
        if self._waited_for() or (self._one_made() is not None and now - self._looked_at >= UNAWAITED_LOOK_S):
            self._looked_at = now
            self.look()
        elif self._one_made() is None:
            self._thread = None
            if not self._waited_for() and self._one_made() is None:
                return False
            return self._goes_on()  # a new caller came in between, and relies on this thread
        return True

    def _goes_on(self) -> bool:
        with self._start:
            if self._thread is not None:
                return False
            self._thread = threading.current_thread()
        return True

    def _one_made(self) -> str | None:
        """One call that was made here and should be known to Redis: one that was missing, or the last."""
        with self._lock:
            call_id = self._seen.away() or self._seen.made_last()
            theirs = None if call_id is None else self._seen.what(call_id)
        return call_id if isinstance(theirs, Made) and time.time() - theirs.at_s < REMEMBERED_S else None

    def look(self) -> None:
        """Look once. Never raises: callers go on waiting."""
        try:
            with deciding(ASK_S):
                self._look(self._waited_for(), time.monotonic())
        except (RedisError, OSError, StoreUnavailable, ConfigurationError) as error:
            with self._lock:
                self._seen.blind()
            log.info("lost.blind", extra={"cause": type(error).__name__})
        except Exception:  # from a stored result or a callback; the next look may succeed
            log.exception("lost.failed")

    def _look(self, waited_for: Sequence[AsyncResult], now: float) -> None:
        before = {one.id: [_ids(step) for step in one._parents()] for one in waited_for if not one._cache}
        ids = list(dict.fromkeys([*before, *(one for steps in before.values() for step in steps for one in step)]))
        some = self._in_turn(ids) or [one for one in (self._one_made(),) if one is not None]
        known = self._known(some)
        if not all(known.values()):  # if one is missing, others may be: look for all
            known |= self._known([one for one in ids if one not in known])
        with self._lock:  # also for callers that ask for them one by one, who then need not wait again
            others = self._seen.others(known)
        known |= self._known(others)
        with self._lock:
            gone = self._seen.look(known, now)
        if not gone:
            return
        answered = self._answered([one for one, there in known.items() if not there])
        with self._lock:
            self._seen.forget(answered)
        for call_id, steps in before.items():
            if known.get(call_id, True) or call_id in answered:
                continue
            lost = call_id if call_id in gone else lost_with(steps, gone, known, answered)
            for one in dict.fromkeys((lost, call_id) if lost is not None else ()):
                self._tell(one, CallLost(lost or one))
        for call_id in gone - answered - before.keys():
            with self._lock:
                theirs = self._seen.what(call_id)
            # later, Redis may have dropped it
            if isinstance(theirs, Made) and time.time() - theirs.at_s < REMEMBERED_S:
                self._tell(call_id, CallLost(call_id))

    def _in_turn(self, ids: list[str]) -> list[str]:
        """As many as one script takes: thousands at once would hold up Redis and this process."""
        if len(ids) <= MOST_AT_ONCE:
            return ids
        self._turn = self._turn % len(ids)
        some = (ids[self._turn :] + ids[: self._turn])[:MOST_AT_ONCE]
        self._turn += MOST_AT_ONCE
        with self._lock:
            away = self._seen.away()
        return some if away is None or away in some else [*some, away]

    def _known(self, ids: Sequence[str]) -> dict[str, bool]:
        lanes, known = services_of(self._backend.app).lanes, dict[str, bool]()
        for start in range(0, len(ids), MOST_AT_ONCE):
            some = ids[start : start + MOST_AT_ONCE]
            known |= dict(zip(some, lanes.known(some), strict=True))
        return known

    def _answered(self, call_ids: Sequence[str]) -> set[str]:
        stored = self._backend.client.mget([self._backend.get_key_for_task(one) for one in call_ids])
        return {one for one, meta in zip(call_ids, stored, strict=True) if meta is not None and self._is_final(meta)}

    def _is_final(self, meta: bytes) -> bool:
        return self._backend.decode_result(meta)["status"] in states.READY_STATES

    def _tell(self, call_id: str, error: CallLost) -> None:
        """Store the error as the call's result, unless it has one by now."""
        with self._lock:
            kept = self._seen.what(call_id)  # taken now, since receiving the error forgets the call
        backend, key = self._backend, self._backend.get_key_for_task(call_id)
        meta = backend._get_result_meta(backend.prepare_exception(error), states.FAILURE, None, None)
        told = backend.encode({**meta, "task_id": call_id})
        with backend.client.pipeline() as pipe:
            pipe.watch(key)
            there = pipe.get(key)
            if there is not None and self._is_final(there):
                return
            pipe.multi()
            pipe.set(key, told, ex=backend.expires or None)
            pipe.publish(key, told)
            pipe.execute()
        log.warning("call.lost", extra={"call_id": call_id})
        services_of(self._backend.app).lanes.lost(call_id)
        self.ended(call_id)
        row = _row(call_id, kept)
        if row is not None:
            services_of(self._backend.app).outbox.append([row])
        backend.result_consumer.on_state_change(backend.decode_result(told), None)


def _ids(step: Any) -> list[str]:
    """The calls of one step of a canvas."""
    if isinstance(step, ResultSet):
        return [one for child in step.results for one in _ids(child)]
    return [step.id]


def _row(call_id: str, known: object) -> Attempt | None:
    """The recorded end of a call that, as far as is known, has not begun; if an attempt is recorded, that stays."""
    if not isinstance(known, Made):
        return None
    now = time.time()
    return Attempt(
        call_id=call_id,
        number=known.begun + 1,
        lane=known.lane,
        task=known.task,
        outcome=Outcome.FAILED,
        started_at=now,
        finished_at=now,
        waited_s=max(0.0, now - known.at_s),
        context=known.context,
        tags=known.tags,
        tenant=known.tenant,
        priority=known.priority,
        cause=CallLost.__name__,
    )


def _keep_looking(found: weakref.ref[Search]) -> None:
    goes_on = True
    while goes_on:
        time.sleep(LOOK_S)  # most calls are answered before the first look
        search = found()
        goes_on = search is not None and search.turn()
        del search  # so that it can end with its app


_SEARCHES: weakref.WeakSet[Search] = weakref.WeakSet()


def _after_fork() -> None:
    for search in _SEARCHES:
        search.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
