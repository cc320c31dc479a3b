"""Which answers are kept, and how are they forgotten? Keys `rlw:cache:*`; an entry is a hash with a field `context`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.scripts import Scripts

CACHE = keys.CACHE
AT_A_TIME = 500  #: keys; a large cache must not hold up everybody
BESIDE = frozenset(name.encode() for name in (keys.CACHE_USED, keys.CACHE_ENDS, keys.CACHE_SIZES))


class Size(NamedTuple):
    """How much is kept."""

    entries: int
    bytes: int


def forget(client: Redis, context: str | None = None, tag: str | None = None, func: str | None = None) -> int:
    """Forget kept answers of a context, with a tag, of a task (all that is told must hold; None: any) → how many.

    Where nothing is told, all go, and what else is kept beside them.

    Raises:
        redis.RedisError: Redis is away; what went until then stays gone.
    """
    run, gone = Scripts(client), 0
    everything = context is tag is func is None
    for page in _pages(client):
        entries = [name for name in page if name not in BESIDE]
        if not everything:
            entries = _that_match(client, entries, context, tag, func)
        if entries:
            gone += int(run("uncache", [name.removeprefix(CACHE.encode()) for name in entries]))
    if everything:
        client.unlink(*BESIDE)
    return gone


def size(client: Redis) -> Size:
    """Entries that are kept, and the bytes that they take, about.

    One past its time counts as long as it is kept for an emergency, and then until another is kept.

    Raises:
        redis.RedisError: Redis is away.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.zcard(keys.CACHE_USED)
        pipe.hget(keys.CACHE_SIZES, "all")
        entries, total = pipe.execute()
    return Size(int(entries), int(total or 0))


def _pages(client: Redis) -> Iterator[list[bytes]]:
    cursor = 0
    while True:
        page: Any = client.scan(cursor, match=CACHE + "*", count=AT_A_TIME)
        cursor, names = page
        if names:
            yield names
        if cursor == 0:
            return


def _that_match(
    client: Redis, names: list[bytes], context: str | None, tag: str | None, func: str | None
) -> list[bytes]:
    with client.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hmget(name, "context", "tags", "func")
        found = pipe.execute(raise_on_error=False)  # a key that is no entry is no hash

    def matches(said: Any) -> bool:
        if not isinstance(said, list):
            return False
        its_context, its_tags, its_func = (value.decode() if value else "" for value in said)
        return (
            (context is None or (said[0] is not None and its_context == context))
            and (tag is None or tag in msgspec.json.decode(its_tags or "[]"))
            and (func is None or func in (its_func, its_func.rpartition(".")[2]))
        )

    return [name for name, said in zip(names, found, strict=True) if matches(said)]
