"""Alembic runs this for each command; the connection, and the transaction around it, are the caller's."""

from __future__ import annotations

from alembic import context

from ratelimit_worker.stores.migrations import VERSION_TABLE
from ratelimit_worker.stores.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    # In a database shared with a team's own tables, only ours are compared.
    include_name=lambda name, kind, _parents: kind != "table" or name in Base.metadata.tables,
    render_as_batch=True,  # SQLite changes a column only by copying the table
)
with context.begin_transaction():
    context.run_migrations()
