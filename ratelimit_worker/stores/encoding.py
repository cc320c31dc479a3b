"""Which texts can a database of another encoding than UTF-8 keep? What it has no letter for is written as its escape.

PostgreSQL's own answer is to refuse the whole row, and an outcome must arrive. A server in SQL_ASCII keeps bytes as
they come, so it gets UTF-8; all connections speak UTF-8.
"""

from __future__ import annotations

import codecs
import json
from typing import Any

from sqlalchemy import Dialect, String
from sqlalchemy.types import TypeDecorator

_ATTRIBUTE = "ratelimit_worker_codec"


def codec_of(server_encoding: str) -> str | None:
    """Python's name for an encoding of PostgreSQL's; None: it takes every letter."""
    name = server_encoding.upper()
    if name in {"UTF8", "UNICODE", "SQL_ASCII", ""}:
        return None
    try:
        return codecs.lookup(name.replace("WIN", "CP")).name
    except LookupError:
        return "ascii"


def fitting(text: str, codec: str | None) -> str:
    """The text as it can be kept: `\\u65e5` for a letter that there is none for."""
    if codec is None or text.isascii():
        return text
    return text.encode(codec, "backslashreplace").decode(codec)


def tell(dialect: Dialect, server_encoding: str) -> None:
    """The encoding of the server behind an engine, once it is connected."""
    setattr(dialect, _ATTRIBUTE, (server_encoding, codec_of(server_encoding)))


class FittingText(TypeDecorator[str]):
    """A text, as far as the server has letters for it; the same in conditions as in rows."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else fitting(value, getattr(dialect, _ATTRIBUTE, ("", None))[1])


def json_for(dialect: Dialect, value: Any) -> str:
    """JSON, as far as the server has letters for it: where it is not in UTF-8 it takes no escapes either."""
    encoding, codec = getattr(dialect, _ATTRIBUTE, ("UTF8", None))
    if encoding.upper() in {"UTF8", "UNICODE"}:
        return json.dumps(value)
    return json.dumps(_fitting_all(value, codec), ensure_ascii=False)


def _fitting_all(value: Any, codec: str | None) -> Any:
    if isinstance(value, str):
        return fitting(value, codec)
    if isinstance(value, dict):
        return {fitting(name, codec): _fitting_all(one, codec) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting_all(one, codec) for one in value]
    return value
