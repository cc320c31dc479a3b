"""When an alert opens and closes: by what rules see, and a clock; it never flaps, and a gap proves nothing."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.policy.alert_states import GAP_S, MOST, RULES, Change, Sight, Symptom, looked, over

T0 = 1_790_000_000.0
KINDS = frozenset({Kind.ERRORS, Kind.NO_WORKER})
RULE = RULES[Kind.ERRORS]
LOOK_S = 15.0


def bad(sight: Sight = Sight.BAD, **more: object) -> Symptom:
    """Many of lane gpt's attempts fail."""
    return structs.replace(Symptom(kind=Kind.ERRORS, lane="gpt", sight=sight, cause="many fail"), **more)


class Watcher:
    """What is known, look by look."""

    def __init__(self) -> None:
        self.known: dict[str, Alert] = {}
        self.opened: list[float] = []
        self.closed: list[float] = []

    def look(self, at_s: float, *symptoms: Symptom) -> list[Change]:
        changes = looked(self.known, symptoms, KINDS, T0 + at_s)
        for change in changes:
            if change.opened:
                self.opened.append(at_s)
            if change.closed:
                self.closed.append(at_s)
            if change.closed or change.gone:
                del self.known[change.alert.key]
            else:
                self.known[change.alert.key] = change.alert
        return changes


def test_it_opens_when_it_has_held_and_closes_when_its_end_has() -> None:
    """Not before, and once each."""
    watcher = Watcher()
    for look in range(200):
        at_s = look * LOOK_S
        watcher.look(at_s, *([bad()] if at_s < 1_000 else []))
    assert watcher.opened == [RULE.open_after_s]
    first_good_s = next(look * LOOK_S for look in range(200) if look * LOOK_S >= 1_000)
    assert watcher.closed == [first_good_s + RULE.close_after_s]


def test_what_ends_before_it_has_held_is_no_alert() -> None:
    """The waiting begins anew."""
    watcher = Watcher()
    for at_s in (0, 60, 90):
        watcher.look(at_s, bad())
    watcher.look(105)
    assert watcher.known == {}
    watcher.look(120, bad())
    watcher.look(120 + RULE.open_after_s - 1, bad())
    assert watcher.opened == []
    watcher.look(120 + RULE.open_after_s, bad())
    assert len(watcher.opened) == 1


def test_between_the_bounds_an_alert_stays_as_it_is() -> None:
    """It opens none, and closes none."""
    watcher = Watcher()
    for look in range(100):
        watcher.look(look * LOOK_S, bad(Sight.BETWEEN))
    assert watcher.known == {}
    for look in range(100, 120):
        watcher.look(look * LOOK_S, bad())
    for look in range(120, 300):
        watcher.look(look * LOOK_S, bad(Sight.BETWEEN))
    assert len(watcher.opened) == 1
    assert watcher.closed == []


def test_what_comes_and_goes_is_one_alert() -> None:
    """Good for less than it takes to close, again and again."""
    watcher = Watcher()
    for look in range(400):
        watcher.look(look * LOOK_S, *([] if look % 20 >= 10 else [bad()]))
    assert len(watcher.opened) == 1
    assert watcher.closed == []


def test_a_gap_between_looks_proves_nothing() -> None:
    """Nobody knows what was while nobody looked: neither that it held, nor that it was over."""
    watcher = Watcher()
    watcher.look(0, bad())
    watcher.look(GAP_S + 1_000, bad())
    assert watcher.opened == []
    watcher.look(GAP_S + 1_000 + RULE.open_after_s, bad())
    assert len(watcher.opened) == 1
    watcher.look(5_000)
    watcher.look(5_000 + GAP_S + RULE.close_after_s)
    assert watcher.closed == []


def test_other_kinds_stay_as_they_are() -> None:
    """A look that could not ask the database closes nothing that rests on it."""
    watcher = Watcher()
    for look in range(20):
        watcher.look(look * LOOK_S, bad())
    assert looked(watcher.known, (), frozenset({Kind.NO_WORKER}), T0 + 10_000) == []


def test_words_and_figures_are_those_of_when_it_opened() -> None:
    """With an id that tells it from the next of its kind."""
    watcher = Watcher()
    watcher.look(0, bad(cause="first", numbers={"failed": 1.0}))
    (change,) = watcher.look(RULE.open_after_s, bad(cause="then", numbers={"failed": 9.0}))
    assert (change.alert.cause, change.alert.numbers["failed"]) == ("then", 9.0)
    assert change.alert.since_s == T0
    assert len(change.alert.id) == 10
    (again,) = watcher.look(RULE.open_after_s + 15, bad(cause="later"))
    assert (again.alert.cause, again.alert.id) == ("then", change.alert.id)


def test_one_with_an_end_closes_then() -> None:
    """As a budget's alert with its day, whether anybody looks at budgets or not."""
    budget = Symptom(kind=Kind.BUDGET, about="all 2026-11-30 80%", cause="80 %", ends_s=T0 + 100)
    (made,) = looked({}, [budget], (), T0)
    assert made.opened
    known = {made.alert.key: made.alert}
    assert over(known, T0 + 99) == []
    (ended,) = over(known, T0 + 100)
    assert ended.closed
    assert ended.alert.closed_s == T0 + 100


def test_there_are_never_more_than_so_many() -> None:
    """Ten thousand lanes without a worker."""
    many = [Symptom(kind=Kind.NO_WORKER, lane=f"l{n}", cause="none") for n in range(10 * MOST)]
    assert len(looked({}, many, KINDS, T0)) == MOST


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_has_a_rule(kind: Kind) -> None:
    """That says how long it has to hold."""
    assert RULES[kind].open_after_s >= 0
    assert RULES[kind].close_after_s >= 0


@given(st.lists(st.sampled_from(list(Sight)), min_size=1, max_size=200))
def test_openings_and_closings_take_turns_and_lie_apart(sights: list[Sight]) -> None:
    """Whatever is seen: an opening after it held, a closing after its end held, never two of a sort in a row."""
    watcher = Watcher()
    for look, sight in enumerate(sights):
        watcher.look(look * LOOK_S, bad(sight))
    events = sorted([(at, "open") for at in watcher.opened] + [(at, "close") for at in watcher.closed])
    assert [name for _, name in events] == (["open", "close"] * len(events))[: len(events)]
    for (before, _), (after, name) in pairwise(events):
        assert after - before >= (RULE.close_after_s if name == "close" else RULE.open_after_s)
    for at_s in watcher.opened:
        held = [sights[int(s // LOOK_S)] for s in range(int(at_s - RULE.open_after_s), int(at_s) + 1, int(LOOK_S))]
        assert set(held) == {Sight.BAD}
