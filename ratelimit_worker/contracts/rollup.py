"""What attempts of one kind add up to in one minute or hour: the cell of a roll-up, and its encoding.

Fields are only ever added, at the end: the cell is kept as an array, and whoever does not know the newest of them reads
the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

MINUTE_S, HOUR_S = 60, 3_600  #: the two lengths of a cell, seconds


class Series(NamedTuple):
    """Whose attempts a cell adds up."""

    lane: str
    task: str
    context: str
    tenant: str
    model: str  #: "": not known


class CellKey(NamedTuple):
    """When and whose."""

    at_s: int  #: its beginning, seconds since the epoch
    series: Series


class Cell(msgspec.Struct, array_like=True, gc=False):
    """Sums of some attempts. A cell may also hold what is to be taken away from another: then numbers are negative.

    Histograms are those of `policy.histogram`: bucket → attempts.
    """

    outcomes: dict[str, int] = {}  #: attempts by outcome, or outcome:category where they met a failure
    refused: int = 0  #: attempts that met a 429
    latency_s: float = 0.0  #: of answered attempts, all together, seconds
    input_tokens: int = 0
    output_tokens: int = 0
    recovered: int = 0  #: calls that were answered after an attempt of theirs had failed
    backoff_s: float = 0.0  #: from failed attempts to the start of the next one, all together, seconds
    latency: dict[int, int] = {}  #: of answered attempts, seconds
    waited: dict[int, int] = {}  #: of all attempts, seconds
    per_token: dict[int, int] = {}  #: of answered attempts: seconds for each output token, where these are known
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0  #: of those whose price is known; billionths of a dollar
    wasted_nanousd: int = 0  #: of this, what attempts cost that were not answered
    saved_nanousd: int = 0  #: what they would have cost more, had no input been cached
    unpriced: int = 0  #: attempts with tokens and without a price
    estimated_nanousd: int = 0  #: of the cost, what nobody told
    lost_attempts: int = 0  #: before these, whose workers died
    lost_nanousd: int = 0  #: what those are taken to have cost; not in the cost
    cost: dict[int, int] = {}  #: of answered attempts whose price is known, dollars


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cell).decode


def encode(cell: Cell) -> bytes:
    """The cell, as the tracking database keeps it."""
    return _encode(cell)


def decode(data: bytes) -> Cell:
    """The cell in `data`.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return _decode(data)


Cells = dict[CellKey, Cell]
AnyCells = Mapping[CellKey, Cell]


class NamedSums(NamedTuple):
    """Sums of outcomes that have no rows, on their way to the tracking database."""

    name: str  #: the same however often they are told
    cells: Cells
