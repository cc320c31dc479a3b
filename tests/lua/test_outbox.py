"""The outbox, on a real Valkey."""

from __future__ import annotations

import base64
import json
from dataclasses import asdict, replace
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from ratelimit_worker.calls import SCHEMA_VERSION, Attempt, Category, Outcome, Priority
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.stores.outbox import Outbox, Undecodable, decode, encode
from tests.builders import attempt

pytestmark = pytest.mark.server


def as_map(**changes: Any) -> dict[str, Any]:
    """An entry as some version of the product might have written it."""
    return {**msgspec.to_builtins(asdict(attempt())), "v": SCHEMA_VERSION, **changes}


def packed(**changes: Any) -> bytes:
    """The same, as bytes."""
    return msgspec.msgpack.encode(as_map(**changes))


@pytest.fixture
def outbox(redis_client: redis.Redis) -> Outbox:
    return Outbox(redis_client, claim_idle_ms=3_600_000)


_texts = st.text(st.characters(), max_size=20)  # half surrogate pairs and NUL included


@given(
    st.builds(
        Attempt,
        call_id=_texts,
        number=st.integers(1, 2**31 - 1),
        outcome=st.sampled_from(Outcome),
        started_at=st.floats(0, 4e9),
        finished_at=st.floats(0, 4e9),
        waited_s=st.floats(allow_nan=False),
        tags=st.lists(_texts).map(tuple),
        priority=st.sampled_from(Priority),
        category=st.none() | st.sampled_from(Category),
        input_tokens=st.none() | st.integers(),
        cause=st.none() | _texts,
        lane=_texts,
        task=_texts,
    )
)
def test_whatever_is_encoded_can_be_decoded(original: Attempt) -> None:
    """Encoding never fails; what is sane comes back as it was."""
    back = decode(encode(original))
    assert decode(encode(back)) == back
    assert (back.number, back.outcome, back.category) == (original.number, original.outcome, original.category)
    if "\ud800" not in original.call_id and original.call_id.isascii() and "\0" not in original.call_id:
        assert back.call_id == original.call_id


def test_unknown_fields_are_ignored() -> None:
    """A later revision of the same version may add fields."""
    assert decode(packed(colour="red")) == attempt()


@pytest.mark.parametrize(
    "data", [b"", b"\xff\x00", b"{}", b"x" * 100, packed(v="one"), packed(number="first"), b"\x91" * 100_000]
)
def test_garbage_is_undecodable(data: bytes) -> None:
    """One error for all that is no attempt."""
    with pytest.raises(Undecodable):
        decode(data)


def test_entries_are_read_in_order_and_stay_until_committed(outbox: Outbox) -> None:
    """Reading takes nothing away; committing does."""
    attempts = [attempt(str(i)) for i in range(5)]
    outbox.append(attempts)
    first = outbox.read(3)
    rest = outbox.read(10)
    assert [row for _, row in first + rest] == attempts
    assert outbox.backlog() == 5
    outbox.commit([entry_id for entry_id, _ in first])
    assert outbox.backlog() == 2
    outbox.commit([entry_id for entry_id, _ in rest])
    assert (outbox.backlog(), outbox.read(10)) == (0, [])


def test_the_wire_contract_with_settle(outbox: Outbox, redis_client: redis.Redis) -> None:
    """SETTLE's own XADD, made before any recorder ever ran, is read."""
    redis_client.xadd("rlw:outbox", {"a": encode(attempt())})
    assert [row for _, row in outbox.read(10)] == [attempt()]


@pytest.mark.parametrize("protocol", [2, 3])
def test_both_redis_protocols(redis_server: str, outbox: Outbox, protocol: int) -> None:
    """RESP3 gives the same entries in another shape."""
    outbox.append([attempt()])
    with redis.Redis(unix_socket_path=redis_server, protocol=protocol) as client:
        assert [row for _, row in Outbox(client).read(10, block_ms=10)] == [attempt()]
        assert Outbox(client, claim_idle_ms=3_600_000).read(10, block_ms=10) == []


def test_entries_of_a_dead_reader_go_to_the_next(redis_client: redis.Redis) -> None:
    """What was read and never committed is read again once it is old enough, and not before."""
    dead = Outbox(redis_client, claim_idle_ms=3_600_000)
    dead.append([attempt("a"), attempt("b")])
    read = dead.read(10)
    assert Outbox(redis_client, claim_idle_ms=3_600_000).read(10) == []
    assert Outbox(redis_client, claim_idle_ms=0).read(10) == read


def test_entries_given_back_are_next(outbox: Outbox) -> None:
    """They come at once, and before newer ones."""
    outbox.append([attempt("a"), attempt("b")])
    first = outbox.read(1)
    outbox.give_back([entry_id for entry_id, _ in first])
    assert outbox.read(1) == first
    assert [row.call_id for _, row in outbox.read(1) if isinstance(row, Attempt)] == ["b"]


def test_garbage_is_set_aside_and_stops_nobody(
    outbox: Outbox, redis_client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are no attempt, and entries without the field, go to a list that a person can read."""
    redis_client.xadd("rlw:outbox", {"a": b"\xff" * 100_000})
    redis_client.xadd("rlw:outbox", {"b": "x"})
    outbox.append([attempt()])
    assert [row for _, row in outbox.read(10)] == [attempt()]
    assert (outbox.backlog(), outbox.bad_count()) == (1, 2)
    no_field, no_attempt = (json.loads(raw) for raw in redis_client.lrange("rlw:outbox:bad", 0, -1))
    assert (no_field["why"], base64.b64decode(no_field["raw"])) == ("it has no field 'a'", b"b=x")
    assert len(base64.b64decode(no_attempt["raw"])) == 4096
    assert caplog.messages == ["outbox.set_aside"] * 2


def test_what_was_set_aside_is_bounded(outbox: Outbox, redis_client: redis.Redis) -> None:
    """The list keeps the last thousand, the counter counts all."""
    with redis_client.pipeline() as pipe:
        for _ in range(1_100):
            pipe.xadd("rlw:outbox", {"a": b"?"})
        pipe.execute()
    assert outbox.read(2_000) == []
    assert redis_client.llen("rlw:outbox:bad") == 1_000
    assert outbox.bad_count() == 1_100


def test_a_newer_version_is_left_alone(outbox: Outbox, redis_client: redis.Redis) -> None:
    """The entry stays in the outbox, in nobody's way, for a worker of its version."""
    redis_client.xadd("rlw:outbox", {"a": packed(v=SCHEMA_VERSION + 1, number="a new kind of number")})
    outbox.append([attempt()])
    read = outbox.read(10)
    assert [row for _, row in read] == [attempt()]
    outbox.commit([read[0][0]])
    assert (outbox.backlog(), outbox.bad_count()) == (1, 0)
    pending = redis_client.xpending("rlw:outbox", "recorder")
    assert pending["pending"] == 1


def test_the_bound_is_kept_and_announced(redis_client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Near the bound `full` says so; beyond it the oldest go (about, by whole nodes), and the loss is logged."""
    outbox = Outbox(redis_client, max_len=1_000, claim_idle_ms=0)
    outbox.append([attempt(str(i)) for i in range(899)])
    assert not outbox.full()
    outbox.append([attempt("900")])
    assert outbox.full()
    outbox.read(100)
    outbox.append([attempt(str(i)) for i in range(1_000)])
    assert 1_000 <= outbox.backlog() < 1_200
    outbox.read(100)
    assert "outbox.lost" in caplog.messages


def test_a_server_that_lost_its_data_is_taken_up(outbox: Outbox, redis_client: redis.Redis) -> None:
    """The group is made again by whoever reads next."""
    outbox.append([attempt("a")])
    outbox.read(10)
    redis_client.flushall()
    assert (outbox.read(10), outbox.backlog()) == ([], 0)
    outbox.append([attempt("b")])
    assert [row.call_id for _, row in outbox.read(10) if isinstance(row, Attempt)] == ["b"]


def test_a_full_redis_is_unavailable(outbox: Outbox, redis_client: redis.Redis) -> None:
    """Redis at its memory limit refuses the append with our error; nothing is half there."""
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            outbox.append([attempt()])
    finally:
        redis_client.config_set("maxmemory", "0")
    assert outbox.backlog() == 0


def test_an_absent_redis_is_unavailable() -> None:
    """Every method says so in one way."""
    outbox = Outbox(redis.Redis(unix_socket_path="/nonexistent", retry=Retry(NoBackoff(), 0)))
    with pytest.raises(StoreUnavailable):
        outbox.read(1)
    with pytest.raises(StoreUnavailable):
        outbox.append([attempt()])
    with pytest.raises(StoreUnavailable):
        outbox.full()


def test_a_client_that_decodes_is_refused() -> None:
    """It would turn MessagePack into text, or fail at it, one day."""
    with pytest.raises(ConfigurationError, match="decode_responses"):
        Outbox(redis.Redis(decode_responses=True))


def test_an_entry_is_small() -> None:
    """Five million must fit into a server's memory: an ordinary one is a few hundred bytes."""
    ordinary = replace(
        attempt("0e1f6c0e-6b0b-4b3e-9d5e-2f1f6d1c7a10"), provider="openai", model="gpt-4o", input_tokens=900
    )
    assert len(encode(ordinary)) < 250
