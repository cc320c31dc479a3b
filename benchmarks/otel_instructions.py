"""How many instructions do the spans of a call take, in the sender and in the worker? Counted by valgrind's callgrind.

    python -m benchmarks.otel_instructions [--calls 300]

As the first figures of `benchmarks.otel`, but the same on every machine however busy it is. In addition, `waited` is
`sampled 1` for a call that waited for 50 ms, and `left out` is a call that is sent within a trace that is not sampled.
A whole no-op call takes some 1.7 million instructions in its sender, and 5.2 million in its worker.
Needs valgrind.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from opentelemetry import trace

from benchmarks.otel import Alone, all_alone
from benchmarks.otel_sdk import sdk
from ratelimit_worker.ports import Begun
from ratelimit_worker.telemetry import Tracer

COUNTED = "BENCH_COUNTED"  #: environment variable of the process that is counted: where callgrind writes
WAITED = Begun(state="go", number=1, waiting_since_s=99.95, now_s=100.0)


def control(*words: str) -> None:
    """Tell callgrind, in whose hands this process is."""
    subprocess.run(["callgrind_control", *words, str(os.getpid())], check=True, capture_output=True)


def counted(calls: int, out: Path) -> None:
    """Count, and print one line for each way to set it up."""
    ways = {**all_alone(), "waited": Alone(Tracer(lambda lane: (), sdk(1.0)), WAITED)}
    ways["left out"] = Alone(Tracer(lambda lane: (), sdk(1.0)))
    left_out = trace.NonRecordingSpan(trace.SpanContext(1 << 100, 1 << 50, False))
    for call in ways.values():
        for _ in range(50):
            call()  # warm
    gc.disable()
    control("-i", "on")
    dumps = 0

    def count(act: Callable[[], object]) -> float:
        nonlocal dumps
        control("--zero")
        for _ in range(calls):
            act()
        control("--dump")
        dumps += 1
        found = re.search(r"^(?:summary|totals): (\d+)", Path(f"{out}.{dumps}").read_text(), re.MULTILINE)
        return int(found[1]) / calls / 1000 if found else 0.0

    empty = count(lambda: None)
    for name, call in ways.items():
        with trace.use_span(left_out) if name == "left out" else nullcontext():
            sender = count(call.send) - empty
        worker = count(call.work) - empty
        print(
            f"{name:<12} {sender:5.0f} k instructions a call in its sender, {worker:5.0f} k in its worker", flush=True
        )
    control("-i", "off")


def main() -> int:
    """Start this again under callgrind."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=300)
    calls = parser.parse_args().calls
    if COUNTED in os.environ:
        counted(calls, Path(os.environ[COUNTED]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/counted"
        count = ["valgrind", "--tool=callgrind", "-q", "--instr-atstart=no", f"--callgrind-out-file={out}"]
        command = [*count, sys.executable, "-m", "benchmarks.otel_instructions", "--calls", str(calls)]
        return subprocess.run(command, env={**os.environ, COUNTED: out, "PYTHONHASHSEED": "0"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
