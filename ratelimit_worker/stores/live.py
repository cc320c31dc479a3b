"""What is in Redis right now? Lanes, workers and single calls as the scripts keep them, read and never written.

A look takes several commands, so what moves between two of them may be counted twice or not at all; nothing is held up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
from redis import Redis
from redis.exceptions import RedisError

from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import as_array

US = 1_000_000
PARKED_STALE_S = 60.0  #: crew.STALE_US in lua/shared/crews.lua
_TASK = re.compile(rb'"task": "([^"]*)"')
#: Waiting calls of a lane and queue that are looked at to find the oldest. Places follow classes and tenants, not age,
#: so an older one may stand further back; with one class and tenant the first is the oldest.
LOOKED_AT = 20
#: Messages of one task id that may be in lanes at once (REFS in lua/shared/record.lua).
REFS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The record of one call (the array at the top of lua/shared/record.lua)."""

    ref: str
    lane: str
    queue: str
    priority: str
    tenant: str
    accepted_s: float
    deadline_s: float
    release: int  #: number of its last release; with `ref` the tag
    tries: int  #: attempts that cost a try
    tokens: int  #: that it reserves; once it is answered, those that it took
    lost: int  #: deliveries whose worker died
    since_s: float  #: waits since
    number: int  #: attempts begun
    claim: str = ""  #: fingerprint, where it shares its answer

    @property
    def tag(self) -> str:
        """Its name in the ledger, if it is released."""
        return f"{self.ref}.{self.release}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneNow:
    """One lane."""

    lane: str
    fields: Mapping[str, bytes]  #: its hash: set-points, levels, counters
    queues: tuple[str, ...]  #: on which calls of it wait
    waiting: int  #: for a permit
    due_later: int  #: for a time: backoff, countdown
    ready: int  #: released, not begun
    running: int
    reserved_tokens: int  #: by those that are out, ready or running
    oldest_s: float | None  #: when the oldest of the waiting calls was accepted; seconds since the epoch
    used_today: Mapping[str, float]  #: requests and tokens of the UTC day, where the lane has a quota


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerNow:
    """One worker that beats."""

    name: str
    slots: int
    queues: tuple[str, ...]
    held: tuple[str, ...] = ()  #: tags
    crew: str | None = None  #: names the tasks that it knows; None: it is of a version that does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownTask:
    """A task that none of the workers of a queue knows, though some live and all tell what they know."""

    queue: str
    task: str
    calls: int  #: that were found to wait for a worker that knows it; more may stand behind others


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """All of it at one moment."""

    at_s: float  #: seconds since the epoch, Redis clock
    lanes: tuple[LaneNow, ...]
    workers: tuple[WorkerNow, ...]
    counters: Mapping[str, int]
    unknown: tuple[UnknownTask, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CallNow:
    """One message of a call, and where it stands."""

    record: Record
    place: int | None  #: calls of its lane that go before it; None: it does not wait for a permit
    due_s: float | None  #: it waits for this time; seconds since the epoch
    lease_end_s: float | None  #: released: until when, unless it is renewed
    begun: bool
    settled: bool  #: its answer is safe, and its message not acknowledged yet
    worker: WorkerNow | None  #: that held it at its last beat
    leader: str | None = None  #: it waits for the answer of this message
    unknown: str | None = None  #: its task, which no living worker of its queue knows


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What matters of a Redis or Valkey server's settings."""

    product: str
    version: str
    maxmemory_policy: str | None  #: None: the server does not tell
    appendonly: bool | None
    used_memory: int  #: bytes
    maxmemory: int  #: bytes; 0: no bound
    at_s: float  #: its clock, seconds since the epoch


@contextmanager
def redis_errors() -> Iterator[None]:
    """redis-py's errors as ours.

    Raises:
        StoreUnavailable: Redis is away, full or read-only.
    """
    try:
        yield
    except (RedisError, OSError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreUnavailable(f"Redis: {words}") from error


class Live:
    """The lanes of one Redis server, to be looked at. All methods raise `StoreUnavailable` where it is away."""

    def __init__(self, client: Redis, key_prefix: str = "") -> None:
        self._client, self._prefix = client, key_prefix

    def now(self, only: Sequence[str] | None = None) -> Now:
        """Every lane (or only these), every worker, all counters.

        Returns:
            Lanes by name, workers by name.
        """
        with redis_errors():
            at_s = self._clock_s()
            workers = self._workers(at_s)
            names = sorted(self._names()) if only is None else list(only)
            counters: Any = self._client.hgetall(self._key(keys.COUNTERS))
            return Now(
                at_s=at_s,
                lanes=tuple(lane for lane in self._lanes(names, at_s) if lane.fields),
                workers=workers,
                counters={name.decode(): int(value) for name, value in counters.items()},
                unknown=tuple(self._unknown(workers, at_s)),
            )

    def call(self, call_id: str) -> list[CallNow]:
        """The messages of a call that are in lanes or out, usually one; empty: it is not here (any more)."""
        with redis_errors():
            at_s = self._clock_s()
            found = []
            for number in range(REFS):
                record = self._record(call_id if number == 0 else f"{call_id}~{number}")
                if record is not None:
                    found.append(self._stand(record, at_s))
            return found

    def alerts_waiting(self) -> int:
        """Alerts that the web hook has not taken yet."""
        with redis_errors():
            return int(self._client.xlen(self._key(keys.ALERTS)))

    def server(self) -> Server:
        """The server itself."""
        with redis_errors():
            info: Any = self._client.info()
            return Server(
                product="Valkey" if "valkey_version" in info else "Redis",
                version=str(info.get("valkey_version") or info.get("redis_version") or "0"),
                maxmemory_policy=self._policy(info),
                appendonly=bool(info["aof_enabled"]) if "aof_enabled" in info else None,
                used_memory=int(info.get("used_memory", 0)),
                maxmemory=int(info.get("maxmemory", 0)),
                at_s=self._clock_s(),
            )

    def _policy(self, info: Mapping[str, Any]) -> str | None:
        told = info.get("maxmemory_policy")
        return None if told is None else str(told)

    def _stand(self, record: Record, at_s: float) -> CallNow:
        wait_key = self._key(keys.waiting(record.lane, record.queue))
        with self._client.pipeline(transaction=True) as pipe:
            pipe.zscore(wait_key, record.ref)
            pipe.zscore(self._key(keys.due(record.lane, record.queue)), record.ref)
            pipe.zscore(self._key(keys.LEDGER), record.tag)
            pipe.zscore(self._key(f"{keys.NAMESPACE}out:{record.lane}"), record.tag)
            pipe.exists(self._key(keys.settled(record.ref)))
            pipe.smembers(self._key(f"{keys.NAMESPACE}queues:{record.lane}"))
            pipe.zscore(self._key(keys.followers(record.claim)), record.ref)
            pipe.get(self._key(keys.claim(record.claim)))
            pipe.hget(self._key(keys.call(record.ref)), "m")
            score, due, lease_end, begun, settled, queues, follows, leader, message = pipe.execute()
        task = _task_of(message or b"")
        waits = (score is not None or due is not None) and not settled
        workers = self._workers(at_s)
        place = None
        if score is not None:
            with self._client.pipeline(transaction=False) as pipe:
                for queue in queues:
                    pipe.zcount(self._key(keys.waiting(record.lane, queue.decode())), "-inf", f"({score:.0f}")
                place = sum(pipe.execute())
        holder = None
        if lease_end is not None:
            holder = next((worker for worker in workers if record.tag in worker.held), None)
        return CallNow(
            record=record,
            place=place,
            due_s=None if due is None else due / US,
            lease_end_s=None if lease_end is None else lease_end / US,
            begun=begun == 1,
            settled=bool(settled),
            worker=holder,
            leader=None if follows is None or leader is None else leader.decode(),
            unknown=_unescaped(task) if task and waits and self._knows(workers, record.queue, task) is False else None,
        )

    def _unknown(self, workers: Sequence[WorkerNow], at_s: float) -> Iterator[UnknownTask]:
        rows: Any = self._client.smembers(self._key(keys.PARKED))
        for row in sorted(rows):
            size, _, rest = row.partition(b":")
            queue, task = rest[: int(size)].decode(), rest[int(size) + 1 :].decode()
            since: Any = f"{(at_s - PARKED_STALE_S) * US:.0f}"
            calls: Any = self._client.zcount(self._key(keys.parked(queue, task)), since, "+inf")
            if calls and self._knows(workers, queue, task) is False:
                yield UnknownTask(queue=queue, task=_unescaped(task), calls=int(calls))

    def _knows(self, workers: Sequence[WorkerNow], queue: str, task: str) -> bool | None:
        """Whether a worker of the queue knows a task, by its name as JSON has it; None: nobody is there, or tells."""
        crews = {worker.crew for worker in workers if queue in worker.queues}
        if not crews or None in crews:
            return None
        if keys.ALL in crews:
            return True
        with self._client.pipeline(transaction=False) as pipe:
            for crew in crews:
                pipe.sismember(self._key(keys.tasks(str(crew))), task)
            return any(pipe.execute())

    def _lanes(self, names: Sequence[str], at_s: float) -> Iterator[LaneNow]:
        if not names:
            return
        with self._client.pipeline(transaction=False) as pipe:
            for lane in names:
                pipe.hgetall(self._key(keys.lane(lane)))
                pipe.smembers(self._key(f"{keys.NAMESPACE}queues:{lane}"))
                pipe.zrange(self._key(f"{keys.NAMESPACE}out:{lane}"), 0, -1, withscores=True)
            raw = pipe.execute()
        out = {lane: raw[3 * i + 2] for i, lane in enumerate(names)}
        reserved = self._reserved(out)
        heads = self._heads({lane: _sorted(raw[3 * i + 1]) for i, lane in enumerate(names)})
        used = self._used_today([lane for i, lane in enumerate(names) if b"bounds" in raw[3 * i]], at_s)
        for i, lane in enumerate(names):
            waiting, due_later, oldest_s = heads[lane]
            yield LaneNow(
                lane=lane,
                fields={name.decode(): value for name, value in raw[3 * i].items()},
                queues=_sorted(raw[3 * i + 1]),
                waiting=waiting,
                due_later=due_later,
                ready=sum(begun == 0 for _, begun in out[lane]),
                running=sum(begun == 1 for _, begun in out[lane]),
                reserved_tokens=reserved[lane],
                oldest_s=oldest_s,
                used_today=used.get(lane, {}),
            )

    def _reserved(self, out: Mapping[str, Sequence[tuple[bytes, float]]]) -> dict[str, int]:
        """Lane → tokens that its calls which are out have reserved; there are no more of them than slots."""
        refs = {lane: [tag.decode().rpartition(".")[0] for tag, _ in tags] for lane, tags in out.items()}
        records = self._records(sorted({ref for some in refs.values() for ref in some}))
        return {lane: sum(records[ref].tokens for ref in some if ref in records) for lane, some in refs.items()}

    def _used_today(self, names: Sequence[str], at_s: float) -> dict[str, dict[str, float]]:
        with self._client.pipeline(transaction=False) as pipe:
            for lane in names:
                pipe.hgetall(self._key(keys.day(lane, at_s)))
            raw = pipe.execute() if names else []
        return {
            lane: {name.decode(): float(value) for name, value in one.items()}
            for lane, one in zip(names, raw, strict=True)
        }

    def _heads(self, queues_of: Mapping[str, Sequence[str]]) -> dict[str, tuple[int, int, float | None]]:
        """Lane → (waiting, due later, when the oldest was accepted)."""
        pairs = [(lane, queue) for lane, queues in queues_of.items() for queue in queues]
        found: dict[str, tuple[int, int, float | None]] = dict.fromkeys(queues_of, (0, 0, None))
        if not pairs:
            return found
        with self._client.pipeline(transaction=False) as pipe:
            for lane, queue in pairs:
                pipe.zcard(self._key(keys.waiting(lane, queue)))
                pipe.zcard(self._key(keys.due(lane, queue)))
                pipe.zrange(self._key(keys.waiting(lane, queue)), 0, LOOKED_AT - 1)
            raw = pipe.execute()
        refs = {pair: raw[3 * i + 2] for i, pair in enumerate(pairs)}
        records = self._records([ref.decode() for some in refs.values() for ref in some])
        for i, (lane, queue) in enumerate(pairs):
            accepted = [records[ref.decode()].accepted_s for ref in refs[lane, queue] if ref.decode() in records]
            waiting, due_later, oldest_s = found[lane]
            oldest_s = min([*accepted, *([] if oldest_s is None else [oldest_s])], default=None)
            found[lane] = (waiting + int(raw[3 * i]), due_later + int(raw[3 * i + 1]), oldest_s)
        return found

    def _records(self, refs: Sequence[str]) -> dict[str, Record]:
        with self._client.pipeline(transaction=False) as pipe:
            for ref in refs:
                pipe.hget(self._key(keys.call(ref)), "i")
            raw = pipe.execute() if refs else []
        return {ref: _record(ref, packed) for ref, packed in zip(refs, raw, strict=True) if packed is not None}

    def _record(self, ref: str) -> Record | None:
        return self._records([ref]).get(ref)

    def _workers(self, at_s: float) -> tuple[WorkerNow, ...]:
        names: Any = self._client.zrangebyscore(self._key(f"{keys.NAMESPACE}workers"), int(at_s * US), "+inf")
        if not names:
            return ()
        slots: Any = self._client.hmget(self._key(f"{keys.NAMESPACE}slots"), names)
        held: Any = self._client.hmget(self._key(f"{keys.NAMESPACE}held"), names)
        crews: Any = self._client.hmget(self._key(keys.CREW), names)
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

    def _names(self) -> list[str]:
        raw: Any = self._client.zrange(self._key(keys.LANES), 0, -1)
        return [name.decode() for name in raw]

    def _clock_s(self) -> float:
        seconds, micros = self._client.time()
        return float(seconds) + float(micros) / US

    def _key(self, name: str) -> str:
        return self._prefix + name


def _task_of(message: bytes) -> str | None:
    found = _TASK.search(message)  # as crew.task_of in lua/shared/crews.lua
    return found.group(1).decode() if found else None


def _unescaped(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"'))
    except ValueError:  # cut at a quote
        return name


def _sorted(members: Any) -> tuple[str, ...]:
    return tuple(sorted(member.decode() for member in members))


def _record(ref: str, packed: bytes) -> Record:
    values = as_array(msgspec.msgpack.decode(packed, strict=False))
    return Record(
        ref=ref,
        lane=values[1],
        queue=values[2],
        priority=values[4],
        tenant=values[5],
        tokens=int(values[6][1]),
        accepted_s=values[7] / US,
        deadline_s=values[8] / US,
        release=int(values[9]),
        tries=int(values[10]),
        lost=int(values[11]),
        since_s=values[16] / US,
        number=int(values[17]),
        claim=(values[20] or "") if len(values) > 20 else "",
    )
