"""What an attempt cost, as its row says it: priced at once, left to the recorder, or estimated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from ratelimit_worker.calls import Category, Failure, Outcome, PriceSource, Response, Sighting, Usage
from ratelimit_worker.contracts.plan import Estimated
from ratelimit_worker.contracts.price import Money
from ratelimit_worker.flow.call.judge import Rules
from ratelimit_worker.policy.classification import was_sent
from tests.unit.flow.test_conclude import BEGUN, DOWN, FACTS, OK, PLAN, RULES, came, of

USED = Usage(100, 10, cached_input_tokens=40, service_tier="flex")
MODEL = replace(FACTS, plan=msgspec.structs.replace(PLAN, estimated=Estimated("gpt")))


class Broken(Exception):
    """A connection that broke, as our rules see it."""

    def __init__(self, category: Category = Category.CONNECTION) -> None:
        super().__init__(category)
        self.failure = Failure(category=category, cause="broken")


def pricing(price: int | None = 70, usual: int | None = 50) -> Rules:
    """Rules of a process that knows these prices."""
    asked = lambda usage, *_: None if price is None else Money(price, PriceSource.LIST, 7)  # noqa: E731
    return replace(
        RULES,
        price=asked,
        usual_nanousd=lambda task, model: usual,
        classify=lambda error: getattr(error, "failure", None),
    )


def row(
    error: BaseException | None = None, seen: Sighting | None = None, rules: Rules | None = None, **begun: Any
) -> Any:
    """The row of an attempt."""
    return of(came("text", error, seen), replace(BEGUN, **begun), facts=MODEL, rules=rules or pricing()).row


def test_an_answer_is_priced_at_once_where_its_process_knows_the_price() -> None:
    """With all that the provider counted."""
    told = row(seen=Sighting(response=OK, usage=USED, finish_reason="stop"))
    assert (told.cost_nanousd, told.cached_saving_nanousd, told.price_source) == (70, 7, PriceSource.LIST)
    assert (told.cached_input_tokens, told.service_tier, told.finish_reason) == (40, "flex", "stop")
    assert told.unpriced is None


def test_else_it_is_left_to_the_recorder() -> None:
    """With its whole usage, since the row has not all of it."""
    told = row(seen=Sighting(response=OK, usage=USED), rules=pricing(price=None))
    assert (told.cost_nanousd, told.unpriced) == (None, USED)


def test_attempts_that_were_lost_stand_in_the_row_of_the_end() -> None:
    """Once: not in that of an attempt that is tried again."""
    ended = row(seen=Sighting(response=OK, usage=USED), lost=2)
    assert (ended.lost_attempts, ended.lost_nanousd) == (2, 140)
    again = row(Broken(), lost=2)
    assert again.outcome is not Outcome.ANSWERED
    assert (again.lost_attempts, again.lost_nanousd) == (0, None)


@pytest.mark.parametrize(
    ("seen", "category", "cost"),
    [
        (Sighting(), Category.CONNECTION, 50),
        (Sighting(), Category.TIMEOUT, 50),
        (Sighting(response=OK), Category.MALFORMED_RESPONSE, 50),
        (Sighting(response=DOWN), Category.SERVER_ERROR, None),
        (Sighting(response=DOWN, usage=USED), Category.SERVER_ERROR, 70),
        (Sighting(response=Response(status=504, headers={}, body={})), Category.TIMEOUT, None),
        (Sighting(), Category.AUTH, None),
    ],
)
def test_what_an_attempt_without_an_answer_cost(seen: Sighting, category: Category, cost: int | None) -> None:
    """What its answer would have, where that was lost on the way; what an error says that it used; else nothing."""
    told = row(Broken(category), seen)
    assert told.cost_nanousd == cost
    assert (told.price_source is PriceSource.ESTIMATED) == (cost == 50)


def test_a_lost_answer_of_which_nothing_is_known_is_left_to_the_recorder() -> None:
    """Which has seen more answers than this process."""
    told = row(Broken(), rules=pricing(usual=None))
    assert (told.cost_nanousd, told.answer_lost) == (None, True)
    assert not row(Broken()).answer_lost


class ConnectError(Exception):
    """Of an HTTP client: no connection came about."""


def test_a_request_that_never_left_costs_nothing() -> None:
    """By the error's name, or that of what it was raised from."""
    failure = Failure(category=Category.CONNECTION, cause="")
    wrapped = RuntimeError("x")
    wrapped.__cause__ = ConnectError()
    assert not was_sent(ConnectError(), failure)
    assert not was_sent(wrapped, failure)
    assert not was_sent(ConnectionRefusedError(), failure)
    assert was_sent(ConnectionResetError(), failure)
    assert not was_sent(ConnectionResetError(), Failure(category=Category.AUTH, cause=""))
