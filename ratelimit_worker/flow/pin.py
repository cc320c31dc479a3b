"""How does a person set a mode? A pin: written down first, then put into every lane that it concerns, at once.

It does not wait for the tuner: the set-points hold for the next permit. What a crash leaves undone between the two, the
tuner does, since it looks at the pins. Waiting calls stay where they are; when the lane is given back they go on.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow import enqueue
from ratelimit_worker.flow.tune import RESUMED, ControlPlane, began, decide, mode_of, tell
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
    names = control.lanes.names() if made.everywhere else [str(lane)]
    before = {name: control.lanes.fields(name) for name in names}
    control.pins.write({ALL if made.everywhere else str(lane): made})
    return _told(
        control, _apply(control, before, control.pins.read(), at) if before else [began(ALL, Mode.NORMAL, made, at)]
    )


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
    names = control.lanes.names() if made.everywhere else [str(lane)]
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
    for name, fields in before.items():
        if mode_of(fields) is Mode.HALT and not fields.get("pin"):  # the law's own
            given_back = f"{at!r} {who}"
            control.lanes.set_points(name, {RESUMED: given_back})
            before[name] = {**fields, RESUMED: given_back.encode()}
    # A tuner that was quicker has dropped what has ended.
    changes = _apply(control, before, {**ended, **control.pins.read()}, at)
    control.pins.drop(ended)
    return _told(control, changes)


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
    fields, pins, now = enqueue.lane_fields(settings, lane), control.pins.read(), control.pins.now()
    if modes.governing(pins.get(lane), pins.get(ALL), now) is None or "schema" in control.lanes.fields(lane):
        return fields
    view = LaneView(lane=lane, fields={name: str(value).encode() for name, value in fields.items()}, seen=())
    decision = decide(view, now, control.rules, pins)
    _told(control, [*decision.changes])
    return {**fields, **decision.set_points}


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


def _told(control: ControlPlane, changes: list[ModeChange]) -> list[ModeChange]:
    for change in changes:
        tell(control.mode_log, change)
    return changes
