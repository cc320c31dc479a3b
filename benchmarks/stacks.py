"""Where does the processor time of a call go? Samples of the worker's stacks, and the server's own statistics.

    python -m benchmarks.stacks [--calls 20000] [--pool threads] [--before ../a-checkout-of-another-version]

The calls and sides are those of `benchmarks.overhead`. For the worker: its processor time a call, divided by what its
threads were doing when py-spy looked, by package and by the innermost function of this package. It looks a hundred
times a second, at the thread that holds the interpreter's lock, so system calls are left out. For the server: time and
number of each command a call, by INFO commandstats; a script's time (fcall) includes that of the commands that it
calls. Needs py-spy on the PATH.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.overhead import OURS, PLAIN, ROOT, Side, running

MOST = 14  #: rows of a table
_SAMPLE = re.compile(r"^(?P<stack>.*) (?P<count>\d+)$")
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^():]+)(?::\d+)?\)$")
_LIBRARY = re.compile(r"^(?:.*/)?(?:site-packages|lib/python[\d.]+)/")


def file_of(frame: str) -> str:
    """The file of a frame as py-spy writes it, below the folder of its libraries; "" if it is not Python's."""
    found = _FRAME.match(frame)
    return _LIBRARY.sub("", found["file"]) if found else ""


def package_of(stack: list[str]) -> str:
    """The package whose code was running: the library's own part of the innermost frame's path."""
    file = file_of(stack[-1])
    inside = re.search(r"ratelimit_worker/(\w+)/", file)
    if inside:
        return f"ratelimit_worker/{inside[1]}"
    first, _, rest = file.lstrip("/").partition("/")
    return first if rest else "standard library"


def innermost_own(stack: list[str]) -> str:
    """The innermost function of ours in a stack, with its file; "" if there is none."""
    for frame in reversed(stack):
        found = _FRAME.match(frame)
        if found and "ratelimit_worker/" in found["file"]:
            return f"{found['file'].rpartition('ratelimit_worker/')[2]} {found['function']}"
    return ""


def counted(raw: str) -> tuple[Counter[str], Counter[str]]:
    """Samples by package and by innermost function of ours, from py-spy's raw format."""
    packages, functions = Counter[str](), Counter[str]()
    for line in raw.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        stack = [frame for frame in sample["stack"].split(";") if _FRAME.match(frame)]
        if stack:
            packages[package_of(stack)] += int(sample["count"])
            functions[innermost_own(stack) or "none of ours"] += int(sample["count"])
    return packages, functions


def table(what: str, found: Counter[str], us: float) -> None:
    """Print the rows: microseconds of a call, in proportion to samples."""
    samples = sum(found.values())
    print(f"\n| {what} | µs a call | share |\n|---|---|---|")
    for name, count in found.most_common(MOST):
        print(f"| {name} | {us * count / samples:.0f} | {100 * count / samples:.0f} % |")


def commands(before: Mapping[str, Any], after: Mapping[str, Any], calls: int) -> None:
    """Print the commands of a call that take longest."""
    rows = []
    for name, now in after.items():
        then = before.get(name, {"calls": 0, "usec": 0})
        rows.append((name.removeprefix("cmdstat_"), now["usec"] - then["usec"], now["calls"] - then["calls"]))
    print("\n| command | µs a call | number a call |\n|---|---|---|")
    for name, us, number in sorted(rows, key=lambda row: -row[1])[:MOST]:
        print(f"| {name} | {us / calls:.1f} | {number / calls:.2f} |")


def look(side: Side, options: argparse.Namespace) -> None:
    """Run one side and print its tables."""
    with running(side, options.pool, "WARNING") as one, tempfile.TemporaryDirectory() as folder:
        one.drive(500, 1)
        before: Any = one.valkey.client.info("commandstats")
        raw = Path(folder) / "stacks"
        spy = subprocess.Popen(
            [
                *("py-spy", "record", "--pid", str(one.worker), "--subprocesses", "--gil", "--format", "raw"),
                *("--rate", "100", "--duration", "3600", "--output", str(raw)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        run = one.drive(options.calls, 1)
        after: Any = one.valkey.client.info("commandstats")
        spy.send_signal(2)
        _, said = spy.communicate(timeout=120)
        if not raw.is_file():
            raise SystemExit(f"py-spy: {said[-500:]}")
        each = run["each"]
        print(
            f"\n## {side.name}\n\n{run['calls'] / run['seconds']:.0f} calls/s; processor time a call: "
            f"worker {each['worker'] * 1e6:.0f} µs, server {each['server'] * 1e6:.0f} µs, "
            f"producer {each['producer'] * 1e6:.0f} µs; load average {os.getloadavg()[0]:.1f}"
        )
        packages, functions = counted(raw.read_text("utf-8"))
        table("worker: package whose code ran", packages, each["worker"] * 1e6)
        if side.root is not None:
            table("worker: innermost function of ours", functions, each["worker"] * 1e6)
        commands(before, after, options.calls)


def main() -> int:
    """Look at each side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--pool", default="threads")
    parser.add_argument("--before", type=Path, help="a checkout of another version, to look at as well")
    options = parser.parse_args()
    if shutil.which("py-spy") is None:
        raise SystemExit("py-spy is not on the PATH: install it (pip install py-spy), in any environment")
    sides = [Side("plain", PLAIN, None), Side("ours", OURS, ROOT)]
    if options.before:
        sides.append(Side("before", OURS, options.before.resolve()))
    for side in sides:
        look(side, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
