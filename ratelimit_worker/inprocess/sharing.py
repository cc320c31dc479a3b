"""When are two in-process calls the same, and which answers can stand for another? Only plain values travel unchanged.

A call is known by its name for statistics, its lane, tenant and context, the function itself and its arguments; or,
where who calls knows better, by a `cache_key` in place of the last two. A wrong answer is worse than one request more,
so arguments that cannot be told apart for certain are not shared:

| what | counts by |
|---|---|
| arguments | value: text, numbers, booleans, None, and lists, tuples and dicts of them; anything else is not shared |
| a function of a module or class | its name |
| one made inside another function, or in the script that runs | its code, and the plain values that it closes over |
| `self` (of a bound method, or a first parameter of that name) | class and plain data: owner.py |
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from ratelimit_worker.errors import BadInput
from ratelimit_worker.fingerprint import digest
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.inprocess.owner import SCALARS, Owner, PerObject, Unshareable

log = logging.getLogger(__name__)

MOST_WRAPPERS = 50
MARK = 8  #: digits that tell one value of a part from another
MOST_NAMES = 10_000  #: functions that are remembered

CacheKey = Callable[..., Any] | str | int | float | bool | list[Any] | tuple[Any, ...] | dict[str, Any] | None


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
        cache_key: CacheKey = None,
        tenant: str = "",
    ) -> str | None:
        """What calls with the same answer have in common; None: this one is its caller's alone.

        Args:
            cache_key: As `key_parts`.
            tenant: Who never gets the answers of another.
        Raises:
            BadInput: `cache_key` is no plain data.
        """
        if name in self._apart:  # which was said then
            return None
        left_out: dict[str, str] = {}
        try:
            parts = self.parts(func, name, args, kwargs, cache_key, left_out)
        except Unshareable as why:
            self._say(name, f"share no answers: {why}")
            return None
        for path, what in left_out.items():
            self._say(name, f"share answers whatever {path} holds: {what}; cache_key= says otherwise")
        return _digest(name, lane, context, tenant, parts)

    def parts(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        cache_key: CacheKey,
        left_out: dict[str, str],
    ) -> dict[str, Any]:
        """What of a call counts, by what it is called.

        Args:
            left_out: Is told what of `self` does not count, and why.
        Raises:
            Unshareable: the call cannot be told apart from others, or the function's answers are no JSON.
            BadInput: `cache_key` is no plain data.
        """
        if name in self._apart:
            raise Unshareable("an answer of this function was no JSON")
        if cache_key is not None:
            return {"cache_key": _given_key(cache_key, args, kwargs)}
        try:
            parts = identity(func, args, kwargs, left_out)
            json.dumps(parts)
        except RecursionError as error:
            raise Unshareable("its arguments are nested too deeply") from error
        except Unshareable:
            raise
        except Exception as error:  # a number of ten thousand digits; an object that answers nobody outside a request
            raise Unshareable(type(error).__name__) from error
        return parts

    def explain(
        self,
        func: Callable[..., Any],
        name: str,
        lane: str,
        context: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        cache_key: CacheKey = None,
        tenant: str = "",
    ) -> dict[str, Any]:
        """How `fingerprint` decides, as plain values; of what the call holds only a few digits of hashes."""
        left_out: dict[str, str] = {}
        told: dict[str, Any] = {"shares": False, "why": "", "key": None, "counts": {}, "left_out": left_out}
        try:
            parts = self.parts(func, name, args, kwargs, cache_key, left_out)
        except Unshareable as why:
            return {**told, "why": str(why)}
        counts = {"name": name, "lane": lane, "context": context, **({"tenant": tenant} if tenant else {}), **parts}
        return {
            **told,
            "shares": True,
            "key": _digest(name, lane, context, tenant, parts),
            "counts": {part: digest(part, "", [value])[:MARK] for part, value in counts.items()},
        }

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
                why = str(error) if isinstance(error, TypeError) else "an answer is no JSON"
                self._say(name, f"share no answers: {why}")
                raise
            return text

        return Answers(dumps=dumps, loads=json.loads)

    def _say(self, name: str, why: str) -> None:
        if (name, why) not in self._said and len(self._said) < MOST_NAMES:
            self._said.add((name, why))
            log.info("calls of %s %s", name, why, extra={"func": name, "why": why})


def _digest(name: str, lane: str, context: str, tenant: str, parts: Mapping[str, Any]) -> str:
    # without a tenant as in versions before, whose answers are found on
    return digest(name, lane, ["in process", context, parts, *([tenant] if tenant else [])])


def check_key(cache_key: CacheKey) -> None:
    """Whether a key that is no function can be one.

    Raises:
        BadInput: it is no plain data.
    """
    if cache_key is not None and not callable(cache_key):
        _given_key(cache_key, (), {})


def _given_key(cache_key: CacheKey, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What who calls says that counts, of this call.

    Raises:
        Unshareable: it says None.
        BadInput: it is no plain data.
    """
    key = cache_key(*args, **kwargs) if callable(cache_key) else cache_key
    if key is None:
        raise Unshareable("cache_key says None")
    try:
        json.dumps(plain := _plain(key))
    except (Unshareable, TypeError, ValueError, RecursionError) as error:
        raise BadInput(
            f"cache_key={type(key).__name__}: use text, numbers, and lists, tuples and dicts of them"
        ) from error
    return plain


def identity(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    left_out: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Function, self, positional and keyword arguments as plain values, by what they are called.

    Args:
        left_out: Is told what of `self` does not count, and why.
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
            owner, func = [func.__self__], func.__func__
        elif not isinstance(func, (FunctionType, BuiltinFunctionType, type)) and not hasattr(func, "__wrapped__"):
            owner, func = [func], type(func).__call__
        else:
            break
    if isinstance(func, BuiltinFunctionType) and not isinstance(func.__self__, ModuleType | type(None)):
        owner = [func.__self__]
    elif not owner and args and _takes_self(func):
        owner, args = [args[0]], args[1:]
    parts: dict[str, Any] = {"function": _function(func)}
    for one in owner:
        found = Owner(one, _function, _named)
        parts |= found.counts
        if left_out is not None:
            left_out |= found.left_out
    parts |= {f"argument {number}": _plain(value) for number, value in enumerate(args)}
    return parts | {f"keyword {name}": _plain(value) for name, value in kwargs.items()}


def _takes_self(func: Any) -> bool:
    code = getattr(inspect.unwrap(func), "__code__", None)
    return code is not None and code.co_argcount > 0 and code.co_varnames[0] in ("self", "cls")


def _plain(value: Any) -> Any:
    """As JSON in which a list, a tuple and a dict cannot be taken for each other."""
    kind = type(value)
    if kind in SCALARS:
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
    elif kind not in SCALARS:
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
    if type(value) in SCALARS:
        return value
    if type(value) is tuple:
        return ["tuple", *(_enclosed_value(item) for item in value)]
    raise Unshareable(f"the function closes over a {type(value).__name__}")


def _named(value: Any) -> list[str | None]:
    """A class or module by its name; a class that is nowhere to be imported from stands for itself."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)
    if isinstance(value, type) and (module == "__main__" or not _is_at(value, module, name)):
        return ["this", module, name, _TOKENS.of(value, lambda: uuid.uuid4().hex)]
    return ["name", module, name]


_TOKENS: PerObject[str] = PerObject()  #: names that no other object of any process has
