"""The HTTP client and the shapes of the APIs, against a real server on loopback."""

from __future__ import annotations

import json
import os
import pickle
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit_worker import builtin
from ratelimit_worker.calls import Category, Response, Usage, sighting
from ratelimit_worker.config import Settings
from ratelimit_worker.errors import (
    AuthenticationFailed,
    BadInput,
    ConfigurationError,
    InvalidRequest,
    MalformedResponse,
)
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.completion import flaw_of
from ratelimit_worker.policy.estimate import Size, cost
from ratelimit_worker.providers import anthropic, bounds, http, openai
from ratelimit_worker.providers.webhook import Webhook

KEY = "sk-proj-CanaryKey0123456789"
CHAT = {
    "model": "gpt-4o-2024",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 12},
}


class Server(ThreadingHTTPServer):
    """Answers what a test told it to, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.reply: tuple[int, dict[str, str], bytes] = (200, {}, json.dumps(CHAT).encode())
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.peers: set[Any] = set()
        self.drip: threading.Event | None = None
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers.get("content-length", 0)))
        named = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.path, named, sent))
        self.server.peers.add(self.client_address)
        status, headers, body = self.server.reply
        if status == 0:  # hang up
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.drip is not None:
            self.server.drip.wait(10)
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def here(server: Server) -> http.Endpoint:
    return openai.endpoint({"OPENAI_BASE_URL": server.base_url, "OPENAI_API_KEY": KEY})


def test_a_request_goes_out_as_json_and_comes_back_read(server: Server) -> None:
    """Key in the header, JSON both ways, header names in lower case, no cookies kept."""
    server.reply = (200, {"X-Request-Id": "req_1", "Set-Cookie": "a=b"}, json.dumps(CHAT).encode())
    response = openai.request(here(server), "/v1/chat/completions", {"model": "gpt-4o", "messages": []})
    path, headers, sent = server.asked[0]
    assert path == "/v1/chat/completions"
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert json.loads(sent) == {"model": "gpt-4o", "messages": []}
    assert (response.status, response.body, response.request_id) == (200, CHAT, "req_1")
    assert "set-cookie" not in response.headers
    assert response.elapsed_s > 0


def test_the_attempt_sees_the_answer(server: Server) -> None:
    """Usage, provider and model are noted; of a refusal too, before it is raised."""
    with sighting() as seen:
        response = openai.request(here(server), "/chat/completions", {"model": "gpt-4o"})
    assert (seen.response, seen.usage, seen.provider, seen.model) == (response, Usage(9, 12), "openai", "gpt-4o-2024")
    server.reply = (429, {"Retry-After": "2"}, b'{"error": {"type": "tokens"}}')
    with sighting() as seen, pytest.raises(http.ProviderRefused):
        openai.request(here(server), "/chat/completions", {"model": "gpt-4o"})
    assert seen.response is not None
    assert (seen.response.status, seen.usage, seen.model) == (429, None, "gpt-4o")


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
def test_a_refusal_is_raised_once_and_says_nothing_of_its_body(server: Server, status: int) -> None:
    """No retry, no redirect followed; the body is in `.response`, not in str, repr or the classified cause."""
    body = {"error": {"message": "canary prompt", "code": KEY}}
    server.reply = (status, {"Location": "http://127.0.0.1:9/", "Retry-After": "0"}, json.dumps(body).encode())
    with pytest.raises(http.ProviderRefused) as refused:
        openai.request(here(server), "/chat/completions", {})
    error = refused.value
    assert len(server.asked) == 1
    assert error.response.body == body
    failure = classify_exception(error)
    assert failure is not None
    shown = f"{error} {error!r} {failure}"
    assert "canary" not in shown
    assert KEY not in shown
    assert pickle.loads(pickle.dumps(error)).response == error.response


@pytest.mark.parametrize("raw", [b"", b"{", b"<html>", b"\xff\xfe", b"NaN", b"[" * 100_000])
def test_a_2xx_that_is_no_json_is_malformed(server: Server, raw: bytes) -> None:
    """It is seen, and raised as an error of ours."""
    server.reply = (200, {"x-request-id": "req_9"}, raw)
    with sighting() as seen, pytest.raises(MalformedResponse) as malformed:
        openai.request(here(server), "/chat/completions", {})
    assert seen.response is not None
    assert malformed.value.request_id == "req_9"


@pytest.mark.parametrize(
    ("body", "category"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "canary"}}, Category.OVERLOADED),
        ({"error": {"code": 429, "message": "canary"}}, Category.RATE_LIMITED),
        ({"object": "response", "status": "failed", "error": {"code": "insufficient_quota"}}, Category.QUOTA_EXHAUSTED),
        ({"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}, Category.SERVER_ERROR),
    ],
)
def test_an_error_inside_a_200_is_no_answer(server: Server, body: dict[str, Any], category: Category) -> None:
    """It is raised, so it is neither kept as an answer nor taken for a sign of health."""
    server.reply = (200, {"x-request-id": "req_3"}, json.dumps(body).encode())
    for ask in (openai.request, lambda to, path, said: anthropic.request(to, said)):
        with pytest.raises(http.ProviderRefused) as refused:
            ask(here(server), "/chat/completions", {})
        failure = classify_exception(refused.value)
        assert failure is not None
        assert (failure.category, failure.status, failure.request_id) == (category, 200, "req_3")
        assert "canary" not in f"{refused.value!r} {failure}"


def test_a_model_that_refuses_has_answered(server: Server) -> None:
    """What the model says, or was kept from saying, is the caller's to read."""
    for body in (
        {"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]},
        {"content": [], "stop_reason": "refusal"},
    ):
        server.reply = (200, {}, json.dumps(body).encode())
        assert openai.request(here(server), "/chat/completions", {}).body == body


def test_an_error_page_is_kept_as_text(server: Server) -> None:
    """A refusal need not be JSON."""
    server.reply = (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>")
    with pytest.raises(http.ProviderRefused) as refused:
        openai.request(here(server), "/chat/completions", {})
    assert refused.value.response.body == "<html>bad gateway</html>"


def test_an_answer_without_end_is_given_up(server: Server, most_mb: Callable[[float], None]) -> None:
    """More bytes than the bound are not kept, and asking again would bring as many."""
    most_mb(1 / 1024)
    server.reply = (200, {}, b'"' + b"x" * 100_000 + b'"')
    with pytest.raises(InvalidRequest, match=r"larger than 0\.000977 MB"):
        openai.request(here(server), "/chat/completions", {})


@pytest.mark.parametrize("fault", ["refused", "hung up", "silent"])
def test_transport_errors_are_httpxs_own(server: Server, fault: str) -> None:
    """They are known to the classifier, and the client is fit for the next call."""
    to, timeout_s = here(server), 5.0
    if fault == "refused":
        with Server() as gone:
            to = here(gone)
    elif fault == "hung up":
        server.reply = (0, {}, b"")
    else:
        server.drip, timeout_s = threading.Event(), 0.05
    with pytest.raises(httpx.TransportError) as failed:
        openai.request(to, "/chat/completions", {}, timeout_s)
    if server.drip is not None:
        server.drip.set()
    failure = classify_exception(failed.value)
    assert failure is not None
    assert failure.sick
    server.reply, server.drip = (200, {}, json.dumps(CHAT).encode()), None
    assert openai.request(here(server), "/chat/completions", {}).body == CHAT


def test_a_body_that_is_no_json_is_refused_before_anything_is_sent(server: Server) -> None:
    """Sets, lone surrogates and objects; the message does not show them."""
    for body in ({"a": object()}, {"a": "\ud800"}):
        with pytest.raises(BadInput) as refused:
            openai.request(here(server), "/chat/completions", body)
        assert "object at" not in str(refused.value)
    assert server.asked == []


@pytest.mark.long
def test_connections_are_kept_and_never_shared(server: Server) -> None:
    """200 calls of 8 threads need no more than 8 connections, and every thread gets its own answer."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: openai.request(here(server), "/chat/completions", {"n": n}), range(200)))
    assert len(answers) == len(server.asked) == 200
    assert len(server.peers) <= 8


def test_a_forked_child_starts_connections_of_its_own(server: Server) -> None:
    """The child talks over a new connection, and the parent goes on over its old one."""
    openai.request(here(server), "/chat/completions", {})
    before = set(server.peers)
    child = os.fork()
    if child == 0:  # no pytest in here: leave at once, whatever happens
        try:
            ok = openai.request(here(server), "/chat/completions", {"child": True}).status == 200
        finally:
            os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(server.peers - before) == 1
    known = set(server.peers)
    assert openai.request(here(server), "/chat/completions", {}).status == 200
    assert server.peers == known


def test_nothing_that_streams_is_sent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would be paid for and read by nobody: refused when the call is made, and again before it would be sent."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.base_url)
    streamed = {"model": "m", "stream": True}
    for ask in (
        lambda: openai.request(here(server), "/chat/completions", streamed),
        lambda: anthropic.request(here(server), streamed),
        lambda: builtin.chat_completion.delay(**streamed),
        lambda: builtin.message.delay(**streamed),
        lambda: builtin.chat_completion(**streamed),
        lambda: builtin.batch_line.delay("/v1/chat/completions", streamed),
    ):
        with pytest.raises(BadInput, match="stream"):
            ask()
    assert server.asked == []


def test_what_keeps_a_connection_open_is_no_part_of_the_answer(server: Server) -> None:
    """Blank lines and comments before the JSON."""
    server.reply = (200, {}, b"\n\n: keep-alive\n\n" + json.dumps(CHAT).encode())
    assert openai.request(here(server), "/chat/completions", {}).body == CHAT


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (200, CHAT, 200),
        (400, {"error": {"message": "x"}}, 400),
        (404, {"error": {"code": "model_not_found"}}, 404),
        (422, {"detail": []}, 422),
        (400, {"error": {"code": "content_filter"}}, 400),
        (200, {"error": {"code": 404}}, 404),
        (200, {"error": {"code": "422"}}, 422),
        (200, {"error": {"type": "invalid_request_error"}}, 400),  # it tells no status
        (401, {"error": {"code": "invalid_api_key"}}, Category.AUTH),
        (403, {"error": {"message": "no"}}, Category.AUTH),
        (402, {}, Category.QUOTA_EXHAUSTED),
        (412, {"error": {"message": "the monthly spending limit is reached"}}, Category.QUOTA_EXHAUSTED),
        (200, {"error": {"code": "401"}}, Category.AUTH),
        (200, {"base_resp": {"status_code": 1008}}, Category.QUOTA_EXHAUSTED),
        (200, {"error": {"code": 502}}, Category.SERVER_ERROR),
        (200, {"choices": []}, Category.MALFORMED_RESPONSE),
        (429, {}, Category.RATE_LIMITED),
    ],
)
def test_a_batch_lines_answer_is_an_answer_or_a_word_about_the_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int, body: Any, told: int | Category
) -> None:
    """With the status that it means; whatever says something of the account or the provider is raised."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    server.reply = (status, {}, json.dumps(body).encode())
    if isinstance(told, int):
        answer = builtin.batch_line("/v1/chat/completions", {"model": "m"})
        assert (answer["status_code"], answer["body"]) == (told, body)
        return
    with pytest.raises(http.ProviderRefused) as refused:
        builtin.batch_line("/v1/chat/completions", {"model": "m"})
    failure = classify_exception(refused.value)
    assert failure is not None
    assert failure.category is told


# --- Endpoints ---


@pytest.mark.long
def test_a_key_file_that_is_being_replaced_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty or missing for a moment; for longer, it is a key that is not accepted, and no fault of the call's."""
    file = tmp_path / "key"
    environment = {"OPENAI_API_KEY_FILE": str(file)}
    looks: list[None] = []

    def find() -> http.Endpoint:
        looks.append(None)
        if len(looks) == 2:
            file.write_text("")
        if len(looks) == 3:
            file.write_text(KEY)
        return openai.endpoint(environment)

    assert http.wait_for_key(find).headers["authorization"] == f"Bearer {KEY}"
    assert len(looks) == 3
    file.write_text("")
    with pytest.raises(http.KeyUnusable, match="is empty"):
        http.wait_for_key(lambda: openai.endpoint(environment), 0.0)
    monkeypatch.setenv("OPENAI_API_KEY_FILE", str(file))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(AuthenticationFailed, match="is empty") as failed:
        builtin.chat_completion(model="m")
    failure = classify_exception(failed.value)
    assert failure is not None
    assert failure.category is Category.AUTH


def test_a_key_comes_from_the_environment_or_a_file(tmp_path: Path) -> None:
    """The variable wins over the file; white space around it is none of it; the key is in no repr."""
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    from_file = openai.endpoint({"OPENAI_API_KEY_FILE": str(file)})
    assert from_file.headers["authorization"] == f"Bearer {KEY}"
    assert from_file.base_url == "https://api.openai.com/v1"
    assert KEY not in repr(from_file)
    both = anthropic.endpoint({"ANTHROPIC_API_KEY": "other", "ANTHROPIC_API_KEY_FILE": str(file)})
    assert both.headers == {"x-api-key": "other", "anthropic-version": anthropic.VERSION}
    assert both.base_url == "https://api.anthropic.com"
    named = openai.endpoint({"OPENAI_API_KEY": KEY, "OPENAI_ORG_ID": "org-1"})
    assert named.headers["openai-organization"] == "org-1"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "models.localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Local model servers have none."""
    assert openai.endpoint({"OPENAI_BASE_URL": f"http://{host}:8000/v1/"}).headers == {}


@pytest.mark.parametrize(
    "environment", [{}, {"OPENAI_API_KEY": "  "}, {"OPENAI_BASE_URL": "http://127.0.0.1.evil.org"}]
)
def test_elsewhere_a_missing_key_is_one_clear_line(environment: dict[str, str]) -> None:
    """It names the variables that would help."""
    with pytest.raises(AuthenticationFailed, match="set OPENAI_API_KEY or OPENAI_API_KEY_FILE") as refused:
        openai.endpoint(environment)
    assert "\n" not in str(refused.value)


def test_settings_that_cannot_be_are_named_and_not_shown(tmp_path: Path) -> None:
    """An unreadable or empty file, a key that no header carries, a base URL that is none."""
    empty = tmp_path / "empty"
    empty.write_text("\n")
    for environment in (
        {"OPENAI_API_KEY_FILE": str(tmp_path / "missing")},
        {"OPENAI_API_KEY_FILE": str(empty)},
        {"OPENAI_API_KEY": f"{KEY}\r\nx: y"},
        {"OPENAI_API_KEY": f"{KEY}é"},
        {"OPENAI_BASE_URL": "api.openai.com/v1", "OPENAI_API_KEY": KEY},
        {"OPENAI_BASE_URL": "ftp://api.openai.com", "OPENAI_API_KEY": KEY},
        {"OPENAI_BASE_URL": "https://[", "OPENAI_API_KEY": KEY},
    ):
        with pytest.raises(ConfigurationError, match="OPENAI_") as refused:
            openai.endpoint(environment)
        assert KEY not in str(refused.value)


@pytest.mark.parametrize(
    ("base_url", "path", "url"),
    [
        ("https://api.openai.com/v1", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1", "/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1", "chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("http://localhost:8000", "/v1/embeddings", "http://localhost:8000/v1/embeddings"),
        ("https://x.org/openai/v1", "/v1/responses?a=b", "https://x.org/openai/v1/responses?a=b"),
        ("https://api.anthropic.com", "/v1/messages", "https://api.anthropic.com/v1/messages"),
    ],
)
def test_a_path_is_below_its_base(base_url: str, path: str, url: str) -> None:
    """Batch lines name the version that the base URL may name too; it is said once."""
    assert http.Endpoint(base_url, {}).url(path) == url


@pytest.mark.parametrize(
    "path",
    ["https://evil.org/v1", "//evil.org/v1", "@evil.org", "/v1/../../admin", "/a b", "/a\r\nHost: evil", "", "/", "/é",
     "/v1/%2e%2e/admin", "/v1/a%2fb", "/v1/./x", "/v1//x", "/x/..", "/..", "/."],
)  # fmt: skip
def test_a_path_leads_to_no_other_host(path: str) -> None:
    """The key goes wherever the request goes."""
    with pytest.raises(BadInput):
        http.Endpoint("https://api.openai.com", {}).url(path)


# --- Shapes ---


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 50},
            Size(input_tokens=100, output_tokens=50),
        ),
        ({"messages": [], "max_completion_tokens": 7, "max_tokens": 9, "n": 3}, Size(output_tokens=7, choices=3)),
        ({"messages": []}, Size()),
        ({"messages": [], "max_tokens": True}, Size()),
        ({"messages": [], "max_tokens": -5}, Size()),
        ({"messages": [], "max_tokens": 10**30}, Size(output_tokens=10_000_000)),
        ({"input": "x" * 40, "max_output_tokens": 5}, Size(input_tokens=10, output_tokens=5)),
        ({"input": [{"role": "user", "content": "x" * 36}]}, Size(input_tokens=10)),
        ({"input": ["x" * 40, "x" * 41]}, Size(input_tokens=21, output_tokens=0)),
        ({"input": [[1, 2, 3], [4]], "model": "m"}, Size(input_tokens=4, output_tokens=0, model="m")),
        ({"input": "é" * 20}, Size(input_tokens=10, output_tokens=0)),
        (
            {
                "messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:" + "A" * 10**6}}]}],
                "max_tokens": 1,
            },
            Size(input_tokens=1_000, output_tokens=1),
        ),
        (None, Size(output_tokens=0)),
        ([], Size(output_tokens=0)),
        ({}, Size(output_tokens=0)),
    ],
)
def test_what_an_openai_body_says_of_its_tokens(body: Any, expected: Size) -> None:
    """Bytes / 4 of the prompt, and the most that may come back; None where no maximum is named."""
    assert openai.size(body) == expected


def test_what_an_anthropic_body_says_of_its_tokens() -> None:
    """Messages, system prompt and tools; and max_tokens."""
    body = {"system": "x" * 40, "messages": [{"role": "user", "content": "x" * 36}], "max_tokens": 100}
    assert anthropic.size(body) == Size(input_tokens=20, output_tokens=100)
    assert anthropic.size({"messages": [], "model": "claude"}) == Size(model="claude")
    assert anthropic.size("x") == Size(output_tokens=0)


def test_what_the_answers_say() -> None:
    """The refusal of each shape; tests/unit/policy/test_usage.py has the tokens."""
    assert openai.refusal(CHAT) is None
    assert openai.refusal({"choices": [{"message": {"refusal": "no"}}]}) == "no"
    assert openai.refusal({"output": [{"content": [{"type": "refusal", "refusal": "no"}]}]}) == "no"
    assert anthropic.refusal({"stop_reason": "refusal", "content": [{"type": "text", "text": "no"}]}) == "no"
    assert anthropic.refusal({"stop_reason": "end_turn"}) is None


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["messages", "input", "content", "usage", "choices", "message", "output", "type", "n"])
            | st.sampled_from(["max_tokens", "prompt_tokens", "stop_reason", "refusal", "incomplete_details"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(junk)
@example({"messages": {"type": []}})
def test_no_body_breaks_a_shape(body: Any) -> None:
    """A cost is never negative or endless, and no refusal is found where there is none to read."""
    for shape in (openai, anthropic):
        charged = cost(shape.size(body), None)
        assert charged.requests == 1.0
        assert 0 <= charged.output_tokens <= 10_000_000
        assert 0 <= charged.input_tokens <= 100_000_000
        shape.refusal(body)


answers_of_strangers = st.recursive(
    st.none() | st.integers() | st.text(max_size=8) | st.sampled_from(["response", "error", "refusal", "SAFETY"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["object", "type", "output", "content", "choices", "message", "finish_reason", "error"])
            | st.sampled_from(["stop_reason", "stopReason", "candidates", "finishReason", "promptFeedback", "code"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(answers_of_strangers)
@example({"object": "response", "output": [{"type": None, "content": [{"type": "refusal"}]}]})
@example({"candidates": [{"finishReason": ["SAFETY"]}]})
@example({"stopReason": ["content_filtered"]})
def test_no_answer_breaks_who_looks_for_a_flaw(body: Any) -> None:
    """Whatever a 2xx says: a category and words, or nothing."""
    flaw = flaw_of(body, {})
    assert flaw is None or isinstance(flaw[0], Category)


def test_a_response_that_nobody_collects_is_fine(server: Server) -> None:
    """Outside an attempt, `saw` has no effect."""
    assert isinstance(http.post(f"{server.base_url}/x", {}, {}), Response)


# ---- How much of an answer comes into memory ------------------------------------------------------------------------


def packed(plain: bytes, *windows: int) -> bytes:
    """`plain`, encoded once for each of the windows (zlib's `wbits`)."""
    for window in windows:
        packer = zlib.compressobj(9, wbits=window)
        plain = packer.compress(plain) + packer.flush()
    return plain


GZIP, ZLIB, BARE = 31, 15, -15


@pytest.fixture
def most_mb() -> Iterator[Callable[[float], None]]:
    yield bounds.bound_answers
    bounds.bound_answers(Settings().max_answer_mb)


@pytest.mark.parametrize(
    ("named", "windows"),
    [("gzip", [GZIP]), ("x-gzip", [GZIP]), ("deflate", [ZLIB]), ("deflate", [BARE]), ("gzip, gzip", [GZIP, GZIP])],
)
def test_an_encoded_answer_is_read(server: Server, named: str, windows: list[int]) -> None:
    """Nobody asked for it, and it can be read all the same."""
    server.reply = (200, {"Content-Encoding": named}, packed(json.dumps(CHAT).encode(), *windows))
    assert openai.request(here(server), "/chat/completions", {}).body == CHAT


def bomb(size: int) -> bytes:
    """gzip in gzip that becomes `size` zeros; made in pieces."""
    inner, outer = zlib.compressobj(9, wbits=GZIP), zlib.compressobj(9, wbits=GZIP)
    zeros = bytes(1 << 20)
    parts = [outer.compress(inner.compress(zeros)) for _ in range(size >> 20)]
    return b"".join([*parts, outer.compress(inner.flush()), outer.flush()])


@pytest.mark.long
@pytest.mark.parametrize("named", ["gzip, gzip", "gzip"])
def test_a_decompression_bomb_is_given_up_at_the_bound(
    server: Server, most_mb: Callable[[float], None], named: str
) -> None:
    """Final, in one line that names the fix; and no more than the bound was ever in memory."""
    most_mb(2)
    raw = bomb(512 << 20) if named == "gzip, gzip" else packed(bytes(64 << 20), GZIP)
    assert len(raw) < 100_000
    server.reply = (200, {"Content-Encoding": named}, raw)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"^[^\n]*larger than 2 MB; .*MAISD_MAX_ANSWER_MB") as failed:
            openai.request(here(server), "/chat/completions", {})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    failure = classify_exception(failed.value)
    assert failure is not None
    assert (failure.category, failure.sick) == (Category.INVALID_REQUEST, False)
    server.reply = (200, {}, json.dumps(CHAT).encode())
    assert openai.request(here(server), "/chat/completions", {}).body == CHAT, "the client is fit for the next call"


def test_a_bomb_in_a_refusal_leaves_the_status_to_say_what_it_is_about(server: Server) -> None:
    """A 429 is a 429, however much comes with it; a megabyte of it is kept."""
    server.reply = (429, {"Content-Encoding": "gzip, gzip", "Retry-After": "7"}, bomb(64 << 20))
    with pytest.raises(http.ProviderRefused) as refused:
        openai.request(here(server), "/chat/completions", {})
    assert len(refused.value.response.body) == 1 << 20
    failure = classify_exception(refused.value)
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (Category.RATE_LIMITED, 7.0)


def test_what_is_encoded_again_and_again_is_no_answer(server: Server) -> None:
    """Each encoding costs as much as the answer may have; nobody honest uses three."""
    server.reply = (200, {"Content-Encoding": ", ".join(["gzip"] * 3)}, packed(b"{}", GZIP, GZIP, GZIP))
    with pytest.raises(InvalidRequest, match="encoded 3 times"):
        openai.request(here(server), "/chat/completions", {})


@pytest.mark.parametrize("raw", [b"no gzip at all", packed(b'{"a": "' + b"x" * 999 + b'"}', GZIP)[:-12]])
def test_an_answer_that_is_not_encoded_as_it_says_is_malformed(server: Server, raw: bytes) -> None:
    """Nonsense, or cut short."""
    server.reply = (200, {"Content-Encoding": "gzip"}, raw)
    with pytest.raises(httpx.DecodingError) as failed:
        openai.request(here(server), "/chat/completions", {})
    failure = classify_exception(failed.value)
    assert failure is not None
    assert failure.category is Category.MALFORMED_RESPONSE


@pytest.mark.long
def test_a_web_hook_reads_no_body(server: Server) -> None:
    """Of its answer only the status counts, so a bomb in it is never decoded."""
    server.reply = (200, {"Content-Encoding": "gzip, gzip"}, bomb(256 << 20))
    hook = Webhook(f"{server.base_url}/hook")
    tracemalloc.start()
    try:
        hook.post(b"{}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        hook.close()
    assert peak < 4 << 20
