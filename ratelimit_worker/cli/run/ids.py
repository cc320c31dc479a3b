"""Which ids are known, and what of each? A table of numbers: 300,000 ids take some 8 MB, where a dict takes 60.

An id is known by its 64-bit hash, whose key is drawn anew in each process: among a million ids two are taken for one
with a chance of one in 30 million.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence

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

    def add_all(self, keys: Sequence[Hashable], number: int) -> list[int]:
        """Keep ids, all with the same number, as `add` does; returns the indexes of those that were known already."""
        self._make_room_for(len(keys))
        marks, numbers, places = self._marks, self._numbers, len(self._marks)
        known = list[int]()
        for index, key in enumerate(keys):
            mark = hash(key) or 1
            place = mark % places
            while found := marks[place]:  # as in `add`
                if found == mark:
                    known.append(index)
                    break
                place += 1
                if place == places:
                    place = 0
            else:
                numbers[place] = number
                marks[place] = mark
        self._many += len(keys) - len(known)
        return known

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

    def _make_room_for(self, more: int) -> None:
        places = len(self._marks)
        while self._many + more > _FULL * places:
            places *= 2
        if places > len(self._marks):
            self._grow(places)

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


class Met:
    """Which ids came already, and in which line. Of those that `known` has it keeps the line's number alone.

    Args:
        known: Which is not added to while this is used.
    """

    # A line number of 0 is none: lines are counted from 1.
    def __init__(self, known: Ids) -> None:
        self._known = known
        self._lines = array("I", bytes(4 * len(known._marks)))
        self._others = Ids("I")

    def get(self, key: Hashable) -> int | None:
        """The line in which an id came first; None: it has not come."""
        mark = hash(key) or 1
        place = self._known._place(mark)
        if self._known._marks[place] == mark:
            return self._lines[place] or None
        return self._others.get(key)

    def add(self, key: Hashable, line: int) -> int | None:
        """An id came in a line; where it has come before nothing changes, and that line is returned."""
        mark = hash(key) or 1
        place = self._known._place(mark)
        if self._known._marks[place] != mark:
            return self._others.add(key, line)
        before = self._lines[place]
        if not before:
            self._lines[place] = line
        return before or None

    def add_all(self, keys: Sequence[Hashable], line: int) -> tuple[list[int | None], list[int]]:
        """Ids came in lines that follow one another → each one's number in `known`, and those that came before.

        Args:
            line: Of the first.
        Returns:
            None in place of a number: it is not in `known`. The others by their indexes.
        """
        marks, numbers, places = self._known._marks, self._known._numbers, len(self._known._marks)
        lines, other = self._lines, self._others.add
        found_numbers: list[int | None] = []
        again: list[int] = []
        for at, key in enumerate(keys, line):
            mark = hash(key) or 1
            place = mark % places
            while (found := marks[place]) and found != mark:  # as in Ids.add: this is where the time goes
                place += 1
                if place == places:
                    place = 0
            if not found:
                found_numbers.append(None)
                if other(key, at) is not None:
                    again.append(at - line)
                continue
            found_numbers.append(numbers[place])
            if lines[place]:
                again.append(at - line)
            else:
                lines[place] = at
        return found_numbers, again

    def reserve_for(self, size: int, a_line: float) -> None:
        """Make room for the ids of a file that are not in `known`; arguments as of `Ids.reserve_for`."""
        self._others.reserve_for(max(0, size - round(len(self._known) * a_line)), a_line)
