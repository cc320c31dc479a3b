"""The provider's whole decision about a request, without I/O; the time is an argument.

The order is that of a real provider: first its edge (faults that cost nothing: 4xx, auth, quota, outage), then the
limits (requests in flight, then the rate), then the engine (faults of a request that was charged: 5xx, resets, broken
answers). A request is in flight from its admission until `Provider.ended` is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum, auto
from hashlib import sha256

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import Cost
from ratelimit_worker.simulate import answers
from ratelimit_worker.simulate.answers import Asked, Endpoint
from ratelimit_worker.simulate.arrivals import Arrival
from ratelimit_worker.simulate.bucket import Budget, Refused
from ratelimit_worker.simulate.draws import Latency
from ratelimit_worker.simulate.headers import limit_lines, retry_lines
from ratelimit_worker.simulate.http1 import Request, render
from ratelimit_worker.simulate.scenario import Entry, Fault, HeaderStyle, Limiter, Outage, Scenario
from ratelimit_worker.simulate.timeline import Planned, Timeline

_ENDPOINTS: dict[str, Endpoint] = {endpoint.value: endpoint for endpoint in Endpoint}
_NO_KEY, _FOR_ALL = "none", ""
_ENDLESS = 1_000_000  # content-length of an answer that comes a byte at a time
_CROWDED_RETRY_S = 1.0  # Retry-After if too many are in flight: it is not known when one will end


class Ending(Enum):
    """What happens to a connection after the request."""

    ANSWER = auto()
    TRUNCATE = auto()  #: send the body, which is shorter than its content-length, and close
    RESET = auto()
    HANG = auto()
    DRIP = auto()  #: send the body, then one blank after the other for as long as the client stays


class Verdict(Struct, frozen=True):
    """The decision about one request."""

    arrival: Arrival  #: its line in the log
    ending: Ending
    answer: bytes  #: head and body as they are sent
    unused: Cost | None  #: to be given back with the answer
    decided_s: float  #: time of the decision on the provider's clock


class _Reply(Struct, frozen=True, kw_only=True):
    """The answer to a request, and what happens to its connection."""

    status: int | None = None  #: None: no answer
    body: bytes = b""
    content_type: str = "application/json"
    promised: int | None = None  #: content-length; None: the length of the body
    ending: Ending = Ending.ANSWER
    retry_after_s: float | None = None
    fault: Fault | None = None
    admitted: bool = False  #: whether it passed the limits and is charged
    usage: Cost | None = None
    unused: Cost | None = None  #: to be given back with the answer


class Provider:
    """State of one simulated provider: its budgets, its timeline and the number of requests.

    Args:
        now_s: The server's start on the clock of all later `now_s`, seconds.
        run: Makes ids unique over several starts.
    """

    def __init__(self, scenario: Scenario, now_s: float, run: str) -> None:
        self.scenario, self.start_s = scenario, now_s
        self.timeline = Timeline(scenario.seed)
        self._run = run
        self._requests = 0
        self._budgets: dict[str, Budget] = {}
        self._in_hand: Counter[str] = Counter()
        self._limits = scenario.limits()
        if not scenario.per_key:  # made at the start, with the limits of that time, and not at the first request
            self._budgets[_FOR_ALL] = self._new_budget(now_s)
        self._at_s = now_s  # the timeline has been applied to the budgets up to this time
        self._latency = Latency.parse(scenario.latency)
        self._refusal_latency = Latency.parse(scenario.refusal_latency)
        self.begun = False  #: whether the scenario's timeline runs

    def begin(self, now_s: float) -> Sequence[Planned]:
        """Start the scenario's timeline, once; returns the entries that were planned."""
        if self.begun:
            return ()
        self.begun = True
        return self.timeline.plan(self.scenario.timeline, now_s)

    def limits(self, now_s: float) -> dict[str, float]:
        """Dimension -> units a minute, as in force now."""
        self._catch_up(now_s)
        return dict(self._limits)

    def decide(self, request: Request, now_s: float, unix_s: float) -> Verdict:
        """Count the request, charge it or refuse it, and write its answer. The caller has to begin the timeline.

        Args:
            now_s: When it had arrived completely, in seconds on the clock of `Provider`.
            unix_s: The same moment, seconds since the epoch.
        """
        self._requests += 1
        self._catch_up(now_s)
        return _Decision(self, request, self._requests, now_s, unix_s).verdict()

    def ended(self, verdict: Verdict) -> None:
        """Call once for each request that is no longer in flight: its answer is sent, or its client is gone."""
        if verdict.arrival.admitted:
            self._in_hand[self._name_of(verdict.arrival.key)] -= 1

    def in_hand(self, key: str | None) -> int:
        """Requests that are in flight now, of this key (of all unless `per_key`)."""
        return self._in_hand[self._name_of(key)]

    def take_in_hand(self, key: str | None) -> None:
        """One more is in flight."""
        self._in_hand[self._name_of(key)] += 1

    def crowded(self, key: str | None, now_s: float) -> int | None:
        """The limit on requests in flight, if one more would exceed it; None: one more may come."""
        bound = self.timeline.in_flight(now_s) or self.scenario.in_flight
        return bound if bound is not None and self.in_hand(key) >= bound else None

    def slowed(self, key: str | None) -> float:
        """Factor by which a request takes longer because of the others in flight."""
        scenario = self.scenario
        if scenario.knee is None:
            return 1.0
        return float(max(1.0, self.in_hand(key) / scenario.knee) ** scenario.knee_power)

    def give_back(self, verdict: Verdict, now_s: float) -> None:
        """Give back output tokens that were charged and not used, when the answer is sent."""
        if verdict.unused is not None:
            self.budget(verdict.arrival.key, now_s).give_back(now_s, verdict.unused, verdict.decided_s)

    def budget(self, key: str | None, now_s: float) -> Budget:
        """The budget of this key (one for all requests unless `per_key`), with the limits in force now."""
        self._catch_up(now_s)
        name = self._name_of(key)
        if (found := self._budgets.get(name)) is None:
            found = self._budgets[name] = self._new_budget(now_s)
        return found

    def _name_of(self, key: str | None) -> str:
        return (key or _NO_KEY) if self.scenario.per_key else _FOR_ALL

    def _new_budget(self, now_s: float) -> Budget:
        scenario = self.scenario
        window_s = scenario.window_s if scenario.limiter is Limiter.SLIDING else None
        return Budget(self._limits, scenario.burst_s, now_s, window_s=window_s, lag_s=scenario.header_lag_s)

    def limit_lines(self, style: HeaderStyle, key: str | None, now_s: float, unix_s: float) -> str:
        """The rate-limit headers of an answer that is decided now."""
        past, then_s = self.budget(key, now_s).as_it_was(now_s)
        return limit_lines(style, past, then_s, unix_s - (now_s - then_s), self.scenario.header_round)

    def _catch_up(self, now_s: float) -> None:
        """Apply the timeline to the budgets since the last call, each change at its own time."""
        self._set_limits()  # an entry may have been planned at the very time of the last call
        while (edge_s := self.timeline.next_edge_s(self._at_s)) <= now_s:
            self._pass(edge_s)
        if now_s > self._at_s:
            self._pass(now_s)

    def _pass(self, to_s: float) -> None:
        for time_s, cost in self.timeline.neighbours(self._at_s, to_s):
            for budget in self._budgets.values():
                budget.neighbour(time_s, cost)
        self._at_s = to_s
        self._set_limits()

    def _set_limits(self) -> None:
        if (limits := self.scenario.limits() | self.timeline.limits(self._at_s)) != self._limits:
            self._limits = limits
            for budget in self._budgets.values():
                budget.change(self._at_s, limits)

    def latency_s(self, number: int, factor: float) -> float:
        """How long the engine takes for request `number`, seconds."""
        return self._latency.draw_s(self.scenario.seed, number) * factor

    def refusal_latency_s(self, number: int, factor: float) -> float:
        """How long the edge takes to refuse request `number`, seconds."""
        return self._refusal_latency.draw_s(self.scenario.seed, number) * factor

    def bill_nanousd(self, usage: Cost, cached: int) -> int:
        """The price of a request, billionths of a dollar; `cached`: input tokens that the provider had cached."""
        scenario = self.scenario
        read_usd = scenario.input_usd if scenario.cached_input_usd is None else scenario.cached_input_usd
        prices = (scenario.input_usd, read_usd, scenario.output_usd)
        units = (usage.input_tokens - cached, cached, usage.output_tokens)
        exact = sum(Decimal(str(price)) * many for price, many in zip(prices, units, strict=True))
        return round(exact * 1_000)  # $1 for a million tokens is 1,000 billionths of a dollar a token

    def id_of(self, number: int) -> str:
        """The part of all ids of one request that makes them unique."""
        return f"{self._run}{number:08x}"


class _Decision:
    """One request on its way through edge, limit and engine."""

    def __init__(self, provider: Provider, request: Request, number: int, now_s: float, unix_s: float) -> None:
        self.provider, self.request, self.number = provider, request, number
        self.now_s, self.unix_s = now_s, unix_s
        self.endpoint = _ENDPOINTS.get(request.path)
        self.anthropic = self.endpoint is Endpoint.MESSAGES or (
            self.endpoint is None and "anthropic-version" in request.headers
        )
        style = provider.scenario.headers
        if style is HeaderStyle.AUTO:
            style = HeaderStyle.ANTHROPIC if self.anthropic else HeaderStyle.OPENAI
        self.style = style
        self.id = provider.id_of(number)
        self.request_id = f"req_{self.id}"
        self.digest = sha256(request.body)
        self.key = _key_hash(request)
        self.asked: Asked | None = None
        self.charged = Cost()

    def verdict(self) -> Verdict:
        # The endpoint's own checks come last at the edge: in an outage nobody reads bodies.
        entry, factor = self.provider.timeline.hit(self.number, self.request.body, self.now_s)
        read = None if self.endpoint is None else answers.read(self.endpoint, self.request.body)
        if self.endpoint is not None and isinstance(read, Asked):
            self.asked, self.charged = read, read.cost(self.endpoint)
        if entry is not None and entry.fault is not None and not entry.fault.charged:
            return self._fault(entry, entry.fault, factor, admitted=False)
        if self.request.method != "POST" or self.endpoint is None:
            message = f"Unknown request URL: {self.request.method} {self.request.path}."
            return self._rejected(404, "not_found_error", message, factor)
        if not isinstance(read, Asked):
            return self._rejected(400, "invalid_request_error", str(read), factor)
        if (bound := self.provider.crowded(self.key, self.now_s)) is not None:
            return self._crowded(bound, read.model, factor)
        budget = self.provider.budget(self.key, self.now_s)
        admission = budget.admit(self.now_s, self.charged)
        if isinstance(admission, Refused):
            return self._refused(admission, budget, read.model, factor)
        self.provider.take_in_hand(self.key)
        if entry is not None and entry.fault is not None:
            return self._fault(entry, entry.fault, factor, admitted=True)
        return self._answered(self.endpoint, read, factor)

    def _answered(self, endpoint: Endpoint, asked: Asked, factor: float, fault: Fault | None = None) -> Verdict:
        seed = self.provider.scenario.seed
        body, usage = answers.answer(
            endpoint,
            asked,
            digest=self.digest.digest(),
            seed=seed,
            answer_id=self.id,
            created=int(self.unix_s),
            cached_share=self.provider.scenario.cached_share,
        )
        ending, promised = Ending.ANSWER, len(body)
        if fault is Fault.MALFORMED:
            body = body[: len(body) // 2]
            promised = len(body)
        elif fault is Fault.TRUNCATED:
            body = body[: len(body) // 2]
            ending = Ending.TRUNCATE
        unused = None
        if self.provider.scenario.reconcile:
            unused = Cost(requests=0.0, output_tokens=self.charged.output_tokens - usage.output_tokens)
        reply = _Reply(
            status=200,
            body=body,
            fault=fault,
            admitted=True,
            usage=usage,
            ending=ending,
            unused=unused,
            promised=promised,
        )
        return self._verdict(reply, factor)

    def _fault(self, entry: Entry, fault: Fault, factor: float, *, admitted: bool) -> Verdict:
        if fault in {Fault.MALFORMED, Fault.TRUNCATED} and self.endpoint is not None and self.asked is not None:
            return self._answered(self.endpoint, self.asked, factor, fault)
        reply = _Reply(fault=fault, admitted=admitted)
        if (
            admitted
            and self.provider.scenario.charges_failures
            and self.endpoint is not None
            and self.asked is not None
        ):
            reply = replace(reply, usage=self._would_use(self.endpoint, self.asked))
        if fault is Fault.HANG:
            return self._verdict(replace(reply, ending=Ending.HANG), factor)
        if fault is Fault.DRIP:
            endless = replace(reply, status=200, body=b"{", ending=Ending.DRIP, promised=_ENDLESS)
            return self._verdict(endless, factor)
        if fault is Fault.RESET or (fault is Fault.OUTAGE and entry.how is not Outage.STATUS_503):
            return self._verdict(replace(reply, ending=Ending.RESET), factor)
        status, content_type, body = answers.fault_answer(fault, self.anthropic, self.request_id)
        if reply.usage is not None:
            body = self._with_usage(body, reply.usage)
        retry_after_s = entry.retry_after_s
        if retry_after_s is None and fault is Fault.RATE_LIMITED:
            retry_after_s = 1.0
        answer = replace(reply, status=status, body=body, content_type=content_type, retry_after_s=retry_after_s)
        return self._verdict(answer, factor)

    def _would_use(self, endpoint: Endpoint, asked: Asked) -> Cost:
        """What an answer to this request would have used."""
        seed, created = self.provider.scenario.seed, int(self.unix_s)
        made = answers.answer(
            endpoint, asked, digest=self.digest.digest(), seed=seed, answer_id=self.id, created=created
        )
        return made[1]

    def _with_usage(self, body: bytes, usage: Cost) -> bytes:
        """An error's body with the usage added, if it is JSON."""
        try:
            said = msgspec.json.decode(body)
        except msgspec.DecodeError:
            return body
        cached = answers.cached_tokens(usage.input_tokens, self.provider.scenario.cached_share)
        told = answers.usage_told(usage.input_tokens, usage.output_tokens, cached)
        return msgspec.json.encode({**said, "usage": told})

    def _refused(self, refused: Refused, budget: Budget, model: str, factor: float) -> Verdict:
        requested = {
            "requests": self.charged.requests,
            "tokens": self.charged.tokens,
            "input_tokens": self.charged.input_tokens,
            "output_tokens": self.charged.output_tokens,
        }[refused.dimension]
        body = answers.refusal(
            dimension=refused.dimension,
            limit=budget.per_minute[refused.dimension],
            requested=requested,
            retry_after_s=refused.retry_after_s,
            model=model,
            anthropic=self.anthropic,
            request_id=self.request_id,
            words=self.provider.scenario.words,
        )
        return self._verdict(_Reply(status=429, body=body, retry_after_s=refused.retry_after_s), factor)

    def _crowded(self, bound: int, model: str, factor: float) -> Verdict:
        body = answers.crowded(
            bound=bound if self.provider.scenario.in_flight_told else None,
            model=model,
            anthropic=self.anthropic,
            request_id=self.request_id,
        )
        return self._verdict(_Reply(status=429, body=body, retry_after_s=_CROWDED_RETRY_S), factor)

    def _rejected(self, status: int, kind: str, message: str, factor: float) -> Verdict:
        if self.anthropic:
            body = answers.anthropic_error(kind, message, self.request_id)
        else:
            body = answers.openai_error(message, "invalid_request_error", None)
        return self._verdict(_Reply(status=status, body=body), factor)

    def _verdict(self, reply: _Reply, factor: float) -> Verdict:
        provider, fault, usage = self.provider, reply.fault, reply.usage
        engine = reply.admitted and fault is not Fault.OUTAGE
        if engine:
            latency_s = provider.latency_s(self.number, factor * provider.slowed(self.key))
        else:
            latency_s = provider.refusal_latency_s(self.number, factor)
        headers = self.request.headers
        cached = 0 if usage is None else answers.cached_tokens(usage.input_tokens, provider.scenario.cached_share)
        arrival = Arrival(
            n=self.number,
            t=self.now_s - provider.start_s,
            unix=self.unix_s,
            path=self.request.path,
            status=reply.status,
            admitted=reply.admitted,
            fault=None if fault is None else fault.value,
            key=self.key,
            cost_tokens=self.charged.tokens,
            input_tokens=0 if usage is None else usage.input_tokens,
            output_tokens=0 if usage is None else usage.output_tokens,
            cached_input_tokens=cached,
            billed_nanousd=0 if usage is None else provider.bill_nanousd(usage, cached),
            latency_s=latency_s,
            body=self.digest.hexdigest(),
            request_id=self.request_id,
            call_id=headers.get("x-call-id"),
            idempotency_key=headers.get("idempotency-key"),
            client_request_id=headers.get("x-client-request-id"),
            custom_id=None if self.asked is None else self.asked.name("custom_id"),
            user=None if self.asked is None else self.asked.user or self.asked.name("user_id"),
        )
        if reply.status is None:
            return Verdict(arrival, reply.ending, b"", None, self.now_s)
        lines = self._id_lines(latency_s)
        if fault is not Fault.OUTAGE:
            lines += provider.limit_lines(self.style, self.key, self.now_s, self.unix_s)
        if reply.retry_after_s is not None and provider.scenario.retry_after:
            lines += retry_lines(self.style, reply.retry_after_s, whole=not provider.scenario.retry_after_ms)
        answer = render(reply.status, lines, reply.body, content_type=reply.content_type, promised=reply.promised)
        return Verdict(arrival, reply.ending, answer, reply.unused, self.now_s)

    def _id_lines(self, latency_s: float) -> str:
        if self.anthropic:
            return f"request-id: {self.request_id}\r\n"
        return f"x-request-id: {self.request_id}\r\nopenai-processing-ms: {round(latency_s * 1000)}\r\n"


def _key_hash(request: Request) -> str | None:
    """A short hash of the request's key, which is never kept itself; None: there is no key."""
    key = request.headers.get("x-api-key") or request.headers.get("authorization")
    return None if key is None else sha256(key.removeprefix("Bearer ").encode()).hexdigest()[:12]
