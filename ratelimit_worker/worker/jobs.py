"""When an exception escapes from a pool's job, the job is ended all the same, and its slot is free.

Celery's pools expect that every job ends in one call of `on_success` or `on_failure`. If an exception escapes, a
threads pool keeps it in a Future that is never read; gevent and eventlet print it; solo raises it through the consumer.
The message is then never acknowledged and counts against the prefetch limit for ever. A worker with as many such
messages as slots takes no more calls.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

from celery import states
from celery.exceptions import Reject, WorkerShutdown, WorkerTerminate
from celery.worker.request import Request
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError
from msgspec import Struct
from redis import RedisError

from ratelimit_worker.errors import StoreUnavailable, TaskAborted
from ratelimit_worker.worker.spare import GREEN, kind_of
from ratelimit_worker.worker.transport import HELD

log = logging.getLogger(__name__)

#: The store is away: the call's outcome may be safe already, so the message is delivered again, which finds out.
_AWAY = (RedisError, OSError, OperationalError, StoreUnavailable, Reject)
_GUARD = "ratelimit_worker_guards"


class Escaped(Struct, frozen=True):
    """An exception that escaped from a job."""

    error: BaseException


def guard(pool: Any) -> None:
    """Make every job of a Celery pool end, whatever escapes from it. Can be repeated."""
    if getattr(pool, _GUARD, False):
        return
    stock = pool.on_apply
    elsewhere = kind_of(pool) == "prefork"  # its jobs run in children, which report themselves what they raised

    def on_apply(target: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        request = getattr(options.get("callback"), "__self__", None)
        if isinstance(request, Request):
            for name in ("callback", "error_callback", "timeout_callback"):
                if options.get(name) is not None:
                    options[name] = _heard(request, options[name])
            if not elsewhere:
                target = _caught(target)
                options["accept_callback"] = _told(request, options.get("accept_callback"))
        return stock(target, args, kwargs, **options)

    if kind_of(pool) in GREEN:
        kill = pool.terminate_job

        def terminate_job(pid: int, *args: Any) -> None:
            _killed.add(pid)
            # eventlet's kill waits for the end, but a task may catch the exception that kills it
            pool.spawn_n(kill, pid, *args)

        pool.terminate_job = terminate_job
    pool.on_apply = on_apply
    setattr(pool, _GUARD, True)


def interrupted(error: BaseException) -> bool:
    """Whether a job ends because its worker does, or Celery killed its greenlet; then its call has not failed."""
    if isinstance(error, (WorkerShutdown, WorkerTerminate)):
        return HELD.stopping()
    return any(kind.__name__ == "GreenletExit" for kind in type(error).__mro__) and _greenlet() in _killed


#: Greenlets that Celery has killed, by the number that its pool uses as their process id.
_killed: set[int] = set()


def _greenlet() -> int:
    greenlet = sys.modules.get("greenlet")
    return 0 if greenlet is None else id(greenlet.getcurrent())


def _caught(target: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except (WorkerShutdown, WorkerTerminate) as error:
            if HELD.stopping():
                raise  # raised by a signal handler, in the only thread of a solo pool
            return Escaped(error)
        except BaseException as error:
            return Escaped(error)

    return run


def _heard(request: Any, callback: Callable[..., Any]) -> Callable[..., Any]:
    def tell(*args: Any, **kwargs: Any) -> Any:
        try:
            return told(*args, **kwargs)
        finally:
            _killed.discard(_greenlet())

    def told(*args: Any, **kwargs: Any) -> Any:
        if HELD.overdue.pop(_tag_of(request), None) is not None:
            return None  # its caller was told long ago
        if args and isinstance(args[0], Escaped):
            return end(request, args[0].error)
        try:
            return callback(*args, **kwargs)
        except (WorkerShutdown, WorkerTerminate) as error:
            if HELD.stopping():
                raise
            return end(request, error)
        except BaseException as error:
            return end(request, error)

    return tell


def _tag_of(request: Any) -> str:
    return str(request.message.delivery_tag)


def _told(request: Any, accept: Callable[..., Any] | None) -> Callable[..., Any]:
    """Report that a job has begun; if that fails, it runs all the same."""

    def accepted(*args: Any, **kwargs: Any) -> None:
        try:
            if accept is not None:
                accept(*args, **kwargs)
        except Exception:
            log.exception("slot.begin_untold", extra={"call_id": request.id, "task": request.name})

    return accepted


def end(request: Any, error: BaseException) -> None:
    """End a request from whose job an exception has escaped. Its slot is free afterwards, in any case."""
    if interrupted(error):
        log.info("slot.left call_id=%s", request.id, extra={"call_id": request.id})
        return  # Celery has cancelled it, or told its caller already
    fields = {"call_id": request.id, "task": request.name, "cause": type(error).__name__}
    log.error("slot.escaped call_id=%(call_id)s task=%(task)s cause=%(cause)s", fields, extra=fields, exc_info=error)
    try:
        if isinstance(error, _AWAY):
            _leave(request)
        else:
            _fail(request, error)
    except _AWAY as away:
        log.warning("slot.end_untold", extra={**fields, "cause": type(away).__name__})
        _leave(request)
    finally:
        task_ready(request)


def _fail(request: Any, error: BaseException) -> None:
    backend = request.task.backend
    state = backend.get_task_meta(request.id)["status"] if request.store_errors else states.PENDING
    # otherwise something failed only after the result was stored
    if state not in states.READY_STATES and state != states.RETRY:
        told = TaskAborted(request.id, type(error).__name__)
        backend.mark_as_failure(request.id, told, request=request._context, store_result=request.store_errors)
    request.acknowledge()


def _leave(request: Any) -> None:
    """Leave it to its lease: it is not renewed here any more, and does not count against the prefetch limit."""
    channel = request.message.channel
    if request.acknowledged or not hasattr(channel, "lanes"):
        return
    channel.qos.let_go(request.message.delivery_tag)
