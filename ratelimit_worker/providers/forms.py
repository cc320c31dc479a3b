"""Audio and images in requests: base64 in a call's arguments, and a multipart form for the provider.

A file is `{"data": base64, "filename": "a.mp3"}` (or `"content_type"` instead of the name), or a `data:` URL. Nothing
is read from a disk or an address: else any caller could have files of the worker's machine sent.
"""

from __future__ import annotations

import binascii
import json
import mimetypes
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.endpoints import Operation

#: Fields that are files; a `data:` URL in any other is a text.
FILES = ("file", "image", "mask")
#: File extensions of audio and image types; Python's own table varies with the machine.
_ENDINGS = {
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
    "audio/mp4": "m4a",
    "audio/m4a": "m4a",
    "audio/x-m4a": "m4a",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/webm": "webm",
    "video/mp4": "mp4",
    "video/webm": "webm",
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
}
_DATA_URL = re.compile(r"data:([A-Za-z0-9.+/-]{1,100})(?:;[A-Za-z0-9.=_-]{1,100})*;base64,")
_TYPE = re.compile(r"[A-Za-z0-9.+-]{1,60}/[A-Za-z0-9.+-]{1,60}")
_MOST_NAME = 200  #: characters of a file's name
_MOST_DEPTH = 8

File = tuple[str, bytes, str]  #: name, content, type
Part = File | tuple[None, str]


def leaves_as_form(operation: Operation | None, body: Any) -> bool:
    """Whether a body is sent as multipart/form-data."""
    if operation is None or operation.form == "never" or not isinstance(body, Mapping):
        return False
    return operation.form == "always" or any(_is_file(one) for name in FILES for one in _several(body.get(name)))


def form(body: Mapping[str, Any]) -> list[tuple[str, Part]]:
    """The parts of a body; lists and tables are named as OpenAI's clients name them (`a[]`, `a[b]`).

    Raises:
        BadInput: a file is invalid.
    """
    parts: list[tuple[str, Part]] = []
    for name, value in body.items():
        if name in FILES:
            told = f"{name}[]" if isinstance(value, list) else name
            parts += [(told, _file(name, one)) for one in _several(value)]
        else:
            parts += [(told, (None, text)) for told, text in _flat(str(name), value)]
    return parts


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_file(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("data"), str)
    return isinstance(value, str) and _DATA_URL.match(value) is not None


def _file(field: str, value: Any) -> File:
    shape = f'{field}: use {{"data": base64, "filename": "a.mp3"}} or a data: URL'
    if isinstance(value, str):
        found = _DATA_URL.match(value)
        if found is None:
            raise BadInput(shape)
        kind, data, name = found[1].lower(), value[found.end() :], ""
    elif isinstance(value, Mapping) and isinstance(value.get("data"), str):
        data, kind, name = value["data"], value.get("content_type") or "", value.get("filename") or ""
    else:
        raise BadInput(shape)
    if not isinstance(name, str) or len(name) > _MOST_NAME or not name.isprintable() or set('/\\"') & set(name):
        raise BadInput(f"{field}: filename is no plain name of at most {_MOST_NAME} characters")
    if not isinstance(kind, str) or (kind and not _TYPE.fullmatch(kind)):
        raise BadInput(f"{field}: content_type is none; use one such as audio/mpeg")
    if not (name or kind):
        raise BadInput(f"{field}: say what it is, by filename or content_type")
    try:
        content = binascii.a2b_base64(data, strict_mode=True)
    except ValueError:
        raise BadInput(f"{field}: its data is no base64") from None
    if not content:
        raise BadInput(f"{field}: there is nothing in it")
    name = name or f"file.{_ENDINGS.get(kind.lower(), 'bin')}"
    return name, content, kind or mimetypes.guess_type(name)[0] or "application/octet-stream"


def _flat(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, str]]:
    if value is None:
        return
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping) and depth < _MOST_DEPTH:
        for inner, one in value.items():
            yield from _flat(f"{name}[{inner}]", one, depth + 1)
    elif isinstance(value, list | tuple) and depth < _MOST_DEPTH:
        for one in value:
            yield from _flat(f"{name}[]", one, depth + 1)
    else:
        try:
            yield name, json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise BadInput(f"{name[:60]!a} cannot be written as a field of a form") from None
