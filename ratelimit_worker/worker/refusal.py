"""A message that no worker can take is ended: its caller gets an error, and what its call held is free at once.

A released call has a slot, a permit and perhaps a claim. If it were left to its lease, it would be released again and
again.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from celery.app.task import Context

from ratelimit_worker.calls import Attempt, Outcome, Priority
from ratelimit_worker.contracts.call import REFS, Record
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.plan import HEADER, described
from ratelimit_worker.errors import BadInput, DeadlineExceeded, MessageRefused, RateLimitWorkerError
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.lanes import Lanes
from ratelimit_worker.wiring import Services
from ratelimit_worker.worker.fields import right_ones
from ratelimit_worker.worker.intake import prepared, read_json
from ratelimit_worker.worker.transport import unpack_body

log = logging.getLogger(__name__)

_TAG = re.compile(rb'"delivery_tag"\s*:\s*("(?:[^"\\\\]|\\\\.)*")')
_AGAIN = re.compile(rf"~[1-{REFS - 1}]$")  #: a reference beyond the first of its task id


def refuse(app: Any, answers: Answers, services: Callable[[], Services]) -> Callable[[Lanes, bytes, str | None], None]:
    """What the transport does with a message that no worker can take: (lanes, message, why; None: its deadline passed).

    Args:
        answers: Encodes the failure for calls that wait for the same answer.
        services: Returns those of the app, when they are needed.
    """

    def end(lanes: Lanes, raw: bytes, why: str | None) -> None:
        message = _read(raw)
        tag = _tag_of(message, raw)
        released = lanes.out(tag) if tag else None
        if released is None:
            headers = _headers(message)
            call_id = headers.get("id")
            # Another message with an id that waits or runs already: that one will be answered.
            if isinstance(call_id, str) and isinstance(headers.get("task"), str) and lanes.record(call_id) is None:
                _fail(app, call_id, MessageRefused(call_id, why or ""), request_of(raw, b""))
            return
        record = released.record
        known = released.message if _headers(_read(released.message)) else raw
        headers = _headers(_read(known))
        said = headers.get("id")
        call_id = said if isinstance(said, str) else _AGAIN.sub("", tag.rpartition(".")[0])
        error: RateLimitWorkerError = DeadlineExceeded(call_id, record.lane, record.number)
        if why is not None:
            error = MessageRefused(call_id, why)
        row = _row(lanes, record, call_id, str(headers.get("task") or ""), error, headers.get(HEADER))
        live = services()
        live.shelf.keep(tag, call_id, row.number)
        # In this order: settle, tell the caller, free. If this process dies in between, the lease brings the call to
        # another one, which does the rest. Followers of a call whose deadline has passed have their own deadlines.
        answer = b"" if why is None else answers.error(error)
        lanes.settle(
            Settlement(
                tag=tag, lane=record.lane, answer=answer, lesson=Lesson(), kind="error", outbox=live.encode_outcome(row)
            )
        )
        _fail(app, call_id, error, request_of(known, released.payload))
        lanes.free([tag])

    return end


def give_up(app: Any, live: Services, lanes: Lanes, tag: str, started_s: float) -> bool:
    """End a call that runs on beyond its deadline: row, caller's error, place in the ledger → False: it has ended.

    Args:
        started_s: When its attempt began, seconds since the epoch.
    """
    released = lanes.out(tag)
    if released is None or lanes.client.exists(keys.settled(tag.rpartition(".")[0])):
        return False
    record = released.record
    headers = _headers(_read(released.message))
    said = headers.get("id")
    call_id = said if isinstance(said, str) else _AGAIN.sub("", tag.rpartition(".")[0])
    error = DeadlineExceeded(call_id, record.lane, record.number)
    row = _row(lanes, record, call_id, str(headers.get("task") or ""), error, headers.get(HEADER))
    waited_s = max(0.0, started_s - record.since_s)
    row = replace(row, number=record.number, started_at=started_s, waited_s=waited_s)
    live.shelf.keep(tag, call_id, row.number)
    # As if its deadline had passed while it waited: its followers have their own deadlines.
    outbox = live.encode_outcome(row)
    lanes.settle(Settlement(tag=tag, lane=record.lane, answer=b"", lesson=Lesson(), kind="error", outbox=outbox))
    _fail(app, call_id, error, request_of(released.message, released.payload))
    lanes.free([tag])
    return True


def request_of(raw: bytes, payload: bytes) -> dict[str, Any]:
    """A request made from a call's message and payload: its canvas, and where its result goes.

    Result backends need it: one that sends results (`rpc://`) has no other way to the caller.
    """
    message = _read(raw)
    properties = message.get("properties") if isinstance(message, dict) else None
    sent = properties if isinstance(properties, dict) else {}
    back = {name: sent[name] for name in ("reply_to", "correlation_id") if isinstance(sent.get(name), str)}
    return {**_headers(message), **back, **_canvas(payload)}


def _read(raw: bytes) -> Any:
    try:
        return prepared(read_json(raw))
    except (ValueError, RecursionError):
        return None


def _headers(message: Any) -> dict[str, Any]:
    found = message.get("headers") if isinstance(message, dict) else None
    return dict(found) if isinstance(found, dict) else {}


def _tag_of(message: Any, raw: bytes) -> str:
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    if isinstance(tag, str):
        return tag
    found = _TAG.search(raw)
    try:
        return str(json.loads(found.group(1))) if found else ""
    except ValueError:
        return ""


def _canvas(payload: bytes) -> dict[str, Any]:
    """Callbacks, errbacks, chain and chord of a call, if its payload can be read."""
    try:
        _, _, canvas = read_json(unpack_body(payload))
    except (BadInput, ValueError, TypeError, RecursionError):
        return {}
    return dict(canvas) if isinstance(canvas, Mapping) else {}


def _row(lanes: Lanes, record: Record, call_id: str, task: str, error: RateLimitWorkerError, header: Any) -> Attempt:
    """One more row of the call, although nothing was sent."""
    now_s = redis_now_s(lanes.client)
    said = described(header)
    return Attempt(
        call_id=call_id,
        number=record.number + 1,
        lane=record.lane,
        task=task,
        outcome=Outcome.FAILED,
        started_at=now_s,
        finished_at=now_s,
        waited_s=max(0.0, now_s - record.since_s),
        queue=record.queue,
        context=said.context,
        tags=said.tags,
        tenant=record.tenant,
        priority=Priority(record.priority),
        cause=f"{type(error).__name__}: {error.why}" if isinstance(error, MessageRefused) else type(error).__name__,
    )


def context_of(call_id: str, request: Mapping[str, Any]) -> Context:
    """A request for result backends; invalid fields are left out."""
    return Context({**right_ones(request), "id": call_id})


def _fail(app: Any, call_id: str, error: RateLimitWorkerError, request: Mapping[str, Any]) -> None:
    try:
        app.backend.mark_as_failure(call_id, error, request=context_of(call_id, request))
    except Exception as wrong:  # headers may be anything, and must not stop the worker
        log.warning("message.caller_not_told", extra={"call_id": call_id, "cause": type(wrong).__name__})
