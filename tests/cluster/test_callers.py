"""Who waits for an answer gets it: threads and event loops, over restarts of Redis, by object or by id."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from celery.result import AsyncResult

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.worker.result import CallResult
from ratelimit_worker.worker.sending import THREADS as THREADS_THAT_SEND
from ratelimit_worker.worker.sending import Sending
from tests.builders import ROOT
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

    made = [threading.Thread(target=wait, args=(results[n::threads],), daemon=True) for n in range(threads)]
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

    loop = threading.Thread(target=lambda: heard.extend(asyncio.run(all_of_them())), daemon=True)
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


# ── without a worker: what is stored is heard ────────────────────────────────────────────────────────────────────────


def store(tasks: ModuleType, result: Any, value: Any) -> None:
    """As a worker would store an answer."""
    tasks.app.backend.mark_as_done(result.id, value)


def listening(made: Fleet) -> int:
    """Connections of the server that are subscribed to something."""
    return len(made.valkey.client.client_list(_type="pubsub"))


def channels(made: Fleet) -> int:
    """What they are subscribed to."""
    return len(made.valkey.client.pubsub_channels("celery-task-meta-*"))


def test_a_thousand_wait_over_one_connection_and_two_threads(made: Fleet) -> None:
    """A loop, threads and `then` alike; when all is heard nothing is subscribed to any more."""
    tasks = made.agent()
    results = [tasks.app.AsyncResult(f"r-{n}") for n in range(1000)]
    before = threading.active_count()
    loop, awaited = answers_in_a_loop(results[:980])
    threads, heard = answers_in_threads(results[980:990], threads=10)
    said: list[Any] = []
    for one in results[990:]:
        one.then(lambda done: said.append(done.result))
    wait_for(lambda: channels(made) == 1000, what="all are listened for")
    assert listening(made) == 1
    assert threading.active_count() <= before + 1 + 10 + 2  # the loop's, those that wait, and the two of the process
    for n, one in enumerate(results):
        store(tasks, one, n)
    for thread in (loop, *threads):
        thread.join(WAIT_S)
    assert awaited == list(range(980))
    assert sorted(heard) == list(range(980, 990))
    wait_for(lambda: sorted(said) == list(range(990, 1000)), what="callbacks are told")
    wait_for(lambda: channels(made) == 0, what="nobody listens any more")


def test_what_was_stored_while_redis_was_away_is_heard(made: Fleet) -> None:
    """And what is stored before the listener is back: it subscribes first, and looks then."""
    tasks = made.agent()
    results = [tasks.app.AsyncResult(f"r-{n}") for n in range(6)]
    loop, awaited = answers_in_a_loop(results[:3])
    threads, heard = answers_in_threads(results[3:], threads=3)
    wait_for(lambda: channels(made) == 6, what="all are listened for")
    store(tasks, results[0], 0)
    made.valkey.stop()
    made.valkey.start()
    for n, one in enumerate(results[1:], 1):
        store(tasks, one, n)
    for thread in (loop, *threads):
        thread.join(WAIT_S)
    assert awaited == [0, 1, 2]
    assert sorted(heard) == [3, 4, 5]


def test_who_gives_up_waits_no_longer_than_said(made: Fleet) -> None:
    """With Redis there, and with Redis away; an answer that is there is found though there is no time at all."""
    tasks = made.agent()
    there, never = tasks.app.AsyncResult("there"), tasks.app.AsyncResult("never")
    store(tasks, there, "answer")
    assert tasks.app.AsyncResult("there").get(timeout=0) == "answer"
    made.valkey.stop()
    for timeout_s in (0, 0.1, 1.5):
        with pytest.raises(CeleryTimeoutError):
            never.get(timeout=timeout_s)
    with pytest.raises(CeleryTimeoutError):
        asyncio.run(never.aget(timeout=0.1))
    with pytest.raises(CeleryTimeoutError):
        asyncio.run(tasks.app.GroupResult("g", [never]).aget(timeout=0.1))
    made.valkey.start()
    assert asyncio.run(there.aget()) == "answer"


def test_a_callback_may_wait_for_another_result(made: Fleet) -> None:
    """It runs in the thread that listens, which goes on listening."""
    tasks = made.agent()
    first, second = tasks.app.AsyncResult("first"), tasks.app.AsyncResult("second")
    said: list[Any] = []
    first.then(lambda done: said.append(("waits", done.result)))
    first.then(lambda done: said.append(second.get(timeout=WAIT_S)))
    wait_for(lambda: channels(made) == 1, what="it is listened for")
    store(tasks, first, 1)
    wait_for(lambda: said == [("waits", 1)], what="the first callback was called")
    store(tasks, second, 2)
    wait_for(lambda: said == [("waits", 1), 2], what="the second callback has its answer")


def test_what_cannot_be_read_is_an_error_of_who_waits_for_it(made: Fleet) -> None:
    """And of nobody else."""
    tasks = made.agent()
    bad, good = tasks.app.AsyncResult("bad"), tasks.app.AsyncResult("good")
    threads, heard = answers_in_threads([bad, good], threads=2)
    wait_for(lambda: channels(made) == 2, what="both are listened for")
    made.valkey.client.publish("celery-task-meta-bad", "no JSON")
    store(tasks, good, 7)
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(type(one).__name__ for one in heard) == ["DecodeError", "int"]


def test_a_child_process_listens_for_itself(made: Fleet) -> None:
    """What its parent has opened stays the parent's, which goes on hearing."""
    tasks = made.agent()
    mine, its = tasks.app.AsyncResult("mine"), tasks.app.AsyncResult("its")
    threads, heard = answers_in_threads([mine], threads=1)
    wait_for(lambda: channels(made) == 1, what="the parent listens")
    child = multiprocessing.get_context("fork").Process(target=_expects, args=(its, "for the child"))
    child.start()
    wait_for(lambda: channels(made) == 2, what="the child listens")
    store(tasks, its, "for the child")
    store(tasks, mine, "for the parent")
    child.join(WAIT_S)
    threads[0].join(WAIT_S)
    assert (child.exitcode, heard) == (0, ["for the parent"])


def _expects(result: Any, answer: Any) -> None:
    os._exit(0 if result.get(timeout=WAIT_S) == answer else 1)


GREENLETS = """
from gevent import monkey
monkey.patch_all()
import sys, gevent
from tests import fleet_app
results = [fleet_app.app.AsyncResult(f"g-{n}") for n in range(20)]
waiting = [gevent.spawn(one.get, timeout=240) for one in results]
print("waits", flush=True)
gevent.joinall(waiting, raise_error=True)
print([one.value for one in waiting] == list(range(20)), flush=True)
"""


def test_greenlets_wait_too(made: Fleet) -> None:
    """In a process that gevent has patched, over a restart."""
    tasks = made.agent()
    other = subprocess.Popen([sys.executable, "-c", GREENLETS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "waits\n"
    wait_for(lambda: channels(made) == 20, what="all are listened for")
    made.valkey.stop()
    made.valkey.start()
    for n in range(20):
        store(tasks, tasks.app.AsyncResult(f"g-{n}"), n)
    assert other.stdout.readline() == "True\n"
    assert other.wait(timeout=WAIT_S) == 0


# ── sent from an event loop ──────────────────────────────────────────────────────────────────────────────────────────


def waiting_calls(made: Fleet) -> int:
    """Calls in their lanes."""
    return len(made.valkey.client.keys("rlw:call:*"))


@pytest.mark.parametrize(("cancel", "left"), [("revoke", 0), ("leave", 1)])
def test_who_is_cancelled_takes_the_call_along_if_asked(made: Fleet, cancel: str, left: int) -> None:
    """Out of its lane at once, without any worker; else it stays, as one that nobody waits for."""
    tasks = made.agent()

    async def endpoint() -> str:
        result = await tasks.echo.adelay(1, cancel=cancel)
        waiting = asyncio.ensure_future(result.aget())
        while channels(made) == 0:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return str(result.state)

    assert asyncio.run(endpoint()) == ("REVOKED" if cancel == "revoke" else "PENDING")
    assert waiting_calls(made) == left


def test_who_is_cancelled_while_it_is_sent_leaves_nothing_behind(made: Fleet) -> None:
    tasks = made.agent()

    async def endpoint() -> None:
        sending = asyncio.ensure_future(tasks.echo.adelay(1, cancel="revoke"))
        await asyncio.sleep(0)  # it has begun
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(endpoint())
    assert waiting_calls(made) == 0
    with pytest.raises(BadInput, match="cancel="):
        asyncio.run(tasks.echo.aapply_async((1,), cancel="perhaps"))


def test_what_is_sent_in_one_go_is_accepted(made: Fleet) -> None:
    """Each in its turn: the time that a send has begins with it."""
    tasks = made.agent()

    async def endpoint() -> list[Any]:
        return await asyncio.gather(*(tasks.echo.adelay(n) for n in range(500)))

    assert len({one.id for one in asyncio.run(endpoint())}) == 500
    assert waiting_calls(made) == 500


@pytest.mark.parametrize("way", ["result", "by id", "control", "group"])
def test_whoever_revokes_empties_the_lane(made: Fleet, way: str) -> None:
    """However the result was found, and with no worker there."""
    tasks = made.agent()
    call = tasks.echo.delay(1)
    assert waiting_calls(made) == 1
    match way:
        case "result":
            call.revoke()
        case "by id":
            AsyncResult(call.id, app=tasks.app).revoke()
        case "control":
            tasks.app.control.revoke([call.id])
        case "group":
            tasks.app.GroupResult("g", [call]).revoke()
    assert waiting_calls(made) == 0
    assert call.state == "REVOKED"


def test_sends_that_waited_behind_a_dead_redis_end_with_it() -> None:
    """A hundred at once take as long as one round of them: those that had to wait for 2 s are told what these heard."""
    now_s, tried = [0.0], []
    sending = Sending(lambda: now_s[0])
    one_at_a_time = threading.Lock()

    def frozen() -> None:
        with one_at_a_time:
            tried.append(1)
            now_s[0] += 2.0
        raise StoreUnavailable("Redis did not answer in time")

    async def hundred(send: Any) -> list[Any]:
        return await asyncio.gather(*(sending.in_thread(send) for _ in range(100)), return_exceptions=True)

    assert {type(one) for one in asyncio.run(hundred(frozen))} == {StoreUnavailable}
    assert THREADS_THAT_SEND <= len(tried) <= 3 * THREADS_THAT_SEND
    assert asyncio.run(hundred(lambda: "sent")) == ["sent"] * 100  # Redis is back: the next are tried
    once = iter([frozen])

    def first_is_late() -> Any:
        return next(once, str)()

    assert asyncio.run(hundred(first_is_late)).count("") == 99  # a busy machine's one failure is no outage


# ── with a worker ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
def test_whatever_can_be_got_can_be_awaited(made: Fleet) -> None:
    """By object and by id, of Celery's class and ours; calls, ordinary tasks, groups, chains and chords."""
    tasks = made.agent()
    made.worker("one")

    async def ask() -> None:
        sent = await tasks.echo.adelay("a")
        ways = (
            sent,
            tasks.echo.AsyncResult(sent.id),
            tasks.app.AsyncResult(sent.id),
            AsyncResult(sent.id, app=tasks.app),
        )
        assert await asyncio.gather(*ways) == ["a"] * 4
        assert await (await tasks.echo.aapply_async(("b",), priority="high")).aget(timeout=WAIT_S) == "b"
        assert await tasks.add.delay(1, 2) == 3
        assert await group(tasks.echo.s(n) for n in range(3)).delay() == [0, 1, 2]
        assert await chord([tasks.echo.s(1), tasks.add.s(1, 1)], tasks.total.s()).delay() == 3
        assert await chain(tasks.echo.s(1), tasks.double.s()).delay() == 2
        with pytest.raises(LookupError):
            await tasks.broken.delay("x")
        assert isinstance(await tasks.broken.delay("x").aget(propagate=False), LookupError)
        for first in (tasks.broken.s("x"), group(tasks.echo.s(1), tasks.broken.s("x"))):
            with pytest.raises(Exception, match="no such thing"):  # the rest of it is never made
                await chain(first, tasks.double.si(1), tasks.double.s()).delay()
            with pytest.raises(Exception, match="no such thing"):
                await asyncio.to_thread(chain(first, tasks.double.si(1), tasks.double.s()).delay().get, timeout=WAIT_S)
        with pytest.raises(LookupError):
            await group(tasks.echo.s(1), tasks.broken.s("x")).delay()

    asyncio.run(asyncio.wait_for(ask(), WAIT_S))


def test_a_step_that_failed_is_heard_of_with_any_result_backend(tmp_path: Path) -> None:
    """Where results are in a database nobody tells of them, and the last of a chain never comes."""
    app = Celery("sql", backend=f"db+sqlite:///{tmp_path}/results.sqlite", set_as_current=False)
    first = CallResult("first", backend=app.backend, app=app)
    last = CallResult("last", backend=app.backend, app=app, parent=first)
    app.backend.store_result("first", ValueError("refused"), "FAILURE")
    with pytest.raises(ValueError, match="refused"):
        last.get(timeout=120)

    async def awaited() -> Any:
        return await last.aget(timeout=120)

    with pytest.raises(ValueError, match="refused"):
        asyncio.run(awaited())


def test_an_app_takes_its_connections_with_it(made: Fleet) -> None:
    """Sockets, and what polls them: kombu keeps those of every app for ever (those of stock apps are one another's)."""

    def same(text: str) -> str:
        return text

    def one_more(number: int) -> weakref.ref[Celery]:
        gc.collect()  # the one before is gone, and what it held goes when the next is installed
        app = Celery(f"one of many {number}", broker=made.valkey.url, backend=made.valkey.url, set_as_current=False)
        install(app)
        llm_task(app=app, name="tests.one_of_many")(same).delay("x").forget()
        return weakref.ref(app)

    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    for number in range(2):
        one_more(number)
    before = open_files()
    apps = [one_more(number) for number in range(2, 8)]
    wait_for(lambda: open_files() <= before, what="as many are open as before")
    assert [found() for found in apps] == [None] * 6
