"""Why attempts were snoozed: one of four reasons, of which a 429 is only one. Pure.

stores/queries.py defines what counts as a 429 in all figures: an answer with that status, or an equivalent one.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from ratelimit_worker.calls import SICK, Category
from ratelimit_worker.reports.words import count


class Snoozed(StrEnum):
    """Why an attempt was snoozed."""

    REFUSED = "refused"  #: because of the rate: a 429 or an equivalent
    SICK = "sick"  #: failed while the lane was in the state "provider away"
    QUOTA = "quota"  #: the quota was used up, and the lane was halted
    SENT_BACK = "sent_back"  #: sent back by the task itself, or for another reason that is no failure


_WORDS = {
    Snoozed.REFUSED: "refused (429)",
    Snoozed.SICK: "provider away",
    Snoozed.QUOTA: "no quota",
    Snoozed.SENT_BACK: "sent back",
}


def why_snoozed(category: Category | None) -> Snoozed:
    """The reason, from the category of the attempt's failure; None: it had no failure."""
    if category is Category.RATE_LIMITED:
        return Snoozed.REFUSED
    if category is Category.QUOTA_EXHAUSTED:
        return Snoozed.QUOTA
    return Snoozed.SICK if category in SICK else Snoozed.SENT_BACK


def snoozed_words(by_reason: Mapping[str, int]) -> str:
    """Such as "12 refused (429), 41 provider away"; "none" if no attempt was snoozed."""
    return ", ".join(f"{count(n)} {_WORDS[Snoozed(reason)]}" for reason, n in by_reason.items() if n) or "none"
