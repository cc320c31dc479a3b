"""What does `.delay()` spend its microseconds on, compared with plain Celery?

    python benchmarks/producer.py [--calls 3000] [--profile]

One caller, one server, no worker. Calls of each kind are made in turn, some at a time, so that other load on the
machine affects all kinds equally. Figures of a call are counts if possible: function calls (of Python and C), bytes
that the server gets, its commands. Of processor time (user and system of the caller; the server's commands) the
smallest value of all turns is printed, since other processes can only add to it. `--profile` prints the functions that
take most of it. Goal: `.delay()` takes at most 1.15 times what plain Celery's takes (its processor time here;
`overhead` measures it by the clock). Exit code 1: it is missed.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from celery import Celery  # noqa: E402

from benchmarks.goals import beside  # noqa: E402
from ratelimit_worker import install, llm_task  # noqa: E402
from ratelimit_worker.config import read_settings  # noqa: E402
from tests.fleet import Valkey  # noqa: E402

MOST = 1.15  #: goal, as a multiple of plain Celery's
PLAIN = "plain Celery"
AT_ONCE = 50  #: calls of one kind in a turn


class Stage:
    """The calls that are made."""

    def __init__(self, valkey: Valkey) -> None:
        self.client = valkey.client
        ours = install(Celery("ours", broker=valkey.url, backend=valkey.url), read_settings())
        plain = Celery("plain", broker=valkey.url, backend=valkey.url)
        plain.conf.task_default_queue = "plain"

        @llm_task(app=ours, shared=False, name="alone", lane="bench", cache=False)
        def alone(what: Any) -> Any:
            return what

        @llm_task(app=ours, shared=False, name="shares", lane="bench")
        def shares(what: Any) -> Any:
            return what

        @plain.task(shared=False, name="plain")
        def ordinary(what: Any) -> Any:
            return what

        self.kinds: dict[str, Callable[[Any], Any]] = {
            PLAIN: ordinary.delay,
            "cache=False": alone.delay,
            "shares answers": shares.delay,
        }
        self.number = 0
        for make in self.kinds.values():
            self.make(make, 20)

    def make(self, delay: Callable[[Any], Any], calls: int) -> None:
        """Make so many calls, each with a new argument."""
        for _ in range(calls):
            self.number += 1
            delay(self.number)

    def counts(self) -> dict[str, float]:
        """What the server and this process have done so far."""
        told: Any = self.client.info("all")
        commands = {name[8:]: one for name, one in told.items() if name.startswith("cmdstat_")}
        # LPUSH is plain Celery's. Our scripts use it only if there is a worker.
        asked = [commands[name] for name in ("fcall", "lpush") if name in commands]
        return {
            "bytes to the server": told["total_net_input_bytes"],
            "commands": sum(one["calls"] for name, one in commands.items() if name != "info"),
            "exchanges that are waited for": sum(one["calls"] for one in asked),
            "µs of the server's commands": sum(one["usec"] for one in asked),
            "µs of processor time": time.process_time() * 1e6,
        }


def function_calls(stage: Stage, delay: Callable[[Any], Any]) -> float:
    """How many functions of Python and C one `.delay()` calls."""
    seen = 0

    def see(_: Any, event: str, __: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        stage.make(delay, 50)
    finally:
        sys.setprofile(None)
    return seen / 50


def measured(stage: Stage, calls: int) -> dict[str, dict[str, float]]:
    """For each kind of call the median of each count, and the smallest value of each time."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in stage.kinds}
    for _ in range(max(1, calls // AT_ONCE)):
        for name, delay in stage.kinds.items():
            gc.collect()
            before = stage.counts()
            stage.make(delay, AT_ONCE)
            after = stage.counts()
            figures[name].append({one: (after[one] - before[one]) / AT_ONCE for one in before})
    found = {
        name: {one: (min if "µs" in one else statistics.median)([each[one] for each in some]) for one in some[0]}
        for name, some in figures.items()
    }
    for name, delay in stage.kinds.items():
        found[name]["function calls"] = function_calls(stage, delay)
    return found


def profiled(stage: Stage, calls: int) -> None:
    """Print the functions that take most time, for each kind of call."""
    for name, delay in stage.kinds.items():
        profile = cProfile.Profile(time.process_time)  # without the waits for the server
        profile.runcall(stage.make, delay, calls)
        print(f"\n{name}: {calls:,} calls")
        pstats.Stats(profile).sort_stats("cumulative").print_stats(70)
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


def main() -> int:
    """Run it; 1: the goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--profile", action="store_true")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlw-producer-") as folder:
        valkey = Valkey(Path(folder))
        valkey.start()
        os.environ |= {
            "MAISD_REDIS_URL": valkey.url,
            "MAISD_STATE_DIR": folder,
            "MAISD_LANES": '{"bench": {"unlimited": true}}',
        }
        try:
            stage = Stage(valkey)
            print(f"load average {os.getloadavg()[0]:.1f}")
            found = measured(stage, told.calls)
            if told.profile:
                profiled(stage, told.calls)
        finally:
            valkey.stop()
    print("| a `.delay()` | " + " | ".join(found) + " |\n|---" * 1 + "|---" * len(found) + "|")
    for figure in found[PLAIN]:
        print(f"| {figure} | " + " | ".join(f"{one[figure]:.1f}" for one in found.values()) + " |")
    plain_us = found[PLAIN]["µs of processor time"]
    missed = [
        beside(f"processor time, {name}", one["µs of processor time"] / plain_us, MOST, "× plain Celery's")
        for name, one in found.items()
        if name != PLAIN
    ]
    return int(any(missed))


if __name__ == "__main__":
    sys.exit(main())
