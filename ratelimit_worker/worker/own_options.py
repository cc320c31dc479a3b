"""Which options may a call be sent with? Celery's, kombu's and ours; another is a slip of the pen, and is refused.

Celery puts an option that it does not know into the properties of the message, where nobody looks: `cache_tll=60` was
accepted, and did nothing.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from celery import Celery, Task
from celery.app.amqp import AMQP
from kombu import Producer

from ratelimit_worker.errors import BadInput

#: What Celery takes in functions without a signature (`send_task_message`), and reads of options on their way.
_CELERYS = ("event_dispatcher", "exchange_type", "ignore_result", "headers", "queue", "visitor_headers", "origin")
#: Properties of a message of AMQP, which kombu passes on.
_PROPERTIES = ("app_id", "cluster_id", "correlation_id", "message_id", "timestamp", "type", "user_id")
_OURS = ("priority", "number")


@cache
def _known() -> frozenset[str]:
    takers: tuple[Any, ...] = (Task.apply_async, Celery.send_task, AMQP.as_task_v2, Producer.publish)
    named = {name for taker in takers for name in inspect.signature(taker).parameters}
    return frozenset((named | {*_CELERYS, *_PROPERTIES, *_OURS}) - {"self", "options", "properties"})


def check_ignored(function: Callable[..., Any], ignored: Sequence[str]) -> None:
    """Whether a function can be given the arguments that are not to count.

    Raises:
        BadInput: it has none of that name.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in ignored:
        if name not in parameters and not takes_any:
            raise BadInput(f"ignore={name!a:.60}: {function.__name__} has no such argument")


def check_for(task: Task, options: Mapping[str, Any], ours: Collection[str]) -> None:
    """`check`, unless a class behind the task's has an `apply_async` of its own, with options that it alone knows.

    Raises:
        BadInput: as `check`.
    """
    takers = [one for one in type(task).__mro__ if "apply_async" in vars(one)]
    if [one.__module__.partition(".")[0] for one in takers[-2:]] == ["ratelimit_worker", "celery"]:
        check(options, ours)


def check(options: Mapping[str, Any], ours: Collection[str]) -> None:
    """Whether all of them are known.

    Args:
        ours: Names of ours, beside Celery's.
    Raises:
        BadInput: one is not; says which is meant, perhaps.
    """
    known = _known()
    for name in options:
        if name in known or name in ours or name in (options.get("stamped_headers") or ()):
            continue
        near = difflib.get_close_matches(name, [*ours, *known], 1)
        raise BadInput(f"{name}= is no option of a call{f': did you mean {near[0]}=?' if near else ''}")
