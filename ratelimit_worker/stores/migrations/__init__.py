"""How does a database get the tables of this version? Alembic's scripts, in the wheel, run in-process.

A new revision is written by Alembic from the difference between `tables.py` and a database at the old head:

    engine = engine_for("sqlite:////tmp/old.db"); upgrade(engine)
    with engine.connect() as connection:
        command.revision(alembic_config(connection), "what and why", autogenerate=True, rev_id="NNNN")

with the next number for NNNN; then `HEAD` in revision.py moves. Revisions only add (nullable or defaulted columns,
tables, indexes), so that workers of the version before go on writing during a deploy.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, Select, String, column, inspect, select, table, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from ratelimit_worker.errors import ConfigurationError
from ratelimit_worker.stores.database import ours
from ratelimit_worker.stores.revision import HEAD, VERSION_TABLE
from ratelimit_worker.stores.tables import Base

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["HEAD", "VERSION_TABLE", "alembic_config", "upgrade"]

_FOLDER = Path(__file__).parent
#: Any constant, the same in all versions: PostgreSQL's lock around an upgrade ("rlw" in ASCII and a 1).
_ADVISORY_LOCK = 0x726C7701
_LOCK_PATIENCE_S = 60  #: for another process that upgrades
_one_at_a_time = threading.Lock()  # Alembic's `context` is one for the whole process


def upgrade(engine: Engine) -> None:
    """Bring the database to `HEAD`; one query where it is there already.

    Safe when many processes start at once: one of them upgrades, in one transaction, and the others wait for it.

    Raises:
        StoreUnavailable: The database is away, locked, full or read-only.
        ConfigurationError: The database is newer than this version, or its tables are not ours; it is left alone.
    """
    try:
        with engine.connect() as connection:
            if _is_at_head(connection):
                return
        with _one_at_a_time, engine.begin() as connection:
            _lock(connection)
            if _needs_upgrade(connection):
                _run(connection)
    except SQLAlchemyError as error:
        raise ours(error, engine) from error


def _is_at_head(connection: Connection) -> bool:
    try:
        return connection.scalar(_version()) == HEAD
    except DBAPIError:
        # No version table yet, most likely; if it is something worse, what follows meets it again and says so.
        return False


def _version() -> Select[str]:
    return select(column("version_num", String)).select_from(table(VERSION_TABLE))


def _lock(connection: Connection) -> None:
    """Hold all other upgrades off until this transaction ends."""
    if connection.dialect.name == "sqlite":
        patience_ms = connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one()
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {_LOCK_PATIENCE_S * 1000}")
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver alone would begin at the first INSERT
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience_ms}")
    else:
        connection.execute(text(f"SET LOCAL lock_timeout = '{_LOCK_PATIENCE_S}s'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})


def _needs_upgrade(connection: Connection) -> bool:
    from alembic.script import ScriptDirectory

    found = set(inspect(connection).get_table_names())
    version = connection.scalar(_version()) if VERSION_TABLE in found else None
    if version == HEAD:
        return False
    if version is None:
        if foreign := sorted(found.intersection(Base.metadata.tables)):
            raise ConfigurationError(
                f"the tracking database has tables of another program: {', '.join(foreign)}; give a database of its own"
            )
        return True
    if version not in {script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions()}:
        raise ConfigurationError(
            f"the tracking database is at revision {version!r}, newer than this version ({HEAD!r}); "
            "it is left alone: update ratelimit-worker here"
        )
    return True


def _run(connection: Connection) -> None:
    from alembic import command

    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Config:
    """What Alembic's commands need to work on `connection`, without an alembic.ini."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))  # read by configparser
    config.attributes["connection"] = connection
    return config
