"""The providers behind a gateway: what OpenAI, Anthropic and Gemini say, by a word in the prompt, over real HTTP."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Mapping[str, str], Any]


def _openai(status: int, message: str, kind: str | None, code: str | None, **headers: str) -> Reply:
    error = {"message": message, "type": kind, "param": None, "code": code}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": error}


def _anthropic(status: int, kind: str, message: str, **headers: str) -> Reply:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, told, {"type": "error", "error": {"type": kind, "message": message}}


def _quota(name: str, value: str, delay: str = "") -> Reply:
    details: list[Any] = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": name, "quotaValue": value}]}
    ]
    if delay:
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay})
    message = f"You exceeded your current quota.{f' Please retry in {delay}.' if delay else ''}"
    return 429, {}, {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}


_CHAT = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
OPENAI: dict[str, Reply] = {
    "good": (200, {}, _CHAT),
    "limited": _openai(
        429,
        "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 500, Used 500, "
        "Requested 1.",
        "requests",
        "rate_limit_exceeded",
        retry_after="7",
    ),
    "quota": _openai(
        429,
        "You exceeded your current quota, please check your plan and billing details.",
        "insufficient_quota",
        "insufficient_quota",
    ),
    "key": _openai(401, "Incorrect API key provided: sk-abc.", "invalid_request_error", "invalid_api_key"),
    "bad": _openai(400, "Unsupported value: temperature", "invalid_request_error", "unsupported_value"),
    "long": _openai(
        400,
        "This model's maximum context length is 128000 tokens. However, your messages resulted in 200000 tokens.",
        "invalid_request_error",
        "context_length_exceeded",
    ),
    "sick": _openai(503, "The server is overloaded", "server_error", None),
    "broken": _openai(500, "The server had an error", "server_error", None),
    "missing": _openai(404, "The model `x` does not exist", "invalid_request_error", "model_not_found"),
    "empty": (200, {}, {**_CHAT, "choices": []}),
    "html": (502, {"content-type": "text/html"}, "<html>bad gateway</html>"),
}
ANTHROPIC: dict[str, Reply] = {
    "good": (
        200,
        {},
        {
            "id": "m",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [{"type": "text", "text": "hi"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 3, "output_tokens": 2},
        },
    ),
    "limited": _anthropic(
        429, "rate_limit_error", "This would exceed your rate limit of 50 requests per minute", retry_after="7"
    ),
    "sick": _anthropic(529, "overloaded_error", "Overloaded"),
    "quota": _anthropic(
        400,
        "invalid_request_error",
        "Your credit balance is too low to access the Anthropic API. Please go to Billing.",
    ),
}
GEMINI: dict[str, Reply] = {
    "good": (
        200,
        {},
        {
            "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}],
            "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
        },
    ),
    "limited": _quota("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "10", "21.5s"),
    "quota": _quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "50"),
    "sick": (503, {}, {"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}),
}


class Upstream(ThreadingHTTPServer):
    """Says `<word>` of the prompt, or "good"; `<word,3>` so many times, and then "good"."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.said: Counter[str] = Counter()  #: by the whole mark in the prompt
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, sent: str) -> Reply:
        said = ANTHROPIC if path.endswith("/messages") else GEMINI if "generateContent" in path else OPENAI
        mark = sent.partition("<")[2].partition(">")[0] if "<" in sent else "good"
        word, _, most = mark.partition(",")
        with self._lock:
            self.said[mark] += 1
            over = bool(most) and self.said[mark] > int(most)
        if path.endswith("/embeddings"):
            found = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            return (
                200,
                {},
                {"object": "list", "data": found, "model": "e", "usage": {"prompt_tokens": 4, "total_tokens": 4}},
            )
        return said.get("good" if over else word, said["good"])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Upstream

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("utf-8", "replace")
        status, headers, body = self.server.answer(self.path.partition("?")[0], sent)
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@contextmanager
def upstream() -> Iterator[Upstream]:
    """A running one."""
    with Upstream() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield running
        finally:
            running.shutdown()
            thread.join()
