"""What the text of the Lua scripts says of itself: how long its functions are, and which keys each file writes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

_LUA = files("ratelimit_worker.stores").joinpath("lua")
_TOKEN = re.compile(r"--[^\n]*|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|[A-Za-z_][\w.]*|\n|\S")
_NAME = r"[A-Za-z_][\w.]*"


@cache
def sources() -> dict[str, str]:
    """Text of each file, by its path below lua/: a script's, or a part's in shared/."""
    shared = _LUA.joinpath("shared")
    found = {path.name: path for path in _LUA.iterdir() if path.name.endswith(".lua")}
    found |= {f"shared/{path.name}": path for path in shared.iterdir() if path.name.endswith(".lua")}
    return {name: path.read_text("utf-8") for name, path in sorted(found.items())}


class Function(NamedTuple):
    """One function, or what a script does outside of its functions."""

    name: str
    lines: int


def functions(text: str) -> list[Function]:
    """Every function of a file, those within others too, and last what stands outside of all: lines with code."""
    found: list[Function] = []
    blocks: list[tuple[str, int, str]] = []  # what opened each, on which line, its name
    line, words, outside = 1, [""], set()
    for token in _TOKEN.findall(text):
        if token == "\n":
            line += 1
        elif not token.startswith("--"):
            if not any(opened == "function" for opened, _, _ in blocks):
                outside.add(line)
            if token in ("function", "if", "do", "repeat"):
                blocks.append((token, line, ""))
            elif blocks and words[-1] == "function":
                blocks[-1] = (*blocks[-1][:2], "anonymous" if token == "(" else token)
            if token in ("end", "until"):
                opened, first, name = blocks.pop()
                if opened == "function":
                    found.append(Function(name, line - first + 1))
                    if not any(other == "function" for other, _, _ in blocks):
                        outside -= {first, line}
            words.append(token)
    assert not blocks, "a block that does not end"
    return [*found, Function("", len(outside))]


# ── which keys a file writes ───────────────────────────────────────────────────────────────────────────────────────

#: Commands that put something into a key, and that take something out of one.
PUTS = frozenset({"ZADD", "SADD", "LPUSH", "RPUSH", "HSET", "HSETNX", "HINCRBY", "HINCRBYFLOAT", "SET", "XADD"})
TAKES = frozenset(
    {"ZREM", "ZPOPMIN", "ZREMRANGEBYSCORE", "SREM", "SPOP", "LREM", "LTRIM", "RPOPLPUSH", "HDEL", "DEL", "XX"}
)
_CALL = re.compile(r"(?:redis\.call|batch\.put)\('(\w+)',\s*")
_LITERAL = re.compile(r"key\('([^']+)'\)")


class Write(NamedTuple):
    """One command of a file."""

    key: str  #: as it begins after `rlw:`
    puts: bool  #: into it, or out of it


@cache
def writes() -> dict[str, set[Write]]:
    """By file, what its own commands write."""
    texts = sources()
    named = _named_keys("\n".join(texts.values()))
    return {name: set(_writes(text, named)) for name, text in texts.items()}


def key_names() -> set[str]:
    """Every key that scripts name, as it begins after `rlw:`; channels too."""
    return {name for text in sources().values() for name in _LITERAL.findall(text)}


def _named_keys(text: str) -> dict[str, set[str]]:
    """Constants, fields and functions of which the value is a key → how it begins; some are one of two."""
    found: dict[str, set[str]] = {}
    for name, body in re.findall(rf"function ({_NAME})\([^)]*\)\s*return ([^\n]*)", text):
        found.setdefault(name, set()).update(_LITERAL.findall(body))
    for left, right in re.findall(r"^local ([A-Z_, ]+) = (key\([^\n]*\))$", text, re.MULTILINE):
        names, keys = left.split(", "), _LITERAL.findall(right)
        if len(names) == len(keys):
            found |= {name: {key} for name, key in zip(names, keys, strict=True)}
    for table, body in re.findall(r"^local (\w+) = \{((?:[^{}]|\n)*?)\}", text, re.MULTILINE):
        found |= {f"{table}.{field}": {key} for field, key in re.findall(r"(\w+) = key\('([^']+)'\)", body)}
    # functions that hand on another's: crew.taken_key, crew.list_of
    for name, body in re.findall(rf"function ({_NAME})\([^)]*\)\s*return ([^\n]*)", text):
        for other in re.findall(rf"({_NAME})\(", body):
            found[name] |= found.get(other, set())
    return {name: keys for name, keys in found.items() if keys}


def _writes(text: str, named: dict[str, set[str]]) -> Iterator[Write]:
    code = re.sub(r"--[^\n]*", "", text)
    for call in _CALL.finditer(code):
        command = call[1]
        if command not in PUTS | TAKES:
            continue
        for argument in _arguments(code, call.end()) if command == "DEL" else [_argument(code, call.end())]:
            for key in _keys(argument, code, call.start(), named):
                yield Write(key, command in PUTS)


def _argument(code: str, start: int) -> str:
    depth = 0
    for end in range(start, len(code)):
        if code[end] in "({[":
            depth += 1
        elif code[end] in ")}]":
            depth -= 1
        if depth < 0 or (depth == 0 and code[end] == ","):
            return code[start:end].strip()
    raise AssertionError("a call that does not end")


def _arguments(code: str, start: int) -> Iterator[str]:
    while True:
        one = _argument(code, start)
        yield one
        start = code.index(one, start) + len(one)
        if code[start] != ",":
            return
        start += 1


def _keys(argument: str, code: str, at: int, named: dict[str, set[str]]) -> set[str]:
    """The keys that an expression may be: named in it, or in the last value that its variable got before that place."""
    if found := _named_in(argument, named):
        return found
    variable = re.escape(argument)
    got = [
        *re.finditer(rf"local (?P<left>[\w, ]*\b{variable}\b[\w, ]*) = (?P<right>[^\n]*)", code[:at]),
        *re.finditer(rf"for _, {variable} in ipairs\((?P<right>[^\n]*)\) do", code[:at]),
        *re.finditer(rf"function (?P<name>{_NAME})\({variable}\)", code[:at]),
    ]
    if not got:
        return set()
    last = max(got, key=lambda match: match.start()).groupdict()
    if "left" in last:
        values = [*_arguments(last["right"] + ")", 0)]
        place = [one.strip() for one in last["left"].split(",")].index(argument)
        return _named_in(values[place], named) if place < len(values) else set()
    if "name" in last:  # it is handed in: what callers in this file hand in
        calls = re.finditer(rf"(?<!function ){re.escape(last['name'])}\(", code)
        return {key for call in calls for key in _keys(_argument(code, call.end()), code, call.start(), named)}
    if found := _named_in(last["right"], named):
        return found
    return _keys(last["right"], code, at, named) if re.fullmatch(r"\w+", last["right"]) else set()


def _named_in(expression: str, named: dict[str, set[str]]) -> set[str]:
    found = set(_LITERAL.findall(expression))
    for name in re.findall(_NAME, expression):
        found |= named.get(name, set())
    return found


# ── which scripts reach a function ─────────────────────────────────────────────────────────────────────────────────

_DEFINED = re.compile(rf"^(?:local )?function ({_NAME})\(", re.MULTILINE)
_CALLED = re.compile(rf"(?<![\w.'])({_NAME})\(")
#: Functions that are handed on and called by another name.
_HANDED = re.compile(rf"(?:pcall\(|, )({_NAME})[,)]")


def _bodies(text: str) -> dict[str, str]:
    """Top-level functions of a file by name, and under "" what stands outside of them."""
    code = re.sub(r"--[^\n]*", "", text)
    found, rest, end = {}, "", 0
    for start in _DEFINED.finditer(code):
        if start.start() < end:
            continue
        line_end = code.find("\n", start.end())
        close = code.find("\nend", start.end())
        one_line = code[start.end() : line_end].rstrip().endswith(" end")
        rest += code[end : start.start()]
        end = line_end if one_line else close + len("\nend")
        found[start[1]] = code[start.end() : end]
    return {**found, "": rest + code[end:]}


@cache
def reached_from(function: str) -> set[str]:
    """The scripts that may come to call a function, by name.

    Raises:
        KeyError: there is no such function, or nobody calls it.
    """
    found = {script for script, names in _reached_by_script().items() if function in names}
    if not found:
        raise KeyError(function)
    return found


@cache
def _reached_by_script() -> dict[str, set[str]]:
    shared: dict[str, str] = {}
    scripts: dict[str, dict[str, str]] = {}
    for path, text in sources().items():
        if path.startswith("shared/"):
            shared |= {name: body for name, body in _bodies(text).items() if name}
        else:
            name = path.removesuffix(".lua")
            bodies = _bodies(text)
            bodies[""] += bodies.pop(f"scripts.{name}", "")  # some define that themselves
            scripts[name] = bodies
    return {name: _reached({**shared, **_with_those_it_runs(name, scripts)}) for name in scripts}


def _with_those_it_runs(name: str, scripts: dict[str, dict[str, str]]) -> dict[str, str]:
    """The functions of a script, and those of each that it runs: `scripts.NAME()`."""
    bodies = dict(scripts[name])
    for other in re.findall(r"scripts\.(\w+)\(", bodies[""]):
        within = {inner: body for inner, body in scripts[other].items() if inner}
        assert not within.keys() & bodies.keys(), "two functions of one name"
        bodies |= {**within, f"scripts.{other}": scripts[other][""]}
    return bodies


def _reached(bodies: dict[str, str]) -> set[str]:
    seen: set[str] = set()
    todo = [""]
    while todo:
        body = bodies[todo.pop()]
        for name in {*_CALLED.findall(body), *_HANDED.findall(body)}:
            if name in bodies and name not in seen:
                seen.add(name)
                todo.append(name)
    return seen
