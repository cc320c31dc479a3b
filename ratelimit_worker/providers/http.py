"""Sends one request to a provider, with its account's key, and reads the answer.

No retries, no redirects, no HTTP/2: the lane retries, and retries of the client would multiply that. Transport errors
are raised as httpx's own; `policy.classification` knows them.
"""

from __future__ import annotations

import os
import re
import threading
from binascii import b2a_base64
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address
from math import inf
from pathlib import Path
from ssl import SSLContext
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlencode

import httpcore2 as httpcore
import httpx2 as httpx
import msgspec

import ratelimit_worker
from ratelimit_worker.calls import Category, FailedAnswer, Failure, Response, saw, sighting_now, timeouts_left
from ratelimit_worker.config import told_to_send
from ratelimit_worker.errors import (
    AuthenticationFailed,
    BadInput,
    CallFailed,
    ConfigurationError,
    MalformedResponse,
    call_failed,
)
from ratelimit_worker.policy.completion import flaw_of, not_whole
from ratelimit_worker.policy.endpoints import Operation, ending_operation, model_of, operation_of
from ratelimit_worker.policy.hosts import provider_at
from ratelimit_worker.policy.usage import finish_reason_of, usage_of
from ratelimit_worker.providers import network
from ratelimit_worker.providers.answer_bytes import ENCODINGS, read_answer, too_large
from ratelimit_worker.providers.answer_json import read_json
from ratelimit_worker.providers.bounds import most_answer_bytes
from ratelimit_worker.providers.forms import form, leaves_as_form

#: An idle connection is dropped after this many seconds; the load balancers of providers wait for a minute or more.
_KEEPALIVE_S = 30.0

_MOST_KEY_BYTES = 64 * 1024  #: most bytes read of a key's file, since a device could be endless
#: A key file that is being replaced, by whatever tool, is complete again within this many seconds.
KEY_PATIENCE_S, _KEY_POLL_S = 2.0, 0.05
_VERSION = re.compile(r"v\d.*", re.I)
#: A version in an address ("/v1/", "/v1beta/"), or its equivalent (Azure's deployments).
_VERSIONED = re.compile(r"/v\d[^/]*/|/deployments/", re.I)

_MOST_PORT = 65_535
#: Placeholders for a key from examples: ${OPENAI_API_KEY}, <your key>.
_PLACEHOLDER = re.compile(r"\$\{?\w*\}?|<[^<>]*>")

#: Headers that identify an account, besides those with its key.
_AUTH_HEADERS = frozenset({"authorization", "api-key", "x-api-key", "ocp-apim-subscription-key", "x-goog-api-key"})

_encode = msgspec.json.Encoder().encode


class KeyUnusable(ConfigurationError):
    """The file of a key is missing, empty or unreadable, or contains no key; a moment later it may be right."""


class ProviderRefused(FailedAnswer):
    """The provider answered with a status of 300 or more, or with a 2xx that has an error in it, or no answer."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A provider's address with one account's key."""

    base_url: str  #: without a slash at its end
    headers: Mapping[str, str] = field(repr=False)  #: sent with each request; they hold the key
    query: Mapping[str, str] = field(default_factory=dict, repr=False)  #: of each request
    version: str = ""  #: version that is added if neither path nor base URL has one

    def url(self, path: str) -> str:
        """The address of `path` below the base; a version that both have ("/v1") is used once.

        Raises:
            BadInput: `path` is not a plain path, so the key might be sent to another host.
        """
        url = _join(self.base_url, path, self.version)
        return f"{url}{'&' if '?' in url else '?'}{urlencode(self.query)}" if self.query else url


def send(
    to: Endpoint,
    path: str,
    body: Any,
    timeout_s: float | None = None,
    *,
    provider: str | None = None,
) -> Response:
    """Send one request; `path` is as in a Batch line ("/v1/chat/completions") or below the base ("/embeddings").

    Raises:
        As `post`, and `BadInput` where `path` is not a plain path.
        InvalidRequest: 404, at an address without any version.
    """
    url = to.url(path)
    try:
        return post(url, body, to.headers, timeout_s, provider=provider)
    except ProviderRefused as refused:
        if refused.response.status == 404 and _VERSIONED.search(url) is None:
            cause = f"HTTP 404: nothing answers {path} below {to.base_url}; does it lack /v1?"
            raise call_failed(Failure(category=Category.INVALID_REQUEST, cause=cause, status=404), 1) from refused
        raise


def post(
    url: str,
    body: Any,
    headers: Mapping[str, str],
    timeout_s: float | None = None,
    *,
    provider: str | None = None,
) -> Response:
    """Send `body` and read the answer to its end; note it as seen (`calls.saw`), whatever its status.

    The body is sent as JSON, or as a form if the operation takes files (`providers.forms`). The answer is JSON too,
    except for operations that return text, or audio, which becomes `{"content_type", "data"}` with base64.

    Args:
        timeout_s: Longest time for the whole answer, also if it comes slowly, seconds; None: what is left of the
            attempt's time-outs (`calls.within`).
        provider: Name of the provider for the attempt's row, unless the host is known to be another's.
    Raises:
        ProviderRefused: Status 400 or more, or a 2xx that contains an error, or nothing that was asked for. A model's
            refusal is an answer.
        InvalidRequest: A redirect, which is not followed, since a key is sent only to the host of its base URL; or a
            2xx that is larger than `bound_answers` allows.
        MalformedResponse: A 2xx that is not JSON, though its operation returns JSON.
        BadInput: `body` cannot be written as JSON (or as a form), or asks for a stream: it would be paid for, and
            nobody here reads it.
        httpx.TransportError, httpx.DecodingError, httpx.InvalidURL: No answer, or one that could not be read.
    """
    began, bound = monotonic(), timeouts_left()
    whole_s = bound.whole_s if timeout_s is None else timeout_s
    connect_s, first_byte_s = min(bound.connect_s, whole_s), min(bound.first_byte_s, whole_s)
    to = _url(url)
    told = not_whole(to.path, body)
    if told is not None:
        raise BadInput(f"{told}, and the whole answer is needed; leave it out")
    operation = operation_of(to.path)
    written = _written(operation, body)
    accept = "application/json" if operation is None or operation.gives == "json" else "*/*"
    with _client() as client, _until(began + whole_s):
        request = httpx.Request(
            "POST",
            to,
            headers={**client.defaults, "accept": accept, **written.pop("headers", {}), **headers},
            extensions={"timeout": {"connect": connect_s, "read": first_byte_s, "write": whole_s, "pool": connect_s}},
            **written,
        )
        answer = client.send(request, stream=True, follow_redirects=False)
        heard_s = monotonic() - began
        try:
            raw = read_answer(answer, most_answer_bytes())
        finally:
            answer.close()
    response, is_json = _response(answer, raw, to.path, operation, heard_s, monotonic() - began)
    del raw, written  # the value read from them may be as large again
    model = _model(response.body) or model_of(to.path, body)[:256] or None
    saw(
        response,
        usage=usage_of(response.body) if is_json else None,  # an error too may say what it used
        provider=provider_at(to.host, to.path) or provider,
        model=model,
        finish_reason=finish_reason_of(response.body) if is_json else None,
    )
    _check(response, is_json, operation)
    return response


def _check(response: Response, is_json: bool, operation: Operation | None) -> None:
    """Return if this is what was asked for; otherwise raise as described at `post`."""
    if 300 <= response.status < 400:
        raise _redirected(response)
    if not 200 <= response.status < 300:
        raise ProviderRefused(response)
    flaw = flaw_of(response.body, response.headers, response.path)  # Anthropic's overloaded_error may come with a 200
    errs = flaw is not None and flaw.category is not Category.MALFORMED_RESPONSE  # e.g. a stream, unasked
    if not is_json and not errs and (operation is None or operation.gives != "text"):
        raise MalformedResponse("the answer is no JSON", response.status, response.request_id)
    if flaw is not None and flaw.category is not Category.CONTENT_FILTERED:
        raise ProviderRefused(response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Names of the environment variables with key and address for a provider, the same as its SDK uses."""

    provider: str
    keys: tuple[str, ...]  #: variables with the key; the first that is set is used. `<key>_FILE` names a file with it
    address: str  #: variable with the base URL
    base_url: str  #: the default base URL
    version: str = ""  #: `Endpoint.version`

    def key_file(self, environment: Mapping[str, str]) -> str:
        """The file of the key; "": there is none, or the key itself is in the environment."""
        for name in self.keys:
            if environment.get(name, "").strip():
                return ""
            if file := environment.get(f"{name}_FILE", "").strip():
                return file
        return ""


def endpoint(
    environment: Mapping[str, str],
    account: Account,
    headers: Callable[[str | None], Mapping[str, str]],
    base_url: str | None = None,
) -> Endpoint:
    """The endpoint that the environment describes.

    The key itself wins over the file; an empty variable counts as unset. A base URL on loopback needs no key, and one
    for which MAISD_PROVIDERS or MAISD_LANES name a header with a secret needs none either.

    Args:
        environment: The process's environment, as `config` read it.
        headers: Makes the headers of every request from the key, None where there is none.
        base_url: Instead of `account.address`.
    Raises:
        KeyUnusable: The key file is missing or empty, cannot be read, or contains characters that no header can carry.
        ConfigurationError: The base URL is not valid, or the key in the variable cannot be sent in a header.
        AuthenticationFailed: There is no key.
    """
    origin = base_url_of(environment, account, base_url)
    try:
        parsed = _url(origin)
    except httpx.InvalidURL:
        raise ConfigurationError(f"{account.address} is no URL; give http(s)://host/path") from None
    plain = parsed.host and "%" not in parsed.host and not (parsed.userinfo or parsed.query or parsed.fragment)
    plain = plain and "\\" not in origin and not (parsed.port or 0) > _MOST_PORT
    if parsed.scheme not in {"http", "https"} or not plain:
        raise ConfigurationError(
            f"{account.address} is no plain http(s) URL; give http(s)://host/path, and a query in MAISD_PROVIDERS"
        )
    ending = ending_operation(parsed.path)
    if ending:
        raise ConfigurationError(
            f"{account.address} ends in {ending}, which each request adds by itself: leave that out"
        )
    key = _key(environment, account)
    seen = sighting_now()
    told = told_to_send(environment, account.provider, seen.lane if seen is not None else "")
    if key is None and not _is_loopback(parsed.host) and not _AUTH_HEADERS & told.headers.keys():
        name = account.keys[0]
        raise AuthenticationFailed(f"no key for {parsed.host}: set {name} or {name}_FILE")
    sent = {**headers(key), **told.headers}
    return Endpoint(origin, {name: value for name, value in sent.items() if value}, told.query, account.version)


def wait_for_key(find: Callable[[], Endpoint], patience_s: float = KEY_PATIENCE_S) -> Endpoint:
    """What `find` returns; a key file without a key is read again for a moment, since it may just be being replaced.

    Args:
        find: Such as `lambda: openai.endpoint(environment())`.
    Raises:
        KeyUnusable, ConfigurationError, AuthenticationFailed: As in `endpoint`.
    """
    until_s = monotonic() + patience_s
    while True:
        try:
            return find()
        except KeyUnusable:
            if monotonic() >= until_s:
                raise
        sleep(_KEY_POLL_S)


def _key(environment: Mapping[str, str], account: Account) -> str | None:
    file = account.key_file(environment)
    if file:
        source = next(f"{name}_FILE" for name in account.keys if environment.get(f"{name}_FILE", "").strip() == file)
        try:
            with Path(file).open("rb") as opened:
                key = opened.read(_MOST_KEY_BYTES).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            raise KeyUnusable(f"{source}: {file} cannot be read ({type(error).__name__})") from None
        if not key:
            raise KeyUnusable(f"{source}: {file} is empty")
    else:
        source = next((name for name in account.keys if environment.get(name, "").strip()), "")
        key = environment.get(source, "")
    key = _bare(key)
    if key[:7].lower() == "bearer ":  # the whole header's value
        key = key[7:].strip()
    if not key:
        return None
    if _PLACEHOLDER.fullmatch(key):
        raise (KeyUnusable if file else ConfigurationError)(f"{source} holds the place of a key, and no key")
    if not all("!" <= letter <= "~" for letter in key):  # h11 would refuse the header, quoting the key
        kind = KeyUnusable if file else ConfigurationError
        raise kind(f"{source} holds characters that no HTTP header can carry")
    return key


def base_url_of(environment: Mapping[str, str], account: Account, base_url: str | None = None) -> str:
    """The base URL of an account, as it was given; without a slash at its end."""
    return _bare(base_url or environment.get(account.address) or account.base_url).rstrip("/")


def _bare(value: str) -> str:
    """A value without blanks around it, and without the quotes that Docker's env files keep."""
    value = value.strip()
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1].strip() if quoted else value


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _join(base_url: str, path: str, version: str = "") -> str:
    below = path.removeprefix("/")
    plain = all("!" <= letter <= "~" for letter in path) and not any(mark in path for mark in ("\\", "#", "@", "://"))
    segments = below.partition("?")[0].removesuffix("/").split("/")
    # A percent sign may hide a dot or a slash that the server would see.
    if not plain or "%" in "".join(segments) or any(segment in {"", ".", ".."} for segment in segments):
        raise BadInput("a request's url must be a plain path such as /v1/chat/completions")
    root, _, last = base_url.rpartition("/")
    named = segments[0] if len(segments) > 1 and _VERSION.fullmatch(segments[0]) else ""
    if named == "v1" and _VERSIONED.search(f"{base_url}/"):
        # A Batch file has /v1 for all providers; a base URL with a version of its own has no other versions below it.
        below = below.removeprefix("v1/")
    elif named and _VERSION.fullmatch(last):
        base_url = root  # the request's own version is the one that it was written for
    elif version and not named and not _VERSION.fullmatch(last):
        below = f"{version}/{below}"
    return f"{base_url}/{below}"


@lru_cache(maxsize=256)
def _url(url: str) -> httpx.URL:
    return httpx.URL(url)  # parsing costs more than all else in building a request


def _model(answer: Any) -> str | None:
    """The model that answered, by its name in an answer (Google's: `modelVersion`)."""
    told = (answer.get("model"), answer.get("modelVersion")) if isinstance(answer, Mapping) else ()
    return next((name[:256] for name in told if isinstance(name, str) and name), None)


def _written(operation: Operation | None, body: Any) -> dict[str, Any]:
    """A body in the form that httpx needs.

    Raises:
        BadInput: it cannot be written.
    """
    if leaves_as_form(operation, body):
        return {"files": form(body)}
    try:
        return {"content": _encode(body), "headers": {"content-type": "application/json"}}
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise BadInput(f"the request's body cannot be written as JSON ({type(error).__name__})") from None


def _response(
    answer: httpx.Response, raw: bytearray, path: str, operation: Operation | None, heard_s: float, elapsed_s: float
) -> tuple[Response, bool]:
    """The answer's value, and whether it is JSON (audio has become JSON by then)."""
    headers: dict[str, str] = {}
    for name, value in answer.headers.multi_items():  # names come in lower case
        if name != "set-cookie":  # not needed, and may be secret
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    kind, good = headers.get("content-type", "").lower(), 200 <= answer.status_code < 300
    gives = operation.gives if operation is not None and good else "json"
    body: Any
    if gives == "sound" and raw and "json" not in kind and not kind.startswith("text/"):
        body, is_json = _sound(raw, kind), True
    elif gives == "text" and kind.startswith("text/"):  # not read as JSON: "42" may be a transcript
        body, is_json = raw.decode("utf-8", "replace"), False
    else:
        try:
            body, is_json = read_json(raw, kind), True
        except ValueError:
            body, is_json = raw.decode("utf-8", "replace"), False
    status = answer.status_code
    response = Response(status=status, headers=headers, body=body, elapsed_s=elapsed_s, path=path, first_byte_s=heard_s)
    return response, is_json


def _sound(raw: bytearray, kind: str) -> dict[str, str]:
    """Audio as a JSON value: base64 makes it a third larger, so the bound is checked once more.

    Raises:
        InvalidRequest: it is larger than `bound_answers` allows.
    """
    if len(raw) * 4 // 3 > most_answer_bytes():
        raise too_large(most_answer_bytes(), 200)
    return {"content_type": kind or "application/octet-stream", "data": b2a_base64(raw, newline=False).decode("ascii")}


# One process has one stack of clients; a call takes the one on top and puts it back. One client that all threads share
# was tried first: its pool looks at every connection, under a lock, for every request, so at 32 threads a call cost
# 2.3 x the CPU (1,090 against 480 µs) and half as many went through. A client per thread does not fit greenlets, which
# live for one task. The stack grows to the most calls that ever ran at once; those at its bottom close their idle
# connections when they are next used. Both ends of the deque are atomic, so it needs no lock.
_idle: deque[_Client] = deque()
_abandoned: list[deque[_Client]] = []
_tls: SSLContext | None = None
_tls_lock = threading.Lock()


@contextmanager
def _client() -> Iterator[_Client]:
    stack = _idle  # after a fork the child has a stack of its own, and this call still returns to the one it took from
    try:
        client = stack.pop()
    except IndexError:
        client = _new_client()
    try:
        yield client
    finally:
        stack.append(client)


def warm_up(clients: int) -> None:
    """Have `clients` clients ready: the first takes 0.13 s, and calls that wait for it would leave as a burst."""
    while len(_idle) < clients:
        _idle.append(_new_client())


def _redirected(response: Response) -> CallFailed:
    """The error names only scheme and host of the target: path and query may contain secrets."""
    try:
        to = httpx.URL(response.headers.get("location", ""))
    except httpx.InvalidURL:
        to = httpx.URL("")
    where = f"{to.scheme}://{to.netloc.decode('ascii', 'replace')}" if to.host else "another path"
    cause = f"HTTP {response.status}: redirects to {where}, which is not followed; give the base URL that answers"
    return call_failed(
        Failure(category=Category.INVALID_REQUEST, cause=cause, status=response.status, request_id=response.request_id),
        1,
    )


class _Client(httpx.Client):
    """A client that `providers.watch` ignores, since `post` reports what it saw."""

    tells_the_attempt = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        #: Headers of each request that identify its sender. Without a User-Agent some gateways refuse it (Cloudflare:
        #: 1010).
        self.defaults = {
            "user-agent": _user_agent(),
            # The client itself would also ask for zstd and br, if their packages are installed.
            "accept-encoding": ENCODINGS,
        }


@lru_cache(maxsize=1)
def _user_agent() -> str:
    return f"ratelimit-worker/{ratelimit_worker.__version__}"  # looked up in the package's own files


def _new_client() -> _Client:
    network.check()
    # Proxies and certificates of the environment are honoured; that is read here, once a client, not once a call.
    client = _Client(
        verify=_tls_context(),
        http2=False,
        follow_redirects=False,
        limits=httpx.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=_KEEPALIVE_S),
    )
    # httpx accepts a network backend only in a transport, which would replace proxies and certificates too.
    for transport in (client._transport, *client._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Network(transport._pool._network_backend)
    return client


# A socket's timeout begins again with each byte, so it never ends an answer that comes a byte at a time. So no wait of
# a socket is longer than the time that is left for its request, which its thread knows.
_ends: ContextVar[float] = ContextVar("ratelimit_worker_request_ends", default=inf)


@contextmanager
def _until(ends: float) -> Iterator[None]:
    token = _ends.set(ends)
    try:
        yield
    finally:
        _ends.reset(token)


def _bounded(timeout_s: float | None, too_late: type[Exception]) -> float | None:
    left_s = _ends.get() - monotonic()
    if left_s <= 0:
        raise too_late("the answer took too long")
    return timeout_s if left_s == inf else left_s if timeout_s is None else min(timeout_s, left_s)


class _Stream(httpcore.NetworkStream):
    """A connection that waits no longer than its request may take."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _bounded(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _bounded(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        bound_s = _bounded(timeout, httpcore.ConnectTimeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, bound_s))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Network(httpcore.NetworkBackend):
    """Connections that wait no longer than their requests may take."""

    def __init__(self, network: httpcore.NetworkBackend) -> None:
        self._network = network

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        bound_s = _bounded(timeout, httpcore.ConnectTimeout)
        return _Stream(self._network.connect_tcp(host, port, bound_s, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.NetworkStream:
        bound_s = _bounded(timeout, httpcore.ConnectTimeout)
        return _Stream(self._network.connect_unix_socket(path, bound_s, socket_options))

    def sleep(self, seconds: float) -> None:
        self._network.sleep(seconds)


def _tls_context() -> SSLContext:
    global _tls
    with _tls_lock:
        if _tls is None:
            _tls = httpx.create_ssl_context()  # reads the certificates: 20 ms and 1 MB that all clients share
        return _tls


def _forget_after_fork() -> None:
    """A forked child must neither use nor close its parent's connections: it keeps them unused, and makes its own."""
    global _idle, _tls_lock
    _abandoned.append(_idle)
    _idle = deque()
    _tls_lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_forget_after_fork)
