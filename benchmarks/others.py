"""How good are other clients? The named scenarios in virtual time, as benchmarks/law.py measures ours.

    python benchmarks/others.py [--seeds 20] [--case steady …] [--jobs 2]

tenacity: 32 callers in a loop that is paced at the provider's true initial rate, with full jitter up to 60 s, and 10
attempts. AIMD: the same callers with additive increase and multiplicative decrease (race/aimd.py), which know no rate
at first, with full jitter up to 20 s. Neither reads a header; these are usual first solutions.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Protocol

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.race.aimd import AimdRate  # noqa: E402
from ratelimit_worker.simulate.arrivals import Arrival  # noqa: E402
from ratelimit_worker.simulate.http1 import Request  # noqa: E402
from ratelimit_worker.simulate.oracle import delivered, oracle, oracle_time_s  # noqa: E402
from ratelimit_worker.simulate.provider import Ending, Provider, Verdict  # noqa: E402
from ratelimit_worker.simulate.scenarios import CASES, Case  # noqa: E402
from tests.laboratory import PATH, jobs_of  # noqa: E402

CALLERS, ATTEMPTS = 32, 10
HANG_S = 600.0  # time-out of an SDK


class Limiter(Protocol):
    """A client's rate limiter."""

    def wait_s(self, now_s: float) -> float:
        """Seconds until the request may go."""
        ...

    def learn(self, now_s: float, refused: bool, /) -> None:
        """Take note of an answer, and whether it was a 429."""
        ...


class TrueRate:
    """One request in each interval, at the provider's initial rate."""

    def __init__(self, rpm: float) -> None:
        self.interval_s, self.next_s = 60.0 / rpm, 0.0

    def wait_s(self, now_s: float) -> float:
        turn_s = max(self.next_s, now_s)
        self.next_s = turn_s + self.interval_s
        return turn_s - now_s

    def learn(self, now_s: float, refused: bool) -> None:
        """Do nothing: the rate is fixed."""


CLIENTS: dict[str, tuple[Callable[[Case], Limiter], float, bool]] = {
    # limiter, cap of the wait in seconds, whether retries pass the limiter again
    "tenacity": (lambda case: TrueRate(case.nominal_rpm), 60.0, False),
    "aimd": (lambda case: AimdRate(0.0), 20.0, True),
}


class Client:
    """One client at one provider, on one virtual clock."""

    def __init__(self, case: Case, name: str) -> None:
        make, self.cap_s, self.paced_again = CLIENTS[name]
        self.limiter, self.draw = make(case), random.Random(case.seed)
        self.provider = Provider(case.provider, 0.0, "others")
        self.jobs = iter(jobs_of(case))
        self.line: deque[tuple[bytes, int]] = deque()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = 0
        self.seen: list[Arrival] = []  #: requests at the provider
        self.given_up = 0
        self.ended_s = 0.0  #: when the last call ended

    def run(self, horizon_s: float) -> None:
        """Run all calls, or until the horizon (virtual seconds)."""
        for _ in range(CALLERS):
            self.at(0.0, self.next_call)
        while self.events and self.events[0][0] <= horizon_s:
            now_s, _, what = heapq.heappop(self.events)
            what(now_s)

    def at(self, when_s: float, what: Callable[[float], None]) -> None:
        self.count += 1
        heapq.heappush(self.events, (when_s, self.count, what))

    def next_call(self, now_s: float) -> None:
        self.ended_s = now_s
        job = next(self.jobs, None)
        if job is not None:
            self.turn(job.body, 0, now_s)

    def turn(self, body: bytes, attempt: int, now_s: float) -> None:
        if attempt > 0 and not self.paced_again:
            self.send(body, attempt, now_s)
            return
        self.line.append((body, attempt))
        if len(self.line) == 1:
            self.at(now_s + self.limiter.wait_s(now_s), self.first_goes)

    def first_goes(self, now_s: float) -> None:
        body, attempt = self.line.popleft()
        self.send(body, attempt, now_s)
        if self.line:  # only one waits for the limiter, so that a lower rate applies to all after it
            self.at(now_s + self.limiter.wait_s(now_s), self.first_goes)

    def send(self, body: bytes, attempt: int, now_s: float) -> None:
        self.provider.begin(now_s)
        request = Request("POST", PATH, {"authorization": "Bearer race"}, body, True)
        verdict = self.provider.decide(request, now_s, now_s)
        self.seen.append(verdict.arrival)
        took_s = HANG_S if verdict.ending is Ending.HANG else verdict.arrival.latency_s
        self.at(now_s + took_s, partial(self.answered, body, attempt, verdict))

    def answered(self, body: bytes, attempt: int, verdict: Verdict, now_s: float) -> None:
        self.provider.give_back(verdict, now_s)
        arrival = verdict.arrival
        self.limiter.learn(now_s, arrival.status == 429)
        if arrival.good or arrival.status in {400, 401, 403, 404, 413, 422}:
            self.next_call(now_s)
        elif attempt + 1 >= ATTEMPTS:
            self.given_up += 1
            self.next_call(now_s)
        else:
            wait_s = self.draw.random() * min(self.cap_s, 2.0**attempt)
            self.at(now_s + wait_s, partial(self.turn, body, attempt + 1))


def run(name: str, client: str, seed: int) -> tuple[float, float, int]:
    """One seed; returns the share of the oracle, the share of 429s, and the calls given up."""
    case = CASES[name].seeded(seed)
    mean, at_work = case.mean(), Client(case, client)
    if case.finite is not None:
        at_work.run(float("inf"))
        oracles_s = oracle_time_s(case.provider, case.finite, mean)
        share = oracles_s / at_work.ended_s * (1 - at_work.given_up / case.finite)
    else:
        at_work.run(case.horizon_s + 5.0)
        best = oracle(case.provider, case.horizon_s, mean)
        share = best.worth(delivered(at_work.seen, case.horizon_s), mean) / best.calls
    within = [one for one in at_work.seen if case.finite is not None or one.t <= case.horizon_s]
    refused = sum(one.status == 429 and one.fault is None for one in within)
    return share, refused / max(1, len(within)), at_work.given_up


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--case", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--jobs", type=int, default=2)
    told = parser.parse_args()
    print("| scenario | " + " | ".join(f"{name}: share, 429s (median); given up" for name in CLIENTS) + " |")
    print("|---|" + "---|" * len(CLIENTS))
    with ProcessPoolExecutor(told.jobs) as pool:
        for name in told.case:
            cells = []
            for client in CLIENTS:
                rows = list(pool.map(run, [name] * told.seeds, [client] * told.seeds, range(told.seeds)))
                shares, refused, given_up = zip(*rows, strict=True)
                cells.append(f"{median(shares):.1%}, {median(refused):.1%}; {sum(given_up)}")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
