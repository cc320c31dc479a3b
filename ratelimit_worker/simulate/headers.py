"""The rate-limit headers of answers, with the names and formats of OpenAI and Anthropic."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from ratelimit_worker.simulate.bucket import Budget, TokenBucket
from ratelimit_worker.simulate.scenario import HeaderStyle
from ratelimit_worker.simulate.window import SlidingWindow

_OPENAI = ("requests", "tokens")
_ANTHROPIC = {
    "requests": "requests",
    "tokens": "tokens",
    "input_tokens": "input-tokens",
    "output_tokens": "output-tokens",
}


def go_duration(seconds: float) -> str:
    """A span of time in Go's form, in whole milliseconds rounded up: "0s", "120ms", "1.5s", "6m0s", "1h0m0s"."""
    whole_ms = math.ceil(round(seconds * 1000, 6))
    if whole_ms <= 0:
        return "0s"
    if whole_ms < 1000:
        return f"{whole_ms}ms"
    minutes, rest_ms = divmod(whole_ms, 60_000)
    text = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}" if minutes else text


def rfc3339(unix_s: float) -> str:
    """A moment in UTC, in whole seconds rounded up: "2026-01-31T12:00:00Z"."""
    return datetime.fromtimestamp(math.ceil(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def limit_lines(style: HeaderStyle, budget: Budget, now_s: float, unix_s: float, round_to: float = 0.0) -> str:
    """Header lines with the limits a minute and what is left of them now, each ended by CRLF.

    Args:
        style: OPENAI, ANTHROPIC or NONE; the caller has replaced AUTO by one of these.
        now_s: Seconds on the budget's clock.
        unix_s: The same moment in seconds since the epoch.
        round_to: The remainder is rounded down to a multiple of this share of its maximum; 0: to whole units.
    """
    if style is HeaderStyle.OPENAI:
        return _openai_lines(budget, now_s, round_to)
    if style is HeaderStyle.ANTHROPIC:
        return _anthropic_lines(budget, now_s, unix_s, round_to)
    return ""


def retry_lines(style: HeaderStyle, retry_after_s: float, whole: bool = False) -> str:
    """Retry-After in whole seconds, rounded up; for OpenAI also in milliseconds, unless `whole`.

    "" if the wait is endless.
    """
    if math.isinf(retry_after_s):
        return ""
    lines = f"retry-after: {math.ceil(retry_after_s)}\r\n"
    if whole or style is HeaderStyle.ANTHROPIC:
        return lines
    return f"{lines}retry-after-ms: {math.ceil(retry_after_s * 1000)}\r\n"


def _openai_lines(budget: Budget, now_s: float, round_to: float) -> str:
    lines = ""
    for dimension in _OPENAI:
        if (bucket := budget.buckets.get(dimension)) is not None:
            lines += (
                f"x-ratelimit-limit-{dimension}: {round(budget.per_minute[dimension])}\r\n"
                f"x-ratelimit-remaining-{dimension}: {_remaining(bucket, now_s, round_to)}\r\n"
                f"x-ratelimit-reset-{dimension}: {go_duration(bucket.full_in_s(now_s))}\r\n"
            )
    return lines


def _anthropic_lines(budget: Budget, now_s: float, unix_s: float, round_to: float) -> str:
    told = {
        dimension: (
            budget.per_minute[dimension],
            _remaining(bucket, now_s, round_to),
            bucket.full_in_s(now_s),
        )
        for dimension, bucket in budget.buckets.items()
    }
    if "tokens" not in told and "input_tokens" in told and "output_tokens" in told:
        # If input and output have separate limits, Anthropic gives their sum as "tokens".
        both = (told["input_tokens"], told["output_tokens"])
        told["tokens"] = (both[0][0] + both[1][0], both[0][1] + both[1][1], max(both[0][2], both[1][2]))
    lines = ""
    for dimension, name in _ANTHROPIC.items():
        if dimension in told:
            limit, remaining, full_in_s = told[dimension]
            lines += (
                f"anthropic-ratelimit-{name}-limit: {round(limit)}\r\n"
                f"anthropic-ratelimit-{name}-remaining: {remaining}\r\n"
                f"anthropic-ratelimit-{name}-reset: {rfc3339(unix_s + full_in_s)}\r\n"
            )
    return lines


def _remaining(bucket: TokenBucket | SlidingWindow, now_s: float, round_to: float) -> int:
    left = max(0.0, bucket.level(now_s))
    step = round_to * bucket.capacity
    return math.floor(math.floor(left / step + 1e-9) * step if step > 0 else left)
