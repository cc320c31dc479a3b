"""What did reuse save? Calls of a window that got an answer without a request, and tokens and money spared. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from ratelimit_worker.contracts.reuse import Reuse

#: Calls that got an answer without a request of their own.
SPARED = (Reuse.HITS, Reuse.JOINED, Reuse.STALE)
#: Calls that asked for such an answer, whether they got one or not.
ASKED = (*SPARED, Reuse.MISSES)


class ReuseFigures(Struct, frozen=True, kw_only=True):
    """Reuse in a window, a slice or a group. The names are those of `contracts.reuse`, which says what each means."""

    hits: int = 0
    joined: int = 0
    stale: int = 0
    misses: int = 0
    rate: float | None = None  #: share of those four kinds of calls that took no request, 0 to 1; None: no such calls
    refreshed: int = 0
    bytes: int = 0
    input_tokens: int = 0  #: spared
    output_tokens: int = 0  #: spared
    saved_nanousd: int = 0  #: sum of the next three
    hits_nanousd: int = 0
    joined_nanousd: int = 0
    stale_nanousd: int = 0
    evicted: int = 0
    evicted_bytes: int = 0


NONE = ReuseFigures()


def figures(sums: Mapping[str, int]) -> ReuseFigures:
    """The figures from sums by the names of `contracts.reuse`; `NONE` if there are no sums."""
    if not sums:
        return NONE
    asked, spared = (sum(sums.get(name, 0) for name in names) for names in (ASKED, SPARED))
    money = (Reuse.HITS_NANOUSD, Reuse.JOINED_NANOUSD, Reuse.STALE_NANOUSD)
    told = {name.value: sums.get(name, 0) for name in Reuse}
    return ReuseFigures(
        **told, rate=spared / asked if asked else None, saved_nanousd=sum(sums.get(name, 0) for name in money)
    )
