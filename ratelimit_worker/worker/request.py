"""The request of a call in Celery's parent process, with the canvas that is needed when a child is lost.

The message of a call only holds a reference; callbacks, errbacks and chord are in the payload. Stock Celery reads them
from the message when it has to report a failure (a lost child, a revoked call) in place of the child.
"""

from __future__ import annotations

from typing import Any

from celery.worker.request import Request
from kombu.utils.json import loads
from kombu.utils.objects import cached_property
from redis import RedisError

from ratelimit_worker.contracts.plan import HEADER, Plan
from ratelimit_worker.stores import keys
from ratelimit_worker.worker.installed import services_of
from ratelimit_worker.worker.transport import unpack_body


class CallRequest(Request):
    """A request whose body is in Redis."""

    @cached_property
    def _payload(self) -> Any:
        tag = self._request_dict.get("properties", {}).get("delivery_tag", "")
        ref = tag.rpartition(".")[0]
        try:
            payload: Any = services_of(self._app).redis.get(keys.payload(ref))
        except (RedisError, OSError):
            payload = None
        if payload is None:
            return (self._args, self._kwargs, {})
        return loads(unpack_body(payload).decode())


def plan_of(request: Request) -> Plan | None:
    """The plan of a request in this worker, decoded once; None: it is an ordinary task."""
    known: dict[str, Any] = vars(request)
    if "rlw_plan" not in known:
        header = request.request_dict.get(HEADER)
        known["rlw_plan"] = Plan.decode(header) if header is not None else None
    found: Plan | None = known["rlw_plan"]
    return found
