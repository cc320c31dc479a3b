"""Are all goals met on this machine? `make bench` runs every benchmark that has a goal, one after the other.

    python -m benchmarks [--only overhead cleanup …] [--list]

Each begins when the load average has fallen, or after three minutes. A goal is missed if a benchmark prints MISSED or
ends with an exit code other than 0. After each, what they printed is written into RESULTS.md, with machine, date and
commit; the part of that file below the line that begins with `<!-- by hand` is kept. With --only nothing is written.
Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
BY_HAND = "<!-- by hand"
MISSED = "MISSED"
PAUSE_S = 180.0  #: longest wait for the load of the previous benchmark to fall
MOST_LINES = 80  #: lines of a benchmark's output that are kept


class Benchmark(NamedTuple):
    """A benchmark that has goals."""

    name: str
    arguments: tuple[str, ...] = ()
    quiet: bool = True  #: whether it measures by the clock, so that nothing else may run


#: Benchmarks by the clock come first, while the machine is quiet; long ones come last.
ALL = (
    Benchmark("in_process"),
    Benchmark("footprint"),
    Benchmark("cache_hit"),
    Benchmark("producer"),
    Benchmark("overhead", ("--pairs", "5")),
    Benchmark("permits"),
    Benchmark("busy_lanes"),
    Benchmark("awaited"),
    Benchmark("joined"),
    Benchmark("pages"),
    Benchmark("cleanup"),
    Benchmark("record"),
    Benchmark("record", ("--postgres",)),
    Benchmark("waiting_memory", quiet=False),
    Benchmark("growth", quiet=False),
    Benchmark("otel"),
    Benchmark("trends", quiet=False),
    Benchmark("ledger", quiet=False),
    Benchmark("budget", quiet=False),
    Benchmark("kept_answers", quiet=False),
    Benchmark("big_file", ("300000", "288000")),
)


class Outcome(NamedTuple):
    """The result of a benchmark."""

    benchmark: Benchmark
    code: int
    text: str
    seconds: float
    loads: tuple[float, float]  #: load averages before and after

    @property
    def missed(self) -> bool:
        """Whether a goal was missed, or the benchmark failed."""
        return self.code != 0 or MISSED in self.text


def settle(load: Callable[[], float], sleep: Callable[[float], None] = time.sleep) -> float:
    """Wait until the machine is quiet, three minutes at most; returns the load average then."""
    waited_s, quiet = 0.0, (os.cpu_count() or 1) / 4
    while load() > quiet and waited_s < PAUSE_S:
        sleep(5.0)
        waited_s += 5.0
    return load()


def run(benchmark: Benchmark, show: Callable[[str], object], command: Sequence[str] = ()) -> Outcome:
    """Run a benchmark in a process of its own, and show its lines as they come."""
    argv = list(command) or [sys.executable, "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments]
    before, begun_s, lines = os.getloadavg()[0], time.monotonic(), list[str]()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    with process.stdout as said:
        for line in said:
            lines.append(line.rstrip("\n"))
            show(line)
    code = process.wait()
    return Outcome(
        benchmark, code, "\n".join(lines[-MOST_LINES:]), time.monotonic() - begun_s, (before, os.getloadavg()[0])
    )


def report(outcomes: Sequence[Outcome], where: str, left: Sequence[Benchmark] = ()) -> str:
    """The part of RESULTS.md that is not written by hand.

    Args:
        where: Machine, date and commit.
        left: What has not run.
    """
    rows = [
        f"| {one.benchmark.name} | {'**missed**' if one.missed else 'met'} | {one.seconds:.0f} | "
        f"{one.loads[0]:.1f} to {one.loads[1]:.1f} |"
        for one in outcomes
    ]
    parts = [
        "# Results",
        f"Written by `make bench`: {where}.",
        "\n".join(["| benchmark | goals | seconds | load average |", "|---|---|---|---|", *rows]),
    ]
    if left:
        parts.append(f"Not run: {', '.join(' '.join((one.name, *one.arguments)) for one in left)}.")
    for one in outcomes:
        command = " ".join(("python -m", f"benchmarks.{one.benchmark.name}", *one.benchmark.arguments))
        parts.append(f"## {one.benchmark.name}\n\n`{command}`, exit code {one.code}\n\n```text\n{one.text}\n```")
    return "\n\n".join(parts) + "\n"


def written(before: str, told: str) -> str:
    """The new text of RESULTS.md: `told`, and below it the part of `before` that is written by hand."""
    at = before.find(BY_HAND)
    return told if at < 0 else f"{told}\n{before[at:]}"


def here() -> str:
    """Machine, date and commit."""
    commit = _git("rev-parse", "--short", "HEAD") + (" with changes" if _git("status", "--porcelain") else "")
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()}, Python {platform.python_version()}, "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {commit}"
    )


def _git(*words: str) -> str:
    asked = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else "unknown"


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[one.name for one in ALL], default=[])
    parser.add_argument("--list", action="store_true", help="what there is, in its order")
    told = parser.parse_args()
    chosen = [one for one in ALL if not told.only or one.name in told.only]
    if told.list:
        print("\n".join(" ".join((one.name, *one.arguments)) for one in chosen))
        return 0
    where, outcomes = here(), list[Outcome]()
    for number, benchmark in enumerate(chosen, start=1):
        load = settle(lambda: os.getloadavg()[0]) if benchmark.quiet else os.getloadavg()[0]
        print(f"── {benchmark.name}: load average {load:.1f} ──", flush=True)
        outcomes.append(run(benchmark, lambda line: print(line, end="", flush=True)))
        if not told.only:
            told_so_far = report(outcomes, where, chosen[number:])
            RESULTS.write_text(written(RESULTS.read_text("utf-8"), told_so_far), "utf-8")
    for one in outcomes:
        verdict = MISSED if one.missed else "met"
        print(f"{one.benchmark.name:<14}{verdict:<8}{one.seconds:6.0f} s   load {one.loads[0]:.1f}")
    if not told.only:
        print(f"written: {RESULTS.relative_to(ROOT)}")
    return int(any(one.missed for one in outcomes))


if __name__ == "__main__":
    sys.exit(main())
