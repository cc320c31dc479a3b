"""One worker at a time records: the others have no need of the tracking database's library, and take over."""

from __future__ import annotations

from pathlib import Path

from tests.builders import ROOT
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet


def _started(made: Fleet, name: str) -> Worker:
    """A worker of its own interpreter: one that is forked has loaded what the others have."""
    worker = Worker(
        name, made.folder, {**made.env, "PYTHONPATH": str(ROOT)}, ("-P", "threads", "-c", "2"), place=made.folder
    )
    made.workers.append(worker)
    worker.wait_ready()
    return worker


def _has_loaded_database(worker: Worker) -> bool:
    return "/sqlalchemy/" in Path(f"/proc/{worker.process.pid}/maps").read_text()


def test_only_the_worker_that_records_loads_the_database() -> None:
    """The first loads it before it is ready. The second does without; killed, the first is replaced by it."""
    with fleet() as made:
        made.env["MAISD_DATABASE_URL"] = f"sqlite:///{made.folder}/tracking.db"
        first = _started(made, "first")
        assert _has_loaded_database(first)
        second = _started(made, "second")
        agent = made.agent()
        calls = [agent.echo.delay(number) for number in range(20)]
        assert [call.get(timeout=120) for call in calls] == list(range(20))
        wait_for(lambda: made.valkey.client.xlen("rlw:outbox") == 0, what=made.logs)
        assert not _has_loaded_database(second)
        first.kill()
        more = [agent.echo.delay(number) for number in range(5)]
        assert [call.get(timeout=120) for call in more] == list(range(5))
        wait_for(lambda: _has_loaded_database(second), what=made.logs)
        wait_for(lambda: made.valkey.client.xlen("rlw:outbox") == 0, what=made.logs)
