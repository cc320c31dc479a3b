"""What happens to lines that failed because of the account (key or quota), and when does a run go on?

A key that is not accepted or a quota that is used up says nothing about a line. The law halts the lane, and its lines
wait to be sent again ("owed"). This module decides how often a line is sent again, and what a person is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

from msgspec import Struct, field

from ratelimit_worker.calls import Category, Mode
from ratelimit_worker.cli.cluster import Cluster
from ratelimit_worker.config import PREFIX
from ratelimit_worker.contracts.lane import HALT_FIELDS
from ratelimit_worker.errors import CallFailed
from ratelimit_worker.flow.lane import pin
from ratelimit_worker.flow.lane.health import halted_by
from ratelimit_worker.providers.apis import APIS
from ratelimit_worker.stores.reach import redis_errors

#: After so many such failures of a line, while other lines are answered, the fault is the line's and not the account's.
MOST_FAILURES = 4
_FIRST_WAIT_S = 1.0  #: before such a line is sent again; doubled with each further failure that counts
_AT_ONCE_S = 10.0  #: an answer at most so much older than a failure shows that the key was accepted at the time
_LOOK_EVERY_S = 1.0  #: how often lanes and key files are checked
_FAULTS = frozenset({Category.AUTH, Category.QUOTA_EXHAUSTED})


def is_accounts(error: BaseException | None) -> bool:
    """Whether a call failed because of its account: later, or with another key, it may be answered."""
    return isinstance(error, CallFailed) and error.category in _FAULTS


class _Owed(Struct):
    failures: int = 0  #: those that count (see `Account.again_in_s`)
    first_s: float = 0.0  #: when it first failed, monotonic
    answered: int = 0  #: lines of its lane that had been answered when it last failed


class _Lane(Struct):
    provider: str = ""  #: whose key its calls use
    answered: int = 0  #: lines
    answered_s: float = -inf  #: time of the last answer, monotonic


class Account(Struct):
    """What one run knows of its accounts at the providers.

    Args:
        waits: False: a line that fails because of the account has failed for good, and a lane that is halted for it
            ends the run.
    """

    cluster: Cluster
    waits: bool = True
    ended_by: str = ""  #: why the run should end, in one line; "": it need not
    _owed: dict[str, _Owed] = field(default_factory=dict)
    _lanes: dict[str, _Lane] = field(default_factory=dict)
    _halted: dict[str, str] = field(default_factory=dict)  #: lane → why it is halted: "key" or "quota"
    _closed: set[str] = field(default_factory=set)  #: lanes in HALT, for any reason
    _escalates: dict[str, bool] = field(default_factory=dict)
    _causes: dict[str, str] = field(default_factory=dict)  #: lane → text of its last such failure
    _files: dict[str, object] = field(default_factory=dict)
    _look_at_s: float = 0.0

    def uses(self, lane: str, provider: str) -> None:
        """Take note that a lane of the run sends calls to this provider ("openai", "anthropic", …)."""
        if lane not in self._lanes:
            self._lanes[lane] = _Lane(provider)
            self._files.setdefault(provider, self._signature(provider))

    def answered(self, call_id: str, lane: str) -> None:
        """Take note that a line was answered, or refused because of what it asks: its account is good."""
        self._owed.pop(call_id, None)
        known = self._lanes[lane]
        known.answered, known.answered_s = known.answered + 1, time.monotonic()

    def is_owed(self, call_id: str) -> bool:
        """Whether a line has failed because of the account, and will be sent again."""
        return call_id in self._owed

    def again_in_s(self, call_id: str, lane: str, error: BaseException) -> float | None:
        """Seconds until a line that failed because of the account is sent again; None: it has failed for good.

        The first failure counts; a further one counts if other lines of the lane were answered meanwhile, or if the
        lane has answered none while other lanes accept the same key. After `MOST_FAILURES` that count, the cause is not
        the account. Any other failure while the lane is halted sets the count to 0. If lanes are not halted by
        themselves (auto-escalation is off), the line fails at once, since nothing would end its repeats.
        """
        self._causes[lane] = _shown(error)
        if not self.waits or not self._escalates.get(lane, True):
            return None
        owed, answered = self._owed.setdefault(call_id, _Owed(first_s=time.monotonic())), self._lanes[lane].answered
        own = answered > owed.answered or self._is_last(call_id, lane) or self._is_lanes_own(lane, owed.first_s)
        if not owed.failures or own:
            owed.failures += 1
        elif self._halted.get(lane):
            owed.failures = 0
        owed.answered = answered
        if owed.failures < MOST_FAILURES:
            return _FIRST_WAIT_S * (1 << max(0, owed.failures - 1))
        del self._owed[call_id]
        return None

    def _is_last(self, call_id: str, lane: str) -> bool:
        """Whether others were answered since it first failed, and no other line waits to be sent again."""
        return self._owed.keys() == {call_id} and self._lanes[lane].answered_s > self._owed[call_id].first_s

    def _is_lanes_own(self, lane: str, since_s: float) -> bool:
        """Whether the provider refuses only this lane (a model that the account may not use), and accepts the key."""
        own = self._lanes[lane]
        return not own.answered and any(
            other.answered_s >= since_s - _AT_ONCE_S and name not in self._halted
            for name, other in self._lanes.items()
            if other.provider == own.provider
        )

    def look(self) -> list[str]:
        """Check lanes and key files, at most once a second; halted lanes whose key file has changed may go on.

        Returns messages for the person, one line each: which lanes were halted, and which are no longer.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if time.monotonic() < self._look_at_s:
            return []
        self._look_at_s = time.monotonic() + _LOOK_EVERY_S
        before, self._halted = self._halted, self._now()
        said = self._begun({lane: why for lane, why in self._halted.items() if before.get(lane) != why})
        over = sorted(before.keys() - self._halted.keys() - self._closed)
        said += [f"{', '.join(over)}: no longer halted; going on"] if over else []
        changed = {provider for provider in self._files if self._has_changed(provider)}
        for lane in sorted(lane for lane in self._halted if self._lanes[lane].provider in changed):
            self._give_back(lane, "the file of the key has changed")
        return said

    def begin_again(self, lane: str) -> None:
        """Give a lane that an earlier run left halted back to the law: who starts a run again has mended the account.

        Raises:
            StoreUnavailable: Redis is away.
        """
        with redis_errors():
            state = self.cluster.services.lanes.state(lane)
        if halted_by(state):
            self._give_back(lane, "the run was started again")

    def _give_back(self, lane: str, reason: str) -> None:
        with redis_errors():
            pin.auto(self.cluster.services.control, lane=lane, who="run", reason=reason)

    def _now(self) -> dict[str, str]:
        with redis_errors():
            states = self.cluster.services.lanes.states(sorted(self._lanes), HALT_FIELDS)
        self._escalates = {lane: one.points.escalates for lane, one in states.items()}
        self._closed = {lane for lane, one in states.items() if one.mode is Mode.HALT}
        return {lane: why for lane, one in states.items() if (why := halted_by(one))}

    def _begun(self, halted: Mapping[str, str]) -> list[str]:
        said = []
        for why in sorted(set(halted.values())):
            lanes = sorted(lane for lane, one in halted.items() if one == why)
            cause = next((self._causes[lane] for lane in lanes if lane in self._causes), "")
            what = "does not accept the key" if why == "key" else "says that the quota is used up"
            fault = f"{', '.join(lanes)}: the provider {what}{f' ({cause})' if cause else ''}"
            if self.waits:
                said.append(f"{fault}; no line is lost, and it goes on {self._ways_on(lanes)}")
            elif not self.ended_by:
                self.ended_by = fault
        return said

    def _ways_on(self, lanes: Sequence[str]) -> str:
        providers = sorted({self._lanes[lane].provider for lane in lanes})
        files = {self._file(provider) for provider in providers} - {""}
        names = [name for name in map(self._variable, providers) if name]
        address = f"{PREFIX}REDIS_URL"
        where = f"{address}={self.cluster.environ[address]} " if self.cluster.embedded else ""
        ways = ["when a probe is answered (the lane sends some)"]
        ways += [f"with a change of {file}" for file in sorted(files)]
        ways += [f"with another {name} after Ctrl-C and the same command" for name in names]
        return ", ".join([*ways, f"or at once by `{where}ratelimit-worker auto`"])

    def _file(self, provider: str) -> str:
        """Path of the file with a provider's key; "": there is none, or the key itself is in the environment."""
        return APIS[provider].ACCOUNT.key_file(self.cluster.environ)

    def _variable(self, provider: str) -> str:
        """Name of the environment variable with a provider's key; "": the key is in a file, or missing."""
        held = APIS[provider].ACCOUNT.keys if not self._file(provider) else ()
        return next((name for name in held if self.cluster.environ.get(name, "").strip()), "")

    def _has_changed(self, provider: str) -> bool:
        now = self._signature(provider)
        changed = now is not None and now != self._files[provider]
        self._files[provider] = now if now is not None else self._files[provider]
        return changed

    def _signature(self, provider: str) -> object:
        """A value that changes when the key file does; None: there is no file, or it is empty."""
        file = self._file(provider)
        try:
            found = os.stat(Path(file)) if file else None
        except OSError:  # it is being replaced; the change is seen when it is there again
            return None
        return (found.st_mtime_ns, found.st_ino, found.st_size) if found is not None and found.st_size else None


def _shown(error: BaseException) -> str:
    status, cause = getattr(error, "status", None), getattr(error, "cause", "")
    return f"HTTP {status}" if status else str(cause).partition("\n")[0][:200]
