"""How soon does the tuner read each of thousands of busy lanes, and what does it cost?

    python -m benchmarks.busy_lanes

One Valkey; a process that runs the scripts of producers and workers: 500 calls a second in all, over 5,000 lanes, half
of which get rate-limit headers; and the tuner in a process of its own. The end of a call is news of its lane; the delay
is the time until the tuner has read it. Then modes are set by hand in 10,000 idle lanes: how long each takes to set,
what the tuner costs while they are in force and nothing happens, and how long `status` and Flower's page take and how
large they are. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2 as httpx

from ratelimit_worker.calls import LaneLimits, Mode, Snapshot
from ratelimit_worker.contracts.lesson import Lesson, Reading, Settlement
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.pin import auto, pin
from ratelimit_worker.flower.board import PAGE
from ratelimit_worker.reports.analytics import as_builtins
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.reports.words import as_json
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.wiring import Services, services
from ratelimit_worker.worker.duties import Tune
from tests.builders import entry
from tests.conftest import wait_for
from tests.faces.test_flower import LOGIN, flower
from tests.fleet import Fleet, fleet

#: Goals: seconds until news is read (99th percentile), share of a core, seconds to set a mode by hand.
DELAY_S, CORE, PIN_S = 0.5, 0.15, 1.0
LIST_S, LIST_KB = 0.3, 200.0  #: goals of a list of lanes: seconds, and its size
#: Share of a core that the tuner may take more than without any lane, while all lanes are pinned and nothing happens.
IDLE_CORE = 0.02
LATENCY_S = 0.3  #: of a call
SETTLE_S = 8.0  #: wait after a change of load, before measuring

Looked = dict[str, list[float]]  #: lane → when the tuner read it, seconds, Redis clock


class Goal(NamedTuple):
    """A figure, and the most that it may be."""

    what: str
    value: float
    most: float
    unit: str

    def line(self) -> str:
        """Figure, goal and load average in one line."""
        word = "ok" if self.value <= self.most else "MISSED"
        return (
            f"{self.what:<58} {self.value:8.3f} {self.unit:<9} goal ≤ {self.most:g}  {word:<6}"
            f"  load {os.getloadavg()[0]:.1f}"
        )


def cpu_s(pid: int) -> float:
    """User and system time of a process, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ── the tuner's process ────────────────────────────────────────────────────────────────────────────────────────────


def tune(into: Path) -> None:
    """Run the tuner until SIGTERM; then write to a file when each lane was read."""
    duty = Tune(services(), "bench")
    looked: Looked = {}
    lanes: Any = duty.tuner.control.lanes
    take = lanes.take

    def noted(*args: Any, **more: Any) -> Any:
        taken = take(*args, **more)
        for view in taken.lanes if taken is not None else ():
            looked.setdefault(view.lane, []).append(taken.now_s)
        return taken

    lanes.take = noted
    signal.signal(signal.SIGTERM, lambda *_: duty.stop())
    duty.start()
    duty.join()
    into.write_text(json.dumps(looked))


class Tuning(NamedTuple):
    """The tuner's process."""

    process: subprocess.Popen[bytes]
    into: Path

    def looked(self) -> Looked:
        """Stop it; returns when it read each lane."""
        self.process.terminate()
        self.process.wait(timeout=120)
        found: Looked = json.loads(self.into.read_text())
        return found

    def share(self, seconds: float) -> float:
        """Share of a core that it takes in the next `seconds`."""
        before, began_s = cpu_s(self.process.pid), time.monotonic()
        time.sleep(seconds)
        return (cpu_s(self.process.pid) - before) / (time.monotonic() - began_s)


@contextmanager
def tuning(made: Fleet) -> Iterator[Tuning]:
    """The tuner in a process of its own; begins when it has the duty."""
    into = made.folder / "looked.json"
    command = [sys.executable, "-m", "benchmarks.busy_lanes", "--as-tuner", str(into)]
    process = subprocess.Popen(command, env={**os.environ, **made.env})
    try:
        wait_for(lambda: bool(made.valkey.client.exists(keys.duty("tune"))), what="the tuner tunes")
        yield Tuning(process, into)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(timeout=120)


# ── everybody else ─────────────────────────────────────────────────────────────────────────────────────────────────


class World(threading.Thread):
    """Producers and workers: calls over lanes at a rate, each answered after a while."""

    def __init__(self, lanes: Lanes, names: list[str], per_s: float) -> None:
        super().__init__(daemon=True)
        self.lanes, self.names, self.per_s = lanes, names, per_s
        self.stopping = threading.Event()
        self.news: list[tuple[str, float]] = []  #: lane, and when a call of it ended
        self.told = limit_fields(LaneLimits())
        self._out: deque[tuple[float, str, str, bytes]] = deque()
        self._number = 0

    def run(self) -> None:
        """Run until `stopping`; catches up if it is late."""
        began_s, beat_s, rng = time.monotonic(), 0.0, random.Random(1)
        while not self.stopping.is_set():
            now_s = time.monotonic()
            if now_s - beat_s > 0.5:
                self.lanes.beat("world", 2_000, 3.5, ["q"], 30.0, [tag for _, tag, _, _ in self._out])
                beat_s = now_s
            while self._number < (now_s - began_s) * self.per_s:
                self._send(self.names[rng.randrange(len(self.names))])
            self._begin()
            while self._out and self._out[0][0] <= time.monotonic():
                self._end(*self._out.popleft())
            self.lanes.pump("world", 500)
            time.sleep(0.005)

    def _send(self, lane: str) -> None:
        self._number += 1
        self.lanes.enqueue(entry(f"c-{self._number}", lane=lane, lane_fields=self.told))

    def _begin(self) -> None:
        while (raw := self.lanes.client.rpop(keys.ready(keys.ALL, "q"))) is not None:
            message = json.loads(raw)  # type: ignore[arg-type]
            tag, ref = message["properties"]["delivery_tag"], message["body"]
            begun = self.lanes.begin(tag, 30.0)
            if begun.state == "go":
                record = self.lanes.record(ref)
                assert record is not None
                self._out.append((time.monotonic() + LATENCY_S, tag, record.lane, begun.ticket))

    def _end(self, _: float, tag: str, lane: str, ticket: bytes) -> None:
        at_s, headers = time.time(), hash(lane) % 2 == 0
        left = Snapshot(limit=600.0, window_s=60.0, remaining=590.0, reset_s=None)
        lesson = Lesson(
            verdict="good" if headers else "plain",
            at_s=at_s,
            ticket=ticket,
            reading=Reading(snapshots={"requests": left} if headers else {}),
        )
        self.lanes.settle(Settlement(tag=tag, lane=lane, answer=b"a", lesson=lesson))
        self.news.append((lane, time.time()))
        self.lanes.free([tag])


def delays_s(news: list[tuple[str, float]], looked: Looked, from_s: float, to_s: float) -> list[float]:
    """Delays from each news to the next reading of its lane, seconds, sorted; inf: it was not read."""
    found = []
    for lane, at_s in news:
        if from_s <= at_s <= to_s:
            found.append(next((look_s - at_s for look_s in looked.get(lane, ()) if look_s >= at_s), float("inf")))
    return sorted(found)


# ── what is measured ───────────────────────────────────────────────────────────────────────────────────────────────


def busy(made: Fleet, count: int, per_s: float, seconds: float) -> list[Goal]:
    """Thousands of lanes, each with a call from time to time."""
    live = services()
    names = [f"team-{number % 40}:model-{number}" for number in range(count)]
    with tuning(made) as tuner:
        flat = [part for pair in limit_fields(LaneLimits()).items() for part in pair]
        began_s = time.time()
        for first in range(0, count, 500):
            live.lanes.run.each("establish", [(name, *flat) for name in names[first : first + 500]])
        wait_for(lambda: not made.valkey.client.exists(keys.SEEN), timeout_s=300, what="new lanes are looked at")
        print(f"{count:,} new lanes were looked at {time.time() - began_s:.1f} s after the first was made", flush=True)
        world = World(Lanes(live.redis), names, per_s)
        world.start()
        time.sleep(SETTLE_S)
        from_s, before = time.time(), cpu_s(made.valkey.pid)
        share = tuner.share(seconds)
        to_s, server = time.time(), (cpu_s(made.valkey.pid) - before) / seconds
        world.stopping.set()
        world.join()
        time.sleep(2.0)
        looked = tuner.looked()
    found = delays_s(world.news, looked, from_s, to_s)
    looks = sum(from_s <= at_s <= to_s for times in looked.values() for at_s in times)
    each_us = share * seconds / max(1, looks) * 1e6
    print(
        f"{len(found) / seconds:,.0f} news/s, {looks / seconds:,.0f} looks/s of {each_us:,.0f} µs each; "
        f"server {server:.0%} of a core, its clients' commands included; "
        f"delay p50 {found[len(found) // 2]:.3f} s, longest {found[-1]:.3f} s",
        flush=True,
    )
    return [
        Goal(f"news to look, p99, {count:,} lanes at {per_s:g} calls/s", found[int(len(found) * 0.99)], DELAY_S, "s"),
        Goal("tuner meanwhile", share, CORE, "of a core"),
    ]


def pinned(made: Fleet, count: int, seconds: float) -> list[Goal]:
    """Modes set by hand in idle lanes."""
    live = services()
    made.valkey.client.flushall()
    found: list[Goal] = []
    with tuning(made) as tuner:
        nothing = tuner.share(seconds)
    flat = [part for pair in limit_fields(LaneLimits()).items() for part in pair]
    for first in range(0, count, 500):
        live.lanes.run.each("establish", [(f"user-{number}", *flat) for number in range(first, first + 500)])
    made.valkey.client.delete(keys.SEEN)
    with tuning(made) as tuner:
        for mode in (Mode.EMERGENCY, Mode.REDUCED, None):
            began_s = time.monotonic()
            give(live, mode)
            found.append(Goal(f"to set {mode or 'auto'} in {count:,} lanes", time.monotonic() - began_s, PIN_S, "s"))
            time.sleep(SETTLE_S)
            if mode is not None:
                share = tuner.share(seconds) - nothing
                found.append(Goal(f"tuner while all are in {mode}, beside none", share, IDLE_CORE, "of a core"))
        found += lists(made, count)
    return found


def lists(made: Fleet, count: int) -> list[Goal]:
    """`status` in this process, and Flower's page as a browser gets it, with the lanes that exist."""
    live = services()
    engine = engine_for(live.settings.database_url)
    sources = Sources.of(Queries(engine), Live(live.redis))
    found = []
    status(sources)  # opens connections and loads scripts
    began_s = time.monotonic()
    told = as_json(as_builtins(status(sources)[0]))
    found.append(Goal(f"status of {count:,} lanes", time.monotonic() - began_s, LIST_S, "s"))
    found.append(Goal("its size as JSON", len(told.encode()) / 1000, LIST_KB, "kB"))
    engine.dispose()
    largest = 0
    with (
        flower(made.env, made.folder / "flower.log", "--basic-auth", ":".join(LOGIN)) as address,
        httpx.Client(base_url=address, auth=LOGIN, timeout=120.0, trust_env=False) as client,
    ):
        for path in ("", "?page=2", f"?page={count // PAGE}", "?find=user-99"):
            client.get("/rate-limit").raise_for_status()
            time.sleep(1.5)  # what was seen is shown again for a second
            began_s = time.monotonic()
            page = client.get(f"/rate-limit{path}").raise_for_status()
            found.append(Goal(f"Flower's page {path}", time.monotonic() - began_s, LIST_S, "s"))
            largest = max(largest, len(page.content))
        found.append(Goal("its size, the largest", largest / 1000, LIST_KB, "kB"))
    return found


def give(live: Services, mode: Mode | None) -> None:
    """Pin all lanes, or give them back."""
    if mode is None:
        auto(live.control, who="bench")
    else:
        pin(live.control, mode, who="bench")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lanes", type=int, default=5_000)
    parser.add_argument("--rate", type=float, default=500.0, help="calls/s, in all lanes together")
    parser.add_argument("--pinned", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--as-tuner", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.as_tuner is not None:
        tune(chosen.as_tuner)
        return
    with fleet() as made:
        goals = busy(made, chosen.lanes, chosen.rate, chosen.seconds)
        goals += pinned(made, chosen.pinned, chosen.seconds)
    for goal in goals:
        print(goal.line(), flush=True)
    sys.exit(any(goal.value > goal.most for goal in goals))


if __name__ == "__main__":
    main()
