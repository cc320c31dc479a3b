"""What a traced call asks of the SDK and of its lane: no more than needed, and nothing if its trace is not recorded."""

from __future__ import annotations

from collections import Counter
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Decision, Sampler, SamplingResult
from opentelemetry.util.types import Attributes

from ratelimit_worker import telemetry
from ratelimit_worker.calls import Attempt, Category, Outcome
from ratelimit_worker.contracts.call import Placed
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.policy.spans import OWN, Held
from ratelimit_worker.ports import Begun
from ratelimit_worker.telemetry import MOST_LANES, Tracer
from tests.builders import attempt

LONG, SHORT = (Begun(state="go", number=1, now_s=100.0, waiting_since_s=100.0 - waited) for waited in (5.0, 0.001))
HELD = [Held("pace", "requests", None)]
PLAN = Plan(lane="lane", publication="p", deadline_s=1e9)
SENDER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-"
SAMPLED, UNSAMPLED = (Plan(lane="lane", publication="p", deadline_s=1e9, trace=SENDER + flag) for flag in ("01", "00"))


class Asked:
    """A lane's bars, with a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.lanes: list[str] = []
        self.now_s, self.away = 1000.0, False
        self.tracer = Tracer(self.ask, TracerProvider(), clock=lambda: self.now_s)

    def ask(self, lane: str) -> list[Held]:
        self.lanes.append(lane)
        if self.away:
            raise StoreUnavailable("Redis is away")
        return HELD


def test_a_lane_is_asked_once_a_second() -> None:
    asked = Asked()
    assert [list(asked.tracer.look(lane)) for lane in ("a", "a", "b")] == [HELD] * 3
    asked.now_s += 1.0
    assert list(asked.tracer.look("a")) == HELD
    assert asked.lanes == ["a", "b", "a"]


def test_a_lane_is_asked_only_for_a_long_wait_that_is_recorded() -> None:
    """A sender that traced nothing leaves that to this process's provider; without one, nothing is asked."""
    tracer, without_sdk = Asked().tracer, Tracer(lambda lane: HELD)
    assert [tracer.looks(plan, SHORT) for plan in (PLAN, SAMPLED)] == [False, False]
    assert [tracer.looks(plan, LONG) for plan in (PLAN, SAMPLED, UNSAMPLED)] == [True, True, False]
    assert not without_sdk.looks(PLAN, LONG)


def test_so_many_lanes_are_asked_within_a_second() -> None:
    asked = Asked()
    found = [list(asked.tracer.look(str(number))) for number in range(MOST_LANES + 1)]
    assert found == [HELD] * MOST_LANES + [[]]
    asked.now_s += 1.0
    assert list(asked.tracer.look("another")) == HELD


def test_a_wait_is_told_without_reasons_while_redis_is_away() -> None:
    asked = Asked()
    asked.away = True
    assert list(asked.tracer.look("a")) == []


class Counted(SpanProcessor):
    """How many spans have begun and not ended."""

    def __init__(self) -> None:
        self.open = 0

    def on_start(self, span: object, parent_context: object = None) -> None:
        self.open += 1

    def on_end(self, span: ReadableSpan) -> None:
        self.open -= 1


class Call(NamedTuple):
    """A released call."""

    tag: str
    call_id: str = "c"
    task: str = "task"
    plan: Plan = PLAN


def test_every_span_that_begins_ends_also_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many running attempts, the others have no span of their own, and none stays open."""
    monkeypatch.setattr(telemetry, "MOST_OPEN", 1)
    provider, counted = TracerProvider(), Counted()
    provider.add_span_processor(counted)
    tracer = Tracer(lambda lane: [], provider)
    calls = [Call("first"), Call("second")]
    for call in calls:
        with tracer.attempt(call, SHORT, ()):
            pass
    assert counted.open == 1
    for call in calls:
        tracer.settling(call, attempt())(None)
    assert counted.open == 0


class Noted(trace.NonRecordingSpan):
    """A span that says whether it is recorded, and notes what is asked of it."""

    def __init__(self, sdk: Sdk) -> None:
        super().__init__(trace.SpanContext(1, 2, False, trace.TraceFlags(sdk.recorded)))
        self.sdk = sdk

    def is_recording(self) -> bool:
        return self.sdk.recorded

    def set_attribute(self, key: str, value: object) -> None:
        self.sdk.asked["set_attribute"] += 1

    def set_attributes(self, attributes: object) -> None:
        self.sdk.asked["set_attributes"] += 1

    def end(self, end_time: int | None = None) -> None:
        self.sdk.asked["end"] += 1


class Sdk(trace.NoOpTracerProvider, trace.NoOpTracer):
    """An SDK that counts what is asked of it."""

    def __init__(self, recorded: bool) -> None:
        self.recorded = recorded
        self.asked: Counter[str] = Counter()

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return self

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        self.asked["start_span"] += 1
        return Noted(self)


def called(tracer: Tracer, begun: Begun = SHORT, row: Attempt | None = None, error: str | None = None) -> None:
    """One call is sent, run and settled."""
    with tracer.sending(PLAN, "c", "task", "queue") as (sender, tell):
        tell(Placed(True, "r"))
    call = Call("tag", plan=Plan(lane="lane", publication="p", deadline_s=1e9, trace=sender))
    with tracer.attempt(call, begun, tracer.look("lane") if tracer.looks(call.plan, begun) else ()):
        flags = trace.get_current_span().get_span_context().trace_flags
        assert sender is not None
        assert flags == int(sender[-2:], 16)  # for the spans of others within the attempt
    tracer.settling(call, row or attempt())(error)


def test_what_a_call_asks_of_the_sdk() -> None:
    """Two spans, if there is nothing to say about its wait and its settlement; one question, if it is not sampled."""
    recorded, not_recorded = Sdk(True), Sdk(False)
    for sdk in (recorded, not_recorded):
        tracer = Tracer(lambda lane: (), sdk, shortest_s=60.0)
        called(tracer)
        assert not tracer._open
    assert recorded.asked == {"start_span": 2, "set_attributes": 2, "end": 2}
    assert not_recorded.asked == {"start_span": 1}


class Noting(Sampler):
    """A sampler that notes what it is told of each call, and samples none or all."""

    def __init__(self, decision: Decision) -> None:
        self.told: list[Attributes] = []
        self.decision = decision

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.told.append(kwargs.get("attributes", args[4] if len(args) > 4 else None))
        return SamplingResult(self.decision, self.told[-1])

    def get_description(self) -> str:
        return "noting"


@pytest.mark.parametrize("decision", [Decision.DROP, Decision.RECORD_AND_SAMPLE])
def test_nothing_is_built_for_a_call_before_its_sampler_is_asked(decision: Decision) -> None:
    """All calls of a kind give their sampler the same attributes; a call's own id is told only in a recorded span."""
    sampler, exporter = Noting(decision), InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = Tracer(lambda lane: (), provider)
    for call_id in ("a", "b"):
        with tracer.sending(PLAN, call_id, "task", "queue") as (_, tell):
            tell(Placed(True, "r"))
    assert sampler.told[0] is sampler.told[1]
    assert (sampler.told[0] or {})[OWN + "task"] == "task"
    ids = [(span.attributes or {}).get(OWN + "call.id") for span in exporter.get_finished_spans()]
    assert ids == (["a", "b"] if decision.is_sampled() else [])


@pytest.mark.parametrize(("recording", "asked"), [(False, 0), (True, 1)])
def test_a_call_that_is_sent_within_a_trace_that_is_not_sampled_is_not_either(recording: bool, asked: int) -> None:
    """The sampler is not asked, as in a worker; but where that trace is recorded without being sampled, it is."""
    sampler = Noting(Decision.DROP)
    tracer, within = Tracer(lambda lane: (), TracerProvider(sampler=sampler)), Noted(Sdk(False))
    within.sdk.recorded = recording
    with trace.use_span(within), tracer.sending(PLAN, "c", "task", "queue") as (sender, _):
        pass
    assert len(sampler.told) == asked
    assert sender is not None
    assert (sender[3:35], sender[-2:]) == (f"{1:032x}", "00")
    assert sender[36:52] == f"{2:016x}" or asked


def test_a_failed_sending_says_which_call_it_was() -> None:
    tracer, exporter = exported(shortest_s=60.0)
    with pytest.raises(StoreUnavailable), tracer.sending(PLAN, "a", "task", "queue"):
        raise StoreUnavailable("Redis is away")
    (span,) = exporter.get_finished_spans()
    assert span.attributes is not None
    assert (span.attributes[OWN + "call.id"], span.attributes["error.type"]) == ("a", "StoreUnavailable")


def test_waits_and_settlements_of_a_busy_worker_are_not_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is busy with short calls makes them wait for some 10 ms each, which is when spans cost the most."""
    moments = count(10**18, 50_000_000)
    monkeypatch.setattr(telemetry, "time", SimpleNamespace(time_ns=lambda: next(moments)))
    tracer, exporter = exported(shortest_s=telemetry.SHORTEST_S)
    called(tracer, Begun(state="go", number=1, now_s=100.0, waiting_since_s=99.95))
    assert {span.name for span in exporter.get_finished_spans()} == {"send task", "chat"}


def test_a_call_that_its_sender_did_not_sample_has_no_span_of_any_kind() -> None:
    """A worker's own sampler is not asked: neither for an attempt, nor for a call that has none or joins another."""
    tracer, exporter = exported(shortest_s=0.0)
    call = Call("tag", plan=UNSAMPLED)
    with tracer.attempt(call, LONG, HELD):
        within = trace.get_current_span().get_span_context()
        assert trace.format_trace_id(within.trace_id) == SENDER[3:35]
        assert not within.trace_flags.sampled
    for _ in range(2):  # of the attempt, and of a call without one
        tracer.settling(call, attempt())("StoreUnavailable")
    tracer.shared(call, b"answer")
    assert exporter.get_finished_spans() == ()


def exported(*, shortest_s: float) -> tuple[Tracer, InMemorySpanExporter]:
    """A tracer, and where its spans are when they have ended."""
    provider, exporter = TracerProvider(sampler=ALWAYS_ON), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(lambda lane: HELD, provider, shortest_s=shortest_s), exporter


AGAIN = Begun(state="go", number=2, tries=1, now_s=100.0, waiting_since_s=99.999)


@pytest.mark.parametrize(
    ("shortest_s", "begun", "error", "names"),
    [
        (60.0, SHORT, None, []),
        (0.0, SHORT, None, ["wait", "settle"]),
        (60.0, LONG, None, ["wait"]),  # it says what held the call
        (60.0, AGAIN, None, ["wait"]),  # it says that there was an attempt before
        (60.0, SHORT, "StoreUnavailable", ["settle"]),
    ],
)
def test_a_short_wait_or_settlement_is_a_span_if_there_is_something_to_say(
    shortest_s: float, begun: Begun, error: str | None, names: list[str]
) -> None:
    tracer, exporter = exported(shortest_s=shortest_s)
    called(tracer, begun, error=error)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"send task", "chat", *names}
    told = spans["chat"].attributes
    assert told is not None
    assert told[OWN + "wait_s"] == pytest.approx(begun.now_s - begun.waiting_since_s)
    sender, *others = sorted(spans.values(), key=lambda span: span.name != "send task")
    assert {span.context.trace_id for span in others} == {sender.context.trace_id}
    assert {span.parent.span_id if span.parent else 0 for span in others} == {sender.context.span_id}
    if error is not None:
        settle = spans["settle"]
        assert settle.attributes is not None
        assert settle.attributes["error.type"] == error
        assert (told[OWN + "outcome"], spans["chat"].status.status_code) == ("answered", trace.StatusCode.UNSET)


def test_without_a_sender_the_attempt_begins_the_trace() -> None:
    """Its wait and its settlement are its children; an own sampler that records nothing is asked once."""
    tracer, exporter = exported(shortest_s=0.0)
    for one in (tracer, Tracer(lambda lane: HELD, TracerProvider(sampler=ALWAYS_OFF), shortest_s=0.0)):
        call = Call("tag")
        with one.attempt(call, LONG, HELD):
            pass
        one.settling(call, attempt(outcome=Outcome.FAILED, category=Category.AUTH))(None)
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert set(spans) == {"wait", "chat", "settle"}
    assert spans["chat"].parent is None
    assert spans["wait"].parent == spans["settle"].parent == spans["chat"].context
    assert [event.name for event in spans["wait"].events] == ["pace"]


@pytest.mark.parametrize("header", ["", "text", SENDER + "zz", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_a_header_that_names_no_span_begins_a_trace_of_its_own(header: str) -> None:
    tracer, exporter = exported(shortest_s=60.0)
    call = Call("tag", plan=Plan(lane="lane", publication="p", deadline_s=1e9, trace=header))
    with tracer.attempt(call, SHORT, ()):
        pass
    tracer.settling(call, attempt())(None)
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
