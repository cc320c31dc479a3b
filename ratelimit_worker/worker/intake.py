"""Is this message a valid task message? Checked for everything that comes out of a queue, before Celery sees it.

An invalid message stops a stock worker for ever, and the next one too; here it is set aside.
"""

from __future__ import annotations

import base64
import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Container, Mapping
from typing import Any

import msgspec
from celery.utils.saferepr import saferepr
from kombu.utils.json import dumps, loads
from msgspec import Struct, field

from ratelimit_worker.contracts.plan import HEADER
from ratelimit_worker.worker import fields

#: A larger body is not checked, and none is unpacked to more than this (a decompression bomb would take much CPU and
#: memory).
MOST_BODY_BYTES = 64 * 1024 * 1024
MOST_LZMA_BYTES = 128 * 1024 * 1024  #: memory for unpacking
TYPED = b'"__type__"'  #: in JSON with which kombu carries a datetime or a UUID
JSON = "application/json"
MAILBOX = ".pidbox"  #: end of the names of kombu's queues for broadcasts, and for the replies to them:
REPLIES = re.compile(r"[0-9a-f-]{36}\.reply\..+\.pidbox")  #: ... id of a thread, and the app's `control_exchange`
_read = msgspec.json.Decoder().decode


class Intake(Struct):
    """What this process accepts; a worker fills it when it starts to consume.

    Other processes consume only replies, and leave `queues` empty.
    """

    queues: Container[str] = field(default_factory=frozenset)  #: queues of tasks
    tasks: Container[str] = field(default_factory=frozenset)  #: names of registered tasks
    accepts: Container[str] = field(default_factory=lambda: frozenset({JSON}))

    def refusal(self, message: Any, queue: str) -> str | None:
        """Why this message cannot be accepted; None: it can."""
        if not isinstance(message, dict):
            return "not a message"
        if queue not in self.queues:  # a reply or an event, which kombu handles
            broadcast = queue.endswith(MAILBOX) and not REPLIES.fullmatch(queue)
            return _envelope_refusal(message) or (_broadcast_refusal(message) if broadcast else None)
        headers = message.get("headers")
        if not isinstance(headers, dict):
            return "no headers"
        if self.lacks_task_of(message):
            return _envelope_refusal(message) or f"task {headers['task'][:80]!r} is not registered"
        return _envelope_refusal(message) or self._task_refusal(message, headers)

    def lacks_task_of(self, message: Any) -> bool:
        """Whether a message names a task that is not registered here; another worker may know it."""
        headers = message.get("headers") if isinstance(message, dict) else None
        return isinstance(headers, dict) and isinstance(headers.get("task"), str) and headers["task"] not in self.tasks

    def _task_refusal(self, message: Mapping[str, Any], headers: dict[str, Any]) -> str | None:
        if headers.get("compression"):
            return "compressed"
        kind = message.get("content-type")
        if kind not in self.accepts:
            return f"content type {str(kind)[:40]!r} is not accepted"
        if not headers.get("id") or not headers.get("task"):
            return "no task id or name"
        method = next((name for name in headers if name in fields.METHODS), None)
        if method is not None:
            return f"a header has the name of Celery's own {method[:40]!r}"
        return (
            fields.wrong(headers, fields.HEADERS)
            or (fields.wrong_plan(headers[HEADER]) if HEADER in headers else None)
            or _body_refusal(message)
        )


def read_json(raw: bytes) -> Any:
    """Decode the JSON of a message or its body: as kombu does, in a tenth of the time.

    Raises:
        ValueError, RecursionError: it is not valid.
    """
    if TYPED not in raw:
        try:
            return _read(raw)
        except msgspec.DecodeError:
            pass  # kombu accepts more than JSON: NaN, lone surrogates
    try:
        return loads(raw.decode())
    except Exception as error:  # an invalid decimal or UUID may raise anything
        raise ValueError(f"not JSON: {type(error).__name__}") from error


def prepared(message: Any) -> Any:
    """A task message in the form that the checks expect: uncompressed, of protocol 2. If impossible, as it is."""
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        return message
    headers, body = message.get("headers"), message.get("body")
    if isinstance(headers, dict) and headers.get("compression"):
        message = _unpacked(message, headers)
    elif isinstance(body, str) and not message["properties"].get("body_encoding"):
        message = _with_body(message, headers, body.encode("utf-8", "replace"))
    # Protocol 1 has an object as body, which begins with this letter in base64; a list (protocol 2) does not.
    body = message.get("body")
    if isinstance(body, str) and body.startswith("e"):
        message = _as_protocol_2(message)
    return message


def _with_body(message: Mapping[str, Any], headers: Any, body: bytes) -> dict[str, Any]:
    properties = {**message["properties"], "body_encoding": "base64"}
    return {**message, "headers": headers, "body": base64.b64encode(body).decode(), "properties": properties}


def _as_protocol_2(message: dict[str, Any]) -> dict[str, Any]:
    """A message of Celery's protocol 1 (the task's fields stand in its body) as one of protocol 2; others as they are.

    So one table of fields is enough, and calls of old producers find their lanes.
    """
    headers = message.get("headers")
    if headers is not None and not isinstance(headers, dict):
        return message
    try:
        told = read_json(_bytes_of(message))
    except (ValueError, TypeError, RecursionError):
        return message
    if not isinstance(told, dict):
        return message
    told = dict(told)
    args, kwargs = told.pop("args", None), told.pop("kwargs", None)
    canvas = {name: told.pop(name, None) for name in ("callbacks", "errbacks", "chain", "chord")}
    if "taskset" in told:
        told["group"] = told.pop("taskset")
    args, kwargs = [] if args is None else args, {} if kwargs is None else kwargs
    try:
        body = dumps([args, kwargs, canvas]).encode()
    except (ValueError, TypeError, RecursionError):
        return message
    shown = {"argsrepr": saferepr(args), "kwargsrepr": saferepr(kwargs)}
    return _with_body(message, {**told, **(headers or {}), **shown}, body)


def _unpacked(message: dict[str, Any], headers: Mapping[str, Any]) -> dict[str, Any]:
    """A compressed message (`task_compression`) with its body unpacked; as it is if that fails."""
    method = headers["compression"]
    unpack = _UNPACK.get(method) if isinstance(method, str) else None
    if unpack is None:
        return message
    try:
        body = unpack(_bytes_of(message))
    except (ValueError, TypeError, OSError, EOFError, zlib.error, lzma.LZMAError, MemoryError):
        return message
    if body is None:
        return message
    return _with_body(message, {name: value for name, value in headers.items() if name != "compression"}, body)


def _inflate(packed: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    body = stream.decompress(packed, MOST_BODY_BYTES)
    return body if stream.eof else None


def _unpack_bz2(packed: bytes) -> bytes | None:
    stream = bz2.BZ2Decompressor()
    body = stream.decompress(packed, MOST_BODY_BYTES)
    return body if stream.eof else None


def _unpack_lzma(packed: bytes) -> bytes | None:
    stream = lzma.LZMADecompressor(memlimit=MOST_LZMA_BYTES)
    body = stream.decompress(packed, MOST_BODY_BYTES)
    return body if stream.eof else None


#: kombu's compression methods. A body that unpacks to more than `MOST_BODY_BYTES` stays packed, and is refused.
_UNPACK: Mapping[str, Callable[[bytes], bytes | None]] = {
    **dict.fromkeys(("application/x-gzip", "gzip", "zlib"), _inflate),
    **dict.fromkeys(("application/x-bz2", "bzip2", "bzip"), _unpack_bz2),
    **dict.fromkeys(("application/x-lzma", "lzma", "xz"), _unpack_lzma),
}


def _bytes_of(message: Mapping[str, Any]) -> bytes:
    """The body's bytes.

    Raises:
        ValueError, TypeError: it has no valid body.
    """
    body, properties = message.get("body"), message.get("properties")
    if not isinstance(body, str) or not isinstance(properties, dict) or len(body) > MOST_BODY_BYTES:
        raise ValueError("no body")
    return base64.b64decode(body, validate=True) if properties.get("body_encoding") == "base64" else body.encode()


def _envelope_refusal(message: dict[str, Any]) -> str | None:
    """What is wrong with kombu's part of a message."""
    if fields.deeper_than(fields.MOST_DEPTH, message):
        return "nested too deep"
    properties = message.get("properties")
    if not isinstance(properties, dict) or not isinstance(properties.get("delivery_tag"), str):
        return "no delivery tag"
    delivery = properties.get("delivery_info")
    if not isinstance(delivery, dict) or "exchange" not in delivery or "routing_key" not in delivery:
        return "no delivery info"
    return (
        fields.wrong(message, fields.ENVELOPE)
        or fields.wrong(properties, fields.PROPERTIES, "properties.")
        or fields.wrong(delivery, fields.DELIVERY, "delivery_info.", ("exchange", "routing_key"))
    )


def _broadcast_refusal(message: Mapping[str, Any]) -> str | None:
    headers = message.get("headers") or {}
    if headers.get("compression"):
        return "compressed"
    if message.get("content-type") != JSON:  # kombu decodes it, if the app accepts it
        return None
    try:
        told = read_json(_bytes_of(message))
    except (ValueError, TypeError, RecursionError):
        return "body cannot be read"
    if not isinstance(told, dict):
        return "body is not an object"
    return fields.wrong(told, fields.BROADCAST, "", ("method",)) or fields.wrong(headers, fields.BROADCAST)


def _body_refusal(message: Mapping[str, Any]) -> str | None:
    body, charset = message.get("body"), message.get("content-encoding")
    if not isinstance(body, str):
        return "no body"
    if len(body) > MOST_BODY_BYTES:
        return "body too large"
    if message.get("content-type") != JSON:  # the app's own choice, for ordinary tasks
        return "a call that is not JSON" if HEADER in message["headers"] else None
    try:
        text = _bytes_of(message)
        charset = "utf-8" if charset in (None, "", "binary") else charset
        text.decode(charset)
        parsed = read_json(text)
    except (LookupError, ValueError, TypeError, RecursionError):
        return "body cannot be read"
    if not (isinstance(parsed, list) and len(parsed) == 3 and isinstance(parsed[0], list)):
        return "body is not args, kwargs, canvas"
    if not isinstance(parsed[1], dict) or not isinstance(parsed[2], (dict, type(None))):
        return "body is not args, kwargs, canvas"
    deep = text.count(b"[") + text.count(b"{") > fields.MOST_BODY_DEPTH
    if deep and fields.deeper_than(fields.MOST_BODY_DEPTH, parsed):
        return "body is nested too deep"
    canvas = parsed[2] or {}
    if any(name in fields.METHODS for name in canvas):
        return "the canvas has a name of Celery's own"
    return fields.wrong(canvas, fields.HEADERS, "canvas.")
