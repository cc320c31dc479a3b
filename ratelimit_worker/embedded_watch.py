"""Who ends the embedded server and its workers when their owner dies, even by SIGKILL?

A process of its own, run as a script with the standard library alone (`python -I -S embedded_watch.py GRACE_S`), so
that it starts in milliseconds and stays small. Its stdin is the read end of a pipe whose write end only the owner
holds. Its lines name the processes to end, and its end of file means that the owner has ended, in whatever way:

    add RANK PID    end PID then; lower ranks first (workers before the server they talk to)
    drop PID        PID has ended already

Every process named here leads a session of its own. SIGTERM goes to the leader alone, which ends its children in its
own order; SIGKILL, after the grace period, goes to the whole group, so no child of a dead leader is left.

Not used: Linux' PR_SET_PDEATHSIG. It fires when the *thread* that started the child ends, which kills children of a
living owner, and macOS does not have it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

_POLL_S = 0.02


def main(arguments: list[str]) -> int:
    """Wait for the owner's end, then end its processes. `arguments` is one number: the grace period in seconds."""
    grace_s = float(arguments[0])
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # a stop of the whole service ends the owner too: wait for that
    for rank in ranks(sys.stdin.buffer):
        end(rank, grace_s)
    return 0


def ranks(lines: Iterable[bytes]) -> list[list[int]]:
    """Process ids that are left when `lines` end, grouped by rank, lowest rank first.

    Raises:
        ValueError: a line is not of this protocol.
    """
    living: dict[int, int] = {}
    for line in lines:
        match line.split():
            case [b"add", rank, pid]:
                living[int(pid)] = int(rank)
            case [b"drop", pid]:
                living.pop(int(pid), None)
            case _:
                raise ValueError(f"not a line for the watcher: {line!r}")
    return [[pid for pid, of in living.items() if of == rank] for rank in sorted(set(living.values()))]


def end(pids: Iterable[int], grace_s: float) -> None:
    """SIGTERM to each leader, up to `grace_s` seconds for all of them together, then SIGKILL to what is left."""
    pids = list(pids)
    for pid in pids:
        signal_process(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(is_running(pid) for pid in pids):
        time.sleep(_POLL_S)
    for pid in pids:
        kill_group(pid)


def is_running(pid: int) -> bool:
    """Whether `pid` runs. On Linux a zombie counts as ended: in a container it may never be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except (FileNotFoundError, ProcessLookupError):
        return sys.platform != "linux"  # no /proc on macOS; on Linux it has ended meanwhile


def signal_process(pid: int, signum: signal.Signals) -> bool:
    """Send a signal; False: there is no such process any more."""
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return False
    return True


def kill_group(leader: int) -> bool:
    """SIGKILL to the process group of `leader`; False: no process of it is left."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False  # macOS answers EPERM for a group of zombies; a group that we started is never another user's
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
