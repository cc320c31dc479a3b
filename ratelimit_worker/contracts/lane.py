"""What does Redis know of a lane? One hash, `rlw:lane:L`: what each field means, and the one codec of all of it.

`FIELDS` is the table: the name under which a field is stored, what it means, its unit, and who writes and reads it. A
field whose name ends in `#` stands four times, numbered from 1 in the order of `DIMENSIONS`. Scripts have the stored
names from contract.lua, which `contracts.lua` writes; everybody else reads a `LaneState`, decoded once, and writes what
the functions here encode.

An older and a newer version use the same hash while a deploy lasts: stored names stay, and what is not there has the
meaning of its default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from ratelimit_worker.calls import DIMENSIONS, SCHEMA_VERSION, LaneLimits, Mode

#: Fields on their way to Redis, by stored name; "": the field goes. Only the functions of this module make them.
Fields = Mapping[str, float | str | bytes]
Units = tuple[float, float, float, float]  #: in the order of `DIMENSIONS`
NOTHING: Units = (0.0, 0.0, 0.0, 0.0)
#: Bound on calls out at once that bounds nothing, where a gap between two calls is to hold: that needs a bound.
MANY = 1_000_000
SICK_ROW = 5  #: sick answers in a row that mean REDUCED, and wake the tuner
HALT_GAP_S = 300.0  #: between probes while the law has halted a lane
ANSWERED_EVERY_S = 0.1  #: a lane notes when it was answered no more often
RETRY_SHARE, RETRIES_PER_S = 0.1, 10 / 60  #: of the permits that go to retries while others wait; and beside these
#: Gate of a lane that is shut, µs since the epoch: a day that does not come, and that a double holds exactly.
SHUT_US = 2**53
#: Field `law` of a lane without pace whose `unlimited` a mode has set aside, in place of what the law remembers.
_UNPACED_AGAIN = b"unlimited"


class Write(NamedTuple):
    """What is to be written of a lane, unless a person has set its limits since it was read."""

    revision: int  #: that was read
    fields: Fields


class Field(NamedTuple):
    """One field of the hash."""

    stored: str  #: its name in Redis; `#` at its end: one a dimension
    key: str  #: how scripts call it: `FIELD.GATE`, and `FIELD.PACE[1]` to `[4]`
    name: str  #: where it is in a `LaneState`, or in words what scripts alone use
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
        "JSON: parents, rpd, tpd, zone, steps",
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
        "how often a person has set the lane's limits",
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
        "share of late calls whose first try was sick",
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
#: Not a field: an argument of enqueue.lua that stands among those of a new lane, the most lanes that there may be.
MOST_LANES = "most_lanes"


# ── what a person set ──────────────────────────────────────────────────────────────────────────────────────────────


class Basic(msgspec.Struct, frozen=True):
    """What a lane goes back to when advanced rate limiting is switched on again."""

    limits: LaneLimits
    delay_s: float  #: RATE_LIMIT_DELAY that it goes at meanwhile


class _Bounds(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some lanes have, in one field."""

    parents: tuple[str, ...] = ()
    rpd: float | int | None = None
    tpd: float | int | None = None
    zone: str | None = None
    steps: tuple[int, ...] = ()  #: of the zone, as `policy.day` writes them down


_decode_bounds = msgspec.json.Decoder(_Bounds).decode
_decode_basic = msgspec.json.Decoder(Basic).decode


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a person set: by MAISD_LANES, `limits set` or a switch."""

    limits: LaneLimits = LaneLimits()  #: without what only settings hold: weights, time-outs, headers of requests
    day_steps: tuple[int, ...] = ()  #: of the zone in which its days end, as `policy.day` writes them down
    basic_json: bytes = b""  #: `basic`, as it is stored
    configured: bool = False  #: a person has said something of it, so that it stays when it is idle

    @property
    def basic(self) -> Basic | None:
        """What it goes back to; None: advanced rate limiting is on."""
        return _decode_basic(self.basic_json) if self.basic_json else None

    def encode(self) -> dict[str, float | str | bytes]:
        """Fields for the limits; what the law remembers of others goes."""
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
        """Fields for those limits that say nothing of a pace."""
        limits = self.limits
        bounds = _Bounds(
            limits.parents, limits.rpd or None, limits.tpd or None, limits.day_zone or None, self.day_steps
        )
        said = "" if bounds == _Bounds() else msgspec.json.encode(bounds).decode()
        return {"cap": limits.concurrency or 0, "bounds": said}


def encode_configured() -> dict[str, float | str | bytes]:
    """That a person has said something of the lane."""
    return {"configured": 1}


def encode_basic(basic: Basic | None) -> dict[str, float | str | bytes]:
    """What it goes back to; None: nothing any more."""
    return {"basic": "" if basic is None else msgspec.json.encode(basic).decode()}


def encode_schema() -> dict[str, float | str | bytes]:
    """That the lane is there."""
    return {"schema": SCHEMA_VERSION}


def encode_new(most_lanes: int | None) -> dict[str, float | str | bytes]:
    """What a new lane has beside its limits.

    Args:
        most_lanes: It is not made where there are so many; None: a person has named it, so it is and stays.
    """
    return encode_configured() if most_lanes is None else {MOST_LANES: most_lanes}


# ── what scripts obey ──────────────────────────────────────────────────────────────────────────────────────────────


class Pacing(msgspec.Struct, frozen=True):
    """Set-points of one dimension."""

    pace: float  #: units/s; 0: closed
    depth: float = 1.0  #: units that may leave back to back
    guard: float = 0.0  #: units kept in hand


class Anchor(msgspec.Struct, frozen=True):
    """A level that is to be written: units that will have been sent in all, and not refused, when the bucket is empty.
    The script subtracts what has been by then, so calls that leave between decision and writing are counted."""

    units: float
    lowers: bool = False  #: it may only lower the level: headers are in doubt, or a person has set a ceiling


class SetPoints(msgspec.Struct, frozen=True, kw_only=True):
    """What scripts obey until the tuner, or a person, writes again."""

    paces: Mapping[str, Pacing] = {}  #: by dimension; those that are not there do not bind
    unpaced: bool = False  #: no pace binds, whatever stands in `paces`
    unpaced_again: bool = (
        False  #: a person has set it to be unlimited; it is again when its mode binds it no more again
    )
    headers_govern: bool = False  #: headers say how the lane stands, so nothing is earned behind a gate
    mode: Mode | None = None  #: None: nobody has said it yet, or a newer version has in a word of its own
    pin: str = ""  #: id of the mode by hand; "": the law governs
    escalates: bool = True  #: whether the law may change the mode
    at_once: int = 0  #: calls out at once, the narrowest of the next three; 0: no bound
    probes: int = 0  #: of a mode: while the provider is away, half-open probes; `MANY`: as many as go, with a gap
    ramp: int = 0  #: while the pace is not known yet, or nothing but refusals come
    flight: int = 0  #: as many as the provider answers well
    gap_us: int = 0  #: between two calls, where `at_once` bounds
    sick_share: float = 0.0  #: of the calls of late, those whose first attempt was sick
    gate_us: int = 0  #: nothing leaves before, µs since the epoch; scripts set it too, after refusals and probes

    def encode_changes(self, before: SetPoints) -> dict[str, float | str | bytes]:
        """Fields in which it differs from what was there."""
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
    """All that paces a lane anew: dimensions that are not named are not bound."""
    cleared: dict[str, float | str | bytes] = {
        f"{letter}{number}": "" for letter, _ in _PACING for number in range(1, len(DIMENSIONS) + 1)
    }
    return cleared | _changed_paces({}, paces) | {"told": int(headers_govern)}


# ── levels and counters ────────────────────────────────────────────────────────────────────────────────────────────


class Levels(msgspec.Struct, frozen=True, kw_only=True):
    """Levels and counters, which scripts write."""

    at_us: float | None = None  #: as of when the levels are, µs since the epoch; None: nothing was sent yet
    level: Mapping[str, float] = {}  #: units by dimension; one that is not there is full
    beyond: Mapping[str, float] = {}  #: units by dimension that were given back and did not fit into the bucket
    sent: Units = NOTHING  #: in all, refused ones too
    turned_back: Units = NOTHING  #: refused in all
    seq: int = 0  #: calls sent in all
    sick_row: int = 0  #: sick answers in a row
    goods: int = 0  #: good answers that told nothing else, since the tuner last asked
    took_us: float = 0.0  #: all of these together, from permit to answer, µs


def encode_levels(
    anchors: Mapping[str, Anchor] | None = None, emptied: str | None = None, filled: str | None = None
) -> dict[str, float | str | bytes]:
    """Levels that are set.

    Args:
        anchors: By dimension, what the script derives them from.
        emptied: A dimension of which nothing is left.
        filled: A dimension of which nothing is known any more: it is full.
    """
    fields: dict[str, float | str | bytes] = {}
    for dimension, anchor in (anchors or {}).items():
        fields[f"{'m' if anchor.lowers else 'a'}{DIMENSIONS.index(dimension) + 1}"] = anchor.units
    if emptied is not None:
        fields[f"l{DIMENSIONS.index(emptied) + 1}"] = 0.0
    if filled is not None:
        fields[f"l{DIMENSIONS.index(filled) + 1}"] = ""
    return fields


# ── what the law remembers ─────────────────────────────────────────────────────────────────────────────────────────


class GivenBack(msgspec.Struct, frozen=True):
    """A person has given the lane back to the law; the tuner takes note, and takes this away."""

    at_s: float
    who: str

    def encode(self) -> dict[str, float | str | bytes]:
        """The field that says so."""
        return {"resumed": f"{self.at_s!r} {self.who}"}


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the law remembers, packed as the tuner packs it, and what it is told to take note of."""

    law: bytes = b""
    health: bytes = b""
    given_back: GivenBack | None = None

    def encode_changes(self, before: Memory) -> dict[str, float | str | bytes]:
        """Fields in which it differs from what was there."""
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
    """A lane's hash, decoded once."""

    there: bool = False  #: whether there is anything in it
    schema: bool = False  #: whether the lane has been made; one that was only given a mode, say, has not
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
        """Whether the mode is one by hand."""
        return bool(self.points.pin)

    @property
    def limited(self) -> bool:
        """Whether it has been told what it may send. One that has not gets what was configured with its first call, and
        must have nothing in its place until then."""
        return self.schema or self.points.unpaced or self.points.unpaced_again or "requests" in self.points.paces

    def level(self, dimension: str, at_us: float) -> float:
        """Units in the bucket of a dimension that has a pace, as the scripts reckon them (lua/shared/bucket.lua).

        Args:
            at_us: When, µs since the epoch; before the levels' own time nothing has been earned.
        """
        one, levels = self.points.paces[dimension], self.levels
        since_us = at_us if levels.at_us is None else levels.at_us
        if self.points.headers_govern:
            since_us = max(since_us, self.points.gate_us)
        earned = one.pace * max(0.0, at_us - since_us) / 1e6
        return min(one.depth, levels.level.get(dimension, one.depth) + earned) + levels.beyond.get(dimension, 0.0)

    @classmethod
    def decode(cls, fields: Mapping[str, bytes]) -> LaneState:
        """From the hash, or from as much of it as was asked for: the rest has its defaults.

        Raises:
            ValueError: what is to be a number is none.
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
        """A new lane as its fields will make it."""
        return cls.decode(
            {name: value if isinstance(value, bytes) else str(value).encode() for name, value in fields.items()}
        )


_NO_LANE = LaneState()
#: What the tuner's walk over all lanes looks at.
WALK_FIELDS = ("schema", "mode", "pin")
#: A lane's parents.
PARENT_FIELDS = ("bounds",)
#: What says whether the law has halted a lane, for what, and whether it may.
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
