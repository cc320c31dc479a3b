"""A lane's hash: one table of its fields, one codec, and nobody else who knows them by their stored names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ratelimit_worker
from ratelimit_worker.calls import DIMENSIONS, LaneLimits, Mode
from ratelimit_worker.contracts import lane
from ratelimit_worker.contracts.lane import (
    FIELDS,
    Anchor,
    Basic,
    GivenBack,
    LaneState,
    Memory,
    Pacing,
    SetPoints,
    Told,
    encode_basic,
    encode_configured,
    encode_levels,
    encode_paces,
    encode_schema,
)

PACKAGE = Path(ratelimit_worker.__file__).parent


def stored(name: str) -> list[str]:
    """Under which names a field of the table stands in Redis."""
    return [name.replace("#", str(i)) for i in range(1, len(DIMENSIONS) + 1)] if name.endswith("#") else [name]


class Read(dict[str, bytes]):
    """A hash that remembers what was asked of it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


def test_the_table_and_the_codec_agree() -> None:
    """Each field stands once; what has a place in a `LaneState` is read, and nothing else is."""
    names = [name for field in FIELDS for name in stored(field.stored)]
    assert len(names) == len(set(names))
    hashed = Read({name: b"1" for name in names if name[:1] in "pd" and name[1:].isdigit()})
    LaneState.decode(hashed)
    placed = {
        name
        for field in FIELDS
        if re.match(r"(schema|revision|told|points|levels|memory)\b", field.name)
        for name in stored(field.stored)
    }
    assert hashed.asked == placed


def test_each_place_is_there() -> None:
    """The table names attributes that a `LaneState` has."""
    state = LaneState(points=SetPoints(paces={"requests": Pacing(1.0)}))
    for place in (place for field in FIELDS for place in field.name.split(", ")):
        if place.partition(".")[0] in {"schema", "revision", "told", "points", "levels", "memory"}:
            value: Any = state
            for name in place.split("."):
                value = getattr(value, name.removesuffix("[]"))
                value = value.get("requests") if name.endswith("[]") else value


_units = st.floats(1e-3, 1e9)
_pacing = st.builds(Pacing, _units, _units, st.floats(0, 100))
_points = st.builds(
    SetPoints,
    paces=st.dictionaries(st.sampled_from(DIMENSIONS), _pacing),
    unpaced=st.booleans(),
    headers_govern=st.booleans(),
    mode=st.sampled_from(Mode),
    pin=st.sampled_from(["", "a1"]),
    escalates=st.booleans(),
    at_once=st.integers(0, lane.MANY),
    probes=st.integers(0, lane.MANY),
    ramp=st.integers(0, 100),
    flight=st.integers(0, 100),
    gap_us=st.integers(0, 300_000_000),
    sick_share=st.floats(0, 1),
    gate_us=st.integers(0, lane.SHUT_US),
)


@given(_points, _points)
def test_set_points_come_back(before: SetPoints, after: SetPoints) -> None:
    """Whatever was there: when the changes are written, they are what was wanted, and nothing that is the same goes."""
    hashed = {"schema": b"1", **write({}, before.encode_changes(SetPoints()))}
    changes = after.encode_changes(LaneState.decode(hashed).points)
    assert LaneState.decode(write(hashed, changes)).points == after
    assert after.encode_changes(after) == {}


def write(hashed: dict[str, bytes], fields: Any) -> dict[str, bytes]:
    """As setpoints.lua does."""
    after = dict(hashed)
    for name, value in fields.items():
        if value == "":
            after.pop(name, None)
        else:
            after[name] = value if isinstance(value, bytes) else str(value).encode()
    return after


def test_a_mode_that_binds_sets_aside_that_a_lane_is_unlimited() -> None:
    """What the person set is known all the while."""
    free = write({}, Told(limits=LaneLimits(unlimited=True)).encode())
    bound = SetPoints(unpaced_again=True).encode_changes(LaneState.decode(free).points)
    state = LaneState.decode(write(free, bound))
    assert (state.points.unpaced, state.points.unpaced_again, state.memory.law) == (False, True, b"")
    assert state.told.limits.unlimited
    assert LaneState.decode(write(free, SetPoints(unpaced=True).encode_changes(state.points))).told.limits.unlimited


@pytest.mark.parametrize(
    "limits",
    [
        LaneLimits(),
        LaneLimits(rpm=60.5, tpm=1000, concurrency=3, adaptive=False),
        LaneLimits(unlimited=True, rpd=5, tpd=1e6, day_zone="-08:00", parents=("org", "team")),
        LaneLimits(tpm=6000, shared=True, adaptive=False),
    ],
)
def test_what_a_person_set_comes_back(limits: LaneLimits) -> None:
    """Limits, with the steps of a zone; also what they are when a switch is back."""
    told = Told(limits=limits, day_steps=(0, -28800) if limits.day_zone else ())
    fields = encode_schema() | told.encode() | encode_configured() | encode_basic(Basic(limits, 2.0))
    state = LaneState.of({name: value for name, value in fields.items() if value != ""})
    assert (state.told.limits, state.told.day_steps) == (limits, told.day_steps)
    assert (state.schema, state.there, state.told.configured, state.told.basic) == (
        True,
        True,
        True,
        Basic(limits, 2.0),
    )


def test_what_the_law_remembers_comes_back() -> None:
    """And what it has taken note of is taken away."""
    told = GivenBack(1700000000.25, "ada of ops")
    state = LaneState.of({**Memory(law=b"l", health=b"h").encode_changes(Memory()), **told.encode()})
    assert state.memory == Memory(law=b"l", health=b"h", given_back=told)
    assert Memory(law=b"l", health=b"h").encode_changes(state.memory) == {"resumed": ""}


def test_levels_are_written_by_their_dimension() -> None:
    """Anchors: of what has been sent in all."""
    anchors = {"tokens": Anchor(7.0), "requests": Anchor(2.0, lowers=True)}
    assert encode_levels(anchors) == {"a2": 7.0, "m1": 2.0}
    assert encode_levels(emptied="requests") == {"l1": 0.0}
    assert encode_levels(filled="tokens") == {"l2": ""}
    assert encode_paces({"tokens": Pacing(2.0)}, headers_govern=True) == {
        **{f"{letter}{i}": "" for letter in "pdg" for i in range(1, 5)},
        "p2": 2.0,
        "d2": 1.0,
        "g2": 0.0,
        "told": 1,
    }


def test_a_lane_of_another_version_is_read() -> None:
    """A mode that this version does not know is set anew; an older tuner's bound stands alone."""
    newer = LaneState.decode({"schema": b"2", "mode": b"SIESTA", "siesta": b"1"})
    assert (newer.mode, newer.points.mode) == (Mode.NORMAL, None)
    assert SetPoints(mode=Mode.NORMAL).encode_changes(newer.points) == {"mode": "NORMAL"}
    older = LaneState.decode({"width": b"1", "gap": b"600000", "told": b"1.0", "mode": b"EMERGENCY"})
    assert (older.points.at_once, older.points.probes, older.points.headers_govern) == (1, 0, True)
    assert LaneState.decode({}) == LaneState()


@pytest.mark.parametrize(
    ("fields", "at_s", "level"),
    [
        ({}, 3.0, 10.0),  # nothing was sent yet
        ({"ts": b"1000000", "l1": b"2"}, 0.5, 2.0),
        ({"ts": b"1000000", "l1": b"2"}, 4.0, 5.0),
        ({"ts": b"1000000", "l1": b"2", "o1": b"1.5"}, 60.0, 11.5),
        ({"ts": b"1000000", "l1": b"-4", "gate": b"3000000"}, 4.0, -1.0),
        ({"ts": b"1000000", "l1": b"-4", "gate": b"3000000", "told": b"1"}, 4.0, -3.0),  # earned behind a gate: nothing
        ({"ts": b"1000000", "l1": b"2", "gate": str(lane.SHUT_US).encode(), "told": b"1"}, 60.0, 2.0),
    ],
)
def test_what_is_in_a_bucket(fields: dict[str, bytes], at_s: float, level: float) -> None:
    """As the scripts reckon it: a call a second into a bucket of ten."""
    state = LaneState.decode({"p1": b"1", "d1": b"10", **fields})
    assert state.level("requests", at_s * 1e6) == pytest.approx(level)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    """All modules but the contract's own."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != Path(lane.__file__):
            yield path.relative_to(PACKAGE), ast.parse(path.read_text("utf-8"))


#: Stored names that are words of other things too: `o1` to `o4` are models, `rb` opens a file.
_ORDINARY = {"schema", "rpm", "tpm", "cap", "adaptive", "shared", "bounds", "basic", "configured", "unlimited", "told"}
_ORDINARY |= {
    "sick_share",
    "mode",
    "pin",
    "probes",
    "ramp",
    "flight",
    "gate",
    "health",
    "law",
    "sick",
    "turn",
    "v",
    "o#",
    "rb",
}


#: The law's own memory of probes has had this name of a field since it was first kept.
_OTHER = ("policy/modes/state.py", "width")


@pytest.mark.long
def test_nobody_else_knows_a_field_by_its_stored_name() -> None:
    """Names that mean nothing else stand in no other module, and no raw hash leaves the stores."""
    fields = {name for field in FIELDS if field.stored not in _ORDINARY for name in stored(field.stored)}
    fields |= {f"{letter}{i}" for letter in "am" for i in range(1, 5)}
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant):
                assert node.value not in fields or (str(path), node.value) == _OTHER, (path, node.lineno, node.value)
            if isinstance(node, ast.Subscript) and path.parts[0] != "stores":
                assert not re.search(r"(Mapping|dict)\[str, bytes\]", ast.unparse(node)), (path, node.lineno)
