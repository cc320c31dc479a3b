"""Celery workers of the tests, forked from one process that has imported what each of them would import.

A worker's imports cost more processor time than most tests do with it. The first worker of a test run starts the
nursery, which forks a process for each worker; command line, environment, session, output and end are that process's
own. What has its own interpreter settings, folder or monkey patches starts as a new process all the same (`Worker`).

    python -m tests.nursery DESCRIPTOR    # the socket on which it is asked, a line of JSON a question
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
#: What every worker imports; nothing of it reads the environment when it is imported.
IMPORTS = (
    "alembic.command",
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.concurrency.thread",
    "celery.worker.consumer",
    "kombu.transport.redis",
    "ratelimit_worker.app",
    "ratelimit_worker.providers.openai",
    "ratelimit_worker.stores.tracker",
    "ratelimit_worker.worker.duties",
    "ratelimit_worker.worker.task",
    "sqlalchemy.dialects.sqlite",
)
_LOOK_S = 0.02


class Child:
    """A process of the nursery, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None: it runs."""
        if self.returncode is None:
            self.returncode = self._nursery.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: It has not within `timeout` seconds.
        """
        until_s = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() >= until_s:
                raise subprocess.TimeoutExpired(f"process {self.pid} of the nursery", timeout)
            time.sleep(_LOOK_S)
        return code

    def send_signal(self, number: int) -> None:
        """To the process, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class Nursery:
    """The process that forks."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "tests.nursery", str(theirs.fileno())]
            self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[theirs.fileno()])
        self.pid = self._process.pid
        self._socket, self._answers, self._one_at_a_time = ours, ours.makefile(), threading.Lock()
        atexit.register(self._end)

    def start(self, module: str, arguments: Sequence[str], env: Mapping[str, str], log: Path) -> Child:
        """`python -m module arguments`, started in the project's folder, in a session of its own.

        Args:
            log: The file to which what it says is appended.
        """
        told = {"module": module, "arguments": list(arguments), "env": dict(env), "log": str(log)}
        return Child(self, int(self.ask(told)))

    def ask(self, question: dict[str, Any]) -> Any:
        """The nursery's answer."""
        with self._one_at_a_time:
            self._socket.sendall(json.dumps(question).encode() + b"\n")
            return json.loads(self._answers.readline())

    def _end(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(timeout=60)


@cache
def nursery() -> Nursery:
    """The one of this process; it ends when this process does."""
    return Nursery()


def alike(env: Mapping[str, str]) -> bool:
    """Whether a new interpreter with this environment would be set up as this one was."""
    names = {name for name in [*env, *os.environ] if name.startswith(("PYTHON", "LD_"))}
    return all(env.get(name) == os.environ.get(name) for name in names)


def serve(descriptor: int) -> dict[str, Any] | None:
    """Answer questions until the other side is gone → None; in a forked process: what it was asked for."""
    with socket.socket(fileno=descriptor) as asked, asked.makefile() as questions:
        for line in questions:
            question = json.loads(line)
            if "ended" in question:
                pid, status = os.waitpid(question["ended"], os.WNOHANG)
                answer = os.waitstatus_to_exitcode(status) if pid else None
            elif (answer := fork_leader()) == 0:
                return dict(question)
            asked.sendall(json.dumps(answer).encode() + b"\n")
    return None


def fork_leader() -> int:
    """`os.fork`; the new process leads a session of its own when its id is known here."""
    told, tells = os.pipe()
    if (pid := os.fork()) == 0:
        os.setsid()
    else:
        os.close(tells)
        os.read(told, 1)  # ends when the new process has closed its side
        os.close(told)
        return pid
    os.close(told)
    os.close(tells)
    return 0


def become(told: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(told["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for descriptor in (1, 2):
        os.dup2(out, descriptor)
    os.close(out)
    os.environ.clear()
    os.environ.update(told["env"])
    sys.argv = [told["module"], *told["arguments"]]
    runpy.run_module(told["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    """Be the nursery, and then each of its processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which still stops workers then
    for name in IMPORTS:
        import_module(name)
    gc.collect()
    gc.freeze()  # what is there already is not looked at by every child's collector, and so not copied
    if (told := serve(int(sys.argv[1]))) is not None:
        become(told)


if __name__ == "__main__":
    main()
