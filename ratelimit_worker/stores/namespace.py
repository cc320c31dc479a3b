"""Namespaces, by which two deployments can share a database of one server: all keys of one begin with its namespace.

A client adds it to every key and channel that it sends, so the stores need not know about it. Scripts add it themselves
(`K`), since their keys are not passed as arguments. A command is refused if the positions of its keys are not listed
here, since it could reach into the other deployment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.client import Pipeline, PubSub

#: Commands by the positions of their keys (or channels).
_FIRST = frozenset(
    {
        *("GET", "SET", "INCR", "INCRBY", "TYPE", "TTL", "PTTL", "EXPIRE", "PEXPIRE", "PUBLISH"),
        *("HGET", "HSET", "HDEL", "HGETALL", "HMGET", "HKEYS", "HLEN", "HINCRBY", "HSETNX"),
        *("SADD", "SREM", "SMEMBERS", "SISMEMBER", "SCARD"),
        *("LPUSH", "RPUSH", "LPOP", "RPOP", "LLEN", "LRANGE", "LTRIM", "LREM"),
        *("ZADD", "ZREM", "ZCARD", "ZCOUNT", "ZSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZREMRANGEBYRANK", "ZSCAN"),
        *("XADD", "XLEN", "XRANGE", "XREVRANGE", "XDEL", "XACK", "XCLAIM", "XAUTOCLAIM", "XTRIM", "XPENDING"),
        *("XGROUP CREATE", "XGROUP DESTROY", "XGROUP DELCONSUMER", "XINFO STREAM", "XINFO GROUPS"),
    }
)
_ALL = frozenset({"DEL", "UNLINK", "RENAMENX", "EXISTS", "MGET", "WATCH", "SUBSCRIBE", "UNSUBSCRIBE"})
_ALL_BUT_LAST = frozenset({"BRPOP", "BLPOP"})
_AFTER_STREAMS = frozenset({"XREAD", "XREADGROUP"})  #: keys are the first half of the words after STREAMS
_NONE = frozenset(
    {
        *("FCALL", "FUNCTION LOAD", "PING", "TIME", "INFO", "HELLO", "AUTH", "SELECT", "UNWATCH", "WAIT"),
        *("CONFIG GET", "FLUSHALL", "FUNCTION FLUSH"),
    }
)


def named(namespace: str, command: Sequence[Any]) -> list[Any]:
    """A command, as redis-py writes it, with the namespace before each key.

    Raises:
        NotImplementedError: the positions of its keys are not listed here.
    """
    name, *rest = command
    if name in _NONE:
        return [*command]
    if name in _FIRST:
        return [name, _with(namespace, rest[0]), *rest[1:]]
    if name in _ALL:
        return [name, *(_with(namespace, key) for key in rest)]
    if name in _ALL_BUT_LAST:
        return [name, *(_with(namespace, key) for key in rest[:-1]), rest[-1]]
    if name in _AFTER_STREAMS:
        at = next(i for i, word in enumerate(rest) if word in ("STREAMS", b"STREAMS")) + 1
        end = at + (len(rest) - at) // 2
        return [name, *rest[:at], *(_with(namespace, key) for key in rest[at:end]), *rest[end:]]
    raise NotImplementedError(f"{name}: where its keys stand is not known, and it would leave its namespace")


def _with(namespace: str, key: Any) -> Any:
    return namespace.encode() + key if isinstance(key, bytes) else f"{namespace}{key}"


def namespace_of(client: Redis) -> str:
    """The namespace of a client; "": it has none."""
    found: str = getattr(client, "namespace", "")
    return found


class _Pipeline(Pipeline):
    namespace = ""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*named(self.namespace, args), **options)  # type: ignore[no-untyped-call]


class _PubSub(PubSub):
    namespace = ""

    def execute_command(self, *args: Any) -> Any:
        return super().execute_command(*named(self.namespace, args))  # type: ignore[no-untyped-call]


class Namespaced(Redis):
    """A client of one deployment. Names in replies still have the namespace."""

    def __init__(self, *args: Any, namespace: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.namespace = namespace

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's, within the namespace."""
        return super().execute_command(*named(self.namespace, args), **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """As redis-py's, within the namespace."""
        made = _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)
        made.namespace = self.namespace
        return made

    def pubsub(self, **options: Any) -> PubSub:
        """As redis-py's, within the namespace."""
        made = _PubSub(self.connection_pool, **options)
        made.namespace = self.namespace
        return made
