"""Which notices are on their way? A bounded stream; a notice leaves it when the web hook has taken it.

A mode change enters it in the transaction that puts the change into the outbox, so neither is there without the other,
and a notice does not wait for the tracking database. In the same transaction the change is added to the news, a list
that the rules of alerts read (`flow.duty.evaluate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from redis import Redis

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.policy import alerts
from ratelimit_worker.policy.alerts import KEEP_S, Notice, Waiting
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.reach import redis_errors

MOST = 1_000  #: most notices that wait; beyond that, the oldest are dropped
NEWS_MOST = 1_000  #: most changes in the news; beyond that, the oldest are dropped, and a look at the lanes corrects it
HOOK_KEPT_S = 30 * 86_400  #: seconds since it was last used
_ID, _BODY = b"i", b"b"
_HOOK, _SINCE = "hook", "since"


class Alerts:
    """Notices of one Redis server. All methods raise `StoreUnavailable` where it is away, full or read-only."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def hook_since(self, digest: str, used_s: float) -> float:
        """Since when this web hook is in use, seconds since the epoch, Redis clock.

        Args:
            digest: Of its address, which is a secret.
            used_s: For how long the caller has had it, seconds: if it is new, it is in use since then.
        """
        with redis_errors():
            found: Any = self._client.hmget(keys.ALERT_HOOK, [_HOOK, _SINCE])
            held, since = found
            if held is not None and since is not None and held.decode() == digest:
                since_s = float(since)
            else:
                since_s = redis_now_s(self._client) - used_s
                since_s = math.floor(since_s * 1000) / 1000  # ids of the stream have milliseconds
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(keys.ALERT_HOOK, mapping={_HOOK: digest, _SINCE: f"{since_s:.6f}"})
                pipe.expire(keys.ALERT_HOOK, HOOK_KEPT_S)
                pipe.execute()
        return since_s

    def first(self) -> Waiting | None:
        """The oldest notice that waits; None: none does. Notices that were sent before and added again are removed."""
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
        """Remove a notice that was sent, or never will be."""
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
    """Add the notice of a mode change, and the change for the news, to a transaction; nothing if the mode stays."""
    notice = alerts.of_change(change)
    if notice is None:
        return
    put_notice(pipe, notice)
    pipe.rpush(keys.ALERT_NEWS, msgspec.json.encode(change))
    pipe.ltrim(keys.ALERT_NEWS, -NEWS_MOST, -1)
    pipe.pexpire(keys.ALERT_NEWS, int(KEEP_S * 1000))


def put_notice(pipe: Any, notice: Notice) -> None:
    """Add a notice to a transaction."""
    body = msgspec.json.encode(notice.as_json())
    pipe.xadd(keys.ALERTS, {_ID: notice.id, _BODY: body}, maxlen=MOST, approximate=False)
    pipe.pexpire(keys.ALERTS, int(KEEP_S * 1000))
