"""What may a person do with calls of others? Cancel those that wait, and run again what has failed.

A call is run again under its own id, so whoever asks for its result gets the new one, and its attempts go on counting.
Its message and arguments for that are on the shelf (`stores.shelf`); a message that was set aside is complete itself.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Mapping
from time import time
from typing import Any, NamedTuple

from celery import Celery, states
from kombu.utils.json import dumps
from msgspec import structs

from ratelimit_worker.calls import SCHEMA_VERSION
from ratelimit_worker.contracts.plan import HEADER, Continuation, Plan, Sender
from ratelimit_worker.errors import BadInput, LaneFull, LanesFull, LaneShedding
from ratelimit_worker.stores import set_aside
from ratelimit_worker.stores.desks import PREFIX
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.set_aside import SetAside
from ratelimit_worker.stores.shelf import Shelved
from ratelimit_worker.worker.control import revoke_waiting
from ratelimit_worker.worker.installed import Installation, installation_of
from ratelimit_worker.worker.intake import JSON, Intake, prepared, read_json
from ratelimit_worker.worker.transport import entry, reference, unpack_body

NOT_KEPT = (
    "its arguments were not kept: it failed too long ago, too many have failed since, it was too large, or it was made "
    "without a queue (MAISD_FAILED_CALLS_HOURS, MAISD_MAX_FAILED_CALLS, MAISD_FAILED_CALLS_MB)"
)
NOT_WAITING = "it does not wait (any more)"
IN_PROCESS = "it was made in process, without a queue: only its caller can end it"


class Done(NamedTuple):
    """Whether one call was cancelled or run again, or why not."""

    call_id: str
    why_not: str = ""  #: "": it is done


def cancel(app: Celery, call_ids: Iterable[str]) -> list[Done]:
    """Take calls that wait out of their lanes; whoever waits for them gets Celery's TaskRevokedError.

    Raises:
        StoreUnavailable: Redis is away; some may have been cancelled.
    """
    installation = installation_of(app)
    assert installation is not None, "the deployment's app has lanes"
    wanted, lanes = list(dict.fromkeys(call_ids)), installation.services().lanes
    with redis_errors():
        records = {one: lanes.record(one) for one in wanted}
        others = {one for one, record in records.items() if record is not None and record.queue.startswith(PREFIX)}
        taken = set(revoke_waiting(app, [one for one in wanted if one not in others]))
    return [Done(one, "" if one in taken else IN_PROCESS if one in others else NOT_WAITING) for one in wanted]


def run_again(app: Celery, call_ids: Iterable[str]) -> list[Done]:
    """Put calls that have failed back into their lanes, and messages that were set aside back into their queues.

    Raises:
        StoreUnavailable: Redis is away; some may have been put back.
    """
    installation = installation_of(app)
    assert installation is not None, "the deployment's app has lanes"
    wanted = list(dict.fromkeys(call_ids))
    with redis_errors():
        aside = {one.call_id: one for one in set_aside.read(installation.services().redis) if one.call_id}
        return [Done(one, _again(installation, one, aside.get(one))) for one in wanted]


def _again(installation: Installation, call_id: str, aside: SetAside | None) -> str:
    """Run one call again → why not; "": it was done."""
    live = installation.services()
    if live.lanes.record(call_id) is not None:
        return "it waits or runs already"
    kept = live.shelf.take(call_id)
    try:
        if kept is not None:
            _call_again(installation, kept)
            return ""
        return _message_again(installation, aside) if aside is not None else NOT_KEPT
    except (BadInput, LaneFull, LanesFull, LaneShedding) as error:
        return str(error)


def _call_again(installation: Installation, kept: Shelved) -> None:
    """Put a call back into its lane, under its id.

    Its publication follows from its id and its attempts, so it runs once even if two people do this at the same time.
    """
    app, live = installation.app, installation.services()
    message = read_json(kept.message)
    plan = Plan.decode(message["headers"][HEADER])
    if plan.version > SCHEMA_VERSION:
        raise BadInput("a newer version has made it; run it again with that")
    body = unpack_body(kept.payload)
    args, kwargs, canvas = read_json(body)
    if canvas and canvas.get("chord"):  # the chord has failed already, and can never be complete
        body = dumps([args, kwargs, {**canvas, "chord": None}]).encode()
    anew = structs.replace(
        plan,
        deadline_s=time() + kept.deadline_s,
        publication=uuid.uuid5(uuid.NAMESPACE_OID, f"{kept.call_id}/{kept.attempts}").hex,
        sender=Sender.NOBODY,  # nobody here takes an answer directly: it must be stored as the result
        continuation=Continuation(attempts=kept.attempts, ended=True),
        fingerprint=None,
    )
    headers = {**message["headers"], HEADER: anew.encode(), "expires": None, "eta": None, "retries": 0}
    text = {**message, "headers": headers, "body": base64.b64encode(body).decode()}
    made = entry(kept.queue, text, anew, installation.asked)
    task = app.tasks.get(headers["task"])
    backend = (task or app).backend
    failed = backend.get_task_meta(kept.call_id)
    if failed["status"] == states.SUCCESS:
        raise BadInput("it has been answered since")
    backend.forget(kept.call_id)  # first: its new answer may be there at once
    try:
        live.lanes.enqueue(made)
    except (BadInput, LaneFull, LanesFull, LaneShedding):
        if failed["status"] in states.EXCEPTION_STATES:
            backend.mark_as_failure(kept.call_id, failed["result"], call_errbacks=False)
        raise
    live.shelf.forget(kept.call_id)


def _message_again(installation: Installation, aside: SetAside) -> str:
    """Put a message that was set aside back into its queue, where a worker would take it now."""
    try:
        message = prepared(read_json(aside.raw)) if aside.whole else None
    except (ValueError, RecursionError):
        message = None
    queue = aside.queue or _queue_of(message)
    if message is None or not queue:
        return "its message was cut, or cannot be read"
    app = installation.app
    refused = Intake(queues={queue}, tasks=app.tasks, accepts={JSON, message.get("content-type")}).refusal(
        message, queue
    )
    if refused is not None:
        return f"no worker would take it: {refused}"
    if message["body"] == reference(aside.call_id):
        return NOT_KEPT
    with app.connection_for_write() as connection, connection.channel() as channel:
        channel._put(queue, message)
    set_aside.drop(installation.services().redis, aside)
    return ""


def _queue_of(message: Any) -> str:
    properties = message.get("properties") if isinstance(message, Mapping) else None
    delivery = properties.get("delivery_info") if isinstance(properties, Mapping) else None
    found = delivery.get("routing_key") if isinstance(delivery, Mapping) else None
    return found if isinstance(found, str) else ""
