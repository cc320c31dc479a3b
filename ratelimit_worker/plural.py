"""A number and what it counts, as a reader says it: "1 call waits", "2 calls wait"."""

from __future__ import annotations


def many(number: int, one: str, several: str = "") -> str:
    """ "1 hit", "2 hits", "1,000 misses"; without `several`, the plural is `one` with an s."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def calls_wait(number: int) -> str:
    """ "1 call waits", "2 calls wait"."""
    return many(number, "call waits", "calls wait")
