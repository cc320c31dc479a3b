"""How do calls that hang affect other lanes? Eight of lane A on a worker's eight slots, then calls of lane B.

    nice -n 19 python benchmarks/hung.py [--pools threads,gevent]

Each line: B's time alone, and with A's hung calls, as medians of `--rounds`. B's calls are sent when A has all slots.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.policy import timeout
from ratelimit_worker.stores.usage import LATENCIES_REFRESH_S
from ratelimit_worker.wiring import services
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

SLOTS, WAIT_S = 8, 120.0


def b_s(tasks: object, calls: int, each_s: float) -> float:
    """Seconds that so many calls of lane B take."""
    began = time.monotonic()
    for result in [tasks.good.delay(n, each_s) for n in range(calls)]:  # type: ignore[attr-defined]
        result.get(timeout=WAIT_S)
    return time.monotonic() - began


def beside_s(made: Fleet, tasks: object, b: tuple[int, float], lane: str, backlog: int, after_s: float) -> float:
    """The same while calls of lane A hang; these are ended afterwards."""
    seen = len(made.stamps("hung"))
    hung = [tasks.hang.apply_async((n, lane), lane=lane) for n in range(SLOTS + backlog)]  # type: ignore[attr-defined]
    wait_for(lambda: len(made.stamps("hung")) - seen >= SLOTS, WAIT_S, made.logs)
    time.sleep(after_s)
    took_s = b_s(tasks, *b)
    (made.folder / lane).touch()
    for result in hung:
        result.get(timeout=WAIT_S)
    return took_s


def answered(tasks: object, lane: str, each_s: float) -> None:
    """Let lane A answer some calls at this latency, until the worker has learned it."""
    for result in [tasks.hang.apply_async((n, "never", each_s), lane=lane) for n in range(32)]:  # type: ignore[attr-defined]
        result.get(timeout=WAIT_S)
    key = timeout.key("tests.slots_app.hang", None, lane)
    wait_for(lambda: timeout.p99_s(services().latencies.everything().get(key)) is not None, WAIT_S)
    time.sleep(LATENCIES_REFRESH_S + 1)  # until the worker has read it too


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pools", default="threads,gevent")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(
        "| pool | lane B | A's latency before, s | backlog of A | B comes after, s | alone, s | beside 8 hung, s | × |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for pool in options.pools.split(","):
        with fleet() as made:
            tasks = importlib.reload(importlib.import_module("tests.slots_app"))
            for lane in ("hung", "good"):
                services().lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True)))
            arguments = ("-P", pool, "-c", str(SLOTS))
            made.workers.append(Worker("w", made.folder, made.env, arguments, app="tests.slots_app"))
            made.workers[-1].wait_ready()
            b_s(tasks, SLOTS, 0.1)
            for b in ((8, 1.0), (24, 1.0), (80, 0.2)):
                alone_s = statistics.median(b_s(tasks, *b) for _ in range(options.rounds))
                for known_s, backlog, after_s in (
                    (0.0, 0, 0.0),
                    (0.0, 50, 1.0),
                    (0.3, 50, 1.0),
                    (3.0, 0, 0.0),
                    (3.0, 50, 5.0),
                ):
                    took: list[float] = []
                    for _ in range(options.rounds):
                        lane = f"hung-{b[0]}-{known_s}-{backlog}-{after_s}-{len(took)}"
                        services().lanes.set_points(lane, limit_fields(LaneLimits(unlimited=True)))
                        if known_s:
                            answered(tasks, lane, known_s)
                        took.append(beside_s(made, tasks, b, lane, backlog, after_s))
                    beside = statistics.median(took)
                    cells = (
                        pool,
                        f"{b[0]} × {b[1]} s",
                        f"{known_s or '–'}",
                        backlog,
                        after_s,
                        f"{alone_s:.2f}",
                        f"{beside:.2f}",
                    )
                    print(f"| {' | '.join(map(str, cells))} | {beside / alone_s:.2f} |", flush=True)
    print(f"load average at the end: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
