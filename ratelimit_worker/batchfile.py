"""What does a line of a Batch file ask for, and what does a line of its answer say? OpenAI's Batch format, as values.

IN, the file of requests, has lines
`{"custom_id": "q-1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}`, and OUT, the file of answers,
`{"id": "batch_req_…", "custom_id": "q-1", "response": {"status_code", "request_id", "body"}, "error": null}`.
Nothing here does I/O.
"""

from __future__ import annotations

import io
import json
import re
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from ratelimit_worker.calls import Category
from ratelimit_worker.errors import BadInput, CallFailed, CallLost, DeadlineExceeded, WorkerLostRepeatedly
from ratelimit_worker.policy.completion import not_whole
from ratelimit_worker.policy.endpoints import flaw_of_path, is_known
from ratelimit_worker.policy.usage import usage_of

_HALF = "holds half a character (a lone surrogate); use whole ones"
_SURROGATE = re.compile("[\ud800-\udfff]")
_MAYBE_HALF = re.compile(rb"\\u[dD][89a-fA-F]")  #: an escape that may be a lone surrogate
_MOST_MESSAGE = 300  #: characters of a message in OUT
_MOST_WAY = 60  #: characters of a provider's code in a summary
_OPENS, _CLOSES = b"{}"
_OUT_ID = "batch_req_"
_BAD = uuid.UUID("4f6d3f5e-8f0b-4c57-9e0a-0d5a6f5f7d10")
#: Statuses that say nothing against the line itself: another time, or with another account, it would have been
#: answered. A line that ends with one has failed; every other 4xx is the provider's refusal of the line.
_FAILED = frozenset({401, 402, 403, 408, 409, 425, 429})
#: Of these, the ones that are the account's fault: their statuses, and the codes that `failure_line` writes for them.
_ACCOUNTS = frozenset({401, 402, 403})
_ACCOUNTS_CODES = frozenset({str(Category.AUTH), str(Category.QUOTA_EXHAUSTED)})


class Ask(Struct, frozen=True, kw_only=True):
    """A line that can be sent."""

    number: int  #: of the line, from 1
    offset: int  #: of the line in the file, bytes
    call_id: str  #: the same for the same line of the same run, so that a second start finds it again
    custom_id: str
    url: str  #: its path
    body: Mapping[str, Any]
    size: int  #: of the line, bytes


class Bad(Struct, frozen=True, kw_only=True):
    """A line that cannot be sent."""

    number: int
    call_id: str
    custom_id: str | None  #: None where there is none, or another line has it
    why: str
    is_object: bool = True  #: False: it is no line of a Batch file at all


class Cut(bytes):
    """The beginning of a line that is longer than a line may be: the rest was never in memory."""

    size: int  #: of the whole line, with its end, bytes

    @classmethod
    def of(cls, beginning: bytes, size: int) -> Cut:
        """A line with this beginning; `size` is that of the whole line, bytes."""
        made = cls(beginning)
        made.size = size
        return made


class End(Enum):
    """How a line ended."""

    ANSWERED = "answered"
    REFUSED = "refused"  #: the provider says that it will never take this request
    FAILED = "failed"


class Kind(NamedTuple):
    """How a line ended, and why: what a summary counts."""

    end: End
    way: str = ""  #: of a failure its category, of a refusal its status and code; "" for answers


ANSWER = Kind(End.ANSWERED)


class _Body(msgspec.Struct, gc=False):
    """The members of a line's body that may ask for something other than one whole answer."""

    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_format: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    background: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET

    @property
    def asks_for_more(self) -> bool:
        """Whether it has one of them."""
        unset = msgspec.UNSET
        return not (self.stream is unset and self.stream_format is unset and self.background is unset)


class _Line(msgspec.Struct, gc=False):
    """A valid line of IN, as far as that can be told without parsing its body."""

    custom_id: str | int
    method: str
    url: str
    body: _Body


_line_decoder = msgspec.json.Decoder(_Line)


class _Answer(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw(b"null")


class _OurError(msgspec.Struct):
    """What `failure_line` writes in place of a provider's error; `code` where there was no HTTP answer."""

    type: str | None = None
    code: str | int | None = None


class _OurBody(msgspec.Struct):
    error: _OurError | None = None


class _Counted(msgspec.Struct, gc=False):
    """The token counts in an answer of OpenAI or Anthropic, under their most common names."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of input and of output."""
        asked = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        said = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        return (asked or 0) + (self.cache_creation_input_tokens or 0), said or 0


class _Told(msgspec.Struct, gc=False):
    usage: _Counted | None = None


class OutLine(msgspec.Struct):
    """The parts of a line of OUT that a resumed run needs; bodies are parsed only where a property needs them."""

    id: str
    custom_id: str | int | None
    response: _Answer | None
    error: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def name(self) -> str | None:
        """Its custom_id, as text."""
        return str(self.custom_id) if isinstance(self.custom_id, int) else self.custom_id

    @property
    def kind(self) -> Kind:
        """How this line ended, and why."""
        end = self.end
        if end is End.ANSWERED:
            return ANSWER
        if self.response is None:
            said = _read_error(_decode_error, self.error)
            return Kind(end, str(said.code)[:_MOST_WAY] if said is not None and said.code else "unknown")
        body = _read_error(_decode_body, self.response.body)
        error = body.error if body is not None else None
        status = f"HTTP {self.response.status_code}"
        if end is End.FAILED:
            return Kind(end, error.type[:_MOST_WAY] if error is not None and error.type else status)
        code = (error.code or error.type) if error is not None else None
        told = code and str(code) != str(self.response.status_code)  # OpenRouter's code is the status
        return Kind(end, f"{status} {str(code)[:_MOST_WAY]}" if told else status)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of input and of output that the provider counted for its answer."""
        if self.response is None or self.end is not End.ANSWERED:
            return 0, 0
        try:
            told = _decode_told(self.response.body).usage
        except (msgspec.DecodeError, UnicodeDecodeError):  # of another shape
            return _tokens_in(self.response.body)
        if told is None:
            told_so = any(mark in bytes(self.response.body) for mark in (b"usageMetadata", b"usage_metadata"))
            return _tokens_in(self.response.body) if told_so else (0, 0)
        return told.tokens

    @property
    def end(self) -> End:
        """How this line ended."""
        return end_of(None if self.response is None else self.response.status_code)

    @property
    def accounts(self) -> bool:
        """Whether it failed because of the account: with another key it would have been answered."""
        if self.response is None:
            said = _read_error(_decode_error, self.error)
            return said is not None and said.code in _ACCOUNTS_CODES
        if self.response.status_code in _ACCOUNTS or self.response.status_code < 300:
            return self.response.status_code in _ACCOUNTS
        body = _read_error(_decode_body, self.response.body)
        return body is not None and body.error is not None and body.error.type in _ACCOUNTS_CODES


class _PlainAnswer(msgspec.Struct, gc=False):
    status_code: int
    body: _Told


class _PlainLine(msgspec.Struct, gc=False):
    """A line of OUT of the most common shape."""

    id: str
    custom_id: str | None
    response: _PlainAnswer | None


_decode_plain_lines = msgspec.json.Decoder(_PlainLine).decode_lines
_decode_out = msgspec.json.Decoder(OutLine).decode
_decode_error = msgspec.json.Decoder(_OurError | None).decode
_decode_body = msgspec.json.Decoder(_OurBody).decode
_decode_told = msgspec.json.Decoder(_Told).decode

_Read = TypeVar("_Read")


def _tokens_in(body: msgspec.Raw) -> tuple[int, int]:
    try:
        return tokens_of(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError):  # somebody has written to OUT, in another charset
        return 0, 0


def _read_error(decode: Callable[[msgspec.Raw], _Read], raw: msgspec.Raw) -> _Read | None:
    try:
        return decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a provider's, of another shape
        return None


def allowed_path(path: str) -> str:
    """Check a path that a person allows lines to use, in addition to the known endpoints, and return it.

    Raises:
        BadInput: it is not a plain path.
    """
    if (flaw := flaw_of_path(path)) is not None:
        raise BadInput(f"{path[:60]!r} is {flaw}")
    return path


def strange(head: bytes) -> str | None:
    """What a file is if it is not lines of UTF-8, and how to convert it; None: it may be such lines.

    Args:
        head: Its first bytes, a few hundred.
    """
    for mark, what in _MARKS:
        if head.startswith(mark):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first: tar -xf IN"
    text = head[:64]
    for charset, size in (("UTF-32", 4), ("UTF-16", 2)):  # without a byte order mark
        rows = [text[at::size] for at in range(size)]
        letters = [row for row in rows if row.count(0) * 4 < len(row)]  # of ASCII text, one byte of each character
        if len(letters) == 1 and sum(row.count(0) * 2 >= len(row) > 0 for row in rows) == size - 1:
            return _converted(charset)
    return None


def _converted(charset: str) -> str:
    return f"{charset}; convert it first: iconv -f {charset} -t UTF-8 IN > NEW"


_MARKS = (
    (b"\xff\xfe\0\0", _converted("UTF-32")),
    (b"\0\0\xfe\xff", _converted("UTF-32")),
    (b"\xff\xfe", _converted("UTF-16")),
    (b"\xfe\xff", _converted("UTF-16")),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet); unpack it first, and give lines of JSON"),
    (b"PK\x05\x06", "a zip archive with nothing in it"),
    (b"\x04\x22\x4d\x18", "packed with lz4; unpack it first: lz4 -dc IN | ratelimit-worker run - …"),
    (b"\x1f\x9d", "packed with compress; unpack it first: gzip -dc IN | ratelimit-worker run - …"),
    (b"Obj\x01", "an Avro file; write it as lines of JSON first"),
    (b"ARROW1", "an Arrow file; write it as lines of JSON first"),
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself: git lfs pull"),
    (b"<!DOCTYPE", "a web page; give lines of JSON"),
    (b"<!doctype", "a web page; give lines of JSON"),
    (b"<html", "a web page; give lines of JSON"),
    (b"BZh", "packed with bzip2; unpack it first: bzip2 -dc IN | ratelimit-worker run - …"),
    (b"\xfd7zXZ\0", "packed with xz; unpack it first: xz -dc IN | ratelimit-worker run - …"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"PAR1", "a Parquet file; write it as lines of JSON first"),
    (b"SQLite format 3\0", "an SQLite database; write it as lines of JSON first"),
    (b"%PDF-", "a PDF; give lines of JSON"),
)


def array_of_lines(first: bytes, *, alone: bool) -> bool:
    """Whether a file is one JSON array instead of a line for each request.

    Args:
        first: Its first line that is not blank.
        alone: Whether all other lines are blank.
    """
    if first[:1] != b"[":
        return False
    try:
        msgspec.json.decode(first)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return not first.endswith(b"]") or alone
    return alone


class LineReader:
    """Reads the lines of one run.

    Args:
        run: Id of the run; call ids are derived from it.
        allowed: Paths that lines may use in addition to the known endpoints (`allowed_path`), compared exactly.
        path_of: Returns the path of a whole URL below the base URL; None: the URL is not below it.
    """

    def __init__(
        self, run: uuid.UUID, allowed: Collection[str] = (), path_of: Callable[[str], str | None] = lambda url: None
    ) -> None:
        self._run, self._allowed, self._path_of = run, allowed, path_of
        self._fine_urls: dict[str, bool] = {}

    def custom_id(self, text: bytes) -> str | None:
        """The custom_id of a line that can be sent, found without parsing its body; None: `read` has to decide.

        Args:
            text: The line without blanks around it.
        """
        try:
            line = _line_decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not self._is_fine(line) or not _is_whole_text(text):
            return None
        return str(line.custom_id) or None

    def custom_ids(self, block: bytes) -> list[str] | None:
        """The custom_ids of a block of lines that can all be sent; None: `custom_id` has to look at each line.

        Args:
            block: Whole lines.
        """
        try:
            lines = _line_decoder.decode_lines(block)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        if not (_is_object_a_line(block, len(lines)) and _is_whole_text(block)):
            return None
        fine, fine_url = self._is_fine, ""  # most lines of a block have the same url
        ids = list[str]()
        for line in lines:
            if line.url != fine_url or line.method != "POST" or line.body.asks_for_more:
                if not fine(line):
                    return None
                fine_url = line.url
            custom_id = line.custom_id
            if not custom_id and custom_id != 0:
                return None
            ids.append(custom_id if isinstance(custom_id, str) else str(custom_id))
        return ids

    def _is_fine(self, line: _Line) -> bool:
        fine = self._fine_urls.get(line.url)
        if fine is None:
            fine = _refusal({"method": "POST", "url": line.url, "body": {}}, self._allowed) is None
            if len(self._fine_urls) < 1000:
                self._fine_urls[line.url] = fine
        return fine and line.method.upper() == "POST" and not line.body.asks_for_more

    def read(self, text: bytes, number: int, offset: int, first: Callable[[str], int | None]) -> Ask | Bad:
        """Parse and check a line of IN.

        Args:
            text: The line without blanks around it; a `Cut` if it is too long.
            number: Of the line, from 1.
            offset: Of the line in the file, bytes.
            first: Takes a custom_id; returns the number of the earlier line that has it, if there is one.
        """
        bad = partial(_bad, number, text)
        if isinstance(text, Cut):
            return bad(f"{text.size:,} bytes long; a line may have four times MAISD_MAX_PAYLOAD_MB")
        try:
            line = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            return bad(f"not JSON: {first_line(str(error)) or 'nested too deeply'}", is_object=False)
        if not isinstance(line, dict):
            return bad("not a JSON object", is_object=False)
        other = _other_format(line)
        if other is not None:
            named = line.get("custom_id")
            return bad(
                other,
                named
                if isinstance(named, str) and named and not _SURROGATE.search(named) and first(named) is None
                else None,
                is_object=False,
            )
        custom_id = line.get("custom_id")
        if isinstance(custom_id, int) and not isinstance(custom_id, bool):
            custom_id = str(custom_id)
        if custom_id is not None and not isinstance(custom_id, str):
            return bad(f"custom_id is {custom_id!a:.60}; give each line a text or a whole number of its own")
        if not custom_id:
            return bad("no custom_id; give each line a text of its own")
        if _SURROGATE.search(custom_id):  # it cannot be UTF-8, so no reader of OUT could find it
            return bad(f"custom_id {_HALF}")
        used = first(custom_id)
        if used is not None:
            return bad(f"custom_id {custom_id[:60]!r} is that of line {used} already")
        url = line.get("url")
        path = self._path_of(url) if isinstance(url, str) and "://" in url else None
        asked = line if path is None else {**line, "url": path}
        why = _refusal(asked, self._allowed)
        why = why or (f"the line {_HALF}" if _MAYBE_HALF.search(text) and not _is_text(line) else None)
        if why is not None:
            return bad(why, custom_id)
        return Ask(
            number=number,
            offset=offset,
            call_id=_call_id(self._run, custom_id, text),
            custom_id=custom_id,
            url=asked["url"],
            body=line["body"],
            size=len(text),
        )


def asks(
    lines: Iterable[bytes],
    run: uuid.UUID,
    allowed: Collection[str] = (),
    path_of: Callable[[str], str | None] = lambda url: None,
) -> Iterator[Ask | Bad]:
    """The lines of a Batch file, in order; blank ones are left out. Arguments as of `LineReader`.

    Args:
        lines: With their line ends, from the first on; one that is too long is a `Cut`.
    """
    reader, seen = LineReader(run, allowed, path_of), dict[str, int]()
    for number, offset, text in numbered(lines):
        found = reader.read(text, number, offset, seen.get)
        if found.custom_id is not None:
            seen[found.custom_id] = number
        yield found


def numbered(lines: Iterable[bytes], number: int = 1, offset: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset in bytes, and text without blanks around it, of each line that is not blank.

    Args:
        number: Of the first line, from 1.
        offset: Of the first line.
    """
    for at, raw in enumerate(lines, number):
        start, offset = offset, offset + (raw.size if isinstance(raw, Cut) else len(raw))
        text = raw if isinstance(raw, Cut) else (without_mark(raw) if at == 1 else raw).strip()
        if text:
            yield at, start, text


def without_mark(text: bytes) -> bytes:
    """A text without the byte order mark that editors on Windows put before it."""
    return text.removeprefix(b"\xef\xbb\xbf")


def same_ask(ask: Ask) -> str:
    """A text that is equal for lines that ask for the same, so that one answer serves them all."""
    return f"{ask.url}\n{json.dumps(ask.body, sort_keys=True)}"


def lines_of(block: bytes) -> Iterator[bytes]:
    """The lines of a block, with their ends; a `Cut` is one."""
    return iter((block,)) if isinstance(block, Cut) else io.BytesIO(block)


def _is_object_a_line(block: bytes, many: int) -> bool:
    """Whether each of a block's lines is one JSON object from its first byte to its last.

    Args:
        many: Number of JSON values found in it. If each line end is between two objects, and there are as many lines
            as values, each line is one object.
    """
    if not (block.startswith(b"{") and block.endswith(b"}\n")):
        return False
    find, end, last = block.find, block.find(b"\n"), len(block) - 1  # `find` takes a third of `count`'s time
    while end != last:
        if block[end - 1] != _CLOSES or block[end + 1] != _OPENS:
            return False
        many -= 1
        end = find(b"\n", end + 1)
    return many == 1


def _is_whole_text(text: bytes) -> bool:
    """Whether it is UTF-8, and no escape in it may be a lone surrogate."""
    # A search for one byte is ten times as fast as one for two.
    return not (b"\\" in text and b"\\u" in text and _MAYBE_HALF.search(text)) and (text.isascii() or _is_utf8(text))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _bad(number: int, text: bytes, why: str, custom_id: str | None = None, *, is_object: bool = True) -> Bad:
    # Not derived from the run: by this id alone a later start knows that a line without custom_id was reported.
    call_id = _call_id(_BAD, f"line {number}", text)
    return Bad(number=number, call_id=call_id, custom_id=custom_id, why=why, is_object=is_object)


def _refusal(line: Mapping[str, Any], allowed: Collection[str]) -> str | None:
    method, url, body = line.get("method"), line.get("url"), line.get("body")
    if not isinstance(method, str) or method.upper() != "POST":
        return f"method is {method!r:.40}; use POST"
    told = not_whole(url, body) if isinstance(url, str) and isinstance(body, dict) else None
    if told is not None:
        return f"{told}, which a Batch file cannot hold; leave it out"
    if not isinstance(url, str) or not (is_known(url) or url in allowed):
        whole = isinstance(url, str) and "://" in url
        where = "a whole URL has to begin with the base URL; " if whole else ""
        return f"url is {url!a:.60}; {where}use a path such as /v1/chat/completions (others: run --allow-path)"
    if not isinstance(body, dict):
        return "body is not a JSON object"
    return None


def _other_format(line: Mapping[str, Any]) -> str | None:
    """Which other format a line is in, and how to convert it; None: none that is known here."""
    if line.get("method") is not None or line.get("url") is not None:
        return None
    for members, what in _OTHER_FORMATS:
        if all(line.get(name) is not None for name in members):
            return what
    return None


_OTHER_FORMATS = (
    (("params",), 'it has "params", as in a Message Batch; give method POST, url /v1/messages, and the params as body'),
    (
        ("response",),
        'it has a "response": that is a line of answers, and no request',
    ),
    (
        ("request",),
        'it has "request", as in a Batch of Gemini; give method POST, url /v1beta/models/MODEL:generateContent, a '
        "custom_id, and the request as body",
    ),
    (
        ("recordId", "modelInput"),
        'it has "modelInput", as in a Batch of Bedrock; give a custom_id, method, url and body',
    ),
    (("requests",), "it has all requests in one; make a line of each: jq -c '.requests[]' IN > NEW.jsonl"),
    (
        ("body",),
        "it has no method and no url, as in a Batch of Mistral; give method POST, url /v1/chat/completions, and the "
        "model in body",
    ),
    (
        ("messages",),
        'it is a body alone; give a custom_id, method POST, url /v1/chat/completions, and this as body (with "model")',
    ),
)


def _is_text(line: Mapping[str, Any]) -> bool:
    """Whether all of it can be UTF-8: neither Redis nor a provider takes a lone surrogate."""
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _call_id(run: uuid.UUID, name: str, text: bytes) -> str:
    # Of the text too: a line that was edited between two starts is another call.
    return str(uuid.uuid5(run, f"{name}\n{text.decode('utf-8', 'surrogateescape')!a}"))


# ---- Lines of OUT ---------------------------------------------------------------------------------------------------


def out_id(call_id: str) -> str:
    """The `id` of a line of OUT."""
    return _OUT_ID + call_id.replace("-", "")


def answer_line(call_id: str, custom_id: str, value: Any) -> tuple[bytes, End]:
    """The line for an answer of the provider, whatever its status, and how it ended.

    Args:
        value: What the task `batch_line` returned.
    """
    if not isinstance(value, Mapping) or not isinstance(value.get("status_code"), int):
        return error_line(call_id, custom_id, "malformed_response", "the task returned no Batch answer"), End.FAILED
    response = {name: value.get(name) for name in ("status_code", "request_id", "body")}
    return _line(call_id, custom_id, response=response, error=None), end_of(value["status_code"])


def failure_line(call_id: str, custom_id: str, error: BaseException) -> tuple[bytes, End]:
    """The line for a call that was given up (its HTTP status if it has one, else an error), and how it ended."""
    if isinstance(error, CallFailed):
        if error.status is not None and error.status >= 400:  # a broken answer may have come with a 200
            body = {"error": {"message": first_line(error.cause) or str(error.category), "type": str(error.category)}}
            response = {"status_code": error.status, "request_id": error.request_id, "body": body}
            return _line(call_id, custom_id, response=response, error=None), end_of(error.status)
        return error_line(call_id, custom_id, str(error.category), error.cause or str(error)), End.FAILED
    return error_line(call_id, custom_id, _code(error), str(error) or type(error).__name__), End.FAILED


def line_for(line: bytes, call_id: str, custom_id: str) -> bytes:
    """A line of OUT, rewritten for another line of IN that asks for the same."""
    return json.dumps({**json.loads(line), "id": out_id(call_id), "custom_id": custom_id}).encode("ascii") + b"\n"


def tokens_of(body: Any) -> tuple[int, int]:
    """Tokens of input and of output that a provider counted for an answer; 0 where it gives none."""
    usage = usage_of(body)
    return (0, 0) if usage is None else (usage.input_tokens or 0, usage.output_tokens or 0)


def error_line(call_id: str, custom_id: str | None, code: str, message: str) -> bytes:
    """The line for a request that never reached the provider, or got no HTTP answer from it."""
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
    """Decode a line of OUT.

    Raises:
        ValueError: it is not one.
    """
    return _decode_out(text)


class PlainAnswers(Struct, frozen=True, kw_only=True):
    """Totals of a block of lines of OUT, most of which are answers of the most common shape."""

    custom_ids: list[str]  #: of the answers of that shape
    input_tokens: int  #: of these answers together
    output_tokens: int
    others: list[int]  #: positions in the block, from 0, of the lines that `read_out` has to decode


def plain_answers(block: bytes) -> PlainAnswers | None:
    """Totals of a block of lines of OUT; None: `read_out` has to decode each line.

    Args:
        block: Whole lines.
    """
    try:
        lines = _decode_plain_lines(block)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not _is_object_a_line(block, len(lines)):
        return None
    custom_ids, others = list[str](), list[int]()
    input_tokens = output_tokens = 0
    for number, line in enumerate(lines):
        custom_id, response = line.custom_id, line.response
        if custom_id is None or response is None or not 200 <= response.status_code < 300:
            others.append(number)
            continue
        usage = response.body.usage
        if usage is None:
            others.append(number)
            continue
        if usage.prompt_tokens and usage.completion_tokens and not usage.cache_creation_input_tokens:
            input_tokens += usage.prompt_tokens  # the same as `usage.tokens`, which takes longer than all of this
            output_tokens += usage.completion_tokens
        else:
            asked, said = usage.tokens
            input_tokens += asked
            output_tokens += said
        custom_ids.append(custom_id)
    return PlainAnswers(custom_ids=custom_ids, input_tokens=input_tokens, output_tokens=output_tokens, others=others)


def is_torn(text: bytes) -> bool:
    """Whether a last line without a line end is one that this product wrote, cut short by a crash."""
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
