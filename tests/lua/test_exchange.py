"""Is a connection asked whether it lives only where nobody knows? On a real server."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

from ratelimit_worker.stores.exchange import Line, exchange
from ratelimit_worker.stores.server import RedisServer
from tests.conftest import wait_for
from tests.fleet import Valkey


@pytest.fixture
def client(tmp_path: Any) -> Any:
    """A client as the product makes it, of a server of its own."""
    valkey = Valkey(tmp_path)
    valkey.start()
    made = RedisServer(valkey.url).client()
    yield made
    made.close()
    valkey.stop()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections that redis-py has looked at, whether something can be read."""
    looked: list[Any] = []
    behind = AbstractConnection.can_read

    def can_read(self: Any, *args: Any, **kwargs: Any) -> bool:
        looked.append(self)
        return bool(behind(self, *args, **kwargs))

    monkeypatch.setattr(AbstractConnection, "can_read", can_read)
    return looked


def test_one_that_was_answered_a_moment_ago_is_used_as_it_is(client: redis.Redis, asked: list[Any]) -> None:
    """A later one is asked; so is one of which something else was asked in between."""
    exchange(client, ("SET", "a", 1))
    [connection] = client.connection_pool._available_connections
    before = len(asked)
    connection.answered_at = connection.answered_at + 60  # a moment ago, however slow the machine is
    assert exchange(client, ("GET", "a")) == [b"1"]
    assert len(asked) == before
    connection.answered_at -= 60
    exchange(client, ("GET", "a"))
    assert len(asked) == before + 1
    client.get("a")  # redis-py's own way, which says nothing
    assert connection.answered_at is None


def test_one_that_the_server_has_closed_is_made_anew(client: redis.Redis) -> None:
    """Who asks hears nothing of it, once the connection has been idle for a while."""
    exchange(client, ("SET", "a", 1))
    [connection] = client.connection_pool._available_connections
    [mine] = exchange(client, ("CLIENT", "ID"))
    with redis.Redis(port=connection.port) as other:
        assert other.client_kill_filter(_id=str(mine)) == 1
        wait_for(lambda: not other.client_list(client_id=[str(mine)]), what="it is closed")
    connection.answered_at -= 60
    assert exchange(client, ("GET", "a")) == [b"1"]


def test_a_line_keeps_its_connection(client: redis.Redis) -> None:
    """From exchange to exchange; when it is closed, the connection is the pool's again."""
    line = Line(client)
    ids = {line.answers([("CLIENT", "ID")])[0] for _ in range(3)}
    assert len(ids) == 1
    assert client.connection_pool._available_connections == []
    assert exchange(client, ("CLIENT", "ID"))[0] not in ids  # others have their own
    line.close()
    line.close()
    assert len(client.connection_pool._available_connections) == 2
    assert line.answers([("SET", "a", 1), ("INCR", "a", 1), ("GET", "a")])[::2] == [b"OK", b"1"]


def test_a_line_connects_again(client: redis.Redis) -> None:
    """The server has closed the connection; or a thread was interrupted before it had read all replies."""
    line = Line(client)
    [mine] = line.answers([("CLIENT", "ID")])
    connection = line._connection
    with redis.Redis(port=connection.port) as other:
        assert other.client_kill_filter(_id=str(mine)) == 1
        wait_for(lambda: not other.client_list(client_id=[str(mine)]), what="it is closed")
    connection.answered_at -= 60
    assert line.answers([("ECHO", "a")]) == [b"a"]
    connection.send_packed_command(connection.pack_commands([("ECHO", "left")]))
    wait_for(connection.can_read, what="the reply lies there")
    assert line.answers([("ECHO", "b")]) == [b"b"]
    assert line._connection is connection


@pytest.mark.parametrize("options", ["max_connections=3", "max_connections=49"])
def test_a_line_takes_no_connection_from_a_small_pool(client: redis.Redis, options: str) -> None:
    """Others might wait for it."""
    port = client.connection_pool.connection_kwargs["port"]
    small = RedisServer(f"redis://127.0.0.1:{port}/0?{options}").client()
    line = Line(small)
    assert line.answers([("ECHO", "a")]) == [b"a"]
    assert len(small.connection_pool._available_connections) == 1
    small.close()
