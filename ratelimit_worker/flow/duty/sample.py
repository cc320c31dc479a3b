"""What was each lane allowed, and how much waited? One worker looks at the lanes in use four times a minute.

It writes one row for each lane and minute to the tracking database. While the database is away, rows wait in this
process; beyond a bound the oldest are lost, which leaves a gap in charts and affects nothing else.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from ratelimit_worker.contracts.lane_sample import LaneSample
from ratelimit_worker.errors import ConfigurationError, StoreUnavailable
from ratelimit_worker.policy.lane_sample import together

log = logging.getLogger(__name__)

NAME = "sample"
LOOK_EVERY_S = 15.0
LEASE_S = 45.0  #: a worker that dies misses three looks
MINUTE_S = 60
MOST_LANES = 200  #: most lanes that are looked at; if more are in use, some are left out
MOST_UNWRITTEN = 10_000  #: rows that wait while the database is away


class Sampler:
    """The duty of one worker.

    Args:
        working: Returns lanes with calls that wait or are out.
        look: Returns the present state of these lanes; those that do not exist are left out.
        used: Returns lanes with attempts that ended in a minute that began at this time or later, s since the epoch.
        keep: Writes samples to the tracking database.
    """

    def __init__(
        self,
        working: Callable[[], Iterable[str]],
        look: Callable[[Sequence[str]], Iterable[LaneSample]],
        used: Callable[[float], Collection[str]],
        keep: Callable[[Sequence[LaneSample]], None],
    ) -> None:
        self._working, self._look, self._used, self._keep = working, look, used, keep
        self._minute: int | None = None  #: when the minute of `_looks` began, seconds since the epoch
        self._looks: dict[str, list[LaneSample]] = {}
        self._unwritten: deque[LaneSample] = deque(maxlen=MOST_UNWRITTEN)

    def step(self, now_s: float) -> None:
        """Look at the lanes once, and write rows for the minutes that are over.

        Args:
            now_s: Seconds since the epoch.
        Raises:
            StoreUnavailable: Redis is away.
        """
        minute = int(now_s // MINUTE_S) * MINUTE_S
        if minute != self._minute:
            self._end_minute()
            self._minute = minute
            self._looks = {lane: [] for lane in self._used_in(minute - MINUTE_S)}
        names = list(dict.fromkeys((*self._working(), *self._looks)))[:MOST_LANES]
        for seen in self._look(names) if names else ():
            self._looks.setdefault(seen.lane, []).append(seen)
        self._write()

    def forget(self) -> None:
        """Another worker has the duty: it writes the rows of this minute."""
        self._minute, self._looks = None, {}

    def _end_minute(self) -> None:
        if self._minute is not None:
            self._unwritten.extend(together(looks, self._minute) for looks in self._looks.values() if looks)

    def _used_in(self, since_s: float) -> Collection[str]:
        """Lanes with attempts that ended since then: calls shorter than the pause between two looks show only here."""
        try:
            return self._used(since_s)
        except (StoreUnavailable, ConfigurationError) as error:
            log.info("sample.blind", extra={"error": str(error)})
            return ()

    def _write(self) -> None:
        if not self._unwritten:
            return
        try:
            self._keep(tuple(self._unwritten))
        except (StoreUnavailable, ConfigurationError) as error:
            log.info("sample.unwritten", extra={"rows": len(self._unwritten), "error": str(error)})
        else:
            self._unwritten.clear()
