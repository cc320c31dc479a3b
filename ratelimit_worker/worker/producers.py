"""What becomes of a connection over which a call was refused? It stays in the pool.

kombu throws away the connection of a pooled producer after every exception inside its `with`, a group's say: two new
connections, PING and a declaration of the queue for the next call. A full lane says nothing of a connection.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from celery.app.amqp import AMQP
from kombu import Producer
from kombu.connection import Connection

from ratelimit_worker.errors import RateLimitWorkerError, StoreUnavailable


class KeepsConnection(Producer):
    """A producer that closes no connection for a refusal of ours."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = isinstance(error, RateLimitWorkerError) and not isinstance(error, StoreUnavailable)
        super().__exit__(*(None, None, None) if refused else (kind, error, trace))


def amqp_with(base: type[AMQP], connection: type[Connection]) -> type[AMQP]:
    """The class of an app's messages, with such producers over these connections."""

    class Messages(base):
        Connection = connection

        @property
        def producer_pool(self) -> Any:
            pool = super().producer_pool
            pool.Producer = KeepsConnection
            return pool

        publisher_pool = producer_pool

    return Messages
