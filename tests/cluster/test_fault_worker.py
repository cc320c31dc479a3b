"""One call, or one process, that always fails, on real workers and a real provider: the others of its lane go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Mode
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import CallFailed
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.providers import openai
from ratelimit_worker.simulate import Entry, Fault, Scenario, Simulator
from ratelimit_worker.wiring import services, use
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, free_port

pytestmark = pytest.mark.worker


@pytest.fixture
def provider() -> Iterator[Simulator]:
    """20/s, and 500 for whatever asks for "poison"."""
    faults = (Entry(match="poison", fault=Fault.SERVER_ERROR),)
    with Simulator(Scenario(rpm=1200, latency="lognormal(0.1, 0.3)", timeline=faults)) as made:
        yield made


@pytest.fixture
def made(provider: Simulator) -> Iterator[Fleet]:
    """Two workers."""
    with fleet(OPENAI_BASE_URL=provider.base_url) as made:
        for name in ("first", "second"):
            made.worker(name, wait=False)
        for worker in made.workers:
            worker.wait_ready(60.0)
        yield made


def answered(tasks: Any, count: int) -> float:
    """So many good calls at once → seconds until all have their answer."""
    start = time.monotonic()
    results = [tasks.chat.delay(n) for n in range(count)]
    wait_for(lambda: all(result.ready() for result in results), 120.0, "the good ones are answered")
    assert [result.state for result in results] == ["SUCCESS"] * count
    return time.monotonic() - start


def test_a_poisoned_call_holds_up_nobody(made: Fleet, provider: Simulator) -> None:
    """Alone it asks ever more rarely and moves no mode; among 300 good ones it is given up, and they take no longer."""
    tasks = made.agent()
    answered(tasks, 30)
    without_s = answered(tasks, 300)
    bad = tasks.chat.delay("poison")
    start = time.monotonic()
    wait_for(lambda: time.monotonic() - start > 20.0, 30.0, "it is alone for 20 s")
    sent = sum(arrival.fault is not None for arrival in provider.arrivals())
    assert 5 <= sent <= 45
    assert services().lanes.state("chat").mode is Mode.NORMAL
    record = services().lanes.record(bad.id)
    assert record is not None
    assert record.tries <= 2, "its attempts cost no tries, but those just after the good ones"
    assert answered(tasks, 300) <= 1.15 * without_s + 3.0
    wait_for(lambda: bad.ready() or answered(tasks, 20) < 0, 60.0, "it is given up among good ones")
    error = bad.get(propagate=False)
    assert isinstance(error, CallFailed)
    assert error.category is Category.SERVER_ERROR
    assert services().lanes.state("chat").mode is Mode.NORMAL


def test_a_process_that_does_not_find_the_provider_holds_up_nobody(made: Fleet) -> None:
    """Three of its calls fail alone for 8 s; then 20 calls of workers are answered at once, and it has its errors."""
    tasks = made.agent()
    limiter = AdvancedRateLimiter(use(read_settings()))
    nowhere = openai.endpoint({"OPENAI_BASE_URL": f"http://127.0.0.1:{free_port()}/v1", "OPENAI_API_KEY": "k"})

    def lost(number: int) -> Any:
        return openai.request(nowhere, openai.CHAT_PATH, {"model": "m", "messages": [], "seed": number})

    def call(number: int) -> Any:
        return limiter.make_rate_limited_call(lost, None, (number,), lane="chat", cache_enabled=False)

    answered(tasks, 30)
    with ThreadPoolExecutor(3) as pool:
        ends: list[Future[Any]] = [pool.submit(call, number) for number in range(3)]
        start = time.monotonic()
        wait_for(lambda: time.monotonic() - start > 8.0, 20.0, "they are alone for 8 s")
        assert not any(end.done() for end in ends)
        assert answered(tasks, 20) <= 1.15 * 1.0 + 3.0
        wait_for(lambda: all(end.done() for end in ends) or answered(tasks, 20) < 0, 90.0, "it has its errors")
        assert all("refused" in str(end.exception()) for end in ends)
    limiter.cleanup()
    assert services().lanes.state("chat").mode is not Mode.EMERGENCY


def test_a_worker_that_does_not_find_the_provider_leaves_calls_to_the_other(made: Fleet, provider: Simulator) -> None:
    """It fails at once, and so would take most calls. None of them uses up its tries, and it asks now and then only."""
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    made.worker("lost", OPENAI_BASE_URL=nowhere)
    tasks = made.agent()
    answered(tasks, 200)
    failed = made.workers[-1].log().count("outcome=")  # the log has failed attempts only
    assert 3 <= failed <= 40
    assert provider.arrivals()
    assert services().lanes.state("chat").mode is Mode.NORMAL
