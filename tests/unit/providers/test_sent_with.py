"""Headers and query that requests carry by settings: for Azure, gateways and betas; secrets by reference alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from ratelimit_worker.calls import SentWith, sighting
from ratelimit_worker.config import read_settings, told_to_send
from ratelimit_worker.errors import AuthenticationFailed, ConfigurationError
from ratelimit_worker.providers import anthropic, http, openai
from ratelimit_worker.reports.doctor import shown

SECRET = "sk-azure-canary"
AZURE = {
    "openai": {
        "headers": {"api-key": "env:AZURE_KEY", "Helicone-Property": "x", "authorization": ""},
        "query": {"api-version": "2024-10-21", "tag": "a b&c"},
    }
}
LANES = {"openai:gpt-4o": {"rpm": 60, "headers": {"HELICONE-Property": "lane", "X-Title": "T"}, "query": {"v": "1"}}}


@pytest.fixture
def sent() -> Iterator[list[httpx.Request]]:
    """What left, over a client that answers by itself."""
    requests: list[httpx.Request] = []

    def take(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
        return httpx.Response(
            200, content=iter([json.dumps({"choices": [choice], "content": [{"type": "text", "text": "hi"}]}).encode()])
        )

    before, http._idle = http._idle, type(http._idle)()
    with http._Client(transport=httpx.MockTransport(take)) as client:
        http._idle.append(client)
        yield requests
    http._idle = before


def environ(**more: Any) -> Mapping[str, str]:
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in more.items()}
    return {"OPENAI_BASE_URL": "https://team.openai.azure.com/openai/deployments/gpt", **texts}


def test_azure(sent: list[httpx.Request]) -> None:
    """Its own key header in place of ours, and a version in each address; no OPENAI_API_KEY is needed."""
    env = environ(MAISD_PROVIDERS=AZURE, AZURE_KEY=SECRET)
    to = openai.endpoint(env)
    assert SECRET not in repr(to)
    openai.request(to, openai.CHAT_PATH, {"model": "gpt-4o"})
    openai.request(to, "/chat/completions?x=1", {"model": "gpt-4o"})
    first, second = sent
    assert first.headers["api-key"] == SECRET
    assert first.headers["helicone-property"] == "x"
    assert "authorization" not in first.headers
    assert str(first.url) == (
        "https://team.openai.azure.com/openai/deployments/gpt/chat/completions?api-version=2024-10-21&tag=a+b%26c"
    )
    assert dict(second.url.params) == {"x": "1", "api-version": "2024-10-21", "tag": "a b&c"}


def test_a_lanes_word_wins(sent: list[httpx.Request]) -> None:
    """In an attempt of that lane, and in no other."""
    env = environ(MAISD_PROVIDERS=AZURE, MAISD_LANES=LANES, AZURE_KEY=SECRET)
    for lane in ("openai:gpt-4o", "openai:other"):
        with sighting(lane):
            openai.request(openai.endpoint(env), openai.CHAT_PATH, {})
    ours, other = sent
    assert (ours.headers["helicone-property"], ours.headers["x-title"], ours.url.params["v"]) == ("lane", "T", "1")
    assert (other.headers["helicone-property"], "x-title" in other.headers, "v" in other.url.params) == (
        "x",
        False,
        False,
    )


def test_a_beta_beside_the_key(sent: list[httpx.Request]) -> None:
    """What the provider itself needs stays."""
    told = {"anthropic": {"headers": {"anthropic-beta": "context-1m"}}}
    to = anthropic.endpoint({"ANTHROPIC_API_KEY": "k", "MAISD_PROVIDERS": json.dumps(told)})
    anthropic.request(to, {"model": "claude"})
    headers = sent[0].headers
    assert (headers["x-api-key"], headers["anthropic-version"], headers["anthropic-beta"]) == (
        "k",
        anthropic.VERSION,
        "context-1m",
    )


def test_a_secret_is_read_anew(tmp_path: Path) -> None:
    """A rotated key is taken up; one that is not there is one line with the name of its place."""
    file = tmp_path / "key"
    env = environ(MAISD_PROVIDERS={"openai": {"headers": {"api-key": f"file:{file}"}}})
    with pytest.raises(ConfigurationError, match=r"header 'api-key': file:.*cannot be read"):
        openai.endpoint(env)
    for key in ("one", "two"):
        file.write_text(f"{key}\n")
        assert openai.endpoint(env).headers["api-key"] == key
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match="is empty"):
        openai.endpoint(env)
    file.write_text("ключ")
    with pytest.raises(ConfigurationError, match="no HTTP header can carry") as raised:
        openai.endpoint(env)
    assert "ключ" not in str(raised.value)
    with pytest.raises(ConfigurationError, match="env:AZURE_KEY is empty or not there"):
        openai.endpoint(environ(MAISD_PROVIDERS=AZURE))


def test_without_a_header_that_says_who_a_key_is_needed() -> None:
    """A title is no key."""
    with pytest.raises(AuthenticationFailed):
        openai.endpoint(environ(MAISD_PROVIDERS={"openai": {"headers": {"X-Title": "T"}}}))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"openrouter": {}}, "unknown provider 'openrouter'"),
        ({"openai": []}, "use a table with headers, query and paths"),
        ({"openai": {"header": {}}}, "use a table with headers, query and paths"),
        ({"openai": {"headers": {"x": 7}}}, "headers is a table of texts"),
        ({"openai": {"headers": {"api-key": SECRET}}}, "looks like a secret; give it as env:NAME or file:PATH"),
        ({"openai": {"headers": {"X-Auth-Token": SECRET}}}, "looks like a secret"),
        ({"openai": {"headers": {"Host": "x"}}}, "'Host' cannot be given as a header"),
        ({"openai": {"headers": {"a b": "x"}}}, "'a b' cannot be given as a header"),
        ({"openai": {"headers": {"x": "a\r\nauthorization: y"}}}, "holds what no HTTP header can carry"),
        ({"openai": {"query": {"key": "env:X"}}}, "logs show addresses; give a secret as a header"),
        ({"openai": {"paths": "/x"}}, "paths is a list of texts"),
        ({"openai": {"paths": ["/a/../b"]}}, "'/a/../b': not a plain path"),
        ("{", "MAISD_PROVIDERS"),
        ("/nope.toml", "use JSON or the path of a TOML file"),
    ],
)
def test_what_cannot_be(setting: Any, words: str) -> None:
    """One line, the whole setting at once with all others; no secret is repeated."""
    text = setting if isinstance(setting, str) else json.dumps(setting)
    for name, of in (("MAISD_PROVIDERS", text), ("MAISD_LANES", text.replace('"openai"', '"openai:gpt-4o"'))):
        if name == "MAISD_LANES" and not any(word in words for word in ("secret", "header", "query", "texts")):
            continue
        if name == "MAISD_LANES" and ("use a table" in words or "paths" in words):
            continue
        with pytest.raises(ConfigurationError) as raised:
            read_settings({name: of})
        assert words in str(raised.value)
        assert SECRET not in str(raised.value)


def test_a_file_of_tables(tmp_path: Path) -> None:
    """TOML, as for lanes; doctor shows it as it was written, and a reference is no secret."""
    file = tmp_path / "providers.toml"
    file.write_text('[openai.headers]\napi-key = "env:AZURE_KEY"\n[openai.query]\napi-version = "1"\n')
    settings = read_settings({"MAISD_PROVIDERS": str(file), "MAISD_LANES": json.dumps(LANES)})
    assert settings.providers == {"openai": SentWith(headers={"api-key": "env:AZURE_KEY"}, query={"api-version": "1"})}
    assert json.loads(shown("providers", settings.providers))["openai"]["query"] == {"api-version": "1"}
    lane = json.loads(shown("lanes", settings.lanes))["openai:gpt-4o"]
    assert (lane["headers"]["x-title"], "sent_with" in lane) == ("T", False)
    assert told_to_send({"MAISD_PROVIDERS": str(file), "AZURE_KEY": "k"}, "openai", "x").headers == {"api-key": "k"}
