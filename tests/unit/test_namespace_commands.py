"""Every command that the package sends is known to `stores.namespace`; else it would fail, in a namespace alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from redis import Redis

import ratelimit_worker
from ratelimit_worker.stores.namespace import named

#: How redis-py's method and its command differ, beyond the underscore between two words.
SPELLED = {"DELETE": "DEL", "INCR": "INCRBY"}
#: What is sent to no key, or by redis-py itself, or is no command but a helper of the client.
NOT_COMMANDS = {"close", "pipeline", "transaction", "register_script", "execute_command", "client", "lock", "pubsub"}
NOT_COMMANDS |= {"parse_response"}
RECEIVERS = {"client", "_client", "pipe", "redis", "_redis"}


def sent() -> set[str]:
    """The methods of redis-py that modules call on what is named as a client or a pipeline."""
    found = set()
    for path in Path(ratelimit_worker.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on = node.func.value
                name = on.attr if isinstance(on, ast.Attribute) else on.id if isinstance(on, ast.Name) else ""
                if name in RECEIVERS and hasattr(Redis, node.func.attr):
                    found.add(node.func.attr)
    return found - NOT_COMMANDS


@pytest.mark.long
def test_every_command_has_its_place() -> None:
    """None is refused."""
    methods = sent()
    assert {"hget", "delete", "incr", "renamenx", "hsetnx"} <= methods
    for method in sorted(methods):
        words = method.upper().replace("_", " ")
        named("space:", [SPELLED.get(words, words), "key", "STREAMS", "one", "0"])
