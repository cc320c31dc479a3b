"""How soon does a waiting caller get an answer? 10,000 results awaited in one process, and `.get()` in threads.

    python benchmarks/awaited.py [--calls 10000] [--rate 200] [--threads 16] [--ways get,await]

A worker answers at a fixed rate, so that only the way of an answer to the caller is measured. Each answer is the time
at which its function returned; settling the call and storing the result come after that, and are included. Each way to
wait runs on a fresh server, in a process of its own. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

MOST_P95_MS, MOST_MB = 20.0, 400.0  #: goals

APP = """
import os, time
from celery import Celery
from ratelimit_worker import install, llm_task
url = os.environ["MAISD_REDIS_URL"]
app = install(Celery("bench", broker=url, backend=url))

@llm_task(app=app, name="stamp", lane="bench", cache=False)
def stamp(n):
    return time.time()
"""

CALLER = """
import asyncio, json, resource, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from bench_awaited import app, stamp
way, calls, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
most_threads = 0

async def heard(result):
    answer = await result
    return time.time() - answer

async def awaited():
    global most_threads
    sent = await asyncio.gather(*(stamp.adelay(n) for n in range(calls)))
    waiting = [asyncio.ensure_future(heard(one)) for one in sent]
    await asyncio.sleep(1)
    print("waits", flush=True)
    most_threads = threading.active_count()
    return await asyncio.gather(*waiting)

def got():
    global most_threads
    sent = [stamp.delay(n) for n in range(calls)]
    print("waits", flush=True)
    def wait(result):
        answer = result.get()
        return time.time() - answer
    with ThreadPoolExecutor(threads) as pool:
        late = list(pool.map(wait, sent))
        most_threads = threading.active_count()
    return late

stamp.delay(-1)  # the first opens the connections
began = time.monotonic()
late = asyncio.run(awaited()) if way == "await" else got()
print(json.dumps({
    "late": late, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "threads": most_threads,
    "seconds": time.monotonic() - began,
}))
"""


def measure(way: str, calls: int, rate: int, threads: int) -> dict[str, Any]:
    """One way to wait, on a server and with a worker of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Valkey(folder)
    valkey.start()
    (folder / "bench_awaited.py").write_text(APP)
    env = {
        **os.environ,
        "MAISD_REDIS_URL": valkey.url,
        "MAISD_STATE_DIR": str(folder),
        "MAISD_LANES": json.dumps({"bench": {"rpm": rate * 60, "adaptive": False}}),
        "PYTHONPATH": f"{folder}:{ROOT}",
    }
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, way, str(calls), str(threads)],
        env=env, cwd=folder, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert caller.stdout is not None
    assert caller.stdout.readline() == "waits\n"
    # Only now, since an answer that comes while calls are still being sent has no waiting caller yet.
    log = (folder / "worker.log").open("ab")
    command = ["-A", "bench_awaited", "worker", "-P", "threads", "-c", "16", "--without-gossip", "--without-mingle"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", *command, "-l", "INFO"], env=env, cwd=folder, stdout=log, stderr=log
    )
    try:
        out, _ = caller.communicate()
        if caller.returncode:
            raise SystemExit((folder / "worker.log").read_text()[-3000:])
        told: dict[str, Any] = json.loads(out.splitlines()[-1])
        return told
    finally:
        worker.terminate()
        worker.wait(timeout=60)
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    """Measure both, and print; 1: a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=200, help="calls a second that the worker answers")
    parser.add_argument("--threads", type=int, default=16, help="that wait with .get()")
    parser.add_argument("--ways", default="get,await", help="those to measure")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{chosen.calls} calls at {chosen.rate}/s, load average {load:.1f} at the start\n")
    print("| way | p50 ms | p95 ms | p99 ms | most ms | threads | RSS MB | s |")
    print("|---|---|---|---|---|---|---|---|")
    missed, goals = False, list[tuple[str, float, float, str]]()
    for way in chosen.ways.split(","):
        found = measure(way, chosen.calls, chosen.rate, chosen.threads)
        times = [percentile(found["late"], share) * 1000 for share in (0.5, 0.95, 0.99, 1.0)]
        figures = " | ".join(f"{one:.1f}" for one in times)
        print(
            f"| `{way}` | {figures} | {found['threads']} | {found['rss_mb']:.0f} | {found['seconds']:.0f} |", flush=True
        )
        goals += [(f"{way}, p95", times[1], MOST_P95_MS, "ms"), (f"{way}, memory", found["rss_mb"], MOST_MB, "MB")]
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end")
    for goal in goals:
        missed = beside(*goal) or missed
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
