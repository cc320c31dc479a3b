"""Is the SQLite file that we write to still the one that others read? A deleted file accepts rows silently.

SQLite keeps the file open: rows that are written after it was deleted, replaced or truncated are lost. So the recorder
checks the file before each batch, and again after it, before it removes the outcomes from the outbox.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from ratelimit_worker.private_files import make_file, make_folder

#: SQLite's errors for a file whose content is not a database.
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BESIDE = ("-wal", "-shm")

Identity = tuple[int, int]


def identity(path: Path) -> Identity | None:
    """The file that the path names now: device and inode; None: there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return (found.st_dev, found.st_ino)


def read_only(path: Path) -> bool:
    """Whether an existing file is not writable by this process."""
    return is_protected(path) or (path.exists() and not os.access(path, os.W_OK))


def is_protected(path: Path) -> bool:
    """Whether an existing file is read-only by its mode; processes of root could write to it all the same."""
    try:
        return not path.stat().st_mode & 0o222
    except (FileNotFoundError, NotADirectoryError):
        return False


def file_of(engine: Engine) -> Path | None:
    """The SQLite file of an engine; None: it is another kind of database."""
    url = engine.url
    named = url.database or ""
    return Path(named) if url.get_backend_name() == "sqlite" and not named.startswith("file:") else None


def is_damaged(error: BaseException) -> bool:
    """Whether SQLite says that the file is damaged, or not a database."""
    said = error.orig if isinstance(error, DBAPIError) else error
    return isinstance(said, sqlite3.Error) and (getattr(said, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED


class SqliteFile:
    """What a writer remembers about the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: Identity | None = None  #: the file whose tables were looked at
        self._log: Identity | None = None  #: its write-ahead log, once there was one

    @property
    def known(self) -> bool:
        """Whether it was checked and found to be ours."""
        return self._known is not None

    def remember(self) -> None:
        """Remember that this is the file with our tables."""
        self._known, self._log = identity(self.path), identity(self._beside("-wal"))

    def closed(self) -> None:
        """Forget the log: all connections of this process are closed, so SQLite may have deleted it."""
        self._log = None

    def forget(self) -> None:
        """Forget everything, so that any file is accepted next."""
        self._known = self._log = None

    def change(self) -> str | None:
        """What has happened to the file since `remember`, as in "it was deleted"; None: it is the same."""
        if self._known is None:
            return None
        now = identity(self.path)
        if now is None:
            return "deleted"
        if now != self._known:
            return "replaced"
        if not self._has_content():
            return "truncated"
        log = identity(self._beside("-wal"))
        if self._log is None:
            self._log = log
        # While a connection is open, only another program can delete the log, and with it the last commits.
        return "deprived of its write-ahead log" if log != self._log else None

    def clear_away(self, why: str) -> str:
        """Move the old file out of the way → what was done with it, in words.

        A truncated file is removed; a damaged one is kept under another name, so that it can be repaired.
        """
        if why not in ("truncated", "damaged"):
            return "what it held is gone"
        with self._alone():
            if why == "truncated" and self.change() == why:
                for path in self._all():
                    path.unlink(missing_ok=True)
            if why == "damaged" and identity(self.path) == self._known:
                aside = f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
                for path in self._all():
                    if path.exists():
                        path.rename(path.with_name(aside + path.name[len(self.path.name) :]))
                return f"it is kept as {aside}"
        return "what it held is gone"

    def make(self) -> None:
        """Make an empty file, and its folder where that has gone too.

        Raises:
            OSError: it cannot be made.
        """
        make_folder(self.path.parent)
        make_file(self.path)

    def _has_content(self) -> bool:
        try:
            return self.path.stat().st_size > 0
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _beside(self, ending: str) -> Path:
        return self.path.with_name(self.path.name + ending)

    def _all(self) -> list[Path]:
        return [self.path, *map(self._beside, _BESIDE)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A lock, so that one of several recorders moves the file, and the others find the new one."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
