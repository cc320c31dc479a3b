"""`ratelimit-worker simulate`: the command lives with the simulator, which also runs without this package."""

from __future__ import annotations

from ratelimit_worker.simulate.command import simulate

__all__ = ["simulate"]
