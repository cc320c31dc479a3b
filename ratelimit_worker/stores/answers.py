"""Which answers are kept, and how are they forgotten? Keys `rlw:cache:*`; an entry is a hash with a field `context`."""

from __future__ import annotations

from typing import Any

from redis import Redis

from ratelimit_worker.stores import keys

CACHE = keys.NAMESPACE + "cache:"
AT_A_TIME = 500  #: keys; a large cache must not hold up everybody


def forget(client: Redis, context: str | None = None) -> int:
    """Forget kept answers of one context; None: all, and what else is kept beside them → keys that went.

    Raises:
        redis.RedisError: Redis is away; what went until then stays gone.
    """
    gone, cursor = 0, 0
    while True:
        page: Any = client.scan(cursor, match=CACHE + "*", count=AT_A_TIME)
        cursor, names = page
        if names and context is not None:
            with client.pipeline(transaction=False) as pipe:
                for name in names:
                    pipe.hget(name, "context")
                found = pipe.execute(raise_on_error=False)  # a key that is no entry is no hash
            wanted = context.encode()
            names = [name for name, said in zip(names, found, strict=True) if said == wanted]
        if names:
            gone += int(client.unlink(*names))
        if cursor == 0:
            return gone
