"""The mode history."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "mode_changes",
        sa.Column("id", sa.String(), nullable=False, comment="the same however often the event is told"),
        sa.Column("lane", sa.String(), nullable=False, comment="* for all lanes, where none was known"),
        sa.Column("from_mode", sa.String(32), nullable=False),
        sa.Column("to_mode", sa.String(32), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column(
            "numbers",
            sa.JSON().with_variant(postgresql.JSONB(), "postgresql"),
            nullable=False,
            comment="the figures behind the cause",
        ),
        sa.Column("who", sa.String(), nullable=False, comment="law, or who pinned the mode"),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True, comment="when a pin ends by itself"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_mode_changes_lane_at", "mode_changes", ["lane", "at"])
    op.create_index("ix_mode_changes_at", "mode_changes", ["at"])


def downgrade() -> None:
    op.drop_table("mode_changes")
