"""Prices of the published list (`genai-prices`), read by a separate process that ends afterwards.

The list takes 125 MB of memory and most of a second to load, and a deployment needs a few hundred bytes of it; so
no worker loads it. `python -m ratelimit_worker.providers.price_list` reads pairs [provider or null, model] as JSON and
writes what the list has for each.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from ratelimit_worker.contracts.price import PriceCard, Rate, Tariff
from ratelimit_worker.ports import PriceListAway

PACKAGE = "genai-prices"
LOOK_UP_S = 60.0  #: longest time for the process
_PICO = 10**6  #: of a dollar for a million tokens, picodollars a token
_PICO_PER_REQUEST = 10**9  #: of a dollar for a thousand requests

#: Names of the list, and ours. Prices of searches, pages and hours are left out: no usage read here counts them.
_UNITS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "long_cache_write",
    "output_reasoning_mtok": "reasoning",
    "input_audio_mtok": "audio_input",
    "output_audio_mtok": "audio_output",
    "input_image_mtok": "image_input",
    "output_image_mtok": "image_output",
    "requests_kcount": "request",
}
#: Names of providers in the list that differ from those used here.
_PROVIDERS = {"xai": "x-ai", "bedrock": "aws"}

_Pair = tuple[str | None, str]
_pairs = msgspec.json.Decoder(list[tuple[str | None, str]]).decode
_cards = msgspec.json.Decoder(list[PriceCard]).decode


def release() -> str:
    """The release of the list that is installed; "": none is."""
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return ""


def look_up(models: Sequence[_Pair]) -> list[PriceCard]:
    """The cards of (provider, model), in their order; without a tariff if the list has none.

    Raises:
        PriceListAway: it could not be read.
    """
    if not models:
        return []
    command = [sys.executable, "-P", "-m", __name__]  # -P: import no modules from the working directory
    try:
        asked = msgspec.json.encode(models)
        done = subprocess.run(command, input=asked, capture_output=True, timeout=LOOK_UP_S, check=True)
        return _cards(done.stdout)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as error:
        raise PriceListAway(type(error).__name__) from error


def read_list(models: Iterable[_Pair], at_s: float) -> list[PriceCard]:
    """As `look_up`, but in this process, which loads the list.

    Args:
        at_s: The time that each card gets, seconds since the epoch.
    """
    from genai_prices.data_snapshot import get_snapshot

    snapshot, told = get_snapshot(), release()
    cards = []
    for provider, model in models:
        try:
            _, found = snapshot.find_provider_model(model, None, _PROVIDERS.get(provider or "", provider), None)
        except LookupError:
            cards.append(PriceCard(release=told, at=at_s))
            continue
        prices = found.prices if isinstance(found.prices, list) else [_Always(found.prices)]
        variants = [one for one in found.price_variants or () if set(one.when) == {"service_tier"}]
        cards.append(
            PriceCard(
                standard=tuple(tariff for one in prices if (tariff := _tariff(one)).rates),
                tiers=tuple(_tariff(one, one.when["service_tier"]) for one in variants),
                release=told,
                at=at_s,
            )
        )
    return cards


class _Always:
    """Prices that hold at any time, in the same shape as those that depend on the time."""

    constraint = None

    def __init__(self, prices: Any) -> None:
        self.prices = prices


def _tariff(priced: Any, tier: str | None = None) -> Tariff:
    rule = priced.constraint
    since, start, end = (getattr(rule, name, None) for name in ("start_date", "start_time", "end_time"))
    return Tariff(
        rates={
            unit: _rate(price, _PICO_PER_REQUEST if unit == "request" else _PICO)
            for name, unit in _UNITS.items()
            if (price := getattr(priced.prices, name, None)) is not None
        },
        since_s=datetime(since.year, since.month, since.day, tzinfo=UTC).timestamp() if since else None,
        daily=(_second(start), _second(end)) if start is not None and end is not None else None,
        tier=tier,
    )


def _rate(price: Any, pico: int) -> Rate:
    base, tiers = getattr(price, "base", price), getattr(price, "tiers", ())
    return Rate(round(base * pico), tuple((one.start, round(one.price * pico)) for one in tiers))


def _second(of: time) -> int:
    """The second of the day in UTC."""
    offset = of.utcoffset()
    second = of.hour * 3600 + of.minute * 60 + of.second - (int(offset.total_seconds()) if offset else 0)
    return second % 86_400


if __name__ == "__main__":
    found = read_list(_pairs(sys.stdin.buffer.read()), datetime.now(UTC).timestamp())
    sys.stdout.buffer.write(msgspec.json.encode(found))
