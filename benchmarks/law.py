"""How good is the law? Every named scenario in virtual time, over many seeds, compared with the oracle.

    python benchmarks/law.py [--seeds 20] [--first 0] [--case steady …] [--jobs 2] [--refusals mute] [--travel 0.05]
    python benchmarks/law.py --modes [--seeds 20]      does the mode change although the provider is not away?
    python benchmarks/law.py --fault [--seeds 20]      is a fault of one call, task or process blamed on the provider?

Goodput is a share of the answers that the oracle gets within the horizon (simulate/oracle.py); in a finite case, the
oracle's time as a share of the lane's. *429s*: share of all requests. *adapts*: seconds from the last change of the
provider's limit until the good answers of a second reach four fifths of it.
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ratelimit_worker.config import read_settings  # noqa: E402
from ratelimit_worker.flow.lane.decide import rules_of  # noqa: E402
from ratelimit_worker.simulate import Entry, Fault, Scenario  # noqa: E402
from ratelimit_worker.simulate.arrivals import duplicates  # noqa: E402
from ratelimit_worker.simulate.oracle import delivered, oracle, oracle_time_s  # noqa: E402
from ratelimit_worker.simulate.scenarios import CASES, Case  # noqa: E402
from tests.laboratory import Job, Laboratory, jobs_of  # noqa: E402

#: Slots in cases for which the usual 64 are too few.
SLOTS = {"knee": 128, "knee_flat": 128}


@dataclass(frozen=True)
class Figures:
    """The result of one seed."""

    share: float  #: of what the oracle gets
    refused: float  #: share of 429s among the requests
    requests: int
    into_faults: int  #: requests that met a scripted fault
    failed: int  #: calls that were given up
    twice: int  #: calls that got more than one good answer
    adapts_s: float | None  #: None: the limit does not change
    took_s: float  #: of real time


#: What refusals contain in addition to Retry-After.
REFUSALS: dict[str, dict[str, Any]] = {
    "wordy": {},  # the limit and its dimension, as the case has it
    "mute": {"words": False},
    "terse": {"words": False, "retry_after_ms": False},  # and Retry-After in whole seconds
}


def run(name: str, seed: int, refusals: str = "wordy", travel_s: float = 0.003) -> Figures:
    """One seed of one case."""
    case = CASES[name].seeded(seed)
    case = replace(case, provider=replace(case.provider, **REFUSALS[refusals]))
    begun = time.perf_counter()
    laboratory = Laboratory(case.provider, jobs_of(case), seed=seed, slots=SLOTS.get(name, 64), travel_s=travel_s)
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
    """Seconds from the last change of the limit to the first second with four fifths of it; None: no change."""
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


#: name → (calls, share of sick answers, escalation policy). Failures come ten times as fast as answers.
TRIALS = {
    "50,000 calls, 1 % sick, evidence": (50_000, 0.01, "evidence"),
    "2,000 calls, 10 % sick, evidence": (2_000, 0.10, "evidence"),
    "2,000 calls, 10 % sick, literal": (2_000, 0.10, "literal"),
}


def trial(name: str, seed: int) -> tuple[list[tuple[float, str]], int]:
    """One seed; returns the changes of the mode with their times, and the number of calls given up."""
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
    """Print one line for each trial."""
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


RPM, TRIAL_SLOTS, LATENCY = 600, 16, "lognormal(0.2, 0.3)"
FIRST, SECOND, ALONE_S = 30, 300, 30.0  #: good calls before and after, and how long only bad ones are there in between
BAD = "[[bad]]"


@dataclass(frozen=True, kw_only=True)
class Blamed:
    """Calls that always fail in a healthy lane: 30 good ones, then only bad ones, then 300 good ones."""

    tasks: tuple[str, ...] = ()  #: one bad call for each of these tasks, which always gets `fault`
    fault: Fault = Fault.SERVER_ERROR
    lost: int = 0  #: calls of one of four processes, which cannot reach the provider


@dataclass(frozen=True, kw_only=True)
class Away:
    """An outage of `for_s` seconds after 30 good calls, while `calls` wait."""

    calls: int
    for_s: float = 30.0
    fault: Fault = Fault.OUTAGE


BLAMED = {
    "one call always 500": Blamed(tasks=("a",)),
    "three calls of three tasks always 500": Blamed(tasks=("a", "b", "c")),
    "one call always 502": Blamed(tasks=("a",), fault=Fault.BAD_GATEWAY),
    "one of four processes is lost, 1 call": Blamed(lost=1),
    "one of four processes is lost, 20 calls": Blamed(lost=20),
}
AWAY = {f"outage of 30 s, {calls} waiting": Away(calls=calls) for calls in (1, 2, 5, 20, 1000)}


def good_calls(count: int, prefix: str, at_s: float, processes: int) -> list[Job]:
    """Calls that the provider answers, made at the same time by `processes` processes."""
    rows = jobs_of(replace(CASES["steady"], finite=count))
    return [
        replace(job, name=f"{prefix}{job.name}", at_s=at_s, process=f"p{i % processes}" if processes else None)
        for i, job in enumerate(rows)
    ]


def bad_call(name: str, task: str, process: str | None = None) -> Job:
    """A call that always fails, made after the first good ones."""
    (row,) = jobs_of(replace(CASES["steady"], finite=1))
    body = row.body.replace(b'"content":"', f'"content":"{BAD} '.encode())
    return replace(row, name=name, body=body, task=task, process=process, at_s=FIRST / RPM * 60 + 2)


def blame(name: str, seed: int) -> tuple[float, float, float, int, list[str]]:
    """One seed.

    Returns:
        Seconds that the second good calls take with the bad ones, and without; when the last bad one ended, in seconds
        after these good calls came (inf: it did not); the most requests of a bad call; the changes of the mode.
    """
    trial = BLAMED[name]
    provider = Scenario(rpm=RPM, latency=LATENCY, timeline=(Entry(fault=trial.fault, match=BAD),), seed=seed)
    processes = 3 if trial.lost else 0
    second_s = FIRST / RPM * 60 + 2 + ALONE_S

    def time_of(bad: list[Job]) -> tuple[float, list[str]]:
        good = [*good_calls(FIRST, "f", 0.0, processes), *good_calls(SECOND, "s", second_s, processes)]
        laboratory = Laboratory(
            provider, [*good, *bad], seed=seed, slots=TRIAL_SLOTS, workers=("w0", "w1"), lost=("lost",)
        )  # fmt: skip
        result = laboratory.run(second_s + 200)
        return max(job.ended_s or float("inf") for job in good) - second_s, [move for _, move in result.moves]

    bad = [bad_call(f"bad{i}", task) for i, task in enumerate(trial.tasks)]
    bad += [bad_call(f"lost{i}", "task", "lost") for i in range(trial.lost)]
    took_s, moves = time_of(bad)
    alone_s, _ = time_of([])
    ended = max((job.ended_s or float("inf")) - second_s for job in bad)
    return took_s, alone_s, ended, max(job.sent for job in bad), moves


def away(name: str, seed: int) -> tuple[int, float, int]:
    """One seed; returns requests during the outage, seconds from its end to the first good answer, calls given up."""
    trial = AWAY[name]
    at_s = FIRST / RPM * 60 + 2
    outage = Entry(at_s=at_s, for_s=trial.for_s, fault=trial.fault)
    provider = Scenario(rpm=RPM, latency=LATENCY, timeline=(outage,), seed=seed)
    jobs = [*good_calls(FIRST, "f", 0.0, 0), *good_calls(trial.calls, "s", at_s + 0.1, 0)]
    laboratory = Laboratory(provider, jobs, seed=seed, slots=TRIAL_SLOTS, workers=("w0", "w1"))
    result = laboratory.run()
    first = result.arrivals[0].t
    into = sum(arrival.fault is not None for arrival in result.arrivals)
    end = first + at_s + trial.for_s
    back = min(arrival.t + arrival.latency_s - end for arrival in result.arrivals if arrival.good and arrival.t >= end)
    return into, back, result.failed


def print_faults(seeds: int, jobs: int) -> None:
    """Print one line for each trial of `--fault`."""
    with ProcessPoolExecutor(jobs) as pool:
        print("| trial | good calls, × their time without (most) | later by, s (most) | ended after, s (most) "
              "| requests of one (most) | seeds in EMERGENCY |\n|---|---|---|---|---|---|")  # fmt: skip
        for name in BLAMED:
            blamed = list(pool.map(blame, [name] * seeds, range(seeds)))
            times, later = [took / alone for took, alone, *_ in blamed], [took - alone for took, alone, *_ in blamed]
            ended, sent = [row[2] for row in blamed], [row[3] for row in blamed]
            emergencies = sum(any(move.split()[1] == "EMERGENCY" for move in row[4]) for row in blamed)
            print(f"| {name} | {median(times):.3f} ({max(times):.3f}) | {median(later):.2f} ({max(later):.2f}) "
                  f"| {median(ended):.0f} ({max(ended):.0f}) | {median(sent):.0f} ({max(sent)}) | {emergencies} |",
                  flush=True)  # fmt: skip
        print("\n| trial | requests into it: median (most) | back after, s (most) | given up |\n|---|---|---|---|")
        for name in AWAY:
            rows = list(pool.map(away, [name] * seeds, range(seeds)))
            into, back = [row[0] for row in rows], [row[1] for row in rows]
            print(f"| {name} | {median(into):.0f} ({max(into)}) | {median(back):.2f} ({max(back):.2f}) "
                  f"| {sum(row[2] for row in rows)} |", flush=True)  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first seed; use fresh ones to check what was tuned")
    parser.add_argument("--refusals", default="wordy", choices=list(REFUSALS), help="mute: no limit in words")
    parser.add_argument("--travel", type=float, default=0.003, help="seconds from release to the provider, and back")
    parser.add_argument("--modes", action="store_true")
    parser.add_argument("--fault", action="store_true")
    told = parser.parse_args()
    if told.fault:
        print_faults(told.seeds, told.jobs)
        return
    if told.modes:
        print_trials(told.seeds, told.jobs)
        return
    print("| scenario | share of the oracle: median (least) | 429s: median (most) | adapts | faulty | failed | twice |")
    print("|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(told.jobs) as pool:
        for name in told.case:
            seeds = range(told.first, told.first + told.seeds)
            rows = list(
                pool.map(run, [name] * told.seeds, seeds, [told.refusals] * told.seeds, [told.travel] * told.seeds)
            )
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
