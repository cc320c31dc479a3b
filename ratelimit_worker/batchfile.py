"""What does a line of a Batch file ask for, and what does a line of its answer say? OpenAI's Batch format, as values.

In: `{"custom_id": "q-1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}`.
Out: `{"id": "batch_req_…", "custom_id": "q-1", "response": {"status_code", "request_id", "body"}, "error": null}`.
Nothing here does I/O.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import msgspec

from ratelimit_worker.calls import Category
from ratelimit_worker.errors import BadInput, CallFailed, CallLost, DeadlineExceeded, WorkerLostRepeatedly
from ratelimit_worker.policy.completion import streams
from ratelimit_worker.policy.endpoints import flaw_of_path, is_known

_HALF = "holds half a character (a lone surrogate); use whole ones"
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_MESSAGE = 300  #: characters of a message in OUT
_OUT_ID = "batch_req_"
_BAD = uuid.UUID("4f6d3f5e-8f0b-4c57-9e0a-0d5a6f5f7d10")
#: Statuses that say nothing against the line itself: another time, or with another account, it would have been
#: answered. As an end they are a failure; every other 4xx is the provider's answer.
_FAILED = frozenset({401, 402, 403, 408, 409, 425, 429})
#: ... and of these, those that are the account's fault: as a status, and as what `failure_line` calls them.
_ACCOUNTS = frozenset({401, 402, 403})
_ACCOUNTS_CODES = frozenset({str(Category.AUTH), str(Category.QUOTA_EXHAUSTED)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A line that can be sent."""

    number: int  #: of the line, from 1
    offset: int  #: of the line in the file, bytes
    call_id: str  #: the same for the same line of the same run, so that a second start finds it again
    custom_id: str
    url: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A line that cannot be sent."""

    number: int
    call_id: str
    custom_id: str | None  #: None where there is none, or another line has it
    why: str


class Cut(bytes):
    """The beginning of a line that is longer than a line may be: the rest was never in memory."""

    size: int  #: of the whole line, with its end, bytes

    @classmethod
    def of(cls, beginning: bytes, size: int) -> Cut:
        """A line that begins so."""
        made = cls(beginning)
        made.size = size
        return made


class End(Enum):
    """How a line ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  #: the provider says that it will never take this request
    FAILED = "failed"


class _Answer(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _OurError(msgspec.Struct):
    """What `failure_line` writes in place of a provider's error; `code` where there was no HTTP answer."""

    type: str | None = None
    code: str | None = None


class _OurBody(msgspec.Struct):
    error: _OurError | None = None


class OutLine(msgspec.Struct):
    """As much of a line of OUT as a resume has to know; bodies are skipped, not parsed."""

    id: str
    custom_id: str | None
    response: _Answer | None
    error: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def end(self) -> End:
        """How this line ended."""
        return end_of(None if self.response is None else self.response.status_code)

    @property
    def accounts(self) -> bool:
        """Whether it failed for the account's sake: with another key it would have been answered."""
        if self.response is None:
            said = _read_error(_decode_error, self.error)
            return said is not None and said.code in _ACCOUNTS_CODES
        if self.response.status_code in _ACCOUNTS or self.response.status_code < 300:
            return self.response.status_code in _ACCOUNTS
        body = _read_error(_decode_body, self.response.body)
        return body is not None and body.error is not None and body.error.type in _ACCOUNTS_CODES


_decode_out = msgspec.json.Decoder(OutLine).decode
_decode_error = msgspec.json.Decoder(_OurError | None).decode
_decode_body = msgspec.json.Decoder(_OurBody).decode

_Read = TypeVar("_Read")


def _read_error(decode: Callable[[msgspec.Raw], _Read], raw: msgspec.Raw) -> _Read | None:
    try:
        return decode(raw)
    except msgspec.DecodeError:  # a provider's, of another shape
        return None


def allowed_path(path: str) -> str:
    """A path that lines may ask for beside the known endpoints, as a person gave it.

    Raises:
        BadInput: it is no plain path.
    """
    if (flaw := flaw_of_path(path)) is not None:
        raise BadInput(f"{path[:60]!r} is {flaw}")
    return path


def asks(lines: Iterable[bytes], run: uuid.UUID, allowed: Collection[str] = ()) -> Iterator[Ask | Bad]:
    """The lines of a Batch file, in order; blank ones are left out.

    Args:
        lines: With their ends, from the first line on; one that is too long as a `Cut`.
        run: Whose lines they are; call ids follow from it.
        allowed: Paths that lines may ask for beside the known endpoints (`allowed_path`), letter by letter.
    """
    offset, seen = 0, dict[str, int]()
    for number, raw in enumerate(lines, 1):
        start, offset = offset, offset + (raw.size if isinstance(raw, Cut) else len(raw))
        if isinstance(raw, Cut):
            yield _bad(number, raw, f"{raw.size:,} bytes long; a line may have four times MAISD_MAX_PAYLOAD_MB")
            continue
        text = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
        if text:
            yield _read(text, number, start, run, seen, allowed)


def _read(
    text: bytes, number: int, offset: int, run: uuid.UUID, seen: dict[str, int], allowed: Collection[str]
) -> Ask | Bad:
    bad = partial(_bad, number, text)

    try:
        line = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        return bad(f"not JSON: {first_line(str(error)) or 'nested too deeply'}")
    if not isinstance(line, dict):
        return bad("not a JSON object")
    custom_id = line.get("custom_id")
    if not isinstance(custom_id, str) or not custom_id:
        return bad("no custom_id; give each line a text of its own")
    if _SURROGATE.search(custom_id):  # no UTF-8, so nobody who reads OUT could find it
        return bad(f"custom_id {_HALF}")
    if custom_id in seen:
        return bad(f"custom_id {custom_id[:60]!r} is that of line {seen[custom_id]} already")
    seen[custom_id] = number
    why = _refusal(line, allowed) or (f"the line {_HALF}" if b"\\ud" in text.lower() and not _is_text(line) else None)
    if why is not None:
        return bad(why, custom_id)
    return Ask(
        number=number,
        offset=offset,
        call_id=_call_id(run, custom_id, text),
        custom_id=custom_id,
        url=line["url"],
        body=line["body"],
    )


def _bad(number: int, text: bytes, why: str, custom_id: str | None = None) -> Bad:
    # The id of no run: it is all by which a later start knows that a line without custom_id was reported.
    return Bad(number=number, call_id=_call_id(_BAD, f"line {number}", text), custom_id=custom_id, why=why)


def _refusal(line: Mapping[str, Any], allowed: Collection[str]) -> str | None:
    method, url, body = line.get("method"), line.get("url"), line.get("body")
    if not isinstance(method, str) or method.upper() != "POST":
        return f"method is {method!r:.40}; use POST"
    streamed = streams(url, body) if isinstance(url, str) and isinstance(body, dict) else None
    if streamed is not None:
        return f"{streamed} asks for a stream, which a Batch file cannot hold; leave it out"
    if not isinstance(url, str) or not (is_known(url) or url in allowed):
        return f"url is {url!a:.60}; use a path such as /v1/chat/completions (others: run --allow-path)"
    if not isinstance(body, dict):
        return "body is not a JSON object"
    return None


def _is_text(line: Mapping[str, Any]) -> bool:
    """Whether all that it holds is UTF-8: neither Redis nor a provider takes half a character."""
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _call_id(run: uuid.UUID, name: str, text: bytes) -> str:
    # The text too: a line that was edited between two starts is another call.
    return str(uuid.uuid5(run, f"{name}\n{text.decode('utf-8', 'surrogateescape')!a}"))


# ---- Lines of OUT ---------------------------------------------------------------------------------------------------


def out_id(call_id: str) -> str:
    """The `id` of a line of OUT."""
    return _OUT_ID + call_id.replace("-", "")


def answer_line(call_id: str, custom_id: str, value: Any) -> tuple[bytes, End]:
    """The line for an answer of the provider, whatever its status.

    Args:
        value: What the task `batch_line` returned.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("status_code"), int):
        return error_line(call_id, custom_id, "malformed_response", "the task returned no Batch answer"), End.FAILED
    return _line(call_id, custom_id, response=dict(value), error=None), end_of(value["status_code"])


def failure_line(call_id: str, custom_id: str, error: BaseException) -> tuple[bytes, End]:
    """The line for a call that was given up: its HTTP status where it has one, else an error."""
    if isinstance(error, CallFailed):
        if error.status is not None and error.status >= 400:  # a broken answer may have come with a 200
            body = {"error": {"message": first_line(error.cause) or str(error.category), "type": str(error.category)}}
            response = {"status_code": error.status, "request_id": error.request_id, "body": body}
            return _line(call_id, custom_id, response=response, error=None), end_of(error.status)
        return error_line(call_id, custom_id, str(error.category), error.cause or str(error)), End.FAILED
    return error_line(call_id, custom_id, _code(error), str(error) or type(error).__name__), End.FAILED


def error_line(call_id: str, custom_id: str | None, code: str, message: str) -> bytes:
    """The line for what never reached the provider, or got no HTTP answer from it."""
    return _line(call_id, custom_id, response=None, error={"code": code, "message": first_line(message)})


def bad_line(bad: Bad) -> bytes:
    """The line for a line of IN that cannot be sent."""
    return error_line(bad.call_id, bad.custom_id, "invalid_line", f"line {bad.number}: {bad.why}")


def end_of(status: int | None) -> End:
    """How a line ended, by its HTTP status; None: it has none."""
    if status is None or status >= 500 or 300 <= status < 400 or status in _FAILED:
        return End.FAILED
    return End.ANSWERED if status < 300 else End.REFUSED


def read_out(text: bytes) -> OutLine:
    """A line of OUT.

    Raises:
        ValueError: it is none.
    """
    return _decode_out(text)


def is_torn(text: bytes) -> bool:
    """Whether a last line without its end is one of ours, cut short by a crash."""
    begin = b'{"id": "' + _OUT_ID.encode()
    return text[: len(begin)] == begin[: len(text)]


def first_line(text: str) -> str:
    """The first line of a message, at most 300 characters."""
    return text.strip().partition("\n")[0][:_MOST_MESSAGE]


def _code(error: BaseException) -> str:
    match error:
        case DeadlineExceeded():
            return "deadline_exceeded"
        case WorkerLostRepeatedly():
            return "worker_lost"
        case CallLost():
            return "call_lost"
        case BadInput():
            return "invalid_request"
        case _:
            return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).lower()


def _line(call_id: str, custom_id: str | None, *, response: Any, error: Any) -> bytes:
    line = {"id": out_id(call_id), "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line).encode("ascii") + b"\n"  # ASCII: some readers end a line at U+2028
