"""What does a terminal, a log or a spreadsheet do with what a stranger wrote? It shows it, and nothing else."""

from __future__ import annotations

import csv
import io
import json
import logging
import re

import pytest
from celery.utils.log import ColorFormatter
from click.testing import CliRunner

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.cli import main
from ratelimit_worker.cli.progress import Progress
from ratelimit_worker.cli.terminal import say
from ratelimit_worker.plain_text import one_line, shown
from ratelimit_worker.reports.analytics import _csv
from ratelimit_worker.reports.tables import mode_line
from ratelimit_worker.reports.words import as_json, table
from ratelimit_worker.worker.log_lines import HarmlessFormatter, protect
from tests.builders import ROOT

EVIL = "a\x1b]52;c;eA==\x07\x9b2J\u202etxt\u2066\r\x7f\x00\udc9b\u2028z"
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
PACKAGE = ROOT / "ratelimit_worker"


def test_no_active_character_is_left() -> None:
    """Every one of them is escaped, and nothing else is: letters, emoji and line ends stay."""
    everything = "".join(map(chr, (*range(0x3000), *range(0xD7F0, 0xE010), 0x1F600)))
    assert not ACTIVE.search(shown(everything))
    assert shown("grüße ☃ 👍\tb\nc ع א") == "grüße ☃ 👍\tb\nc ع א"
    assert shown("\x1b[31m") == "\\u001b[31m"
    assert one_line("lane\nforged: HALT\t") == "lane\\nforged: HALT\\t"


def test_json_means_the_same_when_it_is_shown() -> None:
    """What a program reads from stdout is what was written."""
    text = as_json({"lane": EVIL.replace("\udc9b", "")})
    assert json.loads(shown(text)) == {"lane": EVIL.replace("\udc9b", "")}


def test_commands_speak_through_one_place() -> None:
    """No command prints by itself, so that none forgets."""
    allowed = {"terminal.py", "progress.py", "screen.py"}
    for path in (PACKAGE / "cli").rglob("*.py"):
        if path.name not in allowed:
            assert not re.search(r"click\.(s?echo)\(|\bprint\(", path.read_text("utf-8")), path


def test_say_prints_what_no_stream_could_encode(capsys: pytest.CaptureFixture[str]) -> None:
    """A file name that is no UTF-8 ends no command."""
    say(f"file {EVIL}")
    said = capsys.readouterr().out
    assert not ACTIVE.search(said.rstrip("\n"))
    assert "\\udc9b" in said


def test_an_error_repeats_what_was_typed_harmlessly() -> None:
    """Click's own sentences name the value; so do ours."""
    for arguments in (["\x1b[2Jnone"], ["stats", "--window", "\x1b[2J"], ["limits", "set", "a\x9b", "--rpm", "\x1b"]):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert not ACTIVE.search(done.output), done.output
        assert "\\u001b" in done.output or "\\x1b" in done.output  # click escapes some itself


def test_progress_moves_the_cursor_itself_and_lets_nobody_else() -> None:
    """Its own two controls are there, those of the text are not."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = Progress(stream=stream)
    progress.tick(lambda: f"lane {EVIL}\nforged")
    progress.note(EVIL)
    assert not ACTIVE.search(stream.getvalue().replace("\r\x1b[K", "").rstrip("\n"))


def test_a_name_is_one_cell_of_one_line() -> None:
    """A newline in a lane's name makes no line of its own."""
    assert len(table(("lane", "mode"), [("a\nb HALT", "NORMAL")]).splitlines()) == 2
    change = ModeChange(
        id="1", lane="a\nb", from_mode=Mode.NORMAL, to_mode=Mode.HALT, at=0.0, cause="c\x1b", who="w", reason="r\nr"
    )
    assert len(mode_line(change).splitlines()) == 1


@pytest.mark.parametrize("inner", [logging.Formatter("%(levelname)s %(message)s"), ColorFormatter("%(message)s", True)])
def test_a_log_line_is_harmless(inner: logging.Formatter) -> None:
    """Message, arguments and traceback; the formatter's own colours stay, and the record is left to others."""
    logger, stream = logging.Logger("x"), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(inner)
    logger.addHandler(handler)
    protect(logger)
    protect(logger)  # Celery may set logging up again
    assert isinstance(handler.formatter, HarmlessFormatter)
    assert handler.formatter.inner is inner
    try:
        raise LookupError(f"provider said {EVIL}")
    except LookupError:
        logger.exception("lane %s", EVIL)
    said = stream.getvalue()
    own = re.sub("\x1b\\[[0-9;]*m", "", said)
    assert not ACTIVE.search(own.rstrip("\n"))
    assert own.count("\\u001b]52") == 2
    assert "Traceback" in own
    assert ("\x1b[" in said) is isinstance(inner, ColorFormatter)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_cell_starts_no_formula(start: str) -> None:
    """A text gets a ' before it; a number stays one."""
    rows = list(csv.reader(io.StringIO(_csv(("lane", "n", "x"), [(f"{start}1+1", -5, -0.25)]), newline="")))
    assert rows[1] == [f"'{start}1+1".replace("\r", "\\r"), "-5", "-0.25"]
