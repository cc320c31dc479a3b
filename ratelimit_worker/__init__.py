"""ratelimit-worker: every LLM call a Celery task, released at one cluster-wide rate per provider budget.

    agent     generate.delay(prompt)
                │ enqueue   the call is planned: lane, class, tenant, cost, deadline
    lane        │           it waits in Redis; its message carries a reference, never the prompt
                │ release   what pace, gate and free slots allow moves to the ready list
    worker      │ execute   one attempt at the provider
                │           failed → category → back into the lane, or given up
                │ settle    the answer is safe, the outcome is in the outbox, the lane has learned
                ▼ free      Celery acknowledges: the slot is free, the next call goes
    recorder    outcomes → tracking database        tuner    observations → set-points of each lane

Names are loaded when they are first used, so that `import ratelimit_worker` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratelimit_worker.app import install, llm_task, make_app
    from ratelimit_worker.calls import Cost, LaneLimits, timeout_s
    from ratelimit_worker.config import Settings, read_settings
    from ratelimit_worker.errors import CallFailed, RateLimitWorkerError
    from ratelimit_worker.inprocess import get_advanced_rate_limiter, make_optimized_llm_call, optimize_api_call
    from ratelimit_worker.providers.watch import unwatch, unwatch_all, watch, watch_all
    from ratelimit_worker.worker.task import CallTask

__all__ = [
    "CallFailed",
    "CallTask",
    "Cost",
    "LaneLimits",
    "RateLimitWorkerError",
    "Settings",
    "get_advanced_rate_limiter",
    "install",
    "llm_task",
    "make_app",
    "make_optimized_llm_call",
    "optimize_api_call",
    "read_settings",
    "timeout_s",
    "unwatch",
    "unwatch_all",
    "watch",
    "watch_all",
]

_HOMES = {
    "CallFailed": "errors",
    "CallTask": "worker.task",
    "Cost": "calls",
    "LaneLimits": "calls",
    "RateLimitWorkerError": "errors",
    "Settings": "config",
    "get_advanced_rate_limiter": "inprocess",
    "install": "app",
    "llm_task": "app",
    "make_app": "app",
    "make_optimized_llm_call": "inprocess",
    "optimize_api_call": "inprocess",
    "read_settings": "config",
    "timeout_s": "calls",
    "unwatch": "providers.watch",
    "unwatch_all": "providers.watch",
    "watch": "providers.watch",
    "watch_all": "providers.watch",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import (  # with the e-mail package, which `--help` can spare
            PackageNotFoundError,
            version,
        )

        try:
            return version("ratelimit-worker")
        except PackageNotFoundError:  # run from a checkout that is not installed
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
