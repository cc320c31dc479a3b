"""How many calls may be out at once? A bound that is learned where the provider has one, and none where it has not.

Little's law (Little 1961) ties what is out to what is answered: calls out = answers a second × latency. So the width
at which a provider is just busy is its answers a second × the latency that it has when it is not crowded, which is the
window that TCP Vegas (Brakmo and Peterson 1995), BBR (Cardwell et al. 2016) and the limiters of Netflix'
concurrency-limits keep. Those take every rise of the latency for a queue. A model's latency also rises when its answers
get longer, so here a rise is only a reason to *try*: the lane goes back to that width, and keeps it if as many answers
a second come as before. If fewer come, the latency was not of our making, and the trial is not repeated for a while.

Two kinds of evidence, each with a bound of its own; the narrower holds:

- *crowd*: refusals that are about calls at once and not about a rate. A refusal says so in words; or refusals come
  again and again at the same number of calls out (`_episode`), and then a trial with that width must bring none.
- *knee*: no refusals, but latency grows with what is out, and answers a second do not.

Both are probed upwards: a crowd by one call each `GROW_ANSWERS` answers, faster while nobody is refused; a knee by
`PROBE` of its width, kept if answers a second grow with it. In doubt a bound grows: to strangle a lane whose calls are
merely long is worse than to crowd its provider.

Pure: state, answers and time in, a new state out. The tuner (flow/lane/tune.py) is its only writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, sqrt

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import DIMENSIONS
from ratelimit_worker.policy.pace import Observation

LEAST_ANSWERS = 40  #: of a window: below that nothing is concluded
PROBE_ANSWERS = 80  #: ... and nothing from a probe of a knee
FLOOR_ANSWERS = 150  #: of a window that may say how long an answer takes when nobody crowds the provider
WINDOW_ANSWERS, WINDOW_S = 200, 30.0  #: a window ends with so many answers, or after so long
FLOOR_S = 600.0  #: how long an answer took is forgotten after once to twice so long

# crowd
GROW_ANSWERS = 100  #: answers without a refusal after which one call more may be out: about 1 % is refused then
GROW_AGAIN_ANSWERS = 40  #: the same, for twice as many more, when the last ones were not refused
JUST_OVER = 0.8  #: a refusal with at least this share of the bound out was for one too many; below, the bound is lower
PRESSED = 0.7  #: share of a bound that must be out in the mean for it to be what holds the lane back
#: Refusals that do not say what they are about are looked at in episodes: so many, at so many calls out or more, the
#: most at most so many times the least.
EPISODES, TOLD_EPISODES, NAMED_EPISODES = 3, 2, 6  #: ... fewer where headers say that enough is left, more for a rate
LEAST_CROWD, ALIKE = 4, 1.4
TRIAL_ANSWERS, TRIAL_S = 60, 3.0  #: how long a trial with that width must go without refusals
FARED = 0.9  #: ... and the share of the answers a second before that must come in it
STRAY = 3  #: episodes of refusals under a bound that nobody has named and that has not grown, with which it is given up

# knee
LONGER = 1.5  #: times the latency of an uncrowded provider from which on a trial is worth it
SURE = 8.0  #: standard deviations of that on top, for latencies that spread as much as their mean
LEAST_KNEE, HEADROOM = 4, 1.25  #: no knee is looked for below so many calls; of the width by Little's law
DEEPEST = 0.25  #: share of what is out below which one trial does not go
SICK = 0.05  #: share of sick answers up to which a slow provider is taken to be crowded
FALLING = 1.0  #: of the latency of the window before: it still falls, so a trial is not decided yet
KEPT = 0.95  #: of the answers a second before that must come in a trial
UNCROWDED = 1.3  #: times the latency of an uncrowded provider that is as good as it
PROBE, GROWS = 0.15, 1 / 3  #: of a knee's width, upwards; share of it by which answers a second must grow
HOLD_LEAST_S, HOLD_MOST_S = 0.5, 60.0  #: between probes of a knee: twice as long after each that failed
HOLD_EASY_S = 8.0  #: ... and at most this while answers come as fast as from a provider that nobody crowds
AGAIN_S, AGAIN_MOST_S = 60.0, 1_800.0  #: after a trial that failed; twice as long each time
IDLE_S = 120.0  #: a knee that has held nothing back for so long is forgotten


class Window(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stretch of time in which one width held, and what was answered in it."""

    since: float = 0.0  #: seconds, Redis clock
    skip: int = 0  #: answers that are still to come of calls that left under another width; they do not count
    answers: int = 0
    took_s: float = 0.0  #: all of them together, from permit to answer
    sick: int = 0  #: sick answers beside them


class Crowd(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A bound that refusals have shown."""

    bound: int = 0  #: calls out at once; 0: none is known
    good: int = 0  #: the bound before it grew last: nobody was refused under it
    since: float = 0.0  #: refusals of calls that were sent before say nothing of it
    answers: int = 0  #: since it last moved
    step: int = 1  #: calls by which it grows next
    inferred: bool = False  #: no refusal has said so in words
    stray: int = 0  #: episodes of refusals that do not fit to it
    stray_at: float = 0.0  #: the last of these, seconds


class Trial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An experiment that is under way: what if so many calls were out at once?"""

    width: int
    back: int  #: the bound that holds again if it fails; 0: none
    rate: float  #: answers/s before it
    answers: int  #: from which that was counted
    share: float  #: of that rate that must come
    began_at: float  #: seconds
    latency_s: float = inf  #: of the last window that spoke against it; while it falls, calls from before are answered


class FlightState(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"episodes": "suspects"}):
    """All that is remembered of the calls out of one lane.

    What is renamed is kept under its old name, which earlier versions read.
    """

    window: Window = Window()
    # how long an answer takes when nobody crowds the provider: least mean of a window, seconds; now and the time before
    floor_s: float = inf
    floor_before_s: float = inf
    floor_at: float | None = None  #: since when it is counted
    crowd: Crowd = Crowd()
    #: Refusals of late that do not say what they are about: (when, calls out, how many make evidence).
    episodes: tuple[tuple[float, int, int], ...] = ()
    crowd_trial: Trial | None = None
    crowd_again_at: float = 0.0  #: no trial before, seconds
    crowd_again_s: float = AGAIN_S
    knee: int = 0  #: calls out at once; 0: none is known
    knee_trial: Trial | None = None  #: downwards where no knee is known, else upwards
    knee_again_at: float = 0.0
    knee_again_s: float = AGAIN_S
    hold_s: float = HOLD_LEAST_S  #: of a knee, between probes
    held_from: float = 0.0  #: since the last probe, seconds
    idle_from: float | None = None  #: since when the knee has held nothing back


def bound(state: FlightState) -> int:
    """Calls that may be out at once; 0: no bound is known."""
    bounds = (
        state.crowd_trial.width if state.crowd_trial is not None else state.crowd.bound,
        state.knee_trial.width if state.knee_trial is not None else state.knee,
    )
    return min((bound for bound in bounds if bound), default=0)


def guessed(state: FlightState) -> bool:
    """Whether refusals that did not say so are taken to be about calls at once: then they taught the pace nothing."""
    return state.crowd_trial is not None or state.crowd.inferred


# ── what an answer says ────────────────────────────────────────────────────────────────────────────────────────────


def observe(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """The state after one more answer, and whether it was refused for calls at once: that says nothing of a rate."""
    if seen.refused:
        return _refused(state, seen)
    if seen.good:
        return answered(state, seen.at, 1, max(0.0, seen.at - seen.ticket.sent_at)), False
    if seen.sick:
        state = replace(state, window=replace(state.window, sick=state.window.sick + 1))
    return state, False


def answered(state: FlightState, at: float, answers: int, took_s: float) -> FlightState:
    """The state after good answers.

    Args:
        at: When they came, seconds, Redis clock.
        took_s: All of them together, from permit to answer, seconds.
    """
    crowd = state.crowd
    if crowd.bound:
        state = replace(state, crowd=replace(crowd, answers=crowd.answers + answers))
    window = state.window
    if window.skip:  # those of one report came in the time before it, so it counts as a whole or not at all
        return replace(state, window=replace(window, since=at, skip=max(0, window.skip - answers)))
    return replace(state, window=replace(window, answers=window.answers + answers, took_s=window.took_s + took_s))


def _refused(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """The state after a refusal, and whether it was about calls at once: then the pace has nothing to learn from it."""
    if seen.crowded:
        return _crowded(state, seen, inferred=False), True
    crowd = state.crowd
    if state.crowd_trial is not None:
        return _refused_in_trial(state, seen)
    if not crowd.bound or not crowd.inferred:
        return _episode(state, seen), False
    if seen.ticket.sent_at < crowd.since:
        return state, True  # sent under the bound before
    if crowd.good < crowd.bound and seen.older + 1 >= JUST_OVER * crowd.good:  # as was to be expected of a bound
        return _crowded(state, seen, inferred=True), True
    return _strayed(state, seen)


def _strayed(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """A refusal that does not fit to the bound which earlier ones suggest: so many were out before without one."""
    crowd = state.crowd
    if seen.ticket.sent_at <= crowd.stray_at:
        return state, True  # of the same episode
    if crowd.stray + 1 >= STRAY:  # it was the rate after all
        return _give_up(state, seen.at), False
    return replace(state, crowd=replace(crowd, answers=0, step=1, stray=crowd.stray + 1, stray_at=seen.at)), True


def _crowded(state: FlightState, seen: Observation, *, inferred: bool) -> FlightState:
    """One call was too many: those that were out beside it, and are still, are what the provider takes."""
    crowd, sent_at = state.crowd, seen.ticket.sent_at
    if crowd.bound and sent_at < crowd.since:
        return state  # sent under the bound before
    others = max(1, seen.older)
    if not crowd.bound or others < JUST_OVER * crowd.good:
        bound = others
    elif crowd.good < crowd.bound:
        bound = crowd.good
    else:
        bound = max(1, crowd.bound - 1)
    fresh = Crowd(bound=bound, good=bound, since=seen.at, inferred=inferred)
    return _anew(replace(state, crowd=fresh, crowd_trial=None, episodes=()), seen.at, others)


def _episode(state: FlightState, seen: Observation) -> FlightState:
    """A refusal that does not say what it is about: at how many calls out did it come?

    Refusals of one burst are one episode, and the first of it counts: the others were sent into the same crowd.
    """
    if seen.snapshots and all(
        snapshot.remaining >= seen.cost[DIMENSIONS.index(name)] for name, snapshot in seen.snapshots.items()
    ):
        needed = TOLD_EPISODES
    else:
        needed = NAMED_EPISODES if seen.stated or seen.refused_dimension is not None else EPISODES
    last = state.episodes[-1] if state.episodes else None
    if last is not None and seen.ticket.sent_at <= last[0]:
        return state
    episode = (seen.at, max(1, seen.older), needed)
    return replace(state, episodes=(*state.episodes, episode)[-NAMED_EPISODES:])


def _refused_in_trial(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    trial = state.crowd_trial
    assert trial is not None
    if seen.ticket.sent_at < trial.began_at:
        return state, True
    state, crowded = _strayed(state, seen)
    if state.crowd_trial is None:
        return state, crowded
    narrower = replace(trial, width=max(1, trial.width - 1))
    return _anew(replace(state, crowd_trial=narrower), seen.at, seen.older), True


def _give_up(state: FlightState, now: float) -> FlightState:
    """No crowd: the refusals were about something else."""
    again_s = min(AGAIN_MOST_S, 2 * state.crowd_again_s)
    later = replace(state, crowd_again_at=now + state.crowd_again_s, crowd_again_s=again_s)
    return _anew(replace(later, crowd=Crowd(), crowd_trial=None, episodes=()), now)


def _anew(state: FlightState, now: float, out: int = 0) -> FlightState:
    """Count from when all that are out, and were sent under another width, are answered."""
    return replace(state, window=Window(since=now, skip=out))


# ── what time alone changes ────────────────────────────────────────────────────────────────────────────────────────


def step(state: FlightState, now: float, out: int, pace: float, well: bool) -> FlightState:
    """The state some time later, about ten times a second: trials begin and end, bounds grow.

    Args:
        now: Seconds, Redis clock.
        out: Calls that are out now.
        pace: Requests/s that the lane may send; inf: any number.
        well: Whether the gate is open and the mode NORMAL. Else nothing is learned, and trials are broken off.
    """
    if state.floor_at is None:
        state = replace(state, floor_at=now, window=Window(since=now))
    state = _begin_crowd_trial(state, now, out)  # behind a gate too: what it opens for must find the width
    if not well:
        return replace(_anew(state, now, out), knee_trial=None)
    if 0 < bound(state) < out:
        state = _anew(state, now, out)  # more are out than may be: nobody goes until they are answered
    state = _grow_crowd(state, now)
    state = _judge_crowd_trial(state, now)
    state = _try_knee(state, now, out, pace) if not state.knee else _probe_knee(state, now, out)
    window = state.window
    lasted = now - window.since
    if lasted >= WINDOW_S or (window.answers >= WINDOW_ANSWERS and lasted >= 2 * _latency_s(window)):
        # A trial goes on until it is decided; of all else only what is new counts.
        state = _note_floor(state, now)
        if state.knee_trial is None and state.crowd_trial is None:
            state = replace(state, window=Window(since=now))
    return state


def _latency_s(window: Window) -> float:
    return window.took_s / window.answers if window.answers else 0.0


def _rate(window: Window, now: float) -> float:
    return window.answers / max(1e-6, now - window.since)


def _told(window: Window, now: float, least: int) -> bool:
    """Whether a window is long enough to conclude from."""
    lasted = now - window.since
    return window.answers >= least and lasted >= max(0.5, _latency_s(window))


def _note_floor(state: FlightState, now: float) -> FlightState:
    window = state.window
    if state.floor_at is not None and now - state.floor_at >= FLOOR_S:
        state = replace(state, floor_before_s=state.floor_s, floor_s=inf, floor_at=now)
    if window.answers < FLOOR_ANSWERS:
        return state
    return replace(state, floor_s=min(state.floor_s, _latency_s(window)))


def _floor_s(state: FlightState) -> float:
    return min(state.floor_s, state.floor_before_s)


# crowd


def _grow_crowd(state: FlightState, now: float) -> FlightState:
    """No refusal for a while, and the bound is what holds the lane back: a few more."""
    crowd = state.crowd
    if not crowd.bound or state.crowd_trial is not None:
        return state
    due = GROW_ANSWERS * (2 if crowd.inferred else 1) if crowd.step == 1 else GROW_AGAIN_ANSWERS
    if crowd.answers < max(due, crowd.bound):
        return state
    window = state.window
    if _told(window, now, 1) and _rate(window, now) * _latency_s(window) < PRESSED * crowd.bound:
        return replace(state, crowd=replace(crowd, answers=0))
    bound = crowd.bound + crowd.step
    step = min(2 * crowd.step, 2 if crowd.inferred else max(1, bound // 2))
    return replace(state, crowd=replace(crowd, bound=bound, good=crowd.bound, since=now, answers=0, step=step))


def _begin_crowd_trial(state: FlightState, now: float, out: int) -> FlightState:
    if state.crowd_trial is not None or state.crowd.bound or now < state.crowd_again_at:
        return state
    least = _alike(state.episodes)
    if least is None:
        return state
    window = state.window
    before = _rate(window, now) if _told(window, now, LEAST_ANSWERS) else 0.0
    # One of those that were out may have been on its way back.
    begun = Trial(width=least - 1, back=0, rate=before, answers=window.answers, share=FARED, began_at=now)
    return _anew(replace(state, crowd_trial=begun, crowd=Crowd()), now, out)


def _judge_crowd_trial(state: FlightState, now: float) -> FlightState:
    trial, window = state.crowd_trial, state.window
    if trial is None or not _told(window, now, TRIAL_ANSWERS) or now - window.since < TRIAL_S:
        return state
    if _rate(window, now) < trial.share * trial.rate:
        return _give_up(state, now)
    found = Crowd(bound=trial.width, good=trial.width, since=now, inferred=True)
    return replace(state, crowd=found, crowd_trial=None, crowd_again_s=AGAIN_S)


def _alike(episodes: Sequence[tuple[float, int, int]]) -> int | None:
    """The least number of calls out at which refusals came, where all came at about the same; None: they did not."""
    needed = episodes[-1][2] if episodes else EPISODES
    if len(episodes) < needed:
        return None
    out = [older for _, older, _ in episodes[-needed:]]
    least, most = min(out), max(out)
    return least if least >= LEAST_CROWD and most <= ALIKE * least else None


# knee


def _try_knee(state: FlightState, now: float, out: int, pace: float) -> FlightState:
    """No knee is known: is one worth a trial, and how did it go?"""
    trial, window, floor_s = state.knee_trial, state.window, _floor_s(state)
    if trial is not None:
        return _judge_knee(state, trial, now, out)
    if state.crowd_trial is not None or now < state.knee_again_at or not _told(window, now, LEAST_ANSWERS):
        return state
    if window.sick > SICK * window.answers:
        return state  # a provider that is ill is slow, and not because of us
    rate, latency_s = _rate(window, now), _latency_s(window)
    mean_out = rate * latency_s
    if latency_s < (LONGER + SURE / sqrt(window.answers)) * floor_s or rate > 0.8 * pace or mean_out < 2 * LEAST_KNEE:
        return state
    narrow = max(LEAST_KNEE, ceil(max(HEADROOM * rate * floor_s, DEEPEST * mean_out)))
    if narrow > mean_out / LONGER * HEADROOM:
        return state
    begun = Trial(width=narrow, back=0, rate=rate, answers=window.answers, share=KEPT, began_at=now)
    return _anew(replace(state, knee_trial=begun), now, out)


def _judge_knee(state: FlightState, trial: Trial, now: float, out: int) -> FlightState:
    window = state.window
    if not _told(window, now, LEAST_ANSWERS):
        if now - trial.began_at > 2 * WINDOW_S:
            return _no_knee(state, now, out, inf)
        return state
    rate, latency_s = _rate(window, now), _latency_s(window)
    unsure = sqrt(1 / trial.answers + 1 / window.answers) * trial.rate
    doubtful = abs(rate - trial.share * trial.rate) < unsure
    if doubtful and window.answers < 2 * WINDOW_ANSWERS and now - window.since < WINDOW_S:
        return state
    # Both must show: as many answers as before, each as fast as where nobody crowds. In doubt it is no knee.
    failed = rate < trial.share * trial.rate or latency_s > LONGER * _floor_s(state)
    if failed and latency_s < FALLING * trial.latency_s:
        return _anew(replace(state, knee_trial=replace(trial, latency_s=latency_s)), now)
    if failed:
        return _no_knee(state, now, out, latency_s)
    found = replace(state, knee=trial.width, knee_trial=None, knee_again_s=AGAIN_S, hold_s=HOLD_LEAST_S, idle_from=None)
    return replace(found, window=Window(since=now))


def _no_knee(state: FlightState, now: float, out: int, latency_s: float) -> FlightState:
    """Fewer were out, and fewer were answered: it is not us who make the provider slow."""
    again_s = min(AGAIN_MOST_S, 2 * state.knee_again_s)
    later = replace(state, knee_trial=None, knee_again_at=now + state.knee_again_s, knee_again_s=again_s)
    raised = replace(later, floor_s=latency_s, floor_before_s=inf, floor_at=now)  # what we took for it was chance
    return _anew(raised, now, out)


def _probe_knee(state: FlightState, now: float, out: int) -> FlightState:
    """A knee is known: does it lie higher by now?"""
    window, trial = state.window, state.knee_trial
    if trial is not None:
        return _judge_probe(state, trial, now, out)
    if not _told(window, now, LEAST_ANSWERS):
        return state
    rate, latency_s = _rate(window, now), _latency_s(window)
    if rate * latency_s < PRESSED * state.knee:
        idle_from = state.idle_from if state.idle_from is not None else now
        return replace(state, knee=0 if now - idle_from >= IDLE_S else state.knee, idle_from=idle_from)
    state = replace(state, idle_from=None)
    easy = latency_s <= UNCROWDED * _floor_s(state) and window.answers >= PROBE_ANSWERS
    hold_s = min(HOLD_EASY_S, state.hold_s) if easy else state.hold_s
    if now - state.held_from < hold_s or window.answers < PROBE_ANSWERS:
        return state
    wider = state.knee + max(1, round(PROBE * state.knee))
    share = 1 + (wider / state.knee - 1) * GROWS
    begun = Trial(width=wider, back=state.knee, rate=rate, answers=window.answers, share=share, began_at=now)
    return _anew(replace(state, knee_trial=begun), now, out)


def _judge_probe(state: FlightState, trial: Trial, now: float, out: int) -> FlightState:
    window = state.window
    if not _told(window, now, min(trial.answers, WINDOW_ANSWERS)) and now - window.since < WINDOW_S:
        return state
    enough = window.answers >= PROBE_ANSWERS  # else nobody knows, and it grows
    if enough and _rate(window, now) < trial.share * trial.rate:
        back = replace(state, knee_trial=None, hold_s=min(HOLD_MOST_S, 2 * state.hold_s), held_from=now)
        return _anew(back, now, out)
    kept = replace(state, knee=trial.width, knee_trial=None, hold_s=HOLD_LEAST_S, held_from=now)
    return replace(kept, window=Window(since=now))
