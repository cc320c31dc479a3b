"""Answers, waits and counts as providers, gateways and local servers write them, one row each: what they are."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Response, Usage
from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.classification import classify_exception, classify_response
from ratelimit_worker.policy.headers import retry_after_s
from ratelimit_worker.policy.usage import usage_of
from ratelimit_worker.providers import http, network, openai
from ratelimit_worker.providers.answer_json import read_json

C = Category
NOW_S = 1_792_567_650.0  # 2026-10-21T07:27:30Z
CHAT, EMBED, IMAGES = "/v1/chat/completions", "/v1/embeddings", "/v1/images/generations"
RESPONSES, GEMINI = "/v1/responses", "/v1beta/models/gemini-2.5-flash:generateContent"
SAID = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
GOOD = {"choices": [SAID], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}


def gemini(**candidate: Any) -> dict[str, Any]:
    return {"candidates": [{"index": 0, **candidate}]}


NOTHINGS: tuple[Any, ...] = ({}, [], 0, False, "", "None", "null", {"code": None})
EMPTY: list[tuple[str, Any, Category | None]] = [
    # A vector or a picture that is not there
    (EMBED, {"data": [{"object": "embedding", "index": 0, "embedding": []}]}, C.MALFORMED_RESPONSE),
    (EMBED, {"data": [{"embedding": None, "index": 0}]}, C.MALFORMED_RESPONSE),
    (EMBED, {"data": [None]}, C.MALFORMED_RESPONSE),
    (EMBED, {"data": [{"embedding": [0.1]}, {"embedding": []}]}, C.MALFORMED_RESPONSE),
    (EMBED, {"data": [{"embedding": "AAAA", "index": 0}]}, None),
    (EMBED, {"embeddings": [[]]}, C.MALFORMED_RESPONSE),
    (EMBED, {"embeddings": {"float": [[0.1]]}}, None),
    ("/v1beta/models/m:embedContent", {"embedding": {"values": []}}, C.MALFORMED_RESPONSE),
    ("/v1beta/models/m:embedContent", {"embedding": {"values": [0.0]}}, None),
    ("/v1beta/models/m:batchEmbedContents", {"embeddings": [{"values": [0.1]}, {}]}, C.MALFORMED_RESPONSE),
    (IMAGES, {"created": 1, "data": [{}]}, C.MALFORMED_RESPONSE),
    (IMAGES, {"data": [{"url": None, "b64_json": None, "revised_prompt": "a cat"}]}, C.MALFORMED_RESPONSE),
    (IMAGES, {"data": [{}, {"url": "https://x"}]}, None),
    ("/v1/rerank", {"data": []}, C.MALFORMED_RESPONSE),
    ("/v1/rerank", {"results": []}, None),
    # Gemini says nothing, as if all were well; or says why
    (GEMINI, gemini(finishReason="STOP"), C.MALFORMED_RESPONSE),
    (GEMINI, gemini(finishReason="STOP", content={"role": "model"}), C.MALFORMED_RESPONSE),
    (GEMINI, gemini(finishReason="OTHER"), C.MALFORMED_RESPONSE),
    (GEMINI, gemini(finishReason="MAX_TOKENS", content={"role": "model"}), None),
    (GEMINI, gemini(finishReason="MALFORMED_FUNCTION_CALL"), None),
    (GEMINI, gemini(finishReason="LANGUAGE"), C.CONTENT_FILTERED),
    (GEMINI, gemini(finishReason="IMAGE_PROHIBITED_CONTENT"), C.CONTENT_FILTERED),
    # A response
    (RESPONSES, {"object": "response", "status": "completed", "output": []}, C.MALFORMED_RESPONSE),
    (RESPONSES, {"object": "response", "status": "cancelled", "output": []}, C.MALFORMED_RESPONSE),
    (RESPONSES, {"object": "response", "status": "completed", "output": [], "output_text": "hi"}, None),
    (RESPONSES, {"object": "response", "status": "incomplete", "output": [{"type": "reasoning"}]}, None),
    (
        RESPONSES,
        {"object": "response", "status": "failed", "error": {"code": "invalid_image_format"}, "output": []},
        C.INVALID_REQUEST,
    ),
    ("/v2/chat", {"finish_reason": "TIMEOUT", "message": {"content": []}}, C.TIMEOUT),
    # The place of an error is always there with some, and empty
    *((CHAT, GOOD | {"error": nothing}, None) for nothing in NOTHINGS),
    (CHAT, GOOD | {"error": {"code": 0, "message": ""}}, None),
    (CHAT, GOOD | {"error": "it broke"}, C.SERVER_ERROR),
    (CHAT, {"choices": [{**SAID, "error": {}}]}, None),
    # Sentences inside a 200
    (CHAT, {"error": "model 'llama9' not found, try pulling it first"}, C.INVALID_REQUEST),
    (CHAT, {"error_code": 17, "error_msg": "Open api daily request limit reached"}, C.QUOTA_EXHAUSTED),
    (CHAT, {"error_code": 18, "error_msg": "Open api qps request limit reached"}, C.RATE_LIMITED),
    (CHAT, {"error_code": 110, "error_msg": "Access token invalid or no longer valid"}, C.AUTH),
    # Streams that nobody asked for
    (CHAT, 'data: {"error": {"code": 429, "message": "slow"}}\n\n', C.RATE_LIMITED),
    (CHAT, ': PROCESSING\n\ndata: {"error": {"code": 503, "message": "x"}}\n\n', C.OVERLOADED),
    (CHAT, '{"error": "model is overloaded"}\n{"done": true}\n', C.OVERLOADED),
    (CHAT, 'data: {"choices": []}\n\n', C.MALFORMED_RESPONSE),
    (CHAT, '{"message": {"content": "h"}}\n{"message": {"content": "i"}}\n', C.MALFORMED_RESPONSE),
]


@pytest.mark.parametrize(("path", "body", "category"), EMPTY)
def test_what_a_200_holds(path: str, body: Any, category: Category | None) -> None:
    """Nothing in the place of the answer is no answer, and nothing in the place of an error is no error."""
    failure = classify_response(Response(status=200, headers={}, body=body, path=path))
    assert (failure and failure.category) is category


def test_a_path_that_is_not_there_within_a_200() -> None:
    """LM Studio says so with a 200: the base URL lacks /v1, and a whole file need not find out line by line."""
    from ratelimit_worker.policy.completion import flaw_of

    flaw = flaw_of({"error": "Unexpected endpoint or method. (POST /chat/completions). Returning 200 anyway"}, {}, CHAT)
    assert flaw is not None
    assert (flaw.category, flaw.status) == (C.INVALID_REQUEST, 404)


def said(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


REFUSED: list[tuple[int, Any, Category]] = [
    # No credit, in other languages
    (429, said("账户余额不足，请充值"), C.QUOTA_EXHAUSTED),
    (429, said("您的账户已欠费，请充值后重试。", code="1113"), C.QUOTA_EXHAUSTED),
    (429, said("您的账户已达到速率限制，请您控制请求频率", code="1302"), C.RATE_LIMITED),
    (429, said("请求过于频繁"), C.RATE_LIMITED),
    (429, said("クレジット残高が不足しています"), C.QUOTA_EXHAUSTED),
    (429, said("크레딧이 부족합니다"), C.QUOTA_EXHAUSTED),
    (429, said("Недостаточно средств на балансе"), C.QUOTA_EXHAUSTED),
    (429, said("Crédito insuficiente en su cuenta"), C.QUOTA_EXHAUSTED),
    (429, said("Votre crédit insuffisant"), C.QUOTA_EXHAUSTED),
    (429, said("Ihr Guthaben ist aufgebraucht"), C.QUOTA_EXHAUSTED),
    (429, said("Zu viele Anfragen"), C.RATE_LIMITED),
    # ... and in each house's own words
    (429, said("you have used up your daily free allocation of 10,000 neurons, please upgrade"), C.QUOTA_EXHAUSTED),
    (403, {"code": "AllocationQuota.FreeTierOnly", "message": "The free tier is over."}, C.QUOTA_EXHAUSTED),
    (403, {"code": "x", "message": "The free tier of the model has been exhausted."}, C.QUOTA_EXHAUSTED),
    (
        403,
        said("The request failed because your account has an overdue balance.", code="AccountOverdueError"),
        C.QUOTA_EXHAUSTED,
    ),
    (429, said("Your account has reached the set inference limit", code="SetLimitExceeded"), C.QUOTA_EXHAUSTED),
    (403, {"detail": "Quota exceeded. Please upgrade your plan"}, C.QUOTA_EXHAUSTED),
    (403, said("Your key may not use this model"), C.AUTH),
    (420, "Enhance your calm", C.RATE_LIMITED),
    # What was asked is refused, not who asks
    (403, said('m requires moderation. Your input was flagged for "sexual".', code=403), C.CONTENT_FILTERED),
    (400, said("x", code="InputTextSensitiveContentDetected"), C.CONTENT_FILTERED),
    (400, said("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301"), C.CONTENT_FILTERED),
    (404, said("model 'x' not found", type="api_error"), C.INVALID_REQUEST),
    (400, said("x", type="server_error"), C.SERVER_ERROR),
    # Who asks, not what
    (400, said("API key expired. Please renew the API key.", status="INVALID_ARGUMENT"), C.AUTH),
    (400, said("User location is not supported for the API use.", status="FAILED_PRECONDITION"), C.AUTH),
]


@pytest.mark.parametrize(("status", "body", "category"), REFUSED)
def test_a_refusal_in_its_own_words(status: int, body: Any, category: Category) -> None:
    """A quota, a rate, a filter or a key, in whichever language."""
    failure = classify_response(Response(status=status, headers={}, body=body, path=CHAT))
    assert failure is not None
    assert failure.category is category


WAITS: list[tuple[dict[str, str], Any, float | None]] = [
    # Retry-After as it is written
    ({"retry-after": '"30"'}, None, 30.0),
    ({"retry-after": "30;"}, None, 30.0),
    ({"retry-after": "30sec"}, None, 30.0),
    ({"retry-after": "2 mins"}, None, 120.0),
    ({"retry-after": "1m30.5s"}, None, 90.5),
    ({"retry-after": "PT30S"}, None, 30.0),
    ({"retry-after": "PT1M30.5S"}, None, 90.5),
    ({"retry-after": "P1D"}, None, 86_400.0),
    ({"retry-after": "PT"}, None, None),
    ({"retry-after": "00:00:30"}, None, 30.0),
    ({"retry-after": "00:01:00.5"}, None, 60.5),
    ({"retry-after": f"{NOW_S + 60:.0f}000000"}, None, 60.0),  # µs
    # Nothing of a second is a second that was cut: whoever says more is right
    ({"retry-after": "0"}, None, 0.0),
    ({"retry-after-ms": "0", "retry-after": "2"}, None, 2.0),
    ({"retry-after": "0"}, said("Please try again in 120ms."), 0.12),
    ({"retry-after": "0", "x-ratelimit-reset": "30", "x-ratelimit-remaining": "0"}, None, 30.0),
    # Other names of it
    ({"x-retry-after-ms": "700"}, None, 0.7),
    ({"x-ratelimit-reset-after": "7.5"}, None, 7.5),
    ({"x-rate-limit-retry-after-seconds": "9"}, None, 9.0),
    ({"x-ratelimit-timeremaining": "25"}, None, 25.0),
    ({}, {"retryAfterMs": 1_200}, 1.2),
    ({}, {"retryAfterSeconds": 12}, 12.0),
    ({}, {"error": {"retry-after": 12}}, 12.0),
    ({}, {"wait_seconds": 12}, 12.0),
    ({}, {"error": "Model x is currently loading", "estimated_time": 20.0}, 20.0),
    ({}, {"error": {"type": "usage_limit_reached", "resets_in_seconds": 12}}, 12.0),
    ({}, {"error": {"type": "usage_limit_reached", "resets_at": NOW_S + 60}}, 60.0),
    ({}, {"resetTime": "2026-10-21T07:28:30Z"}, 60.0),
    # Sentences
    ({}, said("Rate limited. Wait 30 seconds before retrying."), 30.0),
    ({}, said("You must wait at least 5 minutes."), 300.0),
    ({}, said("please retry your request after 12.5s"), 12.5),
    ({}, said("Too many requests (Retry-After: 17)"), 17.0),
    ({}, said("Please try again in a minute."), 60.0),
    ({}, said("try again in one hour"), 3_600.0),
    ({}, said("Retry in 1 minute and 5 seconds"), 65.0),
    ({}, said("Your limit will reset at 2026-10-21T15:28:30+08:00"), 60.0),
    ({}, said("请在 30 秒后重试"), 30.0),
    ({}, said("请等待1分钟后重试"), 60.0),
    ({}, said("30秒後に再試行してください"), 30.0),
    ({}, said("30초 후에 다시 시도하세요"), 30.0),
    ({}, said("Повторите через 15 секунд"), 15.0),
    ({}, said("Bitte versuchen Sie es in 30 Sekunden erneut"), 30.0),
    ({}, said("Réessayez dans 2 minutes"), 120.0),
    ({}, said("Inténtelo de nuevo en 30 segundos"), 30.0),
    ({}, said("Riprova tra 5 secondi"), 5.0),
    # ... that say how fast, and not how long
    ({}, said("100 Anfragen in 30 Sekunden erlaubt"), None),
    ({}, said("you sent 100 requests in 30 minutes"), None),
    ({}, said("an intentional 20 minutes"), None),
    ({}, said("see the Retry-After header"), None),
]


@pytest.mark.parametrize(("headers", "body", "wait_s"), WAITS)
def test_how_long_to_stay_away(headers: dict[str, str], body: Any, wait_s: float | None) -> None:
    """In whichever header, field or sentence, language or unit."""
    assert retry_after_s(headers, body, now_s=NOW_S, refused=True) == (wait_s and pytest.approx(wait_s))


@pytest.mark.parametrize(
    ("counted", "usage"),
    [
        ({"prompt_tokens": "12", "completion_tokens": "3"}, Usage(12, 3)),
        ({"prompt_tokens": 12.0, "completion_tokens": 3.4}, Usage(12, 3)),
        ({"prompt_tokens": -12, "completion_tokens": 3}, Usage(None, 3)),
        ({"prompt_tokens": "many", "completion_tokens": "-3"}, None),
        ({"prompt_tokens": True, "completion_tokens": None}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, None),
        ({"prompt_tokens": 10**30, "completion_tokens": 3}, Usage(10_000_000, 3)),
        ("12", None),
        ([1, 2], None),
    ],
)
def test_tokens_as_they_are_counted(counted: Any, usage: Usage | None) -> None:
    """As texts, with fractions, below nothing: what is a count counts."""
    assert usage_of({"usage": counted}) == usage
    if isinstance(counted, dict):
        counted = {name.replace("prompt", "input").replace("completion", "output"): n for name, n in counted.items()}
        assert usage_of({"usage": counted}) == usage


TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    ("raw", "content_type", "content"),
    [
        (b"\xef\xbb\xbf" + TEXT.encode(), "application/json", "hi"),
        (b"\xef\xbb\xbf\n: wait\n" + TEXT.encode(), "", "hi"),
        (TEXT.replace("hi", "é").encode("latin-1"), "application/json; charset=iso-8859-1", "é"),
        (TEXT.replace("hi", "é").encode(), "application/json; charset=iso-8859-1", "é"),  # it is not as it says
        (TEXT.encode("utf-16"), 'application/json; charset="utf-16"', "hi"),
        (TEXT.replace("hi", "你").encode("gbk"), "application/json;charset=gbk", "你"),
        (TEXT.replace("hi", "a\nb\tc").encode(), "application/json", "a\nb\tc"),
        (TEXT.replace("hi", "\\ud83d!").encode(), "application/json", "\ufffd!"),
        (TEXT.replace("hi", "\\ude00\\ud83d").encode(), "application/json", "\ufffd\ufffd"),
        (TEXT.replace("hi", "\\ud83d\\ude00\\ud83d").encode(), "application/json", "😀\ufffd"),
        (TEXT.replace("hi", "\\\\ud83d\n").encode(), "application/json", "\\ud83d\n"),
    ],
)
def test_json_as_servers_write_it(raw: bytes, content_type: str, content: str) -> None:
    """An answer that was paid for is not thrown away for how it is written."""
    assert read_json(raw, content_type)["choices"][0]["message"]["content"] == content
    assert json.dumps(read_json(bytearray(raw), content_type), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b" \n", b"\xef\xbb\xbf", b"a text", b"{", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}'),
        *(b'{"a": 1} <!-- x -->', b'{"a": 1}{"a": 2}', b"\xff\xfe{", b'{"a":' + b"9" * 5_000 + b"}"),
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=unicode_escape", "charset=zip"]
)
def test_what_is_no_json(raw: bytes, content_type: str) -> None:
    """Numbers that nobody could read after us, what is cut, and what has something behind it."""
    with pytest.raises(ValueError, match=r"no JSON|nothing"):
        read_json(raw, content_type)


class Server(ThreadingHTTPServer):
    """Answers each request with the bytes that a test gave it."""

    daemon_threads = True
    reply: tuple[dict[str, str], bytes] = ({}, b"")
    asked: Mapping[str, str] = {}  #: headers of the last request, names in lower case


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked = {name.lower(): value for name, value in self.headers.items()}
        headers, body = self.server.reply
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: Server, body: Any = None) -> Response:
    to = http.Endpoint(f"http://127.0.0.1:{server.server_port}/v1", {})
    return openai.request(to, CHAT, body or {"model": "m", "messages": []}, 10.0)


@pytest.mark.parametrize(
    "raw",
    [
        gzip.compress(TEXT[:40].encode(), mtime=0) + gzip.compress(TEXT[40:].encode(), mtime=0),
        gzip.compress(TEXT.encode(), mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(b"\n", mtime=0),
        gzip.compress(TEXT.encode(), mtime=0) + b"\0\0\0\0",
    ],
)
def test_gzip_may_have_several_members(server: Server, raw: bytes) -> None:
    """One file behind the other, as the format allows and as proxies write it; padding behind them is nobody's."""
    server.reply = ({"Content-Encoding": "gzip", "Content-Type": "application/json"}, raw)
    assert ask(server).body == GOOD


def test_the_last_member_that_is_cut_is_no_answer(server: Server) -> None:
    """What came before it may be whole: the answer is not."""
    raw = gzip.compress(TEXT[:40].encode(), mtime=0) + gzip.compress(TEXT[40:].encode(), mtime=0)[:-9]
    server.reply = ({"Content-Encoding": "gzip"}, raw)
    with pytest.raises(Exception, match="in the middle") as raised:
        ask(server)
    failure = classify_exception(raised.value)
    assert failure is not None
    assert failure.category is C.MALFORMED_RESPONSE


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json", "text/plain"])
def test_an_error_in_a_stream_that_nobody_asked_for_is_that_error(server: Server, kind: str) -> None:
    """A gateway that streams regardless says 429 in an event: a lane has to slow down, not to doubt the provider."""
    server.reply = ({"Content-Type": kind}, b'data: {"error": {"code": 429, "message": "slow"}}\n\n')
    with pytest.raises(http.ProviderRefused) as raised:
        ask(server)
    failure = classify_exception(raised.value)
    assert failure is not None
    assert failure.category is C.RATE_LIMITED


def test_an_answer_that_comes_later_is_not_asked_for(server: Server) -> None:
    """A background response is answered at once, with nothing in it, and fetched by nobody here."""
    to = http.Endpoint(f"http://127.0.0.1:{server.server_port}/v1", {})
    with pytest.raises(BadInput, match='"background" asks for an answer that is fetched later'):
        openai.request(to, RESPONSES, {"model": "m", "input": "x", "background": True}, 10.0)
    server.reply = ({}, json.dumps({"output": [{"type": "message"}]}).encode())
    assert openai.request(to, RESPONSES, {"model": "m", "input": "x", "background": False}, 10.0).status == 200


def test_proxies_and_certificates_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker makes a client a thread; reading the certificates for each of 64 took two seconds of its start."""
    looked: list[str] = []
    monkeypatch.setattr(network, "_fine", None)
    monkeypatch.setattr(network, "problem", lambda environ: looked.append(environ.get("SSL_CERT_FILE", "")))
    for file in ("/a.pem", "/a.pem", "/b.pem", "/b.pem"):
        network.check({"SSL_CERT_FILE": file, "OTHER": str(len(looked))})
    assert looked == ["/a.pem", "/b.pem"]


def test_no_encoding_is_asked_for_that_nobody_here_reads(server: Server) -> None:
    """The client would ask for zstd and br as soon as their packages are there, and Cloudflare sends them."""
    server.reply = ({}, TEXT.encode())
    ask(server)
    assert server.asked["accept-encoding"] == "gzip, deflate"
