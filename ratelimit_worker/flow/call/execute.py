"""What happens when a worker takes a released call? One attempt, and what follows from it.

Runs the function, asks `flow.call.conclude` what follows, and carries that out on the lane. Lanes, clock and jitter are
passed in; the worker translates the result for Celery.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from msgspec import Struct, field, structs

from ratelimit_worker.calls import Attempt, Outcome, Timeouts, sighting, within
from ratelimit_worker.contracts.lesson import Lesson, Settlement
from ratelimit_worker.contracts.plan import Plan
from ratelimit_worker.errors import CallFailedLater, CallLost
from ratelimit_worker.flow.call import observe
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
from ratelimit_worker.flow.call.self_doubt import SelfDoubt
from ratelimit_worker.flow.call.tally import Tally
from ratelimit_worker.policy import timeout
from ratelimit_worker.policy.classification import never_left
from ratelimit_worker.policy.own_retry import Goes, Stays, Wish, whose
from ratelimit_worker.policy.timeout import Latencies
from ratelimit_worker.ports import AttemptLanes, Begun, Health, Settled, Tracer, not_settling, not_traced

log = logging.getLogger("ratelimit_worker.attempt")


#: How long the slot of a call that was left to another process stays taken, seconds.
LEFT_S = 0.1


class Interrupted(Struct, frozen=True):
    """The attempt ended because its process is ending: the call is not judged, and will be delivered again."""

    error: BaseException


class NotOurs(Struct, frozen=True):
    """Another delivery of this call is running, or the call has ended; this one does nothing."""


class MustBeAlone(Struct, frozen=True):
    """The call may kill its worker: execute it when nothing else runs in this process (`Facts.alone`)."""


Result = Answered | Again | GaveUp | PassedOn | Interrupted | NotOurs | MustBeAlone


class _Trial(Struct):
    """A running attempt: of which call, since when (the executor's clock), and what its task has done about a failure.

    `caught`, `stays_s` and `resent` are as in `Ran`.
    """

    facts: Facts
    begun: Begun
    started_s: float
    timeouts: Timeouts
    caught: Judged | None = None
    stays_s: float | None = None
    resent: bool = False


class Executor(Struct, frozen=True, kw_only=True):
    """Makes attempts, with all that they need from outside.

    Args:
        encode_outcome: An attempt as the outbox holds it.
        timeout_told_s: By lane, how long an attempt may take, as a person has set it; None: not set.
        latencies: By `timeout.key`, how long answers took; never waits.
        tally: Answers that the lanes' records of their functions do not contain yet; one for each process.
        self_doubt: Whether this process reaches the providers; None: no other process may run its calls.
        given_up: Whether a call was given up while its attempt ran, so that the attempt's outcome is dropped.
        interrupted: Whether an error means that the process is being ended, and says nothing about the call.
        shelve: Keeps a call that is about to fail for good, so that a person can run it again: (tag, id of the call,
            attempts made at it).
        clock: Seconds; does not go back.
        tracer: The traces of calls; None: they are not traced.
        pause: Waits for some seconds before the request is sent, when the lane asks for that.
    """

    lanes: AttemptLanes
    rules: Rules
    encode_outcome: Callable[[Attempt], bytes]
    lease_s: float
    tally: Tally = field(default_factory=Tally)
    self_doubt: SelfDoubt | None = None
    given_up: Callable[[str], bool] = lambda tag: False
    interrupted: Callable[[BaseException], bool] = lambda error: False
    shelve: Callable[[str, str, int], object] = lambda tag, call_id, attempts: None
    timeout_told_s: Callable[[str], float | None] = lambda lane: None
    latencies: Callable[[str], Latencies | None] = lambda name: None
    tracer: Callable[[], Tracer | None] = not_traced
    clock: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep

    def execute(self, facts: Facts, run: Callable[[Begun], Any], restore: Callable[[bytes], None]) -> Result:
        """Make one attempt at a released call.

        Args:
            run: Makes the request; gets the lane's reply.
            restore: If nothing is run: puts the canvas of a payload where the framework looks for it.
        """
        leaves = self.self_doubt is not None and not facts.alone and self.self_doubt.leaves(facts.lane)
        begun = self.lanes.begin(facts.tag, self.lease_s, facts.alone, facts.worker, facts.taken or leaves)
        if begun.state == "go":
            if begun.pause_s > 0:
                self.pause(begun.pause_s)
            return self._attempt(facts, begun, run)
        if begun.state in {"settled", "expired", "poison"}:
            restore(begun.body)
        elif leaves and begun.state == "closed":
            self.pause(LEFT_S)  # its slot stays taken meanwhile, so that others read the next message
        return self.turned_back(facts, begun)

    def turned_back(self, facts: Facts, begun: Begun) -> Result:
        """What follows if the lane did not say "go": nothing is run."""
        match begun.state:
            case "settled":
                if (tracer := self.tracer()) is not None:
                    tracer.shared(facts, begun.answer)
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
        tracer = self.tracer()
        if tracer is None:
            ran = self._run(trial, run)
        else:
            held = tracer.look(facts.lane) if tracer.looks(facts.plan, begun) else ()
            with tracer.attempt(facts, begun, held):
                ran = self._run(trial, run)
        if self.given_up(facts.tag):
            if tracer is not None:
                tracer.dropped(facts.tag, NotOurs.__name__)
            return NotOurs()
        if ran.error is not None and self.interrupted(ran.error):
            if tracer is not None:
                tracer.dropped(facts.tag, Interrupted.__name__)
            return Interrupted(ran.error)
        return self.finish(facts, self.conclude(facts, begun, ran))

    def _run(self, trial: _Trial, run: Callable[[Begun], Any]) -> Ran:
        with _running_now(self, trial), within(trial.timeouts), sighting(trial.facts.lane) as seen:
            try:
                value = run(trial.begun)
            except BaseException as error:  # whatever a task raises must end its attempt, or its slot would stay taken
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
        """What follows from an attempt; asks for the lane's health if the failure needs it."""
        failed = failed_by(ran, self.rules)
        if failed is None and ran.caught is None:
            return conclude(facts, begun, ran, None, NOTHING_BESIDE, self.rules)
        if ran.caught is not None:
            return conclude(facts, begun, ran, failed, self._beside(facts, NOT_ASKED), self.rules)
        health = self._health(facts, failed)
        lost = self._is_lost(facts, begun, failed, health, begun.now_s + ran.ended_s - ran.started_s)
        beside = structs.replace(self._beside(facts, health), lost=lost)
        return conclude(facts, begun, ran, failed, beside, self.rules)

    def finish(self, facts: Facts, conclusion: Conclusion) -> Result:
        """Carry out the conclusion, in one script → what the call's caller gets."""
        tracer = self.tracer()
        if tracer is None:
            return self._carry_out(facts, conclusion, not_settling)
        settled = tracer.settling(facts, conclusion.row)
        try:
            return self._carry_out(facts, conclusion, settled)
        except BaseException as error:
            settled(type(error).__name__)
            raise

    def _carry_out(self, facts: Facts, conclusion: Conclusion, settled: Settled) -> Result:
        lesson, row, end = conclusion.lesson, conclusion.row, conclusion.end
        _log(row)
        if self.self_doubt is not None and lesson.ticket and _was_answered(lesson):
            self.self_doubt.reached(facts.lane, observe.sent_s(lesson.ticket))
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
            if isinstance(conclusion.result, Answered) and facts.settles_later(told, settled):
                return conclusion.result
            if isinstance(conclusion.result, GaveUp):
                self.shelve(facts.tag, facts.call_id, row.number)  # before it ends, since its message is deleted then
            self.lanes.settle(told)
            settled(None)
            return conclusion.result
        ours = self.lanes.back(facts.tag, facts.lane, lesson, after_s=end.after_s, tries=end.tries, outbox=outbox)
        settled(None)
        return NotOurs() if isinstance(conclusion.result, Again) and not ours else conclusion.result

    def _health(self, facts: Facts, failed: Failed | None) -> Health:
        return self.lanes.health(facts.lane, facts.task) if needs_health(failed, self.rules.policy) else NOT_ASKED

    def _is_lost(self, facts: Facts, begun: Begun, failed: Failed | None, health: Health, at_s: float) -> bool:
        """Whether this process has lost its way to the provider, after a failure at this time (Redis clock)."""
        if self.self_doubt is None or failed is None or not health.escalates:
            return False
        if not never_left(failed.error, failed.failure):
            return False
        return self.self_doubt.failed(facts.lane, facts.call_id, observe.sent_s(begun.ticket), at_s, health.lately)

    def _beside(self, facts: Facts, health: Health) -> Beside:
        return Beside(
            health=health,
            task_sent_s=self.tally.last_sent_s(facts.lane, facts.task),
            process_sent_s=self.tally.last_sent_s(facts.lane),
        )

    def _hangs(self, trial: _Trial) -> None:
        """Tell the lane that a call has no answer yet; the attempt goes on."""
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
        lost = self._is_lost(trial.facts, trial.begun, failed, health, at_s)
        judged = trial.caught = judge(failed, trial.begun, at_s, health, self.rules, lost)
        verdict = whose(judged.failure, judged.step, judged.free, wish)
        trial.stays_s = verdict.after_s if isinstance(verdict, Stays) else None
        return verdict


def _was_answered(lesson: Lesson) -> bool:
    """Whether the provider said anything at all."""
    status = lesson.failure.status if lesson.failure is not None else None
    return status is not None or lesson.verdict not in {"sick", "other"}


def _log(row: Attempt) -> None:
    level = logging.DEBUG if row.outcome is Outcome.ANSWERED else logging.INFO  # the framework logs successes
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


#: All attempts that run in this process, by tag.
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
    """Tell the lane of an attempt of this process that has had no answer for much longer than answers take."""
    found = _out.get(tag)
    if found is not None:
        found[0]._hangs(found[1])


def own_retry(call_id: str, errors: Sequence[BaseException | None], wish: Wish) -> Stays | Goes | None:
    """A task retries by itself in the middle of an attempt: does the task or the lane retry? The attempt notes it.

    Args:
        errors: Errors for which it may retry, the most likely first.
    Returns:
        None: none of them is a known failure of a provider, or no attempt at this call is running here.
    """
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id:
        return None
    return now[0]._own_retry(now[1], errors, wish)


def resent(call_id: str) -> None:
    """Note that a task has sent its call again and goes on (`throw=False`), so this attempt is not the call's end."""
    now = _running.get()
    if now is not None and now[1].facts.call_id == call_id:
        now[1].resent = True


def tries_used(call_id: str) -> int:
    """Tries that a call has used when its task sends it again for a provider's failure; 0 for any other reason."""
    now = _running.get()
    if now is None or now[1].facts.call_id != call_id or now[1].caught is None:
        return 0
    return now[1].begun.tries + (0 if now[1].caught.free else 1)
