"""How many tokens will a call take from its budget? An estimate from its arguments, corrected by what answers used.

Input: bytes of the call's texts / 4, times a factor learned for each task and model. Output: the maximum that the
arguments name; if they name none, the mean of what this task and model have answered so far; if nothing is known, 256.
The mean and not a high quantile, since the sum over many calls is what must fit into the budget: with the p90 of
lognormal lengths, 28 % of the budget stayed unused where nothing is given back (`benchmarks/tokens.py`).

Pure. Arguments and answers may be any values: what makes no sense counts as 0, and nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from ratelimit_worker.calls import Cost, Usage
from ratelimit_worker.policy import attachments

#: Output tokens of a call that names no maximum, while nothing is learned.
DEFAULT_OUTPUT_TOKENS = 256

#: Answers from which on a learned mean is used.
LEAST_ANSWERS = 5

#: Bounds of the factor: beyond them something else is wrong, and the estimate must not follow it.
LEAST_FACTOR, MOST_FACTOR = 0.1, 10.0

MOST_TOKENS = 10_000_000  #: of one part of a call
_MOST_ANSWERS = 1_000_000_000
_BYTES_PER_TOKEN = 4
_MOST_PARTS = 100_000  #: parts of the arguments that are looked at

#: Least weight of a new answer, which makes a mean over about the last hundred. With lognormal lengths of sigma 0.8
#: its standard error is 7 %.
_WEIGHT = 0.01

#: Names under which SDKs and frameworks give the maximum of output tokens; the first that is there counts.
OUTPUT_LIMITS = (
    "max_completion_tokens",
    "max_output_tokens",
    "max_tokens",
    "max_new_tokens",
    "max_tokens_to_sample",
    "maxOutputTokens",
    "maxTokens",
)


class Size(NamedTuple):
    """What a call's arguments say about its tokens, before any correction.

    A task's `cost` function may return a `Size` in place of a `Cost`: then it is corrected by what was learned of the
    task. (A NamedTuple, since every `.delay()` makes one, and a frozen dataclass takes 1 µs more.)
    """

    input_tokens: int = 0  #: bytes / 4
    output_tokens: int | None = None  #: maximum of output tokens of one choice; None: the call names none
    choices: int = 1  #: choices (completions) that the call asks for
    model: str = ""  #: "": the arguments name none
    counted: bool = False  #: `input_tokens` was counted by a tokenizer, so it is not corrected


class Learned(Struct, frozen=True, kw_only=True):
    """What was learned from the answers of one task and model: exponentially weighted means."""

    answers: int = 0
    factor: float = 1.0  #: input tokens: counted by the provider / estimated
    factor_of: int = 0  #: answers in `factor`
    output_tokens: float = 0.0  #: of one answer
    output_of: int = 0  #: answers in `output_tokens`
    nanousd: float = 0.0  #: what one answer cost, billionths of a dollar
    nanousd_of: int = 0  #: answers in `nanousd`
    at: float = 0.0  #: of the last of them, seconds since the epoch


class Sample(Struct, frozen=True, kw_only=True):
    """What one answer teaches."""

    estimated_tokens: int | None  #: input tokens as estimated, before correction; None: they were not estimated
    usage: Usage
    at: float  #: seconds since the epoch
    nanousd: int | None = None  #: what it cost; None: no price is known


def cost(size: Size, learned: Learned | None) -> Cost:
    """The cost that a call reserves; `learned` is None while nothing is known of its task and model."""
    input_tokens, output_tokens, choices, _, counted = size
    if learned is not None and learned.factor_of >= LEAST_ANSWERS and not counted:
        input_tokens = round(input_tokens * min(MOST_FACTOR, max(LEAST_FACTOR, learned.factor)))
    if output_tokens is None:
        known = learned is not None and learned.output_of >= LEAST_ANSWERS
        output_tokens = round(learned.output_tokens) if known and learned is not None else DEFAULT_OUTPUT_TOKENS
    if choices > 1:
        output_tokens *= choices
    return Cost(
        input_tokens=input_tokens if input_tokens < MOST_TOKENS else MOST_TOKENS,
        output_tokens=output_tokens if output_tokens < MOST_TOKENS else MOST_TOKENS,
    )


def learn(learned: Learned | None, sample: Sample) -> Learned:
    """The means after one more answer.

    The factor is the mean of actual / estimated, each within the bounds. The n-th answer has the weight 1/n, but at
    least 0.01.
    """
    before = learned or Learned()
    factor, factor_of = before.factor, before.factor_of
    output, output_of = before.output_tokens, before.output_of
    counted, estimated = sample.usage.input_tokens, sample.estimated_tokens
    if counted is not None and counted > 0 and estimated is not None and estimated > 0:
        factor_of = min(_MOST_ANSWERS, factor_of + 1)
        seen = min(MOST_FACTOR, max(LEAST_FACTOR, counted / estimated))
        factor += (seen - factor) * max(1.0 / factor_of, _WEIGHT)
        factor = min(MOST_FACTOR, max(LEAST_FACTOR, factor))  # again, because of rounding
    if sample.usage.output_tokens is not None and sample.usage.output_tokens >= 0:
        output_of = min(_MOST_ANSWERS, output_of + 1)
        output += (min(sample.usage.output_tokens, MOST_TOKENS) - output) * max(1.0 / output_of, _WEIGHT)
    nanousd, nanousd_of = before.nanousd, before.nanousd_of
    if sample.nanousd is not None:
        nanousd_of = min(_MOST_ANSWERS, nanousd_of + 1)
        nanousd += (sample.nanousd - nanousd) * max(1.0 / nanousd_of, _WEIGHT)
    return Learned(
        answers=min(_MOST_ANSWERS, before.answers + 1),
        factor=factor,
        factor_of=factor_of,
        output_tokens=output,
        output_of=output_of,
        nanousd=nanousd,
        nanousd_of=nanousd_of,
        at=max(before.at, sample.at),
    )


def key(task: str, model: str) -> str:
    """The name under which a task and model are learned."""
    return f"{task}\n{model}"


def size_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Size:
    """The size of a call of any function: all texts in its arguments, and the maximum of output under its usual names.

    The maximum may be a keyword argument, or in an argument that is a mapping (a request body, a
    `generation_config`).
    """
    rule = attachments.rule_of(kwargs.get("model")) if kwargs else ""
    size, _, attached = _measure((*args, *kwargs.values()) if kwargs else args, rule)
    input_tokens = min(MOST_TOKENS, attached - (-size // _BYTES_PER_TOKEN))
    output_tokens = stated_tokens(kwargs, *OUTPUT_LIMITS) if kwargs else None
    thinks = _thinks(kwargs) if kwargs else 0
    if output_tokens is None:
        for value in (*args, *(part for name, part in kwargs.items() if name not in _THINKING)):
            if isinstance(value, dict):
                thinks = max(thinks, _thinks(value))
                output_tokens = stated_tokens(value, *OUTPUT_LIMITS)
                if output_tokens is not None:
                    break
    output_tokens = _with_thoughts(output_tokens, thinks)
    if not kwargs:
        return Size(input_tokens=input_tokens, output_tokens=output_tokens)
    if output_tokens is None and embeds(kwargs):
        output_tokens = 0
    model = kwargs.get("model")
    return Size(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        choices=max(1, stated_tokens(kwargs, "n") or 1) if output_tokens is not None else 1,
        model=model if isinstance(model, str) else "",
    )


def embeds(body: Mapping[str, Any]) -> bool:
    """Whether a request seems to ask for embeddings, which have no output: it has a lone `input` of texts, `inputs`,
    `texts` or `documents`.

    A request for a response (OpenAI's Responses API) may look the same; its answer then corrects the estimate.
    """
    if "max_output_tokens" in body:
        return False
    if any(body.get(name) is not None for name in ("messages", "message", "prompt", "instructions", "tools")):
        return False
    said = body.get("input")
    if said is None:  # Voyage, Cohere, rerankers
        return any(body.get(name) is not None for name in ("inputs", "texts", "documents"))
    return not (isinstance(said, list) and any(isinstance(item, Mapping) for item in said))


def text_tokens(*prompt: Any, model: Any = None) -> int:
    """Tokens of parts of a prompt: text by its UTF-8 bytes / 4, rounded up; pictures by pixels if the model's rule is
    known, other attachments at a fixed number each; token ids one each."""
    size, numbers, attached = _measure(prompt, attachments.rule_of(model))
    return min(MOST_TOKENS, attached + numbers - (-size // _BYTES_PER_TOKEN))


def texts_of(values: Iterable[Any], most_characters: int) -> list[str] | None:
    """All texts in values of any depth; None if they are longer, or contain anything else that counts (attachments)."""
    texts, waiting, left = list[str](), list(values), most_characters
    while waiting:
        part = waiting.pop()
        if isinstance(part, str):
            left -= len(part)
            if attachments.holds_data(part):
                return None
            texts.append(part)
        elif isinstance(part, dict):
            if attachments.is_piece(part):
                return None
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        if left < 0 or len(waiting) > _MOST_PARTS:
            return None
    return texts


def stated_tokens(body: Mapping[Any, Any], *names: str) -> int | None:
    """The first of these fields that holds a count: a whole number from 0 to 10 million."""
    for name in names:
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return min(value, MOST_TOKENS)
    return None


def most_output(body: Mapping[Any, Any], *names: str) -> int | None:
    """The maximum of output tokens of one choice: the first of these limits, and at least the request's budget for
    thinking; None: it names neither."""
    return _with_thoughts(stated_tokens(body, *names), _thinks(body))


def _with_thoughts(stated: int | None, thinks: int) -> int | None:
    if not thinks:
        return stated
    return min(MOST_TOKENS, thinks + DEFAULT_OUTPUT_TOKENS) if stated is None else max(stated, thinks)


def _thinks(body: Mapping[Any, Any]) -> int:
    return max((tokens for part in _thinking(body) if (tokens := stated_tokens(part, *_BUDGETS))), default=0)


#: Where requests give a budget for thinking: Anthropic, OpenRouter, Gemini in its two spellings.
_THINKING = ("thinking", "reasoning", "thinking_config", "thinkingConfig")
_BUDGETS = ("budget_tokens", "max_tokens", "thinking_budget", "thinkingBudget")


def _thinking(body: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    for of in (body, body.get("generationConfig"), body.get("generation_config"), body.get("config")):
        if isinstance(of, Mapping):
            yield from (part for name in _THINKING if isinstance(part := of.get(name), Mapping))


def _measure(values: Iterable[Any], rule: str) -> tuple[int, int, int]:
    """(bytes of all texts, numbers, tokens of attachments) in values of any depth."""
    size = numbers = attached = 0
    parts, waiting = 0, list(values)
    while waiting and parts < _MOST_PARTS:
        part = waiting.pop()
        parts += 1
        if isinstance(part, str):
            if len(part) < attachments.LEAST_ENCODED:
                size += len(part) if part.isascii() else len(part.encode("utf-8", "surrogatepass"))
            else:
                text, tokens = attachments.measured(part, rule)
                size += text
                attached += tokens
        elif isinstance(part, dict):
            inside, tokens = attachments.opened(part, rule)
            waiting += inside
            attached += tokens
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, int | float) and not isinstance(part, bool):
            numbers += 1
    return size, numbers, attached
