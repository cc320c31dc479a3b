"""How much of a budget of tokens a minute does a lane use if the lengths of answers are not known in advance?

    python benchmarks/tokens.py [--seeds 20] [--calls 3000] [--tpm 90000]

Calls with lognormal output lengths (median 200, sigma 0.8) all wait from the start, in virtual time. Used are the
estimate (`policy/estimate.py`), a model of a lane's token bucket as in stores/lua, and the simulated provider's
`Budget`. There are no headers, which would tell the lane what is left. The provider charges on admission (input +
max_tokens, or 256 if the call does not name it), and with the answer either gives back what was not used, or keeps it.
"used" is what it charged and kept, as a share of all that it could give until the last call was sent: a full bucket and
its inflow. Prints a Markdown table: medians over the seeds, and the worst value.
"""

from __future__ import annotations

import argparse
import heapq
import math
import platform
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from ratelimit_worker.calls import Cost, Usage
from ratelimit_worker.policy import estimate
from ratelimit_worker.policy.estimate import Learned, Sample, Size
from ratelimit_worker.simulate.bucket import Admitted, Budget, Refused

MEDIAN, SIGMA, MAX_TOKENS = 200.0, 0.8, 1000
PROVIDER_DEFAULT = 256  #: output tokens charged for a call without max_tokens
BURST_S = 10.0  #: depth of the provider's bucket, seconds of its rate
DEPTH_S = 0.25  #: depth of the lane's bucket without headers, seconds of its rate (policy/pace.py)
LATENCY_S, PER_TOKEN_S, REFUSAL_S = 0.5, 0.01, 0.05  #: a model answers at 100 tokens/s
LEARNS_EVERY_S = 10.0  #: how often callers get what was learned
DOUBT_S, MOST_DOUBT_S, SLACK_S = 60.0, 3600.0, 2.0  #: as in stores/lua/shared/reconcile.lua
CAP = 64  #: calls at once


@dataclass(slots=True)
class Lane:
    """The token bucket of a lane, as the scripts keep it: `over` is what was given back beyond the depth."""

    rate: float  #: tokens/s
    reconcile: bool | None  #: whether unused tokens are given back to the bucket; None: until the provider refuses
    level: float = field(init=False)
    over: float = 0.0
    at: float = 0.0
    gate: float = 0.0
    gave: float = -math.inf
    doubt: float = -math.inf
    doubted: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.depth

    @property
    def depth(self) -> float:
        return max(1.0, DEPTH_S * self.rate)

    def earn(self, now: float) -> None:
        self.level = min(self.depth, self.level + self.rate * max(0.0, now - self.at))
        self.at = max(self.at, now)

    def wait_s(self, now: float, tokens: float) -> float:
        self.earn(now)
        missing = min(tokens, self.depth) - self.level - self.over
        return max(self.gate - now, 0.0 if missing <= 1e-9 else missing / self.rate)

    def change(self, now: float, tokens: float) -> None:
        self.earn(now)
        total = self.level + self.over
        total = total + tokens if tokens < 0 else max(total, min(total, self.depth) + tokens)
        self.over = max(0.0, total - self.depth)
        self.level = total - self.over

    def answered(self, now: float, unused: float) -> None:
        if self.reconcile is False or (self.reconcile is None and now < self.doubt):
            return
        self.change(now, unused)
        if unused > 0:
            self.gave = now

    def refused(self, now: float, tokens: float, retry_after_s: float) -> None:
        self.earn(now)
        self.level, self.over = min(0.0, self.level + self.over + tokens), 0.0
        self.gate = max(self.gate, now + retry_after_s)
        if now - self.gave <= DOUBT_S and now >= self.doubt and self.reconcile is None:
            anew = now - self.doubt > MOST_DOUBT_S
            self.doubted = DOUBT_S if anew else min(MOST_DOUBT_S, max(DOUBT_S, 2 * self.doubted))
            self.doubt, self.gave = now + self.doubted, -math.inf
            self.level -= max(SLACK_S * self.rate, 2 * tokens)


@dataclass(frozen=True, slots=True)
class Figures:
    """The result of one trace."""

    used: float  #: share of the budget that was used
    refused: float  #: share of the requests that were refused


def mean(learned: Learned, lengths: list[int]) -> Learned:
    """The estimate that is used in the product: the mean."""
    del lengths
    return learned


def p90(learned: Learned, lengths: list[int]) -> Learned:
    """A high quantile instead of the mean, which was tried; computed from all lengths so far."""
    if len(lengths) < estimate.LEAST_ANSWERS:
        return learned
    quantile = sorted(lengths)[int(0.9 * len(lengths))]
    return Learned(factor=learned.factor, factor_of=learned.factor_of, output_tokens=quantile, output_of=len(lengths))


def trace(seed: int, calls: int, most: int | None) -> tuple[list[int], list[int], list[int]]:
    """For each call: bytes of its prompt, tokens of its prompt, tokens of its answer (at most `most`)."""
    draw = random.Random(seed)
    texts = [max(8, round(draw.lognormvariate(math.log(1600), 0.5))) for _ in range(calls)]
    inputs = [max(1, round(size / 4 * draw.gauss(1.15, 0.1))) for size in texts]  # bytes / 4 is only an estimate
    lengths = [max(1, round(draw.lognormvariate(math.log(MEDIAN), SIGMA))) for _ in range(calls)]
    return texts, inputs, lengths if most is None else [min(most, length) for length in lengths]


def run(
    seed: int,
    *,
    calls: int = 3000,
    tpm: float = 90_000,
    named: bool,
    reconciles: bool,
    told: bool | None = None,
    guess: Callable[[Learned, list[int]], Learned] = mean,
) -> Figures:
    """One trace.

    Args:
        named: Whether the calls name `max_tokens`.
        reconciles: Whether the provider gives back what was not used.
        told: The lane's `reconcile`.
    """
    rate = tpm / 60.0
    budget, lane = Budget({"tokens": tpm}, BURST_S, 0.0), Lane(rate, told)
    texts, inputs, lengths = trace(seed, calls, MAX_TOKENS if named else None)
    waiting = list(reversed(range(calls)))
    events: list[tuple[float, int, str, int, float, float]] = []  # time, order, what, call, reserved, Retry-After
    learned, fresh, seen = Learned(), Learned(), list[int]()
    now = fresh_at = last_sent = charged = 0.0
    order = requests = refusals = running = 0
    while waiting or events:
        reserved, at = 0.0, math.inf
        if waiting and running < CAP:
            call = waiting[-1]
            size = Size(input_tokens=-(-texts[call] // 4), output_tokens=MAX_TOKENS if named else None)
            reserved = float(estimate.cost(size, guess(learned, seen)).tokens)
            at = now + lane.wait_s(now, reserved)
        if events and events[0][0] <= at:
            now, _, what, call, reserved, retry_after_s = heapq.heappop(events)
            running -= 1
            if what == "refused":
                lane.refused(now, reserved, retry_after_s)
                waiting.append(call)
                continue
            usage = Usage(inputs[call], lengths[call])
            took = inputs[call] + (MAX_TOKENS if named else PROVIDER_DEFAULT)
            if reconciles:
                unused = took - inputs[call] - lengths[call]
                budget.give_back(now, Cost(requests=0, output_tokens=unused), now)
                charged -= unused
            lane.answered(now, reserved - inputs[call] - lengths[call])
            fresh = estimate.learn(fresh, Sample(estimated_tokens=-(-texts[call] // 4), usage=usage, at=now))
            seen.append(lengths[call])
            if now >= fresh_at:
                learned, fresh_at = fresh, now + LEARNS_EVERY_S
            continue
        now = at
        waiting.pop()
        lane.change(now, -reserved)
        running, requests, order = running + 1, requests + 1, order + 1
        asked = Cost(input_tokens=inputs[call], output_tokens=MAX_TOKENS if named else PROVIDER_DEFAULT)
        match budget.admit(now, asked):
            case Admitted():
                charged += asked.tokens
                last_sent = now
                answer_at = now + LATENCY_S + PER_TOKEN_S * lengths[call]
                heapq.heappush(events, (answer_at, order, "answer", call, reserved, 0.0))
            case Refused(retry_after_s):
                refusals += 1
                heapq.heappush(events, (now + REFUSAL_S, order, "refused", call, reserved, retry_after_s))
    return Figures(used=charged / (rate * last_sent + rate * BURST_S), refused=refusals / requests)


VARIANTS = [
    (named, reconciles, told)
    for named in (True, False)
    for reconciles, told in ((True, None), (True, True), (False, None), (False, False))
]


def main() -> None:
    """Print the table."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--seeds", type=int, default=20)
    reader.add_argument("--calls", type=int, default=3000)
    reader.add_argument("--tpm", type=float, default=90_000)
    asked = reader.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, Python {platform.python_version()}")
    print(f"{asked.calls} calls, {asked.tpm:,.0f} tokens/min, {asked.seeds} seeds: median (worst)\n")
    print("| max_tokens | provider | lane's `reconcile` | estimate | used, % | 429s, % |")
    print("|---|---|---|---|---|---|")
    for named, reconciles, told in VARIANTS:
        for guess in (mean,) if named else (mean, p90):
            found = [
                run(
                    seed,
                    calls=asked.calls,
                    tpm=asked.tpm,
                    named=named,
                    reconciles=reconciles,
                    told=told,
                    guess=guess,
                )
                for seed in range(asked.seeds)
            ]
            used, refused = [one.used for one in found], [one.refused for one in found]
            print(
                f"| {MAX_TOKENS if named else '-'} | {'gives back' if reconciles else 'keeps'} "
                f"| {'auto' if told is None else str(told).lower()} | {'-' if named else guess.__name__} "
                f"| {100 * statistics.median(used):.1f} ({100 * min(used):.1f}) "
                f"| {100 * statistics.median(refused):.2f} ({100 * max(refused):.2f}) |"
            )


if __name__ == "__main__":
    main()
