"""What kind of failure is this answer, or this exception?

Everything that learns from failures (retry, pace, mode) asks here first: a 400 says nothing about capacity, and a
used-up quota is no rate limit. Classifies by status, machine words (type, code, reason), class names and, where
providers leave no other sign, the start of the message. No SDK is imported: classes are known by the package that
defines them.

Bodies, messages and attributes belong to strangers, so they may be hostile and may echo prompt or key. Nothing here
raises because of one, and `Failure.cause` is built from status, machine words and class names only.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ratelimit_worker.calls import Category, Failure, Response
from ratelimit_worker.errors import CallFailed, RateLimitWorkerError
from ratelimit_worker.policy.headers import error_objects, lower_case, retry_after_s

_C = Category

_MOST_LINKS, _MOST_MEMBERS, _LONGEST_MESSAGE, _LONGEST_JSON = 32, 64, 2_000, 262_144


def _split(words: str) -> list[str]:
    return words.split()


# --- Machine words, compared without case and punctuation: `rate_limit_exceeded` and `RateLimitExceeded` are one. ---

#: Words that say more than any status does.
_DECISIVE_WORDS: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "insufficientquota insufficientuserquota insufficientbalance insufficientcredits insufficientfunds "
            "exceededcurrentquotaerror budgetexceeded budgetexceedederror exceededbudget paymentrequired "
            "billingerror billingnotactive billingdisabled billinghardlimitreached "
            "linkedorganizationbillingunavailable "
            "enforcedspendlimitreached contractspendlimitreached linkedorganizationspendlimitreached "
            "dailylimitexceeded servicequotaexceededexception quotaexceeded arrearage usagelimitreached"
        ),
        _C.QUOTA_EXHAUSTED,
    ),
    **dict.fromkeys(
        _split(
            "contentfilter contentfiltered contentpolicyviolation contentpolicyviolationerror invalidprompt "
            "responsibleaipolicyviolation datainspectionfailed moderationblocked promptblocked safety "
            "prohibitedcontent guardrailintervened biopolicy cyberpolicy contentmoderation"
        ),
        _C.CONTENT_FILTERED,
    ),
    **dict.fromkeys(
        _split("contextlengthexceeded contextwindowexceeded requesttoolarge stringabovemaxlength"),
        _C.INVALID_REQUEST,
    ),
    **dict.fromkeys(
        _split(
            "overloadederror overloaded engineoverloaded engineoverloadederror modeloverloaded serveroverloaded "
            "modelnotreadyexception"
        ),
        _C.OVERLOADED,
    ),
    **dict.fromkeys(
        _split("invalidapikey apikeyinvalid accountdeactivated organizationonhold expiredtokenexception"), _C.AUTH
    ),
    "modeltimeoutexception": _C.TIMEOUT,
}

#: Words that decide where the status does not: errors inside a 200 or a stream, a 400 or 403 that means something else.
_TELLING_WORDS: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "ratelimit ratelimited ratelimiterror ratelimitexceeded userratelimitexceeded toomanyrequests throttled "
            "toomanyrequestsexception throttling throttlingerror throttlingexception throttledexception slowdown "
            "requestlimitexceeded requestthrottled requestthrottledexception resourceexhausted ramplimitexceeded "
            "provisionedthroughputexceededexception"
        ),
        _C.RATE_LIMITED,
    ),
    **dict.fromkeys(
        _split("unavailable serviceunavailable serviceunavailableerror serviceunavailableexception"), _C.OVERLOADED
    ),
    **dict.fromkeys(
        _split(
            "servererror apierror internal internalerror internalservererror internalserverexception internalfailure "
            "modelerrorexception modelstreamerrorexception unknown dataloss"
        ),
        _C.SERVER_ERROR,
    ),
    **dict.fromkeys(
        _split("timeout timeouterror requesttimeout requesttimeoutexception deadlineexceeded vectorstoretimeout"),
        _C.TIMEOUT,
    ),
    **dict.fromkeys(_split("conflict conflicterror conflictexception aborted alreadyexists"), _C.CONFLICT),
    **dict.fromkeys(
        _split(
            "authenticationerror autherror unauthenticated unauthorized permissionerror permissiondenied "
            "accessdenied accessdeniedexception unrecognizedclientexception invalidsignatureexception "
            "incompletesignature missingauthenticationtoken optinrequired"
        ),
        _C.AUTH,
    ),
    **dict.fromkeys(
        _split(
            "invalidrequesterror invalidrequest badrequest badrequesterror invalidargument validationexception "
            "validationerror notfound notfounderror modelnotfound resourcenotfoundexception failedprecondition "
            "outofrange unprocessableentity unprocessableentityerror unimplemented"
        ),
        _C.INVALID_REQUEST,
    ),
}

_STATUS: Mapping[int, Category] = {
    401: _C.AUTH,
    402: _C.QUOTA_EXHAUSTED,
    403: _C.AUTH,
    407: _C.AUTH,
    408: _C.TIMEOUT,
    409: _C.CONFLICT,
    424: _C.SERVER_ERROR,  # Bedrock: the model behind it failed
    425: _C.CONFLICT,
    429: _C.RATE_LIMITED,
    498: _C.OVERLOADED,  # Groq: flex capacity exceeded
    499: _C.CONNECTION,  # a gateway on the way gave the connection up
    503: _C.OVERLOADED,
    522: _C.TIMEOUT,  # Cloudflare: the provider behind it did not answer
    524: _C.TIMEOUT,
    529: _C.OVERLOADED,
    598: _C.TIMEOUT,
    599: _C.TIMEOUT,
}

#: Statuses so general that a telling word wins over them.
_VAGUE_STATUS = frozenset({400, 403, 404, 422})

# --- Messages: only where a provider gives no machine word for it. A 400's may echo input: only its very start. ---

_QUOTA_429 = re.compile(
    r"insufficient[_ ](?:quota|credit|balance|fund)|credit balance|(?:out of|not enough|no remaining) credits?"
    r"|per[ -]day\b|\((?:RPD|TPD)\)|\bdaily (?:limit|quota|request|token|usage)"
    r"|spend(?:ing)? limit|billing (?:hard )?limit|monthly (?:limit|quota|spend|usage|budget)|usage limits?\b",
    re.I,
)
_QUOTA_400 = re.compile(
    r"\W*(?:your (?:account'?s? )?credit balance is too low|you have reached your specified (?:\w+ )?usage limits?"
    r"|billing hard limit has been reached|your account is not active, please check your billing)",
    re.I,
)
_NEVER_FITS = re.compile(r"\W*request too large .{0,300}?limit:? ([0-9]{1,12}), requested:? ([0-9]{1,12})", re.I | re.S)

# --- Class names, by the package that defines the class or one of its bases. ---

#: Packages whose errors speak of a provider or the way to it.
_PROVIDER_ROOTS = frozenset(
    _split(
        "openai anthropic google vertexai grpc mistralai cohere groq botocore boto3 aiobotocore "
        "litellm ollama together "
        "fireworks cerebras replicate huggingface_hub azure xai_sdk instructor pydantic_ai langchain langchain_core "
        "langchain_openai langchain_anthropic langchain_google_genai langchain_aws langchain_mistralai httpx httpx2 "
        "httpcore httpcore2 requests urllib3 urllib http aiohttp h11 h2 websockets httpx_sse"
    )
)

#: Packages whose errors speak of our own house: broker, database, Celery's control flow. No failure of a provider.
_OTHER_ROOTS = frozenset(
    _split("redis valkey kombu celery billiard amqp vine sqlalchemy alembic psycopg psycopg2 asyncpg sqlite3 pymongo")
)

#: Class names that say more than the status the class carries (litellm gives its APIConnectionError a 500).
_DECISIVE_NAMES: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "APITimeoutError Timeout TimeoutException TimeoutError ReadTimeout ConnectTimeout WriteTimeout PoolTimeout "
            "ReadTimeoutError ConnectTimeoutError ServerTimeoutError ConnectionTimeoutError "
            "SocketTimeoutError RetryError"
        ),
        _C.TIMEOUT,
    ),
    **dict.fromkeys(
        _split(
            "APIConnectionError ConnectionError NetworkError ConnectError ReadError WriteError "
            "CloseError ProtocolError "
            "RemoteProtocolError TransportError ProxyError SSLError NewConnectionError NameResolutionError "
            "ClientConnectionError ClientOSError HTTPClientError ConnectionClosed ConnectionClosedError "
            "WebSocketConnectionClosedError RemoteDisconnected BadStatusLine NoResponseError SSEError"
        ),
        _C.CONNECTION,
    ),
    # urllib3 derives this from a timeout, though it says that the connection was refused.
    **dict.fromkeys(("NewConnectionError", "NameResolutionError"), _C.CONNECTION),
    **dict.fromkeys(
        _split(
            "APIResponseValidationError ResponseValidationError JSONDecodeError InvalidJSONError "
            "DecodingError DecodeError "
            "ContentDecodingError ChunkedEncodingError IncompleteRead InvalidChunkLength ClientPayloadError "
            "ContentTypeError ResponseStreamingError UnknownApiResponseError ParsingError"
        ),
        _C.MALFORMED_RESPONSE,
    ),
    **dict.fromkeys(
        _split(
            "ContentFilterFinishReasonError ContentPolicyViolationError ContentFilterError BlockedPromptException "
            "StopCandidateException GuardrailRaisedException"
        ),
        _C.CONTENT_FILTERED,
    ),
    **dict.fromkeys(
        _split(
            "ContextWindowExceededError ContextOverflowError LengthFinishReasonError UnsupportedParamsError "
            "ParamValidationError InvalidURL MissingSchema InvalidSchema UnsupportedProtocol LocalProtocolError "
            "InvalidHeader TooManyRedirects LocationParseError URLSchemeUnknown"
        ),
        _C.INVALID_REQUEST,
    ),
    **dict.fromkeys(
        _split(
            "NoCredentialsError PartialCredentialsError CredentialRetrievalError TokenRetrievalError NoAuthTokenError "
            "SSOError DefaultCredentialsError RefreshError CredentialsError WorkloadIdentityError"
        ),
        _C.AUTH,
    ),
    "BudgetExceededError": _C.QUOTA_EXHAUSTED,
}

#: Class names that decide where there is neither status nor word.
_TELLING_NAMES: Mapping[str, Category] = {
    **dict.fromkeys(
        _split("RateLimitError TooManyRequests TooManyRequestsError ResourceExhausted ThrottlingException"),
        _C.RATE_LIMITED,
    ),
    **dict.fromkeys(_split("OverloadedError ServiceUnavailable ServiceUnavailableError"), _C.OVERLOADED),
    **dict.fromkeys(_split("GatewayTimeout GatewayTimeoutError DeadlineExceeded"), _C.TIMEOUT),
    **dict.fromkeys(
        _split("InternalServerError ServerError BadGateway BadGatewayError Unknown DataLoss"), _C.SERVER_ERROR
    ),
    **dict.fromkeys(_split("ConflictError Conflict Aborted AlreadyExists"), _C.CONFLICT),
    **dict.fromkeys(
        _split(
            "AuthenticationError PermissionDeniedError PermissionDenied Unauthenticated Unauthorized UnauthorizedError "
            "Forbidden ForbiddenError InvalidTokenError"
        ),
        _C.AUTH,
    ),
    **dict.fromkeys(
        _split(
            "BadRequestError BadRequest NotFoundError NotFound InvalidArgument FailedPrecondition OutOfRange "
            "UnprocessableEntityError InvalidRequestError HTTPValidationError ValidationException"
        ),
        _C.INVALID_REQUEST,
    ),
}

#: Bases of SDK errors that, raised as they are, carry an error event of a stream or a missing key.
_BARE_NAMES: Mapping[str, Category] = {
    "openai.APIError": _C.SERVER_ERROR,
    "openai.APIStatusError": _C.SERVER_ERROR,
    "groq.APIStatusError": _C.SERVER_ERROR,
    "anthropic.APIError": _C.SERVER_ERROR,
    "anthropic.APIStatusError": _C.SERVER_ERROR,
    "groq.APIError": _C.SERVER_ERROR,
    "openai.OpenAIError": _C.AUTH,
    "groq.GroqError": _C.AUTH,
    "botocore.EventStreamError": _C.SERVER_ERROR,
}

_NETWORK_ERRNOS = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
        errno.ENETUNREACH,
        errno.ENETDOWN,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.EADDRNOTAVAIL,
    )
)

_PROGRAMMING = (TypeError, SyntaxError, ImportError, NameError, AttributeError)


def classify_response(response: Response, *, now_s: float | None = None) -> Failure | None:
    """Say what kind of failure `response` is; None for a good answer (2xx with a completion, or not ours to judge).

    A 2xx fails when it carries an error (Anthropic's `overloaded_error`, OpenRouter, an SSE error event), is HTML or
    text that claims to be JSON, or holds nothing but a refusal: every choice withheld and no text (content_filtered).
    An answer that was cut short by a filter but has text is an answer; its finish reason says the rest.

    Args:
        now_s: Our clock, seconds since the epoch, for a Retry-After that is a date; None: read it against `Date`.
    """
    headers = lower_case(response.headers)
    if 200 <= response.status < 300:
        verdict = _of_answer(response.body, headers)
        if verdict is None:
            return None
        category, words = verdict
    else:
        evidence = _Evidence.of(response.status, headers, response.body)
        category, words = evidence.category() or _C.SERVER_ERROR, evidence.words
    return Failure(
        category=category,
        cause=_cause("", response.status, words),
        status=response.status,
        retry_after_s=retry_after_s(headers, response.body, now_s=now_s),
        request_id=_request_id(headers),
    )


def classify_exception(error: BaseException, *, now_s: float | None = None) -> Failure | None:
    """Say what kind of failure `error` is; None: unknown to us, so Celery's own rules hold.

    The outermost error of the chain (`__cause__`, `__context__`, a client's `reason`) that we know decides; what it was
    raised from may sharpen it (a wrapper's 429 that was an `insufficient_quota`) and adds Retry-After and request id.
    Of an exception group, the first member that is worth a retry decides, else the first that we know.

    Plain Python mistakes count as PROGRAMMING only as the outermost error. Decode errors count as the provider's only
    when they passed through a client's code: a task that fails to parse what the model wrote says nothing about the
    provider's health. Errors of Redis, databases and Celery itself are never the provider's.

    Args:
        now_s: Our clock, seconds since the epoch, for a Retry-After that is a date; None: read it against `Date`.
    """
    return _of_chain(error, now_s, set())


# --- Answers ---


def _of_answer(body: Any, headers: Mapping[str, str]) -> tuple[Category, tuple[str, ...]] | None:
    """Category and words of a 2xx that is no good answer."""
    kind = headers.get("content-type", "").lower()
    if isinstance(body, bytes | str):
        if "event-stream" in kind:
            event = _error_event(body if isinstance(body, str) else body.decode("utf-8", "replace"))
            return None if event is None else _of_error(event)
        # Text that nobody called JSON is an answer in its own right (a transcript, a prompt's raw completion).
        return (_C.MALFORMED_RESPONSE, ("not_json",)) if "json" in kind or "html" in kind else None
    for part in body[-1:] if isinstance(body, list) else (body,):  # Gemini streams a list; its error comes last
        if not isinstance(part, Mapping):
            continue
        if part.get("error") or part.get("type") == "error":
            return _of_error(part)
        broken = [choice for choice in _items(part.get("choices")) if choice.get("error")]
        if broken:
            return _of_error(broken[0])
        if _withheld(part):
            return _C.CONTENT_FILTERED, ("no_completion",)
    return None


def _of_error(body: Mapping[Any, Any]) -> tuple[Category, tuple[str, ...]]:
    evidence = _Evidence.of(None, {}, body)
    for fields in error_objects(body):  # OpenRouter puts the upstream's status into `code`
        status = fields.get("code") or fields.get("status_code")
        if _is_status(status):
            evidence = replace(evidence, status=status)
            break
    return evidence.category() or _C.SERVER_ERROR, evidence.words


def _error_event(text: str) -> Mapping[Any, Any] | None:
    """The error event of a server-sent stream, where there is one."""
    named = False
    for line in text[-_LONGEST_JSON:].splitlines():
        if line.startswith("event:"):
            named = line[6:].strip() == "error"
        elif line.startswith("data:") and (named or '"error"' in line):
            found = _parsed(line[5:].strip())
            if isinstance(found, Mapping) and (named or found.get("error") or found.get("type") == "error"):
                return found
            if named:
                return {"error": {}}
    return None


def _withheld(answer: Mapping[Any, Any]) -> bool:
    """Whether an answer holds a refusal and no completion at all."""
    choices = _items(answer.get("choices"))
    if choices:  # OpenAI
        messages = [choice.get("message") for choice in choices]
        return all(
            (
                choice.get("finish_reason") == "content_filter"
                or (isinstance(said, Mapping) and bool(said.get("refusal")))
            )
            and not (isinstance(said, Mapping) and (said.get("content") or said.get("tool_calls")))
            and not choice.get("text")
            for choice, said in zip(choices, messages, strict=True)
        )
    if answer.get("stop_reason") == "refusal":  # Anthropic
        return not any(part.get("text") or part.get("type") == "tool_use" for part in _items(answer.get("content")))
    if answer.get("stopReason") in {"guardrail_intervened", "content_filtered"}:  # Bedrock
        output = answer.get("output")
        said = output.get("message") if isinstance(output, Mapping) else None
        return not (isinstance(said, Mapping) and said.get("content"))
    if answer.get("object") == "response":  # OpenAI's Responses
        parts = [part for item in _items(answer.get("output")) for part in _items(item.get("content"))]
        called = any(item.get("type", "").endswith("_call") for item in _items(answer.get("output")))
        return bool(parts) and not called and all(part.get("type") == "refusal" for part in parts)
    candidates = _items(answer.get("candidates"))
    if candidates:  # Gemini
        return all(
            candidate.get("finishReason") in {"SAFETY", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "RECITATION"}
            and not (isinstance(candidate.get("content"), Mapping) and candidate["content"].get("parts"))
            for candidate in candidates
        )
    feedback = answer.get("promptFeedback")
    return isinstance(feedback, Mapping) and bool(feedback.get("blockReason"))


def _items(value: Any) -> list[Mapping[Any, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


# --- Evidence: what one answer, or one exception, says for itself ---


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Status, machine words and message of one refusal, from wherever they were found."""

    status: int | None
    words: tuple[str, ...]  #: as they were written; at most 16
    message: str  #: to be searched, never to be shown
    per_day: bool  #: Gemini names the quota that was hit
    never: bool  #: Gemini's quota of 0: this key may not use this model at all

    @classmethod
    def of(cls, status: int | None, headers: Mapping[str, str], body: Any, *, also: tuple[Any, ...] = ()) -> _Evidence:
        """Gather what an error body says; `also` are words (or a message, the only one with a space) from elsewhere."""
        body = _parsed(body)
        words: list[str] = []
        message, per_day, never = (body if isinstance(body, str) else ""), False, False
        amazon = headers.get("x-amzn-errortype", "").partition(":")[0]
        for fields in error_objects(body):
            for name in ("type", "code", "status", "reason", "error_code", "error_type", "__type", "Code", "error"):
                value = fields.get(name)
                # AWS qualifies its types: com.amazon.coral.service#ThrottlingException
                words += [value.rpartition("#")[2]] if isinstance(value, str) else []
            said = fields.get("message") or fields.get("Message") or fields.get("error_description")
            message = message or (said if isinstance(said, str) else "")
            quota = fields.get("quotaId") or fields.get("quota_id")
            per_day = per_day or (isinstance(quota, str) and "PerDay" in quota[:256])
            never = never or (quota is not None and str(fields.get("quotaValue"))[:8] == "0")
        for extra in (amazon, *also):
            if isinstance(extra, str) and " " in extra:
                message = message or extra
            elif isinstance(extra, str) and extra:
                words.append(extra)
        short = tuple(dict.fromkeys(word for word in words if len(word) <= 64))[:16]
        return cls(status, short, message[:_LONGEST_MESSAGE], per_day, never)

    def category(self) -> Category | None:
        """The verdict; None where there is neither a status nor a word that we know."""
        words = [_plain(word) for word in self.words]
        decisive = _known(words, _DECISIVE_WORDS)
        if decisive is not None:
            return decisive
        if self.status is None or self.status in _VAGUE_STATUS:
            telling = _known(words, _TELLING_WORDS)
            if telling is _C.RATE_LIMITED or (telling is not None and self.status != 403):
                return self._refined(telling)
        return None if self.status is None else self._refined(_of_status(self.status))

    def _refined(self, category: Category) -> Category:
        """Tell quotas, and requests that will never fit, from mere rate limits and bad requests."""
        if category is _C.RATE_LIMITED:
            fits = _NEVER_FITS.match(self.message)
            if fits is not None and int(fits[2]) > int(fits[1]):
                return _C.INVALID_REQUEST  # OpenAI says 429 to a call larger than the minute's whole budget
            if self.per_day or self.never or _QUOTA_429.search(self.message):
                return _C.QUOTA_EXHAUSTED
        elif category in {_C.INVALID_REQUEST, _C.AUTH} and _QUOTA_400.match(self.message):
            return _C.QUOTA_EXHAUSTED
        return category


def _of_status(status: int) -> Category:
    if status in _STATUS:
        return _STATUS[status]
    return _C.INVALID_REQUEST if 300 <= status < 500 else _C.SERVER_ERROR


def _known(words: list[str], table: Mapping[str, Category]) -> Category | None:
    for word in words:
        if word in table:
            return table[word]
        if table is _DECISIVE_WORDS and ("spendlimit" in word or "billing" in word):
            return _C.QUOTA_EXHAUSTED
        if table is _DECISIVE_WORDS and word.endswith("policyviolation"):
            return _C.CONTENT_FILTERED
    return None


def _plain(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def _is_status(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 400 <= value <= 599


def _parsed(body: Any) -> Any:
    """JSON that a client left as text or bytes; anything else as it is."""
    if isinstance(body, bytes | bytearray):
        body = bytes(body[: _LONGEST_JSON + 1]).decode("utf-8", "replace")
    if not isinstance(body, str) or len(body) > _LONGEST_JSON or body.lstrip()[:1] not in ("{", "["):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # no JSON after all: the text itself is what was said
        return body


# --- Exceptions ---


def _of_chain(error: BaseException, now_s: float | None, seen: set[int]) -> Failure | None:
    found: Failure | None = None
    link: BaseException | None = error
    explicit = True  # all links since the one that decides were raised `from` each other
    for depth in range(_MOST_LINKS):
        if link is None or id(link) in seen:
            break
        seen.add(id(link))
        if _not_the_providers(link):
            break
        if isinstance(link, BaseExceptionGroup):
            failure = _of_group(link, now_s, seen)
        else:
            failure = _of_link(link, now_s, outermost=depth == 0)
        if found is None:
            found = failure
        elif failure is not None and explicit:
            found = _sharpened(found, failure)
        link, raised_from = _next(link)
        explicit = found is None or (explicit and raised_from)
    return found


def _not_the_providers(error: BaseException) -> bool:
    if isinstance(error, RateLimitWorkerError):
        return not isinstance(error, CallFailed)
    if not isinstance(error, Exception | BaseExceptionGroup):
        return True  # KeyboardInterrupt, SystemExit, CancelledError: somebody wants this to end
    return any(_root(kind) in _OTHER_ROOTS for kind in type(error).__mro__)


def _next(error: BaseException) -> tuple[BaseException | None, bool]:
    """What `error` came from, and whether it says so itself."""
    if error.__cause__ is not None:
        return error.__cause__, True
    for name in ("reason", "os_error", "original_error"):  # urllib3, urllib, aiohttp, botocore
        inner = _get(error, name)
        if isinstance(inner, BaseException):
            return inner, True
    return (None if error.__suppress_context__ else error.__context__), False


def _of_group(group: BaseExceptionGroup[BaseException], now_s: float | None, seen: set[int]) -> Failure | None:
    members = [_of_chain(member, now_s, seen) for member in group.exceptions[:_MOST_MEMBERS]]
    failures = [failure for failure in members if failure is not None]
    transient = [f for f in failures if f.sick or f.category in {_C.RATE_LIMITED, _C.CONFLICT}]
    return next(iter(transient or failures), None)


def _sharpened(found: Failure, deeper: Failure) -> Failure:
    special = deeper.category in {_C.QUOTA_EXHAUSTED, _C.CONTENT_FILTERED}
    vague = found.category in {_C.RATE_LIMITED, _C.INVALID_REQUEST, _C.SERVER_ERROR, _C.AUTH}
    return Failure(
        category=deeper.category if special and vague else found.category,
        cause=f"{found.cause} from {deeper.cause}"[:300] if deeper.cause not in found.cause else found.cause,
        status=found.status or deeper.status,
        retry_after_s=found.retry_after_s if found.retry_after_s is not None else deeper.retry_after_s,
        request_id=found.request_id or deeper.request_id,
    )


def _of_link(error: BaseException, now_s: float | None, *, outermost: bool) -> Failure | None:
    """The verdict on one exception, whatever it came from."""
    if isinstance(error, CallFailed):
        request_id = error.request_id if isinstance(error.request_id, str) else None
        cause = error.cause.splitlines()[0][:300] if isinstance(error.cause, str) and error.cause else _name(error)
        return Failure(category=error.category, cause=cause, status=error.status, request_id=request_id)
    response = _get(error, "response")
    if isinstance(response, Response):
        failure = classify_response(response, now_s=now_s)
        return None if failure is None else replace(failure, cause=f"{_name(error)}: {failure.cause}")
    names = [(_root(kind), kind.__name__) for kind in type(error).__mro__ if _root(kind) in _PROVIDER_ROOTS]
    headers, body, evidence = _testimony(error, response, providers=bool(names))
    category = (
        next((_DECISIVE_NAMES[name] for _, name in names if name in _DECISIVE_NAMES), None)
        or evidence.category()
        or next((_TELLING_NAMES[name] for _, name in names if name in _TELLING_NAMES), None)
        or (_BARE_NAMES.get(".".join(names[0])) if names else None)
        or _of_builtin(error, outermost=outermost)
    )
    if category is None:
        return None
    return Failure(
        category=category,
        cause=_cause(_name(error), evidence.status, evidence.words)
        + (_place(error) if category is _C.PROGRAMMING else ""),
        status=evidence.status,
        retry_after_s=retry_after_s(headers, body, now_s=now_s),
        request_id=_request_id(headers),
    )


def _testimony(error: BaseException, response: Any, *, providers: bool) -> tuple[dict[str, str], Any, _Evidence]:
    """Headers, body and evidence that an exception carries, in the ways of the SDKs that we know."""
    if response is None:
        response = _get(error, "raw_response")  # mistralai
    headers: dict[str, str] = {}
    also: list[Any] = []
    statuses = [_get(error, name) for name in ("status_code", "http_status", "status", "code")]
    body: Any = None
    if isinstance(response, Mapping):  # botocore
        meta = response.get("ResponseMetadata")
        meta = meta if isinstance(meta, Mapping) else {}
        statuses.append(meta.get("HTTPStatusCode"))
        headers, body = lower_case(meta.get("HTTPHeaders")), {"error": response.get("Error")}
        if isinstance(meta.get("RequestId"), str):
            headers.setdefault("x-amzn-requestid", meta["RequestId"])
    elif response is not None:
        statuses += [_get(response, "status_code"), _get(response, "status")]
        headers, body = lower_case(_get(response, "headers")), _text_of(response)
    for name in ("headers", "litellm_response_headers"):
        headers = {**lower_case(_get(error, name)), **headers}
    for name in ("body", "details", "error"):  # the SDKs' own reading of the body
        said = _get(error, name)
        if isinstance(said, Mapping | bytes) or (isinstance(said, str) and said[:1] in ("{", "[")):
            body = said
            break
        if isinstance(said, list) and said:
            body = {"error": {"details": [_plain_details(item) for item in said[:_MOST_MEMBERS]]}}
            break
    status = next((int(value) for value in statuses if _is_status(value)), None)
    if providers or status is not None:
        also = [_get(error, name) for name in ("code", "type", "status", "reason", "error_code")]
        also += [_grpc_code(error), _get(error, "message"), _said(error)]
    return headers, body, _Evidence.of(status, headers, body, also=tuple(also))


def _text_of(response: Any) -> Any:
    """The body that a client's response has already read; reading on would be I/O, and is left alone."""
    if _get(response, "_content_consumed") is False:  # requests would go to the network for `.text`
        return None
    for name in ("text", "content", "body"):
        said = _get(response, name)
        if isinstance(said, str | bytes | Mapping) and said:
            return said
    return None


def _plain_details(item: Any) -> Any:
    """One of google.rpc's error details: protobuf messages as the JSON they stand for."""
    if isinstance(item, Mapping):
        return item
    delay = _get(item, "retry_delay")
    violations = _get(item, "violations")
    return {
        "reason": _get(item, "reason"),
        "retryDelay": {name: _get(delay, name) for name in ("seconds", "nanos")},
        "violations": [
            {"quotaId": _get(violation, "quota_id"), "quotaValue": _get(violation, "quota_value")}
            for violation in (list(violations)[:16] if isinstance(violations, list | tuple) else [])
        ],
    }


def _grpc_code(error: BaseException) -> Any:
    """grpc's errors say their code by a method."""
    code = _get(error, "code")
    if not callable(code) or not any(_root(kind) == "grpc" for kind in type(error).__mro__):
        return None
    try:
        return _get(code(), "name")
    except Exception:  # a stranger's method: what it cannot say is not known
        return None


def _of_builtin(error: BaseException, *, outermost: bool) -> Category | None:
    """Python's own errors."""
    kind = type(error)
    if isinstance(error, TimeoutError):
        return _C.TIMEOUT
    if isinstance(error, ConnectionError) or kind.__name__ in {"gaierror", "herror"} or _root(kind) == "ssl":
        return _C.CONNECTION
    if isinstance(error, OSError) and error.errno in _NETWORK_ERRNOS:
        return _C.CONNECTION
    if isinstance(error, ValueError) and "DecodeError" in kind.__name__ and _passed_a_client(error):
        return _C.MALFORMED_RESPONSE
    return _C.PROGRAMMING if outermost and isinstance(error, _PROGRAMMING) else None


def _passed_a_client(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        if isinstance(module, str):
            root = module.partition(".")[0]
            if root in _PROVIDER_ROOTS or module.startswith("ratelimit_worker.providers"):
                return True
        trace = trace.tb_next
    return False


# --- Words that may be shown ---


_SHOWABLE = re.compile(r"[A-Za-z]{1,24}(?:[_. -]?[A-Za-z]{1,24}){0,6}|[0-9]{1,4}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/=+-]{0,127}")


def _cause(name: str, status: int | None, words: tuple[str, ...]) -> str:
    """One line: class name, status, and those machine words that are in our tables.

    A provider may put anything into `code`, the key included; what we have never heard of is not repeated.
    """
    shown = [word for word in words if _SHOWABLE.fullmatch(word) and _familiar(word)]
    parts = [f"HTTP {status}" if status is not None else "", "/".join(shown[:3])]
    said = " ".join(part for part in parts if part)
    return f"{name}: {said}" if name and said else name or said


def _familiar(word: str) -> bool:
    plain = _plain(word)
    return (
        plain in _DECISIVE_WORDS
        or plain in _TELLING_WORDS
        or plain in {"tokens", "requests", "notjson", "nocompletion"}
    )


def _request_id(headers: Mapping[str, str]) -> str | None:
    for name in ("x-request-id", "request-id", "x-amzn-requestid", "apim-request-id"):
        found = headers.get(name, "")
        if _REQUEST_ID.fullmatch(found):
            return found
    return None


def _name(error: BaseException) -> str:
    kind = type(error)
    root = _root(kind)
    return kind.__name__ if root in {"builtins", "ratelimit_worker", "__main__"} else f"{root}.{kind.__name__}"


def _place(error: BaseException) -> str:
    """Where a mistake is, since its message cannot be shown: the last frame's file and line."""
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"


def _root(kind: type) -> str:
    module = kind.__module__
    return module.partition(".")[0] if isinstance(module, str) else ""


def _get(thing: Any, name: str) -> Any:
    """An attribute of a stranger's object; None where there is none, or where asking for it raises."""
    try:
        return getattr(thing, name, None)
    except Exception:  # httpx raises from `.text` of a body that was not read; others may do worse
        return None


def _said(error: BaseException) -> str | None:
    try:
        return str(error)[:_LONGEST_MESSAGE]
    except Exception:  # a stranger's __str__
        return None
