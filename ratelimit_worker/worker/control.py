"""What do Celery's remote-control commands mean for calls that wait in lanes?"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control

from ratelimit_worker.worker.installed import services_of
from ratelimit_worker.worker.task import CallTask

_stock_revoke = control.Panel.data["revoke"]
_stock_rate_limit = control.Panel.data["rate_limit"]


def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
    """Celery's revoke; a call that waits leaves its lane then and there."""
    for one in maybe_list(task_id) or []:
        services_of(state.app).lanes.revoke(one)
    return _stock_revoke(state, task_id, *args, **kwargs)


def rate_limit(state: Any, task_name: str, rate_limit: Any, **kwargs: Any) -> Any:
    """Celery's rate_limit, of tasks that make no calls: in the worker's memory a call would hold up its lane."""
    if isinstance(state.app.tasks.get(task_name), CallTask):
        return control.nok(f"{task_name} makes calls: its lane paces them, see `limits set`")
    return _stock_rate_limit(state, task_name, rate_limit, **kwargs)


def register() -> None:
    """Put our commands in the place of Celery's."""
    control.Panel.data["revoke"] = revoke
    control.Panel.data["rate_limit"] = rate_limit
