"""What is an alert? Something that is wrong with a lane or the deployment, from when it opened until it closed.

Fields are only ever added, with a default: an older or newer version reads what this one has written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from hashlib import blake2s

import msgspec

from ratelimit_worker.calls import ModeChange


class Kind(StrEnum):
    """What an alert is about. docs/runbook.md says for each what to look at and what to do."""

    LATENCY = "latency"  #: a provider gets slower
    ERRORS = "errors"  #: many of a lane's attempts fail
    EMERGENCY = "emergency"  #: a lane sends only probes
    HALT = "halt"  #: a lane sends nothing
    QUOTA = "quota"  #: a quota is used up: the provider's, or one that a person has set for the day
    BUDGET = "budget"  #: a part of a budget of money is spent
    OUTBOX = "outbox"  #: outcomes do not get into the tracking database
    NO_WORKER = "no_worker"  #: calls wait and no worker takes them
    POISON = "poison"  #: calls of a function always fail, or kill their workers
    SET_ASIDE = "set_aside"  #: messages that no worker can take


class Severity(StrEnum):
    """How soon somebody should look."""

    WARNING = "warning"
    CRITICAL = "critical"


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert. Times are seconds since the epoch."""

    kind: Kind
    lane: str = ""  #: "": of the deployment as a whole; "*": of all lanes
    about: str = ""  #: tells alerts of one kind and lane apart, such as by the name of a function
    since_s: float  #: when the symptom was first seen
    seen_s: float  #: when the rules last looked at it
    cause: str  #: one sentence, as it was when the alert opened
    numbers: Mapping[str, float] = {}  #: the figures behind it
    id: str = ""  #: "": it has not opened yet
    opened_s: float | None = None  #: None: the symptom has not held for long enough
    clear_since_s: float | None = None  #: since when nothing is wrong any more; None: something is
    ends_s: float | None = None  #: when it closes in any case
    closed_s: float | None = None
    ended: str = ""  #: one sentence: why it closed
    acked_by: str = ""  #: who has acknowledged it; "": nobody
    acked_s: float | None = None

    @property
    def key(self) -> str:
        """Its name while it is open: of one kind, lane and `about`, only one alert is open at a time."""
        return key_of(self.kind, self.lane, self.about)

    @property
    def open(self) -> bool:
        """Whether it has opened and not closed."""
        return self.opened_s is not None and self.closed_s is None


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """For a while no notices are sent of alerts of a kind; they open and close as usual."""

    kind: Kind
    lane: str = ""  #: "": whatever the lane
    until_s: float  #: seconds since the epoch
    who: str = ""
    reason: str = ""

    @property
    def key(self) -> str:
        """Its name: of one kind and lane there is one."""
        return key_of(self.kind, self.lane, "")

    def covers(self, kind: str, lane: str, now_s: float) -> bool:
        """Whether no notices of alerts of this kind and lane are sent now."""
        return now_s < self.until_s and kind == self.kind and self.lane in {"", lane}


class Book(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of alerts at one moment."""

    now_s: float = 0.0  #: seconds since the epoch, Redis clock
    alerts: Mapping[str, Alert] = {}  #: open or about to be, by key
    looked_s: float | None = None  #: when the rules have looked last; None: never
    set_aside: int | None = None  #: messages that had been set aside by then; None: not counted yet
    news: Sequence[ModeChange] = ()  #: mode changes that the rules have not seen, oldest first
    unread: int = 0  #: entries of the list of news that were read, also those that made no sense
    records: int = 0  #: alerts whose rows are not in the tracking database as they are now

    @property
    def open(self) -> list[Alert]:
        """Those that are open, the newest first."""
        found = [alert for alert in self.alerts.values() if alert.open]
        return sorted(found, key=lambda one: (-(one.opened_s or 0.0), one.key))


def key_of(kind: str, lane: str, about: str) -> str:
    """Name of an alert that may be open. The length keeps `a` + `b:c` apart from `a:b` + `c`."""
    return f"{kind}:{len(lane)}:{lane}:{about}"


def id_of(key: str, opened_s: float) -> str:
    """The id of an alert: ten hexadecimal digits, the same for all processes that see it open at that moment."""
    text = f"{opened_s:.6f}\n{key}".encode("utf-8", "surrogatepass")
    return blake2s(text, digest_size=5).hexdigest()


_encode = msgspec.json.Encoder().encode
_alert = msgspec.json.Decoder(Alert).decode
_silence = msgspec.json.Decoder(Silence).decode


def encode(one: Alert | Silence) -> bytes:
    """The alert or silence as Redis holds it: JSON."""
    return _encode(one)


def decode(data: bytes) -> Alert:
    """The alert in `data`.

    Raises:
        msgspec.MsgspecError: it is none that this version knows.
    """
    return _alert(data)


def decode_silence(data: bytes) -> Silence:
    """The silence in `data`.

    Raises:
        msgspec.MsgspecError: it is none that this version knows.
    """
    return _silence(data)
