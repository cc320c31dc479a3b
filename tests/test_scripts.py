"""Scripts get from their files to the server whole, and with no more of the prelude than they need."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
import redis

from ratelimit_worker.stores.scripts import REFUSED_WHEN_FULL, Scripts, script_text

LUA = files("ratelimit_worker.stores").joinpath("lua")
NAMES = sorted(path.name.removesuffix(".lua") for path in LUA.iterdir() if not path.name.startswith("_"))
DEFINITION = re.compile(r"^local (?:function )?([\w, \n]+)", re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_a_script_has_all_that_it_names(redis_client: redis.Redis, name: str) -> None:
    """Every name of the prelude that a script's text uses is defined in it, before its use; the server takes it."""
    text = script_text(name, "a:prefix")
    assert redis_client.script_load(text)
    code = re.sub(r"--.*|'[^']*'", "", text)
    prelude = LUA.joinpath("_lane.lua").read_text("utf-8")
    for names in DEFINITION.findall(prelude):
        for one in re.findall(r"\w+", names):
            if used := re.search(rf"\b{one}\b", code):
                defined = re.search(rf"local (function )?[\w, \n]*\b{one}\b", code)
                assert defined is not None, one
                assert defined.start() < used.start(), one


@pytest.mark.parametrize("name", NAMES)
def test_a_script_says_its_contract(name: str) -> None:
    """Each begins with what it does and costs, what it takes, time first, and what it returns."""
    head = LUA.joinpath(f"{name}.lua").read_text("utf-8").split("\nlocal ", 1)[0]
    assert re.search(r"^-- [A-Z].*\n(--.*\n)*-- ARGV  now µs.*\n(--.*\n)*-- returns  ", head)
    assert "O(" in head


def test_only_new_work_is_refused_on_a_full_server() -> None:
    """All other scripts may run there: they end what was begun."""
    refused = [name for name in NAMES if "allow-oom" not in script_text(name).splitlines()[0]]
    assert refused == sorted(REFUSED_WHEN_FULL) == ["enqueue"]


@pytest.mark.parametrize("prefix", ["", "team:", 'with "quotes" \\ and \n', "ünï"])
def test_any_key_prefix_is_safe(redis_client: redis.Redis, prefix: str) -> None:
    """kombu's global_keyprefix may be any text; all keys begin with it."""
    Scripts(redis_client, prefix, time_us=1_700_000_000_000_000)("beat", ("w", 1, 1000, 1, "q", 1000))
    found = redis_client.keys("*")
    assert found
    assert all(key.startswith(prefix.encode() + b"rlw:") for key in found)


def test_a_script_comes_back_after_the_server_forgot_it(redis_client: redis.Redis) -> None:
    """A restart of the server loses its scripts; the next call loads its own."""
    run = Scripts(redis_client)
    assert run("size", ("q",)) == 0
    redis_client.script_flush()
    assert run("size", ("q",)) == 0
