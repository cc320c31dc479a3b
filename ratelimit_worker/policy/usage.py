"""What has a provider counted for one request? Read from an answer's body, or from an SDK's object of it.

Each provider leaves other tokens out of its totals; here they are made whole, and what was of a kind is told beside
them. `docs/money.md` has the table of spellings. Pure. Answers are strangers' values: what makes no sense counts as
nothing, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from ratelimit_worker.calls import Usage
from ratelimit_worker.policy.estimate import MOST_TOKENS

NANO = 1_000_000_000  #: billionths in a dollar
_MOST_COST_USD = 1_000_000  #: of one request; beyond, it is no amount of money
_MOST_WORD = 64  #: characters of a tier or a reason

_USAGES = ("usage", "usage_metadata", "usageMetadata")
_INPUTS = ("prompt_tokens", "input_tokens", "prompt_token_count", "promptTokenCount", "inputTokens")
_OUTPUTS = ("completion_tokens", "output_tokens", "candidates_token_count", "candidatesTokenCount", "outputTokens")
#: Beside the total where the total is without them: Anthropic, Bedrock.
_READ_BESIDE = ("cache_read_input_tokens", "cacheReadInputTokens", "cacheReadInputTokenCount")
_WRITTEN_BESIDE = ("cache_creation_input_tokens", "cacheWriteInputTokens", "cacheWriteInputTokenCount")
#: Of the total: DeepSeek, Gemini in two spellings, Mistral, Cohere, Moonshot.
_READ_OF = (
    *("prompt_cache_hit_tokens", "cached_content_token_count", "cachedContentTokenCount"),
    *("num_cached_tokens", "cached_tokens"),
)
_INPUT_DETAILS = ("prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details")
_OUTPUT_DETAILS = (
    *("completion_tokens_details", "output_tokens_details", "output_token_details"),
    "completion_token_details",
)
#: Gemini's lists of tokens by modality.
_INPUT_MODALITIES = ("prompt_tokens_details", "promptTokensDetails")
_OUTPUT_MODALITIES = ("candidates_tokens_details", "candidatesTokensDetails")
#: What Groq tells beside the tokens, and nobody else does; what it reads from its cache is free of its limits.
_GROQ = ("queue_time", "prompt_time", "total_time")
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
    usage = _cohere(told) if _is_cohere(told) else _tokens(told)
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    return usage | Usage(
        service_tier=_word(told.get("service_tier")) or _word(fields.get("service_tier")), cost_nanousd=_billed(told)
    )


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


def counted_tokens(usage: Mapping[Any, Any], *names: str) -> int | None:
    """The first of the named fields that holds a count, as providers write them: also as a text, or with a fraction."""
    for name in names:
        value: Any = usage.get(name)
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


def _tokens(told: Mapping[str, Any]) -> Usage:
    input_of, output_of = _details(told, _INPUT_DETAILS), _details(told, _OUTPUT_DETAILS)
    inputs, outputs = counted_tokens(told, *_INPUTS), counted_tokens(told, *_OUTPUTS)
    if inputs is None and outputs is None:
        inputs = counted_tokens(told, "total_tokens")  # Voyage; what embeds has no output
    beside, written = counted_tokens(told, *_READ_BESIDE), counted_tokens(told, *_WRITTEN_BESIDE)
    apart = "prompt_tokens" not in told and (beside is not None or written is not None) and inputs is not None
    if apart and inputs is not None:
        inputs += (beside or 0) + (written or 0)
    read = beside
    if read is None:
        read = counted_tokens(told, *_READ_OF)
    if read is None:
        read = counted_tokens(input_of, "cached_tokens", "cache_read")
    if written is None:
        written = counted_tokens(input_of, "cache_write_tokens", "cache_creation_tokens", "cache_creation")
    # Gemini counts what its tools put in beside the prompt.
    tools = counted_tokens(told, "tool_use_prompt_token_count", "toolUsePromptTokenCount")
    if tools:
        inputs = (inputs or 0) + tools
    reasoning, outputs = _reasoning(told, output_of, inputs, outputs)
    heard, seen = _modalities(told, _INPUT_MODALITIES)
    said, drawn = _modalities(told, _OUTPUT_MODALITIES)
    return Usage(
        input_tokens=inputs,
        output_tokens=outputs,
        cached_input_tokens=_within(read, inputs),
        cache_write_tokens=_within(written, inputs),
        reasoning_tokens=_within(reasoning, outputs),
        audio_input_tokens=_first(counted_tokens(input_of, "audio_tokens", "audio"), heard),
        audio_output_tokens=_first(counted_tokens(output_of, "audio_tokens", "audio"), said),
        image_input_tokens=_first(counted_tokens(input_of, "image_tokens", "image"), seen),
        image_output_tokens=_first(counted_tokens(output_of, "image_tokens", "image"), drawn),
        long_cache_write_tokens=_long_writes(told),
        uncounted_input_tokens=_within(read, inputs) if apart or any(name in told for name in _GROQ) else None,
    )


def _reasoning(
    told: Mapping[str, Any], output_of: Mapping[str, Any], inputs: int | None, outputs: int | None
) -> tuple[int | None, int | None]:
    """Tokens of reasoning, and the output with them."""
    thoughts = counted_tokens(told, "thoughts_token_count", "thoughtsTokenCount")
    if thoughts is not None:  # Gemini counts them beside the candidates
        return thoughts, (outputs or 0) + thoughts
    reasoning = counted_tokens(output_of, "reasoning_tokens", "reasoning")
    total = counted_tokens(told, "total_tokens")
    if reasoning and outputs is not None and total == (inputs or 0) + outputs + reasoning:
        return reasoning, outputs + reasoning  # xAI counts them beside the completion, as its total shows
    return reasoning, outputs


def _long_writes(told: Mapping[str, Any]) -> int | None:
    by_length = told.get("cache_creation")
    if by_length is not None:  # Anthropic
        return counted_tokens(_fields(by_length), "ephemeral_1h_input_tokens")
    details = told.get("cacheDetails")
    if isinstance(details, list):  # Bedrock
        return sum(
            counted_tokens(_fields(one), "inputTokens") or 0 for one in details if _fields(one).get("ttl") == "1h"
        )
    return None


def _is_cohere(told: Mapping[str, Any]) -> bool:
    return any(isinstance(part := told.get(name), Mapping) or _kept(part) for name in ("tokens", "billed_units"))


def _cohere(told: Mapping[str, Any]) -> Usage:
    """What its models read ("tokens") has a system prompt of its own, which is not billed ("billed_units")."""
    read, billed = _fields(told.get("tokens")), _fields(told.get("billed_units"))
    inputs, outputs = counted_tokens(read, "input_tokens"), counted_tokens(read, "output_tokens")
    billed_inputs = counted_tokens(billed, "input_tokens")
    if inputs is None and outputs is None:
        return Usage(billed_inputs, counted_tokens(billed, "output_tokens"))
    return Usage(
        inputs,
        outputs,
        cached_input_tokens=_within(counted_tokens(told, "cached_tokens"), inputs),
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


def _details(told: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    return next((found for name in names if (found := _fields(told.get(name)))), {})


def _modalities(told: Mapping[str, Any], names: Sequence[str]) -> tuple[int | None, int | None]:
    """(audio, pictures) of Gemini's list of tokens by modality."""
    listed = next((found for name in names if isinstance(found := told.get(name), list)), ())
    counts: dict[str, int] = {}
    for one in listed:
        part = _fields(one)
        modality = part.get("modality")
        tokens = counted_tokens(part, "token_count", "tokenCount")
        if tokens is not None:
            name = str(getattr(modality, "value", modality))[:16].upper()
            counts[name] = counts.get(name, 0) + tokens
    return counts.get("AUDIO"), counts.get("IMAGE")


def _within(part: int | None, whole: int | None) -> int | None:
    return part if part is None or whole is None else min(part, whole)


def _first(*counts: int | None) -> int | None:
    return next((one for one in counts if one is not None), None)


def _word(value: Any) -> str | None:
    value = getattr(value, "value", value)  # an SDK's enumeration
    return value[:_MOST_WORD] if isinstance(value, str) and value and value.isprintable() else None


def _fields(of: Any) -> Mapping[str, Any]:
    return of if isinstance(of, Mapping) else _kept(of)


def _kept(of: Any) -> Mapping[str, Any]:
    """The attributes that an object keeps; its properties are not called, for they may do anything."""
    kept = getattr(of, "__dict__", None)
    return kept if isinstance(kept, dict) else {}
