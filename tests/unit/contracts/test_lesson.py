"""What one attempt taught: its words and bytes for the scripts, which the versions before and after read as well."""

from __future__ import annotations

from math import isclose

import msgspec
import pytest

from ratelimit_worker.calls import Category, Failure, Response, Snapshot, Usage
from ratelimit_worker.contracts.lesson import Lesson, Reading, Ticket, Verdict, Witness
from ratelimit_worker.flow.call import observe

TICKET = msgspec.msgpack.encode([7, 1_700_000_000_000_000, 7.0, 70.0, 50.0, 20.0])
AT_S = 1_700_000_001.5
COST = (1.0, 30.0, 20.0, 10.0)
HEADERS = {
    "x-ratelimit-limit-requests": "100",
    "x-ratelimit-remaining-requests": "99",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "0",
    "x-ratelimit-reset-tokens": "6s",
}
OK = Response(status=200, headers=HEADERS, body={})
LIMITED = "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 1000, Used 999"
REFUSED = Response(status=429, headers=HEADERS, body={"error": {"message": LIMITED}})
CROWDED = Response(status=429, headers={}, body={"error": {"message": "too many concurrent requests"}})
WITNESS = Witness(1, 2, 3, True, False, 4.0, 5.0)
DISCOUNTED = WITNESS._replace(discounted=True)

#: As the version before this value wrote them.
BEFORE = (
    "9bcb41d954fc40600000c42f9607cf00060a24181e4000cb401c000000000000cb4051800000000000cb4049000000000000"
    "cb4034000000000000"
)
SNAPSHOTS = (
    "82a8726571756573747394cb4059000000000000cb404e000000000000cb4058c00000000000cb3ff0000000000000"
    "a6746f6b656e7394cb408f400000000000cb404e000000000000cb0000000000000000cb4018000000000000"
)
PAID = "94cb3ff0000000000000cb403e000000000000cb4034000000000000cb4024000000000000"
SEEN_BY = "97010203c3c2cb4010000000000000cb4014000000000000"


def failed(category: Category, retry_after_s: float | None = None) -> Failure:
    return Failure(category=category, cause="x", retry_after_s=retry_after_s)


def lesson(
    verdict: Verdict,
    response: Response | None,
    failure: Failure | None,
    older: int = 0,
    witness: Witness | None = None,
) -> Lesson:
    return Lesson(
        verdict=verdict,
        at_s=AT_S,
        ticket=TICKET,
        failure=failure,
        reading=observe.read(response, verdict, AT_S),
        cost=COST,
        older=older,
        witness=witness,
    )


LESSONS = [
    (
        lesson("good", OK, None, witness=Witness(1, 2, 3)),
        "good",
        f"a4676f6f64{SNAPSHOTS}c0c0{PAID}008097010203c2c2cb0000000000000000cb0000000000000000c2",
    ),
    (
        lesson("plain", None, None, witness=Witness(1, 2, 3)),
        "plain",
        f"a4676f6f6480c0c0{PAID}008097010203c2c2cb0000000000000000cb0000000000000000c2",
    ),
    (
        lesson("refused", REFUSED, failed(Category.RATE_LIMITED, 2.5), 3, WITNESS),
        "refused.2",
        f"a772656675736564{SNAPSHOTS}cb4004000000000000a6746f6b656e73{PAID}0381a6746f6b656e73cb4030aaaaaaaaaaab{SEEN_BY}c2",
    ),
    (
        lesson("refused", CROWDED, failed(Category.RATE_LIMITED), 0, WITNESS),
        "refused.0",
        f"a77265667573656480c0c0{PAID}0080{SEEN_BY}c3",
    ),
    (lesson("refused", None, failed(Category.RATE_LIMITED)), "refused", f"a77265667573656480c0c0{PAID}0080c0c2"),
    (lesson("sick", None, failed(Category.OVERLOADED), 2, WITNESS), "sick", f"a47369636b80c0c0{PAID}0280{SEEN_BY}c2"),
    (
        lesson("sick", None, failed(Category.OVERLOADED), 2, DISCOUNTED),
        "sick.1",
        f"a47369636b80c0c0{PAID}028097010203c3c3cb4010000000000000cb4014000000000000c2",
    ),
    (lesson("quota", None, failed(Category.QUOTA_EXHAUSTED)), "quota", f"a571756f746180c0c0{PAID}0080c0c2"),
    (lesson("barred", None, failed(Category.AUTH)), "barred", f"a662617272656480c0c0{PAID}0080c0c2"),
    (lesson("other", OK, failed(Category.INVALID_REQUEST)), "other", f"a56f74686572{SNAPSHOTS}c0c0{PAID}0080c0c2"),
]


@pytest.mark.parametrize(("taught", "word", "bytes_before"), LESSONS, ids=[word for _, word, _ in LESSONS])
def test_word_and_observation_are_those_of_the_version_before(taught: Lesson, word: str, bytes_before: str) -> None:
    """The scripts and an older tuner read what this version writes."""
    assert taught.word() == word
    assert taught.observation().hex() == BEFORE + bytes_before


@pytest.mark.parametrize(("taught", "word", "bytes_before"), LESSONS, ids=[word for _, word, _ in LESSONS])
def test_what_the_tuner_reads_is_what_the_attempt_taught(taught: Lesson, word: str, bytes_before: str) -> None:
    """Nothing is lost on the way through the lane's list."""
    seen = observe.decode(bytes.fromhex(BEFORE + bytes_before))
    assert (seen.at, seen.ticket, seen.cost) == (AT_S, Ticket.decode(TICKET), COST)
    assert seen.good == (taught.verdict in {"good", "plain"})
    named = ("refused", "sick", "quota", "barred")
    assert [getattr(seen, name) for name in named] == [taught.verdict == name for name in named]
    assert seen.snapshots == taught.reading.snapshots
    assert (seen.older, seen.witness, seen.crowded) == (taught.older, taught.witness, taught.reading.crowded)
    assert (seen.refused_dimension, seen.stated) == (taught.reading.refused_in, taught.reading.stated)
    assert seen.retry_after_s == (taught.failure.retry_after_s if taught.failure else None)


def test_an_attempt_that_taught_nothing_leaves_no_observation() -> None:
    """A lane whose calls fail for reasons of their own does not fill its list."""
    taught = Lesson()
    assert (taught.word(), taught.observation(), taught.gate_s) == ("other", b"", 0.0)
    assert (taught.used(), taught.tried()) == (b"", b"")


def test_an_older_versions_observation_is_read() -> None:
    """One that knew neither cost nor witnesses."""
    raw = msgspec.msgpack.encode([AT_S, TICKET, "sick", {}, None, None])
    seen = observe.decode(raw)
    assert (seen.sick, seen.cost, seen.witness, seen.older) == (True, (1.0, 0.0, 0.0, 0.0), None, 0)


def test_headers_and_body_are_read_once_into_a_reading() -> None:
    """Of an answer only what is left; of a refusal also where, and what it states."""
    assert observe.read(None, "good", AT_S) == Reading()
    told = {
        "requests": Snapshot(limit=100, window_s=60, remaining=99, reset_s=1.0),
        "tokens": Snapshot(limit=1000, window_s=60, remaining=0, reset_s=6.0),
    }
    assert observe.read(REFUSED, "good", AT_S) == Reading(snapshots=told)
    refused = observe.read(REFUSED, "refused", AT_S)
    assert (refused.snapshots, refused.refused_in, refused.crowded) == (told, "tokens", False)
    assert isclose(refused.stated["tokens"], 1000 / 60)
    assert observe.read(CROWDED, "refused", AT_S).crowded


@pytest.mark.parametrize(
    ("response", "usage", "reconcile", "packed"),
    [
        (None, Usage(10, 5), None, "94000f0a05"),
        (OK, Usage(10, 5), True, "9401ff0a05"),
        (None, Usage(10, None), None, "94000a0aff"),
        (None, None, None, ""),
        (None, Usage(1, 1), False, ""),
        (None, Usage(None, None), None, ""),
    ],
)
def test_what_was_used(response: Response | None, usage: Usage | None, reconcile: bool | None, packed: str) -> None:
    """The bytes that settle.lua reads; a dimension of which headers tell what is left is theirs alone."""
    taught = Lesson(reading=observe.read(response, "good", AT_S), usage=usage, reconcile=reconcile)
    assert taught.used().hex() == packed


def test_a_failure_that_cost_a_try_goes_along_with_answers() -> None:
    """For the record of functions."""
    assert Lesson(failed_task="t", answered={"a": 1, "b": 300}).tried().hex() == "92a17482a16101a162cd012c"


def test_the_gate_is_what_the_provider_asked_for() -> None:
    """Seconds; none where it asked for nothing."""
    assert lesson("refused", REFUSED, failed(Category.RATE_LIMITED, 2.5)).gate_s == 2.5
    assert lesson("sick", None, failed(Category.OVERLOADED)).gate_s == 0.0
