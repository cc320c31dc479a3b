"""What has the provider seen so far? Counts that are updated with each request."""

from __future__ import annotations

from collections import Counter, deque

import msgspec

from ratelimit_worker.simulate.arrivals import Arrival, Incident


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to GET /_stats."""

    requests: int  #: requests that came
    admitted: int  #: requests that passed the limits and were charged
    answered: int  #: answers sent, with any status
    in_flight: int  #: requests whose answer is still to come (a hang stays in flight)
    by_status: dict[str, int]  #: by decided status; "none": no answer
    by_fault: dict[str, int]  #: scripted faults that met a request
    incidents: dict[str, int]
    most_in_1s: int  #: most requests in any second, wherever it begins
    most_admitted_in_1s: int
    input_tokens: int  #: sum of the usage in all answers
    output_tokens: int
    billed_nanousd: int  #: sum of all prices, billionths of a dollar
    limits: dict[str, float]  #: units a minute by dimension, as they hold now
    uptime_s: float


class SlidingMost:
    """The most events in any window of one second so far, with times that come in order."""

    __slots__ = ("_recent_s", "most")

    def __init__(self) -> None:
        self._recent_s: deque[float] = deque()
        self.most = 0

    def add(self, time_s: float) -> None:
        """One more event, at `time_s`."""
        recent = self._recent_s
        recent.append(time_s)
        while time_s - recent[0] >= 1.0:
            recent.popleft()
        self.most = max(self.most, len(recent))


class Counters:
    """All counts of one server."""

    def __init__(self) -> None:
        self.requests = self.admitted = self.answered = self.in_flight = 0
        self.input_tokens = self.output_tokens = self.billed_nanousd = 0
        self.by_status: Counter[str] = Counter()
        self.by_fault: Counter[str] = Counter()
        self.incidents: Counter[str] = Counter()
        self._arrivals, self._admissions = SlidingMost(), SlidingMost()

    def arrived(self, arrival: Arrival) -> None:
        """Count a request that was decided."""
        self.requests += 1
        self.in_flight += 1
        self.by_status["none" if arrival.status is None else str(arrival.status)] += 1
        self.input_tokens += arrival.input_tokens
        self.output_tokens += arrival.output_tokens
        self.billed_nanousd += arrival.billed_nanousd
        self._arrivals.add(arrival.t)
        if arrival.admitted:
            self.admitted += 1
            self._admissions.add(arrival.t)
        if arrival.fault is not None:
            self.by_fault[arrival.fault] += 1

    def ended(self, *, answered: bool) -> None:
        """Count the end of a request."""
        self.in_flight -= 1
        self.answered += answered

    def incident(self, incident: Incident) -> None:
        """Count a connection that ended without an answer."""
        self.incidents[incident.what] += 1

    def stats(self, limits: dict[str, float], uptime_s: float) -> Stats:
        """All counts as they stand."""
        return Stats(
            requests=self.requests,
            admitted=self.admitted,
            answered=self.answered,
            in_flight=self.in_flight,
            by_status=dict(self.by_status),
            by_fault=dict(self.by_fault),
            incidents=dict(self.incidents),
            most_in_1s=self._arrivals.most,
            most_admitted_in_1s=self._admissions.most,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            billed_nanousd=self.billed_nanousd,
            limits=limits,
            uptime_s=uptime_s,
        )
