"""How is a value written so that equal values are written alike? As JSON, whatever kind of plain data it is.

| a value | is written as |
|---|---|
| text, True, False, None | itself |
| a number, of numpy too | its value: 1 and 1.0 are the same; True is not 1 |
| a list, a tuple | a list |
| a dict | an object, whatever the order of its keys |
| a date, time, duration, Decimal, UUID, path, bytes, range, complex, set, enum, pattern | its kind and its value |
| a dataclass, named tuple, a model of pydantic, attrs, msgspec | its class, and all that it holds |
| anything else | not at all: `Unwritable` |

Values of two kinds are never written alike: what JSON does not have is an object with the single key `$`, and so is a
dict with a key that is `$` or not a text.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from pathlib import PurePath
from types import MemberDescriptorType
from typing import Any, TypeVar
from uuid import UUID

T = TypeVar("T")

_TAG = "$"
_LONG = 1 << 10_000  #: beyond this, integers are written in hex: Python refuses more than 4,300 decimal digits
_MOST_CLASSES = 1_000  #: classes whose declared fields are cached
#: Returns the name under which a class is written; two different classes must never have the same.
Named = Callable[[type], Any]


class Unwritable(TypeError):
    """A value is not plain data; `str()` is the name of its class."""


def by_name(kind: type) -> list[str]:
    """A class by its module and name."""
    return [kind.__module__, kind.__qualname__]


def canonical(value: Any, named: Named = by_name) -> Any:
    """The value as plain values for JSON; equal values are written alike.

    Args:
        named: How a class is written.
    Raises:
        Unwritable: the value, or something in it, is not plain data.
        RecursionError: it is nested too deeply, or contains itself.
    """
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        return value if -_LONG < value < _LONG else _tagged("int", hex(value))
    if kind is float:
        return int(value) if value.is_integer() else value
    if kind is dict:
        return _object(value, named)
    if kind is list or kind is tuple:
        return [canonical(one, named) for one in value]
    return _other(value, kind, named)


def _object(value: Mapping[Any, Any], named: Named) -> Any:
    made = {}
    for name, one in value.items():
        if type(name) is not str or name == _TAG:
            pairs = ([canonical(name, named), canonical(one, named)] for name, one in value.items())
            return _tagged("dict", _sorted(pairs))
        made[name] = canonical(one, named)
    return made


def _tagged(word: str, *parts: Any) -> dict[str, Any]:
    return {_TAG: [word, *parts]}


def _sorted(parts: Any) -> list[Any]:
    """In an order that does not depend on the process's hash seed."""
    return sorted(parts, key=lambda part: json.dumps(part, sort_keys=True))


def _moment(value: datetime | time) -> str:
    zone = "" if value.tzinfo is None else f" {value.tzinfo}"  # date arithmetic depends on the zone
    return f"{value.isoformat()}{zone}{' again' * value.fold}"


#: For values of exactly these classes: one of a subclass may hold more.
_FORMS: Mapping[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("datetime", _moment),
    date: ("date", date.isoformat),
    time: ("time", _moment),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", lambda value: value.hex),
    bytes: ("bytes", bytes.hex),
    bytearray: ("bytes", bytearray.hex),
    complex: ("complex", lambda value: [canonical(value.real), canonical(value.imag)]),
    range: ("range", lambda value: [value.start, value.stop, value.step]),
    re.Pattern: ("pattern", lambda value: [canonical(value.pattern), value.flags]),
}


def _other(value: Any, kind: type, named: Named) -> Any:
    if kind in _FORMS:
        word, form = _FORMS[kind]
        return _tagged(word, form(value))
    if kind is set or kind is frozenset:
        return _tagged("set", _sorted(canonical(one, named) for one in value))
    if isinstance(value, Enum):  # with its value, which a deploy may change
        return _tagged("enum", named(kind), value.name, canonical(value.value, named))
    if isinstance(value, PurePath) and kind.__module__.partition(".")[0] == "pathlib":
        return _tagged("path", kind.__name__, str(value))
    if kind.__module__.partition(".")[0] == "numpy":
        return _of_numpy(value, kind, named)
    held = held_by_record(value)
    if held is None:
        raise Unwritable(kind.__name__)
    return _tagged("record", named(kind), {name: canonical(one, named) for name, one in held.items()})


def _of_numpy(value: Any, kind: type, named: Named) -> Any:
    """A number, text or bytes of numpy. Its arrays and times raise `Unwritable`."""
    scalar = kind.__name__ != "ndarray" and getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufcSU")
    plain = value.item() if scalar else value
    if type(plain) not in (bool, int, float, complex, str, bytes):
        raise Unwritable(kind.__name__)
    return canonical(plain, named)


# ── records ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def held_by_record(value: Any) -> Mapping[str, Any] | None:
    """All that a record (dataclass, model, named tuple) holds, by name; None: its class declares no fields."""
    kind = type(value)
    if isinstance(value, tuple) and kind.__mro__[1] is tuple and hasattr(kind, "_fields"):
        return dict(zip(kind._fields, value, strict=True))
    if declared(kind) is None or isinstance(value, (list, tuple, dict, set, str, bytes, int, float)):
        return None
    held = attributes_of(value)
    for apart in ("__pydantic_extra__", "__pydantic_private__"):
        if more := getattr(value, apart, None):
            held = {**held, apart: dict(more)}
    return held


def of_class(ask: Callable[[type], T]) -> Callable[[type], T]:
    """Cache a function of a class: it is called once for each."""
    kept: Callable[[Any], T] = lru_cache(_MOST_CLASSES)(ask)
    return kept


@of_class
def declared(kind: type) -> tuple[str, ...] | None:
    """The fields of a dataclass or model that its constructor takes; None: the class is neither."""
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind) if field.init)
    for mark in ("__pydantic_fields__", "__fields__", "__struct_fields__"):  # pydantic 2 and 1, msgspec
        if any(mark in vars(base) for base in kind.__mro__):
            return tuple(getattr(kind, mark))
    if (fields := getattr(kind, "__attrs_attrs__", None)) is not None:
        return tuple(field.name for field in fields if field.init)
    return None


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes in an object's `__dict__` and `__slots__`, without unset ones and cached properties."""
    kind = type(value)
    slots = {name: getattr(value, name) for name in members(kind) if hasattr(value, name)}
    kept = {**(getattr(value, "__dict__", None) or {}), **slots}
    return {name: held for name, held in kept.items() if not isinstance(class_has(kind, name), cached_property)}


def class_has(kind: type, name: str) -> Any:
    """The attribute that a class or one of its bases has under this name; None: there is none."""
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def members(kind: type) -> list[str]:
    """The names in `__slots__` of a class and of those that it derives from."""
    return [
        name
        for base in kind.__mro__
        for name, made in vars(base).items()
        if isinstance(made, MemberDescriptorType) and not name.startswith("__")
    ]
