"""Redis behind sentinels: the master is found by its name, and another takes its place while calls run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from ratelimit_worker import install
from ratelimit_worker.config import read_settings
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.server import RedisServer
from ratelimit_worker.worker.installed import services_of
from tests import leftovers
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet, repeated
from tests.sentinels import Watched, watched

pytestmark = pytest.mark.worker

CALLS = 400


@pytest.fixture
def scene() -> Iterator[tuple[Fleet, Watched]]:
    with fleet() as made, watched(made.valkey) as sentinels, pytest.MonkeyPatch.context() as patch:
        made.env["MAISD_REDIS_URL"] = sentinels.url
        patch.setenv("MAISD_REDIS_URL", sentinels.url)
        yield made, sentinels
        for worker in made.workers:
            worker.stop()


def has_caught_up(replication: dict[str, Any]) -> bool:
    """Whether the master's one replica has acknowledged all that was written, by `INFO replication`."""
    return int(replication["slave0"]["offset"]) >= int(replication["master_repl_offset"])


def test_a_fail_over_amid_400_calls_loses_none(scene: tuple[Fleet, Watched]) -> None:
    """The master is killed when a hundred have begun: each call is answered, whoever is the master then."""
    made, sentinels = scene
    workers = [made.worker(name, "-P", "threads", "-c", "8") for name in ("a", "b")]
    tasks = made.agent()
    results: list[Any] = []

    def send() -> None:
        results.extend(repeated(tasks.stamp.apply_async, str(number), 0.1) for number in range(CALLS))

    sender = threading.Thread(target=send)
    sender.start()
    wait_for(lambda: len(made.stamps()) > 100, what="a hundred have begun")
    # What the replica had not got is lost with the master, as documented; on a busy machine that may be much.
    master = made.valkey.client
    master.client_pause(60_000, all=False)
    wait_for(lambda: has_caught_up(master.info("replication")), what="the replica has all that was written")
    made.valkey.kill()
    wait_for(lambda: sentinels.named() == sentinels.replica.port, what="the replica is the master")
    sender.join(120)
    assert not sender.is_alive()
    assert len(results) == CALLS
    answers = [result.get(timeout=120) for result in results]
    assert len(answers) == CALLS
    begun = [what for _, what in made.stamps()]
    assert set(begun) == {str(number) for number in range(CALLS)}
    print(f"calls {CALLS}, answered {len(answers)}, lost {CALLS - len(answers)}, begun twice {len(begun) - CALLS}")
    for worker in workers:
        assert worker.process.poll() is None, worker.log()
    wait_for(lambda: not sentinels.replica.client.xlen("rlw:outbox"), what="rows are recorded")
    leftovers.check(sentinels.replica.client)


def test_a_sentinel_that_is_gone_is_passed_over(scene: tuple[Fleet, Watched]) -> None:
    """The address names three; the first does not answer."""
    made, sentinels = scene
    gone = RedisServer(f"sentinel://127.0.0.1:1;{sentinels.url}")
    with gone.client() as client:
        assert client.ping()
        assert client.connection_pool.get_master_address() == ("127.0.0.1", made.valkey.port)


def test_where_an_app_says_it_does_not_matter() -> None:
    """The name of the master in the address, or in the transport's options: what others read has it too."""
    for url, options in (
        ("sentinel://:pw@127.0.0.1:1;sentinel://127.0.0.1:2/3?master_name=m", {}),
        ("sentinel://:pw@127.0.0.1:1;127.0.0.1:2/3", {"master_name": "m"}),
    ):
        app = Celery("shop", broker=url, set_as_current=False)
        app.conf.broker_transport_options = options
        install(app, read_settings({}))
        server = services_of(app).server
        assert server.place == ("127.0.0.1:1", "127.0.0.1:2", "m", "3", "")
        assert app.conf.broker_transport_options["master_name"] == "m"
        params = server.parameters()
        assert (params["db"], params["password"]) == (3, "pw")
        assert app.connection_for_write().as_uri().endswith("@127.0.0.1:1/3")
        pool: Any = app.backend._get_pool(**app.backend.connparams)
        assert (pool.service_name, pool.connection_kwargs["db"], pool.connection_kwargs["password"]) == ("m", 3, "pw")


def test_a_name_that_no_sentinel_knows_is_said(scene: tuple[Fleet, Watched]) -> None:
    """And without a name none is asked."""
    _, sentinels = scene
    bare = sentinels.url.partition("?")[0]
    with (
        pytest.raises(Exception, match="No master found for 'other'"),
        RedisServer(bare, master="other").client() as one,
    ):
        one.ping()
    with pytest.raises(ConfigurationError, match="say which master"):
        RedisServer(bare).client()
