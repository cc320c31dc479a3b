"""When is an answer settled? Together with its result, in one step, unless Celery does something between the two.

Celery sends what follows a call (links, the rest of a chain) before it stores the result. That must not happen before
the answer is safe, so such a call is settled first. In all other cases the settlement waits for the result, which comes
at once. If only the ack would be left to do, the call is freed in the same step too. A task with `on_success` or signal
handlers, which run after the result, is freed by its ack: if its worker dies in between, they run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Task, signals

from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.ports import Settled
from ratelimit_worker.worker.backend import GOES_ON, UNSETTLED, Backend, Unsettled
from ratelimit_worker.worker.installed import services_of

#: Packages whose signal handlers do not read arguments, and leave nothing undone if their process dies.
OURS = ("ratelimit_worker.", "celery.")


class _Kind(NamedTuple):
    """Facts about a task that are the same for all its calls."""

    results_here: bool  #: results are stored on the lanes' server, by our own backend
    has_hooks: bool


def settles_later(task: Any, request: Any) -> Callable[[Settlement, Settled], bool]:
    """The function that takes over the settlement of an attempt at this request, once the attempt has its answer."""

    def take_over(settlement: Settlement, settled: Settled) -> bool:
        kind = _kind_of(task)
        if not kind.results_here or task.ignore_result or request.ignore_result or request.is_eager:
            return False
        if request.callbacks or request.chain or request.get(GOES_ON):
            return False
        frees = not (request.chord or kind.has_hooks or heard_by_others(signals.task_success, task))
        frees = frees and not heard_by_others(signals.task_postrun, task)
        setattr(request, UNSETTLED, Unsettled(settlement, frees, settled))
        return True

    return take_over


def heard_by_others(signal: Any, sender: Any) -> bool:
    """Whether a signal has a handler other than ours and Celery's."""
    live = signal._live_receivers(sender)
    return any(not str(getattr(one, "__module__", "")).startswith(OURS) for one in live)


def _kind_of(task: Any) -> _Kind:
    known: _Kind | None = vars(task).get("_rlw_kind")
    if known is None:
        backend = task.backend
        known = task._rlw_kind = _Kind(
            results_here=isinstance(backend, Backend) and backend.is_on(services_of(task.app).server),
            has_hooks=type(task).on_success is not Task.on_success
            or type(task).after_return is not Task.after_return
            or task._own_request is not None,
        )
    return known
