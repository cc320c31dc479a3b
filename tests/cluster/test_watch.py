"""What lanes learn from the clients of a user's own functions, on a worker and in process."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx2 as httpx
import pytest

from ratelimit_worker import unwatch_all, watch_all
from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.inprocess.limiter import AdvancedRateLimiter
from ratelimit_worker.policy.usage import usage_of
from ratelimit_worker.providers import glimpse
from ratelimit_worker.reports.live import _learned
from ratelimit_worker.simulate import Scenario, Simulator
from ratelimit_worker.wiring import services
from tests.compat.provider import Provider, Reply
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def nothing_stays_watched() -> Iterator[None]:
    yield
    unwatch_all()


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Fleet, Simulator, Provider]]:
    with Simulator(Scenario(rpm=1200, latency="0.02")) as simulated, fleet() as made:
        scripted = Provider()
        started = ("-P", "threads", "-c", "8", "-I", "tests.watched_app")
        made.worker("watched", *started, PROVIDER=simulated.base_url)
        made.worker("careless", *started, "-Q", "careless", PROVIDER=f"{scripted.url}/v1")
        yield made, simulated, scripted
        scripted.close()


@pytest.fixture
def tasks(running: tuple[Fleet, Simulator, Provider]) -> ModuleType:
    running[0].agent()
    return importlib.reload(importlib.import_module("tests.watched_app"))


def test_a_lane_learns_from_own_functions(tasks: ModuleType, running: tuple[Fleet, Simulator, Provider]) -> None:
    """`install(app, watch=True)`: the limit that headers tell, and tokens as the provider has counted them."""
    _, simulated, _ = running
    results = [tasks.completion.delay(f"n {number}") for number in range(60)]
    assert all(result.get(timeout=120) > 0 for result in results)
    log = simulated.arrivals()
    rows = [row for result in results for row in attempts(result.id)]
    answered = [row for row in rows if row.outcome.value == "answered"]
    assert len(answered) == 60
    good = [arrival for arrival in log if arrival.status == 200]
    assert sum(row.input_tokens for row in answered) == sum(arrival.input_tokens for arrival in good)
    assert sum(row.output_tokens for row in answered) == sum(arrival.output_tokens for arrival in good)
    assert {row.model for row in answered} == {"gpt-4o"}
    assert {row.status for row in answered} == {200}
    lane = services().lanes.fields
    wait_for(lambda: _learned(lane("openai:gpt-4o").get("law", b"")).get("requests"), what="what headers say is known")


def test_a_refusal_that_a_function_keeps_to_itself(
    tasks: ModuleType, running: tuple[Fleet, Simulator, Provider]
) -> None:
    """httpx does not raise: the caller gets what the function returned, and the lane has been refused all the same."""
    body = {"error": {"message": "slow down", "type": "requests", "code": "rate_limit_exceeded"}}
    running[2].says(Reply(429, body, {"retry-after": "1"}))
    services().lanes.establish("careless", limit_fields(LaneLimits(unlimited=True)))
    result = tasks.careless.apply_async(("x",), lane="careless", queue="careless")
    assert result.get(timeout=120) == body
    (row,) = attempts(result.id)
    assert (row.outcome.value, row.category.value, row.status) == ("answered", "rate_limited", 429)
    assert row.retry_after_s == 1.0
    assert int(services().lanes.fields("careless").get("x1", 0)) == 1


def attempts(call_id: str) -> Any:
    rows = services().tracker.attempts_of
    wait_for(lambda: rows(call_id), what=f"{call_id} is tracked")
    return rows(call_id)


def test_in_process_too(
    running: tuple[Fleet, Simulator, Provider], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A function and a coroutine of an agent, without a queue."""
    _, simulated, _ = running
    limiter = AdvancedRateLimiter()
    url = f"{simulated.base_url}/chat/completions"
    asked = {**BODY, "max_tokens": 20}

    def ask(number: int) -> Any:
        return httpx.post(url, json={**asked, "user": str(number)}).json()["model"]

    async def ask_too(number: int) -> Any:
        async with httpx.AsyncClient() as client:
            return (await client.post(url, json={**asked, "user": str(number)})).json()["model"]

    watch_all()
    seen: list[Any] = []

    def noted(answer: Any) -> Any:
        seen.append(answer)
        return usage_of(answer)

    monkeypatch.setattr(glimpse, "usage_of", noted)
    with caplog.at_level(logging.INFO):
        try:
            assert limiter.make_rate_limited_call(ask, "ask", (1,), lane="openai:gpt-4o") == "gpt-4o"
            asynchronous = limiter.make_rate_limited_call(ask_too, "ask_too", (2,), lane="openai:gpt-4o")
            assert asyncio.run(asynchronous) == "gpt-4o"
        finally:
            limiter.close()
    assert len(seen) == 2
    assert "watch.failed" not in caplog.text
