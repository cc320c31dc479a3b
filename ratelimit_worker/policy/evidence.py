"""The evidence in one answer or exception: status, machine words (error types and codes) and messages.

All of it comes from outside: it may be hostile, and may repeat prompt or key. Nothing here raises because of it, and
text that is shown (`one_line`) is built only from status, machine words in our tables, and class names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.headers import error_objects, lower_case, sentences, stated_limit
from ratelimit_worker.policy.pattern import lazy
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


class Evidence(Struct, frozen=True):
    """Status, machine words and messages of one failure."""

    status: int | None
    words: tuple[str, ...]  #: as written; at most 16
    messages: tuple[str, ...]  #: searched, but never shown; at most 8
    per_day: bool  #: the quota that was hit is for a day or longer
    never: bool  #: the quota is 0: this key may not use this model at all
    accepted: bool = False  #: the answer behind an exception was a 2xx

    @classmethod
    def of(cls, status: int | None, headers: Mapping[str, str], body: Any, *, also: tuple[Any, ...] = ()) -> Evidence:
        """Collect what an error body says. `also`: words from elsewhere (one with a space in it is a message).

        A gateway may quote the error of the provider behind it, as JSON, in its own message: that counts as well. Of a
        bad request it counts only directly behind names of errors, since the message may quote the request.
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
        """The category; None: neither its status nor any of its words is known."""
        words = [bare(word) for word in self.words]
        decisive = known(words, DECISIVE_WORDS)
        if decisive is not None:
            return decisive
        if self.status is None or self.status in VAGUE_STATUS:
            telling = known(words, TELLING_WORDS)
            # A 404 is about the request, whatever the error's type: Ollama and others say api_error for everything.
            vague = self.status == 403 or (self.status == 404 and telling is _C.SERVER_ERROR)
            if telling is _C.RATE_LIMITED or (telling is not None and not vague):
                return self._refined(telling)
        return None if self.status is None else self._refined(of_status(self.status))

    def quota(self) -> Category | None:
        """QUOTA_EXHAUSTED if a message begins by saying so, whatever the status; else None."""
        return _C.QUOTA_EXHAUSTED if any(QUOTA_400.match(message) for message in self.messages) else None

    def _refined(self, category: Category) -> Category:
        """Tell used-up quotas, and requests that can never fit, from ordinary rate limits and bad requests."""
        if category is _C.RATE_LIMITED:
            if self.never or self._says(NO_LIMIT):
                return _C.QUOTA_EXHAUSTED
            for message in self.messages:
                fits = NEVER_FITS.match(message)
                if fits is not None and int(fits[2]) > int(fits[1]):
                    return _C.INVALID_REQUEST  # OpenAI's 429 for a call larger than the whole budget of a minute
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
        """Whether it is OpenAI's message for an account without credit, without its code. Gemini has the same sentence
        for a quota of a minute, so that is excluded."""
        return self._says(OWN_QUOTA) and not self._says(_GOOGLES) and "resourceexhausted" not in map(bare, self.words)

    def _long_windows_only(self) -> bool:
        """Whether the messages state limits of days or months."""
        stated = [limit for message in self.messages for limit in stated_limit({"message": message}).values()]
        return bool(stated) and all(limit.window_s >= _DAY_S for limit in stated)


#: Names of quotas: GenerateRequestsPerDayPerProject, .../generate_requests_per_model_per_day, free_tier_daily.
_A_DAYS = lazy(r"Per(?:Day|Month)|per_(?:day|month)|daily|monthly")
_GOOGLES = lazy(r"google|gemini|vertex|generativelanguage|quota exceeded for metric|limit: [1-9]", re.I)
_DAY_S, _MOST_MESSAGES = 86_400.0, 8
_STATUS_NAMES = ("code", "status_code", "statusCode", "status", "http_code", "http_status", "httpStatus")


def status_of(body: Any) -> int | None:
    """The HTTP status in an error's body, as number or text; None: there is none."""
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
    """A body that is JSON in text or bytes, decoded; anything else as it is."""
    if isinstance(body, bytes | bytearray):
        body = bytes(body[: LONGEST_JSON + 1]).decode("utf-8", "replace")
    if not isinstance(body, str) or len(body) > LONGEST_JSON or body.lstrip()[:1] not in ("{", "["):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # it is not JSON, so the text itself is the message
        return body


#: Attributes of exceptions that hold machine words, in SDKs, pydantic-ai and litellm (whose own budget is "budget").
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
    """Headers, body and evidence of an exception, in the ways of the known SDKs."""
    if response is None:
        response = attribute(error, "raw_response")  # mistralai
    headers: dict[str, str] = {}
    also: list[Any] = []
    # aiohttp warns when its `code` is read, an old name of `status`
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
    for name in ("body", "details", "error"):  # the body as the SDK has decoded it
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
        if body is None:  # litellm keeps the provider's error only in its message
            body = next((said for said in also[-2:] if isinstance(said, str) and "{" in said), None)
    evidence = Evidence.of(status, headers, body, also=tuple(also))
    accepted = providers and status is None and any(_is_success(value) for value in statuses)
    return headers, body, replace(evidence, accepted=accepted)


def _text_of(response: Any) -> Any:
    """The body of a client's response, if it was read already: reading it here would be I/O."""
    if attribute(response, "_content_consumed") is False:  # `.text` of requests would read from the network
        return None
    for name in ("text", "content", "body"):
        said = attribute(response, name)
        if isinstance(said, str | bytes | Mapping) and said:
            return said
    return None


def _plain_details(item: Any) -> Any:
    """One of google.rpc's error details, a protobuf message as JSON."""
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
    """The code of a grpc error, which has a method for it."""
    if not any(root_of(kind) == "grpc" for kind in type(error).__mro__):
        return None
    code = attribute(error, "code")
    if not callable(code):
        return None
    try:
        return attribute(code(), "name")
    except Exception:  # foreign code: if it fails, the code is unknown
        return None


_SHOWABLE = lazy(r"[A-Za-z]{1,24}(?:[_. -]?[A-Za-z]{1,24}){0,6}|[0-9]{1,4}")
_REQUEST_ID = lazy(r"[A-Za-z0-9][A-Za-z0-9_.:/=+-]{0,127}")


def one_line(name: str, status: int | None, words: tuple[str, ...]) -> str:
    """One line: class name, status, and the machine words that are in our tables.

    A provider may put anything into `code`, even the key, so unknown words are left out.
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
    """Where an error was raised (file and line of the last frame), since its message must not be shown."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


def attribute(thing: Any, name: str) -> Any:
    """An attribute of a foreign object; None if there is none, or if reading it raises."""
    try:
        return getattr(thing, name, None)
    except Exception:  # httpx raises from `.text` of a body that was not read, for one
        return None


_PROXYS = lazy(r"(?:^|Tunnel connection failed: )(403|407)\b")


def proxy_status(error: BaseException) -> int | None:
    """The status with which a proxy refused to connect; all clients but aiohttp give it only in their message."""
    status = attribute(error, "status")
    if isinstance(status, int) and status in {403, 407}:
        return status
    found = _PROXYS.search(message_of(error) or "")
    return int(found[1]) if found else None


def message_of(error: BaseException) -> str | None:
    try:
        return str(error)[:_LONGEST_MESSAGE]
    except Exception:  # a foreign __str__
        return None


def root_of(kind: type) -> str:
    module = kind.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""
