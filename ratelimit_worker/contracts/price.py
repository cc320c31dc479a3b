"""What does a model charge? Its price card: the published prices, or those of a table of one's own.

All money is whole numbers. A price is picodollars (10⁻¹² $) a token: a dollar for a million tokens is a million. And
a cost is nanodollars (10⁻⁹ $). Neither is ever a binary fraction, so a sum over any number of calls is exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ratelimit_worker.calls import PriceSource

#: What can have a price of its own: tokens, and requests. What has none costs what its like do (policy/price.py).
UNITS = (
    *("input", "output", "cached_input", "cache_write", "long_cache_write", "reasoning"),
    *("audio_input", "audio_output", "image_input", "image_output"),
    "request",
)


class Rate(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The price of one unit."""

    picousd: int
    #: (input tokens, price): a request with more of them than that pays this price for all; ascending.
    above: tuple[tuple[int, int], ...] = ()


class Tariff(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Prices, and when they hold."""

    rates: Mapping[str, Rate]  #: by unit
    since_s: float | None = None  #: from then on, seconds since the epoch
    daily: tuple[int, int] | None = None  #: of each day in UTC: from this second on, before that one; may pass midnight
    tier: str | None = None  #: for requests that were billed at this service tier


class PriceCard(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a model charges.

    Of the standard tariffs the last that holds is taken, and the first where none does. Tariffs of a tier replace its
    prices one by one.
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
    cached_saving_nanousd: int = 0  #: what it would have cost more, had no input been cached
