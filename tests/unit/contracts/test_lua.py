"""contract.lua is up to date with Python, and no script defines a part of it again."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from ratelimit_worker.contracts import lua
from ratelimit_worker.contracts.call import Asked
from ratelimit_worker.contracts.lane import ANCHORS, FIELDS
from ratelimit_worker.stores.scripts import CONTRACT

LUA = files("ratelimit_worker.stores").joinpath("lua")
TEXTS = {
    path.name: path.read_text("utf-8")
    for folder in (LUA, LUA.joinpath("shared"))
    for path in folder.iterdir()
    if path.name.endswith(".lua") and path.name != CONTRACT
}


def test_the_file_is_what_python_says() -> None:
    """To mend it: python -m ratelimit_worker.contracts.lua"""
    assert LUA.joinpath(CONTRACT).read_text("utf-8") == lua.text()


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_a_script_names_what_is_shared(name: str) -> None:
    """Fields of a lane's hash and numbers by their names in the contract, which has all that are named."""
    code = re.sub(r"--[^\n]*", "", TEXTS[name])
    named = set(re.findall(r"\b(FIELD|KNOWN|ASKED)\.(\w+)", code))
    keys = {
        "FIELD": {field.key for field in (*FIELDS, *ANCHORS)},
        "KNOWN": set(lua.KNOWN),
        "ASKED": {one.name for one in Asked},
    }
    assert {(table, key) for table, key in named if key not in keys[table]} == set()
    lines = [line for line in code.split("\n") if "lane_key(" in line and "redis.call('H" in line]
    stored = {field.stored.removesuffix("#") for field in FIELDS}
    assert {word for line in lines for word in re.findall(r"'([a-z_]+)[1-4]?'", line)} & stored == set()
    assert not re.search(
        r"\blocal (?:SICK_ROW|REFS|HALT_US|N|SCHEMA|ASKED|DIMENSIONS|NONE|TAKEN|USED|STALE|SHED)\b", code
    )


def test_each_field_of_a_lane_has_a_name_of_its_own() -> None:
    """In scripts, too."""
    keys = [field.key for field in (*FIELDS, *ANCHORS)]
    assert len(set(keys)) == len(keys)
