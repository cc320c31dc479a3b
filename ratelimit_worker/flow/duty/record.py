"""How do outcomes get into the tracking database? Read, record, commit, in this order, so none is lost.

What calls have used is learned on the way: the recorder sees every answer, many at once, and nobody waits for it.
A recorder that dies after the database committed leaves its entries in the outbox; they are recorded again, which
the database's key makes no difference to.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

from ratelimit_worker.calls import Attempt, Category, ModeChange, Outcome, PriceSource, Usage
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, RowRefused, StoreUnavailable
from ratelimit_worker.outage import Outage, cause_of
from ratelimit_worker.policy import estimate, timeout
from ratelimit_worker.policy.estimate import Learned, Sample
from ratelimit_worker.ports import LatencyMemory, Outbox, Pricer, Tracker, UsageMemory

log = logging.getLogger(__name__)

_Entry = tuple[str, Attempt | ModeChange]
_PAUSE_BASE_S = 0.5
_PAUSE_CAP_S = 30.0
#: How often it is looked whether an older version's recorder has written attempts, and how long others may write
#: between two chunks of them.
_ROLL_UP_EVERY_S, _ROLL_UP_PAUSE_S = 60.0, 0.1
_FOLDS_MOST = 100  #: batches that are folded before the database is asked again


def record_once(
    outbox: Outbox,
    tracker: Tracker,
    max_count: int = 1000,
    block_ms: int = 0,
    usage: UsageMemory | None = None,
    latencies: LatencyMemory | None = None,
    pricer: Pricer | None = None,
) -> int:
    """Move one batch from the outbox into the database; returns the entries that are done with, 0 if none waited.

    Rows that the database will never take are set aside; the others of their batch are recorded.

    Args:
        block_ms: How long to wait for an entry to come; 0: not at all.
        usage: Where to keep what the answers have used; None: nothing is learned.
        latencies: Where to keep how long they took; None: nothing is learned.
        pricer: Says what they cost; None: as far as their own processes knew.
    Raises:
        StoreUnavailable: Redis or the database is away; the batch is given back and nothing is lost, or it is recorded
            and not all of it was learned from.
        ConfigurationError: The database is newer than this version; the batch is given back.
    """
    entries = outbox.read(max_count, block_ms)
    if not entries:
        return 0
    try:
        with outbox.holding([entry_id for entry_id, _ in entries]):
            if pricer is not None:
                entries = _priced(entries, pricer, usage)
            refused = _record(tracker, entries)
    except (StoreUnavailable, ConfigurationError):
        outbox.give_back([entry_id for entry_id, _ in entries])
        raise
    outbox.commit([entry_id for entry_id, _ in entries if entry_id not in refused])
    for entry_id, why in refused.items():
        outbox.set_aside(entry_id, why)
    attempts = [row for _, row in entries if isinstance(row, Attempt)]
    if usage is not None:
        learn(usage, attempts)
    if latencies is not None:
        learn_latencies(latencies, attempts)
    return len(entries)


def _priced(entries: Sequence[_Entry], pricer: Pricer, usage: UsageMemory | None) -> list[_Entry]:
    attempts = pricer.priced([row for _, row in entries if isinstance(row, Attempt)])
    priced = iter(_estimated(attempts, usage) if usage is not None else attempts)
    return [(entry_id, next(priced) if isinstance(row, Attempt) else row) for entry_id, row in entries]


def _estimated(attempts: Sequence[Attempt], usage: UsageMemory) -> list[Attempt]:
    """The attempts; one whose answer was lost is taken to have cost what answers to its task and model do."""
    names = {
        id(one): estimate.key(one.task, one.asked_model) for one in attempts if one.answer_lost and one.asked_model
    }
    known = usage.read(sorted(set(names.values()))) if names else {}

    def estimated(one: Attempt) -> Attempt:
        learned = known.get(names.get(id(one), ""))
        if learned is None or not learned.nanousd_of:
            return one
        return replace(one, cost_nanousd=round(learned.nanousd), price_source=PriceSource.ESTIMATED)

    return [estimated(one) for one in attempts]


def learn(usage: UsageMemory, attempts: Sequence[Attempt]) -> int:
    """Take in what answered attempts have used → how many taught something. One round trip to read, one to write.

    Raises:
        StoreUnavailable: Redis is away.
    """
    samples: dict[str, list[Sample]] = {}
    for attempt in attempts:
        told = _counted(attempt)
        if attempt.outcome is Outcome.ANSWERED and attempt.asked_model is not None and told != Usage():
            name = estimate.key(attempt.task, attempt.asked_model)
            sample = Sample(
                estimated_tokens=attempt.estimated_tokens,
                usage=told,
                at=attempt.finished_at,
                nanousd=attempt.cost_nanousd,
            )
            samples.setdefault(name, []).append(sample)
    if samples:
        known = usage.read(samples)
        learned = {name: reduce(estimate.learn, seen, known.get(name) or Learned()) for name, seen in samples.items()}
        usage.write(learned)
    return sum(len(seen) for seen in samples.values())


def _counted(attempt: Attempt) -> Usage:
    """What an attempt took of its lane's budgets of tokens: estimates are of that."""
    used = Usage(attempt.input_tokens, attempt.output_tokens, uncounted_input_tokens=attempt.uncounted_input_tokens)
    return Usage(used.budget_input_tokens, used.output_tokens)


def learn_latencies(latencies: LatencyMemory, attempts: Sequence[Attempt]) -> int:
    """Take in how long answers took, and what timed out → how many taught something.

    Raises:
        StoreUnavailable: Redis is away.
    """
    samples: dict[str, list[timeout.Sample]] = {}
    for attempt in attempts:
        answered = attempt.outcome is Outcome.ANSWERED and attempt.category is None
        if answered or attempt.category is Category.TIMEOUT:
            name = timeout.key(attempt.task, attempt.asked_model, attempt.lane)
            sample = timeout.Sample(latency_s=attempt.latency_s, at=attempt.finished_at, answered=answered)
            samples.setdefault(name, []).append(sample)
    if samples:
        known = latencies.read(samples)
        latencies.write({name: timeout.learn(known.get(name), seen) for name, seen in samples.items()})
    return sum(len(seen) for seen in samples.values())


def pause_s(failures: int, jitter: Callable[[], float]) -> float:
    """Wait before the next try, in seconds: between half and all of 0.5 * 2**(failures - 1), within 0.5 and 30.

    Args:
        failures: Failed tries in a row, from 1.
        jitter: Returns a float in [0, 1); `random.random` in production.
    Raises:
        ValueError: `failures` is below 1.
    """
    if failures < 1:
        raise ValueError(f"failures count from 1, got {failures}")
    # Full jitter would often try again at once; the exponent is bounded because an outage is not.
    longest_s = min(_PAUSE_CAP_S, _PAUSE_BASE_S * 2.0 ** min(failures - 1, 16))
    return max(_PAUSE_BASE_S, longest_s * (0.5 + 0.5 * jitter()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What is done with the outcomes beside recording them; None: nothing of the kind. As in `record_once`."""

    usage: UsageMemory | None = None
    latencies: LatencyMemory | None = None
    pricer: Pricer | None = None


NOTHING_BESIDE = Beside()


class Recorder:
    """Records for as long as it is let, and outlives every outage of Redis and of the database.

    Errors other than those two outages are faults of this program: they end `run`, and whoever started it says so.

    Args:
        beside: What else is done with what it reads.
        max_count: Entries a batch, at most.
        block_ms: How long one read waits; also how late `run` may notice that it should stop.
        linger_s: Pause after a batch that was not full, so that a busy system writes few large transactions rather
            than many of one row. Rows are this much late.
        jitter: Returns a float in [0, 1).
    """

    def __init__(
        self,
        outbox: Outbox,
        tracker: Tracker,
        *,
        beside: Beside = NOTHING_BESIDE,
        max_count: int = 1000,
        block_ms: int = 1000,
        linger_s: float = 0.2,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._outbox, self._tracker, self._beside = outbox, tracker, beside
        self._max_count, self._block_ms, self._linger_s = max_count, block_ms, linger_s
        self._jitter = jitter
        self.failures = 0  #: Tries that failed in a row; 0 while all is well.
        self._outage = Outage()
        self._roll_up_at = 0.0  #: of the monotonic clock

    def run(self, stop: threading.Event) -> None:
        """Record until `stop` is set, then once more all that waits, unless something is away."""
        while not stop.is_set():
            stop.wait(self.step())
        try:
            while self._record(block_ms=0):
                pass
        except (StoreUnavailable, ConfigurationError) as error:
            self._say_away(error, wait_s=None)

    def step(self) -> float:
        """Record one batch; returns how long to wait before the next, in seconds (0: there is more already)."""
        try:
            done = self._record(self._block_ms)
        except (StoreUnavailable, ConfigurationError) as error:
            self.failures += 1
            wait_s = pause_s(self.failures, self._jitter)
            self._say_away(error, wait_s)
            self._make_room()
            return wait_s
        if self.failures:
            log.info("recorder.back", extra={"failures": self.failures})
            self.failures = 0
            self._outage.over()
        if done >= self._max_count:
            return 0.0
        return self._roll_up() or self._linger_s

    def _make_room(self) -> None:
        """While the database is away: of the oldest outcomes in a full outbox only sums are kept."""
        try:
            for _ in range(_FOLDS_MOST):
                if not self._outbox.fold(self._max_count):
                    return
        except StoreUnavailable as error:
            log.info("recorder.no_room_made", extra={"cause": cause_of(error)})

    def _add_sums(self) -> None:
        """Add to the database what was folded while it was away."""
        sums = self._outbox.sums()
        if sums is not None:
            self._tracker.add_sums(sums)
            self._outbox.forget_sums(sums)

    def _roll_up(self) -> float:
        """Add some attempts from before there were roll-ups to them → seconds until more; 0: none is left."""
        if time.monotonic() < self._roll_up_at:
            return 0.0
        try:
            self._add_sums()
            if self._tracker.roll_up():
                return _ROLL_UP_PAUSE_S
        except (StoreUnavailable, ConfigurationError) as error:
            log.info("recorder.not_rolled_up", extra={"cause": cause_of(error)})
        self._roll_up_at = time.monotonic() + _ROLL_UP_EVERY_S
        return 0.0

    def _record(self, block_ms: int) -> int:
        beside = self._beside
        return record_once(
            self._outbox, self._tracker, self._max_count, block_ms, beside.usage, beside.latencies, beside.pricer
        )

    def _say_away(self, error: RateLimitWorkerError, wait_s: float | None) -> None:
        """Each cause once: an outage of hours must not fill the log."""
        if cause := self._outage.news(error):
            log.warning("recorder.away cause=%s", cause, extra={"failures": self.failures, "wait_s": wait_s})


def _record(tracker: Tracker, entries: Sequence[tuple[str, Attempt | ModeChange]]) -> dict[str, str]:
    """Record the entries, halving a batch that is refused until the bad rows stand alone: {id: why} of those."""
    try:
        tracker.record([row for _, row in entries])
    except RowRefused as refused:
        if len(entries) == 1:
            return {entries[0][0]: str(refused)}
        half = len(entries) // 2
        return _record(tracker, entries[:half]) | _record(tracker, entries[half:])
    return {}
