"""What do traces cost, and how much of that is OpenTelemetry's SDK?

    python -m benchmarks.otel [--pairs 5] [--calls 3000] [--rounds 20]   # --pairs 0: the spans alone

First the spans alone, in this process: what a call makes of them while it is sent, run and settled, without the call.

    api       the product with OpenTelemetry's API alone: there is no SDK
    sampled 0 the SDK samples no trace
    ours      an SDK that records nothing, but says that it does: all that the product does for a traced call
    sampled 1 the SDK records every trace, and its batch processor hands the spans to an exporter that drops them
    metrics   there is only a meter provider, with one reader

So the SDK's own part of `sampled 1` is what it takes more than `ours`; an exporter that sends adds its own. In such a
loop everything is in the processor's caches. `benchmarks.otel_instructions` counts instructions instead.

Then the same in place: no-op calls go through one worker, and a clock around each function of tracing says how much
processor time it took in worker and sender, where it is not in the caches. What the clock itself takes is subtracted.
Collecting garbage is told apart, that of the process's start included, since spans that wait to be exported are looked
at each time: compare it with `off`.

Then without that clock, in pairs with MAISD_OTEL=off, and also `unset` (MAISD_OTEL=auto, without a tracer provider). An
answer takes no time here; with a provider that takes a second, the same microseconds are a smaller share. Ratios are
computed for each pair, and their median is printed. Processor time (user and system, of worker and sender) is valid on
a busy machine too, if there are many pairs; calls/s is not. Exit code 1: a goal was missed.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from msgspec import structs
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.goals import beside  # noqa: E402
from benchmarks.otel_sdk import FOLDER, sdk  # noqa: E402
from benchmarks.overhead import OURS, Side, running  # noqa: E402
from ratelimit_worker.calls import Attempt, Outcome  # noqa: E402
from ratelimit_worker.contracts.call import Placed  # noqa: E402
from ratelimit_worker.contracts.plan import Plan  # noqa: E402
from ratelimit_worker.ports import Begun  # noqa: E402
from ratelimit_worker.telemetry import Tracer  # noqa: E402

PROVIDER = """
from opentelemetry import trace
from benchmarks.otel_sdk import sdk
trace.set_tracer_provider(sdk({share}))
"""
#: Name → value of MAISD_OTEL, and the app's code.
SIDES = {
    "off": ("off", OURS),
    "unset": ("auto", OURS),
    "api": ("on", OURS),
    "sampled 0": ("auto", PROVIDER.format(share=0.0) + OURS),
    "sampled 0.1": ("auto", PROVIDER.format(share=0.1) + OURS),
    "sampled 1": ("auto", PROVIDER.format(share=1.0) + OURS),
}
CLOCKED = "from benchmarks.otel_sdk import clocked\nclocked()\n"
WARM = 201  #: calls that `benchmarks.overhead` makes before those that it measures
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


class Alone:
    """What the product does for one call while it is traced, and nothing else.

    Args:
        begun: What the lane said when its attempt began.
    """

    def __init__(self, tracer: Tracer, begun: Begun = BEGUN) -> None:
        self._tracer, self._begun, self._released = tracer, begun, _Released()

    def send(self) -> None:
        """In the caller."""
        plan = PLAN
        with self._tracer.sending(plan, CALL_ID, "noop", "celery") as (sender, tell):
            if sender is not None:
                plan = structs.replace(plan, trace=sender)
            tell(Placed(True, "r"))
        self._released.plan = plan

    def work(self) -> None:
        """In the worker, after `send`."""
        tracer, released, begun = self._tracer, self._released, self._begun
        lane = released.plan.lane
        with tracer.attempt(released, begun, tracer.look(lane) if tracer.looks(released.plan, begun) else ()):
            pass
        tracer.settling(released, ROW)(None)

    def __call__(self) -> None:
        self.send()
        self.work()


def all_alone() -> dict[str, Alone]:
    """By the name of what is set up in this process."""
    some: dict[str, trace.TracerProvider | None] = {
        "api": None,
        "sampled 0": sdk(0.0),
        "ours": _HollowProvider(),
        "sampled 1": sdk(1.0),
    }
    found = {name: Alone(Tracer(lambda lane: (), provider)) for name, provider in some.items()}
    found["metrics"] = Alone(Tracer(lambda lane: (), None, MeterProvider([InMemoryMetricReader()])))
    return found


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
    calls = all_alone()
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


def print_in_place(calls: int) -> None:
    """Print what tracing takes within whole calls, in the sender and in the worker."""
    for name in ("off", "sampled 0", "sampled 0.1", "sampled 1"):
        wanted, app = SIDES[name]
        with tempfile.TemporaryDirectory() as folder:
            os.environ.update({"MAISD_OTEL": wanted, FOLDER: folder})
            with running(Side(name, app + CLOCKED, ROOT), "threads", "WARNING") as one:
                run = one.drive(calls, 1)
            del os.environ[FOLDER]
            told = [json.loads(one.read_text()) for one in Path(folder).iterdir()]
        each = {what: sum(one[what] for one in told) / (calls + WARM) for what in ("tracing_us", "garbage_us")}
        print(
            f"in place, {name}: {each['tracing_us']:.0f} µs a call in tracing, {each['garbage_us']:.0f} µs in "
            f"collecting garbage, of {cpu_us(run):.0f} µs in all with the clock"
        )


def pairs_of(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Runs of each side through a worker, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for _ in range(options.pairs):
        for name, (wanted, app) in SIDES.items():
            os.environ["MAISD_OTEL"] = wanted
            with running(Side(name, app, ROOT), "threads", "WARNING") as one:
                runs[name].append(one.drive(options.calls, 1))
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
    print_in_place(options.calls)
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
