"""A task retries by itself around a provider: the lane hears of it, and what costs no try uses none of its retries."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import httpx2 as httpx
import pytest
import redis
from celery.result import AsyncResult

from ratelimit_worker.calls import Category, Failure, LaneLimits
from ratelimit_worker.errors import BadInput, CallFailed, Overloaded, RateLimitWorkerError, Throttled
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.policy.own_retry import Goes, OwnRule, Stays, Wish, catches_providers, whose
from ratelimit_worker.policy.retry import GiveUp, Halt, Retry, Snooze, Step, Why
from ratelimit_worker.providers.http import ProviderRefused
from ratelimit_worker.stores.own_rules import MOST_KEPT, OwnRules
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

WAIT_S = 120
OWN = ("auto", "backoff", "fallback", "never", "own", "swallowed")  #: tasks of tests/own_retries_app.py
REFUSED, AFTER_4 = Failure(category=Category.RATE_LIMITED, cause="429"), 4.0
WAITS = Failure(category=Category.RATE_LIMITED, cause="429", retry_after_s=AFTER_4)
SICK = Failure(category=Category.OVERLOADED, cause="503")
BUSY = Failure(category=Category.OVERLOADED, cause="503", retry_after_s=AFTER_4)
WRONG = Failure(category=Category.INVALID_REQUEST, cause="400")
QUOTA = Failure(category=Category.QUOTA_EXHAUSTED, cause="402")


@pytest.mark.parametrize(
    ("failure", "step", "free", "wish", "expected"),
    [
        pytest.param(WAITS, Snooze(4.0), True, Wish(), Stays(0.0), id="nobody chose a time: the gate's"),
        pytest.param(WAITS, Snooze(4.0), True, Wish(wait_s=1.0), Stays(0.0), id="shorter than the gate: at its place"),
        pytest.param(WAITS, Snooze(4.0), True, Wish(wait_s=60.0), Stays(60.0), id="longer than the gate: as it wishes"),
        pytest.param(REFUSED, Snooze(0.0), True, Wish(wait_s=1.0), Stays(1.0), id="no Retry-After: as it wishes"),
        pytest.param(SICK, Snooze(0.0), True, Wish(), Stays(0.0), id="the provider is away: its lane's probes"),
        pytest.param(QUOTA, Halt(QUOTA), True, Wish(wait_s=0.0), Stays(0.0), id="quota: parked"),
        pytest.param(QUOTA, Halt(QUOTA), False, Wish(wait_s=9.0), Goes(None), id="quota, and modes are by hand"),
        pytest.param(WAITS, Snooze(4.0), True, Wish(goes_on=True), Goes(4.0), id="throw=False: no sooner"),
        pytest.param(WAITS, Snooze(4.0), True, Wish(wait_s=9.0, goes_on=True), Goes(None), id="throw=False, later"),
        pytest.param(REFUSED, Snooze(0.0), True, Wish(same=False), Goes(0.0), id="other arguments: its lane's gate"),
        pytest.param(WAITS, Snooze(4.0), True, Wish(same=False, wait_s=1.0), Goes(4.0), id="other arguments, sooner"),
        pytest.param(
            WAITS, Snooze(4.0), True, Wish(same=False, same_lane=False), Goes(None), id="another lane: as it wishes"
        ),
        pytest.param(SICK, Retry(0.7), False, Wish(), Goes(0.7), id="sick: the backoff of its category, not 180 s"),
        pytest.param(SICK, Retry(0.7), False, Wish(wait_s=60.0), Goes(None), id="sick: as it wishes"),
        pytest.param(BUSY, Retry(4.0), False, Wish(wait_s=0.01), Goes(4.0), id="sick: not before Retry-After"),
        pytest.param(SICK, GiveUp(SICK, Why.TRIES), False, Wish(), Goes(None), id="the lane would give up: Celery's"),
        pytest.param(BUSY, GiveUp(BUSY, Why.TRIES), False, Wish(), Goes(4.0), id="... not before Retry-After"),
        pytest.param(WAITS, GiveUp(WAITS, Why.TRIES), False, Wish(), Goes(4.0), id="smart retries off: Retry-After"),
        pytest.param(REFUSED, GiveUp(REFUSED, Why.TRIES), False, Wish(), Goes(0.0), id="smart retries off: the gate"),
        pytest.param(WRONG, GiveUp(WRONG), False, Wish(), Goes(None), id="the caller's fault: Celery's"),
    ],
)
def test_whose_the_retry_is(failure: Failure, step: Step, free: bool, wish: Wish, expected: Stays | Goes) -> None:
    """What costs no try is the lane's, all else the task's; no retry goes before Retry-After."""
    assert whose(failure, step, free, wish) == expected


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Exception, True),
        (BaseException, True),
        (OSError, True),
        (ConnectionError, True),
        (TimeoutError, True),
        (RateLimitWorkerError, True),
        (CallFailed, True),
        (Throttled, True),
        (ProviderRefused, True),
        (httpx.ReadTimeout, True),
        (httpx.HTTPError, True),
        (KeyError, False),
        (ValueError, False),
        (BadInput, False),
        (FileNotFoundError, False),
    ],
)
def test_rules_that_catch_a_providers_failures(kind: type[BaseException], expected: bool) -> None:
    """Ours, an SDK's, an HTTP client's, a connection's; everything that they derive from."""
    assert catches_providers((KeyError, kind)) is expected


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            OwnRule(task="t", caught=("Exception",), max_retries=None),
            ("t retries by itself (autoretry_for=Exception, without a bound)", "after the backoff of the failure"),
        ),
        (OwnRule(task="t", caught=("OSError", "KeyError"), backoff=True), ("OSError, KeyError", "after retry_backoff")),
        (OwnRule(task="t", asks=True, max_retries=5, delay_s=2.5), ("(self.retry, max_retries=5)", "after 2.5 s")),
        (OwnRule(task="t", asks=True, caught=("Exception",)), ("autoretry_for=Exception and self.retry",)),
    ],
)
def test_what_a_rule_means_in_words(rule: OwnRule, words: tuple[str, ...]) -> None:
    """How the task retries, what of that the lane does, and when a retry goes."""
    for word in words:
        assert word in str(rule)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def running(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with fleet() as made:
        made.worker("retries", "-P", str(request.param), "-c", "4", "-I", "tests.own_retries_app")
        yield made


@pytest.fixture
def tasks(running: Fleet) -> ModuleType:
    running.agent()
    return importlib.reload(importlib.import_module("tests.own_retries_app"))


def rows_of(result: AsyncResult, n: int) -> list[tuple[str, str | None, int | None, float | None]]:
    """(outcome, category, status, Retry-After) of a call's attempts, when there are `n`."""
    rows = services().tracker.attempts_of
    wait_for(lambda: len(rows(result.id)) >= n, what=f"{n} attempts are tracked")
    return [
        (row.outcome.value, row.category.value if row.category else None, row.status, row.retry_after_s)
        for row in rows(result.id)
    ]


def refused_in(lane: str) -> float:
    return float(services().lanes.fields(lane).get("x1", 0))


def sent(task: Any, *args: Any, others_answered: bool = False) -> AsyncResult:
    """A call in a lane of its own without a pace, named like what it writes: gates and modes are what is tried here.

    Args:
        others_answered: The lane takes other calls to be answered all the time, so that a sick answer is this call's.
    """
    name = next(arg for arg in args if isinstance(arg, str) and arg.startswith("n-"))
    services().lanes.establish(name, limit_fields(LaneLimits(unlimited=True)))
    if others_answered:
        later_us = int((time.time() + 3600) * 1e6)
        services().lanes.set_points(name, {"good_at": later_us, "good_sent": later_us})
    result: AsyncResult = task.apply_async(args, lane=name)
    return result


@pytest.mark.worker
def test_tasks_that_retry_by_themselves_are_named(tasks: ModuleType, running: Fleet) -> None:
    """A line each in the worker's log, and for `doctor`; no line for a task that leaves it to its lane."""
    names = [f"tests.own_retries_app.{name}" for name in OWN] + [
        "tests.fleet_app.flaky",
        "tests.fleet_app.shared_flaky",
    ]
    log = running.workers[0].log()
    assert sorted(services().own_rules.read()) == sorted(names)
    for name in names:
        assert log.count(f"task.retries_itself {name} retries by itself") == 1
    assert log.count("task.retries_itself") == len(names)


def test_a_task_that_has_no_rule_any_more_is_forgotten(redis_client: redis.Redis) -> None:
    """A worker speaks for the tasks that it knows, and for no others; what is told ends one day."""
    redis_client.flushall()
    rules = OwnRules(redis_client)
    rules.tell(["a", "b"], {"a": "once", "b": "twice"})
    rules.tell(["a", "c"], {"c": "thrice"})
    assert rules.read() == {"b": "twice", "c": "thrice"}
    assert 0 < redis_client.ttl("rlw:retries") <= 30 * 86_400
    rules.tell([], {f"t{n}": "x" for n in range(2 * MOST_KEPT)})
    assert len(rules.read()) == MOST_KEPT


ANSWERED = ("answered", None, None, None)


@pytest.mark.worker
@pytest.mark.parametrize(
    ("task", "before"),
    [
        ("auto", ()),
        ("backoff", ()),
        ("never", ()),
        ("own", ("exc",)),
        ("own", ("no exc",)),
        ("own", ("wrapped",)),
        ("swallowed", ()),
    ],
)
def test_a_refusal_uses_no_retry(tasks: ModuleType, running: Fleet, task: str, before: tuple[str, ...]) -> None:
    """More 429s than the task has retries: each closes the gate, and the call is answered with all of them left."""
    name, fails = "-".join(("n-refused", task, *before)).replace(" ", ""), 4
    more = () if task == "swallowed" else ("0.1",)
    result = sent(getattr(tasks, task), *before, name, 429, fails, *more)
    assert result.get(timeout=WAIT_S) == [fails, 0]
    wait_s = 0.1 if more else None
    assert rows_of(result, fails + 1) == [("snoozed", "rate_limited", 429, wait_s)] * fails + [ANSWERED]
    assert refused_in(name) == fails
    times = [at for at, _ in running.stamps(name)]
    assert all(later - sooner >= (wait_s or 0.0) for sooner, later in pairwise(times))


@pytest.mark.worker
@pytest.mark.parametrize(("task", "before"), [("auto", ()), ("own", ("exc",)), ("own", ("no exc",))])
def test_what_costs_a_try_is_a_retry_of_the_tasks(
    tasks: ModuleType, running: Fleet, task: str, before: tuple[str, ...]
) -> None:
    """Where others are answered a 503 uses a retry, waits for Retry-After and not for Celery's 180 s, and is sick."""
    name = "-".join(("n-sick", task, *before)).replace(" ", "")
    result = sent(getattr(tasks, task), *before, name, 503, 2, "1", others_answered=True)
    wait_for(lambda: int(services().lanes.fields(name).get("sick", 0)) == 2, what="the lane has heard of both")
    assert result.get(timeout=WAIT_S) == [2, 2]
    assert rows_of(result, 3) == [("retried", "overloaded", 503, 1.0)] * 2 + [ANSWERED]
    times = [at for at, _ in running.stamps(name)]
    assert all(later - sooner >= 1.0 for sooner, later in pairwise(times))


@pytest.mark.worker
@pytest.mark.parametrize(("task", "before"), [("auto", ()), ("own", ("exc",))])
def test_a_provider_that_answers_nobody_is_waited_for(
    tasks: ModuleType, running: Fleet, task: str, before: tuple[str, ...]
) -> None:
    """More 503s than the task has retries, and nobody is answered beside it: none of them is used."""
    name = "-".join(("n-away", task, *before)).replace(" ", "")
    result = sent(getattr(tasks, task), *before, name, 503, 4, "0.05")
    assert result.get(timeout=WAIT_S) == [4, 0]
    assert rows_of(result, 5) == [("snoozed", "overloaded", 503, 0.05)] * 4 + [ANSWERED]


@pytest.mark.worker
@pytest.mark.parametrize(
    ("task", "before", "attempts", "error"),
    [
        ("auto", (), 3, Overloaded),
        ("never", (), 1, Overloaded),
        ("own", ("exc",), 3, Overloaded),
        ("own", ("no exc",), 3, None),
    ],
)
def test_after_its_last_retry_a_call_has_failed(
    tasks: ModuleType, running: Fleet, task: str, before: tuple[str, ...], attempts: int, error: type[Exception] | None
) -> None:
    """`max_retries` bounds the attempts, and the lane does not go on where the task has given up; it hears of each."""
    name = "-".join(("n-over", task, *before)).replace(" ", "")
    result = sent(getattr(tasks, task), *before, name, 503, 99, "0.05", others_answered=True)
    with pytest.raises(error or tasks.own.MaxRetriesExceededError):
        result.get(timeout=WAIT_S)
    again = [("retried", "overloaded", 503, 0.05)] * (attempts - 1)
    assert rows_of(result, attempts) == [*again, ("failed", "overloaded", 503, 0.05)]
    assert len(running.stamps(name)) == attempts


@pytest.mark.worker
def test_a_longer_countdown_is_kept(tasks: ModuleType, running: Fleet) -> None:
    """Who asks for 2 s after a refusal of 0.1 s waits for 2 s, at no retry."""
    assert sent(tasks.own, "for later", "n-later", 429, 1, "0.1").get(timeout=WAIT_S) == [1, 0]
    first, second = (at for at, _ in running.stamps("n-later"))
    assert second - first >= 2.0


@pytest.mark.worker
def test_a_retry_with_other_arguments_is_the_tasks(tasks: ModuleType, running: Fleet) -> None:
    """The lane cannot send what it does not have; it hears of the refusal, and its gate holds for the retry."""
    result = sent(tasks.own, "other arguments", "n-others", 429, 1, "1")
    assert result.get(timeout=WAIT_S) == [1, 1]
    assert rows_of(result, 2) == [("retried", "rate_limited", 429, 1.0), ANSWERED]
    assert refused_in("n-others") == 1
    first, second = (at for at, _ in running.stamps("n-others"))
    assert second - first >= 1.0


@pytest.mark.worker
def test_a_retry_that_does_not_end_the_task(tasks: ModuleType, running: Fleet) -> None:
    """`throw=False`: the lane hears of the refusal, and the gate holds for what was sent again."""
    result = sent(tasks.own, "no throw", "n-nothrow", 429, 1, "1")
    wait_for(lambda: tasks.own.AsyncResult(result.id).result == [1, 1], what="the second result holds")
    assert rows_of(result, 2) == [("retried", "rate_limited", 429, 1.0), ANSWERED]
    assert refused_in("n-nothrow") == 1
    first, second = (at for at, _ in running.stamps("n-nothrow"))
    assert second - first >= 1.0


@pytest.mark.worker
def test_an_answer_of_the_tasks_own_hides_no_failure(tasks: ModuleType) -> None:
    """It has used its retries and says something by itself: its caller gets that, the lane hears of both failures."""
    result = sent(tasks.fallback, "n-fallback", 503, 99, others_answered=True)
    assert result.get(timeout=WAIT_S) == [-1, 1]
    assert rows_of(result, 2) == [("retried", "overloaded", 503, None), ("answered", "overloaded", 503, None)]
    wait_for(lambda: int(services().lanes.fields("n-fallback").get("sick", 0)) == 2, what="the lane has heard of both")


@pytest.mark.worker
def test_words_that_stand_for_a_providers_failure(tasks: ModuleType) -> None:
    """`Ignore` and `Reject` do what Celery says, and the lane hears of what they were raised from."""
    ignored = sent(tasks.own, "ignore", "n-ignored", 429, 1, "0.1")
    assert rows_of(ignored, 1) == [("failed", "rate_limited", 429, 0.1)]
    rejected = sent(tasks.own, "reject", "n-rejected", 429, 1, "0.1")
    assert rejected.get(timeout=WAIT_S) == [1, 0]
    assert rows_of(rejected, 2) == [("snoozed", "rate_limited", 429, 0.1), ANSWERED]
    assert (refused_in("n-ignored"), refused_in("n-rejected")) == (1, 1)


@pytest.mark.worker
def test_outside_a_lane_a_retry_is_celerys(tasks: ModuleType) -> None:
    """Called directly it raises what it met; run eagerly, Celery's own retries are used."""
    with pytest.raises(ProviderRefused):
        tasks.own("exc", "direct", 429, 1, "9")
    eager: Any = tasks.own.apply(args=("exc", "eager", 429, 2, "9"))
    assert eager.get() == [2, 2]
