"""How large may the write-ahead log of a SQLite file become while much is deleted from it?

What is committed stands in the log until it has been copied into the file (a checkpoint), and the log begins anew only
at a moment in which all of it was copied and nobody reads in it. Beside a busy writer and busy readers that moment
never comes by itself: a clean-up of 372 MB once left a log of 3.7 GB. So who deletes makes that moment, between two
transactions, and deletes no more while it does not come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Engine

from ratelimit_worker.errors import StoreUnavailable

MB = 1 << 20
KEPT = 8 * MB  #: bytes: what SQLite may keep of a log that begins anew, and from which on it is worth beginning anew
MOST = 32 * MB  #: bytes: while it is larger nothing is deleted; what others write meanwhile comes on top
PATIENCE_S = 60.0  #: how long to wait for the moment
_PAUSE_S = 0.05
_BUSY_MS = 20  #: a writer waits for as long as we wait for a reader; so not for long

HOLD_S = 0.02  #: how long one transaction of a clean-up should keep other writers waiting
FIRST_CHUNK, LEAST_CHUNK, MOST_CHUNK = 100, 20, 500  #: rows of one transaction; each may change some seven pages


def log_size(path: Path) -> int:
    """Bytes of the log beside a database file; 0: there is none."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


def next_chunk(rows: int, took_s: float) -> int:
    """How many rows the next transaction should delete, after one of so many took so long (`HOLD_S`)."""
    if took_s > HOLD_S:
        return max(LEAST_CHUNK, rows // 2)
    return min(MOST_CHUNK, rows * 2) if took_s < HOLD_S / 3 else rows


def bound_log(engine: Engine, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Let the log begin anew if it has grown; while it is larger than `MOST`, wait until it can.

    Args:
        path: Of the database file of `engine`.
    Raises:
        StoreUnavailable: somebody has been reading in it for longer than a minute.
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
    """Copy what the log holds into the file, and cut it to nothing → whether that could be done.

    Most is copied while others write; they wait only for the rest.

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
