"""Which lines are done already? OUT itself is the journal: each line is written once, before Redis forgets its answer.

While a run is unfinished, the file `OUT.run` beside OUT has the run's id. Call ids are derived from it, so a second
start finds the calls of the first in Redis, waiting or answered. `OUT.summary.json` says how the last start ended.

A pipe or a terminal cannot be read back (`Stream`), so such a run cannot be resumed.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ratelimit_worker.batchfile import (
    ANSWER,
    End,
    Kind,
    OutLine,
    is_torn,
    lines_of,
    out_id,
    plain_answers,
    read_out,
    without_mark,
)
from ratelimit_worker.cli.run.blocks import BLOCK, blocks
from ratelimit_worker.cli.run.ids import Ids
from ratelimit_worker.errors import BadInput, RateLimitWorkerError
from ratelimit_worker.private_files import open_file

STDOUT = Path("-")

_KINDS = 16  #: low bits of a number in the table: how a line ended; the other bits: the offset in OUT where it stands
_MOST_KINDS = (1 << _KINDS) - 1
_OTHER = Kind(End.FAILED, "other")

_SAMPLE = 1_000  #: lines from which the number of all lines is estimated

_Line = tuple[str | None, str, bytes, End]


class OutFailed(RateLimitWorkerError):
    """OUT cannot be written."""


class Journal:
    """OUT of one run, open and locked.

    Args:
        say: Called with a message of one line, for stderr.
    Raises (on entering):
        BadInput: OUT or `OUT.run` cannot be read or written, or has other content.
        OutFailed: another run has it open.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".run")
        self.summary = path.with_name(path.name + ".summary.json")
        self.name = str(path)
        self._say = say
        self._fd = -1
        self._ids = Ids()  #: custom_id (or `id`, if a line has none) → where the line stands, and how it ended
        self._kinds: list[Kind] = [ANSWER]
        self._kind_numbers: dict[Kind, int] = {ANSWER: 0}
        self.repeated = 0  #: lines of OUT with the custom_id of an earlier line
        self.tokens = (0, 0)  #: input and output tokens of the lines that were in OUT when it was opened
        self.run = uuid.uuid4()
        self.resumed = False  #: whether this start continues an unfinished run
        self.starts = 0  #: earlier starts of this run
        self.begun = datetime.now(UTC)  #: time of the run's first start
        #: custom_ids of lines that failed because of the account: removed from OUT, and sent again
        self.taken_up: set[str] = set()

    @property
    def keeps(self) -> bool:
        """Whether a later start can read what this one has written, and resume."""
        return True

    def __enter__(self) -> Self:
        try:
            self._fd = open_file(self.path, os.O_RDWR | os.O_APPEND)
            try:
                self._lock()
                self._read()
                self._take_up()
                self._read_sidecar()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise BadInput(f"{self.path}: {error.strerror or error}; choose another file with -o") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def has(self, custom_id: str | None, call_id: str) -> bool:
        """Whether the line of this custom_id, or of this call, is in OUT."""
        return _key(custom_id, call_id) in self._ids

    @property
    def ids(self) -> Ids:
        """The custom_ids that are in OUT; the number of each is for `kind_of`."""
        return self._ids

    def kind_of(self, number: int) -> Kind:
        """How a line ended, by its number in `ids`."""
        return self._kinds[number & _MOST_KINDS]

    def kind(self, custom_id: str | None, call_id: str) -> Kind | None:
        """How the line of this custom_id, or of this call, ended, if it was in OUT when that was opened; else None."""
        number = self._ids.get(_key(custom_id, call_id))
        return None if number is None else self.kind_of(number)

    def line(self, custom_id: str) -> bytes:
        """The text of the line with a custom_id that is in OUT.

        Raises:
            OutFailed: somebody has changed OUT meanwhile.
        """
        number = self._ids.get(custom_id)
        assert number is not None
        left = BLOCK
        with os.fdopen(os.dup(self._fd), "rb") as file, suppress(ValueError):  # raised for a line that is not OUT's
            file.seek(number >> _KINDS)
            while left > 0 and (text := file.readline()):
                line, left = without_mark(text), left - len(text)
                if line.strip() and read_out(line).name == custom_id:
                    return line
        raise OutFailed(f"{self.path} has changed while it is written; start the same command again")

    def write(self, lines: Iterable[_Line]) -> None:
        """Append lines, each given as (custom_id, call id, line, end), and return when they are on disk.

        Lines that are in OUT already are skipped.

        Raises:
            OutFailed: the disk is full or gone, or another file has OUT's name. None of these lines is in OUT then.
        """
        written = [line for line in lines if not self.has(line[0], line[1])]
        if not written:
            return
        self._check_place()
        text = b"".join(line for _, _, line, _ in written)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            self._append(text)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OutFailed(f"{self.path}: {error.strerror}; make room, then resume with the same command") from error
        for custom_id, call_id, line, _ in written:
            self._ids.add(_key(custom_id, call_id), end << _KINDS)
            end += len(line)

    def begin(self) -> None:
        """Write `OUT.run`, before the first call is sent.

        Raises:
            OutFailed: the folder cannot be written.
        """
        fields = {"run": str(self.run), "starts": self.starts + 1, "begun": self.begun.isoformat()}
        self._put(self.sidecar, json.dumps(fields))

    def put_summary(self, fields: Mapping[str, Any]) -> None:
        """Write `OUT.summary.json`.

        Raises:
            OutFailed: it cannot be written.
        """
        self._put(self.summary, json.dumps(fields, indent=2) + "\n")

    def finish(self) -> None:
        """Remove `OUT.run`: every line is in OUT, and the run is over."""
        self.sidecar.unlink(missing_ok=True)

    def _put(self, path: Path, text: str) -> None:
        partial = path.with_name(path.name + ".tmp")
        try:
            with open(partial, "w", encoding="utf-8", opener=open_file) as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            raise OutFailed(f"{path}: {error.strerror}; make room, or choose another folder with -o") from error

    def close(self) -> None:
        """Close OUT, which also unlocks it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, text: bytes) -> None:
        view = memoryview(text)
        while view:
            view = view[os.write(self._fd, view) :]

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        if not os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
            raise self._in_use()  # the other run replaced the file after it was opened here

    def _in_use(self) -> OutFailed:
        return OutFailed(f"{self.path} is being written by another run; wait for it, or end it")

    def _check_place(self) -> None:
        """Check that OUT still has its name, as what is written to a removed file is lost; a removed OUT is made anew.

        Raises:
            OutFailed: another file has the name, or OUT cannot be made anew.
        """
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            try:
                self._rewrite(lambda line: True)
            except OSError as error:
                raise OutFailed(f"{self.path} was removed, and cannot be made anew: {error.strerror}") from error
            self._say(f"{self.path} was removed while it is written; it is there again, with all its lines")
            return
        except OSError as error:
            raise OutFailed(f"{self.path}: {error.strerror}; resume with the same command") from error
        if not os.path.samestat(os.fstat(self._fd), there):
            raise OutFailed(f"another file was put in the place of {self.path}; resume with the same command")

    def _read(self) -> None:
        self.tokens = (0, 0)
        number = at = 0  # lines and bytes before a block
        with os.fdopen(os.dup(self._fd), "rb") as file:
            if file.read(len(_BOM) + 1).removeprefix(_BOM)[:1] not in (b"{", b"", b"\n", b"\r", b" "):
                raise self._foreign(1)  # checked first, since a file of another kind may have no line ends at all
            size = os.fstat(self._fd).st_size

            def long_line(start: int) -> bytes:
                file.seek(start)
                return file.readline()

            for block in blocks(self._fd, 0, size, long_line):
                if not self._read_plain(block, at, number):
                    self._read_lines(block, at, number)
                number, before = number + block.count(b"\n"), number
                at += len(block)
                if before < _SAMPLE <= number:
                    self._ids.reserve_for(size, at / number)
        self.taken_up = {custom_id for custom_id in self.taken_up if custom_id not in self._ids}

    def _read_plain(self, block: bytes, at: int, number: int) -> bool:
        """Read a block of OUT in one pass, and line by line only what is no plain answer; False: it cannot be read so.

        For lines that are read in one pass only the offset of their block is kept; `line` searches the block.
        """
        plain = plain_answers(block)
        if plain is None:
            return False
        self._took(plain.input_tokens, plain.output_tokens)
        texts: list[bytes] = []
        begin = 0
        for passed, other in enumerate((*plain.others, None)):  # in order, since the first of two equal ids counts
            end = None if other is None else other - passed
            again = self._ids.add_all(plain.custom_ids[begin:end], at << _KINDS)
            if (again or other is not None) and not texts:
                texts = list(lines_of(block))
            for index in again:
                asked, said = read_out(texts[begin + passed + index]).tokens
                self._took(-asked, -said)
            self.repeated += len(again)
            if other is not None:
                self._read_line(texts[other], at, number + other)
                begin = other - passed
        return True

    def _read_lines(self, block: bytes, at: int, number: int) -> None:
        """Read a block of OUT line by line."""
        for nth, line in enumerate(lines_of(block), number):
            try:
                self._read_line(line, at, nth)
            except BadInput:
                if line.endswith(b"\n") or not is_torn(line):
                    raise
                os.ftruncate(self._fd, at)  # a crash cut the line off; its answer is still in Redis
                return
            at += len(line)
            if not line.endswith(b"\n"):  # an editor may have removed it
                self._append(b"\n")

    def _read_line(self, line: bytes, at: int, number: int) -> None:
        """Read a line of OUT.

        Args:
            at: Offset of the line, or of its block, in bytes.
            number: How many lines come before it.
        Raises:
            BadInput: it is no line of Batch output.
        """
        try:
            read = _read_line(line)
        except ValueError as error:
            raise self._foreign(number + 1) from error
        if read is None:
            return
        if read.accounts and read.custom_id is not None:
            self.taken_up.add(str(read.custom_id))
            return
        key = (read.id,) if read.name is None else read.name
        if self._ids.add(key, at << _KINDS | self._kind_number(read.kind)) is None:
            self._took(*read.tokens)
        else:
            self.repeated += 1

    def _took(self, input_tokens: int, output_tokens: int) -> None:
        self.tokens = (self.tokens[0] + input_tokens, self.tokens[1] + output_tokens)

    def _kind_number(self, kind: Kind) -> int:
        if len(self._kinds) >= _MOST_KINDS:
            kind = _OTHER
        number = self._kind_numbers.setdefault(kind, len(self._kinds))
        if number == len(self._kinds):
            self._kinds.append(kind)
        return number

    def _take_up(self) -> None:
        """Remove the lines from OUT that failed because of the account, since they are sent again.

        Raises:
            OSError: the new file cannot be written; OUT is unchanged.
        """
        if self.taken_up:
            self._rewrite(lambda line: not _is_taken_up(line))
            self._ids, self.repeated = Ids(), 0
            taken_up = self.taken_up
            self.taken_up = set()
            self._read()  # the lines have other offsets now
            self.taken_up = taken_up

    def _rewrite(self, kept: Callable[[bytes], bool]) -> None:
        """Replace OUT by a file that has only the lines for which `kept` is true.

        Raises:
            OSError: the new file cannot be written; OUT is unchanged.
        """
        path = Path(os.path.realpath(self.path))
        partial = path.with_name(path.name + ".tmp")
        mode = os.fstat(self._fd).st_mode & 0o777
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(self._fd), "rb") as old, os.fdopen(os.dup(fd), "wb") as new:
                old.seek(0)
                new.writelines(line for line in old if kept(line))
                new.flush()
                os.fsync(fd)
            partial.replace(path)
        except BaseException:
            os.close(fd)
            partial.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd = fd

    def _foreign(self, number: int) -> BadInput:
        return BadInput(f"{self.path}, line {number}: not a line of Batch output; choose another file with -o")

    def _read_sidecar(self) -> None:
        try:
            fields = json.loads(self.sidecar.read_text("utf-8"))
            self.run = uuid.UUID(fields["run"])
            self.starts = int(fields.get("starts", 1))
            self.begun = datetime.fromisoformat(fields["begun"]) if "begun" in fields else self.begun
            self.resumed = True
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{self.sidecar} cannot be read; remove it, and calls that still wait are sent again"
            ) from error


class Stream(Journal):
    """OUT that cannot be read back: stdout, a pipe, a device."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = "stdout" if path == STDOUT else str(path)

    @property
    def keeps(self) -> bool:
        """False: what was written cannot be read back."""
        return False

    def __enter__(self) -> Self:
        if self.path == STDOUT and sys.stdout is None:
            raise BadInput("stdout is closed; choose another file with -o")
        try:
            if self.path == STDOUT:
                self._fd = os.dup(1)
            else:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)  # fails at once if a pipe has no reader
                os.set_blocking(self._fd, True)
        except OSError as error:
            raise BadInput(f"{self.name}: {error.strerror or error}; choose another file with -o") from error
        return self

    def write(self, lines: Iterable[_Line]) -> None:
        """Write lines, each given as (custom_id, call id, line, end).

        Raises:
            OutFailed: it cannot be written, mostly since nobody reads it any more.
        """
        try:
            self._append(b"".join(line for _, _, line, _ in lines))
        except OSError as error:
            raise OutFailed(f"{self.name}: {error.strerror}; with a file after -o a run can be resumed") from error

    def begin(self) -> None:
        """Do nothing: such a run cannot be resumed."""

    def put_summary(self, fields: Mapping[str, Any]) -> None:
        """Do nothing: there is no file to put a summary beside."""

    def finish(self) -> None:
        """Do nothing: there is no `OUT.run`."""


def open_out(path: Path, say: Callable[[str], None]) -> Journal:
    """OUT at this path, not yet entered."""
    try:
        streams = path == STDOUT or not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        streams = False  # it does not exist yet, or cannot be used; entering it raises the error
    return Stream(path) if streams else Journal(path, say)


_BOM = b"\xef\xbb\xbf"


def _key(custom_id: str | None, call_id: str) -> str | tuple[str]:
    return custom_id if custom_id is not None else (out_id(call_id),)


def _read_line(line: bytes) -> OutLine | None:
    """A line of OUT; None: it is blank.

    Raises:
        ValueError: it is no line of Batch output.
    """
    text = without_mark(line)
    return read_out(text) if text.strip() else None


def _is_taken_up(line: bytes) -> bool:
    read = _read_line(line)
    return read is not None and read.accounts and read.custom_id is not None
