"""What follows from an attempt, as a table of values: how it ended → what is settled, taught, recorded and told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from ratelimit_worker.calls import (
    Arguments,
    Attempt,
    Category,
    Failure,
    Mode,
    Outcome,
    PriceSource,
    Response,
    Sighting,
    Timeouts,
    Usage,
)
from ratelimit_worker.contracts.kept import Keep
from ratelimit_worker.contracts.lesson import AnswerKind, Lesson, Reading, Settlement
from ratelimit_worker.contracts.plan import Plan, Sharing
from ratelimit_worker.contracts.price import Money
from ratelimit_worker.errors import CallFailed, DeadlineExceeded, WorkerLostRepeatedly
from ratelimit_worker.flow.call.admit import ALONE, let_go
from ratelimit_worker.flow.call.answers import Answers
from ratelimit_worker.flow.call.conclude import (
    Again,
    Answered,
    Back,
    Beside,
    Conclusion,
    Facts,
    GaveUp,
    PassedOn,
    Ran,
    Settle,
    conclude,
    cut_off,
    expired,
    failed_by,
    poisoned,
    still_out,
)
from ratelimit_worker.flow.call.execute import Executor, NotOurs, Result
from ratelimit_worker.flow.call.judge import Failed, Judged, Rules, Swallowed, judge, needs_health
from ratelimit_worker.policy.fault import Failing, Lately
from ratelimit_worker.policy.retry import Retry, RetryPolicy, Snooze, TrackRecord
from ratelimit_worker.ports import Begun, Health

NOW_S, SENT_S = 1_000.0, 999.9
TICKET = msgspec.msgpack.encode([7, SENT_S * 1e6, 7.0, 70.0, 50.0, 20.0])
PLAN = Plan(lane="gpt", deadline_s=2_000.0, publication="p", tenant="team", context="ctx", tags=("a",))
SHARED = msgspec.structs.replace(PLAN, sharing=Sharing(ttl_s=60.0, join=True, max_entries=10, max_bytes=1000))
FACTS = Facts(call_id="c", tag="c.1", task="f", plan=PLAN, queue="q", worker="w/1")
BEGUN = Begun(state="go", tries=0, number=3, deadline_s=2_000.0, waiting_since_s=990.0, now_s=NOW_S, ticket=TICKET)
OK = Response(status=200, headers={"x-request-id": "r-1"}, body={})
DOWN = Response(status=500, headers={}, body={})
CUT = {"choices": [{"message": {"content": "It w"}, "finish_reason": "length"}]}
#: The lane's calls are answered.
WELL = Health(lately=Lately(good_at=NOW_S, good_sent=SENT_S), seq=9, out=4)
#: Nobody was answered for long.
AWAY = Health(lately=Lately(), seq=9, out=4)
PINNED = replace(WELL, escalates=False)


class Refused(Exception):
    """An SDK's exception, with what our rules make of it."""

    def __init__(self, category: Category, retry_after_s: float | None = None) -> None:
        super().__init__(category)
        self.failure = Failure(category=category, cause="said", status=418, retry_after_s=retry_after_s)


class Word(Exception):
    """A word of the framework."""

    def __init__(self, means: Outcome, behind: BaseException | None = None) -> None:
        super().__init__(means)
        self.outcome, self.behind = means, behind


def classify(error: BaseException) -> Failure | None:
    if isinstance(error, Swallowed):
        return Failure(category=Category.SERVER_ERROR, cause="HTTP 500", status=500)
    return error.failure if isinstance(error, Refused) else None


RULES = Rules(
    answers=Answers(dumps=json.dumps, loads=json.loads),
    jitter=lambda: 0.5,
    classify=classify,
    reconcile=lambda lane: True,
    pass_through=(Word,),
    means=lambda word: word.outcome,  # type: ignore[attr-defined]
    behind=lambda word: (word.behind,),  # type: ignore[attr-defined]
)


def of(ran: Ran, begun: Begun = BEGUN, health: Health = WELL, facts: Facts = FACTS, rules: Rules = RULES) -> Conclusion:
    """What follows, with the lane asked as the executor asks it."""
    failed = failed_by(ran, rules)
    asked = health if needs_health(failed, rules.policy) and ran.caught is None else Health()
    beside = Beside(health=asked, task_sent_s=11.0, process_sent_s=12.0)
    return conclude(facts, begun, ran, failed, beside, rules)


def came(value: Any = None, error: BaseException | None = None, seen: Sighting | None = None, **more: Any) -> Ran:
    """An attempt of half a second."""
    return Ran(started_s=5.0, ended_s=5.5, value=value, error=error, seen=seen or Sighting(), **more)


def caught(category: Category, health: Health = WELL, retry_after_s: float | None = None) -> Judged:
    """A failure for which the task has retried by itself."""
    error = Refused(category, retry_after_s)
    return judge(Failed(error, error.failure), BEGUN, NOW_S + 0.4, health, RULES)


MINE = ValueError("mine")
TWICE = Failing(first_at=900.0, sent_at=950.0, row=2, first_sent=899.0)
HASTY = Timeouts(by_deadline=True)
PASSED = Settle(b'{"passed": true}', "passed")


@dataclass(frozen=True)
class Row:
    """How an attempt ended → what follows."""

    ran: Ran
    end: Settle | Back | AnswerKind  #: of an error that those who wait get: only its kind
    result: type
    outcome: Outcome
    word: str  #: of the lesson
    tried: bool = False  #: it counts in the record of its function
    cause: str | None = None
    begun: Begun = BEGUN
    health: Health = WELL
    facts: Facts = FACTS


ERRED, AFTER = Category.SERVER_ERROR, Refused(Category.RATE_LIMITED, 7.0)
A, S, R, F = Outcome.ANSWERED, Outcome.SNOOZED, Outcome.RETRIED, Outcome.FAILED
TABLE = {
    "answered, nothing was seen": Row(came("v"), Settle(b'{"value": "v"}', "value"), Answered, A, "plain"),
    "answered, as was seen": Row(came("v", seen=Sighting(OK)), Settle(b'{"value": "v"}', "value"), Answered, A, "good"),
    "an answer that is no JSON": Row(came({1, 2}), Settle(b"", "value"), Answered, A, "plain"),
    "cut short, and would be kept": Row(came(CUT), "short", Answered, A, "plain", facts=replace(FACTS, plan=SHARED)),
    "cut short, and is kept for nobody": Row(came(CUT), "value", Answered, A, "plain"),
    "refused": Row(came(error=AFTER), Back(0.0, 0), Again, S, "refused", cause="said"),
    "sick while others are answered": Row(came(error=Refused(ERRED)), Back(0.5, 1), Again, R, "sick", True, "said"),
    "sick, and nobody is answered": Row(
        came(error=Refused(ERRED)), Back(0.75, 0), Again, S, "sick", cause="said", health=AWAY
    ),
    "sick again, and others were answered since": Row(
        came(error=Refused(ERRED)), Back(0.5, 1), Again, R, "sick.1", True, "said", replace(BEGUN, failing=TWICE)
    ),
    "the last try": Row(
        came(error=Refused(ERRED)), "error", GaveUp, F, "sick", True, "said", replace(BEGUN, tries=5)
    ),
    "the next try would be too late": Row(
        came(error=Refused(ERRED)), "error", GaveUp, F, "sick", False, "said", replace(BEGUN, deadline_s=NOW_S + 0.6)
    ),
    "less time than the provider needs": Row(
        came(error=Refused(Category.TIMEOUT), timeouts=HASTY), Back(1.0, 1), Again, R, "other", True, "said"
    ),
    "conflict": Row(came(error=Refused(Category.CONFLICT)), Back(0.5, 1), Again, R, "other", True, "said"),
    "invalid": Row(came(error=Refused(Category.INVALID_REQUEST)), "error", GaveUp, F, "other", cause="said"),
    "the key is not accepted": Row(came(error=Refused(Category.AUTH)), "error", GaveUp, F, "barred", cause="said"),
    "nothing left until somebody pays": Row(
        came(error=Refused(Category.QUOTA_EXHAUSTED)), Back(0.0, 0), Again, S, "quota", cause="said", health=AWAY
    ),
    "nothing left, and others are answered": Row(
        came(error=Refused(Category.QUOTA_EXHAUSTED)), Back(1.0, 1), Again, R, "quota.1", True, "said"
    ),
    "nothing left for it, the sixth time": Row(
        came(error=Refused(Category.QUOTA_EXHAUSTED)), "error", GaveUp, F, "quota.1", cause="said",
        begun=replace(BEGUN, tries=5)
    ),
    "nothing left, and the lane may not halt": Row(
        came(error=Refused(Category.QUOTA_EXHAUSTED)), "error", GaveUp, F, "quota", cause="said", health=PINNED
    ),
    "an error that nobody knows": Row(came(error=MINE), Settle(b"", "error"), GaveUp, F, "other", cause="ValueError"),
    "sent again for a reason of its own": Row(came(error=Word(R, MINE)), PASSED, PassedOn, R, "other"),
    "sent again for the provider": Row(
        came(error=Word(R, Refused(ERRED))), PASSED, PassedOn, R, "sick", True, cause="said"
    ),
    "sent again for a mistake": Row(
        came(error=Word(R, Refused(Category.PROGRAMMING))), PASSED, PassedOn, R, "other"
    ),
    "given back to the queue": Row(came(error=Word(S)), Back(0.0, 0), PassedOn, S, "other", cause="Word"),
    "given back for the provider": Row(
        came(error=Word(S, Refused(ERRED))), Back(0.0, 0), PassedOn, S, "sick", cause="Word"
    ),
    "ignored": Row(came(error=Word(F)), PASSED, PassedOn, F, "other", cause="Word"),
    "the function kept the failure to itself": Row(
        came("v", seen=Sighting(DOWN, watched=True)), "value", Answered, A, "sick", True, "HTTP 500"
    ),
    "a failure of a client that nobody watches": Row(came("v", seen=Sighting(DOWN)), "value", Answered, A, "good"),
    "the task retries, and the lane does it": Row(
        came(error=Word(R), caught=caught(Category.RATE_LIMITED), stays_s=4.0), Back(4.0, 0), Again, S, "refused",
        cause="said",
    ),
    "... though the task went on": Row(
        came("v", caught=caught(Category.RATE_LIMITED), stays_s=4.0), Back(4.0, 0), Again, S, "refused", cause="said"
    ),
    "the task retries itself": Row(
        came(error=Word(R), caught=caught(ERRED)), PASSED, PassedOn, R, "sick", True, cause="said"
    ),
    "the task's own rule gave up": Row(
        came(error=Refused(Category.CONFLICT), caught=caught(ERRED)), "error", GaveUp, F, "sick", True, "said"
    ),
    "... with an error of its own": Row(
        came(error=MINE, caught=caught(ERRED)), Settle(b"", "error"), GaveUp, F, "sick", True, "said"
    ),
    "the task answered after its retry": Row(
        came("v", caught=caught(ERRED)), "value", Answered, A, "sick", True, "said"
    ),
    "sent again, and the task went on": Row(
        came("v", caught=caught(ERRED), resent=True), "value", Answered, R, "sick", True, "said"
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_what_follows(row: Row) -> None:
    """One value: what is settled or goes back, what the lane learns, the row, and what the caller hears."""
    found = of(row.ran, row.begun, row.health, row.facts)
    if isinstance(row.end, str):
        assert isinstance(found.end, Settle)
        assert found.end.kind == row.end
        assert found.end.answer
    else:
        assert found.end == row.end
    assert isinstance(found.result, row.result)
    assert (found.row.outcome, found.row.cause, found.lesson.word()) == (row.outcome, row.cause, row.word)
    assert found.lesson.failed_task == ("f" if row.tried else "")
    assert found.counts_as_answer == (row.word in {"good", "plain"})


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_the_same_attempt_is_concluded_the_same(row: Row) -> None:
    """It depends on its arguments alone, and leaves them as they were."""
    before = repr((row.ran, row.begun, row.facts))
    once, twice = of(row.ran, row.begun, row.health, row.facts), of(row.ran, row.begun, row.health, row.facts)
    assert (once.end, once.lesson, once.row) == (twice.end, twice.lesson, twice.row)
    assert repr((row.ran, row.begun, row.facts)) == before


def test_a_call_of_a_process_that_has_lost_its_way_pays_nothing() -> None:
    """Another process may take it, soon; if it comes back to lost ones again and again, it uses its tries."""
    error = Refused(Category.CONNECTION)

    def judged(begun: Begun) -> Judged:
        return judge(Failed(error, error.failure), begun, NOW_S + 0.4, WELL, RULES, lost=True)

    first = judged(BEGUN)
    assert (first.step, first.free, first.discounted) == (Snooze(0.25), True, True)
    again = judged(replace(BEGUN, failing=replace(TWICE, row=3)))
    assert isinstance(again.step, Retry)
    assert (again.free, again.discounted) == (False, True)


def test_what_a_caller_hears() -> None:
    """The answer; the exception as it was where we do not know it; else ours, which crosses processes."""
    assert of(came("v")).result == Answered("v")
    assert of(came(error=MINE)).result == GaveUp(MINE)
    word = Word(R)
    assert of(came(error=word)).result == PassedOn(word)
    again = of(came(error=Refused(ERRED)), replace(BEGUN, tries=2)).result
    assert isinstance(again, Again)
    assert isinstance(again.error, CallFailed)
    assert again.after_s == 2.0, "half of the widest wait after three tries"
    gone = of(came(error=Refused(Category.AUTH))).result
    assert isinstance(gone, GaveUp)
    assert isinstance(gone.error, CallFailed)


def test_what_the_row_of_an_attempt_says() -> None:
    """Times are Redis' own; waiting ends when the attempt begins; an answer's own request id and tokens."""
    seen = Sighting(OK, Usage(20, 10), "openai", "gpt-4o-2024")
    row = of(came("v", seen=seen)).row
    assert (row.call_id, row.number, row.lane, row.task, row.queue, row.worker) == ("c", 3, "gpt", "f", "q", "w/1")
    assert (row.started_at, row.finished_at, row.waited_s) == (NOW_S, NOW_S + 0.5, 10.0)
    assert (row.context, row.tags, row.tenant) == ("ctx", ("a",), "team")
    assert (row.provider, row.model, row.request_id, row.status) == ("openai", "gpt-4o-2024", "r-1", 200)
    assert (row.input_tokens, row.output_tokens) == (20, 10)
    failed = of(came(error=AFTER)).row
    assert (failed.category, failed.status, failed.retry_after_s) == (Category.RATE_LIMITED, 418, 7.0)


def test_what_was_asked_and_came_is_kept_only_where_it_is_captured() -> None:
    """The answer, or the traceback; of what was never sent only what it would have asked."""
    arguments: Arguments = lambda: (("prompt",), {})  # noqa: E731
    kept = replace(FACTS, arguments=arguments)
    assert of(came("v")).row.content is None
    answered, failed = of(came("v"), facts=kept).row.content, of(came(error=MINE), facts=kept).row.content
    assert answered is not None
    assert (answered.answer, answered.traceback) == ('"v"', None)
    assert failed is not None
    assert failed.answer is None
    assert "ValueError: mine" in str(failed.traceback)
    late = expired(kept, BEGUN, RULES).row.content
    assert late is not None
    assert (late.answer, late.traceback) == (None, None)


def test_tokens_are_made_good_only_for_an_answer() -> None:
    """An SDK's answer that the function gives back tells them; what failed has no claim."""
    told = {"usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}, "choices": []}
    assert of(came(told)).lesson.used() == msgspec.msgpack.encode([1, 30, 20, 10])
    assert of(came(told)).row.input_tokens == 20
    assert of(came(error=MINE, seen=Sighting(usage=Usage(20, 10)))).lesson.used() == b""


def test_how_an_answer_is_kept() -> None:
    """By what it cost, or else by its tokens; packed, but where a script may have to give it away."""
    told = {"usage": {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}, "choices": []}
    shared = replace(FACTS, plan=SHARED)
    assert of(came(told)).keep is None
    assert of(came(told), facts=shared).keep == Keep(again_nanousd=30_000, input_tokens=20, output_tokens=10)
    assert of(came(CUT), facts=shared).keep is None, "it is not whole"
    assert of(came(error=MINE), facts=shared).keep is None
    priced = replace(RULES, price=lambda usage, *_: Money(7, PriceSource.OWN))
    assert SHARED.sharing is not None
    sharing = msgspec.structs.replace(SHARED.sharing, stale_ttl_s=60.0)
    stale = replace(FACTS, plan=msgspec.structs.replace(SHARED, sharing=sharing))
    assert of(came(told), facts=stale, rules=priced).keep == Keep(
        again_nanousd=7, paid_nanousd=7, input_tokens=20, output_tokens=10, packs=False
    )


def test_a_lesson_names_its_witness_and_place() -> None:
    """Of what is sick, also when the process was answered last, and how many were sent before."""
    sick = of(came(error=Refused(ERRED))).lesson
    assert sick.witness is not None
    assert (sick.witness.task_sent, sick.witness.process_sent, sick.witness.discounted) == (11.0, 12.0, False)
    assert (sick.older, sick.ticket, sick.at_s, sick.cost) == (1, TICKET, NOW_S + 0.5, PLAN.cost.vector())
    good = of(came("v", seen=Sighting(OK))).lesson
    assert good.witness is not None
    assert (good.witness.task_sent, good.witness.again, good.older) == (0.0, False, 0)
    assert of(came(error=MINE)).lesson.witness is None
    assert of(came(error=AFTER)).lesson.gate_s == 7.0


@pytest.mark.parametrize(
    ("category", "asked"),
    [(category, category not in {
        Category.AUTH, Category.INVALID_REQUEST, Category.CONTENT_FILTERED, Category.PROGRAMMING
    }) for category in Category],
)  # fmt: skip
def test_which_failures_ask_how_the_lane_is(category: Category, asked: bool) -> None:
    """What is never retried, and says nothing of the provider, costs no exchange."""
    error = Refused(category)
    assert needs_health(Failed(error, error.failure), RetryPolicy()) is asked
    assert not needs_health(None, RetryPolicy())


def test_a_function_with_a_bad_record_has_fewer_tries_while_its_lane_is_normal() -> None:
    """Health that was asked for counts."""
    bad = replace(WELL, track_record=TrackRecord(failed=20, answered=0, others_failed=0, others_answered=500))
    ran, begun = came(error=Refused(ERRED)), replace(BEGUN, tries=1)
    assert isinstance(of(ran, begun, bad).result, GaveUp)
    assert isinstance(of(ran, begun, replace(bad, mode=Mode.REDUCED)).result, Again)


def test_what_expired_has_a_row_more_and_no_answer() -> None:
    """Those that follow it have deadlines of their own."""
    found = expired(FACTS, BEGUN, RULES)
    assert (found.end, found.row.number, found.row.outcome) == (Settle(b"", "error"), 4, F)
    assert (found.row.started_at, found.row.finished_at, found.row.cause) == (NOW_S, NOW_S, "DeadlineExceeded")
    assert isinstance(found.result, GaveUp)
    assert isinstance(found.result.error, DeadlineExceeded)
    assert found.lesson.observation() == b""


def test_what_kills_workers_tells_those_that_follow() -> None:
    """They are the same call."""
    found = poisoned(FACTS, replace(BEGUN, tries=3), RULES)
    assert isinstance(found.end, Settle)
    assert found.end.kind == "error"
    assert isinstance(found.result, GaveUp)
    assert isinstance(found.result.error, WorkerLostRepeatedly)
    assert RULES.answers.decode(found.end.answer)[1].args == found.result.error.args
    assert found.row.number == 3


def test_what_was_cut_off_says_nothing_of_the_provider() -> None:
    """Whatever was being handled; the next of those that follow asks."""
    found = cut_off(FACTS, BEGUN, came(error=Refused(ERRED)), RULES)
    assert (found.end, found.row.outcome, found.row.cause) == (Settle(b"", "error"), F, "Refused")
    assert (found.lesson.word(), found.lesson.failure, found.lesson.failed_task) == ("other", None, "")


def test_a_call_that_hangs_is_a_timeout_to_its_lane() -> None:
    """As of now; it ends by itself."""
    lesson = still_out(FACTS, BEGUN, came(), Beside(health=WELL), RULES)
    assert (lesson.word(), lesson.at_s, lesson.older, lesson.failed_task) == ("sick", NOW_S + 0.5, 1, "")
    assert lesson.failure is not None
    assert lesson.failure.category is Category.TIMEOUT


@pytest.mark.parametrize(
    ("ran", "kind"),
    [
        (came("v"), "value"),
        (came({1}), "alone"),
        (came(error=MINE), "alone"),
        (came(error=Refused(Category.AUTH)), "alone"),
        (came(error=CallFailed("said", 401, None, 1)), "alone"),
    ],
)
def test_callers_in_process_that_cannot_have_an_outcome_ask_for_themselves(ran: Ran, kind: AnswerKind) -> None:
    """An answer that is no JSON, an exception of the function's own or its SDK's."""
    end = let_go(of(ran), ran).end
    assert isinstance(end, Settle)
    assert end.kind == kind
    assert (end.answer == ALONE) == (kind == "alone")


def test_what_goes_back_goes_back_in_process_too() -> None:
    """Nobody is let go for it."""
    ran = came(error=AFTER)
    assert let_go(of(ran), ran).end == Back(0.0, 0)


# ── who acts on it ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Noted:
    """Lanes that note what they are told."""

    begun: Begun = BEGUN
    ours: bool = True
    told: list[tuple[Any, ...]] = field(default_factory=list)

    def begin(self, tag: str, lease_s: float, alone: bool = False, process: str = "", taken: bool = False) -> Begun:
        return self.begun

    def settle(self, settlement: Settlement) -> bool:
        one = settlement
        self.told.append(("settle", one.tag, one.lane, one.answer, one.kind, one.outbox, one.lesson.tried()))
        return True

    def back(self, tag: str, lane: str, lesson: Lesson, *, after_s: float, tries: int, outbox: bytes = b"") -> bool:
        self.told.append(("back", tag, lane, after_s, tries, outbox, lesson.tried()))
        return self.ours

    def health(self, lane: str, task: str) -> Health:
        self.told.append(("health", lane, task))
        return WELL


def executed(lanes: Noted, value: Any = None, error: BaseException | None = None) -> Result:
    def run(begun: Begun) -> Any:
        if error is not None:
            raise error
        return value

    def encode(row: Attempt) -> bytes:
        return row.outcome.value.encode()

    executor = Executor(lanes=lanes, rules=RULES, encode_outcome=encode, lease_s=1.0, clock=lambda: 5.0)
    executor.tally.add("gpt", "other", 5.0)
    return executor.execute(FACTS, run, lambda body: None)


def test_an_answer_is_one_exchange() -> None:
    """Nobody is asked how the lane is."""
    lanes = Noted()
    assert executed(lanes, "v") == Answered("v")
    assert lanes.told == [("settle", "c.1", "gpt", b'{"value": "v"}', "value", b"answered", b"")]


def test_a_failure_asks_once_and_tells_once() -> None:
    """With the answers that the process had meanwhile."""
    lanes = Noted()
    assert isinstance(executed(lanes, error=Refused(ERRED)), Again)
    tried = msgspec.msgpack.encode(["f", {"other": 1}])
    assert lanes.told == [("health", "gpt", "f"), ("back", "c.1", "gpt", 0.5, 1, b"retried", tried)]
    lanes = Noted()
    executed(lanes, error=Refused(Category.AUTH))
    assert [what for what, *_ in lanes.told] == ["settle"]


def test_what_goes_back_and_is_not_ours_any_more_is_anothers() -> None:
    """It was taken for dead, and runs elsewhere; a word of the framework is its own answer."""
    assert executed(Noted(ours=False), error=Refused(ERRED)) == NotOurs()
    word = Word(S)
    assert executed(Noted(ours=False), error=word) == PassedOn(word)


def test_a_judgement_says_what_the_lane_would_do() -> None:
    """For a task that retries by itself."""
    judged = caught(ERRED)
    assert (judged.step, judged.costs, judged.free, judged.older) == (Retry(0.5), True, False, 1)
    assert caught(Category.RATE_LIMITED).free
    assert caught(ERRED, AWAY).free


def test_a_reading_is_made_of_the_providers_last_answer() -> None:
    """Nothing is read where nothing came."""
    assert of(came("v")).lesson.reading == Reading()
