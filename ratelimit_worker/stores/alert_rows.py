"""Which alerts were there? Their rows in the tracking database: one for each, in its latest state."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Select, case, func, select
from sqlalchemy.dialects import postgresql, sqlite

from ratelimit_worker.contracts.alert import Alert, Kind
from ratelimit_worker.stores.storable import lane_key, storable_alert
from ratelimit_worker.stores.tables import AlertRow

_LATER = ("closed_at", "acked_at")  #: columns that keep their first value
_WITH_THEM = {"ended": "closed_at", "acked_by": "acked_at"}


def put(connection: Connection, alerts: Sequence[Alert]) -> None:
    """Insert alerts that have opened, or update their rows. A late update does not open a closed alert again."""
    rows = [_row(storable_alert(one)) for one in alerts if one.opened_s is not None]
    if not rows:
        return
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(AlertRow)
    new, held = insert.excluded, AlertRow.__table__.c
    changed: dict[str, Any] = {name: func.coalesce(held[name], new[name]) for name in _LATER}
    for name, of in _WITH_THEM.items():
        changed[name] = case((held[of].is_not(None), held[name]), else_=new[name])
    statement = insert.on_conflict_do_update(index_elements=["id"], set_=changed)
    connection.execute(statement, sorted(rows, key=lambda row: str(row["id"])))


def wanted(
    *, since_s: float | None, kinds: Sequence[Kind], lane: str | None, only_open: bool, limit: int
) -> Select[Any]:
    """The newest alerts that were open at some time from `since_s` on (seconds since the epoch), newest first."""
    found = select(AlertRow.__table__).order_by(AlertRow.opened_at.desc(), AlertRow.id).limit(limit)
    if since_s is not None:
        since = datetime.fromtimestamp(since_s, UTC)
        found = found.where((AlertRow.closed_at.is_(None)) | (AlertRow.closed_at >= since))
    if kinds:
        found = found.where(AlertRow.kind.in_([kind.value for kind in kinds]))
    if lane is not None:
        found = found.where(AlertRow.lane == lane_key(lane))
    return found.where(AlertRow.closed_at.is_(None)) if only_open else found


def alert_of(row: Any) -> Alert | None:
    """The alert of a row; None: its kind is of a newer version."""
    if row.kind not in set(Kind):
        return None
    return Alert(
        kind=Kind(row.kind),
        lane=row.lane,
        about=row.about,
        since_s=row.since.timestamp(),
        seen_s=(row.closed_at or row.opened_at).timestamp(),
        cause=row.cause,
        numbers=row.numbers,
        id=row.id,
        opened_s=row.opened_at.timestamp(),
        closed_s=_seconds(row.closed_at),
        ended=row.ended,
        acked_by=row.acked_by,
        acked_s=_seconds(row.acked_at),
    )


def _row(alert: Alert) -> dict[str, Any]:
    return {
        "id": alert.id,
        "kind": alert.kind.value,
        "lane": alert.lane,
        "about": alert.about,
        "since": datetime.fromtimestamp(alert.since_s, UTC),
        "opened_at": datetime.fromtimestamp(alert.opened_s or alert.since_s, UTC),
        "closed_at": _moment(alert.closed_s),
        "cause": alert.cause,
        "numbers": dict(alert.numbers),
        "ended": alert.ended,
        "acked_by": alert.acked_by,
        "acked_at": _moment(alert.acked_s),
    }


def _moment(at_s: float | None) -> datetime | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC)


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()
