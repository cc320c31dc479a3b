"""Who waits for an answer gets it: threads and event loops, over restarts of Redis, by object or by id."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

WAIT_S = 240.0
CALLS, THREADS = 400, 16


@pytest.fixture
def made() -> Iterator[Fleet]:
    """A broker of one's own, which may be stopped."""
    with fleet() as one:
        yield one


def answers_in_threads(results: list[Any], threads: int = THREADS) -> tuple[list[threading.Thread], list[Any]]:
    """Threads that wait for a share of the results each → (the threads, what they hear)."""
    heard: list[Any] = []

    def wait(share: list[Any]) -> None:
        for result in share:
            try:
                heard.append(result.get(timeout=WAIT_S))
            except Exception as error:
                heard.append(error)

    made = [threading.Thread(target=wait, args=(results[n::threads],)) for n in range(threads)]
    for thread in made:
        thread.start()
    return made, heard


def answers_in_a_loop(results: list[Any]) -> tuple[threading.Thread, list[Any]]:
    """An event loop in which a task awaits each → (its thread, what they hear)."""
    heard: list[Any] = []

    async def wait(result: Any) -> Any:
        async with asyncio.timeout(WAIT_S):
            return await result

    async def all_of_them() -> list[Any]:
        return await asyncio.gather(*(wait(one) for one in results), return_exceptions=True)

    loop = threading.Thread(target=lambda: heard.extend(asyncio.run(all_of_them())))
    loop.start()
    return loop, heard


@pytest.mark.worker
@pytest.mark.parametrize("pause_s", [1.0, 5.0])
def test_who_waits_goes_on_when_redis_is_back(made: Fleet, pause_s: float) -> None:
    """400 calls for 16 threads and 400 for as many tasks of a loop: each hears its answer, and none an error."""
    tasks: ModuleType = made.agent()
    made.worker("one", "-P", "threads", "-c", "16")
    for_threads = [tasks.echo.delay(n, 0.02) for n in range(CALLS)]
    for_tasks = [tasks.echo.delay(n, 0.02) for n in range(CALLS, 2 * CALLS)]
    threads, heard = answers_in_threads(for_threads)
    loop, awaited = answers_in_a_loop(for_tasks)
    wait_for(lambda: len(heard) >= THREADS, what="some are answered")
    made.valkey.stop()
    threading.Event().wait(pause_s)
    made.valkey.start()
    for thread in (*threads, loop):
        thread.join(WAIT_S)
    assert sorted(heard, key=str) == sorted(range(CALLS), key=str), [one for one in heard if not isinstance(one, int)]
    assert awaited == list(range(CALLS, 2 * CALLS))
