"""Does an attempt end well, whatever a provider answers? Status, headers and body of any kind.

Through the built-in providers' client over a socket, then what the lane learns of it; and a real worker beside.
"""

from __future__ import annotations

import math
import os
import random
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import httpx2 as httpx
import pytest
from celery.result import AsyncResult
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import DecodeError

from ratelimit_worker.calls import Failure, LaneLimits, Response
from ratelimit_worker.errors import RateLimitWorkerError
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.policy import endpoints
from ratelimit_worker.policy import headers as read
from ratelimit_worker.policy.classification import classify_exception, classify_response
from ratelimit_worker.policy.usage import finish_reason_of, usage_of
from ratelimit_worker.providers import anthropic, http, openai
from ratelimit_worker.providers.http import ProviderRefused
from ratelimit_worker.wiring import services
from tests import hostile
from tests.conftest import wait_for
from tests.fleet import Fleet, fleet
from tests.properties import share

ASKED = re.compile(rb"question (\d+)")
SLOTS, HEAP = 4, 100


class _Provider(socketserver.BaseRequestHandler):
    """One request a connection; its answer follows from the number in its question."""

    def handle(self) -> None:
        asked = b""
        while not (found := ASKED.search(asked)):
            part = self.request.recv(65536)
            if not part:
                return
            asked += part
        status, headers, body = hostile.answer(random.Random(int(found[1])))
        told = {"content-length": str(len(body)), "connection": "close", **headers}
        lines = [f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in told.items()), "", ""]
        self.request.sendall("\r\n".join(lines).encode() + body)


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address, request_queue_size = True, True, 128


@contextmanager
def provider() -> Iterator[str]:
    """Its base URL."""
    with _Server(("127.0.0.1", 0), _Provider) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with provider() as url:
        yield url


def understood(response: Response) -> None:
    """What is read of an answer is a number, or nothing."""
    for body in (response.body, None):
        asked_s = read.retry_after_s(response.headers, body, now_s=1.8e9)
        assert asked_s is None or 0 <= asked_s <= 86_400
    for snapshot in read.snapshots(response.headers, now_s=1.8e9).values():
        for value in (snapshot.limit, snapshot.remaining):
            assert value is None or (math.isfinite(value) and value >= 0), snapshot
    read.refused_dimension(response.headers, response.body)
    read.stated_limit(response.body)
    read.about_concurrency(response.body)
    for error in (None, ProviderRefused(response)):
        failure = classify_response(response) if error is None else classify_exception(error)
        if failure is not None and failure.retry_after_s is not None:
            assert 0 <= failure.retry_after_s <= 86_400
    usage_of(response.body)
    finish_reason_of(response.body)
    for shape in (openai, anthropic):
        shape.refusal(response.body)


@settings(max_examples=share(0.5))
@given(seed=st.integers(0, 2**32))
def test_any_answer_is_read(seed: int) -> None:
    """Twenty answers as values: each is classified, and no number in them is absurd."""
    for n in range(20):
        status, headers, raw = hostile.answer(random.Random(seed + n))
        answer = httpx.Response(status, headers=[(a.encode(), b.encode()) for a, b in headers.items()], content=raw)
        operation = endpoints.operation_of(openai.CHAT_PATH)
        response, _ = http._response(answer, bytearray(raw), f"/v1{openai.CHAT_PATH}", operation, 0.05, 0.1)
        understood(response)


@settings(max_examples=share(0.2))
@given(seed=st.integers(0, 2**32))
def test_any_answer_comes_through_the_client(base_url: str, seed: int) -> None:
    """Ten answers over a socket: an answer, or an error that is classified."""
    to, failed = openai.endpoint({"OPENAI_BASE_URL": base_url}), list[tuple[Failure | None, Exception]]()
    for n in range(10):
        body = {"model": "m", "messages": [{"role": "user", "content": f"question {seed + n}"}]}
        try:
            understood(openai.request(to, openai.CHAT_PATH, body, 30.0))
        except (ProviderRefused, RateLimitWorkerError, httpx.HTTPError) as error:
            failed.append((classify_exception(error), error))
    assert [error for failure, error in failed if failure is None] == []


@pytest.fixture(scope="module")
def answered(base_url: str) -> Iterator[tuple[Fleet, ModuleType]]:
    """A worker whose provider answers so."""
    with fleet(OPENAI_BASE_URL=base_url, OPENAI_API_KEY="k") as made:
        made.worker("asks", "-P", "threads", "-c", str(SLOTS))
        tasks = made.agent()
        services().lanes.set_points("free", limit_fields(LaneLimits(unlimited=True)))
        yield made, tasks
        made.valkey.client.flushall()


def ended(result: AsyncResult) -> bool:
    """Whether its caller is told. kombu's JSON takes an object with `__type__` for a value of its own, as in every
    Celery: where a provider sends one that is none, that is what the caller is told."""
    try:
        return bool(result.ready())
    except DecodeError:
        return True


def survive(answered: tuple[Fleet, ModuleType], seed: int) -> None:
    """A heap of calls, each with its answer; all end, at their deadlines at the latest, and all slots are free."""
    made, tasks = answered
    worker = made.workers[0]
    asked = [
        tasks.chat.apply_async((seed * HEAP + n,), lane=f"h-{seed % 100}-{n % 20}", deadline_s=4.0) for n in range(HEAP)
    ]

    def says() -> str:
        return f"seed {seed}: {worker.log()[-3000:]}"

    def alive_and(done: bool) -> bool:
        assert worker.process.poll() is None, says()
        return done

    wait_for(lambda: alive_and(all(ended(one) for one in asked)), 120.0, says)
    meeting = [tasks.meet.delay(SLOTS, f"meet-{seed}") for _ in range(SLOTS)]
    wait_for(lambda: alive_and(all(one.ready() for one in meeting)), 120.0, says)
    assert [one.state for one in meeting] == ["SUCCESS"] * SLOTS, says()
    assert "duty.failed" not in worker.log(), says()


@pytest.mark.worker
@settings(max_examples=share(0.02))
@given(seed=st.integers(0, 2**24))
def test_no_answer_stops_a_worker(answered: tuple[Fleet, ModuleType], seed: int) -> None:
    """A hundred calls have an answer or an error each, no duty fails, no slot is lost."""
    assert os.environ["OPENAI_BASE_URL"]
    survive(answered, seed)
