"""How many permits a second can one Redis give, and how exactly does a fast lane keep its pace?

    python -m benchmarks.permits [--seconds 10] [--only raw fast busy]

`raw`: the release path alone. A lane with a budget that is never used up and 20,000 waiting calls; one client frees the
calls that are out, as a worker's acks do, and their slots take the next ones. It is compared with a plain INCRBY of the
same client, as the median of three pairs. Then one call at a time, so that each permit has a round trip of its own.

`fast` and `busy`: four processes of several threads that send what a worker sends (BRPOP, begin, the pause that `begin`
returns, finish), without Celery, to a lane of 2,000/s and one of 1,000/s. A start is the time at which such a thread
would send its request, by this machine's clock; so a busy machine delays some starts, which may then coincide with
others.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.goals import beside
from ratelimit_worker.contracts.call import Entry
from ratelimit_worker.contracts.lesson import Lesson, Settlement, Stored
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import EVERY_TASK, Lanes
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.duties import Release
from tests.builders import entry
from tests.fleet import Valkey

ROOT = Path(__file__).resolve().parent.parent
LANE, QUEUE = "fast", "q"
LEASE_S = 30.0
WORKERS, THREADS = 4, 8
SLOTS = WORKERS * THREADS
READY = keys.ready(keys.ALL, QUEUE)
WAITING = 20_000  #: calls in the lane of `raw`
ACKS = 50  #: calls that are freed in one script
#: Largest difference from the lane's rate, as a share of it.
EXACT = 0.01
#: Rate, and most starts in any second: that rate and what the bucket holds, which is 21 at 1,000/s and 41 at 2,000/s.
GOALS = {"fast": (2_000, 2_041), "busy": (1_000, 1_021)}


@contextmanager
def server() -> Iterator[tuple[Valkey, Lanes]]:
    """A new server with an AOF, and its lanes."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-bench-"))
    valkey = Valkey(folder)
    valkey.start()
    try:
        yield valkey, Lanes(valkey.client)
    finally:
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


def fill(lanes: Lanes, calls: int, fields: dict[str, float], first: int = 0) -> None:
    """Put calls into the lane, many in one exchange; there is no worker, so all wait."""
    some: list[Entry] = [
        entry(f"call-{first + n:08d}-4f6b-9a51-0c2d", LANE, QUEUE, lane_fields=lambda: fields) for n in range(calls)
    ]
    lanes.enqueue(some[0])
    for at in range(1, calls, 200):
        lanes.run.each("enqueue", [one.args(new_lane=False) for one in some[at : at + 200]])


def taken(lanes: Lanes, most: int) -> list[str]:
    """Tags of calls that are ready, which are taken."""
    raw: Any = lanes.client.rpop(READY, most)
    return [json.loads(one)["properties"]["delivery_tag"] for one in raw or ()]


def permits_s(lanes: Lanes, at_once: int, calls: int) -> float:
    """Free so many calls at a time, and take those that are released for them; returns permits a second."""
    begun_s, given, out = time.perf_counter(), 0, list[str]()
    while given < calls:
        news = taken(lanes, at_once)
        given, out = given + len(news), out + news
        if not out:
            raise SystemExit("nothing is released")
        lanes.free(out[:at_once])
        out = out[at_once:]
    return given / (time.perf_counter() - begun_s)


def raw(seconds: float) -> bool:
    """Compare the release path with a plain INCRBY; returns whether its goal was missed."""
    ratios: list[float] = []
    with server() as (valkey, lanes):
        lanes.run.load()
        fill(lanes, WAITING, {"p1": ACKS / 0.02, "d1": 1e6})  # as many may travel at once
        lanes.beat("worker", SLOTS, 600.0, (QUEUE,), LEASE_S, (), EVERY_TASK)
        permits_s(lanes, ACKS, 500)  # warm
        for pair in range(3):
            begun_s, n = time.perf_counter(), 0
            while time.perf_counter() - begun_s < seconds / 5:
                valkey.client.incrby("bare", 1)
                n += 1
            bare = n / (time.perf_counter() - begun_s)
            many, one = permits_s(lanes, ACKS, 4_000), permits_s(lanes, 1, 1_000)
            ratios.append(many / bare)
            print(
                f"pair {pair + 1}: INCRBY {bare:,.0f}/s, permits {many:,.0f}/s ({ratios[-1]:.2f} ×), "
                f"one at a time {one:,.0f}/s ({one / bare:.2f} ×)",
                flush=True,
            )
    return beside("permits/s beside bare INCRBY, median of 3", statistics.median(ratios), 0.6, "×", least=True)


def work(url: str) -> None:
    """Run as one worker process until the time that it reads from stdin; prints the times of its starts."""
    starts: list[float] = []
    Lanes(RedisServer(url).client()).run.load()
    print("ready", flush=True)
    end_s = float(sys.stdin.readline())

    def thread(number: int) -> None:
        lanes = Lanes(RedisServer(url).client())
        while time.time() < end_s:
            found: Any = lanes.client.brpop([READY], timeout=1)
            if found is None:
                continue
            tag = json.loads(found[1])["properties"]["delivery_tag"]
            begun = lanes.begin(tag, LEASE_S, False, f"{os.getpid()}/{number}")
            if begun.state != "go":
                continue
            time.sleep(begun.pause_s)
            starts.append(time.time())
            answer = Settlement(
                tag=tag, lane=LANE, answer=b'{"value": 1}', lesson=Lesson(verdict="plain"), outbox=b"x" * 300
            )
            lanes.finish(answer, Stored(f"result-{tag}", b"1", 60), True)

    threads = [threading.Thread(target=thread, args=(number,)) for number in range(THREADS)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    print(json.dumps(starts))


def most_in_a_second(starts: Sequence[float]) -> int:
    """The most starts in any window of a second; `starts` in order."""
    return max(bisect_left(starts, at + 1.0) - n for n, at in enumerate(starts))


def paced(name: str, seconds: float) -> bool:
    """Run a lane at its pace; returns whether a goal was missed."""
    rate, most = GOALS[name]
    with server() as (valkey, lanes):
        lanes.run.load()
        fill(lanes, int(rate * (seconds + 1)), {"p1": float(rate), "d1": 1 + 0.02 * rate})
        pump = Release(RedisServer(valkey.url), "pump", LEASE_S)
        pump.start()
        command = [sys.executable, "-m", "benchmarks.permits", "--work", valkey.url]
        pipe = subprocess.PIPE
        workers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) for _ in range(WORKERS)]
        for one in workers:
            assert one.stdout is not None
            one.stdout.readline()
        end = f"{time.time() + seconds}\n"
        for one in workers:
            assert one.stdin is not None
            one.stdin.write(end)
            one.stdin.flush()
        lanes.beat("worker", SLOTS, 600.0, (QUEUE,), LEASE_S, (), EVERY_TASK)
        starts = sorted(at for one in workers for at in json.loads(one.communicate()[0]))
        pump.stop()
        pump.join(timeout=30)
    middle = [at for at in starts if starts[0] + 0.5 <= at < starts[-1] - 0.1]
    found = (len(middle) - 1) / (middle[-1] - middle[0])
    print(f"{name}: {rate:,}/s, {len(starts):,} starts by {WORKERS} workers of {THREADS} threads", flush=True)
    missed = beside(f"{name}: off its rate", abs(found / rate - 1) * 100, EXACT * 100, "%")
    return beside(f"{name}: starts in any second", most_in_a_second(starts), most, "starts") or missed


def main() -> int:
    """Run the chosen parts; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=["raw", *GOALS], default=["raw", *GOALS])
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.work:
        work(told.work)
        return 0
    print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}", flush=True)
    missed = [name for name in told.only if (raw(told.seconds) if name == "raw" else paced(name, told.seconds))]
    print(f"load average {os.getloadavg()[0]:.1f}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
