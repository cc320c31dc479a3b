"""What happens when somebody sets a budget of money? It holds from the next call on, and calls held by it are retried.

Budgets of lanes are among their limits (`flow.lane.limit`); here are those of tenants, contexts and all calls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Protocol

from msgspec import Struct, structs

from ratelimit_worker.contracts.budget import CONTEXT, LANE, TENANT, Budget, Spent
from ratelimit_worker.contracts.rollup import ALL, HOUR_S, Cell, CellKey, Only
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.policy import day
from ratelimit_worker.policy.budget import flaw_of_budget
from ratelimit_worker.policy.rollup import spent_nanousd

log = logging.getLogger(__name__)

MOST_BUDGETS = 10_000  #: most budgets, not counting those of lanes
#: (name, budget) → what was spent of it before it is set
SpentBefore = Callable[[str, Budget], Spent]


class Budgets(Protocol):
    """The budgets in Redis, as this needs them."""

    def read(self) -> Mapping[str, Budget]:
        """All but those of lanes, by name."""
        ...

    def set(self, budgets: Mapping[str, Budget | None]) -> None:
        """Set some of them; None: delete it."""
        ...

    def backfill(self, spent: Mapping[str, Spent]) -> None:
        """Count what was spent of budgets before they were set."""
        ...


class Sums(Protocol):
    """The roll-ups, as this needs them."""

    def cells(
        self, since_s: float, until_s: float, finest_s: float, *, only: Only = ALL
    ) -> Iterator[tuple[CellKey, Cell]]:
        """Sums over the attempts of a window."""
        ...


class Change(Struct, frozen=True, kw_only=True):
    """The amounts and the zone to set. None: it stays."""

    usd_per_day: float | None = None  #: 0: no such budget any more
    usd_per_month: float | None = None  #: 0: no such budget any more
    zone: str | None = None  #: "": UTC


def in_zone(budget: Budget) -> Budget:
    """The budget, with the changes of its time zone for the scripts.

    Raises:
        ValueError: there is no such zone.
    """
    steps = day.steps(budget.zone, int(time.time() // day.DAY_S)) if budget.zone else ()
    return structs.replace(budget, steps=steps)


def check_name(name: str) -> None:
    """Check that a budget can have this name.

    Raises:
        BadInput: it cannot.
    """
    if (flaw := flaw_of_budget(name)) is not None:
        raise BadInput(f"budget {name!r}: {flaw}")


def begins(before: Budget, after: Budget) -> bool:
    """Whether a change makes a budget count anew: it bounded nothing before, or its days end at another time."""
    return after.bounds and (not before.bounds or before.zone != after.zone)


def spent_before(sums: Sums, name: str, zone: str, now_s: float, children: Collection[str] = ()) -> Spent:
    """What was spent of a budget in the present day and month of its zone, by the record of attempts.

    Args:
        name: "all", "lane:L", "tenant:T", "context:C".
        children: Of a lane: lanes whose parent it is.
    Raises:
        StoreUnavailable: the tracking database is away.
        ValueError: there is no such zone.
    """
    steps = day.steps(zone, int(now_s // day.DAY_S) - _LONGEST_MONTH_DAYS) if zone else ()
    today = day.number(steps, now_s)
    day_s, month_s = day.end_s(steps, today - 1), day.month_end_s(steps, day.first_of_month(today) - 1)
    only = _whose(name, children)

    def cost(since_s: float, until_s: float) -> int:
        if since_s >= until_s:
            return 0
        cells = (cell for one in only for _, cell in sums.cells(since_s, until_s, HOUR_S, only=one))
        return sum(map(spent_nanousd, cells))

    of_day = cost(day_s, now_s)
    of_month = of_day + cost(month_s, day_s)
    return Spent(day=today, day_nanousd=of_day, month=day.month(today), month_nanousd=of_month)


_LONGEST_MONTH_DAYS = 32


def _whose(name: str, children: Collection[str]) -> tuple[Only, ...]:
    if name.startswith(LANE):
        return tuple(Only(lane=lane) for lane in (name.removeprefix(LANE), *children))
    if name.startswith(TENANT):
        return (Only(tenant=name.removeprefix(TENANT)),)
    return (Only(context=name.removeprefix(CONTEXT)),) if name.startswith(CONTEXT) else (ALL,)


def set_budget(
    budgets: Budgets, name: str, change: Change, before_it: SpentBefore | None = None
) -> tuple[Budget, Budget]:
    """Change a budget, for the next call on → (before, after).

    Args:
        before_it: What was spent before; None: nothing is counted.
    Raises:
        BadInput: no budget can have that name; there is no such zone; or there are as many as may be.
    """
    check_name(name)
    known = budgets.read()
    before = known.get(name, Budget())
    named = {
        one: value or None for one in ("usd_per_day", "usd_per_month") if (value := getattr(change, one)) is not None
    }
    zone = before.zone if change.zone is None else change.zone
    try:
        after = in_zone(structs.replace(before, **named, zone=zone, configured=False))
    except ValueError as error:
        raise BadInput(f"zone={zone!r}: {error}") from error
    if name not in known and len(known) >= MOST_BUDGETS:
        raise BadInput(f"there are {MOST_BUDGETS:,} budgets already")
    spent = {name: before_it(name, after)} if before_it is not None and begins(before, after) else {}
    budgets.set({name: after if after.bounds else None})
    budgets.backfill(spent)
    return before, after


def at_start(budgets: Budgets, configured: Mapping[str, Budget], before_it: SpentBefore | None = None) -> None:
    """Take over the budgets of MAISD_BUDGETS; those that a person has set stay, as do those that the setting lacks.

    Args:
        before_it: As in `set_budget`. If the database is away, spending counts from now on, and the log says so.
    """
    if not configured:
        return
    known = budgets.read()
    told = {name: structs.replace(in_zone(budget), configured=True) for name, budget in configured.items()}
    new = {name: one for name, one in told.items() if name not in known or known[name].configured}
    spent: dict[str, Spent] = {}
    try:
        for name, one in new.items():
            if before_it is not None and begins(known.get(name, Budget()), one):
                spent[name] = before_it(name, one)
    except StoreUnavailable as error:
        log.warning("budget.spent_before_unknown cause=%s", error)
    budgets.set(new)
    budgets.backfill(spent)
