"""Built-in tasks: requests to the known APIs over HTTP, and one line of a Batch file.

`chat_completion.delay(model="gpt-4o", messages=[...], max_tokens=200)`: the arguments are the provider's own request
body. `request.delay(provider="google", path="/v1beta/models/gemini-2.5-flash:generateContent", body={...})` is the same
for every other known operation. Addresses and keys come only from the environment (`OPENAI_BASE_URL`,
`OPENAI_API_KEY`, …), never from a call's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from ratelimit_worker.app import ensure_app, llm_task
from ratelimit_worker.calls import Category, Response
from ratelimit_worker.config import environment, told_paths
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import AuthenticationFailed, BadInput
from ratelimit_worker.policy.classification import classify_response
from ratelimit_worker.policy.completion import flaw_of, not_whole
from ratelimit_worker.policy.endpoints import KNOWN, is_known, lane_of, operation_of
from ratelimit_worker.policy.estimate import Size
from ratelimit_worker.providers import anthropic, apis, openai
from ratelimit_worker.providers.apis import Api, api_named, api_of
from ratelimit_worker.providers.forms import form, leaves_as_form
from ratelimit_worker.providers.http import Endpoint, KeyUnusable, ProviderRefused, wait_for_key
from ratelimit_worker.worker.task import CallTask

ensure_app()

#: Refusals that are about the request itself and so are the answer to a Batch line; other failures are not.
REFUSALS = frozenset({Category.INVALID_REQUEST, Category.CONTENT_FILTERED})
#: Status of a refusal inside a 200, if it states none.
_UNTOLD_STATUS = 400


# The sizes are computed when a call is made, so a stream is refused before anything waits or is sent.
def _openai_size(*args: Any, **body: Any) -> Size:
    _check_whole("", body)
    return openai.size(body)


def _anthropic_size(*args: Any, **body: Any) -> Size:
    _check_whole("", body)
    return anthropic.size(body)


def _request_size(provider: str = "", path: str = "", body: Any = None, *_: Any, **__: Any) -> Size:
    _check_request(provider, path, body)
    return apis.size(body, path)


def _line_size(url: str = "", body: Any = None, **_: Any) -> Size:
    _check_whole(url, body)
    _check_files(url, body)
    return apis.size(body, url)


def _check_whole(url: str, body: Any) -> None:
    told = not_whole(url, body)
    if told is not None:
        raise BadInput(f"{told}, and the whole answer is needed; leave it out")


def _check_files(path: str, body: Any) -> None:
    if leaves_as_form(operation_of(path), body):
        form(body)


def _check_request(provider: Any, path: Any, body: Any) -> Api:
    """Refuse requests that are not allowed: paths and bodies may come from outside.

    Raises:
        BadInput: one line.
    """
    api = api_named(provider)
    if not isinstance(path, str) or not (is_known(path) or path in told_paths(environment(), api.PROVIDER)):
        known = ", ".join(KNOWN)
        raise BadInput(
            f"path={path!a:.80}: none of the known endpoints ({known}), each with its version or without; "
            "name others in MAISD_PROVIDERS, `paths`"
        )
    if not isinstance(body, Mapping):
        raise BadInput(f"body is a {type(body).__name__}; use the request's JSON object")
    _check_whole(path, body)
    _check_files(path, body)
    return api


def _endpoint(api: Api) -> Endpoint:
    """Address and key of a provider, from the environment as it is now.

    Raises:
        AuthenticationFailed: there is no key, or its file stays empty; the call itself is not at fault.
    """
    try:
        return wait_for_key(lambda: api.endpoint(environment()))
    except KeyUnusable as error:
        raise AuthenticationFailed(str(error)) from error


class _ByPath(CallTask):
    """Tasks whose lane, if none is named, follows from the path."""

    abstract = True
    lane_by: ClassVar[Callable[..., str]]

    def plan(self, args: Sequence[Any], kwargs: Mapping[str, Any], **options: Any) -> Plan:
        """As `CallTask.plan`."""
        if options.get("lane") is None:
            options["lane"] = type(self).lane_by(*args, **kwargs)
        return super().plan(args, kwargs, **options)


@llm_task(name="ratelimit_worker.chat_completion", provider=openai.PROVIDER, cost=_openai_size)
def chat_completion(**body: Any) -> Any:
    """One chat completion of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: the provider gave none, after all retries.
    """
    return openai.request(_endpoint(openai), openai.CHAT_PATH, body).body


@llm_task(name="ratelimit_worker.embedding", provider=openai.PROVIDER, cost=_openai_size)
def embedding(**body: Any) -> Any:
    """Embeddings of an OpenAI-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return openai.request(_endpoint(openai), openai.EMBEDDINGS_PATH, body).body


@llm_task(name="ratelimit_worker.message", provider=anthropic.PROVIDER, cost=_anthropic_size)
def message(**body: Any) -> Any:
    """One message of an Anthropic-shaped API; returns the answer's body.

    Raises:
        CallFailed: as `chat_completion`.
    """
    return anthropic.request(_endpoint(anthropic), body).body


# Invalid arguments get a lane too; the size, which is computed next, refuses them.
def _lane_of_request(provider: Any = "", path: Any = "", body: Any = None, *_: Any, **__: Any) -> str:
    return lane_of(provider, path, body) if isinstance(provider, str) and isinstance(path, str) else "default"


@llm_task(name="ratelimit_worker.request", base=_ByPath, lane_by=staticmethod(_lane_of_request), cost=_request_size)
def request(provider: str, path: str, body: Any) -> Any:
    """One request for whatever a known API does (`policy.endpoints.KNOWN`); returns the answer's body.

    The lane is "provider:model", the model being that of the body or the path. A file in `body` is
    `{"data": base64, "filename": "a.mp3"}`; a sound comes back as `{"content_type": …, "data": base64}`.

    Args:
        provider: Whose key and address: "openai" (and compatible APIs), "anthropic" or "google".
        path: Such as "/v1/responses", with its version or without. Paths other than the known ones must be listed in
            `MAISD_PROVIDERS`.
    Raises:
        BadInput: the request is not allowed, or asks for a stream.
        CallFailed: as `chat_completion`.
    """
    api = _check_request(provider, path, body)
    return apis.request(api, _endpoint(api), path, body).body


# Each line of a Batch file is sent, even if two lines are the same.
@llm_task(
    name="ratelimit_worker.batch_line",
    base=_ByPath,
    lane_by=staticmethod(lambda url="", body=None, **_: lane_of_line(url, body)),
    cost=_line_size,
    cache=False,
)
def batch_line(url: str, body: Any) -> dict[str, Any]:
    """One line of a Batch file → {"status_code", "request_id", "body"}, also if the provider refuses that line.

    If the refusal came within a good answer, "within" is the status of that answer.

    Args:
        url: The line's path, such as "/v1/chat/completions".
    Raises:
        CallFailed: the provider gave no answer, after all retries, or answers no request of this account
            (`AuthenticationFailed`, `QuotaExhausted`).
    """
    api = api_of(url)
    within: dict[str, Any] = {}
    try:
        answer = apis.request(api, _endpoint(api), url, body)
    except ProviderRefused as refused:
        answer = _refusal(refused.response)
        if refused.response.status < 300:
            within = {"within": refused.response.status}
    return {"status_code": answer.status, "request_id": answer.request_id, "body": answer.body, **within}


def _refusal(response: Response) -> Response:
    """The provider's own refusal of a line, with the status that it means.

    Raises:
        ProviderRefused: the failure says nothing about the line itself.
    """
    if response.status < 300:  # a gateway passed on a refusal within a 200
        flaw = flaw_of(response.body, response.headers, response.path)
        status = flaw.status if flaw is not None and flaw.status is not None else response.status
        response = replace(response, status=status)
    failure = classify_response(response)
    if failure is None or failure.category not in REFUSALS:
        raise ProviderRefused(response)
    return replace(response, status=_UNTOLD_STATUS) if response.status < 300 else response


def lane_of_line(url: str, body: Any) -> str:
    """The lane of a Batch line: provider and model, as for the other built-in tasks."""
    return lane_of(api_of(url).PROVIDER, url, body)
