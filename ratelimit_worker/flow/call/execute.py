"""What happens when a worker takes a released call? One attempt, and what follows from it.

Runs the function, asks `flow.call.conclude` what follows, and hands that over to the lane. Lanes, clock and jitter are
passed in; the worker translates the result into Celery's words.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from ratelimit_worker.calls import Attempt, Outcome, Timeouts, sighting, within
from ratelimit_worker.contracts.lesson import Settlement
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import CallFailedLater, CallLost
from ratelimit_worker.flow.call.conclude import (
    NOT_ASKED,
    NOTHING_BESIDE,
    Again,
    Answered,
    Beside,
    Conclusion,
    Facts,
    GaveUp,
    PassedOn,
    Ran,
    Settle,
    conclude,
    expired,
    failed_by,
    poisoned,
    still_out,
)
from ratelimit_worker.flow.call.judge import Failed, Judged, Rules, first_failed, judge, needs_health
from ratelimit_worker.flow.call.tally import Tally
from ratelimit_worker.policy import timeout
from ratelimit_worker.policy.own_retry import Goes, Stays, Wish, whose
from ratelimit_worker.policy.timeout import Latencies
from ratelimit_worker.ports import AttemptLanes, Begun, Health

log = logging.getLogger("ratelimit_worker.attempt")


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The attempt ended because its process does: nothing is known of the call, which is delivered again."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class NotOurs:
    """Another delivery of this call runs, or what it had to do is done; this one does nothing."""


@dataclass(frozen=True, slots=True)
class MustBeAlone:
    """The call may kill its worker: it is to be executed when nothing else runs in this process (`Facts.alone`)."""


Result = Answered | Again | GaveUp | PassedOn | Interrupted | NotOurs | MustBeAlone


@dataclass(slots=True)
class _Trial:
    """An attempt on its way: at what, since when (the executor's clock), and what its task has done about a failure.

    `caught`, `stays_s` and `resent` are those of `Ran`.
    """

    facts: Facts
    begun: Begun
    started_s: float
    timeouts: Timeouts
    caught: Judged | None = None
    stays_s: float | None = None
    resent: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """The attempt, with all that it needs from the outside.

    Args:
        encode_outcome: An attempt as the outbox holds it.
        timeout_told_s: By lane, how long a person lets an attempt take; None: nobody has said.
        latencies: By `timeout.key`, how long answers took; never waits.
        tally: Answers that the lanes' records of their functions do not know yet; one a process.
        given_up: Whether a call has been given up while its attempt ran; what comes of that is of no use any more.
        interrupted: Whether what an attempt raised says that its process is being ended, and nothing of the call.
        clock: Seconds; does not go back.
        pause: Waits so many seconds before the request is sent, as its lane asks.
    """

    lanes: AttemptLanes
    rules: Rules
    encode_outcome: Callable[[Attempt], bytes]
    lease_s: float
    tally: Tally = field(default_factory=Tally)
    given_up: Callable[[str], bool] = lambda tag: False
    interrupted: Callable[[BaseException], bool] = lambda error: False
    timeout_told_s: Callable[[str], float | None] = lambda lane: None
    latencies: Callable[[str], Latencies | None] = lambda name: None
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def execute(self, facts: Facts, run: Callable[[Begun], Any], restore: Callable[[bytes], None]) -> Result:
        """Make one attempt at a released call.

        Args:
            run: Makes the request; given what the lane said.
            restore: Puts the canvas of a payload back where the framework looks for it, when nothing is run.
        """
        begun = self.lanes.begin(facts.tag, self.lease_s, facts.alone, facts.worker, facts.taken)
        if begun.state == "go":
            if begun.pause_s > 0:
                self.pause(begun.pause_s)
            return self._attempt(facts, begun, run)
        if begun.state in {"settled", "expired", "poison"}:
            restore(begun.body)
        return self.turned_back(facts, begun)

    def turned_back(self, facts: Facts, begun: Begun) -> Result:
        """What follows where the lane did not say "go": nothing is run."""
        match begun.state:
            case "settled":
                return self._settled(begun)
            case "closed":
                return Again(0.0, CallFailedLater(facts.lane))
            case "expired":
                return self.finish(facts, expired(facts, begun, self.rules))
            case "poison":
                return self.finish(facts, poisoned(facts, begun, self.rules))
            case "alone":
                return MustBeAlone()
            case "gone":
                return GaveUp(CallLost(facts.call_id))
            case _:
                return NotOurs()

    def _settled(self, begun: Begun) -> Result:
        kind, value = self.rules.answers.decode(begun.answer)
        if kind == "value":
            return Answered(value)
        return GaveUp(value) if kind == "error" else NotOurs()

    def timeouts(self, plan: Plan, task: str, begun: Begun) -> Timeouts:
        """How long an attempt at a call that has just begun may take."""
        return timeout.timeouts(
            told_s=self.timeout_told_s(plan.lane) if plan.timeout_s is None else plan.timeout_s,
            known=self.latencies(timeout.key(task, plan.model, plan.lane)),
            now_s=begun.now_s,
            left_s=begun.deadline_s - begun.now_s,
            tries=begun.tries,
            most_tokens=plan.estimated.most_output_tokens if plan.estimated is not None else None,
        )

    def _attempt(self, facts: Facts, begun: Begun, run: Callable[[Begun], Any]) -> Result:
        trial = _Trial(facts, begun, self.clock(), self.timeouts(facts.plan, facts.task, begun))
        ran = self._run(trial, run)
        if self.given_up(facts.tag):
            return NotOurs()
        if ran.error is not None and self.interrupted(ran.error):
            return Interrupted(ran.error)
        return self.finish(facts, self.conclude(facts, begun, ran))

    def _run(self, trial: _Trial, run: Callable[[Begun], Any]) -> Ran:
        with _running_now(self, trial), within(trial.timeouts), sighting(trial.facts.lane) as seen:
            try:
                value = run(trial.begun)
            except BaseException as error:  # whatever a task raises, its attempt ends here, or its slot never would
                return self._so_far(trial, seen=seen.so_far(), error=error)
            return self._so_far(trial, seen=seen.so_far(), value=value)

    def _so_far(self, trial: _Trial, **came: Any) -> Ran:
        return Ran(
            started_s=trial.started_s,
            ended_s=self.clock(),
            timeouts=trial.timeouts,
            caught=trial.caught,
            stays_s=trial.stays_s,
            resent=trial.resent,
            **came,
        )

    def conclude(self, facts: Facts, begun: Begun, ran: Ran) -> Conclusion:
        """What follows from an attempt; its lane is asked how it is, where the failure calls for it."""
        failed = failed_by(ran, self.rules)
        if failed is None and ran.caught is None:
            return conclude(facts, begun, ran, None, NOTHING_BESIDE, self.rules)
        health = NOT_ASKED if ran.caught is not None else self._health(facts, failed)
        return conclude(facts, begun, ran, failed, self._beside(facts, health), self.rules)

    def finish(self, facts: Facts, conclusion: Conclusion) -> Result:
        """Act on what follows, in one script → what the call's caller hears."""
        lesson, row, end = conclusion.lesson, conclusion.row, conclusion.end
        _log(row)
        if conclusion.counts_as_answer:
            self.tally.add(facts.lane, facts.task, conclusion.started_s, row.started_at)
        if lesson.failed_task:
            lesson = structs.replace(lesson, answered=self.tally.take(facts.lane, conclusion.started_s))
        outbox = self.encode_outcome(row)
        if isinstance(end, Settle):
            told = Settlement(
                tag=facts.tag,
                lane=facts.lane,
                answer=end.answer,
                lesson=lesson,
                kind=end.kind,
                outbox=outbox,
                keep=conclusion.keep,
            )
            if isinstance(conclusion.result, Answered) and facts.settles_later(told):
                return conclusion.result
            self.lanes.settle(told)
            return conclusion.result
        ours = self.lanes.back(facts.tag, facts.lane, lesson, after_s=end.after_s, tries=end.tries, outbox=outbox)
        return NotOurs() if isinstance(conclusion.result, Again) and not ours else conclusion.result

    def _health(self, facts: Facts, failed: Failed | None) -> Health:
        return self.lanes.health(facts.lane, facts.task) if needs_health(failed, self.rules.policy) else NOT_ASKED

    def _beside(self, facts: Facts, health: Health) -> Beside:
        return Beside(
            health=health,
            task_sent_s=self.tally.last_sent_s(facts.lane, facts.task),
            process_sent_s=self.tally.last_sent_s(facts.lane),
        )

    def _hangs(self, trial: _Trial) -> None:
        """The lane hears that a call has no answer yet; the attempt goes on, and ends by itself."""
        facts = trial.facts
        beside = self._beside(facts, self.lanes.health(facts.lane, facts.task))
        lesson = still_out(facts, trial.begun, self._so_far(trial), beside, self.rules)
        self.lanes.settle(Settlement(tag=facts.tag, lane=facts.lane, answer=b"", lesson=lesson))

    def _own_retry(self, trial: _Trial, errors: Sequence[BaseException | None], wish: Wish) -> Stays | Goes | None:
        failed = first_failed(errors, self.rules)
        if failed is None:
            return None
        health = self._health(trial.facts, failed)
        at_s = trial.begun.now_s + self.clock() - trial.started_s
        judged = trial.caught = judge(failed, trial.begun, at_s, health, self.rules)
        verdict = whose(judged.failure, judged.step, judged.free, wish)
        trial.stays_s = verdict.after_s if isinstance(verdict, Stays) else None
        return verdict


def _log(row: Attempt) -> None:
    level = logging.DEBUG if row.outcome is Outcome.ANSWERED else logging.INFO  # the framework says that it succeeded
    if not log.isEnabledFor(level):
        return
    fields = {
        "call_id": row.call_id,
        "lane": row.lane,
        "number": row.number,
        "outcome": row.outcome.value,
        "cause": row.cause or "",
        "latency_s": round(row.latency_s, 3),
    }
    text = " ".join(f"{name}={value}" for name, value in fields.items())
    log.log(level, "attempt.finished %s", text, extra=fields)


#: The attempt that runs in this thread (or greenlet), with the executor that makes it.
_running: ContextVar[tuple[Executor, _Trial] | None] = ContextVar("ratelimit_worker_attempt", default=None)


#: All that run in this process, by tag.
_out: dict[str, tuple[Executor, _Trial]] = {}


@contextmanager
def _running_now(executor: Executor, trial: _Trial) -> Iterator[None]:
    token = _running.set((executor, trial))
    _out[trial.facts.tag] = (executor, trial)
    try:
        yield
    finally:
        _running.reset(token)
        _out.pop(trial.facts.tag, None)


def hangs(tag: str) -> None:
    """An attempt of this process has had no answer for much longer than answers take: its lane hears of it."""
    found = _out.get(tag)
    if found is not None:
        found[0]._hangs(found[1])


def own_retry(call_id: str, errors: Sequence[BaseException | None], wish: Wish) -> Stays | Goes | None:
    """A task retries by itself, in the middle of an attempt: whose is the retry? Its lane hears of what failed.

    Args:
        errors: For which it may retry, the likeliest first.
    Returns:
        None: none of them is a provider's failure that we know, or no attempt at this call is running here.
    """
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id:
        return None
    return now[0]._own_retry(now[1], errors, wish)


def resent(call_id: str) -> None:
    """A task has sent its call again and goes on (`throw=False`): what comes of this attempt is not the call's end."""
    now = _running.get()
    if now is not None and now[1].facts.call_id == call_id:
        now[1].resent = True


def tries_used(call_id: str) -> int:
    """Tries that a call has used when its task sends it again for a provider's failure; 0 for any other reason."""
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id or now[1].caught is None:
        return 0
    return now[1].begun.tries + (0 if now[1].caught.free else 1)
