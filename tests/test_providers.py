"""The HTTP client and the shapes of the APIs, against a real server on loopback."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit_worker.calls import Category, Response, Usage, sighting
from ratelimit_worker.errors import AuthenticationFailed, BadInput, ConfigurationError, MalformedResponse
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.completion import flaw_of
from ratelimit_worker.policy.estimate import Size, cost
from ratelimit_worker.providers import anthropic, http, openai

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
        {"error": None, "choices": []},
    ):
        server.reply = (200, {}, json.dumps(body).encode())
        assert openai.request(here(server), "/chat/completions", {}).body == body


def test_an_error_page_is_kept_as_text(server: Server) -> None:
    """A refusal need not be JSON."""
    server.reply = (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>")
    with pytest.raises(http.ProviderRefused) as refused:
        openai.request(here(server), "/chat/completions", {})
    assert refused.value.response.body == "<html>bad gateway</html>"


def test_an_answer_without_end_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes than the bound are not kept."""
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 1_000)
    server.reply = (200, {}, b'"' + b"x" * 100_000 + b'"')
    with pytest.raises(MalformedResponse, match="larger than 1000 bytes"):
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
    server.reply, server.drip = (200, {}, b"{}"), None
    assert openai.request(here(server), "/chat/completions", {}).body == {}


def test_a_body_that_is_no_json_is_refused_before_anything_is_sent(server: Server) -> None:
    """Sets, lone surrogates and objects; the message does not show them."""
    for body in ({"a": object()}, {"a": "\ud800"}):
        with pytest.raises(BadInput) as refused:
            openai.request(here(server), "/chat/completions", body)
        assert "object at" not in str(refused.value)
    assert server.asked == []


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


# --- Endpoints ---


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
    ["https://evil.org/v1", "//evil.org/v1", "@evil.org", "/v1/../../admin", "/a b", "/a\r\nHost: evil", "", "/", "/é"],
)
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
    """Usage, finish reason and refusal of each shape."""
    assert openai.usage(CHAT) == Usage(9, 12)
    assert openai.usage({"usage": {"input_tokens": 1, "output_tokens": 2}}) == Usage(1, 2)
    assert openai.usage({"usage": {"prompt_tokens": 5}}) == Usage(5, None)
    assert openai.finish_reason(CHAT) == "stop"
    assert openai.finish_reason({"status": "incomplete", "incomplete_details": {"reason": "max"}}) == "max"
    assert openai.refusal(CHAT) is None
    assert openai.refusal({"choices": [{"message": {"refusal": "no"}}]}) == "no"
    assert openai.refusal({"output": [{"content": [{"type": "refusal", "refusal": "no"}]}]}) == "no"
    said = {
        "usage": {
            "input_tokens": 3,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 99,
            "output_tokens": 5,
        },
        "stop_reason": "refusal",
        "content": [{"type": "text", "text": "no"}],
    }
    assert anthropic.usage(said) == Usage(7, 5)
    assert (anthropic.finish_reason(said), anthropic.refusal(said)) == ("refusal", "no")
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
    """A cost is never negative or endless; whatever is no usage is None."""
    for shape in (openai, anthropic):
        charged = cost(shape.size(body), None)
        assert charged.requests == 1.0
        assert 0 <= charged.output_tokens <= 10_000_000
        assert 0 <= charged.input_tokens <= 100_000_000
        for read in (shape.usage, shape.finish_reason, shape.refusal):
            read(body)


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
