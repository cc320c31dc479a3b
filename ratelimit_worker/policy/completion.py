"""Is a 2xx the answer that was asked for? It may hold an error, broken JSON, nothing, or only a refusal.

`flaw_of` says why it is not a good answer. `cut_short` says whether a good one is incomplete: an answer that was
truncated, refused or filtered is an answer, but not one to keep for other calls.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.endpoints import operation_of, wanted_of
from ratelimit_worker.policy.evidence import LONGEST_JSON, Evidence, parsed, status_of
from ratelimit_worker.policy.pattern import lazy
from ratelimit_worker.policy.vocabulary import QUOTA_429

_C = Category
# Tuples and not sets: a provider may send a list here, which cannot be looked up in a set.
_BEDROCK_REFUSALS = ("guardrail_intervened", "content_filtered")
_GEMINI_REFUSALS = (
    *("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION", "LANGUAGE", "IMAGE_SAFETY"),
    *("IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"),
)
#: Finish reasons of incomplete answers, in lower case.
_CUT = (
    "length",
    "max_tokens",
    "model_length",
    "model_context_window_exceeded",
    "max_output_tokens",
    "content_filter",
    "content_filtered",
    "guardrail_intervened",
    "refusal",
    "sensitive",
    "pause_turn",
    "error_limit",
    "error_toxic",
    *(reason.lower() for reason in _GEMINI_REFUSALS),
)
#: Finish reasons that mean a failure of the provider, in lower case (OpenRouter, Cohere; DeepSeek; Z.ai; Cohere).
_BROKE_OFF = {
    "error": _C.SERVER_ERROR,
    "insufficient_system_resource": _C.OVERLOADED,
    "network_error": _C.SERVER_ERROR,
    "timeout": _C.TIMEOUT,
}
#: Gemini's finish reasons of normal ends; with one of these and no text, the answer is empty.
_GEMINI_ENDS = (None, "", "STOP", "OTHER", "FINISH_REASON_UNSPECIFIED")

#: If one of these members is an empty list, or has empty items, there is no vector or picture: it is not an answer.
_VALUES = ("data", "embeddings", "embedding")
#: Members of an item of such a list in addition to the vector or picture that was asked for.
_BESIDE = ("object", "index", "type", "revised_prompt", "statistics", "mime_type", "mimeType")
#: Members in which known APIs put their answer. A body that has none of them, but an error text, is not an answer.
_ANSWERS = (
    *("choices", "content", "output", "output_text", "outputs", "candidates", "data", "results", "result", "text"),
    *("embedding", "embeddings", "completion", "generations", "predictions", "response", "audio", "images", "url"),
)
_COMPLAINTS = ("detail", "details", "msg", "message", "error_msg", "error_message", "errors", "error_code", "code")
#: Error numbers of MiniMax and similar APIs, in `base_resp` of a 200.
_BASE_RESP = {
    **dict.fromkeys((1002, 1039, 1041, 2045), _C.RATE_LIMITED),
    **dict.fromkeys((1004, 2049), _C.AUTH),
    **dict.fromkeys((1008, 2056), _C.QUOTA_EXHAUSTED),
    **dict.fromkeys((1026, 1027), _C.CONTENT_FILTERED),
    **dict.fromkeys((1042, 1043, 1044, 2013, 20132, 2037, 2038, 2039, 2042, 2048), _C.INVALID_REQUEST),
    1001: _C.TIMEOUT,
}
#: What the message of an error inside a 200 means, if neither a status nor a machine word says it.
_SENTENCES = (
    (QUOTA_429, _C.QUOTA_EXHAUSTED),
    (lazy(r"rate.?limit|too many requests|throttl|\bqps\b|request limit reached", re.I), _C.RATE_LIMITED),
    (
        lazy(
            r"unauthori[sz]ed|forbidden|not authenticated|(?:invalid|incorrect|missing) (?:api.?key|token|credential)"
            r"|(?:api.?key|access token) (?:is )?(?:invalid|expired)",
            re.I,
        ),
        _C.AUTH,
    ),
    (
        lazy(
            r"\bmodel\b.{0,80}\b(?:not found|does not exist)|maximum context length|context (?:length|size|window)",
            re.I,
        ),
        _C.INVALID_REQUEST,
    ),
    (lazy(r"overloaded|at capacity|temporarily unavailable|service unavailable", re.I), _C.OVERLOADED),
)
_MOST_SENTENCE = 200
#: LM Studio's text, in a 200, for an unknown path: the base URL lacks /v1.
_NO_SUCH_PATH = lazy(r"unexpected endpoint or method", re.I)
#: Texts in the place of an error that mean that there is no error.
_NO_ERROR = frozenset({"", "none", "null", "ok", "false", "success", "no error"})


class Flaw(NamedTuple):
    """Why a 2xx is not a good answer."""

    category: Category
    words: tuple[str, ...]  #: machine words of the provider, or one of ours
    status: int | None = None  #: of the provider behind a gateway, if the body has it


def flaw_of(body: Any, headers: Mapping[str, str], path: str = "") -> Flaw | None:
    """Why a 2xx is not a good answer; None: it is one, or that cannot be told.

    Args:
        path: Path of the request, such as "/v1/chat/completions": the answer must have the members of such answers.
            "": unknown, so only what cannot be an answer to any request is a flaw.
    """
    kind, wanted = headers.get("content-type", "").lower(), wanted_of(path)
    if isinstance(body, bytes | str):
        text = body if isinstance(body, str) else body.decode("utf-8", "replace")
        operation = operation_of(path)
        texts = operation is not None and operation.gives == "text"
        return _of_text(text, kind, () if texts else wanted, may_be_blank=texts)
    parts = body[-1:] if isinstance(body, list) else [body]  # Gemini streams a list; its error comes last
    for part in parts:
        if isinstance(part, Mapping):
            return _of_object(part, wanted)
    return Flaw(_C.MALFORMED_RESPONSE, ("no_completion",)) if wanted else None


def cut_short(body: Any) -> bool:
    """Whether an answer is incomplete: truncated, refused, filtered, or without any text."""
    if not isinstance(body, Mapping):
        return False
    if body.get("object") == "response" and body.get("status") not in (None, "completed"):
        return True
    if _withheld(body):
        return True
    for ended in (body, *_items(body.get("choices")), *_items(body.get("candidates"))):
        for name in ("finish_reason", "stop_reason", "finishReason", "stopReason"):
            reason = ended.get(name)
            if isinstance(reason, str) and reason.lower() in _CUT:
                return True
    return any(_is_refusal(choice) for choice in _items(body.get("choices")))


def not_whole(path: str, body: Any) -> str | None:
    """Whether a request asks for something other than one whole answer: a stream, or an answer that is fetched later.

    Neither is supported here. Returns the reason, such as '"stream" asks for a stream'; None: it does not.
    """
    streamed = _streams(path, body)
    if streamed is not None:
        return f"{streamed} asks for a stream"
    later = isinstance(body, Mapping) and body.get("background") is True and "responses" in path
    return '"background" asks for an answer that is fetched later' if later else None


def _streams(path: str, body: Any) -> str | None:
    before, _, query = path.partition("?")
    last = before.rstrip("/").rpartition("/")[2][-80:]
    if "alt=sse" in query.lower().split("&"):  # Google's
        return "its url"
    if "stream" in re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "-", last).lower()):
        return "its url"
    if not isinstance(body, Mapping):
        return None
    if body.get("stream"):
        return '"stream"'
    return '"stream_format"' if body.get("stream_format") == "sse" else None


def without_comments(raw: bytes | bytearray) -> bytes | bytearray:
    """A body without the blank lines and `: comments` that keep a connection open until its JSON comes."""
    rest = raw
    while rest[:1] in (b"\n", b"\r", b" ", b"\t", b":"):
        rest = rest.partition(b"\n")[2] if rest[:1] == b":" else rest.lstrip(b"\n\r \t")
    return rest


def _of_text(text: str, kind: str, wanted: tuple[str, ...], *, may_be_blank: bool) -> Flaw | None:
    begin = text.lstrip()[:6]
    if "event-stream" in kind or begin.startswith(("data:", "event:", ": ")):
        event = _error_event(text)
        if event is not None or "event-stream" in kind:
            return None if event is None else _of_error(event)
    elif begin.startswith("{") and "\n" in text.strip():  # a stream of JSON lines (Ollama)
        first = parsed(text.lstrip()[:LONGEST_JSON].partition("\n")[0])
        if isinstance(first, Mapping) and _is_error(first.get("error")):
            return _of_error(first)
    if not text.strip() and not (text and may_be_blank):  # a transcript of silence is a blank line
        return Flaw(_C.MALFORMED_RESPONSE, ("empty",))
    page = text.lstrip()[:15].lower().startswith(("<!doctype html", "<html"))
    # Text that does not claim to be JSON is an answer (a transcript, a raw completion).
    if wanted or page or "json" in kind or "html" in kind:
        return Flaw(_C.MALFORMED_RESPONSE, ("not_json",))
    return None


def _of_object(part: Mapping[Any, Any], wanted: tuple[str, ...]) -> Flaw | None:
    if _is_error(part.get("error")) or "error" in (part.get("type"), part.get("object")):
        return _of_error(part)
    flaw = _of_base_resp(part.get("base_resp")) or _broke_off(part)
    if flaw is not None:
        return flaw
    if _withheld(part):
        return Flaw(_C.CONTENT_FILTERED, ("no_completion",))
    if _has_an_answer(part, wanted):
        return None
    if any(part.get(name) for name in _COMPLAINTS) or status_of(part) is not None:
        return _of_error(part, otherwise=_C.MALFORMED_RESPONSE)
    return Flaw(_C.MALFORMED_RESPONSE, ("no_completion",)) if wanted or not part or _is_empty(part) else None


def _has_an_answer(part: Mapping[Any, Any], wanted: tuple[str, ...]) -> bool:
    if _is_empty(part):
        return False
    if wanted:
        return any(
            part.get(name) is not None and (name not in _VALUES or _holds(part[name], whole="embeddings" in wanted))
            for name in wanted
        )
    said = part.get("message")
    return any(part.get(name) is not None for name in _ANSWERS) or isinstance(said, Mapping | list)


def _is_empty(part: Mapping[Any, Any]) -> bool:
    """Whether the member for completions is there and empty."""
    if "choices" in part:
        choices = _items(part["choices"])
        return not any(
            isinstance(choice.get("message"), Mapping)
            or isinstance(choice.get("delta"), Mapping)
            or isinstance(choice.get("text"), str)
            for choice in choices
        )
    if "candidates" in part:
        candidates = _items(part["candidates"])
        return not part.get("promptFeedback") and not any(
            _has_parts(candidate) or candidate.get("finishReason") not in _GEMINI_ENDS for candidate in candidates
        )
    nothing = part.get("output") == [] and not part.get("output_text")
    return part.get("object") == "response" and part.get("status") in ("completed", "cancelled") and nothing


def _holds(value: Any, *, whole: bool) -> bool:
    """Whether a list of vectors or pictures has content.

    Args:
        whole: Whether every item must have it: a list of vectors is useless if one is missing.
    """
    if not isinstance(value, list):
        return bool(value) and not (isinstance(value, Mapping) and not any(map(_something, value.values())))
    return bool(value) and (all if whole else any)(map(_item_holds, value))


def _item_holds(item: Any) -> bool:
    if isinstance(item, Mapping):
        return any(_something(value) for name, value in item.items() if name not in _BESIDE)
    return _something(item)


def _something(value: Any) -> bool:
    return value is not None and value not in ("", [], {})


def _is_error(value: Any) -> bool:
    """Whether the error member really holds an error: some APIs always send it, empty."""
    if isinstance(value, Mapping):
        return any(value.values())
    return value.strip().lower() not in _NO_ERROR if isinstance(value, str) else bool(value)


def _has_parts(candidate: Mapping[Any, Any]) -> bool:
    content = candidate.get("content")
    return isinstance(content, Mapping) and bool(content.get("parts"))


def _of_base_resp(base: Any) -> Flaw | None:
    code = base.get("status_code") if isinstance(base, Mapping) else None
    number = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) < 10 else code
    if not isinstance(number, int) or isinstance(number, bool) or number == 0:
        return None
    said = base.get("status_msg")
    category = _BASE_RESP.get(number) or _by_sentence([said]) or _C.SERVER_ERROR
    return Flaw(category, (str(number),))


def _broke_off(part: Mapping[Any, Any]) -> Flaw | None:
    for choice in _items(part.get("choices")):
        if _is_error(choice.get("error")):
            return _of_error(choice)
    for ended in (part, *_items(part.get("choices"))):
        reason = ended.get("finish_reason")
        if isinstance(reason, str) and reason.lower() in _BROKE_OFF:
            return Flaw(_BROKE_OFF[reason.lower()], (reason.lower(),))
    if part.get("object") == "response" and part.get("status") == "failed":
        return Flaw(_C.SERVER_ERROR, ("failed",))
    return None


def _of_error(body: Mapping[Any, Any], otherwise: Category = _C.SERVER_ERROR) -> Flaw:
    evidence, status = Evidence.of(None, {}, body), status_of(body)
    if status is not None:  # OpenRouter puts the status of the provider behind it into `code`
        evidence = replace(evidence, status=status)
    if status is None and any(_NO_SUCH_PATH.match(said) for said in evidence.messages):
        return Flaw(_C.INVALID_REQUEST, evidence.words, 404)
    category = evidence.category() or evidence.quota() or _by_sentence(evidence.messages) or otherwise
    return Flaw(category, evidence.words, status)


def _by_sentence(messages: Iterable[Any]) -> Category | None:
    for said in messages:
        if isinstance(said, str):
            for pattern, category in _SENTENCES:
                if pattern.search(said[:_MOST_SENTENCE]):
                    return category
    return None


def _error_event(text: str) -> Mapping[Any, Any] | None:
    """The error event of a server-sent stream; None: it has none."""
    named = False
    for line in text[-LONGEST_JSON:].splitlines():
        if line.startswith("event:"):
            named = line[6:].strip() == "error"
        elif line.startswith("data:") and (named or '"error"' in line):
            found = parsed(line[5:].strip())
            if isinstance(found, Mapping) and (named or found.get("error") or found.get("type") == "error"):
                return found
            if named:
                return {"error": {}}
    return None


def _is_refusal(choice: Mapping[Any, Any]) -> bool:
    said = choice.get("message")
    return isinstance(said, Mapping) and bool(said.get("refusal"))


def _withheld(answer: Mapping[Any, Any]) -> bool:
    """Whether an answer holds a refusal and no completion at all."""
    choices = _items(answer.get("choices"))
    if choices:  # OpenAI
        messages = [choice.get("message") for choice in choices]
        return all(
            (choice.get("finish_reason") == "content_filter" or _is_refusal(choice))
            and not (isinstance(said, Mapping) and (said.get("content") or said.get("tool_calls")))
            and not choice.get("text")
            for choice, said in zip(choices, messages, strict=True)
        )
    if answer.get("stop_reason") == "refusal":  # Anthropic
        return not any(part.get("text") or part.get("type") == "tool_use" for part in _items(answer.get("content")))
    if answer.get("stopReason") in _BEDROCK_REFUSALS:  # Bedrock
        output = answer.get("output")
        said = output.get("message") if isinstance(output, Mapping) else None
        return not (isinstance(said, Mapping) and said.get("content"))
    if answer.get("object") == "response":  # OpenAI's Responses
        parts = [part for item in _items(answer.get("output")) for part in _items(item.get("content"))]
        called = any(str(item.get("type")).endswith("_call") for item in _items(answer.get("output")))
        return bool(parts) and not called and all(part.get("type") == "refusal" for part in parts)
    candidates = _items(answer.get("candidates"))
    if candidates:  # Gemini
        return all(
            candidate.get("finishReason") in _GEMINI_REFUSALS and not _has_parts(candidate) for candidate in candidates
        )
    feedback = answer.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _items(value: Any) -> list[Mapping[Any, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
