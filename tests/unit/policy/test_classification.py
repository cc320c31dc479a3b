"""What kind of failure is it? Answers of every provider, exceptions of every client, and hostile ones of nobody's."""

from __future__ import annotations

import errno
import json
import math
import socket
import ssl
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, NoReturn

import httpx2 as httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker import errors
from ratelimit_worker.calls import Category, Failure, Response
from ratelimit_worker.policy.classification import classify_exception, classify_response
from ratelimit_worker.policy.retry import Retry, RetryPolicy, Snooze, next_step
from ratelimit_worker.providers.http import ProviderRefused
from tests.builders import ROOT

C = Category

CANARY_PROMPT = "the canary sings at midnight"
CANARY_KEY = "sk-proj-CanaryKey0123456789abcdef"


def answer(status: int, body: Any = None, **headers: str) -> Response:
    return Response(
        status=status, headers={name.replace("_", "-"): value for name, value in headers.items()}, body=body
    )


def openai_error(kind: str | None, code: str | None, message: str = "") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(kind: str, message: str = "", **details: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}


def google_error(code: int, status: str, *details: dict[str, Any], message: str = "") -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


def google_quota(quota_id: str, value: str = "15") -> dict[str, Any]:
    violation = {"quotaMetric": "x/generate_requests", "quotaId": quota_id, "quotaValue": value}
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


GOOGLE_429 = "You exceeded your current quota, please check your plan and billing details."

REFUSED: list[Any] = [
    # OpenAI
    (answer(429, openai_error("tokens", "rate_limit_exceeded", "on tokens per min (TPM): Limit 9")), C.RATE_LIMITED),
    (answer(429, openai_error("requests", "rate_limit_exceeded")), C.RATE_LIMITED),
    (answer(429, openai_error("insufficient_quota", "insufficient_quota")), C.QUOTA_EXHAUSTED),
    (answer(429, openai_error("requests", None, "Rate limit on requests per day (RPD): 200")), C.QUOTA_EXHAUSTED),
    (answer(429, openai_error(None, "billing_hard_limit_reached")), C.QUOTA_EXHAUSTED),
    (answer(400, openai_error("invalid_request_error", "billing_hard_limit_reached")), C.QUOTA_EXHAUSTED),
    (answer(429, openai_error("billing_not_active", "billing_not_active")), C.QUOTA_EXHAUSTED),
    (
        answer(
            429,
            openai_error("tokens", "rate_limit_exceeded", "Request too large for gpt-4o: Limit 30000, Requested 40000"),
        ),
        C.INVALID_REQUEST,
    ),
    (answer(400, openai_error("invalid_request_error", "context_length_exceeded")), C.INVALID_REQUEST),
    (answer(400, openai_error("invalid_request_error", "content_policy_violation")), C.CONTENT_FILTERED),
    (answer(400, openai_error("invalid_request_error", "invalid_prompt")), C.CONTENT_FILTERED),
    (answer(401, openai_error("invalid_request_error", "invalid_api_key")), C.AUTH),
    (answer(403, openai_error("request_forbidden", "unsupported_country_region_territory")), C.AUTH),
    (answer(404, openai_error("invalid_request_error", "model_not_found")), C.INVALID_REQUEST),
    (answer(500, openai_error("server_error", None)), C.SERVER_ERROR),
    (answer(503, openai_error("server_error", "slow_down")), C.OVERLOADED),
    # Azure
    (
        answer(429, {"error": {"code": "429", "message": "exceeded call rate limit, retry after 6 seconds"}}),
        C.RATE_LIMITED,
        6.0,
    ),
    (
        answer(400, {"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        C.CONTENT_FILTERED,
    ),
    (answer(400, {"error": {"code": "content_filter", "status": 400}}), C.CONTENT_FILTERED),
    (answer(404, {"error": {"code": "DeploymentNotFound"}}), C.INVALID_REQUEST),
    # Anthropic
    (answer(429, anthropic_error("rate_limit_error")), C.RATE_LIMITED),
    (answer(529, anthropic_error("overloaded_error")), C.OVERLOADED),
    (answer(500, anthropic_error("overloaded_error")), C.OVERLOADED),
    (answer(500, anthropic_error("api_error")), C.SERVER_ERROR),
    (answer(504, anthropic_error("timeout_error")), C.SERVER_ERROR),
    (answer(402, anthropic_error("billing_error")), C.QUOTA_EXHAUSTED),
    (
        answer(400, anthropic_error("invalid_request_error", "Your credit balance is too low to access the API.")),
        C.QUOTA_EXHAUSTED,
    ),
    (
        answer(400, anthropic_error("invalid_request_error", "You have reached your specified API usage limits.")),
        C.QUOTA_EXHAUSTED,
    ),
    (
        answer(429, anthropic_error("rate_limit_error", details={"error_code": "enforced_spend_limit_reached"})),
        C.QUOTA_EXHAUSTED,
    ),
    (answer(429, anthropic_error("rate_limit_error", details={"error_code": "ramp_limit_exceeded"})), C.RATE_LIMITED),
    (answer(400, anthropic_error("invalid_request_error", "prompt is too long: 210000 tokens")), C.INVALID_REQUEST),
    (answer(413, anthropic_error("request_too_large")), C.INVALID_REQUEST),
    (answer(401, anthropic_error("authentication_error")), C.AUTH),
    (answer(403, anthropic_error("permission_error")), C.AUTH),
    # Gemini
    (
        answer(429, google_error(429, "RESOURCE_EXHAUSTED", google_quota("PerMinutePerModel"), message=GOOGLE_429)),
        C.RATE_LIMITED,
    ),
    (answer(429, google_error(429, "RESOURCE_EXHAUSTED", message=GOOGLE_429)), C.RATE_LIMITED),
    (answer(429, google_error(429, "RESOURCE_EXHAUSTED", google_quota("RequestsPerDayPerModel"))), C.QUOTA_EXHAUSTED),
    (answer(429, google_error(429, "RESOURCE_EXHAUSTED", google_quota("PerMinute", "0"))), C.QUOTA_EXHAUSTED),
    (answer(429, [google_error(429, "RESOURCE_EXHAUSTED", google_quota("RequestsPerDay"))]), C.QUOTA_EXHAUSTED),
    (answer(400, google_error(400, "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"})), C.AUTH),
    (answer(400, google_error(400, "INVALID_ARGUMENT")), C.INVALID_REQUEST),
    (answer(403, google_error(403, "PERMISSION_DENIED", {"reason": "BILLING_DISABLED"})), C.QUOTA_EXHAUSTED),
    (answer(403, {"error": {"errors": [{"reason": "userRateLimitExceeded"}]}}), C.RATE_LIMITED),
    (answer(403, {"error": {"errors": [{"reason": "dailyLimitExceeded"}]}}), C.QUOTA_EXHAUSTED),
    (answer(503, google_error(503, "UNAVAILABLE")), C.OVERLOADED),
    (answer(504, google_error(504, "DEADLINE_EXCEEDED")), C.SERVER_ERROR),
    # Groq, Mistral, OpenRouter
    (answer(498, openai_error("capacity_exceeded", "capacity_exceeded")), C.OVERLOADED),
    (answer(429, openai_error("tokens", "rate_limit_exceeded", "on tokens per day (TPD): Limit 1")), C.QUOTA_EXHAUSTED),
    (
        answer(429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"}),
        C.RATE_LIMITED,
    ),
    (answer(422, {"detail": [{"loc": ["body"], "msg": "field required", "type": "missing"}]}), C.INVALID_REQUEST),
    (answer(402, {"error": {"code": 402, "message": "Insufficient credits"}}), C.QUOTA_EXHAUSTED),
    # Bedrock
    (answer(429, {"message": "Too many requests"}, x_amzn_errortype="ThrottlingException:http://x"), C.RATE_LIMITED),
    (answer(400, {"__type": "com.amazon.coral.service#ThrottlingException"}), C.RATE_LIMITED),
    (answer(429, {"message": "Too many tokens per day"}, x_amzn_errortype="ThrottlingException"), C.QUOTA_EXHAUSTED),
    (answer(400, {}, x_amzn_errortype="ServiceQuotaExceededException"), C.QUOTA_EXHAUSTED),
    (answer(400, {}, x_amzn_errortype="ValidationException"), C.INVALID_REQUEST),
    (answer(403, {}, x_amzn_errortype="AccessDeniedException"), C.AUTH),
    (answer(408, {}, x_amzn_errortype="ModelTimeoutException"), C.TIMEOUT),
    (answer(424, {}, x_amzn_errortype="ModelErrorException"), C.SERVER_ERROR),
    (answer(429, {}, x_amzn_errortype="ModelNotReadyException"), C.OVERLOADED),
    # LiteLLM's proxy
    (answer(429, openai_error("throttling_error", "429")), C.RATE_LIMITED),
    (answer(400, openai_error("budget_exceeded", "400", "Budget has been exceeded!")), C.QUOTA_EXHAUSTED),
    # With a wait: a header, milliseconds, a body's word
    (answer(429, openai_error("requests", "rate_limit_exceeded"), retry_after="2"), C.RATE_LIMITED, 2.0),
    (answer(429, openai_error("tokens", None), retry_after_ms="1500", retry_after="2"), C.RATE_LIMITED, 1.5),
    (answer(503, "", x_ms_retry_after_ms="250"), C.OVERLOADED, 0.25),
    (answer(529, anthropic_error("overloaded_error"), retry_after="1m30s"), C.OVERLOADED, 90.0),
    (answer(429, google_error(429, "RESOURCE_EXHAUSTED", {"retryDelay": "12.5s"})), C.RATE_LIMITED, 12.5),
    (answer(500, {}, retry_after="-3"), C.SERVER_ERROR),
    (answer(429, {}, retry_after="nan"), C.RATE_LIMITED),
    (answer(429, {}, retry_after="999999"), C.RATE_LIMITED, 86_400.0),
    # Status alone, and bodies that say nothing
    (answer(408), C.TIMEOUT),
    (answer(409), C.CONFLICT),
    (answer(425), C.CONFLICT),
    (answer(413), C.INVALID_REQUEST),
    (answer(418), C.INVALID_REQUEST),
    (answer(302), C.INVALID_REQUEST),
    (answer(407), C.AUTH),
    (answer(429, "<html>slow down</html>"), C.RATE_LIMITED),
    (answer(502, "<html>bad gateway</html>"), C.SERVER_ERROR),
    (answer(503, ""), C.OVERLOADED),
    (answer(520), C.SERVER_ERROR),
    (answer(524), C.TIMEOUT),
    (answer(429, '{"error": {"code": "insufficient_quota"}}'), C.QUOTA_EXHAUSTED),
]


#: What follows each category the first time, on a lane that is well.
FIRST = {
    C.RATE_LIMITED: "Snooze",
    C.QUOTA_EXHAUSTED: "Halt",
    **dict.fromkeys((C.AUTH, C.INVALID_REQUEST, C.CONTENT_FILTERED, C.PROGRAMMING), "GiveUp"),
    **dict.fromkeys((C.OVERLOADED, C.SERVER_ERROR, C.TIMEOUT, C.CONNECTION, C.MALFORMED_RESPONSE, C.CONFLICT), "Retry"),
}


def follows(failure: Failure) -> tuple[str, float | None]:
    """What follows a failure the first time, without any jitter: the step's name and the wait."""
    step = next_step(failure, 1, RetryPolicy(), lambda: 0.0, now_s=0.0, deadline_s=math.inf)
    return type(step).__name__, step.after_s if isinstance(step, Retry | Snooze) else None


def rows(table: list[Any]) -> list[tuple[Any, Category | None, float | None]]:
    """(what was met, category, Retry-After in seconds); most rows have no such wait."""
    return [(met, category, *(delay or [None])) for met, category, *delay in table]


def test_there_are_enough_hand_built_cases() -> None:
    """Beside those that the SDKs themselves raise (tests/compat), counted apart."""
    assert len([category for _, category, _ in rows(REFUSED + RAISED) if category is not None]) >= 120
    assert {category for _, category, _ in rows(REFUSED + RAISED)} == {*Category, None}


@pytest.mark.parametrize(("response", "category", "delay_s"), rows(REFUSED))
def test_refusals_of_every_provider(response: Response, category: Category, delay_s: float | None) -> None:
    """By machine words, else by status, else by the few messages that have no word of their own."""
    failure = classify_response(response)
    assert failure is not None
    assert failure.category is category
    assert failure.retry_after_s == delay_s
    assert follows(failure) == (FIRST[category], (delay_s or 0.0) if FIRST[category] in {"Retry", "Snooze"} else None)
    assert failure.status == response.status
    assert failure.cause.startswith(f"HTTP {response.status}")


def chat(content: str | None, finish: str = "stop", **message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "finish_reason": finish, "message": {"content": content, **message}}]}


SSE_ERROR = 'event: message_start\ndata: {"type": "message_start"}\n\nevent: error\ndata: ' + json.dumps(
    anthropic_error("overloaded_error")
)


@pytest.mark.parametrize(
    ("response", "category"),
    [
        (answer(200, chat("hello")), None),
        (answer(200, chat("hel", "content_filter")), None),
        (answer(200, chat(None, "tool_calls", tool_calls=[{"id": "1"}])), None),
        (
            answer(200, {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}),
            None,
        ),
        (answer(200, {"object": "response", "status": "completed", "output": []}), C.MALFORMED_RESPONSE),
        (answer(200, {"object": "response", "status": "completed", "error": None, "output": [{"type": "x"}]}), None),
        (answer(200, {"object": "list", "data": [{"embedding": [0.1]}]}), None),
        (answer(200, [0.1, 0.2]), None),
        (answer(200, "a transcript", content_type="text/plain"), None),
        (answer(200, 'data: {"choices": []}\n\ndata: [DONE]', content_type="text/event-stream"), None),
        (answer(204), None),
        (answer(200, anthropic_error("overloaded_error")), C.OVERLOADED),
        (answer(200, SSE_ERROR, content_type="text/event-stream; charset=utf-8"), C.OVERLOADED),
        (answer(200, {"error": {"code": 429, "message": "slow"}}), C.RATE_LIMITED),
        (answer(200, {"error": {"code": 502, "message": "upstream"}}), C.SERVER_ERROR),
        (answer(200, {"error": "something broke"}), C.SERVER_ERROR),
        (answer(200, {"object": "response", "error": {"code": "server_error"}}), C.SERVER_ERROR),
        (answer(200, {"object": "response", "error": {"code": "insufficient_quota"}}), C.QUOTA_EXHAUSTED),
        (answer(200, [{"candidates": []}, google_error(503, "UNAVAILABLE")]), C.OVERLOADED),
        (answer(200, {"choices": [{"error": {"code": 502}, "finish_reason": "error"}]}), C.SERVER_ERROR),
        (answer(200, "<html>login</html>", content_type="text/html"), C.MALFORMED_RESPONSE),
        (answer(200, '{"cut', content_type="application/json"), C.MALFORMED_RESPONSE),
        (answer(200, chat(None, "stop", refusal="I can't help with that.")), C.CONTENT_FILTERED),
        (answer(200, chat("", "content_filter")), C.CONTENT_FILTERED),
        (answer(200, {"content": [], "stop_reason": "refusal"}), C.CONTENT_FILTERED),
        (answer(200, {"promptFeedback": {"blockReason": "SAFETY"}}), C.CONTENT_FILTERED),
        (answer(200, {"candidates": [{"finishReason": "SAFETY"}]}), C.CONTENT_FILTERED),
        (answer(200, {"stopReason": "guardrail_intervened", "output": {}}), C.CONTENT_FILTERED),
        (
            answer(200, {"object": "response", "output": [{"type": "message", "content": [{"type": "refusal"}]}]}),
            C.CONTENT_FILTERED,
        ),
    ],
)
def test_a_2xx_may_be_no_answer(response: Response, category: Category | None) -> None:
    """An error inside, a stream that broke, text that should be JSON, or nothing but a refusal; else it is good."""
    failure = classify_response(response)
    assert (failure and failure.category) is category


def test_the_documented_table_is_in_force() -> None:
    """Each category of docs/failures.md: the bounds of its waits, its tries, and whether it counts as sick."""
    documented = {}
    for line in (ROOT / "docs" / "failures.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].strip("`") in set(Category):
            documented[Category(cells[0].strip("`"))] = tuple(cells[2:])
    assert set(documented) == set(Category)
    for category, (first, tries, sick) in documented.items():
        rule = RetryPolicy().rules.get(category)
        waits = f"retry, {rule.backoff.base_s:g} to {rule.backoff.cap_s:g} s" if rule else first
        assert (first, tries) == (waits, str(rule.tries) if rule else "–")
        assert first.startswith("retry") == (rule is not None)
        assert sick == ("yes" if Failure(category=category, cause="").sick else "no")


def test_a_prompt_that_quotes_an_error_changes_nothing() -> None:
    """A 400 echoes its input: an agent whose prompt speaks of quotas must not halt the lane."""
    for quote in ("credit balance is too low", "insufficient_quota", "requests per day (RPD)", "overloaded_error"):
        body = openai_error("invalid_request_error", None, f"Invalid 'messages[0]': {quote}")
        failure = classify_response(answer(400, body))
        assert failure is not None
        assert failure.category is C.INVALID_REQUEST


def test_retry_after_and_request_id_come_along() -> None:
    """From headers, else the body; a request id that is no plain word is left out."""
    date = formatdate(1_792_567_670.0, usegmt=True)
    for response, delay_s in (
        (answer(429, retry_after="2"), 2.0),
        (answer(503, retry_after_ms="1500"), 1.5),
        (answer(429, google_error(429, "RESOURCE_EXHAUSTED", {"retryDelay": "12s"})), 12.0),
        (answer(429, retry_after=formatdate(1_792_567_680.0, usegmt=True), date=date), 10.0),
        (answer(429), None),
    ):
        failure = classify_response(response)
        assert failure is not None
        assert failure.retry_after_s == delay_s
    for given_id, kept in (("req_1", "req_1"), ("a b", None), ("x" * 500, None)):
        failure = classify_response(answer(500, x_request_id=given_id))
        assert failure is not None
        assert failure.request_id == kept


# --- Exceptions. The SDKs are not installed here: classes with their names, modules and attributes stand for them. ---


def sdk(path: str, *bases: type[BaseException], message: str = "", **attributes: Any) -> BaseException:
    """An exception like the SDK's: `path` is "module.Class"; attributes as the SDK sets them."""
    module, _, name = path.rpartition(".")
    kind = type(name, bases or (Exception,), {"__module__": module})
    error: BaseException = kind(message)
    for attribute, value in attributes.items():
        setattr(error, attribute, value)
    return error


class Answer:
    """A client's response object, read already."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.text = json.dumps(body)


def aws(code: str, status: int, message: str = "") -> dict[str, Any]:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "3"}, "RequestId": "aws-1"}
    return {"Error": {"Code": code, "Message": message}, "ResponseMetadata": meta}


QUOTA_BODY = {"code": "insufficient_quota", "type": "insufficient_quota", "message": "You exceeded your quota"}
API_ERROR = type("APIError", (Exception,), {"__module__": "openai"})
URL = httpx.Request("POST", "http://provider/v1")

RAISED: list[Any] = [
    # openai, groq and anthropic
    (sdk("openai.RateLimitError", status_code=429, response=Answer(429), body=None), C.RATE_LIMITED),
    (sdk("openai.RateLimitError", status_code=429, response=Answer(429), body=QUOTA_BODY), C.QUOTA_EXHAUSTED),
    (sdk("openai.APITimeoutError"), C.TIMEOUT),
    (sdk("openai.APIConnectionError"), C.CONNECTION),
    (sdk("openai.InternalServerError", status_code=503, response=Answer(503)), C.OVERLOADED),
    (sdk("openai.APIError", code="server_error", body={"code": "server_error"}), C.SERVER_ERROR),
    (sdk("openai.APIError", code="rate_limit_exceeded"), C.RATE_LIMITED),
    (sdk("openai.APIError"), C.SERVER_ERROR),
    (sdk("openai.OpenAIError", message="The api_key client option must be set"), C.AUTH),
    (sdk("openai.APIResponseValidationError", API_ERROR, status_code=200), C.MALFORMED_RESPONSE),
    (sdk("openai.ContentFilterFinishReasonError"), C.CONTENT_FILTERED),
    (sdk("my_agents.SlowModel", type("RateLimitError", (Exception,), {"__module__": "openai"})), C.RATE_LIMITED),
    (sdk("groq.APIStatusError", status_code=498, response=Answer(498)), C.OVERLOADED),
    (
        sdk(
            "anthropic.APIStatusError", status_code=200, response=Answer(200), body=anthropic_error("overloaded_error")
        ),
        C.OVERLOADED,
    ),
    (sdk("anthropic.OverloadedError", status_code=529), C.OVERLOADED),
    (sdk("anthropic.RateLimitError", status_code=429, error_code="contract_spend_limit_reached"), C.QUOTA_EXHAUSTED),
    (sdk("anthropic.BadRequestError", status_code=400, message="x", body=anthropic_error("x")), C.INVALID_REQUEST),
    # google
    (sdk("google.genai.errors.ClientError", code=429, status="RESOURCE_EXHAUSTED"), C.RATE_LIMITED),
    (
        sdk(
            "google.genai.errors.ClientError",
            code=429,
            status="RESOURCE_EXHAUSTED",
            details=google_error(429, "RESOURCE_EXHAUSTED", google_quota("RequestsPerDay")),
        ),
        C.QUOTA_EXHAUSTED,
    ),
    (sdk("google.genai.errors.ServerError", code=503, status="UNAVAILABLE"), C.OVERLOADED),
    (sdk("google.api_core.exceptions.ResourceExhausted", code=429), C.RATE_LIMITED),
    (sdk("google.api_core.exceptions.DeadlineExceeded"), C.TIMEOUT),
    (sdk("google.api_core.exceptions.RetryError"), C.TIMEOUT),
    (sdk("google.auth.exceptions.DefaultCredentialsError"), C.AUTH),
    (sdk("grpc._channel._InactiveRpcError", code=type("Unavailable", (), {"name": "UNAVAILABLE"})), C.OVERLOADED),
    # mistralai, cohere, botocore
    (sdk("mistralai.client.errors.SDKError", status_code=429, body="{}", raw_response=Answer(429)), C.RATE_LIMITED),
    (sdk("mistralai.client.errors.HTTPValidationError", status_code=422), C.INVALID_REQUEST),
    (sdk("cohere.errors.TooManyRequestsError", status_code=429, body={"message": "trial key"}), C.RATE_LIMITED),
    (sdk("cohere.core.api_error.ApiError", status_code=500, body=None), C.SERVER_ERROR),
    (sdk("botocore.errorfactory.ThrottlingException", response=aws("ThrottlingException", 429)), C.RATE_LIMITED, 3.0),
    (
        sdk("botocore.exceptions.ClientError", response=aws("ThrottlingException", 400, "Too many tokens per day")),
        C.QUOTA_EXHAUSTED,
        3.0,
    ),
    (sdk("botocore.exceptions.ClientError", response=aws("AccessDeniedException", 403)), C.AUTH, 3.0),
    (sdk("botocore.exceptions.ReadTimeoutError"), C.TIMEOUT),
    (
        sdk("botocore.exceptions.EndpointConnectionError", sdk("botocore.exceptions.ConnectionError").__class__),
        C.CONNECTION,
    ),
    (sdk("botocore.exceptions.NoCredentialsError"), C.AUTH),
    # litellm, langchain, pydantic-ai
    (sdk("litellm.exceptions.RateLimitError", status_code=429, message="insufficient_quota ..."), C.QUOTA_EXHAUSTED),
    (sdk("litellm.exceptions.APIConnectionError", status_code=500), C.CONNECTION),
    (sdk("litellm.exceptions.Timeout", status_code=408), C.TIMEOUT),
    (sdk("litellm.exceptions.ContentPolicyViolationError", status_code=400), C.CONTENT_FILTERED),
    (sdk("litellm.exceptions.ContextWindowExceededError", status_code=400), C.INVALID_REQUEST),
    (sdk("litellm.BudgetExceededError"), C.QUOTA_EXHAUSTED),
    (sdk("langchain_core.exceptions.ContextOverflowError"), C.INVALID_REQUEST),
    (sdk("langchain_core.exceptions.OutputParserException", ValueError), None),
    (
        sdk("pydantic_ai.exceptions.ModelHTTPError", status_code=529, body=anthropic_error("overloaded_error")),
        C.OVERLOADED,
    ),
    (sdk("litellm.exceptions.RateLimitError", status_code=429, rate_limit_type="budget"), C.QUOTA_EXHAUSTED),
    (sdk("litellm.exceptions.BlockedPiiEntityError"), C.CONTENT_FILTERED),
    (sdk("langchain_core.exceptions.ModelRateLimitError"), C.RATE_LIMITED),
    (sdk("langchain_core.exceptions.ModelAPIError"), C.SERVER_ERROR),
    (sdk("langchain_core.exceptions.ModelRefusalError"), C.CONTENT_FILTERED),
    (sdk("langchain_core.exceptions.ModelTimeoutError"), C.TIMEOUT),
    (sdk("pydantic_ai.exceptions.ModelRateLimitError", retry_after=7.5), C.RATE_LIMITED, 7.5),
    (sdk("pydantic_ai.exceptions.ModelRateLimitError", provider_error_code="insufficient_quota"), C.QUOTA_EXHAUSTED),
    (sdk("pydantic_ai.exceptions.ModelQuotaExceededError"), C.QUOTA_EXHAUSTED),
    (sdk("pydantic_ai.exceptions.ModelContextWindowExceededError"), C.INVALID_REQUEST),
    (sdk("pydantic_ai.exceptions.ModelConnectionError"), C.CONNECTION),
    (sdk("pydantic_ai.exceptions.UsageLimitExceeded"), None),
    (sdk("pydantic_ai.exceptions.ModelRetry"), None),
    # a client that raised over a 2xx
    (
        sdk("mistralai.client.errors.SDKError", status_code=200, body="<html>", raw_response=Answer(200)),
        C.MALFORMED_RESPONSE,
    ),
    (sdk("cohere.core.api_error.ApiError", status_code=200, body="{cut"), C.MALFORMED_RESPONSE),
    # HTTP clients
    (httpx.ReadTimeout("x", request=URL), C.TIMEOUT),
    (httpx.ConnectTimeout("x", request=URL), C.TIMEOUT),
    (httpx.ConnectError("x", request=URL), C.CONNECTION),
    (httpx.RemoteProtocolError("x", request=URL), C.CONNECTION),
    (httpx.LocalProtocolError("Illegal header value", request=URL), C.INVALID_REQUEST),
    (httpx.UnsupportedProtocol("x", request=URL), C.INVALID_REQUEST),
    (httpx.DecodingError("x", request=URL), C.MALFORMED_RESPONSE),
    (httpx.HTTPStatusError("x", request=URL, response=httpx.Response(503, request=URL)), C.OVERLOADED),
    (sdk("httpx2.PoolTimeout"), C.TIMEOUT),
    (sdk("requests.exceptions.HTTPError", OSError, response=Answer(429)), C.RATE_LIMITED),
    (sdk("requests.exceptions.ChunkedEncodingError", OSError), C.MALFORMED_RESPONSE),
    (sdk("requests.exceptions.JSONDecodeError", ValueError), C.MALFORMED_RESPONSE),
    (sdk("urllib3.exceptions.MaxRetryError", reason=sdk("urllib3.exceptions.ReadTimeoutError")), C.TIMEOUT),
    (sdk("urllib.error.HTTPError", OSError, code=429, headers={"Retry-After": "3"}), C.RATE_LIMITED, 3.0),
    (sdk("urllib.error.URLError", OSError, reason=TimeoutError()), C.TIMEOUT),
    (sdk("aiohttp.client_exceptions.ClientResponseError", status=502, headers=None), C.SERVER_ERROR),
    (sdk("aiohttp.client_exceptions.ContentTypeError", status=200), C.MALFORMED_RESPONSE),
    (
        sdk("aiohttp.client_exceptions.ServerDisconnectedError", sdk("aiohttp.ClientConnectionError").__class__),
        C.CONNECTION,
    ),
    (sdk("aiohttp.client_exceptions.ClientPayloadError"), C.MALFORMED_RESPONSE),
    # ours
    (errors.Throttled("HTTP 429", 429, "req_1"), C.RATE_LIMITED),
    (errors.MalformedResponse("the answer is no JSON", 200), C.MALFORMED_RESPONSE),
    (ProviderRefused(answer(529, anthropic_error("overloaded_error"))), C.OVERLOADED),
    (type("OwnTimeout", (errors.TimedOut,), {"__init__": lambda self: None})(), C.TIMEOUT),
    (errors.Conflict("\n", 409), C.CONFLICT),
    (errors.CallFailed("of no category"), None),
    (errors.StoreUnavailable("redis"), None),
    (errors.ConfigurationError("x"), None),
    # Python's own
    (TimeoutError(), C.TIMEOUT),
    (ConnectionResetError(), C.CONNECTION),
    (BrokenPipeError(), C.CONNECTION),
    (socket.gaierror(-2, "Name or service not known"), C.CONNECTION),
    (ssl.SSLError("handshake"), C.CONNECTION),
    (OSError(errno.EHOSTUNREACH, "no route"), C.CONNECTION),
    (OSError(errno.ENOSPC, "disk full"), None),
    (FileNotFoundError("x"), None),
    (TypeError("x"), C.PROGRAMMING),
    (IndentationError("x"), C.PROGRAMMING),
    (ModuleNotFoundError("x"), C.PROGRAMMING),
    (UnboundLocalError("x"), C.PROGRAMMING),
    (AttributeError("x"), C.PROGRAMMING),
    (ValueError("x"), None),
    (KeyError("x"), None),
    (KeyboardInterrupt(), None),
    (SystemExit(429), None),
    # not the provider's
    (sdk("redis.exceptions.ConnectionError", ConnectionError), None),
    (sdk("sqlalchemy.exc.OperationalError", code="e3q8"), None),
    (sdk("celery.exceptions.Retry"), None),
    (sdk("billiard.exceptions.SoftTimeLimitExceeded"), None),
]


@pytest.mark.parametrize(("error", "category", "delay_s"), rows(RAISED), ids=lambda value: type(value).__name__)
def test_exceptions_of_every_client(error: BaseException, category: Category | None, delay_s: float | None) -> None:
    """By class, by what they carry, and None where they are nobody's we know."""
    failure = classify_exception(error)
    assert (failure and failure.category) is category
    if failure is not None:
        assert failure.retry_after_s == delay_s
        waits = FIRST[failure.category] in {"Retry", "Snooze"}
        assert follows(failure) == (FIRST[failure.category], (delay_s or 0.0) if waits else None)


def raised(raise_it: Callable[[], NoReturn]) -> BaseException:
    try:
        raise_it()
    except BaseException as error:
        return error


def test_a_wrapper_is_what_it_was_raised_from() -> None:
    """`raise ... from`, an implicit context, and a suppressed one."""
    inner = sdk("openai.RateLimitError", status_code=429, response=Answer(429, retry_after="7", x_request_id="r-1"))

    def wrap_from() -> NoReturn:
        raise RuntimeError("agent failed") from inner

    def wrap_in() -> NoReturn:
        try:
            raise inner
        except Exception:
            raise RuntimeError("agent failed")  # noqa: B904  the implicit context is what is tested

    def wrap_hidden() -> NoReturn:
        try:
            raise inner
        except Exception:
            raise RuntimeError("agent failed") from None

    for wrap in (wrap_from, wrap_in):
        failure = classify_exception(raised(wrap))
        assert failure is not None
        assert (failure.category, failure.retry_after_s, failure.request_id) == (C.RATE_LIMITED, 7.0, "r-1")
    assert classify_exception(raised(wrap_hidden)) is None


def test_a_cause_sharpens_a_wrapper() -> None:
    """A wrapper's bare 429 that was an `insufficient_quota`, and the Retry-After that only the cause still has."""
    wrapper = sdk("pydantic_ai.exceptions.ModelHTTPError", status_code=429, body=None)
    wrapper.__cause__ = sdk(
        "openai.RateLimitError", status_code=429, body=QUOTA_BODY, response=Answer(429, retry_after="5")
    )
    failure = classify_exception(wrapper)
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (C.QUOTA_EXHAUSTED, 5.0)


def test_a_wrapper_that_guesses_is_corrected() -> None:
    """litellm says 500 to what it cannot map, without a `from`: what is behind it decides. A real 500 stays one."""

    def mapped(*behind: BaseException) -> BaseException:
        outer: BaseException | None = None
        for error in reversed(behind):
            error.__context__, outer = outer, error
        assert outer is not None
        return outer

    def guess(name: str = "InternalServerError") -> BaseException:
        return sdk(f"litellm.exceptions.{name}", status_code=500)

    reset = sdk("openai.APIConnectionError")
    overloaded = sdk(
        "httpx.HTTPStatusError", response=Answer(529, anthropic_error("overloaded_error"), retry_after="4")
    )
    for behind, category, status in (
        (reset, C.CONNECTION, None),
        (overloaded, C.OVERLOADED, 529),
        (sdk("openai.InternalServerError", status_code=500), C.SERVER_ERROR, 500),
    ):
        failure = classify_exception(mapped(guess(), sdk("litellm.llms.openai.OpenAIError", status_code=500), behind))
        assert failure is not None
        assert (failure.category, failure.status) == (category, status)
    failure = classify_exception(mapped(guess("APIConnectionError"), overloaded))
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (C.OVERLOADED, 4.0)
    failure = classify_exception(mapped(guess()))
    assert failure is not None
    assert (failure.category, failure.status) == (C.SERVER_ERROR, 500)
    told = sdk("litellm.exceptions.AuthenticationError", status_code=401)
    failure = classify_exception(mapped(told, reset))
    assert failure is not None
    assert failure.category is C.AUTH


def test_a_mistake_counts_only_where_it_is_the_outermost_error() -> None:
    """A ValueError raised while a KeyError or AttributeError was handled keeps Celery's rules."""
    error = ValueError("no such tool")
    error.__context__ = AttributeError("x")
    assert classify_exception(error) is None
    found = classify_exception(raised(lambda: (_ for _ in ()).throw(TypeError(CANARY_PROMPT))))
    assert found is not None
    assert found.cause.startswith("TypeError at test_classification.py:")


def test_an_error_of_the_store_hides_what_is_behind_it() -> None:
    """Redis being away is a ConnectionError at the bottom, and no sickness of a provider."""
    error = RuntimeError("x")
    error.__cause__ = sdk("redis.exceptions.ConnectionError")
    error.__cause__.__cause__ = ConnectionRefusedError()
    assert classify_exception(error) is None


@pytest.mark.parametrize(
    ("members", "category"),
    [
        ([ValueError("x"), TimeoutError()], C.TIMEOUT),
        (
            [sdk("openai.BadRequestError", status_code=400), sdk("openai.RateLimitError", status_code=429)],
            C.RATE_LIMITED,
        ),
        ([TypeError("x")], C.PROGRAMMING),
        ([ValueError("x")], None),
        ([ExceptionGroup("inner", [ConnectionResetError()])], C.CONNECTION),
    ],
)
def test_a_group_is_what_is_worth_a_retry_in_it(members: list[Exception], category: Category | None) -> None:
    """The first transient member, else the first that is known, at any depth."""
    failure = classify_exception(ExceptionGroup("x", members))
    assert (failure and failure.category) is category


def test_a_decode_error_is_the_providers_only_when_a_client_met_it() -> None:
    """The task's own json.loads of what the model wrote says nothing about the provider."""
    own = raised(lambda: json.loads("{"))
    assert isinstance(own, json.JSONDecodeError)
    assert classify_exception(own) is None
    failure = classify_exception(raised(httpx.Response(200, text="{cut").json))
    assert failure is not None
    assert failure.category is C.MALFORMED_RESPONSE


class Hostile(Exception):
    """Raises at whatever it is asked for."""

    def __getattribute__(self, name: str) -> Any:
        if name in {"response", "status_code", "status", "code", "body", "headers", "details", "message", "reason"}:
            raise RuntimeError("no")
        return super().__getattribute__(name)

    def __str__(self) -> str:
        raise RuntimeError("no")


def test_hostile_exceptions_are_unknown_and_break_nothing() -> None:
    """Raising properties, rings of causes, chains without end, attributes of every wrong type."""
    assert classify_exception(Hostile()) is None
    ring, other = ValueError("a"), ValueError("b")
    ring.__cause__, other.__cause__ = other, ring
    assert classify_exception(ring) is None
    chain: BaseException = TimeoutError()
    for _ in range(5_000):
        outer = ValueError("x")
        outer.__cause__ = chain
        chain = outer
    assert classify_exception(chain) is None
    for value in (None, True, -1, 10**400, "429", b"x", [], {}, object(), [None], {"error": [1]}, float("nan")):
        wrong: dict[str, Any] = dict.fromkeys(
            ("response", "status_code", "status", "code", "body", "headers", "details"), value
        )
        assert classify_exception(sdk("somebody.Error", **wrong)) is None


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.binary(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "type", "code", "message", "details", "choices", "content", "output", "object"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(st.integers(min_value=-1, max_value=1_000), st.dictionaries(st.text(max_size=20), st.text(max_size=20)), junk)
def test_no_answer_breaks_the_classifier(status: int, headers: dict[str, str], body: Any) -> None:
    """Any status, headers and body give a verdict; outside 2xx always a failure, with a cause of one line."""
    failure = classify_response(Response(status=status, headers=headers, body=body))
    assert failure is not None or 200 <= status < 300
    if failure is not None:
        assert "\n" not in failure.cause
        assert len(failure.cause) < 400
    error = sdk("openai.APIStatusError", status_code=status, body=body, headers=headers, code=body, response=body)
    assert classify_exception(error) is not None


def test_huge_bodies_cost_nothing_much() -> None:
    """Only a bounded part of a body is looked at."""
    body: Any
    deep: Any = {}
    for _ in range(100_000):
        deep = {"error": deep}
    for body in (
        "x" * 20_000_000,
        "[" * 200_000,
        deep,
        {"error": [{}] * 100_000},
        {"error": {"message": "request " * 10**6}},
    ):
        failure = classify_response(answer(429, body))
        assert failure is not None
        assert failure.category is C.RATE_LIMITED
    while deep:  # taken apart from outside: the interpreter's own recursion would not survive it
        deep = deep["error"]


def leaks(failure: Failure | None) -> list[str]:
    assert failure is not None
    shown = f"{failure.cause} {failure.request_id} {errors.call_failed(failure, 1)} {errors.call_failed(failure, 1)!r}"
    return [secret for secret in (CANARY_PROMPT, CANARY_KEY, "Canary", "canary") if secret in shown]


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("secret", [CANARY_PROMPT, CANARY_KEY, "canary_key", "CanaryKey", "canary_billing"])
def test_no_prompt_and_no_key_reaches_the_cause(status: int, secret: str) -> None:
    """Wherever the provider, or an exception, echoes it: message, type, code, param, header, class attribute."""
    body = {
        "error": dict.fromkeys(("message", "type", "code", "param", "status", "reason"), secret),
        "type": secret,
    }
    response = answer(status, body, x_request_id=f"{secret} {secret}", www_authenticate=secret)
    assert leaks(classify_response(response)) == []
    assert leaks(classify_response(answer(503, f"<html>{secret}"))) == []
    assert leaks(classify_exception(ProviderRefused(response))) == []
    error = sdk("openai.APIStatusError", message=secret, status_code=status, code=secret, type=secret, body=body)
    assert leaks(classify_exception(error)) == []
    wrapper = RuntimeError(secret)
    wrapper.__cause__ = error
    assert leaks(classify_exception(wrapper)) == []
    assert leaks(classify_exception(TypeError(secret))) == []
    assert leaks(classify_exception(httpx.LocalProtocolError(f"Illegal header value {secret}", request=URL))) == []
