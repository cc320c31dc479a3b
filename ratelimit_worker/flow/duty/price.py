"""Prices for attempts whose process knew none yet: the recorder asks the published list, once for each model."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ratelimit_worker.calls import Attempt
from ratelimit_worker.contracts.price import PriceCard
from ratelimit_worker.policy.price import PriceTable, money_of, name_of, told_by
from ratelimit_worker.ports import PriceListAway, PriceMemory

log = logging.getLogger(__name__)

Pair = tuple[str | None, str]  #: provider and model

MOST_KEPT = 2_000  #: price cards in one process
AGAIN_S = 600.0  #: until the list is asked again, when it could not be read or did not know the model
_UNKNOWN_LASTS_S = 86_400.0


class Pricer:
    """Prices attempts before they are recorded.

    Args:
        own: The table of MAISD_PRICES.
        memory: Where cards are kept for all processes.
        look_up: Asks the published list; raises `PriceListAway`.
        release: Release of the installed list; "": none is installed.
        clock: Seconds since the epoch.
    """

    def __init__(
        self,
        own: PriceTable,
        memory: PriceMemory,
        look_up: Callable[[Sequence[Pair]], Sequence[PriceCard]],
        release: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._own, self._memory, self._look_up = own, memory, look_up
        self._release, self._clock = release, clock
        self._cards: dict[str, PriceCard] = {}
        self._again_s = 0.0
        self._said: set[str] = set()

    def priced(self, attempts: Sequence[Attempt]) -> list[Attempt]:
        """The attempts, with their cost if a price is known.

        Raises:
            StoreUnavailable: Redis is away.
        """
        asked = {pair for one in attempts if one.unpriced is not None and (pair := _pair(one)) is not None}
        cards = self._known(asked)
        return [self._with_price(one, cards) for one in attempts]

    def _with_price(self, attempt: Attempt, cards: dict[Pair, PriceCard]) -> Attempt:
        usage, pair = attempt.unpriced, _pair(attempt)
        if usage is None:
            return attempt
        card = cards.get(pair) if pair is not None else None
        money = told_by(usage) if card is None else money_of(usage, card, attempt.started_at)
        if money is None:
            self._say_unknown(attempt)
            return attempt
        return replace(
            attempt,
            cost_nanousd=money.nanousd,
            cached_saving_nanousd=money.cached_saving_nanousd,
            price_source=money.source,
            lost_nanousd=money.nanousd * attempt.lost_attempts if attempt.lost_attempts else None,
        )

    def _known(self, asked: set[Pair]) -> dict[Pair, PriceCard]:
        found = {pair: card for pair in asked if (card := self._own.card(*pair)) is not None}
        names = {pair: name_of(*pair) for pair in asked if pair not in found}
        fresh = {name for name in names.values() if not self._is_good(self._cards.get(name))}
        if fresh:
            if len(self._cards) > MOST_KEPT:
                self._cards.clear()
            self._cards.update(self._memory.read(sorted(fresh)))
            wanted = sorted((p for p, name in names.items() if not self._is_good(self._cards.get(name))), key=str)
            self._ask(wanted)
        found.update({pair: card for pair, name in names.items() if (card := self._cards.get(name)) is not None})
        return found

    def _is_good(self, card: PriceCard | None) -> bool:
        """Whether a card need not be looked up."""
        if card is None or (self._release and card.release != self._release):
            return False
        return bool(card.standard) or self._clock() - card.at < _UNKNOWN_LASTS_S

    def _ask(self, wanted: Sequence[Pair]) -> None:
        if not wanted or not self._release or self._clock() < self._again_s:
            return
        try:
            cards = self._look_up(wanted)
        except PriceListAway as error:
            self._again_s = self._clock() + AGAIN_S
            log.warning("prices.unread cause=%s", error)
            return
        looked_up = {name_of(*pair): card for pair, card in zip(wanted, cards, strict=True)}
        self._cards.update(looked_up)
        self._memory.write(looked_up)

    def _say_unknown(self, attempt: Attempt) -> None:
        """Log this once for each model and process; reports name the number of such models."""
        name = name_of(attempt.provider, attempt.model or "")
        if name in self._said or len(self._said) >= MOST_KEPT:
            return
        self._said.add(name)
        log.warning(
            "price.unknown model=%s provider=%s: its tokens are counted, and no money, nor does a budget bound it; "
            "give a price by MAISD_PRICES",
            attempt.model,
            attempt.provider,
        )


def _pair(attempt: Attempt) -> Pair | None:
    model = attempt.model or attempt.asked_model
    return (attempt.provider, model) if model else None
