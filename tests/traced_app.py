"""The fleet's tasks in processes that are traced: from the start, or (TRACED_FROM=child) each child of a prefork pool
after its fork."""

from __future__ import annotations

import os
from typing import Any

from celery.signals import worker_process_init, worker_process_shutdown
from opentelemetry import trace

from tests import spans_file

if os.environ.get("TRACED_FROM") == "child":
    worker_process_init.connect(spans_file.set_up)
else:
    spans_file.set_up()

from tests.fleet_app import app  # noqa: F401 - the provider comes first, as in an app that is traced


@worker_process_shutdown.connect
def flush(**_: Any) -> None:
    """A prefork pool's child ends without Python's `atexit`, by which the SDK exports what it still has."""
    provider: Any = trace.get_tracer_provider()
    if hasattr(provider, "shutdown"):  # the parent of traced children has none
        provider.shutdown()
