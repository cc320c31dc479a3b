"""Named scenarios in which clients are measured, as data: for real HTTP and for virtual time.

    case = CASES["step_down"].seeded(2)
    case.provider   the provider's script
    case.calls()    the calls to send: more than it can answer within case.horizon_s, or all of a finite case

A seed varies latencies, faults, the times of the neighbour's requests and the prompts; limits and times stay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from statistics import NormalDist, fmean
from typing import Any

from ratelimit_worker.calls import DIMENSIONS, Cost
from ratelimit_worker.simulate.draws import uniform
from ratelimit_worker.simulate.scenario import Entry, Fault, HeaderStyle, Limiter, Scenario

MODEL = "gpt-4o-mini"
#: Text in the prompt of a call that the provider always refuses.
POISON = "[[poison]]"
#: Calls a second in addition to what the limits allow, for clients that give calls up: if a client ran out of calls,
#: it would be measured by the number that it was given.
_SPARE_PER_S = 200
_STANDARD_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class RaceCall:
    """One call of a case."""

    custom_id: str
    prompt: str
    max_tokens: int

    def body(self) -> dict[str, Any]:
        """The body of its request; the provider's log shows `custom_id`."""
        return {
            "model": MODEL,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": self.prompt}],
            "metadata": {"custom_id": self.custom_id},
        }

    def cost(self) -> Cost:
        """What the provider charges for it when its JSON is written without spaces."""
        messages = json.dumps(self.body()["messages"], separators=(",", ":"))
        return Cost(input_tokens=math.ceil(len(messages.encode()) / 4), output_tokens=self.max_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the calls of a case ask for."""

    max_tokens: int = 32  #: the median, if they vary
    spread: float = 0.0  #: standard deviation of the logarithm of max_tokens; 0: all are equal
    least_tokens: int = 16  #: bounds of max_tokens, if they vary
    most_tokens: int = 2000
    poison: float = 0.0  #: share of the calls whose prompt has `POISON`

    def call(self, seed: int, number: int) -> RaceCall:
        """Call `number`, from 0; the same for the same seed."""
        tokens = self.max_tokens
        if self.spread > 0:
            deviations = _STANDARD_NORMAL.inv_cdf(max(uniform(seed, number, "max_tokens"), 1e-12))
            drawn = round(self.max_tokens * math.exp(self.spread * deviations))
            tokens = min(max(drawn, self.least_tokens), self.most_tokens)
        marked = f" {POISON}" if uniform(seed, number, "poison") < self.poison else ""
        prompt = f"In one sentence, what is so special about the number {seed * 1_000_000 + number}?{marked}"
        return RaceCall(f"s{seed}-{number:06d}", prompt, tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A provider, the calls that clients send to it, and how long they are measured."""

    name: str
    what: str
    provider: Scenario
    horizon_s: float = 60.0  #: from the first request on
    workload: Workload = field(default_factory=Workload)
    #: Number of calls, until all of which are answered it is measured; None: more than can be answered in the horizon.
    finite: int | None = None
    nominal_rpm: float  #: calls a minute that the provider takes at first; a static client knows only this
    seed: int = 0

    def seeded(self, seed: int) -> Case:
        """The same case with other latencies, faults, prompts and costs."""
        return replace(self, seed=seed, provider=replace(self.provider, seed=seed))

    def calls(self, horizon_s: float | None = None) -> list[RaceCall]:
        """The calls that each client gets; `horizon_s`: seconds, None for the case's own horizon."""
        return [self.workload.call(self.seed, number) for number in range(self._count(horizon_s))]

    def mean(self, horizon_s: float | None = None) -> dict[str, float]:
        """Mean cost of a call by dimension of `DIMENSIONS`, without calls that are always refused."""
        costs = [call.cost().vector() for call in self.calls(horizon_s) if POISON not in call.prompt]
        return dict(zip(DIMENSIONS, (fmean(column) for column in zip(*costs, strict=True)), strict=True))

    def _count(self, horizon_s: float | None) -> int:
        if self.finite is not None:
            return self.finite
        watched_s = self.horizon_s if horizon_s is None else horizon_s
        most_rpm = max([self.nominal_rpm, *(entry.rpm for entry in self.provider.timeline if entry.rpm is not None)])
        kept_s = self.provider.burst_s if self.provider.limiter is Limiter.BUCKET else self.provider.window_s
        return math.ceil(most_rpm / 60 * (watched_s + kept_s) + _SPARE_PER_S * watched_s)


def _provider(**fields: Any) -> Scenario:
    return Scenario(**({"latency": "lognormal(0.2, 0.3)", "refusal_latency": "0.02"} | fields))


def _cases() -> Iterator[Case]:
    yield from _limits_that_move()
    yield from _bad_days()
    yield from _other_windows()
    yield from _bound_in_hand()
    yield from _told_by_refusals()


def _limits_that_move() -> Iterator[Case]:
    """Limits that stay or change, of requests and of tokens."""
    yield Case(name="steady", what="600/min", provider=_provider(rpm=600), nominal_rpm=600)
    yield Case(
        name="step_down",
        what="1200, then 200, then 1200/min, 20 s each",
        provider=_provider(rpm=1200, timeline=(Entry(at_s=20, for_s=20, rpm=200),)),
        nominal_rpm=1200,
    )
    yield Case(
        name="sawtooth",
        what="900 and 300/min in turn, 10 s each",
        provider=_provider(rpm=900, timeline=tuple(Entry(at_s=at_s, for_s=10, rpm=300) for at_s in (10, 30, 50))),
        nominal_rpm=900,
    )
    yield Case(
        name="unknown_no_headers",
        what="600/min, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=600, headers=HeaderStyle.NONE),
        nominal_rpm=600,
    )
    yield Case(
        name="unknown_stepping",
        what="600, then 240, then 900/min, 20 s each, told by nothing but 429s and their Retry-After",
        provider=_provider(
            rpm=600,
            headers=HeaderStyle.NONE,
            timeline=(Entry(at_s=20, for_s=20, rpm=240), Entry(at_s=40, rpm=900)),
        ),
        nominal_rpm=600,
    )
    yield Case(
        name="tokens_bound",
        what="300,000 tokens/min, which are about 600 calls of very different length, and 6000 requests/min",
        provider=_provider(rpm=6000, tpm=300_000),
        workload=Workload(max_tokens=400, spread=0.6),
        nominal_rpm=600,
    )


def _bad_days() -> Iterator[Case]:
    """Outages, slow answers, neighbours, bad requests, and many calls at once."""
    yield Case(
        name="outage",
        what="600/min, and 503 on everything for 30 s in the middle",
        provider=_provider(rpm=600, timeline=(Entry(at_s=22.5, for_s=30, fault=Fault.OUTAGE),)),
        horizon_s=75.0,
        nominal_rpm=600,
    )
    yield Case(
        name="brownout",
        what="600/min; for 30 s in the middle latency × 10, and every fifth request gets a 529",
        provider=_provider(
            rpm=600,
            timeline=(
                # The 529 comes first, so that it is not slowed down: failures come back faster than answers.
                Entry(at_s=15, for_s=30, fault=Fault.OVERLOADED, share=0.2),
                Entry(at_s=15, for_s=30, fault=Fault.SLOW, factor=10),
            ),
        ),
        nominal_rpm=600,
    )
    yield Case(
        name="neighbour",
        what="600/min, of which somebody else takes half for 20 s in the middle",
        provider=_provider(rpm=600, timeline=(Entry(at_s=20, for_s=20, neighbour_rpm=300),)),
        nominal_rpm=600,
    )
    yield Case(
        name="poison",
        what="600/min; one call in twenty is a bad request (400)",
        provider=_provider(rpm=600, timeline=(Entry(match=POISON, fault=Fault.BAD_REQUEST),)),
        workload=Workload(poison=0.05),
        nominal_rpm=600,
    )
    yield Case(
        name="thousand_at_once",
        what="1200/min, and 1,000 calls that all wait from the start",
        provider=_provider(rpm=1200),
        finite=1000,
        nominal_rpm=1200,
    )


def _other_windows() -> Iterator[Case]:
    """Limits that are not counted in a shallow bucket, and headers that come late."""
    yield Case(
        name="minute_bucket",
        what="600/min in a bucket as deep as the minute",
        provider=_provider(rpm=600, burst_s=60.0),
        nominal_rpm=600,
    )
    yield Case(
        name="sliding",
        what="600/min as 100 in any trailing 10 s",
        provider=_provider(rpm=600, limiter=Limiter.SLIDING, window_s=10.0),
        nominal_rpm=600,
    )
    yield Case(
        name="sliding_minute",
        what="600 in any trailing 60 s",
        provider=_provider(rpm=600, limiter=Limiter.SLIDING, window_s=60.0),
        horizon_s=130.0,
        nominal_rpm=600,
    )
    yield Case(
        name="late_headers",
        what="600/min in a bucket of 10 s; headers half a second late, what is left rounded down to 5 % of it",
        provider=_provider(rpm=600, burst_s=10.0, header_lag_s=0.5, header_round=0.05),
        nominal_rpm=600,
    )


def _bound_in_hand() -> Iterator[Case]:
    """Limits on requests in flight, and a provider with random faults."""
    yield Case(
        name="in_flight",
        what="20 requests in flight at once, no other limit; a 429 says that it is about concurrency",
        provider=_provider(in_flight=20, latency="lognormal(0.5, 0.5)", headers=HeaderStyle.NONE),
        nominal_rpm=2100,
    )
    yield Case(
        name="in_flight_untold",
        what="the same, and 429s say neither what they are about nor when to come back",
        provider=_provider(
            in_flight=20,
            in_flight_told=False,
            latency="lognormal(0.5, 0.5)",
            headers=HeaderStyle.NONE,
            retry_after=False,
        ),
        nominal_rpm=2100,
    )
    yield Case(
        name="in_flight_headers",
        what="the same beside headers of 6000/min, and 429s do not say what they are about",
        provider=_provider(rpm=6000, in_flight=20, in_flight_told=False, latency="lognormal(0.5, 0.5)"),
        nominal_rpm=2100,
    )
    yield Case(
        name="knee",
        what="no limit; beyond 30 in flight latency grows, so that fewer are answered a second the more there are",
        provider=_provider(knee=30, knee_power=1.5, headers=HeaderStyle.NONE),
        nominal_rpm=8500,
    )
    yield Case(
        name="flaky",
        what="600/min with good headers; at once 2 % 500s, 1 % resets, 2 % five times as slow, 1 % 429s for no reason",
        provider=_provider(
            rpm=600,
            timeline=(
                Entry(fault=Fault.RATE_LIMITED, share=0.01),
                Entry(fault=Fault.SERVER_ERROR, share=0.02),
                Entry(fault=Fault.RESET, share=0.01),
                Entry(fault=Fault.SLOW, share=0.02, factor=5),
            ),
        ),
        nominal_rpm=600,
    )


def _told_by_refusals() -> Iterator[Case]:
    """Providers without rate-limit headers."""
    yield Case(
        name="sawtooth_no_headers",
        what="900 and 300/min in turn, 10 s each, told by nothing but 429s and their Retry-After",
        provider=_provider(
            rpm=900,
            headers=HeaderStyle.NONE,
            timeline=tuple(Entry(at_s=at_s, for_s=10, rpm=300) for at_s in (10, 30, 50)),
        ),
        nominal_rpm=900,
    )
    yield Case(
        name="tokens_no_headers",
        what="300,000 tokens/min for calls of very different length, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=6000, tpm=300_000, headers=HeaderStyle.NONE),
        workload=Workload(max_tokens=400, spread=0.6),
        nominal_rpm=600,
    )
    yield Case(
        name="sliding_no_headers",
        what="600/min as 100 in any trailing 10 s, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=600, limiter=Limiter.SLIDING, window_s=10.0, headers=HeaderStyle.NONE),
        nominal_rpm=600,
    )
    yield Case(
        name="sliding_minute_no_headers",
        what="600 in any trailing 60 s, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=600, limiter=Limiter.SLIDING, window_s=60.0, headers=HeaderStyle.NONE),
        horizon_s=130.0,
        nominal_rpm=600,
    )
    yield Case(
        name="silent_upgrade",
        what="300/min, and 3000/min after 40 s, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=300, headers=HeaderStyle.NONE, timeline=(Entry(at_s=40, rpm=3000),)),
        horizon_s=120.0,
        nominal_rpm=300,
    )
    yield Case(
        name="slow_limit_no_headers",
        what="20/min, told by nothing but 429s and their Retry-After",
        provider=_provider(rpm=20, headers=HeaderStyle.NONE),
        horizon_s=180.0,
        nominal_rpm=20,
    )
    yield Case(
        name="shallow_no_headers",
        what="600/min in a bucket of 0.2 s, told by nothing but 429s and a Retry-After in whole seconds",
        provider=_provider(rpm=600, burst_s=0.2, headers=HeaderStyle.NONE, retry_after_ms=False, words=False),
        nominal_rpm=600,
    )


#: Name -> case with seed 0, in the order in which they are shown.
CASES: dict[str, Case] = {case.name: case for case in _cases()}
