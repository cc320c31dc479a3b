"""Where are the messages of calls kept that have failed for good, so that a person can run them again?

On a shelf in Redis, bounded by number, bytes and time. The tracking database never has them, since they hold prompts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.exceptions import RedisError

from ratelimit_worker.contracts.call import US
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import first_line, redis_errors
from ratelimit_worker.stores.scripts import Scripts

log = logging.getLogger(__name__)


class Bounds(NamedTuple):
    """What the shelf takes."""

    most: int  #: calls
    most_bytes: int  #: of all together
    kept_s: int  #: how long, seconds

    @property
    def is_open(self) -> bool:
        """Whether it takes anything."""
        return min(self) > 0


class Shelved(NamedTuple):
    """A call that can be run again."""

    call_id: str
    message: bytes  #: its message without the body
    payload: bytes  #: args, kwargs, canvas, as they are stored
    queue: str
    attempts: int  #: made at it
    deadline_s: float  #: how long it had, from its acceptance


class Shelf:
    """The shelf of one server.

    Args:
        time_us: The present time, µs since the epoch; 0: the server's clock. Tests set it.
    """

    def __init__(self, client: Redis, bounds: Bounds, time_us: int = 0) -> None:
        self._client, self._bounds = client, bounds
        self._run = Scripts(client, time_us)

    def keep(self, tag: str, call_id: str, attempts: int) -> bool:
        """Keep a call that is out and about to fail for good → whether it is kept.

        If Redis is away or full, that is logged and the call is not kept, since its failure must not wait.

        Args:
            attempts: Attempts made at it; the next one gets the following number.
        """
        if not self._bounds.is_open:
            return False
        try:
            return bool(self._run("shelve", (tag, call_id, attempts, *self._bounds)))
        except (RedisError, OSError) as error:
            cause = f"{type(error).__name__}: {first_line(error)}"
            log.warning("shelf.not_kept cause=%s", cause, extra={"call_id": call_id, "cause": cause})
            return False

    def forget(self, call_id: str) -> None:
        """Forget a call.

        Raises:
            StoreUnavailable: Redis is away.
        """
        with redis_errors():
            self._run("shelve", ("", call_id, 0, *self._bounds))

    def take(self, call_id: str) -> Shelved | None:
        """What is kept of a call, which stays on the shelf; None: nothing is.

        Raises:
            StoreUnavailable: Redis is away.
        """
        with redis_errors():
            found: Any = self._client.hgetall(keys.shelved(call_id))
        if not found:
            return None
        return Shelved(call_id, found[b"m"], found[b"p"], found[b"q"].decode(), int(found[b"n"]), int(found[b"d"]) / US)

    def holds(self, call_ids: Sequence[str]) -> set[str]:
        """Which of these calls are kept, in one round trip.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if not call_ids:
            return set()
        with redis_errors(), self._client.pipeline(transaction=False) as pipe:
            for call_id in call_ids:
                pipe.exists(keys.shelved(call_id))
            return {call_id for call_id, there in zip(call_ids, pipe.execute(), strict=True) if there}
