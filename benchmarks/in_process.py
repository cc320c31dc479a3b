"""What do calls in process cost? Ten thousand coroutines that begin at once, threads, and answers that are kept.

    python benchmarks/in_process.py [--coroutines 10000] [--profile]

One process and a Valkey of its own, an unlimited lane, tracking on, functions that do nothing. Goals: no step of the
event loop longer than 20 ms, at most 0.7 ms of this process's processor time a call, at least 2,000 calls a second by
threads, and at most 0.15 ms for an answer that is kept. "Held up" is the longest time for which the loop looked at
nothing else; ten thousand tasks that do nothing at all hold it up for as long as stands beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import pstats
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

STEP_MS, CPU_MS, THREADS_PER_S, HIT_MS = 20.0, 0.7, 2_000.0, 0.15  #: goals
THREADS = 16


class Steps:
    """How long each step of the event loop takes: what a handle runs without giving way."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest_cpu_s = 0.0  #: of that thread's processor: what a busy machine takes away does not count

    def watch(self) -> None:
        """From here on, in every loop of this process."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
            run(handle)
            self.longest_s = max(self.longest_s, time.perf_counter() - begun_s)
            self.longest_cpu_s = max(self.longest_cpu_s, time.thread_time() - begun_cpu_s)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]


async def held_up_s(work: Any) -> float:
    """The longest time for which a loop could not look at a timer while `work` was done."""
    longest, over = 0.0, False

    async def tick() -> None:
        nonlocal longest
        while not over:
            begun_s = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - begun_s - 0.001)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.01)
    await work
    over = True
    await ticking
    return longest


async def nothing(number: int) -> int:
    """An attempt that costs nothing."""
    return number


async def yields() -> None:
    """The least that a task does."""
    await asyncio.sleep(0)


async def begin_together(coroutines: list[Any]) -> None:
    """All of them, each a task, in steps that are short themselves."""
    tasks = []
    for coroutine in coroutines:
        tasks.append(asyncio.create_task(coroutine))
    await asyncio.gather(*tasks)


def main() -> int:
    """Run it once; 1: a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--coroutines", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=6_000)
    parser.add_argument("--profile", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Valkey(folder)
        server.start()
        os.environ.update(
            MAISD_REDIS_URL=server.url,
            MAISD_DATABASE_URL=f"sqlite:///{folder}/tracking.db",
            MAISD_STATE_DIR=str(folder / "state"),
            MAISD_LANES='{"free": {"unlimited": true}}',
        )
        try:
            return measure(told)
        finally:
            server.stop()


def measure(told: argparse.Namespace) -> int:
    """All figures."""
    from ratelimit_worker import get_advanced_rate_limiter

    limiter = get_advanced_rate_limiter()
    call = limiter.make_rate_limited_call

    def plain(number: int) -> int:
        return number

    for number in range(200):
        call(plain, "plain", (number,), lane="free", cache_enabled=False)
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    missed = []

    many, steps = told.coroutines, Steps()
    bare = asyncio.run(held_up_s(begin_together([yields() for _ in range(many)])))
    steps.watch()
    profile = cProfile.Profile()

    async def together() -> float:
        calls = [call(nothing, "nothing", (number,), lane="free", cache_enabled=False) for number in range(many)]
        return await held_up_s(begin_together(calls))

    cpu_s, begun_s = time.process_time(), time.perf_counter()
    if told.profile:
        profile.enable()
    held_s = asyncio.run(together())
    profile.disable()
    cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
    print(
        f"{many:,} coroutines at once: {many / took_s:,.0f} calls/s; the loop was held up for {held_s * 1000:.0f} ms "
        f"({bare * 1000:.0f} ms by as many tasks that do nothing)"
    )
    missed.append(beside("longest step of the loop", steps.longest_s * 1000, STEP_MS, "ms"))
    print(f"  the longest by processor time of its thread: {steps.longest_cpu_s * 1000:.1f} ms")
    missed.append(beside("CPU a call, coroutines", cpu_s / many * 1000, CPU_MS, "ms"))
    if told.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)

    with ThreadPoolExecutor(THREADS) as pool:
        cpu_s, begun_s = time.process_time(), time.perf_counter()
        made = pool.map(lambda n: call(plain, "plain", (n,), lane="free", cache_enabled=False), range(told.calls))
        assert sum(made) == sum(range(told.calls))
        cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
    missed.append(beside(f"{THREADS} threads", told.calls / took_s, THREADS_PER_S, "calls/s", least=True))
    missed.append(beside("CPU a call, threads", cpu_s / told.calls * 1000, CPU_MS, "ms"))

    assert call(plain, "plain", (7,), lane="free") == 7
    cpu_s, begun_s = time.process_time(), time.perf_counter()
    for _ in range(2_000):
        call(plain, "plain", (7,), lane="free")
    cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
    missed.append(beside("an answer that is kept", took_s / 2_000 * 1000, HIT_MS, "ms"))
    print(f"  of which CPU of this process: {cpu_s / 2_000 * 1000:.3f} ms")
    limiter.close()
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
