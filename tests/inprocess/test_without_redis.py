"""What a program or an operator may ask, where no Redis is named, where it is away, and where it is frozen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from ratelimit_worker import deployment
from ratelimit_worker.app import find_app
from ratelimit_worker.calls import Mode
from ratelimit_worker.cli import main
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import BadInput, DeadlineExceeded, StoreUnavailable
from ratelimit_worker.flower import serve
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.inprocess.desk import Desk
from ratelimit_worker.stores import decide
from ratelimit_worker.stores.reach import first_line, redis_errors
from ratelimit_worker.wiring import Services
from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.inprocess.test_inprocess import Clock

pytestmark = pytest.mark.on_time

LINE = '{"custom_id": "q", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}\n'
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
    wrong_ones: list[dict[str, Any]] = [{"mode": "fast"}, {"mode": "halt", "for_s": 0.0}, {"mode": "halt", "lane": ""}]
    for wrong in wrong_ones:
        with pytest.raises(BadInput):
            limiter.set_mode(**wrong)
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
        if threading.current_thread() is threading.main_thread():  # who calls; others may wait as long as they like
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


@pytest.mark.server
def test_a_part_in_the_cluster_ends_though_redis_is_frozen(waits: Waits, tmp_path: Path) -> None:
    """`close()`, and with it the end of the process, asks once whether there is anybody to tell."""
    with fleet() as made:
        limiter, _ = limiter_on(made.valkey.url, tmp_path)
        assert limiter.make_rate_limited_call(len, "count", ("four",), cache_enabled=False) == 4
        made.valkey.signal(signal.SIGSTOP)
        try:
            waits.decisions = waits.without_end = 0
            limiter.close()
            assert waits.without_end == 0
            assert waits.decisions <= 1, "none where its threads have noticed before"
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
    """MAISD_STATS_RETENTION_HOURS is the command line's, and roll-ups stay when attempts go."""
    limiter, _ = limiter_on("", tmp_path, MAISD_STATS_RETENTION_HOURS="1", MAISD_RETENTION_DAYS="0.5")
    figures = limiter.get_comprehensive_stats()
    assert list(figures) == ["15m", "1h", "24h"]
    assert [len(window["missing"]) for window in figures.values()] == [1, 1, 1]


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CALLS = [
    ["status"],
    ["status", "--fail-on", "halt"],
    ["lanes"],
    ["stats"],
    ["stats", "--format", "json"],
    ["analytics"],
    ["mode", "history"],
    ["emergency"],
    ["halt", "--lane", "free"],
    ["auto"],
    ["limits", "set", "free", "--rpm", "60"],
    ["explain", "nobody"],
    ["cache", "stats"],
    ["cache", "clear"],
    ["doctor"],
    ["cleanup"],
    ["run", "in.jsonl", "-o", "out.jsonl"],
]
FROM_THE_DATABASE = ("stats", "analytics", "mode", "cleanup")  #: these tell what they can


def told(arguments: list[str], code: int, says: str, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The command ends so, with one line that says why, and no traceback."""
    for name in [name for name in os.environ if name.startswith(("MAISD_", "CELERY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAISD_STATE_DIR", str(folder))
    if url:
        monkeypatch.setenv("MAISD_REDIS_URL", url)
    monkeypatch.chdir(folder)
    (folder / "in.jsonl").write_text(LINE)
    done = CliRunner().invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), (arguments, done.exception)
    assert done.exit_code == code, (arguments, done.output)
    said = done.stdout if arguments[0] == "doctor" else done.stderr
    lines = [line for line in said.splitlines() if says in line and not line.startswith("MAISD_")]
    assert len(lines) == (1 if says else len(lines)), (arguments, done.output)
    return done


@pytest.mark.parametrize("arguments", [call for call in CALLS if call[0] != "run"], ids=" ".join)
def test_commands_where_no_redis_is_named(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the database tells is told, with what is missing; the rest names what to set."""
    from_database = arguments[0] in FROM_THE_DATABASE
    says = "" if arguments[0] == "cleanup" else "no Redis"
    done = told(arguments, 0 if from_database else 78, says, "", tmp_path, monkeypatch)
    if arguments[0] == "doctor":
        assert "database: reachable" in done.stdout
    if arguments == ["stats"]:
        assert "shed      - calls" in done.stdout, "Redis alone counts them"
    if arguments == ["stats", "--format", "json"]:
        assert json.loads(done.stdout)["now"] is None


@pytest.mark.parametrize("arguments", CALLS, ids=" ".join)
def test_commands_where_redis_is_away(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens there."""
    code = 0 if arguments[0] in ("analytics", "mode", "cleanup") else 69
    says = "" if arguments[0] == "cleanup" else "127.0.0.1:1"
    told(arguments, code, says, NOWHERE, tmp_path, monkeypatch)


@pytest.mark.server
def test_commands_where_redis_is_frozen(
    frozen: Fleet, waits: Waits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks it once whether it lives, for a second."""
    url = frozen.valkey.url
    for arguments in CALLS:
        waits.decisions = 0
        code = 0 if arguments[0] in ("analytics", "mode", "cleanup") else 69
        says = "" if arguments[0] == "cleanup" else "did not answer within 1 s: is it frozen"
        told(arguments, code, says, url, tmp_path, monkeypatch)
        assert (waits.decisions, waits.without_end) == (0 if arguments[0] == "cleanup" else 1, 0), arguments


APP = """
import os
from celery import Celery
from ratelimit_worker import install, llm_task
app = Celery("shop", broker=os.environ["SHOP_BROKER"], backend=os.environ["SHOP_BROKER"])
install(app)
other = Celery("other", broker="redis://127.0.0.1:1/5", set_as_current=False)
install(other)
plain = Celery("plain", broker=os.environ["SHOP_BROKER"])

@llm_task(app=app, lane="free", cache=False)
def ask(number):
    return number
"""


def command(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, where nothing but this is set."""
    return subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *arguments],
        cwd=folder,
        env=clean_environment(MAISD_STATE_DIR=str(folder / "state"), **env),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.mark.server
@pytest.mark.worker
def test_commands_find_the_broker_of_an_app(tmp_path: Path) -> None:
    """By `-A MODULE`, CELERY_APP, or the state folder of the last worker; no setting names it a second time."""
    with fleet() as made:
        url = made.valkey.url
        (tmp_path / "shop.py").write_text(APP)
        env = {"SHOP_BROKER": url}
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop:app", "worker", "-P", "threads", "-c", "2"],
            cwd=tmp_path,
            env=clean_environment(MAISD_STATE_DIR=str(tmp_path / "state"), **env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: worker.poll() is None and made.valkey.client.exists("rlw:workers"), what="it works")
            alive = command(tmp_path, "status", "-A", "shop", "--format", "json", **env)
            assert json.loads(alive.stdout)["workers"] == 1, alive.stderr
            before = command(tmp_path, "-A", "shop:app", "limits", "set", "free", "--rpm", "60", **env)
            assert before.returncode == 0, before.stderr
            by_variable = command(tmp_path, "status", **env, CELERY_APP="shop:app")
            assert "free" in by_variable.stdout
            of_last_worker = command(tmp_path, "doctor")
            assert "the last worker's" in of_last_worker.stdout
            assert "1 alive with 2 slots" in of_last_worker.stdout
            assert "free" in command(tmp_path, "lanes").stdout
        finally:
            worker.terminate()
            worker.wait(timeout=120)
        refused = command(tmp_path, "status", "-A", "shop:plain", **env)
        assert (refused.returncode, refused.stderr.count("\n")) == (78, 1)
        assert "-A shop:plain: an app without lanes" in refused.stderr
        other = command(tmp_path, "status", "-A", "shop:other", **env)
        assert (other.returncode, "127.0.0.1:1" in other.stderr) == (69, True)
        torn = command(tmp_path, "doctor", "-A", "torn", **env)
        assert torn.returncode == 78
        assert "wrong  app: -A torn: ModuleNotFoundError" in torn.stdout


def test_flower_is_of_the_app_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `-A`, of CELERY_APP, or of the last worker's broker; its page asks that app's server."""
    (tmp_path / "flower_shop.py").write_text(APP)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in os.environ if name.startswith(("MAISD_", "CELERY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MAISD_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("SHOP_BROKER", "redis://me:secret@127.0.0.1:1/4")

    def found(name: str | None) -> tuple[str, str]:
        app = find_app(name)
        return app.main, serve.services_of(app).redis_url

    assert found("flower_shop:app") == ("shop", "redis://me:secret@127.0.0.1:1/4")
    monkeypatch.setenv("CELERY_APP", "flower_shop:other")
    assert found(None) == ("other", "redis://127.0.0.1:1/5")
    monkeypatch.delenv("CELERY_APP")
    deployment.remember(read_settings(), "redis://me:secret@127.0.0.1:1/7?password=other&db=7")
    assert "secret" not in (tmp_path / deployment.LAST_RUN).read_text()
    assert (tmp_path / deployment.LAST_RUN).stat().st_mode & 0o077 == 0
    assert found(None) == ("ratelimit_worker", "redis://me@127.0.0.1:1/7?db=7")
    gone = "unix:///nowhere/at/all"
    deployment.remember(read_settings(), gone)
    assert json.loads((tmp_path / deployment.LAST_RUN).read_text()) == {"redis_url": gone}
    assert deployment.last_run(tmp_path) is None, "a server of a command's own that has ended"


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
