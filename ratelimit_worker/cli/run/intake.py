"""Where do the lines come from? From a file itself; a pipe or a compressed file is copied to a nameless file first.

Each line is read twice: before the first one is sent, and when its turn comes. The copy of what can be read only once
is a nameless file in the state folder, which is gone when this process ends in any way. gzip and zstd are recognized by
their first bytes.
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

_HEAD = 4096  #: bytes by which the kind of a file is recognized
_CHUNK = 1 << 20  #: bytes that are read at once
_LOOK_S = 0.2  #: how soon a signal is noticed while a pipe is silent
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
GB = 1 << 30
LEAST_UNPACKED = GB  #: a compressed file may unpack to this many bytes, however small it is,
MOST_TIMES = 200  #: ... or to so many times its size, whichever is more
_LEAST_FREE = GB  #: bytes of the disk that a copy must leave free


class Stopped(Exception):
    """A signal came while IN was read."""


class Intake:
    """The lines of IN. It reads by descriptor, so IN may be renamed or removed meanwhile.

    Args:
        name: Name for messages.
        fd: Descriptor of a regular file; closed by whoever opened it.
        base: Offset in the file where IN begins, in bytes.
    """

    def __init__(self, name: str, fd: int, base: int = 0) -> None:
        self.name = name
        self._fd, self._base = fd, base
        self._before = os.fstat(fd)
        self._end = max(base, self._before.st_size)

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self._end - self._base

    @property
    def changed(self) -> bool:
        """Whether somebody has written to it since it was opened."""
        now = os.fstat(self._fd)
        return (now.st_size, now.st_mtime_ns) != (self._before.st_size, self._before.st_mtime_ns)

    @property
    def is_being_written(self) -> bool:
        """Whether its last line had no end when it was opened, and the file has grown since then."""
        end = os.pread(self._fd, 1, self._end - 1) if self.size else b""
        return end not in (b"", b"\n") and os.fstat(self._fd).st_size > self._end

    def leave_out(self, offset: int) -> None:
        """Ignore what begins at `offset` (bytes): it is still being written."""
        self._end = self._base + offset

    def lines(self, most: int, offset: int = 0) -> Iterator[bytes]:
        """Its lines from `offset` (bytes) on; of a line longer than `most` bytes only the beginning, as a `Cut`.

        Raises:
            BadInput: it cannot be read any more.
        """
        try:
            with io.BufferedReader(_Window(self._fd, self._base + offset, self._end), _CHUNK) as file:
                yield from bounded_lines(file, most)
        except OSError as error:
            raise BadInput(f"{self.name}: {error.strerror or error}; what was answered is in OUT") from error

    def blocks(self, most: int) -> Iterator[bytes]:
        """Its lines in blocks, each of which ends at the end of a line. A line that is longer than a block comes alone;
        of a line longer than `most` bytes only the beginning comes, as a `Cut`.

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
    """An input that can be read only once. A signal ends the wait for more of it.

    Raises (on reading):
        Stopped: `stopped()`.
    """

    def __init__(self, fd: int, stopped: Callable[[], bool]) -> None:
        self._fd, self._stopped = fd, stopped
        self._poll = select.poll()  # unlike select(), it takes descriptors above 1023; unlike epoll, regular files
        self._poll.register(fd, select.POLLIN)
        self._held = b""
        self.taken = 0  #: bytes that were read so far

    def head(self) -> bytes:
        """Its first `_HEAD` bytes (fewer only at its end); later reads return them again."""
        while len(self._held) < _HEAD and (more := self._more(_HEAD)):
            self._held += more
        return self._held

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """The bytes that have come, at least one; 0 at its end."""
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
    """IN, ready to be read any number of times.

    Args:
        source: Its path, or `STDIN`.
        folder: For a copy; made if it is needed.
        stopped: Whether to give up waiting for a pipe.
    Raises:
        BadInput: it cannot be read, or is not UTF-8 text; the message is one line and says what to do.
        Stopped: `stopped()` became true while it was read.
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
    """The lines of a file; of a line longer than `most` bytes only the beginning, as a `Cut`."""
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
    # A zstd file may begin with a skippable frame, as those of pzstd do.
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
