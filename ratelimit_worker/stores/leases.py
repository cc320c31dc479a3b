"""Named leases in Redis: one worker at a time holds a lease, and it ends by itself."""

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
        """Take the lease for this time, unless it is held already (even by this owner) → whether it is ours now."""
        with redis_errors():
            taken: Any = self._client.set(keys.duty(name), owner, nx=True, px=max(1, int(for_s * 1000)))
            return bool(taken)

    def hold(self, name: str, owner: str, for_s: float) -> bool:
        """Take or renew the lease for this time, if it is free or this owner's → whether it is ours now."""
        return self.take(name, owner, for_s) or self._if_mine(name, owner, for_s)

    def drop(self, name: str, owner: str) -> None:
        """Give the lease up, if it is this owner's."""
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
            except WatchError:  # it ended, and another has taken it
                return False

    def keep(self, name: str, owner: str, for_s: float) -> None:
        """Take the lease for this time, whoever held it."""
        with redis_errors():
            self._client.set(keys.duty(name), owner, px=max(1, int(for_s * 1000)))
