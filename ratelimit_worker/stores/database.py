"""The connection to the tracking database, and what its errors mean for us."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Dialect, Engine, create_engine, event, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    DisconnectionError,
    IntegrityError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from ratelimit_worker.errors import ConfigurationError, RateLimitWorkerError, RowRefused, StoreUnavailable
from ratelimit_worker.private_files import make_file, make_folder
from ratelimit_worker.stores.encoding import json_text, tell
from ratelimit_worker.stores.sqlite_file import identity
from ratelimit_worker.stores.sqlite_log import KEPT

#: SQLSTATE classes of errors in a row: data exception, integrity violation, program limit (text too long to index).
_ROW_AT_FAULT = ("22", "23", "54")
_LOCKED_PAUSE_S = 0.02


def engine_for(url: str, *, busy_timeout_s: float = 5.0, connect_timeout_s: int = 5) -> Engine:
    """An engine for `url`: `sqlite:///path`, or PostgreSQL by psycopg (`postgresql://`, `postgres://`).

    SQLite's folder is created, and WAL mode is set, so that readers and the recorder do not wait for each other. A
    connection to PostgreSQL is made when it is first needed, so it may be away now.

    Args:
        busy_timeout_s: How long SQLite waits for another writer.
        connect_timeout_s: How long to wait for PostgreSQL to take a connection; at least 2 (libpq).
    Raises:
        ConfigurationError: The URL cannot be used.
        StoreUnavailable: The folder for the SQLite file cannot be created.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed, busy_timeout_s)
    return _postgresql(parsed, connect_timeout_s)


def ours(error: SQLAlchemyError, engine: Engine) -> RateLimitWorkerError:
    """Translate `error` to `RowRefused` or `StoreUnavailable`: one line, without secrets."""
    line = f"{_place(engine.url)}: {_without_secrets(_first_line(error), engine.url)}"
    if _row_at_fault(error):
        # The first line names the constraint or type; later lines (PostgreSQL's DETAIL) repeat the row's values.
        return RowRefused(line)
    return StoreUnavailable(line)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url.strip())
    except (ArgumentError, ValueError):
        # The error may repeat the URL with its password, so neither it nor its cause is passed on.
        raise ConfigurationError(
            "the database URL cannot be read; write sqlite:////absolute/path or postgresql://user:password@host/name"
        ) from None
    if parsed.drivername in {"postgres", "postgresql"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise ConfigurationError(
            f"the tracking database can be SQLite or PostgreSQL, not {parsed.get_backend_name()!r}"
        )
    driver = parsed.drivername.partition("+")[2]
    if driver not in {"", "psycopg", "pysqlite"}:  # others fail at their first use, some without a reason
        raise ConfigurationError(
            f"the database URL names the driver {driver!r}: leave it out, {parsed.get_backend_name()}://…"
        )
    if parsed.get_backend_name() == "sqlite" and parsed.database in {None, "", ":memory:"}:
        raise ConfigurationError("SQLite in memory is seen by one process only; give a file: sqlite:////path/to.db")
    return parsed


def _sqlite(url: URL, busy_timeout_s: float) -> Engine:
    try:
        make_folder(Path(url.database or "").parent)
    except OSError as error:
        raise StoreUnavailable(f"the folder of {_place(url)} cannot be created: {error.strerror}") from error
    engine = create_engine(
        url, connect_args={"timeout": busy_timeout_s}, json_serializer=json_text, hide_parameters=True
    )
    path = Path(url.database or "")

    def make_private(_dialect: Dialect, _entry: ConnectionPoolEntry | None, _args: Any, _options: Any) -> None:
        # SQLite would make the file readable by all users; files that it makes beside it get the mode of this file.
        try:
            make_file(path)
        except OSError as error:
            raise StoreUnavailable(f"{_place(url)} cannot be opened: {error.strerror}") from error

    def prepare(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        _to_wal(cursor, busy_timeout_s)
        # with WAL, a power cut may lose the last commits, but never the file
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.execute(f"PRAGMA journal_size_limit={KEPT}")  # so that a log that has grown large is shortened again
        cursor.close()
        entry.info["file"] = identity(path)

    def still_there(_connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
        # SQLite goes on with a file that was deleted or replaced, and the rows would never be seen.
        if entry.info["file"] != identity(path):
            raise DisconnectionError("the database file was replaced")

    if not (url.database or "").startswith("file:"):  # such URLs may be read-only
        event.listen(engine, "do_connect", make_private)
    event.listen(engine, "connect", prepare)
    event.listen(engine, "checkout", still_there)
    return engine


def _to_wal(cursor: DBAPICursor, patience_s: float) -> None:
    """Switch the file to WAL. Repeated, since SQLite does not wait if several processes open a new file at once."""
    until = time.monotonic() + patience_s
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() >= until:
                raise
        time.sleep(_LOCKED_PAUSE_S)


def _postgresql(url: URL, connect_timeout_s: int) -> Engine:
    wanted: dict[str, Any] = {
        "connect_timeout": connect_timeout_s,
        # If a server vanishes, the recorder must not wait for two hours (the kernel's default).
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
        "application_name": "ratelimit-worker",
    }
    try:
        engine = create_engine(
            url,
            # Whatever the server's encoding; without this, texts from SQL_ASCII come as bytes.
            connect_args={name: value for name, value in wanted.items() if name not in url.query}
            | {"client_encoding": "utf8"},
            json_serializer=json_text,
            pool_pre_ping=True,
            hide_parameters=True,
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"PostgreSQL needs {error.name}: pip install 'ratelimit-worker[postgres]'") from error

    def learn(connection: Any, _entry: ConnectionPoolEntry) -> None:
        tell(engine.dialect, connection.info.parameter_status("server_encoding") or "")

    event.listen(engine, "connect", learn)
    return engine


def _place(url: URL) -> str:
    """Where the database is, for messages: without user, password and options."""
    if url.get_backend_name() == "sqlite":
        return f"database {url.database}"
    host = url.host or url.query.get("host", "localhost")
    return f"database {url.database or ''} on {host}:{url.port or 5432}"


def _first_line(error: SQLAlchemyError) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return next(iter(str(cause).splitlines()), "") or type(cause).__name__


def _row_at_fault(error: SQLAlchemyError) -> bool:
    if not isinstance(error, DBAPIError):
        return isinstance(error, StatementError)  # SQLAlchemy could not convert a value
    sqlstate = getattr(error.orig, "sqlstate", None) or ""
    return isinstance(error, (DataError, IntegrityError)) or sqlstate.startswith(_ROW_AT_FAULT)


def _without_secrets(line: str, url: URL) -> str:
    secrets = [url.password, *(str(value) for name, value in url.query.items() if "password" in name)]
    for secret in secrets:
        if secret:
            line = line.replace(str(secret), "***")
    return line
