"""Options of `apply_async`: Celery's, kombu's and ours are known; any other is refused as a misspelling.

Celery puts an unknown option into the message's properties, where it has no effect: `cache_tll=60` was accepted, and
did nothing.
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

#: Options that Celery reads in functions whose signatures do not name them (`send_task_message`).
_CELERYS = ("event_dispatcher", "exchange_type", "ignore_result", "headers", "queue", "visitor_headers", "origin")
#: Properties of an AMQP message, which kombu passes on.
_PROPERTIES = ("app_id", "cluster_id", "correlation_id", "message_id", "timestamp", "type", "user_id")
_OURS = ("priority", "number")


@cache
def _known() -> frozenset[str]:
    takers: tuple[Any, ...] = (Task.apply_async, Celery.send_task, AMQP.as_task_v2, Producer.publish)
    named = {name for taker in takers for name in inspect.signature(taker).parameters}
    return frozenset((named | {*_CELERYS, *_PROPERTIES, *_OURS}) - {"self", "options", "properties"})


def check_ignored(function: Callable[..., Any], ignored: Sequence[str]) -> None:
    """Check that a function has the arguments that are to be ignored.

    Raises:
        BadInput: it has no argument of that name.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    for name in ignored:
        if name not in parameters and not takes_any:
            raise BadInput(f"ignore={name!a:.60}: {function.__name__} has no such argument")


def check_for(task: Task, options: Mapping[str, Any], ours: Collection[str]) -> None:
    """`check`, unless a base class of the task has its own `apply_async`, which may know further options.

    Raises:
        BadInput: as `check`.
    """
    takers = [one for one in type(task).__mro__ if "apply_async" in vars(one)]
    if [one.__module__.partition(".")[0] for one in takers[-2:]] == ["ratelimit_worker", "celery"]:
        check(options, ours)


def check(options: Mapping[str, Any], ours: Collection[str]) -> None:
    """Check that all options are known.

    Args:
        ours: Names of our options.
    Raises:
        BadInput: one is not; suggests a similar one.
    """
    known = _known()
    for name in options:
        if name in known or name in ours or name in (options.get("stamped_headers") or ()):
            continue
        near = difflib.get_close_matches(name, [*ours, *known], 1)
        raise BadInput(f"{name}= is no option of a call{f': did you mean {near[0]}=?' if near else ''}")
