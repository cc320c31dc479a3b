"""What stands in IN, before anything is sent? How many lines, which of them are in OUT, and which cannot be sent.

A line that is in order is looked at without its body; what the survey keeps of each is a byte.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ratelimit_worker.batchfile import Bad, Kind, LineReader, array_of_lines, numbered
from ratelimit_worker.cli.run.ids import Ids
from ratelimit_worker.cli.run.intake import Intake, Stopped
from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.cli.run.tally import Tally
from ratelimit_worker.errors import BadInput

DONE, SEND, BAD, REPEATED = range(4)  #: in OUT, or blank; to be sent; cannot be; has the custom_id of another line
MOST_NAMED = 20  #: lines that are named one by one
_LOOK_AT = 4_096  #: bytes of a first line
_LOOK_EVERY = 1_000  #: lines between two looks at signals


@dataclass(slots=True)
class Survey:
    """The lines of IN."""

    total: int = 0  #: that are not blank
    before: Tally = field(default_factory=Tally)  #: that are in OUT
    first: tuple[int, int] | None = None  #: number and offset of the first that is not in OUT
    repeats: array[int] = field(default_factory=lambda: array("Q"))  #: for each REPEATED the line that has its id
    _states: bytearray = field(default_factory=bytearray)

    def state(self, number: int) -> int:
        """Of a line, from 1.

        Raises:
            BadInput: there was no such line.
        """
        if number > len(self._states):
            raise BadInput("IN has changed while it is sent; start the same command again")
        return self._states[number - 1]

    def leave_out_last(self) -> None:
        """Its last line is no line yet."""
        self.total -= 1
        if self._states.pop() == REPEATED:
            self.repeats.pop()

    def note(self, number: int, state: int) -> None:
        """Take note of a line; those that are left out are blank."""
        if number > len(self._states) + 1:
            self._states.extend(bytes(number - 1 - len(self._states)))
        self._states.append(state)


class _Seen:
    """The custom_ids so far."""

    def __init__(self) -> None:
        self.ids = Ids("I")  #: each with the number of its line
        self.used: int | None = None  #: what `first` said of this line

    def first(self, custom_id: str) -> int | None:
        """The line that has it."""
        self.used = self.ids.get(custom_id)
        return self.used

    def look(self, reader: LineReader, text: bytes, number: int, offset: int) -> tuple[str | None, str, Bad | None]:
        """Take note of a line → its custom_id, the call's id where it had to be read whole, and what is wrong with it.

        A custom_id that nobody had before is enough; else the whole line is read.
        """
        self.used = None
        custom_id = reader.custom_id(text)
        if custom_id is not None and self.ids.add(custom_id, number) is None:
            return custom_id, "", None
        read = reader.read(text, number, offset, self.first)
        if read.custom_id is not None:
            self.ids.add(read.custom_id, number)
        return read.custom_id, read.call_id, read if isinstance(read, Bad) else None


class _Unsendable:
    """Lines that cannot be sent: the first few are named, the others are counted."""

    def __init__(self) -> None:
        self._named: list[tuple[int, str]] = []
        self._more = 0
        self._last = 0

    def add(self, number: int, why: str) -> None:
        """One more."""
        self._last = number
        if len(self._named) < MOST_NAMED:
            self._named.append((number, why))
        else:
            self._more += 1

    def leave_out(self, number: int) -> None:
        """This line, the last that was looked at, is no line yet."""
        if self._last != number:
            return
        if self._more:
            self._more -= 1
        else:
            self._named.pop()

    def tell(self, say: Callable[[str], None], name: str) -> None:
        """Say which they are."""
        for number, why in self._named:
            say(f"{name}, line {number}: {why}")
        if self._more:
            say(f"{name}: {self._more:,} more lines that cannot be sent; OUT will name each")


def look_through(
    intake: Intake,
    most_bytes: int,
    reader: LineReader,
    journal: Journal,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
    answered: Callable[[int, int, bytes], None] | None = None,
) -> Survey:
    """Look at each line, and name those that cannot be sent.

    Args:
        most_bytes: Of a line.
        answered: Takes number, offset and text of each line that is in OUT.
    Raises:
        BadInput: it holds no line of a Batch file.
        Stopped: `stopped()`.
    """
    survey, seen, unsendable = Survey(), _Seen(), _Unsendable()
    objects, opening, last = 0, b"", (0, False)
    why = ""  #: the first line cannot be sent
    before = Counter[Kind]()
    for number, offset, text in numbered(intake.lines(most_bytes)):
        if number % _LOOK_EVERY == 0:
            if stopped():
                raise Stopped
            seen.ids.reserve_for(intake.size, offset / number)
        if not survey.total and array_of_lines(text, alone=False):
            raise _array(intake)
        survey.total, opening = survey.total + 1, opening or text
        custom_id, call_id, bad = seen.look(reader, text, number, offset)
        objects += bad is None or bad.is_object
        why = why or (bad.why if bad is not None else "")
        last = offset, bad is not None and not bad.is_object
        kind = journal.kind(custom_id, call_id)
        if kind is not None:
            before[kind] += 1
            survey.note(number, DONE)
            if answered is not None and bad is None:
                answered(number, offset, text)
        elif bad is None:
            survey.note(number, SEND)
            survey.first = survey.first or (number, offset)
        else:
            survey.first = survey.first or (number, offset)
            survey.note(number, BAD if seen.used is None else REPEATED)
            if seen.used is not None:
                survey.repeats.append(seen.used)
            unsendable.add(number, bad.why)
    if last[1] and survey.total > 1 and intake.is_being_written:
        survey.leave_out_last()
        intake.leave_out(last[0])
        unsendable.leave_out(number)
    if not objects:
        raise _array(intake) if array_of_lines(opening, alone=survey.total == 1) else _nothing(intake, opening, why)
    for kind, many in before.items():
        survey.before.count(kind, many)
    survey.before.took(*journal.tokens)
    unsendable.tell(say, intake.name)
    return survey


def _array(intake: Intake) -> BadInput:
    return BadInput(f"{intake.name} is one JSON array; make a line of each request: jq -c '.[]' IN > NEW.jsonl")


def _nothing(intake: Intake, opening: bytes, why: str) -> BadInput:
    """The error of an IN that holds no line of a Batch file, with what it may be instead.

    Args:
        opening: Its first line, or the beginning of that.
        why: Of the first line that cannot be sent.
    """
    if not opening:
        return BadInput(f"{intake.name} holds no line")
    hint = ""
    if why.startswith("it "):
        hint = f"; of its first line: {why}"
    elif not _is_utf8(opening):
        hint = "; nor is it UTF-8: iconv -f WINDOWS-1252 -t UTF-8 IN > NEW.jsonl"
    elif b"\r" in opening:
        hint = "; its lines end in CR alone: tr '\\r' '\\n' < IN > NEW.jsonl"
    elif opening[:1] == b"{":
        hint = "; JSON over several lines becomes one by jq -c . IN > NEW.jsonl"
    return BadInput(
        f"{intake.name} is no Batch file: not one of its lines is a JSON object with custom_id, method, url and body"
        f"{hint}"
    )


def _is_utf8(text: bytes) -> bool:
    try:
        text[:_LOOK_AT].decode()
    except UnicodeDecodeError as error:
        return error.start > _LOOK_AT - 4  # cut within a character
    return True
