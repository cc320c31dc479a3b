"""When is an answer settled? With its result, in one step, where nothing of Celery's stands between the two.

Celery sends what follows a call (links, the rest of a chain) before it stores the result, and that must not happen for
an answer that is not safe; everywhere else the settlement waits for the result, which is stored at once. Where only the
ack would be left to do, the call is freed in the same step too. What runs after that (`on_success`, handlers of
signals) is made up for when a worker dies, so a task that has such is freed by its ack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from celery import Task, signals

from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.worker.backend import GOES_ON, UNSETTLED, Backend, Unsettled
from ratelimit_worker.worker.installed import services_of

#: Whose handlers of signals look at no arguments, and leave nothing undone when their process dies.
OURS = ("ratelimit_worker.", "celery.")


class _Kind(NamedTuple):
    """What does not change from call to call of a task."""

    results_here: bool  #: they are stored on the server of the lanes, by our own backend
    has_hooks: bool


def settles_later(task: Any, request: Any) -> Callable[[Settlement], bool]:
    """What takes over the settlement of an attempt at this request; asked when the attempt has been answered."""

    def take_over(settlement: Settlement) -> bool:
        kind = _kind_of(task)
        if not kind.results_here or task.ignore_result or request.ignore_result or request.is_eager:
            return False
        if request.callbacks or request.chain or request.get(GOES_ON):
            return False
        frees = not (request.chord or kind.has_hooks or heard_by_others(signals.task_success, task))
        frees = frees and not heard_by_others(signals.task_postrun, task)
        setattr(request, UNSETTLED, Unsettled(settlement, frees))
        return True

    return take_over


def heard_by_others(signal: Any, sender: Any) -> bool:
    """Whether somebody beside us and Celery has a handler of a signal."""
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
