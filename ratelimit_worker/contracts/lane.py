"""The state of a lane in Redis: one hash, `rlw:lane:L`, with the meaning of each field and its one codec.

`FIELDS` is the table: the name under which a field is stored, what it means, its unit, and who writes and reads it. A
field whose name ends in `#` stands four times, numbered from 1 in the order of `DIMENSIONS`. Scripts have the stored
names from contract.lua, which `contracts.lua` writes; everybody else reads a `LaneState`, decoded once, and writes what
the functions here encode.

During a deploy an older and a newer version use the same hash: stored names never change, and a missing field means its
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ratelimit_worker.calls import DIMENSIONS, SCHEMA_VERSION, LaneLimits, Mode

#: Fields to write, by stored name; an empty value deletes the field. Only the functions of this module make them.
Fields = Mapping[str, float | str | bytes]
Units = tuple[float, float, float, float]  #: in the order of `DIMENSIONS`
NOTHING: Units = (0.0, 0.0, 0.0, 0.0)
#: A bound on calls out at once that is never reached. It is used for a gap between two calls without a bound: the gap
#: is kept only where there is a bound.
MANY = 1_000_000
SICK_ROW = 5  #: sick answers in a row that mean REDUCED, and wake the tuner
HALT_GAP_S = 300.0  #: between probes while the law has halted a lane
HALT_FIRST_GAP_S = 2.0  #: the first of these after an answer that the quota is used up: it may be one call's own
ANSWERED_EVERY_S = 0.1  #: the time of a lane's last answer is written at most this often
RETRY_SHARE, RETRIES_PER_S = 0.1, 10 / 60  #: while others wait, retries get this share of the permits, plus so many/s
#: Gate of a lane that is shut, µs since the epoch: far in the future, and a number that a double holds exactly.
SHUT_US = 2**53
#: Value of the field `law` in a lane that a person has set to be unlimited, while a mode holds it back: the lane is
#: unlimited again afterwards. Such a lane has no pace that the law would have to remember.
_UNPACED_AGAIN = b"unlimited"


class Write(NamedTuple):
    """Fields to write into a lane, unless a person has set its limits or mode since it was read."""

    revision: int  #: of the lane when it was read
    fields: Fields
    by_person: bool = False  #: they are what a person sets: the lane gets a new revision


class Field(NamedTuple):
    """One field of the hash."""

    stored: str  #: its name in Redis; `#` at its end: there is one for each dimension
    key: str  #: how scripts call it: `FIELD.GATE`, and `FIELD.PACE[1]` to `[4]`
    name: str  #: its place in a `LaneState`; in words, where only scripts use it
    unit: str
    written_by: str
    read_by: str


FIELDS = (
    # what a person set
    Field(
        "schema", "SCHEMA", "schema", "version; absent: the lane is not there", "whoever makes the lane", "scripts, all"
    ),
    Field("rpm", "RPM", "told.limits.rpm", "requests/min", "a person", "tuner, sweep, faces"),
    Field("tpm", "TPM", "told.limits.tpm", "tokens/min", "a person", "tuner, sweep, faces"),
    Field("cap", "CONCURRENCY", "told.limits.concurrency", "calls; 0: no bound", "a person", "scripts, sweep, faces"),
    Field("adaptive", "ADAPTIVE", "told.limits.adaptive", "1, 0", "a person", "scripts, tuner, faces"),
    Field("shared", "SHARED", "told.limits.shared", "1: a parent of other lanes", "a person", "sweep, tuner, faces"),
    Field(
        "bounds",
        "BOUNDS",
        "told.limits, told.day_steps",
        "JSON: parents, rpd, tpd, usd_per_day, usd_per_month, zone, steps",
        "a person",
        "scripts, sweep, faces",
    ),
    Field("basic", "BASIC", "told.basic", "JSON: Basic", "the switch of advanced rate limiting", "the same"),
    Field(
        "configured", "CONFIGURED", "told.configured", "1: a person has said something of the lane", "a person", "sweep"
    ),
    Field(
        "rev",
        "REVISION",
        "revision",
        "how often a person has set the lane's limits or mode",
        "a person",
        "whoever writes set-points",
    ),
    # what scripts obey
    Field(
        "p#",
        "PACE",
        "points.paces[].pace",
        "units/s; absent: not bound; 0: closed",
        "tuner, a person",
        "scripts, faces",
    ),
    Field(
        "d#", "DEPTH", "points.paces[].depth", "units that may leave back to back", "tuner, a person", "scripts, faces"
    ),
    Field("g#", "GUARD", "points.paces[].guard", "units kept in hand", "tuner, a person", "scripts, faces"),
    Field(
        "unlimited",
        "UNPACED",
        "points.unpaced",
        "1: `p` does not bind",
        "a person; tuner, for a mode",
        "scripts, sweep, all",
    ),
    Field(
        "told",
        "HEADERS_GOVERN",
        "points.headers_govern",
        "1: nothing is earned behind a gate",
        "tuner",
        "scripts, faces",
    ),
    Field("mode", "MODE", "points.mode", "a Mode", "tuner, a person", "scripts, all"),
    Field(
        "pin",
        "PIN",
        "points.pin",
        "id of the mode by hand; empty: the law governs",
        "tuner, a person",
        "scripts, faces",
    ),
    Field(
        "escalates",
        "ESCALATES",
        "points.escalates",
        "0: the law may not change the mode",
        "tuner, a person",
        "scripts, run",
    ),
    Field(
        "width",
        "AT_ONCE",
        "points.at_once",
        "calls out at once: the narrowest of the next three",
        "tuner",
        "scripts, faces",
    ),
    Field("probes", "PROBES", "points.probes", "calls out at once, of a mode; 0: no bound", "tuner", "scripts, faces"),
    Field("ramp", "RAMP", "points.ramp", "the same while the pace is not known", "tuner", "scripts, faces"),
    Field("flight", "FLIGHT", "points.flight", "the same, as answers have taught", "tuner", "scripts, faces"),
    Field("gap", "GAP", "points.gap_us", "µs between two calls, where `width` bounds", "tuner", "scripts, faces"),
    Field(
        "sick_share",
        "SICK_SHARE",
        "points.sick_share",
        "share of recent calls whose first attempt was sick",
        "tuner",
        "health",
    ),
    Field(
        "gate", "GATE", "points.gate_us", "µs since the epoch: nothing leaves before", "scripts, tuner", "scripts, all"
    ),
    # levels and counters
    Field("ts", "AT", "levels.at_us", "µs since the epoch: as of when the levels are", "scripts", "scripts, faces"),
    Field("l#", "LEVEL", "levels.level[]", "units in the bucket", "scripts, tuner", "scripts, faces"),
    Field(
        "o#",
        "BEYOND",
        "levels.beyond[]",
        "units given back that did not fit into the bucket",
        "scripts",
        "scripts, faces",
    ),
    Field(
        "c#", "SENT", "levels.sent", "units sent in all, refused ones too", "scripts", "scripts, tuner, sweep, faces"
    ),
    Field("x#", "TURNED_BACK", "levels.turned_back", "units refused in all", "scripts", "scripts, tuner"),
    Field("seq", "SEQ", "levels.seq", "calls sent in all", "scripts", "scripts, health, limits"),
    Field(
        "full_at", "STARTS", "bucket of starts: when it would be full again", "µs since the epoch", "scripts", "scripts"
    ),
    Field("sick", "SICK_ROW", "levels.sick_row", "sick answers in a row", "scripts", "scripts, faces"),
    Field("goods", "GOODS", "levels.goods", "plain good answers since the tuner last asked", "scripts", "tuner"),
    Field("took", "TOOK", "levels.took_us", "µs of all of these together", "scripts", "tuner"),
    Field("v", "START", "start tag of the last release (fair queueing)", "tag", "scripts", "scripts"),
    Field("turn", "TURN", "start tag of a parent's last turn", "tag", "scripts", "scripts"),
    Field("refusals", "REFUSALS", "refusals in a row without a Retry-After", "refusals", "scripts", "scripts"),
    Field("good_at", "ANSWERED_AT", "when the lane was last answered", "µs since the epoch", "scripts", "scripts"),
    Field("good_sent", "ANSWERED_SENT", "when that request had left", "µs since the epoch", "scripts", "scripts"),
    Field(
        "witness",
        "WITNESS",
        "which call had a sick answer since",
        "µs of its acceptance; -1: several",
        "scripts",
        "scripts",
    ),
    Field(
        "gave", "GAVE_BACK_AT", "when reserved tokens were last given back", "µs since the epoch", "scripts", "scripts"
    ),
    Field("doubt", "DOUBT_UNTIL", "until when none are given back", "µs since the epoch", "scripts", "scripts"),
    Field("doubted", "DOUBT_LASTS", "how long that is", "µs", "scripts", "scripts"),
    Field("rb", "RETRIES_LEFT", "budget of retries", "calls, as of the next two", "scripts", "scripts"),
    Field("rs", "RETRIES_SEQ", "calls sent in all by then", "calls", "scripts", "scripts"),
    Field("rt", "RETRIES_AT", "when that was", "µs since the epoch", "scripts", "scripts"),
    # what the law remembers
    Field(
        "law",
        "LAW",
        "memory.law, points.unpaced_again",
        "packed, or `unlimited`: a mode has set that aside",
        "tuner",
        "tuner",
    ),
    Field("health", "HEALTH", "memory.health", "packed ModeState", "tuner", "tuner, faces, run"),
    Field("resumed", "GIVEN_BACK", "memory.given_back", "seconds since the epoch, and who", "a person", "tuner"),
)
#: Not stored: arguments that setpoints.lua takes beside the fields. An anchor says when a bucket will be empty, in
#: units sent in all and not refused; the script subtracts what was sent by now, and writes the difference as the level.
ANCHORS = (
    Field("a#", "ANCHOR", "Anchor", "units sent when the bucket is empty", "tuner", "setpoints.lua"),
    Field("m#", "ANCHOR_LOWERS", "Anchor.lowers", "the same; it never raises the level", "tuner", "setpoints.lua"),
)
#: Not stored: an argument of enqueue.lua beside the fields of a new lane, the most lanes that there may be.
MOST_LANES = "most_lanes"


# ── what a person set ──────────────────────────────────────────────────────────────────────────────────────────────


class Basic(msgspec.Struct, frozen=True):
    """What a lane goes back to when advanced rate limiting is switched on again."""

    limits: LaneLimits
    delay_s: float  #: RATE_LIMIT_DELAY that it goes at meanwhile


class _Bounds(msgspec.Struct, frozen=True, omit_defaults=True):
    """Limits that only few lanes have, together in one field."""

    parents: tuple[str, ...] = ()
    rpd: float | int | None = None
    tpd: float | int | None = None
    zone: str | None = None
    steps: tuple[int, ...] = ()  #: of the zone, as `policy.day` writes them down
    usd_per_day: float | int | None = None
    usd_per_month: float | int | None = None


_decode_bounds = msgspec.json.Decoder(_Bounds).decode
_decode_basic = msgspec.json.Decoder(Basic).decode


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a person set: by MAISD_LANES, `limits set` or a switch."""

    limits: LaneLimits = LaneLimits()  #: without weights, time-outs and request headers, which stay in the settings
    day_steps: tuple[int, ...] = ()  #: of the zone in which its days end, as `policy.day` writes them down
    basic_json: bytes = b""  #: `basic` in its stored form
    configured: bool = False  #: a person has named it in a setting or command, so it is kept when it is idle

    @property
    def basic(self) -> Basic | None:
        """The limits to restore when advanced rate limiting is switched on again; None: it is on."""
        return _decode_basic(self.basic_json) if self.basic_json else None

    def encode(self) -> dict[str, float | str | bytes]:
        """Fields for these limits; what the law had learned under others is deleted."""
        limits = self.limits
        return {
            "rpm": "" if limits.rpm is None else limits.rpm,
            "tpm": "" if limits.tpm is None else limits.tpm,
            "unlimited": int(limits.unlimited),
            "adaptive": int(limits.adaptive),
            "law": "",
            "shared": 1 if limits.shared else "",
            **self.encode_bounds(),
        }

    def encode_bounds(self) -> dict[str, float | str | bytes]:
        """Fields for the limits that do not concern the pace."""
        limits = self.limits
        bounds = _Bounds(
            limits.parents,
            limits.rpd or None,
            limits.tpd or None,
            limits.day_zone or None,
            self.day_steps,
            limits.usd_per_day or None,
            limits.usd_per_month or None,
        )
        said = "" if bounds == _Bounds() else msgspec.json.encode(bounds).decode()
        return {"cap": limits.concurrency or 0, "bounds": said}


def encode_configured() -> dict[str, float | str | bytes]:
    """Mark the lane as named by a person."""
    return {"configured": 1}


def encode_basic(basic: Basic | None) -> dict[str, float | str | bytes]:
    """What the lane goes back to when advanced rate limiting is on again; None: forget it."""
    return {"basic": "" if basic is None else msgspec.json.encode(basic).decode()}


def encode_schema() -> dict[str, float | str | bytes]:
    """Mark the lane as made, in this version's schema."""
    return {"schema": SCHEMA_VERSION}


def encode_new(most_lanes: int | None) -> dict[str, float | str | bytes]:
    """Fields of a new lane beside its limits.

    Args:
        most_lanes: The lane is refused where there are this many already; None: a person has named it, so it is made
            in any case, and is kept when it is idle.
    """
    return encode_configured() if most_lanes is None else {MOST_LANES: most_lanes}


# ── what scripts obey ──────────────────────────────────────────────────────────────────────────────────────────────


class Pacing(msgspec.Struct, frozen=True):
    """Set-points of one dimension."""

    pace: float  #: units/s; 0: nothing is released
    depth: float = 1.0  #: units that may leave back to back
    guard: float = 0.0  #: units kept in hand


class Anchor(msgspec.Struct, frozen=True):
    """A level to be written, as the number of units sent in all, and not refused, at which the bucket is empty.

    The script subtracts what was sent by the time of writing, so calls that leave between decision and writing count.
    """

    units: float
    lowers: bool = False  #: it must not raise the level: headers are in doubt, or a person has set a ceiling


class SetPoints(msgspec.Struct, frozen=True, kw_only=True):
    """What the scripts obey until the tuner, or a person, writes again."""

    paces: Mapping[str, Pacing] = {}  #: by dimension; one that is missing has no pace
    unpaced: bool = False  #: no pace holds, whatever stands in `paces`
    unpaced_again: bool = (
        False  #: a person has set the lane to be unlimited, and a mode holds it back: it is unlimited again after that
    )
    headers_govern: bool = False  #: headers say how the lane stands, so nothing is earned behind a gate
    mode: Mode | None = None  #: None: none is written yet, or it is one that only a newer version knows
    pin: str = ""  #: id of the mode by hand; "": the law governs
    escalates: bool = True  #: whether the law may change the mode
    at_once: int = 0  #: calls out at once, the narrowest of the next three; 0: no bound
    probes: int = 0  #: bound of a mode, as for half-open probes; `MANY`: any number, with a gap between them
    ramp: int = 0  #: bound while the pace is not known yet, or only refusals come; 0: none
    flight: int = 0  #: bound that answers have taught: as many as the provider serves well; 0: none
    gap_us: int = 0  #: between two calls, where `at_once` is set
    sick_share: float = 0.0  #: share of recent calls whose first attempt was sick, 0 to 1
    gate_us: int = 0  #: nothing is released before, µs since the epoch; scripts set it too, after refusals and probes

    def encode_changes(self, before: SetPoints) -> dict[str, float | str | bytes]:
        """The fields in which these differ from `before`."""
        changed: dict[str, float | str | bytes] = {}
        if self.paces != before.paces:
            changed |= _changed_paces(before.paces, self.paces)
        if self.unpaced != before.unpaced:
            changed["unlimited"] = int(self.unpaced)
        if self.unpaced_again != before.unpaced_again:
            changed["law"] = _UNPACED_AGAIN.decode() if self.unpaced_again else ""
        if self.headers_govern != before.headers_govern:
            changed["told"] = int(self.headers_govern)
        if self.mode is not before.mode and self.mode is not None:
            changed["mode"] = self.mode.value
        if self.pin != before.pin:
            changed["pin"] = self.pin
        if self.escalates != before.escalates:
            changed |= encode_escalates(self.escalates)
        for stored, name in _NUMBERS:
            value = getattr(self, name)
            if value != getattr(before, name):
                changed[stored] = value
        return changed


_NUMBERS = (
    ("width", "at_once"),
    ("probes", "probes"),
    ("ramp", "ramp"),
    ("flight", "flight"),
    ("gap", "gap_us"),
    ("sick_share", "sick_share"),
    ("gate", "gate_us"),
)
_PACING = (("p", "pace"), ("d", "depth"), ("g", "guard"))


def _changed_paces(before: Mapping[str, Pacing], after: Mapping[str, Pacing]) -> dict[str, float | str | bytes]:
    changed: dict[str, float | str | bytes] = {}
    for number, dimension in enumerate(DIMENSIONS, 1):
        was, now = before.get(dimension), after.get(dimension)
        for letter, name in _PACING:
            if now is None and was is not None:
                changed[f"{letter}{number}"] = ""
            elif now is not None and (was is None or getattr(now, name) != getattr(was, name)):
                changed[f"{letter}{number}"] = getattr(now, name)
    return changed


def encode_escalates(escalates: bool) -> dict[str, float | str | bytes]:
    """Whether the law may change the lane's mode."""
    return {"escalates": "" if escalates else "0"}


def encode_paces(paces: Mapping[str, Pacing], headers_govern: bool) -> dict[str, float | str | bytes]:
    """New paces for a lane; dimensions that are not named get none."""
    cleared: dict[str, float | str | bytes] = {
        f"{letter}{number}": "" for letter, _ in _PACING for number in range(1, len(DIMENSIONS) + 1)
    }
    return cleared | _changed_paces({}, paces) | {"told": int(headers_govern)}


# ── levels and counters ────────────────────────────────────────────────────────────────────────────────────────────


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """Levels and counters, which scripts write."""

    at_us: float | None = None  #: time of the levels, µs since the epoch; None: nothing was sent yet
    level: Mapping[str, float] = {}  #: units in the bucket, by dimension; one that is missing is full
    beyond: Mapping[str, float] = {}  #: units that were given back and did not fit into the bucket, by dimension
    sent: Units = NOTHING  #: in all, refused ones too
    turned_back: Units = NOTHING  #: refused in all
    seq: int = 0  #: calls sent in all
    sick_row: int = 0  #: sick answers in a row
    goods: int = 0  #: plain good answers since the tuner last asked
    took_us: float = 0.0  #: time from permit to answer, summed over these, µs


def encode_levels(
    anchors: Mapping[str, Anchor] | None = None, emptied: str | None = None, filled: str | None = None
) -> dict[str, float | str | bytes]:
    """Fields and arguments that set levels.

    Args:
        anchors: By dimension; the script derives the level from it.
        emptied: A dimension whose bucket is to be empty.
        filled: A dimension whose level is to be forgotten, which makes it full.
    """
    fields: dict[str, float | str | bytes] = {}
    for dimension, anchor in (anchors or {}).items():
        name = ANCHORS[1 if anchor.lowers else 0].stored
        fields[name.replace("#", str(DIMENSIONS.index(dimension) + 1))] = anchor.units
    if emptied is not None:
        fields[f"l{DIMENSIONS.index(emptied) + 1}"] = 0.0
    if filled is not None:
        fields[f"l{DIMENSIONS.index(filled) + 1}"] = ""
    return fields


# ── what the law remembers ─────────────────────────────────────────────────────────────────────────────────────────


class GivenBack(msgspec.Struct, frozen=True):
    """A note that a person has given the lane back to the law; the tuner acts on it and deletes it."""

    at_s: float
    who: str

    def encode(self) -> dict[str, float | str | bytes]:
        """The field with that note."""
        return {"resumed": f"{self.at_s!r} {self.who}"}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the law remembers of a lane, packed by the tuner, and the note that a person has left for it."""

    law: bytes = b""
    health: bytes = b""
    given_back: GivenBack | None = None

    def encode_changes(self, before: Memory) -> dict[str, float | str | bytes]:
        """The fields in which this differs from `before`."""
        changed: dict[str, float | str | bytes] = {}
        if self.law != before.law:
            changed["law"] = self.law
        if self.health != before.health:
            changed["health"] = self.health
        if self.given_back is None and before.given_back is not None:
            changed["resumed"] = ""
        return changed


# ── all of it ──────────────────────────────────────────────────────────────────────────────────────────────────────


class LaneState(msgspec.Struct, frozen=True, kw_only=True):
    """A lane's whole hash, decoded."""

    there: bool = False  #: whether the hash exists
    schema: bool = False  #: whether the lane has been made; it has not when it was only given a mode, say
    revision: int = 0  #: how often a person has set its limits
    told: Told = Told()
    points: SetPoints = SetPoints()
    levels: Levels = Levels()
    memory: Memory = Memory()

    @property
    def mode(self) -> Mode:
        """The mode that holds."""
        return self.points.mode or Mode.NORMAL

    @property
    def pinned(self) -> bool:
        """Whether a person has set the mode."""
        return bool(self.points.pin)

    @property
    def limited(self) -> bool:
        """Whether it has limits or paces. One that has none gets the configured ones with its first call, and nothing
        may be written in their place before that."""
        return self.schema or self.points.unpaced or self.points.unpaced_again or "requests" in self.points.paces

    def level(self, dimension: str, at_us: float) -> float:
        """Units in the bucket of a dimension that has a pace, calculated as in lua/shared/bucket.lua.

        Args:
            at_us: The time asked about, µs since the epoch; before the time of the levels, nothing has been added.
        """
        one, levels = self.points.paces[dimension], self.levels
        since_us = at_us if levels.at_us is None else levels.at_us
        if self.points.headers_govern:
            since_us = max(since_us, self.points.gate_us)
        earned = one.pace * max(0.0, at_us - since_us) / 1e6
        return min(one.depth, levels.level.get(dimension, one.depth) + earned) + levels.beyond.get(dimension, 0.0)

    @classmethod
    def decode(cls, fields: Mapping[str, bytes]) -> LaneState:
        """Decode the hash, or the part of it that was read: missing fields have their defaults.

        Raises:
            ValueError: a field that should be a number is not.
        """
        if not fields:
            return _NO_LANE
        get = fields.get
        law = get("law") or b""
        unpaced_again = law == _UNPACED_AGAIN
        unlimited = get("unlimited")
        return cls(
            there=True,
            schema=bool(get("schema")),
            revision=int(get("rev") or 0),
            told=_decode_told(fields, unlimited == b"1" or unpaced_again),
            points=_decode_points(fields, unlimited == b"1", unpaced_again),
            levels=_decode_levels(fields),
            memory=Memory(
                law=b"" if unpaced_again else law, health=get("health") or b"", given_back=_given_back(get("resumed"))
            ),
        )

    @classmethod
    def of(cls, fields: Fields) -> LaneState:
        """The state of a lane that is made with these fields."""
        return cls.decode(
            {name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}
        )


_NO_LANE = LaneState()
#: Fields that the tuner reads of every lane when it walks over all of them.
WALK_FIELDS = ("schema", "mode", "pin")
#: Fields that name a lane's parents.
PARENT_FIELDS = ("bounds",)
#: Fields that say whether the law has halted a lane, why, and whether it may.
HALT_FIELDS = ("mode", "pin", "health", "escalates")


def _decode_told(fields: Mapping[str, bytes], unlimited: bool) -> Told:
    get = fields.get
    raw = get("bounds")
    bounds = _decode_bounds(raw) if raw else _NO_BOUNDS
    rpm, tpm = get("rpm"), get("tpm")
    return Told(
        limits=LaneLimits(
            rpm=float(rpm) if rpm else None,
            tpm=float(tpm) if tpm else None,
            rpd=bounds.rpd,
            tpd=bounds.tpd,
            usd_per_day=bounds.usd_per_day,
            usd_per_month=bounds.usd_per_month,
            day_zone=bounds.zone,
            concurrency=int(float(get("cap") or 0)) or None,
            unlimited=unlimited,
            adaptive=get("adaptive") != b"0",
            parents=bounds.parents,
            shared=get("shared") == b"1",
        ),
        day_steps=bounds.steps,
        basic_json=get("basic") or b"",
        configured=bool(get("configured")),
    )


_NO_BOUNDS = _Bounds()
_MODES = {mode.value.encode(): mode for mode in Mode}
_NUMBERED = tuple((dimension, *(f"{letter}{i}" for letter in "pdglo")) for i, dimension in enumerate(DIMENSIONS, 1))
_SENT, _REFUSED = (tuple(f"{letter}{i}" for i in range(1, len(DIMENSIONS) + 1)) for letter in "cx")


def _decode_points(fields: Mapping[str, bytes], unpaced: bool, unpaced_again: bool) -> SetPoints:
    get = fields.get
    paces = {
        dimension: Pacing(float(pace), float(get(d) or 1.0), float(get(g) or 0.0))
        for dimension, p, d, g, _, _ in _NUMBERED
        if (pace := get(p))
    }
    return SetPoints(
        paces=paces,
        unpaced=unpaced,
        unpaced_again=unpaced_again,
        headers_govern=float(get("told") or 0) == 1,
        mode=_MODES.get(get("mode") or b""),
        pin=(get("pin") or b"").decode(),
        escalates=get("escalates") != b"0",
        at_once=int(float(get("width") or 0)),
        probes=int(float(get("probes") or 0)),
        ramp=int(float(get("ramp") or 0)),
        flight=int(float(get("flight") or 0)),
        gap_us=int(float(get("gap") or 0)),
        sick_share=float(get("sick_share") or 0),
        gate_us=int(float(get("gate") or 0)),
    )


def _decode_levels(fields: Mapping[str, bytes]) -> Levels:
    get = fields.get
    at = get("ts")
    return Levels(
        at_us=float(at) if at else None,
        level={dimension: float(raw) for dimension, _, _, _, key, _ in _NUMBERED if (raw := get(key))},
        beyond={dimension: float(raw) for dimension, _, _, _, _, key in _NUMBERED if (raw := get(key))},
        sent=_units(fields, _SENT),
        turned_back=_units(fields, _REFUSED),
        seq=int(float(get("seq") or 0)),
        sick_row=int(float(get("sick") or 0)),
        goods=int(get("goods") or 0),
        took_us=float(get("took") or 0),
    )


def _units(fields: Mapping[str, bytes], stored: tuple[str, ...]) -> Units:
    one, two, three, four = (float(fields.get(name) or 0) for name in stored)
    return one, two, three, four


def _given_back(raw: bytes | None) -> GivenBack | None:
    if not raw:
        return None
    at, _, who = raw.decode().partition(" ")
    return GivenBack(float(at), who)
