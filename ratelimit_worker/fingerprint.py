"""Fingerprints: two calls are the same if nothing differs that may change the answer.

What counts: task, version, lane, context, namespace (the tenant, if nothing else is said) and the arguments, by the
names that the function gives them. By position or by name, a default given or left out, 1 and 1.0, a tuple and a list
are the same. Every letter of a text counts, True is not 1, and None is not an argument that is left out (unless it is
its default). `canonical` has the rules for every kind of value.

The same rules hold for calls on a queue and in process. On a queue the arguments have gone through JSON, and their
function gets them so; in process the arguments themselves count.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from ratelimit_worker.canonical import Named, by_name, canonical

#: Versions of the digests. Change one when its input changes, so that nothing is found that is kept under old digests.
_OF_ARGUMENTS, _OF_CALLS = b"1", b"2"
MORE, MORE_NAMED = "*", "**"  #: names for `*args` and `**kwargs`, which no parameter can have


class Scope(NamedTuple):
    """Everything but the arguments that calls must have in common to share an answer."""

    task: str
    lane: str
    namespace: str  #: calls of another one never get its answers
    version: str = ""  #: of the task's function or prompt
    context: str = ""


class Parameters(Struct, frozen=True):
    """A function's parameters, by which the arguments of its calls are compared."""

    positional: tuple[str, ...] = ()  #: those that may be given without a name, in their order
    named: frozenset[str] = frozenset()  #: those that may be given by name
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of parameters that count, in canonical form
    ignored: frozenset[str] = frozenset()  #: names of arguments that do not count

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        ignored: Collection[str] = (),
        plain: Callable[[Any], Any] = lambda value: value,
        named: Named = by_name,
    ) -> Parameters:
        """The parameters of a function; none, as in `ANY`, if it has no signature (it is written in C).

        Args:
            ignored: Names of arguments that do not count.
            plain: Converts a default in the way in which an argument is converted on its way. If it raises TypeError
                or ValueError, to leave that argument out is not the same as to give the default.
            named: As of `canonical`.
        """
        try:
            each = _signature(function).parameters.values()
        except (ValueError, TypeError):  # written in C
            return cls(ignored=frozenset(ignored))
        defaults = {}
        for one in each:
            if one.default is not one.empty and one.name not in ignored:
                try:
                    defaults[one.name] = canonical(plain(one.default), named)
                except (TypeError, ValueError, RecursionError):
                    continue
        return cls(
            positional=tuple(one.name for one in each if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)),
            named=frozenset(one.name for one in each if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)),
            defaults=defaults,
            ignored=frozenset(ignored),
        )

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any], named: Named = by_name) -> dict[str, Any]:
        """The arguments of a call that count, by name, in their canonical form.

        Args:
            named: As of `canonical`.
        Raises:
            Unwritable: one of them is not plain data.
            RecursionError: one is nested too deeply.
        """
        found: dict[str, Any] = dict(zip(self.positional, args, strict=False))
        if len(args) > len(self.positional):
            found[MORE] = args[len(self.positional) :]
        more = {}
        for name, value in kwargs.items():
            if name in self.named:
                found[name] = value
            elif name not in self.ignored:
                more[name] = value
        if more:
            found[MORE_NAMED] = more
        for name in self.ignored:
            found.pop(name, None)
        found = {name: canonical(value, named) for name, value in found.items()}
        return {**self.defaults, **found}

    def without_first(self) -> Parameters:
        """The same without the first one: `self`, which is known by other means."""
        first, rest = self.positional[:1], self.positional[1:]
        defaults = {name: value for name, value in self.defaults.items() if name not in first}
        return replace(self, positional=rest, named=self.named.difference(first), defaults=defaults)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of the function that is really called.

    A user's decorator may pass on other defaults, or arguments in another order, than the function that it wraps has.
    By the wrapped function's names, two different calls would look the same. Celery's wrappers and ours pass on what
    they get.
    """
    while hasattr(function, "__wrapped__"):
        scope = getattr(function, "__globals__", {}).get("__name__", "")
        if scope.partition(".")[0] not in ("celery", "ratelimit_worker"):
            break
        function = function.__wrapped__
    try:
        return inspect.signature(function, follow_wrapped=False)
    except ValueError:  # a wrapper written in C, as functools.cache is: it passes on what it gets
        return inspect.signature(function)


ANY = Parameters()  #: of a function that is not known


def fingerprint(scope: Scope, arguments: Mapping[str, Any]) -> str:
    """The fingerprint of a call.

    Args:
        arguments: As `Parameters.bound` gives them.
    Returns:
        64 hexadecimal digits; the arguments cannot be read from them.
    Raises:
        TypeError: a value is not JSON.
    """
    return _hash(_OF_CALLS, _write([*scope, arguments]))


def digest(task: str, lane: str, arguments: Any) -> str:
    """A digest of a message's content, character by character, by which a call that is sent again under its id is
    recognised.

    Older and newer versions must compute the same digest, since both may send the call.

    Raises:
        TypeError: a value is not JSON.
    """
    return _hash(_OF_ARGUMENTS, task, lane, _write(arguments))


#: As `json.dumps`, which makes an encoder for each call.
_write = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode


def _hash(version: bytes, *parts: str) -> str:
    return hashlib.sha256(b"\0".join((version, *(part.encode() for part in parts)))).hexdigest()
