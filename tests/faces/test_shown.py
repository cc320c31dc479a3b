"""What is shown is true: every face has the mode's own words, and figures say what they count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import redis
from msgspec import structs
from sqlalchemy import Engine
from tornado.template import Loader

import ratelimit_worker.flower
from ratelimit_worker.calls import Category, LaneLimits, Mode, Outcome
from ratelimit_worker.cli.figures import AttemptFigures, Attempts, LaneFigures, figures_of, lane_figures
from ratelimit_worker.contracts import lane as contract
from ratelimit_worker.contracts.lane import MANY
from ratelimit_worker.contracts.rollup import Cell, CellKey, Series
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.flow.lane.pin import pin
from ratelimit_worker.flower import wording
from ratelimit_worker.flower.board import Sight, View
from ratelimit_worker.policy.modes import Pin
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.reports import doctor, html, words
from ratelimit_worker.reports.bars import binding, held_by, sentences
from ratelimit_worker.reports.figures import Tally
from ratelimit_worker.reports.live import LaneState, cluster_state
from ratelimit_worker.reports.mode import LADDER, mode_now, severity
from ratelimit_worker.reports.outcomes import Snoozed, snoozed_words, why_snoozed
from ratelimit_worker.reports.stats import stats
from ratelimit_worker.reports.tables import lanes_table, stats_tables, status_table
from ratelimit_worker.stores.database import engine_for
from ratelimit_worker.stores.live import Live
from tests.database.test_queries import NOW, attempt, recorded
from tests.lua.test_explain import Theatre
from tests.unit.reports.test_reports_doctor import CLUSTER, LANE

UNTIL_S = 1_790_000_000.0
PINNED = Pin(id="x", mode=Mode.HALT, at=1.0, who="me", until=UNTIL_S)
FOR_EVER = structs.replace(PINNED, until=None)


@pytest.mark.parametrize(
    ("fields", "pin", "told"),
    [
        ({}, None, "NORMAL"),
        ({"mode": "NORMAL", "width": 9, "probes": 0, "ramp": 9}, None, "NORMAL (ramping up)"),
        ({"mode": "REDUCED", "width": 9, "probes": 0, "ramp": 9}, None, "REDUCED (ramping up)"),
        ({"mode": "NORMAL", "width": 20, "probes": 0, "ramp": 0, "flight": 20}, None, "NORMAL"),
        ({"mode": "REDUCED", "width": 0}, None, "REDUCED"),
        ({"mode": "EMERGENCY", "width": 1, "probes": 1, "ramp": 9}, None, "EMERGENCY (provider away)"),
        ({"mode": "EMERGENCY", "p1": 0.1}, None, "EMERGENCY"),  # fixed rates: no probes
        ({"mode": "HALT", "width": 1, "probes": 1, "gap": 300_000_000}, None, "HALT"),
        ({"mode": "HALT", "pin": "x"}, PINNED, "HALT (pinned by hand until 09-21 14:13:20 UTC)"),
        ({"mode": "HALT", "pin": "x"}, FOR_EVER, "HALT (pinned by hand)"),
        ({"mode": "NORMAL", "pin": "x"}, None, "NORMAL (pinned by hand)"),
        ({"mode": "EMERGENCY", "pin": "x", "width": MANY, "probes": MANY}, FOR_EVER, "EMERGENCY (pinned by hand)"),
        # a provider that is away under a pin of REDUCED is probed; the pin's is the mode
        ({"mode": "REDUCED", "pin": "x", "width": 1, "probes": 1}, FOR_EVER, "REDUCED (pinned by hand)"),
        # a tuner of an older version writes `width` alone
        ({"mode": "NORMAL", "width": 9}, None, "NORMAL"),
        ({"mode": "EMERGENCY", "width": 1}, None, "EMERGENCY (provider away)"),
        ({"mode": "TOMORROW"}, None, "NORMAL"),
    ],
)
def test_a_mode_in_its_own_words(fields: Mapping[str, float | str | bytes], pin: Pin | None, told: str) -> None:
    """Of each mode by the law, by hand, and in a lane that is new."""
    assert str(mode_now(contract.LaneState.of(fields), pin)) == told


def states() -> dict[str, LaneState]:
    """Lanes in every mode, by the words that belong to it."""
    return {
        "ramping up": structs.replace(LANE, ramping=True),
        "REDUCED": structs.replace(LANE, mode=Mode.REDUCED),
        "EMERGENCY": structs.replace(LANE, mode=Mode.EMERGENCY, away=True),
        "provider away": structs.replace(LANE, mode=Mode.EMERGENCY, away=True),
        "HALT": structs.replace(LANE, mode=Mode.HALT),
        "pinned by hand until 09-21 14:13:20 UTC": structs.replace(
            LANE, mode=Mode.HALT, pinned=True, pinned_until_s=UNTIL_S, gate_s=float("inf")
        ),
    }


def page(state: LaneState) -> str:
    """The living part of Flower's page."""
    folder = Path(ratelimit_worker.flower.__file__).parent / "templates"
    sight = Sight(state=structs.replace(CLUSTER, lanes=(state,)), changes=(), missing=())
    made = (
        Loader(str(folder))
        .load("rate-limit-live.html")
        .generate(
            sight=sight,
            words=words,
            wording=wording,
            view=View(),
            address=lambda name, view: name,
            at=lambda name, **asked: name,
        )
    )
    return made.decode()


FACES: dict[str, Callable[[LaneState], str]] = {
    "status": lambda lane: status_table(structs.replace(CLUSTER, lanes=(lane,)), 80),
    "lanes": lambda lane: lanes_table(structs.replace(CLUSTER, lanes=(lane,))),
    "doctor": lambda lane: "\n".join(one.says for one in doctor.judge_lanes(structs.replace(CLUSTER, lanes=(lane,)))),
    "report": lambda lane: " ".join(cell for row in html._now((lane,)).table.rows for cell in row),
    "flower": page,
    "run": lambda lane: figures_of([lane], 0.0).mode,
}


@pytest.mark.parametrize(
    ("face", "words_of_it"),
    [both for both in product(FACES, states()) if both != ("doctor", "ramping up")],  # which is nothing to be found
)
def test_every_face_says_the_mode(face: str, words_of_it: str) -> None:
    """In the same words; and a lane that is well is not said to be anything else."""
    shown = FACES[face](states()[words_of_it])
    assert words_of_it.lower() in " ".join(shown.lower().split())
    if face == "status":
        assert all(len(line) <= 80 for line in shown.splitlines())
    well = FACES[face](LANE).lower()
    assert words_of_it.lower() not in well


@pytest.mark.parametrize("face", ["status", "lanes", "doctor", "flower", "run"])
def test_every_face_says_what_holds_the_next_call(face: str) -> None:
    """As the script says it."""
    held = (Bar(kind=BarKind.GATE, until_s=12.0, detail="refused"), Bar(kind=BarKind.PACE, until_s=0.2))
    lane = structs.replace(LANE, waiting=3, bars=held)
    shown = FACES[face](lane) if face != "run" else figures_of([lane], 0.0).held_by
    assert "gate after a refusal, 12.0 s" in shown
    assert "pace" not in shown.replace("learned     pace", "").replace("pace  tokens", "")


def test_of_several_lanes_the_worst_is_named() -> None:
    """With its mode; where all are well nobody is."""
    lanes = [structs.replace(LANE, lane=f"lane-{mode}", mode=mode) for mode in Mode]
    assert figures_of(lanes, 0.0).mode == "halt on lane-HALT"
    assert figures_of(lanes[:3], 0.0).mode == "emergency on lane-EMERGENCY"
    assert figures_of([LANE, LANE], 0.0).mode == "normal"
    assert figures_of([LANE], 0.0) == LaneFigures(600.0)
    assert figures_of([], 0.0).mode == "normal"
    assert [severity(mode) for mode in LADDER] == [0, 1, 2, 3]


def test_what_a_run_may_send_is_what_its_lanes_allow() -> None:
    """Not a pace that the mode's gap or a shut gate makes nothing of."""
    slow = structs.replace(LANE, mode=Mode.EMERGENCY, gap_s=6.0)
    shut = structs.replace(LANE, mode=Mode.HALT, gate_s=float("inf"))
    free = structs.replace(LANE, levels={})
    assert [figures_of([lane], 0.0).pace_per_min for lane in (slow, shut, free)] == [10.0, 0.0, None]
    assert figures_of([LANE, slow], 0.0).pace_per_min == 610.0


@pytest.mark.server
def test_a_new_lane_is_ramping_up_and_its_provider_is_there(redis_client: redis.Redis) -> None:
    """With all that is real: scripts, tuner, and answers without headers."""
    stage = Theatre(redis_client)
    stage.latency_s = 0.3
    stage.put(*(f"c{number}" for number in range(200)))
    stage.play(1.0)
    lane = cluster_state(Live(redis_client, time_us=stage.now_us).now(), None).lanes[0]
    assert (str(lane.mode_now), lane.away, lane.ramping) == ("NORMAL (ramping up)", False, True)
    assert all("away" not in why for why in stage.told("c190").waits_for)


@pytest.mark.server
@pytest.mark.parametrize("mode", list(Mode))
def test_a_pin_says_until_when(redis_client: redis.Redis, mode: Mode) -> None:
    """In every mode; and it is over when it says."""
    stage = Theatre(redis_client)
    stage.lanes.set_points("gpt", limit_fields(LaneLimits(rpm=600)))
    stage.put("warm")
    stage.play(1.0)
    pin(stage.control, mode, who="me", for_s=100.0)
    lane = cluster_state(Live(redis_client, time_us=stage.now_us).now(), None).lanes[0]
    assert (lane.mode, lane.pinned, lane.pinned_until_s) == (mode, True, pytest.approx(stage.now + 100.0))
    shown = lane_figures(Live(redis_client, time_us=stage.now_us), ["gpt", "unknown"]).mode
    assert shown.startswith(f"{mode.lower()} (pinned by hand until ")
    stage.play(101.0)
    lane = cluster_state(Live(redis_client, time_us=stage.now_us).now(), None).lanes[0]
    assert (lane.pinned, lane.pinned_until_s, str(lane.mode_now)) == (False, None, "NORMAL")


# ── bars in words ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_of_what_ends_by_itself_the_last_counts() -> None:
    """What nobody knows the end of is always told."""
    gate, pace, slots = (
        Bar(kind=BarKind.GATE, until_s=9.0),
        Bar(kind=BarKind.PACE, until_s=3.0, detail="requests"),
        Bar(kind=BarKind.SLOTS, event=True, detail="q"),
    )
    assert binding((gate, pace, slots)) == (gate, slots)
    assert held_by((gate, pace, slots), 1.0) == "gate, 8.0 s; no worker on queue q"
    assert held_by(None, 1.0) == held_by((), 1.0) == ""


#: Kinds of which a parent's own bar may be.
OF_PARENTS = frozenset(
    {
        BarKind.GATE,
        BarKind.PACE,
        BarKind.QUOTA,
        BarKind.PROBES,
        BarKind.RAMP,
        BarKind.FLIGHT,
        BarKind.CONCURRENCY,
        BarKind.TURN,
    }
)


@pytest.mark.parametrize("kind", [kind for kind in BarKind if kind is not BarKind.PARENT])
def test_every_bar_has_a_sentence(kind: BarKind) -> None:
    """For `explain`, and a few words for tables; of a parent's bars too."""
    bar = Bar(kind=kind, until_s=5.0 if kind is BarKind.DUE else None, detail="q", number=2)
    told = sentences((bar,), 0.0, paces={}, parents={}, tried=True)
    assert told
    assert ": " in told[0] or kind is BarKind.CLAIM
    assert held_by((bar,), 0.0)
    if kind in OF_PARENTS:
        whole = Bar(kind=BarKind.PARENT, event=True, detail="org", number=1, parent=bar)
        (sentence,) = sentences((whole,), 0.0, paces={}, parents={}, tried=False)
        assert sentence.startswith("parent org: ")
        assert len(sentence) > len("parent org: ")


# ── figures ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("category", [None, *Category])
def test_a_snoozed_attempt_is_named_for_what_it_met(category: Category | None) -> None:
    """Only a refusal for the rate is a 429; the parts are the whole."""
    tally = Tally([0.0], 60.0)
    refused = 53 if category is Category.RATE_LIMITED else 0
    name = "snoozed" if category is None else f"snoozed:{category.value}"
    tally.add(CellKey(0, Series("a", "t", "", "", "")), Cell(outcomes={name: 53}, refused=refused))
    total, (point,) = tally.total(), tally.timeline()
    assert sum(total.snoozed_by.values()) == total.snoozed == 53
    assert total.snoozed_by == point.snoozed_by == {why_snoozed(category).value: 53}
    assert total.snoozed_by.get("refused", 0) == total.refused == refused
    assert ("429" in snoozed_words(total.snoozed_by)) == bool(refused)
    assert snoozed_words({}) == "none"


@pytest.fixture
def engine(database_url: str) -> Engine:
    return engine_for(database_url)


def test_no_face_calls_an_outage_429s(engine: Engine) -> None:
    """53 attempts into an outage, and none that was refused: nothing that says 429 has a number but 0."""
    rows = [attempt(f"c{i}", Outcome.SNOOZED, category=Category.SERVER_ERROR) for i in range(53)]
    found = stats(recorded(engine, [*rows, attempt("good")]), 900.0, NOW)
    assert (found.total.refused, found.total.snoozed) == (0, 53)
    for face in (stats_tables(found), html.page(found)):
        assert "53 provider away" in face
        assert "snoozed (429)" not in face
        assert "refused (429)" not in face


def test_every_count_of_429s_is_the_same(engine: Engine, database_url: str) -> None:
    """By status, as a used-up quota may have it, or by category, as an SDK without statuses says it."""
    rows = [
        replace(attempt("quota", Outcome.SNOOZED, category=Category.QUOTA_EXHAUSTED, context="run"), status=429),
        replace(attempt("sdk", Outcome.SNOOZED, category=Category.RATE_LIMITED, context="run"), status=None),
        replace(attempt("http", Outcome.RETRIED, category=Category.RATE_LIMITED, context="run"), status=429),
        replace(attempt("sick", Outcome.SNOOZED, category=Category.OVERLOADED, context="run"), status=529),
        attempt("good", context="run"),
    ]
    found = stats(recorded(engine, rows), 900.0, NOW)
    assert found.total.refused == 3
    assert found.timeline[-2].refused + found.timeline[-1].refused == 3
    assert found.total.snoozed_by == {"quota": 1, "refused": 1, "sick": 1}
    recent = recorded(engine, []).queries.recent(NOW - 120.0, NOW)["a"]
    assert (recent.attempts, recent.refused) == (5, 3)
    counted = Attempts(database_url, "run", NOW - 900.0)
    told = counted.now(exactly=True)
    assert told is not None
    assert (told.requests, told.refused) == (5, 3)
    counted.close()
    assert set(found.total.snoozed_by) <= {reason.value for reason in Snoozed}


def test_a_run_shows_no_figure_that_it_does_not_count() -> None:
    """While it goes on; what was joined or cached stands in its summary."""
    assert {"requests", "refused", "retries", "spend"} == {one.name for one in structs.fields(AttemptFigures)}
