"""Many coroutines that begin at once leave their loop time for others."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable

import pytest

from ratelimit_worker.inprocess.slices import AT_ONCE, turn_to_begin
from ratelimit_worker.worker.sending import THREADS, Sending


def test_a_few_begin_in_each_turn_of_the_loop() -> None:
    """In their order; what else is ready comes in between, and one that is cancelled leaves its place to the next."""

    async def together() -> tuple[list[int], list[int]]:
        begun, seen = list[int](), list[int]()

        async def begin(number: int) -> None:
            await turn_to_begin()
            begun.append(number)

        tasks = [asyncio.create_task(begin(number)) for number in range(100)]
        await asyncio.sleep(0)
        tasks[50].cancel()
        while not all(task.done() for task in tasks):
            seen.append(len(begun))
            await asyncio.sleep(0)
        return begun, seen

    begun, seen = asyncio.run(together())
    assert begun == [number for number in range(100) if number != 50]
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= AT_ONCE


def test_one_alone_waits_for_nobody() -> None:
    """Nor does one in the next loop of the same process."""

    async def alone() -> None:
        for _ in range(3):
            turn = turn_to_begin()
            try:
                turn.send(None)
            except StopIteration:  # it has returned without a wait
                await asyncio.sleep(0.0)
            else:
                raise AssertionError("it waits")

    for _ in range(2):
        asyncio.run(alone())


_sending = Sending()


async def _sends() -> None:
    await asyncio.gather(*(_sending.in_thread(int) for _ in range(3 * THREADS)))


async def _begins() -> None:
    await asyncio.gather(*(turn_to_begin() for _ in range(3 * AT_ONCE)))


@pytest.mark.parametrize("run", [_begins, _sends])
def test_a_loop_that_is_over_is_forgotten(run: Callable[[], Awaitable[None]]) -> None:
    """A script that calls `asyncio.run` for each of its calls keeps none of their loops."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def one() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await run()

    for _ in range(3):
        asyncio.run(one())
    gc.collect()
    assert [loop() for loop in loops] == [None, None, None]
