"""A person changes a lane's limits: those that are named change, all else stays, also the mode.

Also here: when MAISD_ENABLE_ADVANCED_RATE_LIMITING or …_AUTO_ESCALATION is switched, existing lanes are updated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from msgspec import Struct

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.config import Settings, bounds_others, parents_of
from ratelimit_worker.contracts.budget import Budget
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
from ratelimit_worker.flow.lane.budget import begins
from ratelimit_worker.flow.lane.decide import decide
from ratelimit_worker.flow.lane.tune import ControlPlane
from ratelimit_worker.policy import choices, day
from ratelimit_worker.ports import LaneView


class Change(Struct, frozen=True, kw_only=True):
    """The limits that are named. None: it stays."""

    rpm: float | None = None  #: 0: no limit any more
    tpm: float | None = None  #: 0: no limit any more
    concurrency: int | None = None  #: 0: no limit any more
    rpd: float | None = None  #: 0: no quota any more
    tpd: float | None = None  #: 0: no quota any more
    usd_per_day: float | None = None  #: 0: no such budget any more
    usd_per_month: float | None = None  #: 0: no such budget any more
    day_zone: str | None = None  #: "": UTC
    unlimited: bool | None = None
    adaptive: bool | None = None
    parents: tuple[str, ...] | None = None  #: the complete list from now on


_NUMBERS = ("rpm", "tpm", "rpd", "tpd", "usd_per_day", "usd_per_month")


def changed(before: LaneLimits, change: Change) -> LaneLimits:
    """The limits after a change. Naming rpm or tpm ends `unlimited`, since it would have no effect otherwise."""
    numbers = {name: getattr(change, name) for name in (*_NUMBERS, "concurrency")}
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
    """Check a change without asking Redis.

    Raises:
        BadInput: the name of the lane, its parents or the time zone is invalid.
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
    """Change the limits of a lane from the next permit on → (before, after).

    The lane need not exist yet. If its pace changes, what was learned about it is forgotten; its mode stays.

    Args:
        configured: The lane's limits in MAISD_LANES, used if it does not exist yet.
        others: The same of lanes that may become its parents.
    Raises:
        BadInput: the name of the lane, its parents or the time zone is invalid.
    """
    check(lane, change)
    while True:  # repeat if somebody else set the lane's limits between our look and our writing
        found = control.lanes.state(lane)
        before = found.told.limits if found.there else configured
        after = changed(before, change)
        if after == before and found.there:
            control.lanes.set_points(lane, encode_configured())
            return before, after
        _take_parents(control, lane, after.parents, others or {})
        if found.there and _paced(after) == _paced(before):  # the pace is not concerned, and goes on
            if control.lanes.tell(lane, as_told(after).encode_bounds() | encode_configured(), found.revision):
                return before, after
        elif _tell(control, lane, found, {**encode_configured(), **encode_schema(), **limit_fields(after)}):
            return before, after


def begun_budget(control: ControlPlane, lane: str, change: Change, configured: LaneLimits) -> Budget | None:
    """A lane's budget of money, if a change makes it count anew (`begins`); else None."""
    found = control.lanes.state(lane)
    told = found.told.limits if found.there else LaneLimits()
    before = Budget.of_lane(told, ())
    after = Budget.of_lane(changed(told if found.there else configured, change), ())
    return after if begins(before, after) else None


def _paced(limits: LaneLimits) -> LaneLimits:
    none = dict.fromkeys(("concurrency", "rpd", "tpd", "usd_per_day", "usd_per_month", "day_zone"))
    return replace(limits, **none, parents=())  # type: ignore[arg-type]


def _take_parents(
    control: ControlPlane,
    lane: str,
    parents: tuple[str, ...],
    others: Mapping[str, LaneLimits],
) -> None:
    """Check that a lane's new parents are valid and exist.

    Raises:
        BadInput: one of them is not.
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
        if not told.shared and not found.levels.seq:  # without calls of its own it learns nothing
            if not bounds_others(told):
                raise BadInput(
                    f"parent {parent!r} has no limit: say first `limits set {parent} --tpm N` (or rpm, rpd, …)"
                )
            told = replace(told, shared=True, adaptive=False)
        if told.shared and not found.told.limits.shared:
            _tell(control, parent, found, {**encode_schema(), **limit_fields(told)})


def at_start(control: ControlPlane, settings: Settings) -> int:
    """Update existing lanes after a switch (or RATE_LIMIT_DELAY) has changed → how many were updated."""
    changes: dict[str, tuple[LaneState, Fields]] = {}
    for found, lane in ((one.state, one.lane) for some in control.lanes.survey() for one in some):
        changed_fields = {**_switched(found, settings), **_may_escalate(found, settings)}
        if changed_fields:
            changes[lane] = (found, changed_fields)
    for lane, (found, fields) in changes.items():
        _tell(control, lane, found, fields)
    return len(changes)


def _switched(found: LaneState, settings: Settings) -> Fields:
    """The fields to change in a lane; empty: it is up to date."""
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
    """The same for `escalates`: attempts that fail before the tuner has looked read it from the lane."""
    may = escalates(settings)
    if found.pinned or found.points.escalates == may:  # while pinned, the pin decides it
        return {}
    return encode_escalates(may)


def _tell(control: ControlPlane, lane: str, found: LaneState, fields: Fields) -> bool:
    """Write what a person sets, and what follows for the lane's mode → False: somebody else has set limits since."""
    lanes = control.lanes
    if not lanes.tell(lane, fields, found.revision):
        return False
    state = lanes.state(lane)
    held = decide(LaneView(lane=lane, state=state, seen=()), control.pins.now(), control.rules, control.pins.read())
    if held.set_points:  # the mode stays: its share of the new pace
        lanes.set_points(lane, held.set_points, state.revision)
    return True
