"""Does a call cost the same with a million others waiting, with ten thousand lanes, and after a hundred thousand calls?

    python -m benchmarks.growth [--most 1000000] [--lanes 10000] [--calls 100000] [--only waiting lanes soak]

`waiting`: calls wait in one lane, ten times more in each row. `lanes`: each lane has a call that waits, and none has a
worker, but for one lane, which is measured. A row has the processor time of the server for an enqueued call and for a
released and freed one, that of server and command together for `explain` (of the last call) and `status`, and the
memory of Redis for each waiting call or lane. These are processor times and sizes, so the machine need not be quiet.
Beside them stands what two ZADD, an HSET and a SET of the same server cost, in sorted sets of that size: all commands
take longer when less of the data is in the processor's caches. Goals: enqueue and release grow at most 1.25 times as
much as those; `explain` takes at most 1.5 times as long in the last row as in the first; `status`, which looks at all
lanes for those that matter most, at most 300 ms.

`soak`: a worker of eight threads, Flower, and a process that sends calls and reads their results, until so many are
answered: their memory as it goes on, and the keys that are left in Redis. Goals: from a fifth of the calls on, worker
and sender grow by at most 50 B a call; Flower takes at most 150 MB; at most 100 keys are left that do not expire.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

from benchmarks.footprint import FLOWER_MB, kib, listens, process
from benchmarks.goals import beside
from benchmarks.permits import ACKS, LEASE_S, QUEUE, SLOTS, fill, permits_s, server
from ratelimit_worker.reports.explain import explain
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.stores.lanes import EVERY_TASK, Lanes
from ratelimit_worker.stores.live import Live
from tests.builders import entry
from tests.conftest import wait_for
from tests.fleet import fleet, free_port

ROOT = Path(__file__).resolve().parent.parent
FLOWER = ("-m", "ratelimit_worker", "flower", "-A", "tests.fleet_app", "--basic-auth", "a:long-enough-for-all")
FIELDS = {"p1": ACKS / 0.02, "d1": 1e6}  #: a pace that is never reached
PROBE = 500  #: calls that are enqueued, and released, to measure a row
BESIDE_PLAIN, GROWTH, STATUS_MS = 1.25, 1.5, 300.0
B_A_CALL, KEYS_LEFT = 50.0, 100
MARKS = 5  #: rows of `soak`
SEND = """
import os, sys
from tests import fleet_app
made, at_once = int(sys.argv[1]), 100
print("ready", flush=True)
for line in sys.stdin:
    for first in range(0, int(line), at_once):
        sent = [fleet_app.echo.delay(f"{made}-{first}-{n}") for n in range(at_once)]
        for one in sent:
            one.get(timeout=120)
            one.forget()
    made += 1
    print("done", flush=True)
"""


class Row(NamedTuple):
    """The cost of one size."""

    size: int
    plain_us: float  #: two ZADD, an HSET and a SET
    enqueue_us: float
    release_us: float
    explain_ms: float
    status_ms: float
    bytes_each: float


def server_s(client: Redis) -> float:
    """Processor time of the server so far, seconds."""
    told: dict[str, Any] = client.info("cpu")
    return float(told["used_cpu_user"]) + float(told["used_cpu_sys"])


def used_bytes(client: Redis) -> int:
    """Memory of Redis for data, bytes."""
    told: dict[str, Any] = client.info("memory")
    return int(told["used_memory"])


def cost_us(client: Redis, act: Callable[[], object], times: int) -> float:
    """Processor time of the server for each of so many, microseconds."""
    before_s = server_s(client)
    act()
    return (server_s(client) - before_s) / times * 1e6


def plain(client: Redis, first: int, many: int) -> None:
    """Write so many things with plain commands, many in one exchange."""
    for at in range(first, first + many, 1_000):
        with client.pipeline(transaction=False) as pipe:
            for number in range(at, min(first + many, at + 1_000)):
                name = f"plain-{number:08d}-4f6b-9a51-0c2d"
                pipe.zadd("one", {name: number})
                pipe.zadd("other", {name: number})
                pipe.hset(f"hash:{name}", mapping={"a": 1, "b": "x" * 300})
                pipe.set(f"text:{name}", "x" * 300)
            pipe.execute()


def whole_ms(client: Redis, act: Callable[[], object], times: int = 5) -> float:
    """Processor time of the server and of this process for each, milliseconds."""
    act()
    before_s = server_s(client) + time.process_time()
    for _ in range(times):
        act()
    return (server_s(client) + time.process_time() - before_s) / times * 1e3


def row(lanes: Lanes, size: int, last: int, bytes_each: float) -> Row:
    """Measure the lane, in which calls with numbers up to `last` wait."""
    client = lanes.client
    live = Live(client)
    enqueue_us = cost_us(client, lambda: fill(lanes, PROBE, FIELDS, last), PROBE)
    lanes.beat("worker", SLOTS, 600.0, (QUEUE,), LEASE_S, (), EVERY_TASK)
    permits_s(lanes, ACKS, PROBE // 5)  # warm
    release_us = cost_us(client, lambda: permits_s(lanes, ACKS, PROBE), PROBE)
    asked = f"call-{last + PROBE - 1:08d}-4f6b-9a51-0c2d"
    explain_ms = whole_ms(client, lambda: explain(live, (), asked))
    status_ms = whole_ms(client, lambda: cluster_state(live.now(), None))
    plain(client, 0, size)
    plain_us = cost_us(client, lambda: plain(client, size, PROBE), PROBE)
    return Row(size, plain_us, enqueue_us, release_us, explain_ms, status_ms, bytes_each)


def sizes(most: int, first: int) -> Iterator[int]:
    """first, 10 × first … up to `most`."""
    while first < most:
        yield first
        first *= 10
    yield most


def rows(most: int, first: int, put: Callable[[Lanes, int], None], beside: int = 0) -> list[Row]:
    """A row for each size.

    Args:
        put: Makes the calls or lanes of that size.
        beside: Calls that wait in the measured lane; 0: as many as the size says.
    """
    found = []
    for size in sizes(most, first):
        with server() as (_, lanes):
            lanes.run.load()
            if beside:
                fill(lanes, beside, FIELDS)
            before = used_bytes(lanes.client)
            put(lanes, size)
            found.append(row(lanes, size, beside or size, (used_bytes(lanes.client) - before) / size))
    return found


def waiting(lanes: Lanes, size: int) -> None:
    """Calls that wait in one lane."""
    for first in range(0, size, 10_000):
        fill(lanes, min(10_000, size - first), FIELDS, first)


def many_lanes(lanes: Lanes, size: int) -> None:
    """Lanes with one waiting call each, and no worker."""
    for number in range(size):
        lanes.enqueue(entry(f"other-{number}", f"lane-{number}", "nobody"))


def show(what: str, found: Sequence[Row]) -> bool:
    """Print the rows, and the growth of each time; returns whether a goal was missed."""
    heads = (what, "plain µs", "enqueue µs", "release µs", "explain ms", "status ms", f"B of Redis per {what}")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for one in found:
        print(
            f"| {one.size:,} | {one.plain_us:.1f} | {one.enqueue_us:.0f} | {one.release_us:.0f} | "
            f"{one.explain_ms:.1f} | {one.status_ms:.1f} | {one.bytes_each:,.0f} |"
        )
    first, last = found[0], found[-1]
    sizes_are = f"{last.size:,} beside {first.size:,}"
    plainly = last.plain_us / first.plain_us
    print(f"plain commands, {sizes_are}: {plainly:.2f} ×")
    missed = False
    for name in ("enqueue_us", "release_us"):
        grown = getattr(last, name) / getattr(first, name)
        said = f"{name.partition('_')[0]}, {sizes_are}: {grown:.2f} ×, beside plain commands"
        missed |= beside(said, grown / plainly, BESIDE_PLAIN, "×")
    missed |= beside(f"explain, {sizes_are}", last.explain_ms / first.explain_ms, GROWTH, "×")
    return beside("status, last row", last.status_ms, STATUS_MS, "ms") or missed


def kinds(names: Iterable[bytes]) -> str:
    """Numbers of keys by the fixed part of their names."""
    found = Counter(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{20,}|\d+", "…", name.decode("utf-8", "replace")) for name in names)
    return ", ".join(f"{name} × {times}" if times > 1 else name for name, times in found.most_common())


def soak(calls: int) -> bool:
    """Answer so many calls; returns whether a goal was missed."""
    step = max(100, calls // MARKS // 100 * 100)
    with fleet(MAISD_LANES='{"free": {"unlimited": true}}') as made:
        worker = made.worker("soak", "-P", "threads", "-c", "8", "-E")
        client = made.valkey.client
        told = {**os.environ, **made.env}
        port, log = free_port(), made.folder / "flower.log"
        with process([*FLOWER, "--port", str(port)], log, ROOT, told) as eyes:
            wait_for(lambda: listens(port), what=log.read_text)
            with subprocess.Popen(
                [sys.executable, "-c", SEND, "0"],
                cwd=ROOT,
                env=told,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as sender:
                assert sender.stdin is not None
                assert sender.stdout is not None
                sender.stdout.readline()
                print("| answered | worker MB | sender MB | Flower MB | Redis MB | keys |\n|---|---|---|---|---|---|")
                grown: list[tuple[int, int]] = []
                for mark in range(1, MARKS + 1):
                    sender.stdin.write(f"{step}\n")
                    sender.stdin.flush()
                    assert sender.stdout.readline() == "done\n", made.logs()[-3_000:]
                    now = [kib(pid, "VmRSS") for pid in (worker.process.pid, sender.pid, eyes)]
                    grown.append((now[0], now[1]))
                    print(
                        f"| {mark * step:,} | {' | '.join(f'{one / 1024:.1f}' for one in now)} | "
                        f"{used_bytes(client) / 2**20:.1f} | {client.dbsize()} |",
                        flush=True,
                    )
                sender.stdin.close()
            most_mb = kib(eyes, "VmHWM") / 1024
        wait_for(lambda: not client.xlen("rlw:outbox"), what="all outcomes are recorded")
        left_s = {name: client.ttl(name) for name in client.scan_iter(count=1_000)}
    stay = [name for name, ttl_s in left_s.items() if ttl_s < 0]
    print(f"keys that stay: {kinds(stay)}")
    print(f"keys that expire, within {max(left_s.values())} s: {kinds(left_s.keys() - set(stay))}")
    after = step * (MARKS - 1)
    missed = beside("worker, growth", (grown[-1][0] - grown[0][0]) * 1024 / after, B_A_CALL, "B a call")
    missed |= beside("sender, growth", (grown[-1][1] - grown[0][1]) * 1024 / after, B_A_CALL, "B a call")
    missed |= beside("Flower, most", most_mb, FLOWER_MB, "MB")
    return beside("keys that stay", len(stay), KEYS_LEFT, "keys") or missed


def main() -> int:
    """Run the chosen parts; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=1_000_000, help="waiting calls")
    parser.add_argument("--lanes", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--only", nargs="+", choices=["waiting", "lanes", "soak"], default=["waiting", "lanes", "soak"])
    told = parser.parse_args()
    missed = False
    if "waiting" in told.only:
        missed |= show("waiting calls", rows(told.most, 1_000, waiting))
    if "lanes" in told.only:
        missed |= show("lanes", rows(told.lanes, 100, many_lanes, beside=2_000))
    if "soak" in told.only:
        missed |= soak(told.calls)
    print(f"load average {os.getloadavg()[0]:.1f}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
