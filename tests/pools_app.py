"""The fleet's app, for workers of every kind of pool."""

from __future__ import annotations

import os
from typing import Any

from ratelimit_worker.app import llm_task
from ratelimit_worker.worker.transport import Transport
from tests.fleet_app import app, echo, meet, stamp

__all__ = ["app", "echo", "meet", "process", "stamp"]


@llm_task(app=app, shared=False, cache=False, lane="free")
def process() -> int:
    """In which process it runs."""
    return os.getpid()


app.conf.beat_schedule = {"tick": {"task": stamp.name, "schedule": 1.0, "args": ("beat",)}}

if os.environ.get("POOLS_SLEEPS_LONG"):
    # Celery's loop for greenlets looks for messages again after 2 s, whatever happens; here an hour.
    _drain_events = Transport.drain_events

    def drain_events(self: Transport, connection: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        return _drain_events(self, connection, timeout=3600.0, **kwargs)

    Transport.drain_events = drain_events  # type: ignore[method-assign,assignment]
