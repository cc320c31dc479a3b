"""How providers and their SDKs name failures. Only tables: words, statuses, messages, class names.

Machine words are compared without case and punctuation. Classes are recognised by the package that defines them, so no
SDK is imported. `classification` uses these tables.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping

from ratelimit_worker.calls import Category
from ratelimit_worker.policy.pattern import lazy

_C = Category


def _split(words: str) -> list[str]:
    return words.split()


# --- Machine words, compared without case and punctuation: `rate_limit_exceeded` and `RateLimitExceeded` are one. ---

#: Words that decide, whatever the status.
DECISIVE_WORDS: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "insufficientquota insufficientuserquota insufficientbalance insufficientcredits insufficientfunds "
            "exceededcurrentquotaerror budgetexceeded budgetexceedederror exceededbudget paymentrequired "
            "billingerror billingnotactive billingdisabled billinghardlimitreached "
            "linkedorganizationbillingunavailable "
            "enforcedspendlimitreached contractspendlimitreached linkedorganizationspendlimitreached "
            "dailylimitexceeded servicequotaexceededexception quotaexceeded arrearage usagelimitreached budget "
            "accountoverdue accountoverdueerror setlimitexceeded allocationquotafreetieronly"
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
        _split(
            "invalidapikey apikeyinvalid accountdeactivated organizationonhold expiredtokenexception "
            "nodbconnection"  # a LiteLLM proxy without a database, of every key but its master key
        ),
        _C.AUTH,
    ),
    "modeltimeoutexception": _C.TIMEOUT,
}

#: Words that decide if the status does not: for errors inside a 200 or a stream, and where 400 or 403 is too general.
TELLING_WORDS: Mapping[str, Category] = {
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
            "outofrange unprocessableentity unprocessableentityerror unimplemented "
            # of pictures, in a failed response of OpenAI's
            "invalidimage invalidimageformat invalidimagemode invalidimageurl invalidbase64image imagetoolarge "
            "imagetoosmall imageparseerror imagefiletoolarge imagefilenotfound unsupportedimagemediatype "
            "emptyimagefile failedtodownloadimage"
        ),
        _C.INVALID_REQUEST,
    ),
}

STATUS: Mapping[int, Category] = {
    401: _C.AUTH,
    402: _C.QUOTA_EXHAUSTED,
    403: _C.AUTH,
    407: _C.AUTH,
    408: _C.TIMEOUT,
    409: _C.CONFLICT,
    420: _C.RATE_LIMITED,  # in no standard: "Enhance your calm"
    424: _C.SERVER_ERROR,  # Bedrock: the model behind it failed
    425: _C.CONFLICT,
    429: _C.RATE_LIMITED,
    498: _C.OVERLOADED,  # Groq: flex capacity exceeded
    499: _C.CONNECTION,  # a gateway on the way has closed the connection
    503: _C.OVERLOADED,
    522: _C.TIMEOUT,  # Cloudflare: the provider behind it did not answer
    524: _C.TIMEOUT,
    529: _C.OVERLOADED,
    598: _C.TIMEOUT,
    599: _C.TIMEOUT,
}

#: Statuses so general that a specific word overrides them.
VAGUE_STATUS = frozenset({400, 403, 404, 422})

#: Statuses of requests that are wrong in themselves: their messages may quote the request.
ECHOING_STATUS = frozenset({400, 404, 413, 415, 422})

# --- Messages: only where a provider has no machine word. A 400 may repeat its input, so only its start counts. ---

#: Words about a day or longer, or about money: waiting a minute does not help.
_USED_UP = (
    r"insufficient[_ ](?:quota|credit|balance|fund)|credit balance|(?:out of|not enough|no remaining) credits?"
    r"|(?:used|spent) (?:up )?all (?:of )?(?:your |the )?(?:available |remaining )?(?:credits?|quota|balance)"
    r"|(?:have|has) any (?:remaining )?credits?|credit limit exceeded|balance (?:is )?(?:not enough|insufficient)"
    r"|per[ _-]?(?:day|month)(?![a-z])|\b(?:RPD|TPD)\b"
    r"|\b(?:daily|monthly) (?:limit|quota|request|token|usage|budget|spend)"
    r"|spend(?:ing)? limit|billing (?:hard )?limit|usage limits?\b"
    r"|call volume quota|token quota|quota will be replenished|key limit exceeded"
    r"|requires? billing|billing (?:account|to be enabled|is (?:not|disabled))|(?:past|unpaid|outstanding) invoices?"
    r"|used up your\b.{0,40}\b(?:allocation|allowance|quota|credits?|balance)"
    # Chinese, Japanese, Korean
    r"|余额不足|餘額不足|额度(?:不足|已用[尽完])|額度(?:不足|已用[盡完])|欠费|欠費|请(?:先)?充值|資金不足|配额已用[尽完]|[每当]日(?:调用|请求)?(?:次数)?上限"
    r"|残高(?:が|は)?不足|クレジット(?:残高)?が?(?:不足|足りません|ありません)|[1１一]日の(?:上限|制限|利用)"
    r"|잔액이? ?부족|크레딧이? ?(?:부족|소진)|일일 (?:한도|사용량)"
    # Russian, and what uses the Latin alphabet
    r"|недостаточно (?:средств|кредитов|баланса)|баланс исчерпан|(?:суточн|дневн|месячн)\w+ (?:лимит|квот)"
    r"|(?:cr[eé]ditos?|saldo|fondos|cr[eé]dit|solde|credito) insuf+i(?:ci[eê]nt|sant)(?:es?|i)?\b"
    r"|saldo insuficiente|fonds insuffisants"
    r"|l[ií]mite (?:diari[oa]|mensual|mensal)|quota (?:journalier|quotidien|mensuel)\w*|limite giornalier[oa]"
    r"|guthaben (?:ist )?(?:aufgebraucht|nicht ausreichend|reicht nicht|erschöpft)|(?:tages|monats)(?:limit|kontingent)"
)
#: Anywhere in a message that does not quote the request.
QUOTA_429 = lazy(_USED_UP, re.I)
#: Offers to pay, which do not say what was refused ("Add 10 credits to unlock 1000 requests per day").
OFFER = lazy(r"\b(?:add [0-9]+ credits?|upgrade|to unlock)\b[^.\n]*", re.I)
QUOTA_400 = lazy(
    r"\W*(?:your (?:account'?s? )?credit balance is too low|you have reached your specified (?:\w+ )?usage limits?"
    r"|billing hard limit has been reached|your account is not active, please check your billing"
    r"|insufficient (?:account )?(?:balance|credits?|funds|quota)|you have run out of credits|out of call volume quota"
    r"|credit limit exceeded|account [\w-]{1,64} is suspended, possibly due to reaching the monthly spending limit)",
    re.I,
)
#: A 403 that means a quota and not the key; in a 429, the same words may be about a minute.
QUOTA_403 = lazy(
    r"\bquota (?:has been |is |was )?(?:exceeded|exhausted)\b"
    r"|\b(?:exceeded|exhausted) (?:your|the|its)\b.{0,20}\bquota\b"
    r"|\bfree tier\b.{0,40}\bexhausted\b",
    re.I,
)
#: A 403 that is about the request's content (OpenRouter's moderation).
FLAGGED_403 = lazy(r"\b(?:input|prompt|content|request) (?:was |is |has been )?flagged\b", re.I)
#: A 400 that is about the content, without a machine word, by the start of its message (Z.ai).
FILTERED_400 = lazy(r"\W*系统检测到输入或生成内容可能包含不安全或敏感内容")
#: A 400 that is about the account, by the start of its message.
ACCOUNT_400 = lazy(
    r"\W*(?:this organization has been disabled|(?:incorrect|invalid) api key\b|api key (?:not valid|expired)"
    r"|user location is not supported)",
    re.I,
)
#: OpenAI's sentence for an account that has no credit.
OWN_QUOTA = lazy(r"exceeded your current quota", re.I)
#: A limit of 0: this key may not use this at all, until somebody pays.
NO_LIMIT = lazy(r"\blimit(?:ed)?(?: is| to)?[:=]? ?0(?![.,]?[0-9])", re.I)
NEVER_FITS = lazy(r"\W*request too large .{0,300}?limit:? ([0-9]{1,12}), requested:? ([0-9]{1,12})", re.I | re.S)

# --- Class names, by the package that defines the class or one of its bases. ---

#: Packages whose errors are about a provider or the way to it.
PROVIDER_ROOTS = frozenset(
    _split(
        "openai anthropic google vertexai grpc mistralai cohere groq botocore boto3 aiobotocore "
        "litellm ollama together "
        "fireworks cerebras replicate huggingface_hub azure xai_sdk instructor pydantic_ai langchain langchain_core "
        "langchain_openai langchain_anthropic langchain_google_genai langchain_aws langchain_mistralai "
        "langchain_groq langchain_cohere langchain_google_vertexai httpx httpx2 "
        "httpcore httpcore2 requests urllib3 urllib http aiohttp h11 h2 websockets httpx_sse"
    )
)

#: Packages whose errors are about broker, database or Celery's control flow, and never a provider's failure.
OTHER_ROOTS = frozenset(
    _split("redis valkey kombu celery billiard amqp vine sqlalchemy alembic psycopg psycopg2 asyncpg sqlite3 pymongo")
)

#: Class names that say more than the status of the exception (litellm gives its APIConnectionError a 500).
DECISIVE_NAMES: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "APITimeoutError Timeout TimeoutException TimeoutError ReadTimeout ConnectTimeout WriteTimeout PoolTimeout "
            "ReadTimeoutError ConnectTimeoutError ServerTimeoutError ConnectionTimeoutError "
            "SocketTimeoutError RetryError ModelTimeoutError ModelRequestTimeout"
        ),
        _C.TIMEOUT,
    ),
    **dict.fromkeys(
        _split(
            "APIConnectionError ConnectionError NetworkError ConnectError ReadError WriteError "
            "CloseError ProtocolError "
            "RemoteProtocolError TransportError ProxyError SSLError NewConnectionError NameResolutionError "
            "ClientConnectionError ClientOSError HTTPClientError ConnectionClosed ConnectionClosedError "
            "WebSocketConnectionClosedError RemoteDisconnected BadStatusLine NoResponseError SSEError "
            "ModelConnectionError"
        ),
        _C.CONNECTION,
    ),
    # In urllib3 this derives from a timeout, but means that the connection was refused.
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
            "StopCandidateException GuardrailRaisedException BlockedPiiEntityError ModelRefusalError"
        ),
        _C.CONTENT_FILTERED,
    ),
    **dict.fromkeys(
        _split(
            "ContextWindowExceededError ModelContextWindowExceededError ContextOverflowError LengthFinishReasonError "
            "UnsupportedParamsError "
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
    **dict.fromkeys(("BudgetExceededError", "ModelQuotaExceededError"), _C.QUOTA_EXHAUSTED),
}

#: Class names of errors that come before the request was sent.
UNSENT_NAMES = frozenset(
    _split(
        "ConnectError ConnectTimeout PoolTimeout ProxyError NewConnectionError NameResolutionError ConnectTimeoutError "
        "ConnectionTimeoutError ClientConnectorError SSLError"
    )
)

#: Class names that decide if there is neither status nor word.
TELLING_NAMES: Mapping[str, Category] = {
    **dict.fromkeys(
        _split(
            "RateLimitError TooManyRequests TooManyRequestsError ResourceExhausted ThrottlingException "
            "ModelRateLimitError"
        ),
        _C.RATE_LIMITED,
    ),
    **dict.fromkeys(
        _split("OverloadedError ServiceUnavailable ServiceUnavailableError ModelUnavailableError"), _C.OVERLOADED
    ),
    **dict.fromkeys(_split("GatewayTimeout GatewayTimeoutError DeadlineExceeded"), _C.TIMEOUT),
    **dict.fromkeys(
        _split("InternalServerError ServerError BadGateway BadGatewayError Unknown DataLoss ModelServerError"),
        _C.SERVER_ERROR,
    ),
    **dict.fromkeys(_split("ConflictError Conflict Aborted AlreadyExists"), _C.CONFLICT),
    **dict.fromkeys(
        _split(
            "AuthenticationError PermissionDeniedError PermissionDenied Unauthenticated Unauthorized UnauthorizedError "
            "Forbidden ForbiddenError InvalidTokenError ModelAuthenticationError ModelPermissionDeniedError"
        ),
        _C.AUTH,
    ),
    **dict.fromkeys(
        _split(
            "BadRequestError BadRequest NotFoundError NotFound InvalidArgument FailedPrecondition OutOfRange "
            "UnprocessableEntityError InvalidRequestError HTTPValidationError ValidationException "
            "ModelRequestRejectedError ModelInvalidRequestError ModelNotFoundError"
        ),
        _C.INVALID_REQUEST,
    ),
}

#: Base classes of SDK errors; raised themselves, they stand for an error event of a stream or a missing key.
BARE_NAMES: Mapping[str, Category] = {
    "openai.APIError": _C.SERVER_ERROR,
    "openai.APIStatusError": _C.SERVER_ERROR,
    "groq.APIStatusError": _C.SERVER_ERROR,
    "anthropic.APIError": _C.SERVER_ERROR,
    "anthropic.APIStatusError": _C.SERVER_ERROR,
    "groq.APIError": _C.SERVER_ERROR,
    "openai.OpenAIError": _C.AUTH,
    "groq.GroqError": _C.AUTH,
    "botocore.EventStreamError": _C.SERVER_ERROR,
    "langchain_core.ModelAPIError": _C.SERVER_ERROR,
}

NETWORK_ERRNOS = frozenset(
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

PROGRAMMING = (TypeError, SyntaxError, ImportError, NameError, AttributeError)


def of_status(status: int) -> Category:
    if status in STATUS:
        return STATUS[status]
    return _C.INVALID_REQUEST if 300 <= status < 500 else _C.SERVER_ERROR


def known(words: list[str], table: Mapping[str, Category]) -> Category | None:
    for word in words:
        if word in table:
            return table[word]
        if table is DECISIVE_WORDS and ("spendlimit" in word or "billing" in word):
            return _C.QUOTA_EXHAUSTED
        if table is DECISIVE_WORDS and word.endswith(("policyviolation", "sensitivecontentdetected")):
            return _C.CONTENT_FILTERED
    return None


def bare(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def familiar(word: str) -> bool:
    plain = bare(word)
    return (
        plain in DECISIVE_WORDS
        or plain in TELLING_WORDS
        or plain in {"tokens", "requests", "notjson", "nocompletion", "empty", "failed"}
    )
