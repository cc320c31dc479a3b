"""How does a budget of money stand: what is spent of it and left, and until when does it hold calls back? Pure."""

from __future__ import annotations

from datetime import timedelta

from msgspec import Struct

from ratelimit_worker.contracts.budget import ALL, CONTEXT, LANE, NANO, TENANT, Budget, Spent
from ratelimit_worker.policy import choices, day

DAY, MONTH = "day", "month"


class Period(Struct, frozen=True):
    """A budget for a day, or for a month."""

    name: str  #: DAY, MONTH
    label: str  #: which: "2026-11-30", "2026-11"
    limit_usd: float
    spent_usd: float  #: including what calls that are out are expected to cost
    ends_s: float  #: seconds since the epoch

    @property
    def left_usd(self) -> float:
        """What may still be spent; 0 where more was spent than that."""
        return max(0.0, self.limit_usd - self.spent_usd)

    @property
    def is_spent(self) -> bool:
        """Whether calls wait for its end."""
        return self.spent_usd >= self.limit_usd


class Standing(Struct, frozen=True):
    """One budget at a moment."""

    name: str  #: "all", "lane:L", "tenant:T", "context:C"
    periods: tuple[Period, ...]
    zone: str = ""  #: where they end; "": UTC
    waiting: int = 0  #: what waits for money: lanes, or single calls of a tenant or context

    @property
    def until_s(self) -> float | None:
        """When there is money again, seconds since the epoch; None: there is some left now."""
        return max((one.ends_s for one in self.periods if one.is_spent), default=None)


def standing(name: str, budget: Budget, spent: Spent, at_s: float, waiting: int = 0) -> Standing:
    """How a budget stands.

    Args:
        spent: As Redis has it; what was spent in another day or month does not count.
        at_s: Now, seconds since the epoch.
    """
    today = day.number(budget.steps, at_s)
    label = (day.EPOCH + timedelta(days=today)).isoformat()
    periods: list[Period] = []
    if budget.usd_per_day is not None:
        nano = spent.day_nanousd if spent.day == today else 0
        periods.append(Period(DAY, label, budget.usd_per_day, nano / NANO, day.end_s(budget.steps, today)))
    if budget.usd_per_month is not None:
        nano = spent.month_nanousd if spent.month == day.month(today) else 0
        periods.append(
            Period(MONTH, label[:7], budget.usd_per_month, nano / NANO, day.month_end_s(budget.steps, today))
        )
    return Standing(name, tuple(periods), budget.zone, waiting)


def flaw_of_budget(name: str) -> str | None:
    """Why no budget can have this name; None: it can."""
    if name == ALL:
        return None
    for scope in (TENANT, CONTEXT):
        if name.startswith(scope):
            return choices.flaw_of_name(name.removeprefix(scope))
    if name.startswith(LANE):
        return f"the dollars of a lane are among its limits: `limits set {name.removeprefix(LANE)} --usd-per-day N`"
    return "use all, tenant:NAME or context:NAME"
