"""What did a request cost? Its usage times the prices that were valid when it was made. Pure, and exact.

`docs/money.md` has the rules in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

from ratelimit_worker.calls import PriceSource, Usage
from ratelimit_worker.contracts.price import UNITS, Money, PriceCard, Rate, Tariff

PICO_OF_NANO = 1_000
#: In a user's own table, prices are dollars: for a million tokens, or for one request.
_PICO_PER_TOKEN, _PICO_PER_REQUEST = 10**6, 10**12
_MOST_PRICE_USD = 1_000_000
_REQUEST = "request"

#: For a unit without a price: the units whose price is used instead, in this order.
_LIKE: Mapping[str, tuple[str, ...]] = {
    "cached_input": ("input",),
    "cache_write": ("input",),
    "long_cache_write": ("cache_write", "input"),
    "reasoning": ("output",),
    "audio_input": ("input",),
    "audio_output": ("output",),
    "image_input": ("input",),
    "image_output": ("output",),
}


def money_of(usage: Usage, card: PriceCard, at_s: float) -> Money | None:
    """What a request cost; None: the card has no price.

    If the provider says what it billed, that counts, unless the card is from the user's own table. Tokens of two kinds
    (cached, and of a picture) count as cached.

    Args:
        at_s: When it was made, seconds since the epoch.
    """
    if usage.cost_nanousd is not None and card.source is not PriceSource.OWN:
        return Money(usage.cost_nanousd, PriceSource.TOLD)
    rates = _rates(card, usage.service_tier, at_s)
    if not rates:
        return None
    counts, inputs = _counts(usage), usage.input_tokens or 0
    pico = saved = 0
    for unit, tokens in counts:
        price = _price(rates, unit, inputs)
        pico += tokens * price
        if unit == "cached_input":
            saved = tokens * (_price(rates, "input", inputs) - price)
    return Money(_nano(pico), card.source, max(0, _nano(saved)))


def name_of(provider: str | None, model: str) -> str:
    """The name under which a model's card is kept."""
    return f"{provider or ''}\n{model}"


def told_by(usage: Usage) -> Money | None:
    """The amount that the provider says it has billed; None: it does not say."""
    return None if usage.cost_nanousd is None else Money(usage.cost_nanousd, PriceSource.TOLD)


class PriceTable:
    """A user's own table: prices by model or "provider:model"; `*` at the end of a name stands for any rest."""

    def __init__(self, cards: Mapping[str, PriceCard]) -> None:
        self._exact = {name: card for name, card in cards.items() if "*" not in name}
        self._patterns = sorted(((n, c) for n, c in cards.items() if "*" in n), key=lambda one: (-len(one[0]), one[0]))

    def card(self, provider: str | None, model: str) -> PriceCard | None:
        """The prices of a model; None: the table has none."""
        names = (model,) if provider is None else (f"{provider}:{model}", model)
        for name in names:
            if (card := self._exact.get(name)) is not None:
                return card
        for pattern, card in self._patterns:
            if any(fnmatchcase(name, pattern) for name in names):
                return card
        return None

    def __bool__(self) -> bool:
        return bool(self._exact or self._patterns)


def own_cards(tables: Mapping[str, Any]) -> dict[str, PriceCard]:
    """Parse a user's table: model → unit → dollars for a million tokens.

    Raises:
        ValueError: names the model, the value and the fix.
    """
    return {str(model): _own_card(str(model), prices) for model, prices in tables.items()}


def _own_card(model: str, prices: Any) -> PriceCard:
    if "*" in model[:-1] or "[" in model or "?" in model:
        raise ValueError(f"model {model[:60]!r}: a * may stand at its end alone")
    if not isinstance(prices, Mapping) or not prices:
        raise ValueError(f"model {model[:60]!r}: use a table of prices, such as {{input = 2.5, output = 10}}")
    rates: dict[str, Rate] = {}
    for unit, price in prices.items():
        if unit not in UNITS:
            raise ValueError(f"model {model[:60]!r}: unknown unit {str(unit)[:60]!r}; known: {', '.join(UNITS)}")
        if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price <= _MOST_PRICE_USD:
            raise ValueError(
                f"model {model[:60]!r}: {unit}={str(price)[:60]}: use dollars for a million tokens"
                f"{' (of a request: for one)' if unit == _REQUEST else ''}, from 0 to {_MOST_PRICE_USD:,}"
            )
        pico = Decimal(str(price)) * (_PICO_PER_REQUEST if unit == _REQUEST else _PICO_PER_TOKEN)
        rates[str(unit)] = Rate(round(pico))
    return PriceCard(standard=(Tariff(rates=rates),), source=PriceSource.OWN)


def own_table(card: PriceCard) -> dict[str, float]:
    """The table from which `own_cards` made a card: unit → dollars for a million tokens (of a request: for one)."""
    rates = card.standard[0].rates if card.standard else {}
    return {
        unit: rate.picousd / (_PICO_PER_REQUEST if unit == _REQUEST else _PICO_PER_TOKEN)
        for unit, rate in rates.items()
    }


def _rates(card: PriceCard, tier: str | None, at_s: float) -> Mapping[str, Rate]:
    if not card.standard:
        return {}
    standard = next((one for one in reversed(card.standard) if _holds(one, at_s)), card.standard[0]).rates
    if tier is None or not card.tiers:
        return standard
    rates = dict(standard)
    for one in reversed(card.tiers):  # the first with a price for a unit counts
        if one.tier == tier and _holds(one, at_s):
            rates.update(one.rates)
    return rates


def _holds(tariff: Tariff, at_s: float) -> bool:
    if tariff.since_s is not None and at_s < tariff.since_s:
        return False
    if tariff.daily is None:
        return True
    start, end = tariff.daily
    moment = datetime.fromtimestamp(at_s, UTC)
    second = moment.hour * 3600 + moment.minute * 60 + moment.second
    return start <= second < end if start <= end else second >= start or second < end


def _price(rates: Mapping[str, Rate], unit: str, input_tokens: int) -> int:
    rate = rates.get(unit)
    if rate is None:
        rate = next((found for name in _LIKE.get(unit, ()) if (found := rates.get(name)) is not None), None)
        if rate is None:
            return 0
    price = rate.picousd
    for start, higher in rate.above:
        if input_tokens > start:
            price = higher
    return price


def _counts(usage: Usage) -> list[tuple[str, int]]:
    """Tokens by unit; each token counts in one of them."""
    written = usage.cache_write_tokens or 0
    long = min(written, usage.long_cache_write_tokens or 0)
    return [
        *_shared_out(
            max(0, (usage.input_tokens or 0) - (usage.unbilled_input_tokens or 0)),
            "input",
            ("long_cache_write", long),
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", written - long),
            ("audio_input", usage.audio_input_tokens),
            ("image_input", usage.image_input_tokens),
        ),
        *_shared_out(
            usage.output_tokens or 0,
            "output",
            ("audio_output", usage.audio_output_tokens),
            ("image_output", usage.image_output_tokens),
            ("reasoning", usage.reasoning_tokens),
        ),
        (_REQUEST, 1),
    ]


def _shared_out(total: int, rest: str, *kinds: tuple[str, int | None]) -> list[tuple[str, int]]:
    """The tokens by kind, each counted in the first kind that it belongs to, and the rest."""
    shares = []
    for unit, tokens in kinds:
        if tokens and total:
            taken = min(total, tokens)
            shares.append((unit, taken))
            total -= taken
    return [*shares, (rest, total)]


def _nano(pico: int) -> int:
    return (pico + PICO_OF_NANO // 2) // PICO_OF_NANO
