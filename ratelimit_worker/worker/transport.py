"""How does a lane get behind Celery? A kombu transport in which calls wait in their lanes and are released.

`lanes://` is kombu's `redis://`, but: publishing a call (a message with a `rlw` header) puts it into its lane, with the
body kept apart under a reference, so that no prompt is in any message; the release script writes the ledger, so
`QoS.append` does not; an ack is FREE, a requeue goes to the call's own place. Everything that is no call goes the stock
way. The traps behind each override are in docs/why.md.
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

from ratelimit_worker.contracts.call import Claim, Entry, Sent
from ratelimit_worker.contracts.plan import HEADER, Plan, Sender, Shedding
from ratelimit_worker.errors import BadInput
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

BODY_HEADER = "rlw_body"  #: where the body of an ordinary task lies whose canvas holds calls, and so prompts
NEEDS = "this_message_needs_ratelimit_worker"
_APART = re.compile(rb'"rlw_body": "(canvas-[0-9a-f]{32})"')
SIGNATURE = re.compile(rb'"task": "([^"]+)"')
CANVAS_TTL_S = 7 * 86_400  #: of a body that lies apart; it goes with its message, unless nobody ever takes that
COMPRESS_ABOVE = 1024  #: bytes; smaller bodies are not worth the time
PLAIN, DEFLATED = b"j", b"z"  #: first byte of a payload


class Held:
    """What this process holds of the broker's, across reconnects. One a process: broker connections come and go."""

    def __init__(self) -> None:
        self.orphans: set[str] = set()  #: tags of calls that run on though their channel is gone: still ours
        #: Acks on their way: a worker's duty sends them, many at once when there are many, and again after an outage.
        #: An ack that is lost with its process costs nothing: the call is delivered again, and has its answer.
        self.acks: SimpleQueue[str] = SimpleQueue()
        self.has_messenger = False  #: whether that duty runs
        #: Tags of running requests; empty when the worker is stopping. A worker's presence step sets it.
        self.running: Callable[[], Iterable[str]] = tuple
        self.stopping: Callable[[], bool] = bool  #: whether the worker ends in good order
        self.crew = Crew("")  #: whose ready lists this worker reads, once it beats
        #: Tags of calls that run beside the worker's slots, and take none of them from others.
        self.lent: set[str] = set()
        self.overdue: dict[str, OverdueCall] = {}  #: by tag: given up, though the function still runs


class AnsweredAlready(Exception):
    """The call needs no lane: its answer is kept. No error; only `CallTask` sees it.

    It is raised, and not returned, since Celery would go on to tell everybody that a message was sent.

    Args:
        answer: As `flow.call.answers` has it.
        stored: It is the call's result by now.
    """

    def __init__(self, answer: bytes, stored: bool) -> None:
        super().__init__(answer, stored)
        self.answer, self.stored = answer, stored


HELD = Held()
INTAKE = Intake()


def pack_body(body: bytes) -> bytes:
    """A payload as it is stored: deflated when that is worth it."""
    if len(body) > COMPRESS_ABOVE:
        return DEFLATED + zlib.compress(body, 1)
    return PLAIN + body


def unpack_body(payload: bytes, most: int = 256 * 1024 * 1024) -> bytes:
    """The body of a payload.

    Raises:
        BadInput: it is none, or unpacks to more than `most` bytes.
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
    """The body of a message whose own lies apart.

    A worker without this package that is handed it must not take the reference for an argument, and pay for it: its
    task has no such keyword, so it fails at once.
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
        # The stock way requeues running calls too, so every reconnect would bill them twice: they stay ours.
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
                else:  # a thread may begin one of them at this moment, and the script knows who was first
                    HELD.orphans.update(back)
                    self.channel.lanes.restore_unbegun(back)
        self._delivered.clear()

    def let_go(self, tag: str) -> None:
        """The message is no longer in hand here; a call's lease gives it back."""
        self._done(tag)

    def give_up(self, delivery_tag: str) -> None:
        """Forget a message that was set aside after it had been delivered; what it had begun was ended with that."""
        if self._of_a_call(delivery_tag):
            self._done(delivery_tag)
        else:
            super().ack(delivery_tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """As kombu's; an entry of its ledger that cannot be read is set aside, or it would end every worker in turn."""
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
        """A body that lies apart goes with its message: whoever took the message has read it."""
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
    """A message whose body may lie apart; what goes to Redis (`_raw`, for the stock ledger) keeps the reference."""

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
    _calls_first = True  #: whether the ready lists are asked before the stock ones
    _routed = False  #: whether a queue was found for what is being published
    _in_poll: Any
    _brpop_sent_at: Any

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        told = super()._connparams()
        params = server_of(self.connection.client).parameters(**told)
        if asynchronous:
            params["connection_class"] = self._watched(params["connection_class"])
        return params

    def _watched(self, kind: type) -> type:
        """A kind of connection that tells the poller when it closes, as kombu's."""
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
        # kombu builds a client per command; one per channel is as good and cheaper
        yield client or self._keep()[1]

    def wake(self) -> None:
        """A slot is free."""
        if self.connection is not None:  # else the channel is closed, and nobody waits here
            self.connection.wake()

    @property
    def lanes(self) -> Lanes:
        """The lanes, over this channel's connections."""
        return self._keep()[2]

    @property
    def asked(self) -> Asked | None:
        """What the app of this channel answers; None: a connection of nobody's."""
        return asked_of(self.connection.client) if self.connection is not None else None

    def _keep(self) -> tuple[Any, Any, Lanes]:
        kept = self._kept
        if kept is not None and (self.closed or self._closing):
            return kept  # a late ack on a closed channel: redis-py's pool reconnects by itself
        try:
            pool = self.pool
        except AttributeError:  # the connection object is dismantled already
            if kept is None:
                raise
            return kept
        if kept is None or kept[0] is not pool:
            client = self._create_client()
            # kombu's own clients put the prefix before the keys of those commands that kombu uses
            prefix = self.global_keyprefix
            ours = Namespaced(connection_pool=pool, namespace=prefix) if prefix else client
            kept = self._kept = (pool, client, Lanes(ours))
        return kept

    def basic_publish(self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any) -> Any:
        """As kombu's; a call for which no queue is bound is refused. Stock drops such a message without a word.

        Raises:
            BadInput: a call's exchange and routing key lead nowhere, or to everybody.
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
            seen = prepared(message)  # what it holds is to be known: calls, or prompts in a canvas
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
        placed = self.lanes.enqueue(entry(queue, seen, plan, self.asked))
        if placed.answer is not None:
            raise AnsweredAlready(placed.answer, placed.stored)

    def _without_prompts(self, message: dict[str, Any]) -> dict[str, Any]:
        """An ordinary task's message; its body goes apart when links, chord or arguments in it hold calls."""
        headers = message.get("headers")
        asked = self.asked
        if asked is None or not isinstance(headers, dict) or "task" not in headers:
            return message
        body = base64.b64decode(message["body"]) if message["properties"].get("body_encoding") == "base64" else b""
        if message.get("content-type") == JSON:
            holds_calls = any(asked.is_call(name.decode()) for name in set(SIGNATURE.findall(body)))
        else:  # pickle, YAML, msgpack: each writes a text as its bytes
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
        """Ask for the next message of all queues: calls that are released to this worker's crew, and what is stock.

        Whichever came last stands behind the other, so that neither starves.
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
        except RecursionError:  # a broadcast that is nested without an end: kombu knows all other kinds
            self.set_aside(b"", "a broadcast is nested too deep", "")
            return None

    def set_aside(self, raw: bytes, why: str, queue: str) -> None:
        """Put a message where nobody trips over it again."""
        fields = {"queue": queue, "why": why, "bytes": len(raw)}
        log.error("message.set_aside queue=%s bytes=%d why=%s", queue, len(raw), why, extra=fields)
        self.lanes.set_aside(raw, why)
        self._end(raw, why, queue)

    def decline(self, message: Mapping[str, Any], queue: str) -> bool:
        """Give a released call back whose task is unknown here → False: it is none."""
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
        except Exception as error:  # the same: it is left to its lease
            if _is_the_brokers(error):
                raise
            log.exception("message.not_ended", extra={"cause": type(error).__name__})

    def _size(self, queue: str) -> int:
        return int(super()._size(queue)) + self._calls(queue)

    def _purge(self, queue: str) -> int:
        return self.lanes.purge(queue) + self._purge_ordinary(queue)

    def _purge_ordinary(self, queue: str) -> int:
        """Forget the ordinary tasks of a queue, and with them the bodies that lie apart → how many."""
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
    """One for pools of greenlets, whose worker has no loop of its own.

    While all slots are taken nothing is read, and nothing wakes who waits for messages; so a free slot does.
    """

    _ear: socket.socket | None = None
    _mouth: socket.socket | None = None
    _woken = False

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """As kombu's; `wake` ends the wait."""
        if self._ear is None:  # only who consumes needs one
            self._ear, self._mouth = socket.socketpair()
            for end in (self._ear, self._mouth):
                end.setblocking(False)
            self.poller.register(self._ear, READ)
        return super().get(callback, timeout)

    def wake(self) -> None:
        """Let `get` look again, now or when it is next called. Twice is once."""
        if self._mouth is not None and not self._woken:
            self._woken = True
            self._mouth.send(b".")

    @property
    def fds(self) -> dict[int, Any]:
        """What it waits for; never nothing, or kombu would sleep instead."""
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
        """No: each call is a decision of its own (LaneFull, bad input), which a pipeline cannot report."""
        return False

    cycle: Any

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if detect_environment() != "default":
            self.cycle = WakefulPoller()

    def wake(self) -> None:
        """A slot is free: who waits for messages looks whether it may read on."""
        if isinstance(self.cycle, WakefulPoller):
            self.cycle.wake()

    def _deliver(self, message: Any, queue: str, raw: bytes | None = None) -> None:
        """Hand a message to whoever consumes its queue; whatever it holds, it ends nobody.

        Args:
            raw: As it was read; None: it came by another way (a broadcast), and is written as JSON again.
        """
        try:
            self._take(message, queue, raw)
        except Exception as error:
            # Every field that Celery reads is checked before; this is for those that nobody thought of.
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
        # A lane alone is what a producer without this package asks for: `send_task(…, lane=…)`.
        if queue in INTAKE.queues and not (_is_call(message) and "lane" in message["properties"]):
            try:
                if _pace(channel, queue, message):
                    return
            except BadInput as error:
                self._set_aside(message, queue, raw, str(error))
                return
        apart = (message.get("headers") or {}).get(BODY_HEADER)
        if apart is not None and not channel.lanes.client.exists(keys.payload(apart)):
            if message["headers"].get("redelivered"):  # it was restored while the first delivery was still being run
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
    """Whether an error says nothing of the message that was handled: the broker, or a result backend, is not there."""
    if isinstance(error, ResponseError):
        return passes(error) or isinstance(error, NoPermissionError)
    return isinstance(error, RedisConnectionError | RedisTimeoutError | OperationalError | OSError)


def _tag_of(message: Any) -> str:
    """The delivery tag of a message of any shape; "": it has none."""
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    return tag if isinstance(tag, str) else ""


def _pace(channel: Channel, queue: str, message: Mapping[str, Any]) -> bool:
    """Put a call that a stock producer pushed past its lane into it → False when it is no call.

    Nobody is there to be told of a full lane or of an answer that is known: it is let in, and answered in its turn.
    """
    asked = channel.asked
    plan = _plan_of(message, asked)
    if plan is None:
        return False
    shedding = Shedding.RESULT if plan.shedding is not None else None
    told = structs.replace(plan, sender=Sender.NOBODY, max_waiting=0, shedding=shedding)
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
    """A published message as an entry of its lane: body apart, times relative, nothing of the arguments in it.

    Raises:
        BadInput: the arguments are no JSON that every reader takes, or too large.
    """
    headers = dict(message["headers"])  # kombu hands the same dict to every attempt to publish: never change it
    body = _checked(base64.b64decode(message["body"]), message, plan)
    now = time()
    due = _epoch(headers["eta"]) - now if headers.get("eta") else 0.0
    args, kwargs, canvas = json.loads(body)
    asks = digest(headers["task"], plan.lane, [args, kwargs])
    claim = result = None
    # A call for later shares nothing: it would be answered before its time, or keep those of now waiting for it.
    if plan.sharing is not None and (due <= 0 or plan.goes_on):
        if not plan.goes_on:
            plan = structs.replace(plan, fingerprint=_fingerprint(asked, headers["task"], plan, args, kwargs))
        alone = not headers.get("group") and not any((canvas or {}).values())
        claim = Claim.of(plan, headers["task"], at_once=plan.sender is Sender.CALLER and alone)
        if claim is not None and claim.at_once and asked is not None and not headers.get("ignore_result"):
            result = asked.result_form(headers["task"], headers["id"])
    headers[HEADER] = plan.encode()
    expires = _epoch(headers["expires"]) if headers.get("expires") else plan.deadline_s
    headers["eta"] = None  # the call waits in its lane, the worker must not wait again
    headers["argsrepr"], headers["kwargsrepr"] = _summary(plan, len(body)), "{}"
    properties = {
        **message["properties"],
        "lane": plan.lane,
        "delivery_info": {"redelivered": False, **message["properties"]["delivery_info"]},
        "priority": 0,
    }
    for name in ("delivery_tag", "argsrepr", "kwargsrepr"):
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


def _fingerprint(asked: Asked | None, task: str, plan: Plan, args: list[Any], kwargs: dict[str, Any]) -> str:
    if asked is not None:
        return asked.fingerprint(task, plan, args, kwargs)
    return fingerprint(scope_of(plan, task), ANY.bound(args, kwargs))


def _publication(headers: Mapping[str, Any], plan: Plan, asks: str) -> str:
    """What tells this message from others of its task id: of which publication it is, what it asks, and who sends it.

    o: an agent makes a call. Made again under its id it is the same one; the id of another call is refused.
    c: a worker goes on with a canvas, or a stock producer has pushed it: nobody is there to be refused.
    a: the same call goes on (`self.retry`, `self.replace`), or is made anew though it has ended (`run`).
    """
    if plan.goes_on or plan.is_anew or headers.get("replaced_task_nesting"):
        how = "a"
    else:
        how = "c" if headers.get("parent_id") or plan.sender is Sender.NOBODY else "o"
    return f"{plan.publication}:{asks[:16]}:{how}"


def _plan_of(message: Mapping[str, Any], asked: Asked | None) -> Plan | None:
    """The plan of a call: that of its header, or one made now for a call that was sent by its name; None: no call."""
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
