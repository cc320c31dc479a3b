"""What the rules of alerts see: tables of values, and the bounds on both sides."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.contracts.alert import Alert, Kind, Silence, decode, decode_silence, encode, key_of
from ratelimit_worker.contracts.budget import NANO, Budget, Spent
from ratelimit_worker.policy import alert_rules as rules
from ratelimit_worker.policy.alert_rules import Function, LaneStanding, Minute, Recorded, Standing, TaskUnknown
from ratelimit_worker.policy.alert_states import Sight, Symptom, looked
from ratelimit_worker.policy.alerts import of_alert, of_change
from ratelimit_worker.policy.budget import standing
from ratelimit_worker.policy.day import month
from ratelimit_worker.policy.histogram import bucket
from ratelimit_worker.policy.modes.ladder import QUOTA_CAUSE
from ratelimit_worker.policy.trend import LOOK_BACK_MIN, Finding, Trend

T0 = 1_790_000_000.0


def seen(symptoms: Iterable[Symptom]) -> list[tuple[Kind, str, str, Sight]]:
    """Kind, lane, topic, and how bad."""
    return [(one.kind, one.lane, one.about, one.sight) for one in symptoms]


def change(to: Mode, before: Mode = Mode.NORMAL, **more: object) -> ModeChange:
    """Lane gpt goes to a mode."""
    default: dict[str, object] = {"id": "c", "lane": "gpt", "from_mode": before, "to_mode": to, "at": T0, "cause": "x"}
    return ModeChange(**{**default, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("to", "cause", "opens"),
    [
        (Mode.EMERGENCY, "12 of 20 answers were sick", Kind.EMERGENCY),
        (Mode.HALT, "5 answers in a row did not accept the key", Kind.HALT),
        (Mode.HALT, QUOTA_CAUSE, Kind.QUOTA),
        (Mode.REDUCED, "5 sick", None),
        (Mode.NORMAL, "well", None),
    ],
)
def test_a_mode_is_an_alert_and_every_other_is_over(to: Mode, cause: str, opens: Kind | None) -> None:
    """EMERGENCY, HALT, and HALT for a quota."""
    found = rules.of_change(change(to, cause=cause))
    assert {one.kind for one in found} == rules.MODES
    assert [one.kind for one in found if one.sight is Sight.BAD] == ([opens] if opens else [])
    changes = looked({}, found, rules.MODES, T0)
    assert [one.alert.kind for one in changes if one.opened] == ([opens] if opens else [])
    if opens:
        known = {changes[0].alert.key: changes[0].alert}
        back = looked(known, rules.of_change(change(Mode.NORMAL, to, who="ana", reason="ok")), rules.MODES, T0 + 1)
        assert [one.closed for one in back] == [True]
        assert back[0].alert.ended == "NORMAL by ana: ok"
        assert of_alert(back[0].alert) is None  # the mode change tells it


def test_a_notice_of_a_mode_names_the_alert_that_it_begins_or_ends() -> None:
    """So that it can be silenced by kind."""
    kinds = [
        (of_change(change(Mode.EMERGENCY)), "emergency", "critical"),
        (of_change(change(Mode.REDUCED, Mode.EMERGENCY)), "emergency", "warning"),
        (of_change(change(Mode.HALT)), "halt", "critical"),
        (of_change(change(Mode.HALT, cause=QUOTA_CAUSE)), "quota", "critical"),
        (of_change(change(Mode.REDUCED)), "mode", "warning"),
    ]
    for notice, kind, severity in kinds:
        assert notice is not None
        assert (notice.kind, notice.severity) == (kind, severity)


def test_what_redis_says() -> None:
    """A lane that waits for a worker, an unknown task, quotas, modes that no change told of, messages set aside."""
    now = Standing(
        at_s=T0,
        lanes=[
            LaneStanding(lane="fine", mode=Mode.NORMAL, waiting=5, workers=1),
            LaneStanding(lane="alone", mode=Mode.NORMAL, waiting=5, queues=("a", "b"), oldest_age_s=9.0),
            LaneStanding(lane="idle", mode=Mode.NORMAL),
            LaneStanding(lane="away", mode=Mode.EMERGENCY, waiting=3, workers=1),
            LaneStanding(lane="paid", mode=Mode.HALT, for_quota=True),
            LaneStanding(lane="day", mode=Mode.NORMAL, used_up=("500 requests a day",)),
        ],
        unknown=[TaskUnknown(queue="celery", task="t.new", calls=2)],
        everywhere=Mode.HALT,
        set_aside=7,
    )
    bad = Sight.BAD
    assert seen(rules.of_standing(now, 4)) == [
        (Kind.HALT, "*", "", bad),
        (Kind.NO_WORKER, "alone", "", bad),
        (Kind.EMERGENCY, "away", "", bad),
        (Kind.QUOTA, "paid", "", bad),
        (Kind.QUOTA, "day", rules.OF_THE_DAY, bad),
        (Kind.NO_WORKER, "", "t.new", bad),
        (Kind.SET_ASIDE, "", "", bad),
    ]
    assert {one.kind for one in rules.of_standing(now, 4)} <= rules.LIVE
    assert seen(rules.of_standing(Standing(at_s=T0, set_aside=7), 7)) == []


@pytest.mark.parametrize(
    ("entries", "age_s", "sight"),
    [
        (9_999, 20.0, Sight.BETWEEN),
        (10_000, 0.0, Sight.BAD),
        (3, 119.0, Sight.BETWEEN),
        (3, 120.0, Sight.BAD),
        (999, 29.9, None),
    ],
)
def test_the_outbox(entries: int, age_s: float, sight: Sight | None) -> None:
    """By how many wait, and for how long: a deployment with few calls has an outbox too."""
    found = list(rules.of_standing(Standing(at_s=T0, outbox=entries, outbox_age_s=age_s), 0))
    assert [one.sight for one in found] == ([] if sight is None else [sight])


@pytest.mark.parametrize(
    ("failed", "attempts", "sight"),
    [
        (10, 19, Sight.BETWEEN),  # half of them, but few
        (10, 20, Sight.BAD),
        (6, 20, Sight.BETWEEN),  # chance makes 30 % of a tenth
        (30, 100, Sight.BAD),
        (11, 100, Sight.BETWEEN),
        (10, 100, None),
        (0, 0, None),
    ],
)
def test_errors(failed: int, attempts: int, sight: Sight | None) -> None:
    """A fifth of the attempts, even at its lower bound."""
    found = list(rules.of_errors("gpt", [Minute(attempts=attempts, failed=failed), Minute()]))
    assert [one.sight for one in found] == ([] if sight is None else [sight])


def test_a_429_and_what_was_sent_back_is_no_error() -> None:
    """They say that we were fast."""
    minute = Minute()
    outcomes = {"answered": 5, "snoozed:rate_limited": 9, "retried:rate_limited": 9, "retried:timeout": 2, "failed": 1}
    minute.add({bucket(1.0): 5}, outcomes)
    assert (minute.attempts, minute.failed) == (8, 3)


@pytest.mark.parametrize(
    ("outcomes", "killed", "sight"),
    [
        ({"failed:invalid_request": 5}, 0, Sight.BAD),
        ({"failed:invalid_request": 4}, 0, Sight.BETWEEN),
        ({"failed:invalid_request": 50, "answered": 1}, 0, None),
        ({"failed": 1, "answered": 100}, 1, Sight.BAD),
        ({"answered": 3}, 0, None),
    ],
)
def test_functions_that_always_fail(outcomes: dict[str, int], killed: int, sight: Sight | None) -> None:
    """Five calls and no answer, or one that killed its workers."""
    one = Function(killed=killed)
    one.add(outcomes)
    found = list(rules.of_function("gpt", "t.f", one))
    assert [symptom.sight for symptom in found] == ([] if sight is None else [sight])


def test_a_latency_that_comes_back_and_one_that_stays() -> None:
    """The end of the alert says which."""
    slow = Finding(trend=Trend.DEGRADING, before=1.0, latest=2.5, minutes=4, values_before=600, values_latest=80)
    began = rules.of_latency("gpt", slow, None)
    assert (began.sight, began.cause) == (Sight.BAD, "answers take 2.5 s, and took 1 s before")
    was = Alert(kind=Kind.LATENCY, lane="gpt", since_s=T0, seen_s=T0, cause=began.cause, numbers=began.numbers)
    for latest, words in ((1.1, "answers take 1.1 s again"), (2.4, "answers still take 2.4 s, which is usual by now")):
        well = Finding(trend=Trend.STABLE, before=2.0, latest=latest)
        assert rules.of_latency("gpt", well, was).cause == words
    assert rules.of_latency("gpt", Finding(trend=Trend.UNKNOWN), was).cause == "there are too few answers to tell"


def test_a_lane_that_gets_slower_is_found_in_its_minutes() -> None:
    """By the trend of its minutes, with errors beside it."""
    minutes = [Minute(latency={bucket(1.0): 15}, attempts=15) for _ in range(LOOK_BACK_MIN - 8)]
    minutes += [Minute(latency={bucket(3.0): 15}, attempts=30, failed=15) for _ in range(8)]
    found = list(rules.of_recorded(Recorded(lanes={"gpt": minutes}), {}))
    assert seen(found) == [(Kind.LATENCY, "gpt", "", Sight.BAD), (Kind.ERRORS, "gpt", "", Sight.BAD)]
    assert {one.kind for one in found} <= rules.RECORDED


def test_budgets_are_told_by_part_and_period() -> None:
    """50, 80 and 100 %, each under a name of its own; the next day's are others."""

    def parts(spent: float, period: str = "2026-11-30") -> list[str]:
        found = list(rules.of_budget("tenant a", period, spent, 10.0, ends_s=T0 + 60))
        assert all(one.ends_s == T0 + 60 for one in found)
        return [one.about for one in found]

    assert parts(4.99) == []
    assert parts(5.0) == ["tenant a 2026-11-30 50%"]
    assert parts(8.0) == ["tenant a 2026-11-30 80%", "tenant a 2026-11-30 50%"]
    assert len(parts(12.0)) == 3
    assert parts(5.0, "2026-12-01") == ["tenant a 2026-12-01 50%"]
    spent, *_ = rules.of_budget("tenant a", "2026-11-30", 8.0, 10.0, ends_s=T0)
    assert spent.cause == "80% of the budget of tenant a for 2026-11-30 are spent: $8.00 of $10.00"


def test_budgets_of_redis_are_told_by_their_own_days() -> None:
    """As counted there: of a tenant and a lane, for the day and the month."""
    at_s = 1_796_030_000.0  # 2026-11-30 05:53 UTC
    today = int(at_s // 86_400)
    spent = Spent(day=today, day_nanousd=6 * NANO, month=month(today), month_nanousd=95 * NANO)
    both = Budget(usd_per_day=10, usd_per_month=100)
    purses = [standing("tenant:a", both, spent, at_s), standing("lane:gpt", Budget(usd_per_day=100), spent, at_s)]
    found = list(rules.of_purses(purses))
    assert [(one.lane, one.about) for one in found] == [
        ("", "tenant a 2026-11-30 50%"),
        ("", "tenant a 2026-11 80%"),
        ("", "tenant a 2026-11 50%"),
    ]
    assert found[0].ends_s == (today + 1) * 86_400
    purses = [standing("lane:gpt", Budget(usd_per_day=6), spent, at_s)]
    assert next((one.lane, one.about) for one in rules.of_purses(purses)) == ("gpt", "lane gpt 2026-11-30 100%")


def test_what_a_notice_of_an_alert_says() -> None:
    """Its id is the alert's and what happened; the end says why."""
    opened = looked({}, rules.of_standing(Standing(at_s=T0, lanes=[day()]), 0), rules.LIVE, T0)
    notice = of_alert(opened[0].alert)
    assert notice is not None
    said = notice.as_json()
    assert (said["event"], said["kind"], said["severity"]) == ("quota_used_up", "quota", "critical")
    assert said["id"] == f"{opened[0].alert.id}:opened"
    assert said["text"] == "day: quota used up: 500 requests a day are used up"
    closed = replace(opened[0].alert, closed_s=T0 + 60)
    notice = of_alert(closed)
    assert notice is not None
    assert (notice.event, notice.before, notice.after) == ("quota_back", "wrong", "ok")
    assert notice.text == "day: quota back: no longer: 500 requests a day are used up"


def day() -> LaneStanding:
    """A lane whose quota of the day is used up."""
    return LaneStanding(lane="day", mode=Mode.NORMAL, used_up=("500 requests a day",))


def test_alerts_and_silences_are_read_as_they_were_written() -> None:
    """And by a version that does not know the newest field."""
    alert = Alert(kind=Kind.QUOTA, lane="é", about="day", since_s=T0, seen_s=T0, cause="x", numbers={"a": 1.5})
    assert decode(encode(alert)) == alert
    assert decode(encode(alert)[:-1] + b',"newer":1}') == alert
    silence = Silence(kind=Kind.HALT, lane="l", until_s=T0)
    assert decode_silence(encode(silence)) == silence
    assert key_of("a", "b:c", "d") != key_of("a", "b", "c:d")


@pytest.mark.parametrize(
    ("silence", "kind", "lane", "covered"),
    [
        (Silence(kind=Kind.HALT, until_s=T0 + 1), "halt", "any", True),
        (Silence(kind=Kind.HALT, lane="l", until_s=T0 + 1), "halt", "l", True),
        (Silence(kind=Kind.HALT, lane="l", until_s=T0 + 1), "halt", "m", False),
        (Silence(kind=Kind.HALT, lane="l", until_s=T0 + 1), "quota", "l", False),
        (Silence(kind=Kind.HALT, until_s=T0), "halt", "l", False),
    ],
)
def test_what_a_silence_covers(silence: Silence, kind: str, lane: str, covered: bool) -> None:
    """Its kind, its lane or all, until then."""
    assert silence.covers(kind, lane, T0) is covered
