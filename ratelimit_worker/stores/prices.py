"""Published prices of models that this deployment has looked up: a hash in Redis, and a copy in each process."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from ratelimit_worker.calls import Usage
from ratelimit_worker.contracts.price import Money, PriceCard
from ratelimit_worker.policy.price import PriceTable, money_of, name_of, told_by
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.usage import Copy, Memory


class PriceMemory(Memory[PriceCard]):
    """The hash `rlw:prices`: cards of the published list, by `price.name_of`."""

    def __init__(self, client: Redis) -> None:
        super().__init__(client, keys.PRICES, PriceCard)


class ListedPrices(Copy[PriceCard]):
    """This process's copy of the published list."""


class Prices:
    """What a request cost, by the prices that this process knows; never blocks.

    Args:
        own: The table of MAISD_PRICES.
        listed: Cards by `price.name_of`.
    """

    def __init__(self, own: PriceTable, listed: Callable[[str], PriceCard | None]) -> None:
        self._own, self._listed = own, listed

    def __call__(self, usage: Usage, provider: str | None, model: str | None, at_s: float) -> Money | None:
        """What it cost; None: no price is known here yet."""
        if model is None:
            return told_by(usage)
        card = self._own.card(provider, model) or self._listed(name_of(provider, model))
        return told_by(usage) if card is None else money_of(usage, card, at_s)
