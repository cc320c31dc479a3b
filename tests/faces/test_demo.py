"""The demo: what it plays, what it counts, and one small one with everything real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ratelimit_worker.cli.demo.play import RPM_LEAST, RPM_MOST, Play
from ratelimit_worker.cli.demo.story import Call, Story, p95
from ratelimit_worker.simulate import Arrival, Fault
from tests.builders import clean_environment


@pytest.mark.parametrize("seed", range(50))
def test_a_seed_makes_a_provider(seed: int) -> None:
    """A limit within the bounds, a cut by a third, an outage of 10 s: all before the calls are done, in a minute."""
    scenario = Play(seed=seed).scenario()
    assert scenario == Play(seed=seed).scenario()
    assert scenario.rpm is not None
    assert RPM_LEAST <= scenario.rpm <= RPM_MOST
    cut, outage = scenario.timeline
    assert cut.rpm == round(scenario.rpm * 2 / 3)
    assert outage.fault is Fault.OUTAGE
    assert outage.for_s == 10.0
    done = scenario.rpm / 60 * cut.at_s + cut.rpm / 60 * (outage.at_s - cut.at_s)
    assert done < 500
    assert outage.at_s + 10.0 + (600 - done) / (cut.rpm / 60) < 48


def story(tmp_path: Path, calls: list[Call], arrivals: list[Arrival]) -> Story:
    """A story of these calls and arrivals."""
    return Story(
        seed=1,
        scenario=Play(seed=1).scenario(),
        calls=calls,
        arrivals=arrivals,
        agents=2,
        workers=1,
        seconds=12.0,
        report_path=tmp_path / "report.txt",
    )


def arrival(n: int, name: str, status: int = 200, fault: str | None = None) -> Arrival:
    """One request at the provider."""
    return Arrival(n=n, t=n * 0.5, unix=n * 0.5, path="/", status=status, fault=fault, custom_id=name, latency_s=0.2)


def test_a_call_is_lost_unless_both_sides_know_its_answer(tmp_path: Path) -> None:
    """Without an answer here, with an error here, or without a good request at the provider."""
    good = Call(name="a", sent_at_s=0.0, over_at_s=2.0)
    open_ = Call(name="b", sent_at_s=0.0)
    failed = Call(name="c", sent_at_s=0.0, over_at_s=3.0, error="connection after 6 attempt(s): reset")
    invented = Call(name="d", sent_at_s=0.0, over_at_s=4.0)
    arrivals = [arrival(1, "a"), arrival(2, "b"), arrival(3, "c"), arrival(4, "d", 503, "outage")]
    told = story(tmp_path, [good, open_, failed, invented], arrivals)
    assert told.lost == 3
    assert not told.whole
    assert "reset" in told.report()


def test_the_summary_counts_at_the_provider(tmp_path: Path) -> None:
    """429s, requests that met the outage, and answers that were paid for twice."""
    calls = [Call(name=name, sent_at_s=0.0, over_at_s=1.0) for name in ("a", "b")]
    arrivals = [arrival(1, "a", 429), arrival(2, "a"), arrival(3, "a"), arrival(4, "b", 503, "outage"), arrival(5, "b")]
    told = story(tmp_path, calls, arrivals)
    assert told.whole
    assert told.refused == 1
    assert told.bought_twice == 1
    words = " ".join(told.summary().split())
    assert "provider requests 5 (1 met the outage)" in words
    assert "of these 429 1 (20.0 %)" in words
    assert "lost 0" in words
    assert told.report().count("limit ") > 2


def test_p95_is_a_value_that_was_seen() -> None:
    """Nearest rank; nothing seen is 0."""
    assert p95([]) == 0.0
    assert p95([3.0]) == 3.0
    assert p95([float(value) for value in range(1, 101)]) == 95.0


@pytest.mark.server
@pytest.mark.worker
def test_a_small_demo_loses_nothing(tmp_path: Path) -> None:
    """Plain lines on stderr, the summary on stdout, a report, and nothing else left."""
    command = [sys.executable, "-m", "ratelimit_worker", "demo", "--seed", "5", "--calls", "60", "--outage-s", "2"]
    done = subprocess.run(
        [*command, "--state-dir", str(tmp_path)],
        env=clean_environment(MAISD_REDIS_URL="redis://127.0.0.1:1"),  # which it leaves alone
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    words = " ".join(done.stdout.split())
    assert "answers 60" in words
    assert "lost 0" in words
    assert "paid for twice 0" in words
    assert "\x1b" not in done.stdout + done.stderr
    assert "60/60" in done.stderr or "/60 answered" in done.stderr
    (report,) = (tmp_path / "demo").iterdir()
    assert report.read_text("utf-8").startswith(done.stdout[:40])
    assert str(report) in done.stdout
    left = [
        words
        for entry in Path("/proc").glob("[0-9]*/cmdline")
        if str(tmp_path) in (words := entry.read_bytes().decode("utf-8", "replace"))
    ]
    assert not left
