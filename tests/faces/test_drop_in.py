"""The old import path: the import and shell lines that teams have go on working, from wheel and editable install."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ratelimit_worker.calls import Attempt, Outcome
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.builders import ROOT
from tests.fleet import Fleet, fleet

SOURCE = ROOT / "ratelimit_worker" / "drop_in"
NAME = "advanced_rate_limiting"
MODULES = ("__init__", "optimization_strategies", "utilities")

FIRST_LINES = f"""
from {NAME} import get_advanced_rate_limiter, make_optimized_llm_call
from {NAME}.optimization_strategies import optimize_api_call
"""


def built(how: str, folder: Path) -> Path:
    """A wheel (or the wheel of an editable install) made here, and what it holds in a folder of its own."""
    if importlib.util.find_spec("hatchling") is None:
        if os.environ.get("CI"):
            pytest.fail("hatchling is not installed: `make` installs it")
        pytest.skip("hatchling is not installed; `make` installs it")
    build = f"import sys, hatchling.build; hatchling.build.{how}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


@pytest.fixture(scope="module", params=["source", "wheel", "editable"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Code that makes a Python find the package: as a checkout's path, a wheel's contents, or an editable install."""
    folders = {
        "source": lambda: [ROOT, SOURCE],
        "wheel": lambda: [built("build_wheel", tmp_path_factory.mktemp("wheel"))],
        "editable": lambda: [built("build_editable", tmp_path_factory.mktemp("editable"))],
    }[request.param]()
    return "import site, sys; sys.path[:] = [p for p in sys.path if p]; " + "; ".join(
        f"site.addsitedir({str(folder)!r})" for folder in folders
    )


def run(code: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a folder that has nothing of ours."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Fleet]:
    """A broker without workers."""
    with fleet(MAISD_LANES='{"default": {"unlimited": true}}') as made:
        yield made


def attempts(made: Fleet) -> Tracker:
    """The tracking database of a fleet."""
    return Tracker(engine_for(f"sqlite:///{made.folder}/state/tracking.sqlite3"))


def old_row() -> Attempt:
    """An outcome that is past its retention."""
    at = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
    return Attempt(
        call_id="old",
        number=1,
        lane="default",
        task="old",
        outcome=Outcome.ANSWERED,
        started_at=at,
        finished_at=at,
        waited_s=0.0,
    )


def test_it_only_re_exports() -> None:
    """No decision is made twice: its modules import from the product, and define only what hands on."""
    assert sorted(path.stem for path in (SOURCE / NAME).glob("*.py")) == sorted(MODULES)
    for module in MODULES:
        tree = ast.parse((SOURCE / NAME / f"{module}.py").read_text("utf-8"))
        defined = [node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert defined in ([], ["__getattr__"], ["main"])


@pytest.mark.server
def test_the_import_lines(site: str, place: Fleet, tmp_path: Path) -> None:
    """Functions are called through their lanes, and what they did is recorded under the given names."""
    code = f"""
{site}
{FIRST_LINES}
import asyncio

class Analyst:
    @optimize_api_call(func_name="brd_analysis", context="business_requirements",
                       context_tags=["analysis"], cache_enabled=True)
    def analyze_brd(self, brd):
        return brd.upper()

print(Analyst().analyze_brd("brd"))
print(make_optimized_llm_call(func=str.title, func_name="llm_invoke", args=("prompt",), kwargs={{}}, context="general"))
limiter = get_advanced_rate_limiter()
print(limiter.make_rate_limited_call(func=len, func_name="count", args=("four",)), limiter.is_enabled())
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "BRD\nPrompt\n4 True\n"
    # the process recorded its outcomes before it ended
    engine = engine_for(f"sqlite:///{place.folder}/state/tracking.sqlite3")
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT task, context, outcome FROM attempts").all()
    assert sorted(tuple(row) for row in rows) == [
        ("brd_analysis", "business_requirements", "answered"),
        ("count", "general", "answered"),
        ("llm_invoke", "general", "answered"),
    ]


@pytest.mark.server
def test_the_one_liners(site: str, place: Fleet, tmp_path: Path) -> None:
    """`python -c "…get_advanced_rate_limiter().cleanup()"` deletes old outcomes, `.invalidate_cache()` kept answers."""
    tracker = attempts(place)
    tracker.record([old_row()])
    done = run(f"{site}\nfrom {NAME} import get_advanced_rate_limiter; get_advanced_rate_limiter().cleanup()", tmp_path)
    assert done.returncode == 0, done.stderr
    assert tracker.attempts_of("old") == []

    place.valkey.client.hset("rlw:cache:x", mapping={"context": "general"})
    place.valkey.client.zadd("rlw:cache:used", {"x": 1})
    line = f"{site}\nfrom {NAME} import get_advanced_rate_limiter; get_advanced_rate_limiter().invalidate_cache()"
    done = run(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert place.valkey.client.keys("rlw:cache:*") == []


def test_help_of_the_old_command_line_is_cheap(site: str, tmp_path: Path) -> None:
    """Its commands are those of `ratelimit-worker`, and importing it imports neither celery, redis nor sqlalchemy."""
    code = f"""
{site}
import runpy
sys.argv = ["utilities", "--help"]
try:
    runpy.run_module("{NAME}.utilities", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{"celery", "redis", "sqlalchemy"}} & set(sys.modules)))
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")
    assert "emergency" in done.stdout


@pytest.mark.server
@pytest.mark.parametrize("by_path", [False, True])
def test_the_shell_lines(place: Fleet, tmp_path: Path, by_path: bool) -> None:
    """emergency, stats and `analytics --output report.json`, by module name and by the file's path."""
    use_path = {"PYTHONPATH": f"{ROOT}:{SOURCE}"}
    command = [sys.executable, *([str(SOURCE / NAME / "utilities.py")] if by_path else ["-m", f"{NAME}.utilities"])]

    def shell(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env={**os.environ, **use_path},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shell("emergency")
    assert place.valkey.client.hkeys("rlw:pins") == [b"*"]
    now_s = time.time()
    attempts(place).record([replace(old_row(), call_id="new", started_at=now_s - 2, finished_at=now_s - 1)])
    assert json.loads(shell("stats", "--format", "json"))["total"]["calls"] == 1
    shell("analytics", "--output", "report.json")
    assert json.loads((tmp_path / "report.json").read_text("utf-8"))["total"]["calls"] == 1
