"""Sums by minute and hour. Existing attempts are added later, in chunks: `rolled_up` says which are not added yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NOT_ROLLED_UP = "rolled_up = 0"


def upgrade() -> None:
    op.add_column(
        "attempts",
        sa.Column("rolled_up", sa.SmallInteger(), server_default="0", nullable=False, comment="1: the roll-ups hold it"),
    )
    op.create_index(
        "ix_attempts_not_rolled_up",
        "attempts",
        ["finished_at"],
        sqlite_where=sa.text(_NOT_ROLLED_UP),
        postgresql_where=sa.text(_NOT_ROLLED_UP),
    )
    op.create_table(
        "rollup_series",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False, comment="a digest of the rest"),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("context", sa.String(), nullable=False),
        sa.Column("tenant", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False, comment="empty: not known"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "rollups",
        sa.Column("span_s", sa.Integer(), autoincrement=False, nullable=False, comment="60 or 3600"),
        sa.Column("at_s", sa.BigInteger(), autoincrement=False, nullable=False, comment="its beginning, epoch"),
        sa.Column("series", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cell", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("span_s", "at_s", "series"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "rollup_batches",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )


def downgrade() -> None:
    op.drop_table("rollup_batches")
    op.drop_table("rollups")
    op.drop_table("rollup_series")
    op.drop_index("ix_attempts_not_rolled_up", "attempts")
    op.drop_column("attempts", "rolled_up")
