"""What does `.delay()` cost if no request is made: for a kept answer, and for a call that is refused?

    python benchmarks/cache_hit.py [--rounds 400] [--lanes 10000]

One caller, a server with an AOF, no worker. Each round makes one call of each kind, in turn, so that other load on the
machine affects all kinds equally; medians are printed. First with no other lane, then with `--lanes` others. What a hit
sends to Redis is counted. Goals: a hit takes at most 0.6 ms, one script and no other exchange, and opens no connection;
a refusal takes at most 1.2 times as long as a call that goes into its lane; a hit with its `.get()` at most 1.5 times
as long as `.delay()` of plain Celery; reading how many calls wait on a queue at most 0.5 ms.
"""

from __future__ import annotations

import argparse
import os
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
from msgspec import structs  # noqa: E402

from benchmarks.goals import beside  # noqa: E402
from ratelimit_worker import CallTask, install, llm_task  # noqa: E402
from ratelimit_worker.config import read_settings  # noqa: E402
from ratelimit_worker.contracts.lesson import Settlement  # noqa: E402
from ratelimit_worker.errors import BadInput, LaneFull, LaneShedding  # noqa: E402
from ratelimit_worker.stores import keys  # noqa: E402
from ratelimit_worker.stores.lanes import Lanes  # noqa: E402
from tests.fleet import Valkey  # noqa: E402
from tests.lua.cluster import said  # noqa: E402

MOST_HIT_MS, MOST_REFUSAL, MOST_GET, MOST_SIZE_MS = 0.6, 1.2, 1.5, 0.5
COUNTED = 100


class Bounded(CallTask):
    """A task whose lane holds two calls."""

    abstract = True

    def plan(self, *args: Any, **kwargs: Any) -> Any:
        """The plan of any task, with that bound."""
        return structs.replace(super().plan(*args, **kwargs), max_waiting=2)


class Stage:
    """The calls that are made."""

    def __init__(self, valkey: Valkey) -> None:
        self.client, self.lanes = valkey.client, Lanes(valkey.client)
        app = install(Celery("ours", broker=valkey.url, backend=valkey.url), read_settings())
        plain = Celery("plain", broker=valkey.url, backend=valkey.url)
        plain.conf.task_default_queue = "plain"
        self.number = 0

        @llm_task(app=app, shared=False, name="ask", lane="ask")
        def ask(what: Any) -> Any:
            return what

        @llm_task(app=app, shared=False, name="bounded", lane="full", base=Bounded)
        def bounded(what: Any) -> Any:
            return what

        @llm_task(app=app, shared=False, name="shed", lane="ill", shed_below="high")
        def shed(what: Any) -> Any:
            return what

        @plain.task(shared=False, name="plain")
        def ordinary(what: Any) -> Any:
            return what

        self.ask, self.bounded, self.shed, self.ordinary = ask, bounded, shed, ordinary
        self._prepare()

    def _prepare(self) -> None:
        ask, lanes = self.ask, self.lanes
        lanes.beat("w", 1, 3600.0, ["celery"], 3600.0, [])
        ask.delay("known")
        ledger: Any = self.client.zrange(keys.LEDGER, 0, -1)
        tag = ledger[0].decode()
        lanes.begin(tag, 60.0)
        lanes.settle(
            Settlement(tag=tag, lane="ask", answer=b'{"value": "an answer of some words"}', lesson=said("good"))
        )
        lanes.free([tag])
        assert ask.delay("known").get(timeout=1) == "an answer of some words"
        lanes.establish("ill", {"mode": "EMERGENCY"})
        lanes.establish("full", {"p1": 1e-9, "d1": 1.0, "l1": 0.0})
        for _ in range(2):
            self.bounded.delay(self.next())

    def next(self) -> str:
        """A question that nobody has asked yet."""
        self.number += 1
        return f"question {self.number}"

    def kinds(self) -> dict[str, Callable[[], Any]]:
        """Each kind of call, by its name."""
        return {
            "hit": lambda: self.ask.delay("known"),
            "hit and .get()": lambda: self.ask.delay("known").get(timeout=1),
            "into its lane": lambda: self.ask.delay(self.next()),
            "LaneFull": lambda: refused(LaneFull, self.bounded, self.next()),
            "LaneShedding": lambda: refused(LaneShedding, self.shed, self.next()),
            "BadInput": lambda: refused(BadInput, self.ask, float("nan")),
            "plain Celery": lambda: self.ordinary.delay(self.next()),
            "size": lambda: self.lanes.size("celery"),
        }

    def counts(self) -> tuple[int, int, int]:
        """Scripts, transactions and look-ups, and connections since the server began."""
        stats: Any = self.client.info("commandstats")
        calls = {name: one["calls"] for name, one in stats.items()}
        others = ("get", "mget", "exec", "subscribe", "ping", "llen")
        opened: Any = self.client.info("stats")
        beside = sum(calls.get(f"cmdstat_{name}", 0) for name in others)
        return calls["cmdstat_fcall"], beside, opened["total_connections_received"]


def refused(kind: type[Exception], task: Any, what: Any) -> None:
    """Make a call that must be refused with this error."""
    try:
        task.delay(what)
    except kind:
        return
    raise AssertionError(f"{kind.__name__} did not come")


def measured(stage: Stage, rounds: int) -> dict[str, float]:
    """The median of each kind of call, ms."""
    kinds = stage.kinds()
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(rounds + 20):
        for name, do in kinds.items():
            begun_s = time.perf_counter()
            do()
            if number >= 20:
                took[name].append((time.perf_counter() - begun_s) * 1000)
    return {name: statistics.median(each) for name, each in took.items()}


def main() -> int:
    """Run it; 1: a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--lanes", type=int, default=10_000)
    told = parser.parse_args()
    missed: list[bool] = []
    with tempfile.TemporaryDirectory(prefix="rlw-hit-") as folder:
        valkey = Valkey(Path(folder))
        valkey.start()
        os.environ |= {"MAISD_REDIS_URL": valkey.url, "MAISD_STATE_DIR": folder}
        try:
            stage = Stage(valkey)
            for more in (0, told.lanes):
                for number in range(more):
                    stage.lanes.establish(f"lane {number}", {"p1": 1.0, "d1": 1.0})
                print(f"beside {more:,} other lanes; load average {os.getloadavg()[0]:.1f}")
                missed += goals(measured(stage, told.rounds))
            missed += sent_to_redis(stage)
        finally:
            valkey.stop()
    return int(any(missed))


def goals(ms: dict[str, float]) -> list[bool]:
    """Print what was measured; returns for each goal whether it was missed."""
    print("  " + "   ".join(f"{name} {value:.2f} ms" for name, value in ms.items()))
    missed = [beside("a hit", ms["hit"], MOST_HIT_MS, "ms")]
    for name in ("LaneFull", "LaneShedding", "BadInput"):
        missed.append(beside(name, ms[name] / ms["into its lane"], MOST_REFUSAL, "× a call into its lane"))
    missed.append(beside("a hit and .get()", ms["hit and .get()"] / ms["plain Celery"], MOST_GET, "× plain .delay()"))
    return [*missed, beside("how many wait on a queue", ms["size"], MOST_SIZE_MS, "ms")]


def sent_to_redis(stage: Stage) -> list[bool]:
    """Print what hits send to Redis; returns for each goal whether it was missed.

    A thread that looks for lost calls may send a request meanwhile.
    """
    before, cpu_s = stage.counts(), time.process_time()
    for _ in range(COUNTED):
        stage.ask.delay("known").get(timeout=1)
    print(f"CPU of this process: {(time.process_time() - cpu_s) / COUNTED * 1000:.3f} ms a hit with its .get()")
    scripts, others, opened = (b - a for a, b in zip(before, stage.counts(), strict=True))
    return [
        beside("scripts", round(scripts / COUNTED, 1), 1, "a hit"),
        beside("other exchanges", round(others / COUNTED, 1), 0, "a hit"),
        beside("connections opened", opened, 0, f"by {COUNTED} hits"),
    ]


if __name__ == "__main__":
    sys.exit(main())
