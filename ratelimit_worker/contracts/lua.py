"""What do scripts and Python both know? Names, places and numbers, of which Python writes `stores/lua/contract.lua`.

`python -m ratelimit_worker.contracts.lua` writes it anew; a test fails when the file is not what Python says. What
scripts alone know stands in the scripts.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files

from ratelimit_worker.calls import DIMENSIONS, SCHEMA_VERSION
from ratelimit_worker.contracts import call, kept, lane
from ratelimit_worker.contracts.call import Asked, Place

_US = 1_000_000
_WIDTH = 120
#: Numbers that decide the same in a script and in Python.
KNOWN: Mapping[str, float] = {
    "SICK_ROW": lane.SICK_ROW,
    "HALT_US": round(lane.HALT_GAP_S * _US),
    "ANSWERED_EVERY_US": round(lane.ANSWERED_EVERY_S * _US),
    "RETRY_SHARE": lane.RETRY_SHARE,
    "RETRIES_PER_US": lane.RETRIES_PER_S / _US,
    "MANY": lane.MANY,
    "SHUT_US": lane.SHUT_US,
    "REFS": call.REFS,
    "STALE_US": round(call.PARKED_STALE_S * _US),
    "ENTRY_BYTES": kept.ENTRY_BYTES,
    "WORTH_SCALE": kept.WORTH_SCALE,
    "USUAL_NANOUSD": kept.USUAL_NANOUSD,
}


def text() -> str:
    """What contract.lua has to say."""
    places = [place.name for place in Place]
    shared = (_entry(field.key, field.stored) for field in lane.FIELDS)
    return "\n".join(
        [
            "-- What scripts and Python both know. Written by ratelimit_worker/contracts/lua.py; change that.",
            "",
            f"local SCHEMA, N = {SCHEMA_VERSION}, {len(DIMENSIONS)}",
            *_table("DIMENSIONS", (f"'{name}'" for name in DIMENSIONS)),
            "-- the fields of a lane's hash; those of a dimension by its number",
            *_table("FIELD", shared),
            "-- numbers that decide the same here and there",
            *_table("KNOWN", (f"{name} = {number!r}" for name, number in KNOWN.items())),
            "-- places in the record of a call, and in its claim",
            *_wrapped(f"local {places[0]}", places[1:]),
            *_wrapped(f"  = {Place(1).value}", (str(place.value) for place in list(Place)[1:])),
            *_table("ASKED", (f"{place.name} = {place.value}" for place in Asked)),
            "",
        ]
    )


def _entry(key: str, stored: str) -> str:
    if not stored.endswith("#"):
        return f"{key} = '{stored}'"
    return f"{key} = {{{', '.join(repr(stored.replace('#', str(i + 1))) for i in range(len(DIMENSIONS)))}}}"


def _table(name: str, entries: Iterable[str]) -> list[str]:
    first, *others = entries
    lines = _wrapped(f"local {name} = {{{first}", others)
    return [*lines[:-1], lines[-1] + "}"]


def _wrapped(first: str, others: Iterable[str]) -> list[str]:
    """These with commas between them, in lines of a readable length."""
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
    sys.stdout.write("contract.lua is what Python says\n")
