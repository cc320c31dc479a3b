"""What do an app's handlers of `task_prerun` see of a call? Its arguments, as `before_start` and `__call__` do.

A message holds a reference in their place, which nobody's tenant or language can be read from.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Task, signals
from redis import RedisError

from ratelimit_worker.outage import cause_of
from ratelimit_worker.worker.task import CallTask

log = logging.getLogger(__name__)

#: Whose handlers of their own look at no arguments.
NOT_ASKING = ("ratelimit_worker.", "celery.")


def before_others() -> None:
    """Put the arguments back before the app's own handlers are called, in the order in which Celery calls them."""
    receivers = signals.task_prerun.receivers
    mine = [one for one in receivers if one[1] is _put_back]
    receivers[:] = mine + [one for one in receivers if one not in mine]


@signals.task_prerun.connect(weak=False)
def _put_back(sender: Task | None = None, task: Task | None = None, **_: Any) -> None:
    if not isinstance(task, CallTask) or not _somebody_asks(sender):
        return
    try:
        task.show_arguments()
    except (RedisError, OSError) as error:  # the attempt waits for Redis; handlers do not
        log.warning("prerun.without_arguments task=%s cause=%s", task.name, cause_of(error))


def _somebody_asks(sender: Task | None) -> bool:
    live = signals.task_prerun._live_receivers(sender)
    return any(not str(getattr(one, "__module__", "")).startswith(NOT_ASKING) for one in live)
