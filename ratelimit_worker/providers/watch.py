"""Which clients of other libraries are watched, so that a lane learns from the calls of a user's own functions?

`watch(client)` watches one, `watch_all()` all. What is seen of a request during an attempt (status, headers, tokens) is
passed to that attempt (`calls.sighting`); the caller gets what the client returns. Outside an attempt nothing changes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, TypeVar
from weakref import WeakSet

from ratelimit_worker.errors import BadInput
from ratelimit_worker.providers.seams import MODULES, Seams

C = TypeVar("C")

_ROOTS = ("httpx", "httpx2", "requests", "aiohttp")
_ACCEPTED = "a client of openai, anthropic, groq, google-genai, mistralai, httpx, httpx2, requests or aiohttp"

_named: WeakSet[Any] = WeakSet()
_all = False
_changing = threading.Lock()
_seams = Seams(lambda client: client in _named, lambda: _all)


def watch(client: C) -> C:
    """Let lanes learn from what this client sends and gets during an attempt; returns the client.

    Its own retries are off inside an attempt. Copies that it makes of itself (`with_options`) are watched too. Can be
    repeated.

    Raises:
        BadInput: It is none of the clients that are known.
    """
    parts = list(_parts_of(client))
    with _changing:
        for part in parts:
            _named.add(part)
        _open()
    return client


def unwatch(client: C) -> C:
    """Take `watch` back for this client; returns it.

    Raises:
        BadInput: As `watch`.
    """
    parts = list(_parts_of(client))
    with _changing:
        for part in parts:
            _named.discard(part)
        _close_if_idle()
    return client


def watch_all() -> None:
    """Watch every client of this process, also those made later, but only their requests to providers' endpoints.

    These are the paths at which providers answer prompts (`/chat/completions`, `/messages`, `:generateContent`, …), so
    that the rate limits of a page which a task fetches are not taken for its provider's. Can be repeated.
    """
    global _all
    with _changing:
        _all = True
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
        _open()


def unwatch_all() -> None:
    """Watch nothing any more, not even clients that `watch` named."""
    global _all
    with _changing:
        _all = False
        _named.clear()
        _close_if_idle()


def _open() -> None:
    for name in MODULES:
        module = sys.modules.get(name)
        if module is not None:
            _seams.open(module)


def _close_if_idle() -> None:
    if _all or len(_named):
        return
    if _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    _seams.close()


def _parts_of(client: Any) -> Iterator[Any]:
    """The objects by which a client sends its requests, and whose methods are seams."""
    yield from (part for part in _own_parts(client) if part is not None)


def _own_parts(client: Any) -> Sequence[Any]:
    roots = {kind.__module__.partition(".")[0] for kind in type(client).__mro__}
    if isinstance(client, type | ModuleType):
        roots = set()
    if roots & {"openai", "anthropic", "groq"} and hasattr(client, "_client"):
        return (client._client,)
    api = getattr(client, "_api_client", None)
    if "google" in roots and api is not None:
        sessions = (getattr(api, name, None) for name in ("_httpx_client", "_async_httpx_client"))
        return (api, *sessions)
    told = getattr(client, "sdk_configuration", None)
    if "mistralai" in roots and told is not None:
        return (told.client, told.async_client)
    if roots & set(_ROOTS):
        return (client,)
    kind = f"{type(client).__module__}.{type(client).__qualname__}"
    raise BadInput(f"watch({kind}): this is not {_ACCEPTED}; watch_all() watches whatever such a client is inside of")


class _Finder(importlib.abc.MetaPathFinder):
    """Opens the seams of a module that is imported later."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, whose loader tells us when it is done; None for all that has no seam."""
        if fullname not in MODULES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            found = find(fullname, path, target) if finder is not self and find is not None else None
            if found is not None:
                break
        else:
            return None
        spec: importlib.machinery.ModuleSpec = found
        if spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # resources, source and the like are the original's
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self._loader
        if hasattr(module, "__loader__"):
            module.__loader__ = self._loader
        self._loader.exec_module(module)
        if _all:
            _seams.open(module)


_finder = _Finder()
