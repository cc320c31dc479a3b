"""Which ids are known, with which number each? A compact hash table: 300,000 ids take some 8 MB, a dict takes 60 MB.

Only the 64-bit hash of an id is kept, with a key that is random in each process: the chance that any two among a
million ids are taken for one is one in 30 million.
"""

from __future__ import annotations

from array import array
from collections.abc import Hashable, Sequence

_LEAST = 1 << 10
_LEAST_LINE = 100  #: shortest mean line, in bytes, that an estimate assumes
_FULL = 0.7  #: a table grows when more than this share of its places is used


class Ids:
    """Ids, each with a number.

    Args:
        typecode: Type of the numbers, as in `array.array`.
    """

    # A mark is the hash of an id; 0 marks an empty place, so a hash of 0 is stored as 1. Linear probing.
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
        """Keep an id with its number, and return None; if it is known already, only return the number that it has.

        Raises:
            OverflowError: the number does not fit.
        """
        mark = hash(key) or 1
        marks = self._marks
        place = mark % len(marks)
        while found := marks[place]:  # _place, repeated here for speed
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
        """Keep ids as `add` does, all with the same number; returns the indexes of those that were known already."""
        self._make_room_for(len(keys))
        marks, numbers, places = self._marks, self._numbers, len(self._marks)
        known = list[int]()
        for index, key in enumerate(keys):
            mark = hash(key) or 1
            place = mark % places
            while found := marks[place]:  # as in `add`, for speed
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
        """Grow at once to the size that a file's ids will need: growing step by step costs as much as adding.

        Args:
            size: Size of the file, in bytes.
            a_line: Mean length of its lines so far, in bytes.
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
    """Which ids have come already, and in which line. For an id of `known` only its line number is kept.

    Args:
        known: Must not change while this object is used.
    """

    # Lines are counted from 1; 0 means that the id has not come.
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
        """Keep the line in which an id comes, and return None; if it came before, only return its first line."""
        mark = hash(key) or 1
        place = self._known._place(mark)
        if self._known._marks[place] != mark:
            return self._others.add(key, line)
        before = self._lines[place]
        if not before:
            self._lines[place] = line
        return before or None

    def add_all(self, keys: Sequence[Hashable], line: int) -> tuple[list[int | None], list[int]]:
        """Keep the lines of ids that come in consecutive lines, as `add` does.

        Args:
            line: Number of the first line.
        Returns:
            For each id its number in `known`, or None; and the indexes of ids that came before.
        """
        marks, numbers, places = self._known._marks, self._known._numbers, len(self._known._marks)
        lines, other = self._lines, self._others.add
        found_numbers: list[int | None] = []
        again: list[int] = []
        for at, key in enumerate(keys, line):
            mark = hash(key) or 1
            place = mark % places
            while (found := marks[place]) and found != mark:  # Ids._place, repeated here for speed
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
        """Grow to the size for a file's ids that are not in `known`; arguments as in `Ids.reserve_for`."""
        self._others.reserve_for(max(0, size - round(len(self._known) * a_line)), a_line)
