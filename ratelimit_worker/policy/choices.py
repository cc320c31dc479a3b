"""Are the names and numbers that a caller gives for a call valid?

The same checks hold for options of a call, decorators, in-process calls, the command line and settings.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from ratelimit_worker.calls import Cost
from ratelimit_worker.errors import BadInput

MOST_NAME = 200  #: characters of a lane, tenant, context or tag
MOST_TAGS = 100
MOST_DEADLINE_S = 10 * 365 * 86_400.0
MOST_TIMEOUT_S = 86_400.0
MOST_TTL_S = 365 * 86_400.0
MOST_UNITS = 1e12  #: requests or tokens of one call
_UNITS = ("requests", "input_tokens", "output_tokens")
_units_of = attrgetter(*_UNITS)

#: Control characters, halves of surrogate pairs, line and paragraph separators: they break logs, keys or terminals.
_UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  #: characters that reverse the direction of the text behind them


def flaw_of_name(value: Any, *, empty: bool = False) -> str | None:
    """What to use instead of an invalid name; None: it is valid.

    Args:
        empty: Whether it may be empty.
    """
    if not isinstance(value, str) or len(value) > MOST_NAME or not (value or empty):
        return f"use text of {0 if empty else 1} to {MOST_NAME} characters"
    if value.isascii() and value.isprintable():
        return None
    if any(letter in _BIDI or unicodedata.category(letter) in _UNPRINTED for letter in value):
        return "use text without control characters and halves of surrogate pairs"
    return None


def name(what: str, value: Any, *, empty: bool = False) -> str:
    """Check a name, and return it.

    Raises:
        BadInput: it is invalid; one line.
    """
    flaw = flaw_of_name(value, empty=empty)
    if flaw is not None:
        raise BadInput(f"{what}={_shown(value)}: {flaw}")
    return str(value)


def names(what: str, values: Any) -> list[str]:
    """Check a list of names, and return them.

    Raises:
        BadInput: one of them is invalid, or it is not a list.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise BadInput(f"{what}={_shown(values)}: use a list of names")
    listed = list(values)
    if len(listed) > MOST_TAGS:
        raise BadInput(f"{what}: {len(listed)} names; use at most {MOST_TAGS}")
    return [name(what, value) for value in listed]


def number(what: str, value: Any, most: float, unit: str = "seconds", *, zero: bool = False) -> float:
    """Check for a finite number above 0 (`zero`: from 0) and up to `most`, and return it. A bool is no number here.

    Raises:
        BadInput: it is not; one line.
    """
    good = not isinstance(value, bool) and isinstance(value, int | float) and value <= most
    if not good or not (value > 0 or (zero and value == 0)):  # nan is neither
        raise BadInput(f"{what}={_shown(value)}: use {unit} {'from' if zero else 'above'} 0, to {most:.0f}")
    return float(value)


def cost(value: Any) -> Cost:
    """Check a cost, and return it.

    Raises:
        BadInput: it is not a `Cost`, or one of its numbers is invalid.
    """
    if not isinstance(value, Cost):
        raise BadInput(f"cost={_shown(value)}: use ratelimit_worker.Cost(requests, input_tokens, output_tokens)")
    for what, units in zip(_UNITS, _units_of(value), strict=True):
        if not (type(units) in (int, float) and 0 <= units <= MOST_UNITS):  # words for it are only put together then
            number(f"cost: {what}", units, MOST_UNITS, "a number", zero=True)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float | None | bytes):
        return f"{value[:60]!a}…" if isinstance(value, str | bytes) and len(value) > 60 else f"{value!a:.80}"
    return f"<{type(value).__name__}>"  # the value itself may be large, and secret
