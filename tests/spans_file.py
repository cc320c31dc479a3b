"""An OpenTelemetry SDK, as `docs/tracing.md` sets it up, whose exporter appends spans to a file that the tests read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter, SpanExportResult


class ToFile(SpanExporter):
    """A line of JSON for each span."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append them, one write each, so that lines of several processes stay whole."""
        with (Path(os.environ["FLEET_FOLDER"]) / "spans").open("ab", buffering=0) as file:
            for span in spans:
                file.write(span.to_json(indent=None).encode() + b"\n")
        return SpanExportResult.SUCCESS


def set_up(**_: Any) -> None:
    """Set this process's provider: as soon as a span has ended it is in the file, or (TRACED_IN_BATCHES) some later."""
    provider = TracerProvider()
    in_batches = os.environ.get("TRACED_IN_BATCHES")
    provider.add_span_processor(BatchSpanProcessor(ToFile()) if in_batches else SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)
