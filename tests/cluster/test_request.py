"""`request`, the built-in task for every known operation: what leaves, what comes back, and that it is a call."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator, Mapping
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from ratelimit_worker import builtin
from ratelimit_worker.app import make_app
from ratelimit_worker.calls import Usage, sighting
from ratelimit_worker.config import Settings, read_settings
from ratelimit_worker.errors import (
    AuthenticationFailed,
    BadInput,
    ConfigurationError,
    InvalidRequest,
    MalformedResponse,
)
from ratelimit_worker.providers import anthropic, apis, bounds, google, http, openai
from ratelimit_worker.providers.answer_bytes import MB
from tests.conftest import wait_for
from tests.fleet import Fleet, Worker, fleet

KEY = "sk-canary-request-0123456789"
CANARY = "Canary7PromptRequest"
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"
SOUND = bytes(range(256)) * 4
FILE = {"data": base64.b64encode(SOUND).decode(), "filename": "speech.mp3"}

Reply = tuple[int, Mapping[str, str], bytes]


def says(body: Any, status: int = 200, **headers: str) -> Reply:
    """A JSON answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"content-type": "application/json", **named}, json.dumps(body).encode()


class Provider(ThreadingHTTPServer):
    """Answers each path as told (a list: one after the other, the last again), and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path: str, headers: dict[str, str], sent: bytes) -> Reply:
        with self._lock:
            self.asked.append((path, headers, sent))
            replies = self.replies.get(path.partition("?")[0], [says({"error": {"message": "no such path"}}, 404)])
            return replies.pop(0) if len(replies) > 1 else replies[0]

    def bodies(self, path: str) -> list[Any]:
        """What it was sent at a path."""
        with self._lock:
            return [sent for asked, _, sent in self.asked if asked == path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Provider

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        named = {name.lower(): value for name, value in self.headers.items()}
        status, headers, body = self.server.answer(self.path, named, sent)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def ask(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`request` here and now, without a lane, of that provider."""
    for api in apis.APIS.values():
        monkeypatch.setenv(api.ACCOUNT.address, provider.url)
        monkeypatch.setenv(api.ACCOUNT.keys[0], KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"{provider.url}/v1")
    return builtin.request.run


def parts_of(headers: Mapping[str, str], sent: bytes) -> list[tuple[str, str | None, str, bytes]]:
    """Name, file's name, type and content of each part of a form."""
    message = BytesParser().parsebytes(b"content-type: " + headers["content-type"].encode() + b"\r\n\r\n" + sent)
    return [
        (
            str(part.get_param("name", header="content-disposition")),
            part.get_filename(),
            part.get_content_type() if part.get_filename() else "",
            bytes(part.get_payload(decode=True) or b""),
        )
        for part in message.get_payload()
        if not isinstance(part, str)
    ]


# ── what leaves, and what comes back ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "path", "at", "body", "answer", "usage"),
    [
        ("openai", "/v1/responses", "/v1/responses", {"model": "m", "input": "x"},
         {"object": "response", "status": "completed", "output": [{"type": "message", "content": []}],
          "usage": {"input_tokens": 3, "output_tokens": 4}},
         Usage(3, 4)),
        ("openai", "/responses", "/v1/responses", {"model": "m", "input": "x"}, {"output": []}, None),
        ("openai", "/v1/completions", "/v1/completions", {"model": "m", "prompt": "x"},
         {"choices": [{"text": "y"}], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}, Usage(1, 2)),
        ("openai", "/v1/embeddings", "/v1/embeddings", {"model": "m", "input": "x"},
         {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5, None)),
        ("openai", "/v1/moderations", "/v1/moderations", {"input": "x"}, {"results": [{"flagged": False}]}, None),
        ("openai", "/v1/images/generations", "/v1/images/generations", {"prompt": "x"},
         {"data": [{"b64_json": "QUJD"}], "usage": {"input_tokens": 7, "output_tokens": 8}}, Usage(7, 8)),
        ("openai", "/v1/images/edits", "/v1/images/edits", {"prompt": "x", "images": [{"image_url": "https://x/y.png"}]},
         {"data": [{"b64_json": "QUJD"}]}, None),
        ("anthropic", "/v1/messages", "/v1/messages", {"model": "c", "max_tokens": 9, "messages": []},
         {"content": [], "usage": {"input_tokens": 3, "cache_creation_input_tokens": 10, "output_tokens": 4}},
         Usage(13, 4, cache_write_tokens=10)),
        ("anthropic", "/messages/count_tokens", "/v1/messages/count_tokens", {"model": "c", "messages": []},
         {"input_tokens": 9}, None),
        ("google", GEMINI, GEMINI, {"contents": []},
         {"candidates": [{"content": {"parts": [{"text": "y"}]}}], "modelVersion": "gemini-2.5-flash-001",
          "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "thoughtsTokenCount": 50}},
         Usage(3, 54, reasoning_tokens=50)),
        ("google", "/models/gemini-2.5-flash:countTokens", "/v1beta/models/gemini-2.5-flash:countTokens",
         {"contents": []}, {"totalTokens": 3}, None),
        ("google", "/v1/models/e:embedContent", "/v1/models/e:embedContent", {"content": {}},
         {"embedding": {"values": [0.5]}}, None),
        # a gateway that speaks Anthropic's under OpenAI's name
        ("openai", "/v1/messages", "/v1/messages", {"model": "c", "messages": []}, {"content": [{"text": "y"}]}, None),
    ],
)  # fmt: skip
def test_json_goes_through_as_it_is(
    provider: Provider, ask: Any, name: str, path: str, at: str, body: Any, answer: Any, usage: Usage | None
) -> None:
    """Each operation, as its provider's account; tokens and model are seen."""
    provider.replies[at] = [says(answer)]
    with sighting() as seen:
        assert ask(name, path, body) == answer
    (asked, headers, sent), *_ = provider.asked
    assert (asked, json.loads(sent)) == (at, body)
    own = {"openai": "authorization", "anthropic": "x-api-key", "google": "x-goog-api-key"}
    assert {header for header in own.values() if KEY in headers.get(header, "")} == {own[name]}
    assert KEY not in asked
    assert (seen.usage, seen.provider) == (usage, name)
    if name == "google":
        assert seen.model == answer.get("modelVersion", seen.model)
        assert seen.model in {"gemini-2.5-flash", "gemini-2.5-flash-001", "e"}


def test_a_file_leaves_in_a_form(provider: Provider, ask: Any) -> None:
    """Base64 in the call, bytes at the provider; lists and tables as OpenAI's clients write them."""
    provider.replies["/v1/audio/transcriptions"] = [says({"text": "hello"})]
    body = {
        "model": "whisper-1",
        "file": FILE,
        "temperature": 0.5,
        "logprobs": True,
        "prompt": None,
        "timestamp_granularities": ["word", "segment"],
        "chunking_strategy": {"type": "server_vad", "threshold": 1},
        "known_speaker_references": ["data:audio/wav;base64,QUJD"],
    }
    assert ask("openai", "/v1/audio/transcriptions", body) == {"text": "hello"}
    ((_, headers, sent),) = provider.asked
    assert headers["content-type"].startswith("multipart/form-data; boundary=")
    assert parts_of(headers, sent) == [
        ("model", None, "", b"whisper-1"),
        ("file", "speech.mp3", "audio/mpeg", SOUND),
        ("temperature", None, "", b"0.5"),
        ("logprobs", None, "", b"true"),
        ("timestamp_granularities[]", None, "", b"word"),
        ("timestamp_granularities[]", None, "", b"segment"),
        ("chunking_strategy[type]", None, "", b"server_vad"),
        ("chunking_strategy[threshold]", None, "", b"1"),
        ("known_speaker_references[]", None, "", b"data:audio/wav;base64,QUJD"),
    ]


def test_pictures_leave_in_a_form_where_there_are_files(provider: Provider, ask: Any) -> None:
    """A data: URL is a file too; its name follows from its type."""
    provider.replies["/v1/images/edits"] = [says({"data": [{"b64_json": "QUJD"}]})]
    url = "data:image/png;base64,QUJD"
    ask("openai", "/v1/images/edits", {"prompt": "x", "image": [url, {**FILE, "filename": "b.webp"}], "mask": url})
    ((_, headers, sent),) = provider.asked
    assert parts_of(headers, sent) == [
        ("prompt", None, "", b"x"),
        ("image[]", "file.png", "image/png", b"ABC"),
        ("image[]", "b.webp", "image/webp", SOUND),
        ("mask", "file.png", "image/png", b"ABC"),
    ]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("/etc/passwd", "use"),
        ("file:///etc/passwd", "use"),
        ("https://example.com/a.mp3", "use"),
        ({"path": "/etc/passwd"}, "use"),
        ({"data": "QUJD"}, "say what it is"),
        ({"data": "QUJD!", "filename": "a.mp3"}, "no base64"),
        ({"data": "QUJ", "filename": "a.mp3"}, "no base64"),
        ({"data": "", "filename": "a.mp3"}, "nothing in it"),
        ({"data": "QUJD", "filename": "../a.mp3"}, "no plain name"),
        ({"data": "QUJD", "filename": 'a"\r\nx: y'}, "no plain name"),
        ({"data": "QUJD", "content_type": "audio/mpeg\r\nx: y"}, "content_type is none"),
        ([], ""),
    ],
)
def test_a_file_is_no_path(provider: Provider, ask: Any, file: Any, words: str) -> None:
    """Nothing is read from the worker's disk or network for whoever makes a call; refused before anything is sent."""
    body = {"model": CANARY, "file": file}
    if file == []:  # some servers take an address of theirs in another field
        provider.replies["/v1/audio/translations"] = [says({"text": "x"})]
        assert ask("openai", "/v1/audio/translations", {**body, "url": "https://x/a.mp3"}) == {"text": "x"}
        return
    with pytest.raises(BadInput, match=words) as raised:
        ask("openai", "/v1/audio/translations", body)
    assert CANARY not in str(raised.value)
    assert provider.asked == []


def test_a_sound_comes_as_base64(provider: Provider, ask: Any) -> None:
    """With its type, whatever it is called; what is no sound is no answer."""
    body = {"model": "tts-1", "input": "hi", "voice": "alloy"}
    for kind in ("audio/mpeg", "application/octet-stream", ""):
        provider.replies["/v1/audio/speech"] = [(200, {"content-type": kind} if kind else {}, SOUND)]
        answer = ask("openai", "/v1/audio/speech", body)
        assert answer == {"content_type": kind or "application/octet-stream", "data": FILE["data"]}
    assert provider.asked[0][1]["accept"] == "*/*"
    for kind, raw, error in (
        ("application/json", b'{"error": {"code": 503}}', http.ProviderRefused),
        ("text/html", b"<html>", MalformedResponse),
        ("audio/mpeg", b"", MalformedResponse),
        ("application/json", b'{"id": "x"}', http.ProviderRefused),
    ):
        provider.replies["/v1/audio/speech"] = [(200, {"content-type": kind}, raw)]
        with pytest.raises(error):
            ask("openai", "/v1/audio/speech", body)


def test_a_sound_has_a_bound(provider: Provider, ask: Any) -> None:
    """As base64 it is a third larger, and that is what is kept."""
    provider.replies["/v1/audio/speech"] = [(200, {"content-type": "audio/mpeg"}, b"x" * 900)]
    bounds.bound_answers(1_000 / MB)
    try:
        with pytest.raises(InvalidRequest, match="MAISD_MAX_ANSWER_MB"):
            ask("openai", "/v1/audio/speech", {"model": "tts-1", "input": "hi", "voice": "alloy"})
    finally:
        bounds.bound_answers(Settings().max_answer_mb)


@pytest.mark.parametrize(
    ("kind", "raw", "answer"),
    [
        ("text/plain", b"42", "42"),
        ("text/plain; charset=utf-8", b"1\n00:00 --> 00:01\nhi\n", "1\n00:00 --> 00:01\nhi\n"),
        ("text/plain", b"\n", "\n"),
        ("application/json", b'{"text": ""}', {"text": ""}),
    ],
)
def test_words_come_as_text(provider: Provider, ask: Any, kind: str, raw: bytes, answer: Any) -> None:
    """As the body asked (`response_format`); what was said in a silence is an answer too."""
    provider.replies["/v1/audio/transcriptions"] = [(200, {"content-type": kind}, raw)]
    assert ask("openai", "/v1/audio/transcriptions", {"model": "whisper-1", "file": FILE}) == answer


@pytest.mark.parametrize(
    ("name", "path", "body", "words"),
    [
        ("bedrock", "/v1/responses", {}, "provider='bedrock': use openai, anthropic, google"),
        (["openai"], "/v1/responses", {}, "use openai"),
        ("openai", "/v1/files", {}, "path='/v1/files': none of the known endpoints"),
        ("openai", "https://evil.example/v1/responses", {}, "none of the known"),
        ("openai", "//evil.example/v1/responses", {}, "none of the known"),
        ("openai", "/v1/responses/../files", {}, "none of the known"),
        ("openai", "/v1/responses?key=x", {}, "none of the known"),
        ("openai", 7, {}, "none of the known"),
        ("openai", "/v1/responses", "text", "body is a str"),
        ("openai", "/v1/responses", {"stream": True}, '"stream" asks for a stream'),
        ("openai", "/v1/audio/speech", {"stream_format": "sse"}, "asks for a stream"),
        ("google", "/v1beta/models/m:streamGenerateContent", {}, "none of the known"),
    ],
)
def test_what_may_not_be_asked(provider: Provider, ask: Any, name: Any, path: Any, body: Any, words: str) -> None:
    """Neither when the call is made nor when a message asks for it."""
    with pytest.raises(BadInput) as raised:
        ask(name, path, body)
    assert words in str(raised.value)
    with pytest.raises(BadInput) as planned:
        make_app(read_settings({})).tasks["ratelimit_worker.request"].plan((name, path, body), {})
    assert str(planned.value) == str(raised.value)
    assert provider.asked == []


def test_settings_allow_more(provider: Provider, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Letter by letter, for that provider alone."""
    path = "/v1beta/models/gemini:customMethod"
    monkeypatch.setenv("MAISD_PROVIDERS", json.dumps({"google": {"paths": [path], "headers": {"x-a": "b"}}}))
    provider.replies[path] = [says({"done": True})]
    assert ask("google", path, {}) == {"done": True}
    assert provider.asked[0][1]["x-a"] == "b"
    for name, other in (("google", f"{path}x"), ("openai", path)):
        with pytest.raises(BadInput, match="none of the known"):
            ask(name, other, {})


def test_googles_account() -> None:
    """The names that its SDK reads, in its order; no key, no call."""
    to = google.endpoint({"GEMINI_API_KEY": "b", "GOOGLE_API_KEY": ""})
    assert (to.base_url, dict(to.headers)) == ("https://generativelanguage.googleapis.com", {"x-goog-api-key": "b"})
    assert google.endpoint({"GEMINI_API_KEY": "b", "GOOGLE_API_KEY": "a"}).headers["x-goog-api-key"] == "a"
    with pytest.raises(AuthenticationFailed, match="set GOOGLE_API_KEY or GOOGLE_API_KEY_FILE"):
        google.endpoint({})
    with pytest.raises(ConfigurationError, match="GOOGLE_GEMINI_BASE_URL ends in"):
        google.endpoint({"GOOGLE_GEMINI_BASE_URL": f"https://x{GEMINI}", "GEMINI_API_KEY": "b"})
    assert google.ACCOUNT.key_file({"GEMINI_API_KEY_FILE": "/k"}) == "/k"
    assert google.ACCOUNT.key_file({"GEMINI_API_KEY_FILE": "/k", "GOOGLE_API_KEY": "a"}) == ""


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("", "/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("", "/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1beta", "/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1alpha", "/models/m:generateContent", "/v1alpha/models/m:generateContent"),
        ("/gateway", "/v1/models/m:generateContent", "/gateway/v1/models/m:generateContent"),
    ],
)
def test_a_version_is_said_once(base: str, path: str, url: str) -> None:
    """By the base URL, the path, or where neither does by the API's own."""
    to = google.endpoint({"GOOGLE_GEMINI_BASE_URL": f"https://h{base}", "GEMINI_API_KEY": "b"})
    assert to.url(path) == f"https://h{url}"
    assert openai.endpoint({"OPENAI_API_KEY": "b"}).url("/responses") == "https://api.openai.com/v1/responses"
    assert anthropic.endpoint({"ANTHROPIC_API_KEY": "b"}).url("/messages") == "https://api.anthropic.com/v1/messages"


# ── as a call of a lane ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Provider, Fleet, Worker, Celery]]:
    """A worker of the built-in tasks, a provider of all three APIs, and this process as an agent."""
    with Provider() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        env = {api.ACCOUNT.address: running.url for api in apis.APIS.values()}
        env |= {api.ACCOUNT.keys[0]: KEY for api in apis.APIS.values()}
        try:
            with fleet(**{**env, "OPENAI_BASE_URL": f"{running.url}/v1"}) as made:
                arguments = ("-P", "threads", "-c", "8", "-E", "-l", "DEBUG")
                worker = Worker("builtin", made.folder, made.env, arguments, "ratelimit_worker.app")
                made.workers.append(worker)
                worker.wait_ready()
                yield running, made, worker, make_app(read_settings(), made.valkey.url)
        finally:
            running.shutdown()
            thread.join()


def rows(made: Fleet, task: str) -> list[Any]:
    """Attempts of a task, by their start."""
    engine = create_engine(f"sqlite:///{made.folder}/state/tracking.sqlite3")
    with engine.connect() as connection:
        return list(
            connection.execute(
                text(
                    "select lane, outcome, category, provider, model, input_tokens, output_tokens from attempts "
                    "where task = :task order by started_at"
                ),
                {"task": task},
            )
        )


@pytest.mark.worker
def test_it_is_a_call(scene: tuple[Provider, Fleet, Worker, Celery]) -> None:
    """In its lane, refused once and sent again, counted, and asked once for all that ask the same; nothing leaks."""
    provider, made, worker, app = scene
    answer = {
        "candidates": [{"content": {"parts": [{"text": "y"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4, "thoughtsTokenCount": 50},
    }
    refused = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded; retry in 0.1s"}}
    provider.replies[GEMINI] = [says(refused, 429, retry_after="0"), says(answer)]
    task = app.tasks["ratelimit_worker.request"]
    body = {"contents": [{"parts": [{"text": CANARY}]}]}

    first = task.delay(provider="google", path=GEMINI, body=body)
    assert first.get(timeout=120) == answer
    assert task.delay(provider="google", path=GEMINI, body=body).get(timeout=120) == answer

    assert len(provider.bodies(GEMINI)) == 2  # the refusal and the answer; the second call had it from the cache
    lane = "google:gemini-2.5-flash"
    wait_for(lambda: len(rows(made, "ratelimit_worker.request")) >= 2, what="the rows are there")
    assert [tuple(row) for row in rows(made, "ratelimit_worker.request")][:2] == [
        (lane, "snoozed", "rate_limited", "google", "gemini-2.5-flash", None, None),
        (lane, "answered", None, "google", "gemini-2.5-flash", 3, 54),
    ]
    assert made.valkey.client.hget(f"rlw:lane:{lane}", "mode") in {None, b"NORMAL"}
    log = worker.log()
    assert CANARY not in log
    assert KEY not in log


@pytest.mark.worker
def test_a_refusal_is_the_calls_and_a_bad_key_the_accounts(scene: tuple[Provider, Fleet, Worker, Celery]) -> None:
    """A 400 is final; what it said is told to nobody."""
    provider, _, worker, app = scene
    provider.replies["/v1/images/generations"] = [says({"error": {"message": CANARY, "code": KEY}}, 400)]
    result = app.tasks["ratelimit_worker.request"].delay(
        provider="openai", path="/v1/images/generations", body={"model": "gpt-image-1", "prompt": CANARY}
    )
    with pytest.raises(InvalidRequest) as raised:
        result.get(timeout=120)
    assert CANARY not in str(raised.value)
    assert CANARY not in worker.log()
    assert KEY not in worker.log()


@pytest.mark.worker
def test_a_lane_may_be_named(scene: tuple[Provider, Fleet, Worker, Celery]) -> None:
    """By the call, as for every task; else it follows from the path, also of one line of a file."""
    provider, made, _, app = scene
    provider.replies["/v1/audio/speech"] = [(200, {"content-type": "audio/mpeg"}, SOUND)]
    sound = {"content_type": "audio/mpeg", "data": FILE["data"]}
    body = {"model": "tts-1", "input": CANARY, "voice": "alloy"}
    named = app.tasks["ratelimit_worker.request"].apply_async(("openai", "/audio/speech", body), lane="voices")
    line = app.tasks["ratelimit_worker.batch_line"].delay(url="/v1/audio/speech", body=body)
    assert named.get(timeout=120) == sound
    assert line.get(timeout=120) == {"status_code": 200, "request_id": None, "body": sound}
    wait_for(lambda: rows(made, "ratelimit_worker.batch_line"), what="its row is there")
    assert rows(made, "ratelimit_worker.batch_line")[0].lane == "openai:tts-1"
    assert "voices" in {row.lane for row in rows(made, "ratelimit_worker.request")}
