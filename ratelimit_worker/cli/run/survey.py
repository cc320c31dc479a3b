"""What does IN contain, before anything is sent? How many lines, which are in OUT already, and which cannot be sent.

The body of a valid line is not decoded in full; the survey keeps one byte for each line.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable
from itertools import islice

from msgspec import Struct, field

from ratelimit_worker.batchfile import Bad, Cut, Kind, LineReader, array_of_lines, lines_of, numbered
from ratelimit_worker.cli.run.ids import Met
from ratelimit_worker.cli.run.intake import Intake, Stopped
from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.cli.run.tally import Tally
from ratelimit_worker.errors import BadInput

DONE, SEND, BAD, REPEATED = range(4)  #: in OUT, or blank; to be sent; cannot be sent; has an earlier line's custom_id
MOST_NAMED = 20  #: lines that cannot be sent and are named one by one
_LOOK_AT = 4_096  #: bytes of the first line that are checked for UTF-8
_SAMPLE = 1_000  #: lines from which the number of all lines is estimated


class Survey(Struct):
    """What is known of the lines of IN."""

    total: int = 0  #: lines that are not blank
    before: Tally = field(default_factory=Tally)  #: lines that were in OUT before anything was sent
    first: tuple[int, int] | None = None  #: number and offset of the first line that is not in OUT
    repeats: array[int] = field(default_factory=lambda: array("Q"))  #: for each REPEATED the first line with its id
    _states: bytearray = field(default_factory=bytearray)

    def state(self, number: int) -> int:
        """DONE, SEND, BAD or REPEATED, of the line with this number (from 1).

        Raises:
            BadInput: there was no such line.
        """
        if number > len(self._states):
            raise BadInput("IN has changed while it is sent; start the same command again")
        return self._states[number - 1]

    def leave_out_last(self) -> None:
        """Forget the last line: it is still being written."""
        self.total -= 1
        if self._states.pop() == REPEATED:
            self.repeats.pop()

    def note(self, number: int, state: int) -> None:
        """Keep the state of a line; lines that were skipped before it are blank."""
        self.note_all(number, bytes((state,)))

    def note_all(self, number: int, states: bytes) -> None:
        """Keep the states of consecutive lines from `number` on; lines that were skipped before are blank."""
        if number > len(self._states) + 1:
            self._states.extend(bytes(number - 1 - len(self._states)))
        self._states.extend(states)


class _Unsendable:
    """Lines that cannot be sent: the first few are named, the others are counted."""

    def __init__(self) -> None:
        self._named: list[tuple[int, str]] = []
        self._more = 0
        self._last = 0

    def add(self, number: int, why: str) -> None:
        """Add a line and the reason."""
        self._last = number
        if len(self._named) < MOST_NAMED:
            self._named.append((number, why))
        else:
            self._more += 1

    def leave_out(self, number: int) -> None:
        """Forget this line if it was the last that was added: it is still being written."""
        if self._last != number:
            return
        if self._more:
            self._more -= 1
        else:
            self._named.pop()

    def tell(self, say: Callable[[str], None], name: str) -> None:
        """Name them, one message a line."""
        for number, why in self._named:
            say(f"{name}, line {number}: {why}")
        if self._more:
            say(f"{name}: {self._more:,} more lines that cannot be sent; OUT will name each")


class _Surveyor:
    """Reads lines in their order, and keeps the state of each.

    Args:
        answered: Called with number, offset and text of each line that is in OUT.
    """

    def __init__(
        self,
        intake: Intake,
        reader: LineReader,
        journal: Journal,
        answered: Callable[[int, int, bytes], None] | None,
    ) -> None:
        self.survey, self.unsendable = Survey(), _Unsendable()
        self.met = Met(journal.ids)  #: the custom_ids so far, with their lines
        self.before = Counter[Kind]()
        self.objects = 0
        self.opening = b""  #: the first line, or the block that begins with it
        self.why = ""  #: why the first bad line cannot be sent
        self.last = 0, 0, False  #: number and offset of the last line, and whether it is anything but a JSON object
        self._intake, self._reader, self._journal, self._answered = intake, reader, journal, answered
        self._used: int | None = None  #: the earlier line with the custom_id of the current one

    def look_at_block(self, block: bytes, number: int, offset: int) -> None:
        """Keep the states of a block of lines.

        Args:
            number: Number of its first line.
            offset: Offset of its first line, in bytes.
        Raises:
            BadInput: the first of all lines says that the file is a JSON array.
        """
        custom_ids = None if isinstance(block, Cut) else self._reader.custom_ids(block)
        if custom_ids is None:
            for at, start, text in numbered(lines_of(block), number, offset):
                self._look_at(text, at, start)
            return
        numbers, again = self.met.add_all(custom_ids, number)
        if not again and self._answered is None:
            self._note_all(numbers, block, number, offset)
            return
        repeated = set(again)
        for custom_id, (at, start, text) in zip(custom_ids, numbered(lines_of(block), number, offset), strict=True):
            if at - number in repeated:
                self._read(text, at, start)
            else:
                self._note(text, at, start, custom_id)

    def _look_at(self, text: bytes, number: int, offset: int) -> None:
        """Keep the state of a line. It is read in full only if its custom_id is missing, wrong or came before."""
        if not self.survey.total and array_of_lines(text, alone=False):
            raise _array(self._intake)
        custom_id = self._reader.custom_id(text)
        if custom_id is not None and self.met.add(custom_id, number) is None:
            self._note(text, number, offset, custom_id)
        else:
            self._read(text, number, offset)

    def _read(self, text: bytes, number: int, offset: int) -> None:
        self._used = None
        read = self._reader.read(text, number, offset, self._first)
        if read.custom_id is not None:
            self.met.add(read.custom_id, number)
        self._note(text, number, offset, read.custom_id, read.call_id, read if isinstance(read, Bad) else None)

    def _first(self, custom_id: str) -> int | None:
        self._used = self.met.get(custom_id)
        return self._used

    def _note_all(self, numbers: list[int | None], block: bytes, number: int, offset: int) -> None:
        """Keep the states of valid lines; `numbers`: for each its number in `Journal.ids`, None if it is not in OUT."""
        survey = self.survey
        survey.total += len(numbers)
        self.objects += len(numbers)
        self.opening = self.opening or block
        self.last = number + len(numbers) - 1, offset, False
        if None not in numbers:
            survey.note_all(number, bytes(len(numbers)))
        else:
            survey.note_all(number, bytes(SEND if one is None else DONE for one in numbers))
            if survey.first is None:
                nth = numbers.index(None)
                survey.first = number + nth, offset + sum(map(len, islice(lines_of(block), nth)))
        for one, many in Counter(numbers).items():
            if one is not None:
                self.before[self._journal.kind_of(one)] += many

    def _note(
        self, text: bytes, number: int, offset: int, custom_id: str | None, call_id: str = "", bad: Bad | None = None
    ) -> None:
        survey = self.survey
        survey.total += 1
        self.opening = self.opening or text
        self.objects += bad is None or bad.is_object
        self.why = self.why or (bad.why if bad is not None else "")
        self.last = number, offset, bad is not None and not bad.is_object
        kind = self._journal.kind(custom_id, call_id)
        if kind is not None:
            self.before[kind] += 1
            survey.note(number, DONE)
            if self._answered is not None and bad is None:
                self._answered(number, offset, text)
            return
        survey.first = survey.first or (number, offset)
        if bad is None:
            survey.note(number, SEND)
            return
        survey.note(number, BAD if self._used is None else REPEATED)
        if self._used is not None:
            survey.repeats.append(self._used)
        self.unsendable.add(number, bad.why)


def look_through(
    intake: Intake,
    most_bytes: int,
    reader: LineReader,
    journal: Journal,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
    answered: Callable[[int, int, bytes], None] | None = None,
) -> Survey:
    """Read each line of IN, and name those that cannot be sent.

    Args:
        most_bytes: Longest line that is read in full, in bytes.
        answered: Called with number, offset and text of each line that is in OUT.
    Raises:
        BadInput: no line is a line of a Batch file.
        Stopped: `stopped()` became true.
    """
    surveyor = _Surveyor(intake, reader, journal, answered)
    survey, unsendable = surveyor.survey, surveyor.unsendable
    number, offset = 1, 0
    for block in intake.blocks(most_bytes):
        if stopped():
            raise Stopped
        surveyor.look_at_block(block, number, offset)
        number, before = number + block.count(b"\n") + (not block.endswith(b"\n")), number
        offset += block.size if isinstance(block, Cut) else len(block)
        if before < _SAMPLE <= number:
            surveyor.met.reserve_for(intake.size, offset / number)
    last, begins, is_no_object = surveyor.last
    if is_no_object and survey.total > 1 and intake.is_being_written:
        survey.leave_out_last()
        intake.leave_out(begins)
        unsendable.leave_out(last)
    if not surveyor.objects:
        opening = surveyor.opening
        raise (
            _array(intake)
            if array_of_lines(opening, alone=survey.total == 1)
            else _nothing(intake, opening, surveyor.why)
        )
    for kind, many in surveyor.before.items():
        survey.before.count(kind, many)
    survey.before.took(*journal.tokens)
    unsendable.tell(say, intake.name)
    return survey


def _array(intake: Intake) -> BadInput:
    return BadInput(f"{intake.name} is one JSON array; make a line of each request: jq -c '.[]' IN > NEW.jsonl")


def _nothing(intake: Intake, opening: bytes, why: str) -> BadInput:
    """The error for an IN without any line of a Batch file, with a hint what it may be instead.

    Args:
        opening: Its first line, or the beginning of it.
        why: Why the first bad line cannot be sent.
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
        return error.start > _LOOK_AT - 4  # the cut was inside a character
    return True
