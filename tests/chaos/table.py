"""What was promised, and what was measured: a Markdown table, put between two marks of a page. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Fault
from tests.chaos.verdict import Verdict

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
HEAD = (
    "fault", "promise", "kept", "calls", "refused", "lost", "stuck", "again", "twice", "rows missing", "rows doubled",
    "slots lost", "slowest `.delay()`", "recovered",
)  # fmt: skip


@dataclass(slots=True)
class Result:
    """All runs of one fault."""

    fault: Fault
    verdicts: list[Verdict] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  #: runs that could not be judged, and why
    skipped: str = ""

    @property
    def kept(self) -> bool:
        """Whether no run broke the promise, and each could be judged; what is skipped has broken none."""
        return not self.failed and all(verdict.kept for verdict in self.verdicts)


def table(results: Sequence[Result], load: float) -> str:
    """The table, what was broken below it, and how busy the machine was (`load`: its load average)."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *(_row(result) for result in results)]
    broken = [f"- `{one.fault.name}`: {why}" for one in results for why in _breaches(one)]
    lines += ["", f"The worst of all runs of each fault; load average of the machine at the end: {load:.1f}.", ""]
    lines += ["**Not kept:**", "", *broken] if broken else ["Every promise was kept in every run."]
    return "\n".join(lines)


def put_between(page: str, text: str) -> str:
    """The page, with `text` between its marks.

    Raises:
        ValueError: it has no marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def _row(result: Result) -> str:
    fault, runs = result.fault, result.verdicts
    if result.skipped:
        cells = [f"skipped: {result.skipped}", *["–"] * (len(HEAD) - 3)]
    else:
        good = sum(verdict.kept for verdict in runs)
        times = [verdict.recovered_s for verdict in runs if verdict.recovered_s is not None]
        cells = [
            f"{good} of {len(runs) + len(result.failed)}",
            str(sum(verdict.accepted for verdict in runs)),
            *(_most(runs, of) for of in _FIGURES),
            f"{max((verdict.slowest_delay_s for verdict in runs), default=0.0):.2f} s",
            f"{max(times):.1f} s" if times else "–",
        ]
    return f"| `{fault.name}` | {fault.promise} | {' | '.join(cells)} |"


_FIGURES: tuple[Callable[[Verdict], int], ...] = (
    lambda verdict: verdict.refused,
    lambda verdict: verdict.lost,
    lambda verdict: verdict.stuck,
    lambda verdict: verdict.again,
    lambda verdict: verdict.twice,
    lambda verdict: verdict.rows_missing,
    lambda verdict: verdict.rows_doubled,
    lambda verdict: verdict.slots_lost,
)


def _most(runs: Sequence[Verdict], of: Callable[[Verdict], int]) -> str:
    return str(max((of(verdict) for verdict in runs), default=0))


def _breaches(result: Result) -> list[str]:
    whys = [why for verdict in result.verdicts for why in verdict.broken]
    whys += [f"could not be judged: {why}" for why in result.failed]
    return list(dict.fromkeys(whys))
