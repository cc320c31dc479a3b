"""What real SDKs raise: each is provoked over HTTP, and what comes out is classified as a worker would do it.

Every error body repeats the prompt and the key of the request, as some providers do.
"""

from __future__ import annotations

import json
import math
import pickle
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ratelimit_worker.calls import Category
from ratelimit_worker.errors import call_failed
from ratelimit_worker.policy.classification import classify_exception
from ratelimit_worker.policy.retry import RetryPolicy, next_step
from tests.compat import clients
from tests.compat.clients import KEY, OFF, PROMPT, Ask
from tests.compat.provider import Provider, Reply, nobody_listens

C = Category
ECHO = f"cannot say '{PROMPT}' with {KEY}"


@dataclass(frozen=True)
class Expected:
    """What is to come of a reply."""

    category: Category
    delay_s: float | None  #: Retry-After, as the lane will hear it
    verdict: str  #: what follows the first time


def openai_error(kind: str | None, code: str | None, message: str = ECHO) -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(kind: str, message: str = ECHO, **details: Any) -> Any:
    return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}


def google_error(code: int, status: str, *details: Any, message: str = ECHO) -> Any:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


def quota_failure(name: str) -> Any:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": name}]}


def amazon(status: int, kind: str, message: str = ECHO, **headers: str) -> Reply:
    return Reply(status, {"message": message}, {"x-amzn-errortype": f"{kind}:http://x/", **headers})


def says(category: Category, verdict: str, delay_s: float | None = None) -> Expected:
    return Expected(category, delay_s, verdict)


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12s"}
TEXT = {"content-type": "text/plain"}
HTML = {"content-type": "text/html"}
NOTHING, RESET, CUT = Reply(fault="hang"), Reply(fault="reset"), Reply(200, '{"id": "x", "object":', fault="cut")
BROKEN = Reply(200, '{"id": "x", "choices": [{')

TRANSPORT = {
    "no answer": (NOTHING, says(C.TIMEOUT, "Retry")),
    "connection reset": (RESET, says(C.CONNECTION, "Retry")),
}
OPENAI = {
    "429": (Reply(429, openai_error("tokens", "rate_limit_exceeded"), {"retry-after": "2"}), 2.0, C.RATE_LIMITED),
    "429 in ms": (Reply(429, openai_error("requests", None), {"retry-after-ms": "1500"}), 1.5, C.RATE_LIMITED),
    "quota": (Reply(429, openai_error("insufficient_quota", "insufficient_quota")), None, C.QUOTA_EXHAUSTED),
    "per day": (
        Reply(429, openai_error("requests", "rate_limit_exceeded", "Limit reached on requests per day (RPD): 200")),
        None,
        C.QUOTA_EXHAUSTED,
    ),
    "context": (Reply(400, openai_error("invalid_request_error", "context_length_exceeded")), None, C.INVALID_REQUEST),
    "content": (
        Reply(400, openai_error("invalid_request_error", "content_policy_violation")),
        None,
        C.CONTENT_FILTERED,
    ),
    "key": (Reply(401, openai_error("invalid_request_error", "invalid_api_key")), None, C.AUTH),
    "500": (Reply(500, openai_error("server_error", None)), None, C.SERVER_ERROR),
    "503": (Reply(503, "upstream connect error", {**TEXT, "retry-after": "3"}), 3.0, C.OVERLOADED),
    "broken body": (BROKEN, None, C.MALFORMED_RESPONSE),
}
ANTHROPIC = {
    "429": (Reply(429, anthropic_error("rate_limit_error"), {"retry-after": "2"}), 2.0, C.RATE_LIMITED),
    "529": (Reply(529, anthropic_error("overloaded_error")), None, C.OVERLOADED),
    "500": (Reply(500, anthropic_error("api_error")), None, C.SERVER_ERROR),
    "credit": (
        Reply(400, anthropic_error("invalid_request_error", "Your credit balance is too low to access the API.")),
        None,
        C.QUOTA_EXHAUSTED,
    ),
    "spend limit": (
        Reply(429, anthropic_error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})),
        None,
        C.QUOTA_EXHAUSTED,
    ),
    "key": (Reply(401, anthropic_error("authentication_error")), None, C.AUTH),
    "too large": (Reply(413, anthropic_error("request_too_large")), None, C.INVALID_REQUEST),
}
GOOGLE = {
    "429": (Reply(429, google_error(429, "RESOURCE_EXHAUSTED", RETRY_INFO)), 12.0, C.RATE_LIMITED),
    "per minute": (
        Reply(429, google_error(429, "RESOURCE_EXHAUSTED", quota_failure("GenerateRequestsPerMinute"))),
        None,
        C.RATE_LIMITED,
    ),
    "per day": (
        Reply(429, google_error(429, "RESOURCE_EXHAUSTED", quota_failure("GenerateRequestsPerDay"), RETRY_INFO)),
        12.0,
        C.QUOTA_EXHAUSTED,
    ),
    "503": (Reply(503, google_error(503, "UNAVAILABLE")), None, C.OVERLOADED),
    "500": (Reply(500, google_error(500, "INTERNAL")), None, C.SERVER_ERROR),
    "key": (Reply(400, google_error(400, "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"})), None, C.AUTH),
    "argument": (Reply(400, google_error(400, "INVALID_ARGUMENT")), None, C.INVALID_REQUEST),
    "permission": (Reply(403, google_error(403, "PERMISSION_DENIED")), None, C.AUTH),
    "billing": (
        Reply(403, google_error(403, "PERMISSION_DENIED", {"reason": "BILLING_DISABLED"})),
        None,
        C.QUOTA_EXHAUSTED,
    ),
    "broken body": (BROKEN, None, C.MALFORMED_RESPONSE),
}
MISTRAL = {
    "429": (
        Reply(429, {"object": "error", "message": ECHO, "type": "rate_limited", "code": "1300"}, {"retry-after": "2"}),
        2.0,
        C.RATE_LIMITED,
    ),
    "validation": (
        Reply(422, {"detail": [{"loc": ["body"], "msg": ECHO, "type": "missing"}]}),
        None,
        C.INVALID_REQUEST,
    ),
    "key": (Reply(401, {"detail": "Unauthorized"}), None, C.AUTH),
    "500": (Reply(500, {"object": "error", "message": ECHO}), None, C.SERVER_ERROR),
    "html": (Reply(200, "<html>login</html>", HTML), None, C.MALFORMED_RESPONSE),
    "broken body": (BROKEN, None, C.MALFORMED_RESPONSE),
}
COHERE = {
    "429": (Reply(429, {"message": ECHO}, {"retry-after": "2"}), 2.0, C.RATE_LIMITED),
    "key": (Reply(401, {"message": "invalid api token"}), None, C.AUTH),
    "400": (Reply(400, {"message": ECHO}), None, C.INVALID_REQUEST),
    "500": (Reply(500, {"message": ECHO}), None, C.SERVER_ERROR),
    "503": (Reply(503, {"message": ECHO}), None, C.OVERLOADED),
    "broken body": (BROKEN, None, C.MALFORMED_RESPONSE),
}
BEDROCK = {
    "throttled": (amazon(429, "ThrottlingException", **{"retry-after": "2"}), 2.0, C.RATE_LIMITED),
    "per day": (amazon(429, "ThrottlingException", "Too many tokens per day"), None, C.QUOTA_EXHAUSTED),
    "quota": (amazon(400, "ServiceQuotaExceededException"), None, C.QUOTA_EXHAUSTED),
    "not ready": (amazon(429, "ModelNotReadyException"), None, C.OVERLOADED),
    "unavailable": (amazon(503, "ServiceUnavailableException"), None, C.OVERLOADED),
    "model": (amazon(424, "ModelErrorException"), None, C.SERVER_ERROR),
    "model's time": (amazon(408, "ModelTimeoutException"), None, C.TIMEOUT),
    "server": (amazon(500, "InternalServerException"), None, C.SERVER_ERROR),
    "validation": (amazon(400, "ValidationException"), None, C.INVALID_REQUEST),
    "access": (amazon(403, "AccessDeniedException"), None, C.AUTH),
}
HTTP = {
    "429": (Reply(429, openai_error(None, None), {"retry-after": "2"}), 2.0, C.RATE_LIMITED),
    "503": (Reply(503, "no", TEXT), None, C.OVERLOADED),
    "404": (Reply(404, {"detail": ECHO}), None, C.INVALID_REQUEST),
}
OVERLOADED_STREAM = (
    'event: error\ndata: {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}\n\n'
)
STREAM = {"content-type": "text/event-stream"}

#: What follows each category the first time, on a lane that is well.
FIRST = {
    C.RATE_LIMITED: "Snooze",
    C.QUOTA_EXHAUSTED: "Halt",
    **dict.fromkeys((C.AUTH, C.INVALID_REQUEST, C.CONTENT_FILTERED, C.PROGRAMMING), "GiveUp"),
    **dict.fromkeys((C.OVERLOADED, C.SERVER_ERROR, C.TIMEOUT, C.CONNECTION, C.MALFORMED_RESPONSE), "Retry"),
}


def _of(asks: tuple[Ask, ...], replies: dict[str, tuple[Reply, float | None, Category]]) -> list[Any]:
    return [
        pytest.param(ask, reply, Expected(category, delay_s, FIRST[category]), id=f"{ask.__name__}-{name}")
        for ask in asks
        for name, (reply, delay_s, category) in replies.items()
    ]


LIKE_OPENAI = (
    clients.openai_chat,
    clients.groq_chat,
    clients.litellm_openai,
    clients.langchain_openai_chat,
    clients.pydantic_openai,
)
LIKE_ANTHROPIC = (
    clients.anthropic_message,
    clients.litellm_anthropic,
    clients.langchain_anthropic_chat,
    clients.pydantic_anthropic,
)
OTHERS = (clients.google_content, clients.mistral_chat, clients.cohere_chat, clients.bedrock_converse)
BARE = (clients.httpx_post, clients.httpx2_post, clients.requests_post, clients.aiohttp_post)

CASES = [
    *_of(LIKE_OPENAI, OPENAI),
    *_of(LIKE_ANTHROPIC, ANTHROPIC),
    *_of((clients.google_content,), GOOGLE),
    *_of((clients.mistral_chat,), MISTRAL),
    *_of((clients.cohere_chat,), COHERE),
    *_of((clients.bedrock_converse,), BEDROCK),
    *_of((*BARE, clients.urllib_open), HTTP),
    *_of(
        (clients.openai_stream,),
        {
            "error event": (Reply(200, 'data: {"error": {"code": "server_error"}}\n\n', STREAM), None, C.SERVER_ERROR),
            "refused event": (
                Reply(200, 'data: {"error": {"code": "rate_limit_exceeded"}}\n\n', STREAM),
                None,
                C.RATE_LIMITED,
            ),
        },
    ),
    *_of(
        (clients.anthropic_stream,), {"overloaded event": (Reply(200, OVERLOADED_STREAM, STREAM), None, C.OVERLOADED)}
    ),
    *_of((clients.google_stream,), {"503": GOOGLE["503"]}),
    *_of((clients.openai_async, clients.openai_responses, clients.pydantic_fallback), {"429": OPENAI["429"]}),
    *_of((clients.pydantic_fallback,), {"quota": OPENAI["quota"], "500": OPENAI["500"]}),
    *[
        pytest.param(ask, reply, expected, id=f"{ask.__name__}-{name}")
        for ask in (*LIKE_OPENAI, *LIKE_ANTHROPIC, *OTHERS, *BARE, clients.urllib3_post)
        for name, (reply, expected) in TRANSPORT.items()
    ],
    *[
        pytest.param(ask, None, says(C.CONNECTION, "Retry"), id=f"{ask.__name__}-refused connection")
        for ask in (*LIKE_OPENAI, *LIKE_ANTHROPIC, *OTHERS, *BARE, clients.urllib3_post)
    ],
]


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    listening = Provider()
    yield listening
    listening.close()


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that never answers is not waited for; one that is slow on a busy machine is."""
    reply = getattr(request.node, "callspec", None) and request.node.callspec.params.get("reply")
    if reply is NOTHING:
        monkeypatch.setattr(clients, "PATIENCE_S", 0.5)


def raised_by(ask: Ask, url: str, **options: Any) -> Exception:
    """What a client raises; that it raises is the point."""
    try:
        answer = ask(url, **options)
    except Exception as error:
        return error
    raise AssertionError(f"{ask.__name__} took it for an answer: {answer!r}")


def test_there_are_enough_cases() -> None:
    """Raised by the SDKs themselves, each another pair of client and reply."""
    assert len({case.id for case in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("ask", "reply", "expected"), CASES)
def test_what_an_sdk_raises(provider: Provider, ask: Ask, reply: Reply | None, expected: Expected) -> None:
    """Category, delay and verdict; one request; and neither prompt nor key in what is kept or passed on."""
    if reply is None:
        with nobody_listens() as url:
            error = raised_by(ask, url, **OFF.get(ask, {}))
    else:
        provider.says(reply)
        error = raised_by(ask, provider.url, **OFF.get(ask, {}))
        assert provider.requests == (2 if ask is clients.pydantic_fallback else 1)  # two models, each asked once
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        failure = classify_exception(error)
    # Asking an old attribute may warn. What earlier cases left open is told whenever garbage is collected.
    assert [str(w.message) for w in warned if not issubclass(w.category, ResourceWarning)] == []
    assert failure is not None, repr(error)
    step = next_step(failure, 1, RetryPolicy(), lambda: 0.0, now_s=0.0, deadline_s=math.inf)
    found = Expected(failure.category, failure.retry_after_s, type(step).__name__)
    assert found == expected, failure.cause
    final = call_failed(failure, 3)
    rebuilt = pickle.loads(pickle.dumps(final))
    assert (type(rebuilt), rebuilt.args, rebuilt.attempts) == (type(final), final.args, 3)
    for secret in (PROMPT, KEY, "canary"):
        assert secret not in f"{failure!r} {final} {final!r}"


def test_the_request_id_comes_along(provider: Provider) -> None:
    """Whatever header a provider uses for it."""
    for ask, header in (
        (clients.openai_chat, "x-request-id"),
        (clients.anthropic_message, "request-id"),
        (clients.bedrock_converse, "x-amzn-requestid"),
        (clients.litellm_openai, "x-request-id"),
        (clients.pydantic_anthropic, "request-id"),
    ):
        provider.says(Reply(500, {"message": "x"}, {header: "req-7"}))
        failure = classify_exception(raised_by(ask, provider.url, **OFF[ask]))
        assert failure is not None
        assert failure.request_id == "req-7", ask.__name__


#: Those that try again by themselves as they come.
EAGER = (
    clients.openai_chat,
    clients.openai_async,
    clients.openai_stream,
    clients.openai_responses,
    clients.groq_chat,
    clients.anthropic_message,
    clients.anthropic_stream,
    clients.cohere_chat,
    clients.bedrock_converse,
    clients.litellm_openai,
    clients.langchain_openai_chat,
    clients.langchain_anthropic_chat,
    clients.pydantic_openai,
    clients.pydantic_anthropic,
)
REFUSAL = Reply(400, {"message": "x"})  # ends the retries of those that make some


@pytest.mark.parametrize(
    ("ask", "reply"),
    [
        pytest.param(ask, reply, id=f"{ask.__name__}-{reply.fault or reply.status}")
        for ask in (*OFF, *BARE)
        for reply in (Reply(429, {"message": "x"}), Reply(500, {"message": "x"}), RESET)
        if reply is RESET or ask is not clients.urllib3_post  # it raises for no status
    ],
)
def test_the_switch_ends_an_sdks_own_retries(provider: Provider, ask: Ask, reply: Reply) -> None:
    """One call, one request at the provider (a fallback model is asked once, too)."""
    provider.says(reply)
    raised_by(ask, provider.url, **OFF.get(ask, {}))
    assert provider.requests == (2 if ask is clients.pydantic_fallback else 1)


@pytest.mark.parametrize("ask", EAGER, ids=lambda ask: ask.__name__)
def test_without_the_switch_they_multiply(provider: Provider, ask: Ask) -> None:
    """What the switch is for: a second request for one call."""
    provider.says(Reply(500, {"message": "x"}), REFUSAL)
    raised_by(ask, provider.url)
    assert provider.requests == 2


@pytest.mark.parametrize(
    "name", ["openai.RateLimitError", "anthropic.OverloadedError", "botocore.exceptions.ReadTimeoutError"]
)
def test_the_command_knows_an_installed_sdk(name: str) -> None:
    """`ratelimit-worker classify` by a dotted name."""
    from click.testing import CliRunner

    from ratelimit_worker.cli import main

    done = CliRunner().invoke(main, ["classify", name, "--format", "json"])
    expected = {"openai": "rate_limited", "anthropic": "overloaded", "botocore": "timeout"}
    assert json.loads(done.stdout)["category"] == expected[name.partition(".")[0]]
