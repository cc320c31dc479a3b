"""The Lua scripts are loaded into the server as one library of functions, named by its hash.

During a deploy, old and new workers each call their own library; an old one costs the server some kilobytes. Functions
are used and not EVAL, which would run the whole text at every call: defining the shared part took 45 of the 50 µs that
an empty script needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar

from redis import Redis
from redis.exceptions import ResponseError

from ratelimit_worker.stores.exchange import exchange
from ratelimit_worker.stores.fitness import TOO_OLD, Unfit
from ratelimit_worker.stores.namespace import namespace_of

if TYPE_CHECKING:
    from ratelimit_worker.stores.together import Dialogue

#: Functions that may not grow memory on a full server: what takes in new work is refused whole by the server. All
#: others make work safe that is already paid for, and free memory after.
REFUSED_WHEN_FULL = frozenset({"admit", "enqueue", "shelve"})
#: Functions that only read: the server refuses their writes.
READS = frozenset({"bar", "rank", "survey", "working"})


#: Lua's functions and modules that scripts use often.
BUILT_IN = "redis, cmsgpack, string, math, tonumber, ipairs, pairs, next, select, unpack, pcall, type"
#: The file of what scripts and Python share, written by `contracts.lua`.
CONTRACT = "contract.lua"
#: The shared parts (lua/shared/), each of which uses earlier ones. They form one chunk, so all parts and scripts see
#: its local names.
SHARED = (
    "record",
    "bucket",
    "plan",
    "purse",
    "suspects",
    "workers",
    "room",
    "waiting",
    "crews",
    "parents",
    "step",
    "batch",
    "next",
    "probes",
    "retry_budget",
    "choose",
    "bars",
    "ledger",
    "let_go",
    "park",
    "release",
    "reuse",
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
    """The library for FUNCTION LOAD → (prefix of its functions' names, text)."""
    lua = files(__package__).joinpath("lua")
    prefix = "".join(f"\\{byte:03d}" for byte in key_prefix.encode())  # decimal escapes: any prefix is safe in Lua
    shared = [lua.joinpath("shared", f"{name}.lua").read_text("utf-8") for name in SHARED]
    parts = [f'local K = "{prefix}"', lua.joinpath(CONTRACT).read_text("utf-8"), *shared]
    scripts = {name: lua.joinpath(f"{name}.lua").read_text("utf-8") for name in script_names()}
    parts += [_block(name, text) for name, text in scripts.items()]
    body = _defined(parts)
    digest = hashlib.sha256("\n".join([*body, *_registered("", scripts)]).encode()).hexdigest()
    own = f"rlw_{digest[:12]}"
    return own, "\n".join([f"#!lua name={own}", *body, *_registered(own, scripts), ""])


def _block(name: str, text: str) -> str:
    """A script, within a function of its own, since Lua allows 200 local names and lua/shared uses most of them.

    The text is what `scripts.NAME` does. If every run needs functions of the script's own, the text defines
    `scripts.NAME` itself, at its end; then they are made once, and not at each run.
    """
    if f"\nfunction scripts.{name}()" in text:
        return f"(function()\n{text}\nend)()"
    return f"function scripts.{name}()\n{text}\nend"


def _defined(parts: Iterable[str]) -> list[str]:
    """`run(script, its arguments, whether it only reads)`, which runs one of the scripts.

    At the first call it defines what they share: only then there are `redis.call` and Lua's own functions, which become
    local names. A global name costs a function of a library three look-ups in tables, and a call uses hundreds.
    """
    return [
        f"local function define({BUILT_IN})",
        "return function()",  # within the other, so that these names do not count among the 200
        "local scripts = {}",  # by name, for a script that runs others as parts of one step
        *parts,
        "return function(name, args, asks)",
        "start(args, asks) local answer = scripts[name]() census.write() return answer",
        "end end end",
        "local defined",
        "local function run(name, args, asks)",
        f"if not defined then defined = define({BUILT_IN})() end return defined(name, args, asks)",
        "end",
    ]


def _registered(own: str, names: Iterable[str]) -> Iterator[str]:
    """A function of the server for each script."""
    for name in names:
        flag = "no-writes" if name in READS else "allow-oom"
        flags = "" if name in REFUSED_WHEN_FULL else f", flags = {{'{flag}'}}"
        yield (
            f"redis.register_function{{function_name = '{own}_{name}'{flags},"
            f" callback = function(_, args) return run('{name}', args, {str(name in READS).lower()}) end}}"
        )


class Scripts:
    """The scripts of one client; the library is loaded when the server does not have it.

    Args:
        client: Where they run; its namespace is theirs.
        time_us: The present time for scripts, µs since the epoch; 0: the server's clock. Tests set it.
        send: Sends commands, with the arguments and replies of `exchange`; None: `exchange`.
    """

    _libraries: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init__(self, client: Redis, time_us: int = 0, send: Callable[..., list[Any]] | None = None) -> None:
        self.client, self.time_us = client, time_us
        self._send = send or partial(exchange, client)
        key_prefix = namespace_of(client)
        if key_prefix not in self._libraries:
            self._libraries[key_prefix] = library(key_prefix)
        self._own, self._text = self._libraries[key_prefix]

    def __call__(self, name: str, args: Iterable[Any]) -> Any:
        """Run one script; the time is passed as its first argument.

        Raises:
            redis.RedisError: as redis-py does.
        """
        command = self._command(name, args)
        try:
            return self._send(command)[0]
        except ResponseError as error:
            _check_missing(error)
        self.load()
        return self._send(command)[0]

    def asking(self, name: str, args: Iterable[Any]) -> Dialogue[Any]:
        """As `__call__`, in exchanges that may be shared with others.

        Raises:
            redis.RedisError: as redis-py does.
        """
        command = self._command(name, args)
        try:
            return (yield (command,))[0]
        except ResponseError as error:
            _check_missing(error)
        self.load()
        return (yield (command,))[0]

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
        commands = self.commands(calls)
        try:
            return self._send(*commands)
        except ResponseError as error:
            if "Function not found" not in str(error):
                raise
        self.load()
        return self._send(*commands)

    def commands(self, calls: Sequence[tuple[str, Iterable[Any]]]) -> list[tuple[Any, ...]]:
        """The commands that run these scripts, each with its arguments."""
        return [self._command(name, args) for name, args in calls]

    def _command(self, name: str, args: Iterable[Any]) -> tuple[Any, ...]:
        return ("FCALL", f"{self._own}_{name}", 0, self.time_us, *args)

    def load(self) -> None:
        """Load the library; can be repeated.

        Raises:
            redis.RedisError: as redis-py does.
        """
        self.client.function_load(self._text, replace=True)


def _check_missing(error: ResponseError) -> None:
    """Return if the server does not have the library.

    Raises:
        ResponseError: it refuses for another reason, which is raised again.
        Unfit: it knows no functions.
    """
    # with protocol=2 there is no HELLO, so the server's version was not checked
    if "unknown command" in str(error):
        raise Unfit(f"this server knows no functions: {TOO_OLD}") from None
    if "Function not found" not in str(error):
        raise error
