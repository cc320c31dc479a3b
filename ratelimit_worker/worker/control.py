"""What do Celery's remote-control commands mean for calls that wait in lanes?"""

from __future__ import annotations

from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import control

from ratelimit_worker.worker.installed import services_of

_stock_revoke = control.Panel.data["revoke"]


def revoke(state: Any, task_id: Any, *args: Any, **kwargs: Any) -> Any:
    """Celery's revoke; a call that waits leaves its lane then and there."""
    for one in maybe_list(task_id) or []:
        services_of(state.app).lanes.revoke(one)
    return _stock_revoke(state, task_id, *args, **kwargs)


def register() -> None:
    """Put our commands in the place of Celery's."""
    control.Panel.data["revoke"] = revoke
