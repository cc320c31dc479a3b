"""The wheel is whole, and holds no name that belongs to everybody."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile

import pytest

from tests.builders import ROOT

PACKAGE = ROOT / "ratelimit_worker"
#: Top-level names that installing the wheel may bring. `advanced_rate_limiting` is the drop-in's old import path.
OURS = {"ratelimit_worker", "advanced_rate_limiting"}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel that is built here, without network and without touching the source tree."""
    if importlib.util.find_spec("hatchling") is None:
        if os.environ.get("CI"):
            pytest.fail("hatchling is not installed: `make` installs it")
        pytest.skip("hatchling is not installed; `make` installs it")
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def source_files(pattern: str) -> set[str]:
    """Files of the package as the wheel names them."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("pattern", ["**/*.py", "**/*.lua", "stores/migrations/**/*"])
def test_everything_that_runs_is_in_the_wheel(contents: list[str], pattern: str) -> None:
    """Scripts and migrations travel with the code: the wheel alone works."""
    wanted = source_files(pattern)
    assert wanted, f"nothing matches {pattern}"
    assert wanted - set(contents) == set()


def test_nothing_else_is_in_the_wheel(contents: list[str]) -> None:
    """No `tasks`, `tests` or `celeryconfig`: those names are everybody's. No byte code and no state either."""
    top = {name.partition("/")[0] for name in contents}
    assert {name for name in top if not name.endswith(".dist-info")} <= OURS
    assert not [
        name for name in contents if "__pycache__" in name or name.endswith((".pyc", ".sqlite3", ".aof", ".log"))
    ]
