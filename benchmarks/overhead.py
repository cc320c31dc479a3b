"""What does the pipeline cost? No-op calls through it against plain Celery with the same durability, in pairs.

    python benchmarks/overhead.py [--pairs 5] [--calls 3000] [--pools threads,prefork] [--levels INFO,WARNING]
    python benchmarks/overhead.py --before ../a-checkout-of-another-version

Both sides: late acks, results stored, events off, one worker process, the same Valkey, the same environment (so both
use hiredis). Ours: an unlimited lane, tracking on. The runs of a pair follow each other, each on a fresh server; a
ratio is computed for each pair, and the median is printed. Counts and processor time (commands; user and system time of
server, worker and producer) are valid on a busy machine too; times by the clock are not. Prints a Markdown table of
figures and goals. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.conftest import wait_for  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

APP = """
import os
from celery import Celery
url = os.environ["BENCH_URL"]
app = Celery("bench", broker=url, backend=url)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier={prefetch}, worker_send_task_events=False,
                task_serializer="json", accept_content=["json"], broker_pool_limit=64)
{install}
@{decorator}
def noop(n):
    return n
"""
OURS = APP.format(
    prefetch=1,
    install="from ratelimit_worker import install, llm_task\ninstall(app)\n",
    # no call may get the answer of another one
    decorator='llm_task(app=app, name="noop", lane="bench", cache=False)',
)
# plain Celery as its users run it: prefetch multiplier 4 is its default and its fastest
PLAIN = APP.format(prefetch=4, install="", decorator='app.task(name="noop")')

DRIVER = """
import json, os, sys, time
import bench, redis
calls, trips, worker = map(int, sys.argv[1:])
server = redis.Redis.from_url(os.environ["BENCH_URL"])
def family(pid):
    try: children = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError: return []
    return [pid, *(one for child in children for one in family(int(child)))]
def cpu(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
def counted():
    told = server.info("all")
    commands = {name[8:]: one["calls"] for name, one in told.items() if name.startswith("cmdstat_")}
    return {
        "commands": sum(n for name, n in commands.items() if name not in ("info", "exists")),
        "server": told["used_cpu_user"] + told["used_cpu_sys"],
        "worker": sum(map(cpu, family(worker))),
        "producer": sum(os.times()[:2]),
    }
bench.noop.delay(0).get(timeout=60)
for n in range(200): last = bench.noop.delay(n)
last.get(timeout=60)                                                # warm
time.sleep(1)
trip, delay = [], []
for n in range(trips):
    a = time.perf_counter(); r = bench.noop.delay(n); b = time.perf_counter(); r.get(timeout=60)
    trip.append(time.perf_counter() - a); delay.append(b - a)
before, start = counted(), time.perf_counter()
sent = [bench.noop.delay(n) for n in range(calls)]
producer = counted()["producer"] - before["producer"]
names = [bench.app.backend.get_key_for_task(one.id) for one in sent]
while not server.exists(names[-1]): time.sleep(0.01)
while server.exists(*names) < calls: time.sleep(0.01)
seconds = time.perf_counter() - start
time.sleep(1)                                                       # the recorder's last batch
after = counted()
each = {name: (after[name] - before[name]) / calls for name in before} | {"producer": producer / calls}
print(json.dumps({"trip": trip, "delay": delay, "seconds": seconds, "each": each}))
"""


class Side(NamedTuple):
    """One of the sides that are compared."""

    name: str
    app: str
    root: Path | None  #: the checkout that it imports; None: plain Celery


class Figure(NamedTuple):
    """One figure of a run, and its goal."""

    what: str
    of: Callable[[dict[str, Any]], float]
    goal: float
    times: bool = True  #: whether the goal is a ratio to plain Celery's figure, not a value of our own
    least: bool = False  #: whether the goal is a minimum, not a maximum

    def holds(self, value: float) -> bool:
        return value >= self.goal if self.least else value <= self.goal


def _p(share: float, of: list[float]) -> float:
    return sorted(of)[min(len(of) - 1, int(len(of) * share))] * 1e3


FIGURES = (
    Figure("calls/s", lambda run: run["calls"] / run["seconds"], 1.0, least=True),
    Figure("`.delay()` p50, ms", lambda run: _p(0.5, run["delay"]), 1.15),
    Figure("round trip p50, ms", lambda run: _p(0.5, run["trip"]), 1.1),
    Figure("round trip p99, ms", lambda run: _p(0.99, run["trip"]), 1.5),
    Figure("server, µs a call", lambda run: run["each"]["server"] * 1e6, 220, times=False),
    Figure("Redis commands a call", lambda run: run["each"]["commands"], 30, times=False),
    Figure("worker, µs a call", lambda run: run["each"]["worker"] * 1e6, float("inf")),
    Figure("producer, µs a call", lambda run: run["each"]["producer"] * 1e6, float("inf")),
)


class Running(NamedTuple):
    """A server and a worker of one side."""

    drive: Callable[[int, int], dict[str, Any]]  #: makes so many calls and round trips, and measures them
    worker: int  #: its process
    valkey: Valkey


@contextmanager
def running(side: Side, pool: str, level: str) -> Iterator[Running]:
    """Start them, and stop them at the end."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Valkey(folder)
    valkey.start()
    (folder / "bench.py").write_text(side.app)
    env = {
        **os.environ,
        "BENCH_URL": valkey.url,
        "MAISD_REDIS_URL": valkey.url,
        "MAISD_STATE_DIR": str(folder),
        "MAISD_LANES": '{"bench": {"unlimited": true}}',
        "PYTHONPATH": f"{folder}:{side.root}" if side.root else str(folder),
    }
    slots = "8" if pool == "threads" else "2"
    told = ["worker", "-P", pool, "-c", slots, "--without-gossip", "--without-mingle", "-l", level]
    with (folder / "worker.log").open("ab") as log:
        command = [sys.executable, "-m", "celery", "-A", "bench", *told]
        worker = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)

    def drive(calls: int, trips: int) -> dict[str, Any]:
        out = subprocess.run(
            [sys.executable, "-c", DRIVER, str(calls), str(trips), str(worker.pid)],
            env=env, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if out.returncode:
            raise SystemExit(out.stderr + (folder / "worker.log").read_text()[-3000:])
        return {**json.loads(out.stdout.splitlines()[-1]), "calls": calls}

    try:
        wait_for(lambda: valkey.client.exists("_kombu.binding.celery"), 60, "the worker is there")
        yield Running(drive, worker.pid, valkey)
    finally:
        worker.terminate()
        worker.wait(timeout=60)
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


def measured(pool: str, level: str, sides: list[Side], options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Runs of each side, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for _ in range(options.pairs):
        for side in sides:
            with running(side, pool, level) as one:
                runs[side.name].append(one.drive(options.calls, options.trips))
    return runs


def told(pool: str, level: str, runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Print the rows of a pool; returns whether all goals are met."""
    met = True
    for figure in FIGURES:
        each = {name: [figure.of(run) for run in some] for name, some in runs.items()}
        middle = {name: statistics.median(some) for name, some in each.items()}
        ratios = [ours / plain for ours, plain in zip(each["ours"], each["plain"], strict=True)]
        ratio = statistics.median(ratios)
        holds = figure.holds(ratio if figure.times else middle["ours"])
        met = met and holds
        goal = f"{'≥' if figure.least else '≤'} {figure.goal:g}{' ×' if figure.times else ''}"
        values = " | ".join(f"{middle[name]:.2f}" for name in runs)
        print(
            f"| {pool}, -l {level} | {figure.what} | {values} | {ratio:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {goal if figure.goal < float('inf') else '-'} "
            f"| {'' if holds else '**missed**'} |",
            flush=True,
        )
    return met


def main() -> int:
    """Run the pairs and print the table; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--trips", type=int, default=300)
    parser.add_argument("--pools", default="threads,prefork")
    parser.add_argument("--levels", default="INFO,WARNING", help="of the workers' logs, on both sides")
    parser.add_argument("--before", type=Path, help="a checkout of another version, to run beside")
    options = parser.parse_args()
    sides = [Side("ours", OURS, ROOT), Side("plain", PLAIN, None)]
    if options.before:
        sides.append(Side("before", OURS, options.before.resolve()))
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"{options.pairs} pairs of {options.calls} calls, {options.trips} round trips, "
          f"load average {os.getloadavg()[0]:.1f}")  # fmt: skip
    print(f"| worker | figure | ours | plain Celery |{' before |' if options.before else ''} × (pairs) | goal | |")
    print("|---|---|---|---|---|---|---|" + ("---|" if options.before else ""))
    met = True
    for pool in options.pools.split(","):
        for level in options.levels.split(","):
            met = told(pool, level, measured(pool, level, sides, options)) and met
    print(f"load average {os.getloadavg()[0]:.1f}")
    return 0 if met else 1


if __name__ == "__main__":
    started = time.monotonic()
    code = main()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(code)
