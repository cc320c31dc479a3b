"""Which revision of the schema does this version need? Known without SQLAlchemy, which takes long to import."""

from __future__ import annotations

#: The newest revision. Written down, so that a start at head costs one query and no import of Alembic.
HEAD = "0009"
#: Not Alembic's default name: the database may be a team's own, with migrations of its own.
VERSION_TABLE = "ratelimit_worker_version"
