"""The story of the demo in words, counted from the accepted ids and the provider's own log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from ratelimit_worker.simulate import Arrival, Scenario, duplicates, lost


class Call(Struct, frozen=True, kw_only=True):
    """One accepted call, as the agent that made it knows it."""

    name: str  #: sent in the request's metadata, so that it is in the provider's log
    sent_at_s: float  #: time of `.delay()`, any monotonic clock
    over_at_s: float | None = None  #: time of the answer, same clock; None: there is none
    error: str | None = None  #: why it ended without an answer


class Story(Struct, frozen=True, kw_only=True):
    """What happened in one run of the demo."""

    seed: int
    scenario: Scenario
    calls: Sequence[Call]
    arrivals: Sequence[Arrival]
    agents: int
    workers: int
    seconds: float
    report_path: Path

    @property
    def lost(self) -> int:
        """Accepted calls without an answer."""
        unanswered = {call.name for call in self.calls if call.over_at_s is None or call.error is not None}
        unsent = lost([call.name for call in self.calls], self.arrivals, by=lambda arrival: arrival.custom_id)
        return len(unanswered | unsent)

    @property
    def whole(self) -> bool:
        """Whether nothing was lost."""
        return self.lost == 0

    @property
    def refused(self) -> int:
        """429s in the provider's log."""
        return sum(arrival.status == 429 for arrival in self.arrivals)

    @property
    def bought_twice(self) -> int:
        """Calls that the provider completed more than once."""
        good = [arrival for arrival in self.arrivals if arrival.good]
        return len(duplicates(good, by=lambda arrival: arrival.custom_id))

    def summary(self) -> str:
        """The summary that is printed."""
        answers = sum(call.over_at_s is not None and call.error is None for call in self.calls)
        failed = sum(call.error is not None for call in self.calls)
        requests = len(self.arrivals)
        away = sum(arrival.fault == "outage" for arrival in self.arrivals)
        waits_s = [call.over_at_s - call.sent_at_s for call in self.calls if call.over_at_s is not None]
        served_s = [arrival.latency_s for arrival in self.arrivals if arrival.good]
        lines = [
            f"A provider with a limit of {self.scenario.rpm:,.0f} requests a minute, unknown to the workers "
            f"(seed {self.seed}).",
            *(f"  {line}" for line in troubles(self.scenario)),
            "",
            f"  calls made by {self.agents} agents   {len(self.calls):>6,}",
            f"  answers                {answers:>6,}" + (f"   ({failed} ended with an error)" if failed else ""),
            f"  lost                   {self.lost:>6,}",
            f"  provider requests      {requests:>6,}   ({away} met the outage)",
            f"  of these 429           {self.refused:>6,}   ({_share(self.refused, requests)})",
            f"  paid for twice         {self.bought_twice:>6,}",
            f"  p95 latency            {p95(waits_s):>6.1f} s from .delay() to the answer, waiting included; "
            f"{p95(served_s):.2f} s of it at the provider",
            f"  in all                 {self.seconds:>6.1f} s, {self.workers} workers",
            "",
            f"Report: {self.report_path}",
        ]
        return "\n".join(lines)

    def report(self) -> str:
        """The summary, and what the provider saw second by second."""
        return "\n".join([self.summary(), "", *self._seconds(), ""])

    def _seconds(self) -> list[str]:
        if not self.arrivals:
            return ["The provider saw no request."]
        start_s = self.arrivals[0].t
        by_second: dict[int, Counter[str]] = {}
        for arrival in self.arrivals:
            kind = "429" if arrival.status == 429 else "ok" if arrival.good else "outage"
            by_second.setdefault(int(arrival.t - start_s), Counter())[kind] += 1
        lines = ["What the provider saw, by second since the first request: # answered, x 429, - outage", ""]
        for second in range(max(by_second) + 1):
            counts = by_second.get(second, Counter())
            bar = "#" * counts["ok"] + "x" * counts["429"] + "-" * counts["outage"]
            limit = self.limit_at(second + 0.5) / 60
            lines.append(f"{second:>4} s  limit {limit:>4.1f}/s  {sum(counts.values()):>3}  {bar}")
        errors = Counter(call.error for call in self.calls if call.error is not None)
        if errors:
            lines += ["", "Calls that ended with an error:", *(f"  {count} x {why}" for why, count in errors.items())]
        return lines

    def limit_at(self, second: float) -> float:
        """Requests a minute that the provider allowed this many seconds after the first request."""
        limit = self.scenario.rpm or 0.0
        for entry in self.scenario.timeline:
            if entry.rpm is not None and entry.at_s <= second:
                limit = entry.rpm
        return limit


def troubles(scenario: Scenario) -> list[str]:
    """The cuts and outages of the scenario's timeline in words, one line each."""
    lines = []
    for entry in scenario.timeline:
        if entry.rpm is not None:
            lines.append(f"After {entry.at_s:.1f} s it cut that to {entry.rpm:,.0f}.")
        if entry.fault is not None:
            lines.append(f"After {entry.at_s:.1f} s it was away for {entry.for_s or 0:g} s.")
    return lines


def p95(values: Sequence[float]) -> float:
    """The value below which 95 % lie (nearest rank); 0.0 for none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * 95 // 100) - 1)] if ordered else 0.0


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
