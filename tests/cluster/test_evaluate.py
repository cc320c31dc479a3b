"""The rules of alerts on a real server and database: what is wrong opens one alert, whoever looks and however often."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import redis

from ratelimit_worker.calls import Mode, ModeChange, Outcome
from ratelimit_worker.contracts.alert import Alert, Kind, Silence
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.flow.duty.evaluate import RECORDED_S, RETRY_S, STANDING_S, Evaluator
from ratelimit_worker.policy.alert_rules import LaneStanding, Recorded, Standing
from ratelimit_worker.policy.alert_states import Change
from ratelimit_worker.policy.budget import Period
from ratelimit_worker.policy.budget import Standing as Purse
from ratelimit_worker.stores import alert_states, keys
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.alerts import Alerts
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.outbox import Outbox
from ratelimit_worker.stores.queries import Queries
from ratelimit_worker.stores.tracker import Tracker
from ratelimit_worker.worker.facts import RedisFacts, recorded
from tests.builders import attempt, entry
from tests.lua.cluster import Cluster

pytestmark = pytest.mark.server
AWAY = StoreUnavailable("the database is away")


class Bench:
    """Evaluators of one deployment, with the test's clock and the test's view of Redis."""

    def __init__(self, client: redis.Redis, folder: Path) -> None:
        self.client, self.states = client, AlertStates(client)
        self.outbox, self.alerts = Outbox(client), Alerts(client)
        self.tracker = Tracker(engine_for(f"sqlite:///{folder}/t.db"))
        self.queries = Queries(engine_for(f"sqlite:///{folder}/t.db"))
        self.now_s = time.time()  # sums by minute go after a month
        self.seen = Standing(at_s=0.0)
        self.away = False
        self.asked: list[set[str]] = []
        self.evaluator = self.another()

    def another(self) -> Evaluator:
        """As another worker has it, or this one after a restart."""
        return Evaluator(self.states, self._standing, self._recorded, self._records, clock=lambda: self.now_s)

    def _standing(self, also: Iterable[str]) -> Standing:
        self.asked.append(set(also))
        return self.seen

    def _recorded(self, now_s: float) -> Recorded:
        if self.away:
            raise AWAY
        return recorded(self.queries, now_s)

    def _records(self) -> Tracker:
        if self.away:
            raise AWAY
        return self.tracker

    def pass_time(self, seconds: float, evaluators: Iterable[Evaluator] = ()) -> None:
        """Step by step."""
        end_s = self.now_s + seconds
        while self.now_s < end_s:
            self.now_s += STANDING_S
            for one in evaluators or (self.evaluator,):
                one.step()

    def told(self) -> list[str]:
        """Ids of the notices in the row."""
        entries: Any = self.client.xrange(keys.ALERTS)
        return [fields[b"i"].decode() for _, fields in entries]

    def open(self) -> list[tuple[Kind, str, str]]:
        """Kind, lane and topic of what is open."""
        return sorted((one.kind, one.lane, one.about) for one in self.states.read().open)


@pytest.fixture
def bench(redis_client: redis.Redis, tmp_path: Path) -> Bench:
    return Bench(redis_client, tmp_path)


def no_worker(lane: str = "gpt") -> Standing:
    """Calls of a lane wait for a worker."""
    return Standing(at_s=0.0, lanes=[LaneStanding(lane=lane, mode=Mode.NORMAL, waiting=3, queues=("q",))])


def change(number: int, before: Mode, to: Mode, at: float, lane: str = "gpt") -> ModeChange:
    return ModeChange(id=f"c{number}", lane=lane, from_mode=before, to_mode=to, at=at, cause="x")


def test_it_opens_once_and_closes_once_whoever_looks(bench: Bench) -> None:
    """Two that look in turn, one that starts again and knows nothing: one notice each, one row."""
    bench.seen = no_worker()
    second = bench.another()
    bench.pass_time(120, (bench.evaluator, second))
    assert bench.open() == [(Kind.NO_WORKER, "gpt", "")]
    bench.pass_time(60, (bench.another(),))
    (opened,) = bench.told()
    bench.seen = Standing(at_s=0.0)
    bench.pass_time(120, (bench.another(), second))
    assert bench.open() == []
    assert bench.told() == [opened, opened.replace("opened", "closed")]
    (row,) = bench.tracker.alerts()
    assert f"{row.id}:opened" == opened
    assert row.closed_s is not None
    assert bench.states.read().records == 0


def test_two_that_write_at_once_open_one(bench: Bench) -> None:
    """Both have read, both have found it: the second one's is not kept, and it looks again."""
    bench.seen = no_worker()
    bench.pass_time(60)
    book = bench.states.read()
    bench.pass_time(STANDING_S)
    assert len(bench.told()) == 1
    (alert,) = book.alerts.values()
    late = Change(alert, opened=True)
    assert not bench.states.write(book, [late], bench.now_s)
    assert len(bench.told()) == 1


def test_a_short_emergency_is_not_missed(bench: Bench) -> None:
    """It began and ended between two looks, twice: mode changes are heard of one by one."""
    at = bench.now_s
    for number, (before, to) in enumerate([(Mode.REDUCED, Mode.EMERGENCY), (Mode.EMERGENCY, Mode.REDUCED)] * 2):
        bench.outbox.append_mode_change(change(number, before, to, at + number))
    bench.evaluator.step()
    rows = bench.tracker.alerts()
    assert [(one.kind, one.closed_s is not None) for one in rows] == [(Kind.EMERGENCY, True)] * 2
    assert len({one.id for one in rows}) == 2
    assert bench.told() == ["c0", "c1", "c2", "c3"]  # the changes themselves, and nothing twice
    assert bench.client.llen(keys.ALERT_NEWS) == 0
    assert bench.open() == []


def test_modes_that_nobody_told_of_are_found_and_put_right(bench: Bench) -> None:
    """A worker of an older version changed the mode; news were lost."""
    bench.seen = Standing(at_s=0.0, lanes=[LaneStanding(lane="gpt", mode=Mode.EMERGENCY)])
    bench.pass_time(60)
    assert bench.open() == [(Kind.EMERGENCY, "gpt", "")]
    assert bench.told() == []
    assert bench.asked[-1] == {"gpt"}
    bench.seen = Standing(at_s=0.0, lanes=[LaneStanding(lane="gpt", mode=Mode.NORMAL)])
    bench.pass_time(30)
    assert bench.open() == []


def test_while_the_database_is_away_alerts_wait_in_redis(bench: Bench) -> None:
    """They open, are told, and get their rows when it is back; those that rest on it stay as they are."""
    now_s = bench.now_s // 60 * 60
    rows = [attempt(f"c-{n}", finished_at=now_s + 5 * n, lane="gpt", outcome=Outcome.FAILED) for n in range(-60, 240)]
    bench.tracker.record(rows)
    for _ in range(60):  # how far looks lie apart goes by how long one takes
        bench.pass_time(STANDING_S)
        if (Kind.ERRORS, "gpt", "") in bench.open():
            break
    before = bench.open()
    assert before == [(Kind.ERRORS, "gpt", ""), (Kind.POISON, "gpt", "task")]
    bench.away, bench.seen = True, no_worker("other")
    bench.pass_time(1_800)
    assert bench.open() == sorted([*before, (Kind.NO_WORKER, "other", "")])
    assert bench.states.read().records == 1
    bench.away = False
    bench.pass_time(RETRY_S + STANDING_S)
    assert bench.states.read().records == 0
    assert Kind.NO_WORKER in {one.kind for one in bench.tracker.alerts(only_open=True)}
    bench.pass_time(RECORDED_S + 3_000)
    assert Kind.ERRORS not in {kind for kind, _, _ in bench.open()}


def test_what_redis_has_forgotten_is_not_told_again(bench: Bench) -> None:
    """The open rows of the database say what was told; they close in their time."""
    bench.seen = no_worker()
    bench.pass_time(120)
    (alert,) = bench.states.read().open
    bench.client.flushall()
    bench.pass_time(120, (bench.another(),))
    assert [one.id for one in bench.states.read().open] == [alert.id]
    assert bench.told() == []
    bench.seen = Standing(at_s=0.0)
    bench.pass_time(120)
    assert bench.tracker.alerts(only_open=True) == []


def test_messages_set_aside_before_anybody_looked_are_no_news(bench: Bench) -> None:
    """Then each time that there are more."""
    bench.seen = Standing(at_s=0.0, set_aside=5)
    bench.pass_time(60)
    assert bench.open() == []
    bench.seen = Standing(at_s=0.0, set_aside=6)
    bench.pass_time(30, (bench.another(),))
    assert bench.open() == [(Kind.SET_ASIDE, "", "")]
    bench.pass_time(1_000)
    assert bench.open() == []


def test_a_budget_is_told_once_for_its_period(bench: Bench) -> None:
    """Whoever looks and however often; and over with its day."""
    ends_s = bench.now_s + 600
    day = Period(name="day", label="2026-11-30", spent_usd=8.5, limit_usd=10.0, ends_s=ends_s)
    bench.seen = Standing(at_s=0.0, budgets=[Purse(name="all", periods=(day,))])
    bench.pass_time(60, (bench.evaluator, bench.another()))
    assert [about for _, _, about in bench.open()] == ["all 2026-11-30 50%", "all 2026-11-30 80%"]
    bench.pass_time(60, (bench.another(),))
    assert len(bench.told()) == 2
    bench.seen = Standing(at_s=0.0)
    bench.pass_time(300)
    assert len(bench.open()) == 2
    bench.now_s = ends_s + 1
    bench.evaluator.step()
    assert bench.open() == []
    assert len(bench.told()) == 2  # its end is no news


def test_who_takes_an_alert_in_hand(bench: Bench) -> None:
    """By the beginning of its id; a wrong one, or one that fits two, is refused."""
    bench.seen = Standing(at_s=0.0, lanes=[*no_worker("a").lanes, *no_worker("b").lanes])
    bench.pass_time(120)
    first, second = bench.states.read().open
    acked = bench.states.acknowledge(first.id[:8], "ana")
    assert (acked.id, acked.acked_by) == (first.id, "ana")
    bench.pass_time(60)
    rows = {one.id: one.acked_by for one in bench.tracker.alerts()}
    assert rows == {first.id: "ana", second.id: ""}
    for wrong in ("", "nobody"):
        with pytest.raises(BadInput):
            bench.states.acknowledge(wrong, "ana")


def test_silences_end_and_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their time, or by one whose time is over."""
    now_s = bench.states.read().now_s
    bench.states.silence(Silence(kind=Kind.ERRORS, lane="gpt", until_s=now_s + 600))
    bench.states.silence(Silence(kind=Kind.ERRORS, lane="gpt", until_s=now_s + 1_200, who="ana"))
    bench.states.silence(Silence(kind=Kind.ERRORS, until_s=now_s + 60))
    assert [(one.lane, one.who) for one in bench.states.silences()] == [("", ""), ("gpt", "ana")]
    assert 1_000 < bench.client.ttl(keys.ALERT_SILENCES) <= 1_200
    monkeypatch.setattr(alert_states, "SILENCES_MOST", 2)
    with pytest.raises(BadInput):
        bench.states.silence(Silence(kind=Kind.HALT, until_s=now_s + 60))
    bench.states.silence(Silence(kind=Kind.ERRORS, lane="gpt", until_s=0.0))
    bench.states.silence(Silence(kind=Kind.ERRORS, until_s=0.0))
    assert bench.states.silences() == []
    assert bench.client.exists(keys.ALERT_SILENCES) == 0


def test_rows_that_changed_while_they_were_written_are_written_again(bench: Bench) -> None:
    """None is taken away that the database does not have as it is now."""
    bench.seen, bench.away = no_worker(), True
    bench.pass_time(120)
    rows = bench.states.records()
    bench.states.acknowledge(rows[0].id, "ana")
    bench.states.recorded(rows)
    assert [one.acked_by for one in bench.states.records()] == ["ana"]
    bench.states.recorded(bench.states.records())
    assert bench.states.records() == []


@pytest.mark.parametrize("garbage", [b"{", b'{"kind":"of-tomorrow","since_s":1,"seen_s":1,"cause":"x"}'])
def test_what_another_version_wrote_is_left_alone(bench: Bench, garbage: bytes) -> None:
    """It is neither read nor taken away."""
    bench.client.hset(keys.ALERT_STATES, "of-tomorrow:0::", garbage)
    bench.client.rpush(keys.ALERT_NEWS, b"{}")
    bench.seen = no_worker()
    bench.pass_time(120)
    assert bench.open() == [(Kind.NO_WORKER, "gpt", "")]
    assert bench.client.hget(keys.ALERT_STATES, "of-tomorrow:0::") == garbage
    assert bench.client.llen(keys.ALERT_NEWS) == 0


# ── the facts ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_rules_see_of_a_real_lane(redis_client: redis.Redis) -> None:
    """A call that waits where nobody works, and an outcome on its way."""
    scene = Cluster(redis_client)
    scene.lanes.enqueue(entry("a", "gpt"))
    facts = RedisFacts(Live(redis_client, scene.now_us), scene.lanes, Outbox(redis_client))
    now = facts.standing({"*", "unknown"})
    assert [(one.lane, one.waiting, one.workers, list(one.queues)) for one in now.lanes] == [("gpt", 1, 0, ["q"])]
    assert (now.outbox, now.outbox_age_s) == (0, 0.0)
    scene.worker()
    Outbox(redis_client).append([attempt("c-1")])
    now = facts.standing(())
    assert [one.workers for one in now.lanes] == [1]
    assert now.outbox == 1
    assert Outbox(redis_client).age_s(1e10) > 0


def test_calls_that_killed_their_workers_are_found(bench: Bench) -> None:
    """By the cause of their last row; other failures without a category are not."""
    now_s = bench.now_s // 60 * 60
    rows = [
        attempt("k-1", finished_at=now_s - 30, lane="gpt", outcome=Outcome.FAILED, cause="WorkerLostRepeatedly"),
        attempt("d-1", finished_at=now_s - 30, lane="gpt", outcome=Outcome.FAILED, cause="DeadlineExceeded"),
        *(attempt(f"a-{n}", finished_at=now_s - 40, lane="gpt") for n in range(20)),
    ]
    bench.tracker.record(rows)
    found = recorded(bench.queries, bench.now_s)
    assert [one.killed for one in found.functions.values()] == [1]
    bench.evaluator.step()
    assert [kind for kind, _, _ in bench.open()] == [Kind.POISON]


def test_an_open_alert_names_itself() -> None:
    """An id is short enough to be typed."""
    alert = Alert(kind=Kind.HALT, since_s=1.0, seen_s=1.0, cause="x", opened_s=1.0)
    assert alert.open
    assert alert.key == "halt:0::"
