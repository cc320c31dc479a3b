"""Do calls behave as Celery tasks do? Canvas, retry, callbacks and revoke, on a real worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from types import ModuleType

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.errors import BadInput, DeadlineExceeded, LaneFull
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker
WAIT_S = 120


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with fleet() as made:
        made.worker("canvas")
        yield made


@pytest.fixture
def tasks(running: Fleet) -> ModuleType:
    return running.agent()


def block(lane: str) -> None:
    """Close a lane: nothing leaves it."""
    services().lanes.set_points(lane, {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})


def test_an_answer_comes_back(tasks: ModuleType) -> None:
    """What Celery's JSON can carry comes back as it went."""
    value = {"text": "grüße ☃", "list": [1, 2.5, None, True], "empty": {}, "nothing": []}
    assert tasks.echo.delay(value).get(timeout=WAIT_S) == value


def test_a_result_can_be_awaited(tasks: ModuleType) -> None:
    """`await task.delay()` in an event loop gives the answer."""

    async def ask() -> int:
        return int(await tasks.double.delay(4))

    assert asyncio.run(ask()) == 8


def test_chain(tasks: ModuleType) -> None:
    """Each link gets the answer of the one before, an ordinary task among them."""
    result = chain(tasks.double.s(1), tasks.add.s(3), tasks.double.s(more=1)).delay()
    assert result.get(timeout=WAIT_S) == 11


def test_group(tasks: ModuleType) -> None:
    """All answers, in order."""
    assert group(tasks.double.s(n) for n in range(5)).delay().get(timeout=WAIT_S) == [0, 2, 4, 6, 8]


def test_chord(tasks: ModuleType) -> None:
    """The body gets the answers of the header; so does an ordinary header's."""
    assert chord([tasks.double.s(n) for n in range(4)], tasks.total.s()).delay().get(timeout=WAIT_S) == 12
    assert chord([tasks.add.s(n, 1) for n in range(4)], tasks.total.s()).delay().get(timeout=WAIT_S) == 10


def test_a_task_retries_itself(tasks: ModuleType, running: Fleet) -> None:
    """self.retry sends the same call again; its id stays and retries count."""
    result = tasks.flaky.delay(2)
    assert result.get(timeout=WAIT_S) == 2
    assert [what for _, what in running.stamps("flaky")] == ["0", "1", "2"]
    rows = services().tracker.attempts_of
    wait_for(lambda: len(rows(result.id)) == 3, what="three attempts are tracked")
    assert [row.number for row in rows(result.id)] == [1, 2, 3]


def test_autoretry(tasks: ModuleType) -> None:
    """autoretry_for holds for exceptions that we do not know."""
    assert tasks.auto.delay(2).get(timeout=WAIT_S) == 2


def test_a_failing_provider_is_retried_by_category(tasks: ModuleType) -> None:
    """HTTP 500 twice, then an answer: three attempts. Nobody else was answered meanwhile, so none costs a try."""
    result = tasks.sick.delay(2)
    assert result.get(timeout=WAIT_S) == 2
    rows = services().tracker.attempts_of
    wait_for(lambda: len(rows(result.id)) == 3, what="three attempts are tracked")
    assert [row.outcome.value for row in rows(result.id)] == ["snoozed", "snoozed", "answered"]


def test_a_failure_reaches_caller_and_errback(tasks: ModuleType, running: Fleet) -> None:
    """The user's own exception comes back, and link_error is called once."""
    before = len(running.stamps("notes"))
    with pytest.raises(LookupError):
        tasks.broken.apply_async(("x",), link_error=tasks.note.si()).get(timeout=WAIT_S)
    wait_for(lambda: len(running.stamps("notes")) == before + 1, what="the errback ran")


def test_link(tasks: ModuleType, running: Fleet) -> None:
    """link is called with the answer."""
    before = len(running.stamps("notes"))
    tasks.double.apply_async((2,), link=tasks.note.s()).get(timeout=WAIT_S)
    wait_for(lambda: len(running.stamps("notes")) == before + 1, what="the callback ran")


def test_a_waiting_call_is_revoked(tasks: ModuleType) -> None:
    """revoke() takes it out of its lane then and there, and its result says so."""
    block("blocked")
    result = tasks.echo.apply_async((1,), lane="blocked")
    assert services().lanes.record(result.id) is not None
    result.revoke()
    assert services().lanes.record(result.id) is None
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT_S)


def test_a_waiting_call_is_revoked_by_id_alone(tasks: ModuleType) -> None:
    """`app.control.revoke(id)`, as Flower sends it, does the same through a worker."""
    block("blocked")
    result = tasks.echo.apply_async((1,), lane="blocked")
    tasks.app.control.revoke(result.id)
    wait_for(lambda: services().lanes.record(result.id) is None, what="the call left its lane")
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT_S)


def test_expires_in_the_lane(tasks: ModuleType) -> None:
    """A call that waits past `expires` is revoked, as in stock Celery; past its deadline it fails."""
    block("blocked")
    expired = tasks.echo.apply_async((1,), lane="blocked", expires=0.3)
    late = tasks.echo.apply_async((1,), lane="blocked", deadline_s=0.3)
    with pytest.raises(TaskRevokedError):
        expired.get(timeout=WAIT_S)
    with pytest.raises(DeadlineExceeded) as told:
        late.get(timeout=WAIT_S)
    assert (told.value.attempts, told.value.category) == (0, None)


def test_an_ordinary_task_passes_a_blocked_lane(tasks: ModuleType) -> None:
    """Only calls wait in lanes."""
    block("blocked")
    waiting = tasks.echo.apply_async((1,), lane="blocked")
    assert tasks.add.delay(1, 2).get(timeout=WAIT_S) == 3
    assert tasks.echo.delay(2).get(timeout=WAIT_S) == 2
    waiting.revoke()


def test_a_full_lane_refuses(tasks: ModuleType, running: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """.delay() raises LaneFull at once, and nothing is kept."""
    block("narrow")
    monkeypatch.setenv("MAISD_MAX_WAITING", "2")
    tasks = running.agent()
    first = [tasks.echo.apply_async((n,), lane="narrow") for n in range(2)]
    with pytest.raises(LaneFull, match="narrow"):
        tasks.echo.apply_async((3,), lane="narrow")
    for result in first:
        result.revoke()


@pytest.mark.parametrize(
    ("value", "why"),
    [(float("nan"), "NaN"), ("\ud800", "surrogate"), (object(), "not JSON"), ("x" * 17_000_000, "bytes")],
)
def test_bad_input_is_refused_when_the_call_is_made(tasks: ModuleType, value: object, why: str) -> None:
    """One clear error at .delay(), nothing accepted."""
    with pytest.raises(BadInput, match=why):
        tasks.echo.delay(value)


def test_wrong_arity_is_refused(tasks: ModuleType) -> None:
    """As stock Celery does."""
    with pytest.raises(TypeError):
        tasks.echo.delay()


def test_a_call_by_name_goes_through_its_lane(tasks: ModuleType) -> None:
    """`send_task` in a process that knows the task is planned like `.delay()`."""
    block("blocked")
    result = tasks.app.send_task("tests.fleet_app.echo", (7,))
    assert result.get(timeout=WAIT_S) == 7


def test_priority_and_options(tasks: ModuleType) -> None:
    """A priority that cannot be is refused by name."""
    with pytest.raises(BadInput, match="priority"):
        tasks.echo.apply_async((1,), priority="urgent")
    assert tasks.echo.apply_async((1,), priority=0, tenant="a", countdown=0.2).get(timeout=WAIT_S) == 1


def _bodies_apart(running: Fleet) -> list[bytes]:
    return sorted(running.valkey.client.scan_iter("rlw:payload:canvas-*"))


def _revoked_in_time(tasks: ModuleType, running: Fleet, countdown_s: float) -> bool:
    """Revoke a task while it waits for its time → whether the worker has heard of it before that time."""
    waiting = tasks.add.apply_async((1, 2), link=tasks.echo.s("a prompt"), countdown=countdown_s)
    apart = _bodies_apart(running)
    waiting.revoke()
    try:
        waiting.get(timeout=WAIT_S)
    except TaskRevokedError:
        return apart != []
    return False


@pytest.mark.parametrize("end", ["answered", "failed", "chord failed", "expired", "revoked", "rejected", "replaced"])
def test_a_body_that_lies_apart_goes_with_its_canvas(tasks: ModuleType, running: Fleet, end: str) -> None:
    """Ordinary tasks whose links hold calls leave no arguments behind, however their canvas ends."""
    later = tasks.echo.s("a prompt")
    match end:
        case "answered":
            chain(tasks.add.s(1, 2), tasks.double.s(), tasks.add.s(1), tasks.double.s()).delay().get(timeout=WAIT_S)
            group(chain(tasks.add.s(n, 1), tasks.double.s()) for n in range(3)).delay().get(timeout=WAIT_S)
            chord([tasks.add.s(n, 1) for n in range(3)], tasks.total.s()).delay().get(timeout=WAIT_S)
        case "failed":
            with pytest.raises(TypeError):
                chain(tasks.add.s(1, "x"), later).delay().get(timeout=WAIT_S)
        case "chord failed":
            with pytest.raises(Exception, match="unsupported operand"):
                chord([tasks.add.s(1, "x"), tasks.add.s(1, 1)], tasks.total.s()).delay().get(timeout=WAIT_S)
        case "expired":
            with pytest.raises(TaskRevokedError):
                tasks.add.apply_async((1, 2), link=later, expires=-1).get(timeout=WAIT_S)
        case "revoked":
            assert any(_revoked_in_time(tasks, running, countdown_s) for countdown_s in (3, 30, 100))
        case "rejected":
            tasks.rejects.apply_async((1,), link=later)
        case "replaced":
            assert tasks.replaces.apply_async((1,), link=later).get(timeout=WAIT_S) == 2
    wait_for(lambda: not _bodies_apart(running), what="no body is left")


def test_a_purge_takes_the_bodies_along(tasks: ModuleType, running: Fleet) -> None:
    """`purge` forgets them with their messages; without one they have a bound."""
    tasks.app.control.cancel_consumer("fleet", reply=True, limit=1, timeout=WAIT_S)

    def stays() -> bool:
        tasks.add.apply_async((0, 1), link=tasks.echo.s("a prompt"))
        time.sleep(0.5)
        return bool(_bodies_apart(running))

    try:
        wait_for(stays, what="the worker, which was waiting for a message, reads no more")
        tasks.app.control.purge()
        for n in range(3):
            tasks.add.apply_async((n, 1), link=tasks.echo.s("a prompt"))
        assert len(_bodies_apart(running)) == 3
        assert all(0 < running.valkey.client.ttl(name) <= 7 * 86_400 for name in _bodies_apart(running))
        tasks.app.control.purge()
        assert _bodies_apart(running) == []
    finally:
        tasks.app.control.add_consumer("fleet", reply=True, limit=1, timeout=WAIT_S)


def test_a_task_that_is_delivered_again_after_it_was_done_is_dropped(tasks: ModuleType, running: Fleet) -> None:
    """Its result stays as it is: the body went with the first delivery, which is no error of the task."""
    with running.valkey.client.pipeline() as pipe:
        result = tasks.add.apply_async((1, 2), link=tasks.echo.s("a prompt"), countdown=3)
        wait_for(lambda: running.valkey.client.hlen("unacked") == 1, what="a worker holds it until its time")
        raw = running.valkey.client.hvals("unacked")[0]
        assert result.get(timeout=WAIT_S) == 3
        message = json.loads(raw)[0]
        message["headers"]["redelivered"] = True
        pipe.lpush("rlw:ready:+:fleet", json.dumps(message))
        pipe.execute()
    wait_for(lambda: not running.valkey.client.exists("rlw:ready:+:fleet"), what="it was delivered")
    assert tasks.add.delay(2, 2).get(timeout=WAIT_S) == 4
    assert result.get(timeout=WAIT_S) == 3
    assert running.valkey.client.llen("rlw:malformed") == 0
