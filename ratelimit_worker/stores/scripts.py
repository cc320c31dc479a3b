"""How do the Lua scripts get from their files to the server? As one library of functions, named by its hash.

Old and new workers run side by side during a deploy: each calls the library that it ships, and an old one costs the
server some kilobytes. Functions rather than EVAL, which runs its whole text at every call: to define what the scripts
share took 45 µs of the 50 µs that a script without work needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any, ClassVar

from redis import Redis
from redis.exceptions import ResponseError

from ratelimit_worker.stores.exchange import exchange
from ratelimit_worker.stores.fitness import TOO_OLD, Unfit
from ratelimit_worker.stores.namespace import namespace_of

#: Functions that may not grow memory on a full server: what takes in new work is refused whole by the server. All
#: others make work safe that is already paid for, and free memory after.
REFUSED_WHEN_FULL = frozenset({"enqueue"})
#: Functions that only ask: the server holds them to writing nothing.
READS = frozenset({"bar", "rank", "survey", "working"})


#: What scripts and Python both know: `contracts.lua` writes it.
CONTRACT = "contract.lua"
#: What the scripts share (lua/shared/), in the order in which one part builds on another: one chunk, whose local names
#: each part and each script sees.
SHARED = (
    "record",
    "bucket",
    "plan",
    "suspects",
    "workers",
    "room",
    "waiting",
    "crews",
    "parents",
    "step",
    "next",
    "probes",
    "retry_budget",
    "choose",
    "bars",
    "ledger",
    "let_go",
    "park",
    "release",
    "kept",
    "claims",
    "back",
    "learn",
    "reconcile",
    "ending",
)


def script_names() -> list[str]:
    """The scripts in lua/: one function each."""
    return sorted(
        path.name.removesuffix(".lua")
        for path in files(__package__).joinpath("lua").iterdir()
        if path.name.endswith(".lua") and path.name != CONTRACT
    )


def library(key_prefix: str = "") -> tuple[str, str]:
    """The library as FUNCTION LOAD takes it → (prefix of its functions' names, text)."""
    lua = files(__package__).joinpath("lua")
    prefix = "".join(f"\\{byte:03d}" for byte in key_prefix.encode())  # decimal escapes: any prefix is safe in Lua
    shared = [lua.joinpath("shared", f"{name}.lua").read_text("utf-8") for name in SHARED]
    parts = [f'local K = "{prefix}"', lua.joinpath(CONTRACT).read_text("utf-8"), *shared]
    scripts = {name: lua.joinpath(f"{name}.lua").read_text("utf-8") for name in script_names()}
    all_of_it = "\n".join([*parts, *scripts, *scripts.values()])
    own = f"rlw_{hashlib.sha256(all_of_it.encode()).hexdigest()[:12]}"
    for name, text in scripts.items():
        flag = "no-writes" if name in READS else "allow-oom"
        flags = "" if name in REFUSED_WHEN_FULL else f", flags = {{'{flag}'}}"
        parts += [  # each in a block of its own: Lua takes 200 local names, and lua/shared has most of them
            f"do local function run()\n{text}\nend",
            f"redis.register_function{{function_name = '{own}_{name}'{flags},"
            f" callback = function(_, args) start(args, {str(name in READS).lower()})"
            " local answer = run() census.write() return answer end} end",
        ]
    body = "\n".join(parts)
    return own, f"#!lua name={own}\n{body}\n"


class Scripts:
    """The scripts of one client; the library is loaded where the server does not know it (yet, or any more).

    Args:
        client: Where they run; its namespace is theirs.
        time_us: µs since the epoch that scripts take for now; 0: the server's clock. Tests set it.
    """

    _libraries: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, client: Redis, time_us: int = 0) -> None:
        self.client, self.time_us = client, time_us
        key_prefix = namespace_of(client)
        if key_prefix not in self._libraries:
            self._libraries[key_prefix] = library(key_prefix)
        self._own, self._text = self._libraries[key_prefix]

    def __call__(self, name: str, args: Iterable[Any]) -> Any:
        """Run one script; the time goes first.

        Raises:
            redis.RedisError: as redis-py does.
        """
        command = ("FCALL", f"{self._own}_{name}", 0, self.time_us, *args)
        try:
            return exchange(self.client, command)[0]
        except ResponseError as error:
            if "unknown command" in str(error):  # a server that was not greeted (protocol=2), so nobody has looked
                raise Unfit(f"this server knows no functions: {TOO_OLD}") from None
            if "Function not found" not in str(error):
                raise
        self.load()
        return exchange(self.client, command)[0]

    def each(self, name: str, calls: Sequence[Sequence[Any]]) -> list[Any]:
        """Run one script with each of these arguments, in one round trip; other clients may come in between.

        Raises:
            redis.RedisError: as redis-py does.
        """
        return self.several([(name, args) for args in calls])

    def several(self, calls: Sequence[tuple[str, Iterable[Any]]]) -> list[Any]:
        """Run these scripts, each with its arguments, in one round trip; other clients may come in between.

        Raises:
            redis.RedisError: as redis-py does.
        """
        commands = [("FCALL", f"{self._own}_{name}", 0, self.time_us, *args) for name, args in calls]
        try:
            return exchange(self.client, *commands)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
        self.load()
        return exchange(self.client, *commands)

    def load(self) -> None:
        """Load the library; twice is once.

        Raises:
            redis.RedisError: as redis-py does.
        """
        self.client.function_load(self._text, replace=True)
