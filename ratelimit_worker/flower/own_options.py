"""Which of Flower's own options cannot be read? By itself Flower would end with a traceback that does not name it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flower.command import ENV_VAR_PREFIX, is_flower_envvar
from flower.utils import strtobool
from tornado.options import options

_WRITE = {int: "write a whole number", float: "write a number", bool: "write true or false"}


def flaw_of_environment(environ: Mapping[str, str]) -> str | None:
    """A variable of Flower's with a value that it cannot read, and what to write; None: there is none.

    Only numbers and switches can be wrong in this way, so no password is shown.
    """
    for name, value in environ.items():
        if is_flower_envvar(name):
            option = _option(name.removeprefix(ENV_VAR_PREFIX).lower())
            if wrong := _wrong(option, value, strtobool if option.type is bool else option.type):
                return f"{name}={value!r}: {wrong}"
    return None


def flaw_of_words(words: Sequence[str]) -> str | None:
    """The same for options of a command line that Flower knows: `--name=value`, or `--name` for a switch."""
    for word in words:
        name, equals, value = word.lstrip("-").partition("=")
        option = _option(name)
        if option.type is bool:  # Tornado reads any word
            continue
        if not equals:
            return f"{word}: write {word}=VALUE"
        if wrong := _wrong(option, value, option.type):
            return f"{word}: {wrong}"
    return None


def _wrong(option: Any, value: str, read: Any) -> str | None:
    try:
        for part in value.split(",") if option.multiple else [value]:
            read(part)
    except (ValueError, TypeError):
        return _WRITE.get(option.type, "this can only be set in flowerconfig.py")
    return None


def _option(name: str) -> Any:
    return options._options[name.replace("_", "-")]
