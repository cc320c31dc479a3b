"""The provider's log, and figures of it by which tests decide whether a client kept its limits.

The log is JSON lines: an `Arrival` for each request, written when its answer is decided; an `Incident` if a connection
ended without an answer; a `Started` for each start of a process that appends to the file. Everything but `read_log` is
pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec


class Started(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="start", omit_defaults=True):
    """A server has begun to append to this log."""

    unix: float  #: seconds since the epoch, where `t` of the lines that follow is zero
    pid: int
    scenario: msgspec.Raw = msgspec.Raw(b"{}")


class Arrival(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="request", omit_defaults=True):
    """One request, with the provider's decision."""

    n: int  #: number of the request, from 1
    t: float  #: seconds since the server's start, on its monotonic clock
    unix: float  #: seconds since the epoch
    path: str
    status: int | None = None  #: HTTP status of the answer; None: there is no answer (reset, hang)
    admitted: bool = False  #: whether it passed the rate limit and was charged
    fault: str | None = None  #: the scripted fault that met it
    key: str | None = None  #: first 12 hex digits of the key's sha256
    cost_tokens: int = 0  #: estimate of the prompt + max_tokens: what is taken from the limit
    input_tokens: int = 0  #: usage in the answer
    output_tokens: int = 0
    cached_input_tokens: int = 0  #: part of the input tokens
    billed_nanousd: int = 0  #: its price, billionths of a dollar
    latency_s: float = 0.0  #: from arrival to answer
    body: str = ""  #: sha256 of the request's body, hex
    request_id: str = ""  #: the provider's name for it
    call_id: str | None = None  #: header x-call-id
    idempotency_key: str | None = None  #: header idempotency-key
    client_request_id: str | None = None  #: header x-client-request-id
    custom_id: str | None = None  #: the body's metadata.custom_id
    user: str | None = None  #: the body's user, or metadata.user_id

    @property
    def good(self) -> bool:
        """Whether it gets a whole answer with a completion."""
        return self.status == 200 and self.fault is None

    @property
    def identity(self) -> str:
        """What identifies the logical call: its id, otherwise its body."""
        return self.call_id or self.idempotency_key or self.custom_id or self.client_request_id or self.body


class Incident(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="incident", omit_defaults=True):
    """A connection that ended without an answer."""

    what: str  #: reset (by us), gone (the client left before its answer), bad_request (not HTTP), aborted (outage)
    t: float  #: seconds since the server's start
    unix: float  #: seconds since the epoch
    n: int | None = None  #: the request that was under way


class Log(msgspec.Struct, frozen=True):
    """The content of a log."""

    arrivals: list[Arrival]
    incidents: list[Incident]
    runs: list[Started]

    def delivered(self) -> list[Arrival]:
        """Arrivals whose good answer was sent while the client was still there."""
        # n begins again with each start of the process, so only one run can be matched by number.
        undelivered = {incident.n for incident in self.incidents} if len(self.runs) <= 1 else set()
        return [arrival for arrival in self.arrivals if arrival.good and arrival.n not in undelivered]


_LINE = msgspec.json.Decoder(Started | Arrival | Incident)


def read_log(path: Path) -> Log:
    """Read a log. A last line that was cut off by a kill is left out.

    Raises:
        OSError: It cannot be read.
        ValueError: A line is not of such a log.
    """
    return parse_log(path.read_bytes())


def parse_log(text: bytes) -> Log:
    """As `read_log`, from the text."""
    log = Log([], [], [])
    for line in text.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        match _LINE.decode(line):
            case Arrival() as arrival:
                log.arrivals.append(arrival)
            case Incident() as incident:
                log.incidents.append(incident)
            case started:
                log.runs.append(started)
    return log


def most_in_window(times: Iterable[float], window_s: float = 1.0) -> int:
    """The largest number of these times (seconds) in any window [t, t + window_s)."""
    ordered = sorted(times)
    most = first = 0
    for last, time_s in enumerate(ordered):
        while time_s - ordered[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most


def rate(times: Sequence[float]) -> float:
    """Events a second between the first and the last; 0.0 for fewer than two events, or if all are at once."""
    if len(times) < 2:
        return 0.0
    span_s = max(times) - min(times)
    return (len(times) - 1) / span_s if span_s > 0 else 0.0


def goodput(arrivals: Iterable[Arrival], after_s: float = 0.0, until_s: float | None = None) -> float:
    """Good answers a second among the arrivals with after_s <= t < until_s (None: up to the last one, included).

    0.0 if that interval is empty.
    """
    seen = list(arrivals)
    end_s = max((arrival.t for arrival in seen), default=0.0) if until_s is None else until_s
    if end_s <= after_s:
        return 0.0
    good = sum(arrival.good and after_s <= arrival.t and (until_s is None or arrival.t < until_s) for arrival in seen)
    return good / (end_s - after_s)


def identity(arrival: Arrival) -> str:
    """The default for `by`: `Arrival.identity`."""
    return arrival.identity


def duplicates(arrivals: Iterable[Arrival], by: Callable[[Arrival], str | None] = identity) -> dict[str, int]:
    """Identity -> number of arrivals, for those that came more than once; arrivals without identity are left out."""
    counts = Counter(name for arrival in arrivals if (name := by(arrival)) is not None)
    return {name: count for name, count in counts.items() if count > 1}


def lost(
    expected: Iterable[str], arrivals: Iterable[Arrival], by: Callable[[Arrival], str | None] = identity
) -> set[str]:
    """The expected identities for which no arrival got a good answer."""
    return set(expected) - {by(arrival) for arrival in arrivals if arrival.good}
