"""Attempts get their price: at once where their process knows it, else when they are recorded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Attempt, Outcome, PriceSource, Usage
from ratelimit_worker.contracts.price import PriceCard, Rate, Tariff
from ratelimit_worker.flow.duty.price import AGAIN_S, Pair, Pricer
from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.policy.estimate import key
from ratelimit_worker.policy.price import PriceTable, name_of, own_cards
from ratelimit_worker.ports import PriceListAway
from ratelimit_worker.reports.explain import Explanation, Where, explanation_text
from ratelimit_worker.reports.stats import Sources, stats
from ratelimit_worker.reports.tables import stats_tables
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.prices import ListedPrices, PriceMemory, Prices
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.stores.usage import UsageMemory
from tests.builders import attempt

USED = Usage(1000, 100, cached_input_tokens=400)
LISTED = PriceCard(
    standard=(Tariff(rates={"input": Rate(2_500_000), "output": Rate(10_000_000), "cached_input": Rate(1_250_000)}),),
    release="1",
)


class List:
    """A published list, and what it was asked."""

    def __init__(self, **cards: PriceCard) -> None:
        self.cards, self.asked, self.away = cards, list[Pair](), False

    def look_up(self, models: Sequence[Pair]) -> list[PriceCard]:
        self.asked += models
        if self.away:
            raise PriceListAway("TimeoutExpired")
        return [self.cards.get(model, PriceCard(release="1", at=1e9)) for _, model in models]


def unpriced(call_id: str, model: str = "gpt", **changes: Any) -> Attempt:
    return attempt(call_id, provider="p", model=model, unpriced=USED, **changes)


@pytest.fixture
def memory(redis_client: redis.Redis) -> PriceMemory:
    return PriceMemory(redis_client)


def pricer(memory: PriceMemory, listed: List, own: dict[str, object] | None = None, at: float = 1e9) -> Pricer:
    return Pricer(PriceTable(own_cards(own or {})), memory, listed.look_up, "1", clock=lambda: at)


def test_the_recorder_asks_the_list_once_for_each_model(
    memory: PriceMemory, redis_client: redis.Redis, database_url: str
) -> None:
    """From outbox to database: priced as the list says, with what caching saved; a second recorder asks Redis only."""
    listed, outbox, tracker = List(gpt=LISTED), Outbox(redis_client), Tracker(engine_for(database_url))
    for number in range(3):
        outbox.append([unpriced(f"c-{number}")])
    usage = UsageMemory(redis_client)
    assert record_once(outbox, tracker, usage=usage, pricer=pricer(memory, listed)) == 3
    row = tracker.attempts_of("c-1")[0]
    assert (row.cost_nanousd, row.cached_saving_nanousd, row.price_source) == (3_000_000, 500_000, PriceSource.LIST)
    assert listed.asked == [("p", "gpt")]
    outbox.append([unpriced("c-4")])
    record_once(outbox, tracker, pricer=pricer(memory, List()))
    assert tracker.attempts_of("c-4")[0].cost_nanousd == 3_000_000


def test_an_unknown_model_costs_tokens_only_and_is_said_once(
    memory: PriceMemory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row has no cost, and neither the log nor the list hears of it again."""
    listed = List()
    prices = pricer(memory, listed)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            done = prices.priced([unpriced("a", "home"), unpriced("b", "home")])
    assert [one.cost_nanousd for one in done] == [None, None]
    assert listed.asked == [("p", "home")]
    assert [r.getMessage().split()[1] for r in caplog.records if "price.unknown" in r.getMessage()] == ["model=home"]


def test_a_table_of_ones_own_counts_over_the_list(memory: PriceMemory) -> None:
    """And the list is not asked at all; what a provider told counts where neither has a price."""
    listed = List(gpt=LISTED)
    done = pricer(memory, listed, {"gpt": {"input": 1, "output": 1}}).priced([unpriced("a")])
    assert (done[0].cost_nanousd, done[0].price_source) == (1_100_000, PriceSource.OWN)
    assert listed.asked == []


def test_a_list_that_is_away_holds_up_nobody(memory: PriceMemory) -> None:
    """Rows are recorded without a price, and it is asked again after ten minutes."""
    listed, now = List(gpt=LISTED), [1e9]
    prices = Pricer(PriceTable({}), memory, listed.look_up, "1", clock=lambda: now[0])
    listed.away = True
    assert prices.priced([unpriced("a")])[0].cost_nanousd is None
    listed.away = False
    assert prices.priced([unpriced("b")])[0].cost_nanousd is None
    now[0] += AGAIN_S
    assert prices.priced([unpriced("c")])[0].cost_nanousd == 3_000_000


def test_lost_attempts_are_taken_to_have_cost_what_the_answer_did(memory: PriceMemory) -> None:
    """Two workers died with the call before it was answered."""
    done = pricer(memory, List(gpt=LISTED)).priced([unpriced("a", lost_attempts=2)])
    assert (done[0].cost_nanousd, done[0].lost_nanousd) == (3_000_000, 6_000_000)


def test_processes_price_by_what_was_looked_up(memory: PriceMemory) -> None:
    """Not known at the first question, which waits for nothing; known from the second on; one's own table at once."""
    memory.write({name_of("p", "gpt"): LISTED})
    listed = ListedPrices(lambda: memory, spawn=lambda look: look())
    prices = Prices(PriceTable(own_cards({"home": {"input": 1}})), listed)
    prices(USED, "p", "gpt", 0.0)
    known, own = prices(USED, "p", "gpt", 0.0), prices(USED, "p", "home", 0.0)
    assert known is not None
    assert own is not None
    assert (known.nanousd, own.nanousd) == (3_000_000, 1_000_000)
    assert prices(USED, "p", None, 0.0) is None


def test_what_an_answer_usually_costs_is_learned(
    memory: PriceMemory, redis_client: redis.Redis, database_url: str
) -> None:
    """By task and model: what a lost answer is taken to have cost."""
    outbox, tracker, usage = Outbox(redis_client), Tracker(engine_for(database_url)), UsageMemory(redis_client)
    outbox.append([unpriced(f"c-{n}", asked_model="gpt", input_tokens=1000) for n in range(6)])
    record_once(outbox, tracker, usage=usage, pricer=pricer(memory, List(gpt=LISTED)))
    name = key(attempt("x").task, "gpt")
    learned = usage.read([name])[name]
    assert (learned.nanousd, learned.nanousd_of) == (3_000_000, 6)


def test_what_was_spent_is_added_up_by_the_database(database_url: str) -> None:
    """On both databases, from the roll-ups: cost, waste, what was lost with workers, what has no price."""
    tracker, at = Tracker(engine_for(database_url)), 1_800_000_000.0
    priced: dict[str, Any] = {"model": "gpt", "tenant": "t", "input_tokens": 10, "finished_at": at}
    rows = [
        attempt("a", **priced, cost_nanousd=5 * 10**9, cached_saving_nanousd=7, price_source=PriceSource.LIST),
        attempt("b", 1, Outcome.RETRIED, **priced, cost_nanousd=3, price_source=PriceSource.ESTIMATED),
        attempt("b", 2, **priced, cost_nanousd=4, lost_attempts=1, lost_nanousd=4, price_source=PriceSource.TOLD),
        attempt("c", **{**priced, "model": "home"}),
        attempt("d", **{**priced, "finished_at": at - 7200}, cost_nanousd=10**9, price_source=PriceSource.LIST),
        attempt("e", outcome=Outcome.FAILED, finished_at=at),
    ]
    tracker.record(rows)
    queries = Queries(engine_for(database_url))
    sources = Sources.of(queries, None, lambda: tracker)
    total = stats(sources, 3600.0, at + 1).money.total
    assert (total.cost_nanousd, total.wasted_nanousd, total.estimated_nanousd) == (5 * 10**9 + 11, 7, 7)
    assert (total.cached_saving_nanousd, total.lost_attempts, total.unpriced_models) == (7, 1, ("home",))
    shown = stats_tables(stats(sources, 3600.0, at + 1))
    assert "spent     $5.00, $0.000000007 of it for attempts that gave no answer" in shown
    assert "+ 1 model without a price" in shown
    assert "no price" in shown.split("model: spent")[1]


def test_explain_says_what_an_attempt_has_used(database_url: str) -> None:
    """Its tokens by kind, its cost and who says so."""
    tracker = Tracker(engine_for(database_url))
    tracker.record(
        [
            attempt(
                "a",
                input_tokens=1000,
                cached_input_tokens=400,
                output_tokens=100,
                reasoning_tokens=40,
                cost_nanousd=3_000_000,
                price_source=PriceSource.OWN,
                lost_attempts=1,
                lost_nanousd=3_000_000,
            )
        ]
    )
    said = explanation_text(
        Explanation(call_id="a", where=Where.ANSWERED, standings=(), attempts=tuple(tracker.attempts_of("a")))
    )
    assert (
        "1,000 tokens in (400 cached), 100 out (40 of reasoning), $0.0030 (by MAISD_PRICES), "
        "1 before it lost with their worker, taken to have cost $0.0030" in said
    )
