"""The producers of an app with lanes: they keep what kombu closes or copies for each message.

kombu closes the connection of a pooled producer after every exception inside its `with` block. The next call would then
need two new connections, a PING and a declaration of its queue. But a full lane is no fault of the connection.

With every message kombu copies the queue, to find out that it is declared, and with every loan from the pool the
producer's exchange: an eighth of the processor time of a `.delay()`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from celery.app.amqp import AMQP
from kombu import Producer
from kombu.connection import Connection, is_connection
from kombu.utils.functional import ChannelPromise

from ratelimit_worker.errors import RateLimitWorkerError, StoreUnavailable


class KeepsConnection(Producer):
    """A producer that does not close its connection for our own refusals, and copies nothing that it has already."""

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """As kombu's, but without a copy of an entity that its connection has declared already."""
        transport = self.channel.connection
        known = transport is not None and entity and entity.can_cache_declaration
        if known and hash(entity) in transport.client.declared_entities:
            return False
        return super().maybe_declare(entity, retry, **retry_policy)

    def revive(self, channel: Any) -> None:
        """As kombu's, but without a copy of an exchange that is bound already; the channel opens at its first use."""
        exchange: Any = self.exchange
        if is_connection(channel) and exchange.is_bound:
            self.__connection__: Any = channel
            self._channel = ChannelPromise(lambda: channel.default_channel)
        else:
            super().revive(channel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        refused = isinstance(error, RateLimitWorkerError) and not isinstance(error, StoreUnavailable)
        super().__exit__(*(None, None, None) if refused else (kind, error, trace))


def amqp_with(base: type[AMQP], connection: type[Connection]) -> type[AMQP]:
    """The class of an app's `amqp`, with such producers over these connections."""

    class Messages(base):
        Connection = connection

        @property
        def producer_pool(self) -> Any:
            pool = super().producer_pool
            pool.Producer = KeepsConnection
            return pool

        publisher_pool = producer_pool

    return Messages
