"""Do tables of figures fit a terminal, and are names whole in a pipe?"""

from __future__ import annotations

import subprocess
import sys

import pytest

from ratelimit_worker.reports.words import folded, table

LONG = "provider:" + "x" * 150 + ":end"
HEADS = ("lane", "calls", "errors")
ROWS = [(LONG, "12", "1.5 %"), ("short", "1,234", "-")]


def test_nothing_is_cut_or_folded_in_a_pipe() -> None:
    """`| grep` finds a name, and the figures of its line."""
    lines = table(HEADS, ROWS).splitlines()
    assert len(lines) == 3
    assert lines[1] == f"{LONG}     12   1.5 %"
    assert lines[2].split() == ["short", "1,234", "-"]
    assert {len(line) for line in lines} == {len(lines[1])}


@pytest.mark.parametrize("width", [30, 40, 80, 120])
def test_a_name_goes_on_in_the_next_line_of_a_terminal(width: int) -> None:
    """It is all there, and figures stay in their columns."""
    lines = table(HEADS, ROWS, width).splitlines()
    assert max(map(len, lines)) <= width
    assert LONG in "".join(line[: -len("  calls  errors")] if "12" in line else line for line in lines[1:]).replace(
        " ", ""
    )
    ends = [len(line) for line in lines if line.endswith(("errors", "1.5 %", "-"))]
    assert len(set(ends)) == 1
    assert len(lines) > 3


@pytest.mark.parametrize("width", [1, 5, 16, 20])
def test_where_figures_do_not_fit_a_row_takes_several_lines(width: int) -> None:
    """All of it is there, in order, and no line is longer than the terminal is wide; what fits is left alone."""
    lines = table(HEADS, ROWS, width).splitlines()
    assert max(map(len, lines)) <= width
    told = f"lane{LONG}calls 12errors 1.5 %shortcalls 1,234errors -"
    assert "".join(lines).replace(" ", "") == told.replace(" ", "")
    if width == 20:
        assert lines[-3:] == ["short", "  calls 1,234", "  errors -"]
    assert table(HEADS, ROWS[1:], 80) == table(HEADS, ROWS[1:])


def test_an_empty_cell_has_no_phrase() -> None:
    """As of a pin without an end."""
    lines = table(("at", "until", "who"), [("now", "", "x" * 30)], 34).splitlines()
    assert lines == ["at", "now", "  who", f"    {'x' * 30}"]


def test_prose_is_broken_between_words() -> None:
    """With what was broken off deeper; in a pipe it stays in one line."""
    says = "calls     12: 10 answered, 2 failed, and one-more\n\nshort"
    assert folded(says, None) == says
    assert folded(says, 24, indent=10) == (
        "calls     12: 10\n          answered, 2\n          failed, and\n          one-more\n\nshort"
    )
    assert max(map(len, folded(says, 8).splitlines())) <= 8


def test_columns_line_up_in_wide_scripts_too() -> None:
    """A letter may take two columns."""
    wide, narrow = table(("a", "n"), [("日本", "1"), ("abcd", "1")]).splitlines()[1:]
    assert (wide, narrow) == ("日本  1", "abcd  1")


def test_what_a_name_holds_is_text() -> None:
    """No markup, no colour, no line of its own."""
    name = "[red]a[/red]\x1b[31m\nb" + "y" * 40
    assert "[red]a[/red]\\u001b[31m\\nb" in table(("lane", "n"), [(name, "1")])
    folded = table(("lane", "n"), [(name, "1")], 30)
    assert folded.replace("\n", "").replace(" ", "").startswith("lanen[red]a[/red]\\u001b[31m\\")
    assert "\x1b" not in folded


def test_several_columns_of_text_are_to_the_left() -> None:
    """They share the room."""
    rows = [("a" * 60, "b" * 60)]
    assert table(("x", "y"), rows, texts=2).splitlines()[0] == "x" + " " * 61 + "y"
    lines = table(("x", "y"), rows, 80, texts=2).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("a") for line in lines) == sum(line.count("b") for line in lines) == 60


def test_rich_is_loaded_only_for_what_does_not_fit() -> None:
    """A command that fills a pipe does not wait for it."""
    code = (
        "import sys; from ratelimit_worker.reports.words import table\n"
        "table(('lane', 'n'), [('x' * 200, '1')]); table(('lane', 'n'), [('x', '1')], 80)\n"
        "assert 'rich' not in sys.modules\n"
        "table(('lane', 'n'), [('x' * 200, '1')], 80)\n"
        "assert 'rich.table' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
