"""Does a worker that starts or ends in bad weather become one that is there and does nothing? Real workers."""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from celery.result import AsyncResult

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores import patient
from ratelimit_worker.stores.patient import Patience
from ratelimit_worker.worker.presence import MOST_STARTS
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet
from tests.weather_app import STEPS

LATE_S = 300.0  #: for whatever may be late on a busy machine


@pytest.fixture
def scene() -> Iterator[Fleet]:
    """A broker of its own for each test."""
    with fleet() as made:
        yield made


def agent() -> ModuleType:
    """This process as an agent of the fleet."""
    importlib.reload(importlib.import_module("tests.fleet_app"))
    return importlib.reload(importlib.import_module("tests.weather_app"))


def worker(made: Fleet, name: str = "w", pool: str = "threads", **env: str) -> Worker:
    """Started, perhaps not ready."""
    told = {**made.env, "WEATHER_WORKER": "1", **env}
    started = Worker(name, made.folder, told, ("-P", pool, "-c", "2"), app="tests.weather_app")
    made.workers.append(started)
    return started


def where(one: Worker) -> Callable[[], str]:
    """What it has said, and where its threads are."""

    def told() -> str:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGUSR2)
            wait_for(lambda: "most recent call first" in one.log(), LATE_S, one.log)
        return one.log()

    return told


def ended(one: Worker) -> int:
    """Its exit code."""
    wait_for(lambda: one.process.poll() is not None, LATE_S, where(one))
    return one.process.wait(timeout=1.0)


def sent(task: Any, what: str) -> AsyncResult:
    """A call, made until it is accepted: this machine may be busy, and the broker not yet there."""
    made: list[AsyncResult] = []

    def is_accepted() -> bool:
        try:
            made.append(task.delay(what))
        except StoreUnavailable:
            return False
        return True

    wait_for(is_accepted, LATE_S, "the call is accepted")
    return made[0]


def takes_calls(tasks: ModuleType, one: Worker) -> bool:
    """Whether a call is answered."""
    result = sent(tasks.echo, "through")
    wait_for(result.ready, LATE_S, where(one))
    return bool(result.get() == "through")


def refusals(one: Worker) -> list[str]:
    return [line.partition("cannot start: ")[2] for line in one.log().splitlines() if "cannot start" in line]


# ── the start ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_hiccup_of_redis_in_each_step_costs_one_start_more(scene: Fleet, pool: str) -> None:
    """Ten starts in vain, one after the other; then it takes calls, beats, and ends as others do."""
    tasks = agent()
    kinds = ["redis", "store", "reset"]
    steps = [step for step in STEPS if step != "database"]  # whose own store may be away as long as it likes
    faults = " ".join(f"{step}:{kinds[at % 3]}:1" for at, step in enumerate(steps))
    one = worker(scene, pool=pool, WEATHER_FAILS=faults)
    assert takes_calls(tasks, one)
    assert not refusals(one)
    one.process.send_signal(signal.SIGTERM)
    assert ended(one) == 0
    assert "before it is started" not in one.log()


@pytest.mark.worker
@pytest.mark.parametrize("step", ["warm", "database", "beat", "thread"])
def test_another_error_is_tried_again(scene: Fleet, step: str) -> None:
    """A full disk, for a moment."""
    tasks = agent()
    one = worker(scene, WEATHER_FAILS=f"{step}:disk:{MOST_STARTS - 1}")
    assert takes_calls(tasks, one)
    assert "worker.starts_again cause=OSError: [Errno 28] No space left on device" in one.log()


@pytest.mark.worker
@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        ({"WEATHER_FAILS": "limits:disk:99"}, 1, ["OSError: [Errno 28] No space left on device (3 times)"]),
        ({"WEATHER_FAILS": "warm:file:99"}, 1, ["FileNotFoundError: [Errno 2] No such file or directory (3 times)"]),
        ({"WEATHER_NO_THREADS": "1"}, 1, ["RuntimeError: can't start new thread (3 times)"]),
        ({"WEATHER_FAILS": "duties:setting:99"}, 78, ["MAISD_X=1: wrong", "MAISD_Y=2: wrong too"]),
        (
            {"SSL_CERT_FILE": "/nope.pem"},
            78,
            ["SSL_CERT_FILE=/nope.pem: no such file; correct it or unset SSL_CERT_FILE"],
        ),
    ],
)
def test_what_does_not_mend_ends_the_worker_with_a_line(
    scene: Fleet, env: dict[str, str], code: int, says: list[str]
) -> None:
    """Its exit code says so, and no traceback hides it; nothing of it is left in Redis as a worker."""
    agent()
    one = worker(scene, **env)
    assert ended(one) == code, one.log()
    assert refusals(one) == says
    assert "Traceback" not in one.log()
    assert " ready." not in one.log()


@pytest.mark.worker
@pytest.mark.parametrize("step", ["check", "warm", "pins", "thread"])
def test_redis_is_killed_in_the_second_in_which_a_worker_starts(scene: Fleet, step: str) -> None:
    """And comes back: the worker has its slots, and answers."""
    tasks = agent()
    one = worker(scene, WEATHER_WAITS=step)
    wait_for((scene.folder / "arrived").exists, LATE_S, where(one))
    scene.valkey.kill()
    (scene.folder / "go").touch()
    wait_for(lambda: "Trying" in one.log(), LATE_S, where(one))
    scene.valkey.start()
    assert takes_calls(tasks, one)
    one.process.send_signal(signal.SIGTERM)
    assert ended(one) == 0


# ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.worker
@pytest.mark.parametrize("when", ["before", "failing", "gone", "frozen"])
def test_sigterm_ends_a_worker_that_has_no_redis(scene: Fleet, when: str) -> None:
    """Not there when it starts, hiccups without an end, gone while it is idle, or there and silent."""
    agent()
    if when == "before":
        scene.valkey.stop()
        one = worker(scene)
        wait_for(lambda: "Trying again" in one.log(), LATE_S, where(one))
    elif when == "failing":
        one = worker(scene, WEATHER_FAILS="pins:redis:1000000")
        wait_for(lambda: one.log().count("Connection to broker lost") > 2, LATE_S, where(one))
    else:
        one = worker(scene, WEATHER_GRACE_S="1")
        one.wait_ready(LATE_S)
        if when == "gone":
            scene.valkey.stop()
            wait_for(lambda: "Trying again" in one.log(), LATE_S, where(one))
        else:
            scene.valkey.signal(signal.SIGSTOP)
    one.process.send_signal(signal.SIGTERM)
    try:
        assert ended(one) in (0, 69)
    finally:
        if when == "frozen":
            scene.valkey.signal(signal.SIGCONT)


def begin(scene: Fleet, tasks: ModuleType, name: str, one: Worker) -> AsyncResult:
    """A call that runs until it is told to end."""
    result = sent(tasks.until, name)
    wait_for((scene.folder / f"{name}-runs").exists, LATE_S, where(one))
    return result


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["threads", "prefork", "gevent", "solo"])
def test_a_call_that_ends_without_redis_does_not_keep_its_worker(scene: Fleet, pool: str) -> None:
    """It waits a grace for Redis, then it is left to its lease, and another worker answers it."""
    tasks = agent()
    one = worker(scene, "first", pool, WEATHER_GRACE_S="1")
    one.wait_ready(LATE_S)
    result = begin(scene, tasks, "call", one)
    scene.valkey.stop()
    one.process.send_signal(signal.SIGTERM)
    (scene.folder / "call").touch()
    assert ended(one) in (0, 69)
    scene.valkey.start()
    worker(scene, "second")
    assert result.get(timeout=LATE_S) == "call", scene.logs()


@pytest.mark.worker
def test_a_call_that_ends_while_redis_restarts_is_kept(scene: Fleet) -> None:
    """SIGTERM in an outage that is shorter than the grace: the answer is paid for, and is stored."""
    tasks = agent()
    one = worker(scene, WEATHER_GRACE_S="3600")
    one.wait_ready(LATE_S)
    result = begin(scene, tasks, "call", one)
    scene.valkey.stop()
    one.process.send_signal(signal.SIGTERM)
    (scene.folder / "call").touch()
    wait_for(lambda: "redis.away" in one.log(), LATE_S, where(one))
    scene.valkey.start()
    assert result.get(timeout=LATE_S) == "call"
    assert ended(one) == 0
    assert (scene.folder / "call-runs").read_text() == "x"


@pytest.mark.worker
@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_call_that_was_left_has_not_failed(scene: Fleet, pool: str) -> None:
    """Redis is back before its worker has ended, which another call holds up: it runs again, and is answered."""
    tasks = agent()
    one = worker(scene, "first", pool, WEATHER_GRACE_S="1", WEATHER_MORE_S="3600")
    one.wait_ready(LATE_S)
    held, left = begin(scene, tasks, "held", one), begin(scene, tasks, "left", one)
    scene.valkey.stop()
    one.process.send_signal(signal.SIGTERM)
    (scene.folder / "left").touch()
    wait_for(lambda: "call.left" in one.log(), LATE_S, where(one))
    scene.valkey.start()
    worker(scene, "second")
    (scene.folder / "held").touch()
    assert left.get(timeout=LATE_S) == "left", scene.logs()
    assert held.get(timeout=LATE_S) == "held", scene.logs()
    assert ended(one) == 0


def test_patience_ends_a_grace_after_the_order_and_after_each_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    """For ever, as long as no worker was told to end; forked children know of it."""
    at = [1000.0]
    monkeypatch.setattr(patient, "monotonic", lambda: at[0])
    patience = Patience()
    assert not patience.is_over()
    patience.ends_in(10.0)
    assert [at.__setitem__(0, when) or patience.is_over() for when in (1009.0, 1010.0)] == [False, True]
    assert not patience.is_over(since=1005.0)
    at[0] = 1015.0
    assert patience.is_over(since=1005.0)
    child = os.fork()
    if child == 0:
        os._exit(7 if patience.is_over() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    patience.holds()
    assert not patience.is_over()
