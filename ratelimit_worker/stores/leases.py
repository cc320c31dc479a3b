"""Whose turn is it? A named lease on Redis: one of all workers holds it, and it ends by itself."""

from __future__ import annotations

from typing import Any

from redis import Redis, WatchError

from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors


class Leases:
    """Leases of one Redis server, at `rlw:duty:NAME`. All methods raise `StoreUnavailable` where it is away."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def take(self, name: str, owner: str, for_s: float) -> bool:
        """Hold the lease for so long, unless somebody holds it already (this owner too) → whether it is ours now."""
        with redis_errors():
            taken: Any = self._client.set(keys.duty(name), owner, nx=True, px=max(1, int(for_s * 1000)))
            return bool(taken)

    def hold(self, name: str, owner: str, for_s: float) -> bool:
        """Hold the lease for so long from now on, if it is this owner's or nobody's → whether it is ours now."""
        return self.take(name, owner, for_s) or self._if_mine(name, owner, for_s)

    def drop(self, name: str, owner: str) -> None:
        """Let the next one have it, if it is this owner's."""
        self._if_mine(name, owner, 0.0)

    def _if_mine(self, name: str, owner: str, for_s: float) -> bool:
        key = keys.duty(name)
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(key)  # type: ignore[no-untyped-call]
                if pipe.get(key) != owner.encode():
                    return False
                pipe.multi()
                pipe.pexpire(key, int(for_s * 1000))  # 0 deletes it
                return bool(pipe.execute()[0])
            except WatchError:  # it ended, and somebody took it
                return False

    def keep(self, name: str, owner: str, for_s: float) -> None:
        """Hold the lease for so long from now on, whoever held it last."""
        with redis_errors():
            self._client.set(keys.duty(name), owner, px=max(1, int(for_s * 1000)))
