"""What lanes learn from the clients that a user's own functions use. The SDKs' part is tests/compat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx2 as httpx
import pytest

from ratelimit_worker import unwatch, unwatch_all, watch, watch_all
from ratelimit_worker.calls import Usage, sighting, sighting_now
from ratelimit_worker.errors import BadInput
from ratelimit_worker.policy.usage import usage_of
from ratelimit_worker.providers import openai, seams
from ratelimit_worker.providers.glimpse import MOST_KEPT, Reading, is_endpoint, model_asked
from ratelimit_worker.providers.http import Endpoint
from tests.compat.provider import Provider, Reply

PATH = "/v1/chat/completions"
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}
CHAT = {"model": "gpt-4o-2024", "choices": [{"message": {"content": "hi"}}], "usage": {"prompt_tokens": 9}}
LEFT = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599"}


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    listening = Provider()
    yield listening
    listening.close()


@pytest.fixture(autouse=True)
def nothing_stays_watched() -> Iterator[None]:
    yield
    unwatch_all()


def test_a_named_client_is_seen_and_no_other(provider: Provider) -> None:
    """Inside an attempt; outside one, and for a client that nobody named, nothing is noted."""
    provider.says(Reply(200, CHAT, LEFT))
    with watch(httpx.Client()) as named, httpx.Client() as other:
        assert named.post(provider.url + PATH, json=BODY).json() == CHAT
        assert sighting_now() is None
        with sighting("openai:gpt-4o") as seen:
            other.post(provider.url + PATH, json=BODY)
            assert seen.response is None
            assert named.post(provider.url + PATH, json=BODY).json() == CHAT
        unwatch(named)
        with sighting() as after:
            named.post(provider.url + PATH, json=BODY)
    assert seen.response is not None
    assert seen.response.headers["x-ratelimit-remaining-requests"] == "599"
    assert (seen.usage, seen.model, seen.watched) == (Usage(9, None), "gpt-4o-2024", True)
    assert after.response is None


def test_get_is_no_call(provider: Provider) -> None:
    """What costs no permit at the provider says nothing of its limits."""
    with sighting() as seen, watch(httpx.Client()) as client:
        client.get(provider.url)
    assert seen.glimpses == []


def test_our_own_client_says_it_once(provider: Provider) -> None:
    """The built-in tasks' requests pass the same seam, and are counted once."""
    provider.says(Reply(200, CHAT, LEFT))
    watch_all()
    with sighting() as seen:
        openai.request(Endpoint(f"{provider.url}/v1", {}), openai.CHAT_PATH, BODY)
    assert (seen.usage, seen.watched, seen.glimpses) == (Usage(9, None), False, [])


def test_what_goes_wrong_while_noting_reaches_nobody(
    provider: Provider, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller has its answer, whole or in parts; the log says that something was not seen, and not what was said."""
    provider.says(Reply(200, CHAT, LEFT))

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("the canary")

    for name in ("__init__", "answered", "whole", "part", "end"):
        with monkeypatch.context() as broken, watch(httpx.Client()) as client, sighting():
            broken.setattr(Reading, name, fails)
            assert client.post(provider.url + PATH, json=BODY).json() == CHAT
            with client.stream("POST", provider.url + PATH, json=BODY) as answer:
                assert json.loads(b"".join(answer.iter_bytes())) == CHAT
    assert "watch.failed cause=RuntimeError" in caplog.text
    assert "canary" not in caplog.text


def test_a_stream_that_is_left_early(provider: Provider) -> None:
    """What was read of it has told what it has told; the connection is given back as without us."""
    events = f"data: {json.dumps({'usage': {'prompt_tokens': 9}})}\n\ndata: {json.dumps({'x': 'y' * 200_000})}\n\n"
    provider.says(Reply(200, events, {"content-type": "text/event-stream"}))
    with watch(httpx.Client()) as client, sighting() as seen:
        with client.stream("POST", provider.url + PATH, json=BODY) as answer:
            for line in answer.iter_lines():
                assert line.startswith("data:")
                break
        assert answer.is_closed
        assert client.post(provider.url + PATH, json=BODY).status_code == 200

    async def leave() -> None:
        async with watch(httpx.AsyncClient()) as client:
            async with client.stream("POST", provider.url + PATH, json=BODY) as answer:
                async for _ in answer.aiter_lines():
                    break
            assert answer.is_closed

    assert seen.glimpses[0].usage == Usage(9, None)
    with sighting() as seen:
        asyncio.run(leave())
    assert seen.usage == Usage(9, None)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_events_in_pieces(size: int) -> None:
    """However a stream is cut, the last event that told tokens holds, field by field."""
    told = [
        {"type": "message_start", "message": {"model": "claude", "usage": {"input_tokens": 25, "output_tokens": 1}}},
        {"type": "message_delta", "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ]
    raw = b": hello\n\n" + b"".join(f"data: {json.dumps(event)}\r\n\r\n".encode() for event in told)
    with sighting() as seen:
        reading = Reading(seen, "h", "/v1/messages", b"{}")
        reading.answered(200, [("Content-Type", "text/event-stream")])
        for at in range(0, len(raw), size):
            reading.part(raw[at : at + size])
    assert (seen.usage, seen.model, seen.provider) == (Usage(25, 15), "claude", "anthropic")


def test_no_more_is_kept_than_must_be() -> None:
    """Of a body or a line that is too long nothing is told, and the next line is."""
    with sighting() as seen:
        reading = Reading(seen, "h", PATH, None)
        reading.answered(200, [("content-type", "application/json")])
        for _ in range(MOST_KEPT // 100_000 + 2):
            reading.part(b" " * 100_000)
        assert sum(map(len, reading._kept)) <= MOST_KEPT
        reading.part(b'{"usage": {"prompt_tokens": 1}}')
        reading.end()
        assert seen.usage is None
        events = Reading(seen, "h", PATH, None)
        events.answered(200, [("content-type", "text/event-stream")])
        for _ in range(MOST_KEPT // 100_000 + 2):
            events.part(b"x" * 100_000)
            assert sum(map(len, events._kept)) <= MOST_KEPT
        events.part(b'\ndata: {"usage": {"prompt_tokens": 2}}\n')
    assert seen.usage == Usage(2, None)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[" * 5000, b"null", b"7", b'{"usage": 7}', b'{"usage": {"prompt_tokens": "many"}}', b'"x"'],
)
def test_what_makes_no_sense_counts_as_nothing(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's bytes raise nothing."""
    for kind in ("application/json", "text/event-stream"):
        with sighting() as seen:
            reading = Reading(seen, "h", PATH, body)
            reading.answered(200, [("content-type", kind)])
            reading.part(b"data: " + body + b"\n" if "event" in kind else body)
            reading.end()
        assert seen.usage is None
    with sighting() as seen:
        refused = Reading(seen, "h", PATH, body)
        refused.answered(500, [])
        refused.whole(body)
    assert seen.response is not None
    assert seen.response.status == 500


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", True),
        ("/openai/deployments/gpt/chat/completions", True),
        ("/v1/responses", True),
        ("/v1/messages", True),
        ("/v1beta/models/gemini-2.5-flash:generateContent", True),
        ("/v1beta/models/gemini-2.5-flash:streamGenerateContent", True),
        ("/v2/chat", True),
        ("/model/anthropic.claude/converse-stream", True),
        ("/v1/files", False),
        ("/repos/x/messages", False),
        ("/v1/messages/batches", False),
        ("/", False),
    ],
)
def test_paths_of_providers(path: str, expected: bool) -> None:
    """Where prompts are answered."""
    assert is_endpoint(path) is expected


def test_the_model_that_was_asked() -> None:
    """In the path, the JSON or an object of it; nothing else is taken for one."""
    assert model_asked("/v1beta/models/gemini-2.5-flash:generateContent", b"{}") == "gemini-2.5-flash"
    assert model_asked(PATH, b'{"messages": [], "model": "m"}') == model_asked(PATH, {"model": "m"}) == "m"
    nothings: tuple[Any, ...] = (None, b"", b"{", b'{"model": 7}', {"model": 7}, 7, iter([]))
    for nothing in nothings:
        assert model_asked(PATH, nothing) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 7, "thoughtsTokenCount": 5}}, (9, 12)),
        ({"usageMetadata": {"promptTokenCount": 9, "thoughtsTokenCount": 5}}, (9, 5)),
        ({"usage": {"billed_units": {"input_tokens": 1}, "tokens": {"input_tokens": 9, "output_tokens": 12}}}, (9, 12)),
        ({"usage": {"inputTokens": 9, "outputTokens": 12, "totalTokens": 21}}, (9, 12)),
        ({"usage": {"inputTokens": 9, "cacheWriteInputTokens": 4}}, (13, None)),
        ({"usage": {"tokens": 7}}, None),
    ],
)
def test_tokens_in_every_spelling(answer: Any, expected: Any) -> None:
    """Gemini's thoughts are output; Cohere's billed units leave its own prompt out."""
    usage = usage_of(answer)
    assert (usage and (usage.input_tokens, usage.output_tokens)) == expected


def test_what_is_no_client_is_refused() -> None:
    """One line with what it was, and what can be watched."""
    for what in (object(), httpx, httpx.Client, None):
        with pytest.raises(BadInput, match="is not a client of openai"):
            watch(what)


def test_methods_are_given_back_but_not_from_under_another() -> None:
    """Whoever wraps ours keeps a method that does what it did."""
    plain = httpx.Client.send
    watch_all()
    ours = httpx.Client.send

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    httpx.Client.send = theirs  # type: ignore[method-assign]
    try:
        unwatch_all()
        assert httpx.Client.send is theirs
        watch_all()
        assert httpx.Client.send is theirs, "wrapped once, not twice"
    finally:
        httpx.Client.send = ours  # type: ignore[method-assign]
        unwatch_all()
    assert httpx.Client.send is plain


def test_a_library_of_another_version() -> None:
    """What it has not cannot be wrapped; whoever imports it notices nothing."""
    opened = seams.Seams(lambda client: False, lambda: True)

    class APIClient:
        request = None

    for name in seams.MODULES:
        odd = ModuleType(name)
        for attribute in ("Client", "SyncAPIClient", "BaseSDK", "Session", "HTTPAdapter"):
            setattr(odd, attribute, APIClient)
        odd.AsyncClient = odd.AsyncAPIClient = None  # type: ignore[attr-defined]
        opened.open(odd)
    opened.close()
    assert vars(APIClient)["request"] is None
