"""What is in Redis right now: lanes, workers and single calls. Read-only.

A look takes several commands, so a call that moves between two of them may be counted twice or not at all; nothing is
locked. What holds a call back is asked of the scripts that decide it (lua/bar.lua).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, field
from redis import Redis
from redis.exceptions import NoPermissionError, ResponseError

from ratelimit_worker.calls import DIMENSIONS
from ratelimit_worker.contracts.alert import Alert
from ratelimit_worker.contracts.call import PARKED_LISTED_S, REFS, US, Record
from ratelimit_worker.contracts.lane import LaneState, Told
from ratelimit_worker.contracts.rollup import NamedSums
from ratelimit_worker.policy import day
from ratelimit_worker.policy.budget import Standing
from ratelimit_worker.policy.modes import ALL, Pin, governing
from ratelimit_worker.ports import Bar, BarKind
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.alert_states import AlertStates
from ratelimit_worker.stores.budgets import Budgets
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.exchange import ask, pairs
from ratelimit_worker.stores.fitness import product, said
from ratelimit_worker.stores.overdue import OverdueCall, Overdues
from ratelimit_worker.stores.pins import Pins
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.reuse import ReuseMinutes
from ratelimit_worker.stores.scripts import Scripts

log = logging.getLogger(__name__)

#: How many waiting calls of a lane and queue are looked at to find the oldest. They are ordered by class and tenant,
#: and not by age, so there may be an older one; with one class and one tenant, the first is the oldest.
LOOKED_AT = 20
#: Most lanes that a look returns: as many as people can read, and 200 kB as JSON.
MOST_LANES = 100
_AT_ONCE = 200  #: lanes that are read in one round trip
_RANKED = 500  #: lanes that the server ranks in one script, a few milliseconds
MANY_LANES = 1_000  #: with more of them, their order is worth keeping for a while
_MOST_ORDERS = 20
_GROUP = 10_000_000  #: as in rank.lua


class DatabaseLost(NamedTuple):
    """A note that a tracking database was lost, and another was begun."""

    at_s: float  #: seconds since the epoch
    what: str  #: what happened to it


class LaneNow(Struct, frozen=True, kw_only=True):
    """One lane."""

    lane: str
    state: LaneState  #: its hash: limits, set-points, levels, counters
    queues: tuple[str, ...]  #: on which calls of it wait
    waiting: int  #: for a permit
    due_later: int  #: for a time: backoff, countdown
    ready: int  #: released, not begun
    running: int
    reserved_tokens: int  #: by calls that are out
    oldest_s: float | None  #: when the oldest of the waiting calls was accepted; seconds since the epoch
    used_today: Mapping[str, float]  #: requests and tokens of its day, where the lane has a quota
    pin: Pin | None = None  #: None: the law decides
    #: What holds its next call back; empty: nothing, or none waits; None: the server refused to say
    bars: tuple[Bar, ...] | None = ()
    cost: tuple[float, ...] | None = None  #: mean of its first waiting calls, as `Record.cost`; None: none waits
    row: int = 0  #: lanes that wait for it as their parent


class WorkerNow(Struct, frozen=True, kw_only=True):
    """One worker that beats."""

    name: str
    slots: int
    queues: tuple[str, ...]
    held: tuple[str, ...] = ()  #: tags
    crew: str | None = None  #: stands for the tasks that it knows; None: its version does not report them

    @property
    def node(self) -> str:
        """Celery's name of it, such as celery@host; a name that this version did not make, as it is."""
        return self.name.rpartition("/")[0] or self.name


class UnknownTask(Struct, frozen=True, kw_only=True):
    """A task that no worker of a queue knows, although there are workers and all report what they know."""

    queue: str
    task: str
    calls: int  #: parked calls; there may be more behind other calls


class Now(Struct, frozen=True, kw_only=True):
    """The state of everything at one moment."""

    at_s: float  #: seconds since the epoch, Redis clock
    lanes: tuple[LaneNow, ...]
    workers: tuple[WorkerNow, ...]
    counters: Mapping[str, int]
    pins: Mapping[str, Pin] = field(default_factory=dict)  #: pins by lane, also those that have ended
    unknown: tuple[UnknownTask, ...] = ()
    overdue: tuple[OverdueCall, ...] = ()  #: calls that were given up although their functions still run
    #: Mode → number of lanes, of all that match, also those that are left out of `lanes`.
    modes: Mapping[str, int] = field(default_factory=dict)
    skipped: int = 0  #: lanes before the first of `lanes`
    budgets: tuple[Standing, ...] = ()  #: of money: of these lanes, and those of no lane

    @property
    def left_out(self) -> int:
        """Number of lanes that match and are not in `lanes`."""
        return max(0, sum(self.modes.values()) - len(self.lanes))


class CallNow(Struct, frozen=True, kw_only=True):
    """One message of a call, and where it is."""

    record: Record
    place: int | None  #: calls of its lane that go before it; None: it does not wait for a permit
    due_s: float | None  #: the time that it waits for, seconds since the epoch
    lease_end_s: float | None  #: if released: when its lease ends, unless it is renewed
    begun: bool
    settled: bool  #: its answer is safe, and its message not acknowledged yet
    worker: WorkerNow | None  #: the worker that held it at its last beat
    leader: str | None = None  #: the message whose answer it waits for
    bars: tuple[Bar, ...] | None = ()  #: what holds it back while it waits; None: the server refused to say


class Server(Struct, frozen=True, kw_only=True):
    """The relevant settings of a Redis or Valkey server."""

    product: str
    version: str
    maxmemory_policy: str | None  #: None: the server does not say
    appendonly: bool | None
    used_memory: int  #: bytes
    maxmemory: int  #: bytes; 0: no bound
    at_s: float  #: its clock, seconds since the epoch
    silent: bool = False  #: this user may not read its settings


class _Head(Struct, frozen=True):
    """Waiting calls of a lane."""

    waiting: int = 0
    due_later: int = 0
    first: tuple[Record, ...] = ()  #: of each queue

    @property
    def oldest_s(self) -> float | None:
        return min((record.accepted_s for record in self.first), default=None)

    @property
    def cost(self) -> tuple[float, ...] | None:
        """Their mean cost."""
        if not self.first:
            return None
        return tuple(sum(record.cost[i] for record in self.first) / len(self.first) for i in range(len(DIMENSIONS)))


class _Order(Struct, frozen=True):
    """Which lanes a look shows."""

    modes: Mapping[str, int]  #: mode → lanes in it, of all that match
    names: tuple[str, ...]
    skipped: int = 0  #: lanes before these


class Live:
    """The lanes of one Redis server, for reading. All methods raise `StoreUnavailable` if it is away.

    Args:
        time_us: The present time, µs since the epoch; 0: the server's clock. Tests set it.
        order_for_s: How long, in seconds, the choice of the lanes that matter most is kept if there are more than
            `MANY_LANES`, since it takes a look at every lane. 0: it is made anew at each look.
    """

    def __init__(self, client: Redis, time_us: int = 0, *, order_for_s: float = 0.0) -> None:
        self._client, self._time_us, self._order_for_s = client, time_us, order_for_s
        self._orders: dict[tuple[int | None, str, int], tuple[float, _Order]] = {}
        self._run = Scripts(client, time_us)

    def now(
        self, only: Sequence[str] | None = None, most: int | None = MOST_LANES, *, find: str = "", page: int = 0
    ) -> Now:
        """The lanes (or only these), every worker, all counters.

        Args:
            most: At most this many lanes, those that matter most: in a stricter mode, with a pin of their own, with
                calls, used last; None: all.
            find: Only lanes with this text in their names, in upper or lower case.
            page: Page of `most` lanes, from 0; beyond the last one, it is the last.
        Returns:
            Lanes in groups, those that matter most first, and by name within a group; lanes of `only` in that order.
            Workers by name.
        """
        with redis_errors():
            at_s = self._clock_s()
            workers = self._workers(at_s)
            order = _Order({}, tuple(only)) if only is not None else self._choose(most, find, page)
            counters: Any = self._client.hgetall(keys.COUNTERS)
            pins = Pins(self._client).read()
            lanes = tuple(lane for lane in self._lanes(order.names, at_s, pins) if lane.state.there)
            told = {lane.lane: lane.state.told for lane in lanes}
            return Now(
                at_s=at_s,
                lanes=lanes,
                workers=workers,
                counters={name.decode(): int(value) for name, value in counters.items()},
                pins=pins,
                unknown=tuple(self._unknown(workers, at_s)),
                overdue=Overdues(self._client).read(at_s),
                modes=order.modes,
                skipped=order.skipped,
                budgets=Budgets(self._client).standing(told, at_s),
            )

    def forget_order(self) -> None:
        """Let the next look decide anew which lanes matter most: the caller has just changed something."""
        self._orders.clear()

    def _choose(self, most: int | None, find: str, page: int) -> _Order:
        asked = (most, find, page)
        kept = self._orders.get(asked)
        if kept is not None and time.monotonic() - kept[0] < self._order_for_s:
            return kept[1]
        order = self._rank(most, find, page)
        if self._order_for_s and sum(order.modes.values()) > MANY_LANES:
            if len(self._orders) >= _MOST_ORDERS:
                self._orders.clear()
            self._orders[asked] = (time.monotonic(), order)
        return order

    def _rank(self, most: int | None, find: str, page: int) -> _Order:
        part = find.encode("utf-8", "surrogatepass").lower()
        wanted = None if most is None else most * (page + 1)
        cursor, modes, ranked = b"0", dict[str, int](), dict[str, int]()
        order: list[str] = []
        while True:
            last: tuple[Any, Any] = ("", "")
            if wanted is not None and len(order) == wanted:
                last = (ranked[order[-1]], order[-1])
            at_most = _RANKED * 100 if wanted is None else wanted
            cursor, counts, named = self._run("rank", (cursor, _RANKED, at_most, part, *last))
            for mode, lanes in zip(counts[::2], counts[1::2], strict=True):
                modes[mode.decode()] = modes.get(mode.decode(), 0) + int(lanes)
            ranked.update(zip((name.decode() for name in named[::2]), map(int, named[1::2]), strict=True))
            order = sorted({*order, *(name.decode() for name in named[::2])}, key=lambda lane: (-ranked[lane], lane))
            order = order[:wanted]
            if cursor == b"0":
                break
        found, skipped = sum(modes.values()), 0
        if most is not None:
            skipped = most * min(page, max(0, found - 1) // most)
            order = order[skipped : skipped + most]
        names = sorted(order, key=lambda lane: (-(ranked[lane] // _GROUP), lane))
        return _Order(modes=modes, names=tuple(names), skipped=skipped)

    def call(self, call_id: str) -> list[CallNow]:
        """The messages of a call that are in lanes or out, usually one; empty: it is not here."""
        with redis_errors():
            at_s = self._clock_s()
            found = []
            for number in range(REFS):
                record = self._record(call_id if number == 0 else f"{call_id}~{number}")
                if record is not None:
                    found.append(self._stand(record, at_s))
            return found

    def lost_at_s(self, call_id: str) -> float | None:
        """When a caller was told that Redis has forgotten this call, seconds since the epoch; None: never."""
        with redis_errors():
            at: Any = self._client.zscore(keys.LOST, call_id)
            return None if at is None else float(at)

    def bars(self, lane: str, ref: str = "") -> tuple[int | None, tuple[Bar, ...]] | None:
        """How many calls go before it (None: it does not wait for its turn), and all bars that hold it back.

        Args:
            ref: The message; "": the lane's next call, or a call that would come now if none waits.
        Returns:
            None: the server refused (this user may not run functions, or there is no memory to load them).
        """
        with redis_errors():
            try:
                place, *bars = self._run("bar", (lane, ref))
            except ResponseError as error:
                log.warning("bars.unknown", extra={"lane": lane, "error": str(error)})
                return None
        return None if place < 0 else int(place), tuple(_bar(bar) for bar in bars)

    def _bars_of(self, lanes: Sequence[str]) -> dict[str, tuple[Bar, ...] | None]:
        """The same for the next call of each of these lanes, in one round trip."""
        try:
            told = self._run.each("bar", [(lane, "") for lane in lanes]) if lanes else []
        except ResponseError:  # for one of them: ask for each separately
            held = {lane: self.bars(lane) for lane in lanes}
            return {lane: None if one is None else one[1] for lane, one in held.items()}
        return {lane: tuple(_bar(bar) for bar in bars) for lane, (_, *bars) in zip(lanes, told, strict=True)}

    def database_lost(self) -> DatabaseLost | None:
        """Whether a tracking database was lost in the last day; None: none was."""
        with redis_errors():
            found: Any = self._client.hgetall(keys.DATABASE_LOST)
        return DatabaseLost(float(found[b"at"]), found[b"what"].decode()) if found else None

    def reuse(self, since_s: float) -> list[NamedSums]:
        """What reused answers have saved in minutes that begin from `since_s` on, if no recorder has taken them yet."""
        return ReuseMinutes(self._client).since(since_s)

    def alerts(self) -> list[Alert]:
        """The open alerts, newest first."""
        return AlertStates(self._client).read().open

    def alerts_waiting(self) -> int:
        """Notices that the web hook has not accepted yet."""
        with redis_errors():
            return int(self._client.xlen(keys.ALERTS))

    def server(self) -> Server:
        """The server's version, settings and memory."""
        with redis_errors():
            try:
                info: Any = self._client.info()
            except NoPermissionError:
                return self._greeted()
            return Server(
                product="Valkey" if "valkey_version" in info else "Redis",
                version=str(info.get("valkey_version") or info.get("redis_version") or "0"),
                maxmemory_policy=self._policy(info),
                appendonly=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
                used_memory=int(info.get("used_memory", 0)),
                maxmemory=int(info.get("maxmemory", 0)),
                at_s=self._clock_s(),
            )

    def _greeted(self) -> Server:
        """The same from the reply to HELLO, for a user that may not read the rest."""
        pool = self._client.connection_pool
        connection: Any = pool.get_connection()
        told = said(getattr(connection, "handshake_metadata", None) or {})
        pool.release(connection)
        return Server(
            product=product(told["server"]),
            version=told["version"] or "of unknown version",
            maxmemory_policy=None,
            appendonly=None,
            used_memory=0,
            maxmemory=0,
            at_s=self._clock_s(),
            silent=True,
        )

    def _policy(self, info: Mapping[str, Any]) -> str | None:
        told = info.get("maxmemory_policy")
        return None if told is None else str(told)

    def _stand(self, record: Record, at_s: float) -> CallNow:
        wait_key = keys.waiting(record.lane, record.queue)
        with self._client.pipeline(transaction=True) as pipe:
            pipe.zscore(wait_key, record.ref)
            pipe.zscore(keys.due(record.lane, record.queue), record.ref)
            pipe.zscore(keys.LEDGER, record.tag)
            pipe.zscore(keys.out(record.lane), record.tag)
            pipe.exists(keys.settled(record.ref))
            pipe.zscore(keys.followers(record.claim), record.ref)
            pipe.get(keys.claim(record.claim))
            score, due, lease_end, begun, settled, follows, leader = pipe.execute()
        waits = score is not None or due is not None or follows is not None
        found = self.bars(record.lane, record.ref) if waits else (None, ())
        place, bars = (None, None) if found is None else found
        holder = None
        if lease_end is not None:
            holder = next((worker for worker in self._workers(at_s) if record.tag in worker.held), None)
        return CallNow(
            record=record,
            place=place,
            due_s=None if due is None else due / US,
            lease_end_s=None if lease_end is None else lease_end / US,
            begun=bool(begun),
            settled=bool(settled),
            worker=holder,
            leader=None if follows is None or leader is None else leader.decode(),
            bars=bars,
        )

    def _unknown(self, workers: Sequence[WorkerNow], at_s: float) -> Iterator[UnknownTask]:
        rows: Any = self._client.smembers(keys.PARKED)
        for row in sorted(rows):
            queue, task = _queue_and_task(row)
            since: Any = f"{(at_s - PARKED_LISTED_S) * US:.0f}"
            calls: Any = self._client.zcount(keys.parked(queue, task), since, "+inf")
            if calls and self._knows(workers, queue, task) is False:
                yield UnknownTask(queue=queue, task=_unescaped(task), calls=int(calls))

    def _knows(self, workers: Sequence[WorkerNow], queue: str, task: str) -> bool | None:
        """Whether a worker of the queue knows a task, by its name as in JSON; None: there is no worker, or it does not
        report."""
        crews = {worker.crew for worker in workers if queue in worker.queues}
        if not crews or None in crews:
            return None
        if keys.ALL in crews:
            return True
        with self._client.pipeline(transaction=False) as pipe:
            for crew in crews:
                pipe.sismember(keys.tasks(str(crew)), task)
            return any(pipe.execute())

    def _lanes(self, names: Sequence[str], at_s: float, pins: Mapping[str, Pin]) -> Iterator[LaneNow]:
        for start in range(0, len(names), _AT_ONCE):
            yield from self._some_lanes(names[start : start + _AT_ONCE], at_s, pins)

    def _some_lanes(self, names: Sequence[str], at_s: float, pins: Mapping[str, Pin]) -> Iterator[LaneNow]:
        asked: list[tuple[Any, ...]] = []
        for lane in names:
            asked += (
                ("HGETALL", keys.lane(lane)),
                ("SMEMBERS", keys.queues(lane)),
                ("ZRANGE", keys.out(lane), 0, -1, "WITHSCORES"),
                ("ZCARD", keys.turns(lane)),
            )
        raw = ask(self._client, asked)
        out = {lane: pairs(raw[4 * i + 2]) for i, lane in enumerate(names)}
        reserved = self._reserved(out)
        heads = self._heads({lane: _sorted(raw[4 * i + 1]) for i, lane in enumerate(names)})
        states = {
            lane: LaneState.decode({name.decode(): value for name, value in pairs(raw[4 * i])})
            for i, lane in enumerate(names)
        }
        used = self._used_today({lane: state.told for lane, state in states.items()}, at_s)
        bars = self._bars_of([lane for lane, head in heads.items() if head.waiting or head.due_later])
        for i, lane in enumerate(names):
            head, state = heads[lane], states[lane]
            pin = governing(pins.get(lane), pins.get(ALL), at_s)
            yield LaneNow(
                lane=lane,
                state=state,
                queues=_sorted(raw[4 * i + 1]),
                waiting=head.waiting,
                due_later=head.due_later,
                ready=sum(float(begun) == 0 for _, begun in out[lane]),
                running=sum(float(begun) > 0 for _, begun in out[lane]),
                reserved_tokens=reserved[lane],
                oldest_s=head.oldest_s,
                used_today=used.get(lane, {}),
                # Until the tuner has looked at the lane, it is in the state of the previous pin.
                pin=pin if pin is not None and state.points.pin == pin.id else None,
                bars=bars.get(lane, ()),
                cost=head.cost,
                row=int(raw[4 * i + 3]),
            )

    def _reserved(self, out: Mapping[str, Sequence[tuple[bytes, Any]]]) -> dict[str, int]:
        """Lane → tokens that its calls which are out have reserved."""
        refs = {lane: [tag.decode().rpartition(".")[0] for tag, _ in tags] for lane, tags in out.items()}
        records = self._records(sorted({ref for some in refs.values() for ref in some}))
        return {lane: sum(records[ref].tokens for ref in some if ref in records) for lane, some in refs.items()}

    def _used_today(self, told: Mapping[str, Told], at_s: float) -> dict[str, dict[str, float]]:
        names = [name for name, one in told.items() if one.limits.rpd or one.limits.tpd]
        with self._client.pipeline(transaction=False) as pipe:
            for lane in names:
                pipe.hgetall(keys.day(lane, at_s, day.offset_s(told[lane].day_steps, at_s)))
            raw = pipe.execute() if names else []
        return {
            lane: {name.decode(): float(value) for name, value in one.items()}
            for lane, one in zip(names, raw, strict=True)
        }

    def _heads(self, queues_of: Mapping[str, Sequence[str]]) -> dict[str, _Head]:
        stands = [(lane, queue) for lane, queues in queues_of.items() for queue in queues]
        found = dict.fromkeys(queues_of, _Head())
        if not stands:
            return found
        asked: list[tuple[Any, ...]] = []
        for lane, queue in stands:
            asked += (
                ("ZCARD", keys.waiting(lane, queue)),
                ("ZCARD", keys.due(lane, queue)),
                ("ZRANGE", keys.waiting(lane, queue), 0, LOOKED_AT - 1),
            )
        raw = ask(self._client, asked)
        refs = {stand: [ref.decode() for ref in raw[3 * i + 2]] for i, stand in enumerate(stands)}
        records = self._records([ref for some in refs.values() for ref in some])
        for i, (lane, queue) in enumerate(stands):
            first = tuple(records[ref] for ref in refs[lane, queue] if ref in records)
            head = found[lane]
            waiting, due_later = int(raw[3 * i]), int(raw[3 * i + 1])
            found[lane] = _Head(head.waiting + waiting, head.due_later + due_later, head.first + first)
        return found

    def _records(self, refs: Sequence[str]) -> dict[str, Record]:
        raw = ask(self._client, [("HGET", keys.call(ref), "i") for ref in refs])
        records = map(Record.decode, refs, raw)
        return {record.ref: record for record in records if record is not None}

    def _record(self, ref: str) -> Record | None:
        return self._records([ref]).get(ref)

    def _workers(self, at_s: float) -> tuple[WorkerNow, ...]:
        names: Any = self._client.zrangebyscore(keys.WORKERS, int(at_s * US), "+inf")
        if not names:
            return ()
        slots: Any = self._client.hmget(keys.SLOTS, names)
        held: Any = self._client.hmget(keys.HELD, names)
        crews: Any = self._client.hmget(keys.CREW, names)
        found = []
        for name, packed, tags, known in zip(names, slots, held, crews, strict=True):
            if known is not None or packed is not None:
                crew, count, *queues = (
                    msgspec.msgpack.decode(known) if known else (None, *msgspec.msgpack.decode(packed))
                )
                found.append(
                    WorkerNow(
                        name=name.decode(),
                        slots=int(count),
                        queues=tuple(queues),
                        held=tuple(msgspec.msgpack.decode(tags)) if tags else (),
                        crew=crew,
                    )
                )
        return tuple(sorted(found, key=lambda worker: worker.name))

    def _clock_s(self) -> float:
        return self._time_us / US if self._time_us else redis_now_s(self._client)


def _queue_and_task(row: bytes) -> tuple[str, str]:
    """What crews.lua writes as one text: length of the queue's name, queue, task as JSON has it."""
    size, _, rest = row.partition(b":")
    return rest[: int(size)].decode(), rest[int(size) + 1 :].decode()


def _unescaped(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:  # cut at a quote
        return name


def _sorted(members: Any) -> tuple[str, ...]:
    return tuple(sorted(member.decode() for member in members))


def _bar(raw: Sequence[Any]) -> Bar:
    kind, until, detail, number, *parent = raw
    until_us, queue = int(until), ""
    if kind.decode() == BarKind.TASK:
        queue, task = _queue_and_task(detail)
        detail = _unescaped(task).encode()
    return Bar(
        kind=BarKind(kind.decode()),
        until_s=until_us / US if until_us > 0 else None,
        event=until_us < 0,
        detail=detail.decode(),
        number=int(number),
        queue=queue,
        parent=_bar(parent[0]) if parent else None,
    )
