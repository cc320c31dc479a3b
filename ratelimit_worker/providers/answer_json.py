"""Reads the body of an answer as JSON, with the mistakes that servers make.

Most bodies are valid JSON, which a fast reader reads. A body that it refuses is read a second time: some servers put
a byte order mark in front, declare another charset, or have raw line ends and half surrogate pairs in their texts. An
answer that was paid for is not thrown away for these. NaN and infinite numbers are refused: no JSON reader could read
them.
"""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any

import msgspec

from ratelimit_worker.policy.completion import without_comments

_BOM = b"\xef\xbb\xbf"
_CHARSET = re.compile(r"charset=\"?([a-z0-9_-]{3,20})")
#: Other charsets in which an answer may come. (Python knows many codecs that are no charsets, and some that are slow.)
_CHARSETS = re.compile(r"iso-8859-|latin|windows-125|cp125|utf-?16|utf-?32|gb|big5|shift_?jis|euc-")
#: Half of a surrogate pair, as an escape; escaped backslashes before it are skipped.
_HALF = re.compile(
    r"((?:\\\\|\\[^u\\]|\\u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})+)"
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)

_decode = msgspec.json.Decoder().decode


def read_json(raw: bytes | bytearray, content_type: str) -> Any:
    """The value in a body; half surrogate pairs are replaced by U+FFFD.

    Args:
        raw: Decoded (`answer_bytes`).
        content_type: In lower case.
    Raises:
        ValueError: it is no JSON.
    """
    body = without_comments(raw.removeprefix(_BOM))
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if not body:
            raise ValueError("nothing in it") from error
    told = _CHARSET.search(content_type)
    try:
        charset = told[1] if told is not None and _CHARSETS.match(told[1]) else "utf-8"
        text = bytes(raw if charset != "utf-8" else body).decode(charset)
        return _lenient.decode(_HALF.sub(_whole, text))
    except (ValueError, LookupError, RecursionError) as error:
        raise ValueError("no JSON") from error


def _whole(found: re.Match[str]) -> str:
    return found[1] or "\\ufffd"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError("a number beyond all bounds")
    return number


_lenient = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)
