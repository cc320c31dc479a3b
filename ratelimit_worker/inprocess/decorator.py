"""`@optimize_api_call`: makes each call of a function a call in its lane."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, overload

from msgspec import Struct

from ratelimit_worker.inprocess.drive import is_async
from ratelimit_worker.inprocess.limiter import get_advanced_rate_limiter
from ratelimit_worker.inprocess.options import Options

F = TypeVar("F", bound=Callable[..., Any])


class Optimized(Struct, frozen=True):
    """The decorated function and its options, for `explain_key`."""

    function: Callable[..., Any]
    name: str | None
    options: Mapping[str, Any]


@overload
def optimize_api_call(func_name: F) -> F: ...
@overload
def optimize_api_call(
    func_name: str | None = None,
    context: str = "general",
    context_tags: Sequence[str] = (),
    cache_enabled: bool = True,
    **options: Any,
) -> Callable[[F], F]: ...
def optimize_api_call(
    func_name: Any = None,
    context: str = "general",
    context_tags: Sequence[str] = (),
    cache_enabled: bool = True,
    **options: Any,
) -> Any:
    """Send each call of a function, method or `async def` through its lane: pace, retries, tracking.

    Also works without parentheses: `@optimize_api_call`.

    Args:
        func_name: What statistics call it; the function's own name when None.
        options: As of `make_rate_limited_call`: lane, tenant, priority, deadline_s, cost, stale_ttl,
            stale_while_revalidate, shed_below, over_budget, timeout_s, classify, cache_key, cache_ttl, refresh,
            no_store, namespace, version, ignore.
    Raises:
        TypeError: the function is a generator, which makes its request only when it is read, after the call.
        BadInput: an option is invalid.
    """
    if func_name is not None and not isinstance(func_name, str):
        return optimize_api_call()(func_name)

    how = {"context": context, "context_tags": context_tags, "cache_enabled": cache_enabled, **options}
    Options(**how).check()  # raises where the option is written, not at the first call

    def decorate(function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(decorate(function.__func__))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{function.__qualname__} is a generator: decorate the function that opens the stream")

        def marked(made: Any) -> Any:
            made.optimized = Optimized(function, func_name, how)
            return made

        def call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return get_advanced_rate_limiter().make_rate_limited_call(function, func_name, args, kwargs, **how)

        if is_async(function):

            @functools.wraps(function)
            async def wrapped_async(*args: Any, **kwargs: Any) -> Any:
                return await call(args, kwargs)

            return marked(wrapped_async)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return call(args, kwargs)

        return marked(wrapped)

    return decorate
