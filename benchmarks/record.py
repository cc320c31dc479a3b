"""What do roll-ups cost, and how fast are reports with them? `python -m benchmarks.record [--attempts 1000000]`.

Writes attempts of 30 days into a new database (SQLite in a temporary folder; `--postgres`: a PostgreSQL that is started
for it; `--url postgresql://…`: an empty database there), in batches as the recorder does, and what lanes were allowed
to send in each minute. Then it reads figures, requests Flower's pages and cleans up. Each figure is printed with its
goal. Speed is processor time (user + system) of the measured process (recorder, command or Flower; not a database
server), so that other load matters little. Delays are by the clock.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx

from ratelimit_worker.calls import Attempt, Category, LaneLimits, Mode, Outcome
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.tracker import Tracker, engine_for
from tests.conftest import PostgresServer, binaries
from tests.faces.test_flower import flower
from tests.fleet import fleet

BATCH, DAY_S = 1_000, 86_400.0
GOAL_ROWS_PER_S, GOAL_TIMES, GOAL_STATS_S, GOAL_ANALYTICS_S, GOAL_DELAY_S = 5_000, 10, 0.3, 3.0, 0.5
GOAL_PAGE_S = 0.5
PAGES = {  #: what a browser asks for to show a page of Flower's
    "lanes": ("/rate-limit", "/rate-limit/live"),
    "figures of an hour": ("/rate-limit/figures", "/rate-limit/figures/live"),
    "figures of a day": ("/rate-limit/figures?window=24h",),
    "figures of a lane's day": ("/rate-limit/figures?window=24h&lane=openai:model-1",),
    "calls": ("/rate-limit/calls",),
}
RUNS = 5  #: of each command
#: What a command is given to show nothing: its start-up, without reading or judging what was recorded.
OF_NOBODY = ("--lane", "openai:nobody")
LOOKS, FRESH_S = 4, 1.2  #: requests of each page, and the pause between them; Flower caches for a second or more


def attempts(mark: str, count: int, now_s: float, days: float) -> Iterator[list[Attempt]]:
    """Batches of attempts, oldest first: 3 lanes, 5 functions, 2 tenants, 30 series in all; one call in ten fails
    once first."""
    drawn, batch = random.Random(11), list[Attempt]()
    for number in range(count):
        at_s = now_s - days * DAY_S * (1 - number / count)
        again = number % 10 == 1
        failed = number % 10 == 0
        took_s = drawn.lognormvariate(0.5, 0.7)
        kind = number // 10 % 6
        batch.append(
            Attempt(
                call_id=f"{mark}{number - again:032x}",
                number=2 if again else 1,
                lane=f"openai:model-{kind % 3}",
                task=f"app.function_{number // 60 % 5}",
                context="code" if kind % 2 else "chat",
                tenant=f"team-{kind // 3}",
                outcome=Outcome.RETRIED if failed else Outcome.ANSWERED,
                category=Category.SERVER_ERROR if failed else None,
                started_at=at_s - took_s,
                finished_at=at_s,
                waited_s=drawn.expovariate(0.5),
                queue="celery",
                provider="openai",
                model=f"model-{kind % 3}",
                input_tokens=None if failed else drawn.randrange(2_000),
                output_tokens=None if failed else drawn.randrange(1, 500),
                worker="w@host",
            )
        )
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def told(what: str, figure: float, unit: str, goal: float, *, at_least: bool = False) -> None:
    """Print a figure, its goal and whether that is kept."""
    kept = figure >= goal if at_least else figure <= goal
    sign = "≥" if at_least else "≤"
    print(f"{what:<58}{figure:>10,.2f} {unit:<7} goal {sign} {goal:,.2f}  {'kept' if kept else 'MISSED'}", flush=True)


def write(tracker: Tracker, mark: str, count: int, now_s: float, days: float) -> float:
    """Record attempts; returns rows a second of processor time, without the time to make them."""
    spent, rows = 0.0, 0
    for batch in attempts(mark, count, now_s, days):
        began = time.process_time()
        rows += tracker.record(batch)
        spent += time.process_time() - began
    return rows / spent


def sample(tracker: Tracker, now_s: float, days: float) -> int:
    """Write what three lanes were allowed in each minute; returns the number of rows."""
    first = int(now_s - days * DAY_S) // 60
    for begin in range(first, int(now_s) // 60, 2_000):
        tracker.keep_samples(
            [
                LaneSample(
                    lane=f"openai:model-{lane}",
                    at_s=60 * minute,
                    allowed_per_min=60.0,
                    waiting=minute % 7,
                    running=3,
                    mode=Mode.NORMAL,
                )
                for minute in range(begin, min(begin + 2_000, int(now_s) // 60))
                for lane in range(3)
            ]
        )
    return 3 * (int(now_s) // 60 - first)


def children() -> set[int]:
    """Ids of the child processes that are alive."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


def used_s(pid: int) -> float:
    """Processor time of a process so far, user + system, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pages(url: str, folder: Path) -> Iterator[tuple[str, float, float]]:
    """Flower's pages with that database: name, processor time of Flower, and time by the clock; the largest of some
    requests, in seconds."""
    with fleet(MAISD_DATABASE_URL=url) as made:
        for number in range(3):
            Lanes(made.valkey.client).establish(f"openai:model-{number}", limit_fields(LaneLimits(rpm=60)))
        before, login = children(), ("me", "secret")
        env = {**made.env, "MAISD_DATABASE_URL": url}
        with flower(env, folder / "flower.log", "--basic-auth", ":".join(login)) as address:
            (pid,) = children() - before
            httpx.get(f"{address}/rate-limit", timeout=60.0, trust_env=False, auth=login)  # imports what all need
            for name, paths in PAGES.items():
                spent, took = list[float](), list[float]()
                for _ in range(LOOKS):
                    began, used = time.monotonic(), used_s(pid)
                    for path in paths:
                        got = httpx.get(f"{address}{path}", timeout=60.0, trust_env=False, auth=login)
                        got.raise_for_status()
                    spent.append(used_s(pid) - used)
                    took.append(time.monotonic() - began)
                    time.sleep(FRESH_S)
                yield name, max(spent), max(took)


def one_by_one(tracker: Tracker, now_s: float) -> float:
    """Record attempts one by one, each with its own commit; returns rows a second of processor time."""
    few = [one for batch in attempts("one", 1_000, now_s, 0.01) for one in batch]
    began = time.process_time()
    for number, one in enumerate(few):
        tracker.record([replace(one, call_id=f"one-{number}", number=1)])
    return len(few) / (time.process_time() - began)


def commands_s(url: str, state: Path, *commands: tuple[str, ...]) -> list[float]:
    """Processor time of each command, seconds: the smallest of some runs, in turn so that a busy time meets all."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAISD_", "CELERY_"))}
    env |= {"MAISD_DATABASE_URL": url, "MAISD_STATE_DIR": str(state), "MAISD_REDIS_URL": "redis://127.0.0.1:1/0"}
    least = [math.inf] * len(commands)
    for _ in range(RUNS):
        for number, words in enumerate(commands):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            argv = [sys.executable, "-m", "ratelimit_worker", *words]
            subprocess.run(argv, env=env, check=False, capture_output=True, timeout=600)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            least[number] = min(least[number], spent_s)
    return least


def longest_delay_s(write_one: Callable[[int], object], clean: Callable[[], object]) -> tuple[float, float]:
    """The longest write while a clean-up runs, and how long the clean-up takes; seconds by the clock."""
    over, longest = threading.Event(), [0.0]

    def writes() -> None:
        number = 0
        while not over.is_set():
            began = time.monotonic()
            write_one(number)
            longest[0] = max(longest[0], time.monotonic() - began)
            number += 1
            time.sleep(0.05)

    writer = threading.Thread(target=writes)
    writer.start()
    began = time.monotonic()
    clean()
    took_s = time.monotonic() - began
    over.set()
    writer.join()
    return longest[0], took_s


def main() -> None:
    """Measure, and print each figure with its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attempts", type=int, default=1_000_000)
    parser.add_argument("--days", type=float, default=30.0)
    parser.add_argument("--url", help="of an empty database; default: SQLite in a temporary folder")
    parser.add_argument("--postgres", action="store_true", help="a PostgreSQL that is started for it")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlw-record-") as folder, database(wanted, Path(folder)) as url:
        measure(wanted, url, folder)


@contextmanager
def database(wanted: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if not wanted.postgres:
        yield wanted.url or f"sqlite:///{folder}/tracking.db"
        return
    found = binaries()
    if found is None:
        raise SystemExit("PostgreSQL is not installed here")
    with tempfile.TemporaryDirectory(prefix="rlw-pg-") as place:
        server = PostgresServer(found, Path(place))
        server.start()
        try:
            yield server.new_database()
        finally:
            server.stop()


def measure(wanted: argparse.Namespace, url: str, folder: str) -> None:
    """All figures of one database."""
    tracker, now_s = Tracker(engine_for(url)), time.time()
    tracker.open()
    print(f"{wanted.attempts:,} attempts of {wanted.days:g} days; load {os.getloadavg()[0]:.1f}")
    singly = one_by_one(tracker, now_s)
    busy = write(Tracker(engine_for(url)), "busy", min(50_000, wanted.attempts), now_s, 50_000 / 86_400_000)
    told("recorder, busy: rows a second of processor time", busy, "rows", GOAL_ROWS_PER_S, at_least=True)
    told("... of those with one row a commit", busy / singly, "times", GOAL_TIMES, at_least=True)
    sparse = write(tracker, "", wanted.attempts, now_s - 60, wanted.days)
    told("recorder, a minute's calls spread over all series", sparse, "rows", GOAL_ROWS_PER_S, at_least=True)
    state = Path(folder)
    began = time.process_time()
    rows = sample(tracker, now_s, min(wanted.days, 30.0))
    print(f"{f'{rows:,} rows of what lanes were allowed':<58}{time.process_time() - began:>10.2f} s")
    start, hour, no_month, month, no_page, page = commands_s(
        url,
        state,
        ("stats", "--window", "1h", *OF_NOBODY),
        ("stats", "--window", "1h"),
        ("analytics", "--since", "30d", "-o", str(state / "none.json"), *OF_NOBODY),
        ("analytics", "--since", "30d", "-o", str(state / "report.json")),
        ("analytics", "--since", "30d", "-o", str(state / "none.html"), *OF_NOBODY),
        ("analytics", "--since", "30d", "-o", str(state / "report.html")),
    )
    print(f"{'stats of a lane without calls: start-up':<58}{start:>10.2f} s")
    told("stats --window 1h, beyond that", hour - start, "s", GOAL_STATS_S)
    told("analytics --since 30d, beyond its start-up", month - no_month, "s", GOAL_ANALYTICS_S)
    told("... as a page", page - no_page, "s", GOAL_ANALYTICS_S)
    for name, cpu_s, clock_s in pages(url, state):
        told(f"Flower: {name} ({clock_s:.2f} s by the clock)", cpu_s, "s", GOAL_PAGE_S)
    one = next(attempts("late", 1, now_s, 0.01))[0]
    delay_s, took_s = longest_delay_s(
        lambda number: tracker.record([replace(one, call_id=f"late-{number}")]),
        lambda: Tracker(engine_for(url)).purge(wanted.days / 2 * DAY_S, now_s),
    )
    print(f"{'clean-up of half of them':<58}{took_s:>10.2f} s")
    told("longest write while it runs", delay_s, "s", GOAL_DELAY_S)


if __name__ == "__main__":
    main()
