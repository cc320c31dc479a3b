"""Tasks that retry by themselves, for `doctor`: each worker stores those that it knows when it starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors

TTL_S = 30 * 86_400  #: after the last worker's start
MOST_KEPT = 1_000


class OwnRules:
    """The hash `rlw:retries`. All methods raise `StoreUnavailable` where Redis is away, full or read-only."""

    def __init__(self, client: Redis) -> None:
        self._client, self._key = client, keys.RETRIES

    def tell(self, known: Iterable[str], rules: Mapping[str, str]) -> None:
        """Store how tasks retry.

        Args:
            known: All tasks that this worker knows; rules of those not in `rules` are removed.
            rules: In words, by task.
        """
        none = [name for name in known if name not in rules]
        with redis_errors(), self._client.pipeline(transaction=False) as pipe:
            if none:
                pipe.hdel(self._key, *none)
            pipe.hlen(self._key)
            left = max(0, MOST_KEPT - int(pipe.execute()[-1]))
            if rules and left:
                pipe.hset(self._key, mapping=dict(list(rules.items())[:left]))
            pipe.expire(self._key, TTL_S)
            pipe.execute()

    def read(self) -> dict[str, str]:
        """Rules in words, by task."""
        with redis_errors():
            raw: Any = self._client.hgetall(self._key)
        return {name.decode(): words.decode() for name, words in sorted(raw.items())}
