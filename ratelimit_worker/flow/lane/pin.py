"""A person sets a mode: the pin is stored first, and then the set-points of every lane that it concerns.

It does not wait for the tuner: the set-points hold for the next permit. If a crash comes between the two, the tuner
completes it, since it looks at the pins. Waiting calls stay where they are, and go on when the lane is given back.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Iterator, Mapping

from msgspec import structs

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.lane import WALK_FIELDS, Fields, GivenBack, LaneState, Write, encode_new
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.call import enqueue
from ratelimit_worker.flow.lane.decide import decide
from ratelimit_worker.flow.lane.events import began, ended_everywhere, tell
from ratelimit_worker.flow.lane.tune import MANY_LANES, ControlPlane
from ratelimit_worker.policy import choices, modes
from ratelimit_worker.policy.modes import ALL, Pin
from ratelimit_worker.ports import LaneView

MOST_WORDS = 500  #: characters of a name or a reason
FROM_SETTING = "MAISD_EMERGENCY_MODE"
#: Most idle lanes that a command sets itself, which takes up to a second; more are left to the tuner, if one is
#: running.
MOST_AT_ONCE = 2_000
NO_PINS: Mapping[str, Pin] = {}  #: for `ended`, when a pin begins


def left_to_tuner(control: ControlPlane) -> bool:
    """Whether idle lanes are so many that the tuner brings a mode for all lanes to them, within seconds."""
    return control.lanes.count() > MOST_AT_ONCE and control.lanes.tuned()


def pin(
    control: ControlPlane,
    mode: Mode,
    *,
    lane: str | None = None,
    for_s: float | None = None,
    reason: str = "",
    who: str,
    now: float | None = None,
) -> list[ModeChange]:
    """Pin a mode; it overrides the law and older pins.

    Args:
        lane: None: all lanes, also future ones.
        for_s: Seconds until the pin ends by itself; None: it stays until `auto`.
        who: The person, for the history.
        now: Seconds since the epoch; Redis clock when None.
    Returns:
        A change for each lane that is concerned, except idle ones that are left to the tuner; if there is no lane yet,
        one change for the lane "*".
    Raises:
        BadInput: `for_s` is not above 0, a text is too long or the lane's name is empty.
        StoreUnavailable: the outbox accepts no event; the pin holds all the same.
    """
    at, made = _checked(control, lane, for_s, reason, who, now)
    made = structs.replace(made, mode=mode)
    names = _first(control) if made.everywhere else [str(lane)]
    before = control.lanes.states(names)
    control.pins.write({ALL if made.everywhere else str(lane): made})
    changes = _told(control, _apply(control, before, at))
    if not made.everywhere:
        return changes
    many = control.lanes.count() > MANY_LANES
    if many or not before:
        _told(control, [began(ALL, Mode.NORMAL, made, at)])
    others = [] if left_to_tuner(control) else _apply_to_idle(control, before, at)
    if not many:
        _told(control, others)
    return [*changes, *others] or [began(ALL, Mode.NORMAL, made, at)]


def auto(
    control: ControlPlane, *, lane: str | None = None, reason: str = "", who: str, now: float | None = None
) -> list[ModeChange]:
    """Give a lane back to the law (None: all lanes, whatever they were pinned to).

    A lane that is given back while all lanes are pinned is exempt from that pin until it ends.

    Returns:
        A change for each lane in which a pin held, or that the law had halted.
    Raises:
        BadInput: a text is too long or the lane's name is empty.
        StoreUnavailable: the outbox accepts no event; the lanes are given back all the same.
    """
    at, made = _checked(control, lane, None, reason, who, now)
    names = _first(control) if made.everywhere else [str(lane)]
    before = dict(control.lanes.states(names))
    pins = control.pins.read()
    everywhere = pins.get(ALL)
    # Mark the pins as ended first and delete them last: after a crash in between, the tuner completes it.
    ended = {
        name: structs.replace(held, until=at, ended_by=who, reason=reason)
        for name, held in pins.items()
        if modes.lives(held, at) and (made.everywhere or name == lane)
    }
    if not made.everywhere and everywhere is not None and modes.lives(everywhere, at):
        control.pins.write({str(lane): structs.replace(made, until=everywhere.until)})
        ended = {}
    control.pins.write(ended)
    given_back = GivenBack(at, who)
    for name, state in before.items():
        if _halted(state):
            control.lanes.set_points(name, given_back.encode())
            before[name] = _given_back(state, given_back)
    changes = _told(control, _apply(control, before, at, ended))
    later = made.everywhere and left_to_tuner(control)
    if made.everywhere:
        many, pinned = control.lanes.count() > MANY_LANES, ended.get(ALL)
        if many and pinned is not None:
            _told(control, [ended_everywhere(pinned, at)])
        others = _apply_to_idle(control, before, at, ended, given_back, halted_only=later)
        changes += others if many else _told(control, others)
    if not later:  # otherwise the tuner does, after it has been to every lane
        control.pins.drop(ended)
    return changes


def at_start(control: ControlPlane, emergency: bool) -> list[ModeChange]:
    """Apply MAISD_EMERGENCY_MODE when a worker starts: EMERGENCY everywhere, once for the whole cluster.

    The pin stays until `auto`, also when workers are started again without the setting.
    """
    if not emergency:
        return []
    held = control.pins.read().get(ALL)
    if held is not None and held.who == FROM_SETTING and modes.lives(held, control.pins.now()):
        return []
    return pin(control, Mode.EMERGENCY, who=FROM_SETTING, reason=f"{FROM_SETTING}=true when a worker started")


def lane_fields(control: ControlPlane, settings: Settings, lane: str) -> Fields:
    """Fields of a new lane: its configured limits, and the mode of a pin that holds there.

    Raises:
        StoreUnavailable: the outbox accepts no event.
    """
    for parent in enqueue.told(settings, lane).parents:  # made here, since no call of its own will make it
        if not control.lanes.state(parent).schema:
            control.lanes.establish(parent, lane_fields(control, settings, parent))
    fields, pins, now = _new_lane(settings, lane), control.pins.read(), control.pins.now()
    if modes.governing(pins.get(lane), pins.get(ALL), now) is None or control.lanes.state(lane).schema:
        return fields
    view = LaneView(lane=lane, state=LaneState.of(fields), seen=())
    decision = decide(view, now, control.rules, pins)
    _told(control, [*decision.changes])
    return {**fields, **decision.set_points}


def _new_lane(settings: Settings, lane: str) -> Fields:
    """A lane's configured limits; a lane without any counts against the bound on lanes."""
    most = None if lane in settings.lanes else settings.max_lanes
    return {**enqueue.lane_fields(settings, lane), **encode_new(most)}


def _checked(
    control: ControlPlane, lane: str | None, for_s: float | None, reason: str, who: str, now: float | None
) -> tuple[float, Pin]:
    if lane is not None:
        choices.name("lane", lane)
    if for_s is not None:
        choices.number("for_s", for_s, choices.MOST_DEADLINE_S)
    for name, words in (("reason", reason), ("who", who)):
        if len(words) > MOST_WORDS:
            raise BadInput(f"{name}={words[:60]!r}…: use at most {MOST_WORDS} characters")
    at = control.pins.now() if now is None else now
    until = None if for_s is None else at + for_s
    everywhere = lane is None or lane == ALL
    return at, Pin(id=uuid.uuid4().hex, mode=None, at=at, who=who, reason=reason, until=until, everywhere=everywhere)


def _apply(
    control: ControlPlane, before: Mapping[str, LaneState], now: float, ended: Mapping[str, Pin] = NO_PINS
) -> list[ModeChange]:
    """Write set-points by the pins that hold, and leave the law's memory to the tuner → what changed.

    The pins are read after each lane's state: of two commands that pin it at the same time, the later one decides.

    Args:
        before: The lanes before the pins were written. Changes are found by comparing with these, since the tuner may
            have applied the pins first; it records the same events, under the same ids.
        ended: Pins that end just now, by lane; the tuner may already have deleted them.
    """
    changes: list[ModeChange] = []
    pins = {**ended, **control.pins.read()}
    for lane, state in before.items():
        changes += decide(LaneView(lane=lane, state=state, seen=()), now, control.rules, pins).changes
        while True:  # repeat if somebody set its limits between our look and our writing
            view = LaneView(lane=lane, state=control.lanes.state(lane), seen=())
            set_points = decide(view, now, control.rules, control.pins.read()).set_points
            # As a new revision, so that a tuner that has not seen the pin cannot overwrite it.
            if not set_points or control.lanes.tell(lane, set_points, view.state.revision):
                break
    return changes


def _first(control: ControlPlane) -> list[str]:
    """Lanes in which a pin of all must hold at once: if there are many, those with calls; the others follow."""
    few = control.lanes.count() <= MANY_LANES
    return list(control.lanes.names() if few else control.lanes.working(MANY_LANES))


def _halted(lane: LaneState) -> bool:
    """Whether the law, and not a person, has halted the lane."""
    return lane.mode is Mode.HALT and not lane.pinned


def _given_back(lane: LaneState, given_back: GivenBack) -> LaneState:
    return structs.replace(lane, memory=structs.replace(lane.memory, given_back=given_back))


def _apply_to_idle(
    control: ControlPlane,
    done: Container[str],
    now: float,
    ended: Mapping[str, Pin] = NO_PINS,
    given_back: GivenBack | None = None,
    *,
    halted_only: bool = False,
) -> list[ModeChange]:
    """The same for all lanes that are not done yet, in small batches → what changed.

    Lanes to which the tuner came first show no change here. New lanes begin with the pin.

    Args:
        ended: As for `_apply`.
        given_back: When and by whom lanes that the law has halted are given back; None: they stay halted.
        halted_only: Only do it for those; the others are left to the tuner.
    """
    changes: list[ModeChange] = []
    for some in _idle(control, done, halted_only):
        writes: dict[str, Write] = {}
        pins = {**ended, **control.pins.read()}
        for lane, found in some.items():
            state, resumed = found, dict[str, float | str | bytes]()
            if given_back is not None and _halted(found):
                resumed, state = given_back.encode(), _given_back(found, given_back)
            decision = decide(LaneView(lane=lane, state=state, seen=()), now, control.rules, pins)
            changes += decision.changes
            if set_points := {**resumed, **decision.set_points}:
                writes[lane] = Write(state.revision, set_points, by_person=True)
        control.lanes.set_points_of(writes)
    return changes


def _idle(control: ControlPlane, done: Container[str], halted_only: bool) -> Iterator[Mapping[str, LaneState]]:
    for some in control.lanes.survey(WALK_FIELDS if halted_only else ()):
        found = {seen.lane: seen.state for seen in some if seen.lane not in done and seen.state.there}
        if halted_only:
            yield control.lanes.states([lane for lane, state in found.items() if _halted(state)])
        else:
            yield found


def _told(control: ControlPlane, changes: list[ModeChange]) -> list[ModeChange]:
    for change in changes:
        tell(control.mode_log, change)
    return changes
