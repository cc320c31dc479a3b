"""How is the result of a call stored? As Celery's Redis backend does it, in one round trip where that takes two."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.backends.redis import RedisBackend
from celery.exceptions import BackendStoreError

from ratelimit_worker.stores.exchange import exchange
from ratelimit_worker.worker.transport import HEADER

#: `override_backends`: what Celery takes in place of its own for these result backends.
BACKENDS = dict.fromkeys(("redis", "rediss", "redis+socket"), f"{__name__}:Backend")


class Backend(RedisBackend):
    """Celery's own, but for what it does when a call has its answer."""

    def _store_result(
        self, task_id: str, result: Any, state: str, traceback: Any = None, request: Any = None, **kwargs: Any
    ) -> Any:
        # Celery reads what is stored first, lest a task that was lost and ran again overwrites its earlier success. Of
        # a call SETTLE lets one answer through, which each of its deliveries returns.
        if state != states.SUCCESS or request is None or request.get(HEADER) is None:
            return super()._store_result(task_id, result, state, traceback=traceback, request=request, **kwargs)
        meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
        meta["task_id"] = task_id
        try:
            # Bytes, made once: SET and PUBLISH would each make their own of a text, and the text would stay.
            stored = self.encode(meta).encode()
            self._set_with_state(self.get_key_for_task(task_id), stored, state)
        except BackendStoreError as error:
            raise BackendStoreError(str(error), state=state, task_id=task_id) from error
        return result

    def _set(self, key: Any, value: Any, expires: int | None = None) -> None:
        lifetime = self.expires if expires is None else expires
        exchange(self.client, ("SET", key, value, *(("EX", lifetime) if lifetime else ())), ("PUBLISH", key, value))
