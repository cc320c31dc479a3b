"""What Redis has forgotten: who waits hears of it, what runs ends once, and what lost its place gets it back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.result import AsyncResult

from ratelimit_worker.app import install, llm_task
from ratelimit_worker.calls import Outcome
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.errors import CallLost
from ratelimit_worker.policy import forgotten
from ratelimit_worker.policy.forgotten import SURE_S, Seen, lost_with
from ratelimit_worker.reports.explain import Where, explain, explanation_text
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.worker import lost
from tests.builders import ROOT, entry
from tests.conftest import wait_for
from tests.fleet import Fleet, Valkey, fleet
from tests.lua.cluster import Cluster
from tests.proxy import Proxy

# ── decided from values ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_call_is_forgotten_when_it_was_there_and_stays_away() -> None:
    """One that this process never saw may yet come; one that is back, or was looked for in vain, is given time anew."""
    seen = Seen()
    seen.there("made")
    assert seen.look({"made": False, "to come": False}, 10.0) == set()
    assert seen.look({"made": False, "to come": False}, 10.0 + SURE_S) == {"made"}
    assert seen.look({"made": True, "to come": True}, 30.0) == set()
    assert seen.look({"made": False, "to come": False}, 40.0) == set()
    seen.blind()
    assert seen.look({"made": False, "to come": False}, 41.0 + SURE_S) == set()
    assert seen.look({"made": False, "to come": False}, 42.0 + 2 * SURE_S) == {"made", "to come"}


def test_others_are_looked_for_where_one_that_was_there_is_away() -> None:
    """Not for the later calls of a chain, which are yet to be made: somebody waits for those all the time."""
    seen = Seen()
    for call_id in ("a", "b", "c"):
        seen.there(call_id)
    assert seen.others({"a": True, "later": False}) == []
    assert seen.others({"a": False, "later": False}) == ["b", "c"]


def test_what_was_seen_is_bounded() -> None:
    """The oldest is no longer remembered, and so never taken for forgotten."""
    seen = Seen(most=2)
    for name in ("a", "b", "c"):
        seen.there(name, name.upper())
    assert [seen.what(name) for name in ("a", "b", "c")] == [None, "B", "C"]
    seen.look({"a": False}, 0.0)
    assert seen.look({"a": False}, 100.0) == set()


def test_one_that_was_made_is_looked_for_while_nobody_waits() -> None:
    """The last of them, and not one that others made; then the one that was away, until it is there or given up."""
    seen = Seen()
    assert (seen.made_last(), seen.away()) == (None, None)
    seen.there("mine", "what")
    seen.there("theirs")
    assert (seen.made_last(), seen.away()) == ("mine", None)
    seen.look({"mine": False}, 10.0)
    assert seen.away() == "mine"
    seen.look({"mine": True}, 13.0)
    assert seen.away() is None
    seen.look({"mine": False}, 16.0)
    seen.forget(["mine"])
    assert (seen.made_last(), seen.away()) == (None, None)


@pytest.mark.parametrize(
    ("before", "gone", "known", "answered", "lost"),
    [
        ([["b"], ["a"]], {"a"}, set(), set(), "a"),  # b was never made, for want of a
        ([["b"], ["a"]], {"b"}, {"a"}, set(), "b"),  # a has ended, and is remembered
        ([["b"], ["a"]], {"a"}, {"b"}, set(), None),  # it goes on from b
        ([["b"], ["a"]], {"a"}, set(), {"b"}, None),
        ([["x", "y"]], {"y"}, {"x"}, set(), "y"),  # a header of a chord
        ([["x", "y"]], {"y"}, {"x"}, {"y"}, None),  # its answer is there
        ([], set(), set(), set(), None),
    ],
)
def test_the_end_of_a_canvas_is_lost_with_what_comes_before(
    before: list[list[str]], gone: set[str], known: set[str], answered: set[str], lost: str | None
) -> None:
    """The nearest step that is there decides."""
    assert lost_with(before, gone, dict.fromkeys(known, True), answered) == lost


# ── in the scripts ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def idle(redis_client: redis.Redis) -> Cluster:
    """Lanes without a worker: what is entered waits."""
    return Cluster(redis_client)


def test_a_call_that_lost_its_place_gets_it_back(idle: Cluster, redis_client: redis.Redis) -> None:
    """An evicting server may take the row and leave the call: who looks for it puts it back, once."""
    idle.lanes.enqueue(entry("one"))
    redis_client.delete("rlw:wait:3:gpt:q")
    assert idle.lanes.known(["one", "none"]) == [True, False]
    assert idle.lanes.known(["one"]) == [True]
    assert redis_client.zrange("rlw:wait:3:gpt:q", 0, -1) == [b"one"]
    assert idle.lanes.counters()["replaced"] == 1
    idle.worker()
    idle.pump()
    assert idle.ready() == ["one"]
    assert idle.lanes.known(["one"]) == [True]  # it is out, and stays so
    assert idle.ready() == ["one"]


def test_who_follows_a_forgotten_leader_leads(idle: Cluster, redis_client: redis.Redis) -> None:
    """The first that is looked for takes its place, and the others follow that one."""
    for name in ("leader", "first", "second"):
        idle.lanes.enqueue(entry(name, claim=Claim(fingerprint="fp", ttl_s=0.0, join=True)))
    redis_client.delete("rlw:call:leader", "rlw:payload:leader")
    assert idle.lanes.known(["first", "second", "leader"]) == [True, True, False]
    idle.worker()
    idle.pump()
    assert idle.ready() == ["first"]
    tag, begun = idle.begin()
    assert begun.state == "go"
    assert idle.settle(tag)
    idle.pump()
    assert idle.lanes.known(["second"]) == [True]
    assert redis_client.get("rlw:settled:second") == b"answer"


def test_a_forgotten_call_that_runs_is_known(cluster: Cluster, redis_client: redis.Redis) -> None:
    """Its worker's beat says so for as long as it runs; a call that has ended keeps what is remembered of it."""
    cluster.lanes.enqueue(entry("ended"))
    cluster.lanes.enqueue(entry("runs"))
    ended, _ = cluster.begin()
    cluster.lanes.free([ended])
    cluster.begin()
    redis_client.delete("rlw:call:runs")
    assert cluster.lanes.known(["runs", "ended"]) == [False, True]
    cluster.beat("w")
    assert cluster.lanes.known(["runs", "ended"]) == [True, True]
    assert (redis_client.get("rlw:done:runs"), redis_client.get("rlw:done:ended")) == (b"held", b"pub-ended")


# ── with workers ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A broker; callers look every tenth of a second."""
    monkeypatch.setattr(lost, "LOOK_S", 0.1)
    monkeypatch.setattr(forgotten, "SURE_S", 1.5)
    monkeypatch.setattr(lost, "UNAWAITED_LOOK_S", 0.1)
    monkeypatch.setattr(lost, "MOST_AT_ONCE", 2)  # so that they are looked for in turns
    with fleet() as one:
        yield one


def heard(results: list[Any]) -> list[BaseException]:
    """What callers hear who wait for these, each in a thread of its own."""
    said: list[BaseException] = []

    def wait(result: Any) -> None:
        try:
            result.get(timeout=120, disable_sync_subtasks=False)
        except Exception as error:
            said.append(error)

    threads = [threading.Thread(target=wait, args=(result,)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(130.0)
    return said


def forget_by_flush(made: Fleet) -> None:
    """Somebody flushes a server that they take for theirs."""
    made.valkey.client.flushall()


def forget_by_restart(made: Fleet) -> None:
    """It comes back without what it had."""
    made.valkey.stop()
    for file in made.valkey.folder.glob("appendonlydir/*"):
        file.unlink()
    made.valkey.start()


@pytest.mark.worker
@pytest.mark.parametrize("forget", [forget_by_flush, forget_by_restart])
def test_who_waits_hears_of_it(made: Fleet, forget: Callable[[Fleet], None]) -> None:
    """In threads, for groups, chains and chords: `CallLost`, recorded once for each call that was in a lane."""
    tasks = made.agent()
    one, late = tasks.echo.delay(1), tasks.echo.apply_async((2,), countdown=600)
    several = group(tasks.echo.s(n) for n in range(3)).delay()
    row = chain(tasks.echo.s(1), tasks.double.s(), tasks.double.s()).delay()
    body = chord([tasks.echo.s(1), tasks.echo.s(2)], tasks.total.s()).delay()
    said: list[BaseException] = []
    waiting = threading.Thread(target=lambda: said.extend(heard([one, late, several, row, body])))
    waiting.start()
    forget(made)
    waiting.join(130.0)
    assert [type(error) for error in said] == [CallLost] * 5, said
    found = explain(Live(made.valkey.client), [], one.id)
    assert found.where is Where.LOST
    assert "Redis has forgotten it" in explanation_text(found)
    worker = made.worker("first")
    tracker = Tracker(engine_for(read_settings().database_url))
    wait_for(lambda: tracker.attempts_of(one.id), what="its row is written")
    assert [(row.outcome, row.cause) for row in tracker.attempts_of(one.id)] == [(Outcome.FAILED, "CallLost")]
    assert tasks.echo.apply_async((1,), task_id=one.id).id == one.id  # it may be made again, under its id too
    assert worker.process.poll() is None


@pytest.mark.worker
def test_with_one_the_others_of_a_process_are_told(made: Fleet) -> None:
    """Who asks for them one after the other does not wait anew for each; what had its answer is not told."""
    tasks = made.agent()
    results = [tasks.echo.delay(number) for number in range(4)]
    made.worker("first")
    assert results[3].get(timeout=120) == 3
    made.workers.pop().kill()
    waiting = [tasks.echo.delay(number) for number in range(4)]
    forget_by_flush(made)
    with pytest.raises(CallLost):
        waiting[0].get(timeout=120)
    wait_for(lambda: [one.state for one in waiting] == ["FAILURE"] * 4, what="the others are told too")
    assert made.valkey.client.zscore(keys.LOST, results[3].id) is None


@pytest.mark.worker
def test_who_awaits_hears_of_it(made: Fleet) -> None:
    """In an event loop too."""
    tasks = made.agent()
    call = tasks.echo.delay(1)

    async def ask() -> Any:
        waiting = asyncio.ensure_future(asyncio.wait_for(call._wait(), 120))
        await asyncio.sleep(0)
        made.valkey.client.flushall()
        return await waiting

    with pytest.raises(CallLost):
        asyncio.run(ask())


OTHER = """
import sys
from ratelimit_worker.policy import forgotten
from ratelimit_worker.worker import lost
lost.LOOK_S, forgotten.SURE_S = 0.1, 1.5
from tests import fleet_app
result = fleet_app.echo.AsyncResult(sys.argv[1])
print("waits", flush=True)
try:
    result.get(timeout=120)
except Exception as error:
    print(type(error).__name__, error.call_id, flush=True)
"""


@pytest.mark.worker
def test_another_process_that_waits_hears_of_it(made: Fleet) -> None:
    """It knows the id alone, and has seen the call while it was there."""
    tasks = made.agent()
    call = tasks.echo.delay(1)
    other = subprocess.Popen(
        [sys.executable, "-c", OTHER, call.id], cwd=ROOT, env={**os.environ}, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "waits\n"
    asked = "rlw_"

    def looks() -> int:
        stats = made.valkey.client.info("commandstats").get("cmdstat_fcall", {})
        return int(stats.get("calls", 0))

    before = looks()
    wait_for(lambda: looks() >= before + 3, what=f"it has looked ({asked})")
    made.valkey.client.flushall()
    assert other.stdout.readline() == f"CallLost {call.id}\n"
    assert other.wait(timeout=60) == 0


@pytest.mark.worker
def test_who_begins_to_wait_after_the_loss_hears_of_it(made: Fleet) -> None:
    """Nobody waited then; the process that made the calls has noticed, and said so for whoever asks by their ids."""
    tasks = made.agent()
    calls = [tasks.echo.delay(n).id for n in range(3)]
    forget_by_flush(made)
    for call_id in calls:
        other = subprocess.run(
            [sys.executable, "-c", OTHER, call_id], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
        )
        assert other.stdout == f"waits\nCallLost {call_id}\n"


def _same(value: str) -> str:
    return value


@pytest.mark.worker
def test_each_of_two_servers_is_asked_for_its_own_calls(
    made: Fleet, replica: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two apps in a process: what one server has forgotten says nothing of the other's calls."""
    tasks = made.agent()
    mine = tasks.echo.delay(1)
    monkeypatch.delenv("MAISD_REDIS_URL")  # it names the one server, and the other app has its own
    other = install(Celery("other", broker=replica.url, backend=replica.url), read_settings(), watch=False)
    theirs = llm_task(app=other, name="other", lane="free", shared=False, cache=False)(_same).delay("x")
    forget_by_flush(made)
    with pytest.raises(CallLost):
        mine.get(timeout=120)
    assert replica.client.zcard(keys.LOST) == 0
    assert made.valkey.client.zscore(keys.LOST, theirs.id) is None
    assert theirs.state == "PENDING"


@pytest.mark.worker
def test_what_runs_is_answered_and_runs_once(made: Fleet) -> None:
    """Its worker says that it has it: its caller hears the answer, and so does who makes it again under its id."""
    made.worker("first")
    tasks = made.agent()
    call = tasks.stamp.apply_async(("slow", 6.0), task_id="slow-1")
    wait_for(made.stamps, what="it runs")
    made.valkey.client.flushall()
    wait_for(lambda: made.valkey.client.get("rlw:done:slow-1") == b"held", what="its worker says so")
    again = tasks.stamp.apply_async(("slow", 6.0), task_id="slow-1")
    assert [one.get(timeout=120) for one in (call, again)] == ["slow", "slow"]
    assert [what for _, what in made.stamps()] == ["slow"]
    tracker = Tracker(engine_for(read_settings().database_url))
    wait_for(lambda: tracker.attempts_of("slow-1"), what="its row is written")
    assert [row.outcome for row in tracker.attempts_of("slow-1")] == [Outcome.ANSWERED]


@pytest.mark.worker
def test_who_waits_outlives_a_restart(made: Fleet) -> None:
    """Redis comes back with what it had: nobody hears anything but the answer."""
    tasks = made.agent()
    results = [tasks.echo.delay(n) for n in range(4)]
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda one=one: answers.append(one.get(timeout=120))) for one in results]
    for thread in threads:
        thread.start()
    made.valkey.stop()
    threading.Event().wait(1.0)  # longer than Celery's own retries
    made.valkey.start()
    made.worker("first")
    for thread in threads:
        thread.join(130.0)
    assert sorted(answers) == [0, 1, 2, 3]
    assert AsyncResult(results[0].id, app=tasks.app).get(timeout=120) == 0


@pytest.fixture
def replica() -> Iterator[Valkey]:
    """Another server, which may take over."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-replica-"))
    server = Valkey(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.worker
def test_a_replica_with_an_old_state_takes_over(made: Fleet, replica: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each caller has its answer or `CallLost`, and each call that was answered one end on record.

    What it no longer knows to be done runs again, and what ran when it was split off does so as a second attempt.
    """
    front = Proxy(made.valkey.port)
    monkeypatch.setenv("MAISD_REDIS_URL", front.url)
    made.env["MAISD_REDIS_URL"] = front.url
    made.worker("first", "-P", "threads", "-c", "4")
    tasks = made.agent()
    replica.client.replicaof("127.0.0.1", str(made.valkey.port))
    wait_for(lambda: replica.client.info("replication")["master_link_status"] == "up", what="it follows")
    results = [tasks.stamp.delay(str(n), 0.5) for n in range(24)]
    wait_for(lambda: len(made.stamps()) >= 6, what="some run")
    replica.client.execute_command("REPLICAOF", "NO", "ONE")
    late = [tasks.stamp.delay(f"late {n}", 0.5) for n in range(4)]
    wait_for(lambda: len(made.stamps()) >= 16, what="more run that it never hears of")
    front.to = replica.port
    front.cut()
    made.valkey.kill()
    said = heard([*results, *late])
    assert {type(error) for error in said} <= {CallLost}, said
    assert len(said) <= 4
    wait_for(lambda: replica.client.xlen("rlw:outbox") == 0, what="all is recorded")
    wait_for(lambda: replica.client.zcard("rlw:ledger") == 0, what="nothing runs")
    wait_for(lambda: replica.client.xlen("rlw:outbox") == 0, what="all is recorded")
    tracker = Tracker(engine_for(read_settings().database_url))
    for result in results:
        ends = [row for row in tracker.attempts_of(result.id) if row.outcome in (Outcome.ANSWERED, Outcome.FAILED)]
        assert [row.outcome for row in ends] == [Outcome.ANSWERED]
    for result in late:
        assert len(tracker.attempts_of(result.id)) == 1
    front.close()
