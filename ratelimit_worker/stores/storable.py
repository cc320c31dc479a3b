"""Changes the values of an attempt so that every store accepts them: UTF-8, SQLite and PostgreSQL.

Providers and users may send anything: NUL bytes, halves of surrogate pairs, `nan`, counts beyond 64 bits, very long
texts. An outcome must arrive all the same, so such values are changed and not refused.
"""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2s
from operator import attrgetter

from msgspec.structs import replace as replace_struct

from ratelimit_worker.calls import MOST_CONTENT, Attempt, Content, ModeChange
from ratelimit_worker.contracts.alert import Alert
from ratelimit_worker.contracts.rollup import Series

#: Longest text that is indexed, in characters: at 4 bytes each still below PostgreSQL's 2,704 bytes an index row.
MAX_KEY_CHARS = 512
#: Longest other text, in characters.
MAX_TEXT_CHARS = 2_000
MAX_TAGS = 100
#: The last second of year 9998: beyond year 9999 Python has no datetime, and zones may add a day.
MAX_EPOCH_S = 253_370_764_799.0
_INT32 = 2**31 - 1
_INT64 = 2**63 - 1
_texts_of = attrgetter(
    *("call_id", "lane", "task", "queue", "context", "tenant", "worker"),
    *("provider", "model", "request_id", "service_tier", "finish_reason", "cause"),
)
_times_of = attrgetter("started_at", "finished_at", "waited_s", "retry_after_s", "first_byte_s")
_counts_of = attrgetter(
    *("number", "status", "input_tokens", "output_tokens", "cached_input_tokens", "cache_write_tokens"),
    *("reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "image_input_tokens", "image_output_tokens"),
    *("cost_nanousd", "cached_saving_nanousd", "lost_attempts", "lost_nanousd"),
)


def storable(attempt: Attempt) -> Attempt:
    """The attempt with values that all stores accept; the same object if nothing has to be changed.

    NUL and halves of surrogate pairs become U+FFFD, texts are cut, numbers are clamped, and NaN becomes None or 0.
    """
    if _plain(attempt):
        return attempt
    clean = {name: value for name, value in _cleaned(attempt).items() if value is not getattr(attempt, name)}
    return replace(attempt, **clean) if clean else attempt  # type: ignore[arg-type]


def _plain(attempt: Attempt) -> bool:
    """Whether it is seen at a glance that nothing has to be changed, as in nearly all attempts: short ASCII texts,
    common numbers. Twice as fast as to look at every field by itself."""
    texts = "".join([text for text in (*_texts_of(attempt), *attempt.tags) if text is not None])
    times = [seconds for seconds in _times_of(attempt) if seconds is not None]
    counts = [count for count in _counts_of(attempt) if count is not None]
    return (
        texts.isascii()
        and "\0" not in texts
        and len(texts) <= MAX_KEY_CHARS
        and len(attempt.tags) <= MAX_TAGS
        and all(0.0 <= seconds <= MAX_EPOCH_S for seconds in times)  # False for NaN
        and min(counts) >= 0
        and max(counts) <= _INT32
        and attempt.content is None
    )


def storable_change(change: ModeChange) -> ModeChange:
    """The mode change with values that all stores accept, as in `storable`; `nan` figures are removed."""
    numbers = list(change.numbers.items())[:MAX_TAGS]
    return replace(
        change,
        id=_text(change.id, MAX_KEY_CHARS),
        lane=lane_key(change.lane),
        at=_number(change.at, 0.0, MAX_EPOCH_S),
        cause=_text(change.cause, MAX_TEXT_CHARS),
        numbers={_text(name, MAX_KEY_CHARS): float(value) for name, value in numbers if math.isfinite(value)},
        who=_text(change.who, MAX_TEXT_CHARS),
        reason=_text(change.reason, MAX_TEXT_CHARS),
        until=_optional_number(change.until),
    )


def storable_alert(alert: Alert) -> Alert:
    """The alert with values that all stores accept, as in `storable`; `nan` figures are removed."""
    numbers = list(alert.numbers.items())[:MAX_TAGS]
    return replace_struct(
        alert,
        lane=lane_key(alert.lane),
        about=_text(alert.about, MAX_TEXT_CHARS),
        since_s=_number(alert.since_s, 0.0, MAX_EPOCH_S),
        cause=_text(alert.cause, MAX_TEXT_CHARS),
        numbers={_text(name, MAX_KEY_CHARS): float(value) for name, value in numbers if math.isfinite(value)},
        opened_s=_optional_number(alert.opened_s),
        closed_s=_optional_number(alert.closed_s),
        ended=_text(alert.ended, MAX_TEXT_CHARS),
        acked_by=_text(alert.acked_by, MAX_TEXT_CHARS),
        acked_s=_optional_number(alert.acked_s),
    )


def call_key(call_id: str) -> str:
    """The call's id as it is stored: a long one is cut and ends in a digest, so that it stays unique."""
    text = _text(call_id, len(call_id))
    if len(text) <= MAX_KEY_CHARS:
        return text
    digest = blake2s(call_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{text[: MAX_KEY_CHARS - len(digest) - 1]}~{digest}"


def lane_key(lane: str) -> str:
    """The lane's name as it is stored."""
    return _text(lane, MAX_KEY_CHARS)


def storable_series(series: Series) -> Series:
    """The series with its names as they are stored in the rows of its attempts."""
    return Series(lane_key(series.lane), *(_text(name, MAX_TEXT_CHARS) for name in series[1:]))


def _cleaned(attempt: Attempt) -> dict[str, object]:
    started_at = _number(attempt.started_at, 0.0, MAX_EPOCH_S)
    tags = attempt.tags[:MAX_TAGS]
    clean_tags = tuple(_text(tag, MAX_TEXT_CHARS) for tag in tags)
    return {
        "call_id": call_key(attempt.call_id),
        "number": _count(attempt.number, _INT32),
        "lane": lane_key(attempt.lane),
        "task": _text(attempt.task, MAX_TEXT_CHARS),
        "started_at": started_at,
        "finished_at": _number(attempt.finished_at, 0.0, MAX_EPOCH_S, unknown=started_at),
        "waited_s": _number(attempt.waited_s, 0.0, MAX_EPOCH_S),
        "queue": _text(attempt.queue, MAX_TEXT_CHARS),
        "context": _text(attempt.context, MAX_TEXT_CHARS),
        "tags": attempt.tags if clean_tags == attempt.tags else clean_tags,
        "tenant": _text(attempt.tenant, MAX_TEXT_CHARS),
        "provider": _optional_text(attempt.provider),
        "model": _optional_text(attempt.model),
        "status": _optional_count(attempt.status, _INT32),
        "request_id": _optional_text(attempt.request_id),
        "retry_after_s": _optional_number(attempt.retry_after_s),
        "input_tokens": _optional_count(attempt.input_tokens, _INT64),
        "output_tokens": _optional_count(attempt.output_tokens, _INT64),
        "cached_input_tokens": _optional_count(attempt.cached_input_tokens, _INT64),
        "cache_write_tokens": _optional_count(attempt.cache_write_tokens, _INT64),
        "reasoning_tokens": _optional_count(attempt.reasoning_tokens, _INT64),
        "audio_input_tokens": _optional_count(attempt.audio_input_tokens, _INT64),
        "audio_output_tokens": _optional_count(attempt.audio_output_tokens, _INT64),
        "image_input_tokens": _optional_count(attempt.image_input_tokens, _INT64),
        "image_output_tokens": _optional_count(attempt.image_output_tokens, _INT64),
        "cost_nanousd": _optional_count(attempt.cost_nanousd, _INT64),
        "cached_saving_nanousd": _optional_count(attempt.cached_saving_nanousd, _INT64),
        "lost_attempts": _count(attempt.lost_attempts, _INT32),
        "lost_nanousd": _optional_count(attempt.lost_nanousd, _INT64),
        "service_tier": _optional_text(attempt.service_tier),
        "first_byte_s": _optional_number(attempt.first_byte_s),
        "finish_reason": _optional_text(attempt.finish_reason),
        "cause": _optional_text(attempt.cause),
        "worker": _text(attempt.worker, MAX_TEXT_CHARS),
        "content": None if attempt.content is None else _content(attempt.content),
    }


def _content(content: Content) -> Content:
    return Content(
        asked=_text(content.asked, MOST_CONTENT),
        answer=None if content.answer is None else _text(content.answer, MOST_CONTENT),
        traceback=None if content.traceback is None else _text(content.traceback, MOST_CONTENT),
    )


def _text(value: str, max_chars: int) -> str:
    if len(value) > max_chars:
        value = value[: max_chars - 1] + "…"
    if "\0" in value:
        value = value.replace("\0", "\ufffd")
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in value)
    return value


def _optional_text(value: str | None) -> str | None:
    return None if value is None else _text(value, MAX_TEXT_CHARS)


def _number(value: float, low: float, high: float, unknown: float = 0.0) -> float:
    if low <= value <= high:
        return value
    return unknown if math.isnan(value) else min(max(value, low), high)


def _optional_number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else _number(value, 0.0, MAX_EPOCH_S)


def _count(value: int, high: int) -> int:
    return value if 0 <= value <= high else min(max(value, 0), high)


def _optional_count(value: int | None, high: int) -> int | None:
    return None if value is None else _count(value, high)
