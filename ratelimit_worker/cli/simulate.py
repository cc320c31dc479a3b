"""`ratelimit-worker simulate`: defined in ratelimit_worker.simulate, which also runs it."""

from __future__ import annotations

from ratelimit_worker.simulate.command import simulate

__all__ = ["simulate"]
