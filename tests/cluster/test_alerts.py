"""Alerts: each event reaches a real HTTP server once; a dead one holds up nothing, and hears of it when it is back."""

from __future__ import annotations

import base64
import hmac
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.alert import Kind, Silence
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.flow.duty.alert import Alerter
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.policy.alerts import KEEP_S, of_change
from ratelimit_worker.providers.webhook import NotTaken, Webhook
from ratelimit_worker.reports import doctor
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.alerts import MOST, Alerts
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.leases import Leases
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.tracker import Tracker
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, free_port

SECRET = "T0/hunter2"
SIGNING = "hunter2 signs this"


def is_signed(headers: Message, body: bytes) -> bool:
    """As a receiver checks it."""
    name, at = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "0")
    digest = hmac.new(SIGNING.encode(), f"{name}.{at}.".encode() + body, "sha256").digest()
    fits = hmac.compare_digest(headers.get("webhook-signature", ""), f"v1,{base64.b64encode(digest).decode()}")
    return fits and abs(time.time() - int(at)) < 300 and name == json.loads(body)["id"]


class Hook:
    """A web hook on loopback: what it was told, and what it answers."""

    def __init__(self, port: int) -> None:
        self.told: list[dict[str, Any]] = []
        self.signed: list[bool] = []  #: by the secret of these tests, just now
        self.status = 200
        self.requests = 0
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                hook.requests += 1
                if hook.status == 200 and self.path == f"/{SECRET}":
                    hook.told.append(json.loads(body))
                    hook.signed.append(is_signed(self.headers, body))
                self.send_response(hook.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/{SECRET}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def changes(self) -> list[tuple[str, str, str]]:
        """(lane, from, to) of the changes of a mode that it was told, in order. One that it answered too late on a busy
        machine was sent again, under the same id."""
        told = {one["id"]: (one["lane"], one["from"], one["to"]) for one in self.told if "from" in one}
        return list(told.values())


@contextmanager
def hook_at(port: int = 0) -> Iterator[Hook]:
    made = Hook(port)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    with hook_at() as made:
        yield made


def change(number: int = 1, **fields: Any) -> ModeChange:
    """NORMAL → EMERGENCY of lane `gpt`."""
    default: dict[str, Any] = {
        "id": f"id-{number}",
        "lane": "gpt",
        "from_mode": Mode.NORMAL,
        "to_mode": Mode.EMERGENCY,
        "at": 1_000.0 + number,
        "cause": "12 of 20 answers were sick",
        "numbers": {"sick": 12.0, "answers": 20.0},
    }
    return ModeChange(**{**default, **fields})


# ── what is said ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_an_alert_says() -> None:
    """Lane, from, to, cause, numbers, who, reason and when; a sentence for chat rooms."""
    alert = of_change(change(who="ana", reason="provider is down", until=2_000.0))
    assert alert is not None
    assert alert.as_json() == {
        "schema": 1,
        "event": "mode_changed",
        "id": "id-1",
        "kind": "emergency",
        "severity": "critical",
        "lane": "gpt",
        "about": "",
        "alert": "",
        "from": "NORMAL",
        "to": "EMERGENCY",
        "at": 1_001.0,
        "cause": "12 of 20 answers were sick",
        "numbers": {"sick": 12.0, "answers": 20.0},
        "who": "ana",
        "reason": "provider is down",
        "until": 2_000.0,
        "text": "gpt: NORMAL -> EMERGENCY by ana: provider is down",
    }


def test_a_mode_that_stays_is_no_event() -> None:
    """A person pins what holds anyway."""
    assert of_change(change(to_mode=Mode.NORMAL)) is None


# ── how it gets there ──────────────────────────────────────────────────────────────────────────────────────────────


class Bench:
    """An alerter on a real server, with the test's clock."""

    def __init__(self, client: redis.Redis, url: str) -> None:
        self.client, self.outbox, self.alerts = client, Outbox(client), Alerts(client)
        self.states = AlertStates(client)
        self.webhook = Webhook(url)
        self.now_s = time.time()
        self.alerter = self.another()
        self.alerts.hook_since(self.webhook.digest, 0.0)

    def another(self) -> Alerter:
        """As another worker has it."""
        return Alerter(
            self.alerts,
            self.webhook.post,
            NotTaken,
            self.webhook.digest,
            self.states.silences,
            jitter=lambda: 1.0,
            clock=lambda: self.now_s,
        )

    def drain(self) -> list[float]:
        """Steps until nothing can be told now → the pauses."""
        pauses = [self.alerter.step()]
        while pauses[-1] == 0.0:
            pauses.append(self.alerter.step())
        return pauses


@pytest.fixture
def bench(redis_client: redis.Redis, hook: Hook) -> Iterator[Bench]:
    made = Bench(redis_client, hook.url)
    yield made
    made.webhook.close()


pytestmark = pytest.mark.server


def test_each_change_is_told_once_and_in_order(bench: Bench, hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that two have told; the log says so, without the address."""
    caplog.set_level(logging.DEBUG)
    for number in (1, 2, 2, 3, 1):
        bench.outbox.append_mode_change(change(number))
    bench.outbox.append_mode_change(change(4, to_mode=Mode.NORMAL))
    assert bench.drain() == [0.0, 0.0, 0.0, 1.0]
    assert [one["id"] for one in hook.told] == ["id-1", "id-2", "id-3"]
    assert hook.requests == 3
    assert caplog.messages.count("alert.sent") == 3
    assert "hunter2" not in caplog.text
    assert bench.client.xlen("rlw:alerts") == 0
    assert all(bench.client.ttl(key) > 0 for key in ("rlw:alerted",))


def test_a_web_hook_that_is_away_gets_it_when_it_is_back(
    bench: Bench, hook: Hook, caplog: pytest.LogCaptureFixture
) -> None:
    """The pauses grow to ten seconds, the log has a line a minute, and order is kept."""
    hook.status = 503
    bench.outbox.append_mode_change(change(1))
    bench.outbox.append_mode_change(change(2))
    assert [bench.alerter.step() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    assert caplog.messages == ["alert.failed"]
    assert caplog.records[0].cause == "HTTP 503"  # type: ignore[attr-defined]
    hook.status = 200
    assert bench.drain() == [0.0, 0.0, 1.0]
    assert [one["id"] for one in hook.told] == ["id-1", "id-2"]


def test_an_alert_that_is_refused_holds_up_the_next_for_a_while_only(bench: Bench, hook: Hook) -> None:
    """Five times; then it is given up, and the log says that."""
    hook.status = 400
    bench.outbox.append_mode_change(change(1))
    assert [bench.alerter.step() for _ in range(5)] == [1.0, 2.0, 4.0, 8.0, 0.0]
    bench.outbox.append_mode_change(change(2))
    hook.status = 200
    bench.drain()
    assert [one["id"] for one in hook.told] == ["id-2"]


def test_yesterdays_alerts_are_not_told(bench: Bench, hook: Hook) -> None:
    """Nor are there ever more than a thousand."""
    for number in range(MOST + 5):
        bench.outbox.append_mode_change(change(number))
    assert bench.client.xlen("rlw:alerts") == MOST
    assert 0 < bench.client.ttl("rlw:alerts") <= KEEP_S
    bench.now_s += KEEP_S + 60
    bench.drain()
    assert hook.told == []
    assert bench.client.xlen("rlw:alerts") == 0


def test_nobody_at_the_address(redis_client: redis.Redis) -> None:
    """A refused connection is a failure as any other; the sentence has no address."""
    bench = Bench(redis_client, f"http://127.0.0.1:{free_port()}/{SECRET}")
    bench.outbox.append_mode_change(change())
    assert bench.alerter.step() == 1.0
    with pytest.raises(NotTaken, match=r"^ConnectError$"):
        bench.webhook.post(b"{}")


def test_what_happened_before_there_was_this_hook_is_not_told(redis_client: redis.Redis, hook: Hook) -> None:
    """Neither to the first one, nor to another that takes its place; each hears what happens from then on."""
    outbox = Outbox(redis_client)
    outbox.append_mode_change(change(1))
    bench = Bench(redis_client, hook.url)
    bench.drain()
    outbox.append_mode_change(change(2))
    bench.drain()
    assert [one["id"] for one in hook.told] == ["id-2"]
    outbox.append_mode_change(change(3))
    with hook_at() as other:
        second = Bench(redis_client, other.url)
        outbox.append_mode_change(change(4))
        second.drain()
        assert [one["id"] for one in other.told] == ["id-4"]
        second.webhook.close()
    bench.webhook.close()


def test_what_happens_between_a_workers_start_and_its_first_turn_is_told(redis_client: redis.Redis, hook: Hook) -> None:
    """A worker has its web hook from its start on, although it gets the duty later."""
    webhook, now_s = Webhook(hook.url), time.time()
    turns = iter([now_s - 5.0, now_s])
    alerter = Alerter(
        Alerts(redis_client),
        webhook.post,
        NotTaken,
        webhook.digest,
        AlertStates(redis_client).silences,
        clock=lambda: next(turns, now_s),
    )
    Outbox(redis_client).append_mode_change(change(1))
    assert alerter.step() == 0.0
    assert [one["id"] for one in hook.told] == ["id-1"]
    webhook.close()


def test_two_that_tell_and_one_that_starts_again_tell_each_once(bench: Bench, hook: Hook) -> None:
    """What was told is known to all, also when the one that told it died before it took the notice away."""
    bench.outbox.append_mode_change(change(1))
    first, second = bench.another(), bench.another()
    held = bench.alerts.first()
    assert held is not None
    bench.webhook.post(held.body, held.id)
    bench.alerts.done(held)
    bench.outbox.append_mode_change(change(1))
    assert first.step() == 1.0
    assert second.step() == 1.0
    assert bench.another().step() == 1.0
    assert hook.requests == 1


def test_a_silence_is_kept(bench: Bench, hook: Hook) -> None:
    """Of its kind and lane alone, until its time is over."""
    bench.states.silence(Silence(kind=Kind.EMERGENCY, lane="gpt", until_s=bench.now_s + 60))
    bench.outbox.append_mode_change(change(1))
    bench.outbox.append_mode_change(change(2, lane="other"))
    bench.drain()
    assert [one["id"] for one in hook.told] == ["id-2"]
    bench.now_s += 61
    bench.outbox.append_mode_change(change(3))
    bench.drain()
    assert [one["id"] for one in hook.told] == ["id-2", "id-3"]


def test_a_lease_is_held_on_and_given_up_by_its_owner_alone(redis_client: redis.Redis) -> None:
    """Who was frozen and wakes up does not take it back."""
    leases = Leases(redis_client)
    assert leases.hold("alert", "a", 30.0)
    assert leases.hold("alert", "a", 60.0)
    assert redis_client.pttl("rlw:duty:alert") > 50_000
    assert not leases.hold("alert", "b", 30.0)
    leases.drop("alert", "b")
    assert redis_client.get("rlw:duty:alert") == b"a"
    leases.drop("alert", "a")
    assert leases.hold("alert", "b", 30.0)
    assert not leases.hold("alert", "a", 30.0)
    away = redis.Redis(unix_socket_path="/nonexistent")
    with pytest.raises(StoreUnavailable):
        Leases(away).hold("alert", "a", 1.0)


# ── with workers ───────────────────────────────────────────────────────────────────────────────────────────────────


def recorded(made: Fleet) -> list[tuple[str, str]]:
    """(from, to) of the recorded mode changes, oldest first."""
    return [(one.from_mode.value, one.to_mode.value) for one in _tracker(made.folder).mode_changes()[::-1]]


@cache
def _tracker(folder: Path) -> Tracker:
    """One for all looks: to make an engine for each takes more than the worker has left on a busy machine."""
    return Tracker(engine_for(f"sqlite:///{folder}/state/tracking.sqlite3"))


@pytest.mark.worker
def test_one_post_a_change_with_two_workers(hook: Hook) -> None:
    """By hand there and back; when the worker that tells them stops, the other goes on. Each is signed, and is an alert
    that opens or closes, in the tracking database too."""
    with fleet(
        MAISD_ALERT_WEBHOOK_URL=hook.url,
        MAISD_ALERT_WEBHOOK_SECRET=SIGNING,
        MAISD_LANES='{"free": {"unlimited": true}}',
    ) as made:
        workers = [made.worker(name, "-P", "threads", "-c", "2") for name in ("w1", "w2")]
        app = made.agent()
        assert app.echo.delay("first").get(timeout=120) == "first"
        control = services().control
        pin(control, Mode.EMERGENCY, lane="free", who="ana", reason="a test")
        wait_for(lambda: len(hook.changes()) >= 1, what="the alert came")
        auto(control, lane="free", who="ana")
        wait_for(lambda: len(hook.changes()) >= 2, what="the second came")
        assert hook.changes() == [("free", "NORMAL", "EMERGENCY"), ("free", "EMERGENCY", "NORMAL")]
        assert (hook.told[0]["who"], hook.told[0]["reason"]) == ("ana", "a test")
        workers[0].stop()
        pin(control, Mode.HALT, lane="free", who="ana")
        wait_for(lambda: len(hook.changes()) >= 3, what="the third came")
        assert all(hook.signed)
        told = _tracker(made.folder)
        wait_for(
            lambda: {(one.kind, one.open) for one in told.alerts()} == {(Kind.EMERGENCY, False), (Kind.HALT, True)},
            what=lambda: f"both are recorded: {told.alerts()}\n{made.logs()}",
        )
        assert {one.cause for one in told.alerts(only_open=True)} == {"NORMAL -> HALT by ana: the lane was pinned"}
        workers[1].stop()
        assert hook.requests == 3
        said = "".join(worker.log() for worker in workers)
        assert said.count("alert.sent") == 3
        assert "hunter2" not in said


@pytest.mark.worker
def test_a_dead_web_hook_loses_no_record() -> None:
    """Calls and records go on as if nothing were; when somebody listens there again, the alerts arrive, in order."""
    port = free_port()
    with fleet(
        MAISD_ALERT_WEBHOOK_URL=f"http://127.0.0.1:{port}/{SECRET}", MAISD_LANES='{"free": {"unlimited": true}}'
    ) as made:
        made.worker("w1", "-P", "threads", "-c", "2")
        app = made.agent()
        control = services().control
        pin(control, Mode.REDUCED, lane="free", who="ana")
        assert app.echo.delay("while it is dead").get(timeout=120) == "while it is dead"
        auto(control, lane="free", who="ana")
        wait_for(lambda: len(recorded(made)) >= 2, what=lambda: f"both recorded: {recorded(made)}\n{made.logs()}")
        assert recorded(made) == [("NORMAL", "REDUCED"), ("REDUCED", "NORMAL")]
        wait_for(lambda: "alert.failed" in made.workers[0].log(), what="the log says so")
        settings = read_settings()
        waiting = doctor.judge_alerts(settings.alert_webhook_url, made.valkey.client.xlen("rlw:alerts"))
        assert [finding.level for finding in waiting] == [doctor.Grade.NOTE]
        with hook_at(port) as hook:
            wait_for(lambda: len(hook.changes()) >= 2, what=lambda: f"both arrive: {hook.told}\n{made.logs()}")
            assert hook.changes() == [("free", "NORMAL", "REDUCED"), ("free", "REDUCED", "NORMAL")]


def test_doctor_on_alerts() -> None:
    """The form of the URL is checked with the settings; here: in clear, and away."""
    levels = {
        url: [finding.level.value for finding in doctor.judge_alerts(url, 0)]
        for url in ("", "https://hooks.example.com/hunter2", "http://hooks.example.com/hunter2", "http://localhost/x")
    }
    assert list(levels.values()) == [["ok"], ["ok"], ["note", "ok"], ["ok"]]
    said = [finding.says for finding in doctor.judge_alerts("http://hooks.example.com/hunter2", 3)]
    assert "3 wait for http://hooks.example.com/***" in said[1]
    assert "hunter2" not in "".join(said)
