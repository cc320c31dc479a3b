"""What may Flower's task pages show of a call? Its lane, context and size; what was asked and answered never."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KEPT = "<not shown: it may hold what was asked>"


def without_answers(
    makes_calls: Callable[[str | None], bool], then: Callable[[Any], Any] | None = None
) -> Callable[[Any], Any]:
    """A `format_task` of Flower's that takes the result out of calls.

    Their arguments are summaries when they get here: the transport wrote them.

    Args:
        makes_calls: Whether the task of a name makes calls.
        then: The deployment's own `format_task`.
    """

    def format_task(task: Any) -> Any:
        if makes_calls(task.name) and task.result:
            task.result = KEPT
        return then(task) if then is not None else task

    return format_task
