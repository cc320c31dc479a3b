"""What does `run` do from start to summary? It locks OUT, opens the cluster, sends the file, and ends all of it."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISREG
from types import FrameType
from typing import Any

from msgspec import Struct, field
from redis import RedisError

from ratelimit_worker.batchfile import End
from ratelimit_worker.cli.cluster import Cluster, open_cluster
from ratelimit_worker.cli.figures import AttemptFigures, Attempts, LaneFigures, lane_figures
from ratelimit_worker.cli.progress import Progress, clock
from ratelimit_worker.cli.run.address import WrongAddress
from ratelimit_worker.cli.run.intake import STDIN, Intake, Stopped, open_intake
from ratelimit_worker.cli.run.journal import STDOUT, Journal, OutFailed, open_out
from ratelimit_worker.cli.run.session import Options, Session
from ratelimit_worker.cli.run.tally import Tally
from ratelimit_worker.config import PREFIX, environment, read_settings
from ratelimit_worker.errors import BadInput, RateLimitWorkerError, StoreUnavailable
from ratelimit_worker.flow.duty.record import record_once
from ratelimit_worker.plural import many
from ratelimit_worker.providers.apis import APIS
from ratelimit_worker.reports.money import spend_sentence
from ratelimit_worker.stores.clock import redis_now_s
from ratelimit_worker.stores.live import Live
from ratelimit_worker.stores.reach import redis_errors

CONCURRENCY = 64
_RATE_OVER_S = 10.0  #: the rate that is shown is the mean of so many seconds
_LOOK_EVERY_S = 1.0  #: how often the figures of lanes are read for the progress line


class Request(Struct, frozen=True, kw_only=True):
    """The arguments and options of the command."""

    source: Path
    target: Path
    base_url: str | None = None
    lane: str | None = None
    rpm: float | None = None
    tpm: float | None = None
    concurrency: int | None = None
    workers: int | None = None  #: None: one worker if no broker is configured; otherwise the cluster's own workers
    state_dir: Path | None = None
    allowed_paths: frozenset[str] = frozenset()  #: paths that lines may use in addition to the known endpoints
    on_auth: str = "wait"  #: "fail": a key that is not accepted, or a used-up quota, ends the run
    once: bool = False  #: identical requests are sent once


class Summary(Struct, frozen=True, kw_only=True):
    """How a start of a run ended."""

    source: str
    target: str
    total: int = 0
    tally: Tally = field(default_factory=Tally)  #: all lines of IN that are in OUT
    before: Tally = field(default_factory=Tally)  #: lines that were in OUT when this start began
    starts: int = 0  #: earlier starts of the same run
    begun: datetime | None = None  #: time of the run's first start
    attempts: AttemptFigures | None = None  #: of this start; None: the database is away
    joined: int = 0  #: lines that got the answer of an identical line that was on its way (`--dedup`)
    cached: int = 0  #: lines that got the answer of an identical line that was in OUT (`--dedup`)
    seconds: float  #: duration of this start
    signal: int | None = None  #: number of the signal that stopped it
    ended_by: str = ""  #: why it ended before all lines were done, or why OUT may not be complete, in one line
    keeps: bool = True  #: whether OUT can be resumed

    @property
    def exit_code(self) -> int:
        """0: every line has an answer or a refusal. 1: some lines failed, all were refused alike, or the run ended
        early. 128 + the number of the signal that stopped it."""
        if self.signal is not None:
            return 128 + self.signal
        whole = self.tally.lines == self.total and not self.ended_by
        return 0 if whole and not self.tally.ends[End.FAILED] and not self.tally.all_refused_as else 1

    @property
    def refused_alike(self) -> str:
        """A sentence, if every line was refused in the same way; "" otherwise."""
        way = self.tally.all_refused_as
        return f"all {self.tally.lines:,} lines were refused in the same way: {way}" if way else ""

    def __str__(self) -> str:
        made = self.attempts
        requests, refused, retries = ("?", "?", "?") if made is None else (made.requests, made.refused, made.retries)
        tally = self.tally
        parts = [
            f"{tally.lines:,} of {many(self.total, 'line')}: {tally}",
            f"{requests} provider requests, {refused} of them 429, {retries} retries, in {self.seconds:.1f} s",
            *tally.ways_in_words,
            f"{tally.input_tokens:,} tokens in, {tally.output_tokens:,} out",
            *([f"spent {spend_sentence(made.spend)}"] if made is not None and made.spend.is_known else []),
        ]
        if self.joined or self.cached:
            parts.append(f"identical lines: {self.joined:,} joined, {self.cached:,} cached")
        if self.before.lines:
            parts.append(f"{many(self.before.lines, 'line was', 'lines were')} done before this start: {self.before}")
        return f"{'; '.join(parts)} → {self.target}"

    def as_json(self) -> dict[str, Any]:
        """Content of `OUT.summary.json`."""
        made = self.attempts
        return {
            "in": self.source,
            "out": self.target,
            "lines": self.total,
            "done": self.tally.as_json(),
            "this_start": {
                "lines": self.tally.lines - self.before.lines,
                "requests": made.requests if made else None,
                "rate_limited": made.refused if made else None,
                "retries": made.retries if made else None,
                "cost_nanousd": made.spend.cost_nanousd if made else None,
                "wasted_nanousd": made.spend.wasted_nanousd if made else None,
                "estimated_nanousd": made.spend.estimated_nanousd if made else None,
                "cached_saving_nanousd": made.spend.cached_saving_nanousd if made else None,
                "models_without_a_price": list(made.spend.unpriced_models) if made else None,
                "joined": self.joined,
                "cached": self.cached,
                "seconds": round(self.seconds, 3),
            },
            "before": {**self.before.as_json(), "starts": self.starts},
            "begun": self.begun.isoformat() if self.begun else None,
            "ended": datetime.now(UTC).isoformat(),
            "ended_by": self.ended_by or self.refused_alike or None,
            "signal": self.signal,
            "exit_code": self.exit_code,
        }


class Stop(Struct):
    """Whether a signal has asked the run to end; true if so."""

    signal: int | None = None
    _before: dict[int, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.signal is not None

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # the second signal ends it at once
        self.signal = number

    @classmethod
    @contextmanager
    def by_signals(cls) -> Iterator[Stop]:
        """In this block SIGINT, SIGTERM and SIGHUP ask for an orderly end; a second signal raises KeyboardInterrupt.

        If SIGHUP is ignored (nohup), it stays ignored.
        """
        stop = cls()
        numbers = [int(signal.SIGINT), int(signal.SIGTERM)]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            numbers.append(int(signal.SIGHUP))
        for number in numbers:
            stop._before[number] = signal.signal(number, stop._arrived)
        try:
            yield stop
        finally:
            for number, handler in stop._before.items():
                signal.signal(number, handler)


def run_file(request: Request, progress: Progress) -> Summary:
    """Send a Batch file; returns when every line is in OUT, or when a signal stopped it.

    Raises:
        BadInput: IN cannot be read, OUT is no file for answers, or an option needs another one.
        ConfigurationError: a setting, an address or a key is wrong.
        StoreUnavailable: Redis is away for good.
        RateLimitWorkerError: OUT cannot be written, or the workers do not stay.
    """
    began_s = time.monotonic()
    if request.source == STDIN and os.isatty(0):
        progress.note("reading lines from this terminal; Ctrl-D ends them")
    extra = {} if request.base_url is None else {api.ACCOUNT.address: request.base_url for api in APIS.values()}
    out = open_out(request.target, progress.note)
    _check_target(request, out)
    with Stop.by_signals() as stop, out as journal:
        try:
            with (
                open_intake(request.source, _copies(request), lambda: bool(stop)) as intake,
                open_cluster(request.state_dir, extra=extra) as cluster,
            ):
                return _run(request, progress, stop, journal, intake, cluster, began_s)
        except Stopped:
            return Summary(
                source=str(request.source),
                target=journal.name,
                seconds=time.monotonic() - began_s,
                signal=stop.signal,
                keeps=journal.keeps,
            )


def _run(
    request: Request,
    progress: Progress,
    stop: Stop,
    journal: Journal,
    intake: Intake,
    cluster: Cluster,
    began_s: float,
) -> Summary:
    workers = request.workers if request.workers is not None else int(cluster.embedded)
    _check_workers(request, workers)
    name = f"run-{journal.run.hex[:12]}"
    options = _options(request, name, workers)

    def begin() -> None:
        journal.begin()
        cluster.start_workers(workers, request.concurrency or CONCURRENCY, name)

    attempts = Attempts(cluster.settings.database_url, name, _redis_time_s(cluster))
    try:
        session = Session(intake, journal, cluster, options, begin, progress.note, attempts.made, lambda: bool(stop))
        if journal.taken_up:
            progress.note(f"{len(journal.taken_up):,} lines that failed for the account's sake are sent again")
        if journal.repeated:
            progress.note(
                f"{journal.name} has {journal.repeated:,} lines more than custom_ids; the first of each counts"
            )
        view = _View(session, attempts)
        try:
            session.go(lambda: bool(stop), lambda: view.tick(progress))
            progress.clear()
            if not session.finished:
                progress.note("stopping: calls that run are let finish (again to end at once)")
            _end_workers(cluster)
            session.collect_all()
        except (WrongAddress, OutFailed) as error:
            if isinstance(error, WrongAddress) or not journal.keeps:
                _leave(cluster, options, session)
            raise
        if session.finished:
            _clean_up(cluster, options)
            journal.finish()
        elif not journal.keeps:
            _leave(cluster, options, session)
        summary = _summary(intake, journal, session, _attempts(cluster, session, view), stop, began_s)
    finally:
        attempts.close()
    try:
        journal.put_summary(summary.as_json())
    except OutFailed as error:
        progress.note(str(error))  # the answers are safe, and that is what counts
    return summary


def _options(request: Request, name: str, workers: int) -> Options:
    return Options(
        context=name,
        queue=name if workers else None,  # own workers take only this run's calls: they have its base URL and keys
        lane=request.lane,
        rpm=request.rpm,
        tpm=request.tpm,
        allowed_paths=request.allowed_paths,
        waits_for_account=request.on_auth == "wait",
        once=request.once,
    )


def _summary(
    intake: Intake, journal: Journal, session: Session, attempts: AttemptFigures | None, stop: Stop, began_s: float
) -> Summary:
    return Summary(
        source=intake.name,
        target=journal.name,
        total=session.total,
        tally=session.tally,
        before=session.before,
        starts=journal.starts,
        begun=journal.begun,
        attempts=attempts,
        joined=session.joined,
        cached=session.cached,
        seconds=time.monotonic() - began_s,
        signal=None if session.finished else stop.signal,
        ended_by=_changed(intake, session) if session.finished else session.account.ended_by,
        keeps=journal.keeps,
    )


def _changed(intake: Intake, session: Session) -> str:
    """A sentence, if IN has changed since its lines were counted; "" otherwise."""
    if not intake.changed and session.done == session.total:
        return ""
    return f"{intake.name} was changed while it was sent; the same command sends what is new in it"


def _leave(cluster: Cluster, options: Options, session: Session) -> None:
    """End workers and withdraw all calls: the address is wrong, or the run cannot be resumed."""
    _end_workers(cluster)  # first: calls that were refused are then settled and acknowledged, and can be forgotten
    _clean_up(cluster, options)
    session.withdraw()


class _View:
    """Text of the progress line."""

    def __init__(self, session: Session, attempts: Attempts) -> None:
        self.session, self.attempts = session, attempts
        self._seen: deque[tuple[float, int]] = deque()
        self._lanes: LaneFigures | None = None
        self._waiting = 0
        self._look_at_s = 0.0

    def tick(self, progress: Progress) -> None:
        """Record the number of lines done, and show the progress line if it is due."""
        now_s = time.monotonic()
        self._seen.append((now_s, self.session.done))
        while len(self._seen) > 2 and now_s - self._seen[1][0] >= _RATE_OVER_S:
            self._seen.popleft()
        progress.tick(self.line)

    def line(self) -> str:
        """The progress line as it is now."""
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
            with redis_errors():
                # In a queue of its own all waiting calls are this run's; in the cluster's, running ones are not known.
                running = session.out - min(session.out, lanes.size(queue)) if queue else 0
        except StoreUnavailable:
            self._lanes = None
        else:
            self._waiting = max(0, session.total - session.done - running)

    def _rate_per_min(self) -> float:
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) * 60 if last_s > first_s else 0.0


def _copies(request: Request) -> Path:
    """Folder for copies of inputs that can be read only once."""
    told = {} if request.state_dir is None else {f"{PREFIX}STATE_DIR": str(request.state_dir.expanduser().absolute())}
    return read_settings({**environment(), **told}).state_path / "copies"


def _check_target(request: Request, journal: Journal) -> None:
    """Raise BadInput if IN is one of the files that would be written."""
    targets = [(request.target, "OUT")]
    if journal.keeps:
        targets += [(journal.sidecar, "OUT.run"), (journal.summary, "OUT.summary.json")]
    source = _stat(request.source, STDIN, 0)
    for path, what in targets:
        target = _stat(path, STDOUT, 1)
        if source is not None and target is not None and os.path.samestat(source, target) and S_ISREG(source.st_mode):
            raise BadInput(f"{request.source} is IN and {what}; give another file with -o")


def _stat(path: Path, standard: Path, fd: int) -> os.stat_result | None:
    """`stat` of a file, or of the standard stream that "-" stands for; None: not found (opening it reports that)."""
    try:
        return os.fstat(fd) if path == standard else path.stat()
    except OSError:
        return None


def _check_workers(request: Request, workers: int) -> None:
    for option, value in (("--base-url", request.base_url), ("--concurrency", request.concurrency)):
        if value is not None and not workers:
            raise BadInput(f"{option} is for workers of this run, and the cluster's take the calls: add --workers N")


def _redis_time_s(cluster: Cluster) -> float:
    with redis_errors():
        return redis_now_s(cluster.services.redis)


def _end_workers(cluster: Cluster) -> None:
    try:
        cluster.stop_workers()
    except KeyboardInterrupt:
        cluster.stop_workers(0.0)


def _attempts(cluster: Cluster, session: Session, view: _View) -> AttemptFigures | None:
    """Attempts of this start, including those that the workers left in the outbox; None: the database is away."""
    if not session.begun:
        return AttemptFigures()  # nothing was sent, so no database is needed
    try:
        while cluster.embedded and record_once(cluster.services.outbox, cluster.services.tracker):
            pass
    except (RateLimitWorkerError, RedisError):
        return None  # the answers are safe; only these figures are unknown
    return view.attempts.now(exactly=True)


def _clean_up(cluster: Cluster, options: Options) -> None:
    """Delete the queue of a run that is over, and the logs of its workers."""
    if options.queue is None:
        return
    with redis_errors(), cluster.app.connection_for_write() as connection:
        connection.default_channel.queue_delete(options.queue)
    cluster.remove_logs()
