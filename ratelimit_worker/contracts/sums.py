"""Sums over recorded attempts: what those of a window cost, and what a lane did in a short time."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Struct

from ratelimit_worker.calls import Outcome


class Spent(NamedTuple):
    """Sums over attempts of a window with the same lane, task, context, tenant, model and outcome; money in 10⁻⁹
    dollars."""

    lane: str
    task: str
    context: str
    tenant: str
    model: str | None
    outcome: Outcome
    attempts: int
    cost_nanousd: int
    estimated_nanousd: int  #: the part of the cost that is estimated
    cached_saving_nanousd: int
    lost_attempts: int
    lost_nanousd: int
    unpriced: int  #: attempts that used tokens and have no price


class Recent(Struct, frozen=True):
    """What a lane did in a short time."""

    attempts: int
    refused: int  #: of these, 429s
