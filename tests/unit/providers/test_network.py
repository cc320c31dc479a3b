"""The way to a provider: proxies, certificates, redirects, and what each request says of its sender."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from socket import create_server
from typing import Any

import httpx2 as httpx
import pytest

import ratelimit_worker
from ratelimit_worker.batchfile import End, end_of
from ratelimit_worker.calls import Category, Failure
from ratelimit_worker.errors import CallFailed, ConfigurationError
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.retry import RetryPolicy, next_step
from ratelimit_worker.providers import anthropic, http, network, openai
from ratelimit_worker.providers.webhook import NotTaken, Webhook
from ratelimit_worker.reports.doctor import Code, judge_network
from tests.compat.provider import Provider, Reply

GOOD = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture
def provider() -> Iterator[Provider]:
    listening = Provider()
    yield listening
    listening.close()


@pytest.fixture(autouse=True)
def clients_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has an environment without proxies, and clients that are made in it."""
    for name in (*PROXIES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    before, http._idle = http._idle, type(http._idle)()
    yield
    http._idle = before


def ask(url: str) -> Any:
    return openai.request(http.Endpoint(f"{url}/v1", {"authorization": "Bearer sk-x"}), "/chat/completions", {}, 10.0)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, None),
        ({"HTTP_PROXY": "http://user:secret@proxy:3128"}, None),
        ({"https_proxy": "proxy:3128", "NO_PROXY": "fd07:b51a:cc66:f0::/64,10.0.0.0/8,*.x,[::1],junk::/999"}, None),
        ({"ALL_PROXY": "socks5://user:secret@proxy:1080"}, None),
        ({"ALL_PROXY": "gopher://u:secret@proxy:70"}, "ALL_PROXY: gopher://proxy:70 is no proxy"),
        ({"HTTPS_PROXY": "http://u:secret@proxy:port"}, "HTTPS_PROXY: "),
        ({"HTTP_PROXY": "http://"}, "HTTP_PROXY: http:// is no proxy"),
        ({"SSL_CERT_FILE": "/nope.pem"}, "SSL_CERT_FILE=/nope.pem: no such file"),
        ({"SSL_CERT_DIR": "/nope"}, "SSL_CERT_DIR=/nope: no such folder"),
        ({"SSL_CERT_FILE": __file__}, "no certificates that can be read"),
    ],
)
def test_what_the_environment_names(
    environ: dict[str, str], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in one line with its name, and without who one is at the proxy; doctor says the same."""
    found = network.problem(environ)
    if words is None:
        assert found is None
        network.check(environ)
        assert judge_network().code is Code.FINE
        return
    assert found is not None
    assert words in found
    assert "secret" not in found
    assert "\n" not in found
    with pytest.raises(ConfigurationError):
        network.check(environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert (judge_network().code, judge_network().says) == (Code.CONFIGURATION, found)


def test_a_socks_proxy_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be installed."""

    def without(*_: Any, **__: Any) -> Any:
        raise ImportError("socksio")

    monkeypatch.setattr("httpx2.HTTPTransport", without)
    found = network.problem({"all_proxy": "socks5://proxy:1080"})
    assert found is not None
    assert found == (
        "all_proxy: socks5://proxy:1080 is a SOCKS proxy, which needs a package more: "
        "pip install 'ratelimit-worker[socks]'"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NO_PROXY", "localhost,127.0.0.1,fd07:b51a:cc66:f0::/64"),
        ("NO_PROXY", "127.0.0.0/8"),
        ("no_proxy", "*"),
    ],
)
def test_a_host_that_needs_no_proxy(provider: Provider, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Whatever else stands in the list, and whatever kind of proxy is for the others."""
    provider.says(Reply(200, GOOD))
    for proxy in ("http://127.0.0.1:9", "socks5://127.0.0.1:9"):
        http._idle.clear()
        monkeypatch.setenv("ALL_PROXY", proxy)
        monkeypatch.setenv(name, value)
        assert ask(provider.url).body == GOOD


def test_a_bad_setting_is_no_calls_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot be made says why, in one line; so does the web hook's."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nope.pem")
    with pytest.raises(ConfigurationError, match=r"^SSL_CERT_FILE=/nope.pem: no such file"):
        http.warm_up(1)
    with pytest.raises(ConfigurationError, match="SSL_CERT_FILE"):
        Webhook("https://hook.invalid/x")


class Shut(threading.Thread):
    """A proxy that lets nobody through."""

    def __init__(self, status: int) -> None:
        super().__init__(daemon=True)
        self.status, self.listening = status, create_server(("127.0.0.1", 0))
        self.asked: list[bytes] = []
        self.start()

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(65536))
                connection.sendall(
                    f"HTTP/1.1 {self.status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
                )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listening.getsockname()[1]}"

    def close(self) -> None:
        self.listening.shutdown(2)
        self.listening.close()
        self.join()


def _failure_behind(proxy: Shut, monkeypatch: pytest.MonkeyPatch) -> Failure:
    """What a request behind this proxy, which refuses it, fails with."""
    try:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        with pytest.raises(httpx.ProxyError) as raised:
            ask("https://api.llm.invalid")
    finally:
        proxy.close()
    failure = classify_exception(raised.value)
    assert failure is not None
    return failure


@pytest.mark.parametrize("status", [407, 403])
def test_a_proxy_that_lets_nobody_through(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """Its word is the proxy's, in words: not tried again, and no sign that the provider is away."""
    proxy = Shut(status)
    failure = _failure_behind(proxy, monkeypatch)
    assert (failure.category, failure.status, failure.sick) == (Category.AUTH, status, False)
    assert f"HTTP {status} from the proxy" in failure.cause
    step = next_step(failure, 1, RetryPolicy(), lambda: 0.0, now_s=0.0, deadline_s=1e9)
    assert type(step).__name__ == "GiveUp"
    assert b"sk-x" not in proxy.asked[0], "the key is for the provider"


@pytest.mark.parametrize("status", [502, 503])
def test_a_proxy_that_is_sick_is_a_broken_way(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    """A gateway that cannot reach the provider now: tried again, as before."""
    failure = _failure_behind(Shut(status), monkeypatch)
    assert failure.category is Category.CONNECTION


def test_a_wrapper_around_a_proxys_word() -> None:
    """SDKs say "connection error" to it; a proxy in clear answers with a status like any server."""

    class APIConnectionError(Exception):
        """As openai's."""

    APIConnectionError.__module__ = "openai"
    error = APIConnectionError("Connection error.")
    error.__cause__ = httpx.ProxyError("407 Proxy Authentication Required")
    failure = classify_exception(error)
    assert failure is not None
    assert (failure.category, failure.status) == (Category.AUTH, 407)
    assert "from the proxy" in failure.cause


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("https://api.llm.invalid/v1/chat/completions?token=secret", "redirects to https://api.llm.invalid,"),
        ("https://user:secret@other.invalid:8443/x", "redirects to https://other.invalid:8443,"),
        ("/elsewhere/secret", "redirects to another path,"),
        ("", "redirects to another path,"),
    ],
)
def test_a_redirect_is_said_and_not_followed(provider: Provider, location: str, words: str) -> None:
    """The key goes to no other host; the words name scheme and host, and nothing that could be a secret."""
    provider.says(Reply(308, b"", {"location": location} if location else {}))
    with pytest.raises(CallFailed) as raised:
        ask(provider.url)
    assert provider.requests == 1
    failure = classify_exception(raised.value)
    assert failure is not None
    assert (failure.category, failure.status) == (Category.INVALID_REQUEST, 308)
    assert words in failure.cause
    assert "secret" not in failure.cause
    assert end_of(308) is End.FAILED


@pytest.mark.parametrize(
    ("variable", "url", "ending"),
    [
        ("OPENAI_BASE_URL", "https://api.openai.com/v1/chat/completions", "/chat/completions"),
        ("OPENAI_BASE_URL", "https://api.openai.com/v1/responses/", "/responses"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:1/v1/embeddings", "/embeddings"),
        ("ANTHROPIC_BASE_URL", "https://api.anthropic.com/v1/messages", "/messages"),
    ],
)
def test_a_base_url_with_the_requests_own_path(variable: str, url: str, ending: str) -> None:
    """Said before anything is sent, with what to leave out."""
    provider: Any = openai if variable.startswith("OPENAI") else anthropic
    environ = {variable: url, variable.replace("BASE_URL", "API_KEY"): "x"}
    with pytest.raises(ConfigurationError, match=f"{variable} ends in {ending}, which each request adds"):
        provider.endpoint(environ)


def test_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A User-Agent, and encodings: without the first some gateways refuse, without the second answers come in full."""
    sent: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(200, content=iter([json.dumps(GOOD).encode()]))

    with http._Client(transport=httpx.MockTransport(take)) as client:
        http._idle.append(client)
        ask("https://llm.invalid")
    (request,) = sent
    assert request.headers["user-agent"] == f"ratelimit-worker/{ratelimit_worker.__version__}"
    assert "gzip" in request.headers["accept-encoding"]
    assert request.headers["accept"] == "application/json"
    assert request.headers["authorization"] == "Bearer sk-x"


def test_the_web_hook_says_who_it_is(provider: Provider, tmp_path: Path) -> None:
    """And follows nothing."""
    provider.says(Reply(302, b"", {"location": "http://127.0.0.1:9/"}))
    hook = Webhook(f"{provider.url}/hook")
    try:
        assert hook._client.headers["user-agent"].startswith("ratelimit-worker/")
        with pytest.raises(NotTaken, match="HTTP 302"):
            hook.post(json.dumps({}).encode())
    finally:
        hook.close()


def test_a_base_url_that_lacks_its_version(provider: Provider) -> None:
    """A 404 without any version in the address asks whether one is missing; with one it is the provider's own word."""
    provider.says(Reply(404, {"detail": "Not Found"}))
    with pytest.raises(CallFailed, match=r"nothing answers /chat/completions below http://127.*does it lack /v1\?"):
        openai.request(http.Endpoint(provider.url, {}), openai.CHAT_PATH, {})
    with pytest.raises(http.ProviderRefused):
        openai.request(http.Endpoint(f"{provider.url}/v1", {}), openai.CHAT_PATH, {})
