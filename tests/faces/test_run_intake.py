"""What people feed to `run`, before anything is sent: pipes, packed files, other encodings, files that are none."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shlex
import subprocess
import sys
import threading
import uuid
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ratelimit_worker.batchfile import ANSWER, Bad, End, Kind, LineReader, strange
from ratelimit_worker.cli.run import intake as intake_module
from ratelimit_worker.cli.run.address import Addresses
from ratelimit_worker.cli.run.conduct import Summary
from ratelimit_worker.cli.run.ids import Ids
from ratelimit_worker.cli.run.intake import Intake, Stopped, open_intake
from ratelimit_worker.cli.run.journal import Journal, OutFailed, Stream, open_out
from ratelimit_worker.cli.run.survey import BAD, DONE, MOST_NAMED, REPEATED, SEND, Survey, look_through
from ratelimit_worker.cli.run.tally import Tally
from ratelimit_worker.errors import BadInput
from tests import hostile
from tests.builders import clean_environment

zstd: Any = vars(intake_module)["zstd"]  #: whichever of its two homes this Python has

RUN = uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")
MOST = 1 << 20


def line(custom_id: object) -> str:
    """One line of IN."""
    wanted = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}
    return json.dumps(wanted) + "\n"


LINES = "".join(line(f"q-{number}") for number in range(50))


def answered(custom_id: str, text: str = "x") -> str:
    """One line of OUT."""
    body = {"choices": [text], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    response = {"status_code": 200, "request_id": None, "body": body}
    told = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(told) + "\n"


def survey(intake: Intake, journal: Journal, said: list[str] | None = None) -> Survey:
    """Look a file through."""
    words = said if said is not None else []
    return look_through(intake, MOST, LineReader(RUN), journal, words.append, lambda: False)


def refused(source: Path, folder: Path) -> str:
    """Why a file is not taken."""
    with (
        pytest.raises(BadInput) as error,
        Journal(folder / "out.jsonl") as journal,
        open_intake(source, folder / "copies") as intake,
    ):
        survey(intake, journal)
    assert "\n" not in str(error.value)
    assert (folder / "out.jsonl").read_bytes() == b""
    return str(error.value)


@contextmanager
def pipe(folder: Path, *pieces: bytes) -> Iterator[Path]:
    """A named pipe into which somebody writes."""
    path = folder / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        yield path
    finally:
        writer.join()


PACKED: list[Callable[[bytes], bytes]] = [
    lambda text: text,
    gzip.compress,
    lambda text: gzip.compress(text[:700], mtime=0) + gzip.compress(text[700:], mtime=0),
    zstd.compress,
    lambda text: zstd.compress(text[:700]) + zstd.compress(text[700:]),
    lambda text: b"\x50\x2a\x4d\x18\x04\0\0\0abcd" + zstd.compress(text),  # as pzstd begins
]


@pytest.mark.parametrize("pack", PACKED)
@pytest.mark.parametrize("piped", [False, True])
def test_lines_come_out_of_files_and_pipes_packed_or_not(
    tmp_path: Path, pack: Callable[[bytes], bytes], piped: bool
) -> None:
    """As often as they are wanted, from any of them on; and nothing is left of a copy."""
    raw = pack(LINES.encode())
    (tmp_path / "file").write_bytes(raw)
    with (
        pipe(tmp_path, raw[:1], raw[1:3], raw[3:]) if piped else _there(tmp_path / "file") as source,
        open_intake(source, tmp_path / "copies") as intake,
    ):
        for _ in range(2):
            assert b"".join(intake.lines(MOST)).decode() == LINES
        assert next(intake.lines(MOST, len(line("q-0")))).decode() == line("q-1")
        assert intake.size == len(LINES)
        assert not intake.changed
    assert list(tmp_path.glob("copies/*")) == []


@contextmanager
def _there(path: Path) -> Iterator[Path]:
    yield path


def test_a_signal_ends_the_wait_for_a_pipe(tmp_path: Path) -> None:
    """Nobody writes to it, and the command can be stopped."""
    os.mkfifo(tmp_path / "pipe")
    looks = iter([False, False, True])
    with pytest.raises(Stopped), open_intake(tmp_path / "pipe", tmp_path, lambda: next(looks)):
        pass


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "holds no line"),
        (b"\n\r\n  \n", "holds no line"),
        (LINES.encode("utf-16"), "iconv -f UTF-16"),
        (LINES.encode("utf-16-le"), "iconv -f UTF-16"),
        (LINES.encode("utf-16-be"), "iconv -f UTF-16"),
        (LINES.encode("utf-32"), "iconv -f UTF-32"),
        (gzip.compress(LINES.encode("utf-16"), mtime=0), "iconv -f UTF-16"),
        (json.dumps([json.loads(line("a")), json.loads(line("b"))]).encode(), "jq -c"),
        (json.dumps([json.loads(line("a")), json.loads(line("b"))], indent=2).encode(), "jq -c"),
        (b"\xef\xbb\xbf[\n" + line("a").encode().strip() + b",\n" + line("b").encode() + b"]\n", "jq -c"),
        (b"[" + b"x" * (2 * MOST), "jq -c"),
        (json.dumps(json.loads(line("a")), indent=2).encode(), "jq -c"),
        (b"id,prompt\n1,hello\n2,world\n", "is no Batch file"),
        (b"id\tprompt\n1\thello\n", "is no Batch file"),
        (b"\0" * 5000, "is no Batch file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no Batch file"),
        (b'"a"\n"b"\n', "is no Batch file"),
        (LINES.encode("utf-32-le"), "iconv -f UTF-32"),
        (LINES.encode("utf-32-be"), "iconv -f UTF-32"),
        (line("é").encode().decode("unicode_escape").encode("latin-1"), "iconv -f WINDOWS-1252"),
        (LINES.replace("\n", "\r").encode(), "tr '\\r'"),
        (gzip.compress(gzip.compress(LINES.encode(), mtime=0), mtime=0), "packed twice"),
        (b"PK\x03\x04rest", "zip"),
        (b"PK\x05\x06" + bytes(18), "zip archive with nothing in it"),
        (b"a.jsonl".ljust(257, b"\0") + b"ustar\0" + bytes(249), "tar archive"),
        (gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar  \0" + bytes(249), mtime=0), "tar archive"),
        (b"\x04\x22\x4d\x18rest", "lz4"),
        (b"ARROW1\0\0" + bytes(64), "Arrow"),
        (b"Obj\x01" + bytes(64), "Avro"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        # Lines of other formats
        (b'{"key": "a", "request": {"contents": []}}\n', "as in a Batch of Gemini"),
        (b'{"request": {"contents": []}}\n', "as in a Batch of Gemini"),
        (b'{"custom_id": "a", "params": {"model": "m"}}\n' * 2, "as in a Message Batch"),
        (b'{"requests": [{"custom_id": "a", "params": {}}]}\n', "jq -c '.requests[]'"),
        (b'{"custom_id": "a", "body": {"messages": []}}\n', "as in a Batch of Mistral"),
        (b'{"recordId": "a", "modelInput": {}}\n', "as in a Batch of Bedrock"),
        (b'{"messages": [{"role": "user", "content": "x"}]}\n', "a body alone"),
        (b'{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200}}\n', "a line of answers"),
        (b"BZh9rest", "bzip2"),
        (b"\xfd7zXZ\0rest", "xz"),
        (b"PAR1rest", "Parquet"),
        (gzip.compress(LINES.encode(), mtime=0)[:-20], "no whole gzip file"),
        (gzip.compress(LINES.encode(), mtime=0)[:-8] + b"\0\0\0\0\0\0\0\0", "no whole gzip file"),
        (gzip.compress(LINES.encode(), mtime=0) + b"junk", "no whole gzip file"),
        (zstd.compress(LINES.encode())[:-10], "no whole zstd file"),
        (zstd.compress(LINES.encode())[:20] + b"junk" * 30, "no whole zstd file"),
    ],
)
def test_what_is_no_batch_file_is_one_line(tmp_path: Path, text: bytes, words: str) -> None:
    """It says what to do, and OUT stays empty."""
    source = tmp_path / "in"
    source.write_bytes(text)
    assert words in refused(source, tmp_path)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Nor is what is not there."""
    assert "is a folder" in refused(tmp_path, tmp_path)
    assert "can be read" in refused(tmp_path / "none", tmp_path)


def test_what_unpacks_to_more_than_anybody_means_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is unpacked, so that neither memory nor disk is filled."""
    monkeypatch.setattr(intake_module, "LEAST_UNPACKED", 3 * MOST)
    for pack in (gzip.compress, zstd.compress):
        source = tmp_path / "bomb"
        source.write_bytes(pack(b"\n" * (30 * MOST)))
        assert "unpack it yourself" in refused(source, tmp_path)
    monkeypatch.setattr(intake_module, "_LEAST_FREE", 1 << 62)
    source.write_bytes(gzip.compress(LINES.encode(), mtime=0))
    assert "give another --state-dir" in refused(source, tmp_path)


@pytest.mark.parametrize("text", [LINES, "[1]\n" + LINES, "\0\n" + LINES, "\xff\xfe"[:1] + LINES, "{\n" + LINES])
def test_a_strange_line_alone_makes_no_strange_file(text: str) -> None:
    """It is one bad line among good ones."""
    assert strange(text.encode("latin-1")) is None


def test_a_line_of_another_charset_is_a_bad_line(tmp_path: Path) -> None:
    """In its id, its url or its prompt; a line of OUT that somebody has edited so is none of OUT's, and is said."""
    source, said = tmp_path / "in", list[str]()
    strange_lines = [line("b").replace(old, "é") for old in ('"b"', "/v1/chat", '"m"')]
    quoted = [one.replace("é", '"é"') if "/v1" in one and '"m"' in one else one for one in strange_lines]
    source.write_bytes(line("a").encode() + b"".join(one.encode("latin-1") for one in quoted))
    with Journal(tmp_path / "out.jsonl") as journal, open_intake(source, tmp_path) as intake:
        assert survey(intake, journal, said).total == 4
    assert len(said) == 3
    assert all("not JSON" in one for one in said)
    (tmp_path / "out.jsonl").write_bytes(answered("é").encode().decode("unicode_escape").encode("latin-1"))
    with pytest.raises(BadInput, match="not a line of Batch output"), Journal(tmp_path / "out.jsonl"):
        pass


def test_a_line_at_a_glance_is_a_line_at_a_second_look() -> None:
    """What is taken for good without its body being read is good, under the same custom_id."""
    reader, rnd, taken = LineReader(RUN), random.Random(5), 0
    for number in range(5_000):
        text = hostile.batch_line(rnd, f"l-{number}").strip()
        custom_id = reader.custom_id(text)
        if custom_id is not None:
            read = reader.read(text, 1, 0, lambda custom_id: None)
            assert not isinstance(read, Bad), (text, read.why)
            assert read.custom_id == custom_id
            taken += 1
    assert taken > 100
    obfuscated = line("a").replace('"model": "m"', '"\\u0073tream": true').encode().strip()
    assert reader.custom_id(obfuscated) is None
    assert reader.custom_id(line("a").replace('"m"', '"\\ud83d"').encode().strip()) is None
    assert reader.custom_id(line(7).encode()) == "7"


def test_lines_are_surveyed(tmp_path: Path) -> None:
    """Done, to be sent, bad, repeated; whole numbers are their text; only so many are named one by one."""
    source, said = tmp_path / "in", list[str]()
    bad = "".join("{bad\n" for _ in range(MOST_NAMED + 5))
    source.write_text(f"{line('a')}\n{line(5)}{line('5')}{line('b')}{bad}", "utf-8", newline="\r\n")
    (tmp_path / "out.jsonl").write_text(answered("b"))
    with Journal(tmp_path / "out.jsonl") as journal, open_intake(source, tmp_path) as intake:
        found = survey(intake, journal, said)
    assert [found.state(number) for number in range(1, 7)] == [SEND, DONE, SEND, REPEATED, DONE, BAD]  # 2 is blank
    assert found.repeats == array("Q", [3])
    assert found.total == 4 + MOST_NAMED + 5
    assert (found.before.lines, found.before.input_tokens, found.before.output_tokens) == (1, 5, 2)
    assert len(said) == MOST_NAMED + 1
    assert "line 4: custom_id '5' is that of line 3 already" in said[0]
    assert "6 more lines that cannot be sent" in said[-1]
    with pytest.raises(BadInput, match="has changed"):
        found.state(found.total + 2)


def test_what_is_written_to_a_file_meanwhile_is_not_of_this_run(tmp_path: Path) -> None:
    """Half a line at its end is left out; afterwards it is known that there is more."""
    source = tmp_path / "in"
    source.write_text(LINES + line("late")[:30])
    with Journal(tmp_path / "out.jsonl") as journal, open_intake(source, tmp_path) as intake:
        with source.open("a") as file:
            file.write(line("late")[30:] + line("later"))
        found = survey(intake, journal)
        assert found.total == 50
        assert b"".join(intake.lines(MOST)).decode() == LINES
        assert intake.changed
    source.write_text(LINES + line("late")[:30])
    with Journal(tmp_path / "out.jsonl") as journal, open_intake(source, tmp_path) as intake:
        assert survey(intake, journal).total == 51  # nobody writes: it is a bad line


def test_out_may_be_touched_by_hand(tmp_path: Path) -> None:
    """A byte order mark, CRLF, blank lines, other keys first, ids as numbers, a line twice, no newline at the end."""
    out = tmp_path / "out.jsonl"
    by_hand = {**json.loads(answered("x")), "custom_id": 7}
    last = json.dumps(dict(reversed(list(json.loads(answered("last")).items()))))
    text = f"{answered('a')}\n{json.dumps(by_hand)}\n{answered('a', 'again')}{last}".replace("\n", "\r\n")
    out.write_bytes(b"\xef\xbb\xbf" + text.encode())
    with Journal(out) as journal:
        assert [journal.has(name, "") for name in ("a", "7", "last", "b")] == [True, True, True, False]
        assert journal.repeated == 1
        assert journal.tokens == (15, 6)
        journal.write([("b", "2", answered("b").encode(), End.ANSWERED), ("7", "3", b"never\n", End.FAILED)])
        assert [json.loads(journal.line(name))["custom_id"] for name in ("b", "last")] == ["b", "last"]
    lines = [one for one in out.read_text("utf-8-sig").splitlines() if one]
    assert [json.loads(one)["custom_id"] for one in lines] == ["a", 7, "a", "last", "b"]


def test_out_that_is_removed_meanwhile_is_there_again(tmp_path: Path) -> None:
    """With all its lines, locked; where another file was put in its place nothing more is written."""
    out, said = tmp_path / "out.jsonl", list[str]()
    with Journal(out, said.append) as journal:
        journal.write([("a", "1", answered("a").encode(), End.ANSWERED)])
        out.unlink()
        journal.write([("b", "2", answered("b").encode(), End.ANSWERED)])
        assert out.read_text() == answered("a") + answered("b")
        assert len(said) == 1
        with pytest.raises(OutFailed, match="another run"), Journal(out):
            pass
        (tmp_path / "other").write_text("")
        (tmp_path / "other").replace(out)
        with pytest.raises(OutFailed, match="another file was put"):
            journal.write([("c", "3", answered("c").encode(), End.ANSWERED)])
        assert not journal.has("c", "3")
    assert out.read_text() == ""


def test_what_fills_the_disk_is_cut_off(tmp_path: Path) -> None:
    """A device that takes nothing, and a pipe that nobody reads: one line each."""
    with open_out(Path("/dev/full"), lambda text: None) as out:
        assert isinstance(out, Stream)
        with pytest.raises(OutFailed, match="No space left"):
            out.write([("a", "1", b"x\n", End.ANSWERED)])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadInput), open_out(tmp_path / "pipe", lambda text: None):
        pass


def test_a_disk_that_is_full_costs_nothing_that_was_answered(tmp_path: Path) -> None:
    """Half a line is cut off, OUT is as it was, and the next write goes on."""
    out = tmp_path / "out.jsonl"
    out.write_text(answered("a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(out) as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (out.stat().st_size + 50, hard))
        try:
            with pytest.raises(OutFailed, match="make room, then resume"):
                journal.write([("b", "2", answered("b").encode(), End.ANSWERED)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert out.read_text() == answered("a")
        assert not journal.has("b", "2")
        journal.write([("b", "2", answered("b").encode(), End.ANSWERED)])
    assert out.read_text() == answered("a") + answered("b")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run in.jsonl -o in.jsonl", "is IN and OUT"),
        ("run in.jsonl -o link.jsonl", "is IN and OUT"),
        ("run - -o in.jsonl < in.jsonl", "is IN and OUT"),
        ("run in.jsonl -o - >> in.jsonl", "is IN and OUT"),
        ("run other.jsonl.summary.json -o other.jsonl", "is IN and OUT.summary.json"),
        ("run - -o out.jsonl <&-", "stdin is closed"),
        ("run in.jsonl -o - >&-", "stdout is closed"),
        ("run - -o out.jsonl < /dev/null", "holds no line"),
        ("run . -o out.jsonl", "is a directory"),
        ("run in.jsonl -o .", "is a directory"),
        ("run in.jsonl -o none/out.jsonl", "No such file"),
    ],
)
def test_what_cannot_be_read_or_written_is_one_line(tmp_path: Path, command: str, words: str) -> None:
    """Exit code 2, and IN is as it was."""
    (tmp_path / "in.jsonl").write_text(LINES)
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    (tmp_path / "other.jsonl.summary.json").write_text(LINES)
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m ratelimit_worker {command}"],
        cwd=tmp_path,
        env=clean_environment(MAISD_STATE_DIR=str(tmp_path / "state")),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error:")]) == 1
    assert (tmp_path / "in.jsonl").read_text() == LINES


def test_ways_in_which_lines_end(tmp_path: Path) -> None:
    """A resume counts what an earlier start has written, by way."""
    out = tmp_path / "out.jsonl"
    refusal = '{"status_code": 404, "body": {"error": {"code": "model_not_found"}}}'
    begin = '{"id": "batch_req_1", "custom_id": '
    for custom_id, response, error in [
        ("a", refusal, "null"),
        ("b", '{"status_code": 422, "body": "no"}', "null"),
        ("c", '{"status_code": 529, "body": {"error": {"type": "overloaded"}}}', "null"),
        ("d", '{"status_code": 502, "body": "<html>"}', "null"),
        ("e", "null", '{"code": "invalid_line", "message": "x"}'),
        ("f", '{"status_code": 400, "body": {"error": {"code": 7}}}', "null"),
        ("h", '{"status_code": 422, "body": {"error": {"code": 422}}}', "null"),
    ]:
        with out.open("a") as file:
            file.write(f'{begin}"{custom_id}", "response": {response}, "error": {error}}}\n')
    out.write_text(out.read_text() + answered("g"))
    with Journal(out) as journal:
        kinds = [journal.kind(name, "") for name in "abcdefghi"]
    assert kinds == [
        Kind(End.REFUSED, "HTTP 404 model_not_found"),
        Kind(End.REFUSED, "HTTP 422"),
        Kind(End.FAILED, "overloaded"),
        Kind(End.FAILED, "HTTP 502"),
        Kind(End.FAILED, "invalid_line"),
        Kind(End.REFUSED, "HTTP 400 7"),
        ANSWER,
        Kind(End.REFUSED, "HTTP 422"),
        None,
    ]
    tally = Tally()
    for kind in kinds[:2]:
        assert kind is not None
        tally.count(kind)
    assert tally.all_refused_as == ""
    tally = Tally()
    tally.count(Kind(End.REFUSED, "HTTP 422"), 3)
    assert tally.all_refused_as == "HTTP 422"
    tally.count(ANSWER)
    assert tally.all_refused_as == ""


@pytest.mark.parametrize(
    ("kinds", "fields", "code"),
    [
        ([ANSWER, ANSWER], {}, 0),
        ([ANSWER, Kind(End.REFUSED, "HTTP 400")], {}, 0),
        ([Kind(End.REFUSED, "HTTP 404"), Kind(End.REFUSED, "HTTP 400")], {}, 0),
        ([Kind(End.REFUSED, "HTTP 400"), Kind(End.REFUSED, "HTTP 400")], {}, 1),
        ([ANSWER, Kind(End.FAILED, "timeout")], {}, 1),
        ([ANSWER], {}, 1),
        ([ANSWER, ANSWER], {"ended_by": "IN was changed"}, 1),
        ([ANSWER], {"signal": 2}, 130),
        ([ANSWER], {"signal": 15}, 143),
    ],
)
def test_exit_codes(kinds: list[Kind], fields: dict[str, Any], code: int) -> None:
    """0 only if every line, of two, has an answer or a refusal of its own."""
    tally = Tally()
    for kind in kinds:
        tally.count(kind)
    summary = Summary(source="in", target="out", total=2, tally=tally, seconds=1.0, **fields)
    assert summary.exit_code == code
    assert summary.as_json()["exit_code"] == code
    assert "2 lines" in str(summary)
    json.dumps(summary.as_json())


def test_a_whole_url_has_to_begin_with_the_base_url() -> None:
    """Or with the provider's own, in whose place the base URL stands: nothing leads to another host."""
    own = Addresses({"OPENAI_BASE_URL": "http://127.0.0.1:8000/gateway/v1"}).below
    assert own("http://127.0.0.1:8000/gateway/v1/chat/completions") == "/chat/completions"
    assert own("https://api.openai.com/v1/chat/completions") == "/chat/completions"
    assert own("https://api.openai.com:443/v1/embeddings") == "/embeddings"
    assert own("https://api.anthropic.com/v1/messages") == "/v1/messages"
    for url in (
        "http://127.0.0.1:8001/gateway/v1/chat/completions",
        "http://127.0.0.1:8000/other/v1/chat/completions",
        "https://127.0.0.1:8000/gateway/v1/chat/completions",
        "https://api.openai.com.evil.example/v1/chat/completions",
        "https://user@api.openai.com/v1/chat/completions",
        "https://api.openai.com:x/v1/chat/completions",
        "https://api.openai.com/v1/messages",
        "file:///etc/passwd",
        "://",
    ):
        assert own(url) is None, url
    bare = Addresses({"OPENAI_BASE_URL": "http://h:1"}).below
    assert bare("http://h:1/v1/chat/completions") == "/v1/chat/completions"
    reader = LineReader(RUN, path_of=own)
    text = line("a").replace("/v1/chat", "https://api.openai.com/v1/../chat").encode()
    read = reader.read(text, 1, 0, lambda custom_id: None)
    assert isinstance(read, Bad)
    assert "use a path" in read.why
    read = reader.read(line("a").replace("/v1/chat", "https://x.y/v1/chat").encode(), 1, 0, lambda custom_id: None)
    assert isinstance(read, Bad)
    assert "has to begin with the base URL" in read.why


def test_ids_are_known_by_their_numbers() -> None:
    """Through every growth; the first number stays."""
    ids = Ids("I")
    for number in range(20_000):
        assert ids.add(f"id-{number}", number) is None
    assert ids.add("id-7", 9) == 7
    assert len(ids) == 20_000
    assert all(ids.get(f"id-{number}") == number for number in range(20_000))
    assert ids.get("id-20000") is None
    assert "id-20000" not in ids
    assert ("id-1",) not in ids
    assert ids.add(0, 3) is None  # its hash is 0
    assert ids.get(0) == 3
    assert len(ids._marks) * (ids._marks.itemsize + ids._numbers.itemsize) < 36 * len(ids)
    ids.put("id-7", 8)
    assert ids.get("id-7") == 8
    with pytest.raises(KeyError):
        ids.put("id-20000", 1)
