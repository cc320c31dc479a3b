"""The former import path, for code with `from advanced_rate_limiting import …`: re-exports names of ratelimit_worker.

The wheel and an editable install ship this folder as a top-level package (`force-include` in pyproject.toml); nothing
imports it from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratelimit_worker.inprocess import (
        AdvancedRateLimiter,
        get_advanced_rate_limiter,
        make_optimized_llm_call,
        optimize_api_call,
    )

__all__ = ["AdvancedRateLimiter", "get_advanced_rate_limiter", "make_optimized_llm_call", "optimize_api_call"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # loaded on first use: `python -m advanced_rate_limiting.utilities --help` needs nothing of it
        from ratelimit_worker import inprocess

        return getattr(inprocess, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
