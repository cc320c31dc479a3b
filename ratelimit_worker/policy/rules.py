"""Does somebody know better? Rules of a task, or of an installed package, that are asked before our own.

A rule belongs to its writer: one that raises, or answers with something else, has no opinion, and the log says so.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace

from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.errors import CallFailed, RateLimitWorkerError
from ratelimit_worker.policy.headers import MAX_DELAY_S

log = logging.getLogger("ratelimit_worker.classify")

#: Told what a task raised: its category (also by its word, "timeout"), the whole failure, or None: no opinion.
Rule = Callable[[BaseException], "Category | Failure | str | None"]


def opinion(error: BaseException, rules: Iterable[Rule]) -> Category | Failure | None:
    """What the first rule that has an opinion says of `error`; None: none has.

    No rule is asked about an error of this package that is no `CallFailed` (Redis away, a deadline): those are nobody's
    failure but ours. A `Failure` is kept fit for logs and lanes: one line of cause, a sensible Retry-After or none.
    """
    if isinstance(error, RateLimitWorkerError) and not isinstance(error, CallFailed):
        return None
    for rule in rules:
        try:
            said = rule(error)
            if isinstance(said, Failure):
                return _fit(said)
            if said is not None:
                return Category(said)
        except Exception as wrong:  # a stranger's code, or an answer that is no category: neither may lose the attempt
            # Neither message nor answer: both may quote what the call asked.
            log.warning("classify.rule_failed rule=%s cause=%s", name_of(rule), type(wrong).__name__)
    return None


def name_of(rule: Rule) -> str:
    """What the log calls a rule: module and name."""
    kind = type(rule)
    return f"{getattr(rule, '__module__', kind.__module__)}.{getattr(rule, '__qualname__', kind.__qualname__)}"


def _fit(said: Failure) -> Failure:
    lines = str(said.cause).splitlines()
    wait_s = said.retry_after_s
    sensible = wait_s is not None and math.isfinite(wait_s) and wait_s >= 0
    return replace(
        said,
        category=Category(said.category),
        cause=lines[0][:300] if lines else "",
        retry_after_s=min(wait_s, MAX_DELAY_S) if wait_s is not None and sensible else None,
    )
