"""Do retries help without overloading a provider? Requests for each call, in virtual time, over several seeds.

    python benchmarks/retries.py [--seeds 5] [--trial "5 % 500s" …] [--jobs 2]

The law, the retry decision and the provider are the real ones; the scripts are replaced by the model of
tests/laboratory.py. *may need* is the largest allowed number of requests; *failed* are calls that were given up, which
must not happen in these trials.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ratelimit_worker.simulate import Entry, Fault, Scenario  # noqa: E402
from ratelimit_worker.simulate.scenarios import CASES  # noqa: E402
from tests.laboratory import Laboratory, jobs_of  # noqa: E402


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A provider, the number of calls to it, and the requests that they may need."""

    timeline: tuple[Entry, ...]
    most: Callable[[int], float]  #: calls → requests
    rpm: float | None = 1200
    calls: int = 2000
    horizon_s: float = inf  #: end of the trial, if not all calls can end


def flaps(fault: Fault) -> tuple[Entry, ...]:
    """A fault on everything in every second second, for a minute."""
    return tuple(Entry(at_s=2.0 * i, for_s=1.0, fault=fault) for i in range(30))


TRIALS = {
    "5 % 500s": Trial(timeline=(Entry(fault=Fault.SERVER_ERROR, share=0.05),), most=lambda calls: 1.08 * calls),
    "5 % 500s, fast": Trial(
        timeline=(Entry(fault=Fault.SERVER_ERROR, share=0.05),), most=lambda calls: 1.08 * calls, rpm=None
    ),
    "30 % 500s": Trial(
        timeline=(Entry(fault=Fault.SERVER_ERROR, share=0.3),), most=lambda calls: 1.1 * calls / 0.7 + 20
    ),
    "30 % 500s, fast": Trial(
        timeline=(Entry(fault=Fault.SERVER_ERROR, share=0.3),), most=lambda calls: 1.1 * calls / 0.7 + 20, rpm=None
    ),
    "outage of 10 minutes": Trial(
        timeline=(Entry(at_s=20.0, for_s=600.0, fault=Fault.OUTAGE),), most=lambda calls: 1.1 * calls
    ),
    "quota used up": Trial(timeline=(Entry(fault=Fault.QUOTA),), most=lambda _: 8, calls=100, horizon_s=290.0),
    "storm of 500s": Trial(timeline=flaps(Fault.SERVER_ERROR), most=lambda calls: 1.2 * calls),
    "storm of 503s": Trial(timeline=flaps(Fault.OUTAGE), most=lambda calls: 1.2 * calls),
    "storm of 500s, fast": Trial(timeline=flaps(Fault.SERVER_ERROR), most=lambda calls: 1.2 * calls, rpm=None),
    "storm of 503s, fast": Trial(timeline=flaps(Fault.OUTAGE), most=lambda calls: 1.2 * calls, rpm=None),
}


@dataclass(frozen=True)
class Figures:
    """The result of one seed."""

    requests: int
    failed: int  #: calls that were given up
    left: int  #: calls that have not ended
    took_s: float  #: virtual seconds


def run(name: str, seed: int) -> Figures:
    """One seed of one trial; 64 calls at once, answers of 0.2 s."""
    trial = TRIALS[name]
    provider = Scenario(rpm=trial.rpm, latency="lognormal(0.2, 0.3)", timeline=trial.timeline, seed=seed)
    case = replace(CASES["steady"], provider=provider, finite=trial.calls, seed=seed)
    laboratory = Laboratory(provider, jobs_of(case), seed=seed, slots=64)
    result = laboratory.run(trial.horizon_s)
    return Figures(len(result.arrivals), result.failed, laboratory.left, result.ended_s)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trial", nargs="*", default=list(TRIALS), choices=list(TRIALS))
    parser.add_argument("--jobs", type=int, default=2)
    told = parser.parse_args()
    print("| trial | calls | requests: median (most) | may need | failed | took: median |\n|---|---|---|---|---|---|")
    with ProcessPoolExecutor(told.jobs) as pool:
        for name in told.trial:
            rows = list(pool.map(run, [name] * told.seeds, range(told.seeds)))
            requests, calls = [row.requests for row in rows], TRIALS[name].calls
            print(
                f"| {name} | {calls} | {median(requests):.0f} ({max(requests)}) | {TRIALS[name].most(calls):.0f} "
                f"| {sum(row.failed for row in rows)} | {median(row.took_s for row in rows):.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
