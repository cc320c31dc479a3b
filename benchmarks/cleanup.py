"""How does a clean-up of SQLite affect others that write and read meanwhile? Size of the log, and time of writes.

    python benchmarks/cleanup.py [rows]      (200,000 by default: some 75 MB)

One process records a batch of 20 outcomes 20 times a second, another reads all the time in transactions of 20 ms, and a
third deletes all older rows. Goals: a write-ahead log of at most 64 MB, and 99 % of the writes within 100 ms.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import uuid
from multiprocessing.synchronize import Event
from pathlib import Path

from sqlalchemy import text

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from ratelimit_worker.calls import Attempt, Outcome  # noqa: E402
from ratelimit_worker.stores.sqlite_log import MB, log_size  # noqa: E402
from ratelimit_worker.stores.tracker import Tracker, engine_for  # noqa: E402

MOST_LOG_MB = 64.0
MOST_P99_MS = 100.0
BATCH = 20
EVERY_S = 0.05


def outcome(finished_at: float) -> Attempt:
    """A call that was answered."""
    return Attempt(
        call_id=str(uuid.uuid4()),
        number=1,
        lane="openai:gpt-4o",
        task="tasks.llm.generate",
        outcome=Outcome.ANSWERED,
        started_at=finished_at - 1.5,
        finished_at=finished_at,
        waited_s=0.5,
        queue="celery",
        provider="openai",
        model="gpt-4o",
        status=200,
        input_tokens=140,
        output_tokens=12,
        worker="w1@host",
    )


def write(url: str, ends: Event, told: multiprocessing.Queue[list[float]]) -> None:
    """Record batches until `ends` is set, then put how long each took, in seconds, into `told`."""
    tracker, took_s = Tracker(engine_for(url)), list[float]()
    while not ends.is_set():
        rows = [outcome(time.time()) for _ in range(BATCH)]
        begun_s = time.monotonic()
        tracker.record(rows)
        took_s.append(time.monotonic() - begun_s)
        time.sleep(EVERY_S)
    told.put(took_s)


def read(url: str, ends: Event) -> None:
    """Count rows, in transactions that overlap the writer's."""
    engine = engine_for(url)
    while not ends.is_set():
        with engine.begin() as connection:
            connection.exec_driver_sql("BEGIN")
            connection.execute(text("SELECT count(*) FROM (SELECT 1 FROM attempts LIMIT 1000)")).scalar_one()
            time.sleep(0.02)


def purge(url: str, told: multiprocessing.Queue[int]) -> None:
    """Delete what is older than a day."""
    told.put(Tracker(engine_for(url)).purge(86_400.0))


def main(rows: int = 200_000) -> int:
    """Run it once; 1: a goal was missed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tracking.db"
        url = f"sqlite:///{path}"
        tracker, old_s = Tracker(engine_for(url)), time.time() - 7 * 86_400.0
        for first in range(0, rows, 5_000):
            tracker.record([outcome(old_s + number / 100) for number in range(first, first + 5_000)])
        tracker._engine.dispose()
        print(f"{rows:,} rows, {path.stat().st_size / MB:.0f} MB", flush=True)
        ends = multiprocessing.Event()
        took: multiprocessing.Queue[list[float]] = multiprocessing.Queue()
        deleted: multiprocessing.Queue[int] = multiprocessing.Queue()
        others = [
            multiprocessing.Process(target=write, args=(url, ends, took)),
            multiprocessing.Process(target=read, args=(url, ends)),
        ]
        for process in others:
            process.start()
        time.sleep(2.0)
        cleaner = multiprocessing.Process(target=purge, args=(url, deleted))
        begun_s, most = time.monotonic(), 0
        cleaner.start()
        while cleaner.is_alive():
            most = max(most, log_size(path))
            time.sleep(0.01)
        seconds = time.monotonic() - begun_s
        ends.set()
        waits = sorted(took.get())
        for process in others:
            process.join()
        p99_ms, log_mb = waits[int(len(waits) * 0.99)] * 1000, most / MB
        print(f"deleted {deleted.get():,} rows in {seconds:.1f} s; load average {os.getloadavg()[0]:.1f}")
        print(
            f"a write of {BATCH} rows: p50 {waits[len(waits) // 2] * 1000:.1f} ms, most {waits[-1] * 1000:.1f} ms, "
            f"{len(waits)} of them"
        )
    missed = [
        beside("the log, at its largest", log_mb, MOST_LOG_MB, "MB"),
        beside("a write, p99", p99_ms, MOST_P99_MS, "ms"),
    ]
    return int(any(missed))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main(*map(int, sys.argv[1:])))
