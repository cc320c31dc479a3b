"""Budgets of money in the scripts: who goes, who waits until when, who fails, and what is counted."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from msgspec import structs

from ratelimit_worker.calls import LaneLimits, Usage
from ratelimit_worker.config import read_settings
from ratelimit_worker.contracts.budget import NANO, Budget, Charge, Spent
from ratelimit_worker.contracts.call import US, Money
from ratelimit_worker.contracts.lesson import Settlement, Stored
from ratelimit_worker.contracts.plan import Shedding
from ratelimit_worker.errors import BudgetSpent, ConfigurationError, StoreUnavailable
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.duty.record import _priced_late
from ratelimit_worker.flow.lane.budget import Change, at_start, set_budget
from ratelimit_worker.policy import day
from ratelimit_worker.reports.bars import sentences
from ratelimit_worker.reports.budgets import as_plain, budgets_table
from ratelimit_worker.reports.live import cluster_state
from ratelimit_worker.reports.tables import lanes_table, status_table
from ratelimit_worker.reports.words import moment
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.budgets import Budgets
from ratelimit_worker.stores.live import Live
from tests.builders import attempt, entry
from tests.lua.cluster import OPEN, T0_US, Cluster, said
from tests.lua.test_claims import claim

pytestmark = pytest.mark.server

T0_S = T0_US / US  # 2023-11-14 22:13:20 UTC
DAY_S = 86_400.0
CENT = NANO // 100
DAY_END = day.end_s((), int(T0_S // DAY_S))
MONTH_END = datetime(2023, 12, 1, tzinfo=UTC).timestamp()


@pytest.fixture
def cluster(redis_client: redis.Redis) -> Cluster:
    scene = Cluster(redis_client)
    scene.worker(slots=64)
    return scene


def budgets(cluster: Cluster) -> Budgets:
    return Budgets(cluster.client, cluster.now_us)


def set_(cluster: Cluster, **named: Budget | None) -> None:
    budgets(cluster).set({name.replace("_", ":", 1): budget for name, budget in named.items()})


def lane(cluster: Cluster, name: str = "gpt", **bounds: Any) -> None:
    cluster.lanes.set_points(name, {**OPEN, "bounds": json.dumps(bounds) if bounds else ""})


def put(
    cluster: Cluster,
    *refs: str,
    lane: str = "gpt",
    usual: int = 0,
    over: Shedding | None = None,
    context: str = "",
    **more: Any,
) -> list[bool]:
    money = Money(usual, over, context)
    call = {"deadline_in_s": 100 * DAY_S, "money": money, **more}
    return [cluster.lanes.enqueue(entry(ref, lane, **call))[0] for ref in refs]


def end(cluster: Cluster, cost: int, lane: str = "gpt", finish: bool = False) -> str:
    """The next call is made, and costs so much → its reference."""
    tag, begun = cluster.begin()
    assert begun.state == "go"
    told = Settlement(tag=tag, lane=lane, answer=b"answer", lesson=said("good", cost_nanousd=cost), outbox=b"row")
    ref = tag.rpartition(".")[0]
    if finish:
        assert cluster.lanes.finish(told, Stored(f"test:result:{ref}", b"result", 60), True)
        cluster.drop(tag)
    else:
        assert cluster.lanes.settle(told)
        cluster.free(tag)
    return ref


def spent(cluster: Cluster, name: str) -> tuple[int, int]:
    found = budgets(cluster).spent([name])[name]
    return found.day_nanousd, found.month_nanousd


def until(cluster: Cluster, ref: str = "", lane: str = "gpt") -> list[tuple[str, float, str]]:
    """What holds the lane's next call (or this one) back, as far as it is money."""
    told: Any = cluster.lanes.run("bar", (lane, ref))
    return [(one[2].decode(), int(one[1]) / US, one[0].decode()) for one in told[1:] if one[0] == b"budget"]


def test_a_lane_waits_for_the_next_day_when_its_dollars_are_spent(cluster: Cluster) -> None:
    """Calls go while money is left, the first beyond it waits for midnight, and goes then."""
    lane(cluster, usd_per_day=0.05)
    assert put(cluster, *"abcde") == [True] * 5
    for _ in range(5):
        end(cluster, CENT)
    assert spent(cluster, "lane:gpt") == (5 * CENT, 5 * CENT)
    assert put(cluster, "f", "g") == [False, False]
    assert until(cluster) == [("lane:gpt", DAY_END, "budget")]
    assert until(cluster, "g") == [("lane:gpt", DAY_END, "budget")]
    cluster.pump()
    assert cluster.lying() == 0
    cluster.advance(DAY_END - cluster.now_us / US - 1)
    cluster.worker(slots=64)
    cluster.pump()
    assert cluster.lying() == 0
    cluster.live(2)
    assert cluster.ready() == ["f", "g"]
    assert spent(cluster, "lane:gpt") == (2 * CENT, 7 * CENT)  # the day is new, the month is not


@pytest.mark.parametrize("finish", [True, False])
def test_what_is_out_is_reserved_at_the_mean_and_reconciled(cluster: Cluster, finish: bool) -> None:
    """The mean of what the lane's calls have cost is taken on release, and given back or added to when it is known."""
    lane(cluster, usd_per_day=1.0)
    put(cluster, "a", "b")
    assert spent(cluster, "lane:gpt") == (0, 0)  # nobody knows what they cost
    end(cluster, 2 * CENT, finish=finish)
    end(cluster, 4 * CENT, finish=finish)
    put(cluster, "c")
    assert spent(cluster, "lane:gpt")[0] == 9 * CENT
    put(cluster, "d", usual=10 * CENT)  # what its task and model have cost is nearer
    assert spent(cluster, "lane:gpt")[0] == 19 * CENT
    end(cluster, 1 * CENT, finish=finish)
    end(cluster, 30 * CENT, finish=finish)
    assert spent(cluster, "lane:gpt") == (37 * CENT, 37 * CENT)


def test_nothing_is_refused_while_money_is_left_and_what_comes_back_is_used_at_once(cluster: Cluster) -> None:
    """All is reserved, so calls wait; each that costs less than expected lets others go."""
    lane(cluster, usd_per_day=0.40)
    assert put(cluster, *"abcdef", usual=10 * CENT) == [True] * 4 + [False] * 2
    assert until(cluster)[0][1] == DAY_END
    end(cluster, CENT)  # 31 cents are spent or reserved: one more may go, which reserves all
    cluster.pump()
    assert cluster.ready() == ["b", "c", "d", "e"]
    end(cluster, CENT)
    cluster.pump()
    assert cluster.ready() == ["c", "d", "e", "f"]


@pytest.mark.parametrize("of", ["lane", "all", "tenant"])
@pytest.mark.parametrize("finish", [True, False])
def test_a_lane_without_slots_and_money_gets_what_comes_back(redis_client: redis.Redis, of: str, finish: bool) -> None:
    """It would wait for a slot, but for the money: whatever comes first, the lane does not sleep until midnight."""
    cluster = Cluster(redis_client)
    cluster.worker(slots=1)
    lane(cluster)
    room = sum(put(cluster, *(f"before-{number}" for number in range(60))))  # a slot, and messages that lie ready
    redis_client.flushall()
    cluster = Cluster(redis_client)
    cluster.worker(slots=1)
    if of == "lane":
        lane(cluster, usd_per_day=room / 100)
    else:
        lane(cluster)
        set_(cluster, **{"all" if of == "all" else "tenant_t": Budget(usd_per_day=room / 100)})
    refs = [str(number) for number in range(3 * room)]
    assert sum(put(cluster, *refs, usual=1 * CENT, tenant="t")) == room, "the last of them takes the last slot and cent"
    ended = 0
    while cluster.lying():
        end(cluster, CENT // 2, finish=finish)
        cluster.pump()
        ended += 1
    assert ended == 2 * room, "half a cent each: all the money is spent, and no call waits while some is left"
    name = {"lane": "lane:gpt", "all": "all", "tenant": "tenant:t"}[of]
    assert spent(cluster, name)[0] == room * CENT
    assert until(cluster, str(2 * room))[0][0] == name


def test_a_failed_attempt_costs_what_it_was_charged(cluster: Cluster) -> None:
    """429: nothing. An answer that could not be read: its tokens. Neither keeps what was reserved."""
    lane(cluster, usd_per_day=1.0)
    put(cluster, "a", usual=10 * CENT)
    tag, _ = cluster.begin()
    cluster.back(tag, after_s=5, tries=1)
    assert spent(cluster, "lane:gpt") == (0, 0)
    cluster.live(6)
    tag, _ = cluster.begin()
    cluster.drop(tag)
    cluster.lanes.back(tag, "gpt", said("other", cost_nanousd=3 * CENT), after_s=5, tries=1)
    assert spent(cluster, "lane:gpt")[0] == 3 * CENT


def test_what_was_released_and_not_begun_goes_back_and_a_dead_workers_does_not(cluster: Cluster) -> None:
    """An unread call has cost nothing; one that ran when its worker died may have been charged."""
    lane(cluster, usd_per_day=1.0)
    put(cluster, "a", usual=10 * CENT)
    tag, _ = cluster.take()
    cluster.lanes.restore_unbegun([tag])
    cluster.drop(tag)
    cluster.pump()
    assert spent(cluster, "lane:gpt")[0] == 10 * CENT  # it was released again
    tag, _ = cluster.begin()
    cluster.lanes.restore([tag])
    cluster.drop(tag)
    cluster.live(40)
    assert spent(cluster, "lane:gpt")[0] == 20 * CENT


def test_a_tenant_that_has_spent_its_money_holds_up_nobody(cluster: Cluster) -> None:
    """Its calls wait for the next day beside the lane; others of the lane go, and so do they when it is raised."""
    lane(cluster)
    set_(cluster, tenant_a=Budget(usd_per_day=0.01))
    put(cluster, "a1", tenant="a")
    end(cluster, CENT)
    assert put(cluster, "a2", "a3", tenant="a") == [False, False]
    assert put(cluster, "b1", "none", tenant="b") == [True, True]
    assert put(cluster, "b2") == [True]
    assert until(cluster, "a2") == [("tenant:a", DAY_END, "budget")]
    assert budgets(cluster).waiting(["tenant:a"]) == {"tenant:a": 2}
    cluster.run_all()
    cluster.live(60)
    assert cluster.ready() == []
    set_(cluster, tenant_a=Budget(usd_per_day=0.10))
    cluster.pump()
    assert sorted(cluster.ready()) == ["a2", "a3"]


def test_a_context_and_all_calls_have_budgets_too(cluster: Cluster) -> None:
    """The month of all holds every lane; a budget that is taken away holds nobody any more."""
    lane(cluster)
    lane(cluster, "other")
    set_(cluster, context_chat=Budget(usd_per_day=0.02), all=Budget(usd_per_month=0.05))
    put(cluster, "a", "b", context="chat")
    end(cluster, CENT)
    end(cluster, CENT)
    assert put(cluster, "c", context="chat") == [False]
    assert until(cluster, "c") == [("context:chat", DAY_END, "budget")]
    assert put(cluster, "d", lane="other") == [True]
    end(cluster, 3 * CENT, lane="other")
    assert spent(cluster, "all") == (5 * CENT, 5 * CENT)
    assert spent(cluster, "context:chat") == (2 * CENT, 2 * CENT)
    assert put(cluster, "e", lane="other") == [False]
    assert put(cluster, "f") == [False]
    assert until(cluster, lane="other") == [("all", MONTH_END, "budget")]
    set_(cluster, all=None)
    cluster.pump()
    assert sorted(cluster.ready()) == ["e", "f"]


def test_a_parents_budget_holds_all_its_lanes(cluster: Cluster) -> None:
    """A lane shares the dollars of its parent."""
    cluster.lanes.set_points("org", {**OPEN, "shared": 1, "bounds": json.dumps({"usd_per_day": 0.02})})
    lane(cluster, "x", parents=["org"])
    lane(cluster, "y", parents=["org"])
    put(cluster, "a", lane="x")
    end(cluster, 2 * CENT, lane="x")
    assert put(cluster, "b", lane="y") == [False]
    assert until(cluster, lane="y") == [("lane:org", DAY_END, "budget")]


@pytest.mark.parametrize(("named", "more"), [("lane", {}), ("all", {}), ("tenant:t", {"tenant": "t"})])
def test_a_call_that_says_so_fails_in_place_of_waiting(cluster: Cluster, named: str, more: Mapping[str, Any]) -> None:
    """Those that wait when the money ends, and those that come later; the others of the lane wait on."""
    if named == "lane":
        lane(cluster, usd_per_day=0.02)
    else:
        lane(cluster)
        budgets(cluster).set({named: Budget(usd_per_day=0.02)})
    put(cluster, "one", "two", usual=CENT, **more)
    fail = {"over": Shedding.RESULT, **more}
    put(cluster, "waits", usual=CENT, **more)
    put(cluster, "fails", "too", usual=CENT, **fail)
    end(cluster, CENT)
    end(cluster, CENT)
    put(cluster, "later", **fail)
    name = "lane:gpt" if named == "lane" else named
    with pytest.raises(BudgetSpent, match=f"'{name}' is spent until 2023-11-15 00:00 UTC"):
        put(cluster, "told", over=Shedding.RAISE, **more)
    for _ in range(3):
        cluster.pump()
        cluster.advance(1)
    failed = cluster.ready()
    assert sorted(failed) == ["fails", "later", "too"]
    for _ in failed:
        tag, begun = cluster.begin()
        assert begun.state == "settled"
        assert begun.answer
        assert json.loads(begun.answer) == {"error": ["BudgetSpent", [name, int(DAY_END)]]}
        cluster.free(tag)
    assert cluster.lanes.counters()["over_budget"] == 4
    assert cluster.client.zcard("rlw:strict:gpt") == 0
    assert until(cluster, "waits") == [(name, DAY_END, "budget")]


def test_a_followers_wish_is_heeded_and_a_new_leader_is_found(cluster: Cluster) -> None:
    """Its leader fails for money; who follows and would wait takes its place, and waits."""
    lane(cluster, usd_per_day=0.01)
    put(cluster, "first")
    end(cluster, CENT)
    put(cluster, "leads", claim=claim("fp"))
    put(cluster, "follows", claim=claim("fp"), over=Shedding.RESULT)
    put(cluster, "waits", claim=claim("fp"))
    cluster.lanes.set_points("gpt", {"p1": 999})  # somebody looks at the lane
    cluster.pump()
    assert cluster.ready() == ["follows"]
    assert until(cluster, "leads") == [("lane:gpt", DAY_END, "budget")]


def test_days_and_months_end_in_their_zone(cluster: Cluster) -> None:
    """Los Angeles: its midnight, and the first of December there."""
    zone = "America/Los_Angeles"
    steps = day.steps(zone, int(T0_S // DAY_S))
    set_(cluster, all=Budget(usd_per_day=0.01, zone=zone, steps=steps))
    lane(cluster)
    put(cluster, "a")
    end(cluster, CENT)
    put(cluster, "b")
    today = day.number(steps, T0_S)
    assert until(cluster) == [("all", day.end_s(steps, today), "budget")]
    set_(cluster, all=Budget(usd_per_month=0.01, zone=zone, steps=steps))
    assert until(cluster) == [("all", day.month_end_s(steps, today), "budget")]


def test_months_are_pythons(cluster: Cluster) -> None:
    """Scripts and Python agree about the month of any day and its end, over leap years and centuries."""
    drawn = random.Random(7)
    at = [T0_S + drawn.uniform(0, 150 * 366 * DAY_S) for _ in range(300)]
    at += [datetime(year, month, 1, tzinfo=UTC).timestamp() for year in (2024, 2100, 2400) for month in (2, 3, 12)]
    lane(cluster, usd_per_month=1e-9)
    put(cluster, "a")
    for at_s in sorted(at):
        cluster.advance(at_s - cluster.now_us / US)
        cluster.client.hset(keys.spent("lane:gpt"), mapping={"day": 0, "month": day.month(int(at_s // DAY_S)),
                                                             "month_spent": 5, "mean": 0, "answers": 0})  # fmt: skip
        assert until(cluster)[0][1] == day.month_end_s((), int(at_s // DAY_S))


def test_an_answer_of_yesterday_is_no_money_of_today(cluster: Cluster) -> None:
    """Released before midnight, answered after: the day's counter begins with nothing of it, the month has it."""
    lane(cluster, usd_per_day=1.0)
    cluster.advance(DAY_END - T0_S - 1)
    cluster.worker(slots=64)
    put(cluster, "a", usual=2 * CENT)
    cluster.live(3)
    end(cluster, 7 * CENT)
    assert spent(cluster, "lane:gpt") == (0, 7 * CENT)


def test_64_callers_on_one_dollar(cluster: Cluster) -> None:
    """Lognormal costs around two cents: spent is a dollar at least before one waits, and no more than what was out then
    cost beyond its reservation."""
    drawn = random.Random(11)
    lane(cluster, usd_per_day=1.0)
    costs = {f"c{i}": round(drawn.lognormvariate(0, 0.6) * 2 * CENT) for i in range(400)}
    waiting = iter(costs)
    put(cluster, *(next(waiting) for _ in range(64)))
    dearest = max(costs.values())
    while cluster.lying():
        assert cluster.out() <= 64
        tag, begun = cluster.begin()
        assert begun.state == "go"
        ref = tag.rpartition(".")[0]
        lesson = said("good", cost_nanousd=costs[ref])
        cluster.lanes.settle(Settlement(tag=tag, lane="gpt", answer=b"a", lesson=lesson, outbox=b"row"))
        cluster.free(tag)
        put(cluster, next(waiting))
        cluster.pump()
    total = spent(cluster, "lane:gpt")[0]
    assert cluster.out() == 0
    assert NANO <= total <= NANO + 64 * dearest
    assert total - NANO < 10 * CENT, f"{total / NANO:.4f} dollars"  # in truth far less: what is out is reserved
    done = [ref for ref in costs if cluster.client.exists(keys.done(ref))]
    assert total == sum(costs[ref] for ref in done)


def test_without_budgets_nothing_is_written(cluster: Cluster) -> None:
    """A lane that nobody bounds has no key of money."""
    lane(cluster)
    put(cluster, "a", usual=CENT, context="chat", tenant="t")
    end(cluster, CENT)
    found: Any = cluster.client.keys("*spent*") + cluster.client.keys("*unfunded*") + cluster.client.keys("*strict*")
    assert found == []


def test_limits_keep_their_dollars(cluster: Cluster) -> None:
    """What a person told goes into the lane's hash and comes back."""
    limits = LaneLimits(usd_per_day=2.5, usd_per_month=40, day_zone="-08:00", rpm=60)
    cluster.lanes.set_points("gpt", limit_fields(limits))
    told = cluster.lanes.state("gpt").told
    assert (told.limits.usd_per_day, told.limits.usd_per_month) == (2.5, 40)
    assert Budget.of_lane(told.limits, told.day_steps).bounds


def test_a_price_that_is_known_late_is_charged_late(cluster: Cluster) -> None:
    """The recorder looks a price up: what the attempt cost counts then, in all its budgets, on that day."""
    lane(cluster, usd_per_day=0.05)
    set_(cluster, tenant_t=Budget(usd_per_month=1))
    put(cluster, "a", tenant="t")
    end(cluster, 0)
    row = attempt("a", lane="gpt", tenant="t", context="chat", finished_at=T0_S, took_s=0.0)
    known = replace(row, cost_nanousd=6 * CENT, unpriced=Usage(10, 10))
    told = replace(known, call_id="b", unpriced=None)  # its own process knew
    nothing = replace(row, call_id="c", unpriced=Usage(10, 10))
    assert _priced_late([known, told, nothing]) == [Charge("gpt", "t", "chat", 6 * CENT, T0_S)]
    budgets(cluster).charge(_priced_late([known, told, nothing]))
    assert spent(cluster, "lane:gpt") == (6 * CENT, 6 * CENT)
    assert spent(cluster, "tenant:t") == (6 * CENT, 6 * CENT)
    assert put(cluster, "d", tenant="t") == [False]
    budgets(cluster).charge([Charge("gpt", "t", "", CENT, T0_S - DAY_S)])
    assert spent(cluster, "lane:gpt") == (6 * CENT, 7 * CENT)


def test_settings_say_what_no_person_has_said(cluster: Cluster) -> None:
    """MAISD_BUDGETS holds from a worker's start on, changes with it, and gives way to `budgets set`."""
    store = budgets(cluster)
    at_start(
        store, read_settings({"MAISD_BUDGETS": '{"all": {"usd_per_day": 5}, "tenant:t": {"usd_per_month": 9}}'}).budgets
    )
    at_start(store, read_settings({"MAISD_BUDGETS": '{"all": {"usd_per_day": 6, "zone": "-08:00"}}'}).budgets)
    found = store.read()
    assert (found["all"].usd_per_day, found["all"].zone, len(found["all"].steps)) == (6, "-08:00", 2)
    assert found["tenant:t"].usd_per_month == 9
    before, after = set_budget(store, "all", Change(usd_per_day=7))
    assert (before.usd_per_day, after.usd_per_day, after.zone) == (6, 7, "-08:00")
    at_start(store, read_settings({"MAISD_BUDGETS": '{"all": {"usd_per_day": 5}}'}).budgets)
    assert store.read()["all"].usd_per_day == 7
    set_budget(store, "all", Change(usd_per_day=0))
    assert set(store.read()) == {"tenant:t"}


def test_what_was_spent_before_a_budget_was_set_counts_in_it(cluster: Cluster) -> None:
    """Once, whoever says it how often; not in place of more; and not if its day is over."""
    store, today = budgets(cluster), int(T0_S // DAY_S)
    before = Spent(day=today, day_nanousd=4 * CENT, month=day.month(today), month_nanousd=60 * CENT)
    lane(cluster)
    set_budget(store, "all", Change(usd_per_day=0.05, usd_per_month=1), lambda name, budget: before)
    assert spent(cluster, "all") == (4 * CENT, 60 * CENT)
    assert put(cluster, "a") == [True]
    end(cluster, 3 * CENT)
    assert put(cluster, "b") == [False]
    assert until(cluster, "b") == [("all", DAY_END, "budget")]
    told = {"all": {"usd_per_day": 9}}
    at_start(store, read_settings({"MAISD_BUDGETS": json.dumps(told)}).budgets, lambda name, budget: before)
    store.backfill({"all": before, "tenant:nobody's": before})
    assert spent(cluster, "all") == (7 * CENT, 63 * CENT)
    assert spent(cluster, "tenant:nobody's") == (0, 0)
    store.backfill({"all": structs.replace(before, day=today - 1, day_nanousd=CENT * 99, month_nanousd=64 * CENT)})
    assert spent(cluster, "all") == (7 * CENT, 64 * CENT)


@pytest.mark.parametrize("zone", ["America/Santiago", "Africa/Cairo", "Asia/Beirut", "Atlantic/Azores", "-08:00", ""])
def test_a_budget_ends_when_its_day_does(cluster: Cluster, zone: str) -> None:
    """As Python's calendar has it, on each day of a year, also where the clock is changed at midnight."""
    first, ends = int(T0_S // DAY_S), list[float]()
    steps = day.steps(zone, first) if zone else ()
    set_(cluster, all=Budget(usd_per_day=0.01, zone=zone, steps=steps))
    lane(cluster)
    for number in range(first + 1, first + 366):
        if number != first + 1 and (day.offset_s(steps, ends[-1]) == day.offset_s(steps, ends[-1] + 2 * DAY_S)):
            ends.append(day.end_s(steps, number))
            continue  # the clock is not changed around it
        ends.append(day.end_s(steps, number))
        cluster.advance(ends[-1] - 60.0 - cluster.now_us / US)
        spent_all = Spent(day=number, day_nanousd=CENT, month=day.month(number))
        budgets(cluster).backfill({"all": spent_all})
        assert until(cluster) == [("all", ends[-1], "budget")], number


def test_a_database_that_is_away_keeps_no_worker_from_its_budgets(cluster: Cluster) -> None:
    """They count from then on."""

    def away(name: str, budget: Budget) -> Spent:
        raise StoreUnavailable("the database is locked")

    at_start(budgets(cluster), read_settings({"MAISD_BUDGETS": '{"all": {"usd_per_day": 5}}'}).budgets, away)
    assert budgets(cluster).read()["all"].usd_per_day == 5
    assert spent(cluster, "all") == (0, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"everything": {"usd_per_day": 5}}', "use all, tenant:NAME or context:NAME"),
        ('{"lane:x": {"usd_per_day": 5}}', "limits set x --usd-per-day"),
        ('{"all": {}}', "use a table with usd_per_day"),
        ('{"all": {"usd_per_day": 0}}', "usd_per_day|above 0"),
        ('{"all": {"zone": "UTC"}}', "name usd_per_day or usd_per_month"),
        ('{"all": {"usd_per_day": 1, "zone": "Mars"}}', "use a time zone"),
    ],
)
def test_a_budget_that_cannot_be_is_one_sentence(text: str, says: str) -> None:
    """Each names the budget and the fix."""
    with pytest.raises(ConfigurationError, match=says):
        read_settings({"MAISD_BUDGETS": text})


def test_what_is_shown(cluster: Cluster) -> None:
    """Spent, left, its end and who waits: in the live state, as a table, in a line, in `explain`'s words."""
    cluster.now_us = int(cluster.client.time()[0]) * US  # what is shown goes by the server's clock
    cluster.advance(0)
    cluster.worker(slots=64)
    lane(cluster, usd_per_day=0.05, usd_per_month=5)
    put(cluster, "a", "b", usual=3 * CENT)
    put(cluster, "c")
    now = Live(cluster.client).now()
    (one,) = now.budgets
    assert (one.name, one.waiting) == ("lane:gpt", 1)
    assert [(period.name, period.spent_usd, period.left_usd) for period in one.periods] == [
        ("day", 0.06, 0.0),
        ("month", 0.06, 4.94),
    ]
    midnight = day.end_s((), int(now.at_s // DAY_S))
    state = cluster_state(now, {})
    status = status_table(state)
    said_of = "budget lane:gpt is spent: $0.06 of $0.05 this day; its calls wait until"
    for text in (status, lanes_table(state)):
        assert f"{said_of} {moment(midnight)}" in " ".join(text.split()).replace("$0.0600", "$0.06").replace(
            "$0.0500", "$0.05"
        )
    assert "next call held by budget lane:gpt, spent" in status
    assert "$5.00 a month" in lanes_table(state)
    (row,) = [line.split() for line in budgets_table(now.budgets).splitlines() if "month" in line]
    assert row[:5] == ["lane:gpt", "month", "$5.00", "$0.0600", "$4.94"]
    (held,) = now.lanes[0].bars or ()
    (words,) = sentences([held], now.at_s, paces={}, parents={}, tried=False)
    assert words == f"money: the budget 'lane:gpt' of this day is spent; there is money again {moment(midnight)}"
    assert as_plain(now.budgets)[0]["until_s"] == midnight
