"""The time of Redis' clock, the one clock that all processes share."""

from __future__ import annotations

from redis import Redis


def redis_now_s(client: Redis) -> float:
    """Seconds since the epoch, by the server's clock. One exchange.

    Raises:
        redis.RedisError: as redis-py does.
    """
    seconds, micros = client.time()
    return float(seconds) + float(micros) / 1e6
