"""Which names, positions and numbers do scripts and Python share? They are defined here, in Python.

`python -m ratelimit_worker.contracts.lua` writes them to `stores/lua/contract.lua`; a test fails when that file is out
of date. What only scripts use is defined in the scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from enum import IntEnum
from importlib.resources import files

from ratelimit_worker.calls import DIMENSIONS, SCHEMA_VERSION
from ratelimit_worker.contracts import call, kept, lane, reuse
from ratelimit_worker.contracts.call import Asked, Degrades, Permit, Place

_US = 1_000_000
_WIDTH = 120
#: Numbers that scripts and Python must agree on.
KNOWN: Mapping[str, float] = {
    "SICK_ROW": lane.SICK_ROW,
    "HALT_US": round(lane.HALT_FIRST_GAP_S * _US),
    "ANSWERED_EVERY_US": round(lane.ANSWERED_EVERY_S * _US),
    "RETRY_SHARE": lane.RETRY_SHARE,
    "RETRIES_PER_US": lane.RETRIES_PER_S / _US,
    "MANY": lane.MANY,
    "SHUT_US": lane.SHUT_US,
    "REFS": call.REFS,
    "LISTED_US": round(call.PARKED_LISTED_S * _US),
    "ENTRY_BYTES": kept.ENTRY_BYTES,
    "WORTH_SCALE": kept.WORTH_SCALE,
    "USUAL_NANOUSD": kept.USUAL_NANOUSD,
    "RENEW_AGAIN_US": round(kept.RENEW_AGAIN_S * _US),
    "REUSE_KEPT_S": reuse.KEPT_S,
    "REUSE_MOST": reuse.MOST_SERIES,
}


def text() -> str:
    """The text of contract.lua."""
    places = [place.name for place in Place]
    shared = (_entry(field.key, field.stored) for field in (*lane.FIELDS, *lane.ANCHORS))
    return "\n".join(
        [
            "-- What scripts and Python share. Written by ratelimit_worker/contracts/lua.py: make changes there.",
            "",
            f"local SCHEMA, N = {SCHEMA_VERSION}, {len(DIMENSIONS)}",
            *_table("DIMENSIONS", (f"'{name}'" for name in DIMENSIONS)),
            "-- the fields of a lane's hash; by number where there is one a dimension. ANCHOR and ANCHOR_LOWERS",
            "-- are never stored: they are arguments of setpoints.lua",
            *_table("FIELD", shared),
            "-- numbers that Python uses too",
            *_table("KNOWN", (f"{name} = {number!r}" for name, number in KNOWN.items())),
            "-- positions in the record of a call (contracts/call.py says what stands there), and in its claim",
            *_wrapped(f"local {places[0]}", places[1:]),
            *_wrapped(f"  = {Place(1).value}", (str(place.value) for place in list(Place)[1:])),
            *_table("ASKED", (f"{place.name} = {place.value}" for place in Asked)),
            "-- codes in the places PERMIT and DEGRADES of a record",
            *(_codes(kind) for kind in (Permit, Degrades)),
            "-- sums of what answers that were used again have saved",
            *_table("REUSE", (f"{name.name} = '{name.value}'" for name in reuse.Reuse)),
            "",
        ]
    )


def _entry(key: str, stored: str) -> str:
    if not stored.endswith("#"):
        return f"{key} = '{stored}'"
    return f"{key} = {{{', '.join(repr(stored.replace('#', str(i + 1))) for i in range(len(DIMENSIONS)))}}}"


def _codes(kind: type[IntEnum]) -> str:
    return f"local {', '.join(code.name for code in kind)} = {', '.join(str(code.value) for code in kind)}"


def _table(name: str, entries: Iterable[str]) -> list[str]:
    first, *others = entries
    lines = _wrapped(f"local {name} = {{{first}", others)
    return [*lines[:-1], lines[-1] + "}"]


def _wrapped(first: str, others: Iterable[str]) -> list[str]:
    """`first` and the others, separated by commas, wrapped into lines of a readable length."""
    lines = [first]
    for one in others:
        lines[-1] += ","
        if len(lines[-1]) + len(one) + 1 < _WIDTH:
            lines[-1] += f" {one}"
        else:
            lines.append(f"  {one}")
    return lines


if __name__ == "__main__":
    with open(str(files("ratelimit_worker.stores").joinpath("lua", "contract.lua")), "w", encoding="utf-8") as file:
        file.write(text())
    sys.stdout.write("contract.lua is up to date\n")
