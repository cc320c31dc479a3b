"""Which alerts are on their way? A bounded stream; an alert leaves it when the web hook has taken it.

A mode change enters it in the transaction that puts the change into the outbox, so neither is there without the other,
and an alert does not wait for the tracking database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis import Redis

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.policy import alerts
from ratelimit_worker.policy.alerts import KEEP_S, Alert, Waiting
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors

MOST = 1_000  #: alerts that wait; beyond, the oldest go
_ID, _BODY = b"i", b"b"


class Alerts:
    """Alerts of one Redis server. All methods raise `StoreUnavailable` where it is away, full or read-only."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def add_once(self, alert: Alert, quiet_s: float) -> bool:
        """Put it at the end, unless one of this event and lane was within `quiet_s` → whether it was.

        The quiet time begins anew with each call, so what goes on is told once.
        """
        topic = keys.alerted(alert.event, alert.lane)
        with redis_errors():
            new = not self._client.exists(topic)
            with self._client.pipeline(transaction=True) as pipe:
                if new:
                    _put(pipe, alert)
                pipe.set(topic, alert.id, px=int(quiet_s * 1000))
                pipe.execute()
        return new

    def first(self) -> Waiting | None:
        """The oldest that waits; what was told already, and was put in again, goes on the way."""
        with redis_errors():
            while found := self._oldest():
                raw_id, values = found
                waiting = Waiting(
                    entry=raw_id.decode(),
                    id=values.get(_ID, b"").decode("utf-8", "replace"),
                    body=values.get(_BODY, b""),
                    since_s=int(raw_id.partition(b"-")[0]) / 1000,
                )
                if waiting.body and self._client.zscore(keys.ALERTED, waiting.id) is None:
                    return waiting
                self._client.xdel(keys.ALERTS, waiting.entry)
        return None

    def done(self, waiting: Waiting) -> None:
        """It was told, or never will be."""
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.xdel(keys.ALERTS, waiting.entry)
            pipe.zadd(keys.ALERTED, {waiting.id: waiting.since_s})
            pipe.zremrangebyrank(keys.ALERTED, 0, -MOST - 1)
            pipe.pexpire(keys.ALERTED, int(2 * KEEP_S * 1000))
            pipe.execute()

    def _oldest(self) -> tuple[bytes, dict[bytes, bytes]] | None:
        entries: Sequence[Any] = self._client.xrange(keys.ALERTS, count=1)  # type: ignore[assignment]
        return entries[0] if entries else None


def put_change(pipe: Any, change: ModeChange) -> None:
    """Add what is to be told of a mode change, if anything, to a transaction."""
    alert = alerts.of_change(change)
    if alert is not None:
        _put(pipe, alert)


def _put(pipe: Any, alert: Alert) -> None:
    body = msgspec.json.encode(alert.as_json())
    pipe.xadd(keys.ALERTS, {_ID: alert.id, _BODY: body}, maxlen=MOST, approximate=False)
    pipe.pexpire(keys.ALERTS, int(KEEP_S * 1000))
