"""How many tokens do pictures, sounds and files in a prompt cost? Pictures by pixels, if the provider's rule is known.

The length of base64 text says nothing about its tokens. It is recognised by its alphabet and length, and by the names
of fields that hold nothing else. Pure; arguments may be any values, and nothing here raises.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from math import ceil
from typing import Any

from ratelimit_worker.policy.pattern import lazy

#: Tokens of a sound, a file, or a picture of unknown size: about what a picture of 1024 x 1024 costs.
ATTACHMENT_TOKENS = 1_000

#: Shorter texts are not checked for base64: counted as text they cost little.
LEAST_ENCODED = 1_024
_SAMPLE = 512  #: characters that are checked at the beginning, in the middle and at the end of a text
_HEAD = 65_536  #: characters of a picture that are searched for its size (a JPEG may begin with a thumbnail)

#: A tuple and not a set: a tool's schema may say `"type": ["string", "null"]`, and a list cannot be looked up in a set.
_TYPES = (
    "image",
    "audio",
    "video",
    "media",
    "file",
    "image_generation_call",
    "computer_screenshot",
    "redacted_thinking",
    "document",
)
#: Fields that always hold data and never text.
_FIELDS = frozenset(
    {
        *("inline_data", "inlineData", "file_data", "fileData", "encrypted_content", "b64_json"),
        *(
            "image_base64",
            "video_base64",
            "audio_base64",
            "bytes",
            "signature",
            "thought_signature",
            "thoughtSignature",
        ),
    }
)
_ENCODED = lazy(r"[A-Za-z0-9+/_=\r\n-]*")
_DATA_URL = lazy(r"data:([A-Za-z0-9.+/-]*)[^,\s\"']{0,100};base64,([A-Za-z0-9+/_=-]*)")

#: Data within a text, such as JSON that a tool has returned: a long run of letters and digits, perhaps with line ends.
#: (The quantifier is possessive, so that each run is scanned only once.)
_RUN = lazy(r"(?:[A-Za-z0-9+/_-]{60,}+=*+(?:\r?\n|(?:\\r)?\\n)?+)++")
_LEAST_RUN = 4_096  #: characters; shorter runs are counted as text
#: A run of that length must cover at least one of the sample positions at this distance. Checking these takes a
#: thousandth of the time of a search, and most texts are found to have no such run.
_EVERY = _LEAST_RUN // 2
_MAYBE_RUN = lazy(r"[A-Za-z0-9+/_=\r\n\\-]{64}")

_PROVIDERS = {"openai": ("gpt", "o1", "o3", "o4", "chatgpt"), "google": ("gemini", "gemma")}


def rule_of(model: Any) -> str:
    """Whose rule for pictures a model follows: "openai", "anthropic", "google"; "": unknown."""
    if not isinstance(model, str):
        return ""
    name = model.rpartition("/")[2]
    if "claude" in name:  # Bedrock puts region and vendor before it
        return "anthropic"
    return next((rule for rule, begin in _PROVIDERS.items() if name.startswith(begin)), "")


def measured(text: str, rule: str) -> tuple[int, int]:
    """(bytes of text, tokens of data) in one text that may contain data."""
    if len(text) < LEAST_ENCODED:
        return _bytes(text), 0
    if is_encoded(text):
        return 0, data_tokens("", text, rule)
    if ";base64," not in text:
        return _without_runs(text, rule)
    tokens, rest, at = 0, 0, 0
    for found in _DATA_URL.finditer(text):
        if len(found[2]) < LEAST_ENCODED:
            continue
        tokens += data_tokens(found[1], found[2], rule)
        rest += _bytes(text[at : found.start()])
        at = found.end()
    more, last = _without_runs(text[at:], rule)
    return rest + more, tokens + last


def _without_runs(text: str, rule: str) -> tuple[int, int]:
    if len(text) < _LEAST_RUN or not any(_MAYBE_RUN.match(text, at) for at in range(0, len(text), _EVERY)):
        return _bytes(text), 0
    tokens, rest, at = 0, 0, 0
    for found in _RUN.finditer(text):
        data = re.sub(r"\\[rn]", "", found[0]) if "\\" in found[0] else found[0]
        if len(data) >= _LEAST_RUN and is_encoded(data):
            tokens += data_tokens("", data, rule)
            rest += _bytes(text[at : found.start()])
            at = found.end()
    return rest + _bytes(text[at:]), tokens


def is_encoded(text: str) -> bool:
    """Whether a long text is base64: only characters of its alphabet, and of every kind (upper, lower case, digits)."""
    if len(text) < LEAST_ENCODED:
        return False
    middle = len(text) // 2
    samples = (text[:_SAMPLE], text[middle : middle + _SAMPLE], text[-_SAMPLE:])
    if not all(_ENCODED.fullmatch(sample) for sample in samples):
        return False
    head = samples[0]
    kinds = (str.isupper, str.islower, str.isdigit)
    return all(any(map(kind, head)) for kind in kinds) and not re.search(r"(.)\1{63}", head)


def holds_data(text: str) -> bool:
    """Whether a text contains base64."""
    if len(text) < LEAST_ENCODED:
        return False
    return is_encoded(text) or ";base64," in text or _without_runs(text, "")[1] > 0


def opened(part: Mapping[Any, Any], rule: str) -> tuple[Iterable[Any], int]:
    """(values in a part of a prompt that are still to be measured, tokens of the rest)."""
    kind = part.get("type")
    if isinstance(kind, str) and _is_attached(kind):
        if kind == "document" and (inside := _text_of_document(part)) is not None:
            return inside, 0
        return (), _piece_tokens(part, rule)
    if not any(isinstance(name, str) and name in _FIELDS for name in part):
        return part.values(), 0
    tokens = 0
    inside = []
    for name, value in part.items():
        if name not in _FIELDS:
            inside.append(value)
        elif isinstance(value, Mapping):
            tokens += _piece_tokens(value, rule)
        elif isinstance(value, str) and len(value) >= LEAST_ENCODED:
            tokens += data_tokens("", value, rule)
        else:
            inside.append(value)
    return inside, tokens


def is_piece(part: Mapping[Any, Any]) -> bool:
    """Whether a part of a prompt contains something other than text."""
    return opened(part, "")[1] > 0


def data_tokens(media: str, data: str, rule: str) -> int:
    """Tokens of one piece of base64, by its media type or first bytes; encoded text counts as text."""
    if media.startswith("text/") or media == "application/json":
        return len(data) * 3 // 4 // 4
    size = picture_size(data)
    if size is not None:
        return picture_tokens(*size, rule)
    return min(ATTACHMENT_TOKENS, len(data) // 4)  # small data, such as a signature, costs less


def picture_tokens(width: int, height: int, rule: str, *, low: bool = False) -> int:
    """Tokens of a picture, by the published rule of a provider; `ATTACHMENT_TOKENS` where none is known.

    Args:
        low: OpenAI's `"detail": "low"`.
    """
    width, height = max(1, width), max(1, height)
    match rule:
        case "openai":  # within 2048 x 2048, then its shorter side at most 768; 170 for each tile of 512
            if low:
                return 85
            scale = min(1.0, 2048 / max(width, height))
            scale *= min(1.0, 768 / (min(width, height) * scale))
            return 85 + 170 * ceil(width * scale / 512) * ceil(height * scale / 512)
        case "anthropic":  # its longer side at most 1568
            scale = min(1.0, 1568 / max(width, height))
            return max(1, round(width * scale * height * scale / 750))
        case "google":  # one tile up to 384 x 384, else tiles of 768
            if max(width, height) <= 384:
                return 258
            return 258 * ceil(width / 768) * ceil(height / 768)
        case _:
            return ATTACHMENT_TOKENS


def picture_size(data: str) -> tuple[int, int] | None:
    """Width and height of a PNG, GIF, JPEG or WebP in base64; None: another format, or the size was not found."""
    head = re.sub(r"[\r\n]", "", data[:_HEAD]).translate({ord("-"): "+", ord("_"): "/"})
    try:
        raw = binascii.a2b_base64(head[: len(head) // 4 * 4])
    except ValueError:
        return None
    if raw.startswith(b"\x89PNG\r\n\x1a\n") and len(raw) >= 24:
        return int.from_bytes(raw[16:20], "big"), int.from_bytes(raw[20:24], "big")
    if raw[:4] == b"GIF8" and len(raw) >= 10:
        return int.from_bytes(raw[6:8], "little"), int.from_bytes(raw[8:10], "little")
    if raw[:4] == b"RIFF" and raw[8:12] == b"WEBP" and len(raw) >= 30:
        return _webp(raw)
    return _jpeg(raw) if raw[:2] == b"\xff\xd8" else None


def _webp(raw: bytes) -> tuple[int, int] | None:
    match raw[12:16]:
        case b"VP8 ":
            return int.from_bytes(raw[26:28], "little") & 0x3FFF, int.from_bytes(raw[28:30], "little") & 0x3FFF
        case b"VP8L":
            bits = int.from_bytes(raw[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return int.from_bytes(raw[24:27], "little") + 1, int.from_bytes(raw[27:30], "little") + 1
        case _:
            return None


def _jpeg(raw: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(raw) and raw[at] == 0xFF:
        marker = raw[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(raw[at + 7 : at + 9], "big"), int.from_bytes(raw[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(raw[at + 2 : at + 4], "big")
    return None


def _is_attached(kind: str) -> bool:
    return kind in _TYPES or kind.endswith("_url") or (kind.startswith("input_") and kind != "input_text")


def _text_of_document(part: Mapping[Any, Any]) -> Iterable[Any] | None:
    """The text of a document; None if it is a file (a PDF, an address, an id)."""
    source = part.get("source")
    if not isinstance(source, Mapping):  # Cohere and others put the text there directly
        return [value for name, value in part.items() if name != "type"]
    if source.get("type") in ("text", "content"):
        return [value for name, value in part.items() if name not in ("type", "source")] + [
            value for name, value in source.items() if name not in ("type", "media_type")
        ]
    return None


def _piece_tokens(part: Mapping[Any, Any], rule: str) -> int:
    low, found = False, None
    for name, value in _within(part, 3):
        low = low or (name == "detail" and value == "low")
        if found is None and len(value) >= 32 and name not in ("mime_type", "mimeType", "media_type"):
            url = _DATA_URL.match(value[: _HEAD + 200])
            found = (url[1], value[url.start(2) :]) if url is not None else ("", value)
    if rule == "openai" and low:
        return picture_tokens(1, 1, rule, low=True)
    if found is None:
        return ATTACHMENT_TOKENS
    media, data = found
    if not media and "://" in data[:16]:  # an address
        return ATTACHMENT_TOKENS
    media = media or next((said for name, said in _within(part, 3) if name in ("mime_type", "mimeType")), "")
    return data_tokens(media, data, rule)


def _within(part: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, str]]:
    for name, value in list(part.items())[:16]:
        if isinstance(value, str):
            yield str(name), value
        elif isinstance(value, Mapping) and depth > 0:
            yield from _within(value, depth - 1)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
