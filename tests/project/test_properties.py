"""Fixed examples by default, fresh ones in `make fuzz`; and what a test leaves behind is seen."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import leftovers
from tests.builders import ROOT
from tests.conftest import wait_for

PROPERTIES = """
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

@given(st.integers())
def test_of_a_number(number):
    assert {}

class Machine(RuleBasedStateMachine):
    @rule(number=st.integers())
    def step(self, number):
        pass

def test_of_a_machine():
    run_state_machine_as_test(Machine, settings=settings(stateful_step_count=1))

def test_that_is_none():
    raise AssertionError("not one of these")
"""


def explore(folder: Path, holds: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make fuzz` over properties of our own."""
    (folder / "test_own.py").write_text(PROPERTIES.format(holds))
    own = ["-c", "pyproject.toml", "-p", "tests.conftest", "-p", "no:cacheprovider", str(folder / "test_own.py")]
    command = [sys.executable, "-m", "tests.fuzz", *arguments, *own]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_fuzz_tells_what_it_tried(tmp_path: Path) -> None:
    """Properties and state machines, and no other test; each round has a seed."""
    done = explore(tmp_path, "True", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    first, tried, last = done.stdout.splitlines()
    assert first == "round 1: seed 7"
    (examples,) = re.fullmatch(r"  (\d+) examples of 2 property tests", tried).groups()  # type: ignore[union-attr]
    assert int(examples) == 2 * settings.get_profile("fuzz").max_examples
    assert last == f"nothing found: 1 rounds, {examples} examples"


def test_fuzz_tells_the_seed_that_fails(tmp_path: Path) -> None:
    """And the same seed finds it again."""
    rare = "number % 50 != 17"
    done = explore(tmp_path, rare, "--minutes", "1")
    assert done.returncode == 1, done.stdout
    (seed,) = re.findall(r"failed with seed (\d+)", done.stdout)
    assert "Failing test case: test_of_a_number" in done.stdout
    again = explore(tmp_path, rare, "--seed", seed)
    assert again.returncode == 1
    failing = re.compile(r"Failing test case: test_of_a_number\(.*?\)", re.DOTALL)
    assert failing.findall(again.stdout) == failing.findall(done.stdout)


def test_fuzz_ends_when_the_time_is_over(tmp_path: Path) -> None:
    """With what was tried until then."""
    done = explore(tmp_path, "True", "--minutes", "0")
    assert (done.returncode, done.stdout) == (0, "nothing found: 0 rounds, 0 examples\n")


def test_fixed_examples_do_not_hang_on_what_else_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test has the same examples, alone or after other files."""

    def examples() -> list[int]:
        seen = []

        @settings(settings.get_profile("fixed"), max_examples=300)
        @given(st.integers(), st.text())
        def tried(number: int, text: str) -> None:
            seen.append((number, text))

        tried()
        return seen  # type: ignore[return-value]

    before = examples()
    (tmp_path / "module_with_constants.py").write_text("A, B = 918273645, 'a word that nobody draws'")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("module_with_constants")
    assert examples() == before


@pytest.mark.server
@pytest.mark.parametrize(
    ("leave", "told"),
    [
        (lambda client: client.set("rlw:new", "x"), "b'rlw:new' (string): not in the table of stores/keys.py"),
        (lambda client: client.set("rlw:pins", "x"), "b'rlw:pins' (string): the table says hash"),
        (lambda client: client.hset("rlw:lane:a:b", "p1", "y"), "b'rlw:lane:a:b' (hash): has no TTL"),
        (
            lambda client: client.hset("rlw:pump", mapping={"sleep": 1, "x": "y", "p5": 1}),
            "b'rlw:pump': fields not in the table of stores/keys.py: ['x', 'p5']",
        ),
        (lambda client: client.hset("x", "y", "z"), "b'x' (hash): nobody's"),
    ],
    ids=["not in the table", "of another type", "no TTL", "a field", "not ours"],
)
def test_a_key_that_is_left_is_seen(
    redis_client: redis.Redis, leave: Callable[[redis.Redis], object], told: str
) -> None:
    """One line, with what is wrong."""
    assert leftovers.of_server(redis_client) == []
    leave(redis_client)
    assert leftovers.of_server(redis_client) == [told]
    redis_client.flushall()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_a_process_that_is_left_is_seen() -> None:
    """A child, and one whose parent is gone; not one that has ended."""
    processes = leftovers.Processes()
    before = processes.now()
    orphaning = "import subprocess as s; print(s.Popen(['sleep', '600'], stdout=s.DEVNULL, start_new_session=True).pid)"
    child = subprocess.Popen(["sleep", "600"])
    orphan = int(subprocess.run([sys.executable, "-c", orphaning], stdout=subprocess.PIPE, check=True).stdout)
    assert processes.now() - before == {child.pid, orphan}
    assert leftovers.describe(orphan) == f"{orphan}: sleep 600 "
    processes.end([child.pid, orphan])
    wait_for(lambda: processes.again() == before, what="both have ended")
    child.wait()
