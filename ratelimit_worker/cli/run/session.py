"""How does a file go through the lanes? A window of calls is under way; each answer lets a further line be sent.

A single thread sends calls, asks Redis for many results at once, writes them to OUT, and only then deletes them there.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from heapq import heappop, heappush
from itertools import islice

from msgspec import Struct

from ratelimit_worker import builtin
from ratelimit_worker.batchfile import (
    ANSWER,
    Ask,
    Bad,
    End,
    LineReader,
    answer_line,
    bad_line,
    error_line,
    failure_line,
    line_for,
    numbered,
    read_out,
    same_ask,
    tokens_of,
)
from ratelimit_worker.calls import LaneLimits
from ratelimit_worker.cli.cluster import Cluster
from ratelimit_worker.cli.results import Results, Settled
from ratelimit_worker.cli.run.account import Account, is_accounts
from ratelimit_worker.cli.run.address import Addresses
from ratelimit_worker.cli.run.ids import Ids
from ratelimit_worker.cli.run.intake import Intake
from ratelimit_worker.cli.run.journal import Journal
from ratelimit_worker.cli.run.survey import BAD, DONE, Survey, look_through
from ratelimit_worker.cli.run.tally import Tally
from ratelimit_worker.errors import AuthenticationFailed, BadInput, ConfigurationError, LaneFull, StoreUnavailable
from ratelimit_worker.flow.call.enqueue import limit_fields
from ratelimit_worker.plural import many
from ratelimit_worker.providers import network
from ratelimit_worker.providers.apis import api_of
from ratelimit_worker.providers.http import wait_for_key
from ratelimit_worker.stores import keys
from ratelimit_worker.stores.reach import redis_errors

WINDOW = 10_000  #: most calls under way (sent, and not yet in OUT); each takes 0.3 kB here, its text is only in Redis
WINDOW_BYTES = 256 * 1024 * 1024  #: ... and their text in all, above which no further call is sent
ASK_AT_ONCE = 2_000  #: results that are asked for in one turn
CHUNK = 100  #: lines that are read at once
CHUNK_BYTES = 4 * 1024 * 1024  #: ... or fewer, once they have so much text
POLL_S = 0.1  #: pause after a turn in which nothing was sent or answered
SEND_S = 0.1  #: longest time of sending before answers are collected again
PAYLOADS_A_LINE = 4  #: a line may be so many times as long as a payload, since JSON may have blanks and escapes
MB = 1024 * 1024
AWAY_S = 60.0  #: how long Redis may be away
AUDIT_S = 15.0  #: how often to check for calls that Redis has lost


class Options(Struct, frozen=True, kw_only=True):
    """How the lines are sent."""

    context: str  #: context of the calls, by which their attempts are found in the database
    queue: str | None = None  #: queue of the run's own workers; None: as the app routes, to the cluster's workers
    lane: str | None = None  #: for all lines; None: by provider and model of each line
    rpm: float | None = None
    tpm: float | None = None
    allowed_paths: frozenset[str] = frozenset()  #: paths that lines may use in addition to the known endpoints
    waits_for_account: bool = True  #: False: a key that is not accepted, or a used-up quota, ends the run
    once: bool = False  #: identical requests are sent once, and each line gets the answer


class _Out(Struct, frozen=True):
    """A call that was sent, and whose answer is not in OUT yet; with its line in IN."""

    custom_id: str
    number: int
    offset: int
    size: int
    lane: str
    url: str


class Session:
    """A file on its way through the lanes of a cluster.

    Args:
        begin: Called once, before the first call is sent.
        made: Returns how many attempts were made at a call, by its id; asked only for calls that are sent again.
        say: Called with a message of one line, for stderr.
    """

    def __init__(
        self,
        intake: Intake,
        journal: Journal,
        cluster: Cluster,
        options: Options,
        begin: Callable[[], None],
        say: Callable[[str], None],
        made: Callable[[str], int] = lambda call_id: 0,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.journal, self.cluster, self.options = journal, cluster, options
        self.intake, self._begin, self._say, self._made, self._stopped = intake, begin, say, made, stopped
        self.lanes: set[str] = set()  #: lanes that were used
        self.joined = 0  #: lines that got the answer of an identical line that was on its way
        self.cached = 0  #: lines that got the answer of an identical line that was in OUT already
        self._addresses = Addresses(cluster.environ)
        self._most_bytes = round(cluster.settings.max_payload_mb * PAYLOADS_A_LINE * MB)
        self._reader = LineReader(journal.run, options.allowed_paths, self._addresses.below)
        self._same = Ids()  #: request without its id → offset of the line that asks it (`Options.once`)
        self._survey = self._look_through()
        self.total = self._survey.total  #: lines that are not blank
        self.before: Tally = self._survey.before  #: lines that were in OUT when this began
        self.tally: Tally = self.before.copy()  #: all lines that are in OUT
        self._results = Results(cluster.app)
        self._out: dict[str, _Out] = {}
        self._out_bytes = 0
        self.account = Account(cluster, waits=options.waits_for_account)
        self._owed: list[tuple[float, str, _Out]] = []  #: heap of lines to send again: monotonic seconds, call id, line
        self._asking: set[str] = set()  #: calls whose answer identical lines may share, not yet in OUT (`Options.once`)
        self._twins: dict[str, array[int]] = {}  #: call id → offset and number of each line that waits for its answer
        self._pending: deque[Ask] = deque()
        self._lines: Iterator[Ask | Bad] | None = None
        self._read_all = False
        self._begun = False
        self._check = journal.resumed  #: whether Redis may know some of the pending calls already
        self._known: set[str] = set()  #: pending calls that Redis knows: waiting, running or answered
        self._over: set[str] = set()  #: pending calls that ended in Redis without an answer there: they are sent anew
        self._missing: set[str] = set()  #: calls that the last audit did not find in Redis
        self._away_since_s: float | None = None
        self._audit_at_s = time.monotonic() + AUDIT_S
        self._providers: set[str] = set()

    @property
    def done(self) -> int:
        """Lines that are in OUT."""
        return self.tally.lines

    @property
    def finished(self) -> bool:
        """Whether every line is in OUT."""
        return self._read_all and not self._pending and not self._out and not self._owed

    @property
    def begun(self) -> bool:
        """Whether `begin` was called: the first call was sent, or was about to be."""
        return self._begun

    @property
    def out(self) -> int:
        """Calls that were sent and whose answers are not in OUT yet."""
        return len(self._out)

    def go(self, stopped: Callable[[], bool], tick: Callable[[], None]) -> None:
        """Send and collect until every line is in OUT, `stopped()` is true, or `Account.ended_by` is set.

        Raises:
            StoreUnavailable: Redis was away for longer than a minute.
            ConfigurationError: a provider's address or key is missing or wrong.
            OutFailed: OUT cannot be written.
            WorkersFailed: the workers do not stay.
            WrongAddress: nothing answers where the base URL leads.
        """
        self._lines = self._to_send()
        while not (self.finished or self.account.ended_by or stopped()):
            moved = self._turn()
            for exited in self.cluster.check_workers():
                self._say(f"a worker ended and was started anew: {exited}")
            tick()
            if not moved:
                time.sleep(POLL_S)  # no Event that the signal's handler sets: waiting for one there may deadlock

    def collect(self) -> int:
        """Write answers that have come to OUT; returns how many. Asks for at most `ASK_AT_ONCE` calls, in turn.

        Raises:
            StoreUnavailable: Redis is away.
            OutFailed: OUT cannot be written.
        """
        moved, left = 0, min(ASK_AT_ONCE, len(self._out))
        while left > 0 and self._out:
            asked = list(islice(self._out, min(left, self._results.at_once)))
            others = len(asked) < len(self._out)
            settled = self._results.settled(asked)
            self._write(settled)
            if others:  # move these to the end, so that the others are asked for next
                for call_id in asked:
                    if call_id in self._out:
                        self._out[call_id] = self._out.pop(call_id)
            moved, left = moved + len(settled), left - len(asked)
        return moved

    def collect_all(self) -> None:
        """Write all answers that have come to OUT.

        Raises:
            As `collect`.
        """
        for _ in range(len(self._out) // ASK_AT_ONCE + 1):
            self.collect()

    def withdraw(self) -> None:
        """Delete the results of all calls that are not in OUT; a later start, if there is one, sends them anew.

        Raises:
            StoreUnavailable: Redis is away.
        """
        with redis_errors():
            self._results.forget(list(self._out))

    def _turn(self) -> int:
        try:
            moved = self._send() + self.collect()
            self._audit()
            for told in self.account.look():
                self._say(told)
        except StoreUnavailable as error:
            now_s = time.monotonic()
            if self._away_since_s is None:
                self._away_since_s = now_s
                self._say(f"waiting for Redis: {error}")
            if now_s - self._away_since_s > AWAY_S:
                raise StoreUnavailable(f"{error}; resume with the same command") from error
            self._check = True  # the call that was being sent may have arrived
            time.sleep(POLL_S)
            return 0
        self._away_since_s = None
        return moved

    def _look_through(self) -> Survey:
        """Survey IN, and name lines that cannot be sent, so that a person can stop before anything is paid for."""
        index = None
        if self.options.once:

            def index(number: int, offset: int, text: bytes) -> None:
                read = self._reader.read(text, number, offset, partial(_always, None))
                if isinstance(read, Ask):
                    self._same.add(same_ask(read), offset)

        return look_through(
            self.intake, self._most_bytes, self._reader, self.journal, self._say, self._stopped, answered=index
        )

    def _to_send(self) -> Iterator[Ask | Bad]:
        """The lines of IN that are not in OUT, in their order."""
        survey, repeats = self._survey, iter(self._survey.repeats)
        if survey.first is None:
            return
        start, begins = survey.first
        for number, offset, text in numbered(self.intake.lines(self._most_bytes, begins), start, begins):
            state = survey.state(number)
            if state == DONE:
                continue
            first = next(repeats) if state > BAD else None
            yield self._reader.read(text, number, offset, partial(_always, first))

    # ---- Sending ----------------------------------------------------------------------------------------------------

    def _send(self) -> int:
        until_s, sent = time.monotonic() + SEND_S, 0
        while self._owed and self._owed[0][0] <= time.monotonic():
            _, call_id, out = heappop(self._owed)
            self._pending.appendleft(self._read_again(call_id, out))
        while self._has_room() and time.monotonic() < until_s:
            if not self._pending and not self._read():
                break
            if self._check:
                self._known = self._in_redis([ask.call_id for ask in self._pending])
                self._check = False
            if not self._enqueue(self._pending[0]):
                break
            self._pending.popleft()
            sent += 1
        return sent

    def _has_room(self) -> bool:
        return len(self._out) + len(self._owed) < WINDOW and self._out_bytes < WINDOW_BYTES

    def _read(self) -> bool:
        """Read lines until there is a call to send; False: all lines are read. Lines that cannot be sent go to OUT."""
        assert self._lines is not None
        while not self._pending:
            bad, many = list[Bad](), 0
            start = end = None
            for line in islice(self._lines, CHUNK):
                many += 1
                if isinstance(line, Bad):
                    bad.append(line)
                    continue
                end = line.offset
                start = end if start is None else start
                if not self._follows(line):
                    self._pending.append(line)
                if end - start > CHUNK_BYTES:
                    break
            if not many:
                self._read_all = True
                return False
            self._keep([(line.custom_id, line.call_id, bad_line(line), End.FAILED) for line in bad])
            self._known.clear()
            self._over.clear()
            self._check = self._check or self.journal.resumed
        return True

    def _follows(self, ask: Ask) -> bool:
        """Whether an earlier, identical line answers this one: from OUT at once, or when its answer comes."""
        if not self.options.once:
            return False
        wanted = same_ask(ask)
        offset = self._same.add(wanted, ask.offset)
        first = ask if offset is None else self._at(offset)
        if isinstance(first, Ask) and offset is not None and same_ask(first) == wanted:  # else only hashes are equal
            if first.call_id in self._asking:
                self._twins.setdefault(first.call_id, array("Q")).extend((ask.offset, ask.number))
                return True
            if self.journal.has(first.custom_id, first.call_id):
                kept = self.journal.line(first.custom_id)
                end = read_out(kept).end
                if end is not End.FAILED:  # a call that failed may succeed now
                    self._keep([(ask.custom_id, ask.call_id, line_for(kept, ask.call_id, ask.custom_id), end)])
                    self.tally.took(*read_out(kept).tokens)
                    self.cached += 1
                    return True
            self._same.put(wanted, ask.offset)
        self._asking.add(ask.call_id)
        return False

    def _enqueue(self, ask: Ask) -> bool:
        """Send a call, unless Redis knows it already; False: its lane is full."""
        lane = self.options.lane or builtin.lane_of_line(ask.url, ask.body)
        self._first_of_provider(ask.url)
        try:
            self._first_of_lane(lane)
            self.account.uses(lane, api_of(ask.url).PROVIDER)
            if ask.call_id not in self._known:
                builtin.batch_line.apply_async(
                    kwargs={"url": ask.url, "body": ask.body},
                    task_id=ask.call_id,
                    lane=lane,
                    context=self.options.context,
                    number=self._before(ask),
                    **({} if self.options.queue is None else {"queue": self.options.queue}),
                )
        except LaneFull:
            return False
        except BadInput as error:
            self._say(f"{self.intake.name}, line {ask.number}: {error}")
            line = error_line(ask.call_id, ask.custom_id, "invalid_line", f"line {ask.number}: {error}")
            self._keep([(ask.custom_id, ask.call_id, line, End.FAILED)])
            return True
        self._out[ask.call_id] = _Out(ask.custom_id, ask.number, ask.offset, ask.size, lane, ask.url)
        self._out_bytes += ask.size
        return True

    def _before(self, ask: Ask) -> int | None:
        """Attempts that were made at a call which is sent again under its id (each has a row); None: it is new."""
        owed = self.account.is_owed(ask.call_id) or ask.custom_id in self.journal.taken_up
        again = owed or ask.call_id in self._over
        return self._made(ask.call_id) if again else None

    def _first_of_provider(self, url: str) -> None:
        """Check proxy, address and key at the first call to a provider: one error now instead of one for each line.

        Only for own workers: the cluster's have another environment.
        """
        api = api_of(url)
        if self.options.queue is not None and api.PROVIDER not in self._providers:
            network.check(self.cluster.environ)
            try:
                wait_for_key(lambda: api.endpoint(self.cluster.environ))
            except AuthenticationFailed as error:
                raise ConfigurationError(error.cause) from error
            self._providers.add(api.PROVIDER)
        if not self._begun:
            self._begin()
            self._begun = True

    def _first_of_lane(self, lane: str) -> None:
        if lane in self.lanes:
            return
        told = self.options.rpm is not None or self.options.tpm is not None
        if told or self.cluster.embedded:  # the embedded Redis may have limits of an earlier run: they are replaced
            limits = self.cluster.settings.lanes.get(lane) or LaneLimits()
            if told:
                limits = replace(limits, rpm=self.options.rpm, tpm=self.options.tpm, unlimited=False)
            with redis_errors():
                self.cluster.services.lanes.tell(lane, limit_fields(limits))
        if self.cluster.embedded:
            self.account.begin_again(lane)
        self.lanes.add(lane)

    def _in_redis(self, call_ids: list[str]) -> set[str]:
        """Those of the calls that wait, run or are answered, and so are not sent; also sets `_over`."""
        with redis_errors(), self.cluster.services.redis.pipeline(transaction=False) as pipe:
            for call_id in call_ids:
                pipe.exists(keys.call(call_id))
                pipe.exists(keys.done(call_id))
            replies = pipe.execute()
        found = {call_id for call_id, there in zip(call_ids, replies[::2], strict=True) if there}
        over = {call_id for call_id, ended in zip(call_ids, replies[1::2], strict=True) if ended}
        # Results are asked for second: a call that is acknowledged between the two questions has its result by then.
        found |= self._results.over(call_ids)
        self._over = over - found
        return found

    # ---- Collecting -------------------------------------------------------------------------------------------------

    def _write(self, settled: list[Settled]) -> None:
        lines: list[tuple[str | None, str, bytes, End]] = []
        for one in settled if self.options.queue is not None else ():  # only own workers have this run's base URL
            self._addresses.hear(self._out[one.call_id].url, one.value, one.error)
        for one in settled:
            out = self._out[one.call_id]
            custom_id = out.custom_id
            if one.error is not None and is_accounts(one.error):
                wait_s = self.account.again_in_s(one.call_id, out.lane, one.error)
                if wait_s is not None:
                    heappush(self._owed, (time.monotonic() + wait_s, one.call_id, out))
                    continue
            if one.error is None:
                self.account.answered(one.call_id, out.lane)
                self.tally.took(*tokens_of(one.value.get("body") if isinstance(one.value, dict) else None))
            line, end = (
                answer_line(one.call_id, custom_id, one.value)
                if one.error is None
                else failure_line(one.call_id, custom_id, one.error)
            )
            lines.append((custom_id, one.call_id, line, end))
        self._keep(lines)
        for one in settled:
            self._out_bytes -= self._out.pop(one.call_id).size
        self._results.forget([one.call_id for one in settled])

    def _keep(self, lines: list[tuple[str | None, str, bytes, End]]) -> None:
        for _, call_id, line, _ in lines:
            # Before the line itself: after a crash between the two its answer is still in Redis, and is found again.
            self._answer_twins(call_id, line)
            self._asking.discard(call_id)
        self.journal.write(lines)
        for _, _, line, end in lines:
            self.tally.count(ANSWER if end is End.ANSWERED else read_out(line).kind)

    def _answer_twins(self, call_id: str, line: bytes) -> None:
        twins = self._twins.pop(call_id, None)
        if twins is None:
            return
        for first in range(0, len(twins), 2 * CHUNK):
            found = [self._at(offset, number) for offset, number in _pairs(twins[first : first + 2 * CHUNK])]
            asks = [ask for ask in found if isinstance(ask, Ask)]
            texts = [(ask.custom_id, ask.call_id, line_for(line, ask.call_id, ask.custom_id)) for ask in asks]
            self.journal.write([(*text, read_out(text[2]).end) for text in texts])
            for _, _, text in texts:
                read = read_out(text)
                self.tally.count(read.kind)
                self.tally.took(*read.tokens)
            self.joined += len(texts)

    def _audit(self) -> None:
        """Find calls that Redis has lost (it restarted without its data), and send them again.

        A call counts as lost if two audits in a row miss it.
        """
        if time.monotonic() < self._audit_at_s:
            return
        self._audit_at_s = time.monotonic() + AUDIT_S
        asked = list(islice(self._out, ASK_AT_ONCE))
        gone = set(asked) - self._in_redis(asked)
        lost, self._missing = gone & self._missing, gone
        for call_id in lost:
            out = self._out.pop(call_id)
            self._out_bytes -= out.size
            self._pending.append(self._read_again(call_id, out))
        if lost:
            self._say(f"Redis has lost {many(len(lost), 'call; it is', 'calls; they are')} sent again")
            self._missing -= lost

    def _read_again(self, call_id: str, out: _Out) -> Ask:
        read = self._at(out.offset, out.number)
        if not isinstance(read, Ask) or read.call_id != call_id:
            raise BadInput(f"{self.intake.name} has changed while it is sent; start the same command again")
        return read

    def _at(self, offset: int, number: int = 0) -> Ask | Bad | None:
        """The line that begins at this offset (bytes); None: there is none."""
        for _, _, text in islice(numbered(self.intake.lines(self._most_bytes, offset)), 1):
            return self._reader.read(text, number, offset, partial(_always, None))
        return None


def _always(first: int | None, custom_id: str) -> int | None:
    return first


def _pairs(flat: array[int]) -> Iterator[tuple[int, int]]:
    return zip(flat[::2], flat[1::2], strict=True)
