"""Which ids are known, and what of each? A table of numbers: 300,000 ids take some 8 MB, where a dict takes 60.

An id is known by its 64-bit hash, whose key is drawn anew in each process: among a million ids two are taken for one
with a chance of one in 30 million.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable

_LEAST = 1 << 10
_LEAST_LINE = 100  #: bytes of a line that are reckoned with
_FULL = 0.7  #: beyond this share of its places a table grows


class Ids:
    """Ids, each with a number.

    Args:
        typecode: Of the numbers, as of `array.array`.
    """

    # A place whose mark is 0 is nobody's; a hash of 0 counts as 1.
    def __init__(self, typecode: str = "Q") -> None:
        self._typecode = typecode
        self._many = 0
        self._make(_LEAST)

    def __len__(self) -> int:
        return self._many

    def __contains__(self, key: Hashable) -> bool:
        mark = hash(key) or 1
        return self._marks[self._place(mark)] == mark

    def get(self, key: Hashable) -> int | None:
        """The number of an id; None: it is not known."""
        mark = hash(key) or 1
        place = self._place(mark)
        return self._numbers[place] if self._marks[place] == mark else None

    def add(self, key: Hashable, number: int) -> int | None:
        """Keep an id with its number; where it is known already nothing changes, and its number is returned.

        Raises:
            OverflowError: the number does not fit.
        """
        mark = hash(key) or 1
        marks = self._marks
        place = mark % len(marks)
        while found := marks[place]:  # as in _place: this is where the time goes
            if found == mark:
                return self._numbers[place]
            place += 1
            if place == len(marks):
                place = 0
        self._numbers[place] = number
        marks[place] = mark
        self._many += 1
        if self._many > _FULL * len(self._marks):
            self._grow(2 * len(self._marks))
        return None

    def reserve_for(self, size: int, a_line: float) -> None:
        """Make room at once for the ids of a file: growing step by step costs as much as adding.

        Args:
            size: Of the file, bytes.
            a_line: Of it, as far as is known.
        """
        places = int(size / max(a_line, _LEAST_LINE) / _FULL * 1.1)
        if places > len(self._marks):
            self._grow(places)

    def put(self, key: Hashable, number: int) -> None:
        """Give an id another number.

        Raises:
            KeyError: it is not known.
        """
        mark = hash(key) or 1
        place = self._place(mark)
        if self._marks[place] != mark:
            raise KeyError(key)
        self._numbers[place] = number

    def _place(self, mark: int) -> int:
        marks = self._marks
        place = mark % len(marks)
        while (found := marks[place]) and found != mark:
            place += 1
            if place == len(marks):
                place = 0
        return place

    def _make(self, places: int) -> None:
        self._marks = array("q", bytes(8 * places))
        self._numbers = array(self._typecode, bytes(array(self._typecode).itemsize * places))

    def _grow(self, places: int) -> None:
        marks, numbers = self._marks, self._numbers
        self._make(places)
        for mark, number in zip(marks, numbers, strict=True):
            if mark:
                place = self._place(mark)
                self._marks[place], self._numbers[place] = mark, number
