"""How does a person set a mode? A pin: written down first, then put into every lane that it concerns, at once.

It does not wait for the tuner: the set-points hold for the next permit. What a crash leaves undone between the two, the
tuner does, since it looks at the pins. Waiting calls stay where they are; when the lane is given back they go on.
"""

from __future__ import annotations

import uuid
from collections.abc import Container, Mapping
from dataclasses import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.contracts.call import MOST_LANES
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow import enqueue
from ratelimit_worker.flow.tune import MANY_LANES, RESUMED, ControlPlane, began, decide, ended_everywhere, mode_of, tell
from ratelimit_worker.policy import choices, modes
from ratelimit_worker.policy.modes import ALL, Pin
from ratelimit_worker.ports import LaneView

MOST_WORDS = 500  #: characters of a name or a reason
FROM_SETTING = "MAISD_EMERGENCY_MODE"


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
    """Pin a mode; it wins over the law, and over older pins.

    Args:
        lane: None: all lanes, also those that come later.
        for_s: Seconds until the pin ends by itself; None: it stays until `auto`.
        who: The person, for the history.
        now: Seconds since the epoch; Redis clock when None.
    Returns:
        A change for each lane that is concerned; where none is known yet, one for the lane "*".
    Raises:
        BadInput: `for_s` is not above 0, a word is too long or a lane has no name.
        StoreUnavailable: the outbox takes no event; the pin holds all the same.
    """
    at, made = _checked(control, lane, for_s, reason, who, now)
    made = replace(made, mode=mode)
    names = _first(control) if made.everywhere else [str(lane)]
    before = {name: control.lanes.fields(name) for name in names}
    control.pins.write({ALL if made.everywhere else str(lane): made})
    pins = control.pins.read()
    changes = _told(control, _apply(control, before, pins, at))
    if not made.everywhere:
        return changes
    many = control.lanes.count() > MANY_LANES
    if many or not before:
        _told(control, [began(ALL, Mode.NORMAL, made, at)])
    others = _apply_to_idle(control, before, pins, at)
    if not many:
        _told(control, others)
    return [*changes, *others] or [began(ALL, Mode.NORMAL, made, at)]


def auto(
    control: ControlPlane, *, lane: str | None = None, reason: str = "", who: str, now: float | None = None
) -> list[ModeChange]:
    """Give a lane back to the law (None: all lanes, whatever they were pinned to).

    A lane that is given back while all are pinned is exempt from that pin for as long as it holds.

    Returns:
        A change for each lane in which a pin held, or that the law had halted.
    Raises:
        BadInput: a word is too long or the lane has no name.
        StoreUnavailable: the outbox takes no event; the lanes are given back all the same.
    """
    at, made = _checked(control, lane, None, reason, who, now)
    names = _first(control) if made.everywhere else [str(lane)]
    before = {name: control.lanes.fields(name) for name in names}
    pins = control.pins.read()
    everywhere = pins.get(ALL)
    # Marked as ended first and dropped last: what a crash leaves undone in between, the tuner sees and does.
    ended = {
        name: replace(held, until=at, ended_by=who, reason=reason)
        for name, held in pins.items()
        if modes.lives(held, at) and (made.everywhere or name == lane)
    }
    if not made.everywhere and everywhere is not None and modes.lives(everywhere, at):
        control.pins.write({str(lane): replace(made, until=everywhere.until)})
        ended = {}
    control.pins.write(ended)
    given_back = f"{at!r} {who}"
    for name, fields in before.items():
        if _halted(fields):
            control.lanes.set_points(name, {RESUMED: given_back})
            before[name] = {**fields, RESUMED: given_back.encode()}
    # A tuner that was quicker has dropped what has ended.
    pins = {**ended, **control.pins.read()}
    changes = _told(control, _apply(control, before, pins, at))
    if made.everywhere:
        many, pinned = control.lanes.count() > MANY_LANES, ended.get(ALL)
        if many and pinned is not None:
            _told(control, [ended_everywhere(pinned, at)])
        others = _apply_to_idle(control, before, pins, at, given_back)
        changes += others if many else _told(control, others)
    control.pins.drop(ended)
    return changes


def at_start(control: ControlPlane, emergency: bool) -> list[ModeChange]:
    """What MAISD_EMERGENCY_MODE asks for when a worker starts: EMERGENCY everywhere, once for the whole cluster.

    The pin stays until `auto`, also when workers are started again without the setting.
    """
    if not emergency:
        return []
    held = control.pins.read().get(ALL)
    if held is not None and held.who == FROM_SETTING and modes.lives(held, control.pins.now()):
        return []
    return pin(control, Mode.EMERGENCY, who=FROM_SETTING, reason=f"{FROM_SETTING}=true when a worker started")


def lane_fields(control: ControlPlane, settings: Settings, lane: str) -> Mapping[str, float | str]:
    """What a lane that may be new starts with: what was configured, and the mode by hand that holds there.

    Raises:
        StoreUnavailable: the outbox takes no event.
    """
    for parent in enqueue.told(settings, lane).parents:  # no call of its own makes it
        if "schema" not in control.lanes.fields(parent):
            control.lanes.establish(parent, lane_fields(control, settings, parent))
    fields, pins, now = _new_lane(settings, lane), control.pins.read(), control.pins.now()
    if modes.governing(pins.get(lane), pins.get(ALL), now) is None or "schema" in control.lanes.fields(lane):
        return fields
    view = LaneView(lane=lane, fields={name: str(value).encode() for name, value in fields.items()}, seen=())
    decision = decide(view, now, control.rules, pins)
    _told(control, [*decision.changes])
    return {**fields, **decision.set_points}


def _new_lane(settings: Settings, lane: str) -> Mapping[str, float | str]:
    """What was configured of a lane; one of which nothing was must fit in with the others."""
    fields = enqueue.lane_fields(settings, lane)
    return {**fields, enqueue.CONFIGURED: 1} if lane in settings.lanes else {**fields, MOST_LANES: settings.max_lanes}


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
    control: ControlPlane, before: Mapping[str, Mapping[str, bytes]], pins: Mapping[str, Pin], now: float
) -> list[ModeChange]:
    """Write the set-points of the pins that govern, and leave what the law remembers to the tuner → what changed.

    Args:
        before: The lanes as they were before the pins were written. What changed is told from there: the tuner may have
            seen the pins first, and then the lanes show no change any more; it tells the same, under the same ids.
    """
    changes: list[ModeChange] = []
    for lane, fields in before.items():
        changes += decide(LaneView(lane=lane, fields=fields, seen=()), now, control.rules, pins).changes
        view = LaneView(lane=lane, fields=control.lanes.fields(lane), seen=())
        if set_points := decide(view, now, control.rules, pins).set_points:
            control.lanes.set_points(lane, set_points)
    return changes


def _first(control: ControlPlane) -> list[str]:
    """Lanes in which a pin of all must hold at once: of many those with calls; the others follow some at a time."""
    few = control.lanes.count() <= MANY_LANES
    return list(control.lanes.names() if few else control.lanes.working(MANY_LANES))


def _halted(fields: Mapping[str, bytes]) -> bool:
    """Whether the law has halted the lane, not a person."""
    return mode_of(fields) is Mode.HALT and not fields.get("pin")


def _apply_to_idle(
    control: ControlPlane, done: Container[str], pins: Mapping[str, Pin], now: float, given_back: str = ""
) -> list[ModeChange]:
    """The same for all lanes but those that are done, a batch at a time, so that nobody waits for it → what changed.

    What the tuner did first shows no change here. Lanes that come meanwhile begin with the pin.

    Args:
        given_back: When and who, for lanes that the law has halted; "": they stay so.
    """
    changes: list[ModeChange] = []
    for some in control.lanes.survey():
        writes: dict[str, Mapping[str, float | str]] = {}
        for seen in some:
            if seen.lane in done or not seen.fields:
                continue
            fields, resumed = seen.fields, {}
            if given_back and _halted(fields):
                resumed = {RESUMED: given_back}
                fields = {**fields, RESUMED: given_back.encode()}
            decision = decide(LaneView(lane=seen.lane, fields=fields, seen=()), now, control.rules, pins)
            changes += decision.changes
            if set_points := {**resumed, **decision.set_points}:
                writes[seen.lane] = set_points
        control.lanes.set_points_of(writes)
    return changes


def _told(control: ControlPlane, changes: list[ModeChange]) -> list[ModeChange]:
    for change in changes:
        tell(control.mode_log, change)
    return changes
