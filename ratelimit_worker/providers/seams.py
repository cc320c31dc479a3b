"""Wraps the methods of other libraries' clients by which each request is sent (seams), so that a lane can learn from
them.

Each method is wrapped once, in its class, and can be unwrapped. The wrapper does what the method does; inside an
attempt, and only for clients that are watched, it also notes what it sees. Errors while noting are logged and go no
further: the caller gets what the client returns or raises. No library is imported here.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import wraps
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from ratelimit_worker.calls import Sighting, sighting_now
from ratelimit_worker.providers.glimpse import Reading, is_endpoint

log = logging.getLogger("ratelimit_worker.watch")

#: Whether a client was named by its user, or belongs to one that was.
Named = Callable[[Any], bool]

#: An SDK that is watched sends through whatever client it makes (google-genai: one for each event loop).
_through: ContextVar[bool] = ContextVar("ratelimit_worker_watched_sdk", default=False)

#: A request that is on its way: httpx may send by aiohttp, and requests sends a redirected one by itself.
_on_its_way: ContextVar[bool] = ContextVar("ratelimit_worker_watched_request", default=False)


class Seams:
    """The methods that are wrapped, so that they can be unwrapped.

    Args:
        named: Whether this client was named by `watch`.
        everybody: Whether clients that were not named are watched too, for requests to providers' endpoints.
    """

    def __init__(self, named: Named, everybody: Callable[[], bool]) -> None:
        self._named, self._everybody = named, everybody
        self._wrapped: dict[tuple[type, str], tuple[Any, Any]] = {}

    def open(self, module: ModuleType) -> None:
        """Wrap those of the known methods that this module has (versions differ); may be called again."""
        for kind_name, name, wrap in _seams_of(module.__name__):
            kind = getattr(module, kind_name, None)
            method = vars(kind).get(name) if isinstance(kind, type) else None
            if not isinstance(kind, type) or method is None or (kind, name) in self._wrapped:
                continue
            wrapper = wraps(method)(wrap(self, method))
            setattr(kind, name, wrapper)
            self._wrapped[kind, name] = (method, wrapper)

    def close(self) -> None:
        """Unwrap every method, except those that others have wrapped in turn: our wrapper stays there and notes
        nothing."""
        for (kind, name), (method, wrapper) in list(self._wrapped.items()):
            if vars(kind).get(name) is wrapper:
                setattr(kind, name, method)
                del self._wrapped[kind, name]

    def attempt(self, *clients: Any) -> Sighting | None:
        """The attempt that is running here, if one of these clients (an SDK and what it sends with) is watched."""
        seen = sighting_now()
        if seen is None or self._everybody() or _through.get():
            return seen
        return seen if any(self._named(client) for client in clients if client is not None) else None

    def retries(self, *clients: Any) -> bool:
        """Whether an SDK may repeat its requests: not inside an attempt that is itself repeated when it fails."""
        seen = self.attempt(*clients)
        return seen is None or not seen.sent_again

    def reading(self, client: Any, method: Any, url: Any, body: Any) -> Reading | None:
        """Begin to note one request; None: it is not to be noted."""
        seen = None if _on_its_way.get() else self.attempt(client)
        if seen is None or getattr(client, "tells_the_attempt", False):  # our own, which reports by itself
            return None
        try:
            parts = urlsplit(str(url))
            own = _through.get() or self._named(client)
            if str(method).upper() != "POST" or not (own or is_endpoint(parts.path)):
                return None
            return Reading(seen, parts.hostname or "", parts.path, body() if callable(body) else body)
        except Exception as error:
            _complain(error)
            return None


def _complain(error: Exception) -> None:
    """Log an error while noting: what it would have noted stays unknown, and the call goes on."""
    log.warning("watch.failed cause=%s", type(error).__name__, extra={"cause": type(error).__name__})


@contextmanager
def _noting() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        _complain(error)


def _seams_of(name: str) -> Iterator[tuple[str, str, Callable[[Seams, Any], Any]]]:
    """(class, method, its wrapper) for each seam that the module of this name may have."""
    if name in {"httpx", "httpx2"}:
        yield "Client", "send", _httpx_send
        yield "AsyncClient", "send", _httpx_async_send
    elif name == "requests.sessions":
        yield "Session", "send", _requests_send
    elif name == "requests.adapters":
        yield "HTTPAdapter", "send", _requests_once
    elif name == "aiohttp.client":
        yield "ClientSession", "_request", _aiohttp_request
    elif name.endswith("._base_client"):  # openai, anthropic, groq
        yield "SyncAPIClient", "request", _stainless_request
        yield "AsyncAPIClient", "request", _stainless_async_request
    elif name == "google.genai._api_client":
        yield "BaseApiClient", "_request", _google_request
        yield "BaseApiClient", "_async_request", _google_async_request
    elif name.endswith(".basesdk"):  # mistralai
        yield "BaseSDK", "do_request", _mistral_request
        yield "BaseSDK", "do_request_async", _mistral_async_request


#: Every module with a seam.
MODULES = (
    "httpx",
    "httpx2",
    "requests.sessions",
    "requests.adapters",
    "aiohttp.client",
    "openai._base_client",
    "anthropic._base_client",
    "groq._base_client",
    "google.genai._api_client",
    "mistralai.basesdk",
    "mistralai.client.basesdk",
    "mistralai.azure.client.basesdk",
    "mistralai.gcp.client.basesdk",
)


# ── httpx and its successor ──────────────────────────────────────────────────────────────────────────────────────────


def _httpx_send(seams: Seams, send: Any) -> Any:
    def wrapper(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        reading = _httpx_reading(seams, self, request)
        if reading is None:
            return send(self, request, *args, **kwargs)
        with _sending(reading):
            response = send(self, request, *args, **kwargs)
        _httpx_answered(reading, response)
        return response

    return wrapper


def _httpx_async_send(seams: Seams, send: Any) -> Any:
    async def wrapper(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        reading = _httpx_reading(seams, self, request)
        if reading is None:
            return await send(self, request, *args, **kwargs)
        with _sending(reading):
            response = await send(self, request, *args, **kwargs)
        _httpx_answered(reading, response)
        return response

    return wrapper


def _httpx_reading(seams: Seams, client: Any, request: Any) -> Reading | None:
    # The body of a request that streams it has not been read, and httpx raises an error if it is asked for
    return seams.reading(client, getattr(request, "method", ""), getattr(request, "url", ""), lambda: _sent(request))


def _sent(request: Any) -> Any:
    return vars(request).get("_content")


def _httpx_answered(reading: Reading, response: Any) -> None:
    with _noting():
        reading.answered(response.status_code, response.headers.multi_items())
        if response.is_closed:
            reading.whole(vars(response).get("_content") or b"")
            return
        if vars(response).get("_content") is not None:
            reading.whole(response.content)
            return
        # `read`, `iter_text` and `iter_lines` of a response all read by its `iter_bytes`. Replaced in this one
        # response, it sees the body as it is decoded; `stream` stays what it was (`elapsed` looks for it there).
        _tap(response, reading, {"iter_bytes": _tapped, "aiter_bytes": _tapped_async})


def _tap(response: Any, reading: Reading, methods: Mapping[str, Callable[..., Any]]) -> None:
    """Wrap those methods of one response that iterate over its body, for the next call of any of them."""

    def tap(original: Any, tapped: Callable[..., Any]) -> Callable[..., Any]:
        def once(*args: Any, **kwargs: Any) -> Any:
            for name in methods:  # a response that was read can be pickled, and a function cannot
                vars(response).pop(name, None)
            return tapped(original(*args, **kwargs), reading)

        return once

    for name, tapped in methods.items():
        setattr(response, name, tap(getattr(response, name), tapped))


def _tapped(parts: Any, reading: Reading) -> Iterator[Any]:
    try:
        for part in parts:
            with _noting():
                reading.part(part)
            yield part
    finally:
        with _noting():
            reading.end()
        if hasattr(parts, "close"):
            parts.close()


async def _tapped_async(parts: Any, reading: Reading) -> AsyncIterator[Any]:
    async with aclosing(parts):
        try:
            async for part in parts:
                with _noting():
                    reading.part(part)
                yield part
        finally:
            with _noting():
                reading.end()


@contextmanager
def _sending(reading: Reading) -> Iterator[None]:
    """The request is on its way; what it raises goes on as it is."""
    token = _on_its_way.set(True)
    try:
        yield
    except Exception as error:
        _raised(reading, error)
        raise
    finally:
        _on_its_way.reset(token)


def _raised(reading: Reading, error: Exception) -> None:
    """Note the answer behind the exception of a client that raises for a status."""
    with _noting():
        response = getattr(error, "response", None)
        told = error if response is None else response
        status, headers = getattr(told, "status_code", getattr(told, "status", None)), getattr(told, "headers", None)
        if isinstance(status, int) and status and isinstance(headers, Mapping):
            reading.answered(status, [(str(name), str(value)) for name, value in headers.items()])


# ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _requests_send(seams: Seams, send: Any) -> Any:
    def wrapper(self: Any, request: Any, **kwargs: Any) -> Any:
        url, body = getattr(request, "url", ""), getattr(request, "body", None)
        reading = seams.reading(self, getattr(request, "method", ""), url, body)
        if reading is None:
            return send(self, request, **kwargs)
        with _sdk(seams, self), _sending(reading):
            response = send(self, request, **kwargs)
        with _noting():
            reading.answered(response.status_code, response.headers.items())
            content = vars(response).get("_content")
            if isinstance(content, bytes):
                reading.whole(content)
            else:
                _tap(response, reading, {"iter_content": _tapped})  # `content` and `iter_lines` read by it
        return response

    return wrapper


def _requests_once(seams: Seams, send: Any) -> Any:
    def wrapper(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        retries: Any = getattr(self, "max_retries", None)
        if not getattr(retries, "total", None) or seams.retries():
            return send(self, request, *args, **kwargs)
        once = object.__new__(type(self))  # the same connections; the adapter itself is shared by threads
        vars(once).update(vars(self), max_retries=type(retries)(0, read=False))
        return send(once, request, *args, **kwargs)

    return wrapper


# ── aiohttp ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _aiohttp_request(seams: Seams, request: Any) -> Any:
    async def wrapper(self: Any, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
        body = kwargs.get("json") if kwargs.get("json") is not None else kwargs.get("data")
        reading = seams.reading(self, method, _aiohttp_url(self, url), body)
        if reading is None:
            return await request(self, method, url, *args, **kwargs)
        with _sending(reading):
            response = await request(self, method, url, *args, **kwargs)
        with _noting():
            reading.answered(response.status, response.headers.items())
            response.content = _Reader(response.content, reading)
        return response

    return wrapper


def _aiohttp_url(session: Any, url: Any) -> Any:
    try:
        return session._build_url(url)  # a session may have a base
    except Exception:  # a URL that aiohttp itself will refuse
        return url


class _Parts:
    """Iterates over what a coroutine function gives, until that is empty."""

    def __init__(self, read: Callable[[], Any], is_last: Callable[[Any], bool] = lambda part: part == b"") -> None:
        self._read, self._is_last = read, is_last

    def __aiter__(self) -> _Parts:
        return self

    async def __anext__(self) -> Any:
        part = await self._read()
        if self._is_last(part):
            raise StopAsyncIteration
        return part


class _Reader:
    """The body of aiohttp's response (its `StreamReader`), seen as its caller reads it."""

    def __init__(self, content: Any, reading: Reading) -> None:
        self._content, self._reading = content, reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    def _seen(self, data: bytes) -> bytes:
        with _noting():
            self._reading.part(data)
            if not data or self._content.at_eof():
                self._reading.end()
        return data

    async def read(self, n: int = -1) -> bytes:
        return self._seen(await self._content.read(n))

    async def readany(self) -> bytes:
        return self._seen(await self._content.readany())

    async def readline(self, **limits: Any) -> bytes:
        return self._seen(await self._content.readline(**limits))

    async def readexactly(self, n: int) -> bytes:
        return self._seen(await self._content.readexactly(n))

    async def readuntil(self, *args: Any, **limits: Any) -> bytes:
        return self._seen(await self._content.readuntil(*args, **limits))

    async def readchunk(self) -> tuple[bytes, bool]:
        data, end = await self._content.readchunk()
        return self._seen(data), end

    def read_nowait(self, n: int = -1) -> bytes:
        return self._seen(self._content.read_nowait(n))

    def __aiter__(self) -> _Parts:
        return _Parts(self.readline)

    def iter_any(self) -> _Parts:
        return _Parts(self.readany)

    def iter_chunked(self, n: int) -> _Parts:
        return _Parts(lambda: self.read(n))

    def iter_chunks(self) -> _Parts:
        return _Parts(self.readchunk, lambda part: part == (b"", False))


# ── SDKs: their own retries ──────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _sdk(seams: Seams, *clients: Any) -> Iterator[None]:
    """Within this block, what a watched SDK sends is noted, whichever client it sends it with."""
    token = _through.set(True) if seams.attempt(*clients) is not None and not seams._everybody() else None
    try:
        yield
    finally:
        if token is not None:
            _through.reset(token)


def _once(seams: Seams, client: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments of one of Stainless' `request` methods, without retries unless the SDK may retry."""
    if seams.retries(client, getattr(client, "_client", None)):
        return args

    def without(value: Any) -> Any:
        if not hasattr(value, "get_max_retries"):
            return value
        once = copy.copy(value)
        once.max_retries = 0
        return once

    try:
        if "options" in kwargs:
            kwargs["options"] = without(kwargs["options"])
        return tuple(without(value) for value in args)
    except Exception as error:
        _complain(error)
        return args


def _stainless_request(seams: Seams, request: Any) -> Any:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return request(self, *_once(seams, self, args, kwargs), **kwargs)

    return wrapper


def _stainless_async_request(seams: Seams, request: Any) -> Any:
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await request(self, *_once(seams, self, args, kwargs), **kwargs)

    return wrapper


def _google_request(seams: Seams, request: Any) -> Any:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _sdk(seams, self):
            once = None if seams.retries(self) else getattr(self, "_request_once", None)
            if once is None:
                return request(self, *args, **kwargs)
            given = inspect.signature(request).bind(self, *args, **kwargs).arguments
            return once(given["http_request"], given.get("stream", False))

    return wrapper


def _google_async_request(seams: Seams, request: Any) -> Any:
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _sdk(seams, self):
            once = None if seams.retries(self) else getattr(self, "_async_request_once", None)
            if once is None:
                return await request(self, *args, **kwargs)
            given = inspect.signature(request).bind(self, *args, **kwargs).arguments
            more = {"implicit_retry": False} if "implicit_retry" in inspect.signature(once).parameters else {}
            return await once(given["http_request"], given.get("stream", False), **more)

    return wrapper


def _mistral_request(seams: Seams, request: Any) -> Any:
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not seams.retries(self.sdk_configuration.client):
            kwargs["retry_config"] = None
        return request(self, *args, **kwargs)

    return wrapper


def _mistral_async_request(seams: Seams, request: Any) -> Any:
    async def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not seams.retries(self.sdk_configuration.async_client):
            kwargs["retry_config"] = None
        return await request(self, *args, **kwargs)

    return wrapper
