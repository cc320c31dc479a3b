"""What doctor makes of what it sees, how secrets are masked, and how reports are written."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from ratelimit_worker.calls import LaneLimits, Mode, ModeChange
from ratelimit_worker.cli.duration import DURATION
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.rollup import Cell, CellKey, Series
from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.timeout import Latencies, Sample, learn
from ratelimit_worker.reports import doctor, words
from ratelimit_worker.reports.analytics import NotWritten, export, to_csv, to_json, write_report
from ratelimit_worker.reports.doctor import Code, Finding, Grade
from ratelimit_worker.reports.figures import Tally
from ratelimit_worker.reports.html import page
from ratelimit_worker.reports.live import ClusterState, LaneState, QueueState
from ratelimit_worker.reports.live import Level as Budget
from ratelimit_worker.reports.money import Money
from ratelimit_worker.reports.stats import Stats
from ratelimit_worker.reports.tables import mode_line, stats_tables
from ratelimit_worker.stores.live import Server
from ratelimit_worker.stores.migrations import HEAD

SERVER = Server(
    product="Valkey",
    version="9.1.2",
    maxmemory_policy="noeviction",
    appendonly=True,
    used_memory=1,
    maxmemory=0,
    at_s=0.0,
)
LANE = LaneState(
    lane="gpt",
    mode=Mode.NORMAL,
    pinned=False,
    away=False,
    limits=LaneLimits(rpm=600.0),
    levels={"requests": Budget(pace_per_min=600.0, level=1.0, depth=1.0, learned_per_min=None)},
    at_once_learned=None,
    gap_s=0.0,
    gate_s=0.0,
    waiting=0,
    due_later=0,
    ready=0,
    running=0,
    reserved_tokens=0,
    used_today={},
    oldest_age_s=None,
    queues=(),
    workers=1,
    slots=8,
    sick_row=0,
    sent=0,
    used_per_min=0,
    refused_last_min=0,
)
CLUSTER = ClusterState(
    at_s=0.0,
    lanes=(LANE,),
    workers=1,
    slots=8,
    queues=(QueueState(queue="celery", workers=1, slots=8),),
    counters={},
)


def test_time_outs_are_told() -> None:
    """What is said of all and of a lane; else what is learned, the newest first."""
    sample = [Sample(latency_s=20.0, at=100.0)] * 30
    known = {f"shop.ask{n}\nm": learn(None, [replace(one, at=100.0 + n) for one in sample]) for n in range(7)}
    told = read_settings({"MAISD_TIMEOUT_SECONDS": "45", "MAISD_LANES": '{"a": {"timeout_s": 5}}'})
    assert doctor.judge_timeouts(told, known, 200.0).says == (
        "an attempt may take: 45 s (MAISD_TIMEOUT_SECONDS), lane a 5 s"
    )
    finding = doctor.judge_timeouts(read_settings({}), {**known, "new\nm": Latencies()}, 200.0)
    assert finding.level is Grade.OK
    assert finding.says.startswith("an attempt may take: shop.ask6 m 86")
    assert finding.says.endswith(", 2 more learned, what is not known yet 10 min at most")


def test_tasks_that_retry_by_themselves_are_told() -> None:
    """A note each."""
    found = list(doctor.judge_own_rules({"a": "a retries by itself (…)"}))
    assert [(one.level, one.says) for one in found] == [(Grade.NOTE, "task a retries by itself (…)")]
    assert not list(doctor.judge_own_rules({}))


def worst(findings: list[Finding]) -> tuple[Grade, int]:
    """The worst level and the exit code."""
    levels = list(Grade)
    return max((finding.level for finding in findings), key=levels.index), doctor.exit_code(findings)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (SERVER, (Grade.OK, 0)),
        (replace(SERVER, maxmemory_policy=None, appendonly=None, silent=True), (Grade.NOTE, 0)),
        (replace(SERVER, maxmemory_policy="allkeys-lru"), (Grade.WRONG, 78)),
        (replace(SERVER, maxmemory_policy=None), (Grade.NOTE, 0)),
        (replace(SERVER, appendonly=False), (Grade.NOTE, 0)),
        (replace(SERVER, used_memory=95, maxmemory=100), (Grade.WRONG, 1)),
    ],
)
def test_the_server(server: Server, expected: tuple[Grade, int]) -> None:
    """Its version, its eviction policy, its persistence, its memory."""
    assert worst(list(doctor.judge_server(server))) == expected


@pytest.mark.parametrize(
    ("revision", "expected"),
    [(None, (Grade.OK, 0)), (HEAD, (Grade.OK, 0)), ("0000", (Grade.NOTE, 0)), ("9999", (Grade.WRONG, 78))],
)
def test_the_schema(revision: str | None, expected: tuple[Grade, int]) -> None:
    """A database of a newer version is left alone."""
    assert worst([doctor.judge_revision(revision)]) == expected


@pytest.mark.parametrize(
    ("ahead_s", "asked_for_s", "level"),
    [
        (0.0, 0.01, Grade.OK),
        (-0.9, 0.0, Grade.OK),
        (1.5, 0.0, Grade.NOTE),
        (-30.0, 0.1, Grade.NOTE),
        (3.0, 2.5, Grade.OK),
    ],
)
def test_the_clock(ahead_s: float, asked_for_s: float, level: Grade) -> None:
    """What the question took proves nothing."""
    assert doctor.judge_clock(ahead_s, asked_for_s).level is level


@pytest.mark.parametrize(
    ("state", "latency_s", "expected"),
    [
        (CLUSTER, 0.5, (Grade.OK, 0)),
        (CLUSTER, 2.0, (Grade.NOTE, 0)),  # 10/s of 2 s each need 20 slots
        (replace(CLUSTER, workers=0, slots=0, queues=()), 0.5, (Grade.NOTE, 0)),
        (replace(CLUSTER, workers=0, lanes=(replace(LANE, waiting=3, workers=0, slots=0),)), 0.5, (Grade.WRONG, 1)),
        (replace(CLUSTER, lanes=(replace(LANE, waiting=3, queues=("other",), workers=0),)), 0.5, (Grade.WRONG, 1)),
    ],
)
def test_the_workers(state: ClusterState, latency_s: float, expected: tuple[Grade, int]) -> None:
    """Nobody there, nobody on a queue, or too few of them."""
    assert worst(list(doctor.judge_workers(state, {"gpt": latency_s}))) == expected


def test_what_went_wrong_quietly() -> None:
    """Counters and the outbox."""
    assert worst(list(doctor.judge_counters({"released": 9}))) == (Grade.OK, 0)
    assert worst(list(doctor.judge_counters({"malformed": 2}))) == (Grade.NOTE, 0)
    assert worst(list(doctor.judge_outbox(3, False, 0))) == (Grade.OK, 0)
    assert worst(list(doctor.judge_outbox(50_000, False, 0))) == (Grade.NOTE, 0)
    assert worst(list(doctor.judge_outbox(4_900_000, True, 0))) == (Grade.WRONG, 1)
    assert worst(list(doctor.judge_outbox(0, False, 1))) == (Grade.NOTE, 0)


def test_configuration_tells_most() -> None:
    """78 over 69 over 1."""
    found = [Finding("a", Grade.WRONG, "", code) for code in (Code.FAILED, Code.CONFIGURATION, Code.UNREACHABLE)]
    assert (doctor.exit_code(found), doctor.exit_code(found[::2]), doctor.exit_code([])) == (78, 69, 0)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host/0", "redis://:***@host/0"),
        ("rediss://me:hunter2@host/0?ssl_cert_reqs=none", "rediss://me:***@host/0?ssl_cert_reqs=none"),
        ("redis://host/0?password=hunter2&db=1", "redis://host/0?password=***&db=1"),
        ("redis://me:hunt@er2@host/0", "redis://me:***@host/0"),
        ("postgresql://me:hunter2@host/db?sslpassword=hunter2", "postgresql://me:***@host/db?sslpassword=***"),
        (
            "sentinel://:hunter2@a;sentinel://me:hunter2@b:1;:hunter2@c/0?master_name=m&sentinel_password=hunter2",
            "sentinel://:***@a;sentinel://me:***@b:1;sentinel://:***@c/0?master_name=m&sentinel_password=***",
        ),
        ("sqlite:////var/lib/tracking.db", "sqlite:////var/lib/tracking.db"),
        ("unix:///run/redis.sock?password=hunter2", "unix:///run/redis.sock?password=***"),
        ("https://hooks.example.com/services/hunter2", "https://hooks.example.com/***"),
    ],
)
def test_urls_lose_what_opens_the_door(url: str, shown: str) -> None:
    """And keep where they lead."""
    assert doctor.masked(url) == shown
    assert "hunter2" not in shown


def test_where_a_setting_came_from() -> None:
    """Environment, the broker's or the database's own variable, default."""
    environ = {
        "CELERY_BROKER_URL": "redis://:hunter2@host/1",
        "DATABASE_URL": "postgresql://me:hunter2@host/db",
        "MAISD_CACHE_SIZE_MB": "7",
        "RATE_LIMIT_DELAY": "2",
        "HOME": "/home/me",
    }
    found = {one.name: (one.value, one.source) for one in doctor.settings_in_force(read_settings(environ), environ)}
    assert found["MAISD_REDIS_URL"] == ("redis://:***@host/1", "CELERY_BROKER_URL")
    assert found["MAISD_DATABASE_URL"] == ("postgresql://me:***@host/db", "DATABASE_URL")
    assert found["MAISD_CACHE_SIZE_MB"] == ("7", "environment")
    assert found["RATE_LIMIT_DELAY"] == ("2", "environment")
    assert found["MAISD_RETENTION_DAYS"] == ("7", "default")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("MAISD_PRICES", '{"gpt-4o": {"input": 2.5, "output": 10.0, "request": 0.01}, "own*": {"input": 0.1}}'),
        ("MAISD_BUDGETS", '{"all": {"usd_per_day": 5.0}, "tenant:a": {"usd_per_month": 9.5, "zone": "-08:00"}}'),
        ("MAISD_CACHE_TTL_BY_CONTEXT", '{"docs": 86400.0}'),
        ("MAISD_PROVIDERS", '{"openai": {"headers": {"x-team": "a"}}}'),
    ],
)
def test_tables_are_shown_as_they_were_written(name: str, text: str) -> None:
    """Whatever they are read into."""
    environ = {name: text}
    found = {one.name: one.value for one in doctor.settings_in_force(read_settings(environ), environ)}
    assert found[name] == text


# ── reports ────────────────────────────────────────────────────────────────────────────────────────────────────────

NASTY = '<script>alert("&")</script>'


def a_report(lane: str = "gpt") -> Stats:
    """Two hours of one lane, and a mode change."""
    tally, series = Tally([7_000.0, 7_200.0, 8_100.0], 900.0), Series(lane, "t", NASTY, "", "")
    for at_s, cell in (
        (7_020, Cell(outcomes={"answered": 3}, latency_s=6.0, input_tokens=30, output_tokens=3)),
        (7_200, Cell(outcomes={"failed": 1})),
        (8_100, Cell(outcomes={"answered": 1}, latency_s=4.0, input_tokens=10, output_tokens=1)),
    ):
        tally.add(CellKey(at_s, series), cell)
    change = ModeChange(
        id="1", lane=lane, from_mode=Mode.NORMAL, to_mode=Mode.HALT, at=7_100.0, cause=NASTY, who="me", reason="so"
    )
    return Stats(
        schema=2,
        since_s=7_000.0,
        until_s=9_000.0,
        slice_s=900.0,
        total=tally.total(),
        lanes=tally.groups("lane"),
        functions=tally.groups("task"),
        contexts=tally.groups("context"),
        tenants=tally.groups("tenant"),
        models=tally.groups("model"),
        timeline=tally.timeline(),
        money=Money(),
        modes=(change,),
        cache_hits=0,
        joined=0,
        cache_stale=0,
        shed=0,
        now=replace(CLUSTER, lanes=(replace(LANE, gate_s=float("inf")),)),
        missing=("something",),
    )


def test_csv_is_lanes_by_hour() -> None:
    """Slices are added up to hours; the first begins where the window does."""
    rows = list(csv.DictReader(io.StringIO(to_csv(a_report()))))
    assert [(row["from"], row["attempts"], row["failed"], row["latency_mean_s"]) for row in rows] == [
        ("1970-01-01T01:56:40+00:00", "3", "0", "2.0"),
        ("1970-01-01T02:00:00+00:00", "2", "1", "4.0"),
    ]


def test_json_has_a_kind_and_a_schema() -> None:
    """And only numbers that JSON has."""
    report = json.loads(to_json(a_report()))
    assert (report["kind"], report["schema"], report["generated"]) == (
        "ratelimit-worker.analytics",
        2,
        "1970-01-01T02:30:00+00:00",
    )
    assert (report["now"]["lanes"][0]["gate_s"], report["now"]["lanes"][0]["allowed_per_min"]) == (None, 0.0)
    assert report["lanes"][0]["timeline"][2]["latency_s"] == 4.0


def test_every_value_of_the_page_is_escaped() -> None:
    """Lanes, contexts and causes come from outside."""
    text = page(a_report(lane=NASTY))
    assert NASTY not in text
    assert text.count("&lt;script&gt;alert(&#34;&amp;&#34;)&lt;/script&gt;") >= 3
    assert "something" in text


def test_tables_of_a_report() -> None:
    """Modes are told with who and why."""
    told = stats_tables(a_report())
    assert "gpt: NORMAL -> HALT by me" in told
    assert mode_line(a_report().modes[0]).endswith("; so")


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """An old one stays where the new one fails, and nothing else is left."""
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(BadInput):
        write_report(a_report(), tmp_path / "report.txt")
    with pytest.raises(NotWritten):
        write_report(a_report(), tmp_path / "none" / "report.json")
    assert path.read_text() == "old"
    write_report(a_report(), path)
    assert json.loads(path.read_text())["schema"] == 2
    assert [one.name for one in tmp_path.iterdir()] == ["report.json"]
    with pytest.raises(BadInput):
        export(None, tmp_path / "report.txt")  # type: ignore[arg-type]  # refused before it is asked


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0 ms"),
        (0.35, "350 ms"),
        (1.24, "1.2 s"),
        (99.0, "99.0 s"),
        (270.0, "4.5 min"),
        (3 * 3600.0, "3.0 h"),
        (86400.0, "24.0 h"),
        (7 * 86400.0, "7.0 d"),
        (float("inf"), "for ever"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    """With the unit that fits."""
    assert words.seconds(value) == text


def test_other_numbers() -> None:
    """Counts, shares and rates."""
    assert (words.count(1234), words.count(12_340_000), words.count(None)) == ("1,234", "12.3 M", "-")
    assert (words.percent(0.125), words.percent(None)) == ("12.5 %", "-")
    assert [words.per_min(value) for value in (60.0, 7.5, 0.0, None)] == ["60/min", "7.5/min", "0/min", "no bound"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400), ("1h30m", 5_400), ("7d", 604_800)]
)
def test_durations(text: str, seconds: float) -> None:
    """As they are written."""
    assert DURATION.convert(text, None, None) == seconds
