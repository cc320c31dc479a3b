"""Reports as files: JSON with a schema version, CSV of lanes by hour, or one HTML page."""

from __future__ import annotations

import csv
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from ratelimit_worker.calls import Category
from ratelimit_worker.contracts.reuse import Reuse
from ratelimit_worker.errors import BadInput, RateLimitWorkerError
from ratelimit_worker.reports.figures import Group, Point
from ratelimit_worker.reports.html import page
from ratelimit_worker.reports.live import ClusterState
from ratelimit_worker.reports.money import NANO, Spend
from ratelimit_worker.reports.outcomes import Snoozed
from ratelimit_worker.reports.stats import DAY_S, HOUR_S, Sources, Stats, fitted
from ratelimit_worker.reports.stats import stats as figures
from ratelimit_worker.reports.words import as_json

KIND = "ratelimit-worker.analytics"
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  #: a spreadsheet may run a cell that begins with one of these

#: Columns of the CSV; new ones come at the end.
COLUMNS = (
    "from",
    "lane",
    "calls",
    "answered",
    "failed",
    "attempts",
    "retried",
    "snoozed",
    "refused_429",
    "error_rate",
    "latency_mean_s",
    "input_tokens",
    "output_tokens",
    "met_failure",
    "recovered",
    "retry_success_rate",
    "backoff_s",
    *(f"not_answered_{category.value}" for category in Category),
    *(f"snoozed_{reason.value}" for reason in Snoozed),
    "cost_usd",
    "wasted_usd",
    "cached_saving_usd",
    *(f"cache_{name.value}" for name in Reuse),
    "estimated_usd",
    "unpriced_attempts",
)

#: Columns of the CSV of functions, each over the whole window.
FUNCTION_COLUMNS = ("from", "function", *COLUMNS[2:])


class NotWritten(RateLimitWorkerError):
    """The report could not be written; an existing file is unchanged."""


def write_report(stats: Stats, path: Path) -> None:
    """Write the report in the format of the file name's ending, completely or not at all.

    Raises:
        BadInput: the name ends neither in .json, .csv nor .html.
        NotWritten: the file system refuses.
    """
    check_name(path)
    text = FORMS[path.suffix.lower()](stats)
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as made:
            made.write(text)
        temporary = Path(made.name)
        temporary.chmod(0o666 & ~_umask())  # a temporary file has 0600; a report gets the usual permissions
        os.replace(temporary, path)
    except OSError as error:
        raise NotWritten(f"{path}: {error.strerror or error}") from error


def export(sources: Sources, path: Path | str | None = None, window_s: float = DAY_S) -> dict[str, Any] | None:
    """The report of the last `window_s` seconds: written to `path`, or returned as plain values if that is None.

    Raises:
        BadInput: the name ends neither in .json, .csv nor .html.
        NotWritten: the file system refuses.
        StoreUnavailable: the database is away or locked.
    """
    if path is not None:
        check_name(Path(path))
    now_s = time.time()
    found = figures(sources, fitted(sources, window_s, now_s), now_s)
    if path is None:
        return as_report(found)
    write_report(found, Path(path))
    return None


def check_name(path: Path) -> None:
    """Check that the name ends like one of the formats.

    Raises:
        BadInput: it ends neither in .json, .csv nor .html.
    """
    if path.suffix.lower() not in FORMS:
        raise BadInput(f"{path.name}: the name of a report ends in {', '.join(FORMS)}")


def to_json(stats: Stats) -> str:
    """The whole report. Times are seconds since the epoch, shares lie between 0 and 1; unknown is null."""
    return as_json(as_report(stats)) + "\n"


def as_report(stats: Stats) -> dict[str, Any]:
    """The whole report as plain values."""
    return {"kind": KIND, "generated": datetime.fromtimestamp(stats.until_s, UTC).isoformat(), **as_builtins(stats)}


def to_csv(stats: Stats, per_s: float = HOUR_S) -> str:
    """One row for each lane and hour (or slice of `per_s`) in which something happened, oldest first; times in UTC."""
    return _csv(COLUMNS, _rows(stats, per_s))


def to_function_csv(stats: Stats) -> str:
    """One row for each function, over the whole window; times in UTC."""
    spent = {one.name: one.spend for one in stats.money.functions}
    rows = (_function_row(stats.since_s, group, spent.get(group.name)) for group in stats.functions)
    return _csv(FUNCTION_COLUMNS, rows)


def _csv(columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(tuple(_cell(value) for value in row) for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """Put a ' before text that a spreadsheet would run as a formula; numbers stay as they are."""
    if not isinstance(value, str):
        return value
    text = value.replace("\r", "\\r")  # `csv` does not quote CR, and readers take it for the end of a row
    return f"'{text}" if value.startswith(_FORMULA) else text


FORMS: dict[str, Callable[[Stats], str]] = {".json": to_json, ".csv": to_csv, ".html": page}


def as_builtins(value: Stats | ClusterState) -> dict[str, Any]:
    """Dicts and lists, as in JSON; lanes also get the rate that they are allowed, which is derived from their
    set-points."""
    made: dict[str, Any] = msgspec.to_builtins(value)
    state = value.now if isinstance(value, Stats) else value
    rows = made["now"] if isinstance(value, Stats) else made
    for lane, row in zip(state.lanes if state is not None else (), rows["lanes"] if rows else (), strict=True):
        row["allowed_per_min"] = lane.allowed_per_min
    return made


def _rows(stats: Stats, per_s: float) -> Iterator[tuple[object, ...]]:
    for lane in stats.lanes:
        merged: dict[float, list[Point]] = {}
        for point in lane.timeline:
            merged.setdefault(point.at_s // per_s * per_s, []).append(point)
        for at_s, points in merged.items():
            row = _row(max(at_s, stats.since_s), lane.name, points)
            if row is not None:
                yield row


def _row(at_s: float, lane: str, points: list[Point]) -> tuple[object, ...] | None:
    attempts, answered = sum(p.attempts for p in points), sum(p.answered for p in points)
    if not attempts and not any(p.reuse for p in points):
        return None
    errors = sum(p.retried + p.failed for p in points)
    judged = attempts - sum(p.snoozed for p in points)
    latency_s = sum((p.latency_s or 0.0) * p.answered for p in points)
    return (
        datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds"),
        lane,
        sum(p.calls for p in points),
        answered,
        sum(p.failed for p in points),
        attempts,
        sum(p.retried for p in points),
        sum(p.snoozed for p in points),
        sum(p.refused for p in points),
        round(errors / judged, 6) if judged else 0.0,
        round(latency_s / answered, 6) if answered else "",
        sum(p.input_tokens for p in points),
        sum(p.output_tokens for p in points),
        *_retry_cells(
            sum(p.recovered for p in points),
            sum(p.failed for p in points),
            sum(p.backoff_s for p in points),
            sum((Counter(p.categories) for p in points), Counter()),
        ),
        *_snoozed_cells(sum((Counter(p.snoozed_by) for p in points), Counter())),
        *_money_cells(
            sum(p.cost_nanousd for p in points),
            sum(p.wasted_nanousd for p in points),
            sum(p.cached_saving_nanousd for p in points),
        ),
        *(sum(getattr(p.reuse, name, 0) for p in points) for name in Reuse),
        *_money_cells(sum(p.estimated_nanousd for p in points)),
        sum(p.unpriced_attempts for p in points),
    )


def _function_row(since_s: float, group: Group, spend: Spend | None) -> tuple[object, ...]:
    f = group.figures
    return (
        datetime.fromtimestamp(since_s, UTC).isoformat(timespec="seconds"),
        group.name,
        f.calls,
        f.answered,
        f.failed,
        f.attempts,
        f.retried,
        f.snoozed,
        f.refused,
        round(f.error_rate, 6),
        round(f.latency_mean_s, 6) if f.latency_mean_s is not None else "",
        f.input_tokens,
        f.output_tokens,
        *_retry_cells(f.recovered, f.failed, f.backoff_s, f.categories),
        *_snoozed_cells(f.snoozed_by),
        *(
            _money_cells(spend.cost_nanousd, spend.wasted_nanousd, spend.cached_saving_nanousd)
            if spend is not None
            else ("", "", "")  # its costs are in the sum of all groups beyond the bound
        ),
        *(getattr(f.reuse, name) for name in Reuse),
        *((*_money_cells(spend.estimated_nanousd), spend.unpriced_attempts) if spend is not None else ("", "")),
    )


def _retry_cells(recovered: int, failed: int, backoff_s: float, categories: Mapping[str, int]) -> tuple[object, ...]:
    met = recovered + failed
    rate = round(recovered / met, 6) if met else ""
    return met, recovered, rate, round(backoff_s, 6), *(categories.get(category.value, 0) for category in Category)


def _snoozed_cells(by_reason: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(by_reason.get(reason.value, 0) for reason in Snoozed)


def _money_cells(*nanousd: int) -> tuple[float, ...]:
    """Billionths of a dollar as dollars."""
    return tuple(one / NANO for one in nanousd)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
