"""What does a trace say about a call? Names and attributes of its spans and metrics. Pure.

Attempts are named by OpenTelemetry's conventions for generative AI (`gen_ai.…`, release 1.41; they are in development
there), everything else by `ratelimit_worker.…`. Arguments and answers are never among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from ratelimit_worker.calls import Attempt, Outcome
from ratelimit_worker.contracts.plan import Plan

OWN = "ratelimit_worker."
#: Our names of providers → those of the conventions, where they differ.
_PROVIDERS = {
    "google": "gcp.gemini",
    "vertex": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
CALL_ID = OWN + "call.id"
UNKNOWN_PROVIDER = "unknown"
_ASKED_BY = b'{"by": "'  #: beginning of a kept answer that names the trace of the call that asked for it
#: Upper bounds of the buckets of durations (s) and tokens, as the conventions advise.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
TOKENS = tuple(float(4**power) for power in range(14))
#: ... and of waiting, which may take a day.
WAITED_S = (0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0, 86_400.0)

#: Most kinds of calls (by task, lane, tenant, …) whose attributes are kept; the oldest are built anew.
MOST_KINDS = 1024

Value = str | int | float | bool | Sequence[str]
Attributes = Mapping[str, Value]


class Event(NamedTuple):
    """Something that happened within a span."""

    name: str
    attributes: Attributes


class Opening(NamedTuple):
    """What a span begins with."""

    name: str
    attributes: Attributes


def named(plan: Plan, call_id: str) -> dict[str, str]:
    """Attributes of a call's other spans: only what is needed to find it, since each attribute costs a microsecond."""
    return {CALL_ID: call_id, OWN + "lane": plan.lane}


def of_call(plan: Plan, call_id: str, task: str) -> dict[str, Value]:
    """Attributes of a span that stands for a call: who it is and what kind of call."""
    return {CALL_ID: call_id, **_of_kind(*_kind(plan, task))}


def of_sending(plan: Plan, task: str, queue: str) -> Mapping[str, Value]:
    """Attributes of the span of a call's sending that all calls of its kind share; kept, so not to be changed.

    A sampler is asked with these. The call's id is added to a span that is recorded: `CALL_ID`.
    """
    return _of_sending(queue, *_kind(plan, task))


def of_attempt(plan: Plan, call_id: str, task: str, waited_s: float) -> Opening:
    """The span of an attempt that begins."""
    name, kind = _of_attempt(model_of(plan), *_kind(plan, task))
    return Opening(name, {CALL_ID: call_id, **kind, OWN + "wait_s": round(waited_s, 6)})


_Kind = tuple[str, str, str, str, str, tuple[str, ...]]


def _kind(plan: Plan, task: str) -> _Kind:
    # `_value_`, since `value` takes two function calls
    return task, plan.lane, plan.priority._value_, plan.tenant, plan.context, plan.tags


@lru_cache(MOST_KINDS)
def _of_kind(
    task: str, lane: str, priority: str, tenant: str, context: str, tags: tuple[str, ...]
) -> Mapping[str, Value]:
    told: dict[str, Value] = {OWN + "task": task, OWN + "lane": lane, OWN + "class": priority}
    if tenant:
        told[OWN + "tenant"] = tenant
    if context:
        told[OWN + "context"] = context
    if tags:
        told[OWN + "tags"] = tags
    return told


@lru_cache(MOST_KINDS)
def _of_sending(queue: str, *kind: *_Kind) -> Mapping[str, Value]:
    """By the conventions for messages, in addition."""
    told = {"messaging.system": "celery", "messaging.operation.type": "send", "messaging.destination.name": queue}
    return MappingProxyType({**_of_kind(*kind), **told})


@lru_cache(MOST_KINDS)
def _of_attempt(model: str | None, *kind: *_Kind) -> Opening:
    asked = _asked(None, kind[1], model)
    return Opening(asked.span, {**_of_kind(*kind), **asked.attributes()})


def provider_of(provider: str | None, lane: str) -> str:
    """The provider, as the conventions name it.

    Args:
        provider: As seen during the attempt; None: it is taken from a lane's name of the form PROVIDER:MODEL.
    """
    known = provider or (lane.partition(":")[0] if ":" in lane else "")
    return _PROVIDERS.get(known, known) or UNKNOWN_PROVIDER


def model_of(plan: Plan) -> str | None:
    """The model that a call asks for; None: its plan does not name it."""
    if plan.model is not None and plan.model != plan.lane:
        return plan.model
    return plan.lane.partition(":")[2] or None


def operation_of(provider: str, model: str | None) -> str:
    """The operation, as the conventions name it: `chat`, `embeddings` or `generate_content`."""
    if model is not None and "embed" in model.lower():
        return "embeddings"
    return "generate_content" if provider.startswith("gcp.") else "chat"


class Asked(NamedTuple):
    """Provider, operation and model of an attempt: the attributes that spans and metrics share."""

    provider: str
    operation: str
    model: str | None

    @classmethod
    def of(cls, plan: Plan, provider: str | None = None) -> Asked:
        """From a call's plan, and the provider that was seen to answer (None: not known)."""
        return _asked(provider, plan.lane, model_of(plan))

    @property
    def span(self) -> str:
        """The name of the attempt's span."""
        return f"{self.operation} {self.model}" if self.model else self.operation

    def attributes(self) -> dict[str, Value]:
        """The attributes, as the conventions name them."""
        told: dict[str, Value] = {"gen_ai.operation.name": self.operation, "gen_ai.provider.name": self.provider}
        if self.model:
            told["gen_ai.request.model"] = self.model
        return told


@lru_cache(MOST_KINDS)
def _asked(provider: str | None, lane: str, model: str | None) -> Asked:
    name = provider_of(provider, lane)
    return Asked(name, operation_of(name, model), model)


#: Attributes that the end of an attempt adds to its span → fields of its row. What is not known is left out.
_CAME = {
    "gen_ai.response.model": "model",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_input_tokens",
    "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "http.response.status_code": "status",
    OWN + "request.id": "request_id",
    OWN + "retry_after_s": "retry_after_s",
}


def came(row: Attempt) -> dict[str, Value]:
    """Attributes that the end of an attempt adds to its span."""
    told: dict[str, Value] = {OWN + "outcome": row.outcome._value_, OWN + "attempt": row.number}
    for name, field in _CAME.items():
        if (value := getattr(row, field)) is not None:
            told[name] = value
    if row.finish_reason:
        told["gen_ai.response.finish_reasons"] = (row.finish_reason,)
    if row.cost_nanousd is not None:
        told[OWN + "cost_usd"] = row.cost_nanousd / 1e9
    if (error := error_of(row)) is not None:
        told["error.type"] = error
    return told


def error_of(row: Attempt) -> str | None:
    """The kind of error of an attempt: its category, else its cause, which then is an exception's name; None: no error.

    If there is a category, the cause may be the provider's text, which is not a kind.
    """
    if row.outcome is Outcome.ANSWERED:
        return None
    if row.category is not None:
        return row.category.value
    return row.cause or row.outcome.value


def asked_by(answer: bytes) -> str | None:
    """The traceparent of the call that has asked for a kept answer (`flow.call.answers`); None: it was not traced."""
    if not answer.startswith(_ASKED_BY):
        return None
    return answer[len(_ASKED_BY) :].partition(b'"')[0].decode("ascii", "replace")


class Wait(NamedTuple):
    """What is known about a call's wait when an attempt begins."""

    number: int  #: of the attempt, from 1
    tries: int  #: attempts before that cost a try
    sick: int  #: sick answers in a row so far
    lost: int  #: attempts whose worker died
    pause_s: float  #: in the worker, so that starts keep their pace


class Held(NamedTuple):
    """One thing that holds a lane's next call back."""

    kind: str  #: as of `ports.BarKind`
    detail: str
    until_s: float | None  #: seconds since the epoch; None: not known


def causes(wait: Wait, held: Sequence[Held]) -> list[Event]:
    """Why a call has waited, as events of its wait.

    Args:
        held: What holds the lane's next call back, as looked up recently.
    """
    found = []
    if wait.number > 1:
        found.append(Event("again", {OWN + "attempts": wait.number - 1, OWN + "tries": wait.tries}))
    if wait.sick:
        found.append(Event("sick", {OWN + "in_a_row": wait.sick}))
    if wait.lost:
        found.append(Event("worker_lost", {OWN + "times": wait.lost}))
    for one in held:
        about: dict[str, str | float] = {OWN + "detail": one.detail} if one.detail else {}
        if one.until_s is not None:
            about[OWN + "until_s"] = one.until_s
        found.append(Event(one.kind, about))
    if wait.pause_s > 0:
        found.append(Event("pause", {OWN + "pause_s": wait.pause_s}))
    return found
