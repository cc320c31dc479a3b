"""Where do the lines come from? A file as it is; what can be read only once, or is packed, from a copy without a name.

Each line is looked at before the first one is sent, and again when its turn comes, so a pipe is kept in a nameless file
of the state folder, which is gone with this process however it ends. gzip and zstd are known by their first bytes.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import select
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from ratelimit_worker.batchfile import Cut, strange
from ratelimit_worker.cli.run.blocks import blocks
from ratelimit_worker.errors import BadInput
from ratelimit_worker.private_files import make_folder

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STDIN = Path("-")

_HEAD = 4096  #: bytes by which a file is known
_CHUNK = 1 << 20
_LOOK_S = 0.2  #: how soon a signal is seen while nothing comes
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
GB = 1 << 30
LEAST_UNPACKED = GB  #: so much a packed file may become, however small it is,
MOST_TIMES = 200  #: ... and so many times its size where that is more
_LEAST_FREE = GB  #: of the disk, which is not taken for a copy


class Stopped(Exception):
    """A signal came while IN was read."""


class Intake:
    """The lines of IN, in one open file: what happens to its name meanwhile does not matter.

    Args:
        name: As people know it.
        fd: Of a regular file; closed by who opened it.
        base: Where in it IN begins, bytes.
    """

    def __init__(self, name: str, fd: int, base: int = 0) -> None:
        self.name = name
        self._fd, self._base = fd, base
        self._before = os.fstat(fd)
        self._end = max(base, self._before.st_size)

    @property
    def size(self) -> int:
        """Bytes of it: as many as it had when it was opened."""
        return self._end - self._base

    @property
    def changed(self) -> bool:
        """Whether somebody has written to it since it was opened."""
        now = os.fstat(self._fd)
        return (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns)

    @property
    def is_being_written(self) -> bool:
        """Whether it ends without the end of a line, and more has come since it was opened."""
        end = os.pread(self._fd, 1, self._end - 1) if self.size else b""
        return end not in (b"", b"\n") and os.fstat(self._fd).st_size > self._end

    def leave_out(self, offset: int) -> None:
        """What begins there is still being written."""
        self._end = self._base + offset

    def lines(self, most: int, offset: int = 0) -> Iterator[bytes]:
        """Its lines from `offset` on; of one longer than `most` bytes only the beginning, as a `Cut`.

        Raises:
            BadInput: it cannot be read any more.
        """
        try:
            with io.BufferedReader(_Window(self._fd, self._base + offset, self._end), _CHUNK) as file:
                yield from bounded_lines(file, most)
        except OSError as error:
            raise BadInput(f"{self.name}: {error.strerror or error}; what was answered is in OUT") from error

    def blocks(self, most: int) -> Iterator[bytes]:
        """Its lines, many in one: each block ends where a line does. A line that is longer than a block comes alone,
        of one that is longer than `most` bytes only the beginning, as a `Cut`.

        Raises:
            BadInput: it cannot be read any more.
        """
        try:
            yield from blocks(self._fd, self._base, self._end, lambda at: next(self.lines(most, at - self._base), b""))
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> BadInput:
        return BadInput(f"{self.name}: {error.strerror or error}; what was answered is in OUT")


class _Window(io.RawIOBase):
    """A part of a file, read by position, so that several readers share one descriptor."""

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd, self._at, self._end = fd, start, end

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """The next bytes; 0 at its end."""
        wanted = min(len(buffer), max(0, self._end - self._at))
        got = os.preadv(self._fd, [buffer[:wanted]], self._at) if wanted else 0
        self._at += got
        return got


class _Stream(io.RawIOBase):
    """What can be read only once. A signal ends the wait for more of it.

    Raises (on reading):
        Stopped: `stopped()`.
    """

    def __init__(self, fd: int, stopped: Callable[[], bool]) -> None:
        self._fd, self._stopped = fd, stopped
        self._poll = select.poll()  # it takes a file as well as a pipe, and any number of a descriptor
        self._poll.register(fd, select.POLLIN)
        self._held = b""
        self.taken = 0  #: bytes so far

    def head(self) -> bytes:
        """Its first bytes, enough to know it by, however few come at once; they are read once more by `read`."""
        while len(self._held) < _HEAD and (more := self._more(_HEAD)):
            self._held += more
        return self._held

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """What is there, at least a byte; 0 at its end."""
        got = self._held[: len(buffer)] or self._more(len(buffer))
        self._held = self._held[len(buffer) :]
        buffer[: len(got)] = got
        return len(got)

    def _more(self, most: int) -> bytes:
        while True:
            ready = self._poll.poll(_LOOK_S * 1000)
            if self._stopped():
                raise Stopped
            if not ready:
                continue
            with suppress(BlockingIOError):  # another reader of the same pipe was faster
                got = os.read(self._fd, most)
                self.taken += len(got)
                return got


@contextmanager
def open_intake(source: Path, folder: Path, stopped: Callable[[], bool] = lambda: False) -> Iterator[Intake]:
    """IN, ready to be read as often as need be.

    Args:
        source: Its path, or `STDIN`.
        folder: Where a copy may lie; made if it is needed.
        stopped: Whether to give up waiting for a pipe.
    Raises:
        BadInput: it cannot be read, or holds no lines of UTF-8: one line, with what to do.
        Stopped: `stopped()` while it was read.
    """
    name = "stdin" if source == STDIN else str(source)
    with ExitStack() as opened:
        if source == STDIN and sys.stdin is None:
            raise BadInput("stdin is closed; give a Batch file that can be read")
        with _reading(name):
            fd = os.dup(0) if source == STDIN else os.open(source, os.O_RDONLY | os.O_NONBLOCK)
            opened.callback(os.close, fd)
            kind = os.fstat(fd).st_mode
            if stat.S_ISDIR(kind):
                raise BadInput(f"{name} is a folder; give a Batch file")
            base, head = 0, b""
            if stat.S_ISREG(kind):
                base = os.lseek(fd, 0, os.SEEK_CUR)  # a shell may have read the first lines of stdin
                head = os.pread(fd, _HEAD, base)
        if stat.S_ISREG(kind) and not _is_packed(head):
            _check_head(name, head)
            yield Intake(name, fd, base)
        else:
            yield Intake(name, opened.enter_context(_copy(name, _Stream(fd, stopped), folder)).fileno())


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(f"{name}: {error.strerror or error}; give a Batch file that can be read") from error


def bounded_lines(file: BinaryIO, most: int) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than `most` bytes only the beginning, as a `Cut`."""
    while line := file.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line
            continue
        size, rest = len(line), line
        line = line[:1000]
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_CHUNK)
            size += len(rest)
        yield Cut.of(line, size)


@contextmanager
def _copy(name: str, stream: _Stream, folder: Path) -> Iterator[BinaryIO]:
    with ExitStack() as opened:
        with _reading(name):
            head = stream.head()
        if not _is_packed(head):
            _check_head(name, head)
        with _writing(folder):
            make_folder(folder)
            copy = opened.enter_context(tempfile.TemporaryFile(dir=folder))
        for chunk in _chunks(name, stream, head):
            with _writing(folder):
                _check_room(folder, len(chunk))
                copy.write(chunk)
        with _writing(folder):
            copy.flush()
        yield cast("BinaryIO", copy)


def _chunks(name: str, stream: _Stream, head: bytes) -> Iterator[bytes]:
    packed, size = _is_packed(head), 0
    with _reading(name):
        file = _unpacked(io.BufferedReader(stream, _CHUNK), head)
        try:
            while chunk := file.read(_CHUNK):
                if packed and not size:
                    if _is_packed(chunk):
                        raise BadInput(
                            f"{name} is packed twice; unpack it once: gzip -dc IN | ratelimit-worker run - …"
                        )
                    _check_head(name, chunk[:_HEAD])
                size += len(chunk)
                if packed and size > max(LEAST_UNPACKED, MOST_TIMES * stream.taken):
                    raise BadInput(
                        f"{name} becomes more than {size / GB:.0f} GB, from {stream.taken:,} bytes; "
                        "unpack it yourself, and give the file"
                    )
                yield chunk
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            how = "gzip" if head.startswith(_GZIP) else "zstd"
            raise BadInput(f"{name} is no whole {how} file ({error}); nothing of it was sent") from error


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{folder}: {error.strerror or error}; no copy of IN fits there, give another --state-dir"
        ) from error


def _is_packed(head: bytes) -> bool:
    # A zstd file may begin with a frame that is skipped, as pzstd's do.
    return head.startswith((_GZIP, _ZSTD)) or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F)


def _unpacked(raw: io.BufferedReader, head: bytes) -> io.BufferedIOBase:
    if not _is_packed(head):
        return raw
    return gzip.GzipFile(fileobj=raw, mode="rb") if head.startswith(_GZIP) else zstd.ZstdFile(raw, "rb")


def _check_head(name: str, head: bytes) -> None:
    what = strange(head)
    if what is not None:
        raise BadInput(f"{name} is {what}")


def _check_room(folder: Path, more: int) -> None:
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < _LEAST_FREE + more:
        raise OSError(errno.ENOSPC, "less than a GB is free")
