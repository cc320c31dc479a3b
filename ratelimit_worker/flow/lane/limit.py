"""What happens when a person changes a lane's limits? What was named changes, what was not stays, also the mode.

Also when MAISD_ENABLE_ADVANCED_RATE_LIMITING or …_AUTO_ESCALATION is switched: lanes that are known have to be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.config import Settings, bounds_others, parents_of
from ratelimit_worker.contracts.lane import (
    PARENT_FIELDS,
    Fields,
    LaneState,
    encode_basic,
    encode_configured,
    encode_escalates,
    encode_schema,
)
from ratelimit_worker.errors import BadInput
from ratelimit_worker.flow.call.enqueue import as_told, basic_fields, escalates, limit_fields
from ratelimit_worker.flow.lane.decide import decide
from ratelimit_worker.flow.lane.tune import ControlPlane
from ratelimit_worker.policy import choices, day
from ratelimit_worker.ports import LaneView


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
    others: Mapping[str, LaneLimits] | None = None,
) -> tuple[LaneLimits, LaneLimits]:
    """Change the limits of a lane, for the next permit on → (before, after).

    The lane need not have had a call yet. Where its pace changes, what it had learned is forgotten; its mode is not.

    Args:
        configured: What MAISD_LANES says of the lane, where it is not known yet.
        others: What MAISD_LANES says of lanes that may become its parents, and are not known yet.
    Raises:
        BadInput: no lane can have that name, or those parents; or there is no such zone.
    """
    check(lane, change)
    while True:  # until nobody else has set limits of the lane between our look and our writing
        found = control.lanes.state(lane)
        before = found.told.limits if found.there else configured
        after = changed(before, change)
        if after == before and found.there:
            control.lanes.set_points(lane, encode_configured())
            return before, after
        _take_parents(control, lane, after.parents, others or {})
        if found.there and _paced(after) == _paced(before):  # says nothing of the pace, so that goes on
            if control.lanes.tell(lane, as_told(after).encode_bounds() | encode_configured(), found.revision):
                return before, after
        elif _tell(control, lane, found, {**encode_configured(), **encode_schema(), **limit_fields(after)}):
            return before, after


def _paced(limits: LaneLimits) -> LaneLimits:
    return replace(limits, concurrency=None, rpd=None, tpd=None, day_zone=None, parents=())


def _take_parents(
    control: ControlPlane,
    lane: str,
    parents: tuple[str, ...],
    others: Mapping[str, LaneLimits],
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
    seen = (one for some in control.lanes.survey(PARENT_FIELDS) for one in some)
    children = [one.lane for one in seen if lane in one.state.told.limits.parents]
    if children:
        raise BadInput(f"lane {lane!r} is a parent of {children[0]!r}, so it may have none; name {parents[0]!r} there")
    for parent in parents:
        found = control.lanes.state(parent)
        known = found.schema or parent in others
        told = found.told.limits if found.schema else others.get(parent, LaneLimits())
        if not known:
            raise BadInput(f"parent {parent!r} is not known: say first `limits set {parent} --tpm N` (or rpm, rpd, …)")
        if told.parents:
            raise BadInput(f"parent {parent!r} has parents itself: name them all at {lane!r} instead")
        if not told.shared and not found.levels.seq:  # it has no calls of its own to learn from
            if not bounds_others(told):
                raise BadInput(
                    f"parent {parent!r} has no limit: say first `limits set {parent} --tpm N` (or rpm, rpd, …)"
                )
            told = replace(told, shared=True, adaptive=False)
        if told.shared and not found.told.limits.shared:
            _tell(control, parent, found, {**encode_schema(), **limit_fields(told)})


def at_start(control: ControlPlane, settings: Settings) -> int:
    """Known lanes learn that a switch (or RATE_LIMIT_DELAY) has changed → how many did."""
    changes: dict[str, tuple[LaneState, Fields]] = {}
    for found, lane in ((one.state, one.lane) for some in control.lanes.survey() for one in some):
        changed_fields = {**_switched(found, settings), **_may_escalate(found, settings)}
        if changed_fields:
            changes[lane] = (found, changed_fields)
    for lane, (found, fields) in changes.items():
        _tell(control, lane, found, fields)
    return len(changes)


def _switched(found: LaneState, settings: Settings) -> Fields:
    """What a lane has to be told; nothing where it knows."""
    told = found.told
    if told.limits.shared:
        return {}
    basic = told.basic
    if settings.enable_advanced_rate_limiting:
        return {} if basic is None else {**limit_fields(basic.limits), **encode_basic(None)}
    if basic is None:
        return basic_fields(settings, told.limits)
    return {} if basic.delay_s == settings.rate_limit_delay else basic_fields(settings, basic.limits)


def _may_escalate(found: LaneState, settings: Settings) -> Fields:
    """The same of the law: an attempt that fails before the tuner has looked asks the lane, too."""
    may = escalates(settings)
    if found.pinned or found.points.escalates == may:  # a mode by hand says it
        return {}
    return encode_escalates(may)


def _tell(control: ControlPlane, lane: str, found: LaneState, fields: Fields) -> bool:
    """Write what a person sets, and what the lane's mode makes of it → False: somebody else has set it since."""
    lanes = control.lanes
    if not lanes.tell(lane, fields, found.revision):
        return False
    state = lanes.state(lane)
    held = decide(LaneView(lane=lane, state=state, seen=()), control.pins.now(), control.rules, control.pins.read())
    if held.set_points:  # the mode holds on: its share of the new pace
        lanes.set_points(lane, held.set_points, state.revision)
    return True
