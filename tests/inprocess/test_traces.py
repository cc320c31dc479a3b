"""Traces and metrics of calls in process; and that a process without tracing never has the library."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ratelimit_worker import wiring
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import InvalidRequest
from ratelimit_worker.inprocess import AdvancedRateLimiter
from ratelimit_worker.telemetry import Tracer
from tests.builders import ROOT
from tests.fleet import fleet

pytestmark = pytest.mark.server
OWN = "ratelimit_worker."
LANE = "openai:gpt-4o"
ANSWER = {
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "a secret answer"}}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 34, "total_tokens": 46},
}


class Place:
    """A traced limiter, and what it has told."""

    def __init__(self) -> None:
        self.exporter, self.reader = InMemorySpanExporter(), InMemoryMetricReader()
        traces = TracerProvider()
        traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = traces.get_tracer("test")
        live = wiring.use(read_settings())
        live.once("tracer", lambda: Tracer(lambda lane: (), traces, MeterProvider([self.reader]), shortest_s=0.0))
        self.limiter = AdvancedRateLimiter(live, jitter=lambda: 0.0)

    def spans(self) -> dict[str, ReadableSpan]:
        """Those that have ended since the last time, by name."""
        found = self.exporter.get_finished_spans()
        self.exporter.clear()
        assert len({span.name for span in found}) == len(found), [span.name for span in found]
        return {span.name: span for span in found}

    def figures(self, name: str) -> list[tuple[dict[str, Any], float, int]]:
        """(attributes, sum, count) of a histogram's points."""
        told: Any = self.reader.get_metrics_data()
        return [
            (dict(point.attributes), point.sum, point.count)
            for resource in told.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with fleet(MAISD_LANES='{"openai:gpt-4o": {"unlimited": true}}'):
        made = Place()
        yield made
        made.limiter.close()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """Of a span that has some."""
    assert span.attributes is not None
    return dict(span.attributes)


def test_a_call_in_process_is_a_trace_within_its_callers(place: Place) -> None:
    """With model, tokens and provider by the conventions, and neither question nor answer; a later one links to it."""

    def ask(prompt: str) -> Any:
        with place.tracer.start_as_current_span("own client"):
            return ANSWER

    with place.tracer.start_as_current_span("agent") as agent:
        assert place.limiter.make_rate_limited_call(ask, "ask", ("a secret question",), lane=LANE) == ANSWER
    spans = place.spans()
    assert set(spans) == {"agent", "send ask", "wait", "chat gpt-4o", "own client", "settle"}
    assert {span.context.trace_id for span in spans.values()} == {agent.get_span_context().trace_id}
    above = {name: span.parent.span_id if span.parent is not None else 0 for name, span in spans.items()}
    send = spans["send ask"].context.span_id
    assert above["send ask"] == agent.get_span_context().span_id
    assert above["wait"] == above["chat gpt-4o"] == above["settle"] == send
    assert above["own client"] == spans["chat gpt-4o"].context.span_id
    told = attributes(spans["chat gpt-4o"])
    assert told["gen_ai.provider.name"] == "openai"
    assert (told["gen_ai.request.model"], told["gen_ai.operation.name"]) == ("gpt-4o", "chat")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (12, 34)
    assert told["gen_ai.response.finish_reasons"] == ("stop",)
    assert "secret" not in "".join(span.to_json() for span in spans.values())
    tokens = {one["gen_ai.token.type"]: total for one, total, _ in place.figures("gen_ai.client.token.usage")}
    assert tokens == {"input": 12, "output": 34}
    assert [one[2] for one in place.figures("gen_ai.client.operation.duration")] == [1]
    assert [one[0] for one in place.figures(OWN + "call.wait.duration")] == [{OWN + "lane": LANE}]


def plain(prompt: str) -> Any:
    """A function by whose name its calls are known, so that they share answers."""
    return ANSWER


def test_a_kept_answer_links_to_the_call_that_asked(place: Place) -> None:
    for _ in range(2):
        assert place.limiter.make_rate_limited_call(plain, "plain", ("a secret question",), lane=LANE) == ANSWER
    asked, *_, hit = sorted(place.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
    names = sorted(span.name for span in place.exporter.get_finished_spans())
    place.exporter.clear()
    assert names == ["chat gpt-4o", "send plain", "send plain", "settle", "wait"]
    assert (asked.name, hit.name) == ("send plain", "send plain")
    assert attributes(hit)[OWN + "reuse"] == "hit"
    assert [link.context.span_id for link in hit.links] == [asked.context.span_id]


def test_coroutines_have_traces_of_their_own(place: Place) -> None:
    """Two at once, each under its own caller; the one that fails says the kind of its error, and not its text."""

    async def ask(name: str) -> str:
        assert trace.get_current_span().get_span_context().is_valid
        await asyncio.sleep(0)
        if name == "bad":
            raise InvalidRequest("a secret refusal", 400)
        return name

    async def called(name: str) -> Any:
        with place.tracer.start_as_current_span(name):
            return await place.limiter.make_rate_limited_call(ask, name, (name,), lane=LANE, cache_enabled=False)

    async def both() -> Any:
        return await asyncio.gather(called("good"), called("bad"), return_exceptions=True)

    good, bad = asyncio.run(both())
    assert good == "good"
    assert isinstance(bad, InvalidRequest)
    found = place.exporter.get_finished_spans()
    place.exporter.clear()
    traces = {span.name: span.context.trace_id for span in found if span.name in ("good", "bad")}
    for name, error in (("good", None), ("bad", "invalid_request")):
        mine = {span.name: span for span in found if span.context.trace_id == traces[name]}
        assert set(mine) == {name, f"send {name}", "wait", "chat gpt-4o", "settle"}
        assert attributes(mine["chat gpt-4o"]).get("error.type") == error
    assert "secret" not in "".join(span.to_json() for span in found if span.name not in traces)


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_without_tracing_nothing_imports_the_library(place: Place, wanted: str) -> None:
    """A call in process and one that is sent, in a process of its own. (redis-py imports it by itself, where it is.)"""
    code = f"""
import os, sys
class Importers:
    found = set()
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry"):
            frame = sys._getframe(1)
            while "importlib" in frame.f_code.co_filename:
                frame = frame.f_back
            self.found.add(frame.f_globals["__name__"].partition(".")[0])
sys.meta_path.insert(0, Importers())
os.environ["MAISD_OTEL"] = {wanted!r}
from ratelimit_worker import get_advanced_rate_limiter
from tests.fleet_app import echo
echo.delay(1)
limiter = get_advanced_rate_limiter()
assert limiter.make_rate_limited_call(lambda: 5, "five", lane={LANE!r}, cache_enabled=False) == 5
assert limiter.services.tracer is None
print(sorted(Importers.found - {{"redis", "opentelemetry"}}))
limiter.close()
"""
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
