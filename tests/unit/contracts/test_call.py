"""Is a call the same for Python and for the scripts, whether it waits on a queue or in process?"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ratelimit_worker.calls import Cost, Priority
from ratelimit_worker.contracts.call import US, Asked, Claim, Entry, Place, Record, Sent
from ratelimit_worker.contracts.plan import Continuation, Estimated, Plan, Sharing, Shedding

PLAN = Plan(
    lane="gpt",
    deadline_s=1_700_000_060.0,
    publication="p",
    tenant="acme",
    weight=2.0,
    priority=Priority.LOW,
    cost=Cost(input_tokens=2, output_tokens=16),
    context="docs",
    tags=("a",),
    max_waiting=7,
    estimated=Estimated("m"),
    sharing=Sharing(
        ttl_s=5.0,
        join=True,
        max_entries=10,
        max_bytes=1000,
        stale_ttl_s=9.0,
        revalidate_s=7.0,
        refresh=True,
        stores=False,
        heirs_ask=True,
    ),
    shedding=Shedding.RESULT,
    fingerprint="f",
)


def record(**said: Any) -> list[Any]:
    """A record as the scripts pack it; `said`: its fields by the name of their place."""
    fields: list[Any] = [0] * len(Place)
    usual = {"VERSION": 1, "LANE": "gpt", "QUEUE": "q", "CLASS": "low", "TENANT": "t", "COST": [1, 18, 2, 16.5]}
    usual |= {"TICKET": [1, 2], "PUB": "p", "ACCEPTED": 3 * US, "DEADLINE": 9 * US, "SINCE": 4 * US, "RELEASE": 6}
    for name, value in {**usual, "CLAIM": False, "DEGRADES": False, "PARENTS": False, "CREW": "c", **said}.items():
        fields[Place[name] - 1] = value
    return fields


def test_a_claim_is_packed_as_the_scripts_read_it() -> None:
    """Each of its parts in the place that `Asked` names, for the scripts too (contract.lua)."""
    claim = Claim.of(PLAN, "shop.ask", at_once=True)
    assert claim is not None
    values = msgspec.msgpack.decode(claim.packed())
    assert {place.name: values[place - 1] for place in Asked} == {
        "FP": "f",
        "TTL_MS": 5000,
        "JOIN": 1,
        "AT_ONCE": 1,
        "AGAIN": 0,
        "ENTRIES": 10,
        "BYTES": 1000,
        "CONTEXT": "docs",
        "TAGS": '["a"]',
        "FUNC": "shop.ask",
        "STALE_MS": 9000,
        "ANSWER": "",
        "REFRESH": 1,
        "UNKEPT": 1,
        "HEIRS": 1,
        "REVALIDATE_MS": 7000,
    }
    assert len(values) == len(Asked)


def test_a_call_that_goes_on_keeps_its_claim_and_asks_for_no_answer() -> None:
    """One that shares nothing, or is alone with what it asks, claims nothing."""
    goes_on = msgspec.structs.replace(PLAN, continuation=Continuation(attempts=1, goes_on=True))
    claim = Claim.of(goes_on, "t", at_once=True)
    assert claim is not None
    assert (claim.again, claim.at_once) == (True, False)
    for alone in ({"sharing": None}, {"fingerprint": None}):
        assert Claim.of(msgspec.structs.replace(PLAN, **alone), "t", at_once=True) is None


def test_a_queue_and_a_process_put_the_same_call_in() -> None:
    """One builder: they differ in where the call waits and in what travels with it."""
    plan = msgspec.structs.replace(PLAN, continuation=Continuation(attempts=3, tries=2, goes_on=True))
    claim = Claim.of(plan, "t", at_once=True)
    common: dict[str, Any] = {"left_s": 60.0, "due_in_s": 1.5, "claim": claim}
    queued = Entry.of(plan, Sent("q", "r", b"message", b"body"), publication="p:asks:o", **common).args()
    here = Entry.of(plan, Sent("in-process", "r-2", b'{"delivery_tag": "@"}', b""), **common).args()
    apart = [place for place, (one, other) in enumerate(zip(queued, here, strict=True)) if one != other]
    assert [queued[place] for place in apart] == ["q", "r", "p:asks:o", b"message", b"body"]
    assert [here[place] for place in apart] == ["in-process", "r-2", "p", b'{"delivery_tag": "@"}', b""]


@pytest.mark.parametrize(("left_s", "due_in_s"), [(-5.0, -1.0), (0.0, 0.0)])
def test_a_deadline_that_has_passed_is_the_lanes_to_tell(left_s: float, due_in_s: float) -> None:
    """The call goes in with a millisecond left, and is due now."""
    entry = Entry.of(PLAN, Sent("q", "r", b"m", b""), left_s=left_s, due_in_s=due_in_s)
    assert (entry.deadline_in_s, entry.due_in_s) == (0.001, 0.0)


@pytest.mark.parametrize("length", [Place.BORN, Place.CLAIM, Place.PARENTS, Place.CREW, len(Place) + 2])
def test_a_record_of_any_version_is_read(length: int) -> None:
    """Older versions knew fewer fields, newer ones append theirs."""
    whole = [*record(CLAIM="f"), "newer", 5][:length]
    read = Record.decode("r~1", msgspec.msgpack.encode(whole))
    assert read == Record(
        ref="r~1",
        lane="gpt",
        queue="q",
        priority="low",
        tenant="t",
        accepted_s=3.0,
        deadline_s=9.0,
        release=6,
        tries=0,
        lost=0,
        since_s=4.0,
        number=0,
        claim="f" if length >= Place.CLAIM else "",
        cost=(1.0, 18.0, 2.0, 16.5),
    )
    assert (read.tag, read.tokens) == ("r~1.6", 18)


def test_a_record_with_a_hole_is_read() -> None:
    """Lua packs an array with a hole as a map."""
    holed = {place: value for place, value in enumerate(record(), 1) if place != Place.PARENTS}
    assert Record.decode("r", msgspec.msgpack.encode(holed)) == Record.decode("r", msgspec.msgpack.encode(record()))


@pytest.mark.parametrize(
    "packed",
    [
        None,
        b"",
        b"\xc1",
        b"junk",
        *map(msgspec.msgpack.encode, ([1, 2], {"a": 1}, 5, record(COST=5), record(SINCE="x"))),
    ],
)
def test_what_cannot_be_read_is_no_record(packed: bytes | None) -> None:
    """As the scripts have it: whoever looks at it must not fail, again and again."""
    assert Record.decode("r", packed) is None
