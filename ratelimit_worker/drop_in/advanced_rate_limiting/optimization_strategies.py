"""The former module of the decorator `optimize_api_call`, kept for existing imports."""

from __future__ import annotations

from ratelimit_worker.inprocess import make_optimized_llm_call, optimize_api_call

__all__ = ["make_optimized_llm_call", "optimize_api_call"]
