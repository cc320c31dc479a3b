"""A used-up quota, a rate and a wrong key in each provider's own words, as users have reported them.

Every row is one answer: provider, status, body (text or JSON), the category, and the wait in seconds that it names.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Response
from ratelimit_worker.policy.classification import classify_exception, classify_response

C = Category

XAI = (
    "Your team 1234 has either used all available credits or reached its monthly spending limit. To continue making "
    "API requests, please purchase more credits or raise your spending limit."
)
SUSPENDED = (
    "Account some-team is suspended, possibly due to reaching the monthly spending limit or failure to pay past "
    "invoices. Please go to https://fireworks.ai/account/billing for more information."
)
GEMINI = "You exceeded your current quota, please check your plan and billing details."


def gemini(*quotas: tuple[str, str], delay: str | None = None, message: str = GEMINI) -> dict[str, Any]:
    """Google's error, with the quotas that were hit."""
    violations = [{"quotaMetric": "x/requests", "quotaId": name, "quotaValue": value} for name, value in quotas]
    details: list[Any] = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": violations}]
    details += [] if delay is None else [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}]
    return {"error": {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": details}}


PER_DAY = gemini(("GenerateRequestsPerDayPerProjectPerModel-FreeTier", "50"), delay="30s")
PER_MINUTE = gemini(("GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "15"), delay="26s")
NEVER = gemini(
    message=f"{GEMINI}\n* Quota exceeded for metric: generativelanguage.googleapis.com/generate_content_free_tier_"
    "requests, limit: 0, model: gemini-3-pro\nPlease retry in 10.673410956s."
)


def litellm(inner: Any, name: str = "VertexAIException", kind: str = "RateLimitError") -> dict[str, Any]:
    """What LiteLLM's proxy makes of an error behind it."""
    text = inner if isinstance(inner, str) else json.dumps(inner, indent=2)
    message = (
        f"litellm.{kind}: litellm.{kind}: {name} - {text}. Received Model Group=m\nAvailable Model Group Fallbacks=None"
    )
    return {"error": {"message": message, "type": None, "param": None, "code": "429"}}


ROWS: list[tuple[str, int, Any, Category, float | None]] = [
    # The message stands in `error`, beside a code that is a sentence, too.
    ("xai", 429, {"code": "Some resource has been exhausted", "error": XAI}, C.QUOTA_EXHAUSTED, None),
    ("xai", 403, {"code": "The caller does not have permission", "error": XAI}, C.QUOTA_EXHAUSTED, None),
    (
        "xai",
        403,
        {"code": "x", "error": "You have run out of credits or need a Grok subscription."},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "xai",
        403,
        {"code": "x", "error": "Your newly created team doesn't have any credits or licenses yet."},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    ("xai", 429, {"code": "x", "error": "Too many requests for team 1. Please try again later."}, C.RATE_LIMITED, None),
    (
        "xai",
        400,
        {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***34."},
        C.AUTH,
        None,
    ),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Model not found"}, C.INVALID_REQUEST, None),
    # Azure's API Management: status and message in the body, durations as .NET writes them.
    (
        "apim",
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 05:23:11."},
        C.QUOTA_EXHAUSTED,
        19_391.0,
    ),
    (
        "apim",
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 22.14:18:12."},
        C.QUOTA_EXHAUSTED,
        86_400.0,
    ),
    (
        "apim",
        429,
        {"statusCode": 429, "message": "Rate limit is exceeded. Try again in 52 seconds."},
        C.RATE_LIMITED,
        52.0,
    ),
    (
        "apim",
        403,
        {"statusCode": 403, "message": "Token quota is exceeded. Try again in 3 days."},
        C.QUOTA_EXHAUSTED,
        86_400.0,
    ),
    (
        "azure",
        429,
        {"error": {"code": "429", "message": "Rate limit is exceeded. Try again in 9 seconds."}},
        C.RATE_LIMITED,
        9.0,
    ),
    ("azure", 401, {"statusCode": 401, "message": "Access denied due to invalid subscription key."}, C.AUTH, None),
    # Cohere: only a message.
    (
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 10 API calls / minute."},
        C.RATE_LIMITED,
        None,
    ),
    (
        "cohere",
        429,
        {"message": "You are using a Trial key, which is limited to 1000 API calls / month."},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    ("cohere", 429, {"message": "trial key is limited to 0 API calls / minute"}, C.QUOTA_EXHAUSTED, None),
    ("cohere", 401, {"message": "invalid api token"}, C.AUTH, None),
    ("cohere", 402, {"message": "Please add or update your payment method."}, C.QUOTA_EXHAUSTED, None),
    # Fireworks: a 412, and what a gateway makes of it.
    (
        "fireworks",
        412,
        {"error": {"message": SUSPENDED, "code": "PRECONDITION_FAILED", "type": "error"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "fireworks by a gateway",
        412,
        {
            "error": {
                "message": f"Image provider error: {json.dumps({'error': {'message': SUSPENDED}})}",
                "code": "UNKNOWN",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "fireworks",
        412,
        {"error": {"message": "Model is not deployed", "code": "PRECONDITION_FAILED"}},
        C.INVALID_REQUEST,
        None,
    ),
    ("fireworks", 429, {"error": "rate limit exceeded, please try again later"}, C.RATE_LIMITED, None),
    # Gemini, and the same through LiteLLM's proxy: as JSON in a message, as Python prints bytes, and in `detail`.
    ("gemini", 429, PER_DAY, C.QUOTA_EXHAUSTED, 30.0),
    ("gemini", 429, PER_MINUTE, C.RATE_LIMITED, 26.0),
    ("gemini", 429, [PER_DAY], C.QUOTA_EXHAUSTED, 30.0),
    ("gemini", 429, NEVER, C.QUOTA_EXHAUSTED, 10.673410956),
    ("gemini by litellm", 429, litellm(PER_DAY), C.QUOTA_EXHAUSTED, 30.0),
    (
        "litellm without a database, of a key that it does not know",
        400,
        {"error": {"message": "No connected db.", "type": "no_db_connection", "param": None, "code": "400"}},
        C.AUTH,
        None,
    ),
    ("gemini by litellm", 429, litellm(PER_MINUTE), C.RATE_LIMITED, 26.0),
    ("gemini by litellm", 429, litellm(str(json.dumps(PER_DAY, indent=2).encode())), C.QUOTA_EXHAUSTED, 30.0),
    ("gemini by litellm", 429, litellm(str(PER_DAY)), C.QUOTA_EXHAUSTED, 30.0),
    ("gemini by litellm", 429, litellm(NEVER), C.QUOTA_EXHAUSTED, 10.673410956),
    (
        "gemini by a proxy",
        429,
        {"detail": f"Internal Server Error: litellm.RateLimitError: VertexAIException - {json.dumps(PER_MINUTE)}"},
        C.RATE_LIMITED,
        26.0,
    ),
    ("gemini in openai's form", 429, {"error": {"message": json.dumps(PER_DAY), "code": 429}}, C.QUOTA_EXHAUSTED, 30.0),
    # Vertex: a minute's quota, by its name.
    (
        "vertex",
        429,
        {
            "error": {
                "code": 429,
                "message": "Quota exceeded for aiplatform.googleapis.com/online_prediction_requests_per_base_model "
                "with base model: anthropic-claude-3-5-sonnet. Please submit a quota increase request.",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        C.RATE_LIMITED,
        None,
    ),
    (
        "vertex",
        429,
        {
            "error": {
                "code": 429,
                "message": "Resource exhausted. Please try again later.",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        C.RATE_LIMITED,
        None,
    ),
    (
        "vertex",
        429,
        {
            "error": {
                "code": 429,
                "message": "Quota exceeded for metric x/generate_requests_per_model_per_day",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "vertex",
        403,
        {
            "error": {
                "code": 403,
                "message": "This API method requires billing to be enabled.",
                "status": "PERMISSION_DENIED",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "vertex",
        403,
        {"error": {"code": 403, "message": "Permission 'x.predict' denied", "status": "PERMISSION_DENIED"}},
        C.AUTH,
        None,
    ),
    # DeepSeek
    (
        "deepseek",
        402,
        {"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "invalid_request_error"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "deepseek by litellm",
        400,
        litellm(
            {"error": {"message": "Insufficient Balance", "type": "unknown_error", "code": "invalid_request_error"}},
            "DeepseekException",
            "BadRequestError",
        ),
        C.QUOTA_EXHAUSTED,
        None,
    ),
    ("deepseek", 401, {"error": {"message": "Authentication Fails", "type": "authentication_error"}}, C.AUTH, None),
    # Moonshot: three 429s.
    (
        "moonshot",
        429,
        {
            "error": {
                "message": "Your account org-1 request reached organization max RPM: 3, please try again "
                "after 1 seconds",
                "type": "rate_limit_reached_error",
            }
        },
        C.RATE_LIMITED,
        1.0,
    ),
    (
        "moonshot",
        429,
        {
            "error": {
                "message": "Your account org-1 reached max TPD rate limit: 1500000",
                "type": "rate_limit_reached_error",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "moonshot",
        429,
        {
            "error": {
                "message": "Your account is suspended, please check your plan",
                "type": "exceeded_current_quota_error",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "moonshot",
        429,
        {
            "error": {
                "message": "The engine is currently overloaded, please try again later",
                "type": "engine_overloaded_error",
            }
        },
        C.OVERLOADED,
        None,
    ),
    # MiniMax: numbers in a 200, and the OpenAI form.
    ("minimax", 200, {"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, C.RATE_LIMITED, None),
    (
        "minimax",
        200,
        {"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    ("minimax", 200, {"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, C.AUTH, None),
    ("minimax", 200, {"base_resp": {"status_code": "2049", "status_msg": "invalid api key"}}, C.AUTH, None),
    ("minimax", 200, {"base_resp": {"status_code": 2013, "status_msg": "invalid params"}}, C.INVALID_REQUEST, None),
    ("minimax", 200, {"base_resp": {"status_code": 1026, "status_msg": "sensitive"}}, C.CONTENT_FILTERED, None),
    ("minimax", 200, {"base_resp": {"status_code": 1013, "status_msg": "unknown"}}, C.SERVER_ERROR, None),
    (
        "minimax",
        429,
        {"error": {"http_code": "429", "message": "insufficient balance (1008)", "type": "insufficient_balance_error"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "minimax",
        500,
        {"type": "error", "error": {"type": "api_error", "message": "insufficient balance (1008)"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    # OpenRouter
    (
        "openrouter",
        429,
        {
            "error": {
                "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free "
                "model requests per day",
                "code": 429,
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "openrouter",
        429,
        {
            "error": {
                "message": "Rate limit exceeded: free-models-per-min. Add 10 credits to unlock 1000 free "
                "model requests per day",
                "code": 429,
            }
        },
        C.RATE_LIMITED,
        None,
    ),
    (
        "openrouter",
        429,
        {"error": {"message": "x", "code": 429, "metadata": {"limit_source": "openrouter_free_tier_daily"}}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "openrouter",
        429,
        {
            "error": {
                "message": "Provider returned error",
                "code": 429,
                "metadata": {"raw": "m is temporarily rate-limited upstream. Please retry shortly"},
            }
        },
        C.RATE_LIMITED,
        None,
    ),
    (
        "openrouter",
        429,
        {"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": json.dumps(PER_DAY)}}},
        C.QUOTA_EXHAUSTED,
        30.0,
    ),
    (
        "openrouter",
        402,
        {"error": {"message": "This request requires more credits, or fewer max_tokens.", "code": 402}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "openrouter",
        403,
        {
            "error": {
                "message": "Key limit exceeded (total limit). Manage it using https://openrouter.ai/settings/keys",
                "code": 403,
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    ("openrouter", 401, {"error": {"message": "User not found.", "code": 401}}, C.AUTH, None),
    # Together: one word for a rate and for an empty purse; the status tells them apart.
    (
        "together",
        429,
        {
            "error": {
                "message": "You have been rate limited. Your rate limit is 60 queries per minute. Please "
                "upgrade to a paid plan.",
                "type": "credit_limit",
            }
        },
        C.RATE_LIMITED,
        None,
    ),
    (
        "together",
        402,
        {
            "error": {
                "message": "Credit limit exceeded. Please add credit or upgrade your plan.",
                "type": "credit_limit",
            }
        },
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "together",
        429,
        {"error": {"message": "Credit limit exceeded. Please add credit.", "type": "credit_limit"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    # Bedrock
    ("bedrock", 429, {"message": "Too many tokens per day, please wait before trying again."}, C.QUOTA_EXHAUSTED, None),
    ("bedrock", 429, {"message": "Too many tokens, please wait before trying again."}, C.RATE_LIMITED, None),
    # Groq
    (
        "groq",
        429,
        {
            "error": {
                "message": "Rate limit reached for model `m` on tokens per day (TPD): Limit 100000, Used "
                "99000, Requested 2000. Please try again in 14m24s.",
                "type": "tokens",
                "code": "rate_limit_exceeded",
            }
        },
        C.QUOTA_EXHAUSTED,
        864.0,
    ),
    (
        "groq",
        429,
        {
            "error": {
                "message": "Rate limit reached on tokens per minute (TPM): Limit 6000. Please try again in 7.66s.",
                "type": "tokens",
            }
        },
        C.RATE_LIMITED,
        7.66,
    ),
    # Mistral
    (
        "mistral",
        429,
        {"object": "error", "message": "Requests rate limit exceeded", "type": "rate_limited", "code": "1300"},
        C.RATE_LIMITED,
        None,
    ),
    ("mistral", 429, {"detail": "Monthly usage limit reached"}, C.QUOTA_EXHAUSTED, None),
    ("mistral", 401, {"detail": "Unauthorized"}, C.AUTH, None),
    # Anthropic
    (
        "anthropic",
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "This organization has been disabled."},
        },
        C.AUTH,
        None,
    ),
    (
        "anthropic",
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "You have reached your specified API usage limits. You will regain access on "
                "2026-11-01 at 00:00 UTC.",
            },
        },
        C.QUOTA_EXHAUSTED,
        3_600.0,
    ),
    # OpenAI, and its sentence where a proxy has lost the code
    (
        "openai",
        429,
        {"error": {"message": GEMINI, "type": "insufficient_quota", "code": "insufficient_quota"}},
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "openai by litellm",
        429,
        litellm(f"{GEMINI} For more information, read the docs", "OpenAIException"),
        C.QUOTA_EXHAUSTED,
        None,
    ),
    (
        "github",
        429,
        {
            "error": {
                "code": "RateLimitReached",
                "message": "Rate limit of 150 per 86400s exceeded for UserByDay. Please wait 1000 seconds "
                "before retrying.",
            }
        },
        C.QUOTA_EXHAUSTED,
        1_000.0,
    ),
    # The wait in words, wherever it stands
    ("anyone", 429, {"error": "Rate limit reached. Please try again in 12s."}, C.RATE_LIMITED, 12.0),
    ("anyone", 429, {"detail": "Too many requests. Try again in 1 hour and 3 minutes"}, C.RATE_LIMITED, 3_780.0),
    ("anyone", 429, {"msg": "slow down, retry after 250 ms"}, C.RATE_LIMITED, 0.25),
    ("anyone", 429, "Too many requests, please try again in 45 seconds.", C.RATE_LIMITED, 45.0),
    ("anyone", 503, {"error": {"message": "busy: try again at 2026-10-31T23:30:00Z"}}, C.OVERLOADED, 1_800.0),
]
NOW_S = 1_793_487_600.0  # 2026-10-31 23:00:00 UTC


@pytest.mark.parametrize(("who", "status", "body", "category", "wait_s"), ROWS)
def test_each_provider_says_it_in_its_own_words(
    who: str, status: int, body: Any, category: Category, wait_s: float | None
) -> None:
    """By whatever member the words stand in, also where a gateway has packed them up; the wait comes along."""
    failure = classify_response(Response(status=status, headers={}, body=body), now_s=NOW_S)
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (category, wait_s and pytest.approx(wait_s)), who


@pytest.mark.parametrize(("who", "status", "body", "category", "wait_s"), [row for row in ROWS if row[1] != 200])
def test_text_that_is_json_is_read_as_json(
    who: str, status: int, body: Any, category: Category, wait_s: float | None
) -> None:
    """A client may hand on the text alone."""
    text = body if isinstance(body, str) else json.dumps(body)
    failure = classify_response(Response(status=status, headers={}, body=text), now_s=NOW_S)
    assert failure is not None
    assert failure.category is category, who


@pytest.mark.parametrize("inner", [PER_DAY, PER_MINUTE])
def test_litellms_exceptions_keep_the_providers_error_in_their_message(inner: dict[str, Any]) -> None:
    """As a message alone, without a response: as JSON, and as Python prints bytes."""
    expected = (C.QUOTA_EXHAUSTED, 30.0) if inner is PER_DAY else (C.RATE_LIMITED, 26.0)
    kind = type("RateLimitError", (Exception,), {"__module__": "litellm.exceptions", "status_code": 429})
    for text in (json.dumps(inner, indent=2), str(json.dumps(inner, indent=2).encode())):
        failure = classify_exception(
            kind(f"litellm.RateLimitError: litellm.RateLimitError: VertexAIException - {text}")
        )
        assert failure is not None
        assert (failure.category, failure.retry_after_s) == expected


@pytest.mark.parametrize("status", [400, 404, 422])
@pytest.mark.parametrize(
    "quoted",
    [
        '{"error": {"code": "insufficient_quota", "message": "insufficient balance"}}',
        "{'error': {'type': 'insufficient_quota'}}",
        "You have run out of credits",
    ],
)
def test_a_prompt_that_quotes_an_error_halts_nothing(status: int, quoted: str) -> None:
    """A bad request quotes its input: JSON within a message counts only behind the names of errors."""
    for body in (
        {"error": {"message": f"Invalid 'messages[0]': {quoted}"}},
        {"detail": f"cannot parse the message {quoted}"},
        {"error": f"unexpected value: {quoted}"},
    ):
        failure = classify_response(Response(status=status, headers={}, body=body))
        assert failure is not None
        assert failure.category is C.INVALID_REQUEST
