"""The HTTP server: one process, one event loop, one provider.

A request's line is in the log before anything is sent, so that whatever a client may have seen is there even if the
process is killed right after that.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

import msgspec

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.simulate.arrivals import Arrival, Incident, Started
from ratelimit_worker.simulate.counters import Counters, Stats
from ratelimit_worker.simulate.http1 import BadRequest, Reader, Request, render
from ratelimit_worker.simulate.provider import Ending, Provider, Verdict
from ratelimit_worker.simulate.scenario import Entry, Scenario, TimelineStart, entry_of
from ratelimit_worker.simulate.timeline import Planned, shuts_the_door

_NO_LINGER = struct.pack("ii", 1, 0)  # closing sends RST instead of FIN
_CLOSE = "connection: close\r\n"
_BACKLOG = 4096
_DRIP_S = 0.2  # time between two bytes of an answer that comes a byte at a time


async def serve(scenario: Scenario, host: str = "127.0.0.1", port: int = 0, log: Path | None = None) -> Server:
    """Start a simulated provider on this event loop; it serves until it is closed.

    Args:
        port: 0: any free one.
        log: File to which arrivals are appended as JSON lines; None: a nameless one, read by /_log.
    Raises:
        OSError: The port is taken or the log cannot be written.
    """
    server = Server(scenario, host, log)
    try:
        await server.open(port)
        if server.failed.done():
            server.failed.result()
    except BaseException:
        await server.close()
        raise
    return server


class Server:
    """A simulated provider that listens; made by `serve`, closed by `close` or at the end of its `async with`."""

    def __init__(self, scenario: Scenario, host: str, log: Path | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._host, self._port = host, 0
        # A nameless file instead of a list: the log of a long run need not fit into memory.
        self._log: IO[bytes] = tempfile.TemporaryFile() if log is None else log.open("a+b")  # noqa: SIM115
        self._log_start = self._log.seek(0, os.SEEK_END)
        self._start_s, self._start_unix_s = self._loop.time(), time.time()
        self._provider = Provider(scenario, self._start_s, os.urandom(4).hex())
        self._counters = Counters()
        self._under_way: dict[int, Verdict] = {}  # by request, from its decision until it is no longer in flight
        self._connections: set[Connection] = set()
        self._listener: asyncio.Server | None = None
        self._held_port: socket.socket | None = None  # bound and not listening, during an outage of kind "refused"
        self._doors: set[asyncio.TimerHandle] = set()
        self._closed = False
        #: Done when the server cannot go on (its log cannot be written, it has a bug); the exception says why.
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._write(Started(unix=self._start_unix_s, pid=os.getpid(), scenario=msgspec.Raw(scenario.as_json())))

    @property
    def url(self) -> str:
        """The server's address, such as http://127.0.0.1:8080, which is Anthropic's base URL."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    @property
    def base_url(self) -> str:
        """OpenAI's base URL."""
        return f"{self.url}/v1"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self, port: int) -> None:
        """Listen. Called by `serve`."""
        self._listener = await self._loop.create_server(
            lambda: Connection(self), self._host, port, backlog=_BACKLOG, reuse_address=True
        )
        self._port = self._listener.sockets[0].getsockname()[1]
        if self._provider.scenario.timeline_from is TimelineStart.START:
            self._plan_doors(self._provider.begin(self._loop.time()))

    async def close(self) -> None:
        """Stop listening, reset what is open, close the log."""
        if self._closed:
            return
        self._closed = True
        for door in self._doors:
            door.cancel()
        if self._listener is not None:
            self._listener.close()
        if self._held_port is not None:
            self._held_port.close()
        for connection in list(self._connections):
            connection.abort("aborted")
        await asyncio.sleep(0)  # lets the transports call connection_lost
        self._log.close()
        if not self.failed.done():
            self.failed.cancel()

    def broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An event loop's exception handler: after an error of its own the server ends, as its log proves nothing."""
        loop.default_exception_handler(context)
        self._fail(context.get("exception") or RuntimeError(context["message"]))

    def stats(self) -> Stats:
        """All counts as they stand."""
        now_s = self._loop.time()
        return self._counters.stats(self._provider.limits(now_s), now_s - self._start_s)

    def control(self, entries: Iterable[Entry], *, clear: bool = False) -> None:
        """Put entries on the timeline, `at_s` seconds from now; `clear` forgets all others first."""
        if clear:
            self._provider.timeline.clear()
        self._plan_doors(self._provider.timeline.plan(entries, self._loop.time()))
        self._loop.call_soon(self._update_door)  # after the answer to /_control has left

    # --- requests ---------------------------------------------------------------------------------------------------

    def handle(self, connection: Connection, request: Request) -> None:
        """Decide a request and answer it in due time."""
        if request.path.startswith("/_"):
            last = request.path == "/_control"
            if last:  # it may begin an outage, which resets every connection except its own
                self._connections.discard(connection)
            connection.send(self._own_page(request), request.keep_alive and not last)
            return
        now_s = self._loop.time()
        if not self._provider.begun:  # the first request starts the timeline, unless the server's start has
            self._plan_doors(self._provider.begin(now_s))
        # One clock for both times: `unix` must not jump against `t` if the machine's clock is set.
        verdict = self._provider.decide(request, now_s, self._start_unix_s + now_s - self._start_s)
        self._counters.arrived(verdict.arrival)
        self._write(verdict.arrival)
        self._under_way[verdict.arrival.n] = verdict
        if verdict.ending is Ending.HANG:
            connection.wait(verdict.arrival.n, None)
            return
        latency_s = verdict.arrival.latency_s
        if latency_s <= 0:
            self._end(connection, verdict, request.keep_alive)
            return
        timer = self._loop.call_at(now_s + latency_s, self._end, connection, verdict, request.keep_alive)
        connection.wait(verdict.arrival.n, timer)

    def gone(self, connection: Connection, number: int | None) -> None:
        """A connection is lost; `number` is the request that was under way."""
        self._connections.discard(connection)
        if number is not None:
            self._left(number)
            self._counters.ended(answered=False)
            self._incident("gone", number)

    def bad_request(self, connection: Connection, error: BadRequest) -> None:
        """Answer bytes that are not HTTP."""
        self._incident("bad_request", None)
        body = msgspec.json.encode({"error": {"message": error.message, "type": "invalid_request_error"}})
        connection.send(render(error.status, _CLOSE, body), keep_alive=False)

    def aborted(self, what: str, number: int) -> None:
        """The server has reset a connection while a request was under way."""
        self._left(number)
        self._counters.ended(answered=False)
        self._incident(what, number)

    def opened(self, connection: Connection) -> None:
        """A client connected."""
        self._connections.add(connection)

    def _end(self, connection: Connection, verdict: Verdict, keep_alive: bool) -> None:
        self._left(verdict.arrival.n)
        self._provider.give_back(verdict, self._loop.time())
        if verdict.ending is Ending.RESET:
            connection.wait(verdict.arrival.n, None)
            connection.abort("reset")
            return
        if verdict.ending is Ending.DRIP:
            self._drip(connection, verdict.arrival.n, verdict.answer)
            return
        self._counters.ended(answered=True)
        connection.send(verdict.answer, keep_alive and verdict.ending is Ending.ANSWER)

    def _drip(self, connection: Connection, number: int, part: bytes = b" ") -> None:
        connection.write(part)
        connection.wait(number, self._loop.call_later(_DRIP_S, self._drip, connection, number))

    def _left(self, number: int) -> None:
        """A request is no longer in flight, in whichever way it ended."""
        if (verdict := self._under_way.pop(number, None)) is not None:
            self._provider.ended(verdict)

    def _own_page(self, request: Request) -> bytes:
        match request.method, request.path:
            case "GET", "/_stats":
                return render(200, "", msgspec.json.encode(self.stats()))
            case "GET", "/_log":
                return render(200, "", self._logged(), content_type="application/x-ndjson")
            case "POST", "/_control":
                try:
                    entries, clear = _read_control(request.body)
                except ConfigurationError as error:
                    return render(400, _CLOSE, msgspec.json.encode({"error": str(error)}))
                self.control(entries, clear=clear)
                return render(200, _CLOSE, msgspec.json.encode({"planned": len(entries)}))
        message = f"{request.method} {request.path} is not known: GET /_stats, GET /_log or POST /_control"
        return render(404, "", msgspec.json.encode({"error": message}))

    # --- log --------------------------------------------------------------------------------------------------------

    def _incident(self, what: str, number: int | None) -> None:
        t = self._loop.time() - self._start_s
        incident = Incident(what=what, t=t, unix=self._start_unix_s + t, n=number)
        self._counters.incident(incident)
        self._write(incident)

    def _write(self, line: Arrival | Incident | Started) -> None:
        try:
            self._log.write(msgspec.json.encode(line) + b"\n")
            self._log.flush()  # to the operating system, so that nothing is lost if this process dies
        except OSError as error:
            # A log with gaps proves nothing, so whoever runs the server ends it.
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _logged(self) -> bytes:
        descriptor, chunks, offset = self._log.fileno(), [], self._log_start
        while chunk := os.pread(descriptor, 1 << 20, offset):
            chunks.append(chunk)
            offset += len(chunk)
        return b"".join(chunks)

    # --- the door: shut in an outage of kind "refused", in which nothing listens --------------------------------------

    def _plan_doors(self, planned: Iterable[Planned]) -> None:
        for one in planned:
            if shuts_the_door(one.entry):
                for edge_s in (one.start_s, one.end_s):
                    self._doors.add(self._loop.call_at(edge_s, self._update_door))

    def _update_door(self) -> None:
        # A timer may fire a clock tick early, so the next millisecond is looked at.
        shut = self._provider.timeline.door_shut(self._loop.time() + 0.001)
        if shut and self._listener is not None:
            self._listener.close()
            self._listener = None
            # A bound socket that does not listen refuses connections and keeps the port from everybody else.
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._held_port = socket.socket(family, socket.SOCK_STREAM)
            self._held_port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._held_port.bind((self._host, self._port))
            for connection in list(self._connections):
                connection.abort("aborted")
        elif not shut and self._held_port is not None:
            held, self._held_port = self._held_port, None
            self._loop.create_task(self._listen_again(held)).add_done_callback(self._listening_again)

    async def _listen_again(self, held: socket.socket) -> None:
        self._listener = await self._loop.create_server(lambda: Connection(self), sock=held, backlog=_BACKLOG)

    def _listening_again(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other; the next is read when the last was answered."""

    __slots__ = ("_busy", "_number", "_reader", "_server", "_timer", "_transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._number: int | None = None  # of the request that waits for its answer
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if not self._busy:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        number, self._number = self._number, None
        self._server.gone(self, number)

    def wait(self, number: int, timer: asyncio.TimerHandle | None) -> None:
        """Request `number` is under way."""
        self._number, self._timer = number, timer

    def write(self, part: bytes) -> None:
        """Send a part of an answer; the request stays under way."""
        if self._transport is not None:
            self._transport.write(part)

    def send(self, answer: bytes, keep_alive: bool) -> None:
        """Answer the request, then go on to the next or close."""
        self._number = self._timer = None
        if self._transport is None:
            return
        self._transport.write(answer)
        if not keep_alive:
            self._transport.close()
            return
        self._busy = False
        self._next()

    def abort(self, what: str) -> None:
        """Reset the connection; `what` is logged if a request was under way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._number is not None:
            number, self._number = self._number, None
            self._server.aborted(what, number)
        if self._transport is not None:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()

    def _next(self) -> None:
        try:
            request = self._reader.next()
        except BadRequest as error:
            self._busy = True
            self._server.bad_request(self, error)
            return
        if request is not None:
            self._busy = True
            self._server.handle(self, request)
        elif self._reader.expects_continue and self._transport is not None:
            self._reader.expects_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _read_control(body: bytes) -> tuple[list[Entry], bool]:
    """Entries of a /_control request, and whether it clears the timeline first."""
    try:
        raw = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"not JSON: {error}") from error
    tables = raw if isinstance(raw, list) else [raw]
    clear = False
    entries = []
    for table in tables:
        if isinstance(table, dict) and "clear" in table:
            clear = clear or bool(table.pop("clear"))
            if not table:
                continue
        entries.append(entry_of(table))
    return entries, clear
