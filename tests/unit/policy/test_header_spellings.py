"""Headers in every spelling: repeated, the IETF's, rate-limit in two words, resets of all kinds, units in the name."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest

from ratelimit_worker.calls import Category, Response, Snapshot
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.headers import lower_case, retry_after_s, snapshots

NOW_S = 1_792_567_670.0  # 2026-10-21 07:27:50 UTC


def reset_s(headers: dict[str, str], body: Any = None) -> float | None:
    """The wait that a 429 with these headers names."""
    return retry_after_s(headers, body, now_s=NOW_S, refused=True)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        # Azure: no limit beside it
        ({"x-rate-limit-reset-tokens": "55"}, 55.0),
        ({"x-ratelimit-reset-tokens": "55"}, 55.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "55"}, 55.0),
        ({"x-rate-limit-reset-requests": "3", "x-rate-limit-reset-tokens": "55"}, 55.0),
        # What is left is not what was refused
        ({"x-ratelimit-remaining-tokens": "900", "x-ratelimit-reset-tokens": "55"}, None),
        (
            {"x-ratelimit-remaining-tokens": "900", "x-ratelimit-reset-tokens": "55"}
            | {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "2"},
            2.0,
        ),
        # The IETF's, of all drafts
        ({"ratelimit-reset": "45"}, 45.0),
        ({"ratelimit-limit": "10", "ratelimit-remaining": "0", "ratelimit-reset": "45"}, 45.0),
        ({"ratelimit": '"api";r=0;t=45'}, 45.0),
        ({"ratelimit": '"api";r=3;t=45'}, None),
        ({"ratelimit": '"burst";r=0;t=2, "daily";r=0;t=3600', "ratelimit-policy": '"burst";q=10;w=60'}, 3_600.0),
        ({"ratelimit": "limit=10, remaining=0, reset=7"}, 7.0),
        # OpenRouter, and whoever else sends the instant: milliseconds, seconds, a date
        ({"x-ratelimit-limit": "50", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{NOW_S + 90:.0f}000"}, 90.0),
        ({"x-ratelimit-reset": f"{NOW_S + 90:.0f}"}, 90.0),
        ({"x-ratelimit-reset": f"{NOW_S + 90:.0f}.5"}, 90.5),
        ({"x-ratelimit-reset-requests": "2026-10-21T07:28:20Z"}, 30.0),
        ({"x-ratelimit-reset-requests": "Wed, 21 Oct 2026 07:28:20 GMT"}, 30.0),
        (
            {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
            | {"x-ratelimit-reset-requests": "2026-10-21T07:28:20Z"},
            30.0,
        ),
        (
            {"anthropic-ratelimit-requests-limit": "60", "anthropic-ratelimit-requests-remaining": "0"}
            | {"anthropic-ratelimit-requests-reset": "2026-10-21T07:28:20Z"},
            None,
        ),
        # An instant that has just passed is now, not a delay of 57 years
        ({"x-ratelimit-reset": f"{NOW_S - 3:.0f}"}, 0.0),
        # A bucket that tells all is paced: full is later than needed
        (
            {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "0"}
            | {"x-ratelimit-reset-requests": "60s"},
            None,
        ),
        # A day's budget is used up
        (
            {"x-ratelimit-limit-requests-day": "1000", "x-ratelimit-remaining-requests-day": "0"}
            | {"x-ratelimit-reset-requests-day": "3600"},
            3_600.0,
        ),
        # Retry-After comes first
        ({"x-ratelimit-reset": "45", "retry-after": "2"}, 2.0),
        ({"x-retry-after": "4"}, 4.0),
    ],
)
def test_a_429_without_retry_after_waits_for_the_reset(headers: dict[str, str], wait_s: float | None) -> None:
    """Of the budgets in which nothing is left, the longest; another answer's reset is no wait."""
    assert reset_s(headers) == (wait_s and pytest.approx(wait_s))
    if "retry-after" not in headers and "x-retry-after" not in headers:
        assert retry_after_s(headers, None, now_s=NOW_S) is None


def test_the_reset_may_stand_in_the_body() -> None:
    """OpenRouter repeats its headers there, for whoever's client loses them."""
    inner = {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": f"{NOW_S + 600:.0f}000"}
    body = {
        "error": {"code": 429, "message": "Rate limit exceeded: free-models-per-day", "metadata": {"headers": inner}}
    }
    failure = classify_response(Response(status=429, headers={}, body=body), now_s=NOW_S)
    assert failure is not None
    assert (failure.category, failure.retry_after_s) == (Category.QUOTA_EXHAUSTED, pytest.approx(600.0))


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("4, 4", 4.0),
        ("2, 9", 9.0),
        ("soon, 9", 9.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT, Wed, 21 Oct 2026 07:28:20 GMT", 30.0),
        ("5, Wed, 21 Oct 2026 07:28:00 GMT", 10.0),
    ],
)
def test_a_header_that_is_there_twice_is_the_longest_wait(text: str, delay_s: float) -> None:
    """A proxy adds its own to the provider's; clients join them by a comma, or give both."""
    assert retry_after_s({"retry-after": text}, now_s=NOW_S) == delay_s
    pairs = [("Retry-After", part) for part in ("2", "9")]
    assert lower_case(pairs) == {"retry-after": "2, 9"}


def per(window_s: float, limit: float, remaining: float, reset_s: float | None = None) -> Snapshot:
    return Snapshot(limit=limit, window_s=window_s, remaining=remaining, reset_s=reset_s)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param(
            {"x-ratelimit-limit-requests": "100, 60", "x-ratelimit-remaining-requests": "7, 50"},
            {"requests": per(60, 60, 7)},
            id="repeated: the strictest of each",
        ),
        pytest.param(
            {"x-rate-limit-limit-tokens": "100", "x-rate-limit-remaining-tokens": "9"},
            {"tokens": per(60, 100, 9)},
            id="rate-limit in two words",
        ),
        pytest.param(
            {"ratelimit-policy": '"default";q=100;w=60', "ratelimit": '"default";r=50;t=30'},
            {"requests": per(60, 100, 50, 30)},
            id="ietf",
        ),
        pytest.param(
            {
                "ratelimit-policy": '"burst";q=10;w=1, "minute";q=120;w=60, "daily";q=5000;w=86400',
                "ratelimit": '"burst";r=9;t=1, "minute";r=80;t=12, "daily";r=10;t=9000',
            },
            {"requests": per(60, 120, 80, 12)},
            id="ietf: the lowest rate; a day's is a quota",
        ),
        pytest.param(
            {"ratelimit-policy": '"t";q=9000;w=60;qu="tokens"', "ratelimit": '"t";r=50;t=30'},
            {"tokens": per(60, 9_000, 50, 30)},
            id="ietf: tokens by their unit",
        ),
        pytest.param(
            {"ratelimit-policy": '"p";q=9000;w=60;qu="content-bytes"', "ratelimit": '"p";r=50;t=30'},
            {},
            id="ietf: bytes are no dimension of ours",
        ),
        pytest.param(
            {"ratelimit": "limit=100, remaining=50, reset=30", "ratelimit-policy": "100;w=60"},
            {"requests": per(60, 100, 50, 30)},
            id="ietf, an older draft",
        ),
        pytest.param(
            {"ratelimit-limit": "10, 10;w=1, 600;w=60", "ratelimit-remaining": "9", "ratelimit-reset": "1"},
            {"requests": per(1, 10, 9, 1)},
            id="ietf, the first drafts",
        ),
        pytest.param(
            {"ratelimit-limit": "100", "ratelimit-policy": "100;w=60", "ratelimit-remaining": "9"},
            {"requests": per(60, 100, 9)},
            id="ietf, the window in the policy",
        ),
        pytest.param(
            {"ratelimit-limit": "100", "ratelimit-remaining": "9", "ratelimit-reset": "20"},
            {},
            id="of what and in which time, nobody has said",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests-per-second": "5", "x-ratelimit-remaining-requests-per-second": "4"},
            {"requests": per(1, 5, 4)},
            id="a second's",
        ),
        pytest.param(
            {"x-ratelimit-limit-rpm": "60", "x-ratelimit-remaining-rpm": "9"}
            | {"x-ratelimit-limit-tpd": "6000", "x-ratelimit-remaining-tpd": "9"},
            {"requests": per(60, 60, 9)},
            id="rpm and tpd: a day's is a quota",
        ),
        pytest.param(
            {"x-ratelimit-limit-requests-1m": "60", "x-ratelimit-remaining-requests-1m": "9"}
            | {"x-ratelimit-limit-requests-1h": "1200", "x-ratelimit-remaining-requests-1h": "100"},
            {"requests": per(3_600, 1_200, 100)},
            id="1m and 1h: the lower rate",
        ),
        pytest.param({"ratelimit": '"a;r=3', "ratelimit-policy": ";;;="}, {}, id="garbage"),
    ],
)
def test_snapshots_in_other_spellings(headers: dict[str, str], expected: dict[str, Snapshot]) -> None:
    """Units are told apart by name, by window, and by the policy's parameters."""
    assert snapshots(headers, now_s=NOW_S) == expected


def test_an_epoch_without_any_clock_is_unknown() -> None:
    """Against the answer's `Date` it is read; with neither clock it is no delay of 57 years."""
    headers = {"x-ratelimit-reset": f"{NOW_S + 90:.0f}"}
    assert retry_after_s(headers, now_s=None, refused=True) is None
    assert retry_after_s({**headers, "date": formatdate(NOW_S, usegmt=True)}, now_s=None, refused=True) == 90.0
