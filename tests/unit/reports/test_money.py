"""Figures of money: whole numbers in, the same sum in every face, and words that a payer reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import Outcome
from ratelimit_worker.contracts.sums import Spent
from ratelimit_worker.reports.money import OTHERS, Spend, dollars, money, spend_sentence, without_price


def spent(
    outcome: Outcome = Outcome.ANSWERED,
    cost: int = 0,
    *,
    lane: str = "a",
    model: str | None = "m",
    tenant: str = "",
    **more: int,
) -> Spent:
    sums = {
        "attempts": 1,
        "cost_nanousd": cost,
        "estimated_nanousd": 0,
        "cached_saving_nanousd": 0,
        "lost_attempts": 0,
        "lost_nanousd": 0,
        "unpriced": 0,
        **more,
    }
    return Spent(lane, "task", "", tenant, model, outcome, **sums)


@pytest.mark.parametrize(
    ("nanousd", "words"),
    [
        (None, "-"),
        (0, "$0.00"),
        (1_234_500_000_000, "$1,234.50"),
        (999_999_999, "$1.00"),
        (100_000_000, "$0.10"),
        (99_999_999, "$0.1000"),
        (3_000_000, "$0.0030"),
        (2_100, "$0.0000021"),
        (1, "$0.000000001"),
    ],
)
def test_amounts_in_words(nanousd: int | None, words: str) -> None:
    """Cents, or where these say too little the digits that do."""
    assert dollars(nanousd) == words


def test_what_was_charged_without_an_answer_is_told_apart() -> None:
    """A retried attempt that was billed, and one whose worker died, are waste; the answer is not."""
    rows = [spent(cost=100), spent(Outcome.RETRIED, 30), spent(cost=50, lost_attempts=1, lost_nanousd=50)]
    total = money(rows).total
    assert (total.cost_nanousd, total.wasted_nanousd, total.estimated_nanousd) == (230, 80, 50)
    assert (total.attempts, total.lost_attempts) == (3, 1)


def test_models_without_a_price_stand_in_every_total() -> None:
    """Once each, however many attempts there were; their tokens are counted elsewhere."""
    found = money([spent(cost=5), spent(model="x", unpriced=4, attempts=4), spent(model=None, unpriced=1, lane="b")])
    assert found.total.unpriced_models == ("(unknown)", "x")
    assert without_price(found.total) == "+ 2 models without a price"
    assert [(one.name, without_price(one.spend)) for one in found.lanes] == [
        ("a", "+ 1 model without a price"),
        ("b", "+ 1 model without a price"),
    ]
    assert spend_sentence(found.total).endswith("+ 2 models without a price")
    assert spend_sentence(Spend(cost_nanousd=5, cached_saving_nanousd=7)).endswith("saved by cached input")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(Outcome)), st.integers(0, 10**15), st.sampled_from("abc"), st.sampled_from(["m", None])
        ),
        max_size=40,
    )
)
def test_every_way_to_cut_it_adds_up_to_the_total(rows: list[tuple[Outcome, int, str, str | None]]) -> None:
    """To the last billionth: by lane, model, function, context and tenant."""
    found = money(spent(outcome, cost, lane=lane, model=model, tenant=lane) for outcome, cost, lane, model in rows)
    assert found.total.cost_nanousd == sum(cost for _, cost, _, _ in rows)
    for of in (found.lanes, found.models, found.functions, found.contexts, found.tenants):
        assert sum((one.spend.cost_nanousd for one in of), 0) == found.total.cost_nanousd
        assert sum((one.spend.wasted_nanousd for one in of), 0) == found.total.wasted_nanousd


def test_too_many_tenants_are_added_up_under_one_name() -> None:
    """Beyond a thousand; none is lost from the total."""
    found = money(spent(cost=1, tenant=f"t{n}") for n in range(1_500))
    assert len(found.tenants) == 1_001
    assert found.tenants[0].name == OTHERS
    assert found.tenants[0].spend.cost_nanousd == 500
