"""What do ten thousand lanes cost that were made by mistake, while they are made, and when they are idle?

    python -m benchmarks.idle_lanes --lanes 10000

One Valkey, one worker of 8 threads, one busy lane without a pace. Times of `.delay()` and of the round trip, and CPU of
worker and server, each over the same number of calls: without idle lanes, with them, and with all of them pinned. Then
commands that read all lanes, and the longest time for which they blocked the server (its slow log).
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from ratelimit_worker.flow.lane import pin
from ratelimit_worker.wiring import services
from tests.fleet import Fleet, fleet

CALLS = 150


def cpu_s(pid: int) -> float:
    """User and system time of a process, seconds."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def p95_ms(times_s: list[float]) -> float:
    """The 95th percentile, in milliseconds."""
    return sorted(times_s)[int(len(times_s) * 0.95)] * 1000


def busy(made: Fleet, tasks: Any, what: str) -> None:
    """Calls of one lane, one after the other, with a pause in which duties run."""
    server, worker = made.valkey._process, made.workers[0].process
    assert server is not None
    before, began_s = (cpu_s(worker.pid), cpu_s(server.pid)), time.monotonic()
    accepted, answered = [], []
    for number in range(CALLS):
        start_s = time.monotonic()
        result = tasks.echo.apply_async((number,), lane="busy")
        accepted.append(time.monotonic() - start_s)
        result.get(timeout=120, interval=0.002)
        answered.append(time.monotonic() - start_s)
        time.sleep(0.02)
    took_s = time.monotonic() - began_s
    worker_share, server_share = ((cpu_s(p.pid) - b) / took_s for p, b in zip((worker, server), before, strict=True))
    print(
        f"{what:<34} .delay() p95 {p95_ms(accepted):6.1f} ms   round trip p95 {p95_ms(answered):7.1f} ms   "
        f"worker {worker_share:5.1%}  server {server_share:5.1%} of a CPU   load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def command(made: Fleet, *arguments: str) -> None:
    """Run a command, and print how long it took, what it cost and how much it printed."""
    server = made.valkey._process
    assert server is not None
    made.valkey.client.slowlog_reset()
    began, own, theirs = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN), cpu_s(server.pid)
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit_worker", *arguments], capture_output=True, text=True, check=False
    )
    took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    own_s = after.ru_utime + after.ru_stime - own.ru_utime - own.ru_stime
    slowest = max((entry["duration"] for entry in made.valkey.client.slowlog_get(128)), default=0)
    print(
        f"{' '.join(arguments):<24} {took_s:5.1f} s, {own_s:4.1f} s of a CPU and "
        f"{cpu_s(server.pid) - theirs:4.2f} s of the server's, exit {done.returncode}, "
        f"{len(done.stdout.splitlines()):,} lines, "
        f"slowest command {slowest / 1000:.1f} ms   load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    if done.returncode not in (0, 1):
        print(done.stderr[-500:])


def make(lanes: int, each: Callable[[str], object]) -> None:
    """Make lanes as their first calls do."""
    start_s = time.monotonic()
    for number in range(lanes):
        each(f"user-{number}")
    print(f"{lanes:,} lanes made in {time.monotonic() - start_s:.1f} s", flush=True)


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=int, default=10_000)
    lanes = parser.parse_args().lanes
    with fleet(MAISD_LANES='{"busy": {"unlimited": true}}') as made:
        made.valkey.client.config_set("slowlog-log-slower-than", 1000)
        made.worker("worker")
        tasks = made.agent()
        busy(made, tasks, "alone")
        live = services()
        make(lanes, lambda lane: live.lanes.establish(lane, pin.lane_fields(live.control, live.settings, lane)))
        busy(made, tasks, "just after")
        time.sleep(20)  # until the tuner has read each once, and forgets them
        busy(made, tasks, f"beside {lanes:,} idle lanes")
        command(made, "status")
        command(made, "doctor")
        command(made, "lanes")
        command(made, "normal")  # a pin that holds no call back
        busy(made, tasks, "all pinned to NORMAL")
        command(made, "auto")
        busy(made, tasks, "given back")
        for worker in made.workers:
            worker.stop()


if __name__ == "__main__":
    main()
