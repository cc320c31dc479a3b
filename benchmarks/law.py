"""How good is the law? Every named scenario in virtual time, over many seeds, beside an all-knowing oracle.

    python benchmarks/law.py [--seeds 20] [--first 0] [--case steady …] [--jobs 2] [--refusals mute]
    python benchmarks/law.py --modes [--seeds 20]      does the mode move where nobody is away?

Goodput is a share of what the oracle gets answered within the horizon (simulate/oracle.py); of a finite case, the
oracle's time as a share of the lane's. *429s*: of all requests. *adapts*: seconds after the last change of the provider
until a second's good answers are within a fifth of what it then gives.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ratelimit_worker.config import read_settings  # noqa: E402
from ratelimit_worker.flow.tune import rules_of  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, Scenario  # noqa: E402
from ratelimit_worker.simulate.arrivals import duplicates  # noqa: E402
from ratelimit_worker.simulate.oracle import delivered, oracle, oracle_time_s  # noqa: E402
from ratelimit_worker.simulate.scenarios import CASES, Case  # noqa: E402
from tests.laboratory import Laboratory, jobs_of  # noqa: E402


@dataclass(frozen=True)
class Figures:
    """What one seed came to."""

    share: float  #: of the oracle
    refused: float  #: 429s among the requests
    requests: int
    into_faults: int  #: requests that met a scripted fault
    failed: int
    twice: int
    adapts_s: float | None
    took_s: float


#: What refusals say beside Retry-After.
REFUSALS: dict[str, dict[str, bool]] = {
    "wordy": {},  # the limit and its dimension, as the case has it
    "mute": {"words": False},
    "terse": {"words": False, "retry_after_ms": False},  # and Retry-After in whole seconds
}


def run(name: str, seed: int, refusals: str = "wordy") -> Figures:
    """One seed of one case."""
    case = CASES[name].seeded(seed)
    case = replace(case, provider=replace(case.provider, **REFUSALS[refusals]))
    begun = time.perf_counter()
    laboratory = Laboratory(case.provider, jobs_of(case), seed=seed)
    result = laboratory.run(float("inf") if case.finite is not None else case.horizon_s + 5.0)
    mean = case.mean()
    if case.finite is not None:
        share = oracle_time_s(case.provider, case.finite, mean) / result.ended_s
    else:
        best = oracle(case.provider, case.horizon_s, mean)
        share = best.worth(delivered(result.arrivals, case.horizon_s), mean) / best.calls
    within = [arrival for arrival in result.arrivals if case.finite is not None or arrival.t <= case.horizon_s]
    refused = sum(arrival.status == 429 and arrival.fault is None for arrival in within)
    return Figures(
        share=share,
        refused=refused / max(1, len(within)),
        requests=len(within),
        into_faults=sum(arrival.fault is not None for arrival in within),
        failed=result.failed,
        twice=len(duplicates(arrival for arrival in within if arrival.good)),
        adapts_s=adapts_s(case, [arrival.t for arrival in within if arrival.good]),
        took_s=time.perf_counter() - begun,
    )


def adapts_s(case: Case, good: list[float]) -> float | None:
    """Seconds from the last change of the limit to the first second with four fifths of it; None: nothing changes."""
    edges = [
        edge
        for entry in case.provider.timeline
        if entry.match is None
        for edge in (entry.at_s, entry.at_s + (entry.for_s or float("inf")))
        if 0 < edge < case.horizon_s - 5
    ]
    if not edges:
        return None
    last = max(edges)
    rpm = case.provider.rpm or 0.0
    for entry in case.provider.timeline:
        if entry.rpm is not None and entry.at_s <= last < entry.at_s + (entry.for_s or float("inf")):
            rpm = entry.rpm
    start = last
    while start < case.horizon_s - 1:
        if sum(start <= at < start + 1 for at in good) >= 0.8 * rpm / 60:
            return start - last
        start += 0.1
    return case.horizon_s - last


#: name → (calls, share of sick answers, policy). Failures come back ten times as fast as answers.
TRIALS = {
    "50,000 calls, 1 % sick, evidence": (50_000, 0.01, "evidence"),
    "2,000 calls, 10 % sick, evidence": (2_000, 0.10, "evidence"),
    "2,000 calls, 10 % sick, literal": (2_000, 0.10, "literal"),
}


def trial(name: str, seed: int) -> tuple[list[tuple[float, str]], int]:
    """One seed → (moves of the mode with their times, calls given up)."""
    calls, share, policy = TRIALS[name]
    faults = (Entry(fault=Fault.SERVER_ERROR, share=share), Entry(fault=Fault.SLOW, factor=10.0))
    rpm = 6000 if calls > 10_000 else 600
    provider = Scenario(rpm=rpm, latency="lognormal(0.05, 0.3)", timeline=faults, seed=seed)
    case = replace(CASES["steady"], provider=provider, finite=calls, seed=seed)
    rules = rules_of(read_settings({"MAISD_ESCALATION_POLICY": policy}))
    laboratory = Laboratory(provider, jobs_of(case), rules=rules, seed=seed, slots=256)
    result = laboratory.run()
    return [*result.moves, (result.ended_s, "end")], result.failed


def print_trials(seeds: int, jobs: int) -> None:
    """A line a trial."""
    print("| trial | seeds that escalated | longest, s | EMERGENCY in | given up |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(jobs) as pool:
        for name in TRIALS:
            rows = list(pool.map(trial, [name] * seeds, range(seeds)))
            lasted = [
                after - at
                for moves, _ in rows
                for (at, move), (after, _) in pairwise(moves)
                if move.split()[1] in {"REDUCED", "EMERGENCY"}
            ]
            emergencies = sum(any(move.split()[1:2] == ["EMERGENCY"] for _, move in moves) for moves, _ in rows)
            print(
                f"| {name} | {sum(len(moves) > 1 for moves, _ in rows)} of {seeds} | {max(lasted, default=0.0):.1f} "
                f"| {emergencies} | {sum(failed for _, failed in rows)} |",
                flush=True,
            )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed; use fresh ones to check what was tuned")
    parser.add_argument("--refusals", default="wordy", choices=list(REFUSALS), help="mute: no limit in words")
    parser.add_argument("--modes", action="store_true")
    told = parser.parse_args()
    if told.modes:
        print_trials(told.seeds, told.jobs)
        return
    print("| scenario | share of the oracle: median (least) | 429s: median (most) | adapts | faulty | failed | twice |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(told.jobs) as pool:
        for name in told.case:
            seeds = range(told.first, told.first + told.seeds)
            rows = list(pool.map(run, [name] * told.seeds, seeds, [told.refusals] * told.seeds))
            shares, refused = [row.share for row in rows], [row.refused for row in rows]
            adapts = [row.adapts_s for row in rows if row.adapts_s is not None]
            print(
                f"| {name} | {median(shares):.1%} ({min(shares):.1%}) | {median(refused):.2%} ({max(refused):.2%}) "
                f"| {f'{median(adapts):.1f} s' if adapts else ''} | {median(row.into_faults for row in rows):.0f} "
                f"| {sum(row.failed for row in rows)} | {sum(row.twice for row in rows)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
