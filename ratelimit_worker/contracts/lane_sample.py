"""What a lane was allowed, and what waited in it, by minute: as it is recorded, and as reports get it."""

from __future__ import annotations

import msgspec

from ratelimit_worker.calls import Mode


class LaneSample(msgspec.Struct, frozen=True, kw_only=True):
    """How a lane stood: at one moment, or over one minute."""

    lane: str
    at_s: int  #: seconds since the epoch; of a minute its beginning
    allowed_per_min: float | None  #: requests a minute that it might send; None: nothing bound it
    waiting: int  #: calls that waited for a permit or for their time; over a minute the most
    running: int  #: calls that were out; over a minute the most
    mode: Mode  #: over a minute the strictest


class LaneSpan(msgspec.Struct, frozen=True, kw_only=True):
    """How a lane stood over the minutes of one slice of a window."""

    lane: str
    at_s: int  #: beginning of the slice, at a whole multiple of its length; seconds since the epoch
    minutes: int  #: of which there are samples
    allowed_per_min: float | None  #: the mean; None: in one of them nothing bound it
    waiting: int  #: the most that waited in one of them
    waiting_least: int  #: the least
    running: int  #: the most
    mode: Mode  #: the strictest


class LaneMinute(msgspec.Struct, frozen=True, kw_only=True):
    """What a lane was allowed in one minute, and what it used."""

    lane: str
    at_s: int  #: beginning of the minute, seconds since the epoch
    attempts: int = 0  #: that ended in it
    refused: int = 0  #: of these, 429s
    sample: LaneSample | None = None  #: None: nobody looked at the lane in that minute
