"""What does the page show of money? What lanes spent, wasted and saved in a day, and what is left of budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from ratelimit_worker.contracts.budget import LANE
from ratelimit_worker.contracts.rollup import Cell, CellKey, Series
from ratelimit_worker.policy.budget import Standing
from ratelimit_worker.policy.rollup import merge_sums
from ratelimit_worker.reports import words
from ratelimit_worker.reports.budgets import usd
from ratelimit_worker.reports.money import NOTHING, Spend, amount, dollars, in_total, money, spent_of_cell
from ratelimit_worker.reports.reuse import figures

OVER_S, FINEST_S = 86_400.0, 3_600.0  #: length of the window that is added up, and of the sums that are read
_FRESH_S = 10.0  #: how old the sums may be, seconds
MOST_ROWS = 50  #: lanes on the page, and budgets that are of no lane
TOTAL = "(all lanes)"


class Sums(Struct, frozen=True):
    """Money of a lane, or of all."""

    spend: Spend = NOTHING
    shared_nanousd: int = 0  #: what calls saved that got another call's answer; billionths of a dollar

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.spend + other.spend, self.shared_nanousd + other.shared_nanousd)


class Row(Struct, frozen=True):
    """A lane, all lanes, or a budget that is not a lane's, in words."""

    name: str
    spent: str
    wasted: str
    cached: str  #: saved by cached input
    shared: str  #: saved by answers of other calls
    left: str  #: what is left of its budgets
    is_spent: bool  #: whether a budget is spent, so that calls wait


class Ledger:
    """The sums of the last 24 hours, at most `_FRESH_S` old.

    Args:
        cells: Reads the sums of a window, as `stats` does; raises `StoreUnavailable` if the tracking database is away.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self,
        cells: Callable[[float, float, float], Iterable[tuple[CellKey, Cell]]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._cells, self._clock = cells, clock
        self._at_s, self._sums = float("-inf"), dict[str, Sums]()

    def by_lane(self) -> Mapping[str, Sums]:
        """Lane → its sums; lanes without money, and without models that lack a price, are left out. Raises what `cells`
        does."""
        now_s = self._clock()
        if now_s - self._at_s > _FRESH_S:
            sums: dict[Series, Cell] = {}
            for (_, series), cell in self._cells(now_s - OVER_S, now_s + FINEST_S, FINEST_S):
                merge_sums(sums.setdefault(series, Cell()), cell)
            self._at_s, self._sums = now_s, _by_lane(sums)
        return self._sums


def _by_lane(sums: Mapping[Series, Cell]) -> dict[str, Sums]:
    shared: dict[str, int] = {}
    for series, cell in sums.items():
        if saved := figures(cell.reuse).saved_nanousd:
            shared[series.lane] = shared.get(series.lane, 0) + saved
    lanes = money(row for series, cell in sums.items() for row in spent_of_cell(series, cell)).lanes
    spent = {one.name: one.spend for one in lanes if one.spend.is_known}
    return {lane: Sums(spent.get(lane, NOTHING), shared.get(lane, 0)) for lane in {**spent, **shared}}


def rows(spent: Mapping[str, Sums], budgets: Sequence[Standing]) -> tuple[Row, ...]:
    """Lanes with costs or a budget, highest cost first, at most `MOST_ROWS`; their total, if there are several; then
    budgets of tenants, contexts and all calls, at most as many."""
    of_lanes = {one.name.removeprefix(LANE): one for one in budgets if one.name.startswith(LANE)}
    lanes = sorted({*spent, *of_lanes}, key=lambda lane: (-spent.get(lane, Sums()).spend.cost_nanousd, lane))
    found = [_row(lane, spent.get(lane, Sums()), of_lanes.get(lane)) for lane in lanes[:MOST_ROWS]]
    if len(lanes) > 1:
        found.append(_row(TOTAL, sum(spent.values(), Sums()), None, in_total))
    others = [_row(one.name, None, one) for one in budgets if not one.name.startswith(LANE)]
    return (*found, *others[:MOST_ROWS])


def _row(name: str, sums: Sums | None, budget: Standing | None, in_words: Callable[[Spend], str] = amount) -> Row:
    spent = wasted = cached = shared = "-"
    if sums is not None:
        spent = in_words(sums.spend)
        wasted, cached = dollars(sums.spend.wasted_nanousd), dollars(sums.spend.cached_saving_nanousd)
        shared = dollars(sums.shared_nanousd)
    left = "-"
    if budget is not None:
        left = ", ".join(f"{usd(one.left_usd)} of {usd(one.limit_usd)} this {one.name}" for one in budget.periods)
        if budget.until_s is not None:
            left += f"; calls wait until {words.moment(budget.until_s)}"
    return Row(name, spent, wasted, cached, shared, left, budget is not None and budget.until_s is not None)
