"""How long do Flower's pages take with ten thousand lanes of which fifty are busy, and how much do they send?

    python -m benchmarks.pages --lanes 10000 --busy 50 --waiting 40

The scrape of `/metrics` and `ratelimit-worker status` (with its start) are measured too, with a goal of a second.

One Valkey, no worker, Flower as a process. Each page is requested once to warm up, then five times, each time after
Flower's cached result has expired; the median counts. The goal is a second and 200 kB for each page.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import httpx2 as httpx
import redis

from benchmarks.goals import beside
from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.wiring import services
from tests.builders import entry
from tests.faces.test_flower import LOGIN, flower
from tests.fleet import fleet

MOST_S, MOST_KB = 1.0, 200.0
LOOKS = 5
PAUSE_S = 1.2  #: longer than Flower caches a result
PAGES = {
    "lanes": "/rate-limit",
    "calls": "/rate-limit/calls",
    "calls of a lane": "/rate-limit/calls?lane=lane-00007",
    "figures": "/rate-limit/figures",
    "figures of a lane": "/rate-limit/figures?lane=lane-00007&window=15m",
    "scrape": "/metrics",
}
MOST_SCRAPE_KB = 2_000.0


def make(lanes: int, busy: int, waiting: int) -> None:
    """Make lanes as their first calls do, and calls that wait in some of them."""
    live: Lanes = services().lanes
    for number in range(lanes):
        live.establish(f"lane-{number:05}", limit_fields(LaneLimits(rpm=60)))
    for number in range(busy):
        for call in range(waiting):
            live.enqueue(entry(f"c-{number}-{call}", lane=f"lane-{number:05}"))


def timed(ask: Callable[[], httpx.Response]) -> tuple[float, float]:
    """Median of the time, in seconds, and size of the answer, in kB."""
    answer = ask()
    assert answer.status_code == 200, answer.text[-500:]
    took = []
    for _ in range(LOOKS):
        time.sleep(PAUSE_S)
        start_s = time.monotonic()
        answer = ask()
        took.append(time.monotonic() - start_s)
    return statistics.median(took), len(answer.content) / 1000


def main() -> int:
    """Print each figure with its goal; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=int, default=10_000)
    parser.add_argument("--busy", type=int, default=50)
    parser.add_argument("--waiting", type=int, default=40)
    told = parser.parse_args()
    missed = False
    with fleet() as made:
        make(told.lanes, told.busy, told.waiting)
        server: redis.Redis = made.valkey.client
        print(f"{told.lanes:,} lanes, {told.busy} with {told.waiting} calls that wait", flush=True)
        with (
            flower(made.env, made.folder / "flower.log", "--basic-auth", ":".join(LOGIN)) as address,
            httpx.Client(base_url=address, auth=LOGIN, timeout=120.0, trust_env=False) as client,
        ):
            for name, path in PAGES.items():
                server.config_resetstat()
                took_s, size_kb = timed(lambda path=path: client.get(path))  # type: ignore[misc]
                commands = server.info("stats")["total_commands_processed"] / (LOOKS + 1)
                missed |= beside(f"{name}, time", took_s, MOST_S, "s")
                missed |= beside(f"{name}, size", size_kb, MOST_SCRAPE_KB if name == "scrape" else MOST_KB, "kB")
                print(f"{name}: some {commands:,.0f} Redis commands a look   load {os.getloadavg()[0]:.1f}", flush=True)
        missed |= beside("status, time", told_in_s(made.env), MOST_S, "s")
    return int(missed)


def told_in_s(env: dict[str, str]) -> float:
    """Median of the time that `status` takes as a process, seconds."""
    took = []
    for _ in range(LOOKS):
        start_s = time.monotonic()
        command = [sys.executable, "-m", "ratelimit_worker", "status"]
        subprocess.run(command, env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL)
        took.append(time.monotonic() - start_s)
    return statistics.median(took)


if __name__ == "__main__":
    raise SystemExit(main())
