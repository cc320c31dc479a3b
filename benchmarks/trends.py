"""How often are trends false alarms, and how soon is a doubling found? `python -m benchmarks.trends [--series 500]`.
`--kinds bursty errors --rates 5 20`: these rows alone. `--jobs 2`: processes, as many as processors by default.

Series of latencies in which nothing changes, of five kinds at 5, 20 and 100 calls a minute: each has two and a half
hours of history and is then judged once a minute for two hours, as alerts do it. A series that is ever judged as
"degrading" or "improving" is a false alarm. Then all latencies double, and it is judged for ten more minutes.

Goals: false alarms in at most 2 % of series; a doubling found within 10 minutes at 5 a minute and within 4 at 20,
in 95 % of series.
"""

from __future__ import annotations

import argparse
import math
import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from ratelimit_worker.policy.histogram import Histogram, bucket
from ratelimit_worker.policy.trend import LOOK_BACK_MIN, Trend, of_shares, of_values

WATCHED_MIN, AFTER_MIN = 120, 10
RATES = (5, 20, 100)  #: calls a minute
WITHIN_MIN = {5: 10, 20: 4, 100: 4}
ERRORS = "errors"  #: the rows of shares of errors
MOST_FALSE, LEAST_FOUND = 0.02, 0.95
#: How a function of a seed is applied to all seeds: `map`, or the same over processes.
Spread = Callable[[Callable[[int], Any], Iterable[int]], Iterable[Any]]


def lognormal(drawn: random.Random) -> float:
    """Most near the median, 1 s."""
    return drawn.lognormvariate(0.0, 0.5)


def heavy(drawn: random.Random) -> float:
    """Some very long."""
    return drawn.paretovariate(1.5)


def of_two_sizes(drawn: random.Random) -> float:
    """A fifth is seven times as long."""
    return drawn.lognormvariate(2.0 if drawn.random() < 0.2 else 0.0, 0.4)


@dataclass(frozen=True)
class Kind:
    """A kind of noise in a series without a trend."""

    name: str
    draw: Callable[[random.Random], float]  #: a latency, seconds
    burst: float = 0.0  #: share of minutes with four times the calls
    together: float = 0.0  #: standard deviation of the logarithm of a factor that all calls of a minute share
    daily: float = 0.0  #: amplitude of the latency over the day, as a share
    daily_calls: float = 0.0  #: amplitude of the number of calls over the day, as a share


KINDS = (
    Kind("plain", lognormal),
    Kind("bursty", lognormal, burst=0.1, together=0.1),
    Kind("daily shape", lognormal, daily=0.3, daily_calls=0.6),
    Kind("heavy tails", heavy),
    Kind("two sizes", of_two_sizes),
)


def poisson(drawn: random.Random, mean: float) -> int:
    """A random number of calls with a Poisson distribution."""
    if mean > 50:
        return max(0, round(drawn.gauss(mean, math.sqrt(mean))))
    level, count, product = math.exp(-mean), 0, drawn.random()
    while product > level:
        count, product = count + 1, product * drawn.random()
    return count


def series(kind: Kind, per_min: int, seed: int, minutes: int, doubled_from: int) -> list[Histogram]:
    """Histograms of latencies by minute; from minute `doubled_from` on latencies are doubled."""
    drawn = random.Random(f"{kind.name} {per_min} {seed}")
    phase, shared, found = drawn.uniform(0, math.tau), 0.0, []
    for minute in range(minutes):
        day = math.sin(phase + math.tau * minute / 1_440)
        shared = 0.6 * shared + 0.8 * drawn.gauss(0, kind.together)
        quiet = (1 - 4 * kind.burst) / (1 - kind.burst) if kind.burst else 1.0
        busy = 4.0 if drawn.random() < kind.burst else quiet
        scale = (1 + kind.daily * day) * math.exp(shared) * (2.0 if minute >= doubled_from else 1.0)
        counts = Histogram()
        for _ in range(poisson(drawn, per_min * busy * (1 + kind.daily_calls * day))):
            index = bucket(scale * kind.draw(drawn))
            counts[index] = counts.get(index, 0) + 1
        found.append(counts)
    return found


def quiet_and_doubled(kind: Kind, per_min: int, seed: int) -> tuple[bool, int | None]:
    """Whether a series without a trend is a false alarm, and the minutes until a doubling is found (None: never)."""
    quiet_until = LOOK_BACK_MIN + WATCHED_MIN
    minutes = series(kind, per_min, seed, quiet_until + AFTER_MIN, quiet_until)
    looks = range(LOOK_BACK_MIN, quiet_until + 1)
    seen = {of_values(minutes[end - LOOK_BACK_MIN : end]).trend for end in looks}
    false = not seen <= {Trend.STABLE, Trend.UNKNOWN}
    for after in range(1, AFTER_MIN + 1):
        end = quiet_until + after
        if of_values(minutes[end - LOOK_BACK_MIN : end]).trend is Trend.DEGRADING:
            return false, after
    return false, None


def errors(per_min: int, share: float, seed: int) -> bool:
    """Whether a steady share of errors, with some bad minutes, is a false alarm."""
    drawn = random.Random(f"errors {per_min} {share} {seed}")
    minutes = []
    for _ in range(LOOK_BACK_MIN + WATCHED_MIN):
        calls = poisson(drawn, per_min)
        bad = share * (3.0 if drawn.random() < 0.1 else 7 / 9)
        minutes.append((sum(drawn.random() < bad for _ in range(calls)), calls))
    looks = range(LOOK_BACK_MIN, len(minutes) + 1)
    seen = {of_shares(minutes[end - LOOK_BACK_MIN : end]).trend for end in looks}
    return not seen <= {Trend.STABLE, Trend.UNKNOWN}


def main() -> None:
    """Print the table, each figure with its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=500, help="of each kind and rate (500)")
    names = [*(kind.name for kind in KINDS), ERRORS]
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, metavar="KIND", help=", ".join(names))
    parser.add_argument("--rates", nargs="+", type=int, choices=RATES, default=RATES, help="calls a minute")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes (as many as processors)")
    told = parser.parse_args()
    print(f"{told.series} series each; load {os.getloadavg()[0]:.1f}")
    with ProcessPoolExecutor(told.jobs) as pool:
        spread = partial(pool.map, chunksize=5)
        if told.kinds != [ERRORS]:
            values(told.series, [kind for kind in KINDS if kind.name in told.kinds], told.rates, spread)
        if ERRORS in told.kinds:
            shares(told.series, told.rates, spread)
    took = os.times()
    print(f"{took.user + took.children_user:.0f} s of processor time")


def verdict(kept: bool) -> str:
    """The end of a row, by which `make bench` knows that a goal was missed."""
    return "" if kept else "  MISSED"


def values(wanted: int, kinds: Sequence[Kind], rates: Sequence[int], spread: Spread = map) -> None:
    """A row for each kind of latencies and each rate."""
    print(f"{'kind':<14}{'calls/min':>10}{'false':>9}{'goal':>7}{'found':>9}{'in time':>9}{'goal':>7}{'median':>8}")
    for kind in kinds:
        for per_min in rates:
            told = list(spread(partial(quiet_and_doubled, kind, per_min), range(wanted)))
            false = sum(one for one, _ in told) / wanted
            found = sorted(after if after is not None else AFTER_MIN + 1 for _, after in told)
            in_time = sum(after <= WITHIN_MIN[per_min] for after in found) / wanted
            middle = found[wanted // 2]
            print(
                f"{kind.name:<14}{per_min:>10}{false:>9.1%}{MOST_FALSE:>7.0%}"
                f"{sum(after <= AFTER_MIN for after in found) / wanted:>9.1%}{in_time:>9.1%}{LEAST_FOUND:>7.0%}"
                f"{middle:>6} min{verdict(false <= MOST_FALSE and in_time >= LEAST_FOUND)}",
                flush=True,
            )


def shares(wanted: int, rates: Sequence[int], spread: Spread = map) -> None:
    """A row for each steady share of errors and each rate."""
    for share in (0.0, 0.01, 0.05, 0.2):
        for per_min in rates:
            false = sum(spread(partial(errors, per_min, share), range(wanted))) / wanted
            kept = verdict(false <= MOST_FALSE)
            print(f"{f'errors {share:.0%}':<14}{per_min:>10}{false:>9.1%}{MOST_FALSE:>7.0%}{kept}", flush=True)


if __name__ == "__main__":
    main()
