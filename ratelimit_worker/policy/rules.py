"""Rules of a task or of an installed package for exceptions, which are asked before our own.

If a rule raises, or returns something else than a category, this is logged, and it counts as having no opinion.
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

#: Gets the exception that a task raised; returns a category (or its name, "timeout"), a whole failure, or None: no
#: opinion.
Rule = Callable[[BaseException], "Category | Failure | str | None"]


def opinion(error: BaseException, rules: Iterable[Rule]) -> Category | Failure | None:
    """The answer of the first rule that has an opinion on `error`; None: none has.

    Rules are not asked about this package's own errors, except `CallFailed`: others (Redis away, a deadline) are not a
    provider's failures. A returned `Failure` is cleaned: its cause is one line, its Retry-After sensible or None.
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
        except Exception as wrong:  # foreign code, or an invalid answer: neither may lose the attempt
            # Log neither message nor answer, since both may quote the prompt.
            log.warning("classify.rule_failed rule=%s cause=%s", name_of(rule), type(wrong).__name__)
    return None


def name_of(rule: Rule) -> str:
    """A rule's name in the log: module and name."""
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
