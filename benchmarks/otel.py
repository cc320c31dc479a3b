"""What do traces cost, and how much of that is OpenTelemetry's SDK?

    python -m benchmarks.otel [--pairs 5] [--calls 3000] [--rounds 20]

First the spans alone, in this process: what a call makes of them while it is sent, run and settled, without the call.

    api       the product with OpenTelemetry's API alone: there is no SDK
    sampled 0 the SDK samples no trace
    ours      an SDK that records nothing, but says that it does: all that the product does for a traced call
    sampled 1 the SDK records every trace, and its batch processor hands the spans to an exporter that drops them
    metrics   there is only a meter provider, with one reader

So the SDK's own part of `sampled 1` is what it takes more than `ours`; an exporter that sends adds its own.

Then no-op calls through one worker, in pairs with MAISD_OTEL=off, and also `unset` (MAISD_OTEL=auto, without a tracer
provider). An answer takes no time here; with a provider that takes a second, the same microseconds are a smaller share.
Ratios are computed for each pair, and their median is printed. Processor time (user and system, of worker and sender)
is valid on a busy machine too, calls/s is not; function calls are the same everywhere. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from msgspec import structs
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from benchmarks.overhead import OURS, Side, running  # noqa: E402
from ratelimit_worker.calls import Attempt, Outcome  # noqa: E402
from ratelimit_worker.contracts.call import Placed  # noqa: E402
from ratelimit_worker.contracts.plan import Plan  # noqa: E402
from ratelimit_worker.ports import Begun  # noqa: E402
from ratelimit_worker.telemetry import Tracer  # noqa: E402

PROVIDER = """
from opentelemetry import trace
from benchmarks.otel import sdk
trace.set_tracer_provider(sdk({share}))
"""
#: Name → value of MAISD_OTEL, and the app's code.
SIDES = {
    "off": ("off", OURS),
    "unset": ("auto", OURS),
    "api": ("on", OURS),
    "sampled 0": ("auto", PROVIDER.format(share=0.0) + OURS),
    "sampled 1": ("auto", PROVIDER.format(share=1.0) + OURS),
}
MOST = 1.02  #: goal: seconds and processor time, as a multiple of those of `off`
CALL_ID = "8f14e45f-ceea-467f-a8d6-1c2f0a1b2c3d"
PLAN = Plan(lane="bench", deadline_s=1e9, publication="p" * 32)
BEGUN = Begun(state="go", number=1, waiting_since_s=99.995, now_s=100.0)
ROW = Attempt(
    call_id=CALL_ID,
    number=1,
    lane="bench",
    task="noop",
    outcome=Outcome.ANSWERED,
    started_at=100.0,
    finished_at=100.0001,
    waited_s=0.005,
)


class _Released:
    """The call, as a worker sees it."""

    call_id = tag = CALL_ID
    task = "noop"
    plan = PLAN


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


class _Hollow(trace.NonRecordingSpan):
    """A span that says it is recorded, and is not."""

    def is_recording(self) -> bool:
        return True


class _HollowTracer(trace.NoOpTracer):
    span = _Hollow(trace.SpanContext(1 << 100, 1 << 50, False, trace.TraceFlags(1)))

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self.span


class _HollowProvider(trace.NoOpTracerProvider):
    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        return _HollowTracer()


def spans_alone(tracer: Tracer) -> Callable[[], None]:
    """A function that does for one call what the product does while it is traced, and nothing else."""
    released = _Released()

    def call() -> None:
        plan = PLAN
        with tracer.sending(plan, CALL_ID, "noop", "celery") as (sender, tell):
            if sender is not None:
                plan = structs.replace(plan, trace=sender)
            tell(Placed(True, "r"))
        released.plan = plan
        with tracer.attempt(released, BEGUN, tracer.look(plan.lane) if tracer.looks(plan, BEGUN) else ()):
            pass
        tracer.settling(released, ROW)(None)

    return call


def function_calls(call: Callable[[], None], times: int = 100) -> float:
    """Functions that run for one call."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(times):
        call()
    profile.disable()
    return sum(one.callcount for one in profile.getstats()) / times


def cpu_us_of(call: Callable[[], None], times: int = 200) -> float:
    """Processor time of one call, µs."""
    began = time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - began) / times * 1e6


def print_spans_alone(rounds: int) -> float:
    """Print what tracing costs in this process → µs of our own code for a call whose trace is recorded."""
    some: dict[str, trace.TracerProvider | None] = {
        "api": None,
        "sampled 0": sdk(0.0),
        "ours": _HollowProvider(),
        "sampled 1": sdk(1.0),
    }
    calls = {name: spans_alone(Tracer(lambda lane: (), provider)) for name, provider in some.items()}
    calls["metrics"] = spans_alone(Tracer(lambda lane: (), None, MeterProvider([InMemoryMetricReader()])))
    for call in calls.values():
        cpu_us_of(call)  # warm
    runs = [{name: cpu_us_of(call) for name, call in calls.items()} for _ in range(rounds)]
    middle = {name: statistics.median(run[name] for run in runs) for name in calls}
    for name, call in calls.items():
        print(f"spans alone, {name}: {middle[name]:.1f} µs a call, {function_calls(call):.0f} function calls")
    part = statistics.median(run["sampled 1"] - run["ours"] for run in runs)
    print(f"spans alone, the SDK's part of `sampled 1`: {part:.1f} µs a call")
    return middle["ours"]


def cpu_us(run: dict[str, Any]) -> float:
    """Processor time of worker and sender for a call, µs."""
    each = run["each"]
    return float(each["worker"] + each["producer"]) * 1e6


def pairs_of(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Runs of each side through a worker, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(options.pairs):
        for name, (wanted, app) in SIDES.items():
            os.environ["MAISD_OTEL"] = wanted
            with running(Side(name, app, ROOT), "threads", "WARNING") as drive:
                runs[name].append(drive(options.calls, 1))
            print(f"{name}: {cpu_us(runs[name][-1]):.0f} µs", file=sys.stderr, flush=True)
    return runs


def main() -> int:
    """Print each figure with its goal; returns 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=20, help="of 200 calls for each figure of the spans alone")
    options = parser.parse_args()
    ours_us = print_spans_alone(options.rounds)
    if not options.pairs:
        return 0
    runs = pairs_of(options)
    print(f"{options.pairs} pairs of {options.calls} calls, load average {os.getloadavg()[0]:.1f}")
    for name, some in runs.items():
        speed = statistics.median(run["calls"] / run["seconds"] for run in some)
        print(f"{name}: {statistics.median(map(cpu_us, some)):.0f} µs a call of worker and sender, {speed:.0f} calls/s")
    off_us = statistics.median(map(cpu_us, runs["off"]))
    missed = beside("sampled 1, our own part: processor time", (off_us + ours_us) / off_us, MOST, "× off")
    for name in list(SIDES)[1:]:
        pairs = list(zip(runs[name], runs["off"], strict=True))
        took = statistics.median(cpu_us(one) / cpu_us(other) for one, other in pairs)
        slower = statistics.median(one["seconds"] / other["seconds"] for one, other in pairs)
        missed |= beside(f"{name}: processor time", took, MOST, "× off")
        missed |= beside(f"{name}: seconds for the calls", slower, MOST, "× off")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
