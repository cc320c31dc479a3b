"""Texts for a database with another encoding than UTF-8: characters that it does not have are written as escapes.

PostgreSQL would refuse the whole row, but an outcome must arrive. A server with SQL_ASCII keeps bytes as they come, so
it gets UTF-8; all connections use UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy import JSON, Dialect, String
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeDecorator, TypeEngine

_ATTRIBUTE = "ratelimit_worker_codec"
_encode_json = msgspec.json.Encoder().encode


def codec_of(server_encoding: str) -> str | None:
    """Python's name for an encoding of PostgreSQL; None: it has every character."""
    name = server_encoding.upper()
    if name in {"UTF8", "UNICODE", "SQL_ASCII", ""}:
        return None
    try:
        return codecs.lookup(name.replace("WIN", "CP").replace("KOI8", "KOI8-")).name
    except LookupError:
        return "ascii"


def fitting(text: str, codec: str | None) -> str:
    """The text with escapes such as `\\u65e5` for characters that the encoding does not have."""
    if codec is None or text.isascii():
        return text
    return text.encode(codec, "backslashreplace").decode(codec)


def tell(dialect: Dialect, server_encoding: str) -> None:
    """Note the encoding of the server behind an engine, once it is connected."""
    setattr(dialect, _ATTRIBUTE, codec_of(server_encoding))


class FittingText(TypeDecorator[str]):
    """A text column with such escapes; they are used in conditions as in rows."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """To the database."""
        return None if value is None else fitting(value, _codec(dialect))

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """What is done with each value; None, which costs nothing: SQLite always has every character."""
        return None if dialect.name == "sqlite" else super().bind_processor(dialect)


class FittingJson(TypeDecorator[Any]):
    """The same for all texts in a value that is kept as JSON (binary if the database has that)."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The column's type in this database."""
        return dialect.type_descriptor(JSONB() if dialect.name == "postgresql" else JSON())

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        """To the database."""
        codec = _codec(dialect)
        return value if codec is None else _fitting_all(value, codec)


def json_text(value: Any) -> str:
    """JSON without Unicode escapes, which servers without UTF-8 refuse."""
    return _encode_json(value).decode()


def _codec(dialect: Dialect) -> str | None:
    found: str | None = getattr(dialect, _ATTRIBUTE, None)
    return found


def _fitting_all(value: Any, codec: str) -> Any:
    if isinstance(value, str):
        return fitting(value, codec)
    if isinstance(value, dict):
        return {fitting(name, codec): _fitting_all(one, codec) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_fitting_all(one, codec) for one in value]
    return value
