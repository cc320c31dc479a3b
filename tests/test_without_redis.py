"""What a program or an operator may ask, where no Redis is named, where it is away, and where it is frozen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Mode
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.inprocess.desk import Desk
from ratelimit_worker.stores import decide
from ratelimit_worker.stores.reach import first_line, redis_errors
from ratelimit_worker.wiring import Services
from tests.fleet import ROOT, Fleet, fleet
from tests.test_cli import clean_environment
from tests.test_inprocess import Clock

NOWHERE = "redis://127.0.0.1:1/0"
PATHS = f"{ROOT}:{ROOT / 'ratelimit_worker' / 'drop_in'}"


def limiter_on(url: str, folder: Path, **more: str) -> tuple[AdvancedRateLimiter, Clock]:
    """A limiter of a process in whose environment that stands; its waits take no time."""
    clock = Clock()
    environ = {"MAISD_STATE_DIR": str(folder), **({"MAISD_REDIS_URL": url} if url else {}), **more}
    live = Services(read_settings(environ))
    return AdvancedRateLimiter(live, clock=clock, sleep=clock.sleep, jitter=lambda: 0.0), clock


# ── in process ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_method_works_where_no_redis_is_named(tmp_path: Path) -> None:
    """Figures come from the database and say what is missing; what Redis would keep is not there."""
    limiter, _ = limiter_on("", tmp_path)
    assert limiter.make_rate_limited_call(len, "count", ("four",)) == 4
    assert limiter.is_enabled() is False
    figures = limiter.get_comprehensive_stats()
    assert list(figures) == ["15m", "1h", "24h"]
    assert all("no Redis" in window["missing"][0] for window in figures.values())
    report = limiter.export_analytics()
    assert report is not None
    assert report["now"] is None
    assert limiter.export_analytics(tmp_path / "report.html") is None
    assert limiter.invalidate_cache() == limiter.invalidate_cache("context") == 0
    assert limiter.cleanup() == {"outcomes": 0, "abandoned_calls": 0}
    assert [change.to_mode for change in limiter.set_mode("emergency")] == [Mode.EMERGENCY]
    assert [change.to_mode for change in limiter.set_mode("auto")] == [Mode.NORMAL]
    limiter.close()


def test_a_mode_holds_for_this_process_where_no_redis_is_named(tmp_path: Path) -> None:
    """REDUCED and EMERGENCY are a pace, HALT is a wait; by lane or for all, until its time or `auto`."""
    limiter, clock = limiter_on("", tmp_path)

    def waited(lane: str = "default") -> float:
        began = clock.now_s
        limiter.make_rate_limited_call(len, "count", ("four",), lane=lane, deadline_s=30.0)
        return round(clock.now_s - began, 6)

    assert waited() == 1.0
    limiter.set_mode("reduced")
    assert waited() == 2.0
    limiter.set_mode("emergency", lane="one")
    assert (waited("one"), waited("other")) == (6.0, 2.0)
    limiter.set_mode("halt", reason="the purse is empty")
    began = clock.now_s
    with pytest.raises(DeadlineExceeded):
        waited("one")
    assert clock.now_s - began == pytest.approx(30.0)
    limiter.set_mode("auto")
    assert (waited("one"), waited("other")) == (1.0, 1.0)
    for wrong in ({"mode": "fast"}, {"mode": "halt", "for_s": 0.0}, {"mode": "halt", "lane": ""}):
        with pytest.raises(BadInput):
            limiter.set_mode(**wrong)  # type: ignore[arg-type]
    started_so, clock = limiter_on("", tmp_path, MAISD_EMERGENCY_MODE="true")
    began = clock.now_s
    started_so.make_rate_limited_call(len, "count", ("four",))
    assert clock.now_s - began == pytest.approx(6.0)


def asks(limiter: AdvancedRateLimiter) -> dict[str, Callable[[], Any]]:
    """Every method that looks at the cluster."""
    return {
        "get_comprehensive_stats": limiter.get_comprehensive_stats,
        "export_analytics": limiter.export_analytics,
        "cleanup": limiter.cleanup,
        "is_enabled": limiter.is_enabled,
        "invalidate_cache": limiter.invalidate_cache,
        "set_mode": lambda: limiter.set_mode("emergency"),
        "auto": lambda: limiter.set_mode("auto"),
    }


NEEDS_REDIS = {"invalidate_cache", "set_mode", "auto"}  #: what it keeps is meant


@dataclass
class Waits:
    """How Redis was waited for."""

    decisions: int = 0
    without_end: int = 0  #: exchanges and connections that nothing but their own time-outs would have ended


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """Every wait for Redis of this process, counted: how long one takes is the machine's affair."""
    seen = Waits()
    connect, exchange, deciding = decide._Bounded._connect, decide._Bounded._in_time, decide.deciding

    def count() -> None:
        seen.without_end += decide.current() is None

    def connecting(self: Any) -> Any:
        count()
        return connect(self)

    def exchanging(self: Any, *args: Any, **kwargs: Any) -> Any:
        count()
        return exchange(self, *args, **kwargs)

    @contextmanager
    def begun(most_s: float = decide.DECIDE_S) -> Iterator[decide.Decision]:
        seen.decisions += 1
        assert most_s <= decide.DECIDE_S
        with deciding(most_s) as decision:
            yield decision

    monkeypatch.setattr(decide._Bounded, "_connect", connecting)
    monkeypatch.setattr(decide._Bounded, "_in_time", exchanging)
    for module in ("stores.reach", "inprocess.limiter"):
        monkeypatch.setattr(f"ratelimit_worker.{module}.deciding", begun)
    return seen


def each_decides(limiter: AdvancedRateLimiter, waits: Waits, said: str) -> None:
    """What needs a Redis that is named says so in a line; the rest goes without; each waits for it once."""
    for name, ask in asks(limiter).items():
        waits.decisions = 0
        if name in NEEDS_REDIS:
            with pytest.raises(StoreUnavailable) as caught:
                ask()
            assert said in str(caught.value), name
            assert "\n" not in str(caught.value)
        else:
            found = ask()
            told = found.get("1h", found).get("missing") if isinstance(found, dict) else None
            assert told is None or said in told[0], name
        assert (waits.decisions, waits.without_end) == (1, 0), name


def test_methods_where_redis_is_away(waits: Waits, tmp_path: Path) -> None:
    """Nobody listens there."""
    limiter, _ = limiter_on(NOWHERE, tmp_path)
    each_decides(limiter, waits, "127.0.0.1:1")


@pytest.mark.server
def test_methods_where_redis_is_frozen(frozen: Fleet, waits: Waits, tmp_path: Path) -> None:
    """It takes connections, and never answers."""
    limiter, _ = limiter_on(frozen.valkey.url, tmp_path)
    each_decides(limiter, waits, "did not answer within 1 s")


@pytest.fixture
def frozen() -> Iterator[Fleet]:
    """A server that was stopped by SIGSTOP."""
    with fleet() as made:
        made.valkey.signal(signal.SIGSTOP)
        try:
            yield made
        finally:
            made.valkey.signal(signal.SIGCONT)


OLD_SCRIPT = """
from advanced_rate_limiting import get_advanced_rate_limiter, make_optimized_llm_call
from advanced_rate_limiting.optimization_strategies import optimize_api_call

class Analyst:
    @optimize_api_call(func_name="brd_analysis", context="business_requirements", context_tags=["analysis"])
    def analyze_brd(self, brd):
        return brd.upper()

limiter = get_advanced_rate_limiter()
print(Analyst().analyze_brd("brd"), make_optimized_llm_call(func=len, func_name="llm", args=("four",), kwargs={}))
print(limiter.make_rate_limited_call(func=len, func_name="count", args=("four",)), limiter.is_enabled())
print(sorted(limiter.get_comprehensive_stats()), limiter.invalidate_cache("business_requirements"))
print(limiter.invalidate_cache(), limiter.cleanup(), limiter.export_analytics("report.json"))
for mode in ("emergency", "reduced", "normal", "auto"):
    limiter.set_mode(mode)
limiter.close()
print("the end")
"""


def test_the_old_script_runs_to_its_end_without_redis(tmp_path: Path) -> None:
    """The lines that teams have, in a process that knows of no server."""
    done = subprocess.run(
        [sys.executable, "-c", OLD_SCRIPT],
        cwd=tmp_path,
        env=clean_environment(PYTHONPATH=PATHS, MAISD_STATE_DIR=str(tmp_path / "state"), RATE_LIMIT_DELAY="0"),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "BRD 4",
        "4 False",
        "['15m', '1h', '24h'] 0",
        "0 {'outcomes': 0, 'abandoned_calls': 0} None",
        "the end",
    ]
    assert json.loads((tmp_path / "report.json").read_text())["missing"]


def test_a_short_reach_drops_no_window(tmp_path: Path) -> None:
    """MAISD_STATS_RETENTION_HOURS is the command line's; rows that are no longer kept are said to be missing."""
    limiter, _ = limiter_on("", tmp_path, MAISD_STATS_RETENTION_HOURS="1", MAISD_RETENTION_DAYS="0.5")
    figures = limiter.get_comprehensive_stats()
    assert list(figures) == ["15m", "1h", "24h"]
    assert [len(window["missing"]) for window in figures.values()] == [1, 1, 2]
    assert "12.0 h" in figures["24h"]["missing"][1]


# ── what Redis says ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (redis.ConnectionError(), "ConnectionError"),
        (redis.ResponseError(""), "ResponseError"),
        (OSError(), "OSError"),
        (redis.ResponseError("\n\nERR no\nmore"), "ERR no"),
        (redis.ConnectionError("no redis://me:secret@host"), "no redis://me:***@host"),
    ],
)
def test_an_error_without_words_has_a_name(error: Exception, said: str) -> None:
    """However little an error says, it becomes one line, without a password."""
    assert first_line(error) == said
    with pytest.raises(StoreUnavailable, match=said.replace("*", r"\*")), redis_errors():
        raise error


def test_a_wordless_refusal_reaches_who_calls(tmp_path: Path) -> None:
    """In process, too: an answer of Redis that says nothing is no IndexError."""
    desk = Desk(Services(read_settings({"MAISD_REDIS_URL": NOWHERE, "MAISD_STATE_DIR": str(tmp_path)})))

    def refused() -> None:
        raise redis.ResponseError

    with pytest.raises(StoreUnavailable, match="ResponseError"):
        desk._ask(refused)
