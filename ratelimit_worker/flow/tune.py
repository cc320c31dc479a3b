"""How do lanes learn? The tuner: takes what was seen of all lanes, runs the law on it in order, writes set-points.

One writer at a time, under a lease; state lives in the lanes' hashes, so a new holder goes on where the last one was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec

from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.flow import observe
from ratelimit_worker.policy import modes, pace
from ratelimit_worker.ports import Lanes, LaneView

log = logging.getLogger(__name__)

TUNE_EVERY_S = 0.1  #: about ten times a second (control law); a refusal wakes the tuner at once
LEASE_S = 2.0


class Law(msgspec.Struct):
    """All that the law remembers of one lane, as the lane's hash keeps it."""

    pace: pace.PaceState
    mode: modes.ModeState


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Law).decode


def tune_once(lanes: Lanes, owner: str) -> int | None:
    """Look at every lane of which something was seen → how many, or None: another holds the duty."""
    taken = lanes.take(owner, LEASE_S)
    if taken is None:
        return None
    now, views = taken
    for view in views:
        fields = decide(view, now)
        if fields:
            lanes.set_points(view.lane, fields)
    return len(views)


def decide(view: LaneView, now: float) -> dict[str, Any]:
    """The fields of a lane's hash that change, from what was seen."""
    if view.fields.get("unlimited") == b"1":
        return {}
    limits = limits_of(view.fields)
    law = _law(view, limits)
    state, mode = law.pace, law.mode
    if state.started_at is None:
        state = replace(state, started_at=now, doubled_at=now)
    for raw in view.seen:
        try:
            seen = observe.decode(raw)
        except msgspec.MsgspecError:
            log.warning("observation.unreadable", extra={"lane": view.lane})
            continue
        state = pace.observe(state, seen, limits)
        mode = modes.observe(mode, at=seen.at, sent_at=seen.ticket.sent_at, sick=seen.sick, good=seen.good)
    state = pace.step(state, now, float(view.fields.get("c1") or 0), limits)
    state, fields = pace.set_points(state, now)
    changed: dict[str, Any] = {
        name: value
        for name, value in {**fields, **modes.set_points(mode, now)}.items()
        if name.startswith("a") or float(view.fields.get(name) or 0) != float(value)
    }
    law_bytes = _encode(Law(pace=state, mode=mode))
    if law_bytes != view.fields.get("law"):
        changed["law"] = law_bytes
    return changed


def limits_of(fields: Mapping[str, bytes]) -> LaneLimits:
    """What a person told of a lane, from its hash."""

    def number(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

    return LaneLimits(
        rpm=number("rpm"),
        tpm=number("tpm"),
        concurrency=int(number("cap") or 0) or None,
        unlimited=fields.get("unlimited") == b"1",
        adaptive=fields.get("adaptive") != b"0",
    )


def _law(view: LaneView, limits: LaneLimits) -> Law:
    raw = view.fields.get("law")
    if raw:
        try:
            return _decode(raw)
        except msgspec.MsgspecError:
            log.warning("law.unreadable", extra={"lane": view.lane})
    return Law(pace=pace.initial(limits), mode=modes.ModeState())
