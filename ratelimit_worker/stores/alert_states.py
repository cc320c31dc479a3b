"""Which alerts are open, and which are about to be? A hash in Redis, so that they survive the process that looks.

The change of an alert, its notice and its row for the tracking database are written in one transaction, which fails if
another process has changed the hash since it was read: if two look at once, an alert still opens once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from redis import Redis, WatchError

from ratelimit_worker.calls import ModeChange
from ratelimit_worker.contracts.alert import Alert, Book, Silence, decode, decode_silence, encode
from ratelimit_worker.errors import BadInput, StoreUnavailable
from ratelimit_worker.policy.alert_states import Change
from ratelimit_worker.policy.alerts import of_alert
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.alerts import NEWS_MOST, put_notice
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.reach import redis_errors

log = logging.getLogger(__name__)

KEEP_S = 30 * 86_400  #: seconds after the last look
RECORDS_MOST = 1_000  #: most rows on their way to the tracking database; further changes get none
NEWS_AT_ONCE = 100
SILENCES_MOST = 200
AT = "at"  #: two fields of the hash that are not alerts: when the rules last looked, and what they counted then
SET_ASIDE = "set_aside"
_OURS = frozenset({AT.encode(), SET_ASIDE.encode()})
_change = msgspec.json.Decoder(ModeChange).decode
_TRIES = 5


class AlertStates:
    """Alerts of one Redis server. All methods raise `StoreUnavailable` where it is away, full or read-only."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def read(self) -> Book:
        """All alerts that are open or about to be, and the mode changes that the rules have not seen."""
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            pipe.hgetall(keys.ALERT_STATES)
            pipe.lrange(keys.ALERT_NEWS, 0, NEWS_AT_ONCE - 1)
            pipe.hlen(keys.ALERT_RECORDS)
            pipe.time()
            fields, news, records, (seconds, micros) = pipe.execute()
        return Book(
            now_s=seconds + micros / 1e6,
            alerts=_alerts(fields),
            looked_s=_float(fields.get(AT.encode())),
            set_aside=None if (counted := _float(fields.get(SET_ASIDE.encode()))) is None else int(counted),
            news=[one for raw in news if (one := _news(raw)) is not None],
            unread=len(news),
            records=records,
        )

    def write(
        self,
        book: Book,
        changes: Iterable[Change],
        looked_s: float | None = None,
        *,
        news: int = 0,
        set_aside: int | None = None,
    ) -> bool:
        """Write changes. False: somebody else has changed an alert since `book` was read, and nothing was written.

        Args:
            looked_s: When the rules looked, seconds since the epoch; None: they did not.
            news: How many entries of the list of news were read; they are removed.
            set_aside: Messages set aside by then; None: they were not counted.
        """
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(keys.ALERT_STATES)  # type: ignore[no-untyped-call]
                if _alerts(pipe.hgetall(keys.ALERT_STATES)) != book.alerts:  # type: ignore[arg-type]
                    return False
                pipe.multi()
                for change in changes:
                    _put(pipe, change, book.records < RECORDS_MOST)
                if looked_s is not None:
                    pipe.hset(keys.ALERT_STATES, AT, f"{looked_s:.6f}")
                if set_aside is not None:
                    pipe.hset(keys.ALERT_STATES, SET_ASIDE, str(set_aside))
                pipe.expire(keys.ALERT_STATES, KEEP_S)
                if news:
                    pipe.ltrim(keys.ALERT_NEWS, news, NEWS_MOST - 1)
                pipe.execute()
            except WatchError:
                return False
        return True

    def acknowledge(self, name: str, who: str) -> Alert:
        """Note that a person looks after an open alert.

        Args:
            name: Its id, or the beginning of that.
        Raises:
            BadInput: no open alert has such an id, or more than one has.
        """
        for _ in range(_TRIES):
            book = self.read()
            named = [alert for alert in book.open if name and alert.id.startswith(name)]
            if len(named) != 1:
                raise BadInput(f"{name[:40]!r}: {'several open alerts begin' if named else 'no open alert begins'} so")
            acked = replace(named[0], acked_by=who, acked_s=book.now_s)
            if self.write(book, [Change(acked, told_of=True)]):
                return acked
        raise StoreUnavailable("alerts change too fast: try again")

    # ── rows for the tracking database ───────────────────────────────────────────────────────────────────────────────

    def records(self) -> list[Alert]:
        """Alerts whose rows are not in the tracking database as they are now."""
        with redis_errors():
            fields: Any = self._client.hgetall(keys.ALERT_RECORDS)
        return list(_alerts(fields).values())

    def recorded(self, alerts: Sequence[Alert]) -> None:
        """Remove alerts whose rows are stored; one that has changed since stays."""
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            try:
                pipe.watch(keys.ALERT_RECORDS)  # type: ignore[no-untyped-call]
                there = _alerts(pipe.hgetall(keys.ALERT_RECORDS))  # type: ignore[arg-type]
                done = [one.id for one in alerts if there.get(one.id) == one]
                pipe.multi()
                if done:
                    pipe.hdel(keys.ALERT_RECORDS, *done)
                pipe.execute()
            except WatchError:
                log.debug("alerts.recorded_again")  # they are written once more, and are the same then

    # ── silences ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def silences(self) -> list[Silence]:
        """The silences that have not ended, sorted by kind and lane."""
        with redis_errors():
            now_s = redis_now_s(self._client)
            fields: Any = self._client.hgetall(keys.ALERT_SILENCES)
        found = [one for raw in fields.values() if (one := _silence(raw)) is not None and now_s < one.until_s]
        return sorted(found, key=lambda one: one.key)

    def silence(self, made: Silence) -> None:
        """Begin a silence, which replaces the one of its kind and lane. If it is over already, that one just ends.

        Raises:
            BadInput: there are too many.
        """
        held = {one.key: one for one in self.silences()}
        held[made.key] = made
        if len(held) > SILENCES_MOST:
            raise BadInput(f"there are {SILENCES_MOST} silences already: end some, or silence all lanes of a kind")
        with redis_errors(), self._client.pipeline(transaction=True) as pipe:
            now_s = redis_now_s(self._client)
            pipe.delete(keys.ALERT_SILENCES)
            living = {key: encode(one) for key, one in held.items() if now_s < one.until_s}
            if living:
                pipe.hset(keys.ALERT_SILENCES, mapping=living)  # type: ignore[arg-type]
                last_s = max(one.until_s for one in held.values())
                pipe.pexpire(keys.ALERT_SILENCES, max(1, int((last_s - now_s) * 1000)))
            pipe.execute()


def _put(pipe: Any, change: Change, recorded: bool) -> None:
    alert = change.alert
    if change.closed or change.gone:
        pipe.hdel(keys.ALERT_STATES, alert.key)
    else:
        pipe.hset(keys.ALERT_STATES, alert.key, encode(alert))
    if change.opened or change.closed:
        notice = of_alert(alert)
        if notice is not None:
            put_notice(pipe, notice)
    if not (change.opened or change.closed or change.told_of):
        return
    if recorded:
        pipe.hset(keys.ALERT_RECORDS, alert.id, encode(alert))
        pipe.expire(keys.ALERT_RECORDS, KEEP_S)
    else:
        log.warning("alerts.not_recorded", extra={"alert": alert.id, "kind": alert.kind.value})


def _alerts(fields: Mapping[bytes, bytes]) -> dict[str, Alert]:
    found: dict[str, Alert] = {}
    for name, raw in fields.items():
        if name in _OURS:
            continue
        try:
            found[name.decode("utf-8", "surrogatepass")] = decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # of a newer version, which looks after it
            log.debug("alerts.unknown", extra={"cause": type(error).__name__})
    return found


def _news(raw: bytes) -> ModeChange | None:
    try:
        return _change(raw)
    except msgspec.MsgspecError as error:
        log.warning("alerts.news_unknown", extra={"cause": type(error).__name__})
        return None


def _silence(raw: bytes) -> Silence | None:
    try:
        return decode_silence(raw)
    except msgspec.MsgspecError as error:
        log.debug("alerts.unknown", extra={"cause": type(error).__name__})
        return None


def _float(raw: bytes | None) -> float | None:
    return None if raw is None else float(raw)
