"""Are the users that docs/security.md gives enough, and no more? Its own lines, on a real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import redis
from celery import chain, chord
from redis.exceptions import NoPermissionError

from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = pytest.mark.worker

PAGE = ROOT / "docs" / "security.md"


def users(queue: str) -> dict[str, list[str]]:
    """User -> its rules, as the page has them, for a queue."""
    lines = re.findall(r"^user (\w+) on >\w+ (.+)$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: rules.replace("QUEUE", queue).split() for name, rules in lines}


@pytest.fixture
def guarded() -> Iterator[Fleet]:
    with fleet() as made:
        for name, rules in users("fleet").items():
            made.valkey.client.execute_command("ACL", "SETUSER", name, "reset", "on", f">{name}", *rules)
        yield made


def as_user(made: Fleet, name: str) -> str:
    return made.valkey.url.replace("redis://", f"redis://{name}:{name}@")


def denied(made: Fleet) -> list[str]:
    """What the users were refused so far."""
    log: Any = made.valkey.client.acl_log()
    return [f"{entry['username']}: {entry['reason']} {entry['object']} ({entry['context']})" for entry in log]


def test_the_users_of_the_page_can_do_their_work(guarded: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, canvas, retries, revokes, remote control and records; nothing of it is refused."""
    guarded.env["MAISD_REDIS_URL"] = as_user(guarded, "worker")
    worker = guarded.worker("w", "-P", "threads", "-c", "4", wait=False)
    wait_for(lambda: " ready." in worker.log() or denied(guarded), what="the worker is ready, or refused something")
    assert denied(guarded) == []
    monkeypatch.setitem(os.environ, "MAISD_REDIS_URL", as_user(guarded, "producer"))
    tasks: ModuleType = guarded.agent()
    results = [
        tasks.echo.delay(1),
        chain(tasks.double.s(2), tasks.double.s()).apply_async(),
        chord([tasks.double.s(n) for n in range(3)])(tasks.total.s()),
        tasks.add.delay(1, 2),
        tasks.flaky.delay(1),
        tasks.shared.delay("a"),
        tasks.shared.delay("a"),
    ]
    wait_for(lambda: denied(guarded) or all(result.ready() for result in results), what="all are answered")
    assert denied(guarded) == []
    assert [result.get() for result in results] == [1, 8, 6, 3, 1, ["a", 1], ["a", 1]]
    assert tasks.app.control.inspect(timeout=10).ping()
    later = tasks.echo.apply_async((1,), countdown=600)
    later.revoke()
    wait_for(lambda: denied(guarded) or later.state == "REVOKED", what="it is revoked")
    wait_for(lambda: denied(guarded) or not guarded.valkey.client.xlen("rlw:outbox"), what="rows are recorded")
    assert denied(guarded) == []


@pytest.mark.parametrize("name", ["worker", "producer"])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "CONFIG SET dir /", "SHUTDOWN", "REPLICAOF h 1", "MONITOR", "ACL LIST", "GET others:secret",
     "SET others:secret x", "FUNCTION FLUSH", "SAVE"],
)  # fmt: skip
def test_the_users_of_the_page_can_do_no_more(guarded: Fleet, name: str, command: str) -> None:
    """Nothing that harms the server, and no keys of others."""
    with redis.Redis(port=guarded.valkey.port, username=name, password=name) as client:
        assert client.ping()
        with pytest.raises(NoPermissionError):
            client.execute_command(*command.split())


@pytest.mark.parametrize("more", [["-info"], ["+info"]], ids=["without INFO", "as on the page"])
def test_doctor_finds_nothing_wrong_with_such_a_user(guarded: Fleet, more: list[str]) -> None:
    """Without INFO it says what it could not look at, and that is all."""
    guarded.valkey.client.execute_command("ACL", "SETUSER", "worker", *more)
    guarded.valkey.client.config_set("maxmemory-policy", "noeviction")
    ran = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "doctor"],
        env={**os.environ, **guarded.env, "MAISD_REDIS_URL": as_user(guarded, "worker")},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "\nwrong" not in ran.stdout
    assert re.search(r"^ok +Redis: Valkey \d+\.\d+\.\d+ answers$", ran.stdout, re.MULTILINE)
    assert ("note   Redis: this user may not ask INFO" in ran.stdout) == (more == ["-info"])


def test_the_page_has_a_user_for_each_role() -> None:
    """Or nothing above was tried."""
    assert set(users("q")) == {"worker", "producer"}
