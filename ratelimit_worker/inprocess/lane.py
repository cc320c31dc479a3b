"""The lane of a call for which none is named: `<provider>:<model>`, from the argument `model` and the function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

#: Top-level package of an SDK → provider. It comes before the model's name, since several providers serve llama.
SDKS = {
    "openai": "openai",
    "anthropic": "anthropic",
    "mistralai": "mistral",
    "cohere": "cohere",
    "groq": "groq",
    "google": "google",
}
#: Beginning of a model's name → provider.
FAMILIES = {
    "gpt-": "openai",
    "chatgpt-": "openai",
    "o1": "openai",
    "o3": "openai",
    "o4": "openai",
    "ft:": "openai",
    "text-embedding-": "openai",
    "claude": "anthropic",
    "gemini": "google",
    "mistral-": "mistral",
    "codestral": "mistral",
    "ministral": "mistral",
    "command-": "cohere",
    "deepseek-": "deepseek",
    "grok-": "xai",
}


def lane_of(function: Callable[..., Any], kwargs: Mapping[str, Any]) -> str | None:
    """The lane by function and arguments; None: they name no model, or one of an unknown provider.

    The provider is that in `model="openai/gpt-4o"` (LiteLLM's spelling), else that of the SDK which defines the
    function, else that of the model's family.
    """
    while isinstance(function, partial):
        kwargs = {**function.keywords, **kwargs}
        function = function.func
    model = kwargs.get("model")
    if not isinstance(model, str) or not model:
        return None
    named, slash, rest = model.partition("/")
    if slash and named and rest:
        return f"{named}:{rest}"
    owner = getattr(function, "__self__", None)
    module = type(owner).__module__ if owner is not None else getattr(function, "__module__", "") or ""
    provider = SDKS.get(module.partition(".")[0]) or next(
        (maker for start, maker in FAMILIES.items() if model.startswith(start)), None
    )
    return f"{provider}:{model}" if provider else None
