"""What `benchmarks.otel` puts into the processes that it measures: an SDK, and a clock around what tracing does there.

It imports nothing of the tests: they would bring an audit hook, and half as many objects again, into these processes.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from ratelimit_worker import telemetry

FOLDER = "BENCH_OTEL_FOLDER"  #: environment variable: where a process that ends writes what tracing took in it
IN_PLACE = (
    (telemetry.Tracer, ("sending", "looks", "look", "attempt", "settling", "_settled")),
    (telemetry._Sending, ("__enter__", "_placed", "__exit__")),
    (telemetry._Current, ("__enter__", "__exit__")),
)


class Drops(SpanExporter):
    """An exporter that costs nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Drop them."""
        return SpanExportResult.SUCCESS


def sdk(share: float) -> TracerProvider:
    """The SDK as its documentation sets it up, sampling this share of the traces."""
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(share)))
    provider.add_span_processor(BatchSpanProcessor(Drops()))
    return provider


class _Clock:
    """Processor time of this process in tracing and in collecting garbage, and the number of calls (ns)."""

    def __init__(self) -> None:
        self.tracing_ns = self.timed = self.garbage_ns = self.calls = self._since_ns = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            since_ns = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.tracing_ns += time.thread_time_ns() - since_ns
                self.timed += 1
                self.calls += function.__name__ in ("sending", "attempt")

        return timed

    def collected(self, phase: str, _: object) -> None:
        now_ns = time.thread_time_ns()
        if phase == "start":
            self._since_ns = now_ns
        else:
            self.garbage_ns += now_ns - self._since_ns

    def write(self) -> None:
        own_ns, times = -time.thread_time_ns(), 10_000
        empty = _Clock().around(lambda: None)
        for _ in range(times):
            empty()
        own_ns += time.thread_time_ns()
        told = {
            "calls": self.calls,
            "tracing_us": (self.tracing_ns - own_ns / times / 2 * self.timed) / 1e3,  # half of it is outside the clock
            "garbage_us": self.garbage_ns / 1e3,
        }
        Path(os.environ[FOLDER], str(os.getpid())).write_text(json.dumps(told))


def clocked() -> None:
    """Measure this process from now on, if `FOLDER` is set, and write down what was found when it ends."""
    if FOLDER not in os.environ:
        return
    clock = _Clock()
    for owner, names in IN_PLACE:
        for name in names:
            setattr(owner, name, clock.around(getattr(owner, name)))
    gc.callbacks.append(clock.collected)
    atexit.register(clock.write)
