"""`ratelimit-worker up`: one command for development, and nothing of it outlives it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.builders import ROOT, clean_environment
from tests.conftest import wait_for
from tests.fleet import free_port, gone

pytestmark = pytest.mark.worker


@contextmanager
def up(state: Path, port: int, flower: bool = True, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The command, running in a session of its own; perhaps as where Flower is not installed."""
    without = "import sys; sys.modules['flower'] = None; from ratelimit_worker.cli import main; main()"
    program = ["-m", "ratelimit_worker"] if flower else ["-c", without]
    process = subprocess.Popen(
        [sys.executable, *program, "up", "--port", str(port), "--concurrency", "3"],
        cwd=ROOT,
        env=clean_environment(MAISD_STATE_DIR=str(state), **env),
        stdout=subprocess.PIPE,
        stderr=(state.parent / "stderr").open("w"),
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=120)
        assert process.stdout is not None
        process.stdout.close()


def exported(process: subprocess.Popen[str]) -> dict[str, str]:
    """The lines for another shell; waits until it is up."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    assert all(line.startswith("export ") for line in lines), lines
    return dict(shlex.split(line)[1].split("=", 1) for line in lines)


def children(pid: int) -> list[int]:
    """Its processes: watcher, server, worker, Flower."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_up_brings_all_and_ctrl_c_ends_all(tmp_path: Path) -> None:
    """Another shell works with the lines that it prints; Flower asks for the login that it tells; Ctrl-C: exit 0."""
    state, port = tmp_path / "state", free_port()
    with up(state, port, MAISD_REDIS_URL="redis://nowhere.invalid:1/0") as process:
        env = clean_environment(**exported(process))  # its state folder is among the lines
        wait_for(lambda: "Ctrl-C ends" in (tmp_path / "stderr").read_text(), what="directions")
        said = (tmp_path / "stderr").read_text()
        assert f"http://127.0.0.1:{port}/rate-limit" in said
        user, _, password = said.partition("Login")[2].splitlines()[0].strip().partition(", password ")
        page = f"http://127.0.0.1:{port}/rate-limit"
        assert httpx.get(page, trust_env=False).status_code == 401
        shown = httpx.get(page, auth=(user, password), trust_env=False, timeout=120.0)
        assert "1 / 3" in shown.text
        broker = httpx.get(f"http://127.0.0.1:{port}/broker", auth=(user, password), trust_env=False, timeout=120.0)
        assert "redis+socket:///" in broker.text
        done = subprocess.run(
            [sys.executable, "-m", "ratelimit_worker", "status"],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "1 worker, 3 slots" in done.stdout
        started = children(process.pid)
        assert len(started) == 4
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        assert gone(started)


def test_without_flower_the_rest_is_up(tmp_path: Path) -> None:
    """A worker and Redis, and a line that says how to get the page."""
    with up(tmp_path / "state", free_port(), flower=False) as process:
        exported(process)
        wait_for(lambda: "Ctrl-C ends" in (tmp_path / "stderr").read_text(), what="directions")
        assert "pip install 'ratelimit-worker[flower]'" in (tmp_path / "stderr").read_text()
        started = children(process.pid)
        assert len(started) == 3
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        assert gone(started)


def test_a_killed_up_leaves_nothing(tmp_path: Path) -> None:
    """The watcher ends worker, Flower and Redis after a SIGKILL of the command."""
    with up(tmp_path / "state", free_port()) as process:
        exported(process)
        started = children(process.pid)
        process.kill()
        process.wait(timeout=120)
        wait_for(lambda: gone(started), timeout_s=120.0, what="all have ended")


def test_a_port_in_use_is_a_sentence(tmp_path: Path) -> None:
    """Exit 1 with Flower's own words, and nothing is left."""
    first = tmp_path / "first"
    first.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"],
        cwd=first,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split(" port ")[1].split()[0])
        with up(tmp_path / "state", port) as process:
            assert process.wait(timeout=120) == 1
        said = (tmp_path / "stderr").read_text()
        assert f"Flower cannot listen on 127.0.0.1:{port}" in said
        assert "Traceback" not in said
    finally:
        server.terminate()
        server.communicate(timeout=120)
