"""Child processes that work for this process, and end with it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from msgspec import Struct

from ratelimit_worker import embedded_watch
from ratelimit_worker.embedded.logs import log_end
from ratelimit_worker.embedded.watcher import Watcher


class Exited(Struct, frozen=True):
    """A child that ended before it was told to."""

    pid: int
    argv: tuple[str, ...]
    code: int  #: As `Popen.returncode`: negative is a signal.
    log_path: Path

    def __str__(self) -> str:
        how = f"ended with code {self.code}" if self.code >= 0 else f"was ended by signal {-self.code}"
        return f"process {self.pid} ({' '.join(self.argv[:4])}) {how}{log_end(self.log_path)}"


class _Child(Struct, frozen=True):
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
        """The process that ends the children when this process dies."""
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
