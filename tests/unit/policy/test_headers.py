"""What answers say about the budget, in every spelling that we know and in none that we don't."""

from __future__ import annotations

import math
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit_worker.calls import DIMENSIONS, Snapshot
from ratelimit_worker.policy.headers import (
    LEAST_RATE,
    MAX_DELAY_S,
    StatedLimit,
    refused_dimension,
    retry_after_s,
    snapshots,
    stated_limit,
)

NOW_S = 1_792_567_670.0  # 2026-10-21 07:27:50 UTC


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("2", 2.0),
        ("0", 0.0),
        ("2.5", 2.5),
        (" 7 ", 7.0),
        ("1h2m3.5s", 3_723.5),
        ("120ms", 0.12),
        ("6m0s", 360.0),
        ("1d", 86_400.0),
        ("500us", 0.0005),
        ("5 seconds", 5.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 10.0),
        ("2026-10-21T07:28:00Z", 10.0),
        ("2026-10-21T09:28:00+02:00", 10.0),
        ("2026-10-21T07:28:00.5Z", 10.5),
        (str(int(NOW_S) + 30), 30.0),
        (str(int(NOW_S + 30) * 1_000), 30.0),
        ("100000", MAX_DELAY_S),
        ("99999999999", MAX_DELAY_S),
        ("30d", MAX_DELAY_S),
        ("-1", None),
        ("-0.5", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("1_000", None),
        ("٣", None),
        ("", None),
        ("soon", None),
        ("1s and more", None),
        ("Wed, 21 Oct 2020 07:28:00 GMT", None),
        ("Wed, 99 Oct 2026 07:28:00 GMT", None),
        ("2026-13-45T00:00:00Z", None),
        ("9" * 10_000, None),
    ],
)
def test_retry_after_is_read_in_every_form_or_is_unknown(text: str, delay_s: float | None) -> None:
    """Seconds, durations, dates and epochs; negative, NaN and garbage are unknown; a day is the most."""
    assert retry_after_s({"retry-after": text}, now_s=NOW_S) == pytest.approx(delay_s)


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"x-ms-retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "nan", "retry-after": "9"}, 9.0),
        ({"Retry-After": "3"}, 3.0),
        ({"llm_provider-retry-after": "6"}, 6.0),
        ({"llm_provider-retry-after-ms": "6500", "llm_provider-retry-after": "7"}, 6.5),
        ({"llm_provider-retry-after": "6", "retry-after": "60"}, 60.0),
    ],
)
def test_milliseconds_come_before_seconds(headers: dict[str, str], delay_s: float) -> None:
    """The finer header wins; one that makes no sense is passed over; names are read in any case."""
    assert retry_after_s(headers, now_s=NOW_S) == delay_s


@pytest.mark.parametrize(
    ("body", "delay_s"),
    [
        ({"error": {"details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "12.5s"}]}}, 12.5),
        ([{"error": {"details": [{"retryDelay": "7s"}]}}], 7.0),
        ({"error": {"details": [{"retryDelay": {"seconds": "3", "nanos": 500_000_000}}]}}, 3.5),
        ({"error": {"retry_after": 4}}, 4.0),
        ({"retry_after_ms": 50}, 0.05),
        ({"error": {"retry_after": -4}}, None),
        ({"error": {"retry_after": True}}, None),
        ({"error": None}, None),
        ([None, [], "x"], None),
        ("retryDelay: 5s", None),
        ({"error": {"message": "Limit 600, Used 600, Requested 1. Please try again in 120ms. Visit x"}}, 0.12),
        ({"error": {"message": "Limit 10000, Used 8554, Requested 3082. Please try again in 9.816s."}}, 9.816),
        ({"error": {"message": "Requested 1. Please try again in 1m26.4s."}}, 86.4),
        ({"error": {"message": "pricing tier. Please retry after 45 seconds. Please go here"}}, 45.0),
        ({"error": {"message": "Please retry in 3.2s.", "details": [{"retryDelay": "4s"}]}}, 4.0),
        ({"error": {"message": "Please try again in a while, or later today"}}, None),
        ({"error": {"message": "the model is overloaded, please try again"}}, None),
        (None, None),
    ],
)
def test_the_body_says_when_to_come_back_where_the_headers_do_not(body: Any, delay_s: float | None) -> None:
    """Gemini's `retryDelay` and its like; a header comes first."""
    assert retry_after_s({}, body, now_s=NOW_S) == delay_s
    assert retry_after_s({"retry-after": "1"}, body, now_s=NOW_S) == 1.0


def test_a_date_is_read_against_the_providers_clock_when_ours_is_wrong() -> None:
    """With our clock an hour off, or none given, `Date` is the instant that Retry-After counts from."""
    headers = {"date": formatdate(NOW_S, usegmt=True), "retry-after": formatdate(NOW_S + 20, usegmt=True)}
    assert retry_after_s(headers, now_s=NOW_S + 3_600) == 20.0
    assert retry_after_s(headers, now_s=None) == 20.0
    assert retry_after_s({"retry-after": headers["retry-after"]}, now_s=None) is None


def test_our_clock_is_finer_than_a_date_that_agrees_with_it() -> None:
    """`Date` has whole seconds; a difference below two seconds is its rounding and the way here."""
    headers = {"date": formatdate(NOW_S, usegmt=True), "retry-after": formatdate(NOW_S + 20, usegmt=True)}
    assert retry_after_s(headers, now_s=NOW_S + 0.75) == pytest.approx(19.25)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "details", "retryDelay", "type", "message", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
header_names = st.sampled_from(
    [
        "retry-after",
        "retry-after-ms",
        "date",
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-remaining",
    ]
) | st.text(max_size=30)
header_values = st.text(max_size=40) | st.from_regex(r"-?[0-9.]{1,20}(ms|s|m|h)?", fullmatch=True)


@given(st.dictionaries(header_names, header_values), junk, st.floats(allow_nan=False, allow_infinity=False))
def test_no_header_and_no_body_breaks_the_reader(headers: dict[str, str], body: Any, now_s: float) -> None:
    """Whatever strangers send: a delay is None or within [0, 1 day], a snapshot has a positive limit and window."""
    delay_s = retry_after_s(headers, body, now_s=now_s)
    assert delay_s is None or 0.0 <= delay_s <= MAX_DELAY_S
    for dimension, seen in snapshots(headers, now_s=now_s).items():
        assert dimension in DIMENSIONS
        assert seen.limit < math.inf
        assert seen.window_s > 0
        assert seen.limit / seen.window_s >= LEAST_RATE
        assert seen.remaining >= 0
        assert seen.reset_s is None or 0 <= seen.reset_s <= MAX_DELAY_S
    assert refused_dimension(headers, body) in {None, *DIMENSIONS}


@given(st.floats(min_value=0, max_value=MAX_DELAY_S))
def test_seconds_and_milliseconds_mean_the_same(delay_s: float) -> None:
    """Every way to write a duration down is read back as that duration."""
    for headers in (
        {"retry-after": f"{delay_s:.6f}"},
        {"retry-after-ms": f"{delay_s * 1_000:.3f}"},
        {"retry-after": f"{delay_s:.6f}s"},
        {"retry-after": f"{int(delay_s // 3_600)}h{int(delay_s % 3_600 // 60)}m{delay_s % 60:.6f}s"},
    ):
        assert retry_after_s(headers, now_s=NOW_S) == pytest.approx(delay_s, abs=2e-5)


def per_minute(limit: float, remaining: float, reset_s: float | None = None) -> Snapshot:
    return Snapshot(limit=limit, window_s=60.0, remaining=remaining, reset_s=reset_s)


ANTHROPIC = {
    f"anthropic-ratelimit-{dimension}-{kind}": value
    for dimension, limit, left in (("requests", 50, 49), ("tokens", 500, 450), ("input-tokens", 400, 360))
    for kind, value in (("limit", str(limit)), ("remaining", str(left)), ("reset", "2026-10-21T07:28:00Z"))
}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            {
                "x-ratelimit-limit-requests": "5000",
                "x-ratelimit-remaining-requests": "4999",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-limit-tokens": "160000",
                "x-ratelimit-remaining-tokens": "159976",
                "x-ratelimit-reset-tokens": "6m0s",
            },
            {"requests": per_minute(5_000, 4_999, 0.012)},
            id="openai; a reset beyond 90 s is no minute's",
        ),
        pytest.param(
            ANTHROPIC,
            {
                "requests": per_minute(50, 49, 10.0),
                "tokens": per_minute(500, 450, 10.0),
                "input_tokens": per_minute(400, 360, 10.0),
            },
            id="anthropic",
        ),
        pytest.param(
            {
                **ANTHROPIC,
                "anthropic-ratelimit-output-tokens-limit": "100",
                "anthropic-ratelimit-output-tokens-remaining": "90",
            },
            {
                "requests": per_minute(50, 49, 10.0),
                "input_tokens": per_minute(400, 360, 10.0),
                "output_tokens": per_minute(100, 90),
            },
            id="anthropic; tokens are the sum of the others",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests": "250", "x-ratelimit-remaining-requests": "249"}
            | {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "-1"},
            {"requests": per_minute(250, 249)},
            id="azure; -1 is unknown",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "9"}
            | {"x-ratelimit-renewalperiod-requests": "10", "x-ratelimit-reset-requests": "1"},
            {"requests": Snapshot(limit=10, window_s=10.0, remaining=9, reset_s=1.0)},
            id="azure; the window is told",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "14400",
                "x-ratelimit-remaining-requests": "14370",
                "x-ratelimit-reset-requests": "2m59.56s",
                "x-ratelimit-limit-tokens": "18000",
                "x-ratelimit-remaining-tokens": "17997",
                "x-ratelimit-reset-tokens": "7.66s",
            },
            {"tokens": per_minute(18_000, 17_997, 7.66)},
            id="groq; requests are a day's",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-req-minute": "60",
                "x-ratelimit-remaining-req-minute": "59",
                "x-ratelimit-limit-tokens-minute": "500000",
                "x-ratelimit-remaining-tokens-minute": "499000",
                "x-ratelimit-limit-tokens-month": "1000000000",
                "x-ratelimit-remaining-tokens-month": "999999000",
                "x-ratelimit-tokens-query-cost": "1000",
            },
            {"requests": per_minute(60, 59), "tokens": per_minute(500_000, 499_000)},
            id="mistral",
        ),
        pytest.param(
            {"x-ratelimitbysize-limit-minute": "500000", "x-ratelimitbysize-remaining-minute": "499976"},
            {"tokens": per_minute(500_000, 499_976)},
            id="mistral's gateway",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests-day": "14400",
                "x-ratelimit-remaining-requests-day": "14000",
                "x-ratelimit-limit-tokens-minute": "60000",
                "x-ratelimit-remaining-tokens-minute": "59000",
                "x-ratelimit-reset-tokens-minute": "11.38",
            },
            {"tokens": per_minute(60_000, 59_000, 11.38)},
            id="cerebras; a day's budget is a quota",
        ),
        pytest.param(
            {"x-ratelimit-limit-second": "5", "x-ratelimit-remaining-second": "4"}
            | {"x-ratelimit-limit-minute": "60", "x-ratelimit-remaining-minute": "10"},
            {"requests": per_minute(60, 10)},
            id="kong; the lowest rate binds",
        ),
        pytest.param(
            {
                "x-ratelimit-api_key-limit-requests": "60",
                "x-ratelimit-api_key-remaining-requests": "50",
                "x-ratelimit-model_per_key-limit-tokens": "9000",
                "x-ratelimit-model_per_key-remaining-tokens": "8000",
                "llm_provider-x-ratelimit-limit-requests": "600",
                "llm_provider-x-ratelimit-remaining-requests": "3",
            },
            {"requests": per_minute(60, 50), "tokens": per_minute(9_000, 8_000)},
            id="litellm's proxy before a provider",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "5000",
                "x-ratelimit-limit-tokens": "160000",
                "x-ratelimit-limit-tokens_usage_based": "120000",
                "x-ratelimit-remaining-requests": "4999",
                "x-ratelimit-remaining-tokens": "159976",
                "x-ratelimit-remaining-tokens_usage_based": "119976",
                "x-ratelimit-reset-requests": "12ms",
                "x-ratelimit-reset-tokens": "8s",
                "x-ratelimit-reset-tokens_usage_based": "9ms",
            },
            {"requests": per_minute(5_000, 4_999, 0.012), "tokens": per_minute(160_000, 159_976, 8.0)},
            id="openai, all that it sends with an answer",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "10000",
                "x-ratelimit-remaining-requests": "9999",
                "x-ratelimit-limit-project-tokens": "30000",
                "x-ratelimit-remaining-project-tokens": "29000",
                "x-ratelimit-reset-project-tokens": "2s",
            },
            {"requests": per_minute(10_000, 9_999), "tokens": per_minute(30_000, 29_000, 2.0)},
            id="openai, a limit of the project",
        ),
        pytest.param(
            {
                "x-ratelimit-key": "gpt-4.1-mini",
                "x-ratelimit-limit-requests": "20000",
                "x-ratelimit-remaining-requests": "19999",
                "x-ratelimit-renewalperiod-requests": "60",
                "x-ratelimit-reset-requests": "3",
                "x-ratelimit-limit-tokens": "2000000",
                "x-ratelimit-remaining-tokens": "1999962",
                "x-ratelimit-renewalperiod-tokens": "60",
                "x-ratelimit-reset-tokens": "1",
                "x-ratelimit-abusepenalty-active": "False",
            },
            {"requests": per_minute(20_000, 19_999, 3.0), "tokens": per_minute(2_000_000, 1_999_962, 1.0)},
            id="azure and github models",
        ),
        pytest.param(
            {"x-ratelimit-remaining-requests": "79", "x-ratelimit-remaining-tokens": "61353"},
            {},
            id="azure, years ago: no limit is told",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-tokens-minute": "5000000",
                "x-ratelimit-remaining-tokens-minute": "4999911",
                "x-ratelimit-tokens-query-cost": "52",
                "x-ratelimit-limit-req-minute": "720",
                "x-ratelimit-remaining-req-minute": "717",
            },
            {"requests": per_minute(720, 717), "tokens": per_minute(5_000_000, 4_999_911)},
            id="mistral, today",
        ),
        pytest.param(
            {
                "ratelimitbysize-limit": "500000",
                "ratelimitbysize-remaining": "499983",
                "ratelimitbysize-reset": "12",
                "ratelimitbysize-query-cost": "17",
                "x-ratelimitbysize-limit-minute": "500000",
                "x-ratelimitbysize-remaining-minute": "499983",
                "x-ratelimitbysize-limit-month": "1000000000",
                "x-ratelimitbysize-remaining-month": "999000000",
            },
            {"tokens": per_minute(500_000, 499_983, 12.0)},
            id="mistral, with its gateway's own",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-requests": "6000",
                "x-ratelimit-remaining-requests": "5999",
                "x-ratelimit-limit-tokens-prompt": "60000",
                "x-ratelimit-remaining-tokens-prompt": "59988",
                "x-ratelimit-limit-tokens-generated": "6000",
                "x-ratelimit-remaining-tokens-generated": "5990",
                "x-ratelimit-over-limit": "no",
            },
            {
                "requests": per_minute(6_000, 5_999),
                "input_tokens": per_minute(60_000, 59_988),
                "output_tokens": per_minute(6_000, 5_990),
            },
            id="fireworks",
        ),
        pytest.param(
            {
                "x-ratelimit-model_per_team-limit-requests": "4",
                "x-ratelimit-model_per_team-remaining-requests": "2",
                "x-ratelimit-team_member-limit-tokens": "500",
                "x-ratelimit-team_member-remaining-tokens": "466",
                "x-ratelimit-end_user-limit-requests": "9",
                "x-ratelimit-end_user-remaining-requests": "8",
                "x-ratelimit-api_key-limit-max_parallel_requests": "3",
                "x-ratelimit-api_key-remaining-max_parallel_requests": "1",
            },
            {"requests": per_minute(4, 2), "tokens": per_minute(500, 466)},
            id="litellm's scopes; calls at once are no rate",
        ),
        pytest.param(
            {
                "anthropic-ratelimit-input-tokens-limit": "0",
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-10-21T07:28:00Z",
                "retry-after": "10",
            },
            {"requests": per_minute(50, 0, 10.0)},
            id="anthropic's 429; a limit of 0 says nothing",
        ),
        pytest.param(
            {
                "x-ratelimit-limit-images": "5",
                "x-ratelimit-remaining-images": "4",
                "anthropic-ratelimit-unified-5h": "1",
            },
            {},
            id="budgets of another kind",
        ),
        pytest.param({"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "0"}, {}, id="no limit"),
        pytest.param({"x-ratelimit-limit-requests": "many", "x-ratelimit-remaining-requests": "1"}, {}, id="garbage"),
        pytest.param({"x-ratelimit-limit-requests": "5"}, {}, id="half a snapshot"),
        pytest.param({}, {}, id="none"),
    ],
)
def test_snapshots_of_each_providers_headers(headers: dict[str, str], expected: dict[str, Snapshot]) -> None:
    """The spellings as the providers document them, and what is left out on purpose."""
    assert snapshots(headers, now_s=NOW_S) == expected


@pytest.mark.parametrize(
    ("headers", "body", "dimension"),
    [
        ({}, {"error": {"type": "tokens", "code": "rate_limit_exceeded", "message": "..."}}, "tokens"),
        ({}, {"error": {"type": "requests", "code": "rate_limit_exceeded"}}, "requests"),
        ({}, {"error": {"message": "Rate limit reached on tokens per min (TPM): Limit 30000, Used 29999"}}, "tokens"),
        ({}, {"error": {"message": "Rate limit reached on requests per min (RPM): Limit 3"}}, "requests"),
        ({}, {"error": {"message": "would exceed the rate limit of 40,000 input tokens per minute"}}, "input_tokens"),
        ({}, {"error": {"message": "would exceed the limit of 8,000 output tokens per minute"}}, "output_tokens"),
        (
            {},
            {"error": {"details": [{"violations": [{"quotaMetric": "x/generate_content_free_tier_requests"}]}]}},
            "requests",
        ),
        (
            {},
            {"error": {"details": [{"violations": [{"quotaId": "GenerateContentInputTokensPerMinute"}]}]}},
            "input_tokens",
        ),
        ({"rate_limit_type": "tokens"}, {"error": {"message": "slow down"}}, "tokens"),
        ({"x-ratelimit-limit-tokens": "10", "x-ratelimit-remaining-tokens": "0"}, None, "tokens"),
        (
            {"x-ratelimit-limit-tokens": "10", "x-ratelimit-remaining-tokens": "0"}
            | {"x-ratelimit-limit-requests": "10", "x-ratelimit-remaining-requests": "0"},
            None,
            None,
        ),
        ({}, {"error": {"message": "slow down"}}, None),
        ({}, None, None),
        ({}, ["x", None], None),
    ],
)
def test_a_429_names_the_dimension_that_refused(headers: dict[str, str], body: Any, dimension: str | None) -> None:
    """By the body's words, else by the one dimension in which nothing remains."""
    assert refused_dimension(headers, body) == dimension


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param(
            "Rate limit reached for gpt-4 on requests per min (RPM): Limit 600, Used 600, Requested "
            "1. Please try again in 120ms.",
            {"requests": StatedLimit(600, 60)},
            id="openai requests",
        ),
        pytest.param(
            "Rate limit reached for gpt-4 on tokens per min (TPM): Limit 10000, Used 8554, Requested "
            "3082. Please try again in 9.816s. Visit https://platform.openai.com/account/rate-limits to learn more.",
            {"tokens": StatedLimit(10_000, 60)},
            id="openai tokens",
        ),
        pytest.param(
            "Rate limit reached for gpt-4o on requests per day (RPD): Limit 1000, Used 1000, Requested 1. "
            "Please try again in 1m26.4s.",
            {"requests": StatedLimit(1_000, 86_400)},
            id="openai, a day",
        ),
        pytest.param(
            "Request too large for gpt-4o on tokens per min (TPM): Limit 30,000, Requested 30601.",
            {"tokens": StatedLimit(30_000, 60)},
            id="openai, larger than the limit",
        ),
        pytest.param(
            "Rate limit reached for default-gpt on requests per min. Limit: 3 / min. Please try again in 20s.",
            {"requests": StatedLimit(3, 60)},
            id="openai, years ago",
        ),
        pytest.param(
            "Rate limit reached for model `llama3-70b-8192` on tokens per day (TPD): Limit 100000, "
            "Used 99000, Requested 2000. Please try again in 14m24s.",
            {"tokens": StatedLimit(100_000, 86_400)},
            id="groq, a day",
        ),
        pytest.param(
            "This request would exceed your organization's rate limit of 40,000 input tokens per minute. For details",
            {"input_tokens": StatedLimit(40_000, 60)},
            id="anthropic input",
        ),
        pytest.param(
            "This request would exceed the rate limit for your organization (1b-2c) of 8,000 output tokens per minute.",
            {"output_tokens": StatedLimit(8_000, 60)},
            id="anthropic output",
        ),
        pytest.param(
            "This request would exceed your organization's rate limit of 50 requests per minute.",
            {"requests": StatedLimit(50, 60)},
            id="anthropic requests",
        ),
        pytest.param(
            "Rate limit of 150 per 86400s exceeded for UserByDay. Please wait 1000 seconds before retrying.",
            {"requests": StatedLimit(150, 86_400)},
            id="github models, a day",
        ),
        pytest.param("Rate limit of 5 per 0s exceeded for UserConcurrentRequests.", {}, id="github models, at once"),
        pytest.param(
            "You are using a Trial key, which is limited to 10 API calls / minute.",
            {"requests": StatedLimit(10, 60)},
            id="cohere",
        ),
        pytest.param("on tokens per min (TPM): Limit 0, Used 0, Requested 5.", {}, id="a limit of 0 is none"),
        pytest.param("Rate limit reached. Limit -1, Used 3.", {}, id="no dimension"),
        pytest.param("slow down", {}, id="nothing said"),
    ],
)
def test_the_limit_that_a_429_states_in_words(body: str, expected: dict[str, StatedLimit]) -> None:
    """A minute's and a day's are told apart by their window."""
    assert stated_limit({"error": {"message": body, "type": "x"}}) == expected


def test_the_limits_of_geminis_violations() -> None:
    """Each with its window; of several windows of one dimension the rate."""
    violations = [
        {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "250"},
        {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "15"},
        {"quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier", "quotaValue": "250000"},
        {"quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier"},
    ]
    body = [{"error": {"code": 429, "details": [{"@type": "x/google.rpc.QuotaFailure", "violations": violations}]}}]
    assert stated_limit(body) == {"requests": StatedLimit(15, 60), "input_tokens": StatedLimit(250_000, 60)}
    del violations[1:]
    assert stated_limit(body) == {"requests": StatedLimit(250, 86_400)}


@pytest.mark.parametrize("body", [None, "", b"x", [], {}, {"error": "x"}, {"message": 5}, {"error": {"quotaId": 3}}])
def test_a_429_without_a_hint_states_nothing(body: Any) -> None:
    """No limit, no dimension, no delay."""
    assert stated_limit(body) == {}
    assert refused_dimension({}, body) is None
    assert retry_after_s({}, body, now_s=NOW_S) is None


@given(junk)
def test_no_body_breaks_the_reader_of_limits(body: Any) -> None:
    """Whatever strangers send: limits are finite and above 0."""
    for dimension, stated in stated_limit(body).items():
        assert dimension in DIMENSIONS
        assert 0 < stated.limit < math.inf
        assert 0 < stated.window_s < math.inf
