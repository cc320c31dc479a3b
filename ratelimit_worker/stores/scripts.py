"""How does a Lua script get from its file to the server? Prelude and script as one text, named by hash.

Old and new workers run side by side during a deploy: each calls the text that it ships.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any, ClassVar

from redis import Redis
from redis.commands.core import Script

from ratelimit_worker.calls import SCHEMA_VERSION

#: Scripts that may not grow memory on a full server: what takes in new work is refused whole by the server. All others
#: make work safe that is already paid for, and free memory after.
REFUSED_WHEN_FULL = frozenset({"enqueue"})

_NAMES = re.compile(r"local (?:function )?([\w, \n]+)")
_WORD = re.compile(r"\w+")
_UNSAID = re.compile(r"--.*|'[^']*'")  #: comments and strings


def script_text(name: str, key_prefix: str = "") -> str:
    """The whole text of lua/<name>.lua: header, constants, what it needs of the shared prelude, body."""
    lua = files(__package__).joinpath("lua")
    header = "#!lua" if name in REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    prefix = "".join(f"\\{byte:03d}" for byte in key_prefix.encode())  # decimal escapes: any prefix is safe in Lua
    constants = f'local K, SCHEMA = "{prefix}", {SCHEMA_VERSION}'
    body = lua.joinpath(f"{name}.lua").read_text("utf-8")
    prelude = lua.joinpath("_lane.lua").read_text("utf-8")
    return "\n".join((header, constants, _needed(prelude, body), body))


def _needed(prelude: str, body: str) -> str:
    """The definitions of the prelude that a script needs, in their order.

    The server runs the whole text at every call: to define all of them cost 17 µs, as much as ten commands. Each begins
    with `local` in the first column and reaches to the next.
    """
    words = set(_WORD.findall(_UNSAID.sub("", body)))
    kept: list[str] = []
    for definition in reversed(re.split(r"^(?=local )", prelude, flags=re.MULTILINE)[1:]):
        names = _NAMES.match(definition)
        if names is not None and words.intersection(_WORD.findall(names[1])):
            words.update(_WORD.findall(_UNSAID.sub("", definition)))
            kept.append(definition)
    return "".join(reversed(kept))


class Scripts:
    """The scripts of one client; each reloads itself after a Redis restart.

    Args:
        client: Where they run.
        key_prefix: kombu's `global_keyprefix`.
        time_us: µs since the epoch that scripts take for now; 0: the server's clock. Tests set it.
    """

    _texts: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, client: Redis, key_prefix: str = "", time_us: int = 0) -> None:
        self.client, self.key_prefix, self.time_us = client, key_prefix, time_us
        self._scripts: dict[str, Script] = {}

    def __call__(self, name: str, args: Iterable[Any], client: Any = None) -> Any:
        """Run one script; the time goes first. `client` may be a pipeline.

        Raises:
            redis.RedisError: as redis-py does.
        """
        return self.script(name)(keys=(), args=(self.time_us, *args), client=client or self.client)

    def script(self, name: str) -> Script:
        """The registered script `name`."""
        found = self._scripts.get(name)
        if found is None:
            key = (name, self.key_prefix)
            text = self._texts.get(key)
            if text is None:
                text = self._texts[key] = script_text(name, self.key_prefix)
            found = self._scripts[name] = self.client.register_script(text)
        return found
