"""When are two calls the same? When task, lane and arguments are, whatever the order of keyword arguments.

Exact match on values: 1 and 1.0 differ, as do "a" and ["a"]. The order of keys in nested objects does not matter.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

#: Changes when what goes into a fingerprint does, so that old entries are not found.
VERSION = b"1"


def fingerprint(task: str, lane: str, body: bytes) -> str:
    """The identity of a call, from the JSON of its arguments ([args, kwargs, canvas]; the canvas does not count).

    Args:
        body: As Celery's serializer wrote it.
    Returns:
        64 hexadecimal digits; nothing of the arguments can be read from it.
    """
    args, kwargs, _ = json.loads(body)
    return digest(task, lane, [args, kwargs])


def digest(task: str, lane: str, arguments: Any) -> str:
    """As `fingerprint`, from plain values.

    Raises:
        TypeError: a value is no JSON.
    """
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"\0".join((VERSION, task.encode(), lane.encode(), text.encode()))).hexdigest()
