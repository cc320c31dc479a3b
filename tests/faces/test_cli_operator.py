"""What operators see: figures of a real run are those of the provider's own log; every command says what it found."""

from __future__ import annotations

import csv
import io
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from ratelimit_worker.cli import main
from ratelimit_worker.cli.sources import open_sources
from ratelimit_worker.errors import CallFailed
from ratelimit_worker.reports.stats import stats
from ratelimit_worker.simulate import Arrival, Entry, HeaderStyle, Scenario, Simulator
from ratelimit_worker.simulate.scenario import Fault
from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet

pytestmark = [pytest.mark.server, pytest.mark.worker]

CALLS = 500
#: A provider that is slow to nobody and fails now and then; 429s come by script, so their number is not the law's.
SCENARIO = Scenario(
    latency="0.01",
    headers=HeaderStyle.NONE,
    seed=3,
    timeline=(
        Entry(fault=Fault.BAD_REQUEST, match="question bad"),
        Entry(fault=Fault.RATE_LIMITED, share=0.05, retry_after_s=0.05),
        Entry(fault=Fault.SERVER_ERROR, share=0.06),
    ),
)


@dataclass
class Ran:
    """A run that is over: what the provider saw, and the ids of the calls."""

    fleet: Fleet
    arrivals: list[Arrival]
    ids: dict[str, str]  #: what was asked → call id
    env: dict[str, str]

    def statuses(self) -> Counter[int | None]:
        return Counter(arrival.status for arrival in self.arrivals)


def invoke(*arguments: str, code: int = 0) -> Result:
    """The command; its exit code is what was expected."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == code, (done.output, done.exception)
    return done


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(invoke(*arguments, "--format", "json", code=code).stdout)


@pytest.fixture(scope="module")
def ran() -> Iterator[Ran]:
    """500 calls through a real worker, of which five can never be answered."""
    with (
        Simulator(SCENARIO) as provider,
        fleet(
            OPENAI_BASE_URL=provider.base_url,
            # Two dozen scripted 500s shall not slow the run down: what modes do is told elsewhere.
            MAISD_ENABLE_AUTO_ESCALATION="false",
            MAISD_LANES='{"chat": {"rpm": 6000}}',
        ) as made,
    ):
        made.worker("w1", "-P", "threads", "-c", "8")
        app = made.agent()
        asked = [f"bad {i}" if i < 5 else f"good {i}" for i in range(CALLS)]
        results = {what: app.chat.delay(what) for what in asked}
        failed = 0
        for result in results.values():
            try:
                result.get(timeout=120)
            except CallFailed:
                failed += 1
        assert failed == 5
        with open_sources() as opened:

            def recorded() -> bool:
                now_s = time.time()
                return opened.sources.queries.count(now_s - 900, now_s + 1) == len(provider.arrivals())

            wait_for(recorded, timeout_s=120.0, what="all outcomes are recorded")
        yield Ran(made, provider.arrivals(), {what: result.id for what, result in results.items()}, dict(made.env))


def test_figures_are_those_of_the_providers_log(ran: Ran) -> None:
    """Calls, attempts, errors, retries, 429s and tokens, for each window."""
    statuses = ran.statuses()
    assert statuses[429] > 3, "the script refuses some"
    assert statuses[500] > 5, "the script fails some"
    by_call: dict[str, list[Arrival]] = {}
    for arrival in ran.arrivals:
        by_call.setdefault(arrival.identity, []).append(arrival)
    met_500 = [seen for seen in by_call.values() if any(arrival.status == 500 for arrival in seen)]
    with open_sources() as opened:
        for window_s in (900.0, 3_600.0, 86_400.0):
            found = stats(opened.sources, window_s, time.time() + 1)
            total = found.total
            assert total.calls == CALLS == len(by_call)
            assert (total.answered, total.failed) == (statuses[200], statuses[400])
            assert total.attempts == len(ran.arrivals)
            assert (total.retried, total.snoozed, total.refused) == (statuses[500], statuses[429], statuses[429])
            assert dict(total.categories) == {
                "server_error": statuses[500],
                "rate_limited": statuses[429],
                "invalid_request": statuses[400],
            }
            assert total.error_rate == pytest.approx(
                (statuses[500] + statuses[400]) / (len(ran.arrivals) - statuses[429])
            )
            assert (total.recovered, total.met_failure) == (len(met_500), len(met_500) + 5)
            assert total.input_tokens == sum(arrival.input_tokens for arrival in ran.arrivals)
            assert total.output_tokens == sum(arrival.output_tokens for arrival in ran.arrivals) > 0
            assert [group.name for group in found.lanes] == ["chat"]
            assert found.lanes[0].figures == total
            assert sum(point.attempts for point in found.timeline) == total.attempts
            assert total.latency.p50_s is not None
            assert 0.005 < total.latency.p50_s < 60.0
            assert found.now is not None
            assert (found.now.workers, found.now.slots) == (1, 8)
            assert found.missing == ()


def test_every_face_tells_the_same(ran: Ran, tmp_path: Path) -> None:
    """`stats` as JSON and CSV, and the analytics report in its three forms."""
    statuses = ran.statuses()
    told = as_json("stats", "--window", "1h")
    assert (told["total"]["calls"], told["total"]["retried"]) == (CALLS, statuses[500])
    rows = list(csv.DictReader(io.StringIO(invoke("stats", "--format", "csv").stdout)))
    assert sum(int(row["attempts"]) for row in rows) == len(ran.arrivals)
    (row,) = csv.DictReader(io.StringIO(invoke("stats", "--format", "csv", "--by", "function").stdout))
    assert int(row["not_answered_server_error"]) == statuses[500]
    assert float(row["backoff_s"]) == pytest.approx(told["total"]["backoff_s"], abs=1e-5)
    assert float(row["backoff_s"]) > 0

    invoke("analytics", "-o", str(tmp_path / "report.json"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["kind"], report["schema"]) == ("ratelimit-worker.analytics", 3)
    assert report["total"] == told["total"]
    invoke("analytics", "--output", str(tmp_path / "report.csv"), "--since", "90m")
    rows = list(csv.DictReader((tmp_path / "report.csv").open()))
    assert {row["lane"] for row in rows} == {"chat"}
    assert sum(int(row["refused_429"]) for row in rows) == statuses[429]
    assert sum(int(row["output_tokens"]) for row in rows) == report["total"]["output_tokens"]
    invoke("analytics", "-o", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert f"<dt>calls</dt><dd>{CALLS}</dd>" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.html", "report.json"]


def test_the_page_needs_nothing_from_elsewhere(ran: Ran, tmp_path: Path) -> None:
    """No script, no address, and every tag that opens closes."""
    invoke("analytics", "-o", str(tmp_path / "report.html"))

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open_tags: list[str] = []
            self.seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.handle_startendtag(tag, attrs)
            if tag != "meta":
                self.open_tags.append(tag)

        def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.add(tag)
            assert not {"src", "href"} & {name for name, _ in attrs}

        def handle_endtag(self, tag: str) -> None:
            assert self.open_tags.pop() == tag

    reader = Reader()
    reader.feed((tmp_path / "report.html").read_text())
    assert not reader.open_tags
    assert {"svg", "table", "rect"} <= reader.seen
    assert "script" not in reader.seen


def test_tables_are_text(ran: Ran) -> None:
    """Without colour; in a pipe, as here, no line is folded (tests/unit/reports/test_table.py has terminals)."""
    for arguments in (["status"], ["stats"], ["lanes"]):
        shown = invoke(*arguments).stdout
        assert "chat" in shown
        assert "\x1b" not in shown


def test_status_tells_rate_and_workers(ran: Ran) -> None:
    """As data; nothing else on stdout."""
    lane = as_json("status")["lanes"][0]
    assert (lane["lane"], lane["mode"], lane["limits"]["rpm"]) == ("chat", "NORMAL", 6000)
    assert 0 < lane["allowed_per_min"] <= 6000
    assert (lane["workers"], lane["slots"], lane["waiting"], lane["running"]) == (1, 8, 0, 0)


def test_status_fails_on_a_mode(ran: Ran) -> None:
    """3 when a lane is in that mode or a stricter one; 0 when not."""
    invoke("status", "--fail-on", "reduced")
    invoke("emergency", "--lane", "chat", "--reason", "a test")
    try:
        done = invoke("status", "--fail-on", "emergency", code=3)
        assert done.stderr.splitlines() == ["chat is in EMERGENCY (pinned by hand)"]
        assert "EMERGENCY!" in done.stdout
        invoke("status", "--fail-on", "reduced", code=3)
        invoke("status", "--fail-on", "halt")
    finally:
        invoke("auto")


def test_mode_history_is_in_the_figures(ran: Ran) -> None:
    """With who and why."""
    invoke("reduced", "--lane", "chat", "--reason", "tired")
    invoke("auto", "--lane", "chat")

    def told() -> list[dict[str, Any]]:
        return [change for change in as_json("stats")["modes"] if change["reason"] == "tired"]

    wait_for(told, what="the change is recorded")
    assert (told()[0]["from_mode"], told()[0]["to_mode"]) == ("NORMAL", "REDUCED")
    assert "NORMAL -> REDUCED by" in invoke("stats").stdout


def test_explain_tells_each_attempt(ran: Ran) -> None:
    """Of a call that was answered, of one that failed, and of one that never was."""
    answered = as_json("explain", ran.ids["good 7"])
    assert (answered["where"], answered["standings"]) == ("answered", [])
    assert answered["attempts"][-1]["outcome"] == "answered"
    failed = invoke("explain", ran.ids["bad 1"]).stdout
    assert ": failed" in failed
    assert "invalid_request, HTTP 400" in failed
    unknown = invoke("explain", "nobody", code=1)
    assert "No such call" in unknown.stderr


def test_limits_say_before_and_after(ran: Ran) -> None:
    """And keep what was not named."""
    done = invoke("limits", "set", "chat", "--concurrency", "5")
    assert done.stdout == ("chat: 6,000/min requests, adaptive -> 6,000/min requests, 5 at once, adaptive\n")
    assert (
        invoke("limits", "set", "other", "--unlimited").stdout
        == "other: no limit told, adaptive -> unlimited, adaptive\n"
    )
    invoke("limits", "set", "other", code=2)
    invoke("limits", "set", "", "--rpm", "5", code=2)
    invoke("limits", "set", "chat", "--rpm", "-5", code=2)
    lanes = {lane["lane"]: lane for lane in as_json("lanes")}
    assert (lanes["chat"]["limits"]["concurrency"], lanes["other"]["limits"]["unlimited"]) == (5, True)


def test_doctor_finds_nothing_wrong(ran: Ran) -> None:
    """Settings with their source, secrets masked; every check passes."""
    done = invoke("doctor")
    in_force = {line.split()[0]: line.split()[1:] for line in done.stdout.partition("\n\n")[0].splitlines()}
    assert in_force["MAISD_REDIS_URL"] == [ran.env["MAISD_REDIS_URL"], "(environment)"]
    assert in_force["MAISD_RETENTION_DAYS"] == ["7"]
    assert "1 alive with 8 slots (fleet: 8)" in done.stdout
    assert "wrong" not in done.stdout
    told = as_json("doctor")
    assert told["exit_code"] == 0
    assert {finding["level"] for finding in told["findings"]} <= {"ok", "note"}


def test_health_finds_the_worker_that_runs_here(ran: Ran) -> None:
    """By its machine, and by the name that Celery has for it: its beat says what the check looks for."""
    name = f"w1@{socket.gethostname()}"
    assert invoke("health").stdout.splitlines()[0] == name
    assert invoke("health", "--worker", name).stdout.splitlines()[0] == name
    assert "w2@elsewhere does not beat; 1 others do" in invoke("health", "--worker", "w2@elsewhere", code=1).stderr


def test_doctor_refuses_an_evicting_server(ran: Ran) -> None:
    """78: calls would vanish."""
    client: redis.Redis = ran.fleet.valkey.client
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "maxmemory-policy is allkeys-lru" in invoke("doctor", code=78).stdout
    finally:
        client.config_set("maxmemory-policy", "noeviction")


def test_cleanup_deletes_what_is_old(ran: Ran) -> None:
    """Nothing here is."""
    assert invoke("cleanup", "--older-than", "1h").stdout == "0 rows older than 60.0 min deleted\n"
    invoke("cleanup", "--older-than", "soon", code=2)


def test_the_real_command(ran: Ran) -> None:
    """As a process: data on stdout, words on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", "stats", "--format", "json", "--window", "24h"],
        env=clean_environment(**ran.env),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["total"]["calls"] == CALLS


def test_watching_goes_on_until_it_is_stopped(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """One look after the other; Ctrl-C ends it."""
    naps: list[float] = []

    def nap(pause_s: float) -> None:
        naps.append(pause_s)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("ratelimit_worker.cli.screen._pause", nap)
    done = CliRunner().invoke(main, ["stats", "--watch"])
    assert done.stdout.count("attempts over time") == 3


# ── without a fleet ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A Redis that nobody answers at, and an empty database."""
    monkeypatch.setenv("MAISD_REDIS_URL", "redis://:hunter2@127.0.0.1:1/0")
    monkeypatch.setenv("MAISD_STATE_DIR", str(tmp_path))


@pytest.mark.parametrize(
    "arguments", [["status"], ["lanes"], ["limits", "set", "a", "--rpm", "5"], ["explain", "x"], ["doctor"]]
)
def test_redis_away_is_69(arguments: list[str], away: None) -> None:
    """One sentence, no traceback, no password."""
    done = invoke(*arguments, code=69)
    assert "hunter2" not in done.output
    assert "Traceback" not in done.output
    assert "Redis" in done.output


def test_figures_without_redis(away: None, tmp_path: Path) -> None:
    """What the database has is told; the exit code says that something is away."""
    done = invoke("stats", "--format", "json", code=69)
    assert json.loads(done.stdout)["now"] is None
    assert done.stderr.startswith("Note: how the lanes stand is unknown: Redis")
    invoke("analytics", "-o", str(tmp_path / "report.html"))


def test_the_database_away(redis_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Status does without the last minute; what needs the database says so."""
    monkeypatch.setenv("MAISD_REDIS_URL", f"unix://{redis_server}")
    monkeypatch.setenv("MAISD_DATABASE_URL", "postgresql://me:hunter2@127.0.0.1:1/none")
    with redis.Redis(unix_socket_path=redis_server) as client:
        client.flushall()
    done = invoke("status")
    assert "the last minute is unknown" in done.stderr
    for arguments in (["stats"], ["cleanup"], ["doctor"], ["analytics", "-o", str(tmp_path / "r.json")]):
        assert "hunter2" not in invoke(*arguments, code=69).output
    assert list(tmp_path.iterdir()) == []


def test_every_bad_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """78, a line each."""
    monkeypatch.setenv("MAISD_CALLS_PER_MINUTE", "fast")
    monkeypatch.setenv("MAISD_MAX_WAITNG", "3")
    monkeypatch.setenv("MAISD_REDIS_URL", "http://secret@nowhere")
    done = invoke("doctor", code=78)
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    assert "secret" not in done.output
    assert any("did you mean MAISD_MAX_WAITING?" in line for line in lines)


def test_no_redis_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """78, with what to do; doctor still shows what is in force."""
    monkeypatch.delenv("MAISD_REDIS_URL", raising=False)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    monkeypatch.setenv("MAISD_STATE_DIR", str(tmp_path))
    assert "MAISD_REDIS_URL" in invoke("status", code=78).stderr
    done = invoke("doctor", code=78)
    assert "MAISD_RETENTION_DAYS" in done.stdout
    assert "no Redis" in done.stdout


@pytest.mark.parametrize("name", ["report.pdf", "report"])
def test_a_report_of_no_known_form(name: str, tmp_path: Path) -> None:
    """Refused before anything is asked."""
    done = invoke("analytics", "-o", str(tmp_path / name), code=2)
    assert ".json, .csv, .html" in done.stderr


def test_a_report_that_cannot_be_written_leaves_the_old_one(away: None, tmp_path: Path) -> None:
    """The folder is not there."""
    assert "No such file" in invoke("analytics", "-o", str(tmp_path / "no" / "r.json"), code=1).stderr


def test_figures_reach_as_far_as_the_setting_says(away: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MAISD_STATS_RETENTION_HOURS: what a report has without --since; any window reaches two years."""
    monkeypatch.setenv("MAISD_STATS_RETENTION_HOURS", "2")
    assert "figures reach back two years" in invoke("stats", "--window", "731d", code=2).stderr.replace("\n", " ")
    invoke("stats", "--window", "90d", code=69)
    invoke("analytics", "-o", str(tmp_path / "r.json"))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["until_s"] - report["since_s"] == pytest.approx(7200)
    invoke("analytics", "-o", str(tmp_path / "r.json"), "--since", "2001-01-01")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["until_s"] - report["since_s"] == pytest.approx(2 * 365 * 86400), "there is nothing older"
    invoke("analytics", "-o", str(tmp_path / "r.json"), "--since", "7d")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["until_s"] - report["since_s"] == pytest.approx(7 * 86400)


def test_help_of_each_command_needs_nothing() -> None:
    """Without Redis, database or settings."""
    for name in ("status", "stats", "analytics", "lanes", "limits", "explain", "doctor", "cleanup"):
        assert invoke(name, "--help").stdout.startswith("Usage:")
