"""A scenario: limits, latency and a timeline of faults of the simulated provider, as plain frozen values.

A scenario comes from Python, from the command line, or from a TOML or JSON file (docs/simulate.md).
"""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.simulate.draws import Latency

#: Field of a scenario or timeline entry -> dimension of `ratelimit_worker.calls.DIMENSIONS`.
LIMITS = {"rpm": "requests", "tpm": "tokens", "itpm": "input_tokens", "otpm": "output_tokens"}


class HeaderStyle(StrEnum):
    """Whose rate-limit headers answers carry."""

    AUTO = "auto"  #: Anthropic's on /v1/messages, OpenAI's elsewhere
    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    NONE = "none"


class Limiter(StrEnum):
    """How the provider counts."""

    BUCKET = "bucket"  #: a token bucket for each dimension, `burst_s` deep; 60 makes it hold a whole minute's limit
    SLIDING = "sliding"  #: at most the limit in any trailing `window_s` seconds


class TimelineStart(StrEnum):
    """What `at_s = 0` of a scenario's timeline means."""

    FIRST_REQUEST = "first_request"
    START = "start"  #: when the server begins to listen


class Fault(StrEnum):
    """What goes wrong with a request."""

    BAD_REQUEST = "400"
    UNAUTHORIZED = "401"
    PAYMENT_REQUIRED = "402"
    FORBIDDEN = "403"
    NOT_FOUND = "404"
    REQUEST_TIMEOUT = "408"
    CONFLICT = "409"
    TOO_LARGE = "413"
    UNPROCESSABLE = "422"
    RATE_LIMITED = "429"
    SERVER_ERROR = "500"
    BAD_GATEWAY = "502"
    UNAVAILABLE = "503"
    GATEWAY_TIMEOUT = "504"
    OVERLOADED = "529"
    AUTH = "auth"  #: 401, the key is wrong
    QUOTA = "quota"  #: no credit left
    OUTAGE = "outage"  #: the provider is away; `how` says in which way
    RESET = "reset"  #: connection reset after the request was read
    MALFORMED = "malformed"  #: 200 with JSON that ends in the middle
    TRUNCATED = "truncated"  #: 200 with a body shorter than its content-length
    HANG = "hang"  #: no answer; the connection stays open
    DRIP = "drip"  #: 200 whose body comes a byte at a time, without an end
    SLOW = "slow"  #: latency times `factor`; other faults may hit the same request

    @property
    def status(self) -> int | None:
        """The HTTP status, if the fault is one; None otherwise."""
        return int(self.value) if self.value.isdecimal() else None

    @property
    def charged(self) -> bool:
        """Whether the request is charged: the provider's edge refuses for free, its engine fails after the limits."""
        return (self.status or 500) >= 500 and self not in _AT_THE_EDGE


_AT_THE_EDGE = frozenset({Fault.AUTH, Fault.QUOTA, Fault.OUTAGE})


class Outage(StrEnum):
    """How an outage shows itself."""

    STATUS_503 = "503"
    RESET = "reset"  #: connections are accepted and reset when they send a request
    REFUSED = "refused"  #: nothing listens on the port; open connections are reset


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the timeline: a change of limits, a fault, a neighbour, or several of them, from `at_s` on."""

    at_s: float = 0.0  #: seconds since the timeline's start; in /_control: since now
    for_s: float | None = None  #: how long, seconds; None: for good
    rpm: float | None = None  #: requests a minute while it lasts; None: unchanged, here and below
    tpm: float | None = None  #: input and output tokens a minute
    itpm: float | None = None  #: input tokens a minute
    otpm: float | None = None  #: output tokens a minute
    fault: Fault | None = None
    share: float = 1.0  #: of the requests, 0 to 1, drawn from the seed and the request's number
    match: str | None = None  #: only requests whose body contains this text
    factor: float = 10.0  #: by which the latency is multiplied, for `slow`
    how: Outage = Outage.STATUS_503  #: for `outage`
    retry_after_s: float | None = None  #: Retry-After of the fault's answer; None: 1 for 429, else none
    in_flight: int | None = None  #: most requests in flight while it lasts; None: unchanged
    neighbour_rpm: float | None = None  #: requests a minute that another client sends on the same budget
    neighbour_tokens: int = 0  #: input tokens that each of them costs

    def __post_init__(self) -> None:
        _need(_nonnegative(self.at_s), f"at_s = {self.at_s}: use seconds from 0 up")
        _need(self.for_s is None or 0 < self.for_s < math.inf, f"for_s = {self.for_s}: use seconds above 0")
        _check_limits(self)
        _need(0 <= self.share <= 1, f"share = {self.share}: use a share of the requests from 0 to 1")
        _need(_nonnegative(self.factor), f"factor = {self.factor}: use a number from 0 up")
        _need(
            self.retry_after_s is None or _nonnegative(self.retry_after_s),
            f"retry_after_s = {self.retry_after_s}: use seconds from 0 up",
        )
        _need(
            self.neighbour_rpm is None or 0 < self.neighbour_rpm < math.inf,
            f"neighbour_rpm = {self.neighbour_rpm}: use requests a minute above 0",
        )
        _need(self.neighbour_tokens >= 0, f"neighbour_tokens = {self.neighbour_tokens}: use tokens from 0 up")
        _need(
            self.neighbour_tokens == 0 or self.neighbour_rpm is not None,
            f"neighbour_tokens = {self.neighbour_tokens}: needs neighbour_rpm, the requests that cost them",
        )
        _check_in_flight(self.in_flight)
        _need(
            self.fault is not None or bool(self.limits()) or (self.neighbour_rpm or self.in_flight) is not None,
            f"the entry at {self.at_s} s changes nothing: give it fault, neighbour_rpm, in_flight or one of "
            f"{', '.join(LIMITS)}",
        )
        _need(self.match != "", "match is empty: leave it out to hit every request")
        if self.fault is Fault.OUTAGE and self.how is Outage.REFUSED:
            # Nobody could end it: /_control is on the same port.
            _need(self.for_s is not None, 'how = "refused" needs for_s: nobody could end it')
            _need(self.share == 1 and self.match is None, 'how = "refused" takes neither share nor match')

    def limits(self) -> dict[str, float]:
        """Dimension -> units a minute, of the limits that this entry changes."""
        return _limits(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A provider, its limits and what happens to it."""

    rpm: float | None = None  #: requests a minute; None: unlimited, here and below
    tpm: float | None = None  #: input and output tokens a minute
    itpm: float | None = None  #: input tokens a minute
    otpm: float | None = None  #: output tokens a minute
    limiter: Limiter = Limiter.BUCKET
    burst_s: float = 1.0  #: depth of each bucket in seconds of its rate; at least one unit
    window_s: float = 60.0  #: length of each sliding window
    per_key: bool = False  #: a budget for each key; else one for all
    in_flight: int | None = None  #: most requests in flight (by key if `per_key`), one more gets a 429; None: no limit
    in_flight_told: bool = True  #: whether such a 429 names its reason; otherwise it looks like one of the rate limit
    knee: int | None = None  #: with more requests than this in flight each takes longer; None: never
    knee_power: float = 1.0  #: ... by the factor (in flight / knee) to this power; above 1 the throughput then falls
    reconcile: bool = False  #: whether output tokens that were charged and not used are given back with the answer
    latency: str = "0.05"  #: seconds: "0.05", "0.05±0.02" or "lognormal(0.05, 0.5)"
    refusal_latency: str = "0"  #: the same for refusals of the edge: 4xx, 429 and outages
    headers: HeaderStyle = HeaderStyle.AUTO
    header_lag_s: float = 0.0  #: headers show limits and remainders as they were this many seconds earlier
    header_round: float = 0.0  #: the remainder is rounded down to a multiple of this share of its maximum; 0: exact
    retry_after: bool = True  #: whether refusals have a Retry-After
    retry_after_ms: bool = True  #: whether OpenAI's refusals also have it in milliseconds
    words: bool = True  #: whether a refusal's body names limit and dimension
    input_usd: float = 0.0  #: price of a million input tokens, dollars
    output_usd: float = 0.0  #: ... of a million output tokens
    cached_input_usd: float | None = None  #: ... of a million cached input tokens; None: as of any input
    cached_share: float = 0.0  #: share of each request's input that the provider has cached, 0 to 1
    charges_failures: bool = False  #: whether an admitted request that fails, or whose client is gone, is billed too
    seed: int = 0
    timeline: tuple[Entry, ...] = ()
    timeline_from: TimelineStart = TimelineStart.FIRST_REQUEST

    def __post_init__(self) -> None:
        _check_limits(self)
        _need(_nonnegative(self.burst_s), f"burst_s = {self.burst_s}: use seconds of the rate from 0 up")
        _need(0 < self.window_s < math.inf, f"window_s = {self.window_s}: use seconds above 0")
        _need(_nonnegative(self.header_lag_s), f"header_lag_s = {self.header_lag_s}: use seconds from 0 up")
        _need(0 <= self.header_round <= 1, f"header_round = {self.header_round}: use a share from 0 to 1")
        _check_in_flight(self.in_flight)
        _need(self.knee is None or self.knee >= 1, f"knee = {self.knee}: use a number of requests from 1 up")
        _need(0 < self.knee_power < math.inf, f"knee_power = {self.knee_power}: use a number above 0")
        for name in ("input_usd", "output_usd", "cached_input_usd"):
            price = getattr(self, name)
            _need(
                price is None or _nonnegative(price), f"{name} = {price}: use dollars for a million tokens, from 0 up"
            )
        _need(0 <= self.cached_share <= 1, f"cached_share = {self.cached_share}: use a share from 0 to 1")
        Latency.parse(self.latency)
        Latency.parse(self.refusal_latency)

    def limits(self) -> dict[str, float]:
        """Dimension -> units a minute, of the dimensions that have a limit."""
        return _limits(self)

    def as_json(self) -> bytes:
        """The scenario as the text of a scenario file."""
        return msgspec.json.encode(_without_none(msgspec.to_builtins(self)))


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file: TOML, or JSON when its name ends so.

    Raises:
        ConfigurationError: It cannot be read or is not valid; the message is one line with the file, the place in it
            and the fix.
    """
    try:
        text = path.read_text("utf-8")
        raw = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; give the path of a scenario file") from error
    except ValueError as error:  # also tomllib.TOMLDecodeError, json.JSONDecodeError and UnicodeDecodeError
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise ConfigurationError(f"{path}: not {kind}: {' '.join(str(error).split())}") from error
    try:
        return scenario_of(raw)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error


def scenario_of(raw: object) -> Scenario:
    """Check a parsed scenario file.

    Raises:
        ConfigurationError: as `read_scenario`, without the file's name.
    """
    table = _table(raw, "a scenario")
    entries = table.pop("timeline", [])
    if not isinstance(entries, list):
        raise ConfigurationError(f"timeline = {entries!r}: use a list of tables, in TOML [[timeline]]")
    timeline = []
    for number, entry in enumerate(entries):
        try:
            timeline.append(entry_of(entry))
        except ConfigurationError as error:
            raise ConfigurationError(f"timeline[{number}]: {error}") from error
    return replace(_convert(table, Scenario), timeline=tuple(timeline))


def entry_of(raw: object) -> Entry:
    """Check one parsed entry of a timeline, as /_control gets it; `status` is another name for `fault`.

    Raises:
        ConfigurationError: It is not valid; the message has the field, its value and the fix.
    """
    table = _table(raw, "an entry")
    if "status" in table:
        if "fault" in table:
            raise ConfigurationError("fault and status are two names of one thing: give one of them")
        table["fault"] = table.pop("status")
    for name in ("fault", "how"):
        if isinstance(table.get(name), int):
            table[name] = str(table[name])  # 500 means "500"
    return _convert(table, Entry)


_Kind = TypeVar("_Kind", Entry, Scenario)


def _convert(table: dict[str, Any], kind: type[_Kind]) -> _Kind:
    known = [field.name for field in fields(kind)]
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigurationError(f"{name} is not known: {hint}")
    try:
        return msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").partition("[")[0]
        value = f"{name} = {table[name]!r}: " if name in table else ""
        raise ConfigurationError(f"{value}{problem[:1].lower()}{problem[1:]}{_choices(kind, name)}") from error


def _choices(kind: type[Entry] | type[Scenario], name: str) -> str:
    enums: dict[str, type[StrEnum]] = {
        "fault": Fault,
        "how": Outage,
        "headers": HeaderStyle,
        "limiter": Limiter,
        "timeline_from": TimelineStart,
    }
    return f"; use one of {', '.join(enums[name])}" if name in enums else ""


def _table(raw: object, what: str) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ConfigurationError(f"{what} is a table of names and values, got {raw!r:.60}")
    return {str(name): value for name, value in raw.items()}


def _limits(of: Entry | Scenario) -> dict[str, float]:
    given = {"rpm": of.rpm, "tpm": of.tpm, "itpm": of.itpm, "otpm": of.otpm}
    return {LIMITS[name]: value for name, value in given.items() if value is not None}


def _check_limits(of: Entry | Scenario) -> None:
    for name, dimension in LIMITS.items():
        value = _limits(of).get(dimension)
        _need(
            value is None or 0 < value < math.inf,
            f"{name} = {value}: use a number above 0 (to stop everything, an outage)",
        )


def _check_in_flight(value: int | None) -> None:
    _need(value is None or value >= 1, f"in_flight = {value}: use a number of requests from 1 up")


def _nonnegative(value: float) -> bool:
    return 0 <= value < math.inf


def _need(fine: bool, problem: str) -> None:
    if not fine:
        raise ConfigurationError(problem)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(inner) for name, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list | tuple) else value
