"""When are two calls the same? A property for each side: what may differ, and what may not."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratelimit_worker.canonical import canonical
from ratelimit_worker.fingerprint import ANY, Parameters, Scope, digest, fingerprint
from tests.builders import ROOT
from tests.properties import share

SCOPE = Scope("tasks.ask", "gpt", "of acme", "1", "docs")

TEXTS = st.text(max_size=8)
NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def of(*args: Any, function: Any = None, ignore: tuple[str, ...] = (), scope: Scope = SCOPE, **kwargs: Any) -> str:
    """The fingerprint of a call, whose arguments have gone through JSON."""
    known = ANY if function is None else Parameters.of(function, ignore)
    plain: tuple[list[Any], dict[str, Any]] = tuple(json.loads(json.dumps([args, kwargs])))
    return fingerprint(scope, known.bound(*plain))


def ask(prompt: Any, model: Any = "small", *, temperature: Any = None) -> None:
    """A function as people write them."""


def anything(first: Any, /, *rest: Any, **named: Any) -> None:
    """A function that takes what it is given."""


def as_another_writes_it(value: Any) -> Any:
    """The same value: whole numbers as floats where they are exact, lists as tuples, objects the other way round."""
    if type(value) is int and int(float(value) if abs(value) < 2**53 else 0.5) == value:
        return float(value)
    if type(value) is float and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return tuple(as_another_writes_it(one) for one in value)
    if isinstance(value, dict):
        return {name: as_another_writes_it(one) for name, one in reversed(value.items())}
    return value


def told_apart(value: Any) -> Any:
    """What must not be mixed up, in a form that Python compares as it should: True is no 1 there."""
    if isinstance(value, dict):
        return {name: told_apart(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [told_apart(one) for one in value]
    return (type(value).__name__ if isinstance(value, bool | str | None) else "number", value)


@given(prompt=TREES, model=TREES, temperature=TREES)
def test_the_same_however_it_is_written(prompt: Any, model: Any, temperature: Any) -> None:
    """By position or by name, in another order, 1 or 1.0, a list or a tuple."""
    ways = [
        of(prompt, model, function=ask, temperature=temperature),
        of(prompt, temperature=temperature, model=model, function=ask),
        of(function=ask, temperature=temperature, model=model, prompt=prompt),
        of(as_another_writes_it(prompt), as_another_writes_it(model), function=ask, temperature=temperature),
    ]
    assert len(set(ways)) == 1


@pytest.mark.long
@settings(max_examples=share(4))
@given(one=TREES, other=TREES)
def test_another_whatever_differs(one: Any, other: Any) -> None:
    """Two values are the same for us if they are for Python, but for True and 1."""
    assume(one != other or told_apart(one) != told_apart(other))
    assert of(one, function=ask) != of(other, function=ask)
    assert of(one) != of(other)
    assert of({"at": [one]}, function=ask) != of({"at": [other]}, function=ask)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        pytest.param(of("a", function=ask), of("a", "small", function=ask), True, id="a default, given or left out"),
        pytest.param(of("a", function=ask), of("a", temperature=None, function=ask), True, id="None is the default"),
        pytest.param(of("a", None, function=ask), of("a", function=ask), False, id="None is not"),
        pytest.param(of("a", x=None, function=anything), of("a", function=anything), False, id="None, without one"),
        pytest.param(of(True, function=ask), of(1, function=ask), False, id="True and 1"),
        pytest.param(of(0, function=ask), of(-0.0, function=ask), True, id="0 and -0.0"),
        pytest.param(of(2**60, function=ask), of(2**60 + 1, function=ask), False, id="large numbers"),
        pytest.param(of(2**60, function=ask), of(float(2**60), function=ask), True, id="a large number as a float"),
        pytest.param(of("1", function=ask), of(1, function=ask), False, id="a text and a number"),
        pytest.param(of("é", function=ask), of("e\u0301", function=ask), False, id="letters that look the same"),
        pytest.param(of("a ", function=ask), of("a", function=ask), False, id="a space"),
        pytest.param(of(1, 2, 3, function=anything), of(1, [2, 3], function=anything), False, id="more by position"),
        pytest.param(of(1, first=2, function=anything), of(2, function=anything), False, id="a name that is another's"),
        pytest.param(of("a", b=1), of("a", 1), False, id="of a function that nobody knows"),
    ],
)
def test_by_the_names_that_the_function_gives(one: str, other: str, same: bool) -> None:
    """Bound as Python binds them."""
    assert (one == other) is same


def test_what_is_ignored_does_not_count() -> None:
    """By name or by position, given or left out; all else does."""

    def traced(prompt: str, trace_id: str = "", **more: Any) -> None:
        """With a number that changes nothing."""

    ignored = ("trace_id", "span")
    alike = [
        of("a", function=traced, ignore=ignored),
        of("a", "x", function=traced, ignore=ignored),
        of("a", trace_id="y", span=3, function=traced, ignore=ignored),
    ]
    assert len(set(alike)) == 1
    assert of("a", other=3, function=traced, ignore=ignored) != alike[0]
    assert of("a", trace_id="y", function=traced) != of("a", function=traced)


@pytest.mark.parametrize("part", Scope._fields)
def test_each_part_of_the_scope_counts(part: str) -> None:
    """Task, lane, namespace, version and context; none can be taken for the next."""
    assert of("a", scope=SCOPE._replace(**{part: "another"})) != of("a")
    moved = Scope(*("ab" if name == part else "" for name in Scope._fields))
    assert len({of("a", scope=moved), of("a", scope=Scope("", "", "", "", ""))}) == 2


def test_a_default_that_is_no_json_is_left_out() -> None:
    """Whoever gives it says something that nobody else does."""

    def odd(prompt: str, sink: Any = sys.stderr) -> None:
        """With a default that cannot be sent."""

    known = Parameters.of(odd, plain=lambda default: json.loads(json.dumps(default)))
    assert known.bound(["a"], {}) == {"prompt": "a"}


def wrapped(function: Any) -> Any:
    """As a decorator of somebody's: it has a default of its own, and gives the second argument first."""

    @functools.wraps(function)
    def wrapper(second: Any, *rest: Any, **named: Any) -> Any:
        return function(*rest, second, **{"temperature": 1.0, **named})

    return wrapper


def test_a_wrapper_is_known_by_what_it_takes_itself() -> None:
    """By the names and defaults of what it wraps two calls would be the same that are not."""
    other = wrapped(ask)
    assert of("a", function=other) != of("a", temperature=None, function=other)
    assert of("a", function=other) != of(prompt="a", function=other)
    assert of("a", function=other) == of(second="a", function=other)
    assert Parameters.of(functools.cache(ask)).positional == ("prompt", "model")
    assert Parameters.of(max) == ANY


def test_celerys_wrappers_hand_on_what_they_get() -> None:
    """So a task is known by what its function takes, however it retries."""
    app = Celery("wrapped", set_as_current=False)

    def bound(self: Any, prompt: Any, model: Any = "small") -> None:
        """Bound to its task."""

    tasks = [
        app.task(ask, autoretry_for=(ValueError,), name="ask"),
        app.task(bound, bind=True, autoretry_for=(ValueError,), name="bound"),
    ]
    app.finalize()
    for task in tasks:
        assert hasattr(task, "_orig_run"), "Celery has wrapped it"
        assert Parameters.of(task.run).positional == ("prompt", "model")


def test_self_can_be_left_out() -> None:
    """Of a method whose object is known by other means."""
    known = Parameters.of(ask).without_first()
    assert known.bound(["large"], {}) == {"model": "large", "temperature": None}


def test_what_a_message_asks_is_what_it_was_in_versions_before() -> None:
    """A call that is made again under its id, by another version, is the same one."""
    assert digest("tasks.ask", "gpt", [["a", 1.0], {"b": [True, None]}]) == (
        "9b248b6e0e6401c688d593ecc6949b380a859c999202a2b4a204c392b3806ab1"
    )


PROCESS = """
import json, sys
from ratelimit_worker.fingerprint import Parameters, Scope, fingerprint
def ask(prompt, model="small", *, temperature=None, **more): pass
known = Parameters.of(ask, ("trace_id", "span"))
for line in sys.stdin:
    args, kwargs = json.loads(line)
    print(fingerprint(Scope("t", "l", "n"), known.bound(args, kwargs)))
"""


def test_every_process_comes_to_the_same() -> None:
    """10,000 trees of arguments, in two processes with other hash seeds."""
    values: list[Any] = ["", "a", "é", 0, 1, 1.5, -2, True, None, [], {}, [1, "b"], {"x": {"y": [None]}}]
    trees = []
    for number in range(10_000):
        at, chosen = number, []
        for _ in range(4):
            at, which = divmod(at * 7 + number, len(values))
            chosen.append(values[which])
        trees.append([[chosen[0], {"b": chosen[1], "a": chosen[2]}], {"z": chosen[3], "n": number, "trace_id": number}])
    text = "\n".join(map(json.dumps, trees))
    told = []
    for seed in ("1", "2"):
        ran = subprocess.run(
            [sys.executable, "-c", PROCESS],
            input=text,
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(ran.stdout.split())
    assert told[0] == told[1]
    assert len(set(told[0])) == 10_000


def test_canonical_changes_no_value() -> None:
    """It is another spelling."""
    assert canonical({"a": (1.0, 2.5, [True])}) == {"a": [1, 2.5, [True]]}
