"""Scripts get from their files to the server as one library, named by its hash."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest
import redis

from ratelimit_worker.stores.namespace import Namespaced
from ratelimit_worker.stores.scripts import REFUSED_WHEN_FULL, SHARED, Scripts, library, script_names

LUA = files("ratelimit_worker.stores").joinpath("lua")
NAMES = script_names()


def within(client: redis.Redis, namespace: str) -> redis.Redis:
    """The same server, for one of its deployments."""
    return Namespaced(connection_pool=client.connection_pool, namespace=namespace)


def test_the_library_is_taken_by_the_server(redis_client: redis.Redis) -> None:
    """One function a script, under names that begin with the library's; loading it twice changes nothing."""
    run = Scripts(within(redis_client, "a:prefix"))
    run.load()
    run.load()
    own, _ = library("a:prefix")
    listed = redis_client.function_list(library=own)
    text = repr(listed)
    assert all(f"{own}_{name}" in text for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_says_its_contract(name: str) -> None:
    """Each begins with what it does and costs, what it takes, time first, and what it returns."""
    head = LUA.joinpath(f"{name}.lua").read_text("utf-8").split("\nlocal ", 1)[0]
    assert re.search(r"^-- [A-Z].*\n(--.*\n)*-- ARGV  now µs.*\n(--.*\n)*-- returns  ", head)
    assert "O(" in head


def test_only_new_work_is_refused_on_a_full_server() -> None:
    """And what keeps failed calls, which is a convenience. All others end what was begun, or only ask."""
    _, text = library()
    refused = [name for name in NAMES if not re.search(rf"_{name}', flags = {{'(allow-oom|no-writes)'}}", text)]
    assert refused == sorted(REFUSED_WHEN_FULL) == ["admit", "enqueue", "shelve"]


@pytest.mark.parametrize("prefix", ["", "team:", 'with "quotes" \\ and \n', "ünï"])
def test_any_key_prefix_is_safe(redis_client: redis.Redis, prefix: str) -> None:
    """kombu's global_keyprefix may be any text; all keys begin with it."""
    Scripts(within(redis_client, prefix), time_us=1_700_000_000_000_000)(
        "beat", ("w", 1, 1000, 1, "q", 1000, "*", 60, 0)
    )
    found: Any = redis_client.keys("*")
    assert found
    assert all(key.startswith(prefix.encode() + b"rlw:") for key in found)
    redis_client.flushall()  # the table of keys knows none that begins so


def test_a_script_comes_back_after_the_server_forgot_it(redis_client: redis.Redis) -> None:
    """A restart of the server loses its scripts; the next call loads its own."""
    run = Scripts(redis_client)
    assert run("size", ("q",)) == 0
    redis_client.function_flush()
    assert run("size", ("q",)) == 0


def test_every_shared_part_is_in_the_library_once() -> None:
    """A file that nobody names would be dead, and says so here; each begins with what it is for."""
    parts = [path for path in LUA.joinpath("shared").iterdir() if path.name.endswith(".lua")]
    assert sorted(path.name.removesuffix(".lua") for path in parts) == sorted(SHARED)
    _, text = library()
    for path in parts:
        part = path.read_text("utf-8")
        assert text.count(part) == 1
        assert re.match(r"-- [A-Z]", part)
