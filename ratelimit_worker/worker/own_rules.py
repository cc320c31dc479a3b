"""Tasks of this worker that retry by themselves after a provider's failure are logged once, when it starts."""

from __future__ import annotations

import dis
import inspect
import logging
from collections.abc import Iterable
from typing import Any

from celery import Task

from ratelimit_worker.policy.own_retry import OwnRule, catches_providers
from ratelimit_worker.worker.task import CallTask, chosen_delay_s

log = logging.getLogger(__name__)


def own_rules(tasks: Iterable[Any]) -> list[OwnRule]:
    """The retry rules of tasks that make calls and retry by themselves, by name."""
    found = [_rule(task) for task in tasks if isinstance(task, CallTask)]
    return sorted((rule for rule in found if rule is not None), key=lambda rule: rule.task)


def say(rules: Iterable[OwnRule]) -> None:
    """Write a line for each of these tasks into the worker's log."""
    for rule in rules:
        log.warning("task.retries_itself %s", rule)


def _rule(task: CallTask) -> OwnRule | None:
    auto = tuple(getattr(task, "autoretry_for", ()))
    caught = tuple(kind.__name__ for kind in auto) if catches_providers(auto) else ()
    asks = _asks(task)
    if not caught and not asks:
        return None
    given = getattr(task, "retry_kwargs", None) or {}
    chosen_s = chosen_delay_s(task)
    return OwnRule(
        task=task.name,
        caught=caught,
        asks=asks,
        max_retries=given.get("max_retries", task.max_retries),
        backoff=bool(caught and getattr(task, "retry_backoff", False)),
        delay_s=given.get("countdown", chosen_s),
    )


def _asks(task: Task) -> bool:
    """Whether the task's own code mentions `.retry`."""
    run = getattr(task, "_orig_run", task.run)  # Celery's autoretry_for puts a wrapper around it
    code = getattr(inspect.unwrap(getattr(run, "__func__", run)), "__code__", None)
    if code is None:
        return False
    return any(step.argval == "retry" and step.opname.startswith("LOAD_") for step in dis.get_instructions(code))
