"""Calls without a queue: the same lanes, retries and tracking, without a worker; and no lanes where there are none."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker import get_advanced_rate_limiter, make_optimized_llm_call, optimize_api_call, wiring
from ratelimit_worker.calls import Attempt, Category, LaneLimits, Outcome
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import BadInput, DeadlineExceeded, LaneFull, ServerError
from ratelimit_worker.flow.call.admit import Entering, News
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.duty import clean
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.inprocess.lane import lane_of
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.desks import PREFIX, Desks
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.wiring import Services
from tests import leftovers
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Valkey, fleet

pytestmark = pytest.mark.server

LANES = '{"free": {"unlimited": true}, "one": {"unlimited": true, "concurrency": 1}, "paced": {"rpm": 1200}}'


class Clock:
    """A clock that moves only when somebody sleeps, and remembers for how long."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds


class Place:
    """A broker without workers, and this process's limiter on it."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.live = wiring.use(read_settings())
        self.limiter = AdvancedRateLimiter(self.live, jitter=lambda: 0.0)

    def call(self, func: Callable[..., Any], *args: Any, lane: str = "free", **options: Any) -> Any:
        """One call; these tests are about lanes, so it shares nothing where they do not say so."""
        options.setdefault("cache_enabled", False)
        return self.limiter.make_rate_limited_call(func, options.pop("name", None), args, lane=lane, **options)

    def attempts(self, expected: int) -> list[Attempt]:
        """All recorded attempts, once there are so many."""
        tracker = Tracker(engine_for(self.live.settings.database_url))
        found: list[Attempt] = []

        def recorded() -> bool:
            rows = everything(tracker)
            found[:] = sorted(rows, key=lambda row: row.started_at)
            return len(found) >= expected

        wait_for(recorded, what=f"{expected} attempts are recorded")
        return found

    def close_lane(self, lane: str) -> None:
        """Nothing more is released from it."""
        fields = limit_fields(LaneLimits(rpm=60))
        self.live.lanes.set_points(lane, {"schema": 1, **fields, "p1": 0.0, "adaptive": 0})

    def open_lane(self, lane: str) -> None:
        """It has no pace any more."""
        self.live.lanes.set_points(lane, {"unlimited": 1})

    def queue(self) -> str:
        """The queue of this process's desk."""
        found: Any = self.live.redis.zrange(keys.DESKS, 0, -1)
        (name,) = found
        return str(name.decode())


def everything(tracker: Tracker) -> list[Attempt]:
    """Every attempt that a tracking database holds."""
    from sqlalchemy import text

    with tracker._engine.connect() as connection:
        try:
            ids = [row[0] for row in connection.execute(text("SELECT DISTINCT call_id FROM attempts"))]
        except Exception:
            return []
    return [attempt for call_id in ids for attempt in tracker.attempts_of(call_id)]


@pytest.fixture
def place() -> Iterator[Place]:
    """A broker of its own, no Celery worker."""
    with fleet(MAISD_LANES=LANES) as made:
        here = Place(made)
        yield here
        here.limiter.close()


# ── the same lane, retries and tracking ──────────────────────────────────────────────────────────────────────────────


def test_a_call_goes_through_its_lane_and_is_recorded(place: Place) -> None:
    """What the function returns comes back; the attempt is recorded with its names."""
    assert place.call(lambda x, y: x + y, 1, 2, name="add", context="sums", context_tags=["a", "b"]) == 3
    (attempt,) = place.attempts(1)
    assert (attempt.task, attempt.lane, attempt.context, attempt.tags) == ("add", "free", "sums", ("a", "b"))
    assert attempt.outcome is Outcome.ANSWERED
    assert attempt.queue == "in-process"


def test_one_process_alone_keeps_the_pace(place: Place) -> None:
    """Nobody else pumps: this process releases its own calls, at the lane's pace."""
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(lambda n: place.call(lambda: n, lane="paced"), range(30))) == list(range(30))
    assert_paced([attempt.started_at for attempt in place.attempts(30)], per_s=20)


@pytest.mark.worker
def test_in_process_and_queued_calls_share_a_lane_fairly(place: Place) -> None:
    """Both make progress all the time, and together they keep the lane's pace."""
    place.fleet.worker("w1")
    agent = place.fleet.agent()
    place.live = wiring.services()
    place.limiter = AdvancedRateLimiter(place.live)
    place.call(lambda: None, lane="free")  # the desk is open
    with ThreadPoolExecutor(40) as pool:
        pairs = [
            (agent.stamp.apply_async((f"q{n}",), lane="paced"), pool.submit(place.call, lambda n=n: n, lane="paced"))
            for n in range(40)
        ]
        assert [call.result(20) for _, call in pairs] == list(range(40))
        assert [queued.get(timeout=120) for queued, _ in pairs] == [f"q{n}" for n in range(40)]
    rows = [attempt for attempt in place.attempts(81) if attempt.lane == "paced"]
    assert_paced([row.started_at for row in rows], per_s=20)
    for part in (rows[:20], rows[20:40], rows[40:60], rows[60:]):
        assert min(Counter(row.queue for row in part).values()) >= 5
        assert {row.queue for row in part} == {"fleet", "in-process"}


def assert_paced(starts: list[float], per_s: float) -> None:
    """No second has more starts than the pace allows, a burst of one and two whose release travelled (see own_room)."""
    starts = sorted(starts)
    assert starts[-1] - starts[0] >= (len(starts) - 4) / per_s
    for first in starts:
        assert sum(1 for at in starts if first <= at < first + 1.0) <= per_s + 3


def test_failures_are_retried_by_category(place: Place) -> None:
    """Server errors in a lane that answers nobody else cost no tries; the third attempt is answered."""
    fails = iter([ServerError("HTTP 500", 500), ServerError("HTTP 502", 502)])

    def flaky() -> str:
        for error in fails:
            raise error
        return "at last"

    assert place.call(flaky) == "at last"
    rows = place.attempts(3)
    assert [row.outcome for row in rows] == [Outcome.SNOOZED, Outcome.SNOOZED, Outcome.ANSWERED]
    assert [row.number for row in rows] == [1, 2, 3]
    assert len({row.call_id for row in rows}) == 1


def test_a_call_has_a_rule_of_its_own(place: Place) -> None:
    """What we do not know is retried where the rule says so; the caller sees what the function raised."""
    fails = iter([LookupError("x"), LookupError("y")])

    def flaky() -> str:
        for error in fails:
            raise error
        return "at last"

    assert place.call(flaky, classify=lambda error: Category.CONFLICT) == "at last"
    rows = place.attempts(3)
    assert [row.category for row in rows] == [Category.CONFLICT, Category.CONFLICT, None]
    assert [row.outcome for row in rows] == [Outcome.RETRIED, Outcome.RETRIED, Outcome.ANSWERED]
    fails = iter([LookupError("z")])
    with pytest.raises(LookupError) as failed:
        place.call(flaky, classify=lambda error: "invalid_request")
    assert failed.value.__notes__ == ["invalid_request after 1 attempt(s): LookupError"]
    fails = iter([LookupError("z")])
    with pytest.raises(LookupError) as unknown:
        place.call(flaky)
    assert not hasattr(unknown.value, "__notes__")


class Refused(Exception):
    """As an SDK says 429."""

    status_code = 429


def test_a_refused_call_waits_for_the_lane(place: Place) -> None:
    """A 429 costs nothing but time."""
    refusals = iter([Refused(), Refused()])

    def busy() -> str:
        for error in refusals:
            raise error
        return "taken"

    assert place.call(busy) == "taken"
    rows = place.attempts(3)
    assert [row.outcome for row in rows] == [Outcome.SNOOZED, Outcome.SNOOZED, Outcome.ANSWERED]


class NotFound(Exception):
    """As an SDK says 404."""

    status_code = 404


@pytest.mark.parametrize("error", [LookupError("mine"), TypeError("a fault"), NotFound("no such model")])
def test_what_the_function_raises_is_what_the_caller_sees(place: Place, error: Exception) -> None:
    """The very exception, retried or not; a verdict of ours is a note on it."""

    def fails() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        place.call(fails)
    assert caught.value is error
    (row,) = place.attempts(1)
    assert row.outcome is Outcome.FAILED


def test_stop_iteration_passes_too(place: Place) -> None:
    """`next(...)` on something empty is a fault of the function like any other."""
    with pytest.raises(StopIteration):
        place.call(lambda: next(iter([])))


def test_the_lane_may_refuse(place: Place) -> None:
    """Full, badly named, or silent until the deadline: the function is not called."""
    called: list[str] = []
    with pytest.raises(BadInput):
        place.call(lambda: called.append("bad"), lane="no\nlane")
    place.close_lane("shut")
    with pytest.raises(DeadlineExceeded):
        place.call(lambda: called.append("late"), lane="shut", deadline_s=0.3)
    settings = read_settings({**os.environ, "MAISD_MAX_WAITING": "1"})
    crowded = AdvancedRateLimiter(Services(settings))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(crowded.make_rate_limited_call, lambda: "first", lane="shut")
        wait_for(lambda: waiting(place, "shut") == 1, what="one waits")
        with pytest.raises(LaneFull):
            crowded.make_rate_limited_call(lambda: called.append("full"), lane="shut")
        place.open_lane("shut")
        assert first.result(10) == "first"
    crowded.close()
    assert called == []


def waiting(place: Place, lane: str) -> int:
    """Calls that wait in a lane, over all queues of in-process callers."""
    found: Any = place.live.redis.smembers(f"rlw:queues:{lane}")
    queues = [name.decode() for name in found]
    return sum(place.live.lanes.size(queue) for queue in queues)


def test_a_call_inside_a_call_does_not_wait_for_itself(place: Place) -> None:
    """In a lane that lets one run at a time, the outer call steps aside for the inner one; both are recorded."""

    def outer() -> int:
        return 1 + int(place.call(lambda: 1, lane="one", name="inner"))

    assert place.call(outer, lane="one", name="outer", deadline_s=10) == 2
    assert {row.task for row in place.attempts(2)} == {"inner", "outer"}


def test_an_outer_call_that_stepped_aside_is_retried_all_the_same(place: Place) -> None:
    """It enters its lane anew, with its tries."""
    fails = iter([ServerError("HTTP 500", 500)])

    def outer() -> int:
        inner = place.call(lambda: 1, lane="one", name="inner")
        for error in fails:
            raise error
        return int(inner) + 1

    assert place.call(outer, lane="one", name="outer", deadline_s=10) == 2
    rows = [row for row in place.attempts(4) if row.task == "outer"]
    assert [(row.outcome, row.number) for row in rows] == [(Outcome.RETRIED, 1), (Outcome.ANSWERED, 2)]


def test_arguments_never_go_to_redis_and_answers_only_to_be_shared(place: Place) -> None:
    """They stay in the process: the append-only file, which has every write, never saw them."""
    assert place.call(lambda prompt: f"so you say {prompt}", "CanaryPrompt") == "so you say CanaryPrompt"
    assert place.call(lambda prompt: f"{len(prompt)} letters", "CanaryPrompt", cache_enabled=True) == "12 letters"
    place.limiter.close()
    place.fleet.valkey.stop()
    files = [path for path in place.fleet.folder.rglob("*.aof") if path.is_file()]
    assert any(b"rlw:" in path.read_bytes() for path in files)
    assert not [path for path in files if b"CanaryPrompt" in path.read_bytes()]
    assert any(b"12 letters" in path.read_bytes() for path in files)


# ── functions, methods, coroutines ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mine(place: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The process's own limiter is the one of the place."""
    monkeypatch.setattr("ratelimit_worker.inprocess.limiter._limiter", place.limiter)
    return place


def test_the_decorator_on_everything_that_can_be_called(mine: Place) -> None:
    """Functions, methods of all kinds and coroutines keep their names and take part under the given ones."""

    class Analyst:
        factor = 2

        @optimize_api_call(func_name="brd_analysis", context="business_requirements", context_tags=["analysis"])
        def analyze(self, brd: int) -> int:
            """Says something."""
            return brd * self.factor

        @optimize_api_call(func_name="of_class", lane="free")
        @classmethod
        def of_class(cls, n: int) -> int:
            return n * cls.factor

        @staticmethod
        @optimize_api_call("static", lane="free")
        def static(n: int) -> int:
            return n + 1

        @optimize_api_call(func_name="awaited", lane="free", cache_enabled=False)
        async def awaited(self, n: int) -> int:
            await asyncio.sleep(0)
            return n * self.factor

    @optimize_api_call
    def bare() -> str:
        return "bare"

    assert Analyst().analyze(21) == 42
    assert (Analyst.analyze.__name__, Analyst.analyze.__doc__) == ("analyze", "Says something.")
    assert Analyst.of_class(2) == 4
    assert Analyst.static(2) == 3
    assert asyncio.run(Analyst().awaited(4)) == 8
    assert bare() == "bare"
    assert make_optimized_llm_call(func=max, func_name="llm_invoke", args=(1, 2), kwargs={}, context="general") == 2
    rows = {row.task: row for row in mine.attempts(6)}
    assert rows["brd_analysis"].context == "business_requirements"
    assert rows["brd_analysis"].tags == ("analysis",)
    assert rows["brd_analysis"].lane == "default"
    assert {"of_class", "static", "awaited", "llm_invoke"} <= set(rows)
    assert any(name.endswith("bare") for name in rows)


def test_a_stream_cannot_be_decorated() -> None:
    """A generator makes its request after the call: pacing it would pace nothing."""
    with pytest.raises(TypeError, match="opens the stream"):

        @optimize_api_call(func_name="stream")
        def stream() -> Iterator[int]:
            yield 1


def test_coroutines_run_in_the_callers_loop(place: Place) -> None:
    """Many wait at once without a thread each; errors and retries are as for functions."""
    fails = iter([ServerError("HTTP 500", 500)])

    async def work(n: int) -> tuple[int, str]:
        if n == 7:
            for error in fails:
                raise error
        if n == 8:
            raise LookupError("mine")
        await asyncio.sleep(0)
        return n, threading.current_thread().name

    async def main() -> list[Any]:
        return await asyncio.gather(*(place.call(work, n) for n in range(100)), return_exceptions=True)

    before = threading.active_count()
    answers = asyncio.run(main())
    here = threading.current_thread().name
    assert [a for n, a in enumerate(answers) if n != 8] == [(n, here) for n in range(100) if n != 8]
    assert isinstance(answers[8], LookupError)
    assert threading.active_count() - before < 20


def test_a_cancelled_coroutine_leaves_its_lane(place: Place) -> None:
    """Nothing of it waits any more, and the next call gets the permit."""
    place.close_lane("shut")

    async def never() -> None:
        raise AssertionError

    async def main() -> None:
        task = asyncio.create_task(place.call(never, lane="shut"))
        while waiting(place, "shut") == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    wait_for(lambda: waiting(place, "shut") == 0, what="the call has left")


def test_an_interrupt_passes_and_frees_the_place(place: Place) -> None:
    """Ctrl-C inside the function is no failure of the call, and its slot is free again."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        place.call(interrupted, lane="one")
    assert place.call(lambda: "next", lane="one", deadline_s=10) == "next"


class Panic(BaseException):
    """No Exception."""


class Asked:
    """What `ask_once` does, and has done; outside of it, so that all its calls are the same."""

    kind: type[BaseException]
    runs: list[str]
    leads: threading.Event
    may_end: threading.Event


def ask_once(what: str) -> str:
    """The first that asks raises, when it may."""
    Asked.runs.append(what)
    if len(Asked.runs) == 1:
        Asked.leads.set()
        Asked.may_end.wait(60)
        raise Asked.kind
    return what


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, Panic])
def test_whatever_a_function_raises_frees_its_place_and_its_followers(place: Place, kind: type[BaseException]) -> None:
    """Its caller gets it as it was raised, the next of those that wait for the same asks, and it has a row."""
    Asked.kind, Asked.runs, Asked.leads, Asked.may_end = kind, [], threading.Event(), threading.Event()

    def caller() -> str | BaseException:
        try:
            return str(place.call(ask_once, "same", lane="one", cache_enabled=True))
        except BaseException as error:
            return error

    with ThreadPoolExecutor(4) as callers:
        first = callers.submit(caller)
        assert Asked.leads.wait(60)
        others = [callers.submit(caller) for _ in range(3)]
        wait_for(lambda: len(place.live.redis.keys("rlw:call:*")) == 4, what="they wait for its answer")
        Asked.may_end.set()
        assert type(first.result(120)) is kind
        assert [other.result(120) for other in others] == ["same"] * 3
    # A MemoryError is an Exception, and in process each follower of one that failed makes its own attempt.
    assert len(Asked.runs) == (4 if kind is MemoryError else 2)
    row = place.attempts(len(Asked.runs))[0]
    assert (row.outcome, row.cause, row.number) == (Outcome.FAILED, kind.__name__, 1)
    wait_for(lambda: place.live.redis.zcard("rlw:ledger") == 0, what="nothing is out")
    assert place.live.redis.keys("rlw:claim:*") == []


def test_a_task_that_is_cancelled_while_it_runs_frees_its_place(place: Place) -> None:
    """As do a time-out around it, and a coroutine that is thrown away; each has its row."""

    async def forever() -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        task = asyncio.create_task(place.call(forever, lane="one"))
        while place.live.redis.zcount("rlw:out:one", 1, 1) == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await place.call(forever, lane="one", deadline_s=60)

    asyncio.run(main())
    assert place.call(lambda: "next", lane="one", deadline_s=60) == "next"
    rows = place.attempts(2)
    assert [row.cause for row in rows if row.outcome is Outcome.FAILED][:1] == ["CancelledError"]
    wait_for(lambda: place.live.redis.zcard("rlw:ledger") == 0, what="nothing is out")


@pytest.mark.parametrize(
    ("kwargs", "lane"),
    [
        ({"model": "gpt-4o"}, "openai:gpt-4o"),
        ({"model": "claude-sonnet"}, "anthropic:claude-sonnet"),
        ({"model": "groq/llama-3"}, "groq:llama-3"),
        ({"model": "somebody-elses"}, None),
        ({"model": 7}, None),
        ({}, None),
    ],
)
def test_the_lane_follows_from_the_model(kwargs: dict[str, Any], lane: str | None) -> None:
    """As far as one can tell; else it is the default lane."""
    assert lane_of(lambda **_: None, kwargs) == lane


# ── Redis away, restarted, emptied ───────────────────────────────────────────────────────────────────────────────────


def test_without_redis_calls_go_ahead_at_the_basic_pace(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Redis away from the start: 20 calls, none fails, each waits RATE_LIMIT_DELAY; advanced again when it is there."""
    valkey = Valkey(tmp_path)
    clock = Clock()
    limiter = AdvancedRateLimiter(
        Services(basic_settings(valkey.url, tmp_path)), clock=clock, sleep=clock.sleep, jitter=lambda: 0.0
    )
    starts: list[float] = []
    with caplog.at_level(logging.WARNING, "ratelimit_worker.inprocess.basic"):
        for n in range(20):

            def starts_now(n: int = n) -> int:
                starts.append(clock.now_s)
                return n

            assert limiter.make_rate_limited_call(starts_now) == n
    assert clock.slept == [0.25] * 20
    assert starts == [1_000.0 + 0.25 * (n + 1) for n in range(20)]
    assert len(caplog.records) == 1
    assert not limiter.is_enabled()
    clock.now_s += 60
    with caplog.at_level(logging.WARNING, "ratelimit_worker.inprocess.basic"):
        limiter.make_rate_limited_call(lambda: None)
    assert len(caplog.records) == 2, "said once a minute"

    valkey.start()
    try:
        wait_for(limiter.is_enabled, what="lanes are used again")
        slept = len(clock.slept)
        assert limiter.make_rate_limited_call(lambda: "advanced") == "advanced"
        assert len(clock.slept) == slept
        assert limiter.services.lanes.names() == ["default"]
        leftovers.check(valkey.client)
    finally:
        limiter.close()
        valkey.stop()


def test_threads_share_the_basic_pace(tmp_path: Path) -> None:
    """One call per delay in the process, not in each thread: every start is a delay after the one before."""
    valkey = Valkey(tmp_path)
    waits: list[float] = []
    limiter = AdvancedRateLimiter(
        Services(basic_settings(valkey.url, tmp_path)), clock=lambda: 50.0, sleep=waits.append
    )
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: limiter.make_rate_limited_call(lambda: None), range(8)))
    limiter.close()
    assert sorted(waits) == [0.25 * (n + 1) for n in range(8)]


def basic_settings(url: str, folder: Path) -> Settings:
    """Settings for a server that is not there (yet)."""
    return read_settings({"MAISD_REDIS_URL": url, "MAISD_STATE_DIR": str(folder / "state"), "RATE_LIMIT_DELAY": "0.25"})


def test_waiting_calls_outlive_a_restart_of_redis(place: Place) -> None:
    """Redis stops and comes back with its memory: who waited gets its turn, once."""
    place.close_lane("shut")
    ran: list[int] = []
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(place.call, lambda n=n: ran.append(n), lane="shut") for n in range(3)]
        wait_for(lambda: waiting(place, "shut") == 3, what="three wait")
        place.fleet.valkey.stop()
        place.fleet.valkey.start()
        place.open_lane("shut")
        for call in calls:
            call.result(15)
    assert sorted(ran) == [0, 1, 2]


def test_an_answer_that_came_is_not_lost_to_an_outage(place: Place) -> None:
    """Redis goes away while the function runs: its answer is returned at once, and its outcome is told later."""

    def outage() -> str:
        place.fleet.valkey.stop()
        return "answer"

    assert place.call(outage, name="outage") == "answer"
    place.fleet.valkey.start()
    assert [row.task for row in place.attempts(1)] == ["outage"]


def test_a_call_that_redis_forgot_is_entered_anew(place: Place) -> None:
    """Redis lost its memory: the caller still has the arguments, and the call still runs, once."""
    place.close_lane("shut")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(place.call, lambda: "still there", lane="shut")
        wait_for(lambda: waiting(place, "shut") == 1, what="it waits")
        place.live.redis.flushall()  # and with it what closed the lane
        assert call.result(15) == "still there"


def test_a_long_outage_is_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis stays away: who waited goes ahead at the basic pace; its entry is taken out once Redis is back."""
    monkeypatch.setattr("ratelimit_worker.inprocess.presence.PATIENCE_S", 0.3)
    clock = Clock()
    place.limiter = AdvancedRateLimiter(place.live, clock=clock, sleep=clock.sleep)
    place.close_lane("shut")
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(place.call, lambda: "alone", lane="shut")
        wait_for(lambda: waiting(place, "shut") == 1, what="it waits")
        place.fleet.valkey.stop()
        assert call.result(15) == "alone"
    assert clock.slept[-1] == place.live.settings.rate_limit_delay
    place.fleet.valkey.start()
    wait_for(lambda: waiting(place, "shut") == 0, what="its entry is taken out")


@pytest.mark.parametrize("fails", [False, True])
def test_a_caller_that_was_taken_for_dead_runs_once(place: Place, fails: bool) -> None:
    """Its lease ended while it ran (the process was frozen), and the call was released again: it runs once at a time.

    Where the attempt fails it is retried under a new reference; either way nothing stays in Redis.
    """
    starts: list[str] = []
    errors = iter([ServerError("HTTP 500", 500)] if fails else [])

    def frozen() -> str:
        starts.append("start")
        held: Any = place.live.redis.zrange("rlw:ledger", 0, -1)
        tags = [tag.decode() for tag in held]
        if len(starts) == 1:
            assert place.live.lanes.restore(tags) == 1
            wait_for(
                lambda: place.live.redis.llen(keys.ready(keys.ALL, place.queue())) == 0,
                what="its second release was read",
            )
        for error in errors:
            raise error
        return "answer"

    assert place.call(frozen) == "answer"
    assert len(starts) == 1 + fails
    wait_for(lambda: place.live.redis.zcard("rlw:ledger") == 0, what="the ledger is empty")
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="no call is left")


def test_a_second_release_between_the_answer_and_the_end_of_the_call_is_freed(place: Place) -> None:
    """It comes after the first was freed and before its caller has left: nobody runs it, and it is not left behind."""
    place.call(lambda: "opens the desk")
    desk = place.limiter._desk
    assert desk is not None
    heard: list[str | News] = []
    turn = desk.wait("late", heard.append)
    plan = Plan(lane="free", publication="p", deadline_s=time.time() + 60)
    tag = desk.enter([Entering(turn, "late", plan, after_s=0.0)])[0].get().tag
    turn.tags, turn.tried = [], False  # as `free` leaves it when the answer came before the second release
    assert desk.mailbox.deliver(tag)
    desk.leave(turn)
    desk.beat(desk.lanes)  # tells Redis what is left; without that the ledger keeps it until its lease ends
    assert place.live.redis.zcard("rlw:ledger") == 0


# ── processes that end ───────────────────────────────────────────────────────────────────────────────────────────────

WAITS = """
from ratelimit_worker import get_advanced_rate_limiter
get_advanced_rate_limiter().make_rate_limited_call(print, "left", lane="shut")
"""


def python(code: str, **env: str) -> subprocess.Popen[str]:
    """A process that runs this code."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_calls_of_a_killed_process_are_forgotten(place: Place) -> None:
    """It can no longer take its turn: whoever looks after 10 s of silence takes its calls out of the lanes."""
    place.close_lane("shut")
    process = python(WAITS)
    try:
        wait_for(lambda: waiting(place, "shut") == 1, timeout_s=120.0, what="the other process waits")
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
    queue = place.queue()
    assert queue.startswith(PREFIX)
    desks = Desks(place.live.redis)
    assert desks.forget_absent("a", 3.0) == 0, "it may live"
    assert waiting(place, "shut") == 1
    place.live.redis.delete("rlw:duty:desks")
    place.live.redis.zincrby(keys.DESKS, -11.0, queue)  # 11 seconds pass
    assert desks.forget_absent("a", 3.0) == 1
    assert waiting(place, "shut") == 0
    assert place.live.redis.zcard(keys.DESKS) == 1, "what it ran may still come back from the ledger"
    place.live.redis.delete("rlw:duty:desks")
    place.live.redis.zincrby(keys.DESKS, -6.0, queue)
    desks.forget_absent("a", 3.0)
    assert place.live.redis.zcard(keys.DESKS) == 0


def test_a_process_that_ends_leaves_nothing_but_its_outcome(place: Place) -> None:
    """Exit of a short script: what it learned is in the database, and it is gone from Redis."""
    code = "from ratelimit_worker import make_optimized_llm_call as c; print(c(lambda: 5, 'short', lane='free'))"
    assert done(python(code)) == "5\n"
    assert [row.task for row in place.attempts(1)] == ["short"]
    assert place.live.redis.zcard(keys.DESKS) == 0
    assert place.live.redis.zcard("rlw:workers") == 0
    assert place.live.redis.zcard("rlw:ledger") == 0


FORKS = """
import os
from ratelimit_worker import get_advanced_rate_limiter
how = {"lane": "free", "cache_enabled": False}
def call(): return get_advanced_rate_limiter().make_rate_limited_call(os.getpid, "pid", **how)
assert call() == os.getpid()
child = os.fork()
if child == 0:
    assert call() == os.getpid()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert call() == os.getpid()
print("both")
"""


def test_a_forked_child_has_a_desk_of_its_own(place: Place) -> None:
    """A process that forks after its first call (gunicorn, multiprocessing): parent and child both go on."""
    assert done(python(FORKS)) == "both\n"


def test_a_function_at_fault_gets_two_tries(place: Place) -> None:
    """Among others that are answered, one that always fails has its six tries, and from then on two; jitter is nil."""
    tries: list[str] = []

    def fail(what: str) -> None:
        tries.append(what)
        for _ in range(4):  # among good answers, so that it is no row
            place.call(lambda: None, lane="mixed", name="good")
        raise ServerError("HTTP 500", 500)

    for what in ("first", "second", "third"):
        with pytest.raises(ServerError):
            place.call(fail, what, lane="mixed", name="bad")
    assert [tries.count(what) for what in ("first", "second", "third")] == [6, 2, 2]


# ── the cluster as a program sees it ─────────────────────────────────────────────────────────────────────────────────


def test_one_object_a_process() -> None:
    """Made without reading or connecting anything."""
    assert get_advanced_rate_limiter() is get_advanced_rate_limiter()


def test_modes_are_pinned_and_given_back(place: Place) -> None:
    """`set_mode` is the command line's: the whole cluster, or one lane."""
    place.call(lambda: None, lane="paced")
    changes = place.limiter.set_mode("emergency", lane="paced", reason="a test")
    assert [(change.lane, str(change.to_mode)) for change in changes] == [("paced", "EMERGENCY")]
    # A tuner that has decided just before puts right what it writes over it, in the same turn.
    wait_for(lambda: place.live.lanes.fields("paced")["mode"] == b"EMERGENCY")
    place.limiter.set_mode("auto", lane="paced")
    wait_for(lambda: place.live.lanes.fields("paced")["mode"] == b"NORMAL")
    with pytest.raises(BadInput, match="emergency"):
        place.limiter.set_mode("panic")


def test_stats_tell_what_was_called(place: Place) -> None:
    """The figures of three windows, as plain values."""
    fails = iter([ServerError("HTTP 500", 500)])

    def flaky() -> None:
        for error in fails:
            raise error

    place.call(flaky)
    place.attempts(2)
    found = place.limiter.get_comprehensive_stats()
    assert set(found) == {"15m", "1h", "24h"}
    assert found["1h"]["total"]["attempts"] == 2
    assert json.loads(json.dumps(found))["1h"]["total"] == found["1h"]["total"]
    report = place.limiter.export_analytics()
    assert report is not None
    place.limiter.export_analytics(place.fleet.folder / "report.json")
    assert json.loads((place.fleet.folder / "report.json").read_text("utf-8")).keys() == report.keys()


def test_cleanup_deletes_old_outcomes(place: Place) -> None:
    """Rows older than the retention go, others stay."""
    place.call(lambda: None, name="new")
    (row,) = place.attempts(1)
    # Without a worker this process cleans too, once at its start: it must not take the row that the test counts.
    duty, redis = keys.duty(clean.NAME), place.live.redis
    wait_for(lambda: redis.pttl(duty) > clean.LEASE_S * 1000, what="the first clean-up is over")
    old = Attempt(
        call_id="old",
        number=1,
        lane="free",
        task="old",
        outcome=Outcome.ANSWERED,
        started_at=row.started_at - 8 * 86_400,
        finished_at=row.started_at - 8 * 86_400,
        waited_s=0.0,
    )
    place.live.tracker.record([old])
    assert place.limiter.cleanup() == {"outcomes": 1, "abandoned_calls": 0}
    assert [left.task for left in place.attempts(1)] == ["new"]


def test_cached_answers_are_forgotten(place: Place) -> None:
    """Of one context, or all."""
    for name, context in (("a", "x"), ("b", "y"), ("c", "y")):
        place.live.redis.hset(f"rlw:cache:{name}", mapping={"context": context})
        place.live.redis.zadd("rlw:cache:used", {name: 1})
    assert place.limiter.invalidate_cache("y") == 2
    assert sorted(place.live.redis.keys("rlw:cache:*")) == [b"rlw:cache:a", b"rlw:cache:used"]
    place.limiter.invalidate_cache()
    assert place.live.redis.keys("rlw:cache:*") == []
