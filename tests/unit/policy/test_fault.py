"""Whose fault is a sick answer? The pure rules, one call on the real scripts, and lanes in virtual time."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from benchmarks.law import ALONE_S, AWAY, BLAMED, away, blame
from ratelimit_worker.calls import Category, Failure, Mode
from ratelimit_worker.contracts import lane
from ratelimit_worker.contracts.lesson import Witness
from ratelimit_worker.flow.call import observe
from ratelimit_worker.policy import fault, modes
from ratelimit_worker.policy.fault import Compared, Failing, Lately, Row
from ratelimit_worker.policy.modes import Answer, ModeState, Thresholds
from ratelimit_worker.policy.retry import GiveUp, Retry, RetryPolicy, Snooze, next_step
from tests.builders import entry, message
from tests.lua.cluster import OPEN, Cluster, said

SICK = Failure(category=Category.SERVER_ERROR, cause="HTTP 500", status=500)


# ── one call ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("good_at", "failing", "answered"),
    [
        (0.0, None, False),  # nobody ever was
        (94.0, None, False),
        (95.0, None, True),  # just before the first attempt
        (99.0, Failing(90.0, 99.5, 3), False),  # not since the attempt before
        (99.5, Failing(90.0, 99.5, 3), True),
    ],
)
def test_others_are_answered_since_the_attempt_before(good_at: float, failing: Failing | None, answered: bool) -> None:
    """A failure may come back faster than any answer, so what counts is what came since the attempt before."""
    assert fault.others_answered(good_at, 100.0, failing) is answered
    lately = Lately(good_at, good_sent=0.0, share=0.2)
    beside = fault.compared(101.0, 100.0, failing, lately)
    alone_s = None if answered else 101.0 - (failing.first_at if failing else 101.0)
    assert (beside.alone_s, beside.row) == (alone_s, failing.row + 1 if failing else 1)
    assert fault.compared(101.0, 100.0, failing, lately, guarded=False).alone_s is None


@pytest.mark.parametrize(
    ("good_sent", "several", "alone"),
    [(89.0, False, True), (91.0, False, False), (91.0, True, True)],
)
def test_the_last_bad_call_of_a_batch_is_given_up(good_sent: float, several: bool, alone: bool) -> None:
    """A request that left after its first one was answered, and since then nobody else fails: it is not an outage."""
    lately = Lately(good_at=92.0, good_sent=good_sent, several=several)
    assert (fault.compared(101.0, 100.0, Failing(92.5, 95.0, 2, first_sent=90.0), lately).alone_s is not None) is alone


def test_a_call_that_fails_alone_asks_ever_more_rarely() -> None:
    """Its waits are bounded by 5 % of the time since its first failure, 1.5 s at least, its category's cap at most."""
    assert [fault.alone_bound_s(alone_s, 30.0) for alone_s in (0, 30, 60, 300, 600, 1e9)] == [1.5, 1.5, 3, 15, 30, 30]


def test_a_call_that_failed_often_among_others_is_known_when_it_is_left_alone() -> None:
    """Every tenth line of a batch is bad: the last of them has failed beside the good ones, and nobody else is left."""
    beside = Compared(alone_s=3.0, row=5, before=0.1)
    failure = Failure(category=Category.SERVER_ERROR, cause="HTTP 500", status=500)

    def step(attempt: int, beside: Compared) -> object:
        return next_step(failure, attempt, RetryPolicy(), lambda: 0.5, now_s=0.0, deadline_s=inf, beside=beside)

    assert isinstance(step(5, beside), Retry)
    assert isinstance(step(6, beside), GiveUp)
    assert isinstance(step(4, beside), Snooze), "three failures beside the others show nothing"
    assert isinstance(step(6, replace(beside, before=0.5)), Snooze), "others fail as well: it may be the provider"
    assert isinstance(step(6, replace(beside, before=1.0)), Snooze), "an outage costs no try"


@pytest.mark.parametrize(
    ("attempt", "beside", "allowed"),
    [
        (1, Compared(), 6),  # a lane that is well: the category's
        (3, Compared(row=3, share=0.05), 6),
        (3, Compared(row=3, share=0.3), 12),  # a brown-out: six in a row are chance there
        (3, Compared(row=3, share=1.0), inf),
        (2, Compared(row=40), 4),  # it has failed for long while nobody was answered: what is left is to prove it
        (2, Compared(row=40, share=0.3), 12),
    ],
)
def test_tries_grow_with_the_share_of_others_that_fail(attempt: int, beside: Compared, allowed: float) -> None:
    """So that a call as good as the others is given up by chance once in a million."""
    assert fault.tries_allowed(6, attempt, beside) == allowed


# ── evidence ───────────────────────────────────────────────────────────────────────────────────────────────────────


def row_of(*calls: int | None) -> Row:
    """Sick answers of these calls in a row."""
    row = Row()
    for call in calls:
        row = fault.lengthened(row, call)
    return row


@pytest.mark.parametrize(
    ("calls", "worth"),
    [
        ((), 0),
        ((1,), 0),
        ((1,) * 50, 0),
        ((1, 2), 2),
        ((1, 1, 1, 2), 2),
        ((1, 1, 2, 2, 3), 5),
        ((None,) * 7, 7),  # an older worker tells nobody's name
    ],
)
def test_no_single_call_is_more_than_half_of_the_evidence(calls: tuple[int | None, ...], worth: int) -> None:
    """A call alone proves nothing, however often it fails."""
    assert fault.worth(row_of(*calls)) == worth


@given(st.lists(st.integers(0, 200), max_size=400), st.integers(0, 300))
def test_a_row_is_bounded_and_finds_the_call_that_is_most_of_it(calls: list[int], more: int) -> None:
    """However many calls fail; one that is more than half of them is never taken for several."""
    row = row_of(*calls, *[-1] * more)
    assert len(row.calls) <= fault.CALLS_MOST
    assert row.total == len(calls) + more
    true = min(row.total, 2 * (row.total - max(more, max(map(calls.count, calls), default=0))))
    assert true <= fault.worth(row) <= true + 2 * row.total / (fault.CALLS_MOST + 1)


def heard(*answers: tuple[int, bool, float]) -> fault.Parties:
    """(who, sick, when it was sent), answered 0.1 s later."""
    parties: fault.Parties = ()
    for who, sick, sent_at in answers:
        parties = fault.heard(parties, who, sent_at + 0.1, sent_at, sick=sick, good_sent=0.0)
    return parties


def test_who_fails_while_others_are_answered_is_doubted() -> None:
    """A newcomer that was never answered at once; one that was after three in a row; in an outage nobody."""
    assert fault.doubted(heard((1, False, 10.0), (2, True, 11.0)), 2, 11.1)
    assert not fault.doubted(heard((2, True, 11.0)), 2, 11.1), "nobody else is there"
    assert not fault.doubted(heard((1, False, 1.0), (2, True, 11.0)), 2, 11.1), "nobody else was answered of late"
    known = heard((2, False, 9.0), (1, False, 10.0), (2, True, 11.0), (2, True, 12.0), (1, False, 12.1))
    assert not fault.doubted(known, 2, 12.2)
    known = fault.heard(known, 2, 13.1, 13.0, sick=True, good_sent=0.0)
    assert fault.doubted(known, 2, 13.1)
    assert not fault.doubted(fault.heard(known, 2, 14.1, 14.0, sick=True, good_sent=13.5), 2, 14.1), "it says so itself"
    outage = heard((1, False, 10.0), (2, False, 10.1), *[(who, True, 11.0 + i) for i in range(3) for who in (1, 2)])
    assert not fault.doubted(outage, 1, 13.1)
    assert not fault.doubted(outage, 2, 13.1)


def test_parties_are_bounded() -> None:
    """The latest stay."""
    parties = heard(*[(who, who % 2 == 0, float(who)) for who in range(100)])
    assert [party.id for party in parties] == list(range(100 - fault.PARTIES_MOST, 100))


def observed(*answers: tuple[str, Witness], state: ModeState | None = None, start: float = 1e6) -> ModeState:
    """+ or -, and who asked: one each 0.1 s."""
    state = state or ModeState()
    for i, (letter, who) in enumerate(answers):
        at = start + i / 10
        sick = letter == "-"
        state, _ = modes.observe(
            state, Answer(at=at, sent_at=at - 0.01, sick=sick, good=not sick, witness=who), Thresholds()
        )
    return state


def by(call: int, task: int = 1, process: int = 1, *, again: bool = False, discounted: bool = False) -> Witness:
    """Who asked."""
    return Witness(call, task, process, again, discounted)


def test_one_call_moves_no_mode() -> None:
    """Alone, or among others; ten calls do; literally counted it would."""
    alone = [("-", by(7, again=i > 0)) for i in range(40)]
    assert observed(*alone).mode is Mode.NORMAL
    assert observed(*[("+", by(i)) for i in range(30)], *alone).mode is Mode.NORMAL
    assert observed(*[("-", by(i)) for i in range(10)]).mode is Mode.EMERGENCY
    state, literal = ModeState(), Thresholds(literal=True)
    for i in range(10):
        state, _ = modes.observe(state, Answer(at=1e6 + i, sent_at=1e6 + i, sick=True, witness=by(7)), literal)
    assert state.mode is Mode.EMERGENCY


@pytest.mark.parametrize("kind", ["task", "process"])
def test_a_task_or_process_that_always_fails_moves_no_mode(kind: str) -> None:
    """Twenty of its calls between two answers of others are no witnesses."""
    answers = []
    for i in range(20):
        bad = [by(100 * i + j, 2 if kind == "task" else 1, 2 if kind == "process" else 1) for j in range(20)]
        answers += [("+", by(1000 + i)), *(("-", who) for who in bad)]
    assert observed(*answers).mode is Mode.NORMAL


def test_a_failed_probe_of_a_discounted_call_does_not_reset_the_good_ones() -> None:
    """Else one call that always fails would keep its lane in EMERGENCY."""
    away_ = observed(*[("-", by(i)) for i in range(10)])
    four = observed(*[("+", by(100 + i)) for i in range(4)], state=away_, start=1e6 + 10)
    assert four.good_row == 4
    assert observed(("-", by(7, again=True, discounted=True)), state=four, start=1e6 + 11).good_row == 4
    assert observed(("-", by(7)), state=four, start=1e6 + 11).good_row == 0
    assert observed(("+", by(8)), state=four, start=1e6 + 11).mode is Mode.REDUCED


def test_a_call_is_counted_once_in_the_shares() -> None:
    """What it fails with again is no news of the provider; how others fare is told without the call that asks."""
    state = observed(*[("+", by(i)) for i in range(100)], *[("-", by(7, again=i > 0)) for i in range(20)])
    assert modes.sick_share(state, 1e6 + 12) == 0.0
    brown = observed(*[("-" if i % 3 == 0 else "+", by(i)) for i in range(300)])
    assert modes.sick_share(brown, 1e6 + 30) == pytest.approx(1 / 3, abs=0.05)


# ── idle lanes ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_quiet_lane_steps_down_by_time_alone() -> None:
    """REDUCED after 60 s without a sick answer; EMERGENCY after 300, unless a probe is out; HALT and NORMAL stay."""
    reduced = observed(*[("-", by(i)) for i in range(6)])
    assert reduced.mode is Mode.REDUCED
    last = 1e6 + 0.5
    assert modes.quiet(reduced, last + 59.9, 0) == (reduced, None)
    state, move = modes.quiet(reduced, last + 60.1, 3)
    assert (state.mode, move.cause if move else "") == (Mode.NORMAL, "no sick answer for 60 s")
    emergency = observed(*[("-", by(i)) for i in range(10)])
    last = 1e6 + 0.9
    for out, mode in ((1, Mode.EMERGENCY), (None, Mode.EMERGENCY), (0, Mode.REDUCED)):
        assert modes.quiet(emergency, last + 300.1, out)[0].mode is mode
    assert modes.quiet(emergency, last + 299, 0)[1] is None
    for state in (ModeState(), ModeState(mode=Mode.HALT)):
        assert modes.quiet(state, 1e9, 0) == (state, None)


# ── on the scripts ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    redis_client.flushall()
    made = Cluster(redis_client)
    made.worker(slots=100)
    made.lanes.set_points("gpt", OPEN)
    return made


def fail(cluster: Cluster, tag: str, after_s: float, failed: Failure | None = SICK, tries: int = 0) -> None:
    """The call goes back, as after a sick answer."""
    verdict = "sick" if failed is not None and failed.sick else "refused"
    assert cluster.lanes.back(tag, "gpt", said(verdict, failure=failed), after_s=after_s, tries=tries)


def test_a_call_remembers_since_when_it_fails(cluster: Cluster) -> None:
    """First, last and how many in a row; anything but a sick answer ends the row, and nothing else in its record."""
    cluster.lanes.enqueue(entry("a"))
    tag, begun = cluster.begin()
    assert begun.failing is None
    started = cluster.now_us / 1e6
    cluster.advance(0.5)
    fail(cluster, tag, 1.0)
    cluster.live(2)
    tag, begun = cluster.begin()
    assert begun.failing == Failing(started + 0.5, started, 1, started)
    assert begun.tries == 0
    released = observe.sent_s(begun.ticket)
    fail(cluster, tag, 1.0)
    cluster.live(2)
    tag, begun = cluster.begin()
    assert begun.failing == Failing(started + 0.5, released, 2, started)
    fail(cluster, tag, 0.0, Failure(category=Category.RATE_LIMITED, cause="HTTP 429", retry_after_s=0.1))
    cluster.live(2)
    assert cluster.begin()[1].failing is None


def test_a_lane_tells_when_it_was_answered_last(cluster: Cluster) -> None:
    """To a tenth of a second; how others fare is what the tuner wrote."""
    assert cluster.lanes.health("gpt").lately == Lately()
    for i in range(3):
        cluster.lanes.enqueue(entry(f"c{i}"))
        tag, _ = cluster.begin()
        cluster.settle(tag, verdict=("plain", "good")[i % 2])
        cluster.free(tag)
        lately = cluster.lanes.health("gpt").lately
        assert cluster.now_us / 1e6 - lately.good_at <= lane.ANSWERED_EVERY_S
        assert lately.good_sent == lately.good_at
        cluster.advance(0.06)
    cluster.lanes.set_points("gpt", {"sick_share": 0.25})
    assert cluster.lanes.health("gpt").lately.share == 0.25


def test_a_lane_tells_whether_several_calls_had_sick_answers(cluster: Cluster) -> None:
    """Since its last good answer, not counting calls that are no witnesses; one call however often is one."""

    def sick(ref: str, verdict: str = "sick") -> bool:
        cluster.advance(0.2)
        cluster.lanes.enqueue(entry(ref))
        tag, _ = cluster.begin()
        cluster.settle(tag, verdict=verdict, kind="error")
        several = cluster.lanes.health("gpt").lately.several
        cluster.free(tag)
        return several

    assert not sick("a")
    assert not sick("b", "sick.1")
    assert sick("c")
    assert sick("d", "sick.1")
    assert not sick("e", "good")
    assert not sick("f")


def probed(cluster: Cluster) -> None:
    """The lane is in EMERGENCY: one probe a second."""
    cluster.lanes.set_points("gpt", {"mode": "EMERGENCY", "width": 1, "probes": 1, "gap": 1_000_000, "gate": 0})


def next_probe(cluster: Cluster) -> tuple[str, str]:
    """Wait for it → tag, its call."""
    for _ in range(30):
        cluster.live(0.1)
        if cluster.ready():
            tag, begun = cluster.begin()
            assert begun.state == "go"
            return tag, tag.rpartition(".")[0]
    raise AssertionError("no probe in 3 s")


def test_probes_go_to_those_first_that_were_not_tried(cluster: Cluster) -> None:
    """A call that failed stands behind them, also where it comes back through a gate that was shut."""
    cluster.lanes.enqueue(entry("bad"))
    tag, _ = cluster.begin()
    probed(cluster)
    for i in range(4):
        cluster.lanes.enqueue(entry(f"c{i}"))
    fail(cluster, tag, 0.1)
    seen = []
    for _ in range(5):
        tag, ref = next_probe(cluster)
        seen.append(ref)
        fail(cluster, tag, 0.1 if ref == "bad" else 100.0)
    assert seen == ["c0", "c1", "c2", "c3", "bad"]


def test_probes_go_to_tasks_in_turn(cluster: Cluster) -> None:
    """A thousand calls of one task stand before one of another: that is the second probe, not the last."""
    probed(cluster)
    cluster.lanes.set_points("gpt", {"gate": cluster.now_us + 1_000_000})
    for i in range(60):
        task = "lame" if i < 59 else "sound"
        cluster.lanes.enqueue(entry(f"{task}{i}", message=message(f"{task}{i}", f'{{"task": "{task}"}}')))
    seen = []
    for _ in range(4):
        tag, ref = next_probe(cluster)
        seen.append(ref)
        fail(cluster, tag, 0.5)
    assert [ref.strip("0123456789") for ref in seen] == ["lame", "sound", "lame", "sound"]


def test_what_is_remembered_of_probes_is_bounded(cluster: Cluster) -> None:
    """Of sixteen tasks."""
    probed(cluster)
    cluster.lanes.set_points("gpt", {"gap": 1000})
    for i in range(40):
        cluster.lanes.enqueue(entry(f"c{i}", message=message(f"c{i}", f'{{"task": "t{i}"}}')))
        tag, _ = next_probe(cluster)
        cluster.settle(tag)
        cluster.free(tag)
    kept: Any = cluster.client.hkeys("rlw:probed:gpt")
    assert sorted(kept) == sorted(f"t{i}".encode() for i in range(24, 40))
    assert 0 < cluster.client.ttl("rlw:probed:gpt") <= 3600


# ── in virtual time ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.long
@pytest.mark.parametrize("name", BLAMED)
def test_who_always_fails_holds_up_nobody(name: str) -> None:
    """30 good calls, the bad ones alone for 30 s, 300 good ones: these take at most 1.15 × the time + 3 s, and the bad
    ones are given up then (of twenty, as far as their retries have a budget); alone they send some 40 requests."""
    for seed in range(2):
        took_s, alone_s, ended_s, sent, moves = blame(name, seed)
        assert took_s <= 1.15 * alone_s + 3.0
        assert ended_s < alone_s or BLAMED[name].lost > 1
        assert sent <= 60
        if len(BLAMED[name].tasks) == 1:
            assert moves == []
    assert ALONE_S == 30.0


@pytest.mark.long
@pytest.mark.parametrize("name", AWAY)
def test_an_outage_costs_no_call_and_few_requests(name: str) -> None:
    """Of 30 s, whether one call waits or a thousand: at most 60 requests into it, none given up, back within 2 s."""
    for seed in range(2):
        into, back_s, failed = away(name, seed)
        assert into <= 60
        assert back_s <= 2.0
        assert failed == 0
