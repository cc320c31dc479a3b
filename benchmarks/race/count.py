"""What did a client get, and at what price? Figures of one run from the provider's log, and their table.

Pure: logs and answers in, figures out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median

from ratelimit_worker.simulate.arrivals import Log
from ratelimit_worker.simulate.oracle import delivered, oracle, oracle_time_s
from ratelimit_worker.simulate.scenarios import Case


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One run of one client in one case."""

    client: str
    case: str
    seed: int
    seconds: float  #: the horizon; of a finite case, what the client took
    calls: int  #: that the client was given
    ended: int  #: ... and of which it says how they ended
    good: int  #: good answers delivered within the horizon
    oracle: float  #: what the oracle had, in calls; of a finite case, in seconds
    share: float  #: of the oracle
    requests: int  #: within the horizon
    refusals: float  #: 429s of the limit, as a share of the requests that met no scripted fault
    in_outage: int  #: requests sent into an outage
    failed: int  #: calls that the client gave up (400 excepted, which is the call's own fault)
    lost: int | None  #: calls of which the client says nothing at its end; None: it was stopped at the horizon
    duplicates: int  #: calls that were answered well more than once

    def line(self) -> str:
        """One line for a person."""
        lost = "" if self.lost is None else f", lost {self.lost}"
        return (
            f"{self.case} seed {self.seed} {self.client}: {self.share:.1%} of the oracle, {self.refusals:.1%} 429s, "
            f"{self.good} good of {self.requests} requests in {self.seconds:.1f} s, into the outage {self.in_outage}, "
            f"gave up {self.failed} of {self.ended}{lost}, duplicates {self.duplicates}"
        )

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


def statuses(lines: Iterable[str]) -> dict[str, int | None]:
    """custom_id -> status of the answer that the client wrote down; None: it gave the call up without one."""
    ends: dict[str, int | None] = {}
    for line in lines:
        if not line.endswith("\n"):  # the client was stopped while it wrote
            continue
        answer = json.loads(line)
        if answer["custom_id"] is not None:
            ends[answer["custom_id"]] = answer["response"] and answer["response"]["status_code"]
    return ends


def count(client: str, case: Case, seconds: float, log: Log, ends: Mapping[str, int | None], *, ended: bool) -> Figures:
    """The figures of one run.

    Args:
        seconds: The horizon; of a finite case, until when it was let run.
        ends: By `statuses`, of the client's answers.
        ended: Whether the client came to its end by itself.
    Raises:
        ValueError: The provider saw no request.
    """
    if not log.arrivals:
        raise ValueError(f"{client} sent no request; its own words say why")
    first_s = min(arrival.t for arrival in log.arrivals)
    gone = {incident.n for incident in log.incidents}
    seen = [arrival for arrival in log.arrivals if arrival.t <= first_s + seconds]
    good = [arrival for arrival in delivered(log.arrivals, seconds) if arrival.n not in gone]
    plain = [arrival for arrival in seen if arrival.fault is None]
    ids = {call.custom_id for call in case.calls(seconds)}
    if case.finite is None:
        mean = case.mean(seconds)
        best = oracle(case.provider, seconds, mean)
        told, share = best.calls, best.worth(good, mean) / best.calls
        took_s = seconds
    else:
        told = oracle_time_s(case.provider, case.finite, case.mean())
        took_s = max((one.t + one.latency_s - first_s for one in good), default=seconds)
        # Who gives most of the calls up is done early: that is no speed.
        share = len({one.custom_id for one in good}) / case.finite * min(1.0, told / took_s)
    answers = Counter(one.custom_id for one in log.delivered())
    return Figures(
        client=client,
        case=case.name,
        seed=case.seed,
        seconds=took_s,
        calls=len(ids),
        ended=len(ends),
        good=len(good),
        oracle=told,
        share=share,
        requests=len(seen),
        refusals=sum(one.status == 429 for one in plain) / max(1, len(plain)),
        in_outage=sum(one.fault == "outage" for one in seen),
        failed=sum(status not in {200, 400} for status in ends.values()),
        lost=len(ids - ends.keys()) if ended else None,
        duplicates=sum(times > 1 for times in answers.values()),
    )


def table(runs: Sequence[Figures]) -> str:
    """A Markdown table of medians, a row a case and client; least share and most 429s beside them."""
    rows = [
        "| scenario | client | seeds | share of the oracle | least | 429s | most | into the outage | given up | lost "
        "| duplicates |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, client in dict.fromkeys((run.case, run.client) for run in runs):
        of = [run for run in runs if (run.case, run.client) == (case, client)]
        lost = [run.lost for run in of if run.lost is not None]
        given_up = sum(run.failed for run in of) / max(1, sum(run.ended for run in of))
        rows.append(
            f"| {case} | {client} | {len(of)} | {median(run.share for run in of):.1%} "
            f"| {min(run.share for run in of):.1%} | {median(run.refusals for run in of):.1%} "
            f"| {max(run.refusals for run in of):.1%} | {max(run.in_outage for run in of)} "
            f"| {given_up:.1%} | {sum(lost) if lost else '–'} | {sum(run.duplicates for run in of)} |"
        )
    return "\n".join(rows)
