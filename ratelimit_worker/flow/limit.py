"""What happens when a person changes a lane's limits? What was named changes, what was not stays, also the mode.

Also when MAISD_ENABLE_ADVANCED_RATE_LIMITING or …_AUTO_ESCALATION is switched: lanes that are known have to be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ratelimit_worker.calls import SCHEMA_VERSION, LaneLimits
from ratelimit_worker.config import Settings, bounds_others, parents_of
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.enqueue import (
    BASIC,
    CONFIGURED,
    Basic,
    basic_fields,
    bounds_field,
    escalates,
    limit_fields,
)
from ratelimit_worker.flow.tune import ControlPlane, decide, limits_of
from ratelimit_worker.policy import choices, day
from ratelimit_worker.ports import LaneView

#: A tuner that looked at the lane just before may write what it then found; by now it has.
_TUNER_WRITES_WITHIN_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was named. None: not named, stays."""

    rpm: float | None = None  #: 0: no limit any more
    tpm: float | None = None  #: 0: no limit any more
    concurrency: int | None = None  #: 0: no limit any more
    rpd: float | None = None  #: 0: no quota any more
    tpd: float | None = None  #: 0: no quota any more
    day_zone: str | None = None  #: "": UTC
    unlimited: bool | None = None
    adaptive: bool | None = None
    parents: tuple[str, ...] | None = None  #: all that it has from now on


def changed(before: LaneLimits, change: Change) -> LaneLimits:
    """The limits after a change. Naming rpm or tpm ends `unlimited`: else it would have no effect."""
    numbers = {name: getattr(change, name) for name in ("rpm", "tpm", "rpd", "tpd", "concurrency")}
    named = {name: value or None for name, value in numbers.items() if value is not None}
    after = replace(before, **named)  # type: ignore[arg-type]
    if change.day_zone is not None:
        after = replace(after, day_zone=change.day_zone or None)
    if change.parents is not None:
        after = replace(after, parents=change.parents)
    if change.rpm or change.tpm:
        after = replace(after, unlimited=False)
    if change.unlimited is not None:
        after = replace(after, unlimited=change.unlimited)
    if change.adaptive:
        after = replace(after, shared=False)
    return after if change.adaptive is None else replace(after, adaptive=change.adaptive)


def limits_told(fields: Mapping[str, bytes]) -> LaneLimits:
    """All that a person told of a lane, from its hash: what the law asks, and what only the scripts do."""
    bounds: dict[str, Any] = msgspec.json.decode(fields["bounds"]) if fields.get("bounds") else {}
    return replace(
        limits_of(fields),
        rpd=bounds.get("rpd"),
        tpd=bounds.get("tpd"),
        day_zone=bounds.get("zone"),
        parents=tuple(bounds.get("parents", ())),
    )


def check(lane: str, change: Change) -> None:
    """See that a change can be, before anybody is asked.

    Raises:
        BadInput: no lane can have that name, or those parents; or there is no such zone.
    """
    for name in (lane, *(change.parents or ())):
        choices.name("lane", name)
    if change.day_zone:
        try:
            day.zone_of(change.day_zone)
        except ValueError as error:
            raise BadInput(f"day_zone={change.day_zone!r}: {error}") from error


def set_limits(
    control: ControlPlane,
    lane: str,
    change: Change,
    configured: LaneLimits,
    pause: Callable[[float], object],
    others: Mapping[str, LaneLimits] | None = None,
) -> tuple[LaneLimits, LaneLimits]:
    """Change the limits of a lane, for the next permit on → (before, after).

    The lane need not have had a call yet. Where its pace changes, what it had learned is forgotten; its mode is not.

    Args:
        configured: What MAISD_LANES says of the lane, where it is not known yet.
        pause: `time.sleep`.
        others: What MAISD_LANES says of lanes that may become its parents, and are not known yet.
    Raises:
        BadInput: no lane can have that name, or those parents; or there is no such zone.
    """
    check(lane, change)
    lanes = control.lanes
    found = lanes.fields(lane)
    before = limits_told(found) if found else configured
    after = changed(before, change)
    if after == before and found:
        lanes.set_points(lane, {CONFIGURED: 1})
        return before, after
    _take_parents(control, lane, after.parents, others or {}, pause)
    if found and _paced(after) == _paced(before):  # says nothing of the pace, so that goes on
        lanes.set_points(lane, {"cap": after.concurrency or 0, "bounds": bounds_field(after), CONFIGURED: 1})
        return before, after
    fields = {CONFIGURED: 1, "schema": SCHEMA_VERSION, "free": "", **limit_fields(after)}
    _write(control, {lane: (found, fields)}, pause)
    return before, after


def _paced(limits: LaneLimits) -> LaneLimits:
    return replace(limits, concurrency=None, rpd=None, tpd=None, day_zone=None, parents=())


def day_steps(fields: Mapping[str, bytes]) -> day.Steps:
    """The steps of the zone in which a lane's days end, from its hash."""
    bounds: dict[str, Any] = msgspec.json.decode(fields["bounds"]) if fields.get("bounds") else {}
    return tuple(bounds.get("steps", ()))


def _take_parents(
    control: ControlPlane,
    lane: str,
    parents: tuple[str, ...],
    others: Mapping[str, LaneLimits],
    pause: Callable[[float], object],
) -> None:
    """See that a lane's parents can be, and are there, before it has them.

    Raises:
        BadInput: one of them cannot be.
    """
    if not parents:
        return
    try:
        parents_of(lane, parents)
    except ValueError as error:
        raise BadInput(str(error)) from error
    seen = (one for some in control.lanes.survey(("bounds",)) for one in some)
    children = [one.lane for one in seen if lane in limits_told(one.fields).parents]
    if children:
        raise BadInput(f"lane {lane!r} is a parent of {children[0]!r}, so it may have none; name {parents[0]!r} there")
    for parent in parents:
        found = control.lanes.fields(parent)
        known = bool(found.get("schema")) or parent in others
        told = limits_told(found) if found.get("schema") else others.get(parent, LaneLimits())
        if not known:
            raise BadInput(f"parent {parent!r} is not known: say first `limits set {parent} --tpm N` (or rpm, rpd, …)")
        if told.parents:
            raise BadInput(f"parent {parent!r} has parents itself: name them all at {lane!r} instead")
        if not told.shared and not int(found.get("seq") or 0):  # it has no calls of its own to learn from
            if not bounds_others(told):
                raise BadInput(
                    f"parent {parent!r} has no limit: say first `limits set {parent} --tpm N` (or rpm, rpd, …)"
                )
            told = replace(told, shared=True, adaptive=False)
        if told.shared and found.get("shared") != b"1":
            fields = {"schema": SCHEMA_VERSION, "free": "", **limit_fields(told)}
            _write(control, {parent: (found, fields)}, pause)


def at_start(control: ControlPlane, settings: Settings, pause: Callable[[float], object]) -> int:
    """Known lanes learn that a switch (or RATE_LIMIT_DELAY) has changed → how many did.

    Args:
        pause: `time.sleep`.
    """
    changes: dict[str, tuple[Mapping[str, bytes], Mapping[str, float | str]]] = {}
    for found, lane in ((one.fields, one.lane) for some in control.lanes.survey() for one in some):
        fields = {**_switched(found, settings), **_may_escalate(found, settings)}
        if fields:
            changes[lane] = (found, fields)
    _write(control, changes, pause)
    return len(changes)


def _switched(found: Mapping[str, bytes], settings: Settings) -> Mapping[str, float | str]:
    """What a lane has to be told; nothing where it knows."""
    if found.get("shared"):
        return {}
    raw = found.get(BASIC)
    basic = msgspec.json.decode(raw, type=Basic) if raw else None
    if settings.enable_advanced_rate_limiting:
        return {} if basic is None else {"free": "", **limit_fields(basic.limits), BASIC: ""}
    if basic is None:
        return {"free": "", **basic_fields(settings, limits_told(found))}
    return {} if basic.delay_s == settings.rate_limit_delay else basic_fields(settings, basic.limits)


def _may_escalate(found: Mapping[str, bytes], settings: Settings) -> Mapping[str, float | str]:
    """The same of the law: an attempt that fails before the tuner has looked asks the lane, too."""
    if found.get("pin"):  # a mode by hand says it
        return {}
    before, after = found.get("escalates", b"").decode(), "" if escalates(settings) else "0"
    return {} if before == after else {"escalates": after}


def _write(
    control: ControlPlane,
    changes: Mapping[str, tuple[Mapping[str, bytes], Mapping[str, float | str]]],
    pause: Callable[[float], object],
) -> None:
    """Write fields of lanes, and what their modes make of them.

    Args:
        changes: Lane → (what was found, what is to be).
    """
    lanes = control.lanes
    for _ in range(2):
        if not changes:
            return
        for lane, (_, fields) in changes.items():
            lanes.set_points(lane, fields)
            view = LaneView(lane=lane, fields=lanes.fields(lane), seen=())
            held = decide(view, control.pins.now(), control.rules, control.pins.read())
            if held.set_points:  # the mode holds on: its share of the new pace
                lanes.set_points(lane, held.set_points)
        pause(_TUNER_WRITES_WITHIN_S)
        changes = {
            lane: (found, fields)
            for lane, (found, fields) in changes.items()
            if _overwritten(found, lanes.fields(lane), fields)
        }


def _overwritten(before: Mapping[str, bytes], now: Mapping[str, bytes], written: Mapping[str, float | str]) -> bool:
    """Whether the pace is again what it was before, though it was to change."""
    return any(
        name in before and now.get(name) == before[name] and written[name] != float(before[name])
        for name in ("p1", "p2")
        if written.get(name, "") != ""
    )
