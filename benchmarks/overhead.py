"""What does the pipeline cost? No-op calls through it against plain Celery with the same durability, in pairs.

    python benchmarks/overhead.py [--pairs 5] [--calls 3000] [--pools threads,prefork]

Both sides: late acks, result stored, events off, one worker process, the same Valkey. Ours: an unlimited lane, tracking
on. Each pair runs one after the other on a fresh server; the ratio is taken pair by pair. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
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
from typing import Any

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
    # each run counts: none may stand for another
    decorator='llm_task(app=app, name="noop", lane="bench", cache=False)',
)
# plain Celery as its users run it: prefetch multiplier 4 is its default and its fastest
STOCK = APP.format(prefetch=4, install="", decorator='app.task(name="noop")')

DRIVER = """
import json, os, sys, time
import bench_{side} as bench
calls, trips = int(sys.argv[1]), int(sys.argv[2])
bench.noop.delay(0).get(timeout=30)
for n in range(50): bench.noop.delay(n).get(timeout=30)          # warm
trip, delay = [], []
for n in range(trips):
    a = time.perf_counter(); r = bench.noop.delay(n); b = time.perf_counter(); r.get(timeout=30)
    trip.append(time.perf_counter() - a); delay.append(b - a)
start = time.perf_counter()
rs = [bench.noop.delay(n) for n in range(calls)]
sent = time.perf_counter() - start
client = bench.app.backend.client
keys = [bench.app.backend.get_key_for_task(r.id) for r in rs]
while client.exists(*keys) < calls: time.sleep(0.01)
print(json.dumps(dict(trip=trip, delay=delay, seconds=time.perf_counter() - start, sent=sent)))
"""


@contextmanager
def side(name: str, pool: str, concurrency: int) -> Iterator[Callable[[int, int], dict[str, Any]]]:
    """A server, a worker and a driver of one side."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Valkey(folder)
    valkey.start()
    (folder / f"bench_{name}.py").write_text(OURS if name == "ours" else STOCK)
    env = {
        **os.environ,
        "BENCH_URL": valkey.url,
        "MAISD_REDIS_URL": valkey.url,
        "MAISD_STATE_DIR": str(folder),
        "MAISD_LANES": '{"bench": {"unlimited": true}}',
        "PYTHONPATH": f"{folder}:{ROOT}",
    }
    log = (folder / "worker.log").open("ab")
    command = [
        "-A",
        f"bench_{name}",
        "worker",
        "-P",
        pool,
        "-c",
        str(concurrency),
        "--without-gossip",
        "--without-mingle",
    ]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *command, "-l", "INFO"], env=env, cwd=folder, stdout=log, stderr=log
    )
    try:
        wait_for(lambda: " ready." in (folder / "worker.log").read_text(), 30, "the worker is ready")

        def drive(calls: int, trips: int) -> dict[str, Any]:
            import json

            out = subprocess.run(
                [sys.executable, "-c", DRIVER.format(side=name), str(calls), str(trips)],
                env=env, cwd=folder, capture_output=True, text=True, check=False,
            )  # fmt: skip
            if out.returncode:
                raise SystemExit(out.stderr + (folder / "worker.log").read_text()[-3000:])
            told: dict[str, Any] = json.loads(out.stdout.splitlines()[-1])
            return told

        yield drive
    finally:
        worker.terminate()
        worker.wait(timeout=30)
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--trips", type=int, default=300)
    parser.add_argument("--pools", default="threads,prefork")
    options = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"{options.pairs} pairs of {options.calls} calls, {options.trips} round trips")  # fmt: skip
    print("| pool | calls/s ours | calls/s stock | throughput × | delay p50 ms ours / stock | × | trip p50 ms | × |")
    print("|---|---|---|---|---|---|---|---|")
    for pool in options.pools.split(","):
        rows = []
        for _ in range(options.pairs):
            row = {}
            for name in ("ours", "stock"):
                with side(name, pool, 8 if pool == "threads" else 2) as drive:
                    row[name] = drive(options.calls, options.trips)
            rows.append(row)

        def figure(name: str, of: Callable[[dict[str, Any]], float], rows: list[dict[str, Any]] = rows) -> float:
            return statistics.median(of(row[name]) for row in rows)

        def ratio(of: Callable[[dict[str, Any]], float], rows: list[dict[str, Any]] = rows) -> float:
            return statistics.median(of(row["ours"]) / of(row["stock"]) for row in rows)

        def rate(result: dict[str, Any]) -> float:
            return float(options.calls / result["seconds"])

        def delay(result: dict[str, Any]) -> float:
            return float(statistics.median(result["delay"]) * 1e3)

        def trip(result: dict[str, Any]) -> float:
            return float(statistics.median(result["trip"]) * 1e3)

        print(
            f"| {pool} | {figure('ours', rate):.0f} | {figure('stock', rate):.0f} | {ratio(rate):.2f} "
            f"| {figure('ours', delay):.2f} / {figure('stock', delay):.2f} | {ratio(delay):.2f} "
            f"| {figure('ours', trip):.2f} / {figure('stock', trip):.2f} | {ratio(trip):.2f} |"
        )
        each = sorted(rate(row["ours"]) / rate(row["stock"]) for row in rows)
        print(f"{pool}, throughput × of each pair: {', '.join(f'{one:.2f}' for one in each)}", file=sys.stderr)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"{time.monotonic() - started:.0f} s")
