"""What a lane learns from the SDKs that a task calls, when they are watched; and that their callers notice nothing."""

from __future__ import annotations

import asyncio
import contextvars
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import httpx
import httpx2
import openai
import pytest
import requests
from google import genai
from google.genai.types import HttpOptions, HttpRetryOptions
from mistralai.client import Mistral
from mistralai.client.utils import BackoffStrategy, RetryConfig
from urllib3.util.retry import Retry

from ratelimit_worker.calls import Sighting, Usage, sighting
from ratelimit_worker.errors import BadInput
from ratelimit_worker.providers.watch import unwatch, unwatch_all, watch, watch_all
from ratelimit_worker.simulate import Scenario, Simulator
from tests.compat.provider import Provider, Reply, nobody_listens

KEY, PROMPT = "sk-canary-0123456789", "the canary sings at midnight"
ASKED: Any = [{"role": "user", "content": PROMPT}]
ROOT = Path(__file__).resolve().parents[2]

CHAT = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21},
}
MESSAGE = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-5",
    "content": [{"type": "text", "text": "hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 9, "output_tokens": 12},
}
GEMINI = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "hi"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 7, "thoughtsTokenCount": 5},
    "modelVersion": "gemini-2.5-flash",
}
LEFT = {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599"}
STREAM = {"content-type": "text/event-stream", **LEFT}


def _events(*events: Any) -> str:
    return "".join(
        f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"
        if "type" in event
        else f"data: {json.dumps(event)}\n\n"
        for event in events
    )


def _chunk(**more: Any) -> dict[str, Any]:
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06", **more}


CHAT_STREAM = (
    _events(
        _chunk(
            choices=[{"index": 0, "delta": {"role": "assistant", "content": "h"}, "finish_reason": None}], usage=None
        ),
        _chunk(choices=[{"index": 0, "delta": {"content": "i"}, "finish_reason": "stop"}], usage=None),
        _chunk(choices=[], usage=CHAT["usage"]),
    )
    + "data: [DONE]\n\n"
)
MESSAGE_STREAM = _events(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "usage": {"input_tokens": 9, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 12}},
    {"type": "message_stop"},
)
GEMINI_STREAM = _events({**GEMINI, "usageMetadata": {"promptTokenCount": 9}}, GEMINI)
GEMINI_REPLIES = (Reply(200, GEMINI, LEFT), Reply(200, GEMINI_STREAM, STREAM))


@dataclass(frozen=True)
class Way:
    """One way to ask: a client, and one request with it that gives back what its caller sees."""

    make: Callable[[str], Any]
    ask: Callable[..., Any]
    reply: Reply
    retries: int = 1  #: more than 1: its client tries again by itself

    @property
    def usage(self) -> Usage:
        """What its reply tells: of Gemini's 12 tokens of output five are thoughts."""
        return Usage(9, 12, reasoning_tokens=5 if self.reply in GEMINI_REPLIES else None)

    def __call__(self, url: str, watched: bool) -> Any:
        client = self.make(url)
        return self.ask(watch(client) if watched else client, url)


def _looped(make: Callable[[str], Any], ask: Callable[[Any, str], Any], reply: Reply, retries: int = 1) -> Way:
    """The same for a coroutine; its client is made in the loop that uses it."""

    def run(client: tuple[Callable[[str], Any], list[bool]], url: str) -> Any:
        raise AssertionError("asked by __call__")

    way = Way(make, run, reply, retries)

    def call(url: str, watched: bool) -> Any:
        async def go() -> Any:
            client = make(url)
            return await ask(watch(client) if watched else client, url)

        return asyncio.run(go())

    object.__setattr__(way, "ask", call)
    return way


def _asked(way: Way, url: str, *, watched: bool) -> Any:
    return way.ask(url, watched) if way.ask.__name__ == "call" else way(url, watched)


def _openai(url: str) -> Any:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=10, max_retries=1)


def _openai_async(url: str) -> Any:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, timeout=10, max_retries=1)


def _anthropic(url: str) -> Any:
    return anthropic.Anthropic(base_url=url, api_key=KEY, timeout=10, max_retries=1)


def _anthropic_async(url: str) -> Any:
    return anthropic.AsyncAnthropic(base_url=url, api_key=KEY, timeout=10, max_retries=1)


def _google(url: str) -> Any:
    retry = HttpRetryOptions(attempts=2, initial_delay=0.01, max_delay=0.02)
    return genai.Client(api_key=KEY, http_options=HttpOptions(base_url=url, timeout=10_000, retry_options=retry))


def _mistral(url: str) -> Any:
    # Its waits do not grow: this SDK raises an exponent to the number of the retry, and overflows after some 1,750.
    retry = RetryConfig("backoff", BackoffStrategy(10, 20, 1.0, 5_000), True)
    return Mistral(server_url=url, api_key=KEY, timeout_ms=10_000, retry_config=retry)


def _session(url: str) -> Any:
    session = requests.Session()
    again = Retry(1, status_forcelist=[500], allowed_methods=["POST"], raise_on_status=False)
    session.mount("http://", requests.adapters.HTTPAdapter(max_retries=again))
    return session


BODY = {"model": "gpt-4o", "messages": ASKED}
PATH = "/v1/chat/completions"


async def _openai_streamed(client: Any, url: str) -> Any:
    told = await client.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True)
    return [chunk.model_dump() async for chunk in told]


async def _anthropic_streamed(client: Any, url: str) -> Any:
    async with client.messages.stream(model="claude-sonnet-5", max_tokens=16, messages=ASKED) as stream:
        return (await stream.get_final_message()).model_dump()


def _anthropic_stream(client: Any, url: str) -> Any:
    with client.messages.stream(model="claude-sonnet-5", max_tokens=16, messages=ASKED) as stream:
        return stream.get_final_message().model_dump()


async def _google_streamed(client: Any, url: str) -> Any:
    stream = await client.aio.models.generate_content_stream(model="gemini-2.5-flash", contents=PROMPT)
    return [chunk.text async for chunk in stream]


def _httpx_stream(client: Any, url: str) -> Any:
    with client.stream("POST", url + PATH, json=BODY) as answer:
        lines = list(answer.iter_lines())
    return lines, answer.elapsed is not None


async def _httpx_async(client: Any, url: str) -> Any:
    async with client:
        answer = await client.post(url + PATH, json=BODY)
        return answer.json(), pickle.loads(pickle.dumps(answer)).json()


async def _httpx_streamed(client: Any, url: str) -> Any:
    async with client, client.stream("POST", url + PATH, json=BODY) as answer:
        return [line async for line in answer.aiter_lines()]


async def _aiohttp(client: Any, url: str) -> Any:
    async with client, client.post(url + PATH, json=BODY) as answer:
        return await answer.json(), await answer.text()


async def _aiohttp_streamed(client: Any, url: str) -> Any:
    async with client, client.post(url + PATH, json=BODY) as answer:
        return [line async for line in answer.content]


async def _aiohttp_chunks(client: Any, url: str) -> Any:
    async with client, client.post(url + PATH, data=json.dumps(BODY)) as answer:
        return b"".join([part async for part in answer.content.iter_chunked(7)])


def _requests_stream(client: Any, url: str) -> Any:
    with client.post(url + PATH, json=BODY, stream=True) as answer:
        return list(answer.iter_lines())


ANSWER, EVENTS = Reply(200, CHAT, LEFT), Reply(200, CHAT_STREAM, STREAM)
MISTRAL = Reply(200, {**CHAT, "model": "mistral-small-latest"}, LEFT)
WAYS = {
    "openai": Way(
        _openai, lambda c, u: c.chat.completions.create(model="gpt-4o", messages=ASKED).model_dump(), ANSWER, 2
    ),
    "openai, options": Way(
        _openai,
        lambda c, u: c.with_options(timeout=9).chat.completions.create(model="gpt-4o", messages=ASKED).model_dump(),
        ANSWER,
        2,
    ),
    "openai, raw": Way(
        _openai,
        lambda c, u: c.chat.completions.with_raw_response.create(model="gpt-4o", messages=ASKED).parse().model_dump(),
        ANSWER,
        2,
    ),
    "openai, stream": Way(
        _openai,
        lambda c, u: [x.model_dump() for x in c.chat.completions.create(model="gpt-4o", messages=ASKED, stream=True)],
        EVENTS,
        2,
    ),
    "openai, async": _looped(
        _openai_async,
        lambda c, u: c.chat.completions.create(model="gpt-4o", messages=ASKED),
        ANSWER,
        2,
    ),
    "openai, async stream": _looped(_openai_async, _openai_streamed, EVENTS, 2),
    "anthropic": Way(
        _anthropic,
        lambda c, u: c.messages.create(model="claude-sonnet-5", max_tokens=16, messages=ASKED).model_dump(),
        Reply(200, MESSAGE, LEFT),
        2,
    ),
    "anthropic, stream": Way(_anthropic, _anthropic_stream, Reply(200, MESSAGE_STREAM, STREAM), 2),
    "anthropic, async": _looped(
        _anthropic_async,
        lambda c, u: c.messages.create(model="claude-sonnet-5", max_tokens=16, messages=ASKED),
        Reply(200, MESSAGE, LEFT),
        2,
    ),
    "anthropic, async stream": _looped(_anthropic_async, _anthropic_streamed, Reply(200, MESSAGE_STREAM, STREAM), 2),
    "google": Way(
        _google,
        lambda c, u: c.models.generate_content(model="gemini-2.5-flash", contents=PROMPT).text,
        Reply(200, GEMINI, LEFT),
        2,
    ),
    "google, stream": Way(
        _google,
        lambda c, u: [x.text for x in c.models.generate_content_stream(model="gemini-2.5-flash", contents=PROMPT)],
        Reply(200, GEMINI_STREAM, STREAM),
        2,
    ),
    "google, async": _looped(
        _google,
        lambda c, u: c.aio.models.generate_content(model="gemini-2.5-flash", contents=PROMPT),
        Reply(200, GEMINI, LEFT),
        2,
    ),
    "google, async stream": _looped(_google, _google_streamed, Reply(200, GEMINI_STREAM, STREAM), 2),
    "mistral": Way(
        _mistral,
        lambda c, u: c.chat.complete(model="mistral-small-latest", messages=ASKED).model_dump(),
        MISTRAL,
        2,
    ),
    "mistral, async": _looped(
        _mistral, lambda c, u: c.chat.complete_async(model="mistral-small-latest", messages=ASKED), MISTRAL, 2
    ),
    "mistral, stream": Way(
        _mistral,
        lambda c, u: [x.data.model_dump() for x in c.chat.stream(model="mistral-small-latest", messages=ASKED)],
        EVENTS,
        2,
    ),
    "requests": Way(_session, lambda c, u: c.post(u + PATH, json=BODY).json(), ANSWER, 2),
    "requests, stream": Way(_session, _requests_stream, EVENTS, 2),
    "aiohttp": _looped(lambda u: aiohttp.ClientSession(), _aiohttp, ANSWER),
    "aiohttp, raises": _looped(lambda u: aiohttp.ClientSession(raise_for_status=True), _aiohttp, ANSWER),
    "aiohttp, stream": _looped(lambda u: aiohttp.ClientSession(), _aiohttp_streamed, EVENTS),
    "aiohttp, chunks": _looped(lambda u: aiohttp.ClientSession(), _aiohttp_chunks, ANSWER),
}


def _makes(kind: Callable[[], Any]) -> Callable[[str], Any]:
    return lambda _: kind()


for library in (httpx, httpx2):
    name = library.__name__
    WAYS |= {
        name: Way(
            _makes(library.Client),
            lambda c, u: pickle.loads(pickle.dumps(c.post(u + PATH, json=BODY))).json(),
            ANSWER,
        ),
        f"{name}, stream": Way(_makes(library.Client), _httpx_stream, EVENTS),
        f"{name}, async": _looped(_makes(library.AsyncClient), _httpx_async, ANSWER),
        f"{name}, async stream": _looped(_makes(library.AsyncClient), _httpx_streamed, EVENTS),
    }

every_way = pytest.mark.parametrize("way", WAYS.values(), ids=list(WAYS))


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    listening = Provider()
    yield listening
    listening.close()


@pytest.fixture(autouse=True)
def nothing_stays_watched() -> Iterator[None]:
    yield
    unwatch_all()


@dataclass
class Ended:
    """What came of one call: what its caller got or had raised."""

    value: Any = None
    error: Exception | None = None
    seen: Sighting = field(default_factory=Sighting)

    def shown(self) -> str:
        """Without addresses in memory, and times."""
        return repr(self.value) if self.error is None else f"{type(self.error).__name__}: {self.error}"


def _end(way: Way, url: str, *, watched: bool, attempt: bool = True) -> Ended:
    if not attempt:
        try:
            return Ended(_asked(way, url, watched=watched))
        except Exception as error:
            return Ended(error=error)
    with sighting("openai:gpt-4o") as seen:
        try:
            return Ended(_asked(way, url, watched=watched), seen=seen)
        except Exception as error:
            return Ended(error=error, seen=seen)


@every_way
def test_an_answer_is_seen_and_given_as_it_is(provider: Provider, way: Way) -> None:
    """Status, headers and tokens, of streams too; the caller gets what it gets of a client that nobody watches."""
    provider.says(way.reply)
    plain = _end(way, provider.url, watched=False)
    assert plain.error is None
    assert plain.seen.response is None
    ended = _end(way, provider.url, watched=True)
    assert ended.shown() == plain.shown()
    assert ended.seen.response is not None
    assert ended.seen.response.status == 200
    assert ended.seen.response.headers["x-ratelimit-remaining-requests"] == "599"
    assert ended.seen.usage == way.usage
    assert provider.requests == 2


@every_way
def test_a_refusal_is_seen_and_raised_as_it_is(provider: Provider, way: Way) -> None:
    """Its headers and its body's words."""
    body = {"error": {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}}
    provider.says(Reply(429, body, {"retry-after": "2", **LEFT}))
    ended = _end(way, provider.url, watched=True)
    assert ended.seen.response is not None
    assert ended.seen.response.status == 429
    assert ended.seen.response.headers["retry-after"] == "2"
    if way is not WAYS["aiohttp, raises"]:  # which reads no body
        assert ended.seen.response.body == body
    assert provider.requests == 1
    provider.says(Reply(429, body, {"retry-after": "0", **LEFT}))
    plain = _end(way, provider.url, watched=False)
    assert plain.shown() == ended.shown()


@every_way
def test_nobody_listens(way: Way) -> None:
    """No answer: nothing is seen, and what is raised is the client's own."""
    with nobody_listens() as url:
        ended, plain = _end(way, url, watched=True), _end(way, url, watched=False)
    assert ended.seen.response is None
    assert ended.error is not None
    assert type(ended.error) is type(plain.error)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.retries > 1])
def test_an_sdks_own_retries_are_off_inside_an_attempt_and_only_there(provider: Provider, name: str) -> None:
    """One request for one attempt; outside, as the client was made. So for `watch_all` as for `watch`."""
    way = WAYS[name]
    body = {"error": {"message": "x", "type": "server_error"}}
    replies = (Reply(500, body, {"retry-after": "0"}), Reply(400, body))  # the second ends the retries
    for watched in (True, False):
        if not watched:
            watch_all()
        provider.says(*replies)
        _end(way, provider.url, watched=watched)
        assert provider.requests == 1, f"{watched=}"
        provider.says(*replies)
        _end(way, provider.url, watched=watched, attempt=False)
        assert provider.requests == 2, f"{watched=}, outside an attempt"
    provider.says(*replies)
    with sighting(sent_again=False):  # nobody sends it again: the client may
        _end(way, provider.url, watched=False, attempt=False)
    assert provider.requests == 2


@every_way
def test_watch_all_sees_whatever_is_made(provider: Provider, way: Way) -> None:
    """A client that nobody named; and after `unwatch_all` none."""
    watch_all()
    watch_all()
    provider.says(way.reply)
    assert _end(way, provider.url, watched=False).seen.usage == way.usage
    unwatch_all()
    assert _end(way, provider.url, watched=False).seen.response is None


def test_a_page_on_the_way_is_no_provider(provider: Provider) -> None:
    """Under `watch_all` its rate limits are nobody's; a client that was named is heeded wherever it goes."""
    provider.says(Reply(200, {"stars": 1}, LEFT))
    watch_all()
    with sighting() as seen:
        httpx.post(f"{provider.url}/repos/x/issues", json={})
        requests.post(f"{provider.url}/repos/x/issues", json={})
    assert seen.response is None
    unwatch_all()
    with sighting() as seen, watch(httpx.Client()) as client:
        client.post(f"{provider.url}/gateway", json={})
    assert seen.response is not None


def test_tokens_of_all_requests_and_headers_of_the_lanes_own_model(provider: Provider) -> None:
    """A task that embeds on the way: its lane takes the chat's limits, and pays for both."""
    embedded = {"object": "list", "data": [], "model": "text-embedding-3", "usage": {"prompt_tokens": 4}}
    for order in ((ANSWER, Reply(200, embedded, {})), (Reply(200, embedded, {}), ANSWER)):
        provider.says(*order)
        with sighting("openai:gpt-4o") as seen, watch(httpx.Client()) as client:
            for reply in order:
                body = BODY if reply is ANSWER else {"model": "text-embedding-3", "input": "x"}
                client.post(f"{provider.url}{PATH}", json=body)
        assert seen.response is not None
        assert seen.response.headers["x-ratelimit-limit-requests"] == "600"
        assert seen.usage == Usage(13, 12)
        assert seen.model == "gpt-4o-2024-08-06"


def test_a_thread_is_covered_where_the_context_is_copied(provider: Provider) -> None:
    """`asyncio.to_thread` and `copy_context().run` copy it; a bare thread has none."""
    provider.says(ANSWER)
    client = watch(_openai(provider.url))

    def ask() -> None:
        client.chat.completions.create(model="gpt-4o", messages=ASKED)

    def in_thread(target: Callable[[], Any]) -> None:
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    with sighting() as seen:
        in_thread(ask)
    assert seen.response is None
    with sighting() as seen:
        in_thread(partial(contextvars.copy_context().run, ask))
    assert seen.usage == Usage(9, 12)
    with sighting() as seen:
        asyncio.run(asyncio.to_thread(ask))
    assert seen.usage == Usage(9, 12)


def test_one_client_is_taken_back_and_another_stays(provider: Provider) -> None:
    """`unwatch`; saying `watch` twice is saying it once."""
    provider.says(ANSWER)
    one, other = watch(watch(_openai(provider.url))), watch(_openai(provider.url))
    assert unwatch(one) is one
    for client, known in ((one, None), (other, Usage(9, 12))):
        with sighting() as seen:
            client.chat.completions.create(model="gpt-4o", messages=ASKED)
        assert seen.usage == known


def test_what_is_no_client_is_refused() -> None:
    """One line with what it was and what can be watched."""
    for what in (object(), openai, openai.OpenAI, "openai"):
        with pytest.raises(BadInput, match="this is not a client of openai"):
            watch(what)


def test_a_method_is_given_back() -> None:
    """Once nothing is watched, every class has its own methods again."""
    before = httpx.Client.send, httpx2.AsyncClient.send, requests.Session.send, aiohttp.ClientSession._request
    watch_all()
    assert httpx.Client.send is not before[0]
    unwatch_all()
    after = httpx.Client.send, httpx2.AsyncClient.send, requests.Session.send, aiohttp.ClientSession._request
    assert after == before


def test_an_sdk_that_is_imported_later_is_watched(provider: Provider) -> None:
    """`install(app, watch=True)` stands at the top of a module; SDKs are imported after it, some inside a task."""
    provider.says(*[Reply(500, {"error": {"message": "x"}}, {"retry-after": "0"})] * 3)
    script = (
        "import sys\n"
        "from ratelimit_worker.calls import sighting\n"
        "from ratelimit_worker.providers.watch import watch_all\n"
        "watch_all()\n"
        "assert 'openai' not in sys.modules\n"
        "with sighting() as seen:\n"
        "    import openai\n"
        "    try:\n"
        f"        openai.OpenAI(base_url='{provider.url}/v1', api_key='x').responses.create(model='m', input='x')\n"
        "    except openai.InternalServerError:\n"
        "        print(seen.response.status)\n"
        "import importlib.resources, inspect, httpx2\n"
        "assert httpx2.__spec__.loader is httpx2.__loader__ and inspect.getsource(httpx2.Client.post)\n"
        "assert importlib.resources.files('requests').joinpath('sessions.py').is_file()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "500", done.stderr
    assert provider.requests == 1


def test_tokens_equal_the_providers_own() -> None:
    """Openai's and Anthropic's SDKs against the simulated provider: what was seen is what its log has."""
    with Simulator(Scenario(rpm=6000, latency="0.001")) as provider:
        one = watch(openai.OpenAI(base_url=provider.base_url, api_key=KEY))
        other = watch(anthropic.Anthropic(base_url=provider.url, api_key=KEY))
        seen_in = seen_out = 0
        for number in range(5):
            asked = [{"role": "user", "content": f"{number} {PROMPT}"}]
            with sighting() as seen:
                one.chat.completions.create(model="gpt-4o", messages=asked, max_tokens=40)
                one.responses.create(model="gpt-4o", input=f"{number}", max_output_tokens=30)
                one.embeddings.create(model="text-embedding-3", input=f"{number}")
                other.messages.create(model="claude-sonnet-5", messages=asked, max_tokens=20)
            assert seen.usage is not None
            seen_in += seen.usage.input_tokens or 0
            seen_out += seen.usage.output_tokens or 0
            assert seen.response is not None
            assert "anthropic-ratelimit-requests-limit" in seen.response.headers
        log = provider.arrivals()
    assert len(log) == 20
    assert seen_in == sum(arrival.input_tokens for arrival in log)
    assert seen_out == sum(arrival.output_tokens for arrival in log)


def test_a_redirected_request_is_one(provider: Provider) -> None:
    """Clients that follow redirects send anew through the same seam; the tokens are those of the answer."""
    for kind in (httpx.Client, httpx2.Client):
        provider.says(Reply(307, b"", {"location": f"{provider.url}{PATH}"}), ANSWER)
        with sighting() as seen, watch(kind(follow_redirects=True)) as client:
            assert client.post(f"{provider.url}{PATH}", json=BODY).json() == CHAT
        assert (len(seen.glimpses), seen.usage) == (1, Usage(9, 12))
    provider.says(Reply(307, b"", {"location": f"{provider.url}{PATH}"}), ANSWER)
    watch_all()
    with sighting() as seen:
        assert requests.post(f"{provider.url}{PATH}", json=BODY).json() == CHAT
    assert (len(seen.glimpses), seen.usage) == (1, Usage(9, 12))


def test_one_client_behind_another_is_one_request(provider: Provider) -> None:
    """httpx over a transport that sends by aiohttp (LiteLLM's, and openai's for those who ask for it)."""
    provider.says(ANSWER)
    watch_all()

    class ByAiohttp(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            async with aiohttp.ClientSession() as session:
                answer = await session.post(str(request.url), data=await request.aread())
                return httpx2.Response(answer.status, headers=dict(answer.headers), content=await answer.read())

    async def ask() -> Any:
        async with httpx2.AsyncClient(transport=ByAiohttp()) as client:
            return (await client.post(f"{provider.url}{PATH}", json=BODY)).json()

    with sighting() as seen:
        assert asyncio.run(ask()) == CHAT
    assert (len(seen.glimpses), seen.usage) == (1, Usage(9, 12))
