"""What becomes of `map`, `starmap` and `chunks` of a call? Each item is a call of its own, in its lane.

Celery runs all items as plain function calls within one task: nothing would pace, retry or track them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from celery import Celery, Task, group
from celery.canvas import maybe_signature

from ratelimit_worker.worker.task import CallTask

SPREADS = "_ratelimit_worker_spreads"  #: marks the function of a task that was changed here


def spread(app: Celery) -> None:
    """Let an app's `celery.map` and `celery.starmap` give the items of a call to its lane."""
    _spread(app.tasks["celery.map"], lambda item: (item,))
    _spread(app.tasks["celery.starmap"], tuple)


def _spread(mapped: Task, arguments: Callable[[Any], Sequence[Any]]) -> None:
    stock = mapped.run
    if hasattr(stock, SPREADS):
        return

    @wraps(stock)
    def run(task: Any, it: Any) -> Any:
        kind = maybe_signature(task, app=mapped.app).type
        if mapped.request.called_directly or not isinstance(kind, CallTask):
            return stock(task, it)
        calls = [kind.s(*arguments(item)).set(**_elsewhere(mapped)) for item in it]
        return mapped.replace(group(calls)) if calls else []

    setattr(run, SPREADS, True)
    mapped.run = run


def _elsewhere(mapped: Task) -> dict[str, str]:
    """Where the items go: as the call's own route says, unless the whole was sent to a queue that is not the app's."""
    sent = mapped.request.delivery_info or {}
    conf, key = mapped.app.conf, sent.get("routing_key")
    if not key or key in (conf.task_default_routing_key, conf.task_default_queue):
        return {}
    return {"exchange": sent.get("exchange") or "", "routing_key": key}
