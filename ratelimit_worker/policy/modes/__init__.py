"""Is the provider sick, or does a person say so, and what may a lane send meanwhile?

Evidence, by default: NORMAL → REDUCED when the sick share of the last 30 s is 15 % even at its Wilson lower bound, or
at 5 sick answers in a row; REDUCED → EMERGENCY at 30 % or 10 in a row. Failures come back faster than answers, so calls
that are still out count as healthy in the share, and lengthen the row that is needed. The written rule, at low
volume or where the policy is literal: 15 % or 5 sick answers in 15 minutes, 30 % or 10. What an answer is worth as
evidence depends on who asked (`policy.fault`): one call, task or process that always fails is not its provider. Back
by hysteresis, a step at a time: from EMERGENCY by half-open probes, from REDUCED when nearly all is well; by time
alone where nothing is sent. A lane that has no quota or no key is in HALT, which stands beside that ladder. A pinned
mode wins over all of it, while the law goes on watching.

Pure: a state, an answer → a state, and a move on the ladder or none. `hold` says what follows for the lane.
"""

from ratelimit_worker.policy.modes.counts import EVIDENCE_S, HOUR_MIN, SPAN_S, SPANS, WINDOW_MIN, wilson
from ratelimit_worker.policy.modes.hold import HALT_GAP_S, Hold, Rates, hold
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
