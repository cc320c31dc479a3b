"""How late are 200 answers to the same question if the worker that asks it is killed? `python -m benchmarks.joined`.

Eight processes make 25 identical calls each; two workers. When the leader (the one call that is sent) runs, its worker
gets SIGKILL. Goals: at most 2 requests, and all answers within 1.5 times the visibility timeout after the kill (plus
the time of the call itself, which is negligible here).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from celery.result import AsyncResult

from benchmarks.goals import beside
from tests.builders import ROOT
from tests.cluster.test_same_calls import EACH, PROCESSES, PRODUCERS
from tests.conftest import wait_for
from tests.fleet import fleet

VISIBILITY_S = (3.0, 10.0)
MOST_REQUESTS, SHARE = 2, 1.5


def late(visibility_s: float) -> tuple[float, int]:
    """Seconds from the kill to the last answer, and the requests that were sent."""
    with fleet(MAISD_VISIBILITY_TIMEOUT_SECONDS=str(visibility_s)) as made:
        made.worker("one", wait=False)
        made.worker("two")
        made.workers[0].wait_ready()
        told = subprocess.run(
            [sys.executable, "-c", PRODUCERS], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=300
        ).stdout.split()
        assert len(set(told)) == PROCESSES * EACH
        wait_for(lambda: made.stamps("twice"), what="the call that is sent runs")
        ((_, leads),) = made.stamps("twice")
        (worker,) = (one for one in made.workers if one.process.pid == int(leads))
        app = made.agent().app
        killed_s = time.monotonic()
        worker.kill()
        answers = [AsyncResult(one, app=app).get(timeout=300) for one in told]
        took_s = time.monotonic() - killed_s
        assert answers == [2] * len(told), "each has the answer of the second run"
        return took_s, len(made.stamps("twice"))


def main() -> int:
    """Print each figure with its goal; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--visibility", type=float, nargs="*", default=VISIBILITY_S, help="seconds")
    missed = False
    for visibility_s in parser.parse_args().visibility:
        took_s, requests = late(visibility_s)
        name = f"visibility timeout {visibility_s:g} s, load {os.getloadavg()[0]:.1f}"
        missed |= beside(
            f"{name}: from the kill to the last of {PROCESSES * EACH} answers", took_s, SHARE * visibility_s, "s"
        )
        missed |= beside(f"{name}: requests", requests, MOST_REQUESTS, "requests")
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
