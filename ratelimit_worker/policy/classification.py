"""What kind of failure is this answer, or this exception?

Everything that learns from failures (retry, pace, mode) asks here first: a 400 says nothing about capacity, and a
used-up quota is no rate limit. Classifies by status, machine words (type, code, reason), class names and, where
providers leave no other sign, the start of the message. No SDK is imported: classes are known by the package that
defines them.

vocabulary   the tables: words, statuses, class names
evidence     what one answer or exception says, and which part of that may be shown
completion   which 2xx are not a good answer
rules        rules of users and packages, which are asked first
here         the verdict, and the walk along an exception's causes, contexts and groups
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ratelimit_worker.calls import Category, Failure, Response
from ratelimit_worker.errors import CallFailed, RateLimitWorkerError
from ratelimit_worker.policy.completion import flaw_of
from ratelimit_worker.policy.evidence import (
    Evidence,
    attribute,
    class_name,
    one_line,
    place_of,
    proxy_status,
    request_id_of,
    root_of,
    testimony,
)
from ratelimit_worker.policy.headers import lower_case, retry_after_s
from ratelimit_worker.policy.rules import Rule, opinion
from ratelimit_worker.policy.vocabulary import (
    BARE_NAMES,
    DECISIVE_NAMES,
    NETWORK_ERRNOS,
    OTHER_ROOTS,
    PROGRAMMING,
    PROVIDER_ROOTS,
    TELLING_NAMES,
    UNSENT_NAMES,
    of_status,
)

_C = Category

#: With these categories, a budget of which headers say that nothing is left is taken to be the reason.
_REFUSED = frozenset({_C.RATE_LIMITED, _C.QUOTA_EXHAUSTED})
#: With these statuses a proxy refuses to connect: the password is missing, or this host is not allowed.
PROXYS_OWN = (403, 407)

_MOST_LINKS, _MOST_MEMBERS = 32, 64


def classify_response(response: Response, *, now_s: float | None = None) -> Failure | None:
    """What kind of failure `response` is; None: a good answer (a 2xx with a completion, or one that we cannot judge).

    A 2xx is a failure if it carries an error (Anthropic's `overloaded_error`, OpenRouter, MiniMax's `base_resp`, an
    error event of a stream), is empty, is HTML, claims to be JSON and is not, has nothing of what was asked for (no
    choice), or holds only a refusal (every choice withheld, and no text: content_filtered). An answer that has text and
    was cut short by a filter is an answer; its finish reason says so.

    Args:
        now_s: Our clock, seconds since the epoch, for a Retry-After that is a date; None: read it against `Date`.
    """
    headers = lower_case(response.headers)
    if 200 <= response.status < 300:
        flaw = flaw_of(response.body, headers, response.path)
        if flaw is None:
            return None
        category, words = flaw.category, flaw.words
    else:
        evidence = Evidence.of(response.status, headers, response.body)
        category, words = evidence.category() or _C.SERVER_ERROR, evidence.words
    return Failure(
        category=category,
        cause=one_line("", response.status, words),
        status=response.status,
        retry_after_s=retry_after_s(headers, response.body, now_s=now_s, refused=category in _REFUSED),
        request_id=request_id_of(headers),
    )


def classify_exception(
    error: BaseException, *, now_s: float | None = None, rules: Sequence[Rule] = ()
) -> Failure | None:
    """What kind of failure `error` is; None: unknown, so Celery's own rules apply.

    Of the chain of errors (`__cause__`, `__context__`, a client's `reason`), the outermost that is known decides. The
    errors behind it may make it more exact (a wrapper's 429 that was an `insufficient_quota`), and add Retry-After and
    request id. Of an exception group, the first member that is worth a retry decides, else the first that is known.

    Python's own errors (TypeError and similar) count as PROGRAMMING only as the outermost error. Errors of decoding
    count as the provider's only if they were raised in a client's code: a task that cannot parse what the model wrote
    says nothing about the provider. Errors of Redis, databases and Celery are never the provider's.

    Args:
        now_s: Our clock, seconds since the epoch, for a Retry-After that is a date; None: read it against `Date`.
        rules: Asked first, in order, about `error` itself. If one returns a category, that replaces ours, and the rest
            stays as found (status, Retry-After, request id). If it returns a `Failure`, that is the result.
    """
    said = opinion(error, rules) if rules else None
    if isinstance(said, Failure):
        return said
    found = _of_chain(error, now_s, set())
    if said is None:
        return found
    return replace(found, category=said) if found else Failure(category=said, cause=class_name(error))


def was_sent(error: BaseException | None, failure: Failure) -> bool:
    """Whether a request without an answer may have reached its provider, who then may charge for it.

    False if no connection was made, or the failure was of another kind.
    """
    if failure.category not in {_C.TIMEOUT, _C.CONNECTION}:
        return False
    link = error
    for _ in range(_MOST_LINKS):
        if link is None:
            break
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & UNSENT_NAMES or isinstance(link, ConnectionRefusedError):
            return False
        link = _next(link)[0]
    return True


def never_left(error: BaseException | None, failure: Failure) -> bool:
    """Whether a request did not leave for its provider: there was no connection to it (refused, no route, no name)."""
    return failure.category in {_C.TIMEOUT, _C.CONNECTION} and not was_sent(error, failure)


def _of_chain(error: BaseException, now_s: float | None, seen: set[int]) -> Failure | None:
    found: Failure | None = None
    link: BaseException | None = error
    explicit = True  # whether all errors behind the deciding one were raised `from` each other
    guess = False  # whether the deciding one has a status that no server sent
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
            found, guess = failure, _is_guess(link)
        elif failure is not None and explicit:
            better = guess and not _is_guess(link)
            found, guess = _sharpened(found, failure, guess=better), guess and not better
        link, raised_from = _next(link)
        explicit = found is None or guess or (explicit and raised_from)
    return found


def _not_the_providers(error: BaseException) -> bool:
    if isinstance(error, RateLimitWorkerError):
        return not isinstance(error, CallFailed)
    if not isinstance(error, Exception | BaseExceptionGroup):
        return True  # KeyboardInterrupt, SystemExit, CancelledError: the program is being stopped
    return any(root_of(kind) in OTHER_ROOTS for kind in type(error).__mro__)


def _next(error: BaseException) -> tuple[BaseException | None, bool]:
    """The error behind `error`, and whether it was named explicitly (`raise … from`)."""
    if error.__cause__ is not None:
        return error.__cause__, True
    # urllib3 and urllib; aiohttp; botocore; litellm's broken streams
    for name in ("reason", "os_error", "original_error", "original_exception"):
        inner = attribute(error, name)
        if isinstance(inner, BaseException):
            return inner, True
    # litellm raises its own errors while it handles the original, without `from`
    return (None if error.__suppress_context__ else error.__context__), root_of(type(error)) == "litellm"


def _is_guess(error: BaseException) -> bool:
    """Whether its class and status mean little: litellm says 500 for all that it cannot map, even resets and 529s."""
    return root_of(type(error)) == "litellm" and attribute(error, "status_code") == 500


def _of_group(group: BaseExceptionGroup[BaseException], now_s: float | None, seen: set[int]) -> Failure | None:
    members = [_of_chain(member, now_s, seen) for member in group.exceptions[:_MOST_MEMBERS]]
    failures = [failure for failure in members if failure is not None]
    transient = [f for f in failures if f.sick or f.category in {_C.RATE_LIMITED, _C.CONFLICT}]
    return next(iter(transient or failures), None)


def _sharpened(found: Failure, deeper: Failure, *, guess: bool) -> Failure:
    """A wrapper's verdict, completed by the error behind it, or corrected if the wrapper guessed."""
    special = deeper.category in {_C.QUOTA_EXHAUSTED, _C.CONTENT_FILTERED}
    vague = found.category in {_C.RATE_LIMITED, _C.INVALID_REQUEST, _C.SERVER_ERROR, _C.AUTH}
    if found.category is _C.CONNECTION and found.status is None and deeper.status in PROXYS_OWN:
        guess = True  # the SDK said "connection error", but it was the proxy that refused
    return Failure(
        category=deeper.category if guess or (special and vague) else found.category,
        cause=f"{found.cause} from {deeper.cause}"[:300] if deeper.cause not in found.cause else found.cause,
        status=deeper.status if guess else found.status or deeper.status,
        retry_after_s=found.retry_after_s if found.retry_after_s is not None else deeper.retry_after_s,
        request_id=found.request_id or deeper.request_id,
    )


def _of_link(error: BaseException, now_s: float | None, *, outermost: bool) -> Failure | None:
    """The verdict on one exception, without those behind it."""
    if isinstance(error, CallFailed) and isinstance(attribute(error, "category"), Category):
        # A class derived from ours may not have called our constructor
        cause, status, request_id = (attribute(error, name) for name in ("cause", "status", "request_id"))
        return Failure(
            category=error.category,
            cause=cause.splitlines()[0][:300] if isinstance(cause, str) and cause.strip() else class_name(error),
            status=status if isinstance(status, int) else None,
            request_id=request_id if isinstance(request_id, str) else None,
        )
    response = attribute(error, "response")
    if isinstance(response, Response):
        failure = classify_response(response, now_s=now_s)
        return None if failure is None else replace(failure, cause=f"{class_name(error)}: {failure.cause}")
    names = [(root_of(kind), kind.__name__) for kind in type(error).__mro__ if root_of(kind) in PROVIDER_ROOTS]
    proxys = proxy_status(error) if any("Proxy" in name for _, name in names) else None
    if proxys is not None:  # the proxy refused, and the provider never saw the request
        cause = f"{class_name(error)}: HTTP {proxys} from the proxy"
        return Failure(category=of_status(proxys), cause=cause, status=proxys)
    headers, body, evidence = testimony(error, response, providers=bool(names))
    wait_s = retry_after_s(headers, body, now_s=now_s, refused=evidence.status == 429)
    if wait_s is None and names:  # pydantic-ai, of errors inside a stream
        wait_s = retry_after_s({}, {"retry_after": attribute(error, "retry_after")}, now_s=now_s)
    category = (
        next((DECISIVE_NAMES[name] for _, name in names if name in DECISIVE_NAMES), None)
        or evidence.category()
        or next((TELLING_NAMES[name] for _, name in names if name in TELLING_NAMES), None)
        or (BARE_NAMES.get(".".join(names[0])) if names else None)
        or (_C.MALFORMED_RESPONSE if evidence.accepted else None)  # a client raised over a 2xx: it could not read it
        or _of_builtin(error, outermost=outermost)
    )
    if category is None:
        return None
    return Failure(
        category=category,
        cause=one_line(class_name(error), evidence.status, evidence.words)
        + (place_of(error) if category is _C.PROGRAMMING else ""),
        status=evidence.status,
        retry_after_s=wait_s,
        request_id=request_id_of(headers),
    )


def _of_builtin(error: BaseException, *, outermost: bool) -> Category | None:
    """Python's own errors."""
    kind = type(error)
    if isinstance(error, TimeoutError):
        return _C.TIMEOUT
    if isinstance(error, ConnectionError) or kind.__name__ in {"gaierror", "herror"} or root_of(kind) == "ssl":
        return _C.CONNECTION
    if isinstance(error, OSError) and error.errno in NETWORK_ERRNOS:
        return _C.CONNECTION
    if isinstance(error, ValueError) and "DecodeError" in kind.__name__ and _passed_a_client(error):
        return _C.MALFORMED_RESPONSE
    return _C.PROGRAMMING if outermost and isinstance(error, PROGRAMMING) else None


def _passed_a_client(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__")
        if isinstance(module, str):
            root = module.partition(".")[0]
            if root in PROVIDER_ROOTS or module.startswith("ratelimit_worker.providers"):
                return True
        trace = trace.tb_next
    return False
