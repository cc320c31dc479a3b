"""Budgets of money in words: a table for commands, and sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ratelimit_worker.contracts.budget import Budget
from ratelimit_worker.contracts.rollup import Cell, CellKey
from ratelimit_worker.plain_text import one_line
from ratelimit_worker.policy.budget import Period, Standing
from ratelimit_worker.reports.money import dollars
from ratelimit_worker.reports.words import moment, table

LEFT_OUT_OVER_S = 86_400.0  #: how far `left_out` should look back
_MOST_NAMED = 5  #: models that a sentence names


def budgets_table(standing: Sequence[Standing], width: int | None = None) -> str:
    """A row for each budget and period."""
    rows = [_row(one, period) for one in standing for period in one.periods]
    return table(("budget", "for a", "limit", "spent", "left", "ends", "waiting"), rows, width)


def as_plain(standing: Sequence[Standing]) -> list[dict[str, Any]]:
    """The budgets for programs: amounts in dollars, times in seconds since the epoch."""
    return [
        {
            "budget": one.name,
            "zone": one.zone or "UTC",
            "waiting": one.waiting,
            "until_s": one.until_s,
            "periods": [
                {
                    "period": period.name,
                    "limit_usd": period.limit_usd,
                    "spent_usd": period.spent_usd,
                    "left_usd": period.left_usd,
                    "ends_s": period.ends_s,
                }
                for period in one.periods
            ],
        }
        for one in standing
    ]


def budget_line(budget: Budget) -> str:
    """The limits that a person has set for a budget, in one line."""
    return ", ".join(allowance(budget.usd_per_day, budget.usd_per_month, budget.zone)) or "no budget"


def allowance(usd_per_day: float | None, usd_per_month: float | None, zone: str | None) -> list[str]:
    """What may be spent, in words such as "$5 a day (Europe/Berlin)"."""
    where = f" ({zone})" if zone else ""
    told = ((usd_per_day, "day"), (usd_per_month, "month"))
    return [f"{usd(value)} a {period}{where}" for value, period in told if value is not None]


def spent_notes(standing: Sequence[Standing]) -> tuple[str, ...]:
    """A sentence for each budget that holds calls back."""
    return tuple(
        f"budget {one.name} is spent: {_of(one)}; its calls wait until {moment(until_s)}"
        for one in standing
        if (until_s := one.until_s) is not None
    )


def left_out(cells: Iterable[tuple[CellKey, Cell]]) -> str:
    """A sentence about the models without a price in these sums: no budget counts their calls; "" if there are none."""
    models = sorted({key.series.model or "(unknown)" for key, cell in cells if cell.unpriced})
    if not models:
        return ""
    many = f"{len(models)} model{'s' if len(models) > 1 else ''} without a price"
    named = one_line(", ".join([*models[:_MOST_NAMED], *(["…"] if len(models) > _MOST_NAMED else [])]))
    return f"calls of {many} count as nothing (in the last 24 hours: {named}); MAISD_PRICES names prices"


def _of(one: Standing) -> str:
    return ", ".join(
        f"{usd(period.spent_usd)} of {usd(period.limit_usd)} this {period.name}"
        for period in one.periods
        if period.is_spent
    )


def _row(one: Standing, period: Period) -> tuple[str, ...]:
    waiting = f"{one.waiting:,} {'calls' if ':' in one.name and not one.name.startswith('lane:') else 'lanes'}"
    return (
        one.name,
        period.name,
        usd(period.limit_usd),
        usd(period.spent_usd),
        usd(period.left_usd),
        moment(period.ends_s),
        waiting if one.waiting and one.until_s is not None else "-",
    )


def usd(value: float) -> str:
    """An amount of dollars in words, such as "$5.00"."""
    return dollars(round(value * 1e9))
