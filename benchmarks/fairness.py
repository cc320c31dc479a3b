"""Is a lane fair if many calls want it? The scripts run on a real Valkey in virtual time; prints a Markdown table.

    python benchmarks/fairness.py [--calls 10000] [--seeds 3]

Tenants of weights 1 and 3 with different lognormal token costs, and single calls of a third tenant; low calls beside a
steady stream of high ones; and a lane's cap over three workers of which one is killed. `tests/lua/test_fairness.py`
runs smaller versions of these scenes.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import redis  # noqa: E402

from tests.contention import capped, low_under_high, two_tenants  # noqa: E402
from tests.fleet import Valkey  # noqa: E402


@contextmanager
def server() -> Iterator[redis.Redis]:
    """A Valkey server for this benchmark."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-fair-"))
    valkey = Valkey(folder)
    valkey.start()
    try:
        yield redis.Redis.from_url(valkey.url)
    finally:
        valkey.stop()
        shutil.rmtree(folder, ignore_errors=True)


def tenants(client: redis.Redis, calls: int, seed: int, slower: float) -> tuple[str, bool]:
    """The share of the tenant with weight 1 in every 10 s, and how long the third tenant's calls waited."""
    got = two_tenants(client, calls, seed, slower=slower)
    late = [waited for waited, bound in got.waits_s if waited > bound]
    longest = max(waited for waited, _ in got.waits_s)
    said = (
        f"{len(got.windows)} windows of 10 s: share of the light one {min(got.windows):.4f} to {max(got.windows):.4f} "
        f"(fair 0.25), at most {100 * got.worst:.1f} % off; third tenant: {len(got.waits_s)} single calls, longest "
        f"wait {longest:.3f} s, {len(late)} beyond their fair share"
    )
    return said, got.worst <= 0.05 and not late


def ageing(client: redis.Redis, seed: int) -> tuple[str, bool]:
    """100 low calls beside a stream of high ones that is faster than the lane's pace."""
    got = low_under_high(client, lows=100, per_s=10, load=1.1 + seed / 20, for_s=340)
    said = (
        f"{got.finished} of 100 low calls began, the first after {got.first_s:.1f} s and {got.highs_before} high ones, "
        f"the last after {got.last_s:.1f} s"
    )
    return said, got.finished == 100


def cap(client: redis.Redis, seed: int) -> tuple[str, bool]:
    """A cap of 5 over three workers of 4 slots."""
    got = capped(client, cap=5, calls=300, seed=seed)
    said = f"at most {got.most} at once, {got.finished} of 300 ended, one worker killed with {got.killed_with} calls"
    return said, got.most <= 5 and got.finished == 300 and got.killed_with > 0


def main() -> int:
    """Run all scenes; returns 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="of each of the two tenants")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    calls: int = options.calls
    scenes: list[tuple[str, Callable[[redis.Redis, int], tuple[str, bool]]]] = [
        (f"weights 1:3, {calls:,} calls each", lambda client, seed: tenants(client, calls, seed, 1.0)),
        ("the same, the light one's sent at 1/20 of the pace", lambda client, seed: tenants(client, calls, seed, 20.0)),
        ("low under high", ageing),
        ("cap 5, 3 workers", cap),
    ]
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}, Python {platform.python_version()}\n")
    print("| scene | seed | what happened | holds | took |\n|---|---|---|---|---|")
    holds = True
    with server() as client:
        for name, scene in scenes:
            for seed in range(1, options.seeds + 1):
                began_s = time.perf_counter()
                said, ok = scene(client, seed)
                holds = holds and ok
                print(f"| {name} | {seed} | {said} | {'yes' if ok else 'NO'} | {time.perf_counter() - began_s:.0f} s |")
                sys.stdout.flush()
    return 0 if holds else 1


if __name__ == "__main__":
    raise SystemExit(main())
