"""Status, headers and tokens of an answer that a caller's own client reads.

Nothing here reads from a connection: it gets what the caller has read, and keeps no more than it must. All of it comes
from outside; what makes no sense is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import msgspec

from ratelimit_worker.calls import Glimpse, Response, Sighting, Usage
from ratelimit_worker.policy.hosts import provider_at
from ratelimit_worker.policy.usage import finish_reason_of, usage_of

#: Most bytes that are kept of a streamed JSON answer or a line of an event stream; of longer ones no tokens are read.
MOST_KEPT = 8 * 1024 * 1024
#: Most bytes that are kept of an error's body: the limit that was met is named at its beginning.
MOST_ERROR = 64 * 1024

#: Ends of the paths whose answers are read. For clients that `watch` did not name, only these requests are read, since
#: a web page that a task fetches may have rate limits too.
_ENDPOINT = re.compile(
    r"(?:/(?:chat|fim|agents)/completions|/completions|/responses|/embeddings|/moderations|/rerank|/ocr"
    r"|/v\d[^/]*/(?:messages|chat|embed|conversations)|/images/(?:generations|edits|variations)"
    r"|/audio/(?:speech|transcriptions|translations)|/model/[^/]+/(?:converse|invoke)[a-z-]*"
    r"|:(?:stream)?(?:[gG]enerateContent|[rR]awPredict)|:(?:batch)?[eE]mbedContents?|:predict|/api/(?:chat|generate|embed))/?$"
)
_PATH_MODEL = re.compile(r"/(?:models?|deployments)/([^/:]+)")


class _Told(msgspec.Struct):
    """The fields that are read of an answer, or of one of its events; the rest is skipped and not kept."""

    model: Any = None
    modelVersion: Any = None  # noqa: N815 - Gemini's spelling
    usage: Any = None
    usageMetadata: Any = None  # noqa: N815
    usage_metadata: Any = None
    message: Any = None  #: Anthropic's first event
    response: Any = None  #: the events of OpenAI's Responses
    meta: Any = None  #: Cohere's, before its version 2
    service_tier: Any = None
    delta: Any = None  #: Cohere's last event
    x_groq: Any = None  #: Groq's last event
    prompt_eval_count: Any = None  #: Ollama's
    eval_count: Any = None


class _End(msgspec.Struct):
    """The fields in which a choice, or a whole answer, says why it ended."""

    finish_reason: Any = None
    stop_reason: Any = None
    finishReason: Any = None  # noqa: N815 - Gemini's
    stopReason: Any = None  # noqa: N815 - Bedrock's
    incomplete_details: Any = None
    status: Any = None
    object: Any = None


class _Ended(_End):
    choices: list[_End] | None = None
    candidates: list[_End] | None = None
    delta: _End | None = None  #: Anthropic's last event but one
    response: _End | None = None  #: the events of OpenAI's Responses


class _Asked(msgspec.Struct):
    model: Any = None


_told = msgspec.json.Decoder(_Told | list[_Told] | None).decode
_told_briefly = msgspec.json.Decoder(_Told).decode
_asked = msgspec.json.Decoder(_Asked).decode
_ended = msgspec.json.Decoder(_Ended).decode
#: Events that say why the answer ended; all of OpenAI's have the field, with null.
_SAYS_WHY = re.compile(rb'[eE]ason"\s*:\s*"')


def is_endpoint(path: str) -> bool:
    """Whether providers answer prompts at this path."""
    return _ENDPOINT.search(path) is not None


def model_asked(path: str, body: Any) -> str | None:
    """The model that a request names, in its path or its JSON body."""
    in_path = _PATH_MODEL.search(path)
    if in_path is not None:
        return in_path[1][:256]
    if isinstance(body, Mapping):
        return _name(body.get("model"))
    if not isinstance(body, bytes | bytearray | str):
        return None
    try:
        return _name(_asked(body).model)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None


class Reading:
    """One request of an attempt, and what is read of its answer as it arrives."""

    def __init__(self, seen: Sighting, host: str, path: str, body: Any) -> None:
        self._seen = seen
        asked = model_asked(path, body)
        self._glimpse = Glimpse(asked=asked, model=asked, provider=_provider(host, path))
        self._kept: list[bytes] = []
        self._size = 0
        self._events = self._lines = False
        self._sent_s = monotonic()
        seen.glimpses.append(self._glimpse)
        seen.look()

    def answered(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Note status and headers."""
        told: dict[str, str] = {}
        for written, value in headers:
            name = written.lower()
            if name != "set-cookie":  # not needed, and may be secret
                told[name] = f"{told[name]}, {value}" if name in told else value
        self._events = "event-stream" in told.get("content-type", "") and status < 300
        self._lines = "ndjson" in told.get("content-type", "")
        heard_s = monotonic() - self._sent_s
        self._glimpse.response = Response(status=status, headers=told, body=None, first_byte_s=heard_s)
        self._seen.look()

    def part(self, data: bytes | str) -> None:
        """Note a part of the body that the caller has read."""
        raw = data.encode("utf-8", "replace") if isinstance(data, str) else data
        if self._events and b"\n" in raw:
            *lines, raw = b"".join((*self._kept, raw)).split(b"\n")
            self._kept, self._size = [], 0
            for line in lines:
                self._event(line)
        self._size += len(raw)
        if self._size <= MOST_KEPT:
            self._kept.append(raw)
        else:
            self._kept = []

    def end(self) -> None:
        """Note that the caller has read the body to its end, or will read no more of it."""
        kept, size = b"".join(self._kept), self._size
        self._kept, self._size = [], 0
        if self._events:
            self._event(kept)
        elif size <= MOST_KEPT:
            self.whole(kept)

    def whole(self, body: bytes) -> None:
        """Note the whole body."""
        response = self._glimpse.response
        if response is None or not body:
            return
        if self._events:  # an event stream that the client has read to its end by itself
            for line in body.split(b"\n"):
                self._event(line)
            return
        if response.status >= 300:
            said = _error_of(body)
            self._glimpse.response = replace(response, body=said)
            self._glimpse.usage = usage_of(said)  # an error may say what it used
            self._seen.look()
            return
        if self._lines:  # Ollama streams one JSON object a line, and counts in the last
            body = body.rstrip().rpartition(b"\n")[2]
        try:
            told = _told(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return  # audio, a web page, half an answer: nothing to read
        for one in told if isinstance(told, list) else (told,):  # Gemini streams a list
            if one is not None:
                self._take(one)
        self._take_end(body)
        self._seen.look()

    def _event(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        data = line[5:].strip()
        if _SAYS_WHY.search(data):
            self._take_end(data)
            self._seen.look()
        if b"sage" not in data and b"service_tier" not in data:  # "usage", "usageMetadata"
            return
        try:
            self._take(_told_briefly(data))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return
        self._seen.look()

    def _take(self, told: _Told) -> None:
        nested = next(
            (part for part in (told.message, told.response, told.delta, told.x_groq) if isinstance(part, Mapping)), {}
        )
        model = _name(told.model) or _name(told.modelVersion) or _name(nested.get("model"))
        self._glimpse.model = model or self._glimpse.model
        counted = told.usage or told.usageMetadata or told.usage_metadata or nested.get("usage")
        tier = told.service_tier or nested.get("service_tier")
        beside = {"prompt_eval_count": told.prompt_eval_count, "eval_count": told.eval_count}
        usage = usage_of({"usage": counted, "meta": told.meta, "service_tier": tier, **beside})
        if usage is not None:  # Anthropic tells the input at the beginning, and the output at the end
            self._glimpse.usage = (self._glimpse.usage or Usage()) | usage

    def _take_end(self, body: bytes) -> None:
        try:
            told = _ended(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return  # a list of Gemini's, or nothing that is known: it says no reason
        ends = (told, *(told.choices or ()), *(told.candidates or ()), told.delta, told.response)
        reasons = (finish_reason_of(msgspec.structs.asdict(end)) for end in ends if end is not None)
        self._glimpse.finish_reason = next(filter(None, reasons), self._glimpse.finish_reason)


def _error_of(body: bytes) -> Any:
    text = body[:MOST_ERROR].decode("utf-8", "replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _name(value: Any) -> str | None:
    return value[:256] if isinstance(value, str) and value else None


def _provider(host: str, path: str) -> str | None:
    known = provider_at(host, path)
    if known is None and path.endswith("/messages"):
        return "anthropic"
    if known is None and "enerateContent" in path:
        return "google"
    return known
