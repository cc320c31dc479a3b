"""How large may an answer be? Apart from the HTTP client, which a process that only sends calls does not load."""

from __future__ import annotations

from ratelimit_worker.config import Settings

MB = 1 << 20

_most_answer_bytes = round(Settings().max_answer_mb * MB)


def most_answer_bytes() -> int:
    """So many bytes a good answer of this process may have, decoded."""
    return _most_answer_bytes


def bound_answers(megabytes: float) -> None:
    """From now on a good answer of this process may have so many MB, decoded."""
    global _most_answer_bytes
    _most_answer_bytes = round(megabytes * MB)
