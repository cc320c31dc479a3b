"""The simulated provider bills: with a discount for cached input, and for failures where its scenario says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ratelimit_worker.policy.price import money_of, own_cards
from ratelimit_worker.policy.usage import usage_of
from ratelimit_worker.simulate.http1 import Request
from ratelimit_worker.simulate.provider import Provider, Verdict
from ratelimit_worker.simulate.scenario import Entry, Fault, Scenario

PRICES: dict[str, Any] = {"input_usd": 2.5, "cached_input_usd": 1.25, "output_usd": 10.0, "cached_share": 0.4}
CARD = own_cards({"m": {"input": 2.5, "cached_input": 1.25, "output": 10}})["m"]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 200}


def asked(path: str, *faults: Fault, **scenario: Any) -> Verdict:
    """One request to a provider with these prices."""
    timeline = tuple(Entry(fault=fault) for fault in faults)
    provider = Provider(Scenario(**PRICES, **scenario, timeline=timeline), 0.0, "run")
    provider.begin(0.0)
    body = {**ASKED, "input": "word " * 100}
    return provider.decide(
        Request(method="POST", path=path, headers={}, body=msgspec.json.encode(body), keep_alive=True), 0.0, 1e9
    )


def body_of(verdict: Verdict) -> Any:
    return msgspec.json.decode(verdict.answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_what_is_read_of_an_answer_comes_to_its_bill(path: str) -> None:
    """In each API's form: usage as it is read, times our own prices, is the provider's sum to the last billionth."""
    verdict = asked(path)
    usage = usage_of(body_of(verdict))
    assert usage is not None
    assert usage.cached_input_tokens == verdict.arrival.cached_input_tokens > 0
    money = money_of(usage, CARD, 0.0)
    assert money is not None
    assert money.nanousd == verdict.arrival.billed_nanousd > 0


def test_a_failure_is_billed_where_the_scenario_says_so() -> None:
    """A 500 says in its body what it used; a reset is billed in silence; what the edge refuses is free."""
    free = asked("/v1/chat/completions", Fault.SERVER_ERROR)
    assert (free.arrival.billed_nanousd, usage_of(body_of(free))) == (0, None)
    charged = asked("/v1/chat/completions", Fault.SERVER_ERROR, charges_failures=True)
    usage = usage_of(body_of(charged))
    assert usage is not None
    money = money_of(usage, CARD, 0.0)
    assert money is not None
    assert money.nanousd == charged.arrival.billed_nanousd == asked("/v1/chat/completions").arrival.billed_nanousd
    for fault in (Fault.RESET, Fault.HANG):
        assert asked("/v1/chat/completions", fault, charges_failures=True).arrival.billed_nanousd == money.nanousd
    assert asked("/v1/chat/completions", Fault.AUTH, charges_failures=True).arrival.billed_nanousd == 0


def test_without_prices_nothing_is_billed() -> None:
    """Nor is anything told as cached."""
    provider = Provider(Scenario(), 0.0, "run")
    request = Request(
        method="POST", path="/v1/chat/completions", headers={}, body=msgspec.json.encode(ASKED), keep_alive=True
    )
    verdict = provider.decide(request, 0.0, 1e9)
    assert verdict.arrival.billed_nanousd == 0
    assert "prompt_tokens_details" not in body_of(verdict)["usage"]
