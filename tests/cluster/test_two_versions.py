"""Does this version work off what the one before the contracts left in Redis, and that one what this one leaves?

The earlier version is the package at commit 37bff7f (`earlier/`, made by `git archive 37bff7f ratelimit_worker`), with
today's libraries. Each version has processes of its own: workers, producers and commands; one Redis and one tracking
database are for both.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult
from opentelemetry.sdk.trace import TracerProvider

from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.stores import keys
from ratelimit_worker.telemetry import Tracer
from ratelimit_worker.wiring import services
from ratelimit_worker.worker.installed import services_of
from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

pytestmark = pytest.mark.worker

EARLIER = Path(__file__).parent / "earlier" / "ratelimit_worker-37bff7f.tar.xz"
VERSIONS = ("earlier", "this")


class Deploy:
    """One broker and one tracking database for processes of both versions."""

    def __init__(self, made: Fleet) -> None:
        self.made, self.client = made, made.valkey.client
        self.place = {"this": ROOT, "earlier": made.folder / "earlier"}
        self.app = {"this": "tests.two_versions_app", "earlier": "two_versions_app"}
        with tarfile.open(EARLIER) as packed:
            packed.extractall(self.place["earlier"], filter="data")
        shutil.copy(ROOT / "tests" / "two_versions_app.py", self.place["earlier"])

    def env(self, version: str) -> dict[str, str]:
        """The environment of its processes."""
        return {**os.environ, **self.made.env, "SHOP_WHO": version}

    def says(self, version: str, *parts: str) -> list[Any]:
        """What a process of that version sends or prints for each part (`tests/two_versions_app.py`)."""
        command, place = [sys.executable, "-m", self.app[version], *parts], self.place[version]
        ended = subprocess.run(
            command, env=self.env(version), cwd=place, capture_output=True, timeout=120, check=False, text=True
        )
        assert ended.returncode == 0, ended.stderr
        said: list[Any] = json.loads(ended.stdout)
        return said

    def worker(self, version: str, app: str = "") -> Worker:
        """A worker of that version that consumes, with this app or the usual one."""
        options, app = ("-P", "threads", "-c", "6"), app or self.app[version]
        started = Worker(version, self.made.folder, self.env(version), options, app, self.place[version])
        self.made.workers.append(started)
        started.wait_ready()
        return started

    def ran(self, task: str) -> Counter[tuple[str, str]]:
        """How often each version ran that task with each prompt."""
        runs = [what.split(" ", 2) for _, what in self.made.stamps("runs")]
        return Counter((who, prompt) for who, name, prompt in runs if name == task)

    def answers(self, calls: dict[str, str]) -> dict[str, object]:
        """What their callers get, asked by this version."""
        app = importlib.reload(importlib.import_module("tests.two_versions_app")).app
        return {call_id: AsyncResult(call_id, app=app).get(timeout=120) for call_id in calls}

    def open(self) -> None:
        """What is held goes on."""
        (self.made.folder / "open").touch()

    def spans(self) -> dict[str, list[dict[str, Any]]]:
        """Attempts in the spans of traced workers, by the id of their call."""
        path = self.made.folder / "spans"
        found: dict[str, list[dict[str, Any]]] = {}
        for span in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
            found.setdefault(span["attributes"]["ratelimit_worker.call.id"], []).append(span)
        return found

    def is_still(self) -> None:
        """Wait until nothing is out or waits; nothing was set aside."""
        wait_for(lambda: not self.client.zcard(keys.LEDGER), what="nothing is out")
        wait_for(lambda: not self.client.keys(keys.call("*")), what="nothing is left of the calls")
        assert self.client.llen(keys.MALFORMED) == 0

    def tracked(self, calls: dict[str, str]) -> set[str]:
        """Answers of calls that have a row; this process records what the workers' recorders leave."""
        record_once(services().outbox, services().tracker)
        return {answer for call_id, answer in calls.items() if services().tracker.attempts_of(call_id)}


@pytest.fixture
def deploy() -> Iterator[Deploy]:
    with fleet() as made:
        yield Deploy(made)


@pytest.mark.parametrize(("first", "second"), [VERSIONS, VERSIONS[::-1]], ids=["forth", "back"])
def test_one_version_works_off_what_the_other_left(deploy: Deploy, first: str, second: str) -> None:
    """Its worker is killed with calls under way, its producer leaves others in the lane, its operator a pin and limits.

    Every call is answered with its own answer; what ran when the worker died runs once more, all else once.
    """
    dies = deploy.worker(first)
    limits = "limits set shop --rpm 6000 --concurrency 3"
    *_, running, waiting = deploy.says(first, "halt --lane shop --reason deploy", limits, "running", "waiting")
    under_way = Counter({(first, "h0"): 1, (first, "h1"): 1})
    wait_for(lambda: deploy.ran("held") == under_way and deploy.ran("same") and deploy.ran("flaky"), what="they run")
    dies.kill()
    deploy.open()
    deploy.worker(second)
    assert deploy.answers(running) == running
    # Not `status`: it reads the database too, which an earlier version leaves alone once this one has changed it.
    told, _ = deploy.says(second, "lanes --lane shop --format json", "auto --lane shop")
    (lane,) = json.loads(told)
    assert (lane["mode"], lane["pinned"], lane["waiting"]) == ("HALT", True, len(waiting))
    assert deploy.answers(waiting) == waiting
    deploy.is_still()
    assert deploy.ran("held") == Counter({(who, prompt): 1 for who in VERSIONS for prompt in ("h0", "h1")})
    assert deploy.ran("same") == Counter({(who, "s"): 1 for who in VERSIONS}), "those that follow it never asked"
    assert sum(deploy.ran("flaky").values()) == 2
    prompts = [*(f"w{number}" for number in range(12)), "later", "first", "second", "by name"]
    assert deploy.ran("answer") == Counter({(second, prompt): 1 for prompt in prompts})
    calls = running | waiting
    wait_for(lambda: deploy.tracked(calls) == set(calls.values()), what=lambda: str(deploy.tracked(calls)))


def test_both_versions_serve_one_lane_at_once(deploy: Deploy) -> None:
    """Workers and producers of both: each call once, with its own answer, and each worker runs calls of both."""
    for version in VERSIONS:
        deploy.worker(version)
    limits = "limits set shop --rpm 1200 --fixed"
    calls = {version: deploy.says(version, limits, "stream")[1] for version in VERSIONS}
    for made in calls.values():
        assert deploy.answers(made) == made
    deploy.is_still()
    ran = deploy.ran("answer")
    assert Counter(prompt for _, prompt in ran) == Counter({f"{who}{n}": 1 for who in VERSIONS for n in range(40)})
    crossed = {(who, prompt.rstrip("0123456789")) for who, prompt in ran}
    assert crossed == {(who, producer) for who in VERSIONS for producer in VERSIONS}


def test_a_trace_goes_through_workers_of_both_versions(deploy: Deploy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier version traces nothing: it answers calls whose senders are traced, and keeps their traces for others.

    Of its own calls it names no trace, so a traced worker begins one.
    """
    monkeypatch.setenv("SHOP_WHO", "this")
    shop = importlib.reload(importlib.import_module("tests.two_versions_app"))
    provider = TracerProvider()
    services_of(shop.app).once("tracer", lambda: Tracer(lambda lane: (), provider))
    dies = deploy.worker("earlier")
    (untraced,) = deploy.says("earlier", "running")
    with provider.get_tracer("test").start_as_current_span("agent") as agent:
        answered, held = shop.answer.delay("traced"), shop.held.delay("traced")
    assert answered.get(timeout=60) == "answer to traced"
    wait_for(lambda: deploy.ran("held")["earlier", "traced"] and deploy.ran("held")["earlier", "h0"], what="they run")
    wait_for(lambda: not deploy.client.exists(keys.out("shop")), what="the answered call is freed")
    assert deploy.spans() == {}
    dies.kill()
    deploy.open()
    deploy.worker("this", "tests.traced_versions_app")
    assert held.get(timeout=60) == "answer to traced"
    assert deploy.answers(untraced) == untraced
    deploy.is_still()
    left = {call_id for call_id, said in untraced.items() if said != "answer to f"}  # that one may have ended before
    wait_for(lambda: {held.id, *left} <= set(deploy.spans()), what="their spans are there")
    wait, attempt = sorted(deploy.spans()[held.id], key=lambda span: str(span["start_time"]))[:2]
    trace_id = f"0x{agent.get_span_context().trace_id:032x}"
    assert [span["context"]["trace_id"] for span in (wait, attempt)] == [trace_id] * 2
    assert "worker_lost" in [event["name"] for event in wait["events"]]
    assert (attempt["name"], answered.id in deploy.spans()) == ("chat", False)
    for call_id in left:
        roots = [span["name"] for span in deploy.spans()[call_id] if span["parent_id"] is None]
        assert roots in (["chat"], ["shared shop.same"]), deploy.spans()[call_id]
