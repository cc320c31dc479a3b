"""Is it an answer? What a 200 has to hold, by what was asked, and which answers are whole enough to be kept."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Response
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.completion import cut_short, flaw_of, not_whole, without_comments

C = Category
CHAT, EMBED, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/embeddings", "/v1/messages", "/v1/responses"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"


def chat(content: Any = "hi", finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"content": content, **message}}]}


def error(code: Any, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": "upstream said no", **more}}


ROWS: list[tuple[str, Any, Category | None]] = [
    # Nothing of what was asked for
    (CHAT, {"choices": []}, C.MALFORMED_RESPONSE),
    (CHAT, {"choices": None}, C.MALFORMED_RESPONSE),
    (CHAT, {"choices": [{}]}, C.MALFORMED_RESPONSE),
    (CHAT, {"choices": [{"message": None, "finish_reason": "stop"}]}, C.MALFORMED_RESPONSE),
    (CHAT, {"id": "c1", "usage": {}}, C.MALFORMED_RESPONSE),
    (CHAT, {}, C.MALFORMED_RESPONSE),
    (CHAT, [], C.MALFORMED_RESPONSE),
    (CHAT, None, C.MALFORMED_RESPONSE),
    (CHAT, "", C.MALFORMED_RESPONSE),
    (CHAT, "  \n", C.MALFORMED_RESPONSE),
    (CHAT, "a text", C.MALFORMED_RESPONSE),
    (CHAT, "<!DOCTYPE html><html>", C.MALFORMED_RESPONSE),
    (CHAT, {"object": "list", "data": [{"embedding": [0.1]}]}, C.MALFORMED_RESPONSE),
    ("/openai/deployments/x/chat/completions?api-version=1", {"choices": []}, C.MALFORMED_RESPONSE),
    (EMBED, {"object": "list", "data": []}, C.MALFORMED_RESPONSE),
    (MESSAGES, {"id": "m", "type": "message"}, C.MALFORMED_RESPONSE),
    (RESPONSES, {"object": "response", "status": "completed"}, C.MALFORMED_RESPONSE),
    (GEMINI, {"candidates": []}, C.MALFORMED_RESPONSE),
    # ... also where nobody knows what was asked
    ("", {"choices": []}, C.MALFORMED_RESPONSE),
    ("", {}, C.MALFORMED_RESPONSE),
    ("", "", C.MALFORMED_RESPONSE),
    ("", "<html>login</html>", C.MALFORMED_RESPONSE),
    # Complaints
    (CHAT, {"detail": "Not Found"}, C.MALFORMED_RESPONSE),
    (CHAT, {"detail": "Rate limit exceeded"}, C.RATE_LIMITED),
    (CHAT, {"detail": "Unauthorized"}, C.AUTH),
    (CHAT, {"detail": "Out of call volume quota."}, C.QUOTA_EXHAUSTED),
    (CHAT, {"msg": "the service is temporarily unavailable"}, C.OVERLOADED),
    ("", {"detail": "x"}, C.MALFORMED_RESPONSE),
    (CHAT, {"code": 401, "message": "no"}, C.AUTH),
    (CHAT, {"status": "503", "message": "no"}, C.OVERLOADED),
    (CHAT, {"object": "error", "message": "no", "code": 40303}, C.SERVER_ERROR),
    # An upstream's status, as number or text
    *((CHAT, error(code), C.INVALID_REQUEST) for code in (400, 404, 422, "400")),
    *((CHAT, error(code), C.AUTH) for code in (401, "401", 403)),
    (CHAT, error("402"), C.QUOTA_EXHAUSTED),
    (CHAT, error("429"), C.RATE_LIMITED),
    (CHAT, error("x", metadata={"status_code": 502}), C.SERVER_ERROR),
    # It broke off
    (CHAT, chat("hal", "error"), C.SERVER_ERROR),
    (CHAT, chat("hal", "insufficient_system_resource"), C.OVERLOADED),
    ("/v2/chat", {"message": {"content": []}, "finish_reason": "ERROR"}, C.SERVER_ERROR),
    (RESPONSES, {"object": "response", "status": "failed", "error": None, "output": []}, C.SERVER_ERROR),
    # Answers
    (CHAT, chat(), None),
    (CHAT, chat(None, "tool_calls", tool_calls=[{"id": "1"}]), None),
    (CHAT, chat("hal", "length"), None),
    (CHAT, chat("hal", "content_filter"), None),
    (CHAT, chat("") | {"base_resp": {"status_code": 0, "status_msg": ""}}, None),
    (CHAT, chat() | {"error": None, "code": 0, "detail": ""}, None),
    ("/v1/completions", {"choices": [{"text": ""}]}, None),
    (EMBED, {"object": "list", "data": [{"embedding": [0.1]}]}, None),
    (MESSAGES, {"type": "message", "content": [], "stop_reason": "end_turn"}, None),
    (RESPONSES, {"object": "response", "status": "queued", "output": []}, None),
    (GEMINI, {"candidates": [{"content": {"parts": [{"text": "hi"}]}}]}, None),
    ("/v2/chat", {"message": {"content": [{"text": "hi"}]}, "finish_reason": "COMPLETE"}, None),
    ("/v1/moderations", {"results": [{"flagged": False}]}, None),
    ("/v1/audio/transcriptions", "a transcript", None),
    ("/anything", {"whatever": 1}, None),
    ("", {"message": {"content": "hi"}, "done": True}, None),
    # Refusals
    (CHAT, chat(None, "stop", refusal="No."), C.CONTENT_FILTERED),
    (GEMINI, {"promptFeedback": {"blockReason": "SAFETY"}}, C.CONTENT_FILTERED),
]


@pytest.mark.parametrize(("path", "body", "category"), ROWS)
def test_a_200_is_an_answer_only_if_it_has_what_was_asked_for(path: str, body: Any, category: Category | None) -> None:
    """By the path where it is known; else only what could be no answer to anything is none."""
    failure = classify_response(Response(status=200, headers={}, body=body, path=path))
    assert (failure and failure.category) is category


@pytest.mark.parametrize(
    ("body", "status"),
    [(error(404), 404), (error("401"), 401), ({"status_code": 422, "detail": "x"}, 422), (error(1234), None)],
)
def test_the_status_of_the_provider_behind_is_told(body: Any, status: int | None) -> None:
    """So that whoever writes the answer down can say it."""
    flaw = flaw_of(body, {}, CHAT)
    assert flaw is not None
    assert flaw.status == status


@pytest.mark.parametrize(
    ("body", "short"),
    [
        (chat(), False),
        (chat("hal", "length"), True),
        (chat("hal", "max_tokens"), True),
        (chat("hal", "content_filter"), True),
        (chat("No.", refusal="No."), True),
        (chat(None, "tool_calls", tool_calls=[{}]), False),
        ({"content": [{"text": "hal"}], "stop_reason": "max_tokens"}, True),
        ({"content": [{"text": "hi"}], "stop_reason": "end_turn"}, False),
        ({"content": [], "stop_reason": "refusal"}, True),
        ({"object": "response", "status": "incomplete", "output": []}, True),
        ({"object": "response", "status": "completed", "output": []}, False),
        ({"candidates": [{"finishReason": "MAX_TOKENS", "content": {"parts": [{"text": "x"}]}}]}, True),
        ({"candidates": [{"finishReason": "SAFETY"}]}, True),
        ({"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": "x"}]}}]}, False),
        ({"stopReason": "max_tokens", "output": {"message": {"content": [{}]}}}, True),
        ({"object": "list", "data": [{"embedding": [0.1]}]}, False),
        ("a text", False),
        (None, False),
        ({"choices": [{"finish_reason": ["length"]}]}, False),
    ],
)
def test_what_was_truncated_refused_or_filtered_is_not_whole(body: Any, short: bool) -> None:
    """It is an answer, and its caller's; nobody else should get it in place of one of their own."""
    assert cut_short(body) is short


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        (CHAT, {"stream": True}, True),
        (CHAT, {"stream": False}, False),
        (CHAT, {"stream": None, "stream_options": None}, False),
        (CHAT, {}, False),
        ("/v1/audio/speech", {"stream_format": "sse"}, True),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", {}, True),
        ("/model/x/converse-stream", {}, True),
        ("/model/x/invoke-with-response-stream?a=b", {}, True),
        ("/upstream/v1/chat/completions", {}, False),
        ("/stream/v1/chat/completions", {}, False),
    ],
)
def test_who_asks_for_a_stream(path: str, body: Any, told: bool) -> None:
    """By the body, or by the last part of the path."""
    assert (not_whole(path, body) is not None) is told


def test_comments_and_blank_lines_before_the_json_are_none_of_it() -> None:
    """DeepSeek and OpenRouter keep connections open with them."""
    answer = json.dumps(chat()).encode()
    for before in (b"", b"\n\n  \n", b": keep-alive\n\n: OPENROUTER PROCESSING\n\n", b":\r\n\r\n"):
        assert without_comments(before + answer) == answer
    assert without_comments(b": nothing else\n\n") == b""
    assert without_comments(b": no end") == b""
