"""Search for calls that wait, run, were answered or have failed: in the lanes and in the tracking database."""

from __future__ import annotations

from msgspec import Struct, structs
from redis import Redis

from ratelimit_worker.calls import Outcome
from ratelimit_worker.contracts.search import LIVE, REPEATABLE, CallState, Found, Wanted
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.reports.explain import Explanation, Where, used
from ratelimit_worker.reports.words import UNKNOWN, count, seconds, table
from ratelimit_worker.stores import roster, set_aside
from ratelimit_worker.stores.queries import MOST_LOOKED_THROUGH, Queries
from ratelimit_worker.stores.shelf import Shelf


class Calls(Struct, frozen=True, kw_only=True):
    """What a search has found."""

    calls: tuple[Found, ...]  #: calls that are out, then those that wait, then those that have ended, newest first
    whole: bool  #: whether nothing was left out
    notes: tuple[str, ...]  #: what could not be read or was not searched, one sentence each


def search(redis: Redis | None, queries: Queries, shelf: Shelf | None, wanted: Wanted) -> Calls:
    """The calls that meet the conditions.

    Args:
        redis, shelf: None: no Redis is configured, or it is away.
    """
    calls: list[Found] = []
    notes: list[str] = []
    whole = True
    if redis is not None and (wanted.state is None or wanted.state in LIVE):
        try:
            found = roster.look(redis, wanted)
            calls += found.calls
            whole = found.whole
            if not found.whole:
                notes.append(f"Of the calls in lanes the first {count(found.looked_at)} were looked at.")
        except StoreUnavailable as error:
            notes.append(f"What waits and runs is unknown: {error}")
    if wanted.state is None or wanted.state in {CallState.ANSWERED, CallState.FAILED}:
        try:
            ended, all_of_them = queries.ended(wanted)
            known = {call.call_id for call in calls}
            calls += [call for call in ended if call.call_id not in known]
            if not all_of_them:
                whole = False
                notes.append(
                    f"Of the calls that have ended the newest are shown; conditions are looked for among the newest "
                    f"{count(MOST_LOOKED_THROUGH)}."
                )
        except StoreUnavailable as error:
            notes.append(f"What has ended is unknown: {error}")
    if redis is not None and shelf is not None:
        calls = _with_second_chances(redis, shelf, calls, wanted, notes)
    return Calls(calls=tuple(calls), whole=whole, notes=tuple(notes))


def _with_second_chances(
    redis: Redis, shelf: Shelf, calls: list[Found], wanted: Wanted, notes: list[str]
) -> list[Found]:
    """The calls, marked if they can be run again, and after them the messages that were set aside."""
    try:
        if wanted.state in {None, CallState.SET_ASIDE}:
            known = {call.call_id for call in calls}
            messages = (as_found(one) for one in set_aside.read(redis) if one.at_s >= wanted.since_s or not one.at_s)
            calls += [one for one in messages if one.call_id not in known and wanted.takes(one)][: wanted.most]
        failed = [call.call_id for call in calls if call.state is CallState.FAILED]
        kept, back = shelf.holds(failed), roster.in_lanes(redis, failed)
    except StoreUnavailable as error:
        notes.append(f"What can be run again is unknown: {error}")
        return calls
    # A failed call that was run again is back in a lane: it is not shown as failed, though no new row is recorded yet.
    calls = [call for call in calls if call.state is not CallState.FAILED or call.call_id not in back]
    return [structs.replace(call, can_run_again=True) if call.call_id in kept else call for call in calls]


def as_found(message: set_aside.SetAside) -> Found:
    """A message that was set aside, as a result of a search."""
    return Found(
        call_id=message.call_id,
        state=CallState.SET_ASIDE,
        lane="",
        task=message.task,
        queue=message.queue,
        at_s=message.at_s,
        cause=message.why,
        can_run_again=bool(message.call_id) and message.whole,
    )


def error_of(call: Found) -> str:
    """The last failure of a call, in a few words; "" if there is none."""
    if call.category is None:
        return call.cause
    return f"{call.category}: {call.cause}" if call.cause and call.cause != call.category else str(call.category)


def calls_table(found: Calls, at_s: float, width: int | None) -> str:
    """A table of the calls, at `at_s` seconds since the epoch; `width`: columns of the terminal, None for files."""
    if not found.calls:
        return "No such call."
    heads = ("call", "state", "lane", "tenant", "task", "error", "age", "attempts", "again")
    rows = [
        (
            call.call_id or UNKNOWN,
            str(call.state),
            call.lane or UNKNOWN,
            call.tenant or UNKNOWN,
            call.task or UNKNOWN,
            error_of(call) or UNKNOWN,
            seconds(max(0.0, at_s - call.at_s)) if call.at_s else UNKNOWN,
            count(call.attempts),
            ("yes" if call.can_run_again else "no") if call.state in REPEATABLE else UNKNOWN,
        )
        for call in found.calls
    ]
    return table(heads, rows, width, texts=6)


class Step(Struct, frozen=True, kw_only=True):
    """One step in the history of a call, from its acceptance to now or to its end."""

    kind: str  #: waited, answered, retried, snoozed, failed, waits, runs
    at_s: float  #: when it began, seconds since the epoch
    for_s: float  #: its length
    words: str  #: for people


def timeline(found: Explanation, at_s: float) -> tuple[Step, ...]:
    """The history of a call, first to last.

    Args:
        at_s: Now, seconds since the epoch.
    """
    steps: list[Step] = []
    for attempt in found.attempts:
        if attempt.waited_s > 0:
            steps.append(
                Step(
                    kind="waited",
                    at_s=attempt.started_at - attempt.waited_s,
                    for_s=attempt.waited_s,
                    words=f"waited {seconds(attempt.waited_s)} in lane {attempt.lane}",
                )
            )
        status = f", HTTP {attempt.status}" if attempt.status else ""
        why = (
            f": {attempt.category or ''}{status} {attempt.cause or ''}".rstrip(" :") if attempt.cause or status else ""
        )
        if attempt.outcome is Outcome.ANSWERED:
            why = ""
        steps.append(
            Step(
                kind=str(attempt.outcome),
                at_s=attempt.started_at,
                for_s=attempt.latency_s,
                words="; ".join(
                    part
                    for part in (
                        f"attempt {attempt.number} {attempt.outcome} after {seconds(attempt.latency_s)}{why}",
                        used(attempt),
                    )
                    if part
                ),
            )
        )
    for one in found.standings:
        begun_s = steps[-1].at_s + steps[-1].for_s if steps else at_s - one.age_s
        runs = one.where in {Where.READY, Where.RUNNING, Where.SETTLED}
        reasons = "; ".join(one.waits_for)
        words = f"{one.where}{f' on {one.worker}' if one.worker else ''}{f': waits for {reasons}' if reasons else ''}"
        steps.append(Step(kind="runs" if runs else "waits", at_s=begun_s, for_s=max(0.0, at_s - begun_s), words=words))
    return tuple(steps)
