"""Who may read what we write? Its owner alone, whatever the umask; and what somebody else made keeps its mode."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.embedded import EmbeddedRedis
from ratelimit_worker.private_files import make_folder, open_file
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.tracker import Tracker
from tests.builders import attempt


def mode(path: Path) -> str:
    return oct(path.stat().st_mode & 0o777)


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """A umask that allows all, the usual one, and one that would take the owner's own right to write."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_folders_and_files_are_their_owners_alone(tmp_path: Path, umask: int) -> None:
    """Each folder that was missing, and the file in it."""
    make_folder(tmp_path / "a" / "b")
    os.close(open_file(tmp_path / "a" / "b" / "file", os.O_WRONLY))
    assert [mode(tmp_path / name) for name in ("a", "a/b", "a/b/file")] == ["0o700", "0o700", "0o600"]


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    """A folder and a file that somebody opened up stay open."""
    folder, file = tmp_path / "shared", tmp_path / "shared" / "out.jsonl"
    folder.mkdir()
    folder.chmod(0o755)
    file.write_text("")
    file.chmod(0o644)
    make_folder(folder)
    os.close(open_file(file, os.O_RDWR | os.O_APPEND))
    engine_for(f"sqlite:///{folder}/tracking.db").dispose()
    assert (mode(folder), mode(file)) == ("0o755", "0o644")


def test_the_tracking_database(tmp_path: Path, umask: int) -> None:
    """The file, its write-ahead log and the shared memory beside it, and the folder that was made for them."""
    engine = engine_for(f"sqlite:///{tmp_path}/state/tracking.db")
    Tracker(engine).record([attempt("a")])
    found = {path.name: mode(path) for path in (tmp_path / "state").iterdir()}
    engine.dispose()
    assert found == dict.fromkeys(("tracking.db", "tracking.db-wal", "tracking.db-shm"), "0o600")
    assert mode(tmp_path / "state") == "0o700"


@pytest.mark.parametrize("umask", [0o000], indirect=True, ids=oct)
def test_the_embedded_server(tmp_path: Path, umask: int) -> None:
    """Its folders, its AOF, an RDB, its log and its socket."""
    with EmbeddedRedis(tmp_path / "deep" / "state") as server:
        client = redis.Redis(unix_socket_path=str(server.socket_path))
        client.set("a", "b")
        client.save()
        client.close()
        made = sorted((tmp_path / "deep").rglob("*"))
        assert {path.name for path in made} >= {"state", "redis", "server.log", "dump.rdb", "appendonlydir"}
        for path in (tmp_path / "deep", *made, server.socket_path):
            assert mode(path) == ("0o600" if path.is_file() else "0o700"), path


def test_the_answers_of_a_run(tmp_path: Path, umask: int) -> None:
    """OUT and the file beside it that a resume reads."""
    with Journal(tmp_path / "out.jsonl") as journal:
        journal.begin()
        assert {path.name: mode(path) for path in tmp_path.iterdir()} == {
            "out.jsonl": "0o600",
            "out.jsonl.run": "0o600",
        }


def test_a_file_made_through_a_link_to_nothing(tmp_path: Path) -> None:
    """It is made where the link leads."""
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.close(open_file(tmp_path / "link", os.O_WRONLY))
    assert mode(tmp_path / "target") == "0o600"


def test_the_log_of_a_simulated_provider(tmp_path: Path) -> None:
    """It is made by the command, before the first request."""
    log = tmp_path / "log.jsonl"
    command = [sys.executable, "-m", "ratelimit_worker.simulate", "--log", str(log), "--until-stdin-closes"]
    subprocess.run(command, input=b"", capture_output=True, timeout=120, check=True)
    assert mode(log) == "0o600"
