"""Ownership of a state folder: at most one server runs on it, and the lock file names its owner and address."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratelimit_worker import embedded_watch
from ratelimit_worker.embedded import lifeline
from ratelimit_worker.embedded.watcher import ORPHAN_GRACE_S
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.private_files import make_folder

_POLL_S = 0.02
_LOCK_WAIT_S = 2 * ORPHAN_GRACE_S + 4.0


def running_url(state_dir: Path) -> str | None:
    """Address of the embedded server that a living process runs on this state folder; None: there is none."""
    try:
        with (state_dir.expanduser().resolve() / "redis" / "owner.lock").open("rb") as lock:
            if _try_lock(lock.fileno(), fcntl.LOCK_SH):
                return None
            url = _read_owner(lock.fileno()).get("url")
    except OSError:
        return None  # no such folder, or not ours to read: nothing here that we could use
    return url if isinstance(url, str) else None


def private_folder(path: Path) -> Path:
    """A folder of mode 0700 that belongs to this user.

    Raises:
        ConfigurationError: it cannot be made, or it is somebody else's.
    """
    try:
        make_folder(path)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise ConfigurationError(f"{path} belongs to somebody else; remove it or choose another --state-dir")
        path.chmod(0o700)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the folder {path}: {error.strerror}; choose another with --state-dir (MAISD_STATE_DIR)"
        ) from error
    return path


@contextlib.contextmanager
def owned(state_dir: Path) -> Iterator[int]:
    """Take the lock of a state folder → its descriptor.

    Processes that a killed owner has left hold it too until they end: this waits for them, and for nobody else.

    Raises:
        ConfigurationError: another process owns the folder, such processes do not end, or there are no file locks.
    """
    lock = os.open(state_dir / "redis" / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    lifeline.hold(lock)
    try:
        _lock(lock, state_dir)
        os.ftruncate(lock, 0)
        write_owner(lock)
        yield lock
        os.ftruncate(lock, 0)  # the process id would some day belong to another process
    finally:
        lifeline.close(lock)


def _lock(lock: int, state_dir: Path) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while not _try_lock(lock, fcntl.LOCK_EX):
        owner = _read_owner(lock)
        pid = owner.get("owner")
        late = time.monotonic() > deadline
        if isinstance(pid, int) and embedded_watch.is_running(pid):
            raise ConfigurationError(
                f"the state folder {state_dir} is in use by process {pid}; end it, or choose another with --state-dir"
            )
        if late:
            raise ConfigurationError(
                f"the state folder {state_dir} is still held by what process {pid or '?'} left, "
                f"a server with process id {owner.get('server', '?')}; end it, or choose another with --state-dir"
            )
        time.sleep(_POLL_S)


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigurationError(f"the state folder's file system has no locks: {error.strerror}") from error
    return True


def write_owner(lock: int, **server: object) -> None:
    """Write who holds the lock, and what is known of the server; each text must be longer than the one it replaces."""
    os.pwrite(lock, json.dumps({"owner": os.getpid(), **server}).encode(), 0)


def _read_owner(lock: int) -> dict[str, Any]:
    """Who holds the lock, as far as it has written that already."""
    try:
        owner = json.loads(os.pread(lock, 65536, 0))
    except ValueError:
        return {}  # it has only just taken the lock
    return owner if isinstance(owner, dict) else {}


@contextlib.contextmanager
def free_socket_path(folder: Path) -> Iterator[Path]:
    """A path on which a socket can listen, short and plain enough for clients, and cleared of a crash's remains."""
    path = folder / "valkey.sock"
    if _can_listen(path):
        yield path
        return
    name = f"ratelimit-worker-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    for base in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"))):
        short = private_folder(base / name) / "s"
        if _can_listen(short):
            try:
                yield short
            finally:
                shutil.rmtree(short.parent, ignore_errors=True)  # a cleaner of /tmp may have been there first
            return
    raise ConfigurationError(f"no unix socket can listen in {folder}; choose another folder with --state-dir")


def _can_listen(path: Path) -> bool:
    """Whether a socket can listen there, by trying: the longest path differs by system, and some shared folders have
    no sockets at all."""
    if not re.fullmatch(r"[A-Za-z0-9/._-]+", str(path)):
        return False  # clients differ in how they unquote a URL
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.bind(str(path))
        except OSError:
            return False
    path.unlink()
    return True
