"""Do prompts and keys stay where they belong? Canary strings through every way that a call can go.

Everything that reaches Redis is watched (MONITOR shows what scripts do, too); only the keys of payloads, and of calls
that have failed, may hold prompts.
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from types import ModuleType

import pytest
import redis
from celery import chain, chord
from sqlalchemy import create_engine, inspect, text

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, Valkey, fleet

pytestmark = pytest.mark.worker

CANARY = "Canary7PromptZeppelin"
KEY = "sk-canary-key-0123456789"


def forms(secret: str) -> list[str]:
    """A secret as it may appear: plain, and inside base64 at each alignment."""
    inner = [base64.b64encode(b"x" * pad + secret.encode())[4:-4].decode() for pad in range(3)]
    return [secret, *inner]


class Watch:
    """All commands of a server, those of scripts included, but for those that name a key which may hold prompts."""

    def __init__(self, valkey: Valkey) -> None:
        self.leaks: list[str] = []
        self._client = redis.Redis(port=valkey.port)
        self._seen = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        self._ready = threading.Event()
        wait_for(lambda: any(c["cmd"] == "monitor" for c in valkey.client.client_list()), what="MONITOR runs")

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            for command in monitor.listen():
                line = command["command"]
                if line == "ECHO the-end":
                    self._seen.set()
                    return
                if line.startswith("FCALL") or "rlw:payload:" in line or "rlw:shelved:" in line:
                    continue  # the way to and from the keys of payloads, and of calls that failed
                if any(form in line for secret in (CANARY, KEY) for form in forms(secret)):
                    self.leaks.append(line[:400])

    def end(self, valkey: Valkey) -> list[str]:
        """All leaks up to now."""
        valkey.client.echo("the-end")
        wait_for(self._seen.is_set, what="MONITOR saw the end")
        return self.leaks


@pytest.fixture(scope="module")
def running() -> Iterator[Fleet]:
    with fleet(OPENAI_API_KEY=KEY) as made:
        made.worker("secret", "-P", "threads", "-c", "8", "-E")
        yield made


@pytest.fixture
def tasks(running: Fleet) -> ModuleType:
    return running.agent()


def test_prompts_and_keys_stay_with_the_payload(tasks: ModuleType, running: Fleet) -> None:
    """Success, retry, failure, chain, chord, link, an ordinary task before a call: no message, event, log or row."""
    watch = Watch(running.valkey)
    lanes = services().lanes
    results = [
        tasks.hush.delay(CANARY),
        tasks.hush.delay(prompt=CANARY * 200),
        tasks.hush.apply_async((CANARY,), {"fail_times": 1, "name": "hush-retry"}),
        chain(tasks.hush.s(CANARY), tasks.hush.si(CANARY), tasks.hush.si(CANARY)).delay(),
        chain(tasks.add.s(1, 2), tasks.hush.si(CANARY)).delay(),
        chord([tasks.add.s(1, n) for n in range(3)], tasks.hush.si(CANARY)).delay(),
        chord([tasks.hush.s(CANARY) for n in range(3)], tasks.hush.si(CANARY)).delay(),
        tasks.hush.apply_async((CANARY,), link=tasks.hush.si(CANARY)),
        tasks.hush.apply_async((CANARY,), countdown=0.2),
        *(tasks.hush.apply_async((CANARY,), cache=True) for _ in range(2)),
        chord([tasks.hush.s(CANARY).set(cache=True) for n in range(3)], tasks.hush.si(CANARY)).delay(),
    ]
    for result in results:
        assert result.get(timeout=120) == "hushed"
    failures = [
        tasks.refused.delay(CANARY, KEY),
        tasks.refused.apply_async((CANARY, KEY), link_error=tasks.note.si(CANARY[:3])),
    ]
    for failure in failures:
        with pytest.raises(Exception, match="invalid_request"):
            failure.get(timeout=120)
    lanes.set_points("shut", {**limit_fields(LaneLimits(rpm=1)), "p1": 0, "l1": 0})
    waiting = tasks.hush.apply_async((CANARY,), lane="shut")
    waiting.revoke()
    database = running.folder / "state" / "tracking.sqlite3"
    wait_for(lambda: rows(database) >= 18, what="attempts are tracked")
    assert watch.end(running.valkey) == []
    for secret in (CANARY, KEY):
        for form in forms(secret):
            assert form not in running.workers[0].log()
            for path in (running.folder / "state").glob("tracking*"):
                assert form.encode() not in path.read_bytes(), path


def rows(database: object) -> int:
    """Attempts in the tracking database; none before the recorder has made its tables."""
    engine = create_engine(f"sqlite:///{database}")
    if not inspect(engine).has_table("attempts"):
        return 0
    with engine.connect() as connection:
        return int(connection.execute(text("select count(*) from attempts")).scalar_one())
