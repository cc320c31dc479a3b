"""What becomes of a message that cannot be taken? Whoever waits for it gets an error, and what it held is free at once.

A call that was released has a slot, a permit and perhaps a claim. Left to its lease it would be released again and
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
from ratelimit_worker.worker.fields import right_ones
from ratelimit_worker.worker.intake import prepared, read_json
from ratelimit_worker.worker.transport import unpack_body

log = logging.getLogger(__name__)

_TAG = re.compile(rb'"delivery_tag"\s*:\s*("(?:[^"\\\\]|\\\\.)*")')
_AGAIN = re.compile(rf"~[1-{REFS - 1}]$")  #: a reference beyond the first of its task id


def refuse(
    app: Any, answers: Answers, encode_outcome: Callable[[Attempt], bytes]
) -> Callable[[Lanes, bytes, str | None], None]:
    """What the transport does with a message that nobody takes: (lanes, message, why; None: its deadline has passed).

    Args:
        answers: How a failure is told those that wait for the same answer.
        encode_outcome: An attempt as the outbox holds it.
    """

    def end(lanes: Lanes, raw: bytes, why: str | None) -> None:
        message = _read(raw)
        tag = _tag_of(message, raw)
        released = lanes.out(tag) if tag else None
        if released is None:
            headers = _headers(message)
            call_id = headers.get("id")
            # A message too many of an id that waits or runs: that one is the one that is answered.
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
        # Settled, told, freed: who dies in between leaves it to the lease, and the next one does the rest. Those that
        # follow a call whose deadline has passed have deadlines of their own.
        answer = b"" if why is None else answers.error(error)
        lanes.settle(
            Settlement(
                tag=tag, lane=record.lane, answer=answer, lesson=Lesson(), kind="error", outbox=encode_outcome(row)
            )
        )
        _fail(app, call_id, error, request_of(known, released.payload))
        lanes.free([tag])

    return end


def give_up(app: Any, encode_outcome: Callable[[Attempt], bytes], lanes: Lanes, tag: str, started_s: float) -> bool:
    """End a call that runs on beyond its deadline: its row, its caller's error, its place → False: it has ended.

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
    # As of one whose deadline passed while it waited: those that follow it have deadlines of their own.
    lanes.settle(
        Settlement(tag=tag, lane=record.lane, answer=b"", lesson=Lesson(), kind="error", outbox=encode_outcome(row))
    )
    _fail(app, call_id, error, request_of(released.message, released.payload))
    lanes.free([tag])
    return True


def request_of(raw: bytes, payload: bytes) -> dict[str, Any]:
    """What a worker would know of a call by its message and what lies apart: its canvas, and where its result is sent.

    Result backends ask for it: one that sends results (`rpc://`) has no other way to the caller.
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
    """Callbacks, errbacks, chain and chord of a call, where its payload can be read."""
    try:
        _, _, canvas = read_json(unpack_body(payload))
    except (BadInput, ValueError, TypeError, RecursionError):
        return {}
    return dict(canvas) if isinstance(canvas, Mapping) else {}


def _row(lanes: Lanes, record: Record, call_id: str, task: str, error: RateLimitWorkerError, header: Any) -> Attempt:
    """One row more of the call, though nothing was sent."""
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
    """A request as result backends take it; what in it cannot be is left out."""
    return Context({**right_ones(request), "id": call_id})


def _fail(app: Any, call_id: str, error: RateLimitWorkerError, request: Mapping[str, Any]) -> None:
    try:
        app.backend.mark_as_failure(call_id, error, request=context_of(call_id, request))
    except Exception as wrong:  # headers of any shape: what a stranger sent stops no worker
        log.warning("message.caller_not_told", extra={"call_id": call_id, "cause": type(wrong).__name__})
