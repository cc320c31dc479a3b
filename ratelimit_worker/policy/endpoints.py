"""Which operation of which API does a path name? The known operations, what each is sent and what it returns. Pure.

Paths are written as in a line of a Batch file: relative to the base URL, with or without the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct

from ratelimit_worker.policy.pattern import lazy

OPENAI, ANTHROPIC, GOOGLE = "openai", "anthropic", "google"


class Operation(Struct, frozen=True, kw_only=True):
    """One operation of an API."""

    name: str  #: its path behind the version; for Google, the part behind the model
    provider: str  #: whose API it is; others may have copied it
    wanted: tuple[str, ...]  #: an answer must have one of these members
    form: Literal["never", "files", "always"] = "never"  #: when the body is sent as a form and not as JSON
    gives: Literal["json", "text", "sound"] = "json"  #: kind of answer; text: JSON or text, as the request asks
    writes: bool = True  #: whether its answer costs output tokens
    apart: bool = False  #: whether it has a rate limit of its own, and not the model's


_MANY = (
    Operation(name="chat/completions", provider=OPENAI, wanted=("choices",)),
    Operation(name="completions", provider=OPENAI, wanted=("choices",)),
    Operation(name="responses", provider=OPENAI, wanted=("output", "output_text")),
    Operation(name="embeddings", provider=OPENAI, wanted=("data", "embeddings", "embedding"), writes=False),
    Operation(name="moderations", provider=OPENAI, wanted=("results",), writes=False),
    Operation(name="rerank", provider=OPENAI, wanted=("results", "data"), writes=False),
    Operation(name="images/generations", provider=OPENAI, wanted=("data",)),
    Operation(name="images/edits", provider=OPENAI, wanted=("data",), form="files"),
    Operation(name="images/variations", provider=OPENAI, wanted=("data",), form="always"),
    Operation(name="audio/speech", provider=OPENAI, wanted=("data",), gives="sound", writes=False),
    Operation(name="audio/transcriptions", provider=OPENAI, wanted=("text",), form="always", gives="text"),
    Operation(name="audio/translations", provider=OPENAI, wanted=("text",), form="always", gives="text"),
    Operation(name="messages", provider=ANTHROPIC, wanted=("content",)),
    Operation(name="messages/count_tokens", provider=ANTHROPIC, wanted=("input_tokens",), writes=False, apart=True),
)
_GOOGLES = (
    Operation(name="generateContent", provider=GOOGLE, wanted=("candidates",)),
    Operation(name="embedContent", provider=GOOGLE, wanted=("embedding", "embeddings"), writes=False),
    Operation(name="batchEmbedContents", provider=GOOGLE, wanted=("embeddings",), writes=False),
    Operation(name="countTokens", provider=GOOGLE, wanted=("totalTokens",), writes=False, apart=True),
    Operation(name="predict", provider=GOOGLE, wanted=("predictions",), writes=False),
)
#: Their names, for messages.
KNOWN = tuple(sorted([one.name for one in _MANY] + [f"models/MODEL:{one.name}" for one in _GOOGLES]))

_BY_NAME = {one.name: one for one in _MANY}
_BY_METHOD = {one.name.lower(): one for one in _GOOGLES}
_VERSION = r"(?:/v\d{1,2}[a-z0-9]{0,8})?"
_PLAIN = lazy(rf"{_VERSION}/(?:{'|'.join(_BY_NAME)})/?")
_METHODS = "|".join(one.name for one in _GOOGLES)
_OF_A_MODEL = lazy(rf"{_VERSION}/(?:models|tunedModels)/(?!\.{{1,2}}:)[A-Za-z0-9._-]{{1,128}}:(?:{_METHODS})")
_MODEL = lazy(r"/(?:models?|tunedModels|deployments)/([^/:?]{1,256})")
#: In addition to `Operation.wanted`: members of Bedrock's answers.
_WANTED_ELSEWHERE = {"/converse": ("output",)}


#: A path of plain segments, with or without a query; nothing that a server could take for another path (no `..`).
_PLAIN_PATH = lazy(r"(?:/(?!\.{1,2}(?:/|\?|$))[A-Za-z0-9._~:@-]+)+/?(?:\?[A-Za-z0-9._~:=&,+-]*)?")
_MOST_PATH = 500  #: characters


def flaw_of_path(path: str) -> str | None:
    """What is wrong with a path that a setting allows in addition to the known ones; None: nothing."""
    if len(path) > _MOST_PATH or not _PLAIN_PATH.fullmatch(path):
        return "not a plain path; use one such as /openai/deployments/d/chat/completions?api-version=1"
    return None


def is_known(path: str) -> bool:
    """Whether a path may be asked for without a setting: only the known operations, with or without the version.

    Requests carry the account's key, so other paths could read or change the account itself.
    """
    return _PLAIN.fullmatch(path) is not None or _OF_A_MODEL.fullmatch(path) is not None


@lru_cache(maxsize=1024)
def operation_of(path: str) -> Operation | None:
    """The operation at the end of a path, whatever is before it (a gateway, a deployment); None: it is not known."""
    end = path.partition("?")[0].rstrip("/").lower()
    before, colon, method = end.rpartition(":")
    if colon and "/" in before and "/" not in method:
        return _BY_METHOD.get(method)
    words = end.rsplit("/", 2)
    if len(words) > 1:
        return _BY_NAME.get("/".join(words[-2:])) or _BY_NAME.get(words[-1])
    return _BY_NAME.get(end)


def ending_operation(base_path: str) -> str:
    """An operation at the end of a base URL, which should not be there: people paste the address of a whole request."""
    end = base_path.rstrip("/")
    for operation in _MANY:
        if end.endswith(f"/{operation.name}"):
            return f"/{operation.name}"
    found = _OF_A_MODEL.search(end)
    return found[0] if found is not None and found.end() == len(end) else ""


@lru_cache(maxsize=1024)
def provider_of(path: str) -> str:
    """Whose key and base URL a request for a path uses if none is named: OpenAI's, unless the path is another's."""
    operation = operation_of(path)
    if operation is None:
        return OPENAI
    if operation.provider == ANTHROPIC:  # "/v1/threads/1/messages" is not theirs
        end = path.partition("?")[0].rstrip("/")
        return ANTHROPIC if is_known(end) or end.endswith(f"/v1/{operation.name}") else OPENAI
    return operation.provider


def wanted_of(path: str) -> tuple[str, ...]:
    """Members of which an answer to this path must have one; (): unknown."""
    operation = operation_of(path)
    if operation is not None:
        return operation.wanted
    end = path.partition("?")[0].rstrip("/").lower()
    return next((members for suffix, members in _WANTED_ELSEWHERE.items() if f"/{end}".endswith(suffix)), ())


def model_of(path: str, body: Any) -> str:
    """The model that a request names in its body or path; "": none."""
    model = body.get("model") if isinstance(body, Mapping) else None
    if isinstance(model, str) and model:
        return model
    found = _MODEL.search(path.partition("?")[0])
    return found[1] if found else ""


def lane_of(provider: str, path: str, body: Any) -> str:
    """The lane of a request for which none is named: its provider and model, or its operation if it names no model."""
    model, operation = model_of(path, body), operation_of(path)
    if operation is None:
        return f"{provider}:{model}" if model else "default"
    if not model:
        return f"{provider}:{operation.name}"
    return f"{provider}:{model}:{operation.name}" if operation.apart else f"{provider}:{model}"
