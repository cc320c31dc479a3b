"""Is a slot ever lost? Real workers of each pool, and tasks that raise what no task should, or never return."""

from __future__ import annotations

import importlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from click.testing import CliRunner

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.cli import main
from ratelimit_worker.errors import DeadlineExceeded, TaskAborted
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.policy import timeout
from ratelimit_worker.ports import BarKind
from ratelimit_worker.reports.doctor import Grade, judge_workers
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.overdue import OverdueCall
from ratelimit_worker.wiring import services
from tests.builders import entry
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet, known_to_run
from tests.lua.cluster import LEASE_S, Cluster
from tests.slots_app import RAISED

POOLS = {"threads": 2, "prefork": 2, "gevent": 2, "eventlet": 2, "solo": 1}
LATE_S = 120.0  #: for whatever may be late on a busy machine


@pytest.fixture
def scene() -> Iterator[Fleet]:
    """A broker of its own for each test."""
    with fleet() as made:
        yield made


def agent() -> ModuleType:
    """This process as an agent of the fleet."""
    return importlib.reload(importlib.import_module("tests.slots_app"))


def worker(made: Fleet, name: str, pool: str, slots: int, **env: str) -> Worker:
    started = Worker(name, made.folder, {**made.env, **env}, ("-P", pool, "-c", str(slots)), app="tests.slots_app")
    made.workers.append(started)
    started.wait_ready()
    return started


def unlimited(*lanes: str) -> None:
    for lane in lanes:
        services().lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True)))


def rows_of(call_id: str, how_many: int = 1) -> list[Any]:
    rows = services().tracker.attempts_of
    wait_for(lambda: len(rows(call_id)) >= how_many, LATE_S, "its rows are there")
    return list(rows(call_id))


def all_slots_free(made: Fleet, tasks: ModuleType, slots: int) -> None:
    """Nothing is out, and as many calls as there are slots run at once."""
    wait_for(lambda: made.valkey.client.zcard(keys.LEDGER) == 0, LATE_S, made.logs)
    for round_ in range(2):
        met = [tasks.meet.delay(f"meet{round_}", slots) for _ in range(slots)]
        assert [result.get(timeout=LATE_S) for result in met] == [slots] * slots


@pytest.mark.worker
@pytest.mark.parametrize("pool", list(POOLS))
def test_whatever_a_task_raises_its_slot_is_free_and_its_caller_is_told(scene: Fleet, pool: str) -> None:
    """Twelve kinds of exceptions, in each pool: each call has its error, once, with one row; all slots are free."""
    tasks, slots = agent(), POOLS[pool]
    worker(scene, "w", pool, slots)
    results = {kind: tasks.odd.delay(kind) for kind in RAISED}
    for kind, result in results.items():
        with pytest.raises(TaskAborted) as told:
            result.get(timeout=LATE_S)
        assert (told.value.call_id, told.value.raised) == (result.id, kind)
    all_slots_free(scene, tasks, slots)
    assert Counter(what for _, what in scene.stamps("ran")) == dict.fromkeys(RAISED, 1)
    for kind, result in results.items():
        (row,) = rows_of(result.id)
        assert (row.outcome.value, row.cause, row.number) == ("failed", kind, 1)
    assert scene.workers[0].process.poll() is None


@pytest.mark.worker
@pytest.mark.parametrize("pool", list(POOLS))
def test_what_escapes_from_celery_itself_is_heard(scene: Fleet, pool: str) -> None:
    """After the answer, in a hook: the answer stands. Of an ordinary task: it has failed. No slot is lost by either."""
    tasks, slots = agent(), POOLS[pool]
    worker(scene, "w", pool, slots)
    kinds = ["MemoryError", "PanicException"] if pool == "prefork" else ["MemoryError", "SystemExit", "PanicException"]
    hooked = {kind: tasks.hooked.delay(kind) for kind in kinds}
    plain = [tasks.plain_odd.delay(kind) for kind in kinds]
    for kind, result in hooked.items():
        assert result.get(timeout=LATE_S) == kind
    for result in plain:
        wait_for(result.ready, LATE_S, "its caller is told")
        assert result.state == "FAILURE"
    all_slots_free(scene, tasks, slots)
    assert "slot.escaped" in scene.workers[0].log()


@pytest.mark.worker
@pytest.mark.parametrize("how", ["prefork worker", "prefork child"])
def test_a_call_whose_process_is_told_to_end_has_not_failed(scene: Fleet, how: str) -> None:
    """It is delivered again, and answered there. (Celery's own cold shutdown hangs in a gevent worker.)"""
    tasks = agent()
    pool, _, what = how.partition(" ")
    first = worker(scene, "first", pool, 1)
    result = tasks.hang.delay(7, "now")
    wait_for(lambda: scene.stamps("hung"), LATE_S, "it runs")
    if what == "child":
        children = Path(f"/proc/{first.process.pid}/task/{first.process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGTERM)
    else:
        wait_for(lambda: known_to_run(tasks.app) == 1, LATE_S, "the parent knows that its child runs it")
        first.process.send_signal(signal.SIGQUIT)
        wait_for(lambda: first.process.poll() is not None, LATE_S, scene.logs)
        worker(scene, "second", "threads", 1)
    wait_for(lambda: len(scene.stamps("hung")) == 2, LATE_S, scene.logs)
    assert not result.ready()
    (scene.folder / "now").touch()
    assert result.get(timeout=LATE_S) == 7
    rows = rows_of(result.id)
    assert rows[-1].outcome.value == "answered"
    assert {row.outcome.value for row in rows} == {"answered"}


@pytest.mark.worker
def test_a_greenlet_that_celery_kills_is_revoked_and_its_slot_free(scene: Fleet) -> None:
    """`revoke(terminate=True)`: the caller hears that, and not that its task raised GreenletExit."""
    tasks = agent()
    worker(scene, "w", "gevent", 2)
    result = tasks.hang.delay(1)
    wait_for(lambda: scene.stamps("hung"), LATE_S, "it runs")
    # a gevent worker is ready before it listens to broadcasts, and what was sent before that reaches nobody
    wait_for(lambda: tasks.app.control.ping(timeout=1.0), LATE_S, "it hears broadcasts")
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=LATE_S)
    all_slots_free(scene, tasks, 2)
    assert result.state == "REVOKED"


@pytest.mark.worker
def test_a_leader_that_is_cut_off_leaves_its_followers_to_another(scene: Fleet) -> None:
    """Those that wait for its answer are answered by the next of them."""
    tasks = agent()
    worker(scene, "w", "threads", 2)
    results = [tasks.shared_odd.delay("SystemExit") for _ in range(4)]
    with pytest.raises(TaskAborted):
        results[0].get(timeout=LATE_S)
    assert [result.get(timeout=LATE_S) for result in results[1:]] == ["answered"] * 3
    assert len(scene.stamps("shared")) == 2


# ── calls that hang ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_hung_calls_on_all_slots_keep_no_other_lane_waiting(scene: Fleet, pool: str) -> None:
    """Eight hung calls on eight slots: another lane has eight slots all the same, and theirs no more than it has."""
    tasks = agent()
    unlimited("hung", "good", "meet")
    worker(scene, "w", pool, 8)
    hung = [tasks.hang.delay(n, "now") for n in range(20)]
    wait_for(lambda: len(scene.stamps("hung")) == 8, LATE_S, "all slots are taken")
    met = [tasks.meet.delay("meet", 8) for _ in range(8)]  # each ends when all eight of them run at once
    assert [result.get(timeout=LATE_S) for result in met] == [8] * 8
    assert len(scene.stamps("hung")) == 8, "the lane that hangs had none of the slots that were lent"
    (scene.folder / "now").touch()
    assert sorted(result.get(timeout=LATE_S) for result in hung) == list(range(20))
    wait_for(lambda: scene.valkey.client.zcard(keys.LEDGER) == 0, LATE_S, scene.logs)
    assert not scene.valkey.client.exists("rlw:aside")


@pytest.mark.server
def test_slots_of_hung_calls_go_to_other_lanes(cluster: Cluster) -> None:
    """The lane itself gets none, what lies ready of it goes back, and it goes on when they end."""
    cluster.worker(slots=4)
    for n in range(10):
        cluster.lanes.enqueue(entry(f"a{n}", lane="a", lane_fields={"unlimited": 1}))
    hung = [cluster.begin()[0] for _ in range(4)]
    assert cluster.lying() > 0, "a lane without a pace keeps workers supplied"
    for n in range(6):
        cluster.lanes.enqueue(entry(f"b{n}", lane="b", lane_fields={"unlimited": 1}))
    cluster.lanes.beat("w", 4, 3.5, ["q"], LEASE_S, cluster.held["w"], lent=set(hung))
    cluster.pump()
    assert set(cluster.ready()[:4]) <= {f"b{n}" for n in range(6)}
    assert not [ref for ref in cluster.ready() if ref.startswith("a")]
    assert sorted(cluster.run_all()) == [f"b{n}" for n in range(6)]
    found = Live(cluster.client, time_us=cluster.now_us).bars("a", "")
    assert found is not None
    assert [bar.kind for bar in found[1]] == [BarKind.LENT]
    for tag in hung:
        cluster.settle(tag, lane="a")
        cluster.free(tag)
    cluster.beat("w")
    ran = cluster.run_all()
    cluster.pump()
    assert sorted(ran + cluster.run_all()) == [f"a{n}" for n in range(4, 10)]
    assert not cluster.client.exists("rlw:aside", "rlw:lent")
    assert cluster.lanes.counters().get("leaks", 0) == 0


@pytest.mark.worker
@pytest.mark.parametrize("pool", list(POOLS))
def test_a_call_that_never_ends_is_given_up_and_costs_no_slot(scene: Fleet, pool: str) -> None:
    """A grace after its deadline its caller hears so. While it runs it is named, and others have its slot."""
    tasks, slots = agent(), POOLS[pool]
    unlimited("hung", "meet")
    worker(scene, "w", pool, slots)
    results = [tasks.hang.apply_async((n, "now"), deadline_s=2.0) for n in range(slots)]
    wait_for(lambda: len(scene.stamps("hung")) == slots, LATE_S, "all slots are taken")
    for result in results:
        with pytest.raises(DeadlineExceeded) as told:
            result.get(timeout=LATE_S)
        assert (told.value.call_id, told.value.lane, told.value.attempts) == (result.id, "hung", 1)
        (row,) = rows_of(result.id)
        assert (row.outcome.value, row.cause, row.number) == ("failed", "DeadlineExceeded", 1)
    if pool in ("threads", "solo"):  # the others end it: a greenlet is killed, a child gets SIGKILL
        named: list[Any] = []

        def are_named() -> bool:
            named[:] = overdue()
            return len(named) == slots

        wait_for(are_named, LATE_S, scene.logs)
        assert {(call.call_id, call.lane, call.replaced) for call in named} == {
            (result.id, "hung", pool == "threads") for result in results
        }
        said = CliRunner().invoke(main, ["status"]).output
        assert all(result.id in said for result in results)
        state = cluster_state(Live(services().redis).now(), None)
        found = [finding for finding in judge_workers(state, {}) if finding.check == "slots"]
        assert [finding.level for finding in found] == [Grade.NOTE if pool == "threads" else Grade.WRONG] * slots
    if pool == "solo":  # its only thread
        (scene.folder / "now").touch()
    all_slots_free(scene, tasks, slots)
    (scene.folder / "now").touch()
    wait_for(lambda: not overdue(), LATE_S, "they have ended")
    assert [result.state for result in results] == ["FAILURE"] * slots
    assert [len(rows_of(result.id)) for result in results] == [1] * slots


def overdue() -> tuple[OverdueCall, ...]:
    return Live(services().redis).now().overdue


@pytest.mark.worker
def test_a_lane_all_of_whose_calls_hang_is_sick_before_they_time_out(scene: Fleet) -> None:
    """What is known of its latencies says that they are late; the calls themselves go on, and are answered."""
    tasks = agent()
    unlimited("hung")
    worker(scene, "w", "threads", 4)
    for result in [tasks.hang.delay(n, "never", 0.0) for n in range(30)]:
        result.get(timeout=LATE_S)
    key = timeout.key("tests.slots_app.hang", None, "hung")
    wait_for(lambda: timeout.p99_s(services().latencies.everything().get(key)) is not None, LATE_S, scene.logs)
    late = [tasks.hang.delay(n, "now") for n in range(3)]
    wait_for(lambda: int(services().lanes.fields("hung").get("sick", b"0")) == 3, LATE_S, scene.logs)
    assert not any(result.ready() for result in late)
    (scene.folder / "now").touch()
    assert [result.get(timeout=LATE_S) for result in late] == [0, 1, 2]
    assert [row.outcome.value for result in late for row in rows_of(result.id)] == ["answered"] * 3
