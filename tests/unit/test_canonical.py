"""Is what is the same written the same, and nothing else? Plain data of every kind, in every process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import PurePosixPath
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratelimit_worker.canonical import Unwritable, canonical
from tests.builders import ROOT
from tests.properties import share


@dataclass
class Question:
    """A record as people write them."""

    text: Any
    more: Any = None


@dataclass(slots=True)
class Slotted:
    """The same without a dict."""

    text: Any


class Model(pydantic.BaseModel):
    """A model of pydantic, which takes what it is given."""

    model_config = pydantic.ConfigDict(extra="allow")

    text: Any
    _own: Any = pydantic.PrivateAttr(None)


class Struct(msgspec.Struct):
    """One of msgspec's."""

    text: Any


class Colour(Enum):
    """Plain."""

    RED = "red"


class Text(StrEnum):
    """That is a text too."""

    RED = "red"


class Number(IntEnum):
    """That is a number too."""

    ONE = 1


Pair = namedtuple("Pair", "text more")

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=6)
    | st.binary(max_size=4)
    | st.datetimes(timezones=st.sampled_from([None, UTC, ZoneInfo("Europe/Berlin")]))
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.sampled_from([Colour.RED, Text.RED, Number.ONE, PurePosixPath("a")])
)
KEYS = st.text(max_size=4) | st.just("$") | st.integers(0, 2) | st.booleans()
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.frozensets(SCALARS, max_size=3)
        | st.builds(Question, inner, inner)
        | st.builds(Slotted, inner)
        | st.builds(Struct, inner)
        | st.builds(lambda text, more: Model.model_validate({"text": text, "more": more}), inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=10,
)


def written(value: Any) -> str:
    return json.dumps(canonical(value), sort_keys=True)


def as_another_writes_it(value: Any) -> Any:
    """The same value in other words: whole numbers as floats where they are exact, lists as tuples, dicts backwards."""
    kind = type(value)
    if kind is int and abs(value) < 2**53:
        return float(value)
    if kind is float and value.is_integer():
        return int(value)
    if kind is list:
        return tuple(map(as_another_writes_it, value))
    if kind is dict:
        return {name: as_another_writes_it(one) for name, one in reversed(value.items())}
    if kind is frozenset:
        return {*sorted(value, key=repr)}
    if kind is bytes:
        return bytearray(value)
    if kind is Question:
        return Question(more=as_another_writes_it(value.more), text=as_another_writes_it(value.text))
    if kind is Model:
        return Model.model_validate({name: as_another_writes_it(getattr(value, name)) for name in ("more", "text")})
    return value


def told_apart(value: Any) -> Any:
    """What must not be mixed up, in a form that Python compares as it should: 1 is 1.0 and no True, a class counts."""
    kind = type(value)
    if kind is bool or value is None:
        return (kind.__name__, value)
    if kind is int or kind is float:
        return ("number", value)
    if kind is list or kind is tuple:
        return ("list", [told_apart(one) for one in value])
    if kind is dict:
        # keys that are one in a dict of Python's (1 and True) never meet in one
        return ("dict", sorted((repr(told_apart(name)), told_apart(one)) for name, one in value.items()).__repr__())
    if kind is frozenset or kind is set:
        return ("set", sorted(repr(told_apart(one)) for one in value))
    if kind in (Question, Slotted, Struct, Pair, Model):
        names = ("text", "more") if hasattr(value, "more") else ("text",)
        return (kind.__name__, [told_apart(getattr(value, name)) for name in names])
    if isinstance(value, Enum):
        return (kind.__name__, value.name)
    if isinstance(value, Decimal | datetime):
        return (kind.__name__, str(value), str(getattr(value, "tzinfo", None)), getattr(value, "fold", 0))
    return (kind.__name__, value)


@settings(max_examples=share(2))
@given(tree=TREES)
def test_the_same_however_it_is_written(tree: Any) -> None:
    """1 and 1.0, a list and a tuple, keys and sets in any order, bytes and a bytearray."""
    assert written(tree) == written(as_another_writes_it(tree))


@pytest.mark.long
@settings(max_examples=share(2))
@given(one=TREES, other=TREES)
def test_another_whatever_differs(one: Any, other: Any) -> None:
    """In any kind of data, at any depth."""
    assume(repr(told_apart(one)) != repr(told_apart(other)))
    assume(told_apart(one) != told_apart(other))
    assert written(one) != written(other)
    assert written({"at": [one]}) != written({"at": [other]})


BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (0, False),
        ("1", 1),
        ("a", b"a"),
        (None, "None"),
        (Decimal("1"), 1),
        (Decimal("1.0"), Decimal("1.00")),
        (date(2026, 1, 1), datetime(2026, 1, 1)),
        (datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2026, 1, 1, tzinfo=BERLIN), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2026, 10, 25, 2, 30), datetime(2026, 10, 25, 2, 30, fold=1)),
        (time(3), time(3, fold=1)),
        (timedelta(seconds=1), 1),
        (UUID(int=1), UUID(int=1).hex),
        (PurePosixPath("a"), "a"),
        ({1}, [1]),
        ({1: "a"}, {"1": "a"}),
        ({1: "a"}, {True: "a"}),
        ({"$": ["set", [1]]}, {1}),
        ({"$": ["dict", [["a", 1]]]}, {"a": 1}),
        (Text.RED, "red"),
        (Text.RED, Colour.RED),
        (Number.ONE, 1),
        (Question("a"), Slotted("a")),
        (Question("a"), {"text": "a", "more": None}),
        (Pair("a", 1), ("a", 1)),
        (Model(text="a"), Model.model_validate({"text": "a", "more": 1})),
        (range(3), range(4)),
        (1j, 1),
    ],
    ids=repr,
)
def test_kinds_are_not_mixed_up(one: Any, other: Any) -> None:
    """Though Python takes some of them for equal."""
    assert written(one) != written(other)
    assert written([one]) != written([other])


def test_all_that_a_record_holds_counts() -> None:
    """What was put into it beside its fields, and what it keeps to itself."""
    plain, more = Question("a"), Question("a")
    more.note = "b"  # type: ignore[attr-defined]
    assert written(plain) != written(more)
    hidden, other = Model(text="a"), Model(text="a")
    hidden._own = 1
    assert written(hidden) != written(other)

    @dataclass
    class Counted:
        text: str
        seen: int = field(default=0, compare=False, repr=False)

    assert written(Counted("a", 1)) != written(Counted("a", 2))


class Odd:
    """No record."""


@pytest.mark.parametrize(
    "value",
    [Odd(), object(), len, OrderedDict(a=1), iter([]), memoryview(b"a"), Odd],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_is_no_plain_data_is_refused_by_its_class(value: Any) -> None:
    """Wherever it is, and nothing of what it holds is told."""
    for held in (value, [value], {"a": value}, Question(value), Model(text=value), Struct(value)):
        with pytest.raises(Unwritable) as refused:
            canonical(held)
        assert str(refused.value) == type(value).__name__


def test_numbers_of_numpy() -> None:
    """By their value, as Python's; arrays, and times that Python has no class for, are refused."""
    numpy = pytest.importorskip("numpy")
    for number, plain in (
        (numpy.int64(3), 3),
        (numpy.float64(1.5), 1.5),
        (numpy.float32(2), 2),
        (numpy.bool_(1), True),
    ):
        assert written(number) == written(plain)
    assert written(numpy.str_("a")) == written("a")
    for other in (
        numpy.arange(3),
        numpy.array(3),
        numpy.datetime64("2026-01-01T00:00:00.000000001"),
        numpy.longdouble(1),
    ):
        with pytest.raises(Unwritable):
            canonical(other)


def tree(number: int, deep: int = 3) -> Any:
    """One of many trees of arguments, by its number: the same in every process, and no two alike."""
    draw = random.Random(number)

    def some(deep: int) -> Any:
        if deep == 0 or draw.random() < 0.3:
            return draw.choice(
                [
                    draw.randrange(100),
                    draw.random(),
                    str(draw.random()),
                    None,
                    draw.random() < 0.5,
                    datetime.fromtimestamp(draw.randrange(10**9), UTC),
                    Decimal(draw.randrange(1000)) / 8,
                    draw.randbytes(3),
                    UUID(int=draw.getrandbits(128)),
                    Text.RED,
                ]
            )
        parts = [some(deep - 1) for _ in range(draw.randrange(4))]
        return draw.choice(
            [
                lambda: parts,
                lambda: {f"k{at}": one for at, one in enumerate(parts)},
                lambda: dict(enumerate(parts)),
                lambda: {written(one) for one in parts},
                lambda: Question(parts, number),
                lambda: Struct(parts),
                lambda: Model.model_validate({"text": parts, "more": number}),
            ]
        )()

    return [number, some(deep)]


def altered(value: Any, draw: random.Random) -> Any:
    """Another value, which differs at one place, at any depth."""
    kind = type(value)
    if value and kind is list:
        at = draw.randrange(len(value))
        return [*value[:at], altered(value[at], draw), *value[at + 1 :]]
    if value and kind is dict:
        name = draw.choice(list(value))
        return {**value, name: altered(value[name], draw)}
    if kind is Struct:
        return Struct(altered(value.text, draw))
    if kind is Question or kind is Model:
        return kind(text=altered(value.text, draw), more=value.more)
    if kind is bool:
        return int(value)
    if kind is int:
        return str(value)
    return f"{value} " if kind is str else [value]


PROCESS = """
import random
from tests.unit.test_canonical import altered, as_another_writes_it, tree
from ratelimit_worker.fingerprint import Parameters, Scope, fingerprint
def ask(first, second, *, third=None): pass
known = Parameters.of(ask)
def key(*args, **kwargs): return fingerprint(Scope("t", "l", "n"), known.bound(args, kwargs))
for number in range(10_000):
    first, second = tree(number)
    same = key(third=None, second=as_another_writes_it(second), first=float(first))
    print(key(first, second=second), same, key(first, altered(second, random.Random(number))))
"""


@pytest.mark.long
def test_every_process_comes_to_the_same() -> None:
    """10,000 trees of arguments, in two processes with other hash seeds: the same keys in both. Written otherwise a
    tree has the same key, and altered at one place another, which no other tree has."""
    told = []
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", PROCESS],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        told.append([line.split() for line in ran.stdout.splitlines()])
    assert told[0] == told[1]
    assert len(told[0]) == 10_000
    assert [(own, same) for own, same, _ in told[0] if own != same] == []
    assert len({key for own, _, other in told[0] for key in (own, other)}) == 20_000


def test_whole_numbers_of_any_length_are_written() -> None:
    """Python writes none of more than 4,300 digits as decimals: they count by their hexadecimal ones."""
    numbers = [10**5_000, 10**5_000 + 1, -(10**5_000), 10**4_000, 7]
    assert len({json.dumps(canonical(number)) for number in numbers}) == len(numbers)
    assert json.dumps(canonical({10**5_000, 1})) == json.dumps(canonical({1, 10**5_000}))
    assert canonical([10**3_000]) == [10**3_000]
