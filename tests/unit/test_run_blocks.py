"""A file of lines is read many at once, and what is found in it is what a look at each line finds."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit_worker.batchfile import Cut, LineReader, answer_line, error_line, lines_of, plain_answers
from ratelimit_worker.cli.run import blocks as blocks_module
from ratelimit_worker.cli.run import journal as journal_module
from ratelimit_worker.cli.run.blocks import blocks
from ratelimit_worker.cli.run.ids import Ids, Met
from ratelimit_worker.cli.run.intake import open_intake
from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.cli.run.survey import Survey, look_through
from ratelimit_worker.errors import BadInput

RUN = uuid.UUID(int=7)
MOST = 2_000  #: bytes of a line
SMALL = 400  #: bytes of a block, so that a small file has many


def request(custom_id: object, **more: object) -> str:
    """A line of IN, without its end."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hello } {"}], **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body})


def answer(custom_id: str, status: int = 200, **usage: int) -> bytes:
    """A line of OUT."""
    body = {"choices": [], "usage": usage} if usage else {"choices": []}
    value = {"status_code": status, "request_id": "r", "body": body}
    return answer_line(str(uuid.uuid5(RUN, custom_id)), custom_id, value)[0]


IDS = st.sampled_from([f"q-{number}" for number in range(12)] + ["ü", "0"])
LINES = st.one_of(
    IDS.map(request),
    st.integers(0, 5).map(request),
    IDS.map(lambda name: request(name, stream=True)),
    IDS.map(lambda name: request(name).replace("POST", "post")),
    IDS.map(lambda name: request(name).replace("/v1/chat/completions", "/v1/chat")),
    IDS.map(lambda name: request(name, note="x" * MOST)),
    IDS.map(lambda name: request(name, note="y" * SMALL)),
    IDS.map(lambda name: request(name).replace("hello", "\\ud800")),
    IDS.map(lambda name: request(name).replace("hello", "\\ud83d\\ude00 ü")),
    IDS.map(lambda name: request(name) + "\r"),
    IDS.map(lambda name: request(name).replace(", ", ",\n", 1)),  # one object in two lines
    st.tuples(IDS, IDS).map(lambda names: request(names[0]) + request(names[1])),  # two objects in one line
    st.sampled_from(["", "  ", "{}", "[1]", "nonsense", '{"custom_id": 1.5}', request("")]),
)
OUT_LINES = st.one_of(
    IDS.map(lambda name: answer(name, prompt_tokens=3, completion_tokens=2)),
    IDS.map(lambda name: answer(name, input_tokens=5, output_tokens=1, cache_creation_input_tokens=4)),
    IDS.map(answer),
    IDS.map(lambda name: answer(name, 400)),
    IDS.map(lambda name: answer(name, 500)),
    IDS.map(lambda name: error_line(str(uuid.uuid5(RUN, name)), name, "timeout", "too slow")),
    IDS.map(lambda name: error_line(str(uuid.uuid5(RUN, name)), None, "invalid_line", "no custom_id")),
    st.just(b"\n"),
    IDS.map(lambda name: answer(name, prompt_tokens=1, completion_tokens=1).replace(b"\n", b"\r\n")),
)


class LineByLine(LineReader):
    """Looks at each line."""

    def custom_ids(self, block: bytes) -> list[str] | None:
        """It never sees many at one glance."""
        return None


def surveyed(folder: Path, reader: LineReader) -> tuple[object, ...]:
    """What a file and its OUT are found to be."""
    said: list[str] = []
    found = list[tuple[int, int, bytes]]()
    with Journal(folder / "out") as journal, open_intake(folder / "in", folder) as intake:
        try:
            survey = look_through(intake, MOST, reader, journal, said.append, lambda: False)
            look_through(intake, MOST, reader, journal, said.append, lambda: False, lambda *line: found.append(line))
        except BadInput as error:
            return (str(error),)
        numbers = {name: journal.ids.get(name) for name in ("q-0", "q-1", "ü")}
        lines = {name: journal.line(name) for name, number in numbers.items() if number is not None}
        kinds = {name: journal.kind(name, "") for name in lines}
        return (*parts(survey), said, found, journal.tokens, journal.repeated, lines, kinds, len(journal.ids))


def parts(survey: Survey) -> tuple[object, ...]:
    """All that a survey holds."""
    states = bytes(survey.state(number) for number in range(1, len(survey._states) + 1))
    return survey.total, survey.before.as_json(), survey.first, list(survey.repeats), states


@settings(max_examples=150)
@given(lines=st.lists(LINES, max_size=25), out=st.lists(OUT_LINES, max_size=25), ends=st.booleans())
def test_many_lines_at_a_glance_are_what_each_of_them_is(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], out: list[bytes], ends: bool
) -> None:
    """Repeated, refused and unsendable lines, of any shape, at the edge of a block and in it."""
    folder = tmp_path_factory.mktemp("blocks")
    text = "\n".join(lines) + "\n" * ends
    (folder / "in").write_bytes(text.encode())
    (folder / "out").write_bytes(b"".join(out))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_module, "BLOCK", SMALL)
        many = surveyed(folder, LineReader(RUN))
        patch.setattr(journal_module, "plain_answers", lambda block: None)
        assert many == surveyed(folder, LineByLine(RUN))


def test_a_file_of_good_lines_is_read_at_one_glance() -> None:
    """Else all of this would only cost time."""
    block = "".join(f"{request(name)}\n" for name in ("a", 7, "ü")).encode()
    assert LineReader(RUN).custom_ids(block) == ["a", "7", "ü"]
    plain = plain_answers(answer("a", prompt_tokens=3, completion_tokens=2) + answer("b", 400) + answer("c"))
    assert plain is not None
    assert (plain.custom_ids, plain.input_tokens, plain.output_tokens, plain.others) == (["a"], 3, 2, [1, 2])


def test_blocks_are_whole_lines(tmp_path: Path) -> None:
    """A line that is longer than a block is one of its own."""
    lines = [b"a\n", b"b" * SMALL + b"\n", b"c\n" * SMALL, b"\n", b"the end"]
    (tmp_path / "file").write_bytes(b"".join(lines))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks_module, "BLOCK", SMALL)
            cut = {2: Cut.of(lines[1][:10], len(lines[1]))}
            found = list(blocks(fd, 0, os.fstat(fd).st_size, lambda at: cut.get(at, b"the end")))
    finally:
        os.close(fd)
    assert found[:2] == [b"a\n", b"b" * 10]
    assert isinstance(found[1], Cut)
    assert all(block.endswith(b"\n") and len(block) <= SMALL for block in found[2:-1])
    assert b"".join(found[2:]) == b"".join(lines[2:])
    assert [list(lines_of(block)) for block in (found[1], found[-1])] == [[b"b" * 10], [b"the end"]]


@settings(max_examples=60)
@given(known=st.sets(st.integers(0, 3_000)), lines=st.lists(st.integers(0, 3_000), max_size=200))
def test_ids_that_came_before_are_told_with_their_lines(known: set[int], lines: list[int]) -> None:
    """Whether or not they are in OUT, one by one or many at once."""
    table = Ids()
    assert table.add_all([f"q-{one}" for one in known] * 2, 5) == list(range(len(known), 2 * len(known)))
    assert len(table) == len(known)
    keys = [f"q-{one}" for one in lines]
    first = {key: keys.index(key) + 1 for key in keys}
    met, one_by_one = Met(table), Met(table)
    numbers, again = met.add_all(keys, 1)
    assert numbers == [5 if one in known else None for one in lines]
    assert again == [index for index, key in enumerate(keys) if first[key] != index + 1]
    for index, key in enumerate(keys):
        before = one_by_one.add(key, index + 1)
        assert before == (None if first[key] == index + 1 else first[key])
    for key in ("q-0", *keys):
        assert met.get(key) == one_by_one.get(key) == first.get(key)
