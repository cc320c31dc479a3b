"""Which parts of a method's object tell its calls apart? Its plain data, and what its clients were constructed with.

A client changes as it is used (pools, counters), and every instance of the object has its own: if that counted, the
same question would be paid for again after each first use, and once for each instance.

| what an attribute holds | counts by |
|---|---|
| text, numbers, dates and the like; lists, tuples, sets and dicts of them, of any class | value |
| a record: a dataclass, a model of pydantic, attrs or msgspec, an object without methods | class, and such data in it |
| a function, a class | name, or code |
| any other object (a client, a pool, a lock) | class, and those constructor arguments that it keeps and are such data |
| None, and an object where there was none when the owner was first seen | nothing: it is made on first use |
| what holds more than can be looked at (an array, an iterator) | cannot be known: the call is not shared |
"""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import struct
import threading
import uuid
import weakref
from collections import UserDict, UserList, deque
from collections.abc import Callable, Mapping, Sequence, Set
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, Generic, TypeVar

from ratelimit_worker.canonical import attributes_of, declared, of_class

T = TypeVar("T")

MOST_STATE = 2_000  #: values in an owner; to look at more would cost more than it is worth
DEEP = 3  #: levels of records within records that are looked at

SCALARS = (str, int, float, bool, type(None))
#: Types whose `repr` is the whole value.
_VALUES = (bytes, bytearray, date, timedelta, Decimal, uuid.UUID, PurePath, Enum, complex, range, re.Pattern)
_ROWS = (list, tuple, deque, UserList)
_TABLES = (dict, UserDict, MappingProxyType)
#: Special methods that make an object more than a record.
_DOES = ("__call__", "__enter__", "__aenter__", "__getattr__", "__getattribute__", "__next__", "__await__")
_POINTER_BYTES = struct.calcsize("P")
_OUT = object()  #: stands for a value that does not count


class Unshareable(Exception):
    """This call cannot be told apart from others; `str()` says why. It never leaves the in-process API."""


class Owner:
    """The parts of one object that count, by their path from `self`; and those that do not, with the reason.

    Args:
        function: Returns what a function counts by.
        named: Returns what a class or module counts by.
    Raises:
        Unshareable: it holds something that cannot be looked at, or too many values.
    """

    def __init__(
        self, value: Any, function: Callable[[Any], Sequence[Any]], named: Callable[[Any], Sequence[Any]]
    ) -> None:
        self.counts: dict[str, Any] = {}
        self.left_out: dict[str, str] = {}
        self._function, self._named = function, named
        self._left = MOST_STATE
        kind = type(value)
        if isinstance(value, (*SCALARS, *_VALUES, *_ROWS, *_TABLES, set, frozenset, type, ModuleType, FunctionType)):
            self.counts["self"] = self._value("self", value, DEEP, told=False)
            return
        if _unreadable(value):
            raise Unshareable(f"self is a {kind.__name__}")
        self.counts["self"] = list(named(kind))
        attributes = attributes_of(value)
        at_first = _FIRST.of(value, lambda: frozenset(name for name, held in attributes.items() if _is_object(held)))
        for name, held in attributes.items():
            path = f"self.{name}"
            if at_first is not None and _is_object(held) and name not in at_first:
                self.left_out[path] = f"a {type(held).__name__} that was not there when self was first seen"
            elif (found := self._value(path, held, DEEP, told=True)) is not _OUT:
                self.counts[path] = found

    def _value(self, path: str, value: Any, deep: int, *, told: bool) -> Any:
        """The value as JSON, or `_OUT` if it does not count.

        Args:
            deep: Levels of records that may still be entered.
            told: Whether an object that is no record counts, by its class and its constructor's arguments.
        Raises:
            Unshareable: it cannot be looked at.
        """
        self._left -= 1
        if self._left < 0:
            raise Unshareable("self holds too much to look at")
        kind = type(value)
        if value is None:
            return _OUT
        if kind in SCALARS:
            return value
        if isinstance(value, (type, ModuleType)):
            return ["class", *self._named(value)]
        if isinstance(value, (*SCALARS, *_VALUES)):
            return ["value", *_name(kind), repr(value)]
        if isinstance(value, (FunctionType, BuiltinFunctionType, MethodType, partial)):
            return self._held_function(path, value, deep)
        if isinstance(value, (*_ROWS, *_TABLES, set, frozenset)):
            return self._container(path, value, deep)
        if _unreadable(value):
            raise Unshareable(f"{path} holds a {kind.__name__}")
        fields = _record(value)
        if fields is not None:
            if deep <= 0:
                self.left_out[path] = f"a {kind.__name__}: too deep"
                return _OUT
            held = self._fields(path, fields, deep - 1)
            if held or told:
                return ["record", *_name(kind), held]
            self.left_out[path] = f"a {kind.__name__} without data"
            return _OUT
        if _is_url(kind):
            return ["value", *_name(kind), str(value)]
        if not told:
            self.left_out[path] = f"a {kind.__name__}"
            return _OUT
        given = self._fields(path, _told(value), deep - 1)
        names = ", ".join(name for name, _ in given)
        self.left_out[path] = f"a {kind.__name__}, but for its class{f' and what it was told: {names}' * bool(names)}"
        return ["object", *_name(kind), given]

    def _fields(self, path: str, fields: Mapping[str, Any], deep: int) -> list[list[Any]]:
        found = [(name, self._value(f"{path}.{name}", held, deep, told=False)) for name, held in sorted(fields.items())]
        return [[name, value] for name, value in found if value is not _OUT]

    def _container(self, path: str, value: Any, deep: int) -> list[Any]:
        def held(item: Any) -> Any:
            if item is None:
                return None
            found = self._value(f"{path}[]", item, deep, told=True)
            return ["out", *_name(type(item))] if found is _OUT else found

        kind = type(value)
        if isinstance(value, _ROWS):
            items: list[Any] = [held(item) for item in value]
        elif isinstance(value, _TABLES):
            items = [[held(name), held(item)] for name, item in value.items()]
        else:
            items = sorted(json.dumps(held(item)) for item in value)
        if kind in (list, tuple, dict, set, frozenset):
            return [kind.__name__, items]
        own = {} if isinstance(value, UserDict | UserList) else attributes_of(value)
        return ["container", *_name(kind), items, self._fields(path, own, deep - 1)]

    def _held_function(self, path: str, value: Any, deep: int) -> list[Any]:
        if isinstance(value, partial):
            given = [self._container(path, part, deep) for part in (value.args, value.keywords)]
            return ["partial", self._value(path, value.func, deep, told=True), *given]
        if isinstance(value, MethodType):
            return ["method", *_name(type(value.__self__)), value.__func__.__name__]
        try:
            return ["function", *self._function(value)]
        except Unshareable as why:
            self.left_out[path] = str(why)
            return ["function", *_name(value)]


def _name(value: Any) -> list[str]:
    return [str(getattr(value, "__module__", "")), str(getattr(value, "__qualname__", ""))]


def _is_object(value: Any) -> bool:
    """Whether it is neither data nor None, and may have been made on first use."""
    plain = (*SCALARS, *_VALUES, *_ROWS, *_TABLES, set, frozenset, type, ModuleType, FunctionType)
    return not isinstance(value, plain)


def _unreadable(value: Any) -> bool:
    """Whether it holds values that can be looked at only by iterating over it, or not at all."""
    kind = type(value)
    if isinstance(value, (Mapping, Sequence, Set)) or hasattr(kind, "__array__"):
        return True
    contents = hasattr(kind, "__len__") or hasattr(kind, "__next__")
    return contents and _holds_more(kind) and not isinstance(value, io.IOBase)


def _is_url(kind: type) -> bool:
    """Whether it is a URL: HTTP libraries have their own classes for what is text elsewhere."""
    return kind.__name__.lower().endswith("url")


def _record(value: Any) -> Mapping[str, Any] | None:
    """The fields of a record; None: it is not one."""
    kind = type(value)
    names = declared(kind)
    if names is not None:
        attributes = attributes_of(value)
        return {name: attributes[name] for name in names if name in attributes}
    return attributes_of(value) if _has_no_methods(kind) else None


@of_class
def _has_no_methods(kind: type) -> bool:
    if kind is SimpleNamespace:
        return True
    if _holds_more(kind) or kind is object:
        return False
    return not any(
        (callable(made) and not isinstance(made, type) and not (name.startswith("__") and name.endswith("__")))
        or name in _DOES
        for base in kind.__mro__[:-1]
        for name, made in vars(base).items()
        if not isinstance(made, (staticmethod, classmethod))
    )


def _told(value: Any) -> dict[str, Any]:
    """The constructor's arguments that the object keeps under their names (also with underscores in front)."""
    attributes, kind = attributes_of(value), type(value)
    return {
        name: attributes[kept]
        for name in _parameters(kind)
        for kept in (name, f"_{name}", f"_{kind.__name__.lstrip('_')}__{name}")
        if kept in attributes
    }


@of_class
def _parameters(kind: type) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for base in kind.__mro__[:-1]:  # a subclass often passes arguments on as **kwargs
        if "__init__" in vars(base):
            try:
                names |= dict.fromkeys(list(inspect.signature(vars(base)["__init__"]).parameters)[1:])
            except (ValueError, TypeError):  # written in C
                continue
    return tuple(names)


def _holds_more(kind: type) -> bool:
    """Whether its objects store more than their attributes: an array, a lock, most types written in C."""
    members = sum(
        isinstance(made, MemberDescriptorType) and name not in ("__dict__", "__weakref__")
        for base in kind.__mro__
        for name, made in vars(base).items()
    )
    pointers = members + (kind.__weakrefoffset__ > 0) + (kind.__dictoffset__ > 0)
    return kind.__itemsize__ != 0 or kind.__basicsize__ != object.__basicsize__ + pointers * _POINTER_BYTES


class PerObject(Generic[T]):
    """A value for each object, made once, and forgotten when the object is collected."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], T]] = {}
        self._lock = threading.RLock()  # an object may be collected while the lock is held
        self._pid = 0
        os.register_at_fork(after_in_child=self._after_fork)

    def of(self, value: Any, make: Callable[[], T]) -> T | None:
        """Return the object's value, made now if there is none; None: the object allows no weak reference."""
        with self._lock:
            if self._pid != os.getpid():  # a copy in a forked child is another object
                self._known, self._pid = {}, os.getpid()
            known = self._known.get(id(value))
            if known is not None and known[0]() is value:
                return known[1]
            try:
                here = weakref.ref(value, partial(self._gone, id(value)))
            except TypeError:
                return None
            made = make()
            self._known[id(value)] = (here, made)
            return made

    def _gone(self, number: int, here: weakref.ref[Any]) -> None:
        with self._lock:
            known = self._known.get(number)
            if known is not None and known[0] is here:
                del self._known[number]

    def _after_fork(self) -> None:
        self._lock = threading.RLock()


_FIRST: PerObject[frozenset[str]] = PerObject()  #: attributes that held objects when their owner was first seen
