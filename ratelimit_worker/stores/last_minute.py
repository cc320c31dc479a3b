"""What did each lane do in a short time? Read by the database's own driver, for commands that read nothing else of it.

To import SQLAlchemy takes longer than all the rest of `status`. It is not needed for one sum over a database that is as
this version leaves it. Whatever else is found (there is no database yet, another revision of it, a lock, an address
with special options), the answer is None, and `Queries.recent` either reads the same or says what is wrong.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ratelimit_worker.contracts.sums import Recent
from ratelimit_worker.errors import StoreUnavailable
from ratelimit_worker.stores.revision import HEAD, VERSION_TABLE

CONNECT_S = 5  #: time for PostgreSQL to take a connection, as of `engine_for`
_REVISION = f"SELECT version_num FROM {VERSION_TABLE}"
#: As `Queries.recent` asks; the marks are the driver's for the two ends of the window.
_SUMS = (
    "SELECT lane, count(*), sum(CASE WHEN status = 429 OR category = 'rate_limited' THEN 1 ELSE 0 END)"
    " FROM attempts WHERE finished_at >= {mark} AND finished_at < {mark} GROUP BY lane"
)
_SQLITE, _POSTGRESQL = _SUMS.format(mark="?"), _SUMS.format(mark="%s")


def last_minute(url: str, since_s: float, until_s: float) -> dict[str, Recent] | None:
    """Lane → what it did in a window; None: only `Queries.recent` can say.

    Args:
        url: The tracking database, as of `engine_for`.
        since_s: Attempts that ended from this time on, seconds since the epoch.
        until_s: And before this one.
    Raises:
        StoreUnavailable: PostgreSQL did not take a connection within `CONNECT_S`.
    """
    scheme, _, rest = url.strip().partition("://")
    since, until = (datetime.fromtimestamp(at_s, UTC) for at_s in (since_s, until_s))
    if scheme in {"sqlite", "sqlite+pysqlite"}:
        return _of_file(rest, since, until)
    if scheme in {"postgres", "postgresql", "postgresql+psycopg"}:
        return _of_server(f"postgresql://{rest}", since, until)
    return None


def _of_file(rest: str, since: datetime, until: datetime) -> dict[str, Recent] | None:
    path = rest.removeprefix("/")
    if not path or path.startswith((":", "file:")) or "?" in path or "%" in path:
        return None  # SQLAlchemy reads these as options and escapes
    try:
        # rw: the file is not made if it is not there
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=rw", uri=True, timeout=0.0)) as connection:
            if connection.execute(_REVISION).fetchall() != [(HEAD,)]:
                return None
            # as SQLAlchemy stores times in SQLite
            ends = [at.strftime("%Y-%m-%d %H:%M:%S.%f") for at in (since, until)]
            return _recent(connection.execute(_SQLITE, ends))
    except sqlite3.Error:
        return None


def _of_server(url: str, since: datetime, until: datetime) -> dict[str, Recent] | None:
    try:
        import psycopg
        from psycopg import conninfo, errors
    except ImportError:  # `engine_for` says how to install it
        return None
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_S, client_encoding="utf8") as connection:
            if connection.execute(_REVISION).fetchall() != [(HEAD,)]:
                return None
            return _recent(connection.execute(_POSTGRESQL, (since, until)))
    except errors.ConnectionTimeout as error:
        where = conninfo.conninfo_to_dict(url)
        place = f"database {where.get('dbname', '')} on {where.get('host', 'localhost')}:{where.get('port', 5432)}"
        raise StoreUnavailable(f"{place}: no connection within {CONNECT_S} s") from error
    except psycopg.Error:
        return None


def _recent(rows: Iterable[Any]) -> dict[str, Recent]:
    return {lane: Recent(attempts, int(refused or 0)) for lane, attempts, refused in rows}
