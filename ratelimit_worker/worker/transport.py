"""A kombu transport in which calls wait in their lanes until they are released.

`lanes://` is kombu's `redis://` with these differences. Publishing a call (a message with an `rlw` header) puts it into
its lane, with the body stored apart under a reference, so that no prompt is in any message. The release script writes
the ledger, so `QoS.append` does not. An ack frees the call (free.lua), and a requeue puts it back into its own place.
All other messages are handled as in kombu. docs/why.md has the reason for each override.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
import ssl
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue
from time import monotonic, time
from typing import Any, cast

from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as stock
from kombu.utils.compat import detect_environment
from kombu.utils.encoding import bytes_to_str
from kombu.utils.eventio import READ
from kombu.utils.json import dumps, loads
from msgspec import structs
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from ratelimit_worker.calls import Priority
from ratelimit_worker.contracts.call import Claim, Entry, Sent
from ratelimit_worker.contracts.plan import HEADER, Plan, Sender, Shedding
from ratelimit_worker.errors import BadInput, RateLimitWorkerError
from ratelimit_worker.fingerprint import ANY, digest, fingerprint
from ratelimit_worker.flow.call.enqueue import scope_of
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.lanes import Crew, Lanes
from ratelimit_worker.stores.namespace import Namespaced
from ratelimit_worker.stores.overdue import OverdueCall
from ratelimit_worker.stores.patient import passes
from ratelimit_worker.worker.freed import FREED
from ratelimit_worker.worker.installed import Asked, asked_of, server_of
from ratelimit_worker.worker.intake import JSON, Intake, prepared, read_json

log = logging.getLogger(__name__)

BODY_HEADER = "rlw_body"  #: reference to the stored body of an ordinary task whose canvas holds calls, and so prompts
NEEDS = "this_message_needs_ratelimit_worker"
_APART = re.compile(rb'"rlw_body": "(canvas-[0-9a-f]{32})"')
SIGNATURE = re.compile(rb'"task": "([^"]+)"')
#: Headers that Celery always writes, with the values that its worker assumes if they are missing: these are not sent.
USUAL: Mapping[str, Any] = {
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")),
    "retries": 0,
    "replaced_task_nesting": 0,
}
CANVAS_TTL_S = 7 * 86_400  #: TTL of a body stored for `BODY_HEADER`, in case that its message is never taken
COMPRESS_ABOVE = 1024  #: bytes; smaller bodies are not worth the time
PLAIN, DEFLATED = b"j", b"z"  #: the first byte of a payload


class Held:
    """What this process holds of the broker's messages. One for the process, since connections come and go."""

    def __init__(self) -> None:
        self.orphans: set[str] = set()  #: tags of calls that run on although their channel is gone; they stay ours
        #: Acks to be sent: a worker's duty sends them, many at once, and again after an outage. If an ack is lost with
        #: its process, the call is delivered again, and gets its settled answer.
        self.acks: SimpleQueue[str] = SimpleQueue()
        self.has_messenger = False  #: whether that duty runs
        #: Returns the tags of running requests; none when the worker is stopping. A worker's presence step sets it.
        self.running: Callable[[], Iterable[str]] = tuple
        self.stopping: Callable[[], bool] = bool  #: whether the worker ends in good order
        self.crew = Crew("")  #: the crew whose ready lists this worker reads, once it beats
        #: Tags of lent calls, which run beside the worker's slots.
        self.lent: set[str] = set()
        #: by tag: calls that were given up although their function still runs
        self.overdue: dict[str, OverdueCall] = {}


class AnsweredAlready(Exception):
    """A kept answer was found, so the call needs no lane. It is not an error; only `CallTask` sees it.

    It is raised and not returned because Celery would otherwise report that a message was sent.

    Args:
        answer: Encoded by `flow.call.answers`.
        stored: It is already stored as the call's result.
    """

    def __init__(self, answer: bytes, stored: bool) -> None:
        super().__init__(answer, stored)
        self.answer, self.stored = answer, stored


HELD = Held()
INTAKE = Intake()


def pack_body(body: bytes) -> bytes:
    """Encode a payload; a large one is compressed."""
    if len(body) > COMPRESS_ABOVE:
        return DEFLATED + zlib.compress(body, 1)
    return PLAIN + body


def unpack_body(payload: bytes, most: int = 256 * 1024 * 1024) -> bytes:
    """Decode a payload.

    Raises:
        BadInput: it is damaged, or unpacks to more than `most` bytes.
    """
    kind, rest = payload[:1], payload[1:]
    if kind == PLAIN:
        return rest
    if kind == DEFLATED:
        inflate = zlib.decompressobj()
        body = inflate.decompress(rest, most)
        if not inflate.unconsumed_tail:
            return body
    raise BadInput("the stored arguments of this call cannot be read")


def reference(ref: str) -> str:
    """The body of a message whose real body is stored apart.

    A worker without this package must not take the reference for an argument and send a request with it: its task has
    no such keyword, so it fails at once.
    """
    return base64.b64encode(dumps([[f"ref:{ref}"], {NEEDS: True}, {}]).encode()).decode()


def _is_call(message: Mapping[str, Any]) -> bool:
    return isinstance(message.get("headers"), dict) and HEADER in message["headers"]


class QoS(stock.QoS):
    """Ledger in place of kombu's unacked hash, for calls."""

    channel: Channel

    def can_consume(self) -> bool:
        if not HELD.lent:
            return bool(super().can_consume())
        beside = sum(tag in self._delivered and tag not in self._dirty for tag in tuple(HELD.lent))
        return not self.prefetch_count or len(self._delivered) - len(self._dirty) - beside < self.prefetch_count

    def append(self, message: Any, delivery_tag: str) -> None:
        if HEADER in (message.headers or {}):
            virtual.QoS.append(self, message, delivery_tag)  # the release script wrote the ledger
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self._of_a_call(delivery_tag):
            self._free(delivery_tag)
        else:
            self._forget_body(delivery_tag)
            super().ack(delivery_tag)
            self.channel.wake()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not self._of_a_call(delivery_tag):
            if not requeue:
                self._forget_body(delivery_tag)
            super().reject(delivery_tag, requeue)
            self.channel.wake()
        elif requeue:
            self.channel.lanes.restore([delivery_tag], lost=not HELD.stopping())  # a child died, unless we ended it
            self._done(delivery_tag)
        else:
            self._free(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        # Stock kombu also requeues running calls, so every reconnect would pay for them twice: they stay ours.
        running = set(HELD.running())
        back: list[str] = []
        for tag, message in list(self._delivered.items()):
            if tag in self._dirty:
                continue
            if HEADER not in (message.headers or {}):
                with self._broker_may_be_away():
                    self.restore_by_tag(tag)
            elif tag in running:
                HELD.orphans.add(tag)
            else:
                back.append(tag)
        if back:
            with self._broker_may_be_away():
                if HELD.stopping():
                    self.channel.lanes.restore(back, lost=False)
                else:  # a thread may begin one of them at this moment; the script knows which came first
                    HELD.orphans.update(back)
                    self.channel.lanes.restore_unbegun(back)
        self._delivered.clear()

    def let_go(self, tag: str) -> None:
        """Forget a message of this process; a call goes back when its lease ends."""
        self._done(tag)

    def give_up(self, delivery_tag: str) -> None:
        """Forget a message that was set aside after its delivery; its call was ended at that time."""
        if self._of_a_call(delivery_tag):
            self._done(delivery_tag)
        else:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """As kombu's; an entry of its ledger that cannot be read is set aside, since it would end one worker after
        another."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except Exception as error:
            if _is_the_brokers(error):
                raise
            redis = self.channel.lanes.client
            kept: Any = redis.hget(self.unacked_key, tag)
            self.channel.set_aside(kept or b"", f"in {self.unacked_key}: {type(error).__name__}", "")
            with redis.pipeline() as pipe:
                pipe.zrem(self.unacked_index_key, tag)
                pipe.hdel(self.unacked_key, tag)
                pipe.execute()

    def _of_a_call(self, tag: str) -> bool:
        message = self._delivered.get(tag)
        return tag in HELD.orphans if message is None else HEADER in (message.headers or {})

    def _free(self, tag: str) -> None:
        if FREED.take(tag):
            pass  # with its result
        elif HELD.has_messenger:
            HELD.acks.put(tag)
        else:
            with self._broker_may_be_away():
                self.channel.lanes.free([tag])
        self._done(tag)

    def _forget_body(self, tag: str) -> None:
        """Delete a stored body together with its message: the worker that took the message has read it."""
        message = self._delivered.get(tag)
        apart = (message.headers or {}).get(BODY_HEADER) if message is not None else None
        if apart is not None:
            with self._broker_may_be_away():
                self.channel.lanes.client.delete(keys.payload(apart))

    def _done(self, tag: str) -> None:
        HELD.orphans.discard(tag)
        HELD.lent.discard(tag)
        virtual.QoS.ack(self, tag)
        self.channel.wake()

    @contextmanager
    def _broker_may_be_away(self) -> Iterator[None]:
        try:
            yield
        except (RedisError, OSError) as error:
            log.info("messages are left to their lease: %s", type(error).__name__)


class Message(virtual.Message):
    """A message whose body may be stored apart; the copy for the stock ledger (`_raw`) keeps the reference."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        apart = (payload.get("headers") or {}).get(BODY_HEADER)
        if apart is None:
            super().__init__(payload, channel=channel, **kwargs)
            return
        stored = channel.lanes.client.get(keys.payload(apart))
        body = unpack_body(stored) if stored is not None else b""
        super().__init__({**payload, "body": base64.b64encode(body).decode()}, channel=channel, **kwargs)
        self._raw = payload


class Channel(stock.Channel):
    """A channel that knows lanes."""

    QoS = QoS
    Message = Message
    _kept: tuple[Any, Any, Lanes] | None = None
    _calls_first = True  #: whether the ready lists come before the stock lists in the next read
    _routed = False  #: whether a queue was found for the message that is being published
    _in_poll: Any
    _brpop_sent_at: Any

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        told = super()._connparams()
        params = server_of(self.connection.client).parameters(**told)
        if asynchronous:
            params["connection_class"] = self._watched(params["connection_class"])
        return params

    def _watched(self, kind: type) -> type:
        """A connection class that tells the poller when it closes, as kombu's does."""
        channel = self

        class Watched(kind):
            def disconnect(self, *args: Any, **kwargs: Any) -> None:
                super().disconnect(*args, **kwargs)
                if channel._registered:
                    channel._on_connection_disconnect(self)

        return Watched

    def _get_pool(self, asynchronous: bool = False) -> Any:
        params = self._connparams(asynchronous)
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=params["db"])
        return server_of(self.connection.client).pool(params)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        # kombu makes a client for each command; one for the channel is cheaper
        yield client or self._keep()[1]

    def wake(self) -> None:
        """A slot is free."""
        if self.connection is not None:  # otherwise the channel is closed
            self.connection.wake()

    @property
    def lanes(self) -> Lanes:
        """The lanes, over this channel's connections."""
        return self._keep()[2]

    @property
    def asked(self) -> Asked | None:
        """The answers of this channel's app; None: it belongs to no app with lanes."""
        return asked_of(self.connection.client) if self.connection is not None else None

    def _keep(self) -> tuple[Any, Any, Lanes]:
        kept = self._kept
        if kept is not None and (self.closed or self._closing):
            return kept  # a late ack on a closed channel: redis-py's pool reconnects by itself
        try:
            pool = self.pool
        except AttributeError:  # the connection object is closed already
            if kept is None:
                raise
            return kept
        if kept is None or kept[0] is not pool:
            client = self._create_client()
            # kombu's clients add the prefix only for the commands that kombu uses
            prefix = self.global_keyprefix
            ours = Namespaced(connection_pool=pool, namespace=prefix) if prefix else client
            kept = self._kept = (pool, client, Lanes(ours))
        return kept

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        """As kombu's, but a call for which no queue is bound is refused; kombu silently drops such a message.

        Raises:
            BadInput: a call's exchange and routing key lead to no queue, or to a broadcast.
        """
        asked = self.asked
        if exchange and asked is not None and asked.is_broadcast(exchange):
            self._refuse_broadcast(message, exchange)
        self._routed = False
        answer = super().basic_publish(message, exchange, routing_key, **kwargs)
        if not self._routed and self._makes_call(message):
            raise BadInput(
                f"no queue is bound to the exchange {exchange!r} with the routing key {routing_key!r}: "
                "the call would be lost; name its queue"
            )
        return answer

    def _put_fanout(self, exchange: str, message: dict[str, Any], routing_key: str, **kwargs: Any) -> None:
        self._routed = True
        self._refuse_broadcast(message, exchange)
        super()._put_fanout(exchange, message, routing_key, **kwargs)

    def _refuse_broadcast(self, message: dict[str, Any], exchange: str) -> None:
        if self._makes_call(message):
            raise BadInput(f"the exchange {exchange!r} is a broadcast, and a call is made once: name a queue")

    def _makes_call(self, message: dict[str, Any]) -> bool:
        return _is_call(message) or _plan_of(prepared(message), self.asked) is not None

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        self._routed = True
        seen, headers = message, message.get("headers")
        if self.asked is not None and isinstance(headers, dict) and headers.get("compression"):
            seen = prepared(message)  # to see whether it is a call, or has prompts in a canvas
        plan = _plan_of(seen, self.asked)
        if plan is None:
            apart = self._without_prompts(seen)
            if apart is seen:
                super()._put(queue, message, **kwargs)  # as it came, compressed or not
            elif self.lanes.has_crew(queue):
                self.lanes.client.lpush(keys.ready(keys.ANY, queue), dumps(apart))
            else:
                super()._put(queue, apart, **kwargs)
            return
        asked = self.asked
        tracer = asked.tracer() if asked is not None else None
        if tracer is None:
            placed = self.lanes.enqueue(entry(queue, seen, plan, asked))
        else:
            with tracer.sending(plan, seen["headers"]["id"], seen["headers"]["task"], queue) as (trace, tell):
                if trace is not None:
                    plan = structs.replace(plan, trace=trace)
                placed = self.lanes.enqueue(entry(queue, seen, plan, asked))
                tell(placed)
        if placed.renews:
            self._renew(queue, seen, plan)
        if placed.answer is not None:
            raise AnsweredAlready(placed.answer, placed.stored)

    def _renew(self, queue: str, message: dict[str, Any], plan: Plan) -> None:
        """Send a renewal, since the answer that the caller gets is past its time.

        If it fails, the caller has that answer all the same, and a later caller sends another renewal.
        """
        try:
            self.lanes.enqueue(entry(queue, renewal(message), renewing(plan), self.asked))
        except (RateLimitWorkerError, RedisError, OSError) as error:
            log.warning("answer.not_renewed lane=%s cause=%s", plan.lane, type(error).__name__)

    def _without_prompts(self, message: dict[str, Any]) -> dict[str, Any]:
        """Publish an ordinary task's message; its body is stored apart if links, chord or arguments in it hold
        calls."""
        headers = message.get("headers")
        asked = self.asked
        if asked is None or not isinstance(headers, dict) or "task" not in headers:
            return message
        body = base64.b64decode(message["body"]) if message["properties"].get("body_encoding") == "base64" else b""
        if message.get("content-type") == JSON:
            holds_calls = any(asked.is_call(name.decode()) for name in set(SIGNATURE.findall(body)))
        else:  # pickle, YAML, msgpack: all of them contain a text as its bytes
            holds_calls = any(name.encode() in body for name in asked.calls())
        if not holds_calls:
            return message
        ref = f"canvas-{uuid.uuid4().hex}"
        self.lanes.client.set(keys.payload(ref), pack_body(body), ex=CANVAS_TTL_S)
        short = reference(ref)
        return {
            **message,
            "body": short,
            "headers": {**headers, BODY_HEADER: ref, "argsrepr": "<canvas>", "kwargsrepr": "<canvas>"},
        }

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for the next message of all queues: calls released to this worker's crew, and stock messages.

        The two kinds are asked in turn, so that neither starves.
        """
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        plain = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        mine = [queue for queue in queues if HELD.crew.name and queue in INTAKE.queues]
        calls = [keys.ready(crew, queue) for crew in (HELD.crew.name, keys.ANY) for queue in mine]
        wait_s = self.brpop_timeout if timeout is None else timeout
        command = ["BRPOP", *(calls + plain if self._calls_first else plain + calls), wait_s or 0]
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self.global_keyprefix:
            command = self.client._prefix_args(command)
        self.client.connection.send_command(*command)

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                popped = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()  # the next round reconnects
                raise
            if not popped:
                raise Empty
            key, item = popped
            name = bytes_to_str(key)
            ready = keys.crew_and_queue(name)
            queue = name.rsplit(self.sep, 1)[0] if ready is None else ready[1]
            self._calls_first = ready is None
            self._queue_cycle.rotate(queue)
            try:
                message = read_json(item)
            except (ValueError, RecursionError):
                self.set_aside(item, "not JSON", queue)
            else:
                self.connection._deliver(message, queue, item)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _receive_one(self, c: Any) -> bool | None:
        try:
            return bool(super()._receive_one(c))
        except RecursionError:  # a broadcast that is nested too deep; kombu handles all other errors
            self.set_aside(b"", "a broadcast is nested too deep", "")
            return None

    def set_aside(self, raw: bytes, why: str, queue: str) -> None:
        """Put a message where it is not read again."""
        fields = {"queue": queue, "why": why, "bytes": len(raw)}
        log.error("message.set_aside queue=%s bytes=%d why=%s", queue, len(raw), why, extra=fields)
        self.lanes.set_aside(raw, why, queue)
        self._end(raw, why, queue)

    def decline(self, message: Mapping[str, Any], queue: str) -> bool:
        """Give back a released call whose task is unknown here → False: it is not a released call."""
        what = self.lanes.decline(message["properties"]["delivery_tag"])
        if what == "none":
            return False
        log.info("message.declined queue=%s task=%s", queue, message["headers"]["task"][:80])
        if what == "over":
            self._end(dumps(message).encode(), None, queue)
        return True

    def _end(self, raw: bytes, why: str | None, queue: str) -> None:
        asked = self.asked
        if asked is None or queue not in INTAKE.queues:
            return
        try:
            asked.refuse(self.lanes, raw, why)
        except Exception as error:  # also left to its lease
            if _is_the_brokers(error):
                raise
            log.exception("message.not_ended", extra={"cause": type(error).__name__})

    def _size(self, queue: str) -> int:
        return int(super()._size(queue)) + self._calls(queue)

    def _purge(self, queue: str) -> int:
        return self.lanes.purge(queue) + self._purge_ordinary(queue)

    def _purge_ordinary(self, queue: str) -> int:
        """Delete the ordinary tasks of a queue, with their stored bodies → how many."""
        gone = 0
        for name in (keys.ready(keys.ANY, queue), *(self._q_for_pri(queue, step) for step in self.priority_steps)):
            while some := cast("list[bytes] | None", self.lanes.client.lpop(name, 1000)):
                if bodies := [keys.payload(ref.decode()) for raw in some for ref in _APART.findall(raw)]:
                    self.lanes.client.delete(*bodies)
                gone += len(some)
        return gone

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.lanes.purge(queue)
        self._purge_ordinary(queue)
        super()._delete(queue, *args, **kwargs)

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return bool(super()._has_queue(queue, **kwargs)) or self._calls(queue) > 0

    def _calls(self, queue: str) -> int:
        apart: Any = self.lanes.client.llen(keys.ready(keys.ANY, queue))
        return self.lanes.size(queue) + self.lanes.ready(queue) + int(apart)

    def _do_restore_message(
        self, payload: dict[str, Any], exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        if BODY_HEADER not in (payload.get("headers") or {}):
            super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)
            return
        payload["headers"]["redelivered"] = payload["properties"]["delivery_info"]["redelivered"] = True
        for queue in self._lookup(exchange, routing_key):
            (pipe.lpush if leftmost else pipe.rpush)(keys.ready(keys.ANY, queue), dumps(payload))


class WakefulPoller(stock.MultiChannelPoller):
    """The poller for pools of greenlets, whose worker has no loop of its own.

    While all slots are taken, no message is read, and so nothing would wake the consumer; a free slot wakes it.
    """

    _ear: socket.socket | None = None
    _mouth: socket.socket | None = None
    _woken = False

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """As kombu's; `wake` ends the wait."""
        if self._ear is None:  # only a consumer needs one
            self._ear, self._mouth = socket.socketpair()
            for end in (self._ear, self._mouth):
                end.setblocking(False)
            self.poller.register(self._ear, READ)
        return super().get(callback, timeout)

    def wake(self) -> None:
        """Let `get` look again, now or when it is next called. Can be repeated."""
        if self._mouth is not None and not self._woken:
            self._woken = True
            self._mouth.send(b".")

    @property
    def fds(self) -> dict[int, Any]:
        """What it waits for; never empty, or kombu would sleep instead."""
        return super().fds if self._ear is None else {**super().fds, self._ear.fileno(): None}

    def handle_event(self, fileno: int, event: int) -> Any:
        if self._ear is None or fileno != self._ear.fileno():
            return super().handle_event(fileno, event)
        self._woken = False
        self._ear.recv(1)
        return None

    def close(self) -> None:
        super().close()
        if self._ear is not None and self._mouth is not None:
            self.poller.unregister(self._ear)
            self._ear.close()
            self._mouth.close()
            self._ear = self._mouth = None


class Transport(stock.Transport):
    """kombu's Redis transport, with lanes."""

    Channel = Channel

    @property
    def supports_batch_publish(self) -> bool:
        """No: each call may fail by itself (LaneFull, bad input), which a pipeline could not report."""
        return False

    cycle: Any

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if detect_environment() != "default":
            self.cycle = WakefulPoller()

    def wake(self) -> None:
        """A slot is free: let the consumer look whether it may read on."""
        if isinstance(self.cycle, WakefulPoller):
            self.cycle.wake()

    def _deliver(self, message: Any, queue: str, raw: bytes | None = None) -> None:
        """Deliver a message to the consumer of its queue; whatever it contains, it must not end the worker.

        Args:
            raw: The message as it was read; None: it came in another way (a broadcast), and is encoded again.
        """
        try:
            self._take(message, queue, raw)
        except Exception as error:
            # All fields that are known to matter were checked before; this is for any others.
            if _is_the_brokers(error):
                raise
            log.exception("message.broke_its_reader", extra={"queue": queue})
            self._set_aside(message, queue, raw, type(error).__name__)
            tag = _tag_of(message)
            for channel in self.channels:
                if channel is not None and tag in channel.qos._delivered:
                    channel.qos.give_up(tag)

    def _take(self, message: Any, queue: str, raw: bytes | None) -> None:
        channel = next(iter(self.channels))
        if queue in INTAKE.queues:
            message = prepared(message)
        why = INTAKE.refusal(message, queue)
        if why is not None:
            if INTAKE.lacks_task_of(message) and _tag_of(message) and channel.decline(message, queue):
                return
            self._set_aside(message, queue, raw, why)
            return
        # A producer without this package may name a lane: `send_task(…, lane=…)`.
        if queue in INTAKE.queues and not (_is_call(message) and "lane" in message["properties"]):
            try:
                if _pace(channel, queue, message):
                    return
            except BadInput as error:
                self._set_aside(message, queue, raw, str(error))
                return
        apart = (message.get("headers") or {}).get(BODY_HEADER)
        if apart is not None and not channel.lanes.client.exists(keys.payload(apart)):
            if message["headers"].get("redelivered"):  # it was restored while its first delivery was still running
                log.info("message.done_before queue=%s task=%s", queue, str(message["headers"].get("task"))[:80])
                return
            self._set_aside(message, queue, raw, "its body is gone from Redis")
            return
        super()._deliver(message, queue)

    def _set_aside(self, message: Any, queue: str, raw: bytes | None, why: str) -> None:
        if raw is None:
            try:
                raw = dumps(message).encode()
            except (ValueError, TypeError, RecursionError):
                raw = b""
        next(iter(self.channels)).set_aside(raw, why, queue)


def _is_the_brokers(error: Exception) -> bool:
    """Whether an error has nothing to do with the message: the broker, or a result backend, is away."""
    if isinstance(error, ResponseError):
        return passes(error) or isinstance(error, NoPermissionError)
    return isinstance(error, RedisConnectionError | RedisTimeoutError | OperationalError | OSError)


def _tag_of(message: Any) -> str:
    """The delivery tag of any message; "": it has none."""
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    return tag if isinstance(tag, str) else ""


def _pace(channel: Channel, queue: str, message: Mapping[str, Any]) -> bool:
    """Put a call into its lane that a stock producer pushed directly into the queue → False: it is not a call.

    There is no caller to be told of a full lane or given a kept answer, so it is always let in, and answered in its
    turn.
    """
    asked = channel.asked
    plan = _plan_of(message, asked)
    if plan is None:
        return False
    shedding = Shedding.RESULT if plan.shedding is not None else None
    over = Shedding.RESULT if plan.over_budget is not None else None
    told = structs.replace(plan, sender=Sender.NOBODY, max_waiting=0, shedding=shedding, over_budget=over)
    channel.lanes.enqueue(entry(queue, message, told, asked))
    return True


class SecureTransport(Transport):
    """`laness://`: the same over TLS, which kombu knows only by the scheme `rediss`."""

    def __init__(self, client: Any, **kwargs: Any) -> None:
        if not client.ssl:
            client.ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        super().__init__(client, **kwargs)


TRANSPORT_ALIASES["lanes"] = f"{__name__}:Transport"
TRANSPORT_ALIASES["laness"] = f"{__name__}:SecureTransport"


def entry(queue: str, message: Mapping[str, Any], plan: Plan, asked: Asked | None = None) -> Entry:
    """The entry of a published call: its body is separate, its times are relative, and nothing else has its arguments.

    Raises:
        BadInput: the arguments are not valid JSON, or too large.
    """
    # kombu passes the same dict to every attempt to publish, so it must not be changed
    headers = {name: value for name, value in message["headers"].items() if name not in USUAL or value != USUAL[name]}
    body = _checked(base64.b64decode(message["body"]), message, plan)
    now = time()
    due = _epoch(headers["eta"]) - now if headers.get("eta") else 0.0
    args, kwargs, canvas = json.loads(body)
    asks = digest(headers["task"], plan.lane, [args, kwargs])
    claim = result = None
    # A call for later shares nothing: else it would be answered too early, or present calls would wait for it.
    if plan.sharing is not None and (due <= 0 or plan.goes_on):
        if not plan.goes_on:
            plan = structs.replace(plan, fingerprint=_fingerprint(asked, headers["task"], plan, args, kwargs))
        alone = not headers.get("group") and not any((canvas or {}).values())
        claim = Claim.of(plan, headers["task"], at_once=plan.sender is Sender.CALLER and alone)
        if claim is not None and claim.at_once and asked is not None and not headers.get("ignore_result"):
            result = asked.result_form(headers["task"], headers["id"])
    headers[HEADER] = plan.encode()
    expires = _epoch(headers["expires"]) if headers.get("expires") else plan.deadline_s
    headers.pop("eta", None)  # the call waits in its lane, the worker must not wait again
    headers["argsrepr"], headers["kwargsrepr"] = _summary(plan, len(body)), "{}"
    properties = {
        **message["properties"],
        "lane": plan.lane,
        "delivery_info": {"redelivered": False, **message["properties"]["delivery_info"]},
        "priority": 0,
    }
    for name in ("delivery_tag", "delivery_mode", "argsrepr", "kwargsrepr"):
        properties.pop(name, None)
    text = dumps(
        {
            "properties": {"delivery_tag": "@", **properties},
            "headers": headers,
            "body": reference(headers["id"]),
            "content-type": message["content-type"],
            "content-encoding": message.get("content-encoding") or "utf-8",
        }
    )
    return Entry.of(
        plan,
        Sent(queue, headers["id"], text.encode(), pack_body(body), result),
        left_s=min(expires, plan.deadline_s) - now,
        due_in_s=due,
        publication=_publication(headers, plan, asks),
        claim=claim,
        lane_fields=partial(asked.lane_fields, plan.lane) if asked is not None else None,
    )


def renewal(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message of a renewal: the same task and arguments under another id, without links, chord and result."""
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    call_id = str(uuid.uuid4())
    body = dumps([args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}])
    alone = {"root_id": call_id, "parent_id": None, "group": None, "group_index": None, "retries": 0, "eta": None}
    return {
        **message,
        "body": base64.b64encode(body.encode()).decode(),
        "headers": {**message["headers"], "id": call_id, **alone, "expires": None, "ignore_result": True},
        "properties": {**message["properties"], "correlation_id": call_id},
    }


def renewing(plan: Plan) -> Plan:
    """The plan of a renewal: it asks even if an answer is kept, and goes behind calls that somebody waits for."""
    return structs.replace(
        plan,
        publication=uuid.uuid4().hex,
        sender=Sender.NOBODY,
        priority=Priority.LOW,
        shedding=None,
        sharing=structs.replace(plan.sharing, refresh=True) if plan.sharing is not None else None,
    )


def _fingerprint(asked: Asked | None, task: str, plan: Plan, args: list[Any], kwargs: dict[str, Any]) -> str:
    if asked is not None:
        return asked.fingerprint(task, plan, args, kwargs)
    return fingerprint(scope_of(plan, task), ANY.bound(args, kwargs))


def _publication(headers: Mapping[str, Any], plan: Plan, asks: str) -> str:
    """What distinguishes this message from others with its task id: its publication, what it asks, and who sends it.

    o: an agent makes a call. Sent again under its id it is the same call; the id of another call is refused.
    c: a worker goes on with a canvas, or a stock producer has pushed it, so there is no caller to be refused.
    a: the same call goes on (`self.retry`, `self.replace`), or is made anew although it had ended (`run`).
    """
    if plan.goes_on or plan.is_anew or headers.get("replaced_task_nesting"):
        how = "a"
    else:
        how = "c" if headers.get("parent_id") or plan.sender is Sender.NOBODY else "o"
    return f"{plan.publication}:{asks[:16]}:{how}"


def _plan_of(message: Mapping[str, Any], asked: Asked | None) -> Plan | None:
    """The plan of a call, from its header, or made now if it was sent by name; None: it is not a call."""
    headers = message.get("headers")
    if _is_call(message):
        return Plan.decode(message["headers"][HEADER])
    if asked is None or not isinstance(headers, dict) or not isinstance(headers.get("task"), str):
        return None
    if not asked.is_call(headers["task"]):
        return None
    args, kwargs, _ = loads(base64.b64decode(message["body"]).decode())
    return asked.plan(headers["task"], args, kwargs, message["properties"])


def _checked(body: bytes, message: Mapping[str, Any], plan: Plan) -> bytes:
    if message.get("content-type") != "application/json" or message["headers"].get("compression"):
        raise BadInput("calls are sent as plain JSON; leave serializer and compression at their defaults")
    if len(body) > plan.max_body_bytes:
        most = f"{plan.max_body_bytes:,}"
        raise BadInput(f"the arguments take {len(body):,} bytes; at most {most} (MAISD_MAX_PAYLOAD_MB)")
    if (b"NaN" in body or b"Infinity" in body) and _has_constant(body):
        raise BadInput("the arguments hold NaN or Infinity, which JSON does not know; send null or a string")
    if b"\\ud" in body:
        try:
            dumps(loads(body.decode()), ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadInput("the arguments hold a lone surrogate, which is no text; clean the string first") from error
    return body


def _has_constant(body: bytes) -> bool:
    found: list[str] = []
    json.loads(body, parse_constant=found.append)
    return bool(found)


def _epoch(text: str) -> float:
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _summary(plan: Plan, size: int) -> str:
    words = [plan.lane, plan.context, f"{size:,} bytes"]
    return f"<{', '.join(word for word in words if word)}>"
