"""Kept answers: how many there are, and how they are deleted. Keys `rlw:cache:*`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from redis import Redis

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.scripts import Scripts

AT_A_TIME = 500  #: entries in one script, so that a large cache does not block the server
BESIDE = (keys.CACHE_USED, keys.CACHE_ENDS, keys.CACHE_SIZES)


class CacheSize(NamedTuple):
    """How much is kept."""

    entries: int
    bytes: int


def forget(client: Redis, context: str | None = None, tag: str | None = None, func: str | None = None) -> int:
    """Delete kept answers of a context, with a tag, of a task (all conditions must hold; None: any) → how many.

    Without a condition, all are deleted, with their index.

    Raises:
        redis.RedisError: Redis is away; entries deleted until then stay deleted.
    """
    run, gone = Scripts(client), 0
    everything = context is tag is func is None
    for page in _pages(client):
        entries = page if everything else _that_match(client, page, context, tag, func)
        if entries:
            gone += int(run("uncache", entries))
    if everything:
        client.unlink(*BESIDE)
    return gone


def size(client: Redis) -> CacheSize:
    """The number of entries, and about how many bytes they take.

    An entry past its time counts while it is kept for an emergency, and after that until the next answer is kept.

    Raises:
        redis.RedisError: Redis is away.
    """
    with client.pipeline(transaction=False) as pipe:
        pipe.zcard(keys.CACHE_USED)
        pipe.hget(keys.CACHE_SIZES, "all")
        entries, total = pipe.execute()
    return CacheSize(int(entries), int(total or 0))


def _pages(client: Redis) -> Iterator[list[str]]:
    """The fingerprints of all entries. Not by SCAN, since the server may hold millions of other keys."""
    cursor = 0
    while True:
        page: Any = client.zscan(keys.CACHE_USED, cursor, count=AT_A_TIME)
        cursor, pairs = page
        if pairs:
            yield [member.decode() for member, _ in pairs]
        if cursor == 0:
            return


def _that_match(client: Redis, entries: list[str], context: str | None, tag: str | None, func: str | None) -> list[str]:
    with client.pipeline(transaction=False) as pipe:
        for entry in entries:
            pipe.hmget(keys.cache(entry), "context", "tags", "func")
        found = pipe.execute()

    def matches(said: Any) -> bool:
        its_context, its_tags, its_func = (value.decode() if value else "" for value in said)
        return (
            (context is None or (said[0] is not None and its_context == context))
            and (tag is None or tag in msgspec.json.decode(its_tags or "[]"))
            and (func is None or func in (its_func, its_func.rpartition(".")[2]))
        )

    return [entry for entry, said in zip(entries, found, strict=True) if matches(said)]
