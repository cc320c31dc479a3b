"""When are two calls the same? When nothing differs that may change the answer.

What counts: task, version, lane, context, namespace (the tenant, if nothing else is said) and the arguments, by the
names that the function gives them. By position or by name, a default given or left out, 1 and 1.0, a tuple and a list
are the same. Every letter of a text counts, True is not 1, and None is not an argument that is left out (unless it is
its default). The order of keys in nested objects does not count.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Change when what goes into a digest does, so that what was kept under the old one is not found.
_OF_ARGUMENTS, _OF_CALLS = b"1", b"2"
MORE, MORE_NAMED = "*", "**"  #: names that no parameter has: of `*args` and `**kwargs`


class Scope(NamedTuple):
    """Among which calls an answer is shared, apart from their arguments."""

    task: str
    lane: str
    namespace: str  #: calls of another one never get its answers
    version: str = ""  #: of the task's function or prompt
    context: str = ""


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a function's signature says of the arguments of its calls."""

    positional: tuple[str, ...] = ()  #: those that may be given without a name, in their order
    named: frozenset[str] = frozenset()  #: those that may be given by name
    defaults: Mapping[str, Any] = field(default_factory=dict)  #: of those that count, as JSON has them
    ignored: frozenset[str] = frozenset()  #: that do not count

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        ignored: Collection[str] = (),
        plain: Callable[[Any], Any] = lambda value: value,
    ) -> Parameters:
        """The parameters of a function.

        Args:
            ignored: Names of arguments that do not count.
            plain: A default → as JSON has it, which raises TypeError or ValueError where it is none: then to leave it
                out is not the same as to give it.
        """
        each = inspect.signature(function).parameters.values()
        defaults = {}
        for one in each:
            if one.default is not one.empty and one.name not in ignored:
                try:
                    defaults[one.name] = canonical(plain(one.default))
                except (TypeError, ValueError, RecursionError):
                    continue
        return cls(
            positional=tuple(one.name for one in each if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)),
            named=frozenset(one.name for one in each if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)),
            defaults=defaults,
            ignored=frozenset(ignored),
        )

    def bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call that count, by name, in their canonical form.

        Args:
            args, kwargs: As JSON has them.
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
        found = {name: canonical(value) for name, value in found.items()}
        return {**self.defaults, **found}


ANY = Parameters()  #: of a function that nobody knows


def canonical(value: Any) -> Any:
    """A value of JSON, so that what is the same is written the same: numbers by their value, a tuple as a list."""
    kind = type(value)
    if kind is float:
        return int(value) if value.is_integer() else value
    if kind is dict:
        return {name: canonical(one) for name, one in value.items()}
    if kind is list or kind is tuple:
        return [canonical(one) for one in value]
    return value


def fingerprint(scope: Scope, arguments: Mapping[str, Any]) -> str:
    """The identity of a call among all whose answers may be shared.

    Args:
        arguments: As `Parameters.bound` gives them.
    Returns:
        64 hexadecimal digits; nothing of the arguments can be read from it.
    Raises:
        TypeError: a value is no JSON.
    """
    return _hash(_OF_CALLS, json.dumps([*scope, arguments], sort_keys=True, separators=(",", ":")))


def digest(task: str, lane: str, arguments: Any) -> str:
    """What a message asks, letter by letter: by it a call that is made again under its id is known.

    Older and newer versions must make the same of it, since both may send the call.

    Raises:
        TypeError: a value is no JSON.
    """
    text = json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _hash(_OF_ARGUMENTS, task, lane, text)


def _hash(version: bytes, *parts: str) -> str:
    return hashlib.sha256(b"\0".join((version, *(part.encode() for part in parts)))).hexdigest()
