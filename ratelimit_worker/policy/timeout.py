"""How long may one attempt take? As configured, else by the latencies of the same task and model.

Learned: four times the p99 of about the last thousand answers, between 30 s and 600 s, and never beyond the call's
deadline. A time-out does not show how long the answer would have taken. So three rules prevent that a provider that has
become slower is taken for a hanging one for ever:

- each try that a call has used doubles its time-out;
- the time-out is at least 1.5 times the slowest answer of the last ten minutes;
- while attempts time out and none is answered, it grows to a quarter of the time since that began.

Pure. Latencies are kept as a histogram of buckets a fifth apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil, inf, log2

from msgspec import Struct, field

from ratelimit_worker.calls import CONNECT_S, MOST_ATTEMPT_S, Timeouts
from ratelimit_worker.policy import estimate

#: The shortest learned time-out, seconds.
LEAST_S = 30.0
#: Factor on the p99.
TIMES = 4.0
#: Weight from which on a p99 is used: about twenty answers, of which the first count a little less by then.
LEAST_ANSWERS = 19.5
#: About how many answers are remembered: each new one reduces the weight of earlier ones.
MEMORY = 1000.0
#: How long the slowest answer is remembered, seconds, and the factor on it.
SLOWEST_S, SLOWEST_TIMES = 600.0, 1.5
#: Share of the time in which attempts timed out and none was answered.
HANGING_SHARE = 0.25
#: While nothing is known, for a call that names a maximum of output: this time, plus a slow model's time for each
#: token.
START_S, TOKENS_PER_S = 120.0, 5.0
LEAST_LEFT_S = 0.001

_FIRST_S, _PER_OCTAVE, _MOST_BUCKET = 0.1, 4, 52  #: the last bucket ends at 819 s
_LEAST_WEIGHT = 0.001


class Latencies(Struct, frozen=True, kw_only=True):
    """How long the answers of one task and model took."""

    weights: Mapping[int, float] = field(default_factory=dict)  #: weighted answers by bucket; older ones count less
    slowest_s: float = 0.0  #: latency of the slowest recent answer
    slowest_at: float = 0.0
    hanging_since: float = 0.0  #: when the first time-out after the last answer came, seconds since the epoch; 0: none
    at: float = 0.0  #: of the last answer or time-out, seconds since the epoch


class Sample(Struct, frozen=True, kw_only=True):
    """What one attempt teaches."""

    latency_s: float
    at: float  #: its end, seconds since the epoch
    answered: bool = True  #: False: it timed out


def key(task: str, model: str | None, lane: str) -> str:
    """The name under which latencies are learned: task and model, or the lane if no model is known."""
    return estimate.key(task, model or lane)


def learn(known: Latencies | None, samples: Iterable[Sample]) -> Latencies:
    """What is known after some more attempts."""
    before = known or Latencies()
    weights = dict(before.weights)
    slowest_s, slowest_at, hanging_since, at = before.slowest_s, before.slowest_at, before.hanging_since, before.at
    for sample in sorted(samples, key=lambda one: one.at):
        at = max(at, sample.at)
        if not sample.answered:
            hanging_since = hanging_since or sample.at
            continue
        hanging_since = 0.0
        weights = {bucket: weight * (1.0 - 1.0 / MEMORY) for bucket, weight in weights.items()}
        bucket = _bucket(sample.latency_s)
        weights[bucket] = weights.get(bucket, 0.0) + 1.0
        if sample.latency_s >= slowest_s or sample.at - slowest_at > SLOWEST_S:
            slowest_s, slowest_at = sample.latency_s, sample.at
    return Latencies(
        weights={bucket: weight for bucket, weight in weights.items() if weight >= _LEAST_WEIGHT},
        slowest_s=slowest_s,
        slowest_at=slowest_at,
        hanging_since=hanging_since,
        at=at,
    )


def p99_s(known: Latencies | None) -> float | None:
    """The p99 of latency, seconds, at most a fifth too high; None: too few answers are known."""
    if known is None or (total := sum(known.weights.values())) < LEAST_ANSWERS:
        return None
    above, found = 0.0, 0
    for bucket in sorted(known.weights, reverse=True):
        found, above = bucket, above + known.weights[bucket]
        if above > 0.01 * total:
            break
    return float(_FIRST_S * 2.0 ** (found / _PER_OCTAVE))


def slower_share(known: Latencies | None, out_s: float) -> float:
    """Share of the remembered answers that took longer than `out_s`; 0 if there are none."""
    total = sum(known.weights.values()) if known is not None else 0.0
    if known is None or total <= 0:
        return 0.0
    slower = sum(weight for bucket, weight in known.weights.items() if _FIRST_S * 2.0 ** (bucket / _PER_OCTAVE) > out_s)
    return slower / total


def learned_s(known: Latencies | None, now_s: float, most_tokens: int | None = None) -> float:
    """The learned time-out, seconds.

    Args:
        now_s: Seconds since the epoch.
        most_tokens: The call's maximum of output tokens; None: it names none.
    """
    p99 = p99_s(known)
    if p99 is not None:
        allowed_s = max(LEAST_S, TIMES * p99)
    else:
        allowed_s = inf if most_tokens is None else START_S + most_tokens / TOKENS_PER_S
    if known is not None:
        if now_s - known.slowest_at <= SLOWEST_S:
            allowed_s = max(allowed_s, SLOWEST_TIMES * known.slowest_s)
        if known.hanging_since > 0:
            allowed_s = max(allowed_s, HANGING_SHARE * (now_s - known.hanging_since))
    return min(MOST_ATTEMPT_S, allowed_s)


def timeouts(
    *,
    told_s: float | None,
    known: Latencies | None,
    now_s: float,
    left_s: float,
    tries: int = 0,
    most_tokens: int | None = None,
) -> Timeouts:
    """The time-outs of one attempt.

    Args:
        told_s: The configured time-out of call, task, lane or all; only the deadline can shorten it.
        left_s: Seconds until the call's deadline.
        tries: Tries that the call has used before.
        most_tokens: As in `learned_s`.
    """
    if told_s is not None:
        whole_s = told_s
    else:
        whole_s = min(MOST_ATTEMPT_S, learned_s(known, now_s, most_tokens) * 2.0 ** min(tries, 10))
    cut = left_s < min(whole_s, max(LEAST_S, p99_s(known) or 0.0))
    whole_s = max(LEAST_LEFT_S, min(whole_s, left_s))
    return Timeouts(connect_s=min(CONNECT_S, whole_s), first_byte_s=whole_s, whole_s=whole_s, by_deadline=cut)


def _bucket(latency_s: float) -> int:
    """The number of the bucket whose upper edge is the first that is not below."""
    if not latency_s > _FIRST_S:
        return 0
    return ceil(min(_MOST_BUCKET, _PER_OCTAVE * log2(latency_s / _FIRST_S) - 1e-9))
