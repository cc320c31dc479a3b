"""Rules for failures from installed packages: entry points of the group `ratelimit_worker.classify`.

    [project.entry-points."ratelimit_worker.classify"]
    my-gateway = "my_gateway.errors:classify"

They are looked for at the first failure of a call in a process, so calls that succeed do not pay for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points

from ratelimit_worker.calls import Failure
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.rules import Rule

GROUP = "ratelimit_worker.classify"

log = logging.getLogger("ratelimit_worker.classify")


@cache
def installed_rules() -> tuple[Rule, ...]:
    """The rules of installed packages, by the names of their entry points; one that cannot be loaded is logged."""
    rules: list[Rule] = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            rule = point.load()
        except Exception as error:  # another package's import: it must not break the attempt
            log.warning("classify.rule_not_loaded rule=%s cause=%s", point.value, type(error).__name__)
            continue
        if callable(rule):
            rules.append(rule)
        else:
            log.warning("classify.rule_not_loaded rule=%s cause=not_callable", point.value)
    return tuple(rules)


def classifier(own: Rule | None = None) -> Callable[[BaseException], Failure | None]:
    """The rules for the exceptions of a task: its own rule, then those of installed packages, then ours."""
    before = () if own is None else (own,)
    return lambda error: classify_exception(error, now_s=time.time(), rules=(*before, *installed_rules()))
