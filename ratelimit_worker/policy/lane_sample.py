"""Several looks at a lane, combined into one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ratelimit_worker.calls import Mode
from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.contracts.rollup import MINUTE_S
from ratelimit_worker.policy import rollup

STRICTNESS = tuple(Mode)  #: from most to least that a lane may send
KEPT_S = rollup.KEPT_S[MINUTE_S]  #: how long samples are kept: as long as sums by minute, seconds


def together(looks: Sequence[LaneSample], at_s: int) -> LaneSample:
    """Combine looks at one lane: the mean of what it was allowed, else the highest numbers, and the strictest mode.

    Args:
        looks: At least one. If one of them was not bound, neither is the result.
        at_s: Time of the result, seconds since the epoch.
    """
    allowed = [look.allowed_per_min for look in looks if look.allowed_per_min is not None]
    bound = len(allowed) == len(looks)
    return LaneSample(
        lane=looks[0].lane,
        at_s=at_s,
        allowed_per_min=sum(allowed) / len(allowed) if bound else None,
        waiting=max(look.waiting for look in looks),
        running=max(look.running for look in looks),
        mode=max((look.mode for look in looks), key=STRICTNESS.index),
    )
