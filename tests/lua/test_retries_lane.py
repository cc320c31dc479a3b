"""Retries in the lane: their budget while others wait, the record of functions, and what neither may do to a call."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.retries import TRIALS, run
from ratelimit_worker.calls import Attempt, Category, Mode, Outcome, Priority, Response
from ratelimit_worker.contracts.call import Claim
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import CallFailed, StoreUnavailable
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.conclude import Again, Facts, GaveUp
from ratelimit_worker.flow.call.execute import Executor, Result
from ratelimit_worker.flow.call.judge import Rules
from ratelimit_worker.flow.call.tally import Tally
from ratelimit_worker.policy.retry import TrackRecord
from ratelimit_worker.ports import Begun
from ratelimit_worker.providers.http import ProviderRefused
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.outbox import Outbox, encode
from ratelimit_worker.stores.patient import PatientLanes
from ratelimit_worker.wiring import services
from tests.builders import entry
from tests.conftest import wait_for
from tests.fleet import fleet
from tests.lua.cluster import LEASE_S, Cluster, said
from tests.properties import share

BAND = 1.4e15  #: as in lua/shared/record.lua
BEHIND = 3 * BAND
MOST = 10.0  #: retries at once


class Retrying:
    """A lane of ten permits a second, in which calls fail by name: `r…` when they are told to, others never."""

    def __init__(self, client: redis.Redis) -> None:
        client.flushall()
        self.client, self.cluster = client, Cluster(client)
        self.cluster.worker(slots=1000)
        self.cluster.lanes.set_points("gpt", {"p1": 10.0, "d1": 1.0})
        self.names = count()
        self.sent: list[str] = []  #: in the order of sending
        self.paid = 0  #: retries that went while others waited
        self.permits = 0

    def put(self, prefix: str, many: int, **more: Any) -> list[str]:
        refs = [f"{prefix}{next(self.names)}" for _ in range(many)]
        for ref in refs:
            self.cluster.lanes.enqueue(entry(ref, **more))
        return refs

    def fail(self, refs: list[str], after_s: float = 0.5) -> None:
        """These calls fail, each at its first attempt, and are due again in a while."""
        self.fill(1000.0)
        waiting = set(refs)
        while waiting:
            self.cluster.pump()
            tag, begun = self.cluster.begin()
            assert begun.state == "go"
            waiting.remove(tag.rpartition(".")[0])
            assert self.cluster.back(tag, after_s=after_s, tries=1)
        self.fill(0.0)

    def fill(self, level: float) -> None:
        """So many permits at once; 0: none, and ten a second from now on."""
        sent = float(self.cluster.lanes.fields("gpt").get("c1", 0.0))
        pace = {"p1": 1000.0, "d1": 1000.0} if level else {"p1": 10.0, "d1": 1.0}
        self.cluster.lanes.set_points("gpt", {**pace, "a1": sent + level})

    def waiting(self) -> tuple[int, int]:
        """(others, retries) that wait for a permit."""
        key = keys.waiting("gpt", "q")
        others: Any = self.client.zcount(key, "-inf", f"({BEHIND:.0f}")
        retries: Any = self.client.zcount(key, f"{BEHIND:.0f}", "+inf")
        return int(others), int(retries)

    def live(self, seconds: float, step_s: float = 0.1) -> list[str]:
        """Time passes; what is released is sent and answered → references, in order."""
        sent = []
        for _ in range(round(seconds / step_s)):
            self.cluster.advance(step_s)
            self.cluster.beat("w")
            before = self.waiting()[0]
            self.cluster.pump()
            while self.cluster.lying():
                others = self.waiting()[0]
                tag, begun = self.cluster.begin()
                ref = tag.rpartition(".")[0]
                if begun.state == "go":
                    sent.append(ref)
                    self.permits += 1
                    self.paid += int(begun.tries > 0 and before > 0 and others > 0)
                    self.cluster.settle(tag)
                self.cluster.free(tag)
                before = others
        self.sent += sent
        return sent


@pytest.fixture
def lane(redis_client: redis.Redis) -> Retrying:
    return Retrying(redis_client)


# ── the budget ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
def test_while_others_wait_retries_get_a_tenth_and_ten_a_minute(lane: Retrying) -> None:
    """At 10/s in 60 s: ten that were saved up, 0.1 × permits and 10 a minute; all else is the others'."""
    lane.fail(lane.put("r", 200))
    lane.put("f", 1200)
    sent = lane.live(60)
    retries = [ref for ref in sent if ref[0] == "r"]
    assert len(sent) == pytest.approx(600, abs=3)
    assert len(retries) == pytest.approx(MOST + 0.1 * (600 - 75) + 10, abs=3)
    assert retries == sorted(retries, key=lambda ref: int(ref[1:])), "the oldest first"
    later = lane.live(60)
    assert sum(ref[0] == "r" for ref in later) == pytest.approx(0.1 * (600 - 64) + 10, abs=3)


def test_permits_that_nobody_else_wants_are_theirs(lane: Retrying) -> None:
    """With nobody else waiting they go at the pace and spend no budget; so do they once the others are through."""
    refs = lane.put("r", 200)
    lane.fail(refs)
    assert lane.live(20.5) == refs
    assert "rb" not in lane.cluster.lanes.fields("gpt")
    lane.fail(lane.put("r", 60))
    lane.put("f", 40)
    sent = lane.live(11)
    assert len(sent) == 100
    last = max(i for i, ref in enumerate(sent) if ref[0] == "f")
    assert sum(ref[0] == "r" for ref in sent[:last]) == pytest.approx(MOST + 0.1 * 40 + 1, abs=1)


def test_a_few_retries_are_not_delayed(lane: Retrying) -> None:
    """As long as the budget has room a retry goes at its own place, before those that came later."""
    lane.fail(lane.put("r", 5))
    lane.put("f", 50)
    assert [ref[0] for ref in lane.live(2)][:10].count("r") == 5


def spend_budget(lane: Retrying) -> None:
    """None is left, and time alone earns no whole retry for 6 s."""
    fields = lane.cluster.lanes.fields("gpt")
    lane.cluster.lanes.set_points("gpt", {"rb": 0.0, "rs": float(fields["seq"]), "rt": float(lane.cluster.now_us)})


def test_retries_wait_in_the_order_of_their_classes_behind_all_others(lane: Retrying) -> None:
    """Without budget a low call goes before an urgent retry; retries have bands of their own, behind the others'."""
    refs = [*lane.put("l", 1, priority=Priority.LOW), *lane.put("n", 1), *lane.put("h", 1, priority=Priority.HIGH)]
    lane.fail(refs)
    lane.put("f", 3, priority=Priority.LOW)
    lane.cluster.advance(0.5)
    spend_budget(lane)
    lane.cluster.pump()
    found: Any = lane.client.zrange(keys.waiting("gpt", "q"), 0, -1, withscores=True)
    bands = [(ref.decode()[0], int(score // BAND)) for ref, score in found]
    assert bands[-3:] == [("h", 3), ("n", 4), ("l", 5)]
    assert {band for _, band in bands[:-3]} <= {2}
    assert [ref[0] for ref in lane.live(1)] == ["f", "f", "f", "h", "n", "l"]


def test_a_retry_that_is_hurried_stays_one(lane: Retrying) -> None:
    """An urgent call that is the same joins a retry: it goes to the urgent among the retries, not before the others."""
    same = Claim(fingerprint="same", ttl_s=60.0, join=True)
    refs = lane.put("r", 1, priority=Priority.LOW, claim=same)
    lane.fail(refs)
    lane.put("f", 8)
    lane.cluster.advance(0.5)
    spend_budget(lane)
    lane.cluster.pump()
    lane.put("u", 1, priority=Priority.HIGH, claim=same)
    score: Any = lane.client.zscore(keys.waiting("gpt", "q"), refs[0])
    assert int(score // BAND) == 3


def test_a_retry_that_was_lost_keeps_its_place_while_others_are_suspects(lane: Retrying) -> None:
    """Its worker died: what it costs is no try, so it needs no budget, also where it must wait for its turn to run."""
    refs = lane.put("r", 2)
    lane.fail(refs)
    lane.fill(1000.0)
    lane.cluster.advance(0.5)
    lane.cluster.pump()
    for _ in refs:
        assert lane.cluster.begin()[1].tries == 1
    lane.cluster.kill("w")
    lane.cluster.worker("w", slots=1000)
    lane.cluster.live(35)  # both leases end, and one of the two is out again
    lane.fill(0.0)
    lane.put("f", 60)
    spend_budget(lane)
    waited: set[bytes] = set()
    for _ in range(20):
        lane.cluster.advance(0.1)
        lane.cluster.beat("w")
        lane.cluster.pump()
        due: Any = lane.client.zrange(keys.due("gpt", "q"), 0, -1)
        waited.update(due)
        assert lane.waiting()[1] == 0
    assert len(waited) == 1


def test_what_goes_back_without_a_try_needs_no_budget(lane: Retrying) -> None:
    """Refused, or met by a sick provider while the lane knows that it is: the call is the first at its own place."""
    lane.fail(lane.put("r", 3))
    lane.put("f", 50)
    lane.cluster.advance(0.6)
    lane.cluster.pump()
    tag, begun = lane.cluster.begin()
    ref = tag.rpartition(".")[0]
    assert (ref[0], begun.tries) == ("r", 1)
    assert lane.cluster.back(tag, verdict="refused", gate_s=0.1)
    seq = float(lane.cluster.lanes.fields("gpt")["seq"])
    lane.cluster.lanes.set_points("gpt", {"rb": 0.0, "rs": seq, "rt": float(lane.cluster.now_us)})
    sent = lane.live(0.7)
    assert sent[0] == ref
    assert {one[0] for one in sent[1:]} == {"f"}


def test_calls_for_later_are_not_taken_for_retries(lane: Retrying) -> None:
    """A countdown is no failure: its call goes to a place of its own, whatever the budget."""
    lane.put("f", 300)
    lane.put("c", 20, due_in_s=1.0)
    lane.live(2)
    assert lane.waiting()[1] == 0


def test_a_held_retry_gets_its_error_at_its_deadline(lane: Retrying) -> None:
    """The budget fails no call before its deadline; at its deadline the call is handed out as expired, and not sent."""
    lane.cluster.lanes.set_points("gpt", {"rb": 0.0, "rs": 0.0, "rt": float(lane.cluster.now_us)})
    lane.fail(lane.put("r", 100, deadline_in_s=20.0))
    lane.put("f", 600)
    lane.cluster.lanes.set_points("gpt", {"rb": 0.0, "rt": float(lane.cluster.now_us)})
    sent = lane.live(19.5)
    assert lane.waiting()[1] > 50
    done = sum(ref[0] == "r" for ref in sent)
    assert lane.waiting()[1] + done == 100, "none was given up before"
    after = lane.live(3)
    assert lane.waiting()[1] == 0
    assert sum(ref[0] == "r" for ref in after) <= 3, "the others were expired"


def test_an_expired_call_tells_what_failed_it_last(redis_client: redis.Redis, cluster: Cluster) -> None:
    """Its error has category, status, request id and cause of its last attempt, and it ends with a row of its own."""
    answers, box = Answers(dumps=json.dumps, loads=json.loads), Outbox(redis_client)
    rules = Rules(answers=answers, jitter=random.random)
    executor = Executor(lanes=cluster.lanes, rules=rules, encode_outcome=encode, lease_s=LEASE_S, clock=lambda: 0.0)
    refusal = Response(status=503, headers={"x-request-id": "req-1"}, body={})

    def refused(_: Begun) -> None:
        raise ProviderRefused(refusal)

    def deliver() -> Result:
        tag, _ = cluster.take()
        facts = Facts(call_id="c", tag=tag, task="t", plan=Plan(lane="gpt", publication="p", deadline_s=0.0))
        result = executor.execute(facts, refused, lambda _: None)
        cluster.free(tag)
        return result

    cluster.lanes.enqueue(entry("c", lane_fields={"p1": 1000, "d1": 1000}, deadline_in_s=200.0))
    first = deliver()
    assert isinstance(first, Again)
    cluster.lanes.set_points("gpt", {"p1": 0})
    cluster.live(201)
    last = deliver()
    assert isinstance(last, GaveUp)
    assert last.error.args == ("c", "gpt", 1, "overloaded", 503, "req-1", "ProviderRefused: HTTP 503")
    assert str(last.error).endswith("after 1 attempt(s), the last: overloaded (HTTP 503): ProviderRefused: HTTP 503")
    rows = [row for _, row in box.read(10) if isinstance(row, Attempt)]
    told = [(row.number, row.outcome, row.category, row.status, row.cause) for row in rows]
    assert told == [
        (1, Outcome.SNOOZED, Category.OVERLOADED, 503, "ProviderRefused: HTTP 503"),
        (2, Outcome.FAILED, None, None, "DeadlineExceeded"),
    ]
    assert rows[1].started_at == rows[1].finished_at
    assert 190 < rows[1].waited_s <= 201
    assert cluster.lanes.record("c") is None


@pytest.mark.long
@settings(max_examples=share(0.25))
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("first"), st.integers(10, 80)),
            st.tuples(st.just("retry"), st.integers(15, 40)),
            st.tuples(st.just("live"), st.integers(1, 40)),
        ),
        min_size=1,
        max_size=10,
    )
)
def test_whatever_comes_retries_keep_their_budget_and_no_permit_is_lost(
    redis_client: redis.Redis, steps: list[tuple[str, int]]
) -> None:
    """In any history: while others wait, no more retries than the budget; the pace is used; every call is sent."""
    lane = Retrying(redis_client)
    accepted: list[str] = []
    begun_us = lane.cluster.now_us
    for what, amount in steps:
        if what == "first":
            accepted += lane.put("f", amount)
        elif what == "retry" and lane.waiting() == (0, 0) and not lane.client.zcard(keys.due("gpt", "q")):
            refs = lane.put("r", amount)
            lane.fail(refs)
            accepted += refs
        else:
            busy = sum(lane.waiting())
            sent = lane.live(amount / 10)
            assert len(sent) >= min(busy, amount) - 3
        elapsed_s = (lane.cluster.now_us - begun_us) / 1e6
        seq = float(lane.cluster.lanes.fields("gpt").get("seq", 0))
        assert lane.paid <= MOST + 0.1 * seq + elapsed_s / 6 + 1e-6
    lane.live(sum(amount for what, amount in steps if what != "live") / 10 + 3)
    assert sorted(lane.sent) == sorted(accepted)


@pytest.mark.long
@pytest.mark.parametrize("name", ["5 % 500s", "5 % 500s, fast", "30 % 500s", "outage of 10 minutes", "quota used up"])
def test_retries_help_and_never_storm(name: str) -> None:
    """A provider that fails now and then, or is away, in virtual time: no call is given up, few requests are sent."""
    trial = TRIALS[name]
    rows = [run(name, seed) for seed in range(2)]
    assert sum(row.failed for row in rows) == 0
    assert all(row.left == 0 for row in rows) or trial.horizon_s < inf
    assert max(row.requests for row in rows) <= trial.most(trial.calls)


# ── the record of functions ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_record_of_a_function_is_the_clusters(lane: Retrying) -> None:
    """What failed and cost a try, and the answers told with it, whoever told them; a function and all others apart."""
    cluster = lane.cluster

    def attempt(task: str, answered: dict[str, int], *, settled: bool) -> None:
        (ref,) = lane.put("c", 1)
        cluster.advance(0.2)
        cluster.pump()
        tag, _ = cluster.begin()
        assert tag.startswith(ref)
        lesson = said("sick", failed_task=task, answered=answered)
        if settled:
            cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=b"error", lesson=lesson, kind="error"))
        else:
            cluster.lanes.back(tag, "gpt", lesson, after_s=1000.0, tries=1)
        cluster.free(tag)

    attempt("bad", {"good": 5}, settled=False)
    attempt("bad", {"good": 2, "bad": 1}, settled=True)
    attempt("good", {}, settled=False)
    assert cluster.lanes.health("gpt", "bad").track_record == TrackRecord(2, 1, 1, 7)
    assert cluster.lanes.health("gpt", "good").track_record == TrackRecord(1, 7, 2, 1)
    assert cluster.lanes.health("gpt", "other").track_record == TrackRecord(0, 0, 3, 8)
    assert cluster.lanes.health("another", "bad").track_record == TrackRecord()
    for _ in range(3):
        cluster.live(50)
    attempt("bad", {}, settled=True)
    for _ in range(3):
        cluster.live(50)
    assert cluster.lanes.health("gpt", "bad").track_record == TrackRecord(1, 0, 0, 0), (
        "five minutes later the first are forgotten"
    )
    assert all(0 < lane.client.ttl(key) <= 330 for key in lane.client.keys("rlw:fared:*"))


def test_a_record_is_bounded(lane: Retrying) -> None:
    """A name a call: the first thousands have a record of their own, the rest counts for the lane."""
    lane.put("c", 1)
    lane.cluster.pump()
    tag, _ = lane.cluster.begin()
    names = {f"t{i}": 1 for i in range(3000)}
    lane.cluster.lanes.settle(
        Settlement(tag=tag, lane="gpt", answer=b"e", lesson=said("sick", failed_task="bad", answered=names))
    )
    (key,) = lane.client.keys("rlw:fared:*")
    assert lane.client.hlen(key) <= 2002
    assert lane.cluster.lanes.health("gpt", "bad").track_record == TrackRecord(1, 0, 0, 3000)


def test_answers_are_told_once_and_not_when_they_are_old() -> None:
    """A process keeps its answers for five minutes at most, by lane."""
    tally = Tally()
    tally.add("a", "t", 1000.0)
    tally.add("a", "t", 1100.0)
    tally.add("b", "t", 1100.0)
    tally.add("a", "u", 1200.0)  # another half
    assert tally.take("a", 1200.0) == {"t": 2, "u": 1}
    assert tally.take("a", 1200.0) == {}
    assert tally.take("b", 1299.0) == {"t": 1}
    tally.add("a", "t", 1300.0)
    assert tally.take("a", 1700.0) == {}


# ── a script that fails ──────────────────────────────────────────────────────────────────────────────────────────────


def test_what_waiting_does_not_mend_is_one_error_of_ours(lane: Retrying) -> None:
    """A record that no script can read: the worker's attempt says so in one line, and does not wait for ever."""
    (ref,) = lane.put("c", 1)
    tag, _ = lane.cluster.take()
    lane.client.delete(keys.call(ref))
    lane.client.set(keys.call(ref), "no hash")
    lanes = PatientLanes(lane.client, time_us=lane.cluster.now_us)
    with pytest.raises(StoreUnavailable, match="the call cannot go on, Redis said: ") as caught:
        lanes.begin(tag, 30.0)
    lane.client.delete(keys.call(ref))
    assert "\n" not in str(caught.value)


# ── on real workers ──────────────────────────────────────────────────────────────────────────────────────────────────


def _failed(result: Any) -> CallFailed:
    error = result.get(timeout=120, propagate=False)
    assert isinstance(error, CallFailed)
    return error


@pytest.mark.worker
def test_a_function_at_fault_gets_two_tries_and_its_neighbour_all() -> None:
    """One fails always while the lane answers others: its next call is tried twice, the neighbour's three times."""
    with fleet() as made:
        made.worker("first")
        tasks = made.agent()
        good: list[Any] = []

        def among_good(done: Callable[[], object]) -> None:
            def look() -> object:
                if sum(not result.ready() for result in good[-40:]) < 20:
                    good.extend(tasks.echo.apply_async((i,), {"sleep_s": 0.05}, lane="mixed") for i in range(10))
                return done()

            wait_for(look, 120.0, "they end among good answers")

        among_good(lambda: sum(result.ready() for result in good) > 60)
        bad = [tasks.sick.apply_async((99, f"bad{i}"), lane="mixed") for i in range(3)]
        among_good(lambda: all(result.ready() for result in bad))
        assert all(2 <= _failed(result).attempts <= 6 for result in bad)
        record = services().lanes.health("mixed", tasks.sick.name).track_record
        assert record.failed > 5
        late = tasks.sick.apply_async((99, "late"), lane="mixed")
        flaky = tasks.hush.apply_async(("prompt", 2, "neighbour"), lane="mixed")
        among_good(lambda: late.ready() and flaky.ready())
        assert (_failed(late).attempts, _failed(late).category) == (2, Category.SERVER_ERROR)
        assert flaky.get(timeout=1) == "hushed"
        assert services().lanes.state("mixed").mode is Mode.NORMAL
        assert services().lanes.health("mixed", tasks.echo.name).track_record.failed == 0
