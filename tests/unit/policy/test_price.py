"""What requests cost: exact, by tier and time, and as the published list itself computes it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import PriceSource, Usage
from ratelimit_worker.contracts.price import Money, PriceCard, Rate, Tariff
from ratelimit_worker.policy.price import PriceTable, money_of, own_cards

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
GPT = own_cards({"gpt": {"input": 2.5, "output": 10, "cached_input": 1.25}})["gpt"]


def test_cached_input_is_discounted_and_the_saving_told() -> None:
    """1,000 of input of which 400 cached, and 100 of output: 0.0015 + 0.0005 + 0.001 dollars; 0.0005 saved."""
    usage = Usage(1000, 100, cached_input_tokens=400)
    assert money_of(usage, GPT, NOON) == Money(3_000_000, PriceSource.OWN, 500_000)


def test_what_has_no_price_of_its_own_costs_what_its_like_do() -> None:
    """Reasoning is output, pictures are input, and a cache write is input."""
    usage = Usage(100, 10, cache_write_tokens=20, image_input_tokens=30, reasoning_tokens=5)
    assert money_of(usage, GPT, NOON) == money_of(Usage(100, 10), GPT, NOON)


def test_a_sum_over_many_small_calls_is_exact() -> None:
    """A binary fraction would drift: 100,000 calls of one token at $0.15 a million are 15,000,000 nanodollars."""
    card = own_cards({"m": {"input": 0.15}})["m"]
    one = money_of(Usage(1, 0), card, NOON)
    assert one is not None
    assert sum(one.nanousd for _ in range(100_000)) == 15_000_000


def test_a_long_prompt_pays_its_price_for_all() -> None:
    """Above 200,000 tokens of input every token costs more, and exactly at them none does."""
    rates = {"input": Rate(3_000_000, ((200_000, 6_000_000),)), "output": Rate(15_000_000, ((200_000, 22_500_000),))}
    card = PriceCard(standard=(Tariff(rates=rates),))
    at, beyond = money_of(Usage(200_000, 1), card, NOON), money_of(Usage(200_001, 1), card, NOON)
    assert at is not None
    assert beyond is not None
    assert at.nanousd == 200_000 * 3_000 + 15_000
    assert beyond.nanousd == 200_001 * 6_000 + 22_500


def test_prices_hold_from_a_day_on_and_at_hours_of_the_day() -> None:
    """The last that holds counts, midnight within its hours or not; where none does, the first."""
    cheap, dear = {"input": Rate(1_000)}, {"input": Rate(2_000)}
    night = Tariff(rates={"input": Rate(500)}, daily=(16 * 3600, 3600))
    card = PriceCard(standard=(Tariff(rates=cheap), Tariff(rates=dear, since_s=NOON), night))

    def price(at_s: float) -> int:
        money = money_of(Usage(1, 0), card, at_s)
        assert money is not None
        return money.nanousd * 1000

    hour = 3600.0
    assert [price(NOON + h * hour) for h in (-1, 0, 4, 12, 12.99, 13)] == [1000, 2000, 1000, 1000, 1000, 2000]


def test_a_tier_replaces_the_prices_that_it_names() -> None:
    """Of an answer that was billed as flex; another tier, or none, pays the standard price."""
    flex = Tariff(rates={"input": Rate(1_000_000)}, tier="flex")
    card = PriceCard(standard=(Tariff(rates={"input": Rate(2_000_000), "output": Rate(8_000_000)}),), tiers=(flex,))
    paid = {tier: money_of(Usage(10, 10, service_tier=tier), card, NOON) for tier in ("flex", "priority", None)}
    assert paid["flex"] == Money(90_000, PriceSource.LIST)
    assert paid["priority"] == paid[None] == Money(100_000, PriceSource.LIST)


def test_who_says_what_it_cost() -> None:
    """A table of one's own, then the provider's own word, then the list; and nobody, where there is no price."""
    told = Usage(10, 10, cost_nanousd=77)
    listed = PriceCard(standard=(Tariff(rates={"input": Rate(1)}),))
    assert money_of(told, GPT, NOON) == Money(125_000, PriceSource.OWN)
    assert money_of(told, listed, NOON) == Money(77, PriceSource.TOLD)
    assert money_of(told, PriceCard(), NOON) == Money(77, PriceSource.TOLD)
    assert money_of(Usage(10, 10), PriceCard(), NOON) is None


def test_what_is_not_billed_costs_nothing() -> None:
    """Cohere's own prompt."""
    assert money_of(Usage(71, 10, unbilled_input_tokens=66), GPT, NOON) == money_of(Usage(5, 10), GPT, NOON)


def test_a_table_of_ones_own_names_models_and_families() -> None:
    """A provider's model before any provider's, a name before a pattern, a longer pattern before a shorter one."""
    prices = {name: {"input": n} for n, name in enumerate(("m-*", "m-mini*", "m-mini-2", "p:m-mini-2", "*"), 1)}
    table = PriceTable(own_cards(prices))

    def found(provider: str | None, model: str) -> int:
        card = table.card(provider, model)
        assert card is not None
        return card.standard[0].rates["input"].picousd // 10**6

    asked = [(None, "m-mini-2"), ("p", "m-mini-2"), ("q", "m-mini-2"), ("p", "m-mini-3"), ("p", "m-1"), ("p", "x")]
    assert [found(*one) for one in asked] == [3, 4, 3, 2, 1, 5]
    assert PriceTable({}).card(None, "m") is None


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"m": 3}, "use a table of prices"),
        ({"m": {}}, "use a table of prices"),
        ({"m": {"inptu": 3}}, "unknown unit 'inptu'"),
        ({"m": {"input": "3"}}, "dollars for a million tokens"),
        ({"m": {"input": -1}}, "from 0 to"),
        ({"m": {"input": float("nan")}}, "from 0 to"),
        ({"m": {"input": True}}, "dollars for a million"),
        ({"m": {"request": 2_000_000}}, "for one"),
        ({"m*x": {"input": 1}}, "at its end alone"),
    ],
)
def test_a_wrong_table_is_refused_by_name(table: dict[str, object], said: str) -> None:
    """The message names the model, the value and the fix."""
    with pytest.raises(ValueError, match=said):
        own_cards(table)


tokens = st.none() | st.integers(0, 10**7)


@pytest.mark.long
@given(tokens, tokens, tokens, tokens, tokens, tokens)
def test_no_token_is_paid_twice(
    inputs: int | None,
    outputs: int | None,
    cached: int | None,
    written: int | None,
    heard: int | None,
    drawn: int | None,
) -> None:
    """Where every unit has one price, kinds that overlap or exceed the total make no difference."""
    card = own_cards({"m": dict.fromkeys(("input", "output", "cached_input", "cache_write", "audio_input"), 1)})["m"]
    usage = Usage(
        inputs,
        outputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        audio_input_tokens=heard,
        image_output_tokens=drawn,
    )
    assert money_of(usage, card, NOON) == Money(((inputs or 0) + (outputs or 0)) * 1000, PriceSource.OWN)
