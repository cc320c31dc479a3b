"""A Redis that says nothing: who makes a call knows in time whether it was accepted, and may make it again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from celery import chain, chord, group
from celery._state import _task_stack
from celery.result import AsyncResult

from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flow.call.admit import ENTER_S
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.stores import decide
from ratelimit_worker.stores.decide import FRESH_S, Decision, answering, deciding
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.task import IN_HAND_S
from tests.conftest import wait_for
from tests.fleet import Fleet, Valkey, fleet
from tests.proxy import Proxy

pytestmark = pytest.mark.worker


@pytest.fixture
def made() -> Iterator[Fleet]:
    """A broker without workers."""
    with fleet() as one:
        yield one


@contextmanager
def frozen(valkey: Valkey) -> Iterator[None]:
    """The server is stopped in the middle of what it does, and goes on afterwards."""
    os.kill(valkey.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(valkey.pid, signal.SIGCONT)


@pytest.fixture
def hole(made: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """The agent reaches the broker through it."""
    proxy = Proxy(made.valkey.port)
    monkeypatch.setenv("MAISD_REDIS_URL", proxy.url)
    yield proxy
    proxy.close()


def refused(make: Any) -> StoreUnavailable:
    """The error of a call that is made now."""
    with pytest.raises(StoreUnavailable) as caught:
        make()
    return caught.value


@contextmanager
def hurried(by: float = 100.0) -> Iterator[list[float]]:
    """Decisions have a tenth of their time (`patience` gives them ten times as much) → what each was given."""
    given: list[float] = []
    was, here = Decision.__init__, threading.current_thread()

    def quick(self: Decision, most_s: float, clock: Any = time.monotonic) -> None:
        if threading.current_thread() is here:  # whoever listens for answers decides for itself
            given.append(most_s)
        was(self, most_s / by, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decision, "__init__", quick)
        yield given


WAYS = {
    "delay": lambda tasks: tasks.echo.delay(1),
    "send_task": lambda tasks: tasks.app.send_task(tasks.echo.name, (1,)),
    "group": lambda tasks: group(tasks.echo.s(n) for n in range(3)).delay(),
    "chain": lambda tasks: chain(tasks.echo.s(1), tasks.double.s()).delay(),
    "chord": lambda tasks: chord([tasks.echo.s(1), tasks.echo.s(2)], tasks.total.s()).delay(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_a_frozen_redis_is_one_error(made: Fleet, way: str, warm: bool) -> None:
    """However a call is made, and whether or not there is a connection yet: no time-out of Celery's is waited for."""
    tasks = made.agent()
    if warm:
        tasks.echo.delay(0)
    with frozen(made.valkey), hurried() as given:
        error = refused(lambda: WAYS[way](tasks))
    assert set(given) == {decide.DECIDE_S}
    assert error.accepted in ("no", "maybe")
    assert error.accepted == "no" or warm  # with no connection nothing was sent


def test_a_redis_that_is_away_is_the_same_error(made: Fleet) -> None:
    """Each call of a process hears it, not its first alone; nothing was accepted."""
    tasks = made.agent()
    tasks.echo.delay(0)
    made.valkey.stop()
    # A connection that was answered a moment ago is taken to live, so a call that goes out just then may have arrived.
    time.sleep(2 * FRESH_S)
    for make in (*WAYS.values(), *WAYS.values()):
        error = refused(lambda make=make: make(tasks))
        assert error.accepted == "no"
    made.valkey.start()


def test_threads_that_publish_wait_for_nobody(made: Fleet) -> None:
    """With more threads than connections of the pool each is told in its own time."""
    tasks = made.agent()
    tasks.app.conf.broker_pool_limit = 2
    assert tasks.app.producer_pool.limit == 2
    errors: list[StoreUnavailable] = []
    with frozen(made.valkey), hurried():
        threads = [
            threading.Thread(target=lambda: errors.append(refused(lambda: tasks.echo.delay(1)))) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
    assert len(errors) == 12


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "shared"])
def test_where_the_answer_is_lost_it_may_have_been_accepted(made: Fleet, hole: Proxy, cached: bool) -> None:
    """The error has the call's id; made again with it the call is one, whether it waits, or has run meanwhile."""
    tasks = made.agent()
    task = tasks.shared if cached else tasks.echo
    task.delay("warm")
    hole.shut.set()
    with hurried(by=10.0):  # its whole time: a tenth may be over before anything is sent
        error = refused(lambda: task.delay("x"))
    hole.shut.clear()
    assert (error.accepted, error.call_id is not None) == ("maybe", True)
    assert f"task_id={error.call_id!r}" in str(error)
    wait_for(lambda: made.valkey.client.exists(f"rlw:call:{error.call_id}"), what="it was accepted")
    again = task.delay("x", task_id=error.call_id)  # it waits: no worker is there
    assert again.id == error.call_id
    made.worker("first")
    answer = again.get(timeout=120)
    assert task.apply_async(("x",), task_id=error.call_id).get(timeout=120) == answer  # it has run
    assert AsyncResult(error.call_id, app=tasks.app).get(timeout=120) == answer
    assert made.valkey.client.exists(f"rlw:call:{error.call_id}~1") == 0


def test_a_running_call_is_not_entered_again(made: Fleet) -> None:
    """Nor one that follows another; both have their answer once."""
    made.worker("first")
    tasks = made.agent()
    both = [tasks.meet.apply_async((2, "door"), task_id="slow-1")]
    wait_for(lambda: made.stamps("door"), what="it runs")
    both.append(tasks.meet.apply_async((2, "door"), task_id="slow-1"))
    with (made.folder / "door").open("a") as door:
        door.write("0 the test\n")  # the second that the first waits for
    assert [result.get(timeout=120) for result in both] == [None, None]
    assert [what for _, what in made.stamps("door")] == ["the test", "x"]


def test_a_follower_is_not_entered_again(made: Fleet) -> None:
    """It follows its leader once."""
    tasks = made.agent()
    tasks.shared.apply_async(("same",), task_id="leader")
    for _ in range(2):
        tasks.shared.apply_async(("same",), task_id="follower")
    keys = made.valkey.client.keys("rlw:followers:*")
    assert made.valkey.client.zrange(keys[0], 0, -1) == [b"follower"]
    assert made.valkey.client.exists("rlw:call:follower~1") == 0


def test_the_id_of_another_call_is_refused(made: Fleet) -> None:
    """One id, two questions: the second is told so, and nothing of it is stored."""
    tasks = made.agent()
    tasks.echo.apply_async((1,), task_id="one")
    for make in (
        lambda: tasks.echo.apply_async((2,), task_id="one"),
        lambda: tasks.double.apply_async((1,), task_id="one"),
        lambda: tasks.app.send_task(tasks.echo.name, (3,), task_id="one"),
    ):
        with pytest.raises(BadInput, match="task_id='one'"):
            make()
    assert made.valkey.client.exists("rlw:call:one~1") == 0


def test_a_canvas_that_is_sent_again_runs_once(made: Fleet) -> None:
    """A chain's and a chord's calls keep their ids when they were frozen; each of them is asked once."""
    made.worker("first")
    tasks = made.agent()
    canvas = chain(tasks.stamp.s("a"), tasks.stamp.si("b"))
    canvas.freeze()
    for _ in range(2):
        assert canvas.apply_async().get(timeout=120) == "b"
    assert sorted(what for _, what in made.stamps()) == ["a", "b"]


def test_a_task_with_an_argument_of_that_name_gets_it(made: Fleet) -> None:
    """`task_id=` of `.delay()` is the call's only where the function has no use for it."""
    tasks = made.agent()

    @tasks.llm_task(app=tasks.app, shared=False, cache=False, lane="free", name="own_id")
    def own_id(task_id: str) -> str:
        return task_id

    assert own_id.delay(task_id="mine").id != "mine"
    assert tasks.echo.delay(1, task_id="mine").id == "mine"


def test_within_a_decision_the_outer_one_counts() -> None:
    """What was asked inside has no time of its own; an answer that was read leaves nothing open."""
    with deciding(5.0) as outer:
        with deciding(50.0) as inner:
            assert inner is outer
        with answering():
            assert outer.sent
        assert not outer.sent
        with pytest.raises(OSError, match="cut"), answering():
            raise OSError("cut")
        assert outer.sent
    assert decide.current() is None


@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_a_call_in_process_goes_ahead(made: Fleet, warm: bool) -> None:
    """It waits for no more than its decision, whether or not Redis has been there before; the basic pace holds then."""
    slept: list[float] = []
    live = Services(replace(read_settings(), rate_limit_delay=0.5), made.valkey.url)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds / 10)

    limiter = AdvancedRateLimiter(live, sleep=sleep)
    try:
        if warm:
            assert limiter.make_rate_limited_call(lambda: 1, cache_enabled=False) == 1
        with frozen(made.valkey), hurried() as given:
            assert limiter.make_rate_limited_call(lambda: 2, cache_enabled=False) == 2
            assert not limiter.is_enabled()
        assert slept[-1] == 0.5
        assert sum(slept[:-1]) <= 10 * ENTER_S  # they sleep a tenth
        assert decide.DECIDE_S in given
    finally:
        limiter.close()


def test_an_answer_in_process_is_given_back_while_redis_is_frozen(made: Fleet) -> None:
    """It was frozen while the function ran: what is to be told of it is kept for later, at the cost of one decision."""
    limiter = AdvancedRateLimiter(Services(read_settings(), made.valkey.url))
    pid = made.valkey.pid

    def ask() -> int:
        os.kill(pid, signal.SIGSTOP)
        return 3

    try:
        with hurried() as given:
            assert limiter.make_rate_limited_call(ask, func_name="ask", cache_enabled=False) == 3
            asked = len(given)
        assert asked <= 6
    finally:
        os.kill(pid, signal.SIGCONT)
        limiter.close()


def test_what_a_worker_has_in_hand_has_more_time(made: Fleet) -> None:
    """A retry and the next step of a canvas outlast a pause of Redis: nobody would make them again."""
    tasks = made.agent()
    task = tasks.echo
    plan = task.plan((1,), {})
    task.push_request(
        id="one", task=task.name, called_directly=False, is_eager=False, rlw_plan=plan, rlw_number=1, retries=0
    )
    _task_stack.push(task)
    try:
        with hurried(by=1.0) as given:
            task.apply_async((1,), task_id="one", retries=1)
            task.apply_async((1,), parent_id="one")
            task.delay(1)
    finally:
        _task_stack.pop()
        task.pop_request()
    assert given == [IN_HAND_S, IN_HAND_S, decide.DECIDE_S]
