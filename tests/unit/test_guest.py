"""An app that somebody has: whatever it brings, its calls go through their lanes and its other tasks stay as they were.

In this process, without a server: what concerns workers is in test_guest_worker.py.
"""

from __future__ import annotations

import asyncio
import gc
import types
import weakref
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from celery import Celery, Task
from celery.events.event import get_exchange
from celery.result import AsyncResult
from kombu import Connection, Exchange

from ratelimit_worker import wiring
from ratelimit_worker.app import install, llm_task
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, ConfigurationError
from ratelimit_worker.worker.installed import asked_of, installation_of, same_server, services_of
from ratelimit_worker.worker.result import CallResult
from ratelimit_worker.worker.task import CallTask

HERE, THERE = "redis://127.0.0.1:1/0", "redis://127.0.0.1:1/1"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No broker in the environment, and the process's own services as they were."""
    for name in ("MAISD_REDIS_URL", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.delenv(name, raising=False)
    before = wiring.services().settings
    yield
    wiring.use(before)


def celery(**options: Any) -> Celery:
    """An app that is nobody's current one."""
    return Celery("shop", set_as_current=False, **options)


def double(n: int) -> int:
    """A task's function."""
    return 2 * n


def count(values: list[Any]) -> int:
    """Another."""
    return len(values)


def transport_of(app: Celery) -> str:
    """Where its messages go."""
    return type(app.connection_for_write().transport).__module__


@pytest.mark.parametrize("order", ["broker", "before", "after", "namespace", "late", "twice", "defaults"])
def test_order_of_set_up_does_not_matter(order: str) -> None:
    said = types.SimpleNamespace(broker_url=HERE, task_acks_late=True, result_expires=600)
    spelled = types.SimpleNamespace(CELERY_BROKER_URL=HERE, CELERY_RESULT_EXPIRES=600, CELERY_BROKER_POOL_LIMIT=5)
    app = celery(broker=HERE) if order == "broker" else celery()
    if order == "before":
        app.config_from_object(said)
    if order == "namespace":
        app.config_from_object(spelled, namespace="CELERY")
    install(app, read_settings())
    if order == "after":
        app.config_from_object(said)
    elif order == "late":
        app.conf.broker_url = HERE
    elif order == "twice":
        app.config_from_object(types.SimpleNamespace(broker_url=THERE))
        assert app.conf.broker_pool_limit
        app.config_from_object(said)
    elif order == "defaults":
        app.add_defaults({"broker_url": HERE})
    assert transport_of(app) == "ratelimit_worker.worker.transport"
    assert services_of(app).redis_url == HERE
    assert app.conf.result_backend in (HERE, None)
    expires = 600 if order in {"before", "namespace", "after", "twice"} else timedelta(days=1)
    assert app.conf.result_expires == expires
    assert app.conf.broker_pool_limit == (5 if order == "namespace" else 64)
    assert app.conf.worker_prefetch_multiplier == 1


def test_what_an_app_says_holds_for_its_other_tasks() -> None:
    app = celery(broker=HERE)
    app.conf.update(task_serializer="pickle", result_serializer="pickle", accept_content=["pickle"])
    app.conf.update(task_compression="gzip", task_default_rate_limit="1/m", task_acks_late=False)
    install(app, read_settings())
    plain, call = app.task(name="plain", shared=False)(count), llm_task(app=app, name="call", shared=False)(count)
    assert (plain.acks_late, plain.serializer, plain.rate_limit) == (False, "pickle", "1/m")
    assert plain.reject_on_worker_lost in (None, False)
    assert app.conf.task_compression == "gzip"
    assert app.conf.result_serializer == "pickle"
    assert app.conf.accept_content == ["pickle", "json"]
    assert (call.acks_late, call.serializer, call.rate_limit, call.reject_on_worker_lost) == (True, "json", None, True)


def test_each_of_two_apps_has_its_own_server() -> None:
    one, other = (install(celery(broker=url), read_settings()) for url in (HERE, THERE))
    assert (services_of(one).redis_url, services_of(other).redis_url) == (HERE, THERE)
    asked = [asked_of(app.connection_for_write()) for app in (one, other)]
    assert [found is not None for found in asked] == [True, True]
    assert asked[0] is not asked[1]
    assert one.pool.connection.transport_options != other.pool.connection.transport_options


def test_a_broker_beside_another_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAISD_REDIS_URL", "redis://:secret@localhost:1/0")
    install(celery(broker="redis://127.0.0.1:1"), read_settings())  # the same server, spelled otherwise
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1/1, MAISD_REDIS_URL names 127\.0\.0\.1:1/0") as told:
        install(celery(broker=THERE), read_settings())
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("broker", ["amqp://localhost", "sqs://", "redis://a;redis://b"])
def test_a_broker_that_cannot_have_lanes_is_refused(broker: str) -> None:
    with pytest.raises(ConfigurationError, match="one Redis"):
        install(celery(broker=broker), read_settings())


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("redis://h", "redis://h:6379/0", True),
        ("redis://localhost/2", "lanes://127.0.0.1:6379/2", True),
        ("redis://h/1", "redis://h/2", False),
        ("redis://h:1", "redis://h:2", False),
        ("unix:///tmp/a.sock?db=1", "redis+socket:///tmp/a.sock?virtual_host=1", True),
        ("unix:///tmp/a.sock", "unix:///tmp/b.sock", False),
    ],
)
def test_the_same_server_in_other_words(one: str, other: str, same: bool) -> None:
    assert same_server(one, other) is same


class Context(Task):
    """A base class as Flask's documentation has it."""

    entered: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.append(self.name)
        return self.run(*args, **kwargs)


class OfCalls(CallTask):
    """The same, as a class of calls."""

    entered: ClassVar[list[str]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.entered.append(self.name)
        return super().__call__(*args, **kwargs)


class Mixed(Context, CallTask):
    """Both, the other way round."""


@pytest.mark.parametrize("base", [Context, OfCalls, Mixed])
def test_a_class_of_ones_own_is_kept_and_makes_calls(base: type[Any]) -> None:
    app = install(celery(broker="memory://"), read_settings())
    task = llm_task(app=app, base=base, name=f"of_{base.__name__}", shared=False)(double)
    base.entered.clear()
    assert isinstance(task, CallTask)
    assert task.delay(4).get() == 8
    assert task(5) == 10
    assert base.entered == [task.name, task.name]


def test_the_class_of_the_app_is_kept() -> None:
    app = install(Celery("own", broker="memory://", task_cls=Context, set_as_current=False), read_settings())
    task = llm_task(app=app, name="own.task", shared=False)(count)
    assert isinstance(task, CallTask)
    assert isinstance(task, Context)
    shared = llm_task(name="own.shared")(count)
    assert isinstance(app.tasks["own.shared"], Context)
    assert isinstance(app.tasks["own.shared"], CallTask)
    assert shared.name == "own.shared"


def test_what_is_no_class_of_tasks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="base="):
        llm_task(app=install(celery(broker="memory://"), read_settings()), base=dict, shared=False)(count)


def asks(self: Any, prompt: str, model: str = "small") -> str:
    """A task's function that names a model."""
    return f"{model}: {prompt}"


def test_the_argument_model_names_the_lane_wherever_it_stands() -> None:
    app = install(celery(broker=HERE), read_settings())
    task = llm_task(app=app, provider="acme", name="models", bind=True, shared=False)(asks)
    lanes = [
        task.plan(args, kwargs).lane
        for args, kwargs in ((("hi",), {"model": "large"}), (("hi", "large"), {}), (("hi",), {}))
    ]
    assert lanes == ["acme:large", "acme:large", "default"]
    assert task.plan(("hi", "large"), {}, lane="mine").lane == "mine"


def test_a_class_that_reads_messages_itself_is_refused() -> None:
    """As celery-batches does: its function would get a reference in place of arguments."""

    class Batches(Task):
        def Strategy(self, task: Any, app: Celery, consumer: Any) -> Any:  # noqa: N802 - Celery's name
            raise NotImplementedError

    with pytest.raises(ConfigurationError, match="Batches has a Strategy of its own"):
        llm_task(app=install(celery(broker=HERE), read_settings()), base=Batches, shared=False)(count)


def test_an_app_that_signs_its_messages_is_refused() -> None:
    app = celery(broker=HERE)
    app.conf.update(task_serializer="auth", accept_content=["auth"])
    with pytest.raises(ConfigurationError, match="signed messages"):
        install(app, read_settings())


def test_a_worker_s_events_do_not_wait_for_ever_and_what_an_app_publishes_does_as_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Celery's heartbeat asks for retries without end, in the loop that has to hear of an outage."""
    app = celery(broker=HERE)
    install(app, read_settings())
    asked: list[Any] = []
    monkeypatch.setattr(Connection, "ensure", lambda *given, **_: asked.append(given[4]))
    with app.connection_for_write() as connection:
        exchange = get_exchange(connection, name=app.conf.event_exchange)
        events = SimpleNamespace(exchange=exchange)
        connection.ensure(events, print)
        connection.ensure(events, print, max_retries=5)
        connection.ensure(SimpleNamespace(exchange=Exchange("tasks")), print)
        connection.ensure(connection, print, max_retries=None)
    assert asked == [1, 5, None, None]


class Kept(Task):
    """A class with results of its own."""

    def AsyncResult(self, task_id: str, **kwargs: Any) -> AsyncResult:  # noqa: N802 - Celery's name
        """Celery's hook."""
        return Marked(task_id, backend=self.backend, app=self.app)


class Marked(AsyncResult):
    """A result that knows more."""

    def mark(self) -> str:
        """What it knows."""
        return f"marked {self.id}"


def test_results_of_ones_own_are_results_of_calls() -> None:
    app = install(celery(broker=HERE), read_settings())
    found = llm_task(app=app, base=Kept, name="kept", shared=False)(count).AsyncResult("x")
    assert isinstance(found, CallResult)
    assert (found.mark(), found.id, type(found).__name__) == ("marked x", "x", "Marked")


def test_a_rate_limit_of_celerys_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"rate_limit='12/m'.*rpm"):
        llm_task(app=celery(), rate_limit="12/m")(count)


def test_a_call_never_goes_past_its_lane() -> None:
    bare = celery(broker=HERE)
    with pytest.raises(ConfigurationError, match="no lanes"):
        bare.task(base=CallTask, shared=False, name="bare")(count).delay([])
    app = install(celery(broker=HERE), read_settings())
    task = llm_task(app=app, name="way", shared=False)(count)
    with bare.connection_for_write() as connection, pytest.raises(ConfigurationError, match="connection="):
        task.apply_async(([],), connection=connection)
    with bare.connection_for_write() as connection, pytest.raises(ConfigurationError, match="producer="):
        task.apply_async(([],), producer=bare.amqp.Producer(connection, auto_declare=False))


@pytest.mark.parametrize("broker", ["memory://", None])
def test_an_eager_call_can_be_awaited(broker: str | None) -> None:
    app = celery(broker=broker)
    app.conf.task_always_eager = True
    task = llm_task(app=install(app, read_settings()), name="eager", lane="free", shared=False)(double)

    async def awaited() -> Any:
        return await task.delay(2)

    assert asyncio.run(awaited()) == 4
    assert task.delay(3).get() == 6
    with pytest.raises(BadInput, match="priority"):
        task.apply_async((1,), priority="urgent")


def test_an_app_and_its_lanes_end_together() -> None:
    """With all that it holds open: a process may make many (tests do)."""
    app = install(celery(broker=HERE), read_settings())
    gone = weakref.ref(app)
    assert transport_of(app)
    app.close()
    del app
    gc.collect()
    assert gone() is None


def test_install_again_is_install_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The app is the same, with the settings of the last time."""
    app = install(celery(broker=HERE), read_settings())
    first, send, connection = installation_of(app), app.send_task, app.amqp.Connection
    monkeypatch.setenv("MAISD_MAX_WAITING", "7")
    assert install(app, read_settings()) is app
    assert (installation_of(app), app.send_task, app.amqp.Connection) == (first, send, connection)
    assert services_of(app).settings.max_waiting == 7


def test_an_app_without_lanes_is_told_apart() -> None:
    assert installation_of(celery()) is None
