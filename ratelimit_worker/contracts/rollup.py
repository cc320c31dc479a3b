"""Sums over the attempts of one kind in one minute or hour (a cell of the roll-up), and their encoding.

A cell is kept as an array. New fields are only added at its end, so an older version can read the fields it knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class Only(msgspec.Struct, frozen=True, kw_only=True):
    """Which series are wanted: those that agree with all that is named."""

    lane: str | None = None
    task: str | None = None
    context: str | None = None
    tenant: str | None = None

    def takes(self, series: Series) -> bool:
        """Whether this one is wanted."""
        return self is ALL or all(wanted in (None, getattr(series, name)) for name, wanted in self.named())

    def named(self) -> Iterator[tuple[str, str | None]]:
        """Names of `Series`, with what is wanted of each."""
        return ((name, getattr(self, name)) for name in self.__struct_fields__)


ALL = Only()


class CellKey(NamedTuple):
    """Beginning and series of a cell."""

    at_s: int  #: its beginning, seconds since the epoch
    series: Series


class Cell(msgspec.Struct, array_like=True, gc=False):
    """Sums of some attempts. Numbers are negative in a cell that is to be subtracted from another.

    Histograms are those of `policy.histogram`: bucket → attempts.
    """

    outcomes: dict[str, int] = {}  #: attempts by outcome, or outcome:category where they met a failure
    refused: int = 0  #: attempts that met a 429
    latency_s: float = 0.0  #: of answered attempts, summed, seconds
    input_tokens: int = 0
    output_tokens: int = 0
    recovered: int = 0  #: calls that were answered after an attempt of theirs had failed
    backoff_s: float = 0.0  #: from each failed attempt to the start of the next one, summed, seconds
    latency: dict[int, int] = {}  #: of answered attempts, seconds
    waited: dict[int, int] = {}  #: of all attempts, seconds
    per_token: dict[int, int] = {}  #: of answered attempts: seconds per output token, where their number is known
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0  #: of attempts whose price is known; billionths of a dollar
    wasted_nanousd: int = 0  #: the part of it that went to attempts without an answer
    saved_nanousd: int = 0  #: how much more they would have cost without cached input
    unpriced: int = 0  #: attempts with tokens and without a price
    estimated_nanousd: int = 0  #: the part of the cost that is an estimate, since the provider reported no usage
    lost_attempts: int = 0  #: earlier attempts of these calls that ended with their worker
    lost_nanousd: int = 0  #: estimated cost of those; not part of the cost
    cost: dict[int, int] = {}  #: of answered attempts whose price is known, dollars
    #: Of calls that shared answers, or might have: sums by their names in `contracts.reuse`. Their model is "".
    reuse: dict[str, int] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Cell).decode


def encode(cell: Cell) -> bytes:
    """The cell, packed for the tracking database."""
    return _encode(cell)


def decode(data: bytes) -> Cell:
    """Decode a cell.

    Raises:
        msgspec.MsgspecError: the data is not a cell.
    """
    return _decode(data)


Cells = dict[CellKey, Cell]
AnyCells = Mapping[CellKey, Cell]


class NamedSums(NamedTuple):
    """Sums of outcomes that have no rows, on their way to the tracking database."""

    name: str  #: identifies them, so that the database adds them once however often they arrive
    cells: Cells
