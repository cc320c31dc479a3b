"""docs/lanes.md draws states and bars; this holds the drawing, and the table of keys, to the text of the scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ratelimit_worker.ports import BarKind
from ratelimit_worker.stores import keys
from tests import leftovers
from tests.lua.lua_source import functions, key_names, reached_from, sources, writes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lanes.md").read_text("utf-8")
MOST_LINES = 40
#: Channels, which hold nothing.
CHANNELS = {keys.WAKE, keys.TUNE}


def table(first_column: str) -> list[list[str]]:
    """The rows of a table of the page, cell by cell."""
    _, _, after = PAGE.partition(f"\n| {first_column} |")
    rows = after.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def words(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_no_function_of_a_script_is_longer_than_a_screen() -> None:
    """Nor what a script does outside of its functions, its header aside."""
    long = [
        f"{path}: {function.name or 'outside of functions'}, {function.lines} lines"
        for path, text in sources().items()
        for function in functions(text)
        if function.lines > MOST_LINES and (function.name or not path.startswith("shared/"))
    ]
    assert long == []


def test_the_count_of_lines_counts() -> None:
    """Functions in functions, loops and one-liners; comments and strings are no code."""
    text = """-- function end
local function one() return 'end' end
function a.b(x)
  local inner = function() if x then return 1 end end
  while x do x = nil end
  repeat x = 1 until x
end
local y = 1
"""
    assert [tuple(found) for found in functions(text)] == [("one", 1), ("anonymous", 1), ("a.b", 5), ("", 1)]


@pytest.mark.parametrize("row", table("State"), ids=lambda row: row[0])
def test_a_state_is_moved_by_the_files_that_the_page_names(row: list[str]) -> None:
    """Exactly those have commands that put something into its key, or take something out."""
    _, key, put_in, taken_out = row
    moved = {
        puts: sorted(
            path for path, found in writes().items() if any(w.key == words(key)[0] and w.puts == puts for w in found)
        )
        for puts in (True, False)
    }
    assert (moved[True], moved[False]) == (sorted(words(put_in)), sorted(words(taken_out)))


@pytest.mark.parametrize("row", table("From"), ids=lambda row: row[2])
def test_an_arrow_is_drawn_for_the_scripts_that_can_move_a_call_so(row: list[str]) -> None:
    """Those from which its function can be reached."""
    _, _, function, scripts = row
    releasing = set(words(PAGE.partition("*Releasing* stands")[2].partition(".\n")[0]))
    assert releasing == reached_from("release")
    named = {name.strip() for name in re.sub(r"\([^)]*\)", "", scripts).split(",")}
    expected = (named - {"releasing"}) | (releasing if "releasing" in named else set())
    assert reached_from(words(function)[0]) == expected


def test_every_bar_is_drawn_with_its_question_and_its_place() -> None:
    """The kinds are those of the scripts; a place is a key that parking, crews or suspects write."""
    texts = sources()
    asked = texts["shared/bars.lua"] + texts["shared/room.lua"] + texts["shared/bucket.lua"] + texts["shared/purse.lua"]
    rows = table("Bar")
    drawn = {kind for row in rows for kind in words(row[0])}
    kinds = set(re.findall(r"kind = '(\w+)'", asked)) | set(re.findall(r"bound(?:, event)? = .*?'([a-z_]+)'", asked))
    # "nothing" waits; a call without a record ("gone") leaves its lane; "ends" is what a full lane waits for
    assert drawn == kinds - {"nothing", "gone", "ends"}
    put = {write.key for found in writes().values() for write in found if write.puts}
    for row in rows:
        assert f"function {words(row[1])[0]}(" in asked
        assert set(words(row[2])) <= put
    people = {"probes", "ramp", "flight", "due", "claim", "turn", "retries"}
    assert {kind.value for kind in BarKind} == (drawn - {"at_once", "share"}) | people


def test_the_part_that_remembers_a_key_is_the_only_one_that_writes_it() -> None:
    """What `memo` holds needs nobody who remembers to throw it away: record.lua says which part owns which entry."""
    owners = {"aside": "workers", "workers": "workers", "lent": "workers", "busy": "ledger", "oncrews": "ledger"}
    for key, part in {**owners, "next": "plan"}.items():
        wrote = {path for path, found in writes().items() if any(write.key == key for write in found)}
        assert wrote == {f"shared/{part}.lua"}, key
    for name in ("aside", "lent", "slots", "unplanned", "lease", "again", "full"):
        users = {path for path, text in sources().items() if re.search(rf"\bmemo\.{name}\b", text)}
        assert len(users - {"shared/record.lua", "shared/release.lua"}) == 1, name


def test_the_table_of_keys_is_whole() -> None:
    """Every key that scripts name or `keys.py` makes has a row, and every row is a key of one of them."""
    constants = {value for name, value in vars(keys).items() if name.isupper() and isinstance(value, str)}
    named = {f"{keys.NAMESPACE}{name}" for name in key_names()} | {
        value for value in constants if value.startswith(keys.NAMESPACE) and value != keys.NAMESPACE
    }
    rows = [row.name for row in leftovers.table()]
    for name in named - CHANNELS:
        example = name + "x" if name.endswith(":") else name
        assert any(row.fullmatch(example) for row in rows) or any(row.fullmatch(f"{example}:x:x") for row in rows), name
    for row in rows:
        begins = row.pattern.partition(".*")[0].replace("\\", "")
        assert any(begins.startswith(name) or name.startswith(begins) for name in named), row.pattern


def test_every_hash_has_its_fields_in_the_table() -> None:
    """And no field stands there of a key that is no hash."""
    hashes = {row.name.pattern for row in leftovers.table() if row.type == "hash"}
    assert {name.pattern for name, _ in leftovers.fields()} == hashes


def test_every_counter_of_a_script_is_in_the_table() -> None:
    """They are fields of `rlw:counters`."""
    counted = {
        name
        for text in sources().values()
        for call in re.findall(r"(?<!\w)count\(([^)]*)", text)
        for name in re.findall(r"'(\w+)'", call)
    }
    allowed = next(fields for name, fields in leftovers.fields() if name.fullmatch(keys.COUNTERS))
    assert counted
    assert not {name for name in counted if not allowed.fullmatch(name)}
