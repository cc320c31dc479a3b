"""What the page says of money: sums of a day by lane, and budgets."""

from __future__ import annotations

from collections.abc import Iterator

from ratelimit_worker.contracts.budget import NANO, Budget, Spent
from ratelimit_worker.contracts.rollup import Cell, CellKey, Series
from ratelimit_worker.flower.money import OVER_S, Ledger, Row, Sums, rows
from ratelimit_worker.policy.budget import standing
from ratelimit_worker.reports.money import Spend

AT_S = 1_796_030_000.0  # 2026-11-30 07:13 UTC


def series(lane: str, task: str = "t") -> Series:
    return Series(lane=lane, task=task, context="", tenant="", model="m")


def test_the_sums_of_a_day_are_read_now_and_then() -> None:
    """By lane, over all functions; what was lost with workers is spent and wasted; a second look costs nothing."""
    asked: list[tuple[float, float]] = []

    def cells(since_s: float, until_s: float, finest_s: float) -> Iterator[tuple[CellKey, Cell]]:
        asked.append((since_s, until_s))
        answered = {"answered": 1}
        first = Cell(outcomes=answered, cost_nanousd=5, wasted_nanousd=1, saved_nanousd=2)
        yield CellKey(int(AT_S), series("gpt")), first
        yield CellKey(int(AT_S), series("gpt", "u")), Cell(outcomes=answered, cost_nanousd=10, lost_nanousd=3)
        yield CellKey(int(AT_S), series("free")), Cell(outcomes=answered)
        yield CellKey(int(AT_S), series("home")), Cell(outcomes=answered, unpriced=1)
        yield CellKey(int(AT_S), series("kept")), Cell(reuse={"joined_nanousd": 7})

    now = [AT_S]
    ledger = Ledger(cells, lambda: now[0])
    found = ledger.by_lane()
    assert ledger.by_lane() is found
    spend = found["gpt"].spend
    assert (spend.cost_nanousd, spend.wasted_nanousd, spend.cached_saving_nanousd) == (18, 4, 2)
    assert found["home"].spend.unpriced_models == ("m",)
    assert found["kept"] == Sums(shared_nanousd=7)
    assert set(found) == {"gpt", "home", "kept"}
    assert [since_s for since_s, _ in asked] == [AT_S - OVER_S]
    now[0] += 11
    ledger.by_lane()
    assert len(asked) == 2


def test_a_row_for_each_lane_and_each_budget() -> None:
    """The dearest lane first, then those with a budget alone, what lanes come to, then budgets that are of no lane."""
    today = int(AT_S // 86_400)
    spent = Spent(day=today, day_nanousd=2 * NANO, month=0)
    budgets = [
        standing("all", Budget(usd_per_day=10), spent, AT_S),
        standing("lane:gpt", Budget(usd_per_day=2, usd_per_month=40), spent, AT_S),
        standing("lane:new", Budget(usd_per_day=1), Spent(), AT_S),
    ]
    dear = Spend(cost_nanousd=2 * NANO, wasted_nanousd=NANO // 2, cached_saving_nanousd=NANO // 4)
    cheap = Spend(cost_nanousd=NANO, unpriced_attempts=1, unpriced_models=("m",))
    sums = {"cheap": Sums(cheap, NANO // 8), "gpt": Sums(dear)}
    assert rows(sums, budgets) == (
        Row(
            "gpt",
            "$2.00",
            "$0.50",
            "$0.25",
            "$0.00",
            "$0.00 of $2.00 this day, $40.00 of $40.00 this month; calls wait until 2026-12-01 00:00:00 UTC",
            True,
        ),
        Row("cheap", "$1.00 + unpriced", "$0.00", "$0.00", "$0.13", "-", False),
        Row("new", "$0.00", "$0.00", "$0.00", "$0.00", "$1.00 of $1.00 this day", False),
        Row("(all lanes)", "$3.00 + 1 model without a price", "$0.50", "$0.25", "$0.13", "-", False),
        Row("all", "-", "-", "-", "-", "$8.00 of $10.00 this day", False),
    )
