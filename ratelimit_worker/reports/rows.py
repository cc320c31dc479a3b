"""Which columns do tables of figures have? The same rows for the terminal and for pages. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ratelimit_worker.reports.figures import Group
from ratelimit_worker.reports.money import Spender, amount, dollars
from ratelimit_worker.reports.words import count, percent, seconds

NONE = "(none)"


class Rows(NamedTuple):
    """A table: the headings of its columns, and its rows; the first column is a name."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def named(name: str) -> str:
    """A name, or "(none)" if it is empty."""
    return name or NONE


def spenders(of: Sequence[Spender], what: str) -> Rows:
    """Who spent how much."""
    rows = [
        (
            named(one.name),
            amount(one.spend),
            dollars(one.spend.wasted_nanousd),
            dollars(one.spend.cached_saving_nanousd),
            count(one.spend.attempts),
        )
        for one in of
    ]
    return Rows((what, "cost", "no answer", "saved by cached input", "attempts"), rows)


def reused(groups: Sequence[Group], what: str) -> Rows:
    """Which calls got answers without a request, and what that saved, for the groups whose calls asked for it."""
    rows = [
        (
            named(group.name),
            count(one.hits),
            count(one.joined),
            count(one.stale),
            count(one.misses),
            percent(one.rate),
            count(one.bytes),
            count(one.input_tokens + one.output_tokens),
            dollars(one.saved_nanousd),
            count(one.evicted),
        )
        for group in groups
        if (one := group.figures.reuse).rate is not None
    ]
    return Rows((what, "hits", "joined", "stale", "misses", "rate", "bytes", "tokens", "saved", "evicted"), rows)


def retries(groups: Sequence[Group], what: str) -> Rows:
    """How failures ended, for the groups that had any."""
    rows = [
        (
            named(group.name),
            count(group.figures.met_failure),
            count(group.figures.recovered),
            percent(group.figures.retry_success_rate),
            count(group.figures.retried),
            seconds(group.figures.backoff_s),
        )
        for group in groups
        if group.figures.categories
    ]
    return Rows((what, "met failure", "recovered", "success", "retried", "backoff"), rows)
