"""Lines of a Batch file and of its answers, as values."""

from __future__ import annotations

import json
import uuid

import pytest

from ratelimit_worker.batchfile import (
    Ask,
    Bad,
    End,
    allowed_path,
    answer_line,
    asks,
    bad_line,
    end_of,
    failure_line,
    is_torn,
    read_out,
)
from ratelimit_worker.errors import (
    BadInput,
    CallLost,
    ConnectionFailed,
    DeadlineExceeded,
    MalformedResponse,
    Overloaded,
    WorkerLostRepeatedly,
)
from ratelimit_worker.policy.endpoints import KNOWN

RUN = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")


def line(
    custom_id: object = "a", method: object = "POST", url: object = "/v1/chat/completions", body: object = None
) -> bytes:
    """One line of IN."""
    wanted = {"custom_id": custom_id, "method": method, "url": url, "body": {} if body is None else body}
    return json.dumps(wanted).encode() + b"\n"


def test_a_good_line_becomes_a_call() -> None:
    """With the number and the offset of its line; blank lines count, but are nothing."""
    first, second = line("a"), line("b", url="/v1/messages", body={"model": "m"})
    (a, b) = asks([first, b"\n", second], RUN)
    assert isinstance(a, Ask)
    assert isinstance(b, Ask)
    assert (a.number, a.offset, a.custom_id) == (1, 0, "a")
    assert (b.number, b.offset, b.url, b.body) == (3, len(first) + 1, "/v1/messages", {"model": "m"})


def test_a_call_has_the_same_id_in_every_start_of_one_run() -> None:
    """So a second start finds it again; another text, another custom_id or another run is another call."""
    ids = {
        next(iter(asks([text], run))).call_id
        for text, run in [
            (line("a"), RUN),
            (line("a"), RUN),
            (line("b"), RUN),
            (line("a", body={"x": 1}), RUN),
            (line("a"), uuid.uuid4()),
        ]
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("text", "custom_id", "why"),
    [
        (b"{not json\n", None, "not JSON"),
        (b"\xff\xfe\n", None, "not JSON"),
        (b"[1]\n", None, "not a JSON object"),
        (b'{"x": NaN}\n', None, "NaN is not JSON"),
        (b"[" * 100_000 + b"\n", None, "not JSON"),
        (line(None), None, "no custom_id"),
        (line(7.5), None, "custom_id is 7.5"),
        (line(True), None, "custom_id is True"),
        (line([7]), None, "custom_id is [7]"),
        (line(""), None, "no custom_id"),
        (line(method="GET"), "a", "use POST"),
        (line(method=None), "a", "use POST"),
        (b'{"custom_id": "a", "params": {"model": "m"}}', "a", "as in a Message Batch"),
        (line(url="https://elsewhere.example/v1"), "a", "use a path"),
        (line(url="//elsewhere.example/v1"), "a", "use a path"),
        (line(url="/v1/../../admin"), "a", "use a path"),
        (line(url=None), "a", "use a path"),
        (line(url="/v1/%2e%2e/organization/users"), "a", "use a path"),
        (line(url="/v1/chat%2Fcompletions"), "a", "use a path"),
        (line(url="/v1//chat/completions"), "a", "use a path"),
        (line(url="/v1/./chat/completions"), "a", "use a path"),
        (line(url="/v1/chat/completions?x=1"), "a", "use a path"),
        (line(url="/v1/chat/completions#x"), "a", "use a path"),
        (line(url="/v1/chat/completions\n"), "a", "use a path"),
        (line(url="/v1/organization/admin_api_keys"), "a", "use a path"),
        (line(url="/v1/files"), "a", "use a path"),
        (line(url="/v1/x/../messages"), "a", "use a path"),
        (line(url="\ud800"), "a", "use a path"),
        (line(body=[1]), "a", "body is not a JSON object"),
        (line(body={"stream": True}), "a", '"stream" asks for a stream'),
        (line(url="/v1beta/models/m:streamGenerateContent"), "a", "its url asks for a stream"),
    ],
)
def test_a_bad_line_says_why(text: bytes, custom_id: str | None, why: str) -> None:
    """Its custom_id is kept where it has one."""
    (bad,) = asks([text], RUN)
    assert isinstance(bad, Bad)
    assert (bad.number, bad.custom_id) == (1, custom_id)
    assert why in bad.why


@pytest.mark.parametrize("url", [f"{version}/{name}" for version in ("/v1", "/v1beta", "") for name in KNOWN])
def test_known_endpoints_are_asked(url: str) -> None:
    """With the version or without."""
    (read,) = asks([line(url=url)], RUN)
    assert isinstance(read, Ask)


def test_other_paths_are_asked_where_somebody_named_them() -> None:
    """Letter by letter."""
    path = allowed_path("/openai/deployments/d-1/chat/completions?api-version=2024-10-21")
    good, other = asks([line("a", url=path), line("b", url=path + "1")], RUN, {path})
    assert isinstance(good, Ask)
    assert isinstance(other, Bad)


@pytest.mark.parametrize(
    "path",
    ["", "/", "x", "//x", "/x//y", "/a/../b", "/..", "/.", "/a/.", "/%2e%2e", "http://x/y", "/a#b", "/a b", "/é",
     "/" * 9, "/x?a=%2e", "/x\n", "/" + "x" * 500],
)  # fmt: skip
def test_what_is_no_plain_path_cannot_be_allowed(path: str) -> None:
    """One line, with a path that can."""
    with pytest.raises(BadInput, match=r"^[^\n]*use one such as /"):
        allowed_path(path)


def test_the_second_line_with_a_custom_id_is_bad() -> None:
    """It names the first, and does not use the id again: each is in OUT once."""
    _, bad = asks([line("a"), line("a", body={"other": 1})], RUN)
    assert isinstance(bad, Bad)
    assert bad.custom_id is None
    assert "line 1" in bad.why
    written = json.loads(bad_line(bad))
    assert written["custom_id"] is None
    assert written["response"] is None
    assert written["error"]["code"] == "invalid_line"
    assert "line 2" in written["error"]["message"]


def test_a_byte_order_mark_is_no_text() -> None:
    """Editors on Windows put one there."""
    (read,) = asks([b"\xef\xbb\xbf" + line("a")], RUN)
    assert isinstance(read, Ask)


@pytest.mark.parametrize(
    ("status", "end"),
    [
        (200, End.ANSWERED),
        (400, End.REFUSED),
        (404, End.REFUSED),
        (401, End.FAILED),
        (429, End.FAILED),
        (503, End.FAILED),
    ],
)
def test_an_answer_is_written_as_it_came(status: int, end: End) -> None:
    """Status, request id and body; a resume reads the same end out of it."""
    answer = {"status_code": status, "request_id": "req_1", "body": {"text": "ä\u2028b"}}
    text, how = answer_line("id-1", "a", answer)
    assert how is end
    assert json.loads(text) == {"id": "batch_req_id1", "custom_id": "a", "response": answer, "error": None}
    assert len(text.decode().splitlines()) == 1
    assert read_out(text).end is end


def test_a_failure_with_a_status_is_a_response() -> None:
    """With the category where a provider's error has its type."""
    text, end = failure_line("id-1", "a", Overloaded("busy", 529, "req_1", 8))
    assert end is End.FAILED
    assert json.loads(text)["response"] == {
        "status_code": 529,
        "request_id": "req_1",
        "body": {"error": {"message": "busy", "type": "overloaded"}},
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectionFailed("reset by peer"), "connection"),
        (MalformedResponse("the answer is no JSON", 200, "req_1"), "malformed_response"),
        (DeadlineExceeded("id-1", "l", 2), "deadline_exceeded"),
        (WorkerLostRepeatedly("id-1", 3), "worker_lost"),
        (CallLost("id-1"), "call_lost"),
        (BadInput("no"), "invalid_request"),
        (KeyError("body\nsecond line"), "key_error"),
    ],
)
def test_a_failure_without_a_status_is_an_error(error: Exception, code: str) -> None:
    """One line, and no response."""
    text, end = failure_line("id-1", "a", error)
    written = json.loads(text)
    assert end is End.FAILED
    assert written["response"] is None
    assert written["error"]["code"] == code
    assert "\n" not in written["error"]["message"]


def test_what_is_not_ours_is_never_cut() -> None:
    """Only the torn beginning of a line of OUT is."""
    assert is_torn(b'{"id": "batch_req_12", "cus')
    assert is_torn(b'{"i')
    assert not is_torn(b"my notes without an end of line")
    with pytest.raises(ValueError):
        read_out(b'{"name": "x"}')


def test_an_end_without_status_is_a_failure() -> None:
    """As after a connection that was reset."""
    assert end_of(None) is End.FAILED


@pytest.mark.parametrize(
    ("text", "custom_id"),
    [(line("\ud800"), None), (line("a", body={"model": "\ud800"}), "a"), (line("a", body={"x": [{"\udfff": 1}]}), "a")],
)
def test_half_a_character_is_no_text(text: bytes, custom_id: str | None) -> None:
    """Redis, a provider and whoever reads OUT want UTF-8: such a line is told, and ends nothing."""
    (bad,) = asks([text], RUN)
    assert isinstance(bad, Bad)
    assert (bad.custom_id, bad.why.endswith("use whole ones")) == (custom_id, True)
    whole = line("a", body={"text": "\U0001f600"})  # two escapes, and one character
    assert b"\\ud83d" in whole
    (ask,) = asks([whole], RUN)
    assert isinstance(ask, Ask)
