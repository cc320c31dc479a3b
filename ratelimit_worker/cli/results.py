"""Which calls have ended? Celery's results of many calls, read in one request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from celery import Celery
from celery.backends.redis import RedisBackend
from celery.states import READY_STATES
from msgspec import Struct

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.reach import redis_errors

_FEWEST, _MOST = 32, 2_000  #: calls in one request to Redis: at first, and at most
_MOST_BYTES = 8 * 1024 * 1024  #: size of the answers in one reply, estimated by the largest so far


class _State(msgspec.Struct):
    status: str


_decode_state = msgspec.json.Decoder(_State).decode


class Settled(Struct, frozen=True):
    """A call that has ended, with its answer or its error."""

    call_id: str
    value: Any = None
    error: BaseException | None = None


class Results:
    """The results of an app.

    Raises:
        ConfigurationError: they are not in Redis.
    """

    def __init__(self, app: Celery) -> None:
        self._backend: Any = app.backend
        if not isinstance(self._backend, RedisBackend):
            raise ConfigurationError(
                f"results are kept by {type(self._backend).__name__}; this command reads them from Redis: "
                "unset CELERY_RESULT_BACKEND"
            )
        # Celery would subscribe for each call: a round trip each, and messages that are never read fill the server's
        # buffers.
        self._backend.on_task_call = _no_subscription
        self._largest = 0  #: bytes of the largest answer so far
        #: How many calls to ask for in one request: few until the size of answers is known, and never so many that they
        #: could fill the memory.
        self.at_once = _FEWEST

    def settled(self, call_ids: Sequence[str]) -> list[Settled]:
        """Those of these calls that have ended.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if not call_ids:
            return []
        with redis_errors():
            found: list[bytes | None] = self._backend.mget([self._key(call_id) for call_id in call_ids])
        if any(found):
            self._largest = max(self._largest, *(len(raw) for raw in found if raw))
            self.at_once = max(1, min(2 * self.at_once, _MOST, _MOST_BYTES // self._largest))
        return [self._read(call_id, raw) for call_id, raw in zip(call_ids, found, strict=True) if raw and _over(raw)]

    def over(self, call_ids: Sequence[str]) -> set[str]:
        """Ids of those of the calls that have ended, without their answers.

        Raises:
            StoreUnavailable: Redis is away.
        """
        found, left = set[str](), list(call_ids)
        while left:
            asked, left = left[: self.at_once], left[self.at_once :]
            found |= {settled.call_id for settled in self.settled(asked)}
        return found

    def forget(self, call_ids: Sequence[str]) -> None:
        """Delete these results.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if call_ids:
            with redis_errors():
                self._backend.client.delete(*(self._key(call_id) for call_id in call_ids))

    def _key(self, call_id: str) -> Any:
        return self._backend.get_key_for_task(call_id)

    def _read(self, call_id: str, raw: bytes) -> Settled:
        result = self._backend.decode_result(raw).get("result")
        return Settled(call_id, error=result) if isinstance(result, BaseException) else Settled(call_id, result)


def _no_subscription(producer: Any, call_id: str) -> None:
    """Replaces the backend's `on_task_call`."""


def _over(raw: bytes) -> bool:
    # A call that waits for its next attempt has a result too; decoding its exception each time would cost too much.
    return _decode_state(raw).status in READY_STATES
