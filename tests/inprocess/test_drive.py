"""Do both drivers take the same course, and do coroutines hear of what threads ask for them? No server needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator, Sequence
from typing import Any

import pytest

from ratelimit_worker.calls import Timeouts, timeout_s
from ratelimit_worker.flow.call.admit import Ask, News, Run, Sleep, Step, Wait, inside
from ratelimit_worker.flow.call.conclude import Ran
from ratelimit_worker.inprocess import jointly, posts
from ratelimit_worker.inprocess.asks import Asks
from ratelimit_worker.inprocess.drive import InLoop, InThread, is_async
from ratelimit_worker.inprocess.posts import Posts
from ratelimit_worker.ports import Came

Steps = Generator[Step, Any, Ran]


def drive(way: str, make: Any, attempt: Any) -> Any:
    """All steps of one call, by the driver of that name; `make` gets the driver, `attempt` is a plain function."""
    if way == "thread":
        driver = InThread()
        return driver.drive(make(driver), attempt)

    async def within() -> Any:
        looping = InLoop()

        async def called() -> Any:
            await asyncio.sleep(0)
            return attempt()

        return await looping.drive(make(looping), called)

    return asyncio.run(within())


def nothing_there() -> None:
    """A question that fails."""
    raise KeyError("nothing")


WAYS = pytest.mark.parametrize("way", ["thread", "loop"])


@WAYS
def test_each_step_gets_what_the_one_before_gave(way: str) -> None:
    """Asked, waited for, slept, run; what the attempt returned comes back."""
    given: list[Any] = []

    def steps(driver: Any) -> Steps:
        given.append((yield Ask(lambda: "asked")))
        given.append((yield Ask(lambda: "at once", waits=False)))
        hear = driver.mailbox()
        hear("tag")
        given.append((yield Wait(None, 5.0)))
        given.append((yield Wait(None, 0.001)))
        given.append((yield Sleep(0.0)))
        ran = yield Run("turn", Timeouts(whole_s=7.0), "lane")
        given.append(ran.value)
        return ran  # type: ignore[no-any-return]

    def attempt() -> tuple[Any, bool]:
        return inside.get(), timeout_s() <= 7.0

    assert drive(way, steps, attempt) == (("turn",), True)
    assert given == ["asked", "at once", "tag", News.LATE, None, (("turn",), True)]
    assert inside.get() == ()


@WAYS
def test_what_the_attempt_raises_is_the_steps_to_deal_with(way: str) -> None:
    """It is told as what came of the attempt; the last one's is raised, the very object."""
    wrong = ValueError("wrong")

    def steps(driver: Any) -> Steps:
        first = yield Run(None)
        assert first.error is wrong
        second = yield Run(None)
        return second  # type: ignore[no-any-return]

    def attempt() -> None:
        raise wrong

    with pytest.raises(ValueError, match="wrong") as raised:
        drive(way, steps, attempt)
    assert raised.value is wrong


@WAYS
def test_what_a_question_raises_is_raised_at_its_place(way: str) -> None:
    """The steps may deal with it, and go on."""

    def steps(driver: Any) -> Steps:
        with pytest.raises(KeyError):
            yield Ask(nothing_there)
        return (yield Run(None))  # type: ignore[no-any-return]

    assert drive(way, steps, lambda: "answer") == "answer"


@WAYS
def test_an_interrupt_is_no_outcome(way: str) -> None:
    """What is no `Exception` goes through the steps, which clear up, and on to the caller."""
    left: list[str] = []

    def steps(driver: Any) -> Steps:
        try:
            return (yield Run(None))  # type: ignore[no-any-return]
        finally:
            left.append("left")

    def attempt() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        drive(way, steps, attempt)
    assert left == ["left"]


def test_a_coroutine_that_is_thrown_away_leaves_its_turn() -> None:
    """Cancelled while it waits: the steps are closed."""
    left: list[str] = []

    def steps(driver: InLoop) -> Steps:
        driver.mailbox()
        try:
            yield Wait(None, 1000.0)
        finally:
            left.append("left")
        raise AssertionError("nothing came")

    async def within() -> None:
        driver = InLoop()
        waits = asyncio.create_task(driver.drive(steps(driver), lambda: asyncio.sleep(0)))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

    asyncio.run(within())
    assert left == ["left"]


def test_a_loop_is_woken_once_for_all_answers_that_have_come() -> None:
    """A hundred questions that are answered while the loop is busy are one of its callbacks."""
    asks, woken = Asks(), list[Any]()

    async def within() -> list[int]:
        loop = asyncio.get_running_loop()
        behind = loop.call_soon_threadsafe

        def counted(callback: Any, *args: Any, **more: Any) -> Any:
            woken.append(callback)
            return behind(callback, *args, **more)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        done = threading.Semaphore(0)

        def answer(number: int) -> int:
            done.release()
            return number

        asked = [asks.ask(loop, lambda number=number: answer(number)) for number in range(100)]  # type: ignore[misc]
        last = asks.ask(loop, lambda: 100)
        for _ in range(100):  # this step of the loop goes on until all but the last have been answered
            done.acquire()
        return [*(await asyncio.gather(*asked)), await last]

    assert asyncio.run(within()) == list(range(101))
    assert len(woken) <= 6  # the four threads may each have one more on its way


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    """Its coroutine was cancelled; an error is raised in the one that asked."""
    asks, go = Asks(), threading.Event()

    async def within() -> None:
        loop = asyncio.get_running_loop()
        cancelled = asks.ask(loop, go.wait)
        wrong = asks.ask(loop, nothing_there)
        cancelled.cancel()
        go.set()
        with pytest.raises(KeyError):
            await wrong
        assert await asks.ask(loop, lambda: "goes on") == "goes on"

    asyncio.run(within())


def test_questions_of_one_kind_are_answered_together() -> None:
    """What comes while one thread asks goes with its next question; each coroutine gets its own answer or error."""
    asks, begun, go = Asks(), threading.Event(), threading.Event()
    asked: list[list[int]] = []

    def doubled(numbers: Sequence[int]) -> list[Came[int]]:
        asked.append(list(numbers))
        begun.set()
        go.wait()
        return [Came(2 * number) if number != 13 else Came(error=KeyError(number)) for number in numbers]

    async def within() -> list[Any]:
        loop = asyncio.get_running_loop()
        first = asks.jointly.ask(loop, doubled, -1)
        begun.wait()
        others = [asks.jointly.ask(loop, doubled, number) for number in range(2 * jointly.AT_ONCE + 1)]
        others[20].cancel()
        go.set()
        return [await first, *await asyncio.gather(*others, return_exceptions=True)]

    first, *others = asyncio.run(within())
    assert first == -2
    assert type(others[13]) is KeyError
    assert type(others[20]) is asyncio.CancelledError
    assert [one for one in others if isinstance(one, int)] == [2 * n for n in range(len(others)) if n not in (13, 20)]
    assert [len(some) for some in asked] == [1, jointly.AT_ONCE, jointly.AT_ONCE, 1]


def test_questions_of_two_kinds_are_answered_each_by_its_own() -> None:
    """An error of the whole is the error of each; the thread goes on."""
    asks = Asks()

    def plain(words: Sequence[str]) -> list[Came[str]]:
        return [Came(word) for word in words]

    def fails(words: Sequence[str]) -> list[Came[str]]:
        raise OSError(*words)

    async def within() -> list[Any]:
        loop = asyncio.get_running_loop()
        kinds = (plain, fails, plain, fails)
        asked = [asks.jointly.ask(loop, kind, word) for kind, word in zip(kinds, "abcd", strict=True)]
        return await asyncio.gather(*asked, return_exceptions=True)

    told = asyncio.run(within())
    assert (told[0], told[2]) == ("a", "c")
    assert [type(told[1]), type(told[3])] == [OSError, OSError]


def test_a_loop_gets_a_few_answers_in_each_of_its_turns() -> None:
    """So what waits for them goes on a little at a time, and others of the loop in between."""

    async def within() -> list[int]:
        loop, post, done = asyncio.get_running_loop(), Posts(), list[int]()
        waiting = [loop.create_future() for _ in range(3 * posts.AT_ONCE + 1)]
        post.of(loop).put(loop, [(one, Came(None)) for one in waiting])
        while not all(one.done() for one in waiting):
            done.append(sum(one.done() for one in waiting))
            await asyncio.sleep(0)
        return [after - before for before, after in zip(done, [*done[1:], len(waiting)], strict=True)]

    steps = asyncio.run(within())
    assert sum(steps) == 3 * posts.AT_ONCE + 1
    assert max(steps) == posts.AT_ONCE


def test_which_functions_give_coroutines() -> None:
    """Plain ones are told by their code, wrapped and marked ones by what they wrap."""

    async def coroutine() -> None: ...

    def plain() -> None: ...

    def wraps() -> Any:
        return coroutine()

    wraps.__wrapped__ = coroutine  # type: ignore[attr-defined]

    class Holds:
        async def method(self) -> None: ...

        async def __call__(self) -> None: ...

    assert [is_async(one) for one in (coroutine, wraps, Holds().method, Holds())] == [True] * 4
    assert not is_async(plain)
    assert not is_async(print)
