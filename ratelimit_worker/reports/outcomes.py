"""Why was an attempt snoozed? It costs no try, for one of four reasons, and a 429 is only one of them. Pure.

What counts as a 429 says stores/queries.py, for every figure alike: an answer with that status, or one of its like.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ratelimit_worker.calls import SICK, Category
from ratelimit_worker.reports.words import count


class Snoozed(StrEnum):
    """Why an attempt went back to its place."""

    REFUSED = "refused"  #: for the rate: a 429 or its like
    SICK = "sick"  #: while the lane took its provider to be away
    QUOTA = "quota"  #: nothing was left to spend, and the lane was halted
    SENT_BACK = "sent_back"  #: by the task itself, or for another reason that is nobody's failure


_WORDS = {
    Snoozed.REFUSED: "refused (429)",
    Snoozed.SICK: "provider away",
    Snoozed.QUOTA: "no quota",
    Snoozed.SENT_BACK: "sent back",
}


def why_snoozed(category: Category | None) -> Snoozed:
    """The reason, from the category of what the attempt met; None: it met no failure."""
    if category is Category.RATE_LIMITED:
        return Snoozed.REFUSED
    if category is Category.QUOTA_EXHAUSTED:
        return Snoozed.QUOTA
    return Snoozed.SICK if category in SICK else Snoozed.SENT_BACK


def snoozed_words(by_reason: Mapping[str, int]) -> str:
    """Such as "12 refused (429), 41 provider away"; "none" where nothing was snoozed."""
    return ", ".join(f"{count(n)} {_WORDS[Snoozed(reason)]}" for reason, n in by_reason.items() if n) or "none"
