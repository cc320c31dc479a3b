"""What is wrong? Rules that find symptoms in what Redis and the tracking database say; symptoms open and close alerts.

Each rule has two bounds: an alert opens beyond one, and closes only on the good side of the other. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, field

from ratelimit_worker.calls import Category, Mode, ModeChange, Outcome
from ratelimit_worker.contracts.alert import Alert, Kind, key_of
from ratelimit_worker.contracts.budget import LANE
from ratelimit_worker.plural import calls_wait, many
from ratelimit_worker.policy.alert_states import Sight, Symptom
from ratelimit_worker.policy.budget import Standing as Purse
from ratelimit_worker.policy.histogram import Histogram
from ratelimit_worker.policy.modes import ALL, wilson
from ratelimit_worker.policy.modes.ladder import QUOTA_CAUSE
from ratelimit_worker.policy.trend import MARGIN, Finding, Trend
from ratelimit_worker.policy.trend import of_values as trend_of

#: Kinds that mode changes open and close; looks at the lanes only correct what no change has reported.
MODES = frozenset({Kind.EMERGENCY, Kind.HALT, Kind.QUOTA})
#: Kinds of which Redis knows enough, and those that need the tracking database.
LIVE = MODES | {Kind.OUTBOX, Kind.NO_WORKER, Kind.SET_ASIDE}
RECORDED = frozenset({Kind.LATENCY, Kind.ERRORS, Kind.POISON})

OF_THE_DAY = "day"  #: `about` of a quota that a person has set for the day

ERRORS_MIN = 5  #: whole minutes whose attempts are judged
ERRORS_FEWEST = 20  #: attempts
ERRORS_BAD, ERRORS_GOOD = 0.20, 0.10  #: shares of failed attempts: Wilson's lower bound opens, the plain share closes
NO_ATTEMPT = "without a category"
POISON_MIN, POISON_CALLS = 15, 5  #: whole minutes, and calls that failed in them while none was answered
OUTBOX_BAD, OUTBOX_GOOD = 10_000, 1_000  #: entries
OUTBOX_BAD_S, OUTBOX_GOOD_S = 120.0, 30.0  #: age of the oldest, seconds
BUDGET_PARTS = (1.0, 0.8, 0.5)  #: of a budget of money


# ── modes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def kind_of_mode(mode: Mode, for_quota: bool) -> Kind | None:
    """The kind of alert that a mode opens; None: it opens none."""
    match mode:
        case Mode.EMERGENCY:
            return Kind.EMERGENCY
        case Mode.HALT:
            return Kind.QUOTA if for_quota else Kind.HALT
        case _:
            return None


def is_for_quota(change: ModeChange) -> bool:
    """Whether the law halts the lane since its provider says that a quota is used up."""
    return change.to_mode is Mode.HALT and change.cause == QUOTA_CAUSE


def of_change(change: ModeChange) -> list[Symptom]:
    """The symptoms of a mode change: the alert of the new mode opens, and the lane's other alerts of modes close."""
    kind = kind_of_mode(change.to_mode, is_for_quota(change))
    cause = f"by {change.who}: {change.reason or change.cause}"
    found = [
        Symptom(kind=other, lane=change.lane, sight=Sight.GOOD, cause=f"{change.to_mode.value} {cause}", after_s=0.0)
        for other in sorted(MODES)
        if other is not kind
    ]
    if kind is None:
        return found
    said = Symptom(
        kind=kind,
        lane=change.lane,
        cause=f"{change.from_mode.value} -> {change.to_mode.value} {cause}",
        numbers=change.numbers,
        after_s=0.0,
    )
    return [said, *found]


# ── what Redis says ──────────────────────────────────────────────────────────────────────────────────────────────────


class LaneStanding(Struct, frozen=True, kw_only=True):
    """How one lane stands."""

    lane: str
    mode: Mode
    for_quota: bool = False  #: in HALT by the law, for a quota at the provider
    used_up: Sequence[str] = ()  #: quotas of its day of which nothing is left, in words
    waiting: int = 0  #: calls that wait for a permit
    oldest_age_s: float | None = None  #: since the oldest of them was accepted
    queues: Sequence[str] = ()  #: on which they wait
    workers: int = 0  #: that take calls from one of these queues


class TaskUnknown(Struct, frozen=True, kw_only=True):
    """Calls wait for a task that no living worker of their queue knows."""

    queue: str
    task: str
    calls: int


class Standing(Struct, frozen=True, kw_only=True):
    """How things stand in Redis."""

    at_s: float  #: seconds since the epoch
    lanes: Sequence[LaneStanding] = ()
    unknown: Sequence[TaskUnknown] = ()
    everywhere: Mode | None = None  #: to which all lanes are pinned; None: they are not
    outbox: int = 0  #: entries that are not in the tracking database
    outbox_age_s: float = 0.0  #: of the oldest of them
    set_aside: int = 0  #: messages that were ever set aside
    budgets: Sequence[Purse] = ()  #: of money


def of_standing(now: Standing, set_aside_before: int) -> Iterator[Symptom]:
    """The symptoms in what Redis says.

    Args:
        set_aside_before: Messages that had been set aside when the rules last looked.
    """
    kind = None if now.everywhere is None else kind_of_mode(now.everywhere, False)
    if kind is not None and now.everywhere is not None:
        yield Symptom(kind=kind, lane=ALL, cause=f"all lanes are pinned to {now.everywhere.value}")
    for lane in now.lanes:
        yield from _of_lane(lane)
    for unknown in now.unknown:
        cause = f"{calls_wait(unknown.calls)} for task {unknown.task}, which no worker of queue {unknown.queue} knows"
        yield Symptom(kind=Kind.NO_WORKER, about=unknown.task, cause=cause, numbers={"waiting": float(unknown.calls)})
    yield from _of_outbox(now.outbox, now.outbox_age_s)
    if now.set_aside > set_aside_before:
        new = now.set_aside - set_aside_before
        these_were = many(new, "message was no call and was", "messages were no calls and were")
        cause = f"{these_were} set aside: LRANGE rlw:malformed 0 9"
        yield Symptom(kind=Kind.SET_ASIDE, cause=cause, numbers={"messages": float(new)})


def _of_lane(lane: LaneStanding) -> Iterator[Symptom]:
    kind = kind_of_mode(lane.mode, lane.for_quota)
    if kind is not None:
        yield Symptom(kind=kind, lane=lane.lane, cause=f"the lane is in {lane.mode.value}")
    if lane.used_up:
        said = " and ".join(lane.used_up)
        yield Symptom(kind=Kind.QUOTA, lane=lane.lane, about=OF_THE_DAY, cause=f"{said} are used up")
    if lane.waiting and not lane.workers:
        queues = ", ".join(lane.queues)
        yield Symptom(
            kind=Kind.NO_WORKER,
            lane=lane.lane,
            cause=f"{calls_wait(lane.waiting)} on {queues} and no worker takes calls from there",
            numbers={"waiting": float(lane.waiting), "oldest_s": round(lane.oldest_age_s or 0.0, 3)},
        )


def _of_outbox(entries: int, age_s: float) -> Iterator[Symptom]:
    if entries >= OUTBOX_BAD or age_s >= OUTBOX_BAD_S:
        sight = Sight.BAD
    elif entries >= OUTBOX_GOOD or age_s >= OUTBOX_GOOD_S:
        sight = Sight.BETWEEN
    else:
        return
    cause = f"{entries:,} outcomes wait for the tracking database, the oldest for {age_s:,.0f} s"
    numbers = {"entries": float(entries), "oldest_s": round(age_s, 3)}
    yield Symptom(kind=Kind.OUTBOX, sight=sight, cause=cause, numbers=numbers)


# ── what the tracking database says ──────────────────────────────────────────────────────────────────────────────────


class Minute(Struct):
    """What a lane did in a minute."""

    latency: Histogram = field(default_factory=dict)  #: of answered attempts
    attempts: int = 0  #: without snoozed ones and 429s
    failed: int = 0  #: of these

    def add(self, latency: Mapping[int, int], outcomes: Mapping[str, int]) -> None:
        """Add what one series did."""
        for bucket, count in latency.items():
            self.latency[bucket] = self.latency.get(bucket, 0) + count
        for name, count in outcomes.items():
            outcome, _, category = name.partition(":")
            if outcome == Outcome.SNOOZED or category == Category.RATE_LIMITED:
                continue
            self.attempts += count
            self.failed += 0 if outcome == Outcome.ANSWERED else count


class Function(Struct):
    """What became of the calls of a function in a lane recently."""

    answered: int = 0
    failed: int = 0  #: for good
    killed: int = 0  #: of these, given up since their workers died again and again
    categories: dict[str, int] = field(default_factory=dict)  #: of those that failed for good

    @property
    def without_attempt(self) -> int:
        """Of those that failed for good, the ones of which neither an answer nor an error is known."""
        return self.categories.get(NO_ATTEMPT, 0)

    def add(self, outcomes: Mapping[str, int]) -> None:
        """Add what one series did."""
        for key, count in outcomes.items():
            outcome, _, category = key.partition(":")
            if outcome == Outcome.ANSWERED:
                self.answered += count
            elif outcome == Outcome.FAILED:
                self.failed += count
                name = category or NO_ATTEMPT
                self.categories[name] = self.categories.get(name, 0) + count


class Recorded(Struct, frozen=True, kw_only=True):
    """What the tracking database has of the last minutes."""

    lanes: Mapping[str, Sequence[Minute]] = field(default_factory=dict)  #: oldest first, up to the last whole minute
    functions: Mapping[tuple[str, str], Function] = field(default_factory=dict)  #: by lane and task


def of_recorded(found: Recorded, known: Mapping[str, Alert]) -> Iterator[Symptom]:
    """The symptoms in what was recorded.

    Args:
        known: Alerts that are open or about to be, by key.
    """
    for lane, minutes in found.lanes.items():
        was = known.get(key_of(Kind.LATENCY, lane, ""))
        yield of_latency(lane, trend_of([minute.latency for minute in minutes]), was)
        yield from of_errors(lane, minutes[-ERRORS_MIN:])
    for (lane, task), function in found.functions.items():
        yield from of_function(lane, task, function)


def of_latency(lane: str, found: Finding, was: Alert | None) -> Symptom:
    """Whether a provider gets slower.

    Args:
        was: The alert of this lane's latency, if there is one.
    """
    numbers = {
        "earlier_s": round(found.before or 0.0, 6),
        "later_s": round(found.latest or 0.0, 6),
        "minutes": float(found.minutes),
        "answers": float(found.values_latest),
        "answers_before": float(found.values_before),
    }
    if found.trend is Trend.DEGRADING and found.before is not None and found.latest is not None:
        cause = f"answers take {found.latest:.3g} s, and took {found.before:.3g} s before"
        return Symptom(kind=Kind.LATENCY, lane=lane, cause=cause, numbers=numbers)
    earlier_s = was.numbers.get("earlier_s", 0.0) if was is not None else 0.0
    if found.latest is None:
        cause = "there are too few answers to tell"
    elif found.latest <= earlier_s * MARGIN:
        cause = f"answers take {found.latest:.3g} s again"
    else:
        cause = f"answers still take {found.latest:.3g} s, which is usual by now"
    return Symptom(kind=Kind.LATENCY, lane=lane, sight=Sight.GOOD, cause=cause, numbers=numbers)


def of_errors(lane: str, minutes: Sequence[Minute]) -> Iterator[Symptom]:
    """Whether many of a lane's attempts fail: more than a fifth, with 95 % confidence."""
    attempts = sum(minute.attempts for minute in minutes)
    failed = sum(minute.failed for minute in minutes)
    if not attempts or failed <= ERRORS_GOOD * attempts:
        return
    bad = attempts >= ERRORS_FEWEST and wilson(failed, attempts) >= ERRORS_BAD
    yield Symptom(
        kind=Kind.ERRORS,
        lane=lane,
        sight=Sight.BAD if bad else Sight.BETWEEN,
        cause=f"{failed:,} of {attempts:,} attempts failed in {len(minutes)} minutes ({failed / attempts:.0%})",
        numbers={"failed": float(failed), "attempts": float(attempts)},
    )


def of_function(lane: str, task: str, found: Function) -> Iterator[Symptom]:
    """Whether the calls of a function always fail, or kill their workers."""
    fails = found.failed >= POISON_CALLS and not found.answered
    if not (fails or found.killed or (found.failed and not found.answered)):
        return
    if found.killed:
        given_up = many(found.killed, f"call of {task} was given up: its", f"calls of {task} were given up: their")
        cause = f"{given_up} worker died each time"
    else:
        kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(found.categories.items()))
        cause = f"all {found.failed:,} calls of {task} failed in {POISON_MIN} minutes ({kinds})"
    yield Symptom(
        kind=Kind.POISON,
        lane=lane,
        about=task,
        sight=Sight.BAD if fails or found.killed else Sight.BETWEEN,
        cause=cause,
        numbers={"failed": float(found.failed), "killed": float(found.killed)},
    )


# ── money ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def of_purses(purses: Sequence[Purse]) -> Iterator[Symptom]:
    """The symptoms of budgets of money, as Redis counts what is spent."""
    for one in purses:
        lane = one.name.removeprefix(LANE) if one.name.startswith(LANE) else ""
        for period in one.periods:
            name, spent_usd, limit_usd = one.name.replace(":", " ", 1), period.spent_usd, period.limit_usd
            yield from of_budget(name, period.label, spent_usd, limit_usd, ends_s=period.ends_s, lane=lane)


def of_budget(
    budget: str, period: str, spent_usd: float, limit_usd: float, *, ends_s: float, lane: str = ""
) -> Iterator[Symptom]:
    """The parts of a budget of money that are spent: 50, 80 and 100 %, each an alert of its own for its period.

    Args:
        budget: Its name, such as "tenant team-a".
        period: Which day or month, such as "2026-11-30": each has alerts of its own.
        limit_usd: Above 0.
        ends_s: When the period ends, seconds since the epoch.
        lane: The lane, if it is a lane's budget.
    """
    for part in BUDGET_PARTS:
        if spent_usd >= part * limit_usd:
            yield Symptom(
                kind=Kind.BUDGET,
                lane=lane,
                about=f"{budget} {period} {part:.0%}",
                cause=f"{spent_usd / limit_usd:.0%} of the budget of {budget} for {period} are spent: "
                f"${spent_usd:,.2f} of ${limit_usd:,.2f}",
                numbers={"spent_usd": round(spent_usd, 6), "limit_usd": limit_usd, "part": part},
                ends_s=ends_s,
            )
