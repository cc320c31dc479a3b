"""What happens when a person changes a lane's limits? What was named changes, what was not stays, also the mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ratelimit_worker.calls import SCHEMA_VERSION, LaneLimits
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.enqueue import MOST_NAME, limit_fields
from ratelimit_worker.flow.tune import ControlPlane, decide, limits_of
from ratelimit_worker.ports import LaneView

#: A tuner that looked at the lane just before may write what it then found; by now it has.
_TUNER_WRITES_WITHIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was named. None: not named, stays."""

    rpm: float | None = None  #: 0: no limit any more
    tpm: float | None = None  #: 0: no limit any more
    concurrency: int | None = None  #: 0: no limit any more
    unlimited: bool | None = None
    adaptive: bool | None = None


def changed(before: LaneLimits, change: Change) -> LaneLimits:
    """The limits after a change. Naming rpm or tpm ends `unlimited`: else it would have no effect."""
    named = {
        name: value or None
        for name, value in (("rpm", change.rpm), ("tpm", change.tpm), ("concurrency", change.concurrency))
        if value is not None
    }
    after = replace(before, **named)  # type: ignore[arg-type]
    if change.rpm or change.tpm:
        after = replace(after, unlimited=False)
    if change.unlimited is not None:
        after = replace(after, unlimited=change.unlimited)
    return after if change.adaptive is None else replace(after, adaptive=change.adaptive)


def set_limits(
    control: ControlPlane,
    lane: str,
    change: Change,
    configured: LaneLimits,
    pause: Callable[[float], object],
) -> tuple[LaneLimits, LaneLimits]:
    """Change the limits of a lane, for the next permit on → (before, after).

    The lane need not have had a call yet. Where its pace changes, what it had learned is forgotten; its mode is not.

    Args:
        configured: What MAISD_LANES says of the lane, where it is not known yet.
        pause: `time.sleep`.
    Raises:
        BadInput: no lane can have that name.
    """
    if not lane or len(lane) > MOST_NAME or any(ord(letter) < 32 for letter in lane):
        raise BadInput(f"lane={lane[:60]!r}: use text of at most {MOST_NAME} characters without control characters")
    lanes = control.lanes
    found = lanes.fields(lane)
    before = limits_of(found) if found else configured
    after = changed(before, change)
    if after == before and found:
        return before, after
    if replace(after, concurrency=None) == replace(before, concurrency=None) and found:
        lanes.set_points(lane, {"cap": after.concurrency or 0})  # says nothing of the pace, so that goes on
        return before, after
    fields = {"schema": SCHEMA_VERSION, "free": "", **limit_fields(after)}
    for _ in range(2):
        lanes.set_points(lane, fields)
        view = LaneView(lane=lane, fields=lanes.fields(lane), seen=())
        held = decide(view, control.pins.now(), control.rules, control.pins.read())
        if held.set_points:  # the mode holds on: its share of the new pace
            lanes.set_points(lane, held.set_points)
        pause(_TUNER_WRITES_WITHIN_S)
        if not _overwritten(found, lanes.fields(lane), fields):
            break
    return before, after


def _overwritten(before: Mapping[str, bytes], now: Mapping[str, bytes], written: Mapping[str, float | str]) -> bool:
    """Whether the pace is again what it was before, though it was to change."""
    return any(
        name in before and now.get(name) == before[name] and written[name] != float(before[name])
        for name in ("p1", "p2")
        if written[name] != ""
    )
