"""Does a plan come out of a message's header as it went in, whichever version wrote it?"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts import plan as contract
from ratelimit_worker.contracts.plan import Continuation, Estimated, Plan, Sender, Sharing, Shedding, described
from ratelimit_worker.errors import BadInput
from ratelimit_worker.worker import fields
from tests.properties import share

PUB = "0123456789abcdef0123456789abcdef"
USUAL = Sharing(ttl_s=3600.0, join=True, max_entries=1000, max_bytes=104857600)
OF_A_PROMPT: dict[str, Any] = {
    "lane": "default",
    "deadline_s": 1700086400.25,
    "publication": PUB,
    "cost": Cost(input_tokens=100, output_tokens=256),
    "max_waiting": 1000000,
    "max_body_bytes": 16777216,
    "estimated": Estimated("default", 100),
    "sharing": USUAL,
}
OF_EVERYTHING: dict[str, Any] = {
    "lane": "openai:gpt-4o",
    "deadline_s": 1700000060.25,
    "publication": PUB,
    "tenant": "acme",
    "weight": 2.0,
    "priority": Priority.LOW,
    "cost": Cost(input_tokens=2, output_tokens=16),
    "context": "docs",
    "tags": ("a", "é"),
    "max_waiting": 1000000,
    "max_body_bytes": 16777216,
    "estimated": Estimated("gpt-4o", 2, 16),
    "timeout_s": 20.0,
    "sharing": Sharing(
        ttl_s=5.0, join=True, max_entries=1000, max_bytes=104857600, stale_ttl_s=9.0, keeps_incomplete=True
    ),
    "shedding": Shedding.RESULT,
}
#: Headers as the version before `Plan` wrote them, to the letter, and what they say.
WRITTEN_BEFORE = {
    "sent by name": (
        r'{"v": 1, "lane": "default", "tenant": "", "weight": 1.0, "class": "normal", "cost": [1.0, 356.0, 100.0, '
        r'256.0], "deadline": 1700086400.25, "context": "", "tags": [], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 1000000, "max_bytes": 16777216, '
        r'"size": ["default", 100], "ttl": 3600.0, "join": true, "cache_entries": 1000, "cache_bytes": 104857600}',
        Plan(**OF_A_PROMPT),
    ),
    "that says what it costs": (
        r'{"v": 1, "lane": "default", "tenant": "", "weight": 1.0, "class": "normal", "cost": [2, 12.0, 5.0, '
        r'7.0], "deadline": 1700086400.25, "context": "", "tags": [], "pub": "0123456789abcdef0123456789abcdef", '
        r'"max_waiting": 1000000, "max_bytes": 16777216, "at_once": true}',
        Plan(
            lane="default",
            deadline_s=1700086400.25,
            publication=PUB,
            cost=Cost(requests=2, input_tokens=5, output_tokens=7),
            max_waiting=1000000,
            max_body_bytes=16777216,
            sender=Sender.CALLER,
        ),
    ),
    "of an agent": (
        r'{"v": 1, "lane": "openai:gpt-4o", "tenant": "acme", "weight": 2.0, "class": "low", "cost": [1.0, 18.0, '
        r'2.0, 16.0], "deadline": 1700000060.25, "context": "docs", "tags": ["a", "\u00e9"], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 1000000, "max_bytes": 16777216, '
        r'"size": ["gpt-4o", 2, 16], "timeout": 20.0, "ttl": 5.0, "stale": 9.0, "join": true, '
        r'"cache_entries": 1000, "cache_bytes": 104857600, "short": true, "sheds": "raise", "at_once": true}',
        Plan(**OF_EVERYTHING | {"sender": Sender.CALLER, "shedding": Shedding.RAISE}),
    ),
    "in its lane": (
        r'{"v": 1, "lane": "openai:gpt-4o", "tenant": "acme", "weight": 2.0, "class": "low", "cost": [1.0, 18.0, '
        r'2.0, 16.0], "deadline": 1700000060.25, "context": "docs", "tags": ["a", "\u00e9"], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 1000000, "max_bytes": 16777216, '
        r'"size": ["gpt-4o", 2, 16], "timeout": 20.0, "ttl": 5.0, "stale": 9.0, "join": true, '
        r'"cache_entries": 1000, "cache_bytes": 104857600, "short": true, "sheds": "raise", "at_once": true, '
        r'"fp": "f00d"}',
        Plan(**OF_EVERYTHING | {"sender": Sender.CALLER, "shedding": Shedding.RAISE, "fingerprint": "f00d"}),
    ),
    "that goes on": (
        r'{"v": 1, "lane": "openai:gpt-4o", "tenant": "acme", "weight": 2.0, "class": "low", "cost": [1.0, 18.0, '
        r'2.0, 16.0], "deadline": 1700000060.25, "context": "docs", "tags": ["a", "\u00e9"], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 1000000, "max_bytes": 16777216, '
        r'"size": ["gpt-4o", 2, 16], "timeout": 20.0, "ttl": 5.0, "stale": 9.0, "join": true, '
        r'"cache_entries": 1000, "cache_bytes": 104857600, "short": true, "sheds": "result", "number": 3, '
        r'"again": true, "fp": "f00d", "tries": 2}',
        Plan(
            **OF_EVERYTHING,
            continuation=Continuation(attempts=3, tries=2, goes_on=True),
            fingerprint="f00d",
        ),
    ),
    "that goes on and shared nothing": (
        r'{"v": 1, "lane": "default", "tenant": "", "weight": 1.0, "class": "normal", "cost": [1.0, 356.0, 100.0, '
        r'256.0], "deadline": 1.5, "context": "", "tags": [], "pub": "0123456789abcdef0123456789abcdef", '
        r'"max_waiting": 1000000, "max_bytes": 16777216, "size": ["default", 100], "ttl": 3600.0, "join": true, '
        r'"cache_entries": 1000, "cache_bytes": 104857600, "number": 1, "again": true, "fp": null, "tries": 0}',
        Plan(**OF_A_PROMPT | {"deadline_s": 1.5}, continuation=Continuation(attempts=1, goes_on=True)),
    ),
    "that had ended": (
        r'{"v": 1, "lane": "default", "tenant": "", "weight": 1.0, "class": "normal", "cost": [1.0, 356.0, 100.0, '
        r'256.0], "deadline": 1700086400.25, "context": "", "tags": [], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 1000000, "max_bytes": 16777216, '
        r'"size": ["default", 100], "ttl": 3600.0, "join": true, "cache_entries": 1000, "cache_bytes": 104857600, '
        r'"at_once": true, "number": 0, "anew": true}',
        Plan(**OF_A_PROMPT, sender=Sender.CALLER, continuation=Continuation(attempts=0, ended=True)),
    ),
    "of a stock producer": (
        r'{"v": 1, "lane": "openai:gpt-4o", "tenant": "acme", "weight": 2.0, "class": "low", "cost": [1.0, 18.0, '
        r'2.0, 16.0], "deadline": 1700000060.25, "context": "docs", "tags": ["a", "\u00e9"], '
        r'"pub": "0123456789abcdef0123456789abcdef", "max_waiting": 0, "max_bytes": 16777216, "size": ["gpt-4o", '
        r'2, 16], "timeout": 20.0, "ttl": 5.0, "stale": 9.0, "join": true, "cache_entries": 1000, '
        r'"cache_bytes": 104857600, "short": true, "sheds": "result", "at_once": false, "fp": "beef"}',
        Plan(**OF_EVERYTHING | {"max_waiting": 0}, sender=Sender.NOBODY, fingerprint="beef"),
    ),
}


@pytest.mark.parametrize(("written", "means"), WRITTEN_BEFORE.values(), ids=WRITTEN_BEFORE)
def test_the_version_before_is_read_and_reads_what_is_written(written: str, means: Plan) -> None:
    """The header that it wrote means this plan, and this plan is written as that header, letter for letter."""
    assert Plan.decode(json.loads(written)) == means
    assert json.dumps(means.encode()) == written


TEXT = st.text(max_size=8)
COUNT = st.integers(0, 2**31 - 1)
SECONDS = st.floats(0.001, 1e9)
SHARINGS = st.builds(
    Sharing,
    ttl_s=st.floats(0, 1e9),
    join=st.booleans(),
    max_entries=COUNT,
    max_bytes=COUNT,
    stale_ttl_s=st.floats(0, 1e9),
    keeps_incomplete=st.booleans(),
)
CONTINUATIONS = st.one_of(
    st.builds(Continuation, attempts=COUNT, tries=COUNT, goes_on=st.just(True)),
    st.builds(Continuation, attempts=COUNT, ended=st.just(True)),
)
PLANS = st.builds(
    Plan,
    lane=st.text(min_size=1, max_size=8),
    deadline_s=SECONDS,
    publication=TEXT,
    tenant=TEXT,
    weight=st.floats(0.001, 1e6),
    priority=st.sampled_from(Priority),
    cost=st.builds(Cost, requests=st.floats(0, 1e9), input_tokens=COUNT, output_tokens=COUNT),
    context=TEXT,
    tags=st.lists(TEXT, max_size=3).map(tuple),
    max_waiting=COUNT,
    max_body_bytes=COUNT,
    estimated=st.none() | st.builds(Estimated, TEXT, COUNT, st.none() | COUNT),
    timeout_s=st.none() | SECONDS,
    sharing=st.none() | SHARINGS,
    shedding=st.none() | st.sampled_from(Shedding),
    sender=st.sampled_from(Sender),
    continuation=st.none() | CONTINUATIONS,
    fingerprint=st.none() | TEXT,
    trace=st.none() | TEXT,
    version=st.integers(1, 9),
    newer=st.none() | st.dictionaries(st.sampled_from(("n1", "n2")), st.integers() | TEXT, min_size=1),
)


@given(made=PLANS)
def test_what_goes_in_comes_out(made: Plan) -> None:
    """Through JSON, and with what a newer version has added to it."""
    assert Plan.decode(json.loads(json.dumps(made.encode()))) == made


def test_what_a_newer_version_adds_goes_on_with_the_call() -> None:
    """A worker that puts the call into its lane again loses nothing of it."""
    written = {**Plan(**OF_EVERYTHING).encode(), "v": 2, "affinity": {"region": "eu"}}
    read = Plan.decode(written)
    assert (read.version, read.newer) == (2, {"affinity": {"region": "eu"}})
    assert read.encode() == written


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "class": st.sampled_from(Priority).map(str),
    "cost": st.lists(st.floats(0, 1e12) | COUNT, min_size=4, max_size=4),  # no door lets more in
    "tags": st.lists(TEXT, max_size=3),
    "size": st.tuples(TEXT, COUNT).map(list) | st.tuples(TEXT, COUNT, st.floats(0, 1e15)).map(list),
    "sheds": st.sampled_from(("", "raise", "result")),
}
SCALARS = TEXT | COUNT | st.booleans() | SECONDS
ANYTHING = st.none() | st.integers() | st.floats() | st.lists(COUNT, max_size=4)
FIELDS = st.sampled_from(sorted(contract.NAMES)).flatmap(
    lambda name: st.tuples(st.just(name), VALUES.get(name, SCALARS) | ANYTHING)
)


@settings(max_examples=share(0.5))
@given(said=st.lists(FIELDS, max_size=3).map(dict))
def test_what_is_checked_can_be_read(said: dict[str, Any]) -> None:
    """Whatever header the check of a queue's messages takes is a plan, and is still one after it was written again."""
    header = json.loads(json.dumps({**Plan(**OF_A_PROMPT).encode(), **said}))
    assume(fields.wrong_plan(header) is None)
    assert fields.wrong_plan(json.loads(json.dumps(Plan.decode(header).encode()))) is None


def test_a_header_may_leave_out_what_goes_without_saying() -> None:
    """A later version may write only what is not usual; what nobody can guess it has to say."""
    least = {"lane": "default", "deadline": 1.5, "pub": PUB}
    assert fields.wrong_plan(least) is None
    assert Plan.decode(least) == Plan(lane="default", deadline_s=1.5, publication=PUB)
    for name in least:
        assert fields.wrong_plan({**least, name: None}) == f"rlw.{name} is missing"


def test_the_check_knows_every_name() -> None:
    """What the header may hold and what is checked of it are the same."""
    assert {*fields.PLAN, *fields.PLAN_MORE} == contract.NAMES


@pytest.mark.parametrize("header", [None, 5, "x", [], {}, {"lane": "l"}, {**Plan(**OF_A_PROMPT).encode(), "class": 5}])
def test_what_is_no_plan_is_refused(header: Any) -> None:
    """In one line that repeats nothing of it."""
    with pytest.raises(BadInput, match=r"^the header rlw of this message is not a plan \(\w+\)$"):
        Plan.decode(header)


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ({"context": "docs", "tags": ["a", "b"]}, ("docs", ("a", "b"))),
        ({"context": 5, "tags": 5}, ("", ())),
        ({"tags": ["a", 5]}, ("", ("a",))),
        (None, ("", ())),
        ("x", ("", ())),
    ],
)
def test_a_refused_call_is_described_by_what_can_be_read(header: Any, found: tuple[str, tuple[str, ...]]) -> None:
    """Its row in the history says what its header says, of whatever shape that is."""
    assert described(header) == found
