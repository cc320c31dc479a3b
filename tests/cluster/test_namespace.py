"""Two deployments on one database of one server: neither sees the other's calls, workers, modes or results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.namespace import Namespaced, named
from tests import leftovers
from tests.cluster.test_acl import denied, users
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

HELD = ("~one:*", "&one:*", "&one:/0.celery.pidbox")  #: as docs/redis.md has them


def within(client: redis.Redis, namespace: str) -> Namespaced:
    """The same server, for one of its deployments."""
    return Namespaced(connection_pool=client.connection_pool, namespace=namespace)


@pytest.mark.parametrize(
    ("command", "sent"),
    [
        (("SET", "k", "k"), ["SET", "n:k", "k"]),
        (("SET", b"k", 1), ["SET", b"n:k", 1]),
        (("DEL", "a", "b"), ["DEL", "n:a", "n:b"]),
        (("BRPOP", "a", "b", 1), ["BRPOP", "n:a", "n:b", 1]),
        (("XREADGROUP", "GROUP", "g", "c", "STREAMS", "a", "b", ">", "0"),
         ["XREADGROUP", "GROUP", "g", "c", "STREAMS", "n:a", "n:b", ">", "0"]),
        (("XGROUP CREATE", "s", "g", "0"), ["XGROUP CREATE", "n:s", "g", "0"]),
        (("FCALL", "f", 0, "k"), ["FCALL", "f", 0, "k"]),
        (("TIME",), ["TIME"]),
    ],
)  # fmt: skip
def test_keys_and_only_keys_get_the_namespace(command: tuple[object, ...], sent: list[object]) -> None:
    assert named("n:", command) == sent


def test_a_command_whose_keys_nobody_knows_is_refused(redis_client: redis.Redis) -> None:
    """It would reach into the other deployment."""
    with pytest.raises(NotImplementedError, match="SORT"):
        within(redis_client, "n:").sort("k")


def test_pipelines_watches_and_channels_stay_within(redis_client: redis.Redis) -> None:
    one, other = within(redis_client, "one:"), within(redis_client, "other:")
    with one.pipeline(transaction=True) as pipe:
        pipe.watch("k")
        pipe.multi()
        pipe.set("k", "1")
        pipe.hset("h", "f", "1")
        pipe.execute()
    assert (one.get("k"), other.get("k"), redis_client.get("one:k")) == (b"1", None, b"1")
    heard = other.pubsub(ignore_subscribe_messages=True)
    heard.subscribe("wake")
    wait_for(lambda: redis_client.pubsub_numsub("other:wake")[0][1] == 1, what="it listens")
    assert (one.publish("wake", "x"), other.publish("wake", "x")) == (0, 1)
    heard.close()
    one.delete("k", "h")
    assert redis_client.keys("*") == []


@pytest.mark.parametrize(("told", "prefix"), [("shop", "shop:"), ("shop:", "shop:"), ("a-b_", "a-b_"), ("", "")])
def test_a_namespace_ends_in_a_mark(told: str, prefix: str) -> None:
    assert read_settings({"MAISD_NAMESPACE": told}).namespace == prefix


@pytest.mark.parametrize("told", [":x", "two words", "x" * 65, "ü", "{x}"])
def test_a_namespace_that_cannot_be_is_one_line(told: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^MAISD_NAMESPACE=.*use 1 to 64 letters.*$"):
        read_settings({"MAISD_NAMESPACE": told})


@pytest.fixture
def shared() -> Iterator[Fleet]:
    with fleet() as made:
        yield made


def command(made: Fleet, *arguments: str, **env: str) -> str:
    """What a command prints."""
    ran = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *arguments],
        env={**os.environ, **made.env, **env}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return ran.stdout + ran.stderr


@pytest.mark.worker
def test_two_deployments_share_a_server(shared: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same app, twice, on one database: MAISD_NAMESPACE here, kombu's global_keyprefix there."""
    shared.worker("one", MAISD_NAMESPACE="one")
    shared.worker("two", FLEET_PREFIX="two_")
    answers = {}
    for name, env in {"one": {"MAISD_NAMESPACE": "one"}, "two": {"FLEET_PREFIX": "two_"}}.items():
        with monkeypatch.context() as here:
            for variable, value in env.items():
                here.setitem(os.environ, variable, value)
            tasks = shared.agent()
            results = [tasks.where.delay(), tasks.add.delay(1, 2), (tasks.double.s(2) | tasks.double.s()).delay()]
            results += [tasks.where.delay() for _ in range(20)]
            answers[name] = [result.get(timeout=120) for result in results]
            assert tasks.app.control.inspect(timeout=10).ping().keys() == {f"{name}@{os.uname().nodename}"}
    assert answers == {
        "one": ["one:", 3, 8, *["one:"] * 20],
        "two": ["two_", 3, 8, *["two_"] * 20],
    }
    pinned = command(shared, "halt", "--lane", "where", MAISD_NAMESPACE="one")
    assert "HALT" in pinned
    assert "HALT" in command(shared, "status", MAISD_NAMESPACE="one")
    assert "answers forgotten" in command(shared, "cache", "clear", MAISD_NAMESPACE="one")
    theirs = command(shared, "status", MAISD_NAMESPACE="two_")
    assert "where" in theirs
    assert "HALT" not in theirs
    client = shared.valkey.client
    assert len(Live(within(client, "one:")).now().workers) == len(Live(within(client, "two_")).now().workers) == 1
    for worker in shared.workers:
        worker.stop()
    found: Any = client.keys("*")
    stray = [key for key in found if not key.startswith((b"one:", b"two_"))]
    assert stray == []
    for namespace in ("one:", "two_"):
        leftovers.check(client, namespace)
    client.flushall()


@pytest.mark.worker
def test_a_user_may_be_held_to_its_namespace(shared: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of docs/security.md with these patterns in place of its own: keys and channels of the deployment."""
    rules = [rule for rule in users("fleet")["worker"] if rule[0] not in "~&"]
    client = shared.valkey.client
    client.execute_command("ACL", "SETUSER", "held", "reset", "on", ">held", *rules, *HELD)
    url = shared.valkey.url.replace("redis://", "redis://held:held@")
    shared.env |= {"MAISD_REDIS_URL": url, "MAISD_NAMESPACE": "one"}
    for name, value in shared.env.items():
        monkeypatch.setitem(os.environ, name, value)
    shared.worker("one")
    tasks = shared.agent()
    results = [tasks.where.delay(), tasks.add.delay(1, 2), (tasks.double.s(2) | tasks.double.s()).delay()]
    wait_for(lambda: denied(shared) or all(result.ready() for result in results), what="all are answered")
    assert denied(shared) == []
    assert tasks.app.control.inspect(timeout=10).ping()
    assert [result.get() for result in results] == ["one:", 3, 8]
    for worker in shared.workers:
        worker.stop()
    assert denied(shared) == []
    leftovers.check(client, "one:")
    client.flushall()


def test_a_prefix_beside_another_namespace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands would look at other keys than the app's."""
    from celery import Celery

    from ratelimit_worker import install

    app = Celery("shop", broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.broker_transport_options = {"global_keyprefix": "one_"}
    with pytest.raises(ConfigurationError, match=r"global_keyprefix='one_' and MAISD_NAMESPACE='two:' differ"):
        install(app, read_settings({"MAISD_NAMESPACE": "two"}))
    app.conf.broker_transport_options = {"global_keyprefix": "two"}
    install(app, read_settings({"MAISD_NAMESPACE": "two"}))
    assert app.conf.result_backend_transport_options["global_keyprefix"] == "two"
