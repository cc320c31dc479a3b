"""Keeps the write-ahead log of a SQLite file small while much is deleted from the file.

Commits are in the log until they are copied into the file (a checkpoint). The log only begins anew at a moment when all
of it was copied and nobody reads from it. With a busy writer and busy readers that moment never comes by itself: a
clean-up of 372 MB once left a log of 3.7 GB. So the code that deletes creates that moment, between two transactions,
and waits until it succeeds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from ratelimit_worker.errors import StoreUnavailable

MB = 1 << 20
KEPT = 8 * MB  #: size to which SQLite shortens the log, and above which it is worth doing so, bytes
MOST = 32 * MB  #: while the log is larger, nothing is deleted; others may still write, bytes
PATIENCE_S = 60.0  #: how long to wait for that moment
_PAUSE_S = 0.05
_BUSY_MS = 20  #: how long to wait for readers; short, since writers wait meanwhile

HOLD_S = 0.02  #: intended length of one transaction of a clean-up, for which other writers wait, seconds
FIRST_CHUNK, LEAST_CHUNK, MOST_CHUNK = 100, 20, 500  #: rows in one transaction; each may change about seven pages


def log_size(path: Path) -> int:
    """Bytes of the log beside a database file; 0: there is none."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


def next_chunk(rows: int, took_s: float) -> int:
    """How many rows the next transaction should delete, from the time that the last one took."""
    if took_s > HOLD_S:
        return max(LEAST_CHUNK, rows // 2)
    return min(MOST_CHUNK, rows * 2) if took_s < HOLD_S / 3 else rows


def bound_log(engine: Engine, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Let the log begin anew if it has grown; if it is larger than `MOST`, wait until that succeeds.

    Args:
        path: Of the database file of `engine`.
    Raises:
        StoreUnavailable: a reader has prevented it for longer than a minute.
        SQLAlchemyError: the database cannot be used.
    """
    until_s = time.monotonic() + PATIENCE_S
    while log_size(path) > KEPT and not begin_anew(engine) and log_size(path) > MOST:
        if time.monotonic() >= until_s:
            raise StoreUnavailable(
                f"database {path}: its write-ahead log has {log_size(path) // MB} MB and cannot begin anew, for "
                "somebody has been reading in it for a minute; what was deleted stays deleted"
            )
        sleep(_PAUSE_S)


def begin_anew(engine: Engine) -> bool:
    """Copy the log into the file, and truncate it → whether that succeeded.

    Most is copied while others write; they only wait for the rest.

    Raises:
        SQLAlchemyError: the database cannot be used.
    """
    with engine.connect() as connection:
        run = connection.exec_driver_sql
        run("PRAGMA wal_checkpoint(PASSIVE)").all()
        waits_ms = run("PRAGMA busy_timeout").scalar_one()
        run(f"PRAGMA busy_timeout={_BUSY_MS}").all()
        try:
            busy, _, _ = run("PRAGMA wal_checkpoint(TRUNCATE)").one()
        finally:
            run(f"PRAGMA busy_timeout={waits_ms}").all()
    return not busy
