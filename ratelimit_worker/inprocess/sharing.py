"""When are two in-process calls the same, and which answers can be shared? Those that JSON gives back unchanged.

A call is identified by its name for statistics, its lane, namespace and context, the function itself and its arguments;
or by a `cache_key` in place of the last two, if the caller gives one. A wrong answer is worse than one more request, so
calls whose arguments cannot be told apart for certain are not shared:

| what | counts by |
|---|---|
| arguments | parameter name and value, as for calls on a queue: fingerprint.py, canonical.py |
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
from typing import Any, NamedTuple, TypeVar

from ratelimit_worker.canonical import Unwritable, canonical
from ratelimit_worker.errors import BadInput
from ratelimit_worker.fingerprint import Parameters, Scope, digest, fingerprint
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.inprocess.owner import SCALARS, Owner, PerObject, Unshareable

log = logging.getLogger(__name__)

T = TypeVar("T")

MOST_WRAPPERS = 50
MARK = 8  #: digits of a hash by which `explain` shows whether a part differs
MOST_NAMES = 10_000  #: most functions that are remembered

CacheKey = Callable[..., Any] | str | int | float | bool | list[Any] | tuple[Any, ...] | dict[str, Any] | None


class By(NamedTuple):
    """What a caller says about which parts identify its call.

    Args:
        cache_key: Counts in place of function, `self` and arguments; None: those count.
        ignored: Names of arguments that do not count.
    """

    cache_key: CacheKey = None
    ignored: tuple[str, ...] = ()


NOTHING_SAID = By()


class Sharing:
    """Fingerprints of in-process calls, and which functions of this process give answers that cannot be shared."""

    def __init__(self) -> None:
        self._apart: set[str] = set()  #: names of functions that gave an answer which cannot be kept
        self._said: set[tuple[str, str]] = set()

    def fingerprint(
        self,
        func: Callable[..., Any],
        scope: Scope,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        by: By = NOTHING_SAID,
    ) -> str | None:
        """The fingerprint of a call; None: it shares no answers.

        Args:
            scope: Its `task` is the function's name for statistics.
        Raises:
            BadInput: `cache_key` is no plain data.
        """
        name = scope.task
        if name in self._apart:  # this was logged when it was added
            return None
        left_out: dict[str, str] = {}
        try:
            made = self._written(func, name, args, kwargs, by, left_out, lambda parts: _digest(scope, parts))
        except Unshareable as why:
            self._say(name, f"share no answers: {why}")
            return None
        for path, what in left_out.items():
            self._say(name, f"share answers whatever {path} holds: {what}; cache_key= says otherwise")
        return made

    def _written(
        self,
        func: Callable[..., Any],
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        by: By,
        left_out: dict[str, str],
        write: Callable[[dict[str, Any]], T],
    ) -> T:
        """What `write`, which writes JSON, makes of the parts of a call that count, by name.

        Args:
            left_out: Gets the parts of `self` that do not count, by path, with the reason.
        Raises:
            Unshareable: the call cannot be told apart from others, or the function's answers are no JSON.
            BadInput: `cache_key` is no plain data.
        """
        if name in self._apart:
            raise Unshareable("an answer of this function was no JSON")
        if by.cache_key is not None:
            return write({"cache_key": _given_key(by.cache_key, args, kwargs)})
        try:
            return write(identity(func, args, kwargs, left_out, by.ignored))
        except RecursionError as error:
            raise Unshareable("its arguments are nested too deeply") from error
        except Unshareable:
            raise
        except Exception as error:  # e.g. a number of ten thousand digits; a proxy that works only in a web request
            raise Unshareable(type(error).__name__) from error

    def explain(
        self,
        func: Callable[..., Any],
        scope: Scope,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        by: By = NOTHING_SAID,
    ) -> dict[str, Any]:
        """How `fingerprint` decides, as plain values; what the call holds is shown only as a few digits of hashes."""
        left_out: dict[str, str] = {}
        told: dict[str, Any] = {"shares": False, "why": "", "key": None, "counts": {}, "left_out": left_out}
        try:
            parts, key = self._written(
                func, scope.task, args, kwargs, by, left_out, lambda parts: (parts, _digest(scope, parts))
            )
        except Unshareable as why:
            return {**told, "why": str(why)}
        always = {"name": scope.task, "lane": scope.lane, "context": scope.context}
        said = {"namespace": scope.namespace, "version": scope.version}
        counts = {**always, **{name: value for name, value in said.items() if value not in ("", "of ")}, **parts}
        return {
            **told,
            "shares": True,
            "key": key,
            "counts": {part: digest(part, "", [value])[:MARK] for part, value in counts.items()},
        }

    def answers(self, name: str, most_bytes: int) -> Answers:
        """How this function's answers are kept; after the first that cannot be, none of its calls is shared.

        Args:
            most_bytes: Size of an answer in JSON up to which it is kept.
        """

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


def _digest(scope: Scope, parts: Mapping[str, Any]) -> str:
    return fingerprint(scope, {"in process": parts})  # no argument of a task can have this name


def check_key(cache_key: CacheKey) -> None:
    """Check a cache key that is not a function.

    Raises:
        BadInput: it is no plain data.
    """
    if cache_key is not None and not callable(cache_key):
        _given_key(cache_key, (), {})


def _given_key(cache_key: CacheKey, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The call's `cache_key` as plain data; if it is a function, what it returns for the call's arguments.

    Raises:
        Unshareable: it is None.
        BadInput: it is no plain data.
    """
    key = cache_key(*args, **kwargs) if callable(cache_key) else cache_key
    if key is None:
        raise Unshareable("cache_key says None")
    try:
        json.dumps(plain := canonical(key, _named))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"cache_key={type(key).__name__}: use plain data: text, numbers, lists, dicts …") from error
    return plain


def identity(
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    left_out: dict[str, str] | None = None,
    ignored: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Function, self and arguments as plain values, by name.

    Args:
        left_out: Gets the parts of `self` that do not count, by path, with the reason; None: not wanted.
        ignored: Names of arguments that do not count.
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
    known = _parameters(func, ignored, bool(owner))
    try:
        bound = known.bound(args, kwargs, _named)
    except Unwritable as why:
        raise Unshareable(f"an argument is no plain data ({why})") from why
    return parts | {f"argument {name}": value for name, value in bound.items()}


def _parameters(func: Callable[..., Any], ignored: tuple[str, ...], without_first: bool) -> Parameters:
    """The parameters of a function, without the first if that is `self` and looked at separately."""

    def read() -> Parameters:
        known = Parameters.of(func, ignored, named=_named)
        takes_it = without_first and not isinstance(func, type | BuiltinFunctionType)
        return known.without_first() if takes_it else known

    by_asked = _PARAMETERS.of(func, dict)
    if by_asked is None:  # the function allows no weak reference, so nothing is remembered for it
        return read()
    asked = (ignored, without_first)
    if asked not in by_asked:
        by_asked[asked] = read()
    return by_asked[asked]


def _takes_self(func: Any) -> bool:
    code = getattr(inspect.unwrap(func), "__code__", None)
    return code is not None and code.co_argcount > 0 and code.co_varnames[0] in ("self", "cls")


def _check_plain(value: Any) -> None:
    """Check that JSON gives back the same value.

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
    """A function by its name if it can be found by that; else by its code, defaults and the values it closes over."""
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
    """Whether the module has this object under that name, perhaps within wrappers."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, "__dict__", {}).get(part)  # not getattr, which would run descriptors
    for _ in range(MOST_WRAPPERS):
        if found is None:
            return False
        if found is func:
            return True
        found = getattr(found, "__wrapped__", None) or getattr(found, "__func__", None)
    return False


def _code(code: CodeType) -> str:
    return _CODES.of(code, lambda: _digest_of(code)) or _digest_of(code)


def _digest_of(code: CodeType) -> str:
    parts: list[str] = [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
    for constant in code.co_consts:
        # the repr of a set has another order in each process
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
    """A class or module by its name; a class that cannot be imported by its name is equal only to itself."""
    module, name = getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)
    if isinstance(value, type) and (module == "__main__" or not _is_at(value, module, name)):
        return ["this", module, name, _TOKENS.of(value, lambda: uuid.uuid4().hex)]
    return ["name", module, name]


#: For each function: its parameters, by the arguments `ignored` and `without_first` of `_parameters`.
_PARAMETERS: PerObject[dict[tuple[tuple[str, ...], bool], Parameters]] = PerObject()
_CODES: PerObject[str] = PerObject()  #: digests of functions' code
_TOKENS: PerObject[str] = PerObject()  #: random names, one for each class, unique over all processes
