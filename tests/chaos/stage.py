"""The cluster that a fault happens to: a real Valkey, workers as processes, the simulated provider, a database.

Whoever breaks something here also tells the judge what may follow from it: a worker that was killed is no worker that
ended by itself, and what it had in flight may be asked again.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import redis
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.simulate import Scenario, Simulator
from tests.chaos.verdict import FINAL, Asked, Evidence, Heard, Row
from tests.conftest import PostgresServer, wait_for
from tests.fleet import Fleet, Worker, fleet

RATE = 50.0  #: calls a second of the lane that is watched
LANES = f'{{"ask": {{"rpm": {RATE * 60:.0f}}}, "probe": {{"unlimited": true}}, "poison": {{"unlimited": true}}, \
"raises": {{"unlimited": true}}, "other": {{"unlimited": true}}, "flood": {{"rpm": 300}}}}'
READY = frozenset({"SUCCESS", "FAILURE", "REVOKED"})


class Stage:
    """What a fault may break, and what it looks at."""

    def __init__(self, made: Fleet, provider: Simulator, database: str) -> None:
        self.made, self.provider, self.database = made, provider, database
        self.redis = made.valkey
        self.tasks: ModuleType = importlib.reload(importlib.import_module("tests.chaos.app"))
        self.slots: dict[str, int] = {}  #: worker -> slots
        self.ended: set[str] = set()  #: workers that somebody ended
        self.excused: list[tuple[float, float]] = []
        self.sent: dict[str, str] = {}  #: call id -> text
        self.heard: dict[str, Heard] = {}
        self.refused: Counter[str] = Counter()
        self.slowest_delay_s = 0.0
        self.healed_at = 0.0
        self.notes: list[str] = []
        self.used = 0
        self.postgres: PostgresServer | None = None  #: where the fault is its own

    # ---- Workers ----------------------------------------------------------------------------------------------------

    def workers(self, count: int = 2, slots: int = 8, pool: str = "threads", **env: str) -> list[Worker]:
        """Start so many more, and wait until they consume."""
        started = []
        for _ in range(count):
            name = f"w{len(self.made.workers)}"
            options = ("-P", pool, "-c", str(slots))
            worker = Worker(name, self.made.folder, {**self.made.env, **env}, options, app="tests.chaos.app")
            self.made.workers.append(worker)
            self.slots[name] = slots
            started.append(worker)
        for worker in started:
            worker.wait_ready(240.0)
        return started

    def worker(self, number: int = 0) -> Worker:
        """One of those that were started."""
        return self.made.workers[number]

    def kill(self, worker: Worker) -> None:
        """SIGKILL, children too."""
        self.ended.add(worker.name)
        self.excuse()
        worker.kill()

    def signal(self, worker: Worker, number: int) -> None:
        """A signal that ends it, to the worker alone."""
        self.ended.add(worker.name)
        os.kill(worker.process.pid, number)

    def children(self, worker: Worker) -> list[int]:
        """Processes of its pool."""
        found = Path(f"/proc/{worker.process.pid}/task/{worker.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def holder(self, duty: str) -> Worker:
        """The worker that performs a duty."""
        key = f"rlw:duty:{duty}"
        wait_for(lambda: self.redis.client.get(key), what=f"somebody holds {key}")
        name = str(self.redis.client.get(key).decode())  # type: ignore[union-attr]
        return next(worker for worker in self.made.workers if f"/{worker.process.pid}-" in name)

    def excuse(self, since_s: float | None = None) -> None:
        """What is in flight now (or was since then) may be asked again."""
        now_s = time.time()
        self.excused.append((now_s if since_s is None else since_s, now_s))

    # ---- Calls ------------------------------------------------------------------------------------------------------

    def send(self, what: str, make: Callable[[str], Any]) -> None:
        """Make one call, and note how that went."""
        began_s = time.monotonic()
        try:
            self.sent[make(what).id] = what
        except (RateLimitWorkerError, redis.RedisError, RuntimeError, OSError) as error:
            self.refused[type(error).__name__] += 1
        finally:
            self.slowest_delay_s = max(self.slowest_delay_s, time.monotonic() - began_s)

    def listen(self) -> bool:
        """Note which calls have ended since → whether all have."""
        for call_id, what in tuple(self.sent.items()):  # the load may still be adding to it
            if call_id not in self.heard:
                try:
                    self._hear(call_id, what)
                except (redis.RedisError, OSError):
                    return False
        return len(self.heard) == len(self.sent)

    def _hear(self, call_id: str, what: str) -> None:
        result = self.tasks.app.AsyncResult(call_id)
        meta = result._get_task_meta()
        if meta["status"] not in READY:
            return
        if meta["status"] == "SUCCESS":
            right = meta["result"] == what
            self.heard[call_id] = Heard(what, "answered" if right else "wrong answer")
        else:
            self.heard[call_id] = Heard(what, type(meta["result"]).__name__)

    def hear_the_rest(self, timeout_s: float) -> None:
        """A caller that waits may hear what nobody has stored: ask as one, for each that has not ended."""
        until_s = time.monotonic() + timeout_s
        for call_id, what in self.sent.items():
            if call_id in self.heard:
                continue
            result = self.tasks.ask.AsyncResult(call_id)
            try:
                value = result.get(timeout=max(0.1, until_s - time.monotonic()))
                self.heard[call_id] = Heard(what, "answered" if value == what else "wrong answer")
            except Exception as error:
                if type(error).__name__ != "TimeoutError":
                    self.heard[call_id] = Heard(what, type(error).__name__)

    # ---- What was seen ----------------------------------------------------------------------------------------------

    def asked(self) -> list[Asked]:
        """Every request so far."""
        log = self.provider.log()
        delivered = {arrival.n for arrival in log.delivered()}
        return [
            Asked(arrival.identity, arrival.unix, arrival.latency_s, arrival.n in delivered) for arrival in log.arrivals
        ]

    def rows(self) -> list[Row]:
        """Every attempt that the database has; none while it is away."""
        engine = create_engine(self.database.replace("postgresql://", "postgresql+psycopg://"))
        try:
            with engine.connect() as connection:
                found = connection.execute(text("select call_id, number, outcome from attempts")).all()
        except SQLAlchemyError:
            return []
        finally:
            engine.dispose()
        return [Row(*row) for row in found]

    def recorded(self) -> bool:
        """Whether each call that ended has its last row."""
        return set(self.heard) <= {row.call_id for row in self.rows() if row.outcome in FINAL}

    def use_all_slots(self, timeout_s: float) -> None:
        """How many slots of the living workers take a call at once."""
        wanted = sum(self.slots[worker.name] for worker in self.living())
        held = self.made.folder / "held"
        for number in range(wanted):
            self.send(f"{number}", lambda text: self.tasks.hold.delay(int(text)))

        def count() -> int:
            return len(held.read_text().splitlines()) if held.exists() else 0

        until_s = time.monotonic() + timeout_s
        while count() < wanted and time.monotonic() < until_s:
            time.sleep(0.05)
        self.used = count()
        (self.made.folder / "let-go").touch()
        for call_id, what in [*self.sent.items()][-wanted:]:
            del self.sent[call_id]  # no part of what is judged
            self.heard.pop(call_id, what)

    def living(self) -> list[Worker]:
        """Workers that run, and that nobody has asked to end."""
        return [one for one in self.made.workers if one.name not in self.ended and one.process.poll() is None]

    def evidence(self, paced: bool) -> Evidence:
        """All of it."""
        asked = self.asked()
        died = [w.name for w in self.made.workers if w.name not in self.ended and w.process.poll() is not None]
        return Evidence(
            accepted=dict(self.sent),
            heard=dict(self.heard),
            refused=dict(self.refused),
            asked=asked,
            rows=self.rows(),
            excused=tuple(self.excused),
            slots=sum(self.slots[worker.name] for worker in self.living()),
            slots_used=self.used,
            died=died,
            slowest_delay_s=self.slowest_delay_s,
            recovered_s=self.recovered_s(asked),
            rate=RATE if paced else None,
            notes=tuple(self.notes),
        )

    def recovered_s(self, asked: list[Asked]) -> float | None:
        """From healed to the first good answer after it."""
        later = [one.at_s + one.latency_s - self.healed_at for one in asked if one.good and one.at_s > self.healed_at]
        return max(0.0, min(later)) if later else None


@contextmanager
def stage(scenario: Scenario, database: str | None, env: Mapping[str, str], **options: Any) -> Iterator[Stage]:
    """A stage with its broker and provider running, and no worker yet.

    Args:
        database: Its URL; None: SQLite in the stage's folder.
    """
    with ExitStack() as opened:
        provider = opened.enter_context(Simulator(scenario))
        more = {"OPENAI_BASE_URL": provider.base_url, "MAISD_LANES": LANES, **env}
        if database is not None:
            more["MAISD_DATABASE_URL"] = database
        made = opened.enter_context(fleet(**more))
        yield Stage(made, provider, database or f"sqlite:///{made.folder}/state/tracking.sqlite3")


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system that is soon full.

    Raises:
        OSError: this machine lets nobody mount one.
    """
    folder = Path(f"/tmp/rlw-disk-{os.getpid()}-{time.monotonic_ns()}")
    folder.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode != 0:
            raise OSError(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pids_of_group(worker: Worker) -> list[int]:
    """Every process of a worker's session; it is its own leader."""
    group = worker.process.pid
    return [int(one.name) for one in Path("/proc").glob("[0-9]*") if _group_of(one) == group]


def _group_of(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return -1
