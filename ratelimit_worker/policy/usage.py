"""What has a provider counted for one request? Read from an answer's body, or from an SDK's object of it.

Each provider leaves other tokens out of its totals; here they are made whole, and what was of a kind is told beside
them. `docs/money.md` has the table of spellings. Pure. Answers are strangers' values: what makes no sense counts as
nothing, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum, auto
from typing import Any

from ratelimit_worker.calls import Usage
from ratelimit_worker.policy.estimate import MOST_TOKENS

NANO = 1_000_000_000  #: billionths in a dollar
_MOST_COST_USD = 1_000_000  #: of one request; beyond, it is no amount of money
_MOST_WORD = 64  #: characters of a tier or a reason

_USAGES = ("usage", "usage_metadata", "usageMetadata")


class _Is(StrEnum):
    """What a field of a usage counts."""

    INPUT = auto()
    OUTPUT = auto()
    TOTAL = auto()
    READ_BESIDE = auto()  #: from a cache, where the input is told without it: Anthropic, Bedrock
    WRITTEN_BESIDE = auto()
    READ_OF = auto()  #: the same, of the input: DeepSeek, Gemini, Mistral, Cohere, Moonshot
    THOUGHTS = auto()  #: Gemini's, beside the candidates
    TOOLS = auto()  #: what Gemini's tools put in, beside the prompt
    # of the details of input or output
    WRITTEN_OF = auto()
    REASONING = auto()
    AUDIO = auto()
    IMAGE = auto()


#: Each field by all its names; where an answer has two of them, the first counts.
_NAMES: Mapping[_Is, tuple[str, ...]] = {
    _Is.INPUT: ("prompt_tokens", "input_tokens", "prompt_token_count", "promptTokenCount", "inputTokens"),
    _Is.OUTPUT: (
        *("completion_tokens", "output_tokens", "candidates_token_count", "candidatesTokenCount"),
        "outputTokens",
    ),
    _Is.TOTAL: ("total_tokens",),
    _Is.READ_BESIDE: ("cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount"),
    _Is.WRITTEN_BESIDE: ("cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount"),
    _Is.READ_OF: (
        *("prompt_cache_hit_tokens", "cached_content_token_count", "cachedContentTokenCount", "num_cached_tokens"),
        *("cached_tokens", "cache_read"),
    ),
    _Is.THOUGHTS: ("thoughts_token_count", "thoughtsTokenCount"),
    _Is.TOOLS: ("tool_use_prompt_token_count", "toolUsePromptTokenCount"),
    _Is.WRITTEN_OF: ("cache_write_tokens", "cache_creation_tokens", "cache_creation"),
    _Is.REASONING: ("reasoning_tokens", "reasoning"),
    _Is.AUDIO: ("audio_tokens", "audio"),
    _Is.IMAGE: ("image_tokens", "image"),
}
_MEANS = {name: (kind, rank) for kind, names in _NAMES.items() for rank, name in enumerate(names)}
_INPUT_DETAILS = frozenset(
    ("prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details")
)
_OUTPUT_DETAILS = frozenset(
    ("completion_tokens_details", "output_tokens_details", "output_token_details", "completion_token_details")
)
#: Gemini's lists of tokens by modality.
_INPUT_MODALITIES = ("prompt_tokens_details", "promptTokensDetails")
_OUTPUT_MODALITIES = ("candidates_tokens_details", "candidatesTokensDetails")
#: What Groq tells beside the tokens, and nobody else does; what it reads from its cache is free of its limits.
_GROQ = ("queue_time", "prompt_time")
#: Where answers say why they ended, by the place: of a choice, of the answer.
_ENDS = ("finish_reason", "stop_reason", "finishReason", "stopReason")


def usage_of(answer: Any) -> Usage | None:
    """What a provider counted, in any of the spellings that are known; None: it tells no tokens.

    OpenAI (chat, responses, embeddings, images, transcripts), Anthropic, Gemini, Cohere, Mistral, DeepSeek, Groq, xAI,
    OpenRouter (with what it billed), Bedrock, Voyage, LiteLLM and LangChain.
    """
    fields = _fields(answer)
    counted = next((found for name in _USAGES if (found := fields.get(name))), None)
    meta = fields.get("meta")
    if counted is None and isinstance(meta, Mapping) and ("billed_units" in meta or "tokens" in meta):
        counted = meta  # Cohere, before its version 2
    if counted is None:
        return None
    told = _fields(counted)
    tier = _word(told.get("service_tier")) or _word(fields.get("service_tier"))
    usage = _cohere(told) if "tokens" in told or "billed_units" in told else _tokens(told, tier)
    return None if usage.input_tokens is None and usage.output_tokens is None else usage


def finish_reason_of(answer: Any) -> str | None:
    """Why an answer ended, in its provider's own word ("stop", "end_turn", "MAX_TOKENS", …); None: it does not say."""
    fields = _fields(answer)
    details = _fields(fields.get("incomplete_details"))
    choices = [
        _fields(part[0]) for name in ("choices", "candidates") if isinstance(part := fields.get(name), list) and part
    ]
    for ended in (fields, *choices):
        for name in _ENDS:
            if reason := _word(ended.get(name)):
                return reason
    told = _word(details.get("reason"))
    return told or (_word(fields.get("status")) if fields.get("object") == "response" else None)


def counted_tokens(value: Any) -> int | None:
    """A count, as providers write it: also as a text, or with a fraction; None: it is none."""
    if isinstance(value, str) and len(value) <= 12 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, float) and 0 <= value < MOST_TOKENS:
        value = round(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, MOST_TOKENS)
    return None


def nanousd(amount: Any) -> int | None:
    """An amount of dollars as billionths; None: it is no amount, or more than one request can cost."""
    if isinstance(amount, bool) or not isinstance(amount, int | float | str | Decimal):
        return None
    try:
        exact = Decimal(str(amount)[:64])
    except InvalidOperation:
        return None
    if not exact.is_finite() or not 0 <= exact <= _MOST_COST_USD:
        return None
    return round(exact * NANO)


def _counts(told: Mapping[str, Any]) -> dict[_Is, int]:
    """The fields that hold a count. One look at each field that is there: names are many, and fields few."""
    found: dict[_Is, int] = {}
    ranks: dict[_Is, int] = {}
    for name, value in told.items():
        means = _MEANS.get(name)
        if means is None or (tokens := counted_tokens(value)) is None:
            continue
        kind, rank = means
        if kind not in found or rank < ranks[kind]:
            found[kind], ranks[kind] = tokens, rank
    return found


def _tokens(told: Mapping[str, Any], tier: str | None) -> Usage:
    counts = _counts(told)
    input_of = output_of = _NONE
    for name, value in told.items():
        if name in _INPUT_DETAILS and not isinstance(value, list):
            input_of = _counts(_fields(value))
        elif name in _OUTPUT_DETAILS and not isinstance(value, list):
            output_of = _counts(_fields(value))
    inputs, outputs = counts.get(_Is.INPUT), counts.get(_Is.OUTPUT)
    if inputs is None and outputs is None:
        inputs = counts.get(_Is.TOTAL)  # Voyage; what embeds has no output
    read, written = counts.get(_Is.READ_BESIDE), counts.get(_Is.WRITTEN_BESIDE)
    apart = inputs is not None and "prompt_tokens" not in told and (read is not None or written is not None)
    if apart:
        inputs = (inputs or 0) + (read or 0) + (written or 0)
    if read is None:
        read = counts.get(_Is.READ_OF, input_of.get(_Is.READ_OF))
    if written is None:
        written = input_of.get(_Is.WRITTEN_OF)
    if tools := counts.get(_Is.TOOLS):
        inputs = (inputs or 0) + tools
    reasoning, outputs = _reasoning(counts, output_of, inputs, outputs)
    heard, seen = _modalities(told, _INPUT_MODALITIES)
    said, drawn = _modalities(told, _OUTPUT_MODALITIES)
    return Usage(
        inputs,
        outputs,
        _within(read, inputs),
        _within(written, inputs),
        _within(reasoning, outputs),
        audio_input_tokens=input_of.get(_Is.AUDIO, heard),
        audio_output_tokens=output_of.get(_Is.AUDIO, said),
        image_input_tokens=input_of.get(_Is.IMAGE, seen),
        image_output_tokens=output_of.get(_Is.IMAGE, drawn),
        long_cache_write_tokens=_long_writes(told) if written else None,
        uncounted_input_tokens=_within(read, inputs) if apart or any(name in told for name in _GROQ) else None,
        service_tier=tier,
        cost_nanousd=_billed(told),
    )


_NONE: dict[_Is, int] = {}


def _reasoning(
    counts: Mapping[_Is, int], output_of: Mapping[_Is, int], inputs: int | None, outputs: int | None
) -> tuple[int | None, int | None]:
    """Tokens of reasoning, and the output with them."""
    thoughts = counts.get(_Is.THOUGHTS)
    if thoughts is not None:  # Gemini counts them beside the candidates
        return thoughts, (outputs or 0) + thoughts
    reasoning = output_of.get(_Is.REASONING)
    if reasoning and outputs is not None and counts.get(_Is.TOTAL) == (inputs or 0) + outputs + reasoning:
        return reasoning, outputs + reasoning  # xAI counts them beside the completion, as its total shows
    return reasoning, outputs


def _long_writes(told: Mapping[str, Any]) -> int | None:
    by_length = told.get("cache_creation")
    if by_length is not None:  # Anthropic
        return counted_tokens(_fields(by_length).get("ephemeral_1h_input_tokens"))
    details = told.get("cacheDetails")
    if isinstance(details, list):  # Bedrock
        long = (_fields(one) for one in details if _fields(one).get("ttl") == "1h")
        return sum(counted_tokens(one.get("inputTokens")) or 0 for one in long)
    return None


def _cohere(told: Mapping[str, Any]) -> Usage:
    """What its models read ("tokens") has a system prompt of its own, which is not billed ("billed_units")."""
    read, billed = _counts(_fields(told.get("tokens"))), _counts(_fields(told.get("billed_units")))
    inputs, outputs, billed_inputs = read.get(_Is.INPUT), read.get(_Is.OUTPUT), billed.get(_Is.INPUT)
    if inputs is None and outputs is None:
        return Usage(billed_inputs, billed.get(_Is.OUTPUT))
    return Usage(
        inputs,
        outputs,
        cached_input_tokens=_within(counted_tokens(told.get("cached_tokens")), inputs),
        unbilled_input_tokens=max(0, (inputs or 0) - billed_inputs) if billed_inputs is not None else None,
    )


def _billed(told: Mapping[str, Any]) -> int | None:
    """What the answer says that it cost: OpenRouter in dollars, Perplexity in parts, xAI in ten-billionths."""
    cost = told.get("cost")
    if isinstance(cost, Mapping) or _kept(cost):
        return nanousd(_fields(cost).get("total_cost"))
    if cost is not None:
        own = nanousd(cost)
        if own is None or told.get("is_byok") is not True:
            return own
        upstream = nanousd(_fields(told.get("cost_details")).get("upstream_inference_cost"))
        return own + (upstream or 0)  # with a key of one's own, `cost` is OpenRouter's fee alone
    ticks = told.get("cost_in_usd_ticks")
    if isinstance(ticks, int) and not isinstance(ticks, bool) and 0 <= ticks <= _MOST_COST_USD * 10**10:
        return (ticks + 5) // 10
    return None


def _modalities(told: Mapping[str, Any], names: Sequence[str]) -> tuple[int | None, int | None]:
    """(audio, pictures) of Gemini's list of tokens by modality."""
    listed = next((found for name in names if isinstance(found := told.get(name), list)), None)
    if not listed:
        return None, None
    counts: dict[str, int] = {}
    for one in listed:
        part = _fields(one)
        modality = part.get("modality")
        tokens = counted_tokens(part.get("token_count", part.get("tokenCount")))
        if tokens is not None:
            name = str(getattr(modality, "value", modality))[:16].upper()
            counts[name] = counts.get(name, 0) + tokens
    return counts.get("AUDIO"), counts.get("IMAGE")


def _within(part: int | None, whole: int | None) -> int | None:
    return part if part is None or whole is None else min(part, whole)


def _word(value: Any) -> str | None:
    value = getattr(value, "value", value)  # an SDK's enumeration
    return value[:_MOST_WORD] if isinstance(value, str) and value and value.isprintable() else None


def _fields(of: Any) -> Mapping[str, Any]:
    return of if isinstance(of, Mapping) else _kept(of)


def _kept(of: Any) -> Mapping[str, Any]:
    """The attributes that an object keeps; its properties are not called, for they may do anything."""
    kept = getattr(of, "__dict__", None)
    return kept if isinstance(kept, dict) else {}
