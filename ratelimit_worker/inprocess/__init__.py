"""Calls without a queue: they wait in their lane, and run in the thread or event loop of their caller.

limiter.make_rate_limited_call(func, …)
  │ admit    the call is planned and entered into its lane, for this process's own queue
  │ desk     its release arrives here, and the caller is woken
  │ execute  begin, one attempt by the caller, settle: as in a worker; or back into the lane
  ▼ free     what the function returned, or raised
"""

from __future__ import annotations

from ratelimit_worker.inprocess.decorator import optimize_api_call
from ratelimit_worker.inprocess.limiter import (
    AdvancedRateLimiter,
    get_advanced_rate_limiter,
    make_optimized_llm_call,
)

__all__ = ["AdvancedRateLimiter", "get_advanced_rate_limiter", "make_optimized_llm_call", "optimize_api_call"]
