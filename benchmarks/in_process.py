"""What do calls in process cost? Ten thousand coroutines that begin at once, threads, and kept answers.

    python benchmarks/in_process.py [--coroutines 10000] [--profile]

One process and a Valkey of its own, an unlimited lane, tracking on, functions that do nothing. Goals: no step of the
event loop longer than 20 ms, at most 0.7 ms of this process's processor time a call, at least 2,000 calls a second by
threads, and at most 0.15 ms for a kept answer. "Held up" is the longest time for which the event loop was blocked; the
same for ten thousand tasks that do nothing at all is printed with it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import os
import pstats
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

STEP_MS, CPU_MS, THREADS_PER_S, HIT_MS = 20.0, 0.7, 2_000.0, 0.15  #: goals
THREADS = 16


def by_thread() -> dict[str, float]:
    """Processor time of each thread of this process that lives, in seconds, by its name."""
    spent: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            taken_s = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            name = "callers" if thread.name.startswith("ThreadPool") else thread.name
            spent[name] = spent.get(name, 0.0) + taken_s
    return spent


def shares(before: dict[str, float], calls: int) -> str:
    """What each thread has spent since, in ms a call; those below a hundredth of the whole are left out."""
    now = by_thread()
    spent = {name: (taken_s - before.get(name, 0.0)) / calls * 1000 for name, taken_s in now.items()}
    least = sum(spent.values()) / 100
    told = sorted(((ms, name) for name, ms in spent.items() if ms >= least), reverse=True)
    return "  of which " + ", ".join(f"{name} {ms:.3f}" for ms, name in told)


class Steps:
    """How long each step of the event loop takes: a handle that runs without a pause."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.longest_gc_s = 0.0  #: longest run of Python's garbage collector, which scans all objects of the process
        self._gc_s = self._gc_began_s = 0.0
        self._made = False
        self.longest_cpu_s = 0.0  #: longest step by processor time of its thread, without pauses on a busy machine

    def leave_out(self) -> None:
        """Do not count the present step, in which the benchmark itself makes the coroutines."""
        self._made = True

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._gc_began_s = time.perf_counter()
        else:
            took_s = time.perf_counter() - self._gc_began_s
            self._gc_s, self.longest_gc_s = self._gc_s + took_s, max(self.longest_gc_s, took_s)

    def watch(self) -> None:
        """Measure from now on, in every event loop of this process."""
        run = asyncio.Handle._run
        gc.callbacks.append(self._collects)

        def timed(handle: asyncio.Handle) -> None:
            self._made, gc_s = False, self._gc_s
            begun_s, begun_cpu_s = time.perf_counter(), time.thread_time()
            run(handle)
            if self._made:
                return
            gc_s = self._gc_s - gc_s
            self.longest_s = max(self.longest_s, time.perf_counter() - begun_s - gc_s)
            self.longest_cpu_s = max(self.longest_cpu_s, time.thread_time() - begun_cpu_s - gc_s)

        asyncio.Handle._run = timed  # type: ignore[method-assign, assignment]


async def held_up_s(work: Any) -> float:
    """The longest time for which the loop could not run a timer while `work` was done, seconds."""
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


async def begin_together(make: Callable[[], list[Any]], steps: Steps) -> None:
    """Start all of these coroutines at once, each as a task, and wait for them."""
    steps.leave_out()
    await asyncio.gather(*map(asyncio.create_task, make()))


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
    """Measure and print all figures; returns 1 if a goal was missed."""
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
    bare = asyncio.run(held_up_s(begin_together(lambda: [yields() for _ in range(many)], steps)))
    steps.watch()
    profile = cProfile.Profile()

    async def together() -> float:
        def calls() -> list[Any]:
            return [call(nothing, "nothing", (number,), lane="free", cache_enabled=False) for number in range(many)]

        return await held_up_s(begin_together(calls, steps))

    before, cpu_s, begun_s = by_thread(), time.process_time(), time.perf_counter()
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
    print(
        f"  the longest by processor time of its thread: {steps.longest_cpu_s * 1000:.1f} ms; the longest garbage "
        f"collection, which is not counted: {steps.longest_gc_s * 1000:.0f} ms"
    )
    missed.append(beside("CPU a call, coroutines", cpu_s / many * 1000, CPU_MS, "ms"))
    print(shares(before, many))
    if told.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(40)

    with ThreadPoolExecutor(THREADS) as pool:
        before, cpu_s, begun_s = by_thread(), time.process_time(), time.perf_counter()
        made = pool.map(lambda n: call(plain, "plain", (n,), lane="free", cache_enabled=False), range(told.calls))
        assert sum(made) == sum(range(told.calls))
        cpu_s, took_s = time.process_time() - cpu_s, time.perf_counter() - begun_s
        of_threads = shares(before, told.calls)
    missed.append(beside(f"{THREADS} threads", told.calls / took_s, THREADS_PER_S, "calls/s", least=True))
    missed.append(beside("CPU a call, threads", cpu_s / told.calls * 1000, CPU_MS, "ms"))
    print(of_threads)

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
