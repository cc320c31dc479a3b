"""What does an answer say about the budget: when to come back, how much is left, which dimension refused?

Reads the headers and error bodies of OpenAI, Anthropic, Azure, Gemini, Groq, Mistral, Cerebras, Bedrock and the
LiteLLM proxy. A value that makes no sense counts as unknown (None); nothing here raises because of what was sent.
"""

from __future__ import annotations

import json
import math
import re
from ast import literal_eval
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import product
from typing import Any

from msgspec import Struct

from ratelimit_worker.calls import Snapshot
from ratelimit_worker.policy.pattern import lazy

#: Longest wait that is accepted from a provider, seconds: a day.
MAX_DELAY_S = 86_400.0

#: If our clock and the answer's `Date` (in whole seconds) differ by less than this, ours is used, seconds.
_CLOCK_SKEW_S = 2.0

#: A budget whose reset is further away than this has a longer window than a minute, seconds.
_MINUTE_RESET_S = 90.0

#: Budgets for longer than this are quotas and not rates, seconds: a lane paced at a day's limit / 86,400 would send far
#: less than it may.
_LONGEST_WINDOW_S = 3_600.0

#: Lowest rate that is accepted, units/s: one unit in the longest window. Less is not a limit, or the header means
#: something else; a lane paced by it would be closed for ever.
LEAST_RATE = 1 / _LONGEST_WINDOW_S

#: Numbers from here on are a time and not a delay: the year 2001, in seconds since the epoch.
_LEAST_EPOCH_S = 1e9

_LONGEST_LIST, _LIST_COMMA = 256, lazy(r",(?! ?[0-9]{1,2} [A-Z][a-z]{2} [0-9]{4})")
_MOST_HEADERS, _LONGEST_VALUE, _MOST_OBJECTS, _LONGEST_MESSAGE = 256, 1_024, 64, 2_000

_NUMBER = lazy(r"[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18}")
_SIGNED = lazy(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})")
_DURATION = lazy(
    rf"(?:(?:{_NUMBER.pattern})\s?(?:days?|d|hours?|hrs?|h|ms|minutes?|mins?|m|seconds?|secs?|s|us|µs|ns)\s?)+", re.I
)
_DURATION_PART = lazy(rf"({_NUMBER.pattern})\s?([a-zµ]+)", re.I)
_UNIT_S = {"ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_RFC3339 = lazy(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}")

#: The last but three: GitHub's; the last three: what LiteLLM's proxy passes on from the provider behind it.
_RETRY_HEADERS = (
    ("retry-after-ms", 1e-3),
    ("x-ms-retry-after-ms", 1e-3),
    ("retry-after", 1.0),
    ("x-retry-after", 1.0),
    ("x-retry-after-ms", 1e-3),
    ("x-ratelimit-retry-after", 1.0),
    ("x-rate-limit-retry-after", 1.0),
    ("x-rate-limit-retry-after-seconds", 1.0),
    ("x-ratelimit-reset-after", 1.0),
    ("x-ratelimit-timeremaining", 1.0),
    ("llm_provider-retry-after-ms", 1e-3),
    ("llm_provider-x-ms-retry-after-ms", 1e-3),
    ("llm_provider-retry-after", 1.0),
)
_RETRY_FIELDS = (
    ("retry_after_ms", 1e-3),
    ("retryDelay", 1.0),
    ("retry_delay", 1.0),
    ("retry_after", 1.0),
    ("retryAfter", 1.0),
    ("retry_after_seconds", 1.0),
    ("retryAfterMs", 1e-3),
    ("retryAfterSeconds", 1.0),
    ("retry-after", 1.0),
    ("wait_seconds", 1.0),
    ("cooldown_seconds", 1.0),
    ("estimated_time", 1.0),  # Hugging Face: until a model is loaded
    ("resets_in_seconds", 1.0),
    ("resets_at", 1.0),
    ("reset_at", 1.0),
    ("resetTime", 1.0),
)
_AMOUNT = (
    rf"(?:{_NUMBER.pattern}|\ban?\b|\bone\b)\s?(?:days?|hours?|hrs?|minutes?|mins?|seconds?|secs?|ms|d|h|m|s)(?![a-z])"
)
_ASKED_TO_WAIT = lazy(
    r"(?:try(?:ing)? again|retry(?:ing)?(?: (?:your|the|this) request)?|available(?: again)?|resets?|replenished"
    r"|\bwait)"
    rf"(?: (?:in|after|for))?(?: about| approximately| at least)?:? ((?:{_AMOUNT}(?:,? (?:and )?)?)+)",
    re.I,
)
_ONE = lazy(r"\b(?:an?|one) ", re.I)
#: The header's own words in a sentence: "(Retry-After: 17)".
_HEADER_TO_WAIT = lazy(rf"\bretry[-_ ]after[\"']?\s?[:=]\s?[\"']?({_NUMBER.pattern})(?![\w.,:-])", re.I)
#: In other languages: Chinese and Japanese, Korean, Russian, German, French, Spanish, Portuguese, Italian.
_ELSEWHERE_TO_WAIT = (
    lazy(
        rf"(?P<many>{_NUMBER.pattern})\s?(?:(?P<s>秒钟?|秒鐘?)|(?P<m>分钟?|分鐘?)|(?P<h>小时|小時|時間))\s?(?:之?[后後]|以[后後])"
    ),
    lazy(rf"(?P<many>{_NUMBER.pattern})\s?(?:(?P<s>초)|(?P<m>분)|(?P<h>시간))\s?(?:후|뒤)"),
    lazy(rf"через\s(?P<many>{_NUMBER.pattern})\s?(?:(?P<s>с(?:ек)?)|(?P<m>м(?:ин)?)|(?P<h>ч(?:ас)?))[а-я]*\b", re.I),
    # "100 Anfragen in 30 Sekunden" is a rate, so these patterns also need words such as "try again".
    lazy(
        rf"\b(?:versuch|wart|r[ée]essay|reint|int[ée]nt[aeé]|tent[ea]|riprov|attend|esper|aguard)[^.\n]{{0,40}}?"
        rf"(?:\b(?:in|dans|en|dentro de|em|tra|fra)\s)?\b(?P<many>{_NUMBER.pattern})\s?"
        r"(?:(?P<s>sekunden?|secondes?|segundos?|second[oi])|(?P<m>minuten?|minutos?|minut[oi]|minutes?)"
        r"|(?P<h>stunden?|heures?|horas?|or[ae]))\b",
        re.I,
    ),
)
#: .NET's way to write a duration, [days.]hours:minutes:seconds: Azure API Management.
_CLOCK_TO_WAIT = lazy(r"\b(?:in|after) (?:([0-9]{1,4})\.)?([0-9]{1,2}):([0-9]{2}):([0-9]{2})\b", re.I)
_DAY_TO_WAIT = lazy(
    r"(?:try again|retry|resets?|available|regain access|replenished)\b[^\n]{0,40}?\b(?:at|until|after|on) "
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T| at | )([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)"
    r"(?:\.[0-9]{1,9})?([+-][0-9]{2}:?[0-9]{2})?",
    re.I,
)
_NESTED = ("error", "Error", "errors", "detail", "details", "violations", "innererror", "inner_error", "metadata")
#: Members whose text may be a sentence for people, or hold the error of the provider behind, as JSON.
_SENTENCES_IN = (
    *("message", "Message", "error_description", "error", "detail", "msg", "title", "status_msg", "raw", "body"),
    *("error_msg", "error_message", "errorMessage", "upstreamBody"),
)
_MOST_EMBEDDED, _LONGEST_EMBEDDED, _LONGEST_PREFIX = 4, 20_000, 200
#: What a gateway writes before an error that it passes on: names of errors, and no part of the request.
_WRAPPER = lazy(r"""(?:[A-Za-z_.]{0,64}(?:Error|Exception)\b[\s:,-]*|Error code: [0-9]{3}[\s-]*)*[\s"'b]*""")
_json = json.JSONDecoder(strict=False)


def retry_after_s(
    headers: Mapping[str, str], body: Any = None, *, now_s: float | None, refused: bool = False
) -> float | None:
    """How long the provider asks us to wait, in seconds from now; None: it did not say, or nothing sensible.

    Understands seconds, milliseconds (`retry-after-ms`, `x-ms-retry-after-ms`), HTTP-date, RFC 3339, epoch seconds,
    durations ("1h2m3.5s", "120ms"), Gemini's `retryDelay` in the body, and at last a sentence in the body ("Please try
    again in 120ms", "Quota will be replenished in 5.03:23:11"), since an SDK's exception may have no headers. If a
    header is there twice, the longer wait counts. At most `MAX_DELAY_S`.

    Args:
        now_s: Our clock, seconds since the epoch. Where the answer's `Date` disagrees by more than two seconds, or
            `now_s` is None, points in time are read against `Date`; without either they are unknown.
        refused: It is a 429 or similar, so the reset of a budget in which nothing is left counts as a wait too.
    """
    known = lower_case(headers)
    now_s = _reference_s(known, now_s)
    told = [_delay_s(known.get(name), unit_s, now_s) for name, unit_s in _RETRY_HEADERS if name in known]
    if first_s := next((delay_s for delay_s in told if delay_s), None):
        return first_s
    at_once = 0.0 in told  # a fraction of a second was cut to 0, so longer waits from other places count
    for fields in error_objects(body):
        for name, unit_s in _RETRY_FIELDS:
            delay_s = _delay_s(fields.get(name), unit_s, now_s)
            if delay_s is not None:
                return delay_s
    said = [body] if isinstance(body, str) else [one for fields in error_objects(body) for one in sentences(fields)]
    for sentence in said:
        delay_s = _asked_s(sentence[:_LONGEST_MESSAGE], now_s)
        if delay_s is not None:
            return delay_s
    reset_s = _reset_s(known, body, now_s) if refused else None
    return 0.0 if reset_s is None and at_once else reset_s


def sentences(fields: Mapping[Any, Any]) -> list[str]:
    """The texts for people in an error object, from any of the usual members."""
    found = [(name, fields[name]) for name in _SENTENCES_IN if isinstance(fields.get(name), str)]
    return [text for name, text in found if name != "error" or " " in text.strip()]  # a single word there is a code


def _asked_s(sentence: str, now_s: float | None) -> float | None:
    asked = _ASKED_TO_WAIT.search(sentence)
    if asked is not None:
        return min(_sum_s(_ONE.sub("1 ", asked[1])), MAX_DELAY_S)
    header = _HEADER_TO_WAIT.search(sentence)
    if header is not None:
        return min(float(header[1]), MAX_DELAY_S)
    for pattern in _ELSEWHERE_TO_WAIT:
        found = pattern.search(sentence)
        if found is not None:
            unit = next(name for name in ("s", "m", "h") if found[name])
            return min(float(found["many"]) * _UNIT_S[unit], MAX_DELAY_S)
    clock = _CLOCK_TO_WAIT.search(sentence)
    if clock is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return min(86_400.0 * days + 3_600.0 * hours + 60.0 * minutes + seconds, MAX_DELAY_S)
    day = _DAY_TO_WAIT.search(sentence)
    return None if day is None else _delay_s(f"{day[1]}T{day[2]}{day[3] or ''}", 1.0, now_s)


def _reset_s(headers: Mapping[str, str], body: Any, now_s: float | None) -> float | None:
    """When a budget in which nothing is left is available again; the longest wait of several; None: unknown.

    Budgets are left out whose limit and remaining units are given with a duration: there the reset is when the bucket
    is *full*, while the next unit comes much sooner, so the pace takes care of them. A reset given as a point in time
    is the end of a window, except Anthropic's.
    """
    told = dict(headers)
    for fields in error_objects(body):  # OpenRouter repeats the headers in the body
        inner = fields.get("headers")
        if isinstance(inner, Mapping):
            told |= lower_case(inner)
    waits: list[float | None] = [one.reset_s for one in _policies(told, now_s) if one.remaining == 0]
    for (whose, _, window_s), values in _budgets(told).items():
        reset, remaining = values.get("reset"), _strictest(values.get("remaining"))
        if reset is None or (remaining is not None and remaining > 0):
            continue
        full = not _is_instant(reset) or "anthropic" in whose
        paced = full and _snapshot(values, window_s, now_s) is not None
        waits += [] if paced else [_delay_s(reset, 1.0, now_s)]
    return max((wait for wait in waits if wait is not None), default=None)


def snapshots(headers: Mapping[str, str], *, now_s: float | None) -> dict[str, Snapshot]:
    """The rate-limit headers of one answer, by dimension (`calls.DIMENSIONS`); empty if there are none.

    If one dimension has several budgets (a proxy's key and the provider behind it; per second and per minute), the one
    with the lowest rate is returned: it limits in the long run, and is the same for every answer. Left out are limits
    ≤ 0 or below one unit an hour, a `remaining` that is negative or unreadable (gateways send -1 for "unknown"), and
    windows of more than an hour, by name or by a reset more than 90 s away (the daily requests of Groq and OpenAI have
    the same header names as others).

    Args:
        now_s: Our clock, seconds since the epoch, for resets that are points in time; see `retry_after_s`.
    """
    known = lower_case(headers)
    budgets = _budgets(known)
    if not budgets and "ratelimit" not in known:
        return {}
    now_s = _reference_s(known, now_s)
    seen = [(dimension, _snapshot(values, window_s, now_s)) for (_, dimension, window_s), values in budgets.items()]
    seen += [(policy.dimension, policy.snapshot()) for policy in _policies(known, now_s)]
    found: dict[str, Snapshot] = {}
    for dimension, snapshot in seen:
        if snapshot is None:
            continue
        other = found.get(dimension)
        if other is None or snapshot.limit / snapshot.window_s < other.limit / other.window_s:
            found[dimension] = snapshot
    return _without_sums(found)


_Budgets = dict[tuple[str, str, float | None], dict[str, str]]


def _budgets(known: Mapping[str, str]) -> _Budgets:
    """(owner, dimension, window in its name) → kind of value → value."""
    budgets: _Budgets = {}
    for name, value in known.items():
        field = _field(name)
        if field is not None:
            budgets.setdefault(field[:3], {})[field[3]] = value
    policy = known.get("ratelimit-policy", "")
    if policy and '"' not in policy:  # the IETF's older draft, in which budgets had no names
        for (_, _, window_s), values in budgets.items():
            if window_s == UNTOLD and "limit" in values and ";" not in values["limit"]:
                values["limit"] = f"{values['limit']}, {policy}"
    return budgets


class _Policy(Struct, frozen=True):
    """One budget of the IETF's RateLimit fields."""

    dimension: str
    remaining: float
    reset_s: float | None
    limit: float | None
    window_s: float | None

    def snapshot(self) -> Snapshot | None:
        if not self.limit or not self.window_s or not _is_rate(self.limit, self.window_s):
            return None
        return Snapshot(limit=self.limit, window_s=self.window_s, remaining=self.remaining, reset_s=self.reset_s)


_LIST_ITEM = lazy(r'\s*("[^"]{0,128}"|[^,;"]{1,64})((?:;\s*[a-z]{1,8}=(?:"[^"]{0,64}"|[^,;"]{0,64}))*)\s*(?:,|$)')


def _items(text: str) -> list[tuple[str, dict[str, str]]]:
    """The members of a structured list: (item, parameters), without quotes. Empty: it is not such a list."""
    found, at = [], 0
    while at < len(text):
        item = _LIST_ITEM.match(text, at)
        if item is None or item.end() == at:
            return []
        pairs = (pair.strip().partition("=") for pair in item[2].split(";")[1:])
        found.append((item[1].strip().strip('"'), {name: value.strip('"') for name, _, value in pairs}))
        at = item.end()
    return found


def _policies(known: Mapping[str, str], now_s: float | None) -> list[_Policy]:
    """`RateLimit: "name";r=9;t=30` with `RateLimit-Policy: "name";q=10;w=60`, and `limit=10, remaining=9, reset=30`."""
    told = known.get("ratelimit")
    if told is None:
        return []
    windows = dict(_items(known.get("ratelimit-policy", "")))
    found = []
    members = _items(told)
    older = {name: value for name, _, value in (item.partition("=") for item, _ in members) if value}
    if older:
        limit = older.get("limit", "")
        members = [(limit, {"r": older.get("remaining", ""), "t": older.get("reset", ""), "q": limit})]
    for name, values in members:
        policy = {**values, **windows.get(name, {})}
        remaining, unit = _amount(policy.get("r")), policy.get("qu", "requests")
        if remaining is None or unit in {"content-bytes", "concurrent-requests"}:
            continue
        dimension = _named_dimension(unit, prose=False) or "requests"
        if dimension == "requests":
            dimension = _named_dimension(name, prose=False) or ("tokens" if "token" in name.lower() else "requests")
        reset_s = _delay_s(policy.get("t"), 1.0, now_s)
        found.append(_Policy(dimension, remaining, reset_s, _amount(policy.get("q")), _amount(policy.get("w"))))
    return found


_CONCURRENCY = lazy(
    r"concurren(?:t|cy|tly)|simultaneous|in[ _-]?flight|\bparallel\b|at the same time|too many (?:open )?connections",
    re.I,
)


def about_concurrency(body: Any) -> bool:
    """Whether a 429 says in words that it is for too many calls at once, and not for the rate: "too many concurrent
    requests", "concurrency limit", "simultaneous", "in flight", "parallel"."""
    for fields in error_objects(body):
        for said in (*sentences(fields), *(fields.get(name) for name in ("type", "code", "reason"))):
            if isinstance(said, str) and _CONCURRENCY.search(said[:_LONGEST_MESSAGE]):
                return True
    return False


def refused_dimension(headers: Mapping[str, str], body: Any = None) -> str | None:
    """The dimension (`calls.DIMENSIONS`) in which a 429 was refused; None: unknown, so it counts in all.

    The body's words decide; else the only dimension in which headers say that nothing remains.
    """
    known = lower_case(headers)
    for fields in error_objects(body):
        for name in ("type", "quotaMetric", "quota_metric", "quotaId", "quota_id"):
            dimension = _named_dimension(fields.get(name), prose=False)
            if dimension is not None:
                return dimension
        for said in sentences(fields):
            dimension = _named_dimension(said, prose=True)
            if dimension is not None:
                return dimension
    dimension = _named_dimension(known.get("rate_limit_type"), prose=False)
    if dimension is not None:
        return dimension
    empty = [dimension for dimension, seen in snapshots(known, now_s=None).items() if seen.remaining <= 0]
    return empty[0] if len(empty) == 1 else None


class StatedLimit(Struct, frozen=True):
    """A limit that an error states in words."""

    limit: float  #: units per window
    window_s: float  #: length of the window, seconds; 86,400: a daily quota, which is not a rate


def stated_limit(body: Any) -> dict[str, StatedLimit]:
    """The limits that a 429's body states in words, by dimension (`calls.DIMENSIONS`); empty: none.

    Reads the sentences of OpenAI and Groq ("on tokens per min (TPM): Limit 30000, Used ..."), Anthropic ("rate limit of
    40,000 input tokens per minute"), GitHub Models ("Rate limit of 15 per 60s exceeded for UserByMinute") and Cohere
    ("limited to 10 API calls / minute"), and Gemini's quota violations. If one body states several windows of one
    dimension, the shortest is returned: that is the rate. Limits ≤ 0 are left out.
    """
    found: dict[str, StatedLimit] = {}
    for fields in error_objects(body):
        for dimension, limit in (*_quota_violation(fields), *_limits_in(sentences(fields))):
            other = found.get(dimension)
            if other is None or limit.window_s < other.window_s:
                found[dimension] = limit
    return found


def lower_case(headers: Any) -> dict[str, str]:
    """Headers of any client as a plain dict with names in lower case; values that are not text are left out.

    Takes mappings and iterables of pairs, of str or bytes. Values of a header that is there twice are joined by commas,
    as in HTTP. At most 256 headers of 1,024 characters.
    """
    known: dict[str, str] = {}
    try:
        pairs: Iterable[Any] = headers.items() if hasattr(headers, "items") else headers or ()
        for number, (name, value) in enumerate(pairs):
            if number >= _MOST_HEADERS:
                break
            name_text, value_text = _text(name), _text(value)
            if name_text is not None and value_text is not None:
                name_text, value_text = name_text.lower(), value_text[:_LONGEST_VALUE].strip()
                before = known.get(name_text)
                known[name_text] = value_text if before is None else f"{before}, {value_text}"[:_LONGEST_VALUE]
    except Exception:  # foreign code that fails: what was read so far counts
        return known
    return known


def error_objects(body: Any, *, quotes_input: bool = False) -> Iterator[Mapping[Any, Any]]:
    """Every JSON object of an error body that may say what went wrong, outermost first; at most 64.

    Includes JSON within texts, since gateways pass on a provider's error like that.

    Args:
        quotes_input: Its texts may quote the request, so JSON in them counts only directly behind names of errors.
    """
    waiting, seen, embedded = [body], 0, 0
    while waiting and seen < _MOST_OBJECTS:
        found = waiting.pop(0)
        seen += 1
        texts: list[Any] = []
        if isinstance(found, Mapping):
            yield found
            waiting += [found[name] for name in _NESTED if isinstance(found.get(name), Mapping | list)]
            texts = [found.get(name) for name in _SENTENCES_IN]
        elif isinstance(found, list | tuple):
            waiting += [item for item in found[:_MOST_OBJECTS] if isinstance(item, Mapping)]
        elif found is body:
            texts = [found]
        for text in texts:
            if isinstance(text, str) and "{" in text and embedded < _MOST_EMBEDDED:
                embedded += 1
                inner = _embedded(text, quotes_input=quotes_input)
                waiting += [inner] if isinstance(inner, Mapping | list) else []


def _embedded(text: str, *, quotes_input: bool) -> Any:
    """The JSON within a text; None: there is none, or it may be part of the request."""
    start = text.index("{")
    if text[max(0, start - 1) : start] == "[":
        start -= 1
    if quotes_input and (start > _LONGEST_PREFIX or _WRAPPER.fullmatch(text[:start]) is None):
        return None
    piece = text[start : start + _LONGEST_EMBEDDED]
    # Bytes as Python prints them (LiteLLM does that): line ends are written as backslash and n.
    for attempt in (piece, piece.replace("\\n", "\n").replace("\\'", "'")):
        with suppress(ValueError, RecursionError):
            return _json.raw_decode(attempt)[0]
    if "\\" not in piece:  # ... or a dict as Python prints it
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return literal_eval(piece[: piece.rindex("}") + 1][:_LONGEST_VALUE])
    return None


def _text(value: Any) -> str | None:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, bool):
        return None
    return str(value) if isinstance(value, str | int | float) else None


def _reference_s(headers: Mapping[str, str], now_s: float | None) -> float | None:
    """The present by which the answer's points in time are read: our clock, unless the provider's differs from it."""
    date_s = _instant_s(headers.get("date", ""))
    if date_s is None or (now_s is not None and abs(date_s - now_s) <= _CLOCK_SKEW_S):
        return now_s
    return date_s


def _delay_s(value: Any, unit_s: float, now_s: float | None) -> float | None:
    """The delay that `value` states, in any form; numbers are in units of `unit_s`. None: negative, or not a delay."""
    if isinstance(value, Mapping):  # protobuf's Duration in JSON: {"seconds": "12", "nanos": 5}
        parts = [_delay_s(value.get(name), unit, None) for name, unit in (("seconds", 1.0), ("nanos", 1e-9))]
        given = [part for part in parts if part is not None]
        return min(math.fsum(given), MAX_DELAY_S) if given else None
    text = (_text(value) or "").strip()
    if not text or len(text) > _LONGEST_LIST:
        return None
    # Commas separate the values of a header that is there twice, and also belong to a date.
    found = [_plain_delay_s(part.strip(), unit_s, now_s) for part in _LIST_COMMA.split(text)]
    known = [part for part in found if part is not None and math.isfinite(part) and part >= 0]
    return min(max(known), MAX_DELAY_S) if known else None


#: What XML and .NET call a duration: PT1M30.5S, [d.]hh:mm:ss[.fff].
_ISO_DURATION = lazy(
    rf"P(?:([0-9]{{1,4}})D)?(?:T(?:([0-9]{{1,4}})H)?(?:([0-9]{{1,6}})M)?(?:({_NUMBER.pattern})S)?)?", re.I
)
_CLOCK_DURATION = lazy(r"(?:([0-9]{1,4})\.)?([0-9]{1,2}):([0-9]{2}):([0-9]{2}(?:\.[0-9]{1,9})?)")


def _plain_delay_s(text: str, unit_s: float, now_s: float | None) -> float | None:
    text = text.partition(";")[0].strip().strip("\"'")
    if _SIGNED.fullmatch(text):
        number_s = float(text) * unit_s
        if number_s < _LEAST_EPOCH_S:
            return number_s
        # Some send a time, in seconds or milliseconds since the epoch: accepted if it is within a day.
        if now_s is None:
            return None
        for instant_s in (number_s, number_s / 1e3, number_s / 1e6):
            if abs(instant_s - now_s) <= MAX_DELAY_S:
                return max(0.0, instant_s - now_s)
        return number_s
    if _DURATION.fullmatch(text):
        return _sum_s(text)
    parts = _ISO_DURATION.fullmatch(text) or _CLOCK_DURATION.fullmatch(text)
    if parts is not None and any(parts.groups()):
        return math.fsum(
            float(part or 0) * one for part, one in zip(parts.groups(), (86_400, 3_600, 60, 1), strict=True)
        )
    instant = _instant_s(text)
    return None if instant is None or now_s is None else instant - now_s


def _sum_s(text: str) -> float:
    return math.fsum(
        float(number) * (_UNIT_S.get(unit.lower()) or _UNIT_S[unit[0].lower()])
        for number, unit in _DURATION_PART.findall(text)
    )


def _is_instant(text: str) -> bool:
    """Whether a reset is a point in time, not a duration."""
    return _instant_s(text) is not None or (bool(_SIGNED.fullmatch(text)) and float(text) >= _LEAST_EPOCH_S)


def _instant_s(text: str) -> float | None:
    """Seconds since the epoch of an HTTP-date or RFC 3339 time; one without a zone is UTC."""
    if not text or len(text) > 64:
        return None
    try:
        instant = datetime.fromisoformat(text.upper()) if _RFC3339.match(text) else parsedate_to_datetime(text)
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


UNTOLD = -1.0  #: in place of a window: the name has neither dimension nor window
_KINDS = {"limit": "limit", "remaining": "remaining", "reset": "reset", "renewalperiod": "window"}
_WINDOWS = {"second": 1.0, "minute": 60.0, "min": 60.0, "hour": 3_600.0, "day": 86_400.0, "month": 2_592_000.0}
_WINDOWS |= {"1s": 1.0, "1m": 60.0, "60s": 60.0, "1h": 3_600.0, "1d": 86_400.0, "24h": 86_400.0}
_WINDOWS |= {"secondly": 1.0, "minutely": 60.0, "hourly": 3_600.0, "daily": 86_400.0, "monthly": 2_592_000.0}
#: Words that name both dimension and window.
_BOTH = {
    f"{letter}p{window[0]}": (dimension, _WINDOWS[window])
    for letter, dimension in (("r", "requests"), ("t", "tokens"))
    for window in ("second", "minute", "hour", "day")
}
_WINDOWS_SAID = {**_WINDOWS, "sec": 1.0}
_DIMENSION_WORDS = {
    **dict.fromkeys(("requests", "request", "req"), "requests"),
    **dict.fromkeys(("tokens", "token", "bysize"), "tokens"),
    **dict.fromkeys(("input", "prompt"), "input_tokens"),
    **dict.fromkeys(("output", "completion", "generated"), "output_tokens"),
}
_SCOPE_WORDS = frozenset(
    (
        "x",
        "llm",
        "provider",
        "anthropic",
        "api",
        "key",
        "model",
        "per",
        "team",
        "user",
        "project",
        "organization",
        "org",
        "member",
        "end",
        "customer",
        "deployment",
    )
)


@lru_cache(maxsize=1_024)
def _field(name: str) -> tuple[str, str, float | None, str] | None:
    """(owner, dimension, window_s if named, kind of value) of a header's name; None: it is not about a rate limit."""
    before, found, after = name.replace("rate-limit", "ratelimit").partition("ratelimit")
    if not found or len(name) > 128:
        return None
    scope, dimensions, windows, kinds = [], set(), [], []
    for word in re.split(r"[-_]+", f"{before}-{after}".strip("-_")):
        if word in _KINDS:
            kinds.append(_KINDS[word])
        elif word in _DIMENSION_WORDS:
            dimensions.add(_DIMENSION_WORDS[word])
        elif word in _WINDOWS:
            windows.append(_WINDOWS[word])
        elif word in _BOTH:
            dimensions.add(_BOTH[word][0])
            windows.append(_BOTH[word][1])
        elif word in _SCOPE_WORDS:
            scope.append(word)
        else:
            return None  # images, audio, unified, ...: there is no dimension for these
    if len(dimensions) == 2:
        dimensions.discard("tokens")  # "input-tokens" is one dimension
    if not dimensions:
        dimensions.add("requests")  # Kong's `x-ratelimit-limit-minute`; the IETF's `ratelimit-limit: 10, 10;w=60`
        windows = windows or [UNTOLD]
    if len(dimensions) != 1 or len(kinds) != 1 or len(windows) > 1:
        return None
    return "-".join(scope), dimensions.pop(), windows[0] if windows else None, kinds[0]


def _snapshot(values: Mapping[str, str], named_window_s: float | None, now_s: float | None) -> Snapshot | None:
    limit, remaining = _strictest(values.get("limit")), _strictest(values.get("remaining"))
    if limit is None or remaining is None or limit <= 0:
        return None
    reset_s = _delay_s(values.get("reset"), 1.0, now_s)
    window_s = _window_of(values["limit"], limit) or named_window_s or _delay_s(values.get("window"), 1.0, None)
    if window_s == UNTOLD:
        return None  # neither the dimension nor the window is known
    if not window_s:
        if reset_s is not None and reset_s > _MINUTE_RESET_S:
            return None
        window_s = 60.0
    if not _is_rate(limit, window_s):
        return None
    return Snapshot(limit=limit, window_s=window_s, remaining=remaining, reset_s=reset_s)


def _is_rate(limit: float, window_s: float) -> bool:
    return window_s <= _LONGEST_WINDOW_S and limit / window_s >= LEAST_RATE


def _amount(text: str | None) -> float | None:
    return float(text) if text and _NUMBER.fullmatch(text) else None


def _strictest(text: str | None) -> float | None:
    """The least number of a header that is there twice; None if one makes no sense."""
    if text is None or len(text) > _LONGEST_LIST:
        return None
    numbers = [_amount(part.partition(";")[0].strip()) for part in text.split(",")]
    return None if None in numbers else min(number for number in numbers if number is not None)


def _window_of(text: str, limit: float) -> float | None:
    """The window in a limit's own value, seconds: `ratelimit-limit: 10, 10;w=1, 600;w=60`."""
    for item, values in _items(text) if ";" in text else ():
        if _amount(item) == limit and (window_s := _amount(values.get("w"))):
            return window_s
    return None


def _without_sums(found: dict[str, Snapshot]) -> dict[str, Snapshot]:
    """Leave `tokens` out if it is only the sum of the other two.

    Anthropic sends as `tokens` the sum of its input and output limits, or another budget if that is reached first. A
    sum adds nothing to its parts, and is not a bucket that the provider has.
    """
    parts = [found[name] for name in ("input_tokens", "output_tokens") if name in found]
    if len(parts) == 2 and "tokens" in found and found["tokens"].limit >= sum(part.limit for part in parts):
        del found["tokens"]
    return found


_INPUT = lazy(r"input[ _-]?tokens?|prompt[ _-]tokens?|request tokens|inputtoken", re.I)
_OUTPUT = lazy(r"output[ _-]?tokens?|completion[ _-]tokens?|outputtoken", re.I)
_TOKENS = lazy(r"\bTP[MD]\b|\btokens? per |token[ _]?(?:count|rate)|too many tokens|TokensPer", re.I)
_REQUESTS = lazy(r"\b(?:RP[MD])\b|\brequests? per |request[ _]?(?:count|rate)|too many requests|RequestsPer", re.I)


def _named_dimension(value: Any, *, prose: bool) -> str | None:
    if not isinstance(value, str):
        return None
    text = value[:_LONGEST_MESSAGE]
    word = text.strip().lower().replace("-", "_")
    if word in {"requests", "tokens", "input_tokens", "output_tokens"}:
        return word
    for dimension, pattern in (
        ("input_tokens", _INPUT),
        ("output_tokens", _OUTPUT),
        ("requests", _REQUESTS),
        ("tokens", _TOKENS),
    ):
        if pattern.search(text):
            return dimension
    if not prose and word.endswith("_requests"):  # Gemini: .../generate_content_free_tier_requests
        return "requests"
    return None


_PER = r"(?P<per>second|sec|minute|min|hour|day|month)s?\b"
_UNIT = r"(?P<unit>(?:(?:input|output|prompt|completion|request)[ _-])?tokens?|requests?|(?:api )?calls?)"
_COUNT = r"(?P<limit>[0-9][0-9,]{0,17}(?:\.[0-9]{1,9})?)"
_SENTENCES = (
    lazy(rf"\b{_UNIT} per {_PER}(?: ?\([a-z]{{2,8}}\))?[:.] ?limit:? ?{_COUNT}", re.I),
    lazy(rf"\blimit(?:ed)?\b[^.\n]{{0,80}}? (?:of|to) {_COUNT} {_UNIT} ?(?:per|/) ?{_PER}", re.I),
    lazy(rf"\blimit of {_COUNT} per (?P<window_s>[0-9]{{1,9}})s exceeded for (?P<unit>[a-z]{{1,64}})", re.I),
)
_QUOTA_WINDOW = lazy(r"Per(?P<per>Second|Minute|Hour|Day|Month)")


def _limits_in(messages: Iterable[str]) -> Iterator[tuple[str, StatedLimit]]:
    for message, pattern in product(messages, _SENTENCES):
        for match in pattern.finditer(message[:_LONGEST_MESSAGE]):
            said = match.groupdict()
            window_s = _WINDOWS_SAID[said["per"].lower()] if said.get("per") else float(said["window_s"])
            limit = float(said["limit"].replace(",", ""))
            if limit > 0 and window_s > 0:
                yield _dimension_of_unit(said["unit"].lower()), StatedLimit(limit, window_s)


def _dimension_of_unit(unit: str) -> str:
    if "token" not in unit:
        return "requests"  # calls, requests, and GitHub's UserByMinute
    if unit.startswith(("input", "prompt")):
        return "input_tokens"
    return "output_tokens" if unit.startswith(("output", "completion")) else "tokens"


def _quota_violation(fields: Mapping[Any, Any]) -> Iterator[tuple[str, StatedLimit]]:
    """Gemini: `{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "15"}`."""
    name, limit = fields.get("quotaId"), _amount(_text(fields.get("quotaValue")))
    if not isinstance(name, str) or not limit:
        return
    window = _QUOTA_WINDOW.search(name[:_LONGEST_VALUE])
    dimension = "requests" if "Requests" in name else _named_dimension(name, prose=False)
    if window is None or dimension is None:
        return
    yield dimension, StatedLimit(limit, _WINDOWS_SAID[window["per"].lower()])
