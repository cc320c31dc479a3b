"""Does a worker's pool matter? Real workers of every pool that Celery has, with what changes their size as they run."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.live import Live
from ratelimit_worker.wiring import services
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet, gone

LATE_S = 300.0  #: for whatever may be late on a busy machine


@pytest.fixture
def scene() -> Iterator[Fleet]:
    """A broker of its own for each test."""
    with fleet() as made:
        yield made


def agent() -> ModuleType:
    """This process as an agent of the fleet."""
    importlib.reload(importlib.import_module("tests.fleet_app"))
    return importlib.reload(importlib.import_module("tests.pools_app"))


def worker(made: Fleet, *arguments: str, name: str = "w", **env: str) -> Worker:
    started = Worker(name, made.folder, {**made.env, **env}, arguments, app="tests.pools_app")
    made.workers.append(started)
    started.wait_ready(LATE_S)
    return started


def send(task: Any, *args: Any) -> Any:
    """A call, made until it is accepted: this machine may be busy."""
    made: list[Any] = []

    def is_accepted() -> bool:
        try:
            made.append(task.delay(*args))
        except StoreUnavailable:
            return False
        return True

    wait_for(is_accepted, LATE_S, "the call is accepted")
    return made[0]


def meet(tasks: ModuleType, how_many: int, name: str) -> None:
    """So many calls run at once, or none of them ends."""
    for result in [send(tasks.meet, how_many, name) for _ in range(how_many)]:
        result.get(timeout=LATE_S)


def slots_are(slots: int) -> None:
    wait_for(lambda: [one.slots for one in Live(services().redis).now().workers] == [slots], LATE_S, "the slots")


def ends(one: Worker) -> None:
    one.process.send_signal(signal.SIGTERM)
    wait_for(lambda: one.process.poll() is not None, LATE_S, one.log)
    assert one.process.returncode == 0, one.log()


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_a_free_slot_is_filled_at_once_where_there_is_no_event_loop(scene: Fleet, pool: str) -> None:
    """Twelve calls on two slots, though Celery's own loop would look for the next only after an hour."""
    tasks = agent()
    one = worker(scene, "-P", pool, "-c", "2", POOLS_SLEEPS_LONG="1")
    results = [send(tasks.echo, n, 0.05) for n in range(12)]
    assert [result.get(timeout=LATE_S) for result in results] == list(range(12))
    one.kill()  # its loop sleeps, too, when it is told to end


@pytest.mark.worker
@pytest.mark.parametrize(
    ("arguments", "at_once"),
    [
        ("-P solo", 1),
        ("-P gevent -c 4", 4),
        ("-P eventlet -c 4", 4),
        ("-P threads -c 4", 4),
        ("-P prefork -c 2", 2),
        ("-P prefork --autoscale=4,1", 4),
        ("-P threads --autoscale=4,1", 4),
        ("-P gevent --autoscale=4,1", 4),
        ("-P solo --autoscale=4,1", 1),
    ],
)
def test_as_many_calls_run_at_once_as_the_pool_has_slots(scene: Fleet, arguments: str, at_once: int) -> None:
    """An autoscaled pool counts with its most, or it would never grow; and SIGTERM ends it."""
    tasks = agent()
    one = worker(scene, *arguments.split())
    slots_are(at_once)
    meet(tasks, at_once, "first")
    meet(tasks, at_once, "second")
    assert "set_aside" not in one.log()
    ends(one)


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["threads", "prefork", "gevent", "eventlet"])
def test_a_pool_that_grows_and_shrinks_while_it_runs(scene: Fleet, pool: str) -> None:
    """`celery control pool_grow`, `pool_shrink`: its slots are what it has then."""
    tasks = agent()
    one = worker(scene, "-P", pool, "-c", "1")

    def told(command: str) -> None:
        said = tasks.app.control.broadcast(command, arguments={"n": 3}, reply=True, timeout=LATE_S, limit=1)
        assert ["ok" in reply for answer in said for reply in answer.values()] == [True], said

    # A pool of greenlets listens for commands a moment after it is ready.
    wait_for(lambda: tasks.app.control.ping(timeout=1.0, limit=1), LATE_S, "it hears commands")
    told("pool_grow")
    slots_are(4)
    meet(tasks, 4, "grown")
    told("pool_shrink")
    slots_are(1)
    meet(tasks, 1, "shrunk")
    ends(one)


@pytest.mark.worker
def test_children_that_end_after_each_task(scene: Fleet) -> None:
    """Forked while the threads of the worker's duties run: each call has a process of its own, and none is lost."""
    tasks = agent()
    one = worker(scene, "-P", "prefork", "-c", "2", "--max-tasks-per-child", "1")
    results = [send(tasks.process) for _ in range(10)]
    assert len({result.get(timeout=LATE_S) for result in results}) == 10
    ends(one)


@pytest.mark.worker
def test_an_embedded_beat(scene: Fleet) -> None:
    """`-B`: its calls go through their lane, and it ends with its worker (the fixture of all tests looks)."""
    agent()
    one = worker(scene, "-P", "threads", "-c", "2", "-B", "-s", str(scene.folder / "schedule"))
    wait_for(lambda: len(scene.stamps()) >= 2, LATE_S, one.log)
    ends(one)


@pytest.mark.worker
def test_celery_multi(scene: Fleet) -> None:
    """Two workers in the background, started and ended by `celery multi`."""
    tasks = agent()
    places = [f"--pidfile={scene.folder}/%n.pid", f"--logfile={scene.folder}/%n.log"]

    def multi(what: str, *more: str) -> None:
        command = [sys.executable, "-m", "celery", "-A", "tests.pools_app", "multi", what, "a", "b", *places, *more]
        subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **scene.env}, timeout=LATE_S)

    multi("start", "-P", "threads", "-c", "2", "-l", "INFO")
    try:
        wait_for(lambda: len(Live(services().redis).now().workers) == 2, LATE_S, "both beat")
        meet(tasks, 4, "both")
        pids = [int(Path(scene.folder, f"{name}.pid").read_text()) for name in ("a", "b")]
    finally:
        multi("stopwait")
    wait_for(lambda: gone(pids), what="both have ended")
