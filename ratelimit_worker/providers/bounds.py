"""The bound on the size of an answer; not in `http`, since a process that only sends calls does not load that."""

from __future__ import annotations

from ratelimit_worker.config import Settings

MB = 1 << 20

_most_answer_bytes = round(Settings().max_answer_mb * MB)


def most_answer_bytes() -> int:
    """Most bytes that a good answer may have in this process, decoded."""
    return _most_answer_bytes


def bound_answers(megabytes: float) -> None:
    """Set how many MB a good answer may have in this process, decoded."""
    global _most_answer_bytes
    _most_answer_bytes = round(megabytes * MB)
