"""Can what a caller says of a call be? Names and numbers, checked alike at every door.

A door is an option of a call, a decorator, a call in process, the command line or a setting.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from ratelimit_worker.calls import Cost
from ratelimit_worker.errors import BadInput

MOST_NAME = 200  #: characters of a lane, tenant, context or tag
MOST_TAGS = 100
MOST_DEADLINE_S = 10 * 365 * 86_400.0
MOST_TIMEOUT_S = 86_400.0
MOST_TTL_S = 365 * 86_400.0
MOST_UNITS = 1e12  #: requests or tokens of one call

#: Controls, halves of surrogate pairs, ends of lines and paragraphs: nothing that a log, a key or a terminal can take.
_UNPRINTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_BIDI = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)  #: turn what follows around


def flaw_of_name(value: Any, *, empty: bool = False) -> str | None:
    """How a name should be instead; None: it can be.

    Args:
        empty: Whether it may say nothing.
    """
    if not isinstance(value, str) or len(value) > MOST_NAME or not (value or empty):
        return f"use text of {0 if empty else 1} to {MOST_NAME} characters"
    if value.isascii() and value.isprintable():
        return None
    if any(letter in _BIDI or unicodedata.category(letter) in _UNPRINTED for letter in value):
        return "use text without control characters and halves of surrogate pairs"
    return None


def name(what: str, value: Any, *, empty: bool = False) -> str:
    """A name that can be.

    Raises:
        BadInput: it cannot; one line.
    """
    flaw = flaw_of_name(value, empty=empty)
    if flaw is not None:
        raise BadInput(f"{what}={_shown(value)}: {flaw}")
    return str(value)


def names(what: str, values: Any) -> list[str]:
    """Names that can be.

    Raises:
        BadInput: one of them cannot, or there is no list of them.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise BadInput(f"{what}={_shown(values)}: use a list of names")
    listed = list(values)
    if len(listed) > MOST_TAGS:
        raise BadInput(f"{what}: {len(listed)} names; use at most {MOST_TAGS}")
    return [name(what, value) for value in listed]


def number(what: str, value: Any, most: float, unit: str = "seconds", *, zero: bool = False) -> float:
    """A finite number above 0 (`zero`: or 0), to `most`. A bool is a number to Python, and to nobody else.

    Raises:
        BadInput: it is none; one line.
    """
    good = not isinstance(value, bool) and isinstance(value, int | float) and value <= most
    if not good or not (value > 0 or (zero and value == 0)):  # nan is neither
        raise BadInput(f"{what}={_shown(value)}: use {unit} {'from' if zero else 'above'} 0, to {most:.0f}")
    return float(value)


def cost(value: Any) -> Cost:
    """A cost that a bucket can be charged with.

    Raises:
        BadInput: it is none.
    """
    if not isinstance(value, Cost):
        raise BadInput(f"cost={_shown(value)}: use ratelimit_worker.Cost(requests, input_tokens, output_tokens)")
    for what in ("requests", "input_tokens", "output_tokens"):
        number(f"cost: {what}", getattr(value, what), MOST_UNITS, "a number", zero=True)
    return value


def _shown(value: Any) -> str:
    if isinstance(value, str | int | float | None | bytes):
        return f"{value[:60]!a}…" if isinstance(value, str | bytes) and len(value) > 60 else f"{value!a:.80}"
    return f"<{type(value).__name__}>"  # it may be large, and hold anything
