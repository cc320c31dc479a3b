"""The outbox: a Redis stream of outcomes, from which an entry is removed once it is in the tracking database.

settle.lua appends to it, so an outcome is in the outbox exactly when its answer is safe. The format is
`XADD <key> MAXLEN ~ <max_len> * a <encode(attempt)>`. The recorder reads through a consumer group: entries that a dead
recorder had read go to the next one, and entries that could not be recorded are given back.

Mode changes are sent in the same way, in a field of their own. The field `a` of such an entry says "of a newer
version", so that a recorder that only knows attempts leaves it to one that knows more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, TypeVar, cast

import msgspec
import redis
from redis.exceptions import RedisError, ResponseError

from ratelimit_worker.calls import SCHEMA_VERSION, Attempt, ModeChange
from ratelimit_worker.contracts.rollup import NamedSums
from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.outage import cause_of
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.overflow import Overflow
from ratelimit_worker.stores.reach import redis_errors
from ratelimit_worker.stores.storable import storable, storable_change

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Entries the outbox holds at most, as many as memory can bear: at 50 attempts a second the database may be away for 27
#: hours, which then takes 2 GB (measured: 394 bytes an ordinary entry). From nine tenths on only sums are kept of the
#: oldest (`fold`). The scripts trim at the same number, in case no recorder runs.
MAX_LEN = 5_000_000
#: Entries set aside that are kept for a person to look at, and the bytes kept of each.
MAX_BAD = 1_000
MAX_BAD_BYTES = 4_096

FIELD = b"a"
CHANGE_FIELD = b"c"
GROUP = "recorder"
#: One name for all recorders: entries are claimed by age and acknowledged by the group, so separate names have no use,
#: and would pile up in the group with every restart.
CONSUMER = "recorder"
#: Age at which entries that were read and not committed count as a dead recorder's; a living one renews its entries
#: three times in that time. Entries of a frozen recorder may be recorded twice, which the database's key prevents.
CLAIM_IDLE_MS = 3_000
_NEARLY = 0.9
LOST_TTL_S = 86_400
_NEWER_NOTE_EVERY_S = 60.0


class Undecodable(ValueError):
    """The bytes are not an attempt of any version known here. `str()` has the reason, and not the content."""


class NewerVersion(ValueError):
    """The bytes were written by a newer version, which will read them."""


class _Versioned(msgspec.Struct):
    v: int


_NAMES = tuple(f.name for f in fields(Attempt))
_DEFAULTS = tuple(f.default for f in fields(Attempt))
_values_of = attrgetter(*_NAMES)
_encode = msgspec.msgpack.Encoder().encode
_version = msgspec.msgpack.Decoder(_Versioned)
_attempt = msgspec.msgpack.Decoder(Attempt)
_change = msgspec.msgpack.Decoder(ModeChange)
#: What a recorder that only knows attempts finds in the field of an attempt: version 1 leaves version 2 alone.
_NOT_FOR_VERSION_1 = _encode({"v": 2})


def encode(attempt: Attempt) -> bytes:
    """The attempt as one MessagePack map with its schema version `v`; fields at their default are left out.

    Never fails for odd values, since settling depends on it. Invalid Unicode and numbers beyond 64 bits are changed as
    in `storable`.
    """
    try:
        return _encode(_to_map(attempt))
    except (UnicodeEncodeError, OverflowError):
        return _encode(_to_map(storable(attempt)))


def decode(data: bytes) -> Attempt:
    """The attempt in `data`; fields unknown here are ignored.

    Raises:
        NewerVersion: A newer version wrote it.
        Undecodable: It is not an attempt.
    """
    return _decode(data, _attempt)


def encode_change(change: ModeChange) -> bytes:
    """The mode change as one MessagePack map with its schema version `v`; odd values are changed by
    `storable_change`."""
    return _encode({"v": SCHEMA_VERSION, **msgspec.to_builtins(storable_change(change))})


def decode_change(data: bytes) -> ModeChange:
    """The mode change in `data`; fields unknown here are ignored.

    Raises:
        NewerVersion: A newer version wrote it.
        Undecodable: It is not a mode change.
    """
    return _decode(data, _change)


def _decode(data: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    try:
        version = _version.decode(data).v
        if version > SCHEMA_VERSION:
            raise NewerVersion(f"schema version {version}, known here: {SCHEMA_VERSION}")
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(str(error)) from error


def _to_map(attempt: Attempt) -> dict[str, Any]:
    data: dict[str, Any] = {"v": SCHEMA_VERSION}
    for name, default, value in zip(_NAMES, _DEFAULTS, _values_of(attempt), strict=True):
        if value is not default and (default is MISSING or value != default):  # mostly it is the default itself
            data[name] = value
    return data


class Outbox:
    """The stream at `key` of a client that returns bytes, not text.

    All methods raise `StoreUnavailable` where Redis is away, full or read-only.

    Args:
        max_len: Most entries.
        claim_idle_ms: Age at which entries that were read and not committed go to the next reader.
    Raises:
        ConfigurationError: The client decodes responses, so it cannot read the entries.
    """

    def __init__(
        self, client: redis.Redis, key: str = keys.OUTBOX, *, max_len: int = MAX_LEN, claim_idle_ms: int = CLAIM_IDLE_MS
    ) -> None:
        if client.connection_pool.connection_kwargs.get("decode_responses"):
            raise ConfigurationError("the outbox holds bytes: its Redis client must not set decode_responses")
        self._client, self._key = client, key
        self._bad_key, self._bad_count_key = keys.bad(key), keys.bad_count(key)
        self._max_len, self._claim_idle_ms = max_len, claim_idle_ms
        self._claim_from: bytes | str = "0-0"
        self._newer_noted_s = float("-inf")
        self._overflow = Overflow(client, key, GROUP)

    def append(self, attempts: Sequence[Attempt]) -> None:
        """Append attempts, all or none. Usually settle.lua does this; this method is for tests and other writers."""
        if not attempts:
            return
        with redis_errors("outbox"), self._client.pipeline(transaction=True) as pipe:
            for attempt in attempts:
                pipe.xadd(self._key, {FIELD: encode(attempt)}, maxlen=self._max_len, approximate=True)
            pipe.execute()

    def append_mode_change(self, change: ModeChange) -> None:
        """Append a mode change, together with its notice; if it is appended twice it is recorded once."""
        from ratelimit_worker.stores.alerts import put_change  # loads the rules of alerts, which few processes need

        entry: dict[Any, Any] = {FIELD: _NOT_FOR_VERSION_1, CHANGE_FIELD: encode_change(change)}
        with redis_errors("outbox"), self._client.pipeline(transaction=True) as pipe:
            pipe.xadd(self._key, entry, maxlen=self._max_len, approximate=True)
            put_change(pipe, change)
            pipe.execute()

    def read(self, max_count: int, block_ms: int = 0) -> list[tuple[str, Attempt | ModeChange]]:
        """The next entries, at most `max_count`, as (id, attempt or mode change).

        Entries of dead readers and entries that were given back come first. Entries that cannot be decoded are set
        aside; those of a newer version are left for a worker of that version. So the list may be empty although there
        were entries.

        Args:
            block_ms: How long to wait for an entry, below the client's socket timeout; 0: not at all.
        """
        with redis_errors("outbox"):
            try:
                entries = self._claim(max_count) or self._read_new(max_count, block_ms)
            except ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                # First use, or the server has lost its data. "0": also read entries from before the group was made.
                self._create_group()
                entries = self._read_new(max_count, block_ms)
            return self._decoded(entries)

    @contextmanager
    def holding(self, entry_ids: Sequence[str]) -> Iterator[None]:
        """Renew these entries until the block ends, so that no other reader claims them."""
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(list(entry_ids), over), name="rlw-outbox", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()  # otherwise it could claim entries that are given back next

    def _renew(self, entry_ids: Sequence[str], over: threading.Event) -> None:
        while not over.wait(self._claim_idle_ms / 3000):
            try:
                self._client.xclaim(self._key, GROUP, CONSUMER, 0, list(entry_ids), justid=True)
            except RedisError as error:
                # it is tried again; at worst they are recorded twice
                log.info("outbox.not_renewed", extra={"cause": cause_of(error)})

    def tell_lost(self, what: str) -> None:
        """Note for a day that a tracking database was lost, for `doctor` and `status`."""
        with redis_errors("outbox"), self._client.pipeline(transaction=True) as pipe:
            pipe.hset(keys.DATABASE_LOST, mapping={"at": time.time(), "what": what})
            pipe.expire(keys.DATABASE_LOST, LOST_TTL_S)
            pipe.execute()

    def commit(self, entry_ids: Sequence[str]) -> None:
        """Remove entries that are safe in the database."""
        if not entry_ids:
            return
        with redis_errors("outbox"), self._client.pipeline(transaction=True) as pipe:
            pipe.xack(self._key, GROUP, *entry_ids)
            pipe.xdel(self._key, *entry_ids)
            pipe.execute()

    def give_back(self, entry_ids: Sequence[str]) -> None:
        """Give entries to the next reader at once, and not only when they have become old."""
        if not entry_ids:
            return
        with redis_errors("outbox"):
            self._client.xclaim(self._key, GROUP, CONSUMER, 0, list(entry_ids), idle=self._claim_idle_ms, justid=True)
        self._claim_from = "0-0"

    def set_aside(self, entry_id: str, why: str) -> None:
        """Move an entry to the bounded list `<key>:bad`; it is counted and logged."""
        with redis_errors("outbox"):
            found = cast("list[tuple[bytes, dict[bytes, bytes]]]", self._client.xrange(self._key, entry_id, entry_id))
            for _, values in found:
                self._set_aside(entry_id, values, why)

    def backlog(self) -> int:
        """Entries that are not in the database yet."""
        with redis_errors("outbox"):
            return self._client.xlen(self._key)

    def age_s(self, now_s: float) -> float:
        """For how long the oldest entry waits, seconds; 0: none does.

        Args:
            now_s: Redis clock, seconds since the epoch.
        """
        with redis_errors("outbox"):
            first: Any = self._client.xrange(self._key, count=1)
        return max(0.0, now_s - int(first[0][0].partition(b"-")[0]) / 1000) if first else 0.0

    def full(self) -> bool:
        """Whether nine tenths of the bound are reached, so that the oldest outcomes are to be folded."""
        return self.backlog() >= _NEARLY * self._max_len

    def fold(self, most: int) -> int:
        """If the outbox is nearly full, replace its oldest outcomes by sums → how many; 0: it is not.

        Mode changes are not affected.
        """
        if not self.full():
            return 0
        entries = self.read(most)
        attempts = {entry_id: row for entry_id, row in entries if isinstance(row, Attempt)}
        self.give_back([entry_id for entry_id, _ in entries if entry_id not in attempts])
        if attempts:
            with self.holding(list(attempts)):
                self._overflow.add(attempts)
            log.warning("outbox.folded", extra={"entries": len(attempts), "max_len": self._max_len})
        return len(attempts)

    def sums(self) -> NamedSums | None:
        """The sums of folded outcomes; the same ones until they are removed. None: there are none."""
        return self._overflow.take()

    def forget_sums(self, sums: NamedSums) -> None:
        """Remove sums that are in the tracking database."""
        self._overflow.forget(sums)

    def bad_count(self) -> int:
        """Entries that were ever set aside."""
        with redis_errors("outbox"):
            return int(cast("bytes | None", self._client.get(self._bad_count_key)) or 0)

    def _claim(self, max_count: int) -> list[_Entry]:
        """Entries that were read and not committed in time, including those that were given back."""
        reply = cast(
            "Sequence[Any]",
            self._client.xautoclaim(
                self._key, GROUP, CONSUMER, self._claim_idle_ms, start_id=self._claim_from, count=max_count
            ),
        )
        self._claim_from, entries, gone = reply[0], reply[1], reply[2]
        if gone:
            # Acknowledged entries leave both the group's list and the stream, so these were trimmed at the bound.
            log.error("outbox.lost", extra={"entries": len(gone), "max_len": self._max_len})
        return [(entry_id, values) for entry_id, values in entries]

    def _read_new(self, max_count: int, block_ms: int) -> list[_Entry]:
        # Redis takes BLOCK 0 for "for ever".
        reply = cast(
            "Any",
            self._client.xreadgroup(GROUP, CONSUMER, {self._key: ">"}, count=max_count, block=block_ms or None),
        )
        if not reply:
            return []
        if isinstance(reply, Mapping):  # RESP3: {stream: [entries]}, else [[stream, entries]]
            return [entry for chunk in next(iter(reply.values())) for entry in chunk]
        return list(reply[0][1])

    def _create_group(self) -> None:
        try:
            self._client.xgroup_create(self._key, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):  # another recorder was faster
                raise

    def _decoded(self, entries: Sequence[_Entry]) -> list[tuple[str, Attempt | ModeChange]]:
        readable: list[tuple[str, Attempt | ModeChange]] = []
        newer = 0
        for raw_id, values in entries:
            entry_id = raw_id.decode()
            try:
                change = values.get(CHANGE_FIELD)
                readable.append((entry_id, decode(values[FIELD]) if change is None else decode_change(change)))
            except NewerVersion:
                newer += 1
            except (Undecodable, KeyError) as error:
                why = str(error) if isinstance(error, Undecodable) else "it has no field 'a'"
                self._set_aside(entry_id, values, why)
        if newer:
            self._note_newer(newer)
        return readable

    def _set_aside(self, entry_id: str, values: Mapping[bytes, bytes], why: str) -> None:
        raw = values.get(CHANGE_FIELD) or values.get(FIELD)
        if raw is None:
            raw = b" ".join(name + b"=" + value for name, value in values.items())
        bad = {"id": entry_id, "why": why, "raw": raw[:MAX_BAD_BYTES]}  # JSON has no bytes: base64
        with self._client.pipeline(transaction=True) as pipe:
            pipe.lpush(self._bad_key, msgspec.json.encode(bad))
            pipe.ltrim(self._bad_key, 0, MAX_BAD - 1)
            pipe.incr(self._bad_count_key)
            pipe.xack(self._key, GROUP, entry_id)
            pipe.xdel(self._key, entry_id)
            pipe.execute()
        log.warning("outbox.set_aside", extra={"entry_id": entry_id, "why": why})

    def _note_newer(self, entries: int) -> None:
        """Log once a minute that entries wait for a newer worker, which is normal during a deploy."""
        if (now_s := time.monotonic()) - self._newer_noted_s >= _NEWER_NOTE_EVERY_S:
            self._newer_noted_s = now_s
            log.info("outbox.newer_version", extra={"entries": entries, "known": SCHEMA_VERSION})


_Entry = tuple[bytes, Mapping[bytes, bytes]]
