"""What is done already? OUT itself is the journal: a line is written once, whole, before its answer is forgotten.

Beside it, while a run is unfinished, stands `OUT.run` with the run's id: call ids follow from it, so a second start
finds the calls of the first in Redis, be they answered or waiting. `OUT.summary.json` says how the last start ended.

A pipe or a terminal keeps nothing (`Stream`): what was written to it is gone, so there is nothing to resume.
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

_KINDS = 16  #: bits of a number in the table that say how a line ended; the others say where it stands in OUT
_MOST_KINDS = (1 << _KINDS) - 1
_OTHER = Kind(End.FAILED, "other")

_SAMPLE = 1_000  #: lines by which the number of all is estimated

_Line = tuple[str | None, str, bytes, End]


class OutFailed(RateLimitWorkerError):
    """OUT cannot be written."""


class Journal:
    """OUT of one run, open and locked.

    Args:
        say: Takes a line for stderr.
    Raises (on entering):
        BadInput: it cannot be written, or is another kind of file.
        OutFailed: another run writes it.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda text: None) -> None:
        self.path = path
        self.sidecar = path.with_name(path.name + ".run")
        self.summary = path.with_name(path.name + ".summary.json")
        self.name = str(path)
        self._say = say
        self._fd = -1
        self._ids = Ids()  #: by custom_id, or, where a line has none, by `id`: where it stands, and how it ended
        self._kinds: list[Kind] = [ANSWER]
        self._kind_numbers: dict[Kind, int] = {ANSWER: 0}
        self.repeated = 0  #: lines of OUT whose custom_id has one already
        self.tokens = (0, 0)  #: of input, of output: counted for what was in OUT when it was opened
        self.run = uuid.uuid4()
        self.resumed = False  #: an unfinished run goes on
        self.starts = 0  #: of this run, before this one
        self.begun = datetime.now(UTC)  #: the first of them
        self.taken_up: set[str] = set()  #: failed for the account's sake: OUT has them no more, and they are sent again

    @property
    def keeps(self) -> bool:
        """Whether a later start finds here what this one has written."""
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
        """How a line ended that was in OUT when it was opened; None: it was not there."""
        number = self._ids.get(_key(custom_id, call_id))
        return None if number is None else self.kind_of(number)

    def line(self, custom_id: str) -> bytes:
        """The line of a custom_id that is in OUT.

        Raises:
            OutFailed: somebody has changed OUT meanwhile.
        """
        number = self._ids.get(custom_id)
        assert number is not None
        left = BLOCK
        with os.fdopen(os.dup(self._fd), "rb") as file, suppress(ValueError):  # of what is no line of OUT
            file.seek(number >> _KINDS)
            while left > 0 and (text := file.readline()):
                line, left = without_mark(text), left - len(text)
                if line.strip() and read_out(line).name == custom_id:
                    return line
        raise OutFailed(f"{self.path} has changed while it is written; start the same command again")

    def write(self, lines: Iterable[_Line]) -> None:
        """Append (custom_id, call id, line, end) each, and return when they are on disk.

        Raises:
            OutFailed: the disk is full or gone, or another file stands in OUT's place. What was written of a line is
                cut off.
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
        """Keep the run's id, before the first call is sent.

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
        """Every line is in OUT: the run is over."""
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
        """Close OUT and let others have it."""
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
            raise self._in_use()  # it has put another file in this one's place since we opened it

    def _in_use(self) -> OutFailed:
        return OutFailed(f"{self.path} is being written by another run; wait for it, or end it")

    def _check_place(self) -> None:
        """Whether OUT still stands at its name: what is written to a removed file is lost.

        Raises:
            OutFailed: another file stands there.
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
                raise self._foreign(1)  # it may be anything, and have no lines at all
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
        """Take in a block of OUT at one glance, and look only at what is no plain answer; False: it cannot be read so.

        What is at one glance stands somewhere in its block: `line` looks for it there.
        """
        plain = plain_answers(block)
        if plain is None:
            return False
        self._took(plain.input_tokens, plain.output_tokens)
        texts: list[bytes] = []
        begin = 0
        for passed, other in enumerate((*plain.others, None)):  # in their order: of two lines the first counts
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
        """Take in a block of OUT line by line."""
        for nth, line in enumerate(lines_of(block), number):
            try:
                self._read_line(line, at, nth)
            except BadInput:
                if line.endswith(b"\n") or not is_torn(line):
                    raise
                os.ftruncate(self._fd, at)  # a crash cut it: its answer is still in Redis
                return
            at += len(line)
            if not line.endswith(b"\n"):  # an editor may have taken it away
                self._append(b"\n")

    def _read_line(self, line: bytes, at: int, number: int) -> None:
        """Take in a line of OUT.

        Args:
            at: Where it stands, or the block in which it does.
            number: Of lines before it.
        Raises:
            BadInput: it is none.
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
        """Take out of OUT what failed for the account's sake: it is sent again, and each line is in OUT once.

        Raises:
            OSError: there is no room beside it; OUT is as it was.
        """
        if self.taken_up:
            self._rewrite(lambda line: not _is_taken_up(line))
            self._ids, self.repeated = Ids(), 0
            taken_up = self.taken_up
            self.taken_up = set()
            self._read()  # its lines stand elsewhere now
            self.taken_up = taken_up

    def _rewrite(self, kept: Callable[[bytes], bool]) -> None:
        """Write OUT anew, with the lines of it that are kept.

        Raises:
            OSError: there is no room beside it; OUT is as it was.
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
    """OUT that keeps nothing: stdout, a pipe, a device. What is written there is read by others as it comes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.name = "stdout" if path == STDOUT else str(path)

    @property
    def keeps(self) -> bool:
        """It does not."""
        return False

    def __enter__(self) -> Self:
        if self.path == STDOUT and sys.stdout is None:
            raise BadInput("stdout is closed; choose another file with -o")
        try:
            if self.path == STDOUT:
                self._fd = os.dup(1)
            else:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe that nobody reads says so
                os.set_blocking(self._fd, True)
        except OSError as error:
            raise BadInput(f"{self.name}: {error.strerror or error}; choose another file with -o") from error
        return self

    def write(self, lines: Iterable[_Line]) -> None:
        """Write (custom_id, call id, line, end) each.

        Raises:
            OutFailed: nobody reads it any more.
        """
        try:
            self._append(b"".join(line for _, _, line, _ in lines))
        except OSError as error:
            raise OutFailed(f"{self.name}: {error.strerror}; with a file after -o a run can be resumed") from error

    def begin(self) -> None:
        """There is nothing to keep."""

    def put_summary(self, fields: Mapping[str, Any]) -> None:
        """There is nothing to put it beside."""

    def finish(self) -> None:
        """There is nothing to remove."""


def open_out(path: Path, say: Callable[[str], None]) -> Journal:
    """OUT at this path, not yet entered."""
    try:
        streams = path == STDOUT or not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        streams = False  # it is not there yet, or cannot be: entering it says so
    return Stream(path) if streams else Journal(path, say)


_BOM = b"\xef\xbb\xbf"


def _key(custom_id: str | None, call_id: str) -> str | tuple[str]:
    return custom_id if custom_id is not None else (out_id(call_id),)


def _read_line(line: bytes) -> OutLine | None:
    """A line of OUT; None: it is blank.

    Raises:
        ValueError: it is none of OUT's.
    """
    text = without_mark(line)
    return read_out(text) if text.strip() else None


def _is_taken_up(line: bytes) -> bool:
    read = _read_line(line)
    return read is not None and read.accounts and read.custom_id is not None
