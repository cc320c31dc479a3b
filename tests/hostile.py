"""What may lie in a queue, come from a provider, or stand in a file? Good ones, of which something was changed.

Everything follows from a `random.Random`, so that a seed finds a case again.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import lzma
import time
import zlib
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

QUEUE = "fleet"
CALL, PLAIN = "tests.fleet_app.echo", "tests.fleet_app.total_plain"
DEEP = "[" * 3000 + "]" * 3000

#: In place of any field.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "abc",
    "5",
    "\ud800",
    "a\x00b\n",
    "x" * 5000,
    [],
    [1],
    ["a"],
    [None, None],
    ["a", "b"],
    [1, "b"],
    [[[]]],
    {},
    {"a": 1},
    {"task": 5},
    {"task": CALL, "args": 5},
    [{"task": CALL, "args": [1], "kwargs": {}, "options": {}, "subtask_type": None}],
    {"__type__": "decimal", "__value__": "x"},
    {"__type__": "uuid", "__value__": 5},
    {"__type__": "datetime", "__value__": "never"},
    {"__type__": []},
    "0001-01-01T00:00:00",
    "9999-12-31T23:59:59+00:00",
    "2026-13-45",
    "application/x-gzip",
    "zlib",
    "punycode",
    "application/x-python-serialize",
)
#: Fields that good messages need not have.
FIELDS = [
    "timelimit",
    "eta",
    "expires",
    "stamped_headers",
    "stamps",
    "shadow",
    "retries",
    "group",
    "group_index",
    "groups",
    "root_id",
    "parent_id",
    "origin",
    "lang",
    "argsrepr",
    "kwargsrepr",
    "ignore_result",
    "replaced_task_nesting",
    "compression",
    "redelivered",
    "callbacks",
    "errbacks",
    "chain",
    "chord",
    "children",
    "headers",
    "utc",
    "called_directly",
    "is_eager",
    "delivery_info",
    "properties",
    "hostname",
    "args",
    "kwargs",
    "get",
    "update",
    "_children",
    "__dict__",
    "rlw",
    "rlw_body",
    "taskset",
    "id",
    "task",
    "priority",
    "content-type",
    "content-encoding",
    "lane",
    "consumer_tag",
    "reply_to",
    "correlation_id",
]


def message(rnd: Random, n: str) -> dict[str, Any]:
    """A good message of some kind: a call as a stock producer sends it, one with a plan, one that says that it was
    released, an ordinary task; of protocol 2 or 1."""
    kind = rnd.randrange(5)
    task, args = (PLAIN, [[1, 2]]) if kind == 3 else (CALL, [n])
    canvas = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": n,
        "retries": 0,
        "root_id": n,
        "timelimit": [None, None],
    }
    body: Any = [args, {}, canvas]
    properties: dict[str, Any] = {
        "correlation_id": n,
        "reply_to": "",
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": f"tag-{n}",
    }
    if kind in (1, 2):
        headers["rlw"] = plan(n)
    if kind == 2:
        properties["lane"], properties["delivery_tag"] = "free", f"{n}.{rnd.randrange(100)}"
    if kind == 4:
        body, headers = {"task": task, "id": n, "args": args, "kwargs": {}, "retries": 0, "eta": None}, {}
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": headers,
        "properties": properties,
    }


def plan(n: str) -> dict[str, Any]:
    """A call's header."""
    return {
        "v": 1,
        "lane": "free",
        "tenant": "",
        "weight": 1.0,
        "class": "normal",
        "cost": [1, 0, 0, 0],
        "deadline": time.time() + 60,
        "context": "",
        "tags": [],
        "pub": n,
        "max_waiting": 1000,
        "max_bytes": 100000,
        "ttl": 10.0,
        "join": True,
        "cache_entries": 10,
        "cache_bytes": 1000,
    }


def otherwise(rnd: Random, value: Any) -> Any:
    """The same with one field changed, gone or added, at any depth."""
    if isinstance(value, dict) and value and rnd.random() < 0.8:
        name = rnd.choice(list(value))
        if rnd.random() < 0.15:
            return {other: inner for other, inner in value.items() if other != name}
        if rnd.random() < 0.3:
            return {**value, rnd.choice(FIELDS): rnd.choice(VALUES)}
        return {**value, name: otherwise(rnd, value[name])}
    if isinstance(value, list) and value and rnd.random() < 0.6:
        at = rnd.randrange(len(value))
        return [*value[:at], otherwise(rnd, value[at]), *value[at + 1 :]]
    return rnd.choice(VALUES)


def packed(rnd: Random, body: bytes) -> tuple[bytes, str]:
    """A body that is compressed, or says so, or is a bomb."""
    if rnd.random() < 0.2:
        body = b" " * 80_000_000 if rnd.random() < 0.05 else b"[" * 100_000
    packs: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("application/x-gzip", zlib.compress),
        ("bzip2", bz2.compress),
        ("lzma", lzma.compress),
        ("gzip", gzip.compress),
    ]
    name, pack = rnd.choice(packs)
    body = pack(body)
    if rnd.random() < 0.3:
        body = body[: rnd.randrange(len(body))]
    return body, rnd.choice([name, name, "zstd", "no such"])


def raw_message(rnd: Random, n: str) -> bytes:
    """What somebody has pushed onto the queue's list."""
    made = message(rnd, n)
    for _ in range(rnd.choice((1, 1, 1, 2, 4))):
        changed = otherwise(rnd, made)
        made = changed if isinstance(changed, dict) else made
    body = made.get("body")
    if not isinstance(body, str):
        text = json.dumps(body).encode()
        if rnd.random() < 0.03:
            text = rnd.choice([DEEP.encode(), b"[[" + b"9" * 5000 + b"],{},{}]", b"\xff\xfe", b'[[],{"a":1,"a":2},{}]'])
        headers = made.get("headers")
        if rnd.random() < 0.08 and isinstance(headers, dict):
            text, method = packed(rnd, text)
            made["headers"] = {**headers, "compression": method}
        made["body"] = base64.b64encode(text).decode()
    whole = json.dumps(made).encode()
    dice = rnd.random()
    if dice < 0.03:
        return whole[: rnd.randrange(len(whole))]
    if dice < 0.06:
        at = rnd.randrange(len(whole))
        return whole[:at] + rnd.randbytes(3) + whole[at:]
    if dice < 0.08:
        return whole[:-1] + b', "deep": ' + DEEP.encode() + b"}"
    if dice < 0.09:
        return rnd.choice([b"", b"null", b"5", b"[]", b"{}", b'"text"', DEEP.encode(), b"9" * 5000, b"\x00", b"NaN"])
    return whole


def broadcast(rnd: Random, n: str) -> tuple[str, bytes]:
    """What somebody has published to the workers' mailbox or among the events → (channel, message)."""
    methods = [
        "ping",
        "revoke",
        "rate_limit",
        "time_limit",
        "stats",
        "active",
        "heartbeat",
        "hello",
        "no such",
        "",
        5,
        None,
    ]
    body: Any = {"method": rnd.choice(methods), "arguments": {"task_id": n}, "destination": None, "pattern": None}
    body = otherwise(rnd, otherwise(rnd, body))
    if isinstance(body, dict) and body.get("method") in ("revoke", "time_limit", "rate_limit"):
        name = rnd.choice(["task_id", "task_name", "rate_limit", "soft", "hard", "terminate", "signal", "reply"])
        body["arguments"] = {name: rnd.choice(VALUES), "task_name": rnd.choice(["no.such.task", 5, None])}
    made: Any = {
        "body": base64.b64encode(json.dumps(body).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"clock": 1, "expires": 0},
        "properties": {
            "delivery_mode": 1,
            "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": n,
        },
    }
    if rnd.random() < 0.5:
        made = otherwise(rnd, made)
    whole = DEEP.encode() if rnd.random() < 0.02 else json.dumps(made).encode()
    return rnd.choice(["/0.celery.pidbox", "/0.celery.pidbox", "/0.celeryev/worker.heartbeat"]), whole


def headers(rnd: Random) -> Mapping[str, str]:
    """Headers of a provider's answer."""
    names = [
        "retry-after",
        "retry-after-ms",
        "x-ms-retry-after-ms",
        "content-type",
        "x-should-retry",
        "date",
        *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
        *(
            f"anthropic-ratelimit-{of}-{what}"
            for what in ("limit", "remaining", "reset")
            for of in ("requests", "tokens")
        ),
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "ratelimit",
        "ratelimit-policy",
    ]
    return {name: rnd.choice(WORDS) for name in rnd.sample(names, rnd.randrange(1, 6))}


WORDS = (
    "",
    "0",
    "-1",
    "5",
    "1e999",
    "nan",
    "-inf",
    "9" * 400,
    "1.5.2",
    "0x10",
    "١٢",
    "5s",
    "-5s",
    "1h2m3.5s",
    "9999999999999h",
    "120ms",
    "Wed, 21 Oct 2099 07:28:00 GMT",
    "Wed, 99 Oct 2099 07:28:00 GMT",
    "Thu, 01 Jan 0001 00:00:00 GMT",
    "2026-11-29T16:00:00Z",
    "9999-12-31T23:59:59.999999999+99:99",
    "1;w=60",
    "limit=5;remaining=;reset",
    ",,,;;;===",
    "true",
    "application/json",
    "text/html; charset=no-such",
    "text/event-stream",
    "x" * 4000,
)


def answer(rnd: Random) -> tuple[int, Mapping[str, str], bytes]:
    """A provider's answer: status, headers, body."""
    status = rnd.choice([200, 200, 200, 201, 204, 301, 400, 401, 402, 403, 404, 408, 409, 413, 422, 425, 429, 429, 429])
    status = status if rnd.random() < 0.6 else rnd.choice([299, 418, 498, 499, 500, 502, 503, 504, 529, 599])
    good: Any = {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
    bad: Any = {
        "error": {
            "message": rnd.choice(
                ["try again in 120ms", "try again in 9999999999999h", "limit 5, used 5", "x" * 3000, ""]
            ),
            "type": "requests",
            "code": rnd.choice(["rate_limit_exceeded", "insufficient_quota", "overloaded_error", 5, None]),
            "param": None,
            "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": rnd.choice(WORDS)}],
        }
    }
    made = good if status < 300 and rnd.random() < 0.8 else bad
    for _ in range(rnd.randrange(3)):
        made = otherwise(rnd, made)
    body = json.dumps(made).encode()
    dice = rnd.random()
    if dice < 0.05:
        body = body[: rnd.randrange(len(body) + 1)]
    elif dice < 0.1:
        body = rnd.choice(
            [b"", b"null", b"5", b"[]", b"<html>", b"\xff\xfe\x00", DEEP.encode(), b"data: {}\n\n", b"NaN"]
        )
    return status, headers(rnd), body


def batch_line(rnd: Random, n: str) -> bytes:
    """A line of a Batch file."""
    made: Any = {
        "custom_id": n,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "max_tokens": 16, "messages": [{"role": "user", "content": n}]},
    }
    for _ in range(rnd.choice((0, 1, 1, 2, 3))):
        made = otherwise(rnd, made)
    line = json.dumps(made).encode()
    dice = rnd.random()
    if dice < 0.05:
        line = line[: rnd.randrange(len(line) + 1)]
    elif dice < 0.1:
        line = rnd.choice(
            [b"", b"   ", b"null", b"{", b"\xff\xfe", DEEP.encode(), b"9" * 5000, b"\xef\xbb\xbf{}", b"\x00"]
        )
    return line.replace(b"\n", b" ")
