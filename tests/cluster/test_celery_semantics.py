"""Does a call behave as Celery's documentation says of tasks, for exceptions that we do not know? On real workers.

The documented behaviours, each a case or a test: autoretry_for, dont_autoretry_for, max_retries (a number, 0, None),
retry_kwargs, retry_backoff, retry_backoff_max, retry_jitter, self.retry (with and without exc, throw=False, other
arguments, another bound), MaxRetriesExceededError, throws, Ignore, Reject, replace, handlers, time limits, acks_late.
Each attempt is a row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest
from celery import states
from celery.exceptions import Reject, SoftTimeLimitExceeded, TimeLimitExceeded
from celery.result import AsyncResult

from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = pytest.mark.worker
WAIT_S = 120
CANARY = "Canary7PromptZeppelin"
POOLS = ("prefork", "threads")


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def running(pool: str) -> Iterator[tuple[Fleet, Worker]]:
    with fleet() as made:
        worker = made.worker("semantics", "-P", pool, "-c", "2", "-I", "tests.semantics_app")
        yield made, worker


@pytest.fixture
def tasks(running: tuple[Fleet, Worker]) -> ModuleType:
    running[0].agent()
    return importlib.reload(importlib.import_module("tests.semantics_app"))


def rows_of(result: AsyncResult, n: int) -> list[tuple[int, str, str | None]]:
    """(number, outcome, cause) of a call's attempts, when there are `n`."""
    rows = services().tracker.attempts_of
    wait_for(lambda: len(rows(result.id)) >= n, what=f"{n} attempts are tracked")
    return [(row.number, row.outcome.value, row.cause) for row in rows(result.id)]


def gone(result: AsyncResult) -> None:
    """The message was acknowledged: nothing of the call is left in its lane or out of it."""
    wait_for(lambda: services().lanes.record(result.id) is None, what="the call is over")


#: (task, how often it would fail, more arguments, runs, error that the caller gets)
BOUNDED = [
    pytest.param("auto_kwargs", 2, (), 3, None, id="retry_kwargs max_retries: enough"),
    pytest.param("auto_kwargs", 9, (), 3, "Odd", id="retry_kwargs max_retries: the exception itself at the end"),
    pytest.param("auto_for_ever", 6, (), 7, None, id="max_retries None: no bound"),
    pytest.param("auto_never", 9, (), 1, "Odd", id="max_retries 0: none"),
    pytest.param("auto_but", 2, (False,), 3, None, id="autoretry_for"),
    pytest.param("auto_but", 9, (False,), 4, "Odd", id="max_retries: 3 unless told"),
    pytest.param("auto_but", 9, (True,), 1, "Odder", id="dont_autoretry_for"),
    pytest.param("auto_backoff", 2, (), 3, None, id="retry_backoff"),
]


@pytest.mark.parametrize(("task", "fail_times", "more", "runs", "error"), BOUNDED)
def test_autoretry(
    tasks: ModuleType,
    running: tuple[Fleet, Worker],
    task: str,
    fail_times: int,
    more: tuple[Any, ...],
    runs: int,
    error: str | None,
) -> None:
    """It runs as often as documented, the caller gets the user's own exception, and each run is a row."""
    name = f"{task}-{fail_times}-{more}".replace(" ", "")
    result = getattr(tasks, task).delay(name, fail_times, *more)
    if error is None:
        assert result.get(timeout=WAIT_S) == runs - 1
    else:
        with pytest.raises(tasks.Odd) as caught:
            result.get(timeout=WAIT_S)
        assert type(caught.value).__name__ == error
    times = [at for at, _ in running[0].stamps(name)]
    assert len(times) == runs
    if task == "auto_backoff":
        assert all(after - before >= 0.95 for before, after in pairwise(times))
    last = (runs, "answered", None) if error is None else (runs, "failed", error)
    assert rows_of(result, runs) == [*[(n, "retried", None) for n in range(1, runs)], last]
    gone(result)


@pytest.mark.parametrize(
    ("how", "runs", "error"),
    [
        ("exc", 2, "Odd"),
        ("no exc", 2, "MaxRetriesExceededError"),
        ("in except", 2, "MaxRetriesExceededError"),
        ("more", 4, "Odd"),
        ("other arguments", 2, None),
    ],
)
def test_own_retry(tasks: ModuleType, running: tuple[Fleet, Worker], how: str, runs: int, error: str | None) -> None:
    """`self.retry`: the id stays, retries count, and at the end comes exc, or MaxRetriesExceededError."""
    name = f"own-{how}".replace(" ", "")
    result = tasks.own_retry.delay(name, how)
    if error is None:
        assert result.get(timeout=WAIT_S) == "done"
    else:
        with pytest.raises((tasks.Odd, tasks.own_retry.MaxRetriesExceededError)) as caught:
            result.get(timeout=WAIT_S)
        assert type(caught.value).__name__ == error
    said = [what.rsplit(" ", 2)[1:] for _, what in running[0].stamps(name)]
    assert said == [[str(n), result.id] for n in range(runs)]
    last = "answered" if error is None else "failed"
    assert [row[1] for row in rows_of(result, runs)] == ["retried"] * (runs - 1) + [last]
    gone(result)


def test_retry_without_throw(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """`throw=False`: the task goes on to its end, and is run again all the same."""
    result = tasks.own_retry.delay("own-nothrow", "no throw")
    wait_for(lambda: len(running[0].stamps("own-nothrow")) == 2, what="it ran again")
    wait_for(lambda: result.state == states.SUCCESS and result.result == "no throw", what="the second result holds")
    assert [row[1] for row in rows_of(result, 2)] == ["retried", "answered"]


def test_throws(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """An expected error is told at INFO, without a traceback; the caller gets it all the same."""
    result = tasks.expected.delay()
    with pytest.raises(tasks.Odd, match="expected"):
        result.get(timeout=WAIT_S)
    assert rows_of(result, 1) == [(1, "failed", "Odd")]
    log = running[1].log
    wait_for(lambda: any(result.id in line and "raised expected" in line for line in log().splitlines()), what="told")
    lines = [line for line in log().splitlines() if result.id in line and "raised" in line]
    assert all("INFO" in line for line in lines)


def test_ignore(tasks: ModuleType) -> None:
    """The state is the task's own affair; the message is acknowledged."""
    silent, told = tasks.ignored.delay("ignored"), tasks.ignored.delay("ignored", "PARKED")
    assert rows_of(silent, 1) == [(1, "failed", "Ignore")]
    assert rows_of(told, 1) == [(1, "failed", "Ignore")]
    gone(silent)
    gone(told)
    assert silent.state == states.PENDING
    assert told.state == "PARKED"


def test_reject(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """The message is dropped: it is not run again, and nothing is left of it."""
    result = tasks.rejected.delay("rejected", False)
    assert rows_of(result, 1) == [(1, "failed", "Reject")]
    gone(result)
    assert len(running[0].stamps("rejected")) == 1
    wait_for(result.ready, what="Celery says that it failed")
    assert isinstance(result.result, Reject)


def test_reject_and_requeue(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """It comes again, from its place in the lane, and is no suspect for that."""
    result = tasks.rejected.delay("requeued", True)
    assert result.get(timeout=WAIT_S) == "accepted"
    assert len(running[0].stamps("requeued")) == 3
    assert [row[1] for row in rows_of(result, 3)] == ["snoozed", "snoozed", "answered"]
    assert running[0].valkey.client.exists("rlw:suspects") == 0
    gone(result)


def test_replace(tasks: ModuleType) -> None:
    """The replacement answers under the same id."""
    result = tasks.replaced.delay(21)
    assert result.get(timeout=WAIT_S) == 42
    assert [row[1] for row in rows_of(result, 2)] == ["retried", "answered"]


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("well", ["success 'well' ['well'] {'more': 5}", "after SUCCESS ['well'] {'more': 5}"]),
        ("fail", ["failure Odd('failed') ['fail'] {'more': 5}", "after FAILURE ['fail'] {'more': 5}"]),
        (
            "retry",
            [
                "retry Odd('once more') ['retry'] {'more': 5}",
                "success 'retry' ['retry'] {'more': 5}",
                "after SUCCESS ['retry'] {'more': 5}",
            ],
        ),
    ],
)
def test_handlers(tasks: ModuleType, running: tuple[Fleet, Worker], what: str, expected: list[str]) -> None:
    """on_success, on_failure, on_retry and after_return (not for a retry) are told the call's own arguments."""
    before = len(running[0].stamps("handlers"))
    tasks.told.delay(what, more=5).get(timeout=WAIT_S, propagate=False)
    wait_for(lambda: len(running[0].stamps("handlers")) == before + len(expected), what="all handlers ran")
    assert sorted(said for _, said in running[0].stamps("handlers")[before:]) == sorted(expected)


def test_a_failing_task_is_acknowledged(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """acks_late with acks_on_failure_or_timeout: an exception is an end, no reason to deliver it again."""
    result = tasks.auto_never.delay("acked", 9)
    with pytest.raises(tasks.Odd):
        result.get(timeout=WAIT_S)
    gone(result)
    assert len(running[0].stamps("acked")) == 1


def test_time_limits(tasks: ModuleType, running: tuple[Fleet, Worker], pool: str) -> None:
    """Of a prefork pool: the soft one is raised in the task, the hard one ends its process, once."""
    if pool != "prefork":
        pytest.skip("Celery has time limits in prefork pools only")
    assert tasks.slow.delay("soft", True).get(timeout=WAIT_S) == "cleaned up"
    uncaught, killed = tasks.slow.delay("uncaught", False), tasks.too_slow.delay("hard")
    with pytest.raises(SoftTimeLimitExceeded):
        uncaught.get(timeout=WAIT_S)
    with pytest.raises(TimeLimitExceeded):
        killed.get(timeout=WAIT_S)
    gone(uncaught)
    gone(killed)
    assert rows_of(uncaught, 1) == [(1, "failed", "SoftTimeLimitExceeded")]
    assert rows_of(killed, 0) == []
    assert len(running[0].stamps("uncaught")) == 1
    assert len(running[0].stamps("hard")) == 1


def test_an_exception_that_we_do_not_know_adds_nothing(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """Its message is in Celery's own log line and result, as in stock; never in our rows, lines or Redis keys."""
    result = tasks.unexpected.delay(CANARY)
    with pytest.raises(tasks.Odd, match=CANARY):
        result.get(timeout=WAIT_S)
    assert rows_of(result, 1) == [(1, "failed", "Odd")]
    gone(result)
    ours = [line for line in running[1].log().splitlines() if "attempt.finished" in line]
    assert any("cause=Odd" in line for line in ours)
    assert not any(CANARY in line for line in ours)
    client: Any = running[0].valkey.client
    reads: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": client.xrange,
        b"none": client.exists,  # it ended since it was listed
    }
    holders = [key for key in client.scan_iter() if CANARY in repr(reads[client.type(key)](key))]
    # its arguments are kept for a day too, so that it can be run again
    assert sorted(holders) == [f"celery-task-meta-{result.id}".encode(), f"rlw:shelved:{result.id}".encode()]


def test_no_more_retries_does_not_repeat_the_arguments(tasks: ModuleType, running: tuple[Fleet, Worker]) -> None:
    """Celery's own message holds args and kwargs; ours does not, in the result and in the log."""
    result = tasks.own_retry.delay(f"own-{CANARY}", "no exc")
    with pytest.raises(tasks.own_retry.MaxRetriesExceededError) as caught:
        result.get(timeout=WAIT_S)
    assert result.id in str(caught.value)
    assert CANARY not in str(caught.value)
    lines = [line for line in running[1].log().splitlines() if result.id in line]
    assert lines
    assert not any(CANARY in line for line in lines)
