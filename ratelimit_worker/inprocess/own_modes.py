"""Modes that a process sets without a Redis: they hold for its own calls only."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable

from ratelimit_worker.calls import Mode, ModeChange
from ratelimit_worker.config import Settings
from ratelimit_worker.policy import choices
from ratelimit_worker.policy.modes import ALL, Pin, governing

log = logging.getLogger(__name__)

MINUTE_S = 60.0


class OwnModes:
    """Pinned modes by lane; a pin of all lanes is under "*".

    Args:
        clock: Seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._pins: dict[str, Pin] = {}
        self._lock = threading.Lock()

    def of(self, lane: str, settings: Settings) -> Mode:
        """The mode that holds in a lane."""
        if settings.emergency_mode and not self._pins:
            return Mode.EMERGENCY
        with self._lock:
            pin = governing(self._pins.get(lane), self._pins.get(ALL), self._clock())
        return Mode.NORMAL if pin is None or pin.mode is None else pin.mode

    def pin(
        self, settings: Settings, mode: Mode | None, *, lane: str | None, for_s: float | None, reason: str, who: str
    ) -> list[ModeChange]:
        """Pin a mode (None: end the pin) for a lane (None: for all) → the change.

        Args:
            for_s: Seconds until it ends by itself; None: it stays.
        Raises:
            BadInput: `for_s` is not above 0, or the lane has no name.
        """
        if lane is not None:
            choices.name("lane", lane)
        if for_s is not None:
            choices.number("for_s", for_s, choices.MOST_DEADLINE_S)
        name, at = lane or ALL, self._clock()
        before = self.of(name, settings)
        until = None if for_s is None else at + for_s
        made = Pin(id=uuid.uuid4().hex, mode=mode, at=at, who=who, reason=reason, until=until, everywhere=name == ALL)
        with self._lock:
            if name == ALL:
                self._pins.clear()
            self._pins[name] = made
        after = self.of(name, settings)
        log.info("mode.of_this_process lane=%s %s", name, after.value, extra={"lane": name, "mode": after.value})
        did = "set" if mode is not None else "given back"
        return [
            ModeChange(
                id=made.id,
                lane=name,
                from_mode=before,
                to_mode=after,
                at=at,
                cause=f"{did} for the calls of this process: no Redis is named",
                who=who,
                reason=reason,
                until=until,
            )
        ]


def apart_s(mode: Mode, settings: Settings) -> float:
    """Seconds between two calls without lanes, in a mode that sends."""
    per_minute = {
        Mode.REDUCED: settings.reduced_calls_per_minute,
        Mode.EMERGENCY: settings.emergency_calls_per_minute,
    }.get(mode)
    return settings.rate_limit_delay if per_minute is None else max(settings.rate_limit_delay, MINUTE_S / per_minute)
