"""Is a 2xx a completion? It may carry an error, be no JSON, or hold nothing but a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.evidence import LONGEST_JSON, Evidence, is_status, parsed
from ratelimit_worker.policy.headers import error_objects

_C = Category
# Tuples, since what a stranger sends may be a list, which cannot be looked up in a set.
_BEDROCK_REFUSALS = ("guardrail_intervened", "content_filtered")
_GEMINI_REFUSALS = ("SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION")


def flaw_of(body: Any, headers: Mapping[str, str]) -> tuple[Category, tuple[str, ...]] | None:
    """Category and words of a 2xx that is no good answer."""
    kind = headers.get("content-type", "").lower()
    if isinstance(body, bytes | str):
        if "event-stream" in kind:
            event = _error_event(body if isinstance(body, str) else body.decode("utf-8", "replace"))
            return None if event is None else _of_error(event)
        # Text that nobody called JSON is an answer in its own right (a transcript, a prompt's raw completion).
        return (_C.MALFORMED_RESPONSE, ("not_json",)) if "json" in kind or "html" in kind else None
    for part in body[-1:] if isinstance(body, list) else (body,):  # Gemini streams a list; its error comes last
        if not isinstance(part, Mapping):
            continue
        if part.get("error") or part.get("type") == "error":
            return _of_error(part)
        broken = [choice for choice in _items(part.get("choices")) if choice.get("error")]
        if broken:
            return _of_error(broken[0])
        if _withheld(part):
            return _C.CONTENT_FILTERED, ("no_completion",)
    return None


def _of_error(body: Mapping[Any, Any]) -> tuple[Category, tuple[str, ...]]:
    evidence = Evidence.of(None, {}, body)
    for fields in error_objects(body):  # OpenRouter puts the upstream's status into `code`
        status = fields.get("code") or fields.get("status_code")
        if is_status(status):
            evidence = replace(evidence, status=status)
            break
    return evidence.category() or _C.SERVER_ERROR, evidence.words


def _error_event(text: str) -> Mapping[Any, Any] | None:
    """The error event of a server-sent stream, where there is one."""
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


def _withheld(answer: Mapping[Any, Any]) -> bool:
    """Whether an answer holds a refusal and no completion at all."""
    choices = _items(answer.get("choices"))
    if choices:  # OpenAI
        messages = [choice.get("message") for choice in choices]
        return all(
            (
                choice.get("finish_reason") == "content_filter"
                or (isinstance(said, Mapping) and bool(said.get("refusal")))
            )
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
            candidate.get("finishReason") in _GEMINI_REFUSALS
            and not (isinstance(candidate.get("content"), Mapping) and candidate["content"].get("parts"))
            for candidate in candidates
        )
    feedback = answer.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _items(value: Any) -> list[Mapping[Any, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
