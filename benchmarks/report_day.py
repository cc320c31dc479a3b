"""What does a report of a whole day look like? `make report-sample`, or `python -m benchmarks.report_day -o FILE`.

A day of traffic is simulated and written into a new database as the recorder, the tuner and the sampler would do it:
three lanes and two tenants; from 09:30 one provider is away for 35 minutes; from 13:00 another is slow, with too few
workers; from 15:00 a third refuses calls above its limit; at 12:00 one provider begins to cache input; from 14:00
answers are kept for longer, so more calls get the answer of another; one function always fails. Tests compare the
figures of the report with what was simulated.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from ratelimit_worker.calls import Attempt, Category, Mode, ModeChange, Outcome, PriceSource
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.contracts.rollup import ALL, Cell, CellKey, NamedSums, Only, Series
from ratelimit_worker.reports.analytics import write_report
from ratelimit_worker.reports.stats import Sources, Stats, fitted, stats
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker

DAY_MIN, HOUR_MIN, MIN_S = 1_440, 60, 60
OUTAGE = (570, 605)  #: minutes of the day in which the provider of `CLAUDE` is away
SLOW = (780, 1_080)  #: minutes in which the provider of `GPT` is slow
REFUSING = (900, 1_090)  #: minutes in which more is sent to the provider of `GEMINI` than its limit
CACHED_FROM = 720  #: minute from which the provider of `GPT` caches input
KEPT_LONGER_FROM = 840  #: minute from which answers are kept for longer
GPT, CLAUDE, GEMINI = "openai:gpt-4o", "anthropic:claude-sonnet", "google:gemini-flash"


@dataclass(frozen=True)
class Lane:
    """A lane: its limits and its traffic."""

    name: str
    allowed_per_min: float
    slots: int
    latency_s: float
    peak_per_min: float  #: calls made in the busiest minute
    usd_per_million: tuple[float, float]  #: prices of input and of output tokens


LANES = (
    Lane(GPT, 30.0, 5, 12.0, 13.0, (2.5, 10.0)),
    Lane(CLAUDE, 20.0, 10, 9.0, 8.0, (3.0, 15.0)),
    Lane(GEMINI, 9.0, 8, 3.0, 6.0, (0.1, 0.4)),
)
#: Task, context, and share of a lane's calls.
WORK = (("app.summarise", "documents", 0.5), ("app.answer", "support chat", 0.35), ("app.classify", "mail", 0.15))
BROKEN = "app.legacy_export"
#: Calls that get an answer of each function without a request, for each call that is sent: at first, and later.
REUSED = {"app.summarise": (0.05, 0.15), "app.answer": (0.2, 0.9), "app.classify": (0.1, 0.3)}
#: How they get it, and their shares.
WAYS = {Reuse.HITS: 0.8, Reuse.JOINED: 0.15, Reuse.STALE: 0.05}
EVICTED_SHARE = 0.04  #: of the answers


class Shared(NamedTuple):
    """A call that got the answer of another call, or found none and was sent; or an answer that was evicted."""

    at_s: float
    what: Reuse  #: one of `WAYS`, `MISSES` or `EVICTED`
    whose: Series
    bytes: int = 0  #: of the answer
    input_tokens: int = 0  #: spared, as the next two
    output_tokens: int = 0
    nanousd: int = 0


@dataclass
class Day:
    """What was simulated."""

    since_s: float
    attempts: list[Attempt] = field(default_factory=list)
    shared: list[Shared] = field(default_factory=list)
    samples: list[LaneSample] = field(default_factory=list)
    modes: list[ModeChange] = field(default_factory=list)

    @property
    def until_s(self) -> float:
        """The end of the day."""
        return self.since_s + DAY_MIN * MIN_S


class Simulation:
    """One lane, minute by minute.

    Args:
        drawn: For what is sent.
        again: For what is asked again.
        busy: Factor by which the traffic exceeds that of an ordinary day.
    """

    def __init__(self, day: Day, lane: Lane, drawn: random.Random, again: random.Random, busy: float) -> None:
        self.day, self.lane, self.drawn, self.again, self.busy = day, lane, drawn, again, busy
        self.backlog, self.calls = 0, 0

    def minute(self, minute: int) -> None:
        """Simulate one minute of the day: calls made, sent and answered, and the sample of the lane."""
        away = self.lane.name == CLAUDE and OUTAGE[0] <= minute < OUTAGE[1]
        slow = 3.2 if self.lane.name == GPT and SLOW[0] <= minute < SLOW[1] else 1.0
        crowd = 1.9 if self.lane.name == GEMINI and REFUSING[0] <= minute < REFUSING[1] else 1.0
        latency_s, allowed = self.lane.latency_s * slow, self.lane.allowed_per_min
        mode = mode_at(self.lane.name, minute)
        allowed *= {Mode.NORMAL: 1.0, Mode.REDUCED: 0.5, Mode.EMERGENCY: 0.05, Mode.HALT: 0.0}[mode]
        hour = minute / HOUR_MIN
        rate = self.lane.peak_per_min * crowd * (0.12 + 0.88 * max(0.0, math.sin(math.pi * (hour - 6.5) / 13.5)))
        self.backlog += poisson(self.drawn, rate * self.busy)
        can = min(allowed, self.lane.slots * MIN_S / latency_s) * self.busy
        sent = min(self.backlog, math.floor(can) + (self.drawn.random() < can % 1))
        waited_s = MIN_S * self.backlog / max(can, 0.1) / 2
        for place in range(sent):
            at_s = self.day.since_s + MIN_S * (minute + (place + self.drawn.random()) / max(1, sent))
            if away:
                self._attempt(at_s, 1.0, waited_s, Category.OVERLOADED, Outcome.SNOOZED)
                continue
            self._call(at_s, latency_s, waited_s, minute, crowd > 1)
            self.backlog -= 1
        self.day.samples.append(
            LaneSample(
                lane=self.lane.name,
                at_s=int(self.day.since_s) + MIN_S * minute,
                allowed_per_min=allowed * self.busy,
                waiting=self.backlog,
                running=min(sent, self.lane.slots),
                mode=mode,
            )
        )

    def _call(self, at_s: float, latency_s: float, waited_s: float, minute: int, crowded: bool) -> None:
        """A call until its end, with all its attempts."""
        took_s = latency_s * self.drawn.lognormvariate(0.0, 0.45)
        if crowded and self.drawn.random() < 0.22:
            self._attempt(at_s, 0.3, waited_s, Category.RATE_LIMITED, Outcome.SNOOZED, status=429)
            self._attempt(at_s + 5.0, took_s, 5.0, None, Outcome.ANSWERED, number=2, minute=minute)
        elif self.drawn.random() < 0.02:
            self._attempt(at_s, took_s, waited_s, Category.SERVER_ERROR, Outcome.RETRIED, status=500, charged=True)
            self._attempt(at_s + took_s + 2.0, took_s, 2.0, None, Outcome.ANSWERED, number=2, minute=minute)
        elif self.lane.name == GPT and self.drawn.random() < 0.012:
            self._attempt(
                at_s, 0.4, waited_s, Category.INVALID_REQUEST, Outcome.FAILED, status=400, work=(BROKEN, "nightly")
            )
        else:
            self._attempt(at_s, took_s, waited_s, None, Outcome.ANSWERED, minute=minute)

    def _attempt(
        self,
        at_s: float,
        took_s: float,
        waited_s: float,
        category: Category | None,
        outcome: Outcome,
        *,
        number: int = 1,
        status: int | None = None,
        charged: bool = False,
        minute: int = 0,
        work: tuple[str, str] | None = None,
    ) -> None:
        if number == 1:
            self.calls += 1
            self.of = work or self._work()
            self.tenant = "globex" if self.drawn.random() < 0.2 else "acme"
        answered = outcome is Outcome.ANSWERED
        counted = answered or charged
        tokens_in = self.drawn.randrange(400, 3_000) * (2 if self.tenant == "acme" else 1) if counted else None
        tokens_out = self.drawn.randrange(50, 600) if answered else 0 if charged else None
        price_in, price_out = self.lane.usd_per_million
        cached = 0
        if tokens_in and answered and self.lane.name == GPT and minute >= CACHED_FROM:
            cached = round(tokens_in * 0.6)
        saved = round(cached * price_in * 0.5 * 1_000)  # $1 for a million tokens is 1,000 billionths of $1 a token
        cost = round(((tokens_in or 0) * price_in + (tokens_out or 0) * price_out) * 1_000) - saved
        one = Attempt(
            call_id=f"{self.lane.name}-{self.calls}",
            number=number,
            lane=self.lane.name,
            task=self.of[0],
            context=self.of[1],
            tenant=self.tenant,
            outcome=outcome,
            category=category,
            status=status or (200 if answered else 503),
            started_at=at_s,
            finished_at=min(at_s + took_s, self.day.until_s - 0.001),
            waited_s=waited_s,
            queue="celery",
            provider=self.lane.name.partition(":")[0],
            model=self.lane.name.partition(":")[2],
            input_tokens=tokens_in,
            output_tokens=tokens_out,
            cached_input_tokens=cached or None,
            cost_nanousd=cost if counted else None,
            cached_saving_nanousd=saved or None,
            price_source=PriceSource.LIST if counted else None,
            worker="w1@host",
        )
        self.day.attempts.append(one)
        if answered:
            self._share(one, minute)

    def _work(self) -> tuple[str, str]:
        (task, context, _), *_ = self.drawn.choices(WORK, [share for *_, share in WORK])
        return task, context

    def _share(self, one: Attempt, minute: int) -> None:
        """Calls that get this answer without a request; the one that was sent had found none."""
        whose, answer_bytes = (
            Series(one.lane, one.task, one.context, one.tenant, ""),
            200 + 4 * (one.output_tokens or 0),
        )
        self.day.shared.append(Shared(min(one.started_at, one.finished_at), Reuse.MISSES, whose))
        for _ in range(poisson(self.again, REUSED[one.task][minute >= KEPT_LONGER_FROM])):
            (way,) = self.again.choices(list(WAYS), list(WAYS.values()))
            at_s = one.finished_at if way is Reuse.JOINED else one.finished_at + 600.0 * self.again.random()
            spared = (answer_bytes, one.input_tokens or 0, one.output_tokens or 0, one.cost_nanousd or 0)
            self.day.shared.append(Shared(min(at_s, self.day.until_s - 0.001), way, whose, *spared))
        if self.again.random() < EVICTED_SHARE:
            self.day.shared.append(Shared(one.finished_at, Reuse.EVICTED, whose, answer_bytes))


def poisson(drawn: random.Random, mean: float) -> int:
    """A number of events, of which there are so many on average."""
    level, count, product = math.exp(-mean), 0, drawn.random()
    while product > level:
        count, product = count + 1, product * drawn.random()
    return count


def mode_at(lane: str, minute: int) -> Mode:
    """The mode of a lane in a minute of the day."""
    if lane != CLAUDE:
        return Mode.NORMAL
    begin, end = OUTAGE
    steps = ((begin + 1, Mode.NORMAL), (begin + 2, Mode.REDUCED), (end + 2, Mode.EMERGENCY), (end + 8, Mode.REDUCED))
    return next((mode for before, mode in steps if minute < before), Mode.NORMAL)


def simulate(since_s: float, seed: int = 2026, busy: float = 1.0) -> Day:
    """A day from `since_s` on (seconds since the epoch, a whole minute); the same for the same seed."""
    day = Day(since_s)
    for lane in LANES:
        drawn, again = (random.Random(f"{seed} {lane.name}{what}") for what in ("", " again"))
        simulation, mode = Simulation(day, lane, drawn, again, busy), Mode.NORMAL
        for minute in range(DAY_MIN):
            simulation.minute(minute)
            now = mode_at(lane.name, minute)
            if now is not mode:
                worse = list(Mode).index(now) > list(Mode).index(mode)
                day.modes.append(
                    ModeChange(
                        id=f"{lane.name}-{minute}",
                        lane=lane.name,
                        from_mode=mode,
                        to_mode=now,
                        at=since_s + minute * MIN_S,
                        cause="overloaded in most answers" if worse else "answers came again",
                        who="law",
                    )
                )
                mode = now
    day.attempts.sort(key=lambda one: one.finished_at)
    return day


def reused(day: Day) -> Iterator[NamedSums]:
    """What was shared, in sums by minute, as the recorder finds them in Redis."""
    minutes: dict[int, dict[CellKey, Cell]] = {}
    for one in day.shared:
        at_s = int(one.at_s // MIN_S) * MIN_S
        sums = minutes.setdefault(at_s, {}).setdefault(CellKey(at_s, one.whose), Cell()).reuse
        told = {one.what: 1, Reuse.INPUT_TOKENS: one.input_tokens, Reuse.OUTPUT_TOKENS: one.output_tokens}
        told[Reuse.EVICTED_BYTES if one.what is Reuse.EVICTED else Reuse.BYTES] = one.bytes
        if one.what in WAYS:
            told[Reuse(f"{one.what}_nanousd")] = one.nanousd
        for name, number in told.items():
            sums[name.value] = sums.get(name.value, 0) + number
    for at_s, cells in minutes.items():
        yield NamedSums(f"reuse:{at_s}", cells)


def write(day: Day, url: str) -> None:
    """Write the day into a new database."""
    tracker = Tracker(engine_for(url))
    for rows in (day.attempts[start : start + 1_000] for start in range(0, len(day.attempts), 1_000)):
        tracker.record(rows)
    for sums in reused(day):
        tracker.add_sums(sums)
    tracker.record(day.modes)
    tracker.keep_samples(day.samples)


def figures(day: Day, url: str, only: Only = ALL) -> Stats:
    """The figures that `analytics` would give at the end of the day, without Redis."""

    def modes(since_s: float, until_s: float) -> Sequence[ModeChange]:
        newest = Tracker(engine_for(url)).mode_changes(since=since_s)
        return [change for change in reversed(newest) if change.at < until_s]

    queries = Queries(engine_for(url))
    sources = Sources(open_queries=lambda: queries, live=None, modes=modes)
    window_s = fitted(sources, DAY_MIN * MIN_S, day.until_s, only)
    return replace(stats(sources, window_s, day.until_s, only), missing=())  # without the note that there is no Redis


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("report-sample.html"), help="or .json, .csv")
    parser.add_argument("--seed", type=int, default=2026)
    wanted = parser.parse_args()
    midnight_s = (time.time() // 86_400 - 1) * 86_400
    with tempfile.TemporaryDirectory(prefix="rlw-report-") as folder:
        url, day = f"sqlite:///{folder}/tracking.db", simulate(midnight_s, wanted.seed)
        write(day, url)
        found = figures(day, url)
    write_report(found, wanted.output)
    print(f"{wanted.output}: {found.total.calls:,} calls, {found.total.attempts:,} attempts of one simulated day")


if __name__ == "__main__":
    main()
