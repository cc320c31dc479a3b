"""What does one answer, or one exception, say for itself? Status, machine words and message, from wherever they stand.

All of it belongs to strangers: it may be hostile, and may echo prompt or key. Nothing here raises because of it, and
what may be shown (`one_line`) is built from status, machine words of our tables and class names only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.headers import error_objects, lower_case, sentences, stated_limit
from ratelimit_worker.policy.vocabulary import (
    ACCOUNT_400,
    DECISIVE_WORDS,
    ECHOING_STATUS,
    FILTERED_400,
    FLAGGED_403,
    NEVER_FITS,
    NO_LIMIT,
    OFFER,
    OWN_QUOTA,
    QUOTA_400,
    QUOTA_403,
    QUOTA_429,
    TELLING_WORDS,
    VAGUE_STATUS,
    bare,
    familiar,
    known,
    of_status,
)

_C = Category

_MOST_MEMBERS, _LONGEST_MESSAGE, LONGEST_JSON = 64, 2_000, 262_144


@dataclass(frozen=True, slots=True)
class Evidence:
    """Status, machine words and message of one refusal, from wherever they were found."""

    status: int | None
    words: tuple[str, ...]  #: as they were written; at most 16
    messages: tuple[str, ...]  #: to be searched, never to be shown; at most 8
    per_day: bool  #: the quota that was hit is one of a day or more
    never: bool  #: a quota of 0: this key may not use this model at all
    accepted: bool = False  #: the answer behind an exception was a 2xx

    @classmethod
    def of(cls, status: int | None, headers: Mapping[str, str], body: Any, *, also: tuple[Any, ...] = ()) -> Evidence:
        """Gather what an error body says; `also` are words (or a message, the only one with a space) from elsewhere.

        A gateway may put the error of the provider behind it, as JSON, into a message of its own: what that says counts
        as well. Of a bad request only where nothing but the names of errors stands before it: it may quote its input.
        """
        body = parsed(body)
        words: list[str] = []
        messages = [body] if isinstance(body, str) else []
        per_day = never = False
        amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
        for fields in error_objects(body, quotes_input=status in ECHOING_STATUS):
            for name in ("type", "code", "status", "reason", "error_code", "error_type", "__type", "Code", "error"):
                value = fields.get(name)
                # AWS qualifies its types: com.amazon.coral.service#ThrottlingException
                words += [value.rpartition("#")[2]] if isinstance(value, str) else []
            messages += sentences(fields)
            for name in ("quotaId", "quota_id", "quotaMetric", "quota_metric", "limit_source"):
                value = fields.get(name)
                per_day = per_day or (isinstance(value, str) and _A_DAYS.search(value[:256]) is not None)
            quota = fields.get("quotaId") or fields.get("quota_id")
            never = never or (quota is not None and str(fields.get("quotaValue"))[:8] == "0")
        for extra in (amazon, *also):
            if isinstance(extra, str) and " " in extra:
                messages += [extra] if not messages else []
            elif isinstance(extra, str) and extra:
                words.append(extra)
        short = tuple(dict.fromkeys(word for word in words if len(word) <= 64))[:16]
        told = tuple(dict.fromkeys(message[:_LONGEST_MESSAGE] for message in messages))[:_MOST_MESSAGES]
        return cls(status, short, told, per_day, never)

    def category(self) -> Category | None:
        """The verdict; None where there is neither a status nor a word that we know."""
        words = [bare(word) for word in self.words]
        decisive = known(words, DECISIVE_WORDS)
        if decisive is not None:
            return decisive
        if self.status is None or self.status in VAGUE_STATUS:
            telling = known(words, TELLING_WORDS)
            # A 404 is about what was asked, whatever its type is called: Ollama's like say api_error to all.
            vague = self.status == 403 or (self.status == 404 and telling is _C.SERVER_ERROR)
            if telling is _C.RATE_LIMITED or (telling is not None and not vague):
                return self._refined(telling)
        return None if self.status is None else self._refined(of_status(self.status))

    def quota(self) -> Category | None:
        """QUOTA_EXHAUSTED where the messages begin by saying so, whatever the status; else None."""
        return _C.QUOTA_EXHAUSTED if any(QUOTA_400.match(message) for message in self.messages) else None

    def _refined(self, category: Category) -> Category:
        """Tell quotas, and requests that will never fit, from mere rate limits and bad requests."""
        if category is _C.RATE_LIMITED:
            if self.never or self._says(NO_LIMIT):
                return _C.QUOTA_EXHAUSTED
            for message in self.messages:
                fits = NEVER_FITS.match(message)
                if fits is not None and int(fits[2]) > int(fits[1]):
                    return _C.INVALID_REQUEST  # OpenAI says 429 to a call larger than the minute's whole budget
            if self.per_day or self._used_up() or self._own_quota() or self._long_windows_only():
                return _C.QUOTA_EXHAUSTED
            return category
        if category is _C.AUTH and self.status == 403 and self._says(FLAGGED_403):
            return _C.CONTENT_FILTERED
        if category is _C.AUTH or (category is _C.INVALID_REQUEST and self.status not in ECHOING_STATUS):
            spent = self._used_up() or (self.status == 403 and self._says(QUOTA_403))
            return _C.QUOTA_EXHAUSTED if spent else self.quota() or category
        if category is _C.INVALID_REQUEST and any(ACCOUNT_400.match(message) for message in self.messages):
            return _C.AUTH
        if category is _C.INVALID_REQUEST and any(FILTERED_400.match(message) for message in self.messages):
            return _C.CONTENT_FILTERED
        if category in {_C.INVALID_REQUEST, _C.SERVER_ERROR, _C.OVERLOADED}:
            return self.quota() or category
        return category

    def _says(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.search(message) for message in self.messages)

    def _used_up(self) -> bool:
        return any(QUOTA_429.search(OFFER.sub("", message)) for message in self.messages)

    def _own_quota(self) -> bool:
        """OpenAI's sentence for an account without credit, its code lost; Gemini says the same of a minute's quota."""
        return self._says(OWN_QUOTA) and not self._says(_GOOGLES) and "resourceexhausted" not in map(bare, self.words)

    def _long_windows_only(self) -> bool:
        """Whether the limits that the messages state are of days and months."""
        stated = [limit for message in self.messages for limit in stated_limit({"message": message}).values()]
        return bool(stated) and all(limit.window_s >= _DAY_S for limit in stated)


#: Names of quotas: GenerateRequestsPerDayPerProject, .../generate_requests_per_model_per_day, free_tier_daily.
_A_DAYS = re.compile(r"Per(?:Day|Month)|per_(?:day|month)|daily|monthly")
_GOOGLES = re.compile(r"google|gemini|vertex|generativelanguage|quota exceeded for metric|limit: [1-9]", re.I)
_DAY_S, _MOST_MESSAGES = 86_400.0, 8
_STATUS_NAMES = ("code", "status_code", "statusCode", "status", "http_code", "http_status", "httpStatus")


def status_of(body: Any) -> int | None:
    """The HTTP status that an error's body tells, as a number or as text; None: none."""
    for fields in error_objects(body):
        for name in _STATUS_NAMES:
            value: Any = fields.get(name)
            if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isdigit():
                value = int(value)
            if is_status(value):
                return int(value)
    return None


def is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599


def _is_success(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 200 <= value <= 299


def parsed(body: Any) -> Any:
    """JSON that a client left as text or bytes; anything else as it is."""
    if isinstance(body, bytes | bytearray):
        body = bytes(body[: LONGEST_JSON + 1]).decode("utf-8", "replace")
    if not isinstance(body, str) or len(body) > LONGEST_JSON or body.lstrip()[:1] not in ("{", "["):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON after all: the text itself is what was said
        return body


#: Where exceptions keep machine words: the SDKs; pydantic-ai; litellm ("budget" as a limit of its own).
_WORD_ATTRIBUTES = (
    "code",
    "type",
    "status",
    "reason",
    "error_code",
    "provider_error_code",
    "provider_error_type",
    "rate_limit_type",
)


def testimony(error: BaseException, response: Any, *, providers: bool) -> tuple[dict[str, str], Any, Evidence]:
    """Headers, body and evidence that an exception carries, in the ways of the SDKs that we know."""
    if response is None:
        response = attribute(error, "raw_response")  # mistralai
    headers: dict[str, str] = {}
    also: list[Any] = []
    # aiohttp warns whoever asks for its `code`, an old name of `status`
    old_names = {"code"} if root_of(type(error)) == "aiohttp" else set()
    statuses = [
        attribute(error, name) for name in ("status_code", "http_status", "status", "code") if name not in old_names
    ]
    body: Any = None
    if isinstance(response, Mapping):  # botocore
        meta = response.get("ResponseMetadata")
        meta = meta if isinstance(meta, Mapping) else {}
        statuses.append(meta.get("HTTPStatusCode"))
        headers, body = lower_case(meta.get("HTTPHeaders")), {"error": response.get("Error")}
        if isinstance(meta.get("RequestId"), str):
            headers.setdefault("x-amzn-requestid", meta["RequestId"])
    elif response is not None:
        statuses += [attribute(response, "status_code"), attribute(response, "status")]
        headers, body = lower_case(attribute(response, "headers")), _text_of(response)
    for name in ("headers", "litellm_response_headers"):
        headers = {**lower_case(attribute(error, name)), **headers}
    for name in ("body", "details", "error"):  # the SDKs' own reading of the body
        said = attribute(error, name)
        if isinstance(said, Mapping | bytes) or (isinstance(said, str) and said[:1] in ("{", "[")):
            body = said
            break
        if isinstance(said, list) and said:
            body = {"error": {"details": [_plain_details(item) for item in said[:_MOST_MEMBERS]]}}
            break
    status = next((int(value) for value in statuses if is_status(value)), None)
    if providers or status is not None:
        also = [attribute(error, name) for name in _WORD_ATTRIBUTES if name not in old_names]
        also += [_grpc_code(error), attribute(error, "message"), message_of(error)]
        if body is None:  # litellm keeps the provider's error in its message alone
            body = next((said for said in also[-2:] if isinstance(said, str) and "{" in said), None)
    evidence = Evidence.of(status, headers, body, also=tuple(also))
    accepted = providers and status is None and any(_is_success(value) for value in statuses)
    return headers, body, replace(evidence, accepted=accepted)


def _text_of(response: Any) -> Any:
    """The body that a client's response has already read; reading on would be I/O, and is left alone."""
    if attribute(response, "_content_consumed") is False:  # requests would go to the network for `.text`
        return None
    for name in ("text", "content", "body"):
        said = attribute(response, name)
        if isinstance(said, str | bytes | Mapping) and said:
            return said
    return None


def _plain_details(item: Any) -> Any:
    """One of google.rpc's error details: protobuf messages as the JSON they stand for."""
    if isinstance(item, Mapping):
        return item
    delay = attribute(item, "retry_delay")
    violations = attribute(item, "violations")
    return {
        "reason": attribute(item, "reason"),
        "retryDelay": {name: attribute(delay, name) for name in ("seconds", "nanos")},
        "violations": [
            {"quotaId": attribute(violation, "quota_id"), "quotaValue": attribute(violation, "quota_value")}
            for violation in (list(violations)[:16] if isinstance(violations, list | tuple) else [])
        ],
    }


def _grpc_code(error: BaseException) -> Any:
    """grpc's errors say their code by a method."""
    if not any(root_of(kind) == "grpc" for kind in type(error).__mro__):
        return None
    code = attribute(error, "code")
    if not callable(code):
        return None
    try:
        return attribute(code(), "name")
    except Exception:  # a stranger's method: what it cannot say is not known
        return None


_SHOWABLE = re.compile(r"[A-Za-z]{1,24}(?:[_. -]?[A-Za-z]{1,24}){0,6}|[0-9]{1,4}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/=+-]{0,127}")


def one_line(name: str, status: int | None, words: tuple[str, ...]) -> str:
    """One line: class name, status, and those machine words that are in our tables.

    A provider may put anything into `code`, the key included; what we have never heard of is not repeated.
    """
    shown = [word for word in words if _SHOWABLE.fullmatch(word) and familiar(word)]
    sent = "" if status is None else f"HTTP {status}"
    parts = [f"{sent} from the proxy" if status == 407 else sent, "/".join(shown[:3])]
    said = " ".join(part for part in parts if part)
    return f"{name}: {said}" if name and said else name or said


def request_id_of(headers: Mapping[str, str]) -> str | None:
    for name in ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id"):
        found = headers.get(name, "")
        if _REQUEST_ID.fullmatch(found):
            return found
    return None


def class_name(error: BaseException) -> str:
    kind = type(error)
    root = root_of(kind)
    return kind.__name__ if root in {"builtins", "ratelimit_worker", "__main__"} else f"{root}.{kind.__name__}"


def place_of(error: BaseException) -> str:
    """Where a mistake is, since its message cannot be shown: the last frame's file and line."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


def attribute(thing: Any, name: str) -> Any:
    """An attribute of a stranger's object; None where there is none, or where asking for it raises."""
    try:
        return getattr(thing, name, None)
    except Exception:  # httpx raises from `.text` of a body that was not read; others may do worse
        return None


_PROXYS = re.compile(r"(?:^|Tunnel connection failed: )(403|407)\b")


def proxy_status(error: BaseException) -> int | None:
    """The status with which a proxy refused to connect; clients tell it in their message alone, but for aiohttp."""
    status = attribute(error, "status")
    if isinstance(status, int) and status in {403, 407}:
        return status
    found = _PROXYS.search(message_of(error) or "")
    return int(found[1]) if found else None


def message_of(error: BaseException) -> str | None:
    try:
        return str(error)[:_LONGEST_MESSAGE]
    except Exception:  # a stranger's __str__
        return None


def root_of(kind: type) -> str:
    module = kind.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""
