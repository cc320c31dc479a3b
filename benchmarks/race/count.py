"""Figures of one run from the provider's log and the client's answers, and the table of all runs. Pure."""

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
    seconds: float  #: the horizon; in a finite case, the client's time
    calls: int  #: calls that the client was given
    ended: int  #: calls whose end the client has written down
    good: int  #: good answers delivered within the horizon
    oracle: float  #: the oracle's result, in calls; in a finite case, in seconds
    share: float  #: the client's result as a share of the oracle's
    requests: int  #: within the horizon
    refusals: float  #: 429s of the limit, as a share of the requests that met no scripted fault
    in_outage: int  #: requests sent during an outage
    failed: int  #: calls that the client gave up (without those with a 400, which is their own fault)
    lost: int | None  #: calls without an end in the client's file; None: it was stopped at the horizon
    duplicates: int  #: calls that got a good answer more than once

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
        seconds: The horizon; in a finite case, the time after which the client was stopped.
        ends: The client's answers, from `statuses`.
        ended: Whether the client ended by itself.
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
        # A client that gives up most calls ends early, so the share of answered calls counts too.
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
    """A Markdown table of medians, with a row for each case and client, and with the least share and the most 429s."""
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
