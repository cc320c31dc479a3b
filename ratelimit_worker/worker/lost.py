"""Who tells a caller that Redis has forgotten its call? Any process that waits for it, while it waits.

It looks every few seconds for the calls that it waits for, and stores `CallLost` as the result of one that is gone, so
that all others who wait for it hear of it too. A worker that runs a call whose record is gone says so with each beat:
that call is known, and its answer comes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import states
from celery.result import AsyncResult, ResultSet
from redis import RedisError

from ratelimit_worker.calls import Attempt, Outcome, Priority
from ratelimit_worker.errors import CallLost, ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.forgotten import Seen, lost_with
from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.worker.installed import services_of

log = logging.getLogger(__name__)

LOOK_S = 3.0
ASK_S = 1.0  #: a look may take so long
MOST_AT_ONCE = 1000  #: calls in one script
REMEMBERED_S = 3_000.0  #: since a call was made: for an hour after its end Redis knows it

#: Of this process; with each call that it has made, what its row says.
SEEN = Seen()
_seen = threading.Lock()  #: around each use of it, and no longer
_looking = threading.Lock()  #: around each look: they share what was seen


@dataclass(frozen=True, slots=True)
class Made:
    """What is known of a call where it was made."""

    task: str
    lane: str
    context: str
    tags: tuple[str, ...]
    tenant: str
    priority: Priority
    begun: int  #: attempts before it was made: it is a retry
    at_s: float  #: seconds since the epoch


def made(call_id: str, task: str, plan: Mapping[str, Any]) -> None:
    """A call was accepted."""
    # not the whole plan: thousands of these are kept
    kept = Made(
        task=task,
        lane=plan["lane"],
        context=str(plan.get("context") or ""),
        tags=tuple(plan.get("tags") or ()),
        tenant=str(plan.get("tenant") or ""),
        priority=Priority(plan.get("class") or Priority.NORMAL),
        begun=int(plan.get("number") or 0),
        at_s=time.time(),
    )
    with _seen:
        SEEN.there(call_id, kept)


def ended(call_id: str) -> None:
    """A call's answer has come: nobody needs to look for it."""
    with _seen:
        SEEN.forget((call_id,))


class Search:
    """The looks of one result backend, by a thread of its own while somebody waits.

    Args:
        backend: Where results are stored.
        waited_for: The results that somebody waits for now.
    """

    def __init__(self, backend: Any, waited_for: Callable[[], Sequence[AsyncResult]]) -> None:
        self._backend, self._waited_for = backend, waited_for
        self.begin_anew()
        _SEARCHES.add(self)

    def begin_anew(self) -> None:
        """In a forked child, which has no thread of it yet."""
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None

    def keep_looking(self) -> None:
        """Somebody begins to wait."""
        if self._thread is not None:
            return
        with self._start:
            if self._thread is None:
                self._thread = threading.Thread(target=self._keep_looking, name="ratelimit-worker-lost", daemon=True)
                self._thread.start()

    def _keep_looking(self) -> None:
        waits = True
        while waits:
            time.sleep(LOOK_S)  # most calls are answered before anybody needs to look
            with self._start:
                waits = bool(self._waited_for())
                if not waits:
                    self._thread = None
            if waits:
                self.look()

    def look(self) -> None:
        """Look once. Never raises: who waits goes on waiting."""
        try:
            with _looking, deciding(ASK_S):
                self._look(self._waited_for(), time.monotonic())
        except (RedisError, OSError, StoreUnavailable, ConfigurationError) as error:
            with _seen:
                SEEN.blind()
            log.info("lost.blind", extra={"cause": type(error).__name__})
        except Exception:  # of what somebody stored, or a callback: the next look is another
            log.exception("lost.failed")

    def _look(self, waited_for: Sequence[AsyncResult], now: float) -> None:
        before = {one.id: [_ids(step) for step in one._parents()] for one in waited_for if not one._cache}
        ids = list(dict.fromkeys([*before, *(one for steps in before.values() for step in steps for one in step)]))
        known = self._known(ids)
        with _seen:  # where one is lost others may be: who asks for them one by one need not wait anew
            others = SEEN.others(known)
        known |= self._known(others)
        with _seen:
            gone = SEEN.look(known, now)
        if not gone:
            return
        answered = self._answered([one for one, there in known.items() if not there])
        with _seen:
            SEEN.forget(answered)
        for call_id, steps in before.items():
            if known[call_id] or call_id in answered:
                continue
            lost = call_id if call_id in gone else lost_with(steps, gone, known, answered)
            for one in dict.fromkeys((lost, call_id) if lost is not None else ()):
                self._tell(one, CallLost(lost or one))
        for call_id in gone - answered - before.keys():
            with _seen:
                theirs = SEEN.what(call_id)
            if isinstance(theirs, Made) and time.time() - theirs.at_s < REMEMBERED_S:  # else Redis need not know it
                self._tell(call_id, CallLost(call_id))

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
        with _seen:
            kept = SEEN.what(call_id)  # whoever hears the error forgets the call
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
        ended(call_id)
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
    """The end of a call that nobody has begun, as far as is known; where an attempt of it is recorded, that stands."""
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


_SEARCHES: weakref.WeakSet[Search] = weakref.WeakSet()


def _after_fork() -> None:
    global _seen, _looking
    _seen, _looking = threading.Lock(), threading.Lock()  # whoever held them is not here
    for search in _SEARCHES:
        search.begin_anew()


os.register_at_fork(after_in_child=_after_fork)
