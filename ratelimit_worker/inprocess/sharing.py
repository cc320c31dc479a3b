"""When are two in-process calls the same, and which answers can stand for another? Only plain values travel unchanged.

A call is known by its name for statistics, its lane, its context, the function itself and its arguments. A wrong answer
is worse than one request more, so whatever cannot be told apart for certain is not shared:

| what | counts by |
|---|---|
| arguments | value: text, numbers, booleans, None, and lists, tuples and dicts of them; anything else is not shared |
| a function of a module or class | its name |
| one made inside another function, or in the script that runs | its code, and the plain values that it closes over |
| `self` (of a bound method, or a first parameter of that name) | class and plain attributes, two objects deep |
| what lies deeper in `self` (clients, pools), and locks | which object it is: shared within this process only |
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
import re
import struct
import sys
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from ratelimit_worker.fingerprint import digest
from ratelimit_worker.flow.settle import Answers

log = logging.getLogger(__name__)

MOST_WRAPPERS = 50
MOST_STATE = 2_000  #: values in `self`; to look at more would cost more than it is worth
DEEP = 2  #: objects below `self` whose attributes are looked at
MOST_NAMES = 10_000  #: functions that are remembered

_SCALARS = (str, int, float, bool, type(None))
#: Whose `repr` says all.
_VALUES = (bytes, date, timedelta, Decimal, uuid.UUID, PurePath, Enum, complex, range, re.Pattern)
#: Whose objects hold others, somewhere.
_CONTENTS = ("__len__", "__iter__", "__getitem__", "__next__")
_POINTER_BYTES = struct.calcsize("P")


class Unshareable(Exception):
    """This call cannot be told apart from others, `str()` says why. Nobody but this module sees it."""


class Sharing:
    """What this process knows of functions whose calls share nothing."""

    def __init__(self) -> None:
        self._apart: set[str] = set()  #: names of functions that gave an answer which cannot be kept
        self._said: set[tuple[str, str]] = set()

    def fingerprint(
        self,
        func: Callable[..., Any],
        name: str,
        lane: str,
        context: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> str | None:
        """What calls with the same answer have in common; None: this one is its caller's alone."""
        if name in self._apart:
            return None
        try:
            return digest(name, lane, ["in process", context, *identity(func, args, kwargs)])
        except Unshareable as why:
            self._say(name, str(why))
        except RecursionError:
            self._say(name, "its arguments are nested too deeply")
        except (TypeError, ValueError) as error:  # a number of ten thousand digits
            self._say(name, type(error).__name__)
        return None

    def answers(self, name: str, most_bytes: int) -> Answers:
        """How this function's answers are kept; from the first that cannot be, none of its calls is shared."""

        def dumps(value: Any) -> str:
            try:
                _check_plain(value)
                text = json.dumps(value, allow_nan=False)
                if len(text) > most_bytes:
                    raise TypeError(f"an answer of {len(text):,} bytes is too large")
            except (TypeError, ValueError, RecursionError) as error:
                if len(self._apart) < MOST_NAMES:
                    self._apart.add(name)
                self._say(name, str(error) if isinstance(error, TypeError) else "an answer is no JSON")
                raise
            return text

        return Answers(dumps=dumps, loads=json.loads)

    def _say(self, name: str, why: str) -> None:
        if (name, why) not in self._said and len(self._said) < MOST_NAMES:
            self._said.add((name, why))
            log.info("calls of %s share no answers: %s", name, why, extra={"func": name, "why": why})


def identity(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """[function, self, positional, keyword arguments] as plain values.

    Raises:
        Unshareable: they hold something that has no value of its own.
    """
    owner: list[Any] = []
    args = tuple(args)
    for _ in range(MOST_WRAPPERS):
        if isinstance(func, partial):
            args, kwargs = (*func.args, *args), {**func.keywords, **kwargs}
            func = func.func
        elif isinstance(func, MethodType):
            owner, func = [_state(func.__self__)], func.__func__
        elif not isinstance(func, (FunctionType, BuiltinFunctionType, type)) and not hasattr(func, "__wrapped__"):
            owner, func = [_state(func)], type(func).__call__
        else:
            break
    if isinstance(func, BuiltinFunctionType) and not isinstance(func.__self__, ModuleType | type(None)):
        owner = [_state(func.__self__)]
    elif not owner and args and _takes_self(func):
        owner, args = [_state(args[0])], args[1:]
    return [_function(func), owner, [_plain(value) for value in args], _plain(dict(kwargs))]


def _takes_self(func: Any) -> bool:
    code = getattr(inspect.unwrap(func), "__code__", None)
    return code is not None and code.co_argcount > 0 and code.co_varnames[0] in ("self", "cls")


def _plain(value: Any) -> Any:
    """As JSON in which a list, a tuple and a dict cannot be taken for each other."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is list or kind is tuple:
        return [kind.__name__, *(_plain(item) for item in value)]
    if kind is dict:
        if not all(type(name) is str for name in value):
            raise Unshareable("an argument has keys that are no text")
        return {name: _plain(item) for name, item in value.items()}
    raise Unshareable(f"an argument is no JSON ({kind.__name__})")


def _check_plain(value: Any) -> None:
    """Whether JSON gives back the same.

    Raises:
        TypeError: it does not.
    """
    kind = type(value)
    if kind is list:
        for item in value:
            _check_plain(item)
    elif kind is dict:
        for name, item in value.items():
            if type(name) is not str:
                raise TypeError("an answer has keys that are no text")
            _check_plain(item)
    elif kind not in _SCALARS:
        raise TypeError(f"an answer is no JSON ({kind.__name__})")


# ── functions ────────────────────────────────────────────────────────────────────────────────────────────────────


def _function(func: Any) -> list[Any]:
    """A function by its name where that says all; else by its code, and what it closes over."""
    module, name = getattr(func, "__module__", None) or "", getattr(func, "__qualname__", "")
    if module != "__main__" and _is_at(func, module, name):
        return [module, name]
    inner = inspect.unwrap(func)
    if isinstance(func, (BuiltinFunctionType, type)) or not isinstance(inner, FunctionType):
        if "<" in name:
            raise Unshareable("the function cannot be told apart from others")
        return [module, name]
    if not isinstance(func, FunctionType):
        func = inner
    cells = zip(func.__code__.co_freevars, func.__closure__ or (), strict=True)
    return [
        module,
        name,
        _code(func.__code__),
        [[free, _enclosed(cell)] for free, cell in cells if free != "__class__"],
        [_enclosed_value(value) for value in func.__defaults__ or ()],
        sorted([name, _enclosed_value(value)] for name, value in (func.__kwdefaults__ or {}).items()),
    ]


def _is_at(func: Any, module: str, name: str) -> bool:
    """Whether this is what the module has under that name, whatever else is wrapped around it there."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # of the class that defines it; no descriptor is asked
    for _ in range(MOST_WRAPPERS):
        if found is None:
            return False
        if found is func:
            return True
        found = getattr(found, "__wrapped__", None) or getattr(found, "__func__", None)
    return False


def _code(code: CodeType) -> str:
    parts: list[str] = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        # the order of a set's repr is each process's own
        text = sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant
        parts.append(_code(constant) if isinstance(constant, CodeType) else f"{type(constant).__name__} {text!r}")
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _enclosed(cell: Any) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # not yet assigned
        return None
    return _enclosed_value(value)


def _enclosed_value(value: Any) -> Any:
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return ["function", *_function(value)]
    if isinstance(value, (type, ModuleType)):
        return _named(value)
    if type(value) in _SCALARS:
        return value
    if type(value) is tuple:
        return ["tuple", *(_enclosed_value(item) for item in value)]
    raise Unshareable(f"the function closes over a {type(value).__name__}")


def _named(value: Any) -> list[str]:
    """A class or module by its name; a class that is nowhere to be imported from stands for itself."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)
    if isinstance(value, type) and (module == "__main__" or not _is_at(value, module, name)):
        return ["this", module, name, _TOKENS.of(value)]
    return ["name", module, name]


# ── self ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _state(owner: Any) -> Any:
    return _State().of(owner, DEEP)


class _State:
    """Looks at one object, and at so many values at most."""

    def __init__(self) -> None:
        self._left = MOST_STATE

    def of(self, value: Any, deep: int) -> Any:
        self._left -= 1
        if self._left < 0:
            raise Unshareable("self holds too much to look at")
        kind = type(value)
        if kind in _SCALARS:
            return value
        if isinstance(value, (type, ModuleType)):
            return _named(value)
        if isinstance(value, _VALUES):
            return ["value", *_named(kind), repr(value)]
        if isinstance(value, (FunctionType, BuiltinFunctionType)):
            return ["function", *_function(value)]
        if isinstance(value, (list, tuple, deque)):
            held: list[Any] = [self.of(item, deep) for item in value]
        elif isinstance(value, (set, frozenset)):
            held = sorted(json.dumps(self.of(item, deep)) for item in value)
        elif isinstance(value, dict):
            held = [[self.of(name, deep), self.of(item, deep)] for name, item in value.items()]
        elif isinstance(value, _SCALARS):  # a subclass
            held = [repr(value)]
        elif deep < 0 or (_holds_more(kind) and not any(hasattr(kind, name) for name in _CONTENTS)):
            return ["this", *_named(kind), _TOKENS.of(value)]  # too deep; or a lock, a socket: nothing to look at
        elif _holds_more(kind):
            raise Unshareable(f"self holds a {kind.__name__}")
        else:
            held = []
        attributes = {**(getattr(value, "__dict__", None) or {}), **_slots(value)}
        more = [[name, self.of(item, deep - 1)] for name, item in attributes.items()]
        return ["object", *_named(kind), held, more]


def _members(kind: type) -> list[str]:
    return [
        name
        for base in kind.__mro__
        for name, made in vars(base).items()
        if isinstance(made, MemberDescriptorType) and name not in ("__dict__", "__weakref__")
    ]


def _slots(value: Any) -> dict[str, Any]:
    """What it keeps in `__slots__`, as far as it is set."""
    return {name: getattr(value, name) for name in _members(type(value)) if hasattr(value, name)}


def _holds_more(kind: type) -> bool:
    """Whether its objects have room for more than their attributes: an array, a lock, whatever is written in C."""
    pointers = len(_members(kind)) + (kind.__weakrefoffset__ > 0) + (kind.__dictoffset__ > 0)
    return kind.__itemsize__ != 0 or kind.__basicsize__ != object.__basicsize__ + pointers * _POINTER_BYTES


class _Tokens:
    """Names of objects, each as long as it lives; no other object of any process has the same."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], str]] = {}
        self._lock = threading.RLock()  # an object may be collected while the lock is held
        self._pid = 0

    def of(self, value: Any) -> str:
        """The object's name.

        Raises:
            Unshareable: nobody could tell when it is gone.
        """
        with self._lock:
            if self._pid != os.getpid():  # a copy in a forked child is another object
                self._known, self._pid = {}, os.getpid()
            known = self._known.get(id(value))
            if known is not None and known[0]() is value:
                return known[1]
            try:
                here = weakref.ref(value, partial(self._gone, id(value)))
            except TypeError as error:
                raise Unshareable(f"self holds a {type(value).__name__}") from error
            name = uuid.uuid4().hex
            self._known[id(value)] = (here, name)
            return name

    def _gone(self, number: int, here: weakref.ref[Any]) -> None:
        with self._lock:
            known = self._known.get(number)
            if known is not None and known[0] is here:
                del self._known[number]


_TOKENS = _Tokens()


def _after_fork() -> None:
    _TOKENS._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)
