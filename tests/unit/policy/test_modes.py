"""The written rule and evidence, step by step, and what each mode does to a lane: pure, in the test's own time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane import MANY
from ratelimit_worker.policy import modes
from ratelimit_worker.policy.modes import Answer, Hold, ModeState, Move, Pin, Rates, Thresholds

RULES = Thresholds()
LITERAL = Thresholds(literal=True)
SELDOM_S = 60.0  #: between two answers of a lane of low volume
RATES = Rates()
LADDER = [Mode.NORMAL, Mode.REDUCED, Mode.EMERGENCY]


def answer(letter: str, at: float, sent_at: float | None = None, older: int = 0) -> Answer:
    """+ good, - sick, q without quota, b with a key that is not accepted, . neither."""
    return Answer(
        at=at,
        sent_at=at - 0.01 if sent_at is None else sent_at,
        sick=letter == "-",
        good=letter == "+",
        quota=letter == "q",
        barred=letter == "b",
        older=older,
    )


def run(
    answers: str, state: ModeState | None = None, *, start: float = 1e6, every: float = 1.0, rules: Thresholds = RULES
) -> tuple[ModeState, list[Move]]:
    """Answers one after the other, each sent just before it came."""
    state, moves = state or ModeState(), []
    for number, letter in enumerate(answers):
        state, move = modes.observe(state, answer(letter, start + number * every), rules)
        moves += [move] if move else []
    return state, moves


def steps(moves: list[Move]) -> list[str]:
    """From and to, in a word."""
    return [f"{move.from_mode.value} {move.to_mode.value}" for move in moves]


@pytest.mark.parametrize(
    ("answers", "mode"),
    [
        ("", Mode.NORMAL),
        ("----", Mode.NORMAL),
        ("-----", Mode.REDUCED),  # 5
        ("+-" * 2, Mode.NORMAL),  # a rate needs 5 answers
        ("+-+-+-", Mode.REDUCED),  # 3 of 6: 50 %
        ("+" * 6 + "-", Mode.NORMAL),  # 1 of 7: 14.3 %
        ("+" * 5 + "-", Mode.REDUCED),  # 1 of 6: 16.7 %
        ("-" * 9, Mode.REDUCED),
        ("-" * 10, Mode.EMERGENCY),  # 10 in all
        ("." * 100, Mode.NORMAL),  # refusals and the caller's own mistakes
    ],
)
def test_the_written_rule_upwards(answers: str, mode: Mode) -> None:
    """15 % (of at least 5) or 5 sick: REDUCED; 30 % or 10: EMERGENCY; literally at any volume, else at a low one."""
    assert run(answers, rules=LITERAL)[0].mode is mode
    assert run(answers, every=SELDOM_S)[0].mode is mode


def test_each_move_says_why() -> None:
    """The cause names the figure and the threshold that it passed."""
    _, moves = run("-" * 10, rules=LITERAL)
    assert steps(moves) == ["NORMAL REDUCED", "REDUCED EMERGENCY"]
    assert [move.cause for move in moves] == [
        "5 sick answers in 15 min (threshold 5)",
        "10 sick answers in 15 min (threshold 10)",
    ]
    assert [(move.numbers["sick"], move.numbers["threshold"]) for move in moves] == [(5, 5), (10, 10)]


def test_what_is_older_than_the_window_is_forgotten() -> None:
    """Four sick answers now and four after 16 minutes are not eight; what is kept is bounded."""
    rules = structs.replace(LITERAL, reduced_rate=100.0)
    state, moves = run("----+", rules=rules)
    state, more = run("----+", state, start=1e6 + 16 * 60, rules=rules)
    assert (state.mode, moves + more) == (Mode.NORMAL, [])
    state, _ = run("+" * 2_000, state, start=1e6 + 20 * 60, every=10.0)
    assert len(state.window) <= modes.HOUR_MIN
    assert len(state.fresh) <= modes.WINDOW_MIN
    assert len(state.minute) <= modes.SPANS
    assert len(state.evidence) <= modes.EVIDENCE_S / modes.SPAN_S


def test_more_than_twenty_in_an_hour_at_low_volume() -> None:
    """Two sick of five are no count in a quarter of an hour here, but over an hour they are many."""
    rules = structs.replace(RULES, reduced_rate=50.0, reduced_count=9, emergency_rate=99.0, emergency_count=99)
    state, moves = run("+-+-+" * 13, every=SELDOM_S, rules=rules)
    assert [(move.cause, move.at) for move in moves] == [("21 sick answers in an hour", 1e6 + 51 * 60)]
    assert state.mode is Mode.REDUCED


def test_rising_latency_makes_a_sick_lane_an_emergency() -> None:
    """By the written rule: more than 15 % sick and getting slower; a sick lane that gets no slower stays REDUCED."""

    def fifteen_minutes(latency_of: Callable[[int], float]) -> list[str]:
        state = ModeState(mode=Mode.REDUCED, since=1.0)
        rules = structs.replace(LITERAL, emergency_rate=90.0, emergency_count=99)
        moves = []
        for number in range(90):
            at, letter = 1e6 + number * 10, "-" if number % 5 == 4 else "+"
            state, move = modes.observe(state, answer(letter, at, at - latency_of(number)), rules)
            moves += [move] if move else []
        return [move.cause for move in moves]

    assert fifteen_minutes(lambda _: 1.0) == []
    assert fifteen_minutes(lambda number: 1.0 + number / 30)[0].startswith("latency rises while ")


def test_a_count_says_nothing_at_high_volume() -> None:
    """5 sick of 1,000 are 0.5 %: by evidence nothing happens, by the letter it is REDUCED."""
    answers = ("+" * 200 + "-") * 5
    assert run(answers, every=0.1)[0].mode is Mode.NORMAL
    assert steps(run(answers, every=0.1, rules=LITERAL)[1])[0] == "NORMAL REDUCED"


def test_five_in_a_row_at_any_volume_are_an_outage() -> None:
    """After a thousand good answers: REDUCED at five, and at ten only probes go out."""
    state, moves = run("+" * 1_000 + "-----", every=0.1)
    assert steps(moves) == ["NORMAL REDUCED"]
    assert moves[0].cause == "5 sick answers in a row"
    assert modes.hold(state, None, state.since, rates=RATES) == Hold(share=0.7)
    state, moves = run("-----", state, start=1e6 + 101, every=0.1)
    assert steps(moves) == ["REDUCED EMERGENCY"]
    assert moves[0].cause == "10 sick answers in a row"
    assert modes.hold(state, None, state.since, rates=RATES) == Hold(probes=1, gap_s=0.6)


def test_calls_that_are_still_out_count_as_healthy() -> None:
    """Failures come back first: five in a row say nothing while three older calls are out, eight do."""
    state, at = run("+" * 100, every=0.1)[0], 1e6 + 10.0
    for number in range(7):
        state, move = modes.observe(state, answer("-", at + number / 10, older=3), RULES)
        assert move is None
    state, move = modes.observe(state, answer("-", at + 0.7, older=3), RULES)
    assert move is not None
    assert (move.cause, move.numbers["threshold"]) == ("8 sick answers in a row", 8.0)


def test_a_share_is_believed_at_its_lower_bound() -> None:
    """By Wilson: 6 of 20 are at least 16 % and enough for REDUCED, 3 of 12 say nothing; older calls dilute them."""
    assert modes.wilson(6, 20) == pytest.approx(0.164, abs=0.001)
    assert modes.wilson(0, 20) == pytest.approx(0.0, abs=1e-12)
    assert modes.wilson(20, 20) == pytest.approx(0.881, abs=0.001)
    assert modes.wilson(0, 0) == 0.0
    assert run("-+++" * 3, every=0.5)[0].mode is Mode.NORMAL
    nearly, moves = run("+++-+++-++" * 2 + "--", every=0.5)
    assert moves == []
    _, move = modes.observe(nearly, answer("-", 1e6 + 11), RULES)
    assert move is not None
    assert move.cause == "7 of 23 answers sick (30.4 %, at least 17.5 % by Wilson, threshold 15 %)"
    assert modes.observe(nearly, answer("-", 1e6 + 11, older=10), RULES)[1] is None


def test_reduced_is_an_experiment() -> None:
    """Where fewer calls do not make for fewer sick ones, the pace comes back by a tenth every four seconds."""
    state = run("++-" * 20, every=0.2)[0]
    assert (state.mode, state.share) == (Mode.REDUCED, 0.7)
    begun = state.since
    shares = []
    for second in range(1, 15):
        state = run("-++", state, start=begun + second, every=0.1)[0]
        state = modes.step(state, begun + second + 0.5)
        shares.append(state.share)
    assert shares[:3] == [0.7] * 3
    assert shares[3] == 0.8
    assert shares[-1] == 1.0
    # Where they do, what was taken stays taken until nearly all is well.
    fewer = run("++-" * 7, every=0.2)[0]
    begun = fewer.since
    for second in range(1, 14):
        fewer = run("-++++++", fewer, start=begun + second, every=0.1)[0]
        fewer = modes.step(fewer, begun + second + 0.9)
    assert (fewer.mode, fewer.share) == (Mode.REDUCED, 0.7)


# ── HALT ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_no_quota_halts_at_once() -> None:
    """The first such answer; whatever was sent before is no way out, a good answer to a later probe is."""
    state, moves = run("+" * 50 + "q", every=0.1)
    assert steps(moves) == ["NORMAL HALT"]
    assert modes.hold(state, None, state.since, rates=RATES) == Hold(probes=1, gap_s=2.0)
    state, move = modes.observe(state, answer("+", state.since + 1, sent_at=state.since - 1), RULES)
    assert move is None
    state, moves = run("q-.", state, start=state.since + 300)
    assert (state.mode, moves) == (Mode.HALT, [])
    state, moves = run("+", state, start=state.since + 600)
    assert steps(moves) == ["HALT NORMAL"]
    assert state.window == ()


def test_a_key_that_nobody_accepts_halts() -> None:
    """Five in a row; a good answer in between says that the key is good and the call was not."""
    assert steps(run("bbbbb")[1]) == ["NORMAL HALT"]
    assert run("bbbb+bbbb+bbbb")[1] == []


def test_a_key_is_asked_for_again_soon_and_then_every_five_minutes() -> None:
    """It may be replaced any moment, and a 401 costs nothing; a used-up quota is not there again in seconds, once
    several calls were told so."""
    state, _ = run("bbbbb")
    gaps = [modes.hold(state, None, state.since + after, rates=RATES).gap_s for after in (0, 20, 50, 150, 151, 9_999)]
    assert gaps == pytest.approx([5.0, 5.0, 10.0, 30.0, 300.0, 300.0])
    state, moves = run("+", state, start=state.since + 20)
    assert steps(moves) == ["HALT NORMAL"]
    halted, _ = run("q", state, start=state.since + 40)
    gaps = []
    for number in range(7):
        gaps.append(modes.hold(halted, None, halted.since, rates=RATES).gap_s)
        halted, _ = run("q", halted, start=halted.since + 40 * (number + 1))
    assert gaps == [2.0, 6.0, 18.0, 30.0, 30.0, 300.0, 300.0]


def test_a_person_lets_a_halted_lane_go_on() -> None:
    """What the law has halted; other modes are the law's to leave."""
    halted = run("q")[0]
    state, move = modes.release(halted, 2e6, "ada")
    assert move is not None
    assert (state.mode, move.to_mode, move.who) == (Mode.NORMAL, Mode.NORMAL, "ada")
    reduced = run("-----", rules=LITERAL)[0]
    assert modes.release(reduced, 2e6, "ada") == (reduced, None)


def test_the_way_back() -> None:
    """EMERGENCY: five good probes, in widths 1, 2, 4 → REDUCED; ten good answers → NORMAL; each empties the window."""
    state, _ = run("-" * 10)
    widths = [state.probes]
    moves: list[Move] = []
    for number in range(5):
        state, more = run("+", state, start=2e6 + number)
        widths.append(state.probes)
        moves += more
    assert widths == [1, 2, 4, 4, 4, 0]
    assert steps(moves) == ["EMERGENCY REDUCED"]
    assert (state.window, state.fresh, state.away_since) == ((), (), None)
    state, moves = run("+" * 9, state, start=2e6 + 10)
    assert moves == []
    state, moves = run("+", state, start=2e6 + 20)
    assert steps(moves) == ["REDUCED NORMAL"]
    assert moves[0].cause == "0 of 10 answers sick since the last change (0 %)"
    assert state.window == ()


def test_who_falls_over_again_proves_itself_longer() -> None:
    """Outages within a minute: 5 good answers end the first, 10 the second; after a quiet minute 5 again."""
    state, _ = run("-" * 10)
    state, moves = run("+" * 15, state, start=1e6 + 11, every=0.1)
    assert steps(moves) == ["EMERGENCY REDUCED", "REDUCED NORMAL"]
    state, _ = run("-" * 10, state, start=1e6 + 20, every=0.1)
    state, moves = run("+" * 9, state, start=1e6 + 22, every=0.1)
    assert (state.mode, state.probes, moves) == (Mode.EMERGENCY, 4, [])
    state, moves = run("+" * 20, state, start=1e6 + 23, every=0.1)
    assert moves[0].cause == "10 good answers in a row to probes"
    state, _ = run("-" * 10, state, start=1e6 + 200, every=0.1)
    assert steps(run("+" * 5, state, start=1e6 + 202, every=0.1)[1]) == ["EMERGENCY REDUCED"]


def test_a_sick_probe_starts_the_way_back_anew() -> None:
    """Four good ones and a bad one: one probe at a time again."""
    state, _ = run("-" * 10)
    state, moves = run("++++-", state, start=2e6)
    assert (state.mode, state.probes, state.good_row, moves) == (Mode.EMERGENCY, 1, 0, [])


@pytest.mark.parametrize(
    ("answers", "mode"),
    [
        ("-" + "+" * 9, Mode.NORMAL),  # 10 % of 10
        ("--" + "+" * 8, Mode.REDUCED),  # 20 %
        ("--" + "+" * 13, Mode.REDUCED),  # 13.3 % of 15: not enough answers for the second rule
        ("-" * 4 + "+" * 26, Mode.REDUCED),  # 13.3 % of 30
        ("-" * 4 + "+" * 33 + "-" + "+" * 2, Mode.NORMAL),  # 5 of 40 are 12.5 %, and 4 of 37 were 10.8 %
    ],
)
def test_hysteresis(answers: str, mode: Mode) -> None:
    """REDUCED ends at ≤ 10 % over ≥ 10 answers, or ≤ 13.5 % over ≥ 40."""
    reduced = ModeState(mode=Mode.REDUCED, since=1.0)
    assert (
        run(answers, reduced, rules=structs.replace(LITERAL, emergency_count=99, emergency_rate=100.0))[0].mode is mode
    )


def test_answers_to_what_was_sent_before_a_change_prove_nothing() -> None:
    """Thirty calls were out when the fifth came back sick: the other twenty-five do not make it EMERGENCY."""
    state, _ = run("-----", every=0.001)
    for number in range(25):
        state, move = modes.observe(state, answer("-", 1e6 + 1 + number, sent_at=1e6 - 1), RULES)
        assert move is None
    assert (state.mode, state.sick_row) == (Mode.REDUCED, 5)


def test_escalation_off() -> None:
    """Nothing moves."""
    off = Thresholds(escalates=False)
    assert run("-" * 50, rules=off) == (ModeState(), [])


_answers = st.lists(
    st.tuples(st.sampled_from("+-.qb"), st.floats(0.0, 200.0), st.floats(0.0, 30.0)), min_size=1, max_size=200
)
_rules = st.builds(
    Thresholds,
    reduced_rate=st.floats(0, 100),
    emergency_rate=st.floats(0, 100),
    reduced_count=st.integers(1, 20),
    emergency_count=st.integers(1, 20),
    literal=st.booleans(),
)


@given(_answers, _rules)
def test_whatever_comes_a_mode_moves_along_the_ladder(
    answers: list[tuple[str, float, float]], rules: Thresholds
) -> None:
    """One step an answer at most, up only on a sick one, down only on a good one; HALT from anywhere, and back to
    NORMAL; EMERGENCY probes; all is bounded."""
    state, at = ModeState(), 1e6
    for letter, pause, latency in answers:
        at += pause
        before = state
        state, move = modes.observe(modes.step(state, at), answer(letter, at, at - latency), rules)
        assert (move is not None) == (state.mode is not before.mode)
        if move is not None:
            assert (move.from_mode, move.to_mode, move.at) == (before.mode, state.mode, at)
            assert before.mode in {Mode.NORMAL, Mode.HALT} or letter == "q" or at - latency >= before.since
        if Mode.HALT in {state.mode, before.mode}:
            assert letter in ("qb" if before.mode is not Mode.HALT else "+qb.-")
            assert state.mode in {Mode.HALT, Mode.NORMAL}
        else:
            moved = LADDER.index(state.mode) - LADDER.index(before.mode)
            assert moved in {"+": (0, -1), "-": (0, 1)}.get(letter, (0,))
        assert (state.away_since is not None) == (state.mode is Mode.EMERGENCY)
        held = modes.hold(state, None, at, rates=RATES)
        assert (held.probes > 0) == (state.mode in {Mode.EMERGENCY, Mode.HALT})
        assert 0 <= held.probes <= modes.PROBES_MOST
        assert held.gap_s in {0, modes.HALT_GAP_S} or 0.6 <= held.gap_s <= 30.0
        assert 0.7 <= held.share <= 1.0
        assert max(len(state.window), len(state.fresh)) <= modes.HOUR_MIN
        assert max(len(state.minute), len(state.evidence)) <= modes.SPANS


@given(st.lists(st.sampled_from("+-."), max_size=60), st.integers(0, 60))
def test_in_batches_as_one_by_one(answers: list[str], cut: int) -> None:
    """Where the tuner looks in between changes nothing."""
    text = "".join(answers)
    whole, moves = run(text)
    first, some = run(text[:cut])
    rest, more = run(text[cut:], first, start=1e6 + len(text[:cut]))
    assert (rest, some + more) == (whole, moves)


# ── what a mode does ───────────────────────────────────────────────────────────────────────────────────────────────


def pin(mode: Mode | None, at: float = 100.0, until: float | None = None, **more: object) -> Pin:
    """A pin by somebody."""
    return Pin(id=f"{mode}{at}", mode=mode, at=at, who="ada", until=until, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "adaptive", "paced", "held"),
    [
        (Mode.NORMAL, True, True, Hold()),
        (Mode.REDUCED, True, True, Hold(share=0.5)),
        (Mode.EMERGENCY, True, True, Hold(rpm=10.0, pause_s=6.0)),
        (Mode.HALT, True, True, Hold(shut=True)),
        (Mode.NORMAL, False, True, Hold(rpm=60.0)),
        (Mode.REDUCED, False, True, Hold(rpm=30.0)),
        (Mode.EMERGENCY, False, True, Hold(rpm=10.0, pause_s=6.0)),
        (Mode.NORMAL, True, False, Hold()),
        (Mode.REDUCED, True, False, Hold(rpm=600.0)),  # half of the 20/s that it sent
        (Mode.EMERGENCY, True, False, Hold(rpm=10.0, pause_s=6.0)),
        (Mode.HALT, True, False, Hold(shut=True)),
    ],
)
def test_what_a_pinned_mode_does(mode: Mode, adaptive: bool, paced: bool, held: Hold) -> None:
    """To a lane with a pace of its own, with a fixed one, and with none."""
    state = ModeState(rate=20.0)
    assert modes.hold(state, pin(mode), 100.0, rates=RATES, adaptive=adaptive, paced=paced) == held


def test_pinned_emergency_pauses_and_then_holds_twice() -> None:
    """At first nothing starts, so that what lay ready goes back; then pace and gap hold, however long a call takes."""
    holds = [modes.hold(ModeState(), pin(Mode.EMERGENCY), at, rates=RATES) for at in (100.0, 105.9, 106.0)]
    assert holds == [*[Hold(rpm=10.0, pause_s=6.0)] * 2, Hold(rpm=10.0, probes=MANY, gap_s=6.0)]


@pytest.mark.parametrize(
    ("mode", "held"),
    [(Mode.NORMAL, Hold()), (Mode.REDUCED, Hold(share=0.8)), (Mode.HALT, Hold(probes=1, gap_s=300.0))],
)
def test_what_the_laws_modes_do(mode: Mode, held: Hold) -> None:
    """REDUCED is a ceiling over the pace; a lane that the law has halted is probed every five minutes."""
    assert modes.hold(ModeState(mode=mode, share=0.8), None, 100.0, rates=RATES) == held


@pytest.mark.parametrize(("since_s", "gap_s"), [(1.0, 0.6), (100.0, 3.0), (3_600.0, 30.0)])
def test_probes_are_a_share_of_the_outage_apart(since_s: float, gap_s: float) -> None:
    """3 % of it, between 0.6 and 30 s; a good probe takes the gap away."""
    away = ModeState(mode=Mode.EMERGENCY, away_since=0.0, probes=1)
    assert modes.hold(away, None, since_s, rates=RATES).gap_s == pytest.approx(gap_s)
    assert modes.hold(structs.replace(away, good_row=1, probes=2), None, since_s, rates=RATES) == Hold(probes=2)


def test_fixed_rates_by_mode() -> None:
    """60, 30 and 10 a minute; a lower rate of its own bounds them all."""
    states = [ModeState(), ModeState(mode=Mode.REDUCED), ModeState(mode=Mode.EMERGENCY, away_since=1.0, probes=1)]
    assert [modes.hold(state, None, 9.0, rates=RATES, adaptive=False).rpm for state in states] == [60.0, 30.0, 10.0]
    slow = Rates(normal=20.0)
    assert [modes.hold(state, None, 9.0, rates=slow, adaptive=False).rpm for state in states] == [20.0, 20.0, 10.0]


@pytest.mark.parametrize(
    ("own", "everywhere", "governs"),
    [
        (None, None, None),
        (pin(Mode.HALT), None, Mode.HALT),
        (pin(Mode.EMERGENCY, 1.0), pin(Mode.HALT, 2.0), Mode.HALT),  # the newest holds, also against a narrower one
        (pin(Mode.NORMAL, 2.0), pin(Mode.HALT, 1.0), Mode.NORMAL),
        (pin(None, 2.0), pin(Mode.HALT, 1.0), None),  # given back to the law though all are pinned
        (pin(None, 1.0), pin(Mode.HALT, 2.0), Mode.HALT),
        (pin(Mode.NORMAL, 2.0, until=49.0), pin(Mode.HALT, 1.0), Mode.HALT),  # ended
        (pin(Mode.NORMAL, 2.0, until=50.0), None, None),
    ],
)
def test_which_pin_governs(own: Pin | None, everywhere: Pin | None, governs: Mode | None) -> None:
    """At second 50."""
    held = modes.governing(own, everywhere, 50.0)
    assert (held.mode if held else None) is governs


def test_how_fast_a_lane_without_pace_went() -> None:
    """Measured over a second or more, in NORMAL only."""
    state = modes.measure(ModeState(), 100.0, 1_000.0)
    assert state.rate == 0.0
    state = modes.measure(state, 100.5, 1_010.0)
    state = modes.measure(state, 101.0, 1_020.0)
    assert state.rate == 20.0
    assert modes.measure(structs.replace(state, mode=Mode.REDUCED), 102.0, 1_021.0).rate == 20.0


def test_counted_answers_are_answers_where_all_is_well() -> None:
    """A count at high volume says nothing, as with answers one by one; in an outage a count proves nothing."""
    state = modes.count_good(ModeState(), 1e6, 1_000)
    assert run("----", state)[0].mode is Mode.NORMAL
    assert run("----" + "+-" * 40, state, every=0.1)[0].mode is Mode.NORMAL  # 44 of 1,084: 4 %
    away, _ = run("-----")
    assert modes.count_good(away, 1e6 + 5, 1_000) == away
    assert len(modes.count_good(state, 1e6 + 61 * 60, 1).window) == 1
