"""An app's handlers of `task_prerun` get a call's real arguments, as `before_start` and `__call__` do.

The message only holds a reference in their place, from which a handler could not read a tenant or a language.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Task, signals
from redis import RedisError

from ratelimit_worker.outage import cause_of
from ratelimit_worker.worker.ending import heard_by_others
from ratelimit_worker.worker.task import CallTask

log = logging.getLogger(__name__)


def before_others() -> None:
    """Put the arguments back before the app's own handlers are called, in the order in which Celery calls them."""
    receivers = signals.task_prerun.receivers
    mine = [one for one in receivers if one[1] is _put_back]
    receivers[:] = mine + [one for one in receivers if one not in mine]


@signals.task_prerun.connect(weak=False)
def _put_back(sender: Task | None = None, task: Task | None = None, **_: Any) -> None:
    if not isinstance(task, CallTask) or not heard_by_others(signals.task_prerun, sender):
        return
    try:
        task.show_arguments()
    except (RedisError, OSError) as error:  # the attempt will wait for Redis; handlers do not
        log.warning("prerun.without_arguments task=%s cause=%s", task.name, cause_of(error))
