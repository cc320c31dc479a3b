"""What do Celery's remote-control commands mean for calls that wait in lanes?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from celery import Celery
from celery.utils.functional import maybe_list
from celery.worker import control
from kombu.utils.imports import symbol_by_name

from ratelimit_worker.stores.decide import deciding
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.worker.installed import in_memory, services_of
from ratelimit_worker.worker.refusal import context_of, request_of
from ratelimit_worker.worker.task import CallTask

_stock_revoke = control.Panel.data["revoke"]
_stock_rate_limit = control.Panel.data["rate_limit"]
#: Fields of the event `task-revoked` of a call that waited.
NOT_BEGUN = {"terminated": False, "signum": None, "expired": False}

MOST_S = 60.0  #: longest time to revoke some hundred calls that a person has chosen, seconds


def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
    """Celery's revoke; a waiting call leaves its lane at once."""
    for call_id in _take_out(services_of(state.app).lanes, maybe_list(task_id) or [], state.app):
        state.consumer.event_dispatcher.send("task-revoked", uuid=call_id, **NOT_BEGUN)
    return _stock_revoke(state, task_id, *args, **kwargs)


def rate_limit(state: Any, task_name: str, rate_limit: Any, **kwargs: Any) -> Any:
    """Celery's rate_limit, for ordinary tasks only: calls that the worker keeps in memory would hold up their lane."""
    if isinstance(state.app.tasks.get(task_name), CallTask):
        return control.nok(f"{task_name} makes calls: its lane paces them, see `limits set`")
    return _stock_rate_limit(state, task_name, rate_limit, **kwargs)


def register() -> None:
    """Replace Celery's commands by ours."""
    control.Panel.data["revoke"] = revoke
    control.Panel.data["rate_limit"] = rate_limit


def give_control(app: Celery) -> None:
    """Let a revoke from any process of the app take calls out of their lanes, with or without a worker."""

    class Control(symbol_by_name(app.control_cls)):  # type: ignore[misc]
        def revoke(self, task_id: Any, destination: Any = None, **kwargs: Any) -> Any:
            taken = _revoked_here(self.app, task_id) if destination is None else []
            answer = super().revoke(task_id, destination, **kwargs)
            _tell(self.app, taken)
            return answer

    if "control" in vars(app):
        app.control = Control(app)
    app.control_cls = Control


def revoke_waiting(app: Celery, call_ids: Iterable[str]) -> list[str]:
    """Revoke those of these calls that wait; the others go on, and no worker is told → those that were revoked."""
    with deciding(MOST_S):
        taken = _revoked_here(app, list(call_ids))
        _tell(app, taken)
    return taken


def _tell(app: Celery, taken: Iterable[str]) -> None:
    """Send `task-revoked` events for these calls, if the app sends events for sent calls too."""
    if taken and app.conf.task_send_sent_event:
        events = app.events.Dispatcher(enabled=False)
        with app.producer_or_acquire() as producer:
            for call_id in taken:
                events.publish("task-revoked", {"uuid": call_id, **NOT_BEGUN}, producer)


def _revoked_here(app: Celery, task_id: Any) -> list[str]:
    """Take waiting calls with these ids out of their lanes, in an agent → the ids of calls that waited."""
    live = services_of(app)
    if in_memory(app) or not live.redis_url:
        return []
    with deciding():
        return _take_out(live.lanes, maybe_list(task_id) or [], app)


def _take_out(lanes: Lanes, call_ids: Iterable[str], app: Celery) -> list[str]:
    """Take waiting calls out of their lanes, and end the wait of their callers and canvases → their ids."""
    taken = []
    for call_id in call_ids:
        for raw, payload in lanes.revoke(call_id)[:1]:
            request = context_of(call_id, request_of(raw, payload))
            task = app.tasks.get(request.task)
            (task or app).backend.mark_as_revoked(call_id, "revoked", request=request, store_result=True)
            taken.append(call_id)
    return taken
