"""What a model charges: its price card, from the published prices or from the user's own table.

All money is whole numbers, so sums are exact. Prices are picodollars (10⁻¹² $) a token: a dollar per million tokens is
1,000,000. Costs are nanodollars (10⁻⁹ $).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ratelimit_worker.calls import PriceSource

#: What can have a price of its own. A kind of token without one is charged as a related kind (policy/price.py).
UNITS = (
    *("input", "output", "cached_input", "cache_write", "long_cache_write", "reasoning"),
    *("audio_input", "audio_output", "image_input", "image_output"),
    "request",
)


class Rate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The price of one unit."""

    picousd: int
    #: (input tokens, price): a request with more input tokens than that pays this price for all units; in rising order.
    above: tuple[tuple[int, int], ...] = ()


class Tariff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prices, and when they hold."""

    rates: Mapping[str, Rate]  #: by unit
    since_s: float | None = None  #: valid from, seconds since the epoch
    daily: tuple[int, int] | None = None  #: valid each day from a second to before another, UTC; may pass midnight
    tier: str | None = None  #: valid for requests that were billed at this service tier


class PriceCard(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a model charges.

    Of the standard tariffs, the last that is valid at the time is taken; the first where none is. The tariff of a
    service tier then replaces single prices of that.
    """

    standard: tuple[Tariff, ...] = ()  #: none: no price is known
    tiers: tuple[Tariff, ...] = ()
    source: PriceSource = PriceSource.LIST
    release: str = ""  #: of the published list
    at: float = 0.0  #: when it was looked up, seconds since the epoch


class Money(msgspec.Struct, frozen=True, gc=False):
    """What one request cost."""

    nanousd: int
    source: PriceSource
    cached_saving_nanousd: int = 0  #: how much more it would have cost without cached input
