"""The usage that a provider has counted for one request, from an answer's body or an SDK's object of it.

Providers leave different tokens out of their totals. Here totals are completed, and kinds of tokens are given in
addition. `docs/money.md` has the table of spellings. Pure. Answers may contain any values: what makes no sense is
ignored, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum, auto
from typing import Any

from ratelimit_worker.calls import Usage
from ratelimit_worker.policy.estimate import MOST_TOKENS

NANO = 1_000_000_000  #: billionths in a dollar
_MOST_COST_USD = 1_000_000  #: largest cost of one request that is believed
_MOST_WORD = 64  #: characters of a tier or a reason

_USAGES = ("usage", "usage_metadata", "usageMetadata")


class _Is(StrEnum):
    """The meaning of a field of a usage."""

    INPUT = auto()
    OUTPUT = auto()
    TOTAL = auto()
    READ_BESIDE = auto()  #: read from a cache, and not included in the input: Anthropic, Bedrock
    WRITTEN_BESIDE = auto()
    READ_OF = auto()  #: read from a cache, and included in the input: DeepSeek, Gemini, Mistral, Cohere, Moonshot
    THOUGHTS = auto()  #: Gemini's, not included in the candidates
    TOOLS = auto()  #: input of Gemini's tools, not included in the prompt
    # in the details of input or output
    WRITTEN_OF = auto()
    REASONING = auto()
    AUDIO = auto()
    IMAGE = auto()


#: Each field by all its names; if an answer has two of them, the first counts.
_NAMES: Mapping[_Is, tuple[str, ...]] = {
    _Is.INPUT: (
        *("prompt_tokens", "input_tokens", "prompt_token_count", "promptTokenCount", "inputTokens"),
        *("prompt_eval_count", "inputTextTokenCount"),
    ),
    _Is.OUTPUT: (
        *("completion_tokens", "output_tokens", "candidates_token_count", "candidatesTokenCount"),
        *("outputTokens", "eval_count", "generation_token_count"),
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
#: Counts that are members of the answer itself, without a usage: of Ollama, of Llama and Titan on Bedrock.
BESIDE = ("prompt_eval_count", "eval_count", "generation_token_count", "inputTextTokenCount")
#: A field that only Groq has. Tokens that Groq reads from its cache do not count against its limits.
_GROQ = ("queue_time", "prompt_time")
#: Members with the finish reason, by place: of a choice, of the answer.
_ENDS = ("finish_reason", "stop_reason", "finishReason", "stopReason")


def usage_of(answer: Any) -> Usage | None:
    """The usage in an answer, in any known spelling; None: it has no tokens.

    OpenAI (chat, responses, embeddings, images, transcripts), Anthropic, Gemini, Cohere, Mistral, DeepSeek, Groq, xAI,
    OpenRouter (with what it billed), Bedrock, Voyage, Ollama, LiteLLM and LangChain.
    """
    fields = _fields(answer)
    if not fields:  # most answers of functions: a text
        return None
    counted = next((found for name in _USAGES if (found := fields.get(name))), None)
    meta = fields.get("meta")
    if counted is None and isinstance(meta, Mapping) and ("billed_units" in meta or "tokens" in meta):
        counted = meta  # Cohere, before its version 2
    if counted is None:
        counted = _fields(fields.get("x_groq")).get("usage")  # at the end of Groq's streams
    if counted is None and any(fields.get(name) is not None for name in BESIDE):
        counted = fields
    if counted is None:
        return None
    told = _fields(counted)
    tier = _word(told.get("service_tier")) or _word(fields.get("service_tier"))
    usage = _cohere(told) if "tokens" in told or "billed_units" in told else _tokens(told, tier)
    return None if usage.input_tokens is None and usage.output_tokens is None else usage


def finish_reason_of(answer: Any) -> str | None:
    """The finish reason of an answer, as the provider spells it ("stop", "end_turn", "MAX_TOKENS", …); None: it has
    none."""
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
    """A count as providers write it, also as text or with a fraction; None: it is not a count."""
    if isinstance(value, str) and len(value) <= 12 and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, float) and 0 <= value < MOST_TOKENS:
        value = round(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return min(value, MOST_TOKENS)
    return None


def nanousd(amount: Any) -> int | None:
    """An amount of dollars as billionths; None: it is not an amount, or more than one request can cost."""
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
    """The fields that hold a count. Loops over the fields that are there, since known names are many."""
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
    if thoughts is not None:  # Gemini does not include them in the candidates
        return thoughts, (outputs or 0) + thoughts
    reasoning = output_of.get(_Is.REASONING)
    if reasoning and outputs is not None and counts.get(_Is.TOTAL) == (inputs or 0) + outputs + reasoning:
        return reasoning, outputs + reasoning  # xAI does not include them in the completion, as its total shows
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
    """Cohere counts its own system prompt in "tokens", but does not bill it ("billed_units")."""
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
    """The cost in an answer: OpenRouter gives dollars, Perplexity several parts, xAI ten-billionths of a dollar."""
    cost = told.get("cost")
    if isinstance(cost, Mapping) or _kept(cost):
        return nanousd(_fields(cost).get("total_cost"))
    if cost is not None:
        own = nanousd(cost)
        if own is None or told.get("is_byok") is not True:
            return own
        upstream = nanousd(_fields(told.get("cost_details")).get("upstream_inference_cost"))
        return own + (upstream or 0)  # if the user has their own key, `cost` is only OpenRouter's fee
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
    """The attributes stored in an object; properties are not called, since they may do anything."""
    kept = getattr(of, "__dict__", None)
    return kept if isinstance(kept, dict) else {}
