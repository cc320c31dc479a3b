"""Does a call's answer come with a result backend that sends results, and does a call run with none at all?"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from celery.exceptions import TaskRevokedError

from ratelimit_worker.errors import ConfigurationError, MessageRefused
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]
WAIT_S = 120


@pytest.fixture(scope="module", params=["rpc://", "disabled://"])
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Fleet, ModuleType, str]]:
    """A worker with this result backend, its app here, and which it is."""
    with fleet(BACKENDS_RESULTS=request.param) as made:
        worker = Worker("backends", made.folder, made.env, ("-P", "threads", "-c", "4"), "tests.backends_app")
        made.workers.append(worker)
        worker.wait_ready()
        sys.modules.pop("tests.backends_app", None)
        import tests.backends_app as agent

        yield made, agent, request.param


@pytest.fixture
def sent_back(running: tuple[Fleet, ModuleType, str]) -> ModuleType:
    """The app, where results are sent to whoever made the call."""
    _, tasks, backend = running
    if backend != "rpc://":
        pytest.skip("no results")
    return tasks


def test_answers_come_back(sent_back: ModuleType) -> None:
    """Of a call that runs, of one that is answered where it is made, and of those that wait for another's answer."""
    assert sent_back.ask.delay("first").get(timeout=WAIT_S) == "first"
    known = sent_back.ask.delay("first")
    assert known.get(timeout=WAIT_S) == "first"
    assert (known.name, known.args) == ("backends.ask", ["first"])
    same = [sent_back.ask.delay("same", 0.5) for _ in range(3)]
    assert [one.get(timeout=WAIT_S) for one in same] == ["same"] * 3
    assert sent_back.plain.delay(1, 2).get(timeout=WAIT_S) == 3


def test_ends_come_back(sent_back: ModuleType) -> None:
    """Of a call that is revoked while it waits, and of one that no worker can take."""
    waits = sent_back.ask.apply_async(("revoked",), countdown=600)
    waits.revoke()
    with pytest.raises(TaskRevokedError):
        waits.get(timeout=WAIT_S)
    refused = sent_back.app.send_task("backends.unknown")
    with pytest.raises(MessageRefused, match="not registered"):
        refused.get(timeout=WAIT_S)


def test_a_map_of_calls_needs_chords(sent_back: ModuleType) -> None:
    """Their answers cannot be brought together: one line says so, and nothing is sent. Unasked for, they all run."""
    with pytest.raises(ConfigurationError, match="which this result backend cannot"):
        sent_back.ask.map(["never"]).delay().get(timeout=WAIT_S)


def test_a_map_of_which_nobody_wants_the_answers(running: tuple[Fleet, ModuleType, str]) -> None:
    made, tasks, _ = running
    tasks.ask.map(["one", "other"]).apply_async(ignore_result=True)
    wait_for(lambda: made.stamps("runs-one") and made.stamps("runs-other"), what="both run")
    assert made.stamps("runs-never") == []


def test_without_results(running: tuple[Fleet, ModuleType, str]) -> None:
    """The call runs; who asks for its answer reads Celery's own words, `await` or not."""
    made, tasks, backend = running
    if backend == "rpc://":
        pytest.skip("it has results")

    async def awaits() -> object:
        return await tasks.ask.delay("unheard")

    for ask in (lambda: asyncio.run(awaits()), lambda: tasks.ask.delay("unheard too").get(timeout=WAIT_S)):
        with pytest.raises(NotImplementedError, match="No result backend is configured"):
            ask()
    wait_for(lambda: made.stamps("runs-unheard") and made.stamps("runs-unheard too"), what="both run")
