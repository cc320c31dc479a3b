"""The recorder moves outcomes into the tracking database: read, write, commit, acknowledge, so that none is lost.

It also learns what calls use, since it sees every answer, many at once, and no caller waits for it. If a recorder dies
between the commit and the acknowledgement, its entries are recorded again, which the database's key makes harmless.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce

from msgspec import Struct

from ratelimit_worker.calls import Attempt, Category, ModeChange, Outcome, PriceSource, Usage
from ratelimit_worker.contracts.budget import Charge
from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, RowRefused, StoreUnavailable
from ratelimit_worker.outage import Outage, cause_of
from ratelimit_worker.policy import estimate, timeout
from ratelimit_worker.policy.estimate import Learned, Sample
from ratelimit_worker.ports import LatencyMemory, Outbox, Pricer, ReuseSums, Tracker, UsageMemory

log = logging.getLogger(__name__)

_Entry = tuple[str, Attempt | ModeChange]
_PAUSE_BASE_S = 0.5
_PAUSE_CAP_S = 30.0
#: How often to look for attempts that an older version has written without roll-ups; and the pause between two chunks
#: of them, in which others may write.
_ROLL_UP_EVERY_S, _ROLL_UP_PAUSE_S = 60.0, 0.1
_REUSE_EVERY_S = 5.0  #: how often to look for minutes that are over, to add what reuse saved in them
_FOLDS_MOST = 100  #: batches that are folded before the database is tried again


def record_once(
    outbox: Outbox,
    tracker: Tracker,
    max_count: int = 1000,
    block_ms: int = 0,
    usage: UsageMemory | None = None,
    latencies: LatencyMemory | None = None,
    pricer: Pricer | None = None,
    charge: Callable[[Sequence[Charge]], None] | None = None,
) -> int:
    """Move one batch from the outbox into the database → number of entries that are done; 0: none waited.

    Rows that the database will never accept are set aside; the others of their batch are recorded.

    Args:
        block_ms: How long to wait for an entry to come; 0: not at all.
        usage: Where usage is learned; None: not at all.
        latencies: Where latencies are learned; None: not at all.
        pricer: Adds the cost of attempts; None: it stays as the processes that made them have set it.
        charge: Called with costs that those processes did not know, for the budgets of money; None: not called.
    Raises:
        StoreUnavailable: Redis or the database is away. Either the batch is given back, and nothing is lost; or it is
            recorded, and not all of it was learned from.
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
    if charge is not None and (late := _priced_late(attempts)):
        charge(late)
    if usage is not None:
        learn(usage, attempts)
    if latencies is not None:
        learn_latencies(latencies, attempts)
    return len(entries)


def _priced(entries: Sequence[_Entry], pricer: Pricer, usage: UsageMemory | None) -> list[_Entry]:
    attempts = pricer.priced([row for _, row in entries if isinstance(row, Attempt)])
    priced = iter(_estimated(attempts, usage) if usage is not None else attempts)
    return [(entry_id, next(priced) if isinstance(row, Attempt) else row) for entry_id, row in entries]


def _priced_late(attempts: Sequence[Attempt]) -> list[Charge]:
    """The costs that no budget of money has counted yet, since the attempt's own process did not know them."""
    return [
        Charge(one.lane, one.tenant, one.context, one.cost_nanousd, one.started_at)
        for one in attempts
        if one.cost_nanousd and (one.unpriced is not None or one.answer_lost)
    ]


def _estimated(attempts: Sequence[Attempt], usage: UsageMemory) -> list[Attempt]:
    """The attempts; if an answer was lost, with the usual cost of its task and model."""
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
    """Learn the usage of answered attempts → how many were used for that. One round trip to read, one to write.

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
    """The tokens that count against the lane's budgets, which is what estimates are about."""
    used = Usage(attempt.input_tokens, attempt.output_tokens, uncounted_input_tokens=attempt.uncounted_input_tokens)
    return Usage(used.budget_input_tokens, used.output_tokens)


def learn_latencies(latencies: LatencyMemory, attempts: Sequence[Attempt]) -> int:
    """Learn latencies and time-outs → how many attempts were used for that.

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
        failures: Failures in a row, from 1.
        jitter: Returns a float in [0, 1); `random.random` in production.
    Raises:
        ValueError: `failures` is below 1.
    """
    if failures < 1:
        raise ValueError(f"failures count from 1, got {failures}")
    # Full jitter would often try again at once. The exponent is bounded, since the number of failures is not.
    longest_s = min(_PAUSE_CAP_S, _PAUSE_BASE_S * 2.0 ** min(failures - 1, 16))
    return max(_PAUSE_BASE_S, longest_s * (0.5 + 0.5 * jitter()))


class Beside(Struct, frozen=True, kw_only=True):
    """What a recorder does besides recording outcomes. Fields as in `record_once`; None: not done.

    Args:
        reuse: Sums of what reuse has saved, which the recorder adds to the roll-ups.
    """

    usage: UsageMemory | None = None
    latencies: LatencyMemory | None = None
    pricer: Pricer | None = None
    reuse: ReuseSums | None = None
    charge: Callable[[Sequence[Charge]], None] | None = None


NOTHING_BESIDE = Beside()


class Recorder:
    """Records until it is stopped, through every outage of Redis and of the database.

    Other errors than such outages are faults of this program: they end `run`, and its caller reports them.

    Args:
        beside: What else is done with recorded outcomes.
        max_count: Most entries in a batch.
        block_ms: How long one read waits; `run` may notice that much later that it should stop.
        linger_s: Pause after a batch that was not full, so that a busy system writes few large transactions rather
            than many of one row. Rows come that much later.
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
        self.failures = 0  #: failures in a row; 0: all is well
        self._outage = Outage()
        self._roll_up_at = self._reuse_at = 0.0  #: of the monotonic clock

    def run(self, stop: threading.Event) -> None:
        """Record until `stop` is set; then all that still waits, unless Redis or the database is away."""
        while not stop.is_set():
            stop.wait(self.step())
        self.finish()

    def finish(self) -> None:
        """Record all that still waits, unless Redis or the database is away."""
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
        self._add_reuse()
        if done >= self._max_count:
            return 0.0
        return self._roll_up() or self._linger_s

    def _make_room(self) -> None:
        """While the database is away and the outbox is nearly full, fold its oldest outcomes into sums."""
        try:
            for _ in range(_FOLDS_MOST):
                if not self._outbox.fold(self._max_count):
                    return
        except StoreUnavailable as error:
            log.info("recorder.no_room_made", extra={"cause": cause_of(error)})

    def _add_sums(self) -> None:
        """Add to the database the sums into which outcomes were folded while it was away."""
        sums = self._outbox.sums()
        if sums is not None:
            self._tracker.add_sums(sums)
            self._outbox.forget_sums(sums)

    def _add_reuse(self) -> None:
        """Add to the database what reuse has saved in minutes that are over."""
        reuse = self._beside.reuse
        if reuse is None or time.monotonic() < self._reuse_at:
            return
        self._reuse_at = time.monotonic() + _REUSE_EVERY_S
        try:
            for sums in reuse.over():
                self._tracker.add_sums(sums)  # counted once, even if another recorder adds the same sums
                reuse.forget(sums)
        except (StoreUnavailable, ConfigurationError) as error:
            log.info("recorder.reuse_not_added", extra={"cause": cause_of(error)})

    def _roll_up(self) -> float:
        """Add some attempts to the roll-ups that are not in them yet → pause until the next, in s; 0: none for now."""
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
            self._outbox,
            self._tracker,
            self._max_count,
            block_ms,
            beside.usage,
            beside.latencies,
            beside.pricer,
            beside.charge,
        )

    def _say_away(self, error: RateLimitWorkerError, wait_s: float | None) -> None:
        """Log each cause once: a long outage must not fill the log."""
        if cause := self._outage.news(error):
            log.warning("recorder.away cause=%s", cause, extra={"failures": self.failures, "wait_s": wait_s})


def _record(tracker: Tracker, entries: Sequence[tuple[str, Attempt | ModeChange]]) -> dict[str, str]:
    """Record the entries; a batch that is refused is halved until the bad rows are found → {id: why} of those."""
    try:
        tracker.record([row for _, row in entries])
    except RowRefused as refused:
        if len(entries) == 1:
            return {entries[0][0]: str(refused)}
        half = len(entries) // 2
        return _record(tracker, entries[:half]) | _record(tracker, entries[half:])
    return {}
