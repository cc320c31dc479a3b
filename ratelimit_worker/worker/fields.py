"""The type of each field of a task's message. Celery and kombu do not check them, and one field of a wrong type ends
the worker: a timelimit that is text, an eta that is a list.

The tables have every field of kombu's envelope, of Celery's message protocol 2 (protocol 1 is converted to it, see
`intake`) and of the header of a call, with a note of who reads it. A field that may be absent may also be null. A field
without a row is the sender's own, and must only not be nested too deep (`depth`).
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from celery.app.task import Context
from celery.utils.time import maybe_iso8601, maybe_make_aware

from ratelimit_worker.calls import Priority

MOST_NAME = 1024  #: characters of an id or a name
MOST_WHOLE = 2**31 - 1
MOST_NUMBER = 1e15
MOST_TIME_S = 253_370_764_800.0  #: the year 9999
MOST_DEPTH = 100  #: nesting of the envelope: kombu writes it back as JSON, which fails beyond the depth of the stack
MOST_BODY_DEPTH = 400  #: nesting of the body, which is read in a thread, and written back by a retry
#: Allowed character sets of a body: others are not text (zlib unpacks), or take quadratic time (punycode).
CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1"})
#: Types as tuples: these checks are made for each message, and `int | float` would be put together each time.
_NUMBERS, _SIMPLE, _NESTED = (int, float), (str, int, float), (dict, list)
_CLASSES = tuple(Priority)


class Row(NamedTuple):
    """What a field must be: a check, and its description."""

    right: Callable[[Any], bool]
    words: str


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MOST_NAME and _writable(value)


def _writable(text: str) -> bool:
    """Whether it can be encoded as UTF-8: a lone surrogate cannot, and fails later when it is sent on."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _long_text(value: Any) -> bool:
    return isinstance(value, str) and _writable(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST_WHOLE


def _count(value: Any) -> bool:
    return _whole(value) and value >= 0


def _number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool) and 0 <= value <= MOST_NUMBER


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _truth(value: Any) -> bool:
    return isinstance(value, bool) or value in (0, 1)


def _plain(value: Any) -> bool:
    return isinstance(value, _SIMPLE) and not (isinstance(value, float) and not math.isfinite(value))


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_number, value))


def _times(value: Any) -> bool:
    return value == [] or (
        isinstance(value, list) and len(value) == 2 and all(one is None or _number(one) for one in value)
    )


def _date(value: Any) -> bool:
    if not (isinstance(value, datetime) or (isinstance(value, str) and value and len(value) <= MOST_NAME)):
        return False
    try:
        at: datetime = maybe_make_aware(maybe_iso8601(value))
        return 0.0 <= at.timestamp() <= MOST_TIME_S
    except (ValueError, OverflowError, TypeError, AttributeError, OSError):
        return False


def _signature(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _text(value.get("task"))
        and isinstance(value.get("args", []), list | tuple)
        and isinstance(value.get("kwargs", {}), dict)
        and isinstance(value.get("options", {}), dict)
    )


def _signatures(value: Any) -> bool:
    return isinstance(value, list) and all(map(_signature, value))


def _size(value: Any) -> bool:
    return isinstance(value, list) and 2 <= len(value) <= 3 and _text(value[0]) and all(map(_number, value[1:]))


def _charset(value: Any) -> bool:
    if value == "binary":  # kombu's name for unencoded bytes
        return True
    try:
        return isinstance(value, str) and len(value) < 40 and codecs.lookup(value).name in CHARSETS
    except (LookupError, ValueError):
        return False


TEXT, LONG_TEXT = Row(_text, f"text of at most {MOST_NAME} characters"), Row(_long_text, "text")
WHOLE, COUNT, NUMBER = Row(_whole, "a whole number"), Row(_count, "a whole number from 0"), Row(_number, "a number")
POSITIVE, TRUTH = Row(_positive, "a number above 0"), Row(_truth, "true or false")
PLAIN, OBJECT = Row(_plain, "text or a number"), Row(lambda value: isinstance(value, dict), "an object")
LIST, TEXTS = Row(lambda value: isinstance(value, list), "a list"), Row(_texts, "a list of texts")
DATE, TIMES = Row(_date, "a date of ISO 8601"), Row(_times, "two numbers of seconds, or null")
SIGNATURE, SIGNATURES = Row(_signature, "a task's signature"), Row(_signatures, "a list of signatures")

#: kombu's envelope: virtual.Message, Channel.decode_body, Channel._restore.
ENVELOPE: Mapping[str, Row] = {
    "body": LONG_TEXT,
    "content-type": TEXT,
    "content-encoding": Row(_charset, "utf-8, ascii, latin-1 or binary"),
    "headers": OBJECT,
    "properties": OBJECT,
}
#: properties: virtual.Message, QoS.append and ack, Request.__init__, Channel._do_restore_message.
PROPERTIES: Mapping[str, Row] = {
    "delivery_tag": TEXT,
    "delivery_info": OBJECT,
    "body_encoding": Row(lambda value: value in ("base64", ""), "base64"),
    "correlation_id": TEXT,
    "reply_to": TEXT,
    "delivery_mode": PLAIN,
    "priority": WHOLE,
    "lane": TEXT,
}
#: properties.delivery_info: QoS.append and restore (exchange, routing_key), Message.ack (consumer_tag), Request.
DELIVERY: Mapping[str, Row] = {
    "exchange": TEXT,
    "routing_key": TEXT,
    "consumer_tag": TEXT,
    "redelivered": TRUTH,
    "priority": WHOLE,
}
#: headers: Request.__init__ and revoked, strategy.default, Context, trace, Task.retry, Signature.
HEADERS: Mapping[str, Row] = {
    "id": TEXT,
    "task": TEXT,
    "lang": TEXT,
    "shadow": TEXT,
    "origin": TEXT,
    "root_id": TEXT,
    "parent_id": TEXT,
    "group": TEXT,
    "argsrepr": LONG_TEXT,
    "kwargsrepr": LONG_TEXT,
    "eta": DATE,
    "expires": DATE,
    "retries": COUNT,
    "timelimit": TIMES,
    "group_index": WHOLE,
    "groups": LIST,
    "ignore_result": TRUTH,
    "replaced_task_nesting": COUNT,
    "stamped_headers": TEXTS,
    "stamps": OBJECT,
    "redelivered": TRUTH,
    "compression": TEXT,
    "rlw_body": TEXT,
    # set by Celery itself, or read from the body's canvas, or from a header if that has none
    "callbacks": SIGNATURES,
    "errbacks": SIGNATURES,
    "chain": SIGNATURES,
    "chord": SIGNATURE,
    "children": LIST,
    "headers": OBJECT,
    "taskset": TEXT,
    "utc": TRUTH,
    "called_directly": TRUTH,
    "is_eager": TRUTH,
    "delivery_info": OBJECT,
    "properties": OBJECT,
    "reply_to": TEXT,
    "correlation_id": TEXT,
    "hostname": TEXT,
    "logfile": TEXT,
    "loglevel": PLAIN,
    "args": LIST,
    "kwargs": OBJECT,
}
#: The header of a call, which `contracts.plan` decodes; a test compares the names.
PLAN: Mapping[str, Row] = {
    "v": COUNT,
    "lane": TEXT,
    "tenant": TEXT,
    "weight": POSITIVE,
    "class": Row(lambda value: value in _CLASSES, "high, normal or low"),
    "cost": Row(_numbers, "four numbers"),
    "deadline": NUMBER,
    "context": TEXT,
    "tags": TEXTS,
    "pub": TEXT,
    "max_waiting": COUNT,
    "max_bytes": NUMBER,
}
#: ... those that must be there. Each of the others has a default if it is missing; it is written all the same, since
#: versions before this one, which may still be running, set a message without it aside.
PLAN_NEEDS = ("lane", "deadline", "pub")
#: ... and its optional fields.
PLAN_MORE: Mapping[str, Row] = {
    "size": Row(_size, "a model and one or two numbers"),
    "timeout": POSITIVE,
    "ttl": NUMBER,
    "stale": NUMBER,
    "join": TRUTH,
    "cache_entries": NUMBER,
    "cache_bytes": NUMBER,
    "sheds": Row(lambda value: value in ("raise", "result", ""), "raise or result"),
    "nanousd": NUMBER,
    "over": Row(lambda value: value in ("raise", "result", ""), "raise or result"),
    "number": COUNT,
    "tries": COUNT,
    "again": TRUTH,
    "at_once": TRUTH,
    "anew": TRUTH,
    "short": TRUTH,
    "fp": TEXT,
    "trace": TEXT,
    "fresh": TRUTH,
    "unkept": TRUTH,
    "heirs": TRUTH,
    "ns": TEXT,
    "swr": NUMBER,
}
#: Body and headers of a broadcast to the workers' mailbox: kombu's pidbox, which connects anew after an error.
BROADCAST: Mapping[str, Row] = {
    "method": TEXT,
    "arguments": OBJECT,
    "destination": TEXTS,
    "pattern": TEXT,
    "matcher": TEXT,
    "ticket": TEXT,
    "reply_to": Row(
        lambda value: isinstance(value, dict) and _text(value.get("exchange")) and _text(value.get("routing_key")),
        "an exchange and a routing key",
    ),
    "clock": NUMBER,
    "expires": NUMBER,
}
#: Names of methods of Celery's request: a header with such a name would replace the method.
METHODS = frozenset(name for name in dir(Context) if callable(getattr(Context, name)) or name.startswith("_"))


def wrong(
    fields: Mapping[str, Any], table: Mapping[str, Row], where: str = "", needs: Iterable[str] = ()
) -> str | None:
    """What is wrong with the fields in a table, in one line without their values; None: nothing.

    Args:
        where: Prefix of a field's name in the message.
        needs: Fields that must be there; others may be absent or null.
    """
    for name in needs:
        if fields.get(name) is None:
            return f"{where}{name} is missing"
    for name, value in fields.items():
        row = table.get(name)
        if row is not None and value is not None and not row.right(value):
            return f"{where}{name} is not {row.words}"
    return None


def wrong_plan(plan: Any) -> str | None:
    """The same for a call's header."""
    if not isinstance(plan, dict):
        return "rlw is not an object"
    said = wrong(plan, PLAN, "rlw.", PLAN_NEEDS) or wrong(plan, PLAN_MORE, "rlw.")
    if said is None and plan.get("ttl") is not None:
        said = wrong(plan, PLAN_MORE, "rlw.", ("join", "cache_entries", "cache_bytes"))
    return said


def right_ones(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers that are valid: enough to tell a caller that its call was refused."""
    return {
        name: value
        for name, value in headers.items()
        if name not in METHODS and (name not in HEADERS or value is None or HEADERS[name].right(value))
    }


def deeper_than(most: int, value: dict[str, Any] | list[Any]) -> bool:
    """Whether lists and objects are nested deeper than `most`."""
    level = [value]
    for _ in range(most + 1):
        inner: list[Any] = []
        for one in level:
            inner.extend(one.values() if isinstance(one, dict) else one)
        level = [one for one in inner if isinstance(one, _NESTED)]
        if not level:
            return False
    return True
