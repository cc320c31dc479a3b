"""A server that belongs to one process: it starts for it, and ends with it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ratelimit_worker.embedded.binary import find_server
from ratelimit_worker.embedded.folder import free_socket_path, owned, private_folder, write_owner
from ratelimit_worker.embedded.logs import log_end
from ratelimit_worker.embedded.watcher import SERVER_RANK, Watcher, stop
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.private_files import UMASK

_POLL_S = 0.02
#: A server that has not answered after this many seconds is given up.
_SILENCE_S = 30.0
#: One that answers LOADING is alive and reads its AOF: gigabytes take minutes.
_LOADING_S = 600.0
#: Time for the server to write its AOF out after SIGTERM, seconds.
_SERVER_GRACE_S = 10.0


class EmbeddedRedis:
    """A server of one owner on a private unix socket, with its state in `state_dir/redis`.

    Entering starts it and returns when it answers; leaving ends it, after its AOF is on disk. The state is there again
    at the next start. It ends a few seconds after its owner if that dies.

    Args:
        state_dir: Made if it is not there. If its path is too long for a unix socket (107 bytes), or has characters
            that clients unquote differently, the socket is in a private folder of the temporary folder.
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
        with contextlib.ExitStack() as opening:  # undone in reverse order if any step fails, Ctrl-C included
            folder = private_folder(self.state_dir / "redis")
            lock = opening.enter_context(owned(self.state_dir))
            self._socket = opening.enter_context(free_socket_path(folder))
            opening.callback(setattr, self, "_socket", None)
            # The watcher ends last, so its copy of the lock covers every process of a killed owner.
            self.watcher = opening.enter_context(Watcher(keep_fds=[lock]))
            self._process = self.watcher.spawn(
                [server, *_options(folder, self._socket)],
                env={"LC_ALL": "C"},  # it needs none of our variables, least of all API keys
                log_path=self.log_path,
                rank=SERVER_RANK,
                cwd=folder,
                umask=UMASK,  # of its AOF, RDB and socket
            )
            opening.callback(self._stop_server, self._process)
            write_owner(lock, server=self._process.pid, url=self.url)
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
                raise StoreUnavailable(f"the embedded Redis {problem}{log_end(self.log_path)}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_POLL_S)
                raise StoreUnavailable(f"the embedded Redis ended with code {code}{log_end(self.log_path)}")

    def _stop_server(self, process: subprocess.Popen[bytes]) -> None:
        stop(process, _SERVER_GRACE_S)
        self.watcher.ended(process)
        self._process = None


def _options(folder: Path, socket_path: Path) -> list[str | Path]:
    options: dict[str, str | Path] = {
        "port": "0",
        "unixsocket": socket_path,
        "unixsocketperm": "700",
        "dir": folder,
        "daemonize": "no",
        "logfile": "",  # stdout, which is our log: so it also has what is written before the options are read
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
