"""What aimock sends in the name of OpenAI, Anthropic, Gemini and Bedrock, and whether it is an answer. From npm."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from ratelimit_worker.app import make_app
from ratelimit_worker.calls import Category, Usage, sighting
from ratelimit_worker.config import read_settings
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.providers import apis
from tests.builders import ROOT
from tests.cluster.test_request import rows
from tests.compat.servers.started import COMPAT, aimock, ask_json
from tests.conftest import wait_for
from tests.faces.test_run import Runner
from tests.fleet import Worker, fleet

C = Category

SOUND = base64.b64encode(b"not quite a sound").decode()
KEY = "sk-canary-aimock-0123456789"
TOLD = {"content": "Hi there!", "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
FIXTURES: list[dict[str, Any]] = [
    {"match": {"endpoint": "image"}, "response": {"image": {"b64Json": "QUJD"}}},
    {"match": {"endpoint": "speech"}, "response": {"audio": SOUND}},
    {"match": {"endpoint": "transcription"}, "response": {"transcription": {"text": "Hello world"}}},
    {
        "match": {"userMessage": "limit"},
        "response": {"error": {"message": "Rate limited", "type": "rate_limit_error"}, "status": 429},
    },
    {
        "match": {"userMessage": "busy"},
        "response": {"error": {"message": "Overloaded", "type": "overloaded_error"}, "status": 529},
    },
    {"match": {"userMessage": "hello"}, "response": TOLD},
]
GEMINI = "/v1beta/models/gemini-2.5-flash:generateContent"


@pytest.fixture(scope="module")
def mock() -> Iterator[str]:
    with aimock(FIXTURES) as address:
        yield address


def environ(mock: str) -> dict[str, str]:
    """A client's environment, in which every provider is this one."""
    told = {api.ACCOUNT.address: mock for api in apis.APIS.values()} | {"OPENAI_BASE_URL": f"{mock}/v1"}
    return told | {api.ACCOUNT.keys[0]: KEY for api in apis.APIS.values()}


def ask(mock: str, name: str, path: str, body: Any) -> Any:
    """One request, outside any lane."""
    api = apis.api_named(name)
    return apis.request(api, api.endpoint(environ(mock)), path, body, 120.0)


def said(text: str, path: str) -> dict[str, Any]:
    """A prompt, as the API of a path has it."""
    if "generateContent" in path:
        return {"contents": [{"role": "user", "parts": [{"text": text}]}]}
    if path.endswith("/responses"):
        return {"model": "gpt-4o", "input": text}
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("name", "path", "body", "member", "usage"),
    [
        ("openai", "/v1/chat/completions", None, "choices", Usage(7, 3)),
        ("openai", "/v1/responses", None, "output", None),
        ("openai", "/v1/embeddings", {"model": "text-embedding-3-small", "input": "hello"}, "data", None),
        ("openai", "/v1/moderations", {"input": "hello"}, "results", None),
        ("openai", "/v1/images/generations", {"model": "gpt-image-1", "prompt": "hello"}, "data", None),
        (
            "openai",
            "/v1/images/edits",
            {"model": "gpt-image-1", "prompt": "hello", "image": "data:image/png;base64,QUJD"},
            "data",
            None,
        ),
        ("openai", "/v1/audio/speech", {"model": "tts-1", "input": "hello", "voice": "alloy"}, "data", None),
        (
            "openai",
            "/v1/audio/transcriptions",
            {"model": "whisper-1", "file": {"data": SOUND, "filename": "a.mp3"}},
            "text",
            None,
        ),
        ("anthropic", "/v1/messages", None, "content", Usage(7, 3)),
        ("google", GEMINI, None, "candidates", Usage(7, 3)),
        (
            "google",
            "/models/gemini-embedding-001:embedContent",
            {"content": {"parts": [{"text": "a"}]}},
            "embedding",
            None,
        ),
        ("google", "/v1beta/models/imagen-4:predict", {"instances": [{"prompt": "hello"}]}, "predictions", None),
    ],
)
def test_each_operation(mock: str, name: str, path: str, body: Any, member: str, usage: Usage | None) -> None:
    """Asked once, and answered with what it has asked for; a sound comes back as it was."""
    before = Counter(one["path"] for one in ask_json(f"{mock}/__aimock/journal"))
    with sighting() as seen:
        answer = ask(mock, name, path, body or said("hello", path))
    assert answer.body[member]
    assert usage is None or seen.usage == usage
    if path.endswith("/speech"):
        assert answer.body == {"content_type": "audio/mpeg", "data": SOUND}
    if path.endswith("/transcriptions"):
        assert answer.body["text"] == "Hello world"
    asked = Counter(one["path"] for one in ask_json(f"{mock}/__aimock/journal")) - before
    assert sum(asked.values()) == 1


@pytest.mark.parametrize(
    ("name", "path"), [("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages"), ("google", GEMINI)]
)
@pytest.mark.parametrize(("word", "category", "wait_s"), [("limit", C.RATE_LIMITED, 1.0), ("busy", C.OVERLOADED, None)])
def test_a_failure_in_each_apis_own_words(
    mock: str, name: str, path: str, word: str, category: C, wait_s: float | None
) -> None:
    """And its wait: Retry-After, though a bucket beside it is full again only in six minutes."""
    with pytest.raises(Exception) as raised:
        ask(mock, name, path, said(word, path))
    failure = classify_exception(raised.value)
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (category, wait_s)


@pytest.mark.parametrize(
    ("rates", "category"),
    [
        ({"dropRate": 1}, C.SERVER_ERROR),
        ({"malformedRate": 1}, C.MALFORMED_RESPONSE),
        ({"disconnectRate": 1}, C.CONNECTION),
        ({"rateLimitRate": 1}, C.RATE_LIMITED),
    ],
)
@pytest.mark.parametrize(("name", "path"), [("openai", "/v1/chat/completions"), ("google", GEMINI)])
def test_chaos(mock: str, rates: dict[str, float], category: C, name: str, path: str) -> None:
    """Its chaos mode: each fault has its category."""
    assert ask_json(f"{mock}/__aimock/chaos", "POST", rates)["chaos"] == rates
    try:
        with pytest.raises(Exception) as raised:
            ask(mock, name, path, said("hello", path))
    finally:
        ask_json(f"{mock}/__aimock/chaos", "DELETE")
    failure = classify_exception(raised.value)
    assert failure is not None
    assert failure.category is category


@pytest.mark.worker
def test_a_file_of_all_its_doors(mock: str, tmp_path: Path) -> None:
    """`run` with lines for chat, responses, embeddings, pictures, sounds, Anthropic and Gemini: each id once."""
    bodies: dict[str, tuple[str, Any]] = {
        "chat": ("/v1/chat/completions", said("hello", "/v1/chat/completions")),
        "response": ("/v1/responses", said("hello", "/v1/responses")),
        "vector": ("/v1/embeddings", {"model": "text-embedding-3-small", "input": "hello"}),
        "judged": ("/v1/moderations", {"input": "hello"}),
        "picture": ("/v1/images/generations", {"model": "gpt-image-1", "prompt": "hello"}),
        "sound": ("/v1/audio/speech", {"model": "tts-1", "input": "hello", "voice": "alloy"}),
        "words": ("/v1/audio/transcriptions", {"model": "w", "file": {"data": SOUND, "filename": "a.mp3"}}),
        "message": ("/v1/messages", said("hello", "/v1/messages")),
        "gemini": (GEMINI, said("hello", GEMINI)),
    }
    bad = {
        "no-file": ("/v1/audio/transcriptions", {"model": "w", "file": "/etc/passwd"}),
        "files": ("/v1/files", {}),
        "stream": ("/v1/responses", {**said("hello", "/v1/responses"), "stream": True}),
    }
    run = Runner(tmp_path, mock, MAISD_TIMEOUT_SECONDS="300")
    run.write(
        [
            {"custom_id": name, "method": "POST", "url": url, "body": body}
            for name, (url, body) in {**bodies, **bad}.items()
        ]
    )
    done = run(timeout_s=900.0)
    out = {line["custom_id"]: line for line in run.answers()}
    assert len(run.answers()) == len(bodies) + len(bad), done.stderr
    assert {name: (out[name]["response"] or {}).get("status_code") for name in bodies} == dict.fromkeys(bodies, 200)
    assert {name: out[name]["error"]["code"] for name in bad} == dict.fromkeys(bad, "invalid_line")
    assert out["sound"]["response"]["body"] == {"content_type": "audio/mpeg", "data": SOUND}
    assert out["words"]["response"]["body"]["text"] == "Hello world"


# ── Bedrock ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe() -> str:
    """The task of docs/providers.md."""
    page = (ROOT / "docs" / "providers.md").read_text("utf-8").partition("## Bedrock")[2]
    return str(re.findall(r"```python\n(.*?)```", page, re.S)[0])


@pytest.fixture(scope="module")
def bedrock(mock: str) -> Iterator[tuple[Any, Celery]]:
    """A worker of the recipe, with the boto3 of the SDKs' environment, behind aimock."""
    packages = sorted((COMPAT / "sdks" / "lib").glob("python*/site-packages"))
    if not packages:
        pytest.skip("no boto3: `make test-compat` installs it")
    told = {"AWS_ENDPOINT_URL_BEDROCK_RUNTIME": mock, "AWS_DEFAULT_REGION": "us-east-1"}
    told |= {"AWS_ACCESS_KEY_ID": "AKIACANARY", "AWS_SECRET_ACCESS_KEY": KEY, "AWS_EC2_METADATA_DISABLED": "true"}
    with fleet(**told) as made:
        source = [
            "import sys",
            f"sys.path.append({str(packages[-1])!r})  # behind what the product itself has",
            "from ratelimit_worker import make_app",
            "app = make_app()",
            recipe(),
        ]
        (made.folder / "bedrock_app.py").write_text("\n".join(source))
        path = os.pathsep.join([str(made.folder), str(ROOT)])
        arguments = ("-P", "threads", "-c", "4")
        worker = Worker("bedrock", made.folder, {**made.env, "PYTHONPATH": path}, arguments, "bedrock_app")
        made.workers.append(worker)
        worker.wait_ready()
        sys.path.insert(0, str(made.folder))
        app = make_app(read_settings(), made.valkey.url)
        yield made, app
        sys.path.remove(str(made.folder))


@pytest.mark.worker
def test_the_recipe_for_bedrock(bedrock: tuple[Any, Celery], mock: str) -> None:
    """A real boto3, in a real worker: answered, counted by Bedrock's usage; a refusal is the lane's."""
    made, app = bedrock

    def call(text: str, **options: Any) -> Any:
        told = [{"role": "user", "content": [{"text": text}]}]
        return app.send_task(
            "bedrock.converse",
            kwargs={"modelId": "anthropic.claude", "messages": told, "inferenceConfig": {"maxTokens": 20}},
            **options,
        )

    answer = call("hello").get(timeout=300)
    assert answer["output"]["message"]["content"] == [{"text": "Hi there!"}]
    wait_for(lambda: rows(made, "bedrock.converse"), what="its row is there")
    row = rows(made, "bedrock.converse")[0]
    assert (row.lane, row.outcome, row.input_tokens, row.output_tokens) == ("bedrock:claude-sonnet", "answered", 7, 3)

    before = len(ask_json(f"{mock}/__aimock/journal"))
    throttled = call("limit")
    wait_for(lambda: any(row.category == "rate_limited" for row in rows(made, "bedrock.converse")), what="a refusal")
    throttled.revoke()
    refused = [row for row in rows(made, "bedrock.converse") if row.category == "rate_limited"]
    asked = len(ask_json(f"{mock}/__aimock/journal")) - before
    assert asked <= len(refused) + 1  # one may be on its way; boto3 alone would have made four of each
    assert {row.outcome for row in refused} == {"snoozed"}
