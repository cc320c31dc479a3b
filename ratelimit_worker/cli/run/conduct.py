"""What happens from the command to its summary? OUT is locked, the cluster opened, the file sent, all of it ended."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from redis import RedisError

from ratelimit_worker.batchfile import End
from ratelimit_worker.cli.cluster import Cluster, open_cluster, talking_to_redis
from ratelimit_worker.cli.figures import AttemptFigures, Attempts, LaneFigures, lane_figures
from ratelimit_worker.cli.progress import Progress, clock
from ratelimit_worker.cli.run.address import WrongAddress
from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.cli.run.session import Options, Session
from ratelimit_worker.errors import BadInput, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.flow.record import record_once
from ratelimit_worker.providers.apis import APIS
from ratelimit_worker.stores.live import Live

CONCURRENCY = 64
_RATE_OVER_S = 10.0  #: the rate that is shown is that of the last so many seconds
_LOOK_EVERY_S = 1.0  #: at lanes, for what is shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asked for."""

    source: Path
    target: Path
    base_url: str | None = None
    lane: str | None = None
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    workers: int | None = None  #: None: one without a configured broker, with one the cluster's own
    state_dir: Path | None = None
    allowed_paths: frozenset[str] = frozenset()  #: that lines may ask for beside the known endpoints
    on_auth: str = "wait"  #: "fail": a key that is not accepted, or a used-up quota, ends the run


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """How it ended."""

    target: Path
    total: int
    done: int
    answered: int
    refused: int
    failed: int
    attempts: AttemptFigures | None
    seconds: float
    signal: int | None = None  #: the signal by which it was stopped
    ended_by: str = ""  #: what of its account ended it, in one line; "": nothing

    @property
    def exit_code(self) -> int:
        """0: every line has an answer or a refusal; 1: some failed, or the account did; 128 + its signal."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.ended_by else 0

    def __str__(self) -> str:
        requests, refused = ("?", "?") if self.attempts is None else (self.attempts.requests, self.attempts.refused)
        return (
            f"{self.done:,} of {self.total:,} lines: {self.answered:,} answered, {self.refused:,} refused, "
            f"{self.failed:,} failed; {requests} provider requests, {refused} of them 429, in {self.seconds:.1f} s "
            f"→ {self.target}"
        )


@dataclass(slots=True)
class Stop:
    """Whether somebody wants this to end."""

    signal: int | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # the second time: at once
        self.signal = number

    @classmethod
    @contextmanager
    def by_signals(cls) -> Iterator[Stop]:
        """SIGINT and SIGTERM end the block's work in order; a second one ends it at once."""
        stop = cls()
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            stop._before[number] = signal.signal(number, stop._arrived)
        try:
            yield stop
        finally:
            for number, handler in stop._before.items():
                signal.signal(number, handler)


def run_file(request: Request, progress: Progress) -> Summary:
    """Send a Batch file; returns when every line is in OUT, or when a signal stopped it.

    Raises:
        BadInput: IN cannot be read, OUT is no file for answers, or an option needs another.
        ConfigurationError: a setting, an address or a key is wrong.
        StoreUnavailable: Redis is away for good.
        RateLimitWorkerError: OUT cannot be written, or the workers do not stay.
    """
    began_s = time.monotonic()
    _check_source(request)
    extra = {} if request.base_url is None else {api.ACCOUNT.address: request.base_url for api in APIS.values()}
    with (
        Stop.by_signals() as stop,
        Journal(request.target) as journal,
        open_cluster(request.state_dir, extra=extra) as cluster,
    ):
        workers = request.workers if request.workers is not None else int(cluster.embedded)
        _check_workers(request, workers)
        name = f"run-{journal.run.hex[:12]}"
        options = Options(
            context=name,
            queue=name if workers else None,  # ours take no other's calls: they have this run's address and keys
            lane=request.lane,
            rpm=request.rpm,
            tpm=request.tpm,
            allowed_paths=request.allowed_paths,
            waits_for_account=request.on_auth == "wait",
        )

        def begin() -> None:
            journal.begin()
            cluster.start_workers(workers, request.concurrency or CONCURRENCY, name)

        attempts = Attempts(cluster.settings.database_url, name, _redis_time_s(cluster))
        session = Session(request.source, journal, cluster, options, begin, progress.note, attempts.made)
        if journal.taken_up:
            progress.note(f"{len(journal.taken_up):,} lines that failed for the account's sake are sent again")
        view = _View(session, attempts)
        try:
            session.go(lambda: bool(stop), lambda: view.tick(progress))
            progress.clear()
            if not session.finished:
                progress.note("stopping: calls that run are let finish (again to end at once)")
            _end_workers(cluster)
            while session.collect():
                pass
            if session.finished:
                _clean_up(cluster, options)
                journal.finish()
            return Summary(
                target=request.target,
                total=session.total,
                done=session.done,
                answered=journal.ends[End.ANSWERED],
                refused=journal.ends[End.REFUSED],
                failed=journal.ends[End.FAILED],
                attempts=_attempts(cluster, view),
                seconds=time.monotonic() - began_s,
                signal=None if session.finished else stop.signal,
                ended_by="" if session.finished else session.account.ended_by,
            )
        except WrongAddress:
            _end_workers(cluster)  # in order: what was refused is settled and acknowledged, and can be forgotten
            _clean_up(cluster, options)
            session.withdraw()
            raise
        finally:
            view.attempts.close()


class _View:
    """What the progress line says."""

    def __init__(self, session: Session, attempts: Attempts) -> None:
        self.session, self.attempts = session, attempts
        self._seen: deque[tuple[float, int]] = deque()
        self._lanes: LaneFigures | None = None
        self._waiting = 0
        self._look_at_s = 0.0

    def tick(self, progress: Progress) -> None:
        """Take note of how far it is, and show it if it is time to."""
        now_s = time.monotonic()
        self._seen.append((now_s, self.session.done))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _RATE_OVER_S:
            self._seen.popleft()
        progress.tick(self.line)

    def line(self) -> str:
        """Where it stands."""
        session, made = self.session, self.attempts.now()
        self._look()
        per_min = self._rate_per_min()
        left = session.total - session.done
        pace = self._lanes.pace_per_min if self._lanes else None
        held = self._lanes.held_by if self._lanes else ""
        words = [
            f"{session.done:,}/{session.total:,}",
            f"{per_min:,.0f}/min" + (f" (lane {pace:,.0f})" if pace is not None else ""),
            self._lanes.mode if self._lanes else "Redis is away",
            f"429s {made.refused:,}" if made else "429s ?",
            f"waiting {self._waiting:,}" + (f" ({held})" if held and self._waiting else ""),
            f"ETA {clock(left / per_min * 60)}" if per_min > 0 else "ETA ?",
        ]
        return " · ".join(words)

    def _look(self) -> None:
        if time.monotonic() < self._look_at_s:
            return
        self._look_at_s = time.monotonic() + _LOOK_EVERY_S
        session, lanes = self.session, self.session.cluster.services.lanes
        try:
            self._lanes = lane_figures(Live(session.cluster.services.redis), session.lanes)
            queue = session.options.queue
            with talking_to_redis():
                # On a queue of our own what waits there is ours; on the cluster's, what runs cannot be told apart.
                running = session.out - min(session.out, lanes.size(queue)) if queue else 0
        except StoreUnavailable:
            self._lanes = None
        else:
            self._waiting = max(0, session.total - session.done - running)

    def _rate_per_min(self) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) * 60 if last_s > first_s else 0.0


def _check_source(request: Request) -> None:
    try:
        with request.source.open("rb"):
            same = request.target.exists() and request.source.samefile(request.target)
    except OSError as error:
        raise BadInput(f"{request.source}: {error.strerror}; give a Batch file that can be read") from error
    if same:
        raise BadInput(f"{request.source} is IN and OUT; give another file with -o")


def _check_workers(request: Request, workers: int) -> None:
    for option, value in (("--base-url", request.base_url), ("--concurrency", request.concurrency)):
        if value is not None and not workers:
            raise BadInput(f"{option} is for workers of this run, and the cluster's take the calls: add --workers N")


def _redis_time_s(cluster: Cluster) -> float:
    with talking_to_redis():
        moment: Any = cluster.services.redis.time()
    return float(moment[0]) + float(moment[1]) / 1e6


def _end_workers(cluster: Cluster) -> None:
    try:
        cluster.stop_workers()
    except KeyboardInterrupt:
        cluster.stop_workers(0.0)


def _attempts(cluster: Cluster, view: _View) -> AttemptFigures | None:
    """The attempts of this run, those included that the workers left in the outbox."""
    try:
        while cluster.embedded and record_once(cluster.services.outbox, cluster.services.tracker):
            pass
    except (RateLimitWorkerError, RedisError):
        return None  # the database is away: the answers are safe, only this figure is not known
    return view.attempts.now(exactly=True)


def _clean_up(cluster: Cluster, options: Options) -> None:
    """The queue of a run that is over leaves nothing behind."""
    if options.queue is None:
        return
    with talking_to_redis(), cluster.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(options.queue)
    cluster.remove_logs()
