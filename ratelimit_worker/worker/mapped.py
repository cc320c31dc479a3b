"""`map`, `starmap` and `chunks` of a call: each item becomes a call of its own, in its lane.

Celery runs all items as plain function calls within one task, so they would not be paced, retried or tracked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from celery import Celery, Task, group
from celery.backends.base import DisabledBackend
from celery.canvas import maybe_signature

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.worker.task import CallTask

SPREADS = "_ratelimit_worker_spreads"  #: marks the function of a task that was changed here


def spread(app: Celery) -> None:
    """Change an app's `celery.map` and `celery.starmap` so that items of a call go into its lane."""
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
        if not calls:
            return []
        if _can_collect(mapped):
            return mapped.replace(group(calls))
        for call in calls:
            call.apply_async()
        return None

    setattr(run, SPREADS, True)
    mapped.run = run


def _can_collect(mapped: Task) -> bool:
    """Whether the answers are to be collected in a list.

    Raises:
        ConfigurationError: They are, and the result backend cannot do that.
    """
    try:
        mapped.backend.ensure_chords_allowed()
    except NotImplementedError as error:
        request = mapped.request
        nobody = request.ignore_result or isinstance(mapped.backend, DisabledBackend)
        if nobody and not (request.chain or request.callbacks or request.chord):
            return False
        raise ConfigurationError(
            f"{mapped.name} of calls brings their answers together as a chord does, which this result backend cannot: "
            "take Redis or a database for results, send a group, or ignore_result=True"
        ) from error
    return True


def _elsewhere(mapped: Task) -> dict[str, str]:
    """The queue of the items: by the call's own route, unless the whole was sent to another queue than the default."""
    sent = mapped.request.delivery_info or {}
    conf, key = mapped.app.conf, sent.get("routing_key")
    if not key or key in (conf.task_default_routing_key, conf.task_default_queue):
        return {}
    return {"exchange": sent.get("exchange") or "", "routing_key": key}
