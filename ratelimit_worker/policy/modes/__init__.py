"""Modes: is the provider sick, or has a person set a mode, and what may a lane send meanwhile?

Upwards, by default: NORMAL → REDUCED if 15 % of the answers of the last 30 s were sick (by the Wilson lower bound), or
5 in a row; REDUCED → EMERGENCY at 30 %, or 10 in a row. Failures come back faster than answers, so calls that are
still out count as healthy in the share, and make the necessary row longer. At low volume, or with a literal policy,
the written rule holds: 15 % or 5 sick answers in 15 minutes, 30 % or 10. How much an answer counts depends on who
asked (`policy.fault`): one call, task or process that always fails does not mean that the provider is sick.

Downwards with hysteresis, a step at a time: from EMERGENCY by half-open probes, from REDUCED when nearly all answers
are good; by time alone if nothing is sent. A lane without quota or with a bad key is in HALT, which is not a step of
that ladder. A pinned mode overrides all of this, while the law goes on watching.

Pure: state and answer in, new state and perhaps a move out. `hold` says what a mode does to the lane.
"""

from ratelimit_worker.contracts.lane import HALT_GAP_S
from ratelimit_worker.policy.modes.counts import EVIDENCE_S, HOUR_MIN, SPAN_S, SPANS, WINDOW_MIN, wilson
from ratelimit_worker.policy.modes.hold import Hold, Rates, hold
from ratelimit_worker.policy.modes.ladder import (
    PROBES_MOST,
    QUIET_S,
    count_good,
    measure,
    observe,
    quiet,
    release,
    sick_share,
    step,
)
from ratelimit_worker.policy.modes.pins import ALL, Pin, governing, lives
from ratelimit_worker.policy.modes.state import Answer, ModeState, Move, Thresholds

__all__ = [
    "ALL",
    "EVIDENCE_S",
    "HALT_GAP_S",
    "HOUR_MIN",
    "PROBES_MOST",
    "QUIET_S",
    "SPANS",
    "SPAN_S",
    "WINDOW_MIN",
    "Answer",
    "Hold",
    "ModeState",
    "Move",
    "Pin",
    "Rates",
    "Thresholds",
    "count_good",
    "governing",
    "hold",
    "lives",
    "measure",
    "observe",
    "quiet",
    "release",
    "sick_share",
    "step",
    "wilson",
]
