"""The values that all parts use: a call, its cost, its attempts, and what was seen of the provider.

Plain values only: nothing here does I/O, and every other module may import this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from functools import reduce
from operator import add
from time import monotonic
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: Version of messages, call records and lane state. A worker leaves a newer one alone (rolling deploys).
SCHEMA_VERSION = 1

#: Dimensions of a budget that a lane may pace, in the order in which costs are written down.
DIMENSIONS = ("requests", "tokens", "input_tokens", "output_tokens")


class Category(StrEnum):
    """Kinds of failures of an attempt; they decide about retries, and what the lane learns."""

    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    MALFORMED_RESPONSE = "malformed_response"
    CONFLICT = "conflict"
    QUOTA_EXHAUSTED = "quota_exhausted"
    AUTH = "auth"
    INVALID_REQUEST = "invalid_request"
    CONTENT_FILTERED = "content_filtered"
    PROGRAMMING = "programming"


#: Categories that mean that the provider (or the network to it) has problems.
SICK = frozenset(
    {
        Category.OVERLOADED,
        Category.SERVER_ERROR,
        Category.TIMEOUT,
        Category.CONNECTION,
        Category.MALFORMED_RESPONSE,
    }
)


class Priority(StrEnum):
    """Class of a call within its lane. No class starves: a low call waits longer only by a fixed amount of service."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class Mode(StrEnum):
    """How carefully a lane is used, set by the law or by a person; from most to least that may be sent."""

    NORMAL = "NORMAL"
    REDUCED = "REDUCED"
    EMERGENCY = "EMERGENCY"
    HALT = "HALT"


class Outcome(StrEnum):
    """How one attempt ended, as the tracking database keeps it."""

    ANSWERED = "answered"  #: the provider completed the call
    RETRIED = "retried"  #: failed; another attempt follows (costs a try)
    SNOOZED = "snoozed"  #: refused or lane closed; goes back to its place (costs no try)
    FAILED = "failed"  #: failed for good


#: Outcomes with which a call ends.
ENDS = frozenset({Outcome.ANSWERED, Outcome.FAILED})


class PriceSource(StrEnum):
    """Where the cost of an attempt comes from."""

    TOLD = "told"  #: the provider, in its answer
    OWN = "own"  #: the table of MAISD_PRICES
    LIST = "list"  #: the published price list
    ESTIMATED = "estimated"  #: its answer was lost: estimated as the usual cost of such attempts


@dataclass(frozen=True, slots=True)
class Usage:
    """What the provider counted for one attempt. None: it did not say.

    The first two are totals, also where a provider's own fields leave something out; the others are parts of them.
    """

    input_tokens: int | None = None  #: all input, including cached tokens and those written to a cache
    output_tokens: int | None = None  #: all output, including reasoning
    cached_input_tokens: int | None = None  #: of the input, read from the provider's cache
    cache_write_tokens: int | None = None  #: of the input, written to it
    reasoning_tokens: int | None = None  #: of the output
    audio_input_tokens: int | None = None  #: of the input
    audio_output_tokens: int | None = None  #: of the output
    image_input_tokens: int | None = None  #: of the input
    image_output_tokens: int | None = None  #: of the output
    #: of those written to a cache, the ones kept for an hour or longer: they cost more
    long_cache_write_tokens: int | None = None
    uncounted_input_tokens: int | None = None  #: of the input, tokens that take nothing from an input budget
    unbilled_input_tokens: int | None = None  #: of the input, tokens that cost nothing
    service_tier: str | None = None  #: tier at which it was billed, in the provider's words
    cost_nanousd: int | None = None  #: the bill according to the answer itself; billionths of a dollar

    @property
    def budget_input_tokens(self) -> int | None:
        """The input that counts against a budget of tokens."""
        if self.input_tokens is None:
            return None
        return max(0, self.input_tokens - (self.uncounted_input_tokens or 0))

    def __or__(self, later: Usage) -> Usage:
        """This usage, overwritten by a later one of the same request: a stream reports its usage in pieces."""
        return Usage(*(b if b is not None else a for a, b in zip(_values(self), _values(later), strict=True)))

    def __add__(self, other: Usage) -> Usage:
        """The usage of two requests together; the tier is kept if both had the same."""
        pairs = zip(_values(self), _values(other), strict=True)
        total = [_sum(a, b) for a, b in pairs]
        return Usage(*total)


def _values(usage: Usage) -> tuple[Any, ...]:
    return tuple(getattr(usage, name) for name in Usage.__slots__)


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, str) or isinstance(other, str):
        return one if one == other else None
    return one if other is None else other if one is None else one + other


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a call takes from a lane's budget when it gets its permit: requests and tokens."""

    requests: float = 1.0
    input_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def vector(self) -> tuple[float, float, float, float]:
        """The cost in the order of `DIMENSIONS`."""
        return (self.requests, float(self.tokens), float(self.input_tokens), float(self.output_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an attempt was not answered."""

    category: Category
    cause: str  #: One line without prompt or key, fit for logs and the tracking database.
    status: int | None = None  #: HTTP status, when there was an HTTP answer.
    retry_after_s: float | None = None
    request_id: str | None = None

    @property
    def sick(self) -> bool:
        """Whether this means that the provider has problems (and not that it is busy, or that the caller is wrong)."""
        return self.category in SICK


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One dimension of a provider's rate-limit headers, at the time when the answer was sent."""

    limit: float  #: units per window
    window_s: float  #: length of the window, seconds
    remaining: float  #: units left
    reset_s: float | None = None  #: seconds until the bucket is full again


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: Any  #: parsed JSON; the text if it was not JSON
    elapsed_s: float = 0.0
    path: str = ""  #: path of the request, such as "/v1/chat/completions"; "": not known
    first_byte_s: float | None = None  #: from the request to the first byte of the answer; None: not measured

    @property
    def request_id(self) -> str | None:
        """The provider's own id of this request."""
        return self.headers.get("x-request-id") or self.headers.get("request-id")


class FailedAnswer(Exception):
    """An HTTP answer that is a failure, as an exception. Neither `str()` nor `repr()` shows its body."""

    def __init__(self, response: Response) -> None:
        super().__init__(response)
        self.response = response

    def __str__(self) -> str:
        return f"HTTP {self.response.status}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}(HTTP {self.response.status})"


@dataclass(slots=True)
class Glimpse:
    """One request that a watched client made during an attempt, as far as it is known yet."""

    response: Response | None = None  #: None: no answer came (so far)
    usage: Usage | None = None  #: of a stream: as of its latest event that has one
    provider: str | None = None
    asked: str | None = None  #: the model that the request named
    model: str | None = None  #: the one that answered
    finish_reason: str | None = None


@dataclass(slots=True)
class Sighting:
    """What was seen of the provider during one attempt; the provider modules fill it, `flow.call.conclude` reads it.

    For a user's own function it is filled if its client is watched (`providers.watch`); otherwise only the exception is
    classified.
    """

    response: Response | None = None
    usage: Usage | None = None
    provider: str | None = None
    model: str | None = None
    lane: str = ""  #: of the attempt; "": outside any
    sent_again: bool = True  #: the call is retried by its lane, so the client need not retry
    watched: bool = False  #: `response` comes from a watched client, which may not have raised for it
    glimpses: list[Glimpse] = field(default_factory=list)
    finish_reason: str | None = None

    def so_far(self) -> Sighting:
        """A copy of what was seen until now: a stream may go on after its attempt has ended."""
        return Sighting(
            self.response,
            self.usage,
            self.provider,
            self.model,
            self.lane,
            self.sent_again,
            self.watched,
            self.glimpses,
            self.finish_reason,
        )

    def look(self) -> None:
        """Take what the glimpses have seen until now.

        The tokens are those of all requests. The response is that of the last one; where some asked for the lane's own
        model ("provider:model"), of the last of these, so that a lane does not take the limits of the embeddings that
        its task makes on the way.
        """
        if not self.glimpses:
            return
        known = [one for one in self.glimpses if _is_of(self.lane, one.asked) or _is_of(self.lane, one.model)]
        last = (known or self.glimpses)[-1]
        self.watched = True
        self.response, self.provider, self.model = last.response, last.provider, last.model
        self.finish_reason = last.finish_reason
        self.usage = _together([one.usage for one in self.glimpses if one.usage is not None])


def _is_of(lane: str, model: str | None) -> bool:
    """Whether a model is the one that a lane is named after; providers answer with a name that has a date added."""
    own = lane.partition(":")[2]
    return bool(own and model) and (model == own or str(model).startswith(f"{own}-"))


def _together(counted: Sequence[Usage]) -> Usage | None:
    return reduce(add, counted) if counted else None


_sighting: ContextVar[Sighting | None] = ContextVar("ratelimit_worker_sighting", default=None)


class _Inside(Generic[T]):
    """A context variable has this value inside the block.

    (A class, since a generator's context manager takes three times as long, and each attempt enters several.)
    """

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[Any], value: T) -> None:
        self._variable, self._value = variable, value

    def __enter__(self) -> T:
        self._token = self._variable.set(self._value)
        return self._value

    def __exit__(self, *_: object) -> None:
        self._variable.reset(self._token)


def sighting(lane: str = "", *, sent_again: bool = True) -> AbstractContextManager[Sighting]:
    """Collect what providers see inside the block (one attempt; nests). The arguments are fields of `Sighting`."""
    return _Inside(_sighting, Sighting(lane=lane, sent_again=sent_again))


def sighting_now() -> Sighting | None:
    """What the attempt that is running here has seen so far; None outside one.

    "Here" is the context: a thread that the attempt started has it where the context was copied (`asyncio.to_thread`,
    `contextvars.copy_context().run`).
    """
    return _sighting.get()


def saw(
    response: Response,
    *,
    usage: Usage | None = None,
    provider: str | None = None,
    model: str | None = None,
    finish_reason: str | None = None,
) -> None:
    """Note the latest answer of the provider for the attempt that is running; no effect outside one."""
    seen = _sighting.get()
    if seen is not None:
        seen.response, seen.usage, seen.finish_reason = response, usage, finish_reason
        seen.provider, seen.model = provider or seen.provider, model or seen.model


#: Longest wait for a connection, and for a whole answer of which nothing is known, seconds: large models think for
#: minutes before they answer.
CONNECT_S, MOST_ATTEMPT_S = 10.0, 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long one attempt may take, seconds from its start."""

    connect_s: float = CONNECT_S
    first_byte_s: float = MOST_ATTEMPT_S
    whole_s: float = MOST_ATTEMPT_S  #: until the end of the answer
    by_deadline: bool = False  #: the call's deadline ends the attempt earlier than an answer can be expected


_within: ContextVar[tuple[Timeouts, float] | None] = ContextVar("ratelimit_worker_timeouts", default=None)


def within(timeouts: Timeouts) -> AbstractContextManager[object]:
    """Limit the attempt inside the block, from now on: provider modules obey, a task's own code can read
    `timeout_s`."""
    return _Inside(_within, (timeouts, monotonic()))


def timeouts_left() -> Timeouts:
    """What is left of the running attempt's time-outs; outside an attempt, the longest ones."""
    now = _within.get()
    if now is None:
        return Timeouts()
    told, began = now
    left_s = max(0.001, told.whole_s - (monotonic() - began))
    return Timeouts(
        connect_s=min(told.connect_s, left_s),
        first_byte_s=min(told.first_byte_s, left_s),
        whole_s=left_s,
        by_deadline=told.by_deadline,
    )


def timeout_s() -> float:
    """Seconds that the running attempt may still take, for a client of your own: `client.with_options(timeout=…)`.

    600 outside an attempt. Never 0 or below, which some clients take for "no bound": what is left is at least 1 ms.
    """
    return timeouts_left().whole_s


#: Gives what a call was made with: (args, kwargs).
Arguments = Callable[[], tuple[Sequence[Any], Mapping[str, Any]]]
#: Characters kept of each text of a `Content`: the outbox holds them in Redis while the database is away.
MOST_CONTENT = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Prompt and answer of an attempt, kept only if MAISD_CAPTURE_CONTENT is on."""

    asked: str  #: the arguments, as JSON
    answer: str | None = None  #: as JSON
    traceback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One request to a provider (or one that was stopped before it): a row of the tracking database.

    All times are seconds since the epoch (UTC) on the Redis server's clock where it is known.
    """

    call_id: str  #: the Celery task id
    number: int  #: from 1; counts every attempt, snoozed ones too, so (call_id, number) is unique
    lane: str
    task: str
    outcome: Outcome
    started_at: float
    finished_at: float
    waited_s: float  #: from acceptance, or from the end of the attempt before, to the start
    queue: str = ""
    context: str = ""
    tags: tuple[str, ...] = ()
    tenant: str = ""
    priority: Priority = Priority.NORMAL
    provider: str | None = None
    model: str | None = None
    category: Category | None = None
    status: int | None = None
    request_id: str | None = None
    retry_after_s: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None  #: these and the next six: as in `Usage`
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    service_tier: str | None = None
    first_byte_s: float | None = None  #: from the request to the first byte of its answer
    finish_reason: str | None = None  #: in the provider's own word
    cost_nanousd: int | None = None  #: billionths of a dollar; None: no price is known
    cached_saving_nanousd: int | None = None  #: by how much it was cheaper because of cached input
    price_source: PriceSource | None = None  #: None: there is no price
    lost_attempts: int = 0  #: earlier attempts at the call whose worker died: they have no rows
    lost_nanousd: int | None = None  #: their estimated cost
    cause: str | None = None  #: one line without prompt or key
    worker: str = ""
    content: Content | None = None
    # Needed by the recorder; not in the database.
    anew: bool = False  #: the call had ended before and was made again under its id: its earlier end was an attempt
    asked_model: str | None = None  #: model under which its tokens are learned; None: they were not estimated
    estimated_tokens: int = 0  #: input, before any correction; 0: they were counted, or there was no text
    uncounted_input_tokens: int = 0  #: of the input, tokens that took nothing from the budget
    answer_lost: bool = False  #: the provider may have charged for it, but its process does not know how much
    unpriced: Usage | None = None  #: its usage, if its process knew no price: the recorder finds the price

    @property
    def latency_s(self) -> float:
        """Seconds from start to end."""
        return self.finished_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChange:
    """A lane has gone from one mode to another, by the law or by hand: a row of the mode history.

    All times are seconds since the epoch (UTC), Redis clock.
    """

    id: str  #: the same however often the event is sent
    lane: str  #: "*" if all lanes were pinned and none was known
    from_mode: Mode
    to_mode: Mode  #: may equal `from_mode`: a lane in NORMAL that is pinned to it
    at: float
    cause: str  #: one sentence, with what triggered it
    numbers: Mapping[str, float] = field(default_factory=dict)  #: the figures behind the cause, by name
    who: str = "law"  #: or the person (or setting) that pinned the mode or gave the lane back
    reason: str = ""  #: what that person wrote
    until: float | None = None  #: when a pin ends by itself; None: it does not


@dataclass(frozen=True, slots=True, kw_only=True)
class SentWith:
    """Additional headers and query parameters of requests: for a gateway, a beta, an API version.

    For a secret, a header's value is `env:NAME` or `file:PATH`; it is read again for each request.
    """

    headers: Mapping[str, str] = field(default_factory=dict)  #: names in lower case; an empty value: not sent
    query: Mapping[str, str] = field(default_factory=dict)
    paths: tuple[str, ...] = ()  #: of a provider: allowed in addition to the known endpoints; compared exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneLimits:
    """The configuration of a lane. None: not configured, the lane finds out."""

    rpm: float | None = None  #: requests a minute, never exceeded
    tpm: float | None = None  #: tokens a minute (input + output), never exceeded
    rpd: float | None = None  #: requests a day, never exceeded
    tpd: float | None = None  #: tokens a day, never exceeded
    day_zone: str | None = None  #: where these days end at midnight: "America/Los_Angeles", "-08:00"; None: UTC
    concurrency: int | None = None  #: calls running at once over the whole cluster
    unlimited: bool = False  #: no pace at all
    adaptive: bool = True
    #: Whether the provider gives back, after the answer, tokens that were reserved and not used, so that the lane may
    #: too; None: it is assumed to until it refuses for tokens. Where headers say what is left, only they count.
    reconcile: bool | None = None
    parents: tuple[str, ...] = ()  #: lanes whose budgets it shares with other lanes
    shared: bool = False  #: it is a parent: only its configured limits bind, since it has no calls to learn from
    tenants: Mapping[str, float] = field(default_factory=dict)  #: weights; 1 where a tenant is not named
    timeout_s: float | None = None  #: of one attempt, seconds
    sent_with: SentWith = SentWith()  #: headers and query of its calls' requests, in addition to the provider's
    usd_per_day: float | None = None  #: dollars a day; when they are spent, its calls wait for the next day
    usd_per_month: float | None = None  #: dollars a calendar month
