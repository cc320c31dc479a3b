"""The duty of the recorder, on a real server: who has it, who gets it next, and what is recorded at the end."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from ratelimit_worker.config import read_settings
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.duties import Recording
from tests.builders import attempts


@pytest.fixture
def services(redis_client: redis.Redis, tmp_path: Path) -> Services:
    """Of a worker whose database is a file of this test."""
    return _with_database(redis_client, f"sqlite:///{tmp_path}/tracking.db")


def _with_database(client: redis.Redis, url: str) -> Services:
    place = client.connection_pool.connection_kwargs["path"]
    return Services(read_settings({"MAISD_REDIS_URL": f"unix://{place}", "MAISD_DATABASE_URL": url}))


def _put(services: Services, count: int) -> None:
    services.outbox.append(attempts(count))


def test_one_worker_has_the_duty_and_only_it_opens_the_database(services: Services) -> None:
    """Whoever asked first; another gets it when that worker ends, or when its start failed."""
    first, second = Recording(services, "w1"), Recording(services, "w2")
    assert first.ask()
    assert not second.ask()
    assert (first.has_had, second.has_had) == (True, False)
    first.stop()  # its thread has never begun
    assert second.ask()
    second.stop()


def test_a_worker_that_cannot_reach_its_database_leaves_the_duty_to_others(
    services: Services, redis_client: redis.Redis, tmp_path: Path
) -> None:
    """Its database may be away from here only; the other records what waited."""
    (tmp_path / "folder.db").mkdir()
    lonely = Recording(_with_database(redis_client, f"sqlite:///{tmp_path}/folder.db"), "w1")
    other = Recording(services, "w2")
    _put(services, 3)
    assert lonely.ask()
    assert lonely.step() > 0.0
    assert other.ask()
    other.recorder().finish()
    assert [len(services.tracker.attempts_of(f"c-{number}")) for number in range(3)] == [1, 1, 1]
    other.stop()


def test_the_last_worker_records_what_waits_and_another_leaves_it(services: Services) -> None:
    """A worker without the duty takes it at its end, if nobody has it and there are rows."""
    has, ends = Recording(services, "w1"), Recording(services, "w2")
    assert has.ask()
    _put(services, 2)
    ends.close()
    assert services.outbox.backlog() == 2, "the other has the duty"
    has.stop()
    ends.close()
    assert services.outbox.backlog() == 0
    assert Recording(services, "w3").ask(), "the duty is free again"
    has.client.delete("rlw:duty:record")


def test_a_worker_that_ends_with_nothing_to_record_opens_no_database(services: Services) -> None:
    """Its end takes no longer for that."""
    ends = Recording(services, "w1")
    ends.close()
    assert not ends.has_had
