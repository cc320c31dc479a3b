"""A small process that waits for its owner's end, and then ends everything that the owner has started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ratelimit_worker import embedded_watch
from ratelimit_worker.embedded import lifeline
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.private_files import make_folder, open_file

WORKER_RANK, SERVER_RANK = 0, 1  #: workers end before the server that they talk to
#: Seconds for the processes of a killed owner to end: workers, then the server.
ORPHAN_GRACE_S = 3.0

# The child begins with this program, which waits until the watcher knows it: if the owner is killed before that, the
# program reads the end of its stdin and ends. SIGPIPE is reset to what the child would have without Python.
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

    def __init__(self, *, grace_s: float = ORPHAN_GRACE_S, keep_fds: Sequence[int] = ()) -> None:
        read_end, self._write_end = os.pipe()
        lifeline.hold(self._write_end)
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
            lifeline.close(self._write_end)
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
        rank: int = WORKER_RANK,
        cwd: Path | None = None,
        umask: int = -1,
    ) -> subprocess.Popen[bytes]:
        """Start `argv` in a session of its own, with its output appended to `log_path` and nothing on its stdin.

        A program that cannot be executed shows as an early exit, with the reason in the log.

        Args:
            umask: Its umask; -1: that of this process.

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
            # A broken pipe: it died before it began, which the caller sees by its exit and its log.
            with contextlib.suppress(BrokenPipeError):
                gate.write(b"\n")
                gate.flush()
        finally:
            with contextlib.suppress(BrokenPipeError):
                gate.close()
        return process

    def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Tell the watcher that a process has ended, after killing what is left of its group."""
        embedded_watch.kill_group(process.pid)
        with contextlib.suppress(StoreUnavailable):  # without a watcher nobody has to know
            self._tell(f"drop {process.pid}")

    def close(self) -> None:
        """End the watcher, and with it whatever is still running. Waits for that."""
        lifeline.close(self._write_end)
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


def stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, at most `grace_s` seconds, SIGKILL to the group. Returns when the process has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            embedded_watch.kill_group(process.pid)
            process.wait()
