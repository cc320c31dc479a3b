"""What is counted of answers that were used again? Names of sums, which the scripts add up by minute and series."""

from __future__ import annotations

from enum import StrEnum


class Reuse(StrEnum):
    """One sum. A call is one of the first four; the others say what came of it."""

    HITS = "hits"  #: calls that got a kept answer
    JOINED = "joined"  #: calls that waited for the answer of one on its way
    STALE = "stale"  #: calls that got a kept answer past its time
    MISSES = "misses"  #: calls that would have taken any of these, and asked
    REFRESHED = "refreshed"  #: calls that the product made to renew an answer past its time
    BYTES = "bytes"  #: of the answers that calls got without asking, as they are kept
    INPUT_TOKENS = "input_tokens"  #: that those answers had taken
    OUTPUT_TOKENS = "output_tokens"
    HITS_NANOUSD = "hits_nanousd"  #: that they had cost, as far as that is known; billionths of a dollar
    JOINED_NANOUSD = "joined_nanousd"
    STALE_NANOUSD = "stale_nanousd"
    EVICTED = "evicted"  #: answers that went before their time
    EVICTED_BYTES = "evicted_bytes"


#: How long a minute's sums wait in Redis for the recorder, seconds: as long as the database may be away.
KEPT_S = 172_800
#: Series of a minute; what comes beyond is added up by lane alone.
MOST_SERIES = 2_000
