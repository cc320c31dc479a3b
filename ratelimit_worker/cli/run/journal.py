"""What is done already? OUT itself is the journal: a line is written once, whole, before its answer is forgotten.

Beside it, while a run is unfinished, stands `OUT.run` with the run's id: call ids follow from it, so a second start
finds the calls of the first in Redis, be they answered or waiting.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from ratelimit_worker.batchfile import End, is_torn, out_id, read_out
from ratelimit_worker.errors import BadInput, RateLimitWorkerError
from ratelimit_worker.private_files import open_file


class OutFailed(RateLimitWorkerError):
    """OUT cannot be written."""


class Journal:
    """OUT of one run, open and locked.

    Raises (on entering):
        BadInput: it cannot be written, or is another kind of file.
        OutFailed: another run writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sidecar = path.with_name(path.name + ".run")
        self._fd = -1
        self._ids: set[str] = set()  #: `id` of every line of OUT
        self._custom_ids: set[str] = set()
        self.ends: Counter[End] = Counter()  #: lines of OUT by how they ended
        self.run = uuid.uuid4()
        self.resumed = False  #: an unfinished run goes on
        self.taken_up: set[str] = set()  #: failed for the account's sake: OUT has them no more, and they are sent again

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
        return out_id(call_id) in self._ids if custom_id is None else custom_id in self._custom_ids

    def write(self, lines: Iterable[tuple[str | None, str, bytes, End]]) -> None:
        """Append (custom_id, call id, line, end) each, and return when they are on disk.

        Raises:
            OutFailed: the disk is full or gone. What was written of a line is cut off.
        """
        written = [line for line in lines if not self.has(line[0], line[1])]
        if not written:
            return
        text = b"".join(line for _, _, line, _ in written)
        end = os.lseek(self._fd, 0, os.SEEK_END)
        try:
            self._append(text)
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, end)
            raise OutFailed(f"{self.path}: {error.strerror}; make room, then resume with the same command") from error
        for custom_id, call_id, _, how in written:
            self._add(custom_id, out_id(call_id), how)

    def begin(self) -> None:
        """Keep the run's id, before the first call is sent.

        Raises:
            OutFailed: the folder cannot be written.
        """
        partial = self._sidecar.with_name(self._sidecar.name + ".tmp")
        try:
            with open(partial, "w", encoding="utf-8", opener=open_file) as file:
                json.dump({"run": str(self.run)}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._sidecar)
        except OSError as error:
            raise OutFailed(f"{self._sidecar}: {error.strerror}; choose another folder with -o") from error

    def finish(self) -> None:
        """Every line is in OUT: the run is over."""
        self._sidecar.unlink(missing_ok=True)

    def close(self) -> None:
        """Close OUT and let others have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, text: bytes) -> None:
        view = memoryview(text)
        while view:
            view = view[os.write(self._fd, view) :]

    def _add(self, custom_id: str | None, line_id: str, end: End) -> None:
        self._ids.add(line_id)
        if custom_id is not None:
            self._custom_ids.add(custom_id)
        self.ends[end] += 1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._in_use() from error
        if not os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
            raise self._in_use()  # it has put another file in this one's place since we opened it

    def _in_use(self) -> OutFailed:
        return OutFailed(f"{self.path} is being written by another run; wait for it, or end it")

    def _read(self) -> None:
        whole = 0
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not is_torn(line):
                        raise self._foreign(number)
                    os.ftruncate(self._fd, whole)  # a crash cut it: its answer is still in Redis
                    break
                whole += len(line)
                if line.strip():
                    try:
                        read = read_out(line)
                    except ValueError as error:
                        raise self._foreign(number) from error
                    if read.accounts and read.custom_id is not None:
                        self.taken_up.add(read.custom_id)
                    else:
                        self._add(read.custom_id, read.id, read.end)

    def _take_up(self) -> None:
        """Take out of OUT what failed for the account's sake: it is sent again, and each line is in OUT once.

        Raises:
            OSError: there is no room beside it; OUT is as it was.
        """
        if not self.taken_up:
            return
        path = Path(os.path.realpath(self.path))
        partial = path.with_name(path.name + ".tmp")
        mode = os.fstat(self._fd).st_mode & 0o777
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.fdopen(os.dup(self._fd), "rb") as old, os.fdopen(os.dup(fd), "wb") as new:
                old.seek(0)
                new.writelines(line for line in old if not line.strip() or not _is_taken_up(line))
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
            self.run = uuid.UUID(json.loads(self._sidecar.read_text("utf-8"))["run"])
            self.resumed = True
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f"{self._sidecar} cannot be read; remove it, and calls that still wait are sent again"
            ) from error


def _is_taken_up(line: bytes) -> bool:
    read = read_out(line)
    return read.accounts and read.custom_id is not None
