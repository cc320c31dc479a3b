"""The table says the worst of all runs, and what was not kept; it changes nothing outside its marks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.table import BEGIN, END, HEAD, Result, put_between, table
from tests.chaos.test_verdict import GOOD
from tests.chaos.verdict import Allowed, judge

FAULT = FAULTS[0]
KEPT = judge(GOOD, Allowed())
BROKEN = judge(replace(GOOD, slots_used=6, slowest_delay_s=0.5), Allowed())


def test_the_worst_of_all_runs() -> None:
    """One that was broken is not hidden behind two that were not."""
    text = table([Result(fault=FAULT, verdicts=[KEPT, BROKEN, KEPT])], 0.5)
    row = next(line for line in text.splitlines() if FAULT.name in line)
    cells = dict(zip(HEAD, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
    assert (cells["kept"], cells["calls"], cells["slots lost"]) == ("2 of 3", "6", "2")
    assert cells["slowest `.delay()`"] == "0.50 s"
    assert f"- `{FAULT.name}`: 2 slots lost" in text
    assert "Every promise was kept" not in text


def test_a_run_that_could_not_be_judged_is_not_kept() -> None:
    """It counts as a run, and is named."""
    result = Result(fault=FAULT, verdicts=[KEPT], failed=["no worker came"])
    assert not result.kept
    text = table([result], 0.5)
    assert "| 1 of 2 |" in text
    assert "could not be judged: no worker came" in text


def test_what_is_skipped_says_why() -> None:
    """It has no figures."""
    text = table([Result(fault=FAULT, skipped="no such tool")], 0.5)
    row = next(line for line in text.splitlines() if FAULT.name in line)
    assert "skipped: no such tool" in row
    assert row.count("|") == len(HEAD) + 1
    assert "Every promise was kept in every run." in text


def test_only_what_is_between_the_marks_changes() -> None:
    """The page's own words stay."""
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert put_between(page, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="no <!--"):
        put_between("nothing", "new")
