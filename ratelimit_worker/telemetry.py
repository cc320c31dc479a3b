"""Traces and metrics of calls, by OpenTelemetry's API.

`policy.spans` has their names and attributes; here they are started and ended. Nothing imports opentelemetry before a
`Tracer` is made: a process without tracing never loads it. A call has one trace, with these spans:

    send       in the caller, until the call is in its lane; the span's context travels in the plan
    wait       written when an attempt begins; its events say what held the call
    chat …     the attempt; spans of the task's own instrumentation are its children
    settle     from the attempt's end until its outcome is safe
    shared     instead of the last three: the call got the answer of another, to which the span links

A span that is recorded costs the SDK some 20 µs, and 1 µs for each attribute. So a wait or a settlement that was short,
and of which there is nothing to say, is left out. Whether a call is sampled is decided once: by the trace in which it
is sent, or else by its sender's sampler. For a call that is not, nothing is built; its context travels all the same,
and is the current one during its attempts, for the spans of others.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import ratelimit_worker
from ratelimit_worker.calls import Attempt, Outcome
from ratelimit_worker.contracts.call import Placed
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.policy import spans
from ratelimit_worker.policy.spans import OWN, Asked, Event, Held, Wait
from ratelimit_worker.ports import Begun, Sent, Settled, Traced, not_settling

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, SpanContext, TracerProvider

log = logging.getLogger(__name__)

#: Environment variables by which the API finds a provider that is not set in code.
NAMED = ("OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER")
LEAST_WAIT_S = 0.1  #: after a shorter wait, the lane is not asked what held the call
LOOK_EVERY_S = 1.0  #: a lane is asked what holds it at most this often, by each process
MOST_LANES = 200  #: most lanes that metrics name (the others are "other"), and most that are asked within a second
SHORTEST_S = 0.1  #: shorter waits and settlements, of which there is nothing to say, have no span
MOST_OPEN = 100_000  #: most running attempts with a span in a process; the others have none


def check() -> None:
    """Check that tracing can be switched on here.

    Raises:
        ConfigurationError: the library is not installed.
    """
    if find_spec("opentelemetry") is None:
        raise ConfigurationError(
            "MAISD_OTEL=on, and opentelemetry-api is not installed: pip install 'ratelimit-worker[otel]'"
        )


def named() -> bool:
    """Whether the environment names a provider, and the library that would make it is installed."""
    return any(os.environ.get(name) for name in NAMED) and find_spec("opentelemetry") is not None


def configured() -> bool:
    """Whether this process has given OpenTelemetry a provider of traces or metrics in code. Every call asks this, so it
    imports nothing, and reads no environment."""
    trace, metrics = sys.modules.get("opentelemetry.trace"), sys.modules.get("opentelemetry.metrics")
    return (trace is not None and _has_tracers(trace)) or (metrics is not None and _has_meters(metrics))


def _has_tracers(trace: ModuleType) -> bool:
    return _is_set(trace, "_TRACER_PROVIDER", "get_tracer_provider")


def _has_meters(metrics: ModuleType) -> bool:
    return _is_set(getattr(metrics, "_internal", metrics), "_METER_PROVIDER", "get_meter_provider")


def _is_set(api: ModuleType, kept: str, ask: str) -> bool:
    """Whether somebody has set a provider: until then, the API returns no-ops of its own.

    Args:
        kept: Where the API keeps it; None there: none is set.
        ask: The API's function for it, which reads the environment each time while none is set. So it is only called if
            a later version keeps the provider elsewhere.
    """
    provider = getattr(api, kept, _ELSEWHERE)
    if provider is _ELSEWHERE:
        provider = getattr(api, ask)()
    return provider is not None and not type(provider).__module__.startswith(
        ("opentelemetry.trace", "opentelemetry.metrics")
    )


_ELSEWHERE = object()


class Tracer:
    """The spans and metrics of this process's calls.

    Args:
        look: Takes a lane; returns what holds its next call back. It may raise `StoreUnavailable`.
        traces, meters: Providers; None: those that the process sets, before or later.
        shortest_s: A shorter wait or settlement, of which there is nothing to say, has no span. Seconds.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        look: Callable[[str], Sequence[Held]],
        traces: TracerProvider | None = None,
        meters: MeterProvider | None = None,
        *,
        shortest_s: float = SHORTEST_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from opentelemetry import context, metrics, trace

        self._trace, self._context, self._metrics, own = trace, context, metrics, ratelimit_worker.__version__
        self._tracer = trace.get_tracer("ratelimit_worker", own, traces)
        self._ask, self._clock, self._shortest_s = look, clock, shortest_s
        self._records, self._measures = traces is not None, meters is not None  #: whether a provider is known to be set
        self._looked: dict[str, tuple[float, Sequence[Held]]] = {}  #: by lane, when, and what was found
        self._open: dict[str, _Running] = {}  #: attempts, by tag
        self._lanes: set[str] = set()
        #: Kept, since a look-up in an enumeration takes a function call.
        self._producer, self._client = trace.SpanKind.PRODUCER, trace.SpanKind.CLIENT
        self._unrecorded = _Running(trace.INVALID_SPAN, 0, None)  #: every attempt at a call that is not sampled
        meter = metrics.get_meter("ratelimit_worker", own, meters)
        self._took = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=spans.SECONDS,
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=spans.TOKENS,
        )
        self._waited = meter.create_histogram(
            OWN + "call.wait.duration",
            unit="s",
            description="How long a call waited in its lane before an attempt.",
            explicit_bucket_boundaries_advisory=spans.WAITED_S,
        )

    def sending(self, plan: Plan, call_id: str, task: str, queue: str) -> AbstractContextManager[Sent]:
        """A call is put into its lane within this block.

        An error that ends the block is recorded in the span by its type alone, since its text may contain the prompt.
        """
        current = self._trace.get_current_span()
        if not self._is_traced() or _is_left_out(current):
            return nullcontext(Sent(_traceparent(current), _not_told))
        span = self._tracer.start_span(
            f"send {task}", kind=self._producer, attributes=spans.of_sending(plan, task, queue)
        )
        if not span.is_recording():  # its context travels all the same, so that the workers agree
            return nullcontext(Sent(_traceparent(span), _not_told))
        return _Sending(self, span, call_id)

    def asker(self, answer: bytes) -> SpanContext | None:
        """The span in which a call was sent that has asked for a kept answer; None: it was not traced."""
        asker = spans.asked_by(answer)
        return self._told(asker) if asker is not None else None

    def looks(self, plan: Plan, begun: Begun) -> bool:
        """Whether the lane is to be asked what held a call: it has waited, and its trace is recorded. No I/O."""
        if begun.now_s - begun.waiting_since_s < LEAST_WAIT_S:
            return False
        if plan.trace is not None:
            return plan.trace[-1:] in _SAMPLED
        return self._is_traced()

    def look(self, lane: str) -> Sequence[Held]:
        """What holds the lane's next call back, as of now or up to a second ago."""
        now_s = self._clock()
        known = self._looked.get(lane)
        if known is not None and now_s - known[0] < LOOK_EVERY_S:
            return known[1]
        if known is None and len(self._looked) >= MOST_LANES:
            self._looked = {name: one for name, one in tuple(self._looked.items()) if now_s - one[0] < LOOK_EVERY_S}
            if len(self._looked) >= MOST_LANES:
                return ()
        self._looked[lane] = now_s, known[1] if known is not None else ()  # so that other threads do not ask too
        try:
            found = self._ask(lane)
        except StoreUnavailable as away:  # the call goes on, and its wait is recorded without reasons
            log.info("trace.no_reasons lane=%s cause=%s", lane, away)
            found = ()
        self._looked[lane] = now_s, found
        return found

    def attempt(self, traced: Traced, begun: Begun, held: Sequence[Held]) -> AbstractContextManager[None]:
        """An attempt begins; within the block its span is the current one. It lasts until `settling` or `dropped`."""
        plan = traced.plan
        waited_s = max(0.0, begun.now_s - begun.waiting_since_s)
        if self._is_measured():
            self._waited.record(waited_s, {OWN + "lane": self._lane(plan.lane)})
        if len(self._open) >= MOST_OPEN:
            return nullcontext()
        sender = self._sender(plan)
        if not self._is_recorded(sender):
            self._open[traced.tag] = self._unrecorded
            return _Current(self, sender) if sender is not None else nullcontext()
        now_ns, above = time.time_ns(), self._above(sender)
        name, about = spans.of_attempt(plan, traced.call_id, traced.task, waited_s)
        span = self._tracer.start_span(name, context=above, kind=self._client, attributes=about, start_time=now_ns)
        running = self._open[traced.tag] = _Running(span, now_ns, above)
        if span.is_recording():
            sick = begun.failing.row if begun.failing is not None else 0
            causes = spans.causes(Wait(begun.number, begun.tries, sick, begun.lost, begun.pause_s), held)
            if causes or waited_s >= self._shortest_s:
                self._wait(traced, self._beside(running), now_ns, waited_s, causes).end(now_ns)
        return _Current(self, span)

    def dropped(self, tag: str, why: str) -> None:
        """End the span of an attempt without an outcome: its process ends, or another delivery has taken its place."""
        running = self._open.pop(tag, None)
        if running is not None:
            self.failed(running.span, why)
            running.span.end()

    def settling(self, traced: Traced, row: Attempt) -> Settled:
        """An attempt has ended, or a call that had none → to be called when the outcome is safe."""
        running = self._open.pop(traced.tag, None)
        if running is not None and self._is_measured():
            self._measure(traced.plan, row)
        if running is self._unrecorded:
            return not_settling
        now_ns = time.time_ns()
        if running is None:
            sender = self._sender(traced.plan)
            if not self._is_recorded(sender):
                return not_settling
            above, ended_ns = self._above(sender), now_ns
            running = _Running(self._wait(traced, above, now_ns, row.waited_s), now_ns, above)
        else:
            ended_ns = min(now_ns, running.since_ns + int(row.latency_s * 1e9))
        span = running.span
        if not span.is_recording():
            return not_settling
        span.set_attributes(spans.came(row))
        if spans.error_of(row) is not None:
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(ended_ns)
        return partial(self._settled, traced, row.outcome, running, ended_ns)

    def _settled(
        self, traced: Traced, outcome: Outcome, running: _Running, since_ns: int, error: str | None = None
    ) -> None:
        now_ns = time.time_ns()
        if error is None and now_ns - since_ns < self._shortest_s * 1e9:
            return
        span = self._tracer.start_span(
            "settle",
            context=self._beside(running),
            attributes={**spans.named(traced.plan, traced.call_id), OWN + "outcome": outcome.value},
            start_time=since_ns,
        )
        if error is not None:
            self.failed(span, error)
        span.end(now_ns)

    def shared(self, traced: Traced, answer: bytes) -> None:
        """A call has got an answer that another call has asked for, and makes no attempt."""
        asker = spans.asked_by(answer)
        if asker is not None and traced.plan.trace is not None and asker == traced.plan.trace:
            return  # the answer is its own: the call was delivered a second time
        sender = self._sender(traced.plan)
        if not self._is_recorded(sender):
            return
        told = self.asker(answer)
        about = spans.of_call(traced.plan, traced.call_id, traced.task)
        span = self._tracer.start_span(
            f"shared {traced.task}",
            context=self._above(sender),
            attributes={**about, OWN + "reuse": "joined" if told is not None else "given"},
            links=[self._trace.Link(told)] if told is not None else None,
        )
        span.end()

    def failed(self, span: Span, kind: str) -> None:
        """Say in a span that what it stands for has failed."""
        span.set_attribute("error.type", kind)
        span.set_status(self._trace.StatusCode.ERROR)

    def enter(self, span: Span) -> object:
        """Make a span the current one → the token for `leave`."""
        return self._context.attach(self._trace.set_span_in_context(span))

    def leave(self, token: Any) -> None:
        """Make the span current that was so before."""
        self._context.detach(token)

    def _wait(
        self, traced: Traced, context: Context | None, now_ns: int, waited_s: float, causes: Sequence[Event] = ()
    ) -> Span:
        """The span of a wait that is over, which is to be ended."""
        about = spans.named(traced.plan, traced.call_id)
        since_ns = now_ns - int(waited_s * 1e9)
        span = self._tracer.start_span("wait", context=context, attributes=about, start_time=since_ns)
        for name, attributes in causes:
            span.add_event(name, attributes, timestamp=now_ns)
        return span

    def _measure(self, plan: Plan, row: Attempt) -> None:
        about = Asked.of(plan, row.provider).attributes()
        if row.model is not None:
            about["gen_ai.response.model"] = row.model
        for kind, tokens in (("input", row.input_tokens), ("output", row.output_tokens)):
            if tokens is not None:
                self._tokens.record(tokens, {**about, "gen_ai.token.type": kind})
        error = spans.error_of(row)
        self._took.record(max(0.0, row.latency_s), about if error is None else {**about, "error.type": error})

    def _is_traced(self) -> bool:
        """Whether there is a tracer provider; if not, only the context of others is passed on."""
        self._records = self._records or _has_tracers(self._trace)
        return self._records

    def _is_recorded(self, sender: Span | None) -> bool:
        """Whether spans of a call are asked for: its sender has decided, or else this process's sampler will."""
        return self._is_traced() and (sender is None or sender.get_span_context().trace_flags.sampled)

    def _is_measured(self) -> bool:
        """Whether there is a meter provider."""
        self._measures = self._measures or _has_meters(self._metrics)
        return self._measures

    def _sender(self, plan: Plan) -> Span | None:
        """The span in which the call was sent; None: its sender traced nothing."""
        told = self._told(plan.trace) if plan.trace is not None else None
        return self._trace.NonRecordingSpan(told) if told is not None else None

    def _above(self, sender: Span | None) -> Context | None:
        return self._trace.set_span_in_context(sender, self._context.Context()) if sender is not None else None

    def _beside(self, running: _Running) -> Context:
        """The context of an attempt's wait and settlement: they are its siblings; without a sender, its children."""
        return running.above if running.above is not None else self._trace.set_span_in_context(running.span)

    def _told(self, traceparent: str) -> SpanContext | None:
        """The span that a traceparent names; None: it names none.

        A propagator would take six times as long, since it also looks for what `_traceparent` never writes.
        """
        try:
            _, trace_id, span_id, flags, *_ = traceparent.split("-")
            told = self._trace.SpanContext(
                int(trace_id, 16), int(span_id, 16), True, self._trace.TraceFlags(int(flags, 16))
            )
        except ValueError:
            return None
        return told if told.is_valid else None

    def _lane(self, lane: str) -> str:
        if lane in self._lanes or len(self._lanes) < MOST_LANES:
            self._lanes.add(lane)
            return lane
        return "other"


_SAMPLED = frozenset("13579bdf")  #: last digit of a traceparent whose flag "sampled" is set


class _Running(NamedTuple):
    """An attempt that runs."""

    span: Span
    since_ns: int
    above: Context | None  #: in which its call was sent


class _Sending:
    """Within this block a call is sent whose trace is recorded. (`contextlib.contextmanager` would take twice as long.)

    What is to be said of it is kept, and told at the end at once: the SDK takes a lock each time.
    """

    __slots__ = ("_about", "_span", "_tracer")

    def __init__(self, tracer: Tracer, span: Span, call_id: str) -> None:
        self._tracer, self._span = tracer, span
        self._about: dict[str, str | bool] = {spans.CALL_ID: call_id}

    def __enter__(self) -> Sent:
        return Sent(_traceparent(self._span), self._placed)

    def _placed(self, placed: Placed) -> None:
        if placed.answer is None:
            self._about[OWN + "released"] = placed.released
            return
        self._about[OWN + "reuse"] = "stale" if placed.renews else "hit"
        if (asker := self._tracer.asker(placed.answer)) is not None:
            self._span.add_link(asker)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: object) -> None:
        self._span.set_attributes(self._about)
        if kind is not None:
            self._tracer.failed(self._span, kind.__name__)
        self._span.end()


class _Current:
    """Within this block the span of an attempt is the current one."""

    __slots__ = ("_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self._token: object = None

    def __enter__(self) -> None:
        self._token = self._tracer.enter(self._span)

    def __exit__(self, *ended: object) -> None:
        self._tracer.leave(self._token)


def _not_told(placed: Placed) -> None:
    """`Sent.tell` of a call whose sending has no span."""


def _is_left_out(span: Span) -> bool:
    """Whether a span belongs to a trace that is not sampled: a call that is sent within it is not either."""
    told = span.get_span_context()
    return told.is_valid and not told.trace_flags.sampled and not span.is_recording()


def _traceparent(span: Span) -> str | None:
    """W3C traceparent of a span; None: it has no ids, since nothing is traced."""
    told = span.get_span_context()
    if not told.is_valid:
        return None
    return f"00-{told.trace_id:032x}-{told.span_id:016x}-{told.trace_flags:02x}"
