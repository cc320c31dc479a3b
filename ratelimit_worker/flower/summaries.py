"""What Flower's task pages show of a call: its lane, context and size, but neither prompt nor answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEPT = "<not shown: it may hold what was asked>"


def without_answers(
    makes_calls: Callable[[str | None], bool], then: Callable[[Any], Any] | None = None
) -> Callable[[Any], Any]:
    """A `format_task` for Flower that removes the results of calls.

    Their arguments are summaries already, since the transport gives only these to Celery.

    Args:
        makes_calls: Returns whether the task with this name makes calls.
        then: The deployment's own `format_task`, called afterwards.
    """

    def format_task(task: Any) -> Any:
        if makes_calls(task.name) and task.result:
            task.result = KEPT
        return then(task) if then is not None else task

    return format_task
