"""The lanes in Redis: a thin adapter over the scripts in `lua/`, which enter, release, settle and free calls."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from msgspec import Struct, structs
from redis import Redis
from redis.exceptions import ResponseError

from ratelimit_worker.calls import Failure, Mode
from ratelimit_worker.contracts.call import US, Entry, Placed, Record, Released, TakenOut
from ratelimit_worker.contracts.kept import USUAL_NANOUSD, packed, unpacked
from ratelimit_worker.contracts.lane import Fields, LaneState, Write
from ratelimit_worker.contracts.lesson import Lesson, Settlement, Stored
from ratelimit_worker.errors import BadInput, BudgetSpent, LaneFull, LanesFull, LaneShedding
from ratelimit_worker.policy import retry
from ratelimit_worker.policy.fault import Failing, Lately
from ratelimit_worker.ports import Admitted, Begun, Health, LaneSeen, LaneView, Taken
from ratelimit_worker.stores import keys, set_aside
from ratelimit_worker.stores.scripts import Scripts

if TYPE_CHECKING:
    from ratelimit_worker.stores.together import Dialogue

_LIVES = 2  #: as restore.lua reads it
MOST_LOST, LOST_TTL_S = 10_000, 86_400  #: calls whose callers got `CallLost`, for `explain`
KEEP_ANSWER_S = 86_400  #: how long a settled answer is kept at most; free.lua deletes it earlier

_failure = msgspec.msgpack.Decoder(Failure)
_DECLINED: tuple[Literal["none", "back", "over"], ...] = ("none", "back", "over")  #: as decline.lua answers


TASKS_TTL_S = 3600  #: how long the names of a crew's tasks are kept after its last beat


class Crew(Struct, frozen=True):
    """Workers of a queue that know the same tasks: calls are released to one that knows theirs."""

    name: str
    tasks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tasks: Iterable[str]) -> Crew:
        """The crew of a worker that knows these tasks, named by a digest of them."""
        known = frozenset(tasks)
        text = "\n".join(sorted(known))
        return cls(hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16], known)


EVERY_TASK = Crew(keys.ALL)


def as_escaped(task: str) -> str:
    """A task's name as the scripts find it in a message: escaped as in JSON, up to the first quote."""
    return json.dumps(task)[1:-1].partition('"')[0]


_WRITTEN_AT_ONCE = 50  #: lanes in one script, so that other clients wait for a few milliseconds at most
MOST_KNOWN = 10_000  #: lanes that one process remembers


class Pumped(NamedTuple):
    """What a turn of the pump did."""

    released: int  #: -1: another holds the duty
    sleep_s: float  #: until there is something to do


class Lanes:
    """All lanes of one Redis server. The arguments are those of `Scripts`.

    What changes a call or lane is one script, atomic on the server (`purge` takes several). All methods raise
    redis-py's errors, since the transport must tell a broken connection from a refusal; `wiring` and the commands
    translate them.
    """

    def __init__(self, client: Redis, time_us: int = 0, send: Callable[..., list[Any]] | None = None) -> None:
        self.client = client
        self.run = Scripts(client, time_us, send)
        self._known: set[str] = set()  #: lanes that existed when this process last used them

    def enqueue(self, entry: Entry) -> Placed:
        """Put a call into its lane, unless a kept answer is returned instead.

        Raises:
            LaneFull: the lane holds `max_waiting` calls; nothing was stored.
            LanesFull: the lane is new, and there are too many lanes already; nothing was stored.
            LaneShedding: the lane is in EMERGENCY or HALT, and the entry says "raise"; nothing was stored.
            BudgetSpent: a budget of money is spent, and the entry says "raise"; nothing was stored.
            BadInput: a cost, weight or time is not a usable number, or the id belongs to another call.
        """
        state, ref, *more = self._put("enqueue", (), entry)
        if state == 4 and entry.claim is not None:  # unpack here, since a script or an older worker may pass it on
            claim = structs.replace(entry.claim, answer=unpacked(more[0]).decode())
            return self.enqueue(structs.replace(entry, claim=claim))._replace(renews=bool(more[2]))
        return self._placed(entry, state, ref, more)

    def admit(self, entry: Entry, lease_s: float) -> Admitted:
        """As `enqueue`, for a caller that makes its attempt itself: what the lane lets go at once has begun with it.

        Args:
            lease_s: As of `begin`.
        Raises:
            LaneFull, LanesFull, LaneShedding, BudgetSpent, BadInput: as `enqueue`.
        """
        return self._admitted(entry, *self._put("admit", (int(lease_s * US),), entry))

    def admitting(self, entry: Entry, lease_s: float) -> Dialogue[Admitted]:
        """As `admit`, in exchanges that may be shared with others."""
        lease_us = int(lease_s * US)
        told = yield from self.run.asking("admit", (lease_us, *entry.args(new_lane=entry.lane not in self._known)))
        if told[0] == -2:  # as in `_put`
            told = yield from self.run.asking("admit", (lease_us, *entry.args()))
        self._knows(entry.lane)
        return self._admitted(entry, *told)

    def _admitted(self, entry: Entry, state: int, ref: bytes, *more: Any) -> Admitted:
        if state in (1, 2) and more:
            tag, *begun = more
            return Admitted(Placed(True, ref.decode()), tag.decode(), _begun(*begun))
        return Admitted(self._placed(entry, state, ref, list(more)))

    def _put(self, script: str, before: tuple[Any, ...], entry: Entry) -> list[Any]:
        """Run one of the scripts that take a call in; the fields of a new lane are only sent if it may be new."""
        told = self.run(script, (*before, *entry.args(new_lane=entry.lane not in self._known)))
        if told[0] == -2:  # the lane was there once, and has gone since
            told = self.run(script, (*before, *entry.args()))
        self._knows(entry.lane)
        return list(told)

    def _knows(self, lane: str) -> None:
        if len(self._known) < MOST_KNOWN:
            self._known.add(lane)

    def _placed(self, entry: Entry, state: int, ref: bytes, more: list[Any]) -> Placed:
        if state == -5:
            self._known.discard(entry.lane)
            raise LanesFull(entry.lane)
        if state == -1:
            raise LaneFull(entry.lane, entry.max_waiting)
        if state == -3:
            raise LaneShedding(entry.lane, more[0].decode())
        if state == -6:
            raise BudgetSpent(more[0].decode(), more[1])
        if state == -4:
            raise BadInput(f"task_id={entry.ref!r} is the id of a call with other arguments; use another, or none")
        if state == 3:
            return Placed(False, ref.decode(), unpacked(more[0]), bool(more[1]), bool(more[2]))
        return Placed(state == 1, ref.decode(), renews=bool(more and more[0]))

    def begin(self, tag: str, lease_s: float, alone: bool = False, process: str = "", taken: bool = False) -> Begun:
        """Ask whether a released call may run now; if the gate is closed, it goes back to its place.

        Args:
            alone: Nothing else runs in this process. A suspect on its last loss begins only then.
            process: The process that would die with the call; "": no other call runs in it.
            taken: Another call has the process for itself, so this one goes back, for another process or for later.
        """
        return _begun(*self.run("begin", (tag, int(lease_s * US), int(alone), process, int(taken))))

    def settle(self, settlement: Settlement) -> bool:
        """Make the outcome of a call safe; the first answer wins → whether this was the first."""
        return bool(self.run("settle", _settle_args(settlement)))

    def settle_and_free(self, settlement: Settlement, tags: Sequence[str]) -> None:
        """Settle a call without a message of Celery's, and free it, in one round trip."""
        self.run.several(_settles_and_frees(settlement, tags))

    def to_settle_and_free(self, settlement: Settlement, tags: Sequence[str]) -> list[tuple[Any, ...]]:
        """The commands of `settle_and_free`, for a caller that sends them together with others."""
        return self.run.commands(_settles_and_frees(settlement, tags))

    def finish(self, settlement: Settlement, result: Stored, frees: bool) -> bool:
        """Settle a call and store its result, in one step → whether it was freed too, and needs no ack.

        Args:
            frees: Only its ack would be left to do, so free it too.
        """
        args = (*_settle_args(settlement), result.name, result.value, result.expires_s, int(frees))
        _, freed = self.run("finish", args)
        return bool(freed)

    def back(
        self,
        tag: str,
        lane: str,
        lesson: Lesson,
        *,
        after_s: float,
        tries: int,
        outbox: bytes = b"",
    ) -> bool:
        """Return a released call to its lane, due in `after_s` (0: to its own place) → False: it is not ours any more.

        Args:
            lesson: `begin` returns its failure if the deadline passes before the next attempt. A sick answer adds to
                the call's row of sick answers, and one that the quota is used up likewise; any other ends the row.
            tries: Tries that the attempt costs.
            outbox: As for `settle`.
        """
        failure = lesson.failure
        args = (
            tag,
            int(after_s * US),
            tries,
            outbox,
            lesson.word(),
            lesson.observation(),
            int(lesson.gate_s * US),
            lane,
            lesson.tried(),
            b"" if failure is None else msgspec.msgpack.encode(failure),
            int(failure is not None and (failure.sick or lesson.verdict == "quota")),
            lesson.cost_nanousd,
        )
        return bool(self.run("back", args))

    def free(self, tags: Sequence[str]) -> int:
        """Free the calls of acknowledged messages → how many were not freed before."""
        return int(self.run("free", tags))

    def step_aside(self, tags: Sequence[str]) -> int:
        """Stop counting these calls as running in their lanes, since they wait for calls that they have made → how
        many were counted before."""
        return int(self.run("aside", tags))

    def restore(self, tags: Sequence[str], lost: bool = True) -> int:
        """Return released calls to their own places → how many.

        Args:
            lost: Their worker died, which counts as a loss of those that had begun. False: it ends in good order.
        """
        return int(self.run("restore", (int(lost), *tags)))

    def restore_unbegun(self, tags: Sequence[str]) -> int:
        """The same for a worker that continues: only calls that it has not begun → how many."""
        return int(self.run("restore", (_LIVES, *tags)))

    def pump(self, owner: str, lease_ms: int) -> Pumped:
        """Release what is due."""
        moved, sleep_us = self.run("pump", (owner, lease_ms))
        return Pumped(int(moved), int(sleep_us) / US)

    def sweep(self, lease_s: float, most: int = 100) -> int:
        """Return calls whose lease has ended to their lanes → how many."""
        return int(self.run("sweep", (int(lease_s * US), most)))

    def beat(
        self,
        worker: str,
        slots: int,
        life_s: float,
        queues: Sequence[str],
        lease_s: float,
        held: Sequence[str],
        crew: Crew = EVERY_TASK,
        lent: Collection[str] = (),
    ) -> int:
        """Report that a worker lives, with its slots, queues and crew, and renew its calls' leases → slots of all
        workers.

        The names of its tasks are sent only if Redis does not have those of this crew.

        Args:
            lent: Those of its tags that are lent.
        """
        args = (worker, slots, int(life_s * 1000), len(queues), *queues, int(lease_s * US), crew.name, TASKS_TTL_S)
        first = [tag for tag in held if tag in lent]
        tags = (len(first), *first, *(tag for tag in held if tag not in lent))
        total, told = self.run("beat", (*args, *tags))
        if not told:
            self._tell(crew)
            total, _ = self.run("beat", (*args, *tags))
        return int(total)

    def waiting_for_slots(self, queues: Sequence[str], most: int = 8) -> set[str]:
        """Lanes that wait for a slot on one of these queues; at most `most` of each."""
        with self.client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zrange(keys.hungry(queue), 0, most - 1)
            return {name.decode() for row in pipe.execute() for name in row}

    def _tell(self, crew: Crew) -> None:
        name = keys.tasks(crew.name)
        with self.client.pipeline(transaction=True) as pipe:
            pipe.sadd(name, "", *map(as_escaped, sorted(crew.tasks)))  # with "", since a set cannot be empty
            pipe.expire(name, TASKS_TTL_S)
            pipe.execute()

    def decline(self, tag: str) -> Literal["back", "over", "none"]:
        """Give back a released call whose task this worker does not know.

        Returns:
            back: it went back. over: its deadline has passed and no living worker of its queue knows its task, so this
            worker must end it. none: no call is out under this tag.
        """
        return _DECLINED[int(self.run("decline", (tag,)))]

    def set_points(self, lane: str, fields: Fields, read: int | None = None) -> int | None:
        """Write fields of a lane, which hold from the next permit on → number of calls released at once.

        Args:
            read: The revision from which they were calculated; None: write them in any case.
        Returns:
            None: the lane has another revision by now, and nothing was written.
        Raises:
            ValueError: a number is NaN or infinite, from which a level would never recover.
        """
        return self._write([_set_points_args(lane, fields, read)])[0]

    def tell(self, lane: str, fields: Fields, read: int | None = None) -> bool:
        """Write what a person sets, which gives the lane a new revision → False: it is not at `read` any more.

        Raises:
            ValueError: as `set_points`.
        """
        return self._write([_set_points_args(lane, fields, read, anew=True)])[0] is not None

    def set_points_of(self, changes: Mapping[str, Write]) -> list[str]:
        """Write fields of several lanes in one round trip, as `set_points` does → lanes that have another revision by
        now, and were not written.

        Raises:
            ValueError: as `set_points`.
        """
        if not changes:
            return []
        done = self._write(
            [_set_points_args(lane, one.fields, one.revision, anew=one.by_person) for lane, one in changes.items()]
        )
        return [lane for lane, released in zip(changes, done, strict=True) if released is None]

    def _write(self, lanes: Sequence[Sequence[Any]]) -> list[int | None]:
        """Calls released at once, by lane; None: it has another revision. All are written before an error is raised."""
        some = [lanes[first : first + _WRITTEN_AT_ONCE] for first in range(0, len(lanes), _WRITTEN_AT_ONCE)]
        told = self.run.each("setpoints", [[part for one in batch for part in one] for batch in some])
        done = [one for batch in told for one in batch]
        for one in done:
            if isinstance(one, bytes):
                raise ResponseError(one.decode("utf-8", "replace"))
        return [None if released < 0 else int(released) for released in done]

    def establish(self, lane: str, fields: Fields) -> bool:
        """Make a lane without calls of its own, a parent of others, with these fields → False: it existed."""
        flat: list[Any] = []
        for name, value in fields.items():
            flat += (name, value)
        return bool(self.run("establish", (lane, *flat)))

    def known(self, call_ids: Sequence[str]) -> list[bool]:
        """Whether each call waits, is out, or has ended within the hour; a call that has lost its place gets it
        again."""
        return [bool(there) for there in self.run("known", call_ids)]

    def lost(self, call_id: str) -> None:
        """Note for `explain` that Redis has forgotten a call, and that its caller got `CallLost`."""
        with self.client.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.LOST, {call_id: time.time()})
            pipe.zremrangebyrank(keys.LOST, 0, -MOST_LOST - 1)
            pipe.expire(keys.LOST, LOST_TTL_S)
            pipe.execute()

    def revoke(self, task_id: str) -> list[TakenOut]:
        """Take a waiting call out of its lane for good → the messages that waited under that id."""
        flat = self.run("revoke", (task_id,))
        return list(map(TakenOut, flat[::2], flat[1::2]))

    def size(self, queue: str) -> int:
        """Calls that wait on a queue, over all lanes (not those that are released)."""
        return int(self.run("size", (queue,)))

    def ready(self, queue: str) -> int:
        """Calls that are released to the crews of a queue and not read by a worker yet."""
        return int(self.run("ready", (queue,)))

    def has_crew(self, queue: str) -> bool:
        """Whether a worker of a crew serves a queue, by the last beats."""
        packed: Any = self.client.hget(keys.CREWS, f"q:{queue}")
        return packed is not None and msgspec.msgpack.decode(packed)[0] > 0

    def purge(self, queue: str) -> int:
        """Delete all calls that wait on a queue or lie ready there → how many."""
        gone, more = 0, 1
        while more:  # in parts, since a million at once would block the server for seconds
            some, more = self.run("purge", (queue, 1000))
            gone += int(some)
        return gone

    def take(self, owner: str, lease_s: float, most: int = 50, also: Iterable[str] = ()) -> Taken | None:
        """The observations since the last take; None: another holds the tuner's duty.

        Args:
            also: Lanes to be returned even without news.
        """
        got = self.run("take", (owner, int(lease_s * 1000), most, *also))
        if got is None:
            return None
        now, more, *views = got
        found = [_view(name.decode(), flat, seen, int(out)) for name, flat, seen, out in views]
        return Taken(int(now) / US, found, bool(more))

    def fields(self, lane: str) -> dict[str, bytes]:
        """The lane's hash, by the stored names of `contracts.lane.FIELDS`."""
        raw: Any = self.client.hgetall(keys.lane(lane))
        return {name.decode(): value for name, value in raw.items()}

    def state(self, lane: str) -> LaneState:
        """The lane's decoded hash: limits, set-points, levels, counters."""
        return LaneState.decode(self.fields(lane))

    def states(self, lanes: Sequence[str], fields: Sequence[str] = ()) -> dict[str, LaneState]:
        """Several lanes, by name, in one round trip.

        Args:
            fields: Fields of their hashes by stored name (`contracts.lane` has useful groups); none: all.
        """
        with self.client.pipeline(transaction=False) as pipe:
            for lane in lanes:
                if fields:
                    pipe.hmget(keys.lane(lane), list(fields))
                else:
                    pipe.hgetall(keys.lane(lane))
            raw = pipe.execute() if lanes else []
        if fields:
            return {lane: _some(fields, values) for lane, values in zip(lanes, raw, strict=True)}
        whole = [{name.decode(): value for name, value in one.items()} for one in raw]
        return {lane: LaneState.decode(one) for lane, one in zip(lanes, whole, strict=True)}

    def health(self, lane: str, task: str = "") -> Health:
        """The lane's view of its provider now, and the record of this function in it."""
        good_us, sent_us, several, mode, escalates, seq, out, share, *record = self.run("health", (lane, task))
        known = {mode.value.encode(): mode for mode in Mode}
        return Health(
            Lately(int(good_us) / US, int(sent_us) / US, float(share), bool(several)),
            known.get(mode, Mode.NORMAL),
            escalates != b"0",
            int(seq),
            int(out),
            retry.TrackRecord(*map(int, record)),
        )

    def names(self) -> list[str]:
        """Every known lane."""
        raw: Any = self.client.zrange(keys.LANES, 0, -1)
        return sorted(name.decode() for name in raw)

    def survey(self, fields: Sequence[str] = (), most: int = 200) -> Iterator[list[LaneSeen]]:
        """All lanes, some at a time, with one script for each batch; lanes that are made or deleted meanwhile may be
        missing.

        Args:
            fields: Of their hashes, by stored name (`contracts.lane` has what belongs together); none: all.
            most: About how many at a time.
        """
        cursor = b"0"
        while True:
            cursor, *rows = self.run("survey", (cursor, most, *fields))
            yield [_lane_seen(row, fields) for row in rows]
            if cursor == b"0":
                return

    def working(self, most: int = 200) -> list[str]:
        """Lanes with calls that wait or are out; only some of them if there are very many."""
        return [name.decode() for name in self.run("working", (most,))]

    def count(self) -> int:
        """How many lanes are known."""
        return int(self.client.zcard(keys.LANES))

    def tuned(self) -> bool:
        """Whether a tuner is running, or was until two seconds ago."""
        return bool(self.client.exists(keys.duty("tune")))

    def record(self, ref: str) -> Record | None:
        """The record of one call; None: there is none, or it cannot be read."""
        packed: Any = self.client.hget(keys.call(ref), "i")
        return Record.decode(ref, packed)

    def out(self, tag: str) -> Released | None:
        """The call that is released under this tag; None: there is none."""
        ref = tag.rpartition(".")[0]
        with self.client.pipeline(transaction=True) as pipe:
            pipe.zscore(keys.LEDGER, tag)
            pipe.hmget(keys.call(ref), ("i", "m"))
            pipe.get(keys.payload(ref))
            score, (packed, message), payload = pipe.execute()
        record = Record.decode(ref, packed)
        if score is None or record is None:
            return None
        return Released(record=record, message=message or b"", payload=payload or b"")

    def set_aside(self, raw: bytes, why: str, queue: str) -> None:
        """Set a message aside that cannot be a call, and count it, so that it is not read again."""
        with self.client.pipeline(transaction=False) as pipe:
            pipe.lpush(keys.MALFORMED, set_aside.encode(raw, why, queue))
            pipe.ltrim(keys.MALFORMED, 0, set_aside.MOST - 1)
            pipe.expire(keys.MALFORMED, set_aside.TTL_S)
            pipe.hincrby(keys.COUNTERS, "malformed", 1)
            pipe.execute()

    def counters(self) -> dict[str, int]:
        """Counters by name."""
        raw: Any = self.client.hgetall(keys.COUNTERS)
        return {name.decode(): int(value) for name, value in raw.items()}


#: The last arguments of finish.lua for a call that is freed, without a result and a message of Celery's.
_NO_RESULT = ("", "", 0, 1)


def _settle_args(told: Settlement) -> tuple[Any, ...]:
    lesson = told.lesson
    return (
        told.tag,
        told.answer,
        told.outbox,
        lesson.word(),
        lesson.observation(),
        int(lesson.gate_s * US),
        told.lane,
        KEEP_ANSWER_S * 1000,
        told.kind,
        lesson.used(),
        lesson.tried(),
        told.keep.again_nanousd if told.keep is not None else USUAL_NANOUSD,
        packed(told.answer) if told.keep is not None and told.keep.packs else b"",
        told.keep.paid_nanousd if told.keep is not None else 0,
        lesson.cost_nanousd,
        told.keep.input_tokens if told.keep is not None else 0,
        told.keep.output_tokens if told.keep is not None else 0,
    )


def _settles_and_frees(settlement: Settlement, tags: Sequence[str]) -> tuple[tuple[str, Sequence[Any]], ...]:
    told = _settle_args(settlement)
    if len(tags) == 1 and tags[0] == settlement.tag:
        return (("finish", (*told, *_NO_RESULT)),)
    return ("settle", told), ("free", tags)


def _set_points_args(lane: str, fields: Fields, read: int | None, *, anew: bool = False) -> list[Any]:
    flat: list[Any] = [lane, "" if read is None else read, int(anew), len(fields)]
    for name, value in fields.items():
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{name}={value} of lane {lane!r}: use a finite number")
        flat += (name, value)
    return flat


def _lane_seen(row: Sequence[Any], fields: Sequence[str]) -> LaneSeen:
    name, used, waits, out, values = row
    state = _some(fields, values) if fields else LaneState.decode(_by_name(values))
    return LaneSeen(lane=name.decode(), used_s=float(used) / US, working=bool(waits or out), state=state)


def _view(lane: str, flat: Sequence[bytes], seen: Sequence[bytes], out: int) -> LaneView:
    state = LaneState.decode(_by_name(flat))
    goods, took_s = state.levels.goods, state.levels.took_us / US
    return LaneView(lane=lane, state=state, seen=list(seen), goods=goods, out=out, took_s=took_s)


def _by_name(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def _some(fields: Sequence[str], values: Sequence[bytes | None]) -> LaneState:
    found = zip(fields, values, strict=True)
    return LaneState.decode({name: value for name, value in found if value is not None})


def _failing(packed: bytes) -> Failing | None:
    if not packed:
        return None
    first_us, sent_us, row, first_sent_us = msgspec.msgpack.decode(packed)
    return Failing(first_us / US, sent_us / US, int(row), first_sent_us / US)


def _begun(state: bytes, *rest: Any) -> Begun:
    """What begin.lua has answered."""
    word = state.decode()
    if word == "go":
        body, tries, number, deadline, accepted, now, ticket, failing, lost, pause = rest
        return Begun(
            state="go",
            body=body,
            tries=tries,
            number=number,
            deadline_s=int(deadline) / US,
            waiting_since_s=int(accepted) / US,
            now_s=(int(now) + int(pause)) / US,
            ticket=ticket,
            failing=_failing(failing),
            lost=int(lost),
            pause_s=int(pause) / US,
        )
    if word == "settled":
        return Begun(state=word, answer=rest[0], body=rest[1])
    if word == "expired":
        body, number, waiting, now, failed = rest
        return Begun(
            state=word,
            body=body,
            number=number,
            waiting_since_s=int(waiting) / US,
            now_s=int(now) / US,
            failed=_failure.decode(failed) if failed else None,
        )
    if word == "poison":
        lost, body, number, now = rest
        at = int(now) / US
        return Begun(state=word, tries=lost, body=body, number=number, now_s=at, waiting_since_s=at)
    return Begun(state=word)
