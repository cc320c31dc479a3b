"""Do in-process calls that are the same share one request, as those on a queue do? Real server, threads, processes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import threading
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import httpx2 as httpx
import pytest
from click.testing import CliRunner

from ratelimit_worker.calls import Priority
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, DeadlineExceeded, InvalidRequest
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.inprocess.owner import Unshareable
from ratelimit_worker.inprocess.sharing import identity
from ratelimit_worker.stores import answers, keys
from ratelimit_worker.wiring import Services
from tests import shared_functions as shared
from tests.conftest import wait_for
from tests.fleet import fleet
from tests.inprocess.test_inprocess import LANES, Place, done, python
from tests.shared_functions import said

pytestmark = pytest.mark.server


class Slotted:
    """Without a `__dict__`."""

    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value


class SharingPlace(Place):
    """As in test_inprocess, with calls that share."""

    def call(self, func: Callable[..., Any], *args: Any, lane: str = "free", **options: Any) -> Any:
        """One call."""
        return super().call(func, *args, lane=lane, **{"cache_enabled": True, **options})

    def together(self, func: Callable[..., Any], *args: Any, number: int = 2, **options: Any) -> list[Future[Any]]:
        """The same call so often at once: no run ends before each of the calls runs, or follows another."""
        what, before = args[0], self.counter("joined")
        with ThreadPoolExecutor(number) as pool:
            with shared.held(what):
                first = pool.submit(self.call, func, *args, **options)
                wait_for(lambda: first.done() or said(what), what="the first runs")
                calls = [first, *(pool.submit(self.call, func, *args, **options) for _ in range(number - 1))]
                wait_for(lambda: len(said(what)) + self.counter("joined") - before >= number, what="all are there")
            return calls

    def counter(self, name: str) -> int:
        """What the server has counted."""
        return self.live.lanes.counters().get(name, 0)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[SharingPlace]:
    """A broker of its own, no Celery worker; the process's own limiter is on it too."""
    with fleet(MAISD_LANES=LANES) as made:
        here = SharingPlace(made)
        monkeypatch.setattr("ratelimit_worker.inprocess.limiter._limiter", here.limiter)
        yield here
        here.limiter.close()


# ── one request for all ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_call_twice_is_one_request(place: SharingPlace) -> None:
    """The second gets the kept answer, an object of its own; one attempt is recorded, one hit is counted."""
    first = place.call(shared.ask, "twice")
    second = place.call(shared.ask, "twice")
    assert first == second == ["twice", 1]
    assert first is not second
    assert len(place.attempts(1)) == 1
    assert (place.counter("cache_hits"), place.counter("joined")) == (1, 0)
    assert place.limiter.get_comprehensive_stats()["1h"]["cache_hits"] == 1
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="nothing is left but the answer")
    assert place.live.redis.keys("rlw:claim:*") == []


def test_calls_at_once_are_one_request(place: SharingPlace) -> None:
    """Threads join the one that is on its way, and all get its answer."""
    calls = place.together(shared.ask, "threads", 0.5, number=8)
    assert [call.result() for call in calls] == [["threads", 1]] * 8
    assert len(said("threads")) == 1
    assert place.counter("joined") == 7
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="no call is left")


def test_coroutines_at_once_are_one_request(place: SharingPlace) -> None:
    """The same for `async def`, and a thread's call finds the coroutine's answer kept."""

    async def main() -> list[Any]:
        with shared.held("loop"):
            calls = [asyncio.ensure_future(place.call(shared.ask_async, "loop")) for _ in range(20)]
            async with asyncio.timeout(120):
                while place.counter("joined") < 19:
                    await asyncio.sleep(0.02)
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [["loop", 1]] * 20
    assert asyncio.run(place.call(shared.ask_async, "loop")) == ["loop", 1]
    assert place.counter("joined") == 19


OTHER = """
import sys
from ratelimit_worker import get_advanced_rate_limiter
from tests import shared_functions
print(get_advanced_rate_limiter().make_rate_limited_call(shared_functions.once_gated, None, ("apart",), lane="free"))
"""


def test_two_processes_at_once_are_one_request(place: SharingPlace) -> None:
    """The second process joins the call of the first, and a third finds the answer kept."""
    first = python(OTHER)
    wait_for(lambda: said("apart"), what="the first process runs it")
    second = python(OTHER)
    wait_for(lambda: place.counter("joined") == 1, what="the second process has joined")
    (place.fleet.folder / "gate").touch()
    assert done(first) == done(second) == "['apart', 1]\n"
    assert place.call(shared.once_gated, "apart") == ["apart", 1]
    assert len(said("apart")) == 1


@pytest.mark.worker
def test_a_worker_beside_passes_answers_on(place: SharingPlace) -> None:
    """Where Celery workers release for the cluster: the same; and a task of the same name and arguments is another."""
    place.fleet.worker("w")
    calls = place.together(shared.ask, "beside", 0.5, number=4)
    assert [call.result() for call in calls] == [["beside", 1]] * 4
    holder: Any = place.live.redis.get("rlw:duty:pump")
    assert holder.decode().startswith("inproc:") is False
    task = place.fleet.agent().shared
    assert task.delay("both").get(timeout=120) == ["both", 1]
    assert place.call(shared.ask, "both", name=task.name, context="") == ["both", 1]
    assert len(said("both")) == 1, "it was made, too"


def test_a_killed_leader_is_replaced(place: SharingPlace) -> None:
    """SIGKILL in the middle of its run: who waits for its answer runs itself, within the lease and 10 s of silence."""
    leader = python(OTHER)
    try:
        wait_for(lambda: said("apart"), what="the other process runs it")
        with ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(place.call, shared.once_gated, "apart") for _ in range(2)]
            wait_for(lambda: place.counter("joined") == 2, what="both have joined")
            leader.send_signal(signal.SIGKILL)
            assert [call.result(40) for call in calls] == [["apart", 2]] * 2
    finally:
        leader.kill()
        leader.communicate(timeout=120)
    assert len(said("apart")) == 2


def test_a_cancelled_leader_is_replaced(place: SharingPlace) -> None:
    """Whoever followed it runs itself."""

    async def main() -> Any:
        leader = asyncio.create_task(place.call(shared.ask_async, "cancelled", 30.0))
        while not said("cancelled"):
            await asyncio.sleep(0.01)
        # the same call, but for the time, which would have been waited for in vain
        follower = asyncio.create_task(place.call(shared.ask_async, "cancelled", 30.0))
        while place.counter("joined") == 0:
            await asyncio.sleep(0.01)
        leader.cancel()
        while len(said("cancelled")) < 2:
            await asyncio.sleep(0.01)
        follower.cancel()

    asyncio.run(asyncio.wait_for(main(), 120))
    wait_for(lambda: place.live.redis.keys("rlw:claim:*") == [], what="no claim is left")


def test_a_follower_has_its_own_deadline(place: SharingPlace) -> None:
    """It waits no longer than it said; the leader goes on."""
    with ThreadPoolExecutor(1) as pool:
        with shared.held("late"):
            leader = pool.submit(place.call, shared.ask, "late")
            wait_for(lambda: said("late"), what="the leader runs")
            with pytest.raises(DeadlineExceeded):
                place.call(shared.ask, "late", deadline_s=0.3)
        assert leader.result() == ["late", 1]


# ── what is the same ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_different_calls_share_nothing(place: SharingPlace) -> None:
    """Arguments, keywords, name, context, lane, version and namespace all count."""
    ask = partial(place.call, shared.ask)
    different: list[Callable[[], Any]] = [
        lambda: ask("x"),
        lambda: ask("x", 0.001),
        lambda: ask("x", version="2"),
        lambda: ask("x", namespace="team"),
        lambda: ask("x", name="another"),
        lambda: ask("x", context="another"),
        lambda: ask("x", lane="one"),
        lambda: place.limiter.make_rate_limited_call(shared.ask, None, ("x",), {"a": 1}, lane="free"),
        lambda: place.limiter.make_rate_limited_call(shared.ask, None, ("x",), {"a": True}, lane="free"),
        lambda: place.limiter.make_rate_limited_call(shared.ask, None, ("x",), {"a": [1]}, lane="free"),
        lambda: place.limiter.make_rate_limited_call(shared.ask, None, ("x",), {"a": {1}}, lane="free"),
    ]
    runs = [make()[1] for make in different]
    assert runs == list(range(1, len(different) + 1))
    assert [make()[1] for make in different] == runs


def test_the_same_however_it_is_written(place: SharingPlace) -> None:
    """By the rules of calls on a queue: a name or none, a default given or left out, 1 and 1.0, a list and a tuple."""
    made = partial(place.limiter.make_rate_limited_call, shared.ask, lane="free")
    assert made(args=("way",)) == ["way", 1]
    assert made(kwargs={"what": "way"}) == made(args=("way", 0)) == ["way", 1]
    assert made(args=("way",), kwargs={"a": [1, 2.0]}) == ["way", 2]
    assert made(args=("way",), kwargs={"a": (1.0, 2)}) == ["way", 2]
    assert made(args=("way",), kwargs={"trace": 1}, ignore=["trace"]) == ["way", 1]
    assert made(args=("way",), tenant="acme", namespace="all") == ["way", 3]
    assert made(args=("way",), tenant="other", namespace="all") == ["way", 3]
    assert made(args=("way",), refresh=True) == ["way", 4]
    assert made(args=("way",)) == ["way", 4], "the new one took the place of the first"
    assert [made(args=("once",), no_store=True)[1] for _ in range(2)] == [1, 2]
    assert [made(args=("short",), cache_ttl=0)[1] for _ in range(2)] == [1, 2]


def renewed_while_held(place: SharingPlace, ask: Callable[..., Any], what: str) -> None:
    """An answer past its time is given at once while one call, which is held, asks anew; then there is a new one."""
    ask(what)
    with shared.held(what):
        wait_for(lambda: ask(what) and len(said(what)) == 2, what="the answer is past its time, and somebody asks anew")
        assert [ask(what) for _ in range(5)] == [[what, 1]] * 5
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, [what] * 16)) == [[what, 1]] * 16
        assert len(said(what)) == 2, "one for all that came"
    wait_for(lambda: ask(what) == [what, 2], what="the new answer took its place")
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="no call is left")


def test_an_old_answer_at_once_and_a_new_one_soon(place: SharingPlace) -> None:
    """In the background, in a thread; a renewal that fails is not heard of, and the old answer stays."""
    how: dict[str, Any] = {"cache_ttl": 0.05, "stale_while_revalidate": 600}
    renewed_while_held(place, lambda what: place.call(shared.ask, what, **how), "old")
    runs = list[int]()

    def once() -> int:
        runs.append(len(runs) + 1)
        if len(runs) > 1:
            raise ValueError("a secret prompt")
        return len(runs)

    how["cache_key"] = "once"  # it closes over what changes
    assert place.call(once, **how) == 1
    wait_for(lambda: place.call(once, **how) == 1 and len(runs) == 2, what="somebody asks anew")
    wait_for(lambda: place.live.redis.keys("rlw:call:*") == [], what="it has failed")
    assert place.call(once, **how) == 1
    assert len(runs) == 2, "and not again for half a minute"


def test_an_old_answer_of_an_async_function_is_renewed_in_its_loop(
    place: SharingPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """While its caller goes on, also within another call; what it raises is one line of the log."""

    async def main() -> None:
        runs, go = list[asyncio.Task[Any] | None](), asyncio.Event()

        async def answer() -> int:
            runs.append(asyncio.current_task())
            number = len(runs)
            if number > 1:
                await go.wait()
            return number

        async def ask() -> Any:
            how: dict[str, Any] = {
                "lane": "free",
                "cache_ttl": 0.05,
                "stale_while_revalidate": 600,
                "cache_key": "answer",
            }
            return await place.limiter.make_rate_limited_call(answer, "answer", **how)

        assert await ask() == 1
        while len(runs) < 2:
            assert await place.limiter.make_rate_limited_call(ask, "outer", lane="free", cache_enabled=False) == 1
        assert runs[1] is not asyncio.current_task()
        assert await ask() == 1
        go.set()
        while await ask() != 2:
            assert len(runs) == 2

    asyncio.run(asyncio.wait_for(main(), 120))
    assert "not_renewed" not in caplog.text


def test_functions_of_one_name_are_told_apart(place: SharingPlace) -> None:
    """Lambdas and inner functions by their code and what they close over; never a wrong answer."""
    assert [place.call(lambda: 1), place.call(lambda: 2)] == [1, 2]
    assert [place.call(lambda n=n: n, name="n") for n in (1, 2, 1)] == [1, 2, 1]
    assert [place.call(shared.made_for(factor), 1, name="made") for factor in (2, 3, 2)] == [2, 3, 2]
    assert place.counter("cache_hits") == 2
    held = [1]
    assert place.call(lambda: sum(held), name="held") == 1
    held.append(2)
    assert place.call(lambda: sum(held), name="held") == 3, "a list that it closes over may change: nothing is shared"


def test_methods_are_known_by_the_data_of_their_object(place: SharingPlace) -> None:
    """Equal settings share, whichever client they hold; others do not."""
    small, large = (shared.Analyst(shared.Model(name, shared.Pool())) for name in ("small", "large"))
    assert small.analyze("brd") == ["small", "short", 1]
    assert large.analyze("brd") == ["large", "short", 2]
    assert small.analyze("brd") == ["small", "short", 1]
    assert shared.Analyst(shared.Model("small", shared.Pool())).analyze("brd") == ["small", "short", 1]
    small.style = "long"
    assert small.analyze("brd") == ["small", "long", 3]
    one, other, third = (shared.Model(name, shared.Pool()) for name in ("small", "small", "large"))
    assert place.call(one.invoke, "llm") == place.call(other.invoke, "llm")
    assert place.call(third.invoke, "llm")[0] == "large"


def test_a_client_is_paid_for_once(place: SharingPlace) -> None:
    """70 questions of 20 objects, each with clients that build pools and count as they are used: 70 requests."""
    agents = [shared.Agent() for _ in range(20)]
    for turn in range(3):
        for number in range(70):
            assert agents[(number + turn) % 20].ask(f"client {number}") == [f"client {number}", 1]
    assert sum(len(said(f"client {number}")) for number in range(70)) == 70
    assert shared.Agent(temperature=0.9).ask("client 0") == ["client 0", 2]


def test_an_answer_by_a_key_of_ones_own(place: SharingPlace) -> None:
    """`cache_key`: what it says counts, and nothing else of function, object and arguments."""
    by_name = {"cache_key": lambda what, **_: what, "name": "by key"}
    asked = partial(place.limiter.make_rate_limited_call, shared.ask, "by key", lane="free")
    assert asked(("key",), {"session": object()}, cache_key=by_name["cache_key"]) == ["key", 1]
    assert asked(("key",), {"session": object()}, cache_key=by_name["cache_key"]) == ["key", 1]
    assert asked(("key too",), cache_key="of both") == ["key too", 1]
    assert asked(("key three",), cache_key="of both") == ["key too", 1]
    assert [asked(("none",), cache_key=lambda *_: None)[1] for _ in range(2)] == [1, 2], "it shares nothing"
    with pytest.raises(BadInput, match="cache_key=object"):
        asked(("object",), cache_key=lambda *_: object())
    with pytest.raises(ZeroDivisionError):
        asked(("own error",), cache_key=lambda *_: 1 // 0)
    agents = [shared.Agent(), shared.Agent(temperature=0.9)]
    assert [agent.ask_by_key("decorated") for agent in agents] == [["decorated", 1]] * 2


def test_tenants_share_no_answers(place: SharingPlace) -> None:
    """Each asks for itself, and gets its own answer again; `explain_key` says the same."""
    tenants = ("", "acme", "other")
    assert [place.call(shared.ask, "whose", tenant=one) for one in tenants] == [["whose", n] for n in (1, 2, 3)]
    assert [place.call(shared.ask, "whose", tenant=one) for one in tenants] == [["whose", n] for n in (1, 2, 3)]
    keys = {place.limiter.explain_key(shared.ask, args=("whose",), tenant=one)["key"] for one in tenants}
    assert len(keys) == len(tenants)


def test_how_it_was_decided_can_be_asked(place: SharingPlace) -> None:
    """`explain_key`: what counts, what does not, and why a call shares nothing; no value is shown."""
    explain = place.limiter.explain_key
    one, other = shared.Agent(key="sk-secret"), shared.Agent(temperature=0.9, key="sk-secret")
    first, second = explain(one.ask, args=("q",)), explain(shared.Agent.ask, None, (other, "q"))
    assert first["shares"] is second["shares"] is True
    assert first["key"] != second["key"]
    differ = {part for part, mark in first["counts"].items() if second["counts"][part] != mark}
    assert differ == {"self.temperature"}
    assert {"name", "lane", "context", "function", "self", "argument what"} < set(first["counts"])
    assert first["left_out"]["self.client"].startswith("a ChattyClient, but for its class and what it was told: key")
    assert "sk-secret" not in str(first)
    one.ask("q")
    assert explain(one.ask, args=("q",))["key"] == first["key"], "it has been used since"
    assert explain(one.ask, args=(object(),))["why"] == "an argument is no plain data (object)"
    assert explain(shared.ask, args=("q",), cache_enabled=False)["why"] == "cache_enabled is false"
    assert set(explain(one.ask_by_key, args=("q",))["counts"]) == {"name", "lane", "context", "cache_key"}
    alone = AdvancedRateLimiter(Services(read_settings({})))
    assert alone.explain_key(shared.ask, args=("q",))["why"] == "no Redis is named"


class Messages(list[str]):
    """A list of a class of its own."""


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OrderedDict(a=1), OrderedDict(a=2)),
        (Counter("a"), Counter("b")),
        (deque([1]), deque([2])),
        (Messages(["a"]), Messages(["b"])),
        ({1, 2}, {1, 3}),
        ([{"a": (1,)}], [{"a": [1]}]),
        (Slotted(1), Slotted(2)),
        (SimpleNamespace(a=1), SimpleNamespace(a=2)),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        (Priority.HIGH, Priority.LOW),
        (re.compile("a"), re.compile("b")),
        (type("Local", (), {}), type("Local", (), {})),
        (shared.Settings(0.1), shared.Settings(0.9)),
        (shared.Options(0.1), shared.Options(0.9)),
        (shared.ChattyClient("one"), shared.ChattyClient("other")),
        (httpx.URL("http://one/v1"), httpx.URL("http://other/v1")),
        (shared.ChattyClient("one"), shared.Pool()),
        ([shared.ChattyClient("one")], [shared.ChattyClient("other")]),
        (partial(max, 1), partial(max, 2)),
        (max, min),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_self_holds_is_told_apart(one: Any, other: Any) -> None:
    """Containers of any class by what is in them; records by their fields, clients by what they were told."""

    def known(held: Any) -> Any:
        return identity(shared.Model("m", held).invoke, ("x",), {})

    assert known(one) == known(one)
    assert known(one) != known(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (threading.Lock(), threading.Lock()),
        (shared.Pool(), shared.Pool()),
        (MagicMock(), MagicMock()),
        (object(), object()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_self_holds_and_is_no_data_does_not_count(one: Any, other: Any) -> None:
    """Of two objects of one class that were told nothing, each stands for the other."""
    assert identity(shared.Model("m", one).invoke, ("x",), {}) == identity(shared.Model("m", other).invoke, ("x",), {})


def test_what_is_made_on_first_use_does_not_count() -> None:
    """Also where None, or nothing, stood for it before, and though it was told something."""
    owner = shared.Model("m", None)
    before = identity(owner.invoke, ("x",), {})
    owner.pool = shared.ChattyClient("told")  # type: ignore[assignment]
    owner.later = shared.Pool()  # type: ignore[attr-defined]
    left_out: dict[str, str] = {}
    assert identity(owner.invoke, ("x",), {}, left_out) == before
    assert sorted(left_out) == ["self.later", "self.pool"]
    handed_in = identity(shared.Model("m", shared.ChattyClient("told")).invoke, ("x",), {})  # type: ignore[arg-type]
    assert handed_in != before


@pytest.mark.parametrize("held", [array("d", [1.0]), iter([1]), (n for n in "a"), memoryview(b"a")])
def test_what_cannot_be_looked_into_is_not_shared(held: Any) -> None:
    """It may change between two calls, and nobody would see."""
    with pytest.raises(Unshareable, match=r"self\.pool holds"):
        identity(shared.Model("m", held).invoke, ("x",), {})


def test_identity_is_the_same_in_every_process(place: SharingPlace) -> None:
    """Of plain objects and of functions made inside others: what one process kept, another finds."""
    code = """
import json
from ratelimit_worker.inprocess.sharing import identity
from tests import shared_functions as shared
print(json.dumps([identity(shared.Model("m").invoke, ("x",), {}), identity(shared.made_for(2), (1,), {})]))
"""
    here = [identity(shared.Model("m").invoke, ("x",), {}), identity(shared.made_for(2), (1,), {})]
    for seed in ("1", "2"):
        assert json.loads(done(python(code, PYTHONHASHSEED=seed))) == here
    with pytest.raises(Unshareable, match=r"no plain data \(object\)"):
        identity(shared.ask, (object(),), {})
    with pytest.raises(Unshareable, match="too much"):
        identity(shared.Model("m", list(range(5_000))).invoke, ("x",), {})  # type: ignore[arg-type]


def test_what_cannot_be_known_is_asked_for_itself(place: SharingPlace, caplog: pytest.LogCaptureFixture) -> None:
    """Arguments that are no JSON: each call is made, and the log says so once."""
    with caplog.at_level(logging.INFO, "ratelimit_worker.inprocess.sharing"):
        assert [place.call(shared.ask, "odd", 0.0, name="odd", context="x")[1] for _ in range(2)] == [1, 1]
        runs = [
            place.limiter.make_rate_limited_call(shared.ask, "odd", ("odd",), {"client": object()}, lane="free")[1]
            for _ in range(3)
        ]
    assert runs == [2, 3, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "calls of odd share no answers: an argument is no plain data (object)"
    ]


# ── answers that cannot be shared ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("func", [shared.ask_sdk, shared.pair])
def test_an_answer_that_is_no_json_is_its_callers_alone(
    place: SharingPlace, func: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Objects and tuples: each call gets its own, of its own type; said once."""
    with caplog.at_level(logging.INFO, "ratelimit_worker.inprocess.sharing"):
        answers_ = [place.call(func, "own") for _ in range(3)]
    assert len(said("own")) == 3
    assert len({type(answer) for answer in answers_}) == 1
    assert isinstance(answers_[0], shared.Answer | tuple)
    assert len(caplog.records) == 1
    assert answers.size(place.live.redis) == (0, 0)


def test_followers_of_such_an_answer_run_at_once(place: SharingPlace) -> None:
    """They wait for the first in vain, then all go, not one after another; the next time nobody waits."""
    calls = place.together(shared.ask_sdk_in_company, "objects", number=6)
    assert len({id(call.result()) for call in calls}) == len(said("objects")) == 6
    assert place.counter("joined") == 5
    place.together(shared.ask_sdk_in_company, "objects too", number=6)
    assert place.counter("joined") == 5
    assert len(said("objects too")) == 6
    assert place.live.redis.keys("rlw:claim:*") == []


def test_an_error_of_ours_is_everybodys(place: SharingPlace) -> None:
    """One request, and all get it; it is not kept."""
    calls = place.together(shared.refused, "no", 0.5, number=3)
    for call in calls:
        with pytest.raises(InvalidRequest):
            call.result()
    assert len(said("no")) == 1
    with pytest.raises(InvalidRequest):
        place.call(shared.refused, "no", 0.5)
    assert len(said("no")) == 2


def test_an_error_of_an_sdk_is_raised_by_each_ones_own_attempt(place: SharingPlace) -> None:
    """Code around an SDK catches the SDK's own exceptions, which no JSON gives back: followers go at once."""
    calls = place.together(shared.refused_by_sdk, "sdk", 0.5, number=4)
    errors = [call.exception() for call in calls]
    assert {type(error) for error in errors} == {shared.NotFoundError}
    assert len({id(error) for error in errors}) == 4
    assert len(said("sdk")) == 4


# ── calls inside calls ───────────────────────────────────────────────────────────────────────────────────────────────


def test_outer_and_inner_calls_share_each(place: SharingPlace) -> None:
    """In a lane that lets one run at a time: both are kept, and those that follow the outer one get its answer."""
    analyst = shared.Analyst(shared.Model("m"))
    with ThreadPoolExecutor(4) as pool:
        answers_ = [call.result(20) for call in [pool.submit(analyst.outer, "nest") for _ in range(4)]]
    assert answers_ == [["outer", 1, ["inner", 1]]] * 4
    assert analyst.outer("nest") == answers_[0]
    assert analyst.inner("nest") == ["inner", 1]
    wait_for(lambda: place.live.redis.zcard(keys.LEDGER) == 0, what="the ledger is empty")
    assert place.live.redis.keys("rlw:out:*") == []


def test_a_call_does_not_follow_the_call_it_is_made_in(place: SharingPlace) -> None:
    """The same name and arguments inside: it is made, and nobody waits for itself."""
    assert shared.calls_itself("self") == [1, 2]
    assert shared.calls_itself("self") == [1, 2]


# ── how long, and what is forgotten ──────────────────────────────────────────────────────────────────────────────────


def test_an_answer_is_kept_for_its_time() -> None:
    """MAISD_CACHE_TTL_SECONDS, then the call is made again."""
    with fleet(MAISD_LANES=LANES, MAISD_CACHE_TTL_SECONDS="0.5") as made:
        place = SharingPlace(made)
        assert place.call(shared.ask, "ttl") == ["ttl", 1]
        assert place.call(shared.ask, "ttl") == ["ttl", 1]
        wait_for(lambda: place.call(shared.ask, "ttl") == ["ttl", 2], timeout_s=120.0, what="it has ended")
        place.limiter.close()


def test_answers_are_forgotten_by_context_or_all(place: SharingPlace) -> None:
    """`invalidate_cache` and the command line see them as they see those of tasks."""
    for what, context in (("a", "x"), ("b", "y")):
        place.call(shared.ask, what, context=context, name="asked", context_tags=["t"])
    run = partial(CliRunner().invoke, main, env=place.fleet.env)

    def kept() -> int:
        return int(json.loads(run(["cache", "stats", "--format", "json"]).stdout)["entries"])

    wait_for(lambda: kept() == 2, what="both are kept")  # what this process asks itself comes after that in any case
    assert place.limiter.invalidate_cache("x") == 1
    assert place.call(shared.ask, "a", context="x", name="asked") == ["a", 2]
    assert place.call(shared.ask, "b", context="y", name="asked") == ["b", 1]
    assert place.limiter.invalidate_cache() == 2
    assert place.call(shared.ask, "b", context="y", name="asked", context_tags=["t"]) == ["b", 2]
    wait_for(lambda: kept() == 1, what="it is kept")
    assert run(["cache", "clear", "--func", "asked", "--tag", "t"]).stdout == "1 answer forgotten\n"
    assert kept() == 0


def test_without_the_cache_each_call_is_made(place: SharingPlace) -> None:
    """`cache_enabled=False`: neither a kept answer nor one on its way stands for it, and its own is not kept."""
    assert place.call(shared.ask, "off") == ["off", 1]
    assert place.call(shared.ask, "off", cache_enabled=False) == ["off", 2]
    assert place.call(shared.ask, "off") == ["off", 1]
    calls = place.together(shared.ask, "off at once", 0.3, cache_enabled=False)
    assert sorted(call.result()[1] for call in calls) == [1, 2]


# ── Redis away ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_redis_nothing_is_shared(place: SharingPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays away: calls go ahead, each for itself; back again, what was kept still is."""
    monkeypatch.setattr("ratelimit_worker.inprocess.presence.PATIENCE_S", 0.2)
    place.limiter = AdvancedRateLimiter(place.live, sleep=lambda _: None)
    assert place.call(shared.ask, "away") == ["away", 1]
    place.fleet.valkey.stop()
    assert [place.call(shared.ask, "away")[1] for _ in range(2)] == [2, 3]
    place.fleet.valkey.start()
    wait_for(place.limiter.is_enabled, what="lanes are used again")
    assert place.call(shared.ask, "away") == ["away", 1]
    place.limiter.close()


def test_followers_outlive_a_restart_of_redis(place: SharingPlace) -> None:
    """Leader and followers both wait for it, and the answer is everybody's."""
    with ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(place.call, shared.once_gated, "restart") for _ in range(3)]
        wait_for(lambda: place.counter("joined") == 2, what="two have joined")
        place.fleet.valkey.stop()
        place.fleet.valkey.start()
        (place.fleet.folder / "gate").touch()
        assert [call.result(20) for call in calls] == [["restart", 1]] * 3
