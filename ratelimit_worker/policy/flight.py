"""How many calls may be out at once? A bound that is learned, if the provider has one.

By Little's law (Little 1961), calls out = answers per second × latency. So a provider is just busy with as many calls
as its answers per second × the latency that it has when it is not crowded: the window that TCP Vegas (Brakmo and
Peterson 1995), BBR (Cardwell et al. 2016) and Netflix' concurrency-limits keep. Those take every rise of latency for
a queue. The latency of a model also rises when its answers get longer. So here a rise only starts a *trial*: the lane
goes down to that number of calls, and stays there if as many answers per second come as before. If fewer come, the
lane's own calls were not the cause, and the trial is not repeated for a while.

There are two kinds of evidence, each with its own bound; the narrower one holds:

- *crowd*: refusals for too many calls at once, and not for the rate. Either a refusal says so in words; or refusals
  keep coming at the same number of calls out (`_episode`), and a trial with that number then brings none.
- *knee*: no refusals, but latency grows with the calls out, and answers per second do not. Far beyond a knee (a *jam*)
  too few are answered for a window of them; there the calls out tell (`_jammed`).

Both bounds are raised again by probing: a crowd by one call each `GROW_ANSWERS` answers, and faster while nothing is
refused; a knee by the share `PROBE`, which is kept if answers per second grow with it. In doubt a bound grows: holding
back a lane whose calls are merely long is worse than crowding its provider.

Pure: state, answers and time in, a new state out. Only the tuner (flow/lane/tune.py) writes the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, sqrt

from msgspec import Struct
from msgspec.structs import replace

from ratelimit_worker.calls import DIMENSIONS
from ratelimit_worker.policy.pace import Observation

LEAST_ANSWERS = 40  #: fewer answers in a window allow no conclusion
PROBE_ANSWERS = 80  #: the same for a window in which a knee is probed
FLOOR_ANSWERS = 150  #: the same for a window that may set the uncrowded latency
#: The first answers of a lane are the least crowded ones. So few are a weak measure, used until there is a better one.
FIRST_ANSWERS = 8
#: So few answers allow the conclusion that latency has grown, if it has grown by so much that it cannot be chance.
EARLY_ANSWERS = 16
WINDOW_ANSWERS, WINDOW_S = 200, 30.0  #: a window ends after so many answers, or so many seconds
FLOOR_S = 600.0  #: an uncrowded latency is forgotten after one to two times this long

# crowd
GROW_ANSWERS = 100  #: answers without a refusal after which one call more may be out: about 1 % is refused then
GROW_AGAIN_ANSWERS = 40  #: the same after a step without refusals; each such step is twice as large as the last
JUST_OVER = 0.8  #: a refusal with at least this share of the bound out was one call too many
PRESSED = 0.7  #: mean share of a bound that must be out for it to count as what holds the lane back
#: Refusals that do not say why are counted in episodes. Several episodes are evidence of a crowd if they came with at
#: least so many calls out, and the highest number of calls out is at most a factor above the lowest.
#: Fewer are needed if headers say that enough is left, and more if the refusal names a rate.
EPISODES, TOLD_EPISODES, NAMED_EPISODES = 3, 2, 6
LEAST_CROWD, ALIKE = 4, 1.4
TRIAL_ANSWERS, TRIAL_S = 60, 3.0  #: how long a trial of a crowd must go without refusals
FARED = 0.9  #: ... and the share of the earlier answers per second that it must reach
STRAY = 3  #: an inferred bound is given up after so many episodes of refusals below it, if it has not grown

# knee
LONGER = 1.5  #: latency ÷ uncrowded latency from which on a trial begins
SURE = 8.0  #: standard errors that it must be above that in addition, for latencies that spread as much as their mean
LEAST_KNEE, HEADROOM = 2, 1.25  #: least calls of a knee; factor on the calls out by Little's law
LEAST_OUT = 8  #: fewer calls out, in the mean, start no trial
#: A provider far beyond its knee answers so few calls that a window of answers takes long. So a trial begins too if in
#: one pulse (at least so many seconds and answers, with LEAST_OUT calls out all the time) the mean number of calls out
#: ÷ answers per second, which is the latency of those that are out, is so many times the uncrowded latency.
PULSE_S, PULSE_ANSWERS, JAMMED = 1.0, 6, 4.0
DEEPER = 0.125  #: such a trial goes down to this share of the calls out at most
SETTLES = 1.5  #: so many times their latency after they left, most calls are answered
#: If a trial's latency is still so many times the uncrowded one, and not fewer are answered than before, it is followed
#: at once, after EARLY_ANSWERS, by one with half the calls out.
FAR, FALLS = 3.0, 0.7  #: ... unless its latency falls: below this share of that of the window before
DEEPEST = 0.25  #: one trial goes down to this share of the calls out at most
MORE = 1.25  #: a trial with so many times the answers per second is followed by one with half the calls out
SICK = 0.05  #: share of sick answers above which a slow provider counts as ill and not as crowded
FALLING = 1.0  #: latency ÷ that of the window before: below it, latency still falls and a trial is not decided yet
KEPT = 0.95  #: share of the earlier answers per second that a trial of a knee must reach
UNCROWDED = 1.3  #: up to so many times the uncrowded latency counts as uncrowded
PROBE, GROWS = 0.15, 1 / 3  #: share by which a knee is raised; share of that by which answers per second must grow
CLIMB = 0.5  #: the same share while the lane climbs
HOLD_LEAST_S, HOLD_MOST_S = 0.5, 60.0  #: between probes of a knee; doubled after each that failed
HOLD_EASY_S = 8.0  #: ... but at most this while latency is as if uncrowded
AGAIN_S, AGAIN_MOST_S = 60.0, 1_800.0  #: after a trial that failed; twice as long each time
IDLE_S = 120.0  #: a knee that has held nothing back for so long is forgotten


class Window(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A time in which one bound held, and the answers in it."""

    since: float = 0.0  #: seconds, Redis clock
    skip: int = 0  #: next answers that do not count, since their calls left under another bound
    answers: int = 0
    took_s: float = 0.0  #: time from permit to answer, summed over them
    sick: int = 0  #: sick answers beside them


class Pulse(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A second or so, in which many calls were out all the time."""

    since: float = 0.0  #: seconds, Redis clock
    answers: int = 0
    looks: int = 0
    out: int = 0  #: calls that were out, summed over the looks
    first: int = 0  #: ... at the first of these
    sick: int = 0  #: sick answers beside the good ones


class Crowd(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A bound that was found by refusals."""

    bound: int = 0  #: calls out at once; 0: none is known
    good: int = 0  #: the bound before it last grew: nothing was refused under it
    since: float = 0.0  #: refusals of calls that were sent before are ignored, seconds
    answers: int = 0  #: since it last moved
    step: int = 1  #: calls by which it grows next
    inferred: bool = False  #: concluded from episodes: no refusal has said so in words
    stray: int = 0  #: episodes of refusals below it
    stray_at: float = 0.0  #: the last of these, seconds


class Trial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A running experiment with another bound."""

    width: int
    back: int  #: the bound to return to if it fails; 0: none
    rate: float  #: answers/s before the trial
    answers: int  #: number of answers from which `rate` was measured
    share: float  #: share of `rate` that the trial must reach
    began_at: float  #: seconds
    latency_s: float = inf  #: of its last window; while latency falls, the provider still works off earlier calls
    jam: bool = False  #: it began since far more calls were out than answers account for (`Pulse`)
    settles_at: float = 0.0  #: answers before are mostly to calls that left before the trial, seconds


class FlightState(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"episodes": "suspects"}):
    """What is remembered about the calls out of one lane. Renamed fields are stored under their old names, for older
    versions.
    """

    window: Window = Window()
    pulse: Pulse = Pulse()
    # uncrowded latency: the least mean of a window, seconds; of the present and of the previous FLOOR_S
    floor_s: float = inf
    floor_before_s: float = inf
    floor_at: float | None = None  #: since when it is counted
    floor_first: int = 0  #: from so many first answers it was taken; 0: from a whole window
    crowd: Crowd = Crowd()
    #: Recent refusals that do not say why: (when, calls out, episodes needed as evidence).
    episodes: tuple[tuple[float, int, int], ...] = ()
    crowd_trial: Trial | None = None
    crowd_again_at: float = 0.0  #: no trial before, seconds
    crowd_again_s: float = AGAIN_S
    knee: int = 0  #: calls out at once; 0: none is known
    knee_trial: Trial | None = None  #: downwards where no knee is known, else upwards
    knee_again_at: float = 0.0
    knee_again_s: float = AGAIN_S
    hold_s: float = HOLD_LEAST_S  #: time between probes of a knee
    held_from: float = 0.0  #: when the last probe ended, seconds
    idle_from: float | None = None  #: since when the knee has not held the lane back
    climbs: bool = False  #: the knee was found by a jam, and no probe has failed since: it may be far too low


def bound(state: FlightState) -> int:
    """Calls that may be out at once; 0: no bound is known."""
    bounds = (
        state.crowd_trial.width if state.crowd_trial is not None else state.crowd.bound,
        state.knee_trial.width if state.knee_trial is not None else state.knee,
    )
    return min((bound for bound in bounds if bound), default=0)


def guessed(state: FlightState) -> bool:
    """Whether refusals without a reason are taken to be for too many calls at once; the pace then ignores them."""
    return state.crowd_trial is not None or state.crowd.inferred


# ── what an answer says ────────────────────────────────────────────────────────────────────────────────────────────


def observe(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """The state after one more answer, and whether it was refused for too many calls at once, not for the rate."""
    if seen.refused:
        return _refused(state, seen)
    if seen.good:
        return answered(state, seen.at, 1, max(0.0, seen.at - seen.ticket.sent_at)), False
    if seen.sick:
        pulse = replace(state.pulse, sick=state.pulse.sick + 1)
        state = replace(state, window=replace(state.window, sick=state.window.sick + 1), pulse=pulse)
    return state, False


def answered(state: FlightState, at: float, answers: int, took_s: float) -> FlightState:
    """The state after good answers.

    Args:
        at: When they came, seconds, Redis clock.
        took_s: Time from permit to answer, summed over them, seconds.
    """
    crowd = state.crowd
    if crowd.bound:
        state = replace(state, crowd=replace(crowd, answers=crowd.answers + answers))
    window = state.window
    state = replace(state, pulse=replace(state.pulse, answers=state.pulse.answers + answers))
    if window.skip:  # a report covers some time before it, so it counts as a whole or not at all
        return replace(state, window=replace(window, since=at, skip=max(0, window.skip - answers)))
    return replace(state, window=replace(window, answers=window.answers + answers, took_s=window.took_s + took_s))


def _refused(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """The state after a refusal, and whether it was for too many calls at once; the pace then ignores it."""
    if seen.crowded:
        return _crowded(state, seen, inferred=False), True
    crowd = state.crowd
    if state.crowd_trial is not None:
        return _refused_in_trial(state, seen)
    if not crowd.bound or not crowd.inferred:
        return _episode(state, seen), False
    if seen.ticket.sent_at < crowd.since:
        return state, True  # sent under the bound before
    if crowd.good < crowd.bound and seen.older + 1 >= JUST_OVER * crowd.good:  # expected: the bound was reached
        return _crowded(state, seen, inferred=True), True
    return _strayed(state, seen)


def _strayed(state: FlightState, seen: Observation) -> tuple[FlightState, bool]:
    """A refusal with fewer calls out than the bound: before, as many were out without a refusal."""
    crowd = state.crowd
    if seen.ticket.sent_at <= crowd.stray_at:
        return state, True  # the same episode
    if crowd.stray + 1 >= STRAY:  # the rate was the reason after all
        return _give_up(state, seen.at), False
    return replace(state, crowd=replace(crowd, answers=0, step=1, stray=crowd.stray + 1, stray_at=seen.at)), True


def _crowded(state: FlightState, seen: Observation, *, inferred: bool) -> FlightState:
    """One call was too many: the provider takes as many as were out beside it."""
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
    """A refusal without a reason: note how many calls were out.

    Refusals of one burst are one episode, of which the first counts: the others met the same crowd. If headers say that
    too little is left for the call, it was refused for that.
    """
    if seen.snapshots:
        if any(snapshot.remaining < seen.cost[DIMENSIONS.index(name)] for name, snapshot in seen.snapshots.items()):
            return state
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
    """There is no crowd: the refusals had another reason."""
    again_s = min(AGAIN_MOST_S, 2 * state.crowd_again_s)
    later = replace(state, crowd_again_at=now + state.crowd_again_s, crowd_again_s=again_s)
    return _anew(replace(later, crowd=Crowd(), crowd_trial=None, episodes=()), now)


def _anew(state: FlightState, now: float, out: int = 0) -> FlightState:
    """Begin a new window, once the calls that left under another bound are answered."""
    return replace(state, window=Window(since=now, skip=out))


# ── what time alone changes ────────────────────────────────────────────────────────────────────────────────────────


def step(state: FlightState, now: float, out: int, pace: float, well: bool) -> FlightState:
    """The state some time later; called about ten times a second. Trials begin and end, bounds grow.

    Args:
        now: Seconds, Redis clock.
        out: Calls that are out now.
        pace: Requests/s that the lane may send; inf: any number.
        well: Whether the gate is open and the mode NORMAL. Otherwise nothing is learned, and trials are cancelled.
    """
    if state.floor_at is None:
        state = replace(state, floor_at=now, window=Window(since=now))
    state = _begin_crowd_trial(state, now, out)  # also behind a gate, so that the bound is there when it opens
    if not well:
        return replace(_anew(state, now, out), knee_trial=None, pulse=Pulse(since=now))
    state = _beat(state, now, out)
    if 0 < bound(state) < out:
        state = _anew(state, now, out)  # more calls are out than the bound: none goes until some are answered
    state = _grow_crowd(state, now)
    state = _judge_crowd_trial(state, now)
    state = _note_first(state, now)
    state = _try_knee(state, now, out, pace) if not state.knee else _probe_knee(state, now, out)
    if _is_whole(state.pulse, now):
        state = replace(state, pulse=Pulse(since=now))
    window = state.window
    lasted = now - window.since
    if lasted >= WINDOW_S or (window.answers >= WINDOW_ANSWERS and lasted >= 2 * _latency_s(window)):
        # A trial goes on over several windows until it is decided; everything else uses each window once.
        state = _note_floor(state, now)
        if state.knee_trial is None and state.crowd_trial is None:
            state = replace(state, window=Window(since=now))
    return state


def _latency_s(window: Window) -> float:
    return window.took_s / window.answers if window.answers else 0.0


def _rate(window: Window, now: float) -> float:
    return window.answers / max(1e-6, now - window.since)


def _told(window: Window, now: float, least: int) -> bool:
    """Whether a window is long enough for a conclusion."""
    lasted = now - window.since
    return window.answers >= least and lasted >= max(0.5, _latency_s(window))


def _note_floor(state: FlightState, now: float) -> FlightState:
    window = state.window
    if state.floor_at is not None and now - state.floor_at >= FLOOR_S:
        state = replace(state, floor_before_s=state.floor_s, floor_s=inf, floor_at=now)
    if window.answers < FLOOR_ANSWERS:
        return state
    latency_s = _latency_s(window)
    if state.floor_first and latency_s < LONGER * state.floor_s:
        return replace(state, floor_s=latency_s, floor_first=0)
    return replace(state, floor_s=min(state.floor_s, latency_s))


def _note_first(state: FlightState, now: float) -> FlightState:
    """Take the latency of a new lane's first answers for uncrowded: later windows may all be crowded."""
    window = state.window
    if _floor_s(state) < inf or window.answers < FIRST_ANSWERS or window.sick:
        return state
    floor_s = _latency_s(window)
    return replace(state, floor_s=floor_s, floor_first=window.answers, window=Window(since=now))


def _floor_s(state: FlightState) -> float:
    return min(state.floor_s, state.floor_before_s)


# crowd


def _grow_crowd(state: FlightState, now: float) -> FlightState:
    """Raise the bound if it holds the lane back and nothing was refused for a while."""
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
    # One of the calls out may already have been answered.
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
    """The least number of calls out at which refusals came, if all came at about the same; else None."""
    needed = episodes[-1][2] if episodes else EPISODES
    if len(episodes) < needed:
        return None
    out = [older for _, older, _ in episodes[-needed:]]
    least, most = min(out), max(out)
    return least if least >= LEAST_CROWD and most <= ALIKE * least else None


# knee


def _try_knee(state: FlightState, now: float, out: int, pace: float) -> FlightState:
    """While no knee is known: begin a trial if there may be one, and decide it."""
    trial, window, floor_s = state.knee_trial, state.window, _floor_s(state)
    if trial is not None:
        return _judge_knee(state, trial, now, out)
    if state.crowd_trial is not None or now < state.knee_again_at:
        return state
    if window.sick > SICK * window.answers:
        return state  # the provider is ill, and slow for that reason
    if (jammed := _jammed(state, now, out, pace)) is not None:
        return _anew(replace(state, knee_trial=jammed), now, out)
    if not _told(window, now, EARLY_ANSWERS):
        return state
    rate, latency_s = _rate(window, now), _latency_s(window)
    mean_out = rate * latency_s
    error = sqrt(1 / window.answers + (1 / state.floor_first if state.floor_first else 0.0))
    if latency_s < (LONGER + SURE * error) * floor_s or rate > 0.8 * pace or mean_out < LEAST_OUT:
        return state
    narrow = max(LEAST_KNEE, ceil(max(HEADROOM * rate * floor_s, DEEPEST * mean_out)))
    if narrow > mean_out / LONGER * HEADROOM:
        return state
    begun = Trial(width=narrow, back=0, rate=rate, answers=window.answers, share=KEPT, began_at=now)
    return _anew(replace(state, knee_trial=begun), now, out)


def _beat(state: FlightState, now: float, out: int) -> FlightState:
    """The pulse goes on while many calls are out; else it begins anew."""
    pulse = state.pulse
    if out < LEAST_OUT:
        return replace(state, pulse=Pulse(since=now))
    return replace(state, pulse=replace(pulse, looks=pulse.looks + 1, out=pulse.out + out, first=pulse.first or out))


def _is_whole(pulse: Pulse, now: float) -> bool:
    return pulse.answers >= PULSE_ANSWERS and now - pulse.since >= PULSE_S


def _jammed(state: FlightState, now: float, last: int, pace: float) -> Trial | None:
    """The trial that begins if far more calls are out than the last pulse's answers account for.

    A lane that its pace holds back has no jam: if its answers take longer, more of its calls are out.

    Args:
        last: Calls that are out now.
    """
    pulse, floor_s = state.pulse, _floor_s(state)
    if floor_s == inf or not pulse.looks or not _is_whole(pulse, now):
        return None
    rate, out = pulse.answers / (now - pulse.since), pulse.out / pulse.looks
    sent = rate + (last - pulse.first) / (now - pulse.since)
    if max(rate, sent) > 0.8 * pace or pulse.sick > SICK * pulse.answers or out < JAMMED * rate * floor_s:
        return None
    narrow = max(LEAST_KNEE, ceil(max(HEADROOM * rate * floor_s, DEEPER * out)))
    return _of_jam(narrow, rate, pulse.answers, out / rate, now)


def _of_jam(width: int, rate: float, answers: int, latency_s: float, now: float) -> Trial:
    settles_at = now + SETTLES * latency_s
    return Trial(
        width=width, back=0, rate=rate, answers=answers, share=KEPT, began_at=now, jam=True, settles_at=settles_at
    )


def _judge_knee(state: FlightState, trial: Trial, now: float, out: int) -> FlightState:
    window = state.window
    if trial.jam:
        return _judge_jam(state, trial, now, out)
    if not _told(window, now, LEAST_ANSWERS):
        if now - trial.began_at > 2 * WINDOW_S:
            return _found_knee(state, trial.back, now) if trial.back else _no_knee(state, now, out, inf)
        return state
    rate, latency_s = _rate(window, now), _latency_s(window)
    unsure = sqrt(1 / trial.answers + 1 / window.answers) * trial.rate
    doubtful = abs(rate - trial.share * trial.rate) < unsure
    if doubtful and window.answers < 2 * WINDOW_ANSWERS and now - window.since < WINDOW_S:
        return state
    # Two things must show: as many answers as before, and each as fast as if uncrowded. In doubt there is no knee.
    crowded = latency_s > LONGER * _floor_s(state)
    failed = rate < trial.share * trial.rate or crowded
    more = rate >= MORE * trial.rate and rate - trial.rate > unsure
    if failed and latency_s < FALLING * trial.latency_s:
        return _anew(replace(state, knee_trial=replace(trial, latency_s=latency_s)), now)
    if more and crowded and trial.width > LEAST_KNEE:  # its calls did make the provider slow, and still do
        width = max(LEAST_KNEE, trial.width // 2)
        narrower = Trial(
            width=width, back=trial.width, rate=rate, answers=window.answers, share=KEPT, began_at=now
        )  # fmt: skip
        return _anew(replace(state, knee_trial=narrower), now, out)
    width = ceil(HEADROOM * trial.rate * latency_s)
    if failed and not crowded and width > trial.width:  # uncrowded, but the uncrowded latency was taken for less
        wider = replace(trial, width=width, began_at=now, latency_s=inf)
        return _anew(replace(state, knee_trial=wider, floor_s=latency_s, floor_first=0), now, out)
    if failed and (more or trial.back):
        return _found_knee(state, trial.width if more else trial.back, now)
    if failed:
        return _no_knee(state, now, out, latency_s)
    return _found_knee(state, trial.width, now)


def _judge_jam(state: FlightState, trial: Trial, now: float, out: int) -> FlightState:
    """Decide a trial that began with a jam: a few answers tell whether its calls are too many by far.

    If they are not, its width is a knee, from which the lane climbs fast: it may well be too narrow.
    """
    window, floor_s = state.window, _floor_s(state)
    if now < trial.settles_at:
        return _anew(state, now, out)
    if not _told(window, now, EARLY_ANSWERS):
        return _no_knee(state, now, out, inf) if now - trial.began_at > 2 * WINDOW_S else state
    rate, latency_s = _rate(window, now), _latency_s(window)
    if latency_s <= LONGER * floor_s:
        return replace(_found_knee(state, trial.width, now), climbs=True)
    if latency_s < FAR * floor_s:
        width = max(LEAST_KNEE, min(trial.width, ceil(HEADROOM * rate * floor_s)))
        return replace(_found_knee(state, width, now), climbs=True)
    if latency_s < FALLS * trial.latency_s:  # some of these answers are still to calls that left before
        return _anew(replace(state, knee_trial=replace(trial, latency_s=latency_s)), now, out)
    unsure = sqrt(1 / trial.answers + 1 / window.answers) * trial.rate
    if trial.width == LEAST_KNEE or rate < trial.share * trial.rate - unsure:
        return _no_knee(state, now, out, latency_s)
    narrower = _of_jam(max(LEAST_KNEE, trial.width // 2), rate, window.answers, latency_s, now)
    return _anew(replace(state, knee_trial=narrower), now, out)


def _found_knee(state: FlightState, width: int, now: float) -> FlightState:
    found = replace(state, knee=width, knee_trial=None, knee_again_s=AGAIN_S, hold_s=HOLD_LEAST_S, idle_from=None)
    return replace(found, window=Window(since=now))


def _no_knee(state: FlightState, now: float, out: int, latency_s: float) -> FlightState:
    """With fewer calls out, fewer were answered: the lane's calls do not make the provider slow."""
    again_s = min(AGAIN_MOST_S, 2 * state.knee_again_s)
    later = replace(state, knee_trial=None, knee_again_at=now + state.knee_again_s, knee_again_s=again_s)
    raised = replace(later, floor_s=latency_s, floor_before_s=inf, floor_at=now)  # the old value was chance
    return _anew(raised, now, out)


def _probe_knee(state: FlightState, now: float, out: int) -> FlightState:
    """While a knee is known: probe whether it is higher by now."""
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
    if state.climbs:
        return _anew(replace(state, knee_trial=_wider(state, CLIMB, rate, now)), now, out)
    easy = latency_s <= UNCROWDED * _floor_s(state) and window.answers >= PROBE_ANSWERS
    hold_s = min(HOLD_EASY_S, state.hold_s) if easy else state.hold_s
    if now - state.held_from < hold_s or window.answers < PROBE_ANSWERS:
        return state
    return _anew(replace(state, knee_trial=_wider(state, PROBE, rate, now)), now, out)


def _wider(state: FlightState, by: float, rate: float, now: float) -> Trial:
    """A probe with so many calls more, as a share of the knee's."""
    width = state.knee + max(1, round(by * state.knee))
    share, answers = 1 + (width / state.knee - 1) * GROWS, state.window.answers
    return Trial(width=width, back=state.knee, rate=rate, answers=answers, share=share, began_at=now)


def _judge_probe(state: FlightState, trial: Trial, now: float, out: int) -> FlightState:
    window = state.window
    if not _told(window, now, min(trial.answers, WINDOW_ANSWERS)) and now - window.since < WINDOW_S:
        return state
    enough = window.answers >= (LEAST_ANSWERS if state.climbs else PROBE_ANSWERS)  # with too few to decide, it grows
    if enough and _rate(window, now) < trial.share * trial.rate:
        hold_s = state.hold_s if state.climbs else min(HOLD_MOST_S, 2 * state.hold_s)
        back = replace(state, knee_trial=None, hold_s=hold_s, held_from=now, climbs=False)
        return _anew(back, now, out)
    kept = replace(state, knee=trial.width, knee_trial=None, hold_s=HOLD_LEAST_S, held_from=now)
    return replace(kept, window=Window(since=now))
