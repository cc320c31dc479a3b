"""The published price list: what is taken out of it computes what the list itself does."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest
from genai_prices import Usage as ListUsage
from genai_prices.data_snapshot import get_snapshot

from ratelimit_worker.calls import PriceSource, Usage
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.policy.price import money_of
from ratelimit_worker.ports import PriceListAway
from ratelimit_worker.providers.price_list import look_up, read_list, release

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
PROVIDERS = ("openai", "anthropic", "google", "mistral", "groq", "deepseek", "cohere", "x-ai")
USES: tuple[dict[str, int], ...] = (
    {"input_tokens": 1234, "output_tokens": 567},
    {"input_tokens": 1234, "output_tokens": 567, "cache_read_tokens": 1000, "cache_write_tokens": 100},
    {"input_tokens": 300_000, "output_tokens": 10, "cache_read_tokens": 7},
)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_model_of_the_list_costs_what_the_list_says(provider: str) -> None:
    """All models of eight providers, three usages each, within half a nanodollar; per tier where there are tiers."""
    of_list: Any = next(one for one in get_snapshot().providers if one.id == provider)
    cards = read_list([(provider, model.id) for model in of_list.models], AT.timestamp())
    compared = 0
    for model, card in zip(of_list.models, cards, strict=True):
        for used in USES:
            for tier in (None, "flex", "priority"):
                context = {"service_tier": tier} if tier else None
                try:
                    says = get_snapshot().calc(ListUsage(**used), model.id, provider, None, AT, context).total_price
                except (ValueError, LookupError):
                    continue  # the list refuses to price this use, or does not know its own name for it
                usage = Usage(
                    used["input_tokens"],
                    used["output_tokens"],
                    cached_input_tokens=used.get("cache_read_tokens"),
                    cache_write_tokens=used.get("cache_write_tokens"),
                    service_tier=tier,
                )
                money = money_of(usage, card, AT.timestamp())
                if money is None:
                    assert says == 0, model.id  # priced by the page, by the hour
                    continue
                assert abs(says * 10**9 - money.nanousd) <= 1, (model.id, used, tier)
                compared += 1
    assert compared > 20


def test_the_list_is_read_in_a_process_that_ends() -> None:
    """A known model, one that nobody has heard of, and one of another provider's: in their order."""
    asked = [("openai", "gpt-4o-2024-08-06"), ("openai", "no-such"), (None, "claude-sonnet-4-5")]
    known, unknown, elsewhere = look_up(asked)
    money = money_of(Usage(1000, 100, cached_input_tokens=200), known, AT.timestamp())
    assert money is not None
    assert (money.nanousd, money.source) == (3_250_000, PriceSource.LIST)
    assert known.release == release() != ""
    assert not unknown.standard
    assert elsewhere.standard


def test_a_list_that_cannot_be_read_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in that process."""

    def fails(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("python", 1.0)

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(PriceListAway):
        look_up([("openai", "gpt-4o")])
    assert look_up([]) == list[PriceCard]()
