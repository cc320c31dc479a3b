"""What becomes of rows when somebody deletes, replaces, empties or protects the SQLite file under a recorder?"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import redis

from ratelimit_worker.config import read_settings
from ratelimit_worker.flow.duty.record import Recorder
from ratelimit_worker.reports.doctor import Code, Grade, judge_file
from ratelimit_worker.reports.stats import Sources, status
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker, engine_for
from ratelimit_worker.wiring import Services
from tests.builders import attempts

pytestmark = pytest.mark.server


class Scene:
    """A recorder with rows in its database, a reader beside it, and another recorder of the same file."""

    def __init__(self, folder: Path, client: redis.Redis, url: str) -> None:
        self.path = folder / "state" / "tracking.sqlite3"
        environ = {"MAISD_REDIS_URL": url, "MAISD_STATE_DIR": str(folder / "state")}
        self.services = Services(read_settings(environ))
        self.outbox = Outbox(client)
        self.recorder = Recorder(self.outbox, self.services.tracker, block_ms=0)
        self.reader = Queries(engine_for(f"sqlite:///{self.path}"))
        self.other = Recorder(self.outbox, Tracker(engine_for(f"sqlite:///{self.path}")), block_ms=0)
        self.count = 0

    def make(self, number: int) -> None:
        """So many outcomes more are in the outbox."""
        self.outbox.append(attempts(self.count + number)[self.count :])
        self.count += number

    def record(self, recorder: Recorder) -> None:
        """All that waits; with what was noticed on the way."""
        for _ in range(5):
            if self.outbox.backlog():
                recorder.step()
        assert self.outbox.backlog() == 0

    def seen(self) -> int:
        """What a reader that was open all along sees."""
        return self.reader.count(0.0, 200.0)

    def in_file(self) -> int:
        """What somebody sees who opens the file now."""
        with sqlite3.connect(self.path) as fresh:
            found = fresh.execute("SELECT count(*) FROM attempts").fetchone()[0]
        fresh.close()
        return int(found)


@pytest.fixture
def scene(tmp_path: Path, redis_client: redis.Redis, redis_server: str) -> Scene:
    made = Scene(tmp_path, redis_client, f"unix://{redis_server}")
    made.make(5)
    made.recorder.step()
    made.make(1)
    made.other.step()
    assert (made.seen(), made.in_file()) == (6, 6)
    return made


def delete(path: Path) -> None:
    path.unlink()


def delete_all(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        path.with_name(path.name + ending).unlink(missing_ok=True)


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_by_nothing(path: Path) -> None:
    delete_all(path)
    path.touch()


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * 8192)


HARM = [
    (delete, "deleted"),
    (delete_all, "deleted"),
    (delete_folder, "deleted"),
    (replace_by_nothing, "replaced"),
    (truncate, "truncated"),
]


@pytest.mark.parametrize(("harm", "word"), HARM, ids=lambda value: getattr(value, "__name__", value))
def test_a_lost_file_is_made_anew_and_said(
    scene: Scene, harm: object, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next rows are in a new file, each once, for both recorders and every reader; the log, status and doctor say
    what was lost."""
    harm(scene.path)  # type: ignore[operator]
    scene.make(3)
    scene.record(scene.recorder)
    assert (scene.in_file(), scene.seen()) == (3, 3)
    scene.make(2)
    scene.record(scene.other)
    assert (scene.in_file(), scene.seen()) == (5, 5)
    lost = [record.getMessage() for record in caplog.records if record.getMessage().startswith("database.lost")]
    assert len(lost) == 2  # each recorder says it once
    assert f"was {word}" in lost[0]
    live = Live(scene.services.redis)
    _, notes = status(Sources.of(scene.reader, live))
    assert len(notes) == 1
    assert f"was {word}" in notes[0]
    (finding,) = judge_file(scene.reader.protected_file(), live.database_lost())
    assert (finding.level, finding.code) == (Grade.NOTE, Code.FINE)
    assert "its rows are missing" in finding.says


def test_a_backup_that_was_put_in_its_place_is_used(scene: Scene, tmp_path: Path) -> None:
    """Rows that it holds are there, and new ones come to them."""
    with sqlite3.connect(scene.path) as source, sqlite3.connect(tmp_path / "backup") as backup:
        source.backup(backup)
    source.close()
    backup.close()
    scene.make(4)
    scene.recorder.step()
    delete_all(scene.path)
    shutil.copy(tmp_path / "backup", scene.path)
    scene.make(1)
    scene.record(scene.recorder)
    assert (scene.in_file(), scene.seen()) == (7, 7)


def test_a_damaged_file_is_kept_beside_a_new_one(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Somebody may mend it; until then rows go to a file that takes them."""
    scene.other._tracker._engine.dispose()  # type: ignore[attr-defined]
    with sqlite3.connect(scene.path) as sole:
        sole.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sole.close()
    damage(scene.path)
    scene.services.tracker._engine.dispose()  # pages in its cache would hide it for a while
    scene.make(3)
    scene.recorder.step()
    scene.record(scene.recorder)
    assert scene.in_file() == 3
    kept = [path.name for path in scene.path.parent.iterdir() if ".damaged-" in path.name]
    assert kept
    assert any("was damaged: it is kept as" in message for message in caplog.messages)


def test_rows_that_are_written_to_a_file_on_its_way_out_are_written_again(scene: Scene) -> None:
    """Between the look before a batch and the end of it: the outcomes are not forgotten."""
    tracker, begin = scene.services.tracker, scene.services.tracker._engine.begin

    def late() -> object:
        tracker._engine.begin = begin  # type: ignore[method-assign]
        opened = begin()
        entered = opened.__enter__()
        scene.path.unlink()

        class Opened:
            def __enter__(self) -> object:
                return entered

            def __exit__(self, *why: object) -> object:
                return opened.__exit__(*why)  # type: ignore[arg-type]

        return Opened()

    tracker._engine.begin = late  # type: ignore[assignment]
    scene.make(3)
    scene.recorder.step()
    assert scene.outbox.backlog() == 3
    scene.recorder.step()
    assert (scene.outbox.backlog(), scene.in_file()) == (0, 3)


def test_a_file_made_read_only_is_noticed_while_it_is_open(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Outcomes wait, log and doctor say why; they come when it may be written again."""
    scene.path.chmod(0o400)
    scene.make(3)
    scene.recorder.step()
    scene.recorder.step()
    assert scene.outbox.backlog() == 3
    said = [message for message in caplog.messages if message.startswith("recorder.away")]
    assert len(said) == 1
    assert "is read-only: make it writable (chmod u+w)" in said[0]
    (finding,) = judge_file(scene.reader.protected_file(), None)
    assert (finding.level, finding.code) == (Grade.WRONG, Code.FAILED)
    assert scene.seen() == 6
    scene.path.chmod(0o600)
    scene.recorder.step()
    assert (scene.outbox.backlog(), scene.in_file()) == (0, 9)


def test_nothing_is_noticed_of_what_is_no_change(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Check-points, a VACUUM, other processes that come and go, and the end of all connections."""
    for _ in range(3):
        with sqlite3.connect(scene.path) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            other.execute("VACUUM")
        other.close()
        scene.make(2)
        scene.recorder.step()
    scene.services.tracker._close()
    scene.other._tracker._close()  # type: ignore[attr-defined]
    scene.make(1)
    scene.recorder.step()
    assert scene.in_file() == 13
    assert not [message for message in caplog.messages if message.startswith("database.lost")]
