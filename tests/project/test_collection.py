"""The tests that are collected are the same in every process and at every moment.

Workers of pytest-xdist each collect for themselves and refuse to begin when their lists differ, and a test whose
name changes with the clock or with the hash seed can't be run again by its name.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLACE = Path(__file__).resolve().parents[2]


def collected(seed: int, places: list[str], directory: Path) -> list[str]:
    """The names of the tests in these places, in order, as a new process sees them, with its hash seed."""
    command = [sys.executable, "-m", "pytest", *places, "--collect-only", "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
    listed = directory / f"{seed}.txt"  # a pipe that fills would be no list
    with listed.open("w", encoding="utf-8") as out:
        subprocess.run(command, cwd=PLACE, env=environment, stdout=out, check=True, timeout=600)
    return [line for line in listed.read_text("utf-8").splitlines() if "::" in line]


def test_names_of_tests_hang_on_neither_clock_nor_hash_seed(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Another process with another hash seed, some minutes later, has the same names as this run in the same order.

    Where this run has few tests, a second process stands for it, some seconds later, as a collection takes that long.
    """
    mine = [item.nodeid for item in request.session.items]
    many = len(mine) > 1000
    places = (
        request.config.args if many else ["tests"]
    )  # named places are collected in the order in which they are named
    first = mine if many else collected(1, places, tmp_path)
    here = set(first)
    second = collected(2, places, tmp_path)
    assert len(first) > 1000
    both = zip(first, [name for name in second if name in here], strict=True)
    assert [(one, other) for one, other in both if one != other] == []
